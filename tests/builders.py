"""Values to test with, and a daemon's core that is driven by hand: no socket, no thread, no interpreter per job."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tools import processes_naming, wait_until

from runner import words
from runner.box.daemon import Daemon
from runner.box.engines import Engine, Key, Launch, Stop
from runner.box.engines.plain import Plain
from runner.box.gpus.frames import Frame, Reading
from runner.box.gpus.placement import Card
from runner.box.prepare import Preparation
from runner.box.settings import Settings
from runner.box.store import Request, Store
from runner.box.wishes import Wishes
from runner.job import parent
from runner.model import Evidence, Exit, Job, JobSpec, Principal, Process, Resources, Submission
from runner.paths import AttemptDir, StateDir

GIB = 1 << 30
ADMIN = Principal(0, "root", "admin")
ANN = Principal(1001, "ann", "submit")
BOB = Principal(1002, "bob", "submit")
EVE = Principal(1003, "eve", "read")


def a_job(id: int = 1, state: str = words.QUEUED, **values: Any) -> Job:
    return Job(id, state, f"job-{id}", ["true"], "ann", 1001, submitted_at=100.0, **values)


def a_card(index: int = 0, name: str = "NVIDIA GeForce RTX 3090", gib: float = 24, **values: Any) -> Card:
    return Card(f"GPU-{index:04d}", f"GPU {index}", name, int(gib * GIB), **values)


def a_reading(uuid: str = "GPU-0000", used: float | None = 0, **values: Any) -> Reading:
    """One GPU in a frame. used: GiB; None: it was not read. Its index is the end of its UUID."""
    index = values.pop("index", int(uuid[-4:]))
    sample = {} if used is None else {"memory_used_bytes": int(used * GIB)}
    given = {"bus_id": f"00000000:{index:02x}:00.0", "name": "NVIDIA GeForce RTX 3090", "memory_bytes": 24 * GIB}
    return Reading(uuid, index, **{**given, "sample": sample, **values})


def a_process(pid: int, gib: float | None = 1, **values: Any) -> Process:
    """A process that holds so much of a GPU; None: the driver does not say."""
    given = {"started": pid, "user": "alice", "command": "python train.py", **values}
    return Process(pid, memory_bytes=None if gib is None else int(gib * GIB), **given)


def a_spec(*command: str, **values: Any) -> JobSpec:
    return JobSpec(command=list(command) or ["true"], **values)


def an_exit(reason: str | None = None, **values: Any) -> Exit:
    code = {None: 0, "exit_code": 1}.get(reason)
    return Exit(reason, values.pop("exit_code", code), values.pop("signal", None), "", 500.0, True, **values)


def a_request(spec: JobSpec | None = None, jobs: int = 1, **values: Any) -> Request:
    indices: Sequence[int | None] = [None] if jobs == 1 else list(range(jobs))
    given = {"user": "ann", "uid": 1001, "held": False, "environment": None, **values}
    return Request(spec or a_spec(), indices=indices, params=[{}] * jobs, **given)


# --- engines ---


@dataclass
class Scripted:
    """An engine that is told what the disk says: for the daemon's decisions, without a process."""

    has: Resources = field(default_factory=lambda: Resources(4, 8 * GIB, 0))
    said: dict[Key, Evidence] = field(default_factory=dict)
    launched: list[Launch] = field(default_factory=list)
    stopped: list[Stop] = field(default_factory=list)
    refused: list[Key] = field(default_factory=list)

    def capacity(self) -> Resources:
        return self.has

    def start(self, launches: Sequence[Launch]) -> None:
        self.launched += launches
        self.said.update((launch.key, Evidence(None, None, True)) for launch in launches)

    def refusals(self) -> list[Key]:
        refused, self.refused = self.refused, []
        return refused

    def stage(self, keys: Sequence[Key]) -> None:
        self.staged = list(keys)

    def stop(self, stops: Sequence[Stop]) -> None:
        self.stopped += stops

    def evidence(self, keys: Sequence[Key]) -> dict[Key, Evidence]:
        return {key: self.said[key] for key in keys if key in self.said}

    def runs(self, *jobs: Job, at: float = 200.0) -> None:
        for job in jobs:
            self.said[job.id, job.attempt] = Evidence(None, at, True)

    def ends(self, *jobs: Job, reason: str | None = None, **values: Any) -> None:
        for job in jobs:
            self.said[job.id, job.attempt] = Evidence(an_exit(reason, **values), None, False)


def forked_parent(link: socket.socket) -> int:
    """A parent of supervisors as a fork of the test: an interpreter of its own would cost a second of each test."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.dup2(link.fileno(), 0)
        os.closerange(3, 1024)  # the engine's end of the link, too: or its closing would go unnoticed
        parent.main()
    finally:
        os._exit(0)


@contextmanager
def plain_engine(state: StateDir, capacity: Resources | None = None) -> Iterator[Plain]:
    """A real engine; when done, everything that it started is ended."""
    os.makedirs(state.jobs, exist_ok=True)
    pids: list[int] = []

    def spawn(link: socket.socket) -> int:
        pids.append(forked_parent(link))
        return pids[-1]

    engine = Plain(state, capacity or Resources(4, 8 * GIB, 0), spawn)
    try:
        yield engine
    finally:
        engine.close()
        for pid in pids:
            status(pid)
        end_all(state)


def status(pid: int) -> int | None:
    """Wait for a child; None if somebody else has."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return None


def end_all(state: str) -> None:
    """KILL whatever names the state's path in its command line or environment."""

    def swept() -> bool:
        found = processes_naming(f"{state}/")
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not found

    wait_until(swept, 10, lambda: processes_naming(f"{state}/"))


