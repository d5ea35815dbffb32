"""L2: what a laptop sees of a job that it follows, directly and through ssh: how late a line is, and what an
environment that was built before adds to the first one. Both clocks have to be one: loopback, or a host of the same
computer."""

from __future__ import annotations

import os
import statistics
import subprocess
import time

from bench.common import NULL, RUNNER, Figure
from bench.first_line import PAUSE, first_line
from bench.laptop import There, a_box

LINES, TURNS = 60, 12
PRINTS = f"""\
import time
for _ in range({LINES}):
    time.sleep(0.05)
    print(time.time(), flush=True)
"""
DECLARES = """\
# /// script
# dependencies = ["six"]
# ///
import six
print("hi", flush=True)
"""


def measure() -> list[Figure]:
    with a_box(drained=False) as there:
        root = f"{there.root}/followed"
        os.makedirs(root)
        for name, text in (("late.py", PRINTS), ("declares.py", DECLARES), ("plain.py", 'print("hi", flush=True)\n')):
            with open(f"{root}/{name}", "w") as file:
                file.write(text)
        with open(f"{root}/pyproject.toml", "w"):
            pass
        figures = []
        for way in ("direct", "tunnel"):
            late = _late(there, way, root)
            note = f"the slowest of {len(late)} {max(late) * 1e3:.0f} ms"
            figures.append(
                Figure(f"L2 a line of a followed job, {way}", statistics.median(late) * 1e3, "ms", 50, note=note)
            )
        return [*figures, _built(there, root)]


def _late(there: There, way: str, root: str) -> list[float]:
    """Seconds from a job's print to ours."""
    command = [RUNNER, "submit", "--base", "late.py"]
    process = subprocess.Popen(command, env=there.by(way), cwd=root, stdin=NULL, stdout=subprocess.PIPE, stderr=NULL)
    assert process.stdout is not None
    found = [time.time() - float(line) for line in iter(process.stdout.readline, b"")]
    process.stdout.close()
    if process.wait() != 0 or len(found) != LINES:
        raise SystemExit(f"{len(found)} of {LINES} lines came, and {process.returncode}")
    return found


def _built(there: There, root: str) -> Figure:
    declares, plain = ([RUNNER, "submit", *more] for more in (["declares.py"], ["--base", "plain.py"]))
    env = there.by("direct")
    first_line(declares, env, root)  # builds it
    ours, yard = [], []
    for _ in range(TURNS):
        for command, taken in ((declares, ours), (plain, yard)):
            time.sleep(PAUSE)
            taken.append(first_line(command, env, root))
    added = (statistics.median(ours) - statistics.median(yard)) * 1e3
    note = f"{statistics.median(ours) * 1e3:.0f} ms; --base {statistics.median(yard) * 1e3:.0f} ms"
    return Figure("L2 an environment built before adds to the first line", added, "ms", 50, note=note)
