"""One attempt of one job under its supervisor, with real processes: every way to start, run and end."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import a_launch, end_all, write_attempt
from tools import need, need_root, processes_naming, wait_until

from runner import files
from runner.job import log, parent, processes, supervisor
from runner.job.supervisor import FENCED, Supervisor, supervise
from runner.paths import AttemptDir, StateDir

PYTHON = (sys.executable, "-I", "-S", "-c")
MIB = 1 << 20
LIBC_SIGNALS = 0x180000000  # 32 and 33 belong to libc, and what it spawned, as make does, has them ignored


@pytest.fixture(scope="module", autouse=True)
def kit() -> Iterator[None]:
    """Supervisors made here, not in a fork, leave their kit behind: in life it goes with the process."""
    yield
    if supervisor._kit is not None:
        supervisor._kit.sender.close()


class Attempt:
    """One attempt, supervised by a fork of the test."""

    def __init__(self, state: StateDir, *command: str, job: int = 1, **values: Any) -> None:
        self.state = state
        self.launch = a_launch(state, command, job, **values)
        self.directory: AttemptDir = write_attempt(state, self.launch)
        self.pid = 0

    def begin(self, uid: int = 0) -> Attempt:
        """uid: whose supervisor it is, if not our own."""
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                if uid:
                    os.setresuid(uid, uid, uid)
                os.setsid()
                os.closerange(3, 1024)  # what the test itself has open
                code = supervise(self.directory)
            finally:
                os._exit(code)
        return self

    def code(self) -> int:
        """The supervisor's own exit code; it has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def end(self) -> dict[str, Any]:
        """Wait for the supervisor; the exit record."""
        assert self.code() == 0
        record = files.get(self.directory, "exit")
        assert record is not None
        return record

    def run(self) -> dict[str, Any]:
        return self.begin().end()

    def started(self) -> dict[str, Any]:
        return wait_until(lambda: files.get(self.directory, "started") or {})

    def says(self, text: str) -> Attempt:
        wait_until(lambda: text in self.log, 15, lambda: self.log)
        return self

    def cancel(self, **record: Any) -> None:
        files.put(self.directory, "cancel", record)

    @property
    def log(self) -> str:
        path = Path(self.directory.log)
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def survivors(self) -> dict[int, str]:
        return processes_naming(f"{self.state}/")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    made = StateDir(tmp_path / "state")
    os.makedirs(made.jobs)
    yield made
    end_all(made)


def attempt(state: StateDir, *command: str, **values: Any) -> Attempt:
    return Attempt(state, *command, **values)


def shell(state: StateDir, script: str, **values: Any) -> Attempt:
    return Attempt(state, "sh", "-c", script, **values)


def python(state: StateDir, script: str, **values: Any) -> Attempt:
    return Attempt(state, *PYTHON, script, **values)


# --- how it ends ---


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param("exit 0", {"reason": None, "exit_code": 0, "signal": None}, id="code 0"),
        pytest.param("exit 7", {"reason": "exit_code", "exit_code": 7, "signal": None}, id="code 7"),
        pytest.param("exit 255", {"reason": "exit_code", "exit_code": 255, "signal": None}, id="code 255"),
        pytest.param("kill -KILL $$", {"reason": "signal", "exit_code": None, "signal": 9}, id="killed"),
        pytest.param("kill -TERM $$", {"reason": "signal", "exit_code": None, "signal": 15}, id="terminated"),
        pytest.param("kill -INT $$", {"reason": "signal", "exit_code": None, "signal": 2}, id="interrupted"),
        pytest.param("kill -SEGV $$", {"reason": "signal", "exit_code": None, "signal": 11}, id="crashed"),
    ],
)
def test_the_exit_record_says_how_the_command_ended(state: StateDir, script: str, expected: dict[str, object]) -> None:
    before = time.time()
    ours = shell(state, script)
    record = ours.run()
    assert record.items() >= {**expected, "started": True, "launch_id": ours.launch.launch_id}.items()
    assert before <= record["started_at"] <= record["ended_at"] <= time.time()
    assert record["max_rss_bytes"] > 0
    assert record["cpu_seconds"] >= 0


def test_the_start_is_recorded_with_the_boot_and_its_supervisor(state: StateDir) -> None:
    ours = shell(state, "echo $$; exec sleep 60").begin().says("\n")
    started = ours.started()
    assert started["supervisor"] == ours.pid
    assert started["boot_id"] == files.boot_id()
    assert files.lock(ours.directory.lock) is None, "the supervisor holds the lock"
    ours.cancel(grace=0)
    ours.end()
    assert sorted(os.listdir(ours.directory)) == ["cancel", "exit", "lock", "log", "spec", "started"]


