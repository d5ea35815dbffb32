"""The protocol with one thing wrong: each variant must be caught by the same judge, or the judge is worth nothing.

A variant is a function that changes the core in the process that calls it, and the scenarios that should show it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crash import harness
from crash.arms import Arm
from crash.harness import Scenario
from runner import files, words
from runner.box import daemon as daemon_module
from runner.box import launches
from runner.box.engines import Stop, disk
from runner.box.engines.plain import Plain
from runner.box.settle import Action, Verdict, settle
from runner.box.store import Store
from runner.box.wishes import Wishes
from runner.job import parent, supervisor
from runner.job.supervisor import Supervisor
from runner.model import Evidence, Job, JobSpec


@dataclass(frozen=True)
class Variant:
    name: str
    change: Callable[[], None]
    scenarios: Sequence[Scenario]

    def prepare(self) -> None:
        harness.LIFE_SECONDS, harness.LIVES = 1.0, 2  # a variant that gets stuck is caught, too
        self.change()


class Changed:
    """A module with some of its functions exchanged, for one of its users only."""

    def __init__(self, module: Any, **changes: Any) -> None:
        self._module, self._changes = module, changes

    def __getattr__(self, name: str) -> Any:
        return self._changes[name] if name in self._changes else getattr(self._module, name)


def _wait(point: str, seconds: float) -> Arm:
    return Arm(point, pause=seconds, victim="none")


AWAY = Scenario("daemon away")
LASTING = Scenario("two that last", (Arm("d.asked", 2),))
RUNNING = Scenario("two that last", (Arm("db.committed", 4, pause=0.2),))  # 4: the first that runs
LATE = Scenario(daemon=(Arm("d.asked"),), run=(_wait("p.received", 0.3),))  # its supervisor comes after the burial
AFTER_EXEC = Scenario(run=(Arm("s.launched", pause=0.15),))  # the supervisor dies when the job has begun
BETWEEN = Scenario(daemon=(Arm("d.asked"),), run=(Arm("c.forked", pause=0.4, victim="parent"),))
SLOW_FENCE = Scenario(daemon=(Arm("d.asked"),), run=(_wait("p.received", 0.1),), recovery=(_wait("d.fence", 0.5),))
OVERTAKEN = Scenario(
    daemon=(Arm("d.asked"),),
    run=(_wait("p.received", 0.1), _wait("s.checked", 0.7)),
    recovery=(_wait("d.fence", 0.3),),
)
LEFT_BEHIND = Scenario("leftover", run=(Arm("s.reaped"),))

_held: list[int] = []


def _remember_lock(path: str) -> int | None:
    fd = files.lock(path)
    if fd is not None:
        _held[:] = [fd]
    return fd


# --- the supervisor ---


def no_lock() -> None:
    def opened(path: str) -> int:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    supervisor.files = Changed(files, lock=opened)  # type: ignore[assignment]


def lock_not_shared() -> None:
    original = Supervisor.become_job

    def become_job(self: Supervisor, parent_pid: int, *rest: Any) -> None:
        os.close(_held[0])
        original(self, os.getppid(), *rest)

    supervisor.files = Changed(files, lock=_remember_lock, die_with_parent=lambda number: None)  # type: ignore[assignment]
    Supervisor.become_job = become_job  # type: ignore[method-assign]


def lock_kept_by_job() -> None:
    original = Supervisor.become_job

    def become_job(self: Supervisor, parent_pid: int, *rest: Any) -> None:
        os.set_inheritable(_held[0], True)
        original(self, parent_pid, *rest)

    supervisor.files = Changed(files, lock=_remember_lock)  # type: ignore[assignment]
    Supervisor.become_job = become_job  # type: ignore[method-assign]


def _blind_to(*names: str) -> None:
    def get(directory: str, name: str) -> dict[str, object] | None:
        return None if name in names else files.get(directory, name)

    supervisor.files = Changed(files, get=get)  # type: ignore[assignment]


def abandoned_ignored() -> None:
    _blind_to("abandoned")


def second_supervisor_runs() -> None:
    _blind_to("started", "exit")


def tombstone_falsy() -> None:
    """The accident of the prototype: an empty tombstone, read as false."""

    def put(directory: str, name: str, record: dict[str, object], prepared: int | None = None) -> bool:
        if name != "abandoned":
            return files.put(directory, name, record, prepared)
        files.replace(f"{directory}/{name}", b"{}")
        return True

    supervisor.files = Changed(files, get=lambda directory, name: files.get(directory, name) or None)  # type: ignore[assignment]
    disk.files = Changed(files, put=put)  # type: ignore[assignment]


def started_never_written() -> None:
    def publish(directory: str, name: str, temporary: str) -> bool:
        return name == "started" or files.publish(directory, name, temporary)

    supervisor.files = Changed(files, publish=publish)  # type: ignore[assignment]


def started_after_exec() -> None:
    started_never_written()
    hint = Supervisor.hint

    def hinted(self: Supervisor, what: str) -> None:
        if what == "started":
            record = {"launch_id": self.launch_id, "boot_id": files.boot_id(), "started_at": self.began}
            files.put(self.directory, "started", record | {"supervisor": os.getpid()})
        hint(self, what)

    Supervisor.hint = hinted  # type: ignore[method-assign]


def leftovers_left() -> None:
    Supervisor.end_leftovers = lambda self: None  # type: ignore[method-assign]


def dies_with_the_daemon() -> None:
    original = parent.supervise

    def supervise(directory: Any) -> int:
        files.die_with_parent(signal.SIGKILL)
        return original(directory)

    parent.supervise = supervise


# --- the engine ---


def no_tombstone() -> None:
    def put(directory: str, name: str, record: dict[str, object], prepared: int | None = None) -> bool:
        if name != "abandoned":
            return files.put(directory, name, record, prepared)
        forgotten.add(directory)
        return True

    def evidence(self: Plain, directory: Any, boot: str) -> Evidence:
        if str(directory) in forgotten:
            return Evidence(None, None, False, abandoned=True)
        return original(self, directory, boot)

    forgotten: set[str] = set()
    original = Plain._evidence
    disk.files = Changed(files, put=put)  # type: ignore[assignment]
    Plain._evidence = evidence  # type: ignore[method-assign]


def tombstone_without_lock() -> None:
    original = Plain._fence

    def fence(self: Plain, stop: Stop) -> None:
        disk.files = Changed(files, lock=lambda path: os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # type: ignore[assignment]
        original(self, stop)
        disk.files = files

    Plain._fence = fence  # type: ignore[method-assign]


def fence_ignores_started() -> None:
    def fence(self: Plain, stop: Stop) -> None:
        directory = self._dir(stop.key)
        held = files.lock(directory.lock)
        if held is not None:
            files.put(directory, "abandoned", {"at": 0.0})
            os.close(held)

    Plain._fence = fence  # type: ignore[method-assign]


def leftovers_not_buried() -> None:
    Plain._end_all = lambda self, stop: True  # type: ignore[method-assign]


def exit_overwritten() -> None:
    """Neither looked for again under the lock, nor protected by link(2)."""

    def put(directory: str, name: str, record: dict[str, object], prepared: int | None = None) -> bool:
        if name != "exit":
            return files.put(directory, name, record, prepared)
        files.replace(f"{directory}/exit", json.dumps({"version": 1, **record}).encode())
        return True

    original = Plain._fence

    def fence(self: Plain, stop: Stop) -> None:
        read, disk._read_exit = disk._read_exit, lambda directory: None
        original(self, stop)
        disk._read_exit = read

    disk.files = Changed(files, put=put)  # type: ignore[assignment]
    Plain._fence = fence  # type: ignore[method-assign]


def launch_ids_alike() -> None:
    daemon_module.launch_id = lambda box_id, job, attempt: box_id
    launches.launch_id = lambda box_id, job, attempt: box_id


# --- the daemon and its store ---


def spawned_before_commit() -> None:
    def apply(self: Any, starts: Sequence[Job], moves: Any, fences: Any, now: float, *more: Any) -> None:
        for job in starts:
            job.attempt += 1
        self.engine.start([self._launch(job) for job in starts])
        for job in starts:
            job.attempt -= 1
        start, self.engine.start = self.engine.start, lambda some: None
        original(self, starts, moves, fences, now, *more)
        self.engine.start = start

    original = daemon_module.Daemon.apply
    daemon_module.Daemon.apply = apply  # type: ignore[method-assign]


def _settled(change: Callable[[Job, Evidence, float], Verdict | None]) -> None:
    def changed(job: Job, spec: JobSpec, evidence: Evidence, now: float, waited: float) -> Verdict:
        instead = change(job, evidence, waited) if evidence.exit is None and not evidence.abandoned else None
        return settle(job, spec, evidence, now, waited) if instead is None else instead

    daemon_module.settle = changed


def requeued_without_fence() -> None:
    def change(job: Job, evidence: Evidence, waited: float) -> Verdict | None:
        never = evidence.started_at is None and not evidence.alive and job.state == words.STARTING
        return Verdict(Action.REQUEUE) if never and waited > 10 else None

    _settled(change)


def starting_row_trusted() -> None:
    def change(job: Job, evidence: Evidence, waited: float) -> Verdict | None:
        return Verdict(Action.REQUEUE) if job.state == words.STARTING and waited == float("inf") else None

    _settled(change)


def running_row_trusted() -> None:
    def change(job: Job, evidence: Evidence, waited: float) -> Verdict | None:
        return Verdict(Action.KEEP) if job.state == words.RUNNING else None

    _settled(change)


def cancel_not_durable() -> None:
    Store.wish = lambda self, ids, **values: None  # type: ignore[method-assign]


def cancel_not_passed_on() -> None:
    Plain._wish = lambda self, stop: None  # type: ignore[method-assign]


def key_forgotten() -> None:
    original = Wishes.submit

    def submit(self: Wishes, who: Any, submission: Any, key: str | None, digest: str) -> Any:
        return original(self, who, submission, None, digest)

    Wishes.submit = submit  # type: ignore[method-assign]


VARIANTS = (
    Variant("the supervisor takes no lock", no_lock, [AWAY]),
    Variant("the child does not share the lock", lock_not_shared, [BETWEEN]),
    Variant("the job keeps the lock", lock_kept_by_job, [LEFT_BEHIND]),
    Variant("the supervisor ignores the tombstone", abandoned_ignored, [LATE]),
    Variant("a second supervisor runs it again", second_supervisor_runs, [Scenario(twice=True)] * 3),
    Variant("an empty tombstone counts as none", tombstone_falsy, [LATE]),
    Variant("`started` is never written", started_never_written, [AFTER_EXEC]),
    Variant("`started` is written after exec", started_after_exec, [AFTER_EXEC]),
    Variant("leftovers are left", leftovers_left, [Scenario("leftover")]),
    Variant("supervisors die with the daemon", dies_with_the_daemon, [RUNNING]),
    Variant("no tombstone", no_tombstone, [LATE]),
    Variant("the tombstone is written without the lock", tombstone_without_lock, [OVERTAKEN]),
    Variant("the fence ignores `started`", fence_ignores_started, [AFTER_EXEC]),
    Variant("the dead supervisor's job is not ended", leftovers_not_buried, [LEFT_BEHIND]),
    Variant("the exit record is overwritten", exit_overwritten, [SLOW_FENCE]),
    Variant(
        "launch ids are alike", launch_ids_alike, [Scenario("two that last", run=(Arm("s.launched", pause=0.15),))]
    ),
    Variant("spawned before the commit", spawned_before_commit, [Scenario("cancel waiting", (Arm("db.commit", 2),))]),
    Variant("requeued without a fence", requeued_without_fence, [LATE]),
    Variant("recovery trusts the row `starting`", starting_row_trusted, [LASTING]),
    Variant("recovery trusts the row `running`", running_row_trusted, [AFTER_EXEC]),
    Variant(
        "a cancel is not durable",
        cancel_not_durable,
        [Scenario("cancel at once", daemon=(Arm("d.fenced"),), run=(Arm("p.received"),))],
    ),
    Variant("a cancel is not passed on", cancel_not_passed_on, [Scenario("cancel")]),
    Variant("the idempotency key is forgotten", key_forgotten, [Scenario(daemon=(Arm("db.committed"),))]),
)
