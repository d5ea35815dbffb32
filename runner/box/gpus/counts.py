"""The driver's counters, kept as text over the end of a daemon. They begin anew with each boot: those of another boot
are of no use, and what was counted beside them does not go on."""

from __future__ import annotations

import json
from dataclasses import asdict

from runner import files
from runner.box.gpus.meter import Count


def dumped(count: Count | None) -> str:
    return json.dumps(({} if count is None else asdict(count)) | {"boot": files.boot_id()})


def loaded(text: str) -> Count | None:
    """None: nothing of use was kept."""
    try:
        said = json.loads(text)
        if said["boot"] != files.boot_id():
            return None
        return Count(float(said["at"]), said["energy_joules"], dict(said["throttled"]))
    except (ValueError, KeyError, TypeError):
        return None


def another_boot(text: str) -> bool:
    """Whether it was kept before the box went down."""
    try:
        return bool(json.loads(text)["boot"] != files.boot_id())
    except (ValueError, KeyError, TypeError):
        return False
