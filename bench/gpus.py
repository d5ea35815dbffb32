"""The GPUs' figures: the collector's price, a GPU from one job to the next, and schedule() over long queues.

The GPUs are those of tests/nvml/fake.c, read by the real collector through the real nvidia-ml-py.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.common import NULL, REPOSITORY, Box, Figure, cpu_seconds, pss_mib
from runner.box.gpus.placement import Card
from runner.box.schedule import Facts, order, schedule
from runner.model import Job, Resources

sys.path.append(f"{REPOSITORY}/tests")
from fake_nvml import FakeNvml

SECONDS = 60
GIB = 1 << 30
LATE_SECONDS = 3.0
BACK_TO_BACK = 12
SIZES = (1_000, 10_000, 100_000)


def measure() -> list[Figure]:
    return [*_collector(), *_handover(), *_long_queues()]


def fake_of(mine: Box, models: list[str]) -> FakeNvml:
    folder = Path(mine.root, "fake")
    folder.mkdir()
    fake = FakeNvml(folder, calls=False)
    for model in models:
        fake.add(model)
    mine.env.update(fake.env)
    return fake


def _collector() -> list[Figure]:
    """8 GPUs and 16 processes that hold them, watched for a minute in which nothing else happens."""
    mine = Box()
    holders = [subprocess.Popen(["sleep", "600"], stdin=NULL) for _ in range(16)]
    try:
        fake = fake_of(mine, ["3090", "4090"] * 4)
        for number, holder in enumerate(holders):
            fake.gpus[number % 8].process(holder.pid, GIB)
        mine.start()
        mine.submit(["true"])
        mine.wait_finished(1)
        time.sleep(3)
        assert mine.daemon is not None
        everybody = mine.processes()
        collector = [pid for pid in everybody if "runner.box.gpus" in _command(pid)]
        before = cpu_seconds(collector), cpu_seconds(everybody)
        time.sleep(SECONDS)
        one, all_of_them = (
            (cpu_seconds(pids) - was) * 60 / SECONDS for pids, was in zip((collector, everybody), before, strict=True)
        )
        told = "8 fake GPUs, 16 processes"
        return [
            Figure("G1 collector, PSS", pss_mib(collector), "MiB", 22.0, note=told),
            Figure("G1 collector, CPU per minute", one, "s", 0.3, note=told),
            Figure("G2 all idle, PSS", pss_mib(everybody), "MiB", 95.0, note=f"{len(everybody)} processes"),
            Figure("G2 all idle, CPU per minute", all_of_them, "s", 0.6),
        ]
    finally:
        mine.close()
        for holder in holders:
            holder.kill()
            holder.wait()


def _command(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read().replace("\0", " ")


def _handover() -> list[Figure]:
    """The end of an exclusive job to the start of the next on the same GPU, as their records say."""
    at_once, late = _gaps(0.0, BACK_TO_BACK), _gaps(LATE_SECONDS, 4)
    return [
        Figure("G3 GPU job to the next, memory frees at once", *_middle(at_once), 150.0, note=_spread(at_once)),
        Figure(f"G3 the same, it frees {LATE_SECONDS:g} s late", *_middle(late), 3300.0, note=_spread(late)),
    ]


def _middle(gaps: list[float]) -> tuple[float, str]:
    return statistics.median(gaps), "ms"


def _spread(gaps: list[float]) -> str:
    return f"{min(gaps):.0f} to {max(gaps):.0f} ms, n {len(gaps)}"


def _gaps(late: float, jobs: int) -> list[float]:
    mine = Box()
    try:
        fake = fake_of(mine, ["3090"])
        fake.gpus[0].free_late(late)
        mine.start()
        code = f"import time\n{fake.holding(6 * GIB)}\ntime.sleep(0.5)"
        spec = {"command": [os.path.realpath(sys.executable), "-c", code], "gpus": 1}
        mine.request("POST", "/jobs", {"spec": spec, "array": list(range(jobs + 1))})
        mine.wait_finished(jobs + 1, pause=0.2)
        ended = mine.request("GET", "/jobs?finished=100")["jobs"]
        assert isinstance(ended, list)
        spans = sorted((job["started_at"], job["ended_at"]) for job in ended)
        return [(later[0] - earlier[1]) * 1e3 for earlier, later in itertools.pairwise(spans)]
    finally:
        mine.close()


def _long_queues() -> list[Figure]:
    """One decision over a queue of jobs for the GPUs, of which some run; of 50 kinds, and each of its own kind."""
    figures = []
    for kinds in (50, max(SIZES)):
        taken = {size: _decision(size, kinds) for size in SIZES}
        for size, milliseconds in taken.items():
            bar = 20.0 if size == 10_000 and kinds == 50 else None
            name = f"G4 schedule(), {size:,} jobs of {min(kinds, size):,} kinds, 8 GPUs"
            figures.append(Figure(name, milliseconds, "ms", bar, note=f"{milliseconds * 1e3 / size:.2f} us a job"))
    return figures


def _decision(size: int, kinds: int) -> float:
    """The best of five, in milliseconds."""
    cards = [Card(f"GPU-{place}", f"GPU {place}", "NVIDIA GeForce RTX 3090", 24 * GIB) for place in range(8)]
    active = [_job(size + place, 1, allotted=[cards[place].uuid], started_at=0.0) for place in range(7)]
    queue = sorted((_job(place + 1, 1 + place % kinds) for place in range(size)), key=order)
    facts = Facts(Resources(2 * size, 256 * GIB, 8), 1000.0, cards=cards)  # cpus for all, so that all are looked at
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        schedule(queue, active, facts)
        best = min(best, time.perf_counter() - began)
    return best * 1e3


def _job(number: int, kind: int, **values: object) -> Job:
    job = Job(number, "queued", "train.py", ["python", "train.py"], "ann", 1000, 0.0, gpus=1 + kind % 3)
    job.gpu_memory_bytes = 20 * GIB - (kind << 10)
    job.time_limit = 3600.0 + kind
    for name, value in values.items():
        setattr(job, name, value)
    return job
