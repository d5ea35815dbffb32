"""What each suite of tests may take. A suite is one of the markers below, else the test's file.

Locally only the unmarked suites run and share LOCAL_SECONDS; with CI set everything runs but what NOWHERE names.
A suite over its budget is shown, not failed: machines differ. test_project.py checks that the budgets add up.
"""

from __future__ import annotations

LOCAL_SECONDS = 180.0
CI_SECONDS = 3600.0

# Marker -> (seconds in CI, why it is left out of a plain `make test`).
MARKED = {
    "crash": (600.0, "takes minutes"),
    "root": (900.0, "needs root"),
    "browser": (300.0, "needs a browser"),
}
# Marker -> why not even CI runs it.
NOWHERE = {
    "slow": "runs in `make soak`",
    "box": "needs a host booted by the test bed",
}
# File (without `test_` and `.py`) -> seconds, where it is not OTHER_SECONDS.
FILES = {
    "examples": 60.0,
    "machine": 30.0,
}
OTHER_SECONDS = 15.0


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
    lines = [f"{'suite':{width}}  tests  budget    used"]
    for name in sorted(used, key=lambda name: -used[name][1]):
        count, spent = used[name]
        over = "  over its budget" if spent > seconds(name) else ""
        lines.append(f"{name:{width}}  {count:5d}  {seconds(name):4.0f} s  {spent:5.1f} s{over}")
    total, limit = sum(spent for _, spent in used.values()), CI_SECONDS if in_ci else LOCAL_SECONDS
    over = "  over its budget" if total > limit else ""
    lines.append(
        f"{'all':{width}}  {sum(count for count, _ in used.values()):5d}  {limit:4.0f} s  {total:5.1f} s{over}"
    )
    return lines