@pytest.mark.parametrize(
    ("command", "changed", "said"),
    [
        pytest.param(["no-such-program"], {}, "No such program on the job's PATH: no-such-program", id="not on PATH"),
        pytest.param(["./nowhere"], {}, "No such file or directory: ./nowhere", id="ENOENT"),
        pytest.param(["/etc/passwd"], {}, "Permission denied: /etc/passwd", id="EACCES"),
        pytest.param(["./garbage"], {}, "Exec format error: ./garbage", id="ENOEXEC"),
        pytest.param(
            ["true"], {"directory": "/no/such/place"}, "No such file or directory: /no/such/place", id="cwd gone"
        ),
        pytest.param(["true", "x" * (1 << 18)], {}, "Argument list too long", id="E2BIG"),
        pytest.param([str(Path("/"))], {}, "Permission denied: /", id="a folder"),
    ],
)
def test_a_command_that_cannot_be_executed_is_told_in_the_kernels_words(
    state: StateDir, command: Sequence[str], changed: dict[str, Any], said: str
) -> None:
    ours = attempt(state, *command, **changed)
    garbage = Path(state.job(1).out, "garbage")
    garbage.write_bytes(b"\x00\x01\x02 this is no program")
    garbage.chmod(0o755)
    record = ours.run()
    assert (record["reason"], record["started"], record["exit_code"]) == ("cannot_exec", False, None)
    assert record["detail"].startswith(said)


def test_a_program_on_path_is_not_a_folder_of_that_name(state: StateDir) -> None:
    os.makedirs(f"{state}/bin/tool")
    ours = attempt(state, "tool", env={"PATH": f"{state}/bin::/nowhere"})
    tool = Path(state.job(1).out, "tool")
    tool.write_text("#!/bin/sh\necho from here\n")
    tool.chmod(0o755)
    assert ours.run()["exit_code"] == 0
    assert ours.log == "from here\n"


def test_a_child_that_dies_before_exec_may_be_tried_again(state: StateDir) -> None:
    ours = attempt(state, "true")
    ours.launch.spec["env"] = 5  # nothing that the kernel would say
    write_attempt(state, ours.launch)
    record = ours.run()
    assert (record["reason"], record["started"]) == ("engine_failed", False)


def test_a_variable_that_no_program_can_be_given_is_told(state: StateDir) -> None:
    record = attempt(state, "true", env={"A=B": "1"}).run()
    assert record.items() >= {"reason": "engine_failed", "started": False, "exit_code": None}.items()
    assert record["detail"] == "ValueError: illegal environment variable name"


