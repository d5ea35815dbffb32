"""How the tests themselves are run: what is left out, what a skip means in CI, what a hanging test becomes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import budget
import pytest

pytestmark = pytest.mark.long

HERE = Path(__file__).resolve().parent
TESTS = """\
import time

import pytest
import tools


def test_passes():
    pass


def test_needs_what_is_not_there():
    tools.need("a-tool-that-nobody-has")


@pytest.mark.root
def test_needs_root():
    pass


@pytest.mark.slow
def test_takes_an_hour():
    raise AssertionError("left out everywhere")
"""
HANGS = """\
import time


def test_hangs():
    time.sleep(30)
"""


def run(place: Path, tests: str, **variables: str) -> tuple[int, list[str]]:
    """pytest over some tests, with our conftest.py, as a process of its own: its exit code and its lines."""
    for name in ("conftest.py", "budget.py", "tools.py", "hosts.py"):
        shutil.copy(HERE / name, place)
    shutil.copytree(HERE / "bed", place / "bed")
    shutil.copy(HERE.parent / "pyproject.toml", place)
    (place / "test_some.py").write_text(tests)
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")}
    env |= {"PYTHONPATH": str(HERE.parent), **variables}
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--override-ini", "testpaths=.")
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


def test_at_home_what_needs_more_is_left_out_and_named(tmp_path: Path) -> None:
    code, lines = run(tmp_path, TESTS)
    assert code == 0
    assert "left out: 1 of root (needs root)" in lines
    assert "left out: 1 of slow (runs in `make soak`)" in lines
    assert "1 passed, 1 skipped, 2 deselected" in lines[-1]


def test_in_ci_a_skip_is_a_failure(tmp_path: Path) -> None:
    code, lines = run(tmp_path, TESTS, CI="true")
    assert code == 1
    assert "1 failed, 2 passed, 1 deselected" in lines[-1]
    assert any("a-tool-that-nobody-has" in line and "in CI is a failure" in line for line in lines)


def test_in_ci_a_module_that_is_skipped_as_a_whole_is_a_failure(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "import pytest\n\npytest.importorskip('a_module_that_nobody_has')\n", CI="true")
    assert code != 0
    assert any("in CI is a failure" in line for line in lines)


def test_a_test_that_hangs_fails(tmp_path: Path) -> None:
    code, lines = run(tmp_path, HANGS, TEST_DEADLINE_SECONDS="0.2")
    assert code == 1
    assert any("still not done after 0.2 s" in line for line in lines)


def test_the_budget_stands_right_before_the_summary(tmp_path: Path) -> None:
    _, lines = run(tmp_path, TESTS)
    assert [line.split() for line in lines if line.startswith("suite")] == [["suite", "tests", "budget", "used"]]
    assert lines[-1].startswith("=")


@pytest.mark.parametrize(
    ("file", "markers", "suite"),
    [
        pytest.param("test_store.py", set(), "store", id="a file is a suite"),
        pytest.param("test_store.py", {"root"}, "root", id="a marker is a suite"),
        pytest.param("test_store.py", {"crash", "slow"}, "slow", id="what runs nowhere comes first"),
        pytest.param("test_store.py", {"parametrize"}, "store", id="other markers mean nothing"),
    ],
)
def test_a_test_belongs_to_one_suite(file: str, markers: set[str], suite: str) -> None:
    assert budget.suite(file, markers) == suite


def test_a_suite_over_its_budget_says_so() -> None:
    lines = budget.table({"store": (3, budget.seconds("store") + 1), "root": (1, 1.0)}, in_ci=True)
    assert [line.endswith("over its budget") for line in lines] == [False, True, False, False]
