"""M3: the end of one job to the start of the next, one at a time, a backlog of 50, no files."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess

from bench.common import REPOSITORY, Box, Figure, box, fsyncs_during, price_of_fsync

JOBS = 51


def stamp(mine: Box) -> str:
    """The job: a C program that writes when it began and when it ended."""
    program = f"{mine.root}/stamp"
    if not os.path.exists(program):
        subprocess.run(["cc", "-O2", "-o", program, f"{REPOSITORY}/bench/stamp.c"], check=True)
    return program


def gaps(path: str) -> list[float]:
    with open(path) as file:
        spans = sorted(tuple(int(word) for word in line.split()) for line in file)
    return [(later[0] - earlier[1]) / 1e6 for earlier, later in itertools.pairwise(spans)]


def measure() -> list[Figure]:
    with box(cpus=1) as mine:
        program = stamp(mine)
        times = f"{mine.root}/times"
        for _ in range(2):
            mine.submit([program, times, "20"], array=JOBS)
            mine.wait_finished(JOBS, pause=0.5)
        found = [gap for gap in gaps(times) if gap < 1000]  # the pause between the two rounds is not a gap
        told = f"p90 {sorted(found)[int(len(found) * 0.9)]:.1f} ms, min {min(found):.1f} ms, n {len(found)}"
        figures = [Figure("M3 end of a job to start of the next", statistics.median(found), "ms", 8.0, note=told)]

        def some() -> None:
            mine.submit([program, times, "1"], array=20)
            mine.wait_finished(20)

        syncs = fsyncs_during(mine.processes(), some)
        if syncs is not None:
            figures.append(Figure("M3 fsyncs per job, start to recorded end", syncs / 20, ""))
        return [*figures, price_of_fsync(mine.root)]
