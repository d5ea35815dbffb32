"""How much of the core its own tests reach: every branch where a decision is pure, nearly all where the kernel acts.

What no test in one process can reach is excluded by `# pragma: no cover`, with the crash test that reaches it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tools import ROOT

pytestmark = pytest.mark.coverage

# What a percentage is of -> the least it may be.
BARS = {
    "runner/box/gpus/cards.py": 100.0,
    "runner/box/gpus/placement.py": 100.0,
    "runner/box/gpus/usage.py": 100.0,
    "runner/box/schedule.py": 100.0,
    "runner/box/settle.py": 100.0,
    "runner/box/store/": 95.0,
    "runner/job/supervisor.py": 95.0,
}
TESTS = (
    "schedule", "placement", "usage", "cards", "rack", "ledger", "exports", "settle", "store", "migrations",
    "supervisor", "vault", "processes", "engines", "daemon", "api",
)  # fmt: skip
EXCLUDED = re.compile(r"#.*pragma: no (?:cover|branch)\b(.*)")


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[int]]]:
    """File -> what coverage says of it, after the tests of the core in a process of their own, and its forks."""
    folder = tmp_path_factory.mktemp("coverage")
    env = {name: value for name, value in os.environ.items() if name != "CI"}  # what needs more is another suite's
    env["COVERAGE_FILE"] = str(folder / "data")
    coverage = [sys.executable, "-m", "coverage"]
    tests = [f"tests/test_{name}.py" for name in TESTS]
    ran = subprocess.run(
        [*coverage, "run", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:]
    for command in (("combine", "--quiet"), ("json", "--quiet", "-o", str(folder / "report.json"))):
        subprocess.run([*coverage, *command], cwd=ROOT, env=env, check=True)
    files: dict[str, dict[str, list[int]]] = json.loads((folder / "report.json").read_text())["files"]
    return files


@pytest.mark.parametrize("place", BARS)
def test_the_core_is_reached_by_its_tests(
    place: str, reached: dict[str, dict[str, list[int]]], figure: Callable[[str], None]
) -> None:
    found = {path: report for path, report in reached.items() if path.startswith(place)}
    assert found, f"nothing was measured at {place}"
    hit = sum(_count(report, "executed") for report in found.values())
    missed = sum(_count(report, "missing") for report in found.values())
    percent = 100 * hit / (hit + missed)
    figure(f"{place}: its tests reach {percent:.1f} % of {hit + missed} lines and branches")
    assert percent >= BARS[place], "\n".join(
        f"{path}: lines {report['missing_lines']}, branches {report['missing_branches']}"
        for path, report in found.items()
    )


def _count(report: dict[str, list[int]], which: str) -> int:
    return len(report[f"{which}_lines"]) + len(report[f"{which}_branches"])


def test_what_is_excluded_names_the_crash_test_that_reaches_it() -> None:
    crash_tests = {path.stem for path in (ROOT / "tests").glob("test_crash_*.py")}
    unnamed = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for place in BARS
        for path in ([ROOT / place] if place.endswith(".py") else sorted(Path(ROOT / place).rglob("*.py")))
        for found in EXCLUDED.finditer(path.read_text())
        if not crash_tests & set(re.findall(r"\w+", found[1]))
    ]
    assert unnamed == []