def test_a_box_with_too_many_processes_is_told_and_may_be_asked_again(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crowded:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fork(self) -> int:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(supervisor, "os", Crowded())
    record = attempt(state, "true").run()
    assert record.items() >= {"reason": "engine_failed", "started": False}.items()
    assert record["detail"] == "Resource temporarily unavailable"


# --- what a job is given ---


def test_a_job_finds_its_folder_its_variables_and_nothing_else(state: StateDir) -> None:
    script = """
import json, os
print(json.dumps({
    "cwd": os.getcwd(), "env": dict(os.environ), "umask": os.umask(0),
    "fds": sorted(map(int, os.listdir("/proc/self/fd"))), "stdin": os.read(0, 1).decode(),
    "oom": open("/proc/self/oom_score_adj").read().strip(), "leader": os.getsid(0) == os.getpid(),
    "signals": [line for line in open("/proc/self/status") if line.startswith(("SigIgn", "SigBlk"))],
}))"""
    ours = python(state, script, env={"WISH": "granted"})
    assert ours.run()["exit_code"] == 0
    found = json.loads(ours.log)
    assert found["fds"] == [0, 1, 2, 3]  # 3 is the listing's own
    assert found["cwd"] == state.job(1).out
    found["env"].pop("LC_CTYPE", None)  # Python's own doing
    assert found["env"] == ours.launch.spec["env"]
    assert found["umask"] == 0o077
    assert found["stdin"] == ""
    assert found["oom"] == "500"
    assert found["leader"]
    # Python itself ignores SIGPIPE and SIGXFSZ (bits 13 and 25); a job must inherit neither that nor a mask.
    blocked, ignored = (int(line.split()[1], 16) for line in found["signals"])
    assert blocked == 0
    assert ignored & ~LIBC_SIGNALS == 0x1001000


def test_a_job_inherits_no_ignored_signal(state: StateDir) -> None:
    ours = attempt(state, "grep", "SigIgn", "/proc/self/status")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ours.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert int(ours.log.split()[1], 16) & ~LIBC_SIGNALS == 0


def test_a_job_without_a_line_of_proc_runs_all_the_same(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *args: object) -> object:
        raise PermissionError(errno.EACCES, "no", path)

    monkeypatch.setattr(supervisor, "open", refuse, raising=False)
    assert attempt(state, "true").run()["exit_code"] == 0


# --- fencing ---


def test_a_second_supervisor_of_an_attempt_leaves_at_once(state: StateDir) -> None:
    first = shell(state, "echo once; exec sleep 60").begin().says("once")
    second = Attempt.__new__(Attempt)
    second.__dict__ |= first.__dict__
    began = time.monotonic()
    assert second.begin().code() == FENCED
    assert time.monotonic() - began < supervisor.LOCK_PATIENCE
    first.cancel(grace=0)
    first.end()
    assert second.begin().code() == FENCED, "an attempt that ended is not run again"
    assert first.log == "once\n"


@pytest.mark.parametrize("record", ["abandoned", "started", "exit"])
def test_a_spent_attempt_is_never_run(state: StateDir, record: str) -> None:
    ours = shell(state, "echo ran")
    files.put(ours.directory, record, {})
    assert ours.begin().code() == FENCED
    assert ours.log == ""


def test_an_empty_tombstone_is_still_a_tombstone(state: StateDir) -> None:
    ours = shell(state, "echo ran")
    Path(ours.directory, "abandoned").write_text("{}")
    assert ours.begin().code() == FENCED


def test_an_attempt_without_a_spec_is_not_run(state: StateDir) -> None:
    ours = shell(state, "echo ran")
    os.unlink(ours.directory.spec)
    assert ours.begin().code() == FENCED


def test_a_daemon_that_looks_at_the_lock_for_a_moment_does_no_harm(state: StateDir) -> None:
    ours = shell(state, "echo ran")
    held = files.lock(ours.directory.lock)
    assert held is not None
    ours.begin()
    threading.Timer(0.05, os.close, [held]).start()
    assert ours.end()["exit_code"] == 0


def test_a_lock_that_is_kept_fences_the_attempt_off(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOCK_PATIENCE", 0.02)
    ours = shell(state, "echo ran")
    held = files.lock(ours.directory.lock)
    assert held is not None
    assert ours.begin().code() == FENCED
    os.close(held)


# --- cancel ---


def test_a_cancel_from_before_the_start_means_that_it_never_runs(state: StateDir) -> None:
    ours = shell(state, "echo ran")
    ours.cancel(grace=5)
    record = ours.run()
    assert (record["reason"], record["started"]) == ("cancelled", False)
    assert ours.log == ""


def test_a_cancelled_job_has_a_grace_to_clean_up(state: StateDir) -> None:
    ours = (
        shell(state, "trap 'echo saved; exit 3' TERM; echo ready; while :; do sleep 0.01; done").begin().says("ready")
    )
    ours.cancel(grace=20)
    record = ours.end()
    assert (record["reason"], record["exit_code"]) == ("cancelled", 3)
    assert "saved" in ours.log


def test_who_ignores_term_is_killed_after_the_grace(state: StateDir) -> None:
    ours = shell(state, "trap '' TERM; echo ready; while :; do sleep 0.01; done").begin().says("ready")
    began = time.monotonic()
    ours.cancel(grace=0.3)
    record = ours.end()
    assert (record["reason"], record["signal"]) == ("cancelled", 9)
    assert time.monotonic() - began >= 0.3


def test_a_cancel_without_a_grace_takes_the_jobs_own(state: StateDir) -> None:
    ours = shell(state, "trap '' TERM; echo ready; while :; do sleep 0.01; done", grace=0.1).begin().says("ready")
    ours.cancel()
    assert ours.end()["signal"] == 9


def test_a_second_cancel_without_patience_kills(state: StateDir) -> None:
    ours = shell(state, "trap 'echo no' TERM; echo ready; while :; do sleep 0.01; done").begin().says("ready")
    ours.cancel(grace=1000)
    ours.says("no")
    files.put(ours.directory, "kill", {})
    assert ours.end().items() >= {"reason": "cancelled", "signal": 9}.items()


def test_a_stopped_job_can_be_cancelled(state: StateDir) -> None:
    ours = shell(state, "trap 'echo woke; exit 0' TERM; echo $$; kill -STOP $$; sleep 60").begin().says("\n")
    pid = int(ours.log)
    wait_until(lambda: _state(pid) == "T")
    ours.cancel(grace=20)
    assert ours.end()["reason"] == "cancelled"
    assert "woke" in ours.log


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.long
def test_a_cancel_that_races_with_the_end_leaves_one_true_record(state: StateDir) -> None:
    reasons = set()
    for job in range(1, 101):
        ours = shell(state, "exit 4", job=job).begin()
        if job % 3:
            ours.started()
        ours.cancel(grace=0)
        record = ours.end()
        expected = {
            "exit_code": (4, None, True),
            "cancelled": (record["exit_code"], record["signal"], record["started"]),
        }
        assert expected[record["reason"]] == (record["exit_code"], record["signal"], record["started"])
        reasons.add(record["reason"])
    assert reasons <= {"exit_code", "cancelled"}
    assert ours.survivors == {}


@pytest.mark.parametrize("method", ["__init__", "add"])
def test_without_a_watch_a_wish_is_found_all_the_same(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "this user has as many watches as the kernel allows")

    monkeypatch.setattr(files.Watch, method, refuse)
    ours = shell(state, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done").begin().says("ready")
    ours.cancel(grace=20)
    assert ours.end().items() >= {"reason": "cancelled", "exit_code": 3}.items()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        pytest.param({"reason": "gpu_lost"}, "gpu_lost", id="its GPU is lost"),
        pytest.param({"reason": "cancelled"}, "cancelled", id="by a person"),
        pytest.param({"reason": "exit_code"}, "cancelled", id="what no cancel can say"),
        pytest.param({"reason": ["gpu_lost"]}, "cancelled", id="not a word"),
        pytest.param({}, "cancelled", id="of an earlier version"),
    ],
)
def test_a_cancel_says_what_the_end_is_for(state: StateDir, said: dict[str, Any], told: str) -> None:
    before = shell(state, "echo ran")
    before.cancel(grace=5, **said)
    assert before.run().items() >= {"reason": told, "started": False}.items()
    during = shell(state, "echo ready; sleep 60", job=2).begin().says("ready")
    during.cancel(grace=5, **said)
    assert during.end().items() >= {"reason": told, "started": True, "signal": 15}.items()


def test_the_first_cancel_says_what_the_end_is_for(state: StateDir) -> None:
    ours = shell(state, "trap '' TERM; echo ready; while :; do sleep 0.01; done").begin().says("ready")
    ours.cancel(grace=1000, reason="gpu_lost")
    ours.cancel(grace=0, reason="cancelled")
    files.put(ours.directory, "kill", {"reason": "cancelled"})
    assert ours.end().items() >= {"reason": "gpu_lost", "signal": 9}.items()


# --- time limit ---


def test_a_job_over_its_time_limit_is_told_and_then_killed(state: StateDir) -> None:
    ours = shell(state, "trap 'echo told' TERM; while :; do sleep 0.01; done", time_limit=0.3, grace=0.3)
    record = ours.run()
    assert (record["reason"], record["signal"]) == ("time_limit", 9)
    assert "told" in ours.log


def test_a_job_within_its_time_limit_feels_nothing(state: StateDir) -> None:
    assert shell(state, "exit 0", time_limit=60.0).run()["reason"] is None


def test_a_cancel_at_once_shortens_the_grace_of_a_time_limit(state: StateDir) -> None:
    ours = shell(state, "trap 'echo told' TERM; while :; do sleep 0.01; done", time_limit=0.8, grace=1000.0)
    ours.begin().says("told").cancel(grace=0)
    assert ours.end().items() >= {"reason": "time_limit", "signal": 9}.items()


# --- what a job leaves behind ---


DAEMONISED = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    {wish}
    open(os.environ["RUNNER_OUT"] + "/left", "w").write(str(os.getpid()))
    time.sleep(600)
while not os.path.exists(os.environ["RUNNER_OUT"] + "/left"):
    time.sleep(0.001)
"""


@pytest.mark.parametrize(
    "wish",
    [
        pytest.param("pass", id="goes at TERM"),
        pytest.param("signal.signal(signal.SIGTERM, signal.SIG_IGN)", id="ignores TERM"),
        pytest.param("os.kill(os.getpid(), signal.SIGSTOP) if os.fork() == 0 else None", id="partly stopped"),
    ],
)
def test_a_daemonised_leftover_is_ended_with_its_job(
    state: StateDir, wish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LEFTOVER_GRACE", 0.2)
    ours = python(state, DAEMONISED.format(wish=wish))
    assert ours.run()["exit_code"] == 0
    assert ours.survivors == {}
    assert not os.path.exists(f"/proc/{Path(state.job(1).out, 'left').read_text()}")


def test_a_leftover_of_another_parent_is_found_by_its_environment(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a service of the user had started it: it is no descendant, but it carries the launch id."""
    monkeypatch.setattr(supervisor, "SCAN_AFTER", 0.0)
    ours = attempt(state, "cat", "fifo")
    fifo = f"{state.job(1).out}/fifo"
    os.mkfifo(fifo)
    ours.begin()
    stranger = os.posix_spawnp("sleep", ["sleep", "600"], {**os.environ, "RUNNER_LAUNCH_ID": ours.launch.launch_id})
    os.close(os.open(fifo, os.O_WRONLY))
    assert ours.end()["exit_code"] == 0
    assert os.waitstatus_to_exitcode(os.waitpid(stranger, 0)[1]) == -signal.SIGTERM


def test_a_fork_bomb_ends(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import os, time
made = 0
for _ in range(7):
    made += os.fork() != 0
print("there", flush=True)
while True:
    if made < 12 and os.fork() == 0:
        made += 6
    made += 1
    time.sleep(0.001)
"""
    ours = python(state, script).begin().says("there\n" * 60)
    ours.cancel(grace=0)
    assert ours.end()["reason"] == "cancelled"
    assert ours.survivors == {}


def test_a_thousand_orphans_leave_no_zombie_while_the_job_runs(state: StateDir) -> None:
    script = """
import os, time
for _ in range(1000):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
print("done", flush=True)
time.sleep(600)
"""
    ours = python(state, script).begin().says("done")
    wait_until(lambda: len(_children(ours.pid)) == 1, 5, lambda: len(_children(ours.pid)))
    ours.cancel(grace=0)
    assert ours.end()["reason"] == "cancelled"


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_killed_supervisor_takes_its_job_along_at_once(state: StateDir) -> None:
    ours = shell(state, "echo $$; exec sleep 600").begin().says("\n")
    pid = int(ours.log)
    os.kill(ours.pid, signal.SIGKILL)
    assert ours.code() == -signal.SIGKILL
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 5)
    assert files.get(ours.directory, "exit") is None
    held = files.lock(ours.directory.lock)
    assert held is not None, "the lock is free"
    os.close(held)


# --- what can't be ended ---


@pytest.fixture
def powerless(monkeypatch: pytest.MonkeyPatch) -> None:
    """KILL does nothing, as to a process that waits in the kernel."""
    monkeypatch.setattr(processes, "kill", lambda pids: None)


def lock_is_free(ours: Attempt) -> bool:
    held = files.lock(ours.directory.lock)
    if held is not None:
        os.close(held)
    return held is not None


@pytest.mark.parametrize("wishes", [("cancel",), ("kill",)], ids=["a cancel", "a kill alone"])
@pytest.mark.usefixtures("powerless")
def test_a_command_that_does_not_die_is_given_up_and_named(state: StateDir, wishes: tuple[str, ...]) -> None:
    ours = shell(state, "trap '' TERM; echo $$; while :; do sleep 0.01; done", kill_seconds=0.3).begin().says("\n")
    pid = int(ours.log)
    start = processes.started(pid)
    began = time.monotonic()
    for wish in wishes:
        files.put(ours.directory, wish, {"grace": 0})
    record = ours.end()
    assert time.monotonic() - began >= 0.3
    assert record.items() >= {"reason": "cancelled", "started": True, "exit_code": None, "signal": None}.items()
    assert [pid, start] in record["stuck"]
    assert re.fullmatch(r"process \d+( and 1 more)? could not be ended: it waits in the kernel", record["detail"])
    assert "max_rss_bytes" not in record
    assert lock_is_free(ours)


@pytest.mark.usefixtures("powerless")
def test_a_leftover_that_does_not_die_is_given_up_and_named(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LEFTOVER_GRACE", 0.1)
    ours = python(state, DAEMONISED.format(wish="signal.signal(signal.SIGTERM, signal.SIG_IGN)"), kill_seconds=0.2)
    record = ours.run()
    left = int(Path(state.job(1).out, "left").read_text())
    assert record.items() >= {"reason": None, "exit_code": 0}.items()
    assert record["stuck"] == [[left, processes.started(left)]]
    assert record["detail"] == f"process {left} could not be ended: it waits in the kernel"
    assert record["max_rss_bytes"] > 0
    assert lock_is_free(ours)


def test_what_dies_within_its_time_is_not_called_stuck(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def slow(pids: set[int]) -> None:
        calls.append(1)
        if len(calls) > 20:
            kill(pids)

    kill = processes.kill
    monkeypatch.setattr(processes, "kill", slow)
    monkeypatch.setattr(supervisor, "LEFTOVER_GRACE", 0.0)
    ours = python(state, DAEMONISED.format(wish="signal.signal(signal.SIGTERM, signal.SIG_IGN)"))
    record = ours.run()
    assert "stuck" not in record
    assert record["detail"] == ""


FROZEN = """
import os
with open(os.environ["FREEZER"] + "/cgroup.procs", "w") as file:
    file.write("0")
print(os.getpid(), flush=True)
while True:
    pass
"""


@pytest.mark.slow  # not every kernel has this freezer
@pytest.mark.root
def test_a_process_that_the_kernel_keeps_is_given_up_and_ends_when_it_lets_go(state: StateDir, tmp_path: Path) -> None:
    """The freezer of cgroup v1 keeps it as a GPU's driver may: in state D, with KILL pending."""
    need_root()
    with a_freezer(tmp_path) as freezer:
        ours = python(state, FROZEN, env={"FREEZER": str(freezer)}, kill_seconds=0.5).begin().says("\n")
        pid = int(ours.log)
        start = processes.started(pid) or 0
        (freezer / "freezer.state").write_text("FROZEN")
        wait_until(lambda: (freezer / "freezer.state").read_text() == "FROZEN\n")
        ours.cancel(grace=0)
        record = ours.end()
        assert (record["reason"], record["exit_code"], record["stuck"]) == ("cancelled", None, [[pid, start]])
        assert record["detail"] == f"process {pid} could not be ended: it waits in the kernel"
        assert lock_is_free(ours)
        assert processes.living([(pid, start)]) == [(pid, start)]
        (freezer / "freezer.state").write_text("THAWED")
        wait_until(lambda: processes.living([(pid, start)]) == [])


@contextmanager
def a_freezer(tmp_path: Path) -> Iterator[Path]:
    """A cgroup that can be frozen; thawed and removed at the end."""
    mount, umount = need("mount"), need("umount")
    root = tmp_path / "freezer"
    root.mkdir()
    if os.spawnv(os.P_WAIT, mount, [mount, "-t", "cgroup", "-o", "freezer", "cgroup", str(root)]) != 0:
        pytest.skip("this kernel has no freezer of cgroup v1")
    try:
        group = root / f"gpubox-test-{os.getpid()}"
        group.mkdir()
        try:
            yield group
        finally:
            (group / "freezer.state").write_text("THAWED")
            for pid in (group / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            wait_until(lambda: not (group / "cgroup.procs").read_text())
            group.rmdir()
    finally:
        assert os.spawnv(os.P_WAIT, umount, [umount, str(root)]) == 0


@pytest.mark.root
def test_a_process_of_another_user_is_given_up_and_called_so() -> None:
    """A job of an unprivileged user whose command becomes root by a setuid program, as sudo does."""
    need_root()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        become = shutil.copy(need("setpriv"), f"{folder}/setpriv")
        os.chmod(become, 0o4755)
        with files_of(65534):
            state = StateDir(f"{folder}/state")
            os.makedirs(state.jobs)
            ours = Attempt(state, "sh", "-c", f"{become} --reuid 0 sleep 600 & echo $!; wait", kill_seconds=0.3)
        ours.begin(uid=65534).says("\n")
        left = int(ours.log)
        start = processes.started(left) or 0
        try:
            wait_until(lambda: "Uid:\t0\t0\t" in Path(f"/proc/{left}/status").read_text())
            with files_of(65534):
                ours.cancel(grace=0)
            record = ours.end()
            assert (record["reason"], record["stuck"]) == ("cancelled", [[left, start]])
            assert record["detail"] == f"process {left} could not be ended: it belongs to another user"
            assert lock_is_free(ours)
        finally:
            os.kill(left, signal.SIGKILL)
            wait_until(lambda: processes.living([(left, start)]) == [])


@contextmanager
def files_of(uid: int) -> Iterator[None]:
    """What is made meanwhile belongs to another user."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


# --- the log ---


def test_a_log_past_its_cap_loses_its_middle_and_keeps_its_offsets(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "PUNCH_STEP", 64 << 10)
    lines = 200_000
    ours = shell(state, f"seq -f %09g {lines}", log_head_bytes=100_000, log_tail_bytes=100_000)
    assert ours.run()["exit_code"] == 0
    kept = Path(ours.directory.log).read_bytes()
    assert len(kept) == lines * 10
    assert kept[:98_304] == b"".join(b"%09d\n" % n for n in range(1, 9832))[:98_304]
    assert kept[-100_000:] == b"".join(b"%09d\n" % n for n in range(lines - 9_999, lines + 1))
    assert kept[98_304:-200_000].count(0) == len(kept[98_304:-200_000])
    assert Path(ours.directory.log).stat().st_blocks * 512 < 400_000


def test_a_burst_of_a_million_lines_under_the_cap_is_complete(state: StateDir) -> None:
    ours = shell(state, "seq 1000000", log_tail_bytes=64 * MIB)
    assert ours.run()["exit_code"] == 0
    with open(ours.directory.log, "rb") as file:
        assert sum(int(line) == number for number, line in enumerate(file, 1)) == 1_000_000


@pytest.mark.long
def test_a_flood_stays_small_on_disk(state: StateDir) -> None:
    ours = shell(state, f"head -c {2 << 30} /dev/zero | tr '\\0' x", log_head_bytes=16 * MIB, log_tail_bytes=16 * MIB)
    ours.begin()
    peak = 0

    def ended() -> bool:
        nonlocal peak
        peak = max(peak, _on_disk(ours.directory.log))
        return files.get(ours.directory, "exit") is not None

    wait_until(ended, 50)
    ours.code()
    assert os.stat(ours.directory.log).st_size == 2 << 30
    assert _on_disk(ours.directory.log) < 48 * MIB
    assert peak < 1 << 30


def _on_disk(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def test_what_a_job_writes_is_kept_byte_for_byte(state: StateDir) -> None:
    ours = python(state, "import os; os.write(1, bytes(range(256))); os.write(2, b'\\r\\x1b[31m' + b'e' * 100_000)")
    ours.run()
    assert Path(ours.directory.log).read_bytes() == bytes(range(256)) + b"\r\x1b[31m" + b"e" * 100_000


def test_the_log_is_kept_within_its_cap_while_leftovers_are_ended(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = shell(state, "exit 0")
    sv = Supervisor(ours.directory, files.get(ours.directory, "spec") or {})
    trimmed: list[bool] = []
    sv.log = SimpleNamespace(trim=lambda: trimmed.append(True))  # type: ignore[assignment]
    left = iter([False, False, False, True])
    monkeypatch.setattr(processes, "reap", lambda: next(left))
    sv.end_leftovers()
    assert len(trimmed) == 2


def test_a_file_system_without_holes_keeps_the_whole_log(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, start: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no holes here")

    monkeypatch.setattr(files, "punch", refuse)
    monkeypatch.setattr(log, "PUNCH_STEP", 4096)
    ours = shell(state, "seq 100000", log_head_bytes=4096, log_tail_bytes=4096)
    assert ours.run()["exit_code"] == 0
    assert ours.log.splitlines() == [str(n) for n in range(1, 100_001)]


# --- records and hints ---


def test_the_daemon_is_told_of_start_and_end(state: StateDir) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(state.events)
        ear.settimeout(10)
        shell(state, "exit 0", job=42).run()
        assert [ear.recv(100), ear.recv(100)] == [b"42 1 started", b"42 1 exit"]


@pytest.mark.parametrize("events", ["{state}/events.sock", "/no/such/folder/events.sock"], ids=["away", "no folder"])
def test_a_daemon_that_is_away_does_no_harm(state: StateDir, events: str) -> None:
    assert shell(state, "exit 0", events=events.format(state=state)).run()["exit_code"] == 0


def test_a_state_path_longer_than_a_sockets_is_fine(tmp_path: Path) -> None:
    deep = StateDir(tmp_path / ("d" * 100) / ("e" * 100))
    os.makedirs(deep.jobs)
    assert len(deep.events) > 200
    folder = os.open(deep, os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"/proc/self/fd/{folder}/events.sock")
        os.close(folder)
        ear.settimeout(10)
        assert shell(deep, "exit 0").run()["exit_code"] == 0
        assert ear.recv(100) == b"1 1 started"
    end_all(deep)


@pytest.mark.root
def test_the_exit_record_is_written_on_a_full_disk(tmp_path: Path) -> None:
    need_root()
    mount, umount = need("mount"), need("umount")
    place = tmp_path / "small"
    place.mkdir()
    assert os.spawnv(os.P_WAIT, mount, [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]) == 0
    try:
        state = StateDir(place / "state")
        os.makedirs(state.jobs)
        ours = shell(state, "cat /dev/zero >$RUNNER_OUT/full; exit 5")
        record = ours.run()
        assert (record["reason"], record["exit_code"]) == ("exit_code", 5)
        assert "No space left" in ours.log or ours.log == ""
        assert files.disk_room(state)[0] == 0
    finally:
        assert os.spawnv(os.P_WAIT, umount, [umount, str(place)]) == 0


# --- in process: what no job of a test can bring about ---


@pytest.mark.parametrize(
    ("status", "stopping", "kills", "reason"),
    [
        pytest.param(9, None, 1, "host_out_of_memory", id="killed while the kernel killed for memory"),
        pytest.param(9, None, 0, "signal", id="killed by somebody"),
        pytest.param(15, None, 1, "signal", id="another signal"),
        pytest.param(137 << 8, None, 1, "host_out_of_memory", id="a shell whose command was killed for memory"),
        pytest.param(137 << 8, None, 0, "exit_code", id="a shell whose command was killed by somebody"),
        pytest.param(9, "cancelled", 1, "cancelled", id="we did it"),
        pytest.param(0, "time_limit", 0, "time_limit", id="it obeyed"),
    ],
)
def test_a_kill_for_memory_is_told_from_others(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, status: int, stopping: str | None, kills: int, reason: str
) -> None:
    ours = shell(state, "exit 0")
    sv = Supervisor(ours.directory, files.get(ours.directory, "spec") or {})
    sv.stopping, sv.kills_before = stopping, 5
    monkeypatch.setattr(processes, "oom_kills", lambda: 5 + kills)
    assert sv.describe(status)["reason"] == reason


@pytest.mark.parametrize(("status", "stopping", "reason"), [(15, None, "reboot"), (7 << 8, None, "reboot"),
    (0, None, "reboot"), (15, "cancelled", "cancelled")])  # fmt: skip
def test_what_ends_while_the_box_goes_down_is_the_boxs_doing(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, status: int, stopping: str | None, reason: str
) -> None:
    ours = shell(state, "exit 0")
    sv = Supervisor(ours.directory, files.get(ours.directory, "spec") or {})
    sv.stopping = stopping
    monkeypatch.setattr(supervisor, "_going_down", [15])
    assert sv.describe(status)["reason"] == reason


def test_the_parent_of_supervisors_says_what_it_could_not_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    before = [(number, signal.getsignal(number)) for number in (signal.SIGCHLD, signal.SIGINT)]
    try:
        ours.send(b"/a/b")
        ours.shutdown(socket.SHUT_WR)
        parent.serve(theirs)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert ours.recv(100) == b"Resource temporarily unavailable\0/a/b"
    ours.close()
    theirs.close()


def test_a_daemon_that_ended_without_reading_the_answer_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    before = [(number, signal.getsignal(number)) for number in (signal.SIGCHLD, signal.SIGINT)]
    theirs.send(b"an answer")
    ours.close()
    try:
        parent.serve(theirs)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    parent._answer(theirs, "nobody listens")
    theirs.close()


def test_a_supervisor_that_fails_says_so_in_the_daemons_log(state: StateDir, capfd: pytest.CaptureFixture[str]) -> None:
    ours = shell(state, "exit 0")
    Path(ours.directory.spec).write_text("{")
    link, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    os.write(writer, os.fsencode(ours.directory))
    pid = os.fork()
    if pid == 0:
        parent._supervisor(link, reader)
    os.close(reader)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 70
    assert re.match(rf"supervisor {re.escape(ours.directory)}: JSONDecodeError: ", capfd.readouterr().err)
    link.close()
    other.close()


def test_the_frozen_supervisor_runs_one_attempt_from_its_command_line(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = shell(state, "exit 3")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writer, 1)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.argv = ["supervisor.pyz", ours.directory]
            os._exit(supervisor.main())
        finally:
            os._exit(70)
    os.close(writer)
    assert json.loads(os.read(reader, 100)) == {"pid": pid}
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (files.get(ours.directory, "exit") or {})["exit_code"] == 3
