"""Watching a process that the queue did not start: its end is told, and a cancel leaves it alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tools import need_root, wait_until

from runner.box import frozen
from runner.job import adopt, processes


def sleeper(pids: list[int], *command: str) -> tuple[int, int]:
    """(pid, start) of a process to be watched."""
    pids.append(os.posix_spawnp("sleep", list(command or ("sleep", "600")), os.environ))
    wait_until(lambda: Path(f"/proc/{pids[-1]}/comm").read_text() == "sleep\n")
    start = processes.started(pids[-1])
    assert start is not None
    return pids[-1], start


class Watcher:
    """`pyz adopt PID START`, as a job runs it; what it says is in a file, as a job's log is."""

    def __init__(self, folder: Path, pids: list[int], pid: int, start: int) -> None:
        pyz = frozen.freeze(str(folder))
        self.log = folder / "log"
        out = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        command = [sys.executable, "-I", "-S", pyz, "adopt", str(pid), str(start)]
        self.pid = os.posix_spawn(
            command[0], command, {}, file_actions=[(os.POSIX_SPAWN_DUP2, out, to) for to in (1, 2)]
        )
        os.close(out)
        pids.append(self.pid)

    def says(self, text: str) -> None:
        wait_until(lambda: text in self.log.read_text(), 10, self.log.read_text)

    def code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_process_is_watched_to_its_end(tmp_path: Path, pids: list[int]) -> None:
    pid, start = sleeper(pids)
    ours = Watcher(tmp_path, pids, pid, start)
    ours.says(f"watching process {pid}: sleep 600\n")
    os.kill(pid, signal.SIGKILL)
    assert ours.code() == 0
    said = ours.log.read_text().splitlines()
    assert len(said) == 2
    assert said[1].startswith(f"process {pid} ended after ")
    assert said[1].endswith(" s; its exit code is known to its parent alone")


def test_a_cancel_lets_go_of_it(tmp_path: Path, pids: list[int]) -> None:
    pid, start = sleeper(pids)
    ours = Watcher(tmp_path, pids, pid, start)
    ours.says("watching")
    os.kill(ours.pid, signal.SIGTERM)
    assert ours.code() == 0
    assert ours.log.read_text().splitlines()[1] == f"let go of process {pid}, which runs on"
    assert processes.living([(pid, start)]) == [(pid, start)]


def test_what_is_watched_is_none_of_its_own(tmp_path: Path, pids: list[int]) -> None:
    ours = Watcher(tmp_path, pids, *sleeper(pids))
    ours.says("watching")
    assert processes.descendants(ours.pid) == set()


def test_another_process_under_that_number_is_not_watched(tmp_path: Path, pids: list[int]) -> None:
    pid, start = sleeper(pids)
    ours = Watcher(tmp_path, pids, pid, start - 1)
    assert ours.code() == adopt.GONE == 3
    assert ours.log.read_text() == f"process {pid} is gone\n"


def test_a_process_that_is_gone_is_not_watched(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert adopt.main([str(1 << 30), "5"]) == adopt.GONE
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().out == f"process {1 << 30} is gone\n"


@pytest.mark.root
def test_a_process_of_another_user_is_watched(tmp_path: Path, pids: list[int]) -> None:
    need_root()
    pid, start = sleeper(pids)
    out = os.open(tmp_path / "log", os.O_CREAT | os.O_RDWR)
    watcher = os.fork()
    if watcher == 0:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.dup2(out, 1)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            os.setresuid(65534, 65534, 65534)
            os._exit(adopt.main([str(pid), str(start)]))
        finally:
            os._exit(70)
    os.close(out)
    wait_until(lambda: "watching" in (tmp_path / "log").read_text())
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1]) == 0
    assert f"process {pid} ended after" in (tmp_path / "log").read_text()


def test_a_command_is_shown_in_one_line(pids: list[int]) -> None:
    odd, _ = sleeper(pids, "sleep\n\x1b[31m", "600")
    assert adopt._command(odd) == "sleep??[31m 600"
    pids.append(os.posix_spawnp("true", ["true"], {}))
    wait_until(lambda: (processes._stat(pids[-1]) or [b""])[0] == b"Z")
    assert adopt._command(pids[-1]) == "[true]"
    assert adopt._command(1 << 30) == "?"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (75, "1 min 15 s"),
        (3725, "1 h 2 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_has_two_units(seconds: float, words: str) -> None:
    assert adopt._duration(seconds) == words


def test_a_process_is_as_old_as_its_start_says(pids: list[int]) -> None:
    _, start = sleeper(pids)
    assert 0 <= adopt._age(start) < 10
    assert adopt._age(0) == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)