def a_launch(state: StateDir, command: Sequence[str], job: int = 1, attempt: int = 1, **values: Any) -> Launch:
    """A launch by hand; the job runs in its output directory."""
    ours = f"test{os.path.basename(state)}-{job}-{attempt}"
    env = {"PATH": os.environ["PATH"], "RUNNER_LAUNCH_ID": ours, "RUNNER_OUT": state.job(job).out}
    spec: dict[str, object] = {
        "argv": list(command),
        "directory": state.job(job).out,
        "env": env | values.pop("env", {}),
        "time_limit": None,
        "grace": 10.0,
        "log_head_bytes": 1 << 20,
        "log_tail_bytes": 1 << 20,
        "events": state.events,
    }
    return Launch((job, attempt), ours, spec | values)


def write_attempt(state: StateDir, launch: Launch) -> AttemptDir:
    """What the engine leaves for a supervisor: directories and the spec."""
    job, attempt = launch.key
    directory = state.job(job).attempt(attempt)
    for path in (state.job(job).out, state.job(job).checkpoint, directory):
        os.makedirs(path, mode=0o700, exist_ok=True)
    record = {"version": 1, "launch_id": launch.launch_id, "job": job, "attempt": attempt, **launch.spec}
    Path(directory.spec).write_text(json.dumps(record))
    return directory


# --- the daemon's core ---


@dataclass
class Hall:
    """A daemon's core with its store, and the people's door to it."""

    daemon: Daemon
    wishes: Wishes
    store: Store
    engine: Any
    reports: list[str]
    later: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]]
    environments: dict[str, BaseException | None]  # those that are not ready -> how their build ends
    trees: dict[int, str]
    broken_trees: dict[int, BaseException]
    now: float = 1_000_000.0

    def submit(self, *command: str, who: Principal = ADMIN, **values: Any) -> Job:
        """One job; `array`, `sweep` and `held` belong to the submission, all else to the spec."""
        return self.submit_all(*command, who=who, **values)[0]

    def submit_all(self, *command: str, who: Principal = ADMIN, **values: Any) -> list[Job]:
        outer = {name: values.pop(name) for name in ("array", "sweep", "held") if name in values}
        made, _ = self.wishes.submit(who, Submission(a_spec(*command, **values), **outer), None, "")
        return [self.daemon.book.jobs[made.id + place] for place in range(made.count)]

    def turn(self, seconds: float = 0.0) -> None:
        """One pass of the loop, so much later; what goes on in the background is done after it."""
        self.now += seconds
        self.daemon.pass_once(self.now)
        self.work()

    def work(self) -> None:
        while self.later:
            do, done = self.later.pop(0)
            try:
                do()
            except Exception as error:
                done(error)
            else:
                done(None)

    def sees(self, *readings: Reading, after: float = 1.0, **values: Any) -> None:
        """The collector's next frame, so much later."""
        self.now += after
        self.daemon.gpus.words = lambda now: None
        self.daemon.gpus.heard(Frame(self.now, "570", cards=list(readings), **values), self.now)

    def why(self, job: Job) -> str | None:
        """Why it waits, by this hall's clock; None: it starts."""
        return self.daemon.schedule(self.now, explain=True).waits.get(job.id)

    def until_idle(self, timeout: float = 20.0) -> None:
        """Turn until no job is unfinished."""

        def idle() -> bool:
            self.turn()
            return not self.daemon.book.jobs

        wait_until(idle, timeout, lambda: self.daemon.book.jobs)

    def read(self, job: Job) -> Job:
        return self.store.jobs([job.id])[0]

    def states(self, *jobs: Job) -> list[str]:
        return [self.read(job).state for job in jobs]

    def agrees(self) -> None:
        """The book is what the database says."""
        ours = [replace(job, why="") for _, job in sorted(self.daemon.book.jobs.items())]
        assert ours == self.store.unfinished()


@contextmanager
def a_hall(folder: Path, engine: Engine | None = None, **settings: Any) -> Iterator[Hall]:
    """A daemon on a state directory, recovered; opened again on the same folder it is a restarted one."""
    state = StateDir(folder)
    os.makedirs(state.jobs, exist_ok=True)
    engine = engine if engine is not None else Scripted()
    reports: list[str] = []
    later: list[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = []
    environments: dict[str, BaseException | None] = {}
    trees: dict[int, str] = {}
    broken: dict[int, BaseException] = {}

    def build(name: str) -> None:
        error = environments[name]
        if error is not None:
            raise error
        del environments[name]

    def make_tree(job: int, snapshot: str) -> None:
        if job in broken:
            raise broken[job]
        trees[job] = snapshot

    def remove_tree(job: int) -> None:
        trees.pop(job, None)

    store = Store(state.database)
    preparation = Preparation(
        lambda name: name not in environments,
        build,
        make_tree,
        remove_tree,
        lambda *work: later.append(work),
        4,
    )
    values = {"free_bytes": 0, "cpus": 4, "memory_bytes": 8 * GIB, "data": f"{folder}/data", **settings}
    daemon = Daemon(
        Settings(state, f"{folder}/api.sock", **values),
        store,
        engine,
        preparation,
        lambda e: "/usr/bin",
        reports.append,
    )
    try:
        daemon.recover()
        wishes = Wishes(daemon, lambda spec: None if spec.environment == "base" else "e1", lambda: None)
        yield Hall(daemon, wishes, store, engine, reports, later, environments, trees, broken)
    finally:
        store.close()
