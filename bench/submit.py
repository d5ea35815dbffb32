"""M1: `runner submit -d` of an unchanged tree of 1,000 files, the whole process."""

from __future__ import annotations

import time

from bench.common import RUNNER, Figure, against_yardstick, box, fsyncs_during, project, seconds

YOUNG = 2.5  # files younger than 2 s are hashed again each time, as they must be; an unchanged tree is older


def measure() -> list[Figure]:
    with box() as mine:
        root = project(mine, 1000)
        mine.request("POST", "/box/drain", {"on": True})  # the submit alone: nothing runs beside it
        submit = [RUNNER, "submit", "-d", "--base", "train.py"]
        first = seconds(submit, mine.env, root)
        time.sleep(YOUNG)
        seconds(submit, mine.env, root)
        figure = against_yardstick(
            "M1 submit -d, 1,000 unchanged files", lambda: seconds(submit, mine.env, root), mine.env, root, 5.0
        )
        syncs = fsyncs_during(mine.processes(), lambda: [seconds(submit, mine.env, root) for _ in range(10)] and None)
        figures = [figure, Figure("M1 first submit, 1,000 files of 20 kB to send", first * 1e3, "ms")]
        if syncs is not None:
            figures.append(Figure("M1 fsyncs per submit", syncs / 10, ""))
        return figures
