"""Runs the programs of one build, one after the other, and takes them all down when the daemon that asked is gone.

    python -I leash.py <pid of the daemon> <the lock's descriptor> '[["program", "argument"], ...]'

It leads a session of its own; everything that a build starts is in its group unless it leaves on purpose, and then it
still holds the build's lock. It ends with the code of the first program that fails.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.abspath(f"{__file__}/../../../.."))
from runner import files  # run as a file, by an interpreter that need not know the package


def end_all(*_: object) -> None:
    os.killpg(0, signal.SIGKILL)


def main(daemon: str, lock: str, programs: str) -> int:
    signal.signal(signal.SIGTERM, end_all)
    files.die_with_parent(signal.SIGTERM)
    if os.getppid() != int(daemon):
        end_all()  # it was gone before the kernel knew whom to watch
    os.nice(10)
    for program in json.loads(programs):
        code = subprocess.run(program, stdin=subprocess.DEVNULL, pass_fds=[int(lock)]).returncode
        if code != 0:
            return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
