"""What each suite of tests may take. A suite is one of the markers below, else the test's file.

Locally only the unmarked suites run and share LOCAL_SECONDS; with CI set everything runs but what NOWHERE names.
A suite over its budget is shown, not failed: machines differ. test_project.py checks that the budgets add up.
"""

from __future__ import annotations

LOCAL_SECONDS = 180.0
CI_SECONDS = 3600.0

# Marker -> (seconds in CI, why it is left out of a plain `make test`).
MARKED = {
    "crash": (425.0, "takes minutes"),
    "root": (210.0, "needs root"),
    "box": (1900.0, "needs root and a test bed"),
    "browser": (120.0, "needs a browser"),
    "coverage": (80.0, "takes minutes"),
    "lint": (20.0, "takes a while"),
    "long": (310.0, "takes many seconds a test"),
}
# Marker -> why not even CI runs it.
NOWHERE = {
    "slow": "runs in `make soak`",
}
# File (without `test_` and `.py`) -> seconds, where it is not OTHER_SECONDS.
FILES = {
    "api": 15.0,
    "auth": 8.0,
    "cli": 10.0,
    "client": 4.0,
    "daemon": 12.0,
    "dashboard": 5.0,
    "engines": 15.0,
    "envs": 12.0,
    "fake_nvml": 5.0,
    "history": 5.0,
    "main_job": 45.0,
    "notify": 4.0,
    "phone": 4.0,
    "plan": 10.0,
    "playbooks": 4.0,
    "power": 4.0,
    "queue_machine": 4.0,
    "retention": 4.0,
    "schedule": 10.0,
    "snapshot": 6.0,
    "store": 4.0,
    "supervisor": 20.0,
    "top": 5.0,
    "verify": 8.0,
    "wishes": 4.0,
}
OTHER_SECONDS = 1.5


def suite(file: str, markers: set[str]) -> str:
    """The suite that a test belongs to, given its file's name and its markers."""
    for marker in (*NOWHERE, *MARKED):
        if marker in markers:
            return marker
    return file.removeprefix("test_").removesuffix(".py")


def seconds(name: str) -> float:
    if name in MARKED:
        return MARKED[name][0]
    return FILES.get(name, OTHER_SECONDS)


def left_out(in_ci: bool) -> dict[str, str]:
    """Marker -> why its tests don't run here."""
    return NOWHERE if in_ci else {**NOWHERE, **{marker: why for marker, (_, why) in MARKED.items()}}


def table(used: dict[str, tuple[int, float]], in_ci: bool) -> list[str]:
    """used: suite -> (tests, seconds). The lines that a run ends with."""
    width = max(map(len, used), default=5)
    limits = {name: None if name in NOWHERE else seconds(name) for name in used}
    whole = None if None in limits.values() else CI_SECONDS if in_ci else LOCAL_SECONDS

    def line(name: str, count: int, limit: float | None, spent: float) -> str:
        budget = "-" if limit is None else f"{limit:.0f} s"
        over = "  over its budget" if limit is not None and spent > limit else ""
        return f"{name:{width}}  {count:5d}  {budget:>6}  {spent:5.1f} s{over}"

    lines = [f"{'suite':{width}}  tests  budget    used"]
    lines += [
        line(name, used[name][0], limits[name], used[name][1]) for name in sorted(used, key=lambda n: -used[n][1])
    ]
    tests, spent = (sum(column) for column in zip((0, 0.0), *used.values(), strict=True))
    return [*lines, line("all", int(tests), whole, spent)]
