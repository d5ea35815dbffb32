"""The small queues: task-spooler, in C; huey, in SQLite with fsync; HyperQueue's LocalCluster, without a journal.

The two from PyPI are looked for beside this interpreter, or beside the python that GPUBOX_BENCH_PEERS names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

from bench.common import NULL, REPOSITORY, Figure
from bench.dispatch import JOBS
from bench.peers.ground import Absent, Ground, until

MANY = 1000
PYTHON = os.environ.get("GPUBOX_BENCH_PEERS") or sys.executable
GUESTS = f"{REPOSITORY}/bench/peers"
ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def task_spooler(ground: Ground) -> list[Figure]:
    if shutil.which("tsp") is None:
        raise Absent("apt install task-spooler")
    places = {"TS_SOCKET": f"{ground.folder}/socket", "TS_MAXFINISHED": str(2 * MANY)}
    ground = replace(ground, env={**ground.env, **places})

    def settle() -> None:
        until(lambda: not {"queued", "running"} & set(ground.said("tsp", "-l").split()), "task-spooler's jobs")

    def finish(times: int, job: list[str]) -> float:
        began = time.perf_counter()
        for _ in range(times):
            ground.run("tsp", *job)
        settle()
        return time.perf_counter() - began

    try:
        figures = [ground.submit("tsp", "true", before=settle), *ground.gap(lambda job: finish(JOBS, job))]
        ground.said("tsp", "-S", "2")
        return [*figures, ground.rate(MANY, finish(MANY, ["true"]), "a client process each, nothing durable")]
    finally:
        ground.said("tsp", "-K")  # its server has left us; the socket of our own leads to it


def huey(ground: Ground) -> list[Figure]:
    _need("huey")
    ground = replace(ground, env={**ground.env, "PYTHONPATH": GUESTS, "HUEY_FILE": f"{ground.folder}/queue.db"})
    client = (PYTHON, "-c", "import huey_guest; huey_guest.main()")
    consumer = (PYTHON, "-m", "huey.bin.huey_consumer", "--quiet", "huey_guest.queue", "--workers")
    figures = [ground.submit(*client, "1", "true", note="; no consumer beside it")]
    with ground.server(*consumer, "1"):
        figures += ground.gap(lambda job: ground.said(*client, str(JOBS), *job))
    with ground.server(*consumer, "2"):
        ground.said(*client, "2", "true")  # from here on the consumer is up
        taken = float(ground.said(*client, str(MANY), "true"))
    return [*figures, ground.rate(MANY, taken, "from one warm process, fsynced")]


def hyperqueue(ground: Ground) -> list[Figure]:
    _need("hyperqueue")
    if not _succeeds(*ALONE, "true"):
        raise Absent("it listens on all addresses, and only root, with unshare and ip, can give it a network alone")
    ground = replace(ground, env={**ground.env, "TQDM_DISABLE": "1"})
    guest = (PYTHON, f"{GUESTS}/hyperqueue_guest.py", ground.folder)
    with ground.server(*ALONE, *guest) as server:
        until(lambda: os.path.exists(f"{ground.folder}/ready"), "HyperQueue's server")
        client = ("nsenter", "--target", str(server), "--net", *guest)
        submit = ground.submit(*client, "1", "1", "true", note="; through nsenter")
        gap = ground.gap(lambda job: ground.said(*client, "2", str(JOBS), *job))
        taken = float(ground.said(*client, "1", str(MANY), "true"))
        return [submit, *gap, ground.rate(MANY, taken, "one job of so many tasks, nothing durable")]


def _need(module: str) -> None:
    if not _succeeds(PYTHON, "-c", f"import {module}"):
        raise Absent(f"pip install {module}, for {PYTHON} or another python that GPUBOX_BENCH_PEERS names")


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, stdin=NULL, stdout=NULL, stderr=NULL).returncode == 0
    except OSError:
        return False
