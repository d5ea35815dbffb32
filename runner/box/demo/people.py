"""PURE: four people, what they submit in a day, how long it takes and how it ends; and what it writes into its log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from runner.model import Job, JobSpec, Principal, Submission

GIB = 1 << 30
PEOPLE = {"ann": 70001, "bob": 70002, "carla": 70003, "dan": 70004}  # user ids that no computer gives away by itself
OK, FAIL, GPU_FULL, CANCEL = "ok", "fail", "gpu_full", "cancel"


@dataclass(slots=True, frozen=True)
class Task:
    """Something that one of them does now and then."""

    user: str
    name: str
    command: str
    seconds: tuple[float, float]  # shortest and longest
    often: int  # beside the others
    load: float = 0.9  # of each GPU
    uses: float = 0.0  # GiB of each GPU
    gpus: int = 1
    gpu_type: str = ""
    gpu_memory: int = 0  # GiB that it says it needs; 0: each GPU for itself
    cpus: int = 2
    most: int = 1  # submissions that are not over yet, at once
    array: int = 0
    sweep: Mapping[str, list[str]] = field(default_factory=dict)
    retries: int = 0
    ends: Mapping[str, float] = field(default_factory=dict)  # other than well -> how probable it is
    counts: str = "epoch"  # what its log counts


TASKS = (
    Task("ann", "resnet", "python train.py --config resnet50.yaml", (150, 600), 6, 0.97, 17.2, most=3, retries=1,
         ends={GPU_FULL: 0.12, FAIL: 0.06, CANCEL: 0.06}),
    Task("ann", "lr-sweep", "python train.py --epochs 20", (40, 110), 4, 0.5, 4.6, gpu_memory=6,
         sweep={"lr": ["1e-2", "3e-3", "1e-3"], "wd": ["0", "0.1"]}, ends={FAIL: 0.04}),
    Task("ann", "sample", "python sample.py --prompt a+lighthouse+at+dawn", (12, 30), 7, 0.85, 8.7, gpu_memory=10,
         most=2, ends={GPU_FULL: 0.08}, counts="image"),
    Task("bob", "llama-lora", "torchrun --nproc-per-node 2 finetune_llama.py --lora", (2400, 5400), 8, 0.99, 21.6,
         gpus=2, gpu_type="3090", cpus=8, ends={FAIL: 0.05}, counts="step"),
    Task("bob", "eval", "python eval.py --suite mmlu", (15, 50), 8, 0.4, 3.1, gpu_memory=4, array=6,
         ends={FAIL: 0.03}, counts="batch"),
    Task("bob", "tokenize", "python tokenize_corpus.py --shards 64", (20, 60), 4, gpus=0, cpus=6, counts="shard"),
    Task("carla", "ppo-ant", "python rl_ppo.py --env Ant-v4", (180, 700), 5, 0.22, 2.2, gpu_memory=3, cpus=4, most=3,
         ends={CANCEL: 0.2, FAIL: 0.05}, counts="update"),
    Task("carla", "pretrain", "torchrun --nproc-per-node 4 pretrain.py --size 350m", (240, 500), 2, 0.98, 13.4,
         gpus=4, cpus=16, ends={GPU_FULL: 0.15}, counts="step"),
    Task("dan", "kaggle", "python kaggle_notebook.py", (60, 240), 6, 0.6, 5.9, gpu_memory=8, most=2,
         ends={FAIL: 0.3, GPU_FULL: 0.1}, counts="fold"),
    Task("dan", "unet", "python unet.py --size 512 --amp", (90, 300), 5, 0.93, 11.8, gpu_type="4080", most=2,
         ends={CANCEL: 0.1}),
)  # fmt: skip

VISITOR = ("dan", "python -m jupyter lab")  # who uses GPUs without the queue
VISITOR_BYTES = int(11.2 * GIB)
FAILURES = (
    "FileNotFoundError: [Errno 2] No such file or directory: 'data/train.parquet'",
    "ValueError: Input contains NaN, infinity or a value too large for dtype('float32')",
    "KeyError: 'model_state_dict'",
    "RuntimeError: mat1 and mat2 shapes cannot be multiplied (64x512 and 768x256)",
)


def who(name: str) -> Principal:
    return Principal(PEOPLE[name], name, "submit")


def submission(task: Task) -> Submission:
    spec = JobSpec(
        task.command.split(),
        name=task.name,
        project=f"/projects/{task.user}",
        environment="base",
        cpus=task.cpus,
        gpus=task.gpus,
        gpu_type=task.gpu_type,
        gpu_memory_bytes=task.gpu_memory * GIB,
        time_limit=math.ceil(task.seconds[1] * 1.2 / 60) * 60.0,
        retries=task.retries,
        retry_on=["cuda_out_of_memory"] if task.retries else [],
    )
    return Submission(spec, list(range(task.array)) or None, dict(task.sweep) or None)


def stranger(job: Job) -> Task:
    """What somebody submitted who is not of the play: it only pretends to run, and says so."""
    uses = job.gpu_memory_bytes * 0.85 / GIB if job.gpu_memory_bytes else 7.5
    told = f"{' '.join(job.command)} (the demo only pretends to run it)"
    return Task(job.user, job.name, told, (8, 8), 0, 0.8, uses, counts="step")


def pace(task: Task) -> float:
    """Seconds between two lines of its log."""
    return 1.0 + task.seconds[1] / 150


def fate(task: Task, chance: Random) -> tuple[str, float, float]:
    """How a run will end, how many seconds it would take in all, and after how many it ends."""
    shortest, longest = task.seconds
    seconds = shortest * (longest / shortest) ** chance.random()
    left = chance.random()
    for end, probable in task.ends.items():
        left -= probable
        if left < 0:
            return end, seconds, seconds * chance.uniform(0.05, 0.7)
    return OK, seconds, seconds


# --- logs ---


def first_lines(task: Task, gpus: int) -> str:
    where = f"{gpus} GPU{'s' * (gpus != 1)}" if gpus else "the CPU"
    return f"on {where}: {task.command}\nloading data\n"


def line(counts: str, done: int, of: int, chance: Random) -> str:
    """One line of progress."""
    if counts in ("shard", "batch", "image"):
        return f"{counts} {done}/{of}  {chance.uniform(0.4, 2.2):.2f} s\n"
    loss = 0.08 + 2.4 * math.exp(-4 * done / of) + chance.uniform(-0.03, 0.03)
    if counts == "update":
        return f"update {done}/{of}  reward {3000 * (1 - loss / 3) + chance.uniform(-90, 90):.0f}  loss {loss:.4f}\n"
    return f"{counts} {done}/{of}  loss {loss:.4f}  accuracy {min(1 - loss / 2.7, 0.995):.4f}\n"


def last_lines(task: Task, end: str, memory_bytes: int, chance: Random) -> str:
    """What a run says when it ends by itself."""
    if end == OK:
        return "done\n"
    if end == GPU_FULL:
        total, wanted = memory_bytes / GIB, chance.uniform(0.5, 3.0)
        said = (
            f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {wanted:.2f} GiB. GPU 0 has a total "
            f"capacity of {total:.2f} GiB of which {wanted / 3:.2f} GiB is free."
        )
    else:
        said = chance.choice(FAILURES)
    return (
        f'Traceback (most recent call last):\n  File "main.py", line {chance.randint(40, 400)}, in <module>\n{said}\n'
    )
