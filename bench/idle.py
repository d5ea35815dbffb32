"""M5: the idle daemon and the parent of supervisors: memory, and CPU over a minute."""

from __future__ import annotations

import time

from bench.common import Figure, box, cpu_seconds, pss_mib

SECONDS = 60


def measure() -> list[Figure]:
    with box() as mine:
        mine.submit(["true"])
        mine.wait_finished(1)
        time.sleep(3)
        pids = mine.processes()
        before = cpu_seconds(pids)
        time.sleep(SECONDS)
        used = cpu_seconds(pids) - before
        told = f"{len(pids)} processes"
        return [
            Figure("M5 idle daemon and parent, PSS", pss_mib(pids), "MiB", 75.0, note=told),
            Figure("M5 idle daemon and parent, CPU per minute", used * 60 / SECONDS, "s", 0.3),
        ]
