"""M6: a daemon under load, killed 200 times with -9, at every named window at least 5 times; the judge of the tests."""

from __future__ import annotations

import os
import sys

from bench.common import REPOSITORY, Figure


def measure() -> list[Figure]:
    sys.path.insert(0, os.path.join(REPOSITORY, "tests"))
    from crash import kill_loop

    found = kill_loop.run(200)
    least = min(found.kills[window] for window in kill_loop.WINDOWS)
    told = f"{sum(found.kills.values())} kills, {len(kill_loop.WINDOWS)} windows, {found.jobs} jobs"
    return [
        Figure("M6 jobs lost", len(found.lost), "", 0.0, note=told),
        Figure("M6 jobs doubled", len(found.doubled), "", 0.0),
        Figure("M6 orphans", len(found.orphans), "", 0.0),
        Figure("M6 wrong or unknown ends of supervised jobs", len(found.wrong), "", 0.0),
        Figure("M6 kills at the least hit window", least, "", 5.0, at_least=True),
        Figure("M6 slowest recovery with 10,000 rows", max(found.recoveries), "s", 2.0),
    ]
