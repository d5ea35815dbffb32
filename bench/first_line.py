"""M2: from the start of `runner submit` to the job's first line on the terminal, same tree, base environment."""

from __future__ import annotations

import os
import subprocess
import time

from bench.common import NULL, RUNNER, Figure, against_yardstick, box, project

PAUSE = 1.0  # between two submits, as a person has: the box makes a spare work tree meanwhile


def first_line(arguments: list[str], env: dict[str, str], cwd: str) -> float:
    began = time.perf_counter()
    process = subprocess.Popen(arguments, env=env, cwd=cwd, stdin=NULL, stdout=subprocess.PIPE, stderr=NULL)
    assert process.stdout is not None
    line = os.read(process.stdout.fileno(), 100)
    taken = time.perf_counter() - began
    process.stdout.read()
    process.stdout.close()
    if process.wait() != 0 or not line.startswith(b"hi"):
        raise SystemExit(f"{arguments} said {line!r} and ended with {process.returncode}")
    return taken


def measure() -> list[Figure]:
    with box() as mine:
        root = project(mine, 1000)
        follow = [RUNNER, "submit", "--base", "train.py"]

        def again() -> float:
            time.sleep(PAUSE)
            return first_line(follow, mine.env, root)

        def edited() -> float:
            with open(f"{root}/train.py", "a") as file:
                file.write("# edited\n")
            return again()

        first = first_line(follow, mine.env, root)
        return [
            against_yardstick("M2 submit to first line, 1,000 files", again, mine.env, root, 12.0, times=20),
            against_yardstick("M2 the same, one file edited each time", edited, mine.env, root, 12.0, times=20),
            Figure("M2 the very first submit: 20 MB sent and laid out", first * 1e3, "ms"),
        ]
