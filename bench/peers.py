"""The peers that are installed here, by the same measures: task-spooler (`tsp`), huey and HyperQueue from PyPI.

task-spooler is a C program without snapshots or durability: a floor rather than a rival. Slurm and Ray need a set-up
of their own; what they reached is in docs/verified.md.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from bench.common import NULL, QUIET, REPOSITORY, Figure, against_yardstick, seconds
from bench.dispatch import JOBS, gaps


def measure() -> list[Figure]:
    figures: list[Figure] = []
    if shutil.which("tsp"):
        with tempfile.TemporaryDirectory() as folder:
            figures += _task_spooler(folder)
    else:
        figures.append(Figure("task-spooler is not installed (apt install task-spooler)", 0, ""))
    for package in ("huey", "hyperqueue"):
        if importlib.util.find_spec(package) is None:
            figures.append(Figure(f"{package} is not installed here (pip install {package})", 0, ""))
    if importlib.util.find_spec("huey"):
        with tempfile.TemporaryDirectory() as folder:
            figures += _huey(folder)
    if importlib.util.find_spec("hyperqueue"):
        with tempfile.TemporaryDirectory() as folder:
            figures += _hyperqueue(folder)
    return figures


def _task_spooler(folder: str) -> list[Figure]:
    env = {**QUIET, "TS_SOCKET": f"{folder}/socket", "TMPDIR": folder, "TS_MAXFINISHED": "20000"}
    try:
        submit = against_yardstick(
            "peer task-spooler M1", lambda: seconds(["tsp", "true"], env, folder), env, folder, 5.0
        )
        submit.bar = None
        seconds(["tsp", "-w"], env, folder)
        times = f"{folder}/times"
        program = f"{folder}/stamp"
        subprocess.run(["cc", "-O2", "-o", program, f"{REPOSITORY}/bench/stamp.c"], check=True)
        for _ in range(JOBS):
            seconds(["tsp", program, times, "20"], env, folder)
        seconds(["tsp", "-w"], env, folder)
        gap = Figure("peer task-spooler M3", statistics.median(gaps(times)), "ms")
        seconds(["tsp", "-S", "2"], env, folder)
        began = time.perf_counter()
        for _ in range(1000):
            seconds(["tsp", "true"], env, folder)
        while "queued" in (listing := _said(["tsp", "-l"], env)) or "running" in listing:
            time.sleep(0.05)
        return [submit, gap, Figure("peer task-spooler M4 (1,000)", 1000 / (time.perf_counter() - began), "/s")]
    finally:
        subprocess.run(["tsp", "-K"], env=env, check=False, stdin=NULL, stdout=NULL, stderr=NULL)


def _huey(folder: str) -> list[Figure]:
    module = f"{folder}/tasks.py"
    with open(module, "w") as file:
        file.write(
            "import subprocess\nfrom huey import SqliteHuey\n"
            f"huey = SqliteHuey(filename={folder + '/queue.db'!r}, fsync=True)\n"
            "@huey.task()\ndef run(argv):\n    return subprocess.call(argv)\n"
        )
    env = {**QUIET, "PYTHONPATH": folder}
    consumer = subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), "huey_consumer"), "tasks.huey", "-w", "2"],
        env=env, cwd=folder, stdin=NULL, stdout=NULL, stderr=NULL,
    )  # fmt: skip
    try:
        code = "import sys,tasks; n=int(sys.argv[1]); rs=[tasks.run(['true']) for _ in range(n)]; "
        code += "[r.get(blocking=True, backoff=1.0, max_delay=0.02) for r in rs]"
        began = time.perf_counter()
        seconds([sys.executable, "-c", code, "1000"], env, folder)
        return [Figure("peer huey, SQLite with fsync, M4 (1,000)", 1000 / (time.perf_counter() - began), "/s")]
    finally:
        consumer.terminate()
        consumer.wait()


def _hyperqueue(folder: str) -> list[Figure]:
    code = (
        "import sys,time\nfrom hyperqueue.cluster import LocalCluster, WorkerConfig\nfrom hyperqueue.job import Job\n"
        "with LocalCluster() as cluster:\n"
        "    cluster.start_worker(WorkerConfig(cores=2))\n    client = cluster.client()\n    job = Job()\n"
        "    for _ in range(1000): job.program(['true'])\n"
        "    began = time.perf_counter(); client.wait_for_jobs([client.submit(job)], raise_on_error=False)\n"
        "    print(1000 / (time.perf_counter() - began))\n"
    )
    said = _said([sys.executable, "-c", code], {**QUIET, "HOME": folder})
    return [Figure("peer HyperQueue (Python API, no journal) M4 (1,000)", float(said.split()[-1]), "/s")]


def _said(arguments: list[str], env: dict[str, str]) -> str:
    return subprocess.run(arguments, env=env, capture_output=True, text=True, check=True, stdin=NULL).stdout
