"""What every engine promises, and how the plain one keeps it."""

from __future__ import annotations

import errno
import functools
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from builders import GIB, a_launch, forked_parent, plain_engine, status
from tools import wait_until

from runner import files
from runner.box.engines import Engine, Launch, Stop
from runner.box.engines.fake import Fake
from runner.box.engines.plain import Plain
from runner.job import processes
from runner.model import Evidence, Resources
from runner.paths import StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


class EngineContract(ABC):
    """Runs over each engine: four verbs, and the disk as the only witness."""

    @abstractmethod
    def engine(self, state: StateDir) -> AbstractContextManager[Engine]: ...

    @pytest.fixture
    def ours(self, state: StateDir) -> Iterator[Engine]:
        with self.engine(state) as engine:
            yield engine

    def see(self, engine: Engine, job: int = 1, attempt: int = 1) -> Evidence:
        return engine.evidence([(job, attempt)])[job, attempt]

    def ended(self, engine: Engine, job: int = 1) -> Evidence:
        return wait_until(lambda: self.see(engine, job) if self.see(engine, job).exit is not None else None)  # type: ignore[return-value]

    def test_it_says_what_it_has(self, ours: Engine) -> None:
        assert ours.capacity().cpus >= 1

    def test_nothing_to_do_is_no_fault(self, ours: Engine) -> None:
        ours.start([])
        ours.stop([])
        assert ours.evidence([]) == {}

    def test_what_was_never_started_is_missing(self, ours: Engine) -> None:
        assert self.see(ours) == Evidence(None, None, False, missing=True)

    def test_several_attempts_start_and_end_with_their_codes(self, state: StateDir, ours: Engine) -> None:
        ours.start([a_launch(state, ["sh", "-c", f"exit {job}"], job) for job in (1, 2, 3)])
        for job in (1, 2, 3):
            end = self.ended(ours, job).exit
            assert end is not None
            assert (end.exit_code, end.reason, end.started) == (job, "exit_code", True)

    def test_a_running_attempt_is_alive_and_stops_when_asked(self, state: StateDir, ours: Engine) -> None:
        launch = a_launch(state, ["sleep", "600"])
        ours.start([launch])
        seen = wait_until(lambda: self.see(ours) if self.see(ours).started_at else None)
        assert seen is not None
        assert seen.alive
        ours.stop([Stop(launch.key, launch.launch_id, grace=5.0)])
        end = self.ended(ours).exit
        assert end is not None
        assert end.reason == "cancelled"

    @pytest.mark.parametrize(
        ("first", "reason"),
        [("gpu_lost", "gpu_lost"), ("cancelled", "cancelled"), ("exit_code", "cancelled")],
        ids=["its GPU is lost", "by a person", "what no stop can say"],
    )
    def test_the_first_stop_says_what_the_end_is_for(
        self, state: StateDir, ours: Engine, first: str, reason: str
    ) -> None:
        launch = a_launch(state, ["sleep", "600"])
        ours.start([launch])
        wait_until(lambda: self.see(ours).started_at)
        ours.stop([Stop(launch.key, launch.launch_id, grace=5.0, reason=first)])
        other = "gpu_lost" if reason == "cancelled" else "cancelled"
        ours.stop([Stop(launch.key, launch.launch_id, grace=0.0, reason=other)])
        end = self.ended(ours).exit
        assert end is not None
        assert (end.reason, end.stuck) == (reason, ())

    def test_a_wish_to_stop_what_does_not_exist_does_nothing(self, ours: Engine) -> None:
        ours.stop([Stop((9, 1), "x-9-1")])
        assert self.see(ours, 9).missing

    def test_a_fenced_attempt_never_runs(self, state: StateDir, ours: Engine) -> None:
        launch = a_launch(state, ["sh", "-c", "touch $RUNNER_OUT/ran"])
        ours.stop([Stop(launch.key, launch.launch_id, fence=True)])
        assert self.see(ours).abandoned
        ours.start([launch])
        other = a_launch(state, ["true"], job=2)
        ours.start([other])
        self.ended(ours, 2)
        assert not self.exists(f"{state.job(1).out}/ran")

    def exists(self, path: str) -> bool:
        """On the box."""
        return os.path.exists(path)


