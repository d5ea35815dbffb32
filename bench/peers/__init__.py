"""The peers that are installed here, by our measures: task-spooler, huey, HyperQueue, Slurm.

Each has M1 (a submit, the whole client process), M3 (end of a job to start of the next) and M4 (no-op jobs completed
per second, 2 at a time). None takes a snapshot of the code, and only huey is asked to fsync what it accepts.
"""

from __future__ import annotations

import os
import subprocess
import tempfile

from bench.common import QUIET, REPOSITORY, Figure
from bench.peers import queues, slurm
from bench.peers.ground import Absent, Ground

ALL = {
    "task-spooler": queues.task_spooler,
    "huey": queues.huey,
    "HyperQueue": queues.hyperqueue,
    "Slurm": slurm.measure,
}


def measure() -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="gpubox-peers-") as root:
        os.chmod(root, 0o755)  # munge wants its socket where everybody may look
        stamp = _stamp(f"{root}/stamp")
        for name, measured in ALL.items():
            folder = f"{root}/{name}"
            os.mkdir(folder)
            env = {**QUIET, "HOME": folder, "TMPDIR": folder, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin"}
            try:
                figures += measured(Ground(name, folder, env, stamp))
            except Absent as absent:
                print(f"{name} is left out: {absent}", flush=True)
            except (SystemExit, OSError, subprocess.SubprocessError) as error:
                print(f"{name} did not get through: {error}", flush=True)
    return figures


def _stamp(program: str) -> str | None:
    """The job of M3, compiled."""
    try:
        subprocess.run(["cc", "-O2", "-o", program, f"{REPOSITORY}/bench/stamp.c"], check=True)
    except (OSError, subprocess.CalledProcessError):
        print("M3 of the peers is left out: its job wants a C compiler (apt install gcc libc6-dev)", flush=True)
        return None
    return program
