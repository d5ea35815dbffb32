"""What every test gets: an environment of its own, a deadline, a place in the time budget; and in CI no excuses."""

from __future__ import annotations

import collections
import functools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import TypeVar

import budget
import hypothesis
import pytest
import tools

pytest_plugins = ("hosts",)  # the fixtures of the test bed
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
IN_CI = bool(os.environ.get("CI"))
# Of one test, by its marker.
DEADLINE_SECONDS = {"slow": 3600.0, "crash": 900.0, "root": 900.0, "box": 900.0, "browser": 120.0, "coverage": 600.0}
OTHER_DEADLINE_SECONDS = float(os.environ.get("TEST_DEADLINE_SECONDS", "120"))

hypothesis.settings.register_profile("house", deadline=None, derandomize=IN_CI, print_blob=True)
hypothesis.settings.load_profile("house")


# A shell that starts this in the background has it ignore them, and with it every process that a test starts.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _usual)


os.umask(0o022)  # Ubuntu and Debian 13 let groups write; what stands for a box's folders in tests is its owner's alone


# --- what runs, and what it took -------------------------------------------------------------------------------------

_suites: dict[str, str] = {}  # test's id -> its suite
_used: dict[str, float] = collections.defaultdict(float)
_left_out: dict[str, int] = collections.Counter()
_figures: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.markexpr:  # somebody who says -m knows what they want
        config.option.markexpr = " and ".join(f"not {marker}" for marker in budget.left_out(IN_CI))


def _suite(item: pytest.Item) -> str:
    return budget.suite(item.path.name, {mark.name for mark in item.iter_markers()})


def pytest_deselected(items: list[pytest.Item]) -> None:
    _left_out.update(_suite(item) for item in items)


def pytest_collection_finish(session: pytest.Session) -> None:
    _suites.update((item.nodeid, _suite(item)) for item in session.items)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _used[_suites[report.nodeid]] += report.duration
    if report.when == "teardown":
        _figures.extend(str(value) for name, value in report.user_properties if name == "figure")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section(f"figures of {time.strftime('%Y-%m-%d')}, {_machine()}")
        for figure in _figures:
            terminalreporter.write_line(figure)
    counts = collections.Counter(_suites.values())
    terminalreporter.section("time budget")
    for line in budget.table({name: (counts[name], spent) for name, spent in _used.items()}, IN_CI):
        terminalreporter.write_line(line)
    reasons = budget.left_out(IN_CI)
    for name in sorted(_left_out.keys() & reasons.keys()):
        terminalreporter.write_line(f"left out: {_left_out[name]} of {name} ({reasons[name]})")
    if others := sum(count for name, count in _left_out.items() if name not in reasons):
        terminalreporter.write_line(f"left out: {others} others (not asked for)")


def _machine() -> str:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{len(os.sched_getaffinity(0))} processors, {memory / (1 << 30):.0f} GiB, Linux {os.uname().release}"


# --- in CI a skip is a failure: whatever is missing has to be installed there ----------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _no_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _no_skip(report)


def _no_skip(report: Report) -> Report:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which in CI is a failure: {report.longrepr}"
    return report


# --- a test that hangs fails -----------------------------------------------------------------------------------------


def _deadline(item: pytest.Item) -> float:
    marked = [DEADLINE_SECONDS[mark.name] for mark in item.iter_markers() if mark.name in DEADLINE_SECONDS]
    return max(marked, default=OTHER_DEADLINE_SECONDS)


def _under_deadline(item: pytest.Item) -> Generator[None, object, object]:
    seconds = _deadline(item)

    def ring(*_: object) -> None:
        pytest.fail(f"still not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_under_deadline)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_under_deadline)


# --- an environment of its own ---------------------------------------------------------------------------------------

_OURS = ("GPUBOX_", "RUNNER_", "XDG_", "PYTHON", "GIT_", "CUDA_")
_UV_CACHE = os.environ.get("UV_CACHE_DIR") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "uv"
)
_UV_CONFIG = os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "uv", "uv.toml")


_SOCKETS = count(1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home that nobody lived in: no settings, no state, no box of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(_OURS):
            monkeypatch.delenv(name)
    place = tmp_path / "home"
    for folder in ("state", "config", "cache", "run"):
        (place / folder).mkdir(mode=0o700, parents=True)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "run"))
    monkeypatch.setenv("GPUBOX_COURIER", "no")  # else a command leaves a process behind
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A Tester")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "tester@example.org")
    monkeypatch.setenv("UV_CACHE_DIR", _UV_CACHE)  # packages are fetched once, not once per test
    if os.path.exists(_UV_CONFIG):
        monkeypatch.setenv("UV_CONFIG_FILE", _UV_CONFIG)
    if not _installed():
        monkeypatch.setenv("PYTHONPATH", str(tools.ROOT))
    sockets = f"{tempfile.gettempdir()}/cp-{os.getpid()}-{next(_SOCKETS)}"
    monkeypatch.setenv("ANSIBLE_SSH_CONTROL_PATH_DIR", sockets)  # below home a path would be too long for a socket
    yield place
    shutil.rmtree(sockets, ignore_errors=True)


def _installed() -> bool:
    try:
        return bool(metadata.version("gpubox"))
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture
def need() -> Callable[[str], str]:
    return tools.need


@pytest.fixture
def wait_until() -> Callable[..., object]:
    return tools.wait_until


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Takes a line with what was measured; it is printed at the end, with the date and the machine."""
    return functools.partial(record_property, "figure")


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Children of a test; all are gone after it."""
    made: list[int] = []
    yield made
    for pid in made:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


@pytest.fixture
def box(tmp_path: Path, home: Path) -> Iterator[tools.Box]:
    """A real embedded box, started; ended with all its jobs after the test."""
    ours = tools.Box(tmp_path / "state")
    try:
        ours.start()
        yield ours
    finally:
        ours.end()