class TestPlain(EngineContract):
    def engine(self, state: StateDir) -> AbstractContextManager[Plain]:
        return plain_engine(state)


class HandMoved(Fake):
    """The fake with a will of its own: a command begins as it is started; `exit N` ends at once, all else runs on."""

    def start(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            if launch.key in self.attempts:
                continue  # it was fenced: whoever comes now comes too late
            super().start([launch])
            self.begin(launch.key, 5.0)
            command: Any = launch.spec["argv"]
            if command[0] != "sleep":
                self.finish(launch.key, int(command[-1].removeprefix("exit ")) if "exit" in command[-1] else 0, 6.0)


class TestFake(EngineContract):
    def engine(self, state: StateDir) -> AbstractContextManager[Fake]:
        return nullcontext(HandMoved(Resources(4, 8 * GIB, 0)))


# --- the fence of the plain engine, in every state of an attempt ---


@pytest.fixture
def plain(state: StateDir) -> Iterator[Plain]:
    with plain_engine(state) as engine:
        yield engine


def fence(engine: Plain, state: StateDir, ran: bool = False) -> Evidence:
    launch = a_launch(state, ["true"])
    engine.stop([Stop(launch.key, launch.launch_id, fence=True, ran=ran)])
    return engine.evidence([(1, 1)])[1, 1]


def prepared(state: StateDir) -> str:
    os.makedirs(state.job(1).attempt(1))
    return state.job(1).attempt(1)


def test_a_fence_before_anything_ran_leaves_a_tombstone(plain: Plain, state: StateDir) -> None:
    prepared(state)
    seen = fence(plain, state)
    assert seen.abandoned
    assert seen.exit is None


@pytest.mark.parametrize("ran", [False, True], ids=["starting", "running"])
def test_a_fence_of_a_directory_that_is_gone(plain: Plain, state: StateDir, ran: bool) -> None:
    seen = fence(plain, state, ran)
    assert seen.abandoned is not ran
    assert (seen.exit.reason if seen.exit else None) == ("record_missing" if ran else None)


def test_a_fence_waits_for_who_holds_the_lock(plain: Plain, state: StateDir) -> None:
    held = files.lock(f"{prepared(state)}/lock")
    assert held is not None
    assert fence(plain, state) == Evidence(None, None, alive=True)
    os.close(held)


def test_a_fence_leaves_an_end_as_it_is(plain: Plain, state: StateDir) -> None:
    directory = prepared(state)
    files.put(directory, "exit", {"reason": None, "exit_code": 0, "ended_at": 5.0})
    seen = fence(plain, state)
    assert seen.exit is not None
    assert seen.exit.exit_code == 0
    assert not seen.abandoned


@pytest.mark.parametrize(
    ("boot", "reason"), [(None, "supervisor_died"), ("another boot", "reboot")], ids=["this boot", "an earlier boot"]
)
def test_a_fence_of_an_attempt_that_ran_records_why_it_ended(
    plain: Plain, state: StateDir, boot: str | None, reason: str
) -> None:
    directory = prepared(state)
    files.put(directory, "started", {"boot_id": boot or files.boot_id(), "started_at": 42.0})
    before = plain.evidence([(1, 1)])[1, 1]
    assert (before.started_at, before.alive, before.rebooted) == (42.0, False, boot is not None)
    end = fence(plain, state).exit
    assert end is not None
    assert (end.reason, end.started_at, end.started, end.exit_code) == (reason, 42.0, True, None)


@pytest.mark.parametrize("recorded", [True, False], ids=["started recorded", "directory gone"])
def test_a_fence_ends_all_that_a_dead_supervisor_left(plain: Plain, state: StateDir, recorded: bool) -> None:
    if recorded:
        files.put(prepared(state), "started", {"boot_id": files.boot_id(), "started_at": 42.0})
    launch = a_launch(state, ["true"])
    env = {**os.environ, "RUNNER_LAUNCH_ID": launch.launch_id}
    left = os.posix_spawnp("sh", ["sh", "-c", "trap '' TERM; env -u RUNNER_LAUNCH_ID sleep 600; sleep 600"], env)
    wait_until(lambda: len(processes.descendants(left)) == 1)
    below = processes.descendants(left)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as under init: nobody has to reap it
    try:
        end = fence(plain, state).exit
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert end is not None
    assert end.reason == ("supervisor_died" if recorded else "record_missing")
    status(left)
    for pid in (left, *below):
        wait_until(functools.partial(_gone, pid))


def _gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def test_a_fence_claims_nothing_while_something_will_not_die(
    plain: Plain, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.put(prepared(state), "started", {"boot_id": files.boot_id(), "started_at": 42.0})
    monkeypatch.setattr("runner.box.engines.plain.KILL_WAIT", 0.01)
    monkeypatch.setattr(processes, "carriers", lambda launch_id: {1 << 30})
    assert fence(plain, state).exit is None


@pytest.mark.parametrize("name", ["exit", "started", "abandoned"])
def test_a_damaged_record_still_counts(plain: Plain, state: StateDir, name: str) -> None:
    Path(prepared(state), name).write_bytes(b"\x00 torn")
    seen = plain.evidence([(1, 1)])[1, 1]
    if name == "exit":
        assert seen.exit is not None
        assert seen.exit.reason == "supervisor_died"
        assert seen.exit.detail == f"its exit record is damaged and kept at {state.job(1).attempt(1)}/exit"
    elif name == "started":
        assert seen.started_at is not None
    else:
        assert seen.abandoned


@pytest.mark.parametrize("recorded", [True, False], ids=["started recorded", "directory gone"])
def test_a_fence_of_what_does_not_die_gives_up_and_names_it(
    plain: Plain, state: StateDir, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    directory = prepared(state)
    if recorded:
        files.put(directory, "started", {"boot_id": files.boot_id(), "started_at": 42.0})
    files.put(directory, "spec", {"kill_seconds": 0.2})
    monkeypatch.setattr("runner.box.engines.plain.KILL_WAIT", 0.01)
    with monkeypatch.context() as powerless:
        powerless.setattr(processes, "kill", lambda pids: None)
        env = {**os.environ, "RUNNER_LAUNCH_ID": a_launch(state, ["true"]).launch_id}
        left = os.posix_spawnp("sleep", ["sleep", "600"], env)
        wait_until(lambda: processes.carriers(env["RUNNER_LAUNCH_ID"]))
        start = processes.started(left)
        began = time.monotonic()
        assert fence(plain, state, ran=not recorded).exit is None, "it is given its time"
        end = wait_until(lambda: fence(plain, state, ran=not recorded).exit)
    assert end is not None
    assert time.monotonic() - began >= 0.2
    assert end.reason == ("supervisor_died" if recorded else "record_missing")
    assert end.stuck == ((left, start),)
    assert end.detail == f"process {left} could not be ended: it waits in the kernel"
    assert plain._fencing == {}
    os.kill(left, signal.SIGKILL)
    status(left)


def test_a_fence_that_succeeds_late_names_nothing(
    plain: Plain, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.put(prepared(state), "started", {"boot_id": files.boot_id(), "started_at": 42.0})
    monkeypatch.setattr("runner.box.engines.plain.KILL_WAIT", 0.01)
    monkeypatch.setattr(processes, "carriers", lambda launch_id: {1 << 30})
    assert fence(plain, state).exit is None
    monkeypatch.setattr(processes, "carriers", lambda launch_id: set())
    end = fence(plain, state).exit
    assert end is not None
    assert (end.reason, end.detail, end.stuck) == ("supervisor_died", "", ())
    assert plain._fencing == {}


@pytest.mark.parametrize(
    ("said", "stuck"),
    [
        pytest.param([[5, 6], [7, 8]], ((5, 6), (7, 8)), id="two"),
        pytest.param([[5], 7, [5, "6"], None, [7, 8]], ((7, 8),), id="damaged in part"),
        pytest.param("5 6", (), id="no list"),
    ],
)
def test_an_exit_record_names_what_is_stuck(
    plain: Plain, state: StateDir, said: object, stuck: tuple[tuple[int, int], ...]
) -> None:
    files.put(prepared(state), "exit", {"reason": "cancelled", "ended_at": 5.0, "stuck": said})
    end = plain.evidence([(1, 1)])[1, 1].exit
    assert end is not None
    assert end.stuck == stuck


def test_evidence_names_the_supervisor(plain: Plain, state: StateDir) -> None:
    launch = a_launch(state, ["sleep", "600"])
    plain.start([launch])
    seen = wait_until(lambda: plain.evidence([(1, 1)])[1, 1].supervisor)
    assert seen == (files.get(state.job(1).attempt(1), "started") or {})["supervisor"]
    assert len(processes.descendants(seen or 0)) == 1
    plain.stop([Stop(launch.key, launch.launch_id, grace=0.0)])
    wait_until(lambda: plain.evidence([(1, 1)])[1, 1].exit)


# --- wishes and the parent of supervisors ---


def test_a_second_impatient_wish_becomes_a_kill(plain: Plain, state: StateDir) -> None:
    directory = prepared(state)
    for grace in (None, 5.0):
        plain.stop([Stop((1, 1), "x", grace)])
    assert "kill" not in os.listdir(directory)
    assert "grace" not in (files.get(directory, "cancel") or {})
    plain.stop([Stop((1, 1), "x", 0.0)])
    assert files.get(directory, "kill") is not None


def test_a_parent_that_was_killed_is_replaced(plain: Plain, state: StateDir) -> None:
    plain.start([a_launch(state, ["true"], 1)])
    first = plain.parent
    assert first is not None
    wait_until(lambda: plain.evidence([(1, 1)])[1, 1].exit)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    plain.start([a_launch(state, ["true"], 2)])
    assert plain.parent != first
    wait_until(lambda: plain.evidence([(2, 1)])[2, 1].exit)


def test_running_jobs_outlive_the_parent(plain: Plain, state: StateDir) -> None:
    launch = a_launch(state, ["sh", "-c", "while [ ! -e go ]; do sleep 0.01; done"])
    plain.start([launch])
    wait_until(lambda: plain.evidence([(1, 1)])[1, 1].started_at)
    plain.close()
    status(plain.parent or 0)
    Path(state.job(1).out, "go").touch()
    end = wait_until(lambda: plain.evidence([(1, 1)])[1, 1].exit)
    assert end is not None
    assert end.exit_code == 0


def test_refusals_of_the_parent_are_read_and_its_end_is_noticed(state: StateDir) -> None:
    links: list[socket.socket] = []

    def spawn(link: socket.socket) -> int:
        links.append(link.dup())
        return 1

    said: list[str] = []
    listened: list[str] = []

    def listen(link: socket.socket) -> Callable[[], object]:
        listened.append("begun")
        return lambda: listened.append("ended")

    engine = Plain(state, Resources(1, GIB, 0), spawn, listen, said.append)
    assert list(engine.refusals()) == []
    os.makedirs(state.jobs)
    engine.start([a_launch(state, ["true"])])
    assert links[0].recv(65536).decode() == state.job(1).attempt(1)
    links[0].send(f"Cannot allocate memory\0{state.job(1).attempt(1)}".encode())
    assert list(engine.refusals()) == [(1, 1)]
    assert said == ["job 1, attempt 1: no supervisor could be forked: Cannot allocate memory"]
    assert list(engine.refusals()) == []
    assert listened == ["begun"]
    links[0].close()
    assert list(engine.refusals()) == [(1, 1)], "the parent took along what it was asked for"
    assert listened == ["begun", "ended"]
    assert list(engine.refusals()) == []
    engine.start([a_launch(state, ["true"], 2)])
    assert len(links) == 2
    links[1].close()
    engine.close()
    engine.close()


def test_what_was_seen_to_begin_is_not_lost_with_the_parent(plain: Plain, state: StateDir) -> None:
    plain.start([a_launch(state, ["sleep", "600"])])
    wait_until(lambda: plain.evidence([(1, 1)])[1, 1].started_at)
    os.kill(plain.parent or 0, signal.SIGKILL)
    os.waitpid(plain.parent or 0, 0)
    assert list(plain.refusals()) == []
    assert plain.evidence([(1, 1)])[1, 1].alive


def test_a_parent_that_does_not_read_its_mail_holds_nobody_up(state: StateDir) -> None:
    links: list[socket.socket] = []

    def spawn(link: socket.socket) -> int:
        links.append(link.dup())
        return 1

    os.makedirs(state.jobs)
    engine = Plain(state, Resources(1, GIB, 0), spawn)
    for job in range(1, 2000):
        engine.start([a_launch(state, ["true"], job)])
        if len(links) == 2:
            break
    assert len(links) == 2
    assert links[1].recv(65536).decode() == state.job(job).attempt(1)
    assert list(engine.refusals()) == [], "it may wake up and read them: they have their grace"
    for link in links:
        link.close()
    engine.close()


def test_a_parent_that_can_not_be_spawned_leaves_no_open_ends(state: StateDir) -> None:
    calls: list[int] = []

    def spawn(link: socket.socket) -> int:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no more processes")
        return forked_parent(link)

    os.makedirs(state.jobs)
    engine = Plain(state, Resources(1, GIB, 0), spawn)
    engine.start([a_launch(state, ["true"])])
    assert list(engine.refusals()) == [(1, 1)]
    engine.start([a_launch(state, ["true"], 2)])
    wait_until(lambda: engine.evidence([(2, 1)])[2, 1].exit)
    engine.close()
    status(engine.parent or 0)


def test_a_spec_is_what_the_launch_says(plain: Plain, state: StateDir) -> None:
    values: dict[str, Any] = {"time_limit": 5.0, "grace": 1.0}
    launch = a_launch(state, ["true"], **values)
    plain.start([launch])
    spec = files.get(state.job(1).attempt(1), "spec") or {}
    assert spec.items() >= {**launch.spec, "launch_id": launch.launch_id, "job": 1, "attempt": 1}.items()
    wait_until(lambda: plain.evidence([(1, 1)])[1, 1].exit)


# --- one attempt's trouble is its own ---


@pytest.fixture
def told(plain: Plain) -> list[str]:
    said: list[str] = []
    plain._report = said.append
    return said


@pytest.mark.parametrize("name", ["lock", "started", "exit", "abandoned"])
def test_an_attempt_that_can_not_be_read_is_told_once_and_hides_no_other(
    plain: Plain, state: StateDir, told: list[str], name: str
) -> None:
    os.makedirs(f"{state.job(1).attempt(1)}/{name}")
    os.makedirs(state.job(2).attempt(1))
    for _ in range(2):
        assert plain.evidence([(1, 1), (2, 1)]) == {(2, 1): Evidence(None, None, False)}
    assert len(told) == 1
    assert told[0].startswith("job 1, attempt 1: Is a directory")


def test_an_attempt_that_can_not_be_laid_out_is_refused_and_the_others_start(
    plain: Plain, state: StateDir, told: list[str]
) -> None:
    Path(state.job(1)).write_text("in the way")
    plain.stage([(1, 1), (2, 1)])
    plain.start([a_launch(state, ["true"], 1), a_launch(state, ["true"], 2)])
    wait_until(lambda: plain.evidence([(2, 1)])[2, 1].exit)
    assert list(plain.refusals()) == [(1, 1)]
    plain.stop([Stop((1, 1), "x", fence=True), Stop((1, 1), "x")])
    assert told == [f"job 1, attempt 1: Not a directory: {state.job(1)}/{path}" for path in ("out", "1/.spec")]


def test_a_full_disk_is_everybodys_trouble(plain: Plain, state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(state)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "put", full)
    with pytest.raises(OSError, match="No space left"):
        plain.stop([Stop((1, 1), "x")])


@pytest.mark.parametrize("name", ["exit", "started", "abandoned"])
def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(plain: Plain, state: StateDir, name: str) -> None:
    os.mkfifo(f"{prepared(state)}/{name}")
    assert (1, 1) in plain.evidence([(1, 1)])


def test_what_was_made_ahead_for_nobody_is_forgotten(plain: Plain, state: StateDir) -> None:
    plain.stage([(1, 1), (2, 1)])
    plain.stage([(2, 1)])
    assert plain._staged == {(2, 1)}
