"""M7: `runner ps` and `runner ps --all --json` with 10,000 finished jobs."""

from __future__ import annotations

from bench.common import RUNNER, Figure, against_yardstick, box, seconds
from bench.throughput import JOBS


def measure(jobs: int = JOBS) -> list[Figure]:
    with box() as mine:
        mine.submit(["true"], array=jobs)
        mine.wait_finished(jobs, pause=0.25)

        def run(*words: str) -> float:
            return seconds([RUNNER, "ps", *words], mine.env, mine.root)

        return [
            against_yardstick("M7 ps, 10,000 finished", run, mine.env, mine.root, 5.0),
            against_yardstick("M7 ps --all --json", lambda: run("--all", "--json"), mine.env, mine.root, 15.0),
        ]
