"""Disks that fail: full, cut off from power, and every system call of a launch in its turn. Needs root."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tools
from crash import writer

from runner import files, words
from runner.box.store import Store
from runner.paths import StateDir

pytestmark = [pytest.mark.root]
CUTS = 24
WRITER = [sys.executable, "-m", "crash.writer"]


@contextlib.contextmanager
def mounted(source: Path | str, at: Path, *options: str) -> Iterator[None]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(source), str(at)], check=True)
    try:
        yield
    finally:
        tools.wait_until(lambda: subprocess.run(["umount", str(at)], capture_output=True).returncode == 0)


@contextlib.contextmanager
def writing(state: Path, acks: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon's core that submits and runs jobs, and writes each thing that it promised to another disk."""
    process = subprocess.Popen([*WRITER, str(state), str(acks), *more], env=_env(), stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        for pid in tools.processes_naming(str(state)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        tools.wait_until(lambda: not tools.processes_naming(str(state)))


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{tools.ROOT}:{tools.ROOT}/tests"}


def promised(acks: Path) -> tuple[set[int], dict[int, int]]:
    """(jobs whose submit was acknowledged, job -> code that was told)."""
    lines = [line.split() for line in acks.read_text().splitlines()]
    return {int(row[1]) for row in lines if row[0] == "job"}, {
        int(row[1]): int(row[2]) for row in lines if row[0] == "end"
    }


def test_nothing_acknowledged_is_lost_in_a_power_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked = _cut_power(tmp_path)
    with capsys.disabled():
        os.write(1, f"\n{CUTS} power cuts: {dict(checked)}\n".encode())
    assert checked["codes"] > CUTS


def test_a_database_that_does_not_wait_for_the_disk_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cuts, with synchronous=NORMAL: if nothing were lost here, the test above would show nothing."""
    monkeypatch.setenv("CRASH_SYNCHRONOUS", "NORMAL")
    with pytest.raises(AssertionError, match="after the cut"):
        _cut_power(tmp_path)


def _cut_power(tmp_path: Path) -> collections.Counter[str]:
    """Again and again: everything stopped, the disk copied as it is, and what was promised looked for on the copy."""
    tools.need_root()
    tools.need("mkfs.ext4")
    disk, acks = tmp_path / "disk.img", tmp_path / "acks"
    acks.touch()
    with disk.open("wb") as file:
        file.truncate(96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    checked = collections.Counter[str]()
    with mounted(disk, tmp_path / "live", "-o", "loop"), writing(tmp_path / "live/state", acks):
        for cut in range(CUTS):
            before = len(acks.read_text().splitlines())
            tools.wait_until(lambda before=before: len(acks.read_text().splitlines()) > before + 3, 30)  # type: ignore[misc]
            time.sleep(0.003 * (cut % 7))  # so that cuts fall everywhere in a transaction
            _signal_all(tmp_path / "live/state", signal.SIGSTOP)
            jobs, codes = promised(acks)
            after = tmp_path / "after.img"
            subprocess.run(["cp", "--sparse=always", str(disk), str(after)], check=True)  # what had reached the disk
            _signal_all(tmp_path / "live/state", signal.SIGCONT)
            with mounted(after, tmp_path / "after", "-o", "loop"):
                checked += _compare(StateDir(tmp_path / "after/state"), jobs, codes)
            after.unlink()
    return checked


def _signal_all(state: Path, number: int) -> None:
    """The daemon, the parent, supervisors; again for those that were forked meanwhile."""
    for _ in range(3):
        for pid in tools.processes_naming(str(state)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _compare(state: StateDir, jobs: set[int], codes: dict[int, int]) -> collections.Counter[str]:
    assert os.path.exists(state.database), "no database after the cut"
    store = Store(state.database)
    try:
        known = {job.id: job for job in store.jobs(sorted(store.states(jobs)))}
    finally:
        store.close()
    assert set(known) == jobs, f"lost after the cut: {sorted(jobs - set(known))}"
    for job, code in codes.items():
        assert known[job].exit_code == code, f"after the cut, job {job} ended not with {code}: {known[job]}"
    return collections.Counter(jobs=len(jobs), codes=len(codes))


def test_a_full_disk_refuses_submits_and_loses_no_end(tmp_path: Path) -> None:
    tools.need_root()
    acks, release = tmp_path / "acks", tmp_path / "release"
    acks.touch()
    with mounted("tmpfs", tmp_path / "small", "-t", "tmpfs", "-o", "size=8m"):
        state = tmp_path / "small/state"
        with writing(state, acks, "full", str(release)) as process:
            said: Callable[[str], bool] = lambda word: word in acks.read_text().split()  # noqa: E731
            tools.wait_until(lambda: said("running"), 20)
            filler = tmp_path / "small/filler"
            _fill(filler)
            (tmp_path / "release.full").touch()
            tools.wait_until(lambda: said("refused"), 20)
            release.touch()  # the running job ends, on a disk without a free block
            record = tools.wait_until(lambda: files.get(f"{state}/jobs/1/1", "exit"), 20)
            assert record["exit_code"] == writer.CODE
            tools.wait_until(lambda: said("ended"), 20)  # and the database knows, for which the ballast went
            filler.unlink()
            (tmp_path / "release.free").touch()
            tools.wait_until(lambda: said("done"), 30)
            assert process.wait(20) == 0
        store = Store(f"{state}/runner.db")
        states = {job.id: (job.state, job.exit_code) for job in store.jobs([1, 2])}
        assert states == {1: (words.FAILED, writer.CODE), 2: (words.FAILED, writer.CODE)}
        assert sum(store.counts().values()) == 2, "what was refused left no job behind"
        store.close()


def _fill(path: Path) -> None:
    """To the last block."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


# --- every system call in its turn -----------------------------------------------------------------------------------

# What a launch and an end are made of. `when` counts in each process by itself, from the moment strace is there.
SWEPT = (
    "fsync", "fdatasync", "link", "unlink", "rename", "flock", "mkdir", "clone", "fork", "execve", "write", "pwrite64",
    "ftruncate", "fallocate", "wait4", "setsid", "prctl", "sendto", "dup2", "poll", "openat", "pidfd_open",
)  # fmt: skip
ERRORS = (
    ("fsync", "EIO"), ("write", "ENOSPC"), ("pwrite64", "ENOSPC"), ("fallocate", "ENOSPC"), ("mkdir", "ENOSPC"),
    ("openat", "EMFILE"), ("clone", "EAGAIN"), ("fork", "EAGAIN"), ("link", "ENOSPC"),
)  # fmt: skip
MOST = 14  # of one system call; later ones repeat the pattern


def _traced(folder: Path, *options: str) -> None:
    """One job, with strace at its daemon from before the submit; then daemons without, until it is over."""
    folder.mkdir()
    acks = folder / "acks"
    acks.touch()
    with writing(folder / "state", acks, "once", str(folder / "go")) as process:
        tools.wait_until(lambda: "waiting" in acks.read_text(), 20)
        strace = subprocess.Popen(
            ["strace", "-f", "-qq", *options, "-p", str(process.pid)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        tools.wait_until(lambda: _is_traced(process.pid), 10)
        (folder / "go").touch()
        deadline = time.monotonic() + 12
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
        with contextlib.suppress(subprocess.TimeoutExpired):
            strace.wait(1)
        strace.terminate()
        strace.wait(10)
    for _ in range(5):
        done = subprocess.run(
            [*WRITER, str(folder / "state"), str(acks), "once", str(folder / "go")], env=_env(), timeout=60
        )
        if done.returncode == 0:
            return
    pytest.fail(f"never over with {options}")


def _is_traced(pid: int) -> bool:
    return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()


def _judge(folder: Path) -> str:
    store = Store(f"{folder}/state/runner.db")
    jobs = store.jobs(range(1, 1 + sum(store.counts().values())))
    store.close()
    ledger = folder / "ledger"
    starts = ledger.read_text().splitlines() if ledger.exists() else []
    assert len(jobs) == 1, "one request, one job"
    assert len(starts) <= 1, f"doubled: {starts}"
    assert jobs[0].state in words.FINISHED
    assert jobs[0].exit_code == writer.CODE or jobs[0].state in (words.LOST, words.FAILED), jobs[0]
    for attempt in Path(f"{folder}/state/jobs/1").glob("[0-9]*"):
        held = files.lock(f"{attempt}/lock")
        assert held is not None, f"{attempt} is held"
        os.close(held)
    return f"{jobs[0].state} {jobs[0].exit_code or jobs[0].reason}, {len(starts)} starts"


def _counts(folder: Path) -> dict[str, int]:
    """How often each system call is made by the process that makes it most."""
    _traced(folder, "-ff", "-o", str(folder.parent / "trace"), "-e", f"trace={','.join(SWEPT)}")
    most: dict[str, int] = {}
    for trace in folder.parent.glob("trace.*"):
        names = re.findall(r"^(\w+)\(", trace.read_text(), re.MULTILINE)
        for name, count in collections.Counter(names).items():
            most[name] = max(most.get(name, 0), count)
    return most


def _swept(tmp_path: Path, faults: list[tuple[str, str, int]]) -> collections.Counter[str]:
    """faults: (system call, what strace does there, at which of them). How the jobs ended."""

    def play(fault: tuple[str, str, int]) -> str:
        call, injected, nth = fault
        folder = tmp_path / f"{call}-{injected.partition('=')[2]}-{nth}"
        _traced(folder, "-e", f"trace={call}", "-e", f"inject={call}:{injected}:when={nth}")
        end = _judge(folder)
        shutil.rmtree(folder)
        return end

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return collections.Counter(pool.map(play, faults))


def test_a_kill_at_any_system_call_does_no_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools.need_root()
    tools.need("strace")
    counts = _counts(tmp_path / "plain")
    assert _judge(tmp_path / "plain") == f"failed {writer.CODE}, 1 starts"
    calls = [(name, nth) for name in SWEPT for nth in range(1, min(counts.get(name, 0), MOST) + 1)]
    ends = _swept(tmp_path, [(name, "signal=KILL", nth) for name, nth in calls])
    with capsys.disabled():
        os.write(1, f"\n{ends.total()} kills at system calls: {json.dumps(ends, indent=1)}\n".encode())
    assert ends.total() >= 60


def test_an_error_from_any_system_call_does_no_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools.need_root()
    tools.need("strace")
    counts = _counts(tmp_path / "plain")
    calls = [(name, error, nth) for name, error in ERRORS for nth in range(1, min(counts.get(name, 0), 6) + 1)]
    ends = _swept(tmp_path, [(name, f"error={error}", nth) for name, error, nth in calls])
    with capsys.disabled():
        os.write(1, f"\n{ends.total()} errors of system calls: {json.dumps(ends, indent=1)}\n".encode())
    assert ends.total() >= 20
