"""M4: 10,000 no-op jobs as one array, 2 at a time: enqueue, and completed per second from the enqueue on."""

from __future__ import annotations

import time

from bench.common import Figure, box

JOBS = 10_000


def measure(jobs: int = JOBS) -> list[Figure]:
    with box(cpus=2) as mine:
        began = time.perf_counter()
        mine.submit(["true"], array=jobs)
        enqueued = time.perf_counter() - began
        mine.wait_finished(jobs, pause=0.25)
        taken = time.perf_counter() - began
        counts = mine.counts()
        if counts.get("succeeded") != jobs:
            raise SystemExit(f"not all succeeded: {counts}")
        return [
            Figure(f"M4 enqueue {jobs} jobs as one array", enqueued, "s", 1.0),
            Figure("M4 completed, 2 at a time", jobs / taken, "/s", 150.0, at_least=True, note="aim 300"),
        ]
