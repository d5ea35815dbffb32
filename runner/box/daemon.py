"""The loop: gather, settle, schedule, apply. Woken by events, with a slow tick as a net.

Everything here runs on one thread. What a person asks comes in by the methods of wishes.py and readings; `pass_once`
carries the rest. The order that makes a crash harmless: commit, then act; read the disk, then commit.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from runner import files, words
from runner.box import ends
from runner.box.book import Book
from runner.box.engines import Engine, Launch, Stop
from runner.box.engines.disk import read
from runner.box.events import Events
from runner.box.gpus import patience
from runner.box.gpus.rack import Rack
from runner.box.launches import launch, launch_id
from runner.box.prepare import Failure, Preparation
from runner.box.schedule import Decision, Facts, blocked, broken_dependency, pause, schedule, size
from runner.box.settings import SYSTEMD, Settings
from runner.box.settle import Action, Verdict, after_waiting, settle
from runner.box.store import Move, Store, Stuck
from runner.errors import DiskFull, Problem, StateDamaged
from runner.model import Evidence, Exit, Job, JobSpec, Notice, Use
from runner.paths import AttemptDir

BALLAST_BYTES = 64 << 20
ASK_AGAIN = 30.0  # seconds: what could not be written then may be now
LONG_AGO = -1e9  # when an attempt was asked for that is known not to come, so that it is waited for no longer
NOWHERE: Mapping[int, Sequence[str]] = {}
T = TypeVar("T")


class Daemon:
    def __init__(
        self,
        settings: Settings,
        store: Store,
        engine: Engine,
        preparation: Preparation,
        bin_dir: Callable[[str | None], str],
        report: Callable[[str], None],
    ) -> None:
        """bin_dir: an environment's (None: the base one's) folder of programs. report: a line for the daemon's log."""
        self.settings, self.store, self.engine = settings, store, engine
        self.preparation = preparation
        self.bin_dir, self.report = bin_dir, report
        self.book = Book()
        self.gpus = Rack(settings, store)
        self.events = Events(int(time.time() * 1000))  # above any number that an earlier daemon can have given
        self.gpus.noticed = self._noticed
        self.data: Callable[[], str] = lambda: settings.data  # RUNNER_DATA of who starts now
        self.draining = False
        self.highest_id = 0
        self.unknown: list[int] = []  # job directories without a row
        self.wakes_at = float("inf")
        self._asked: dict[int, float] = {}  # active job -> when this daemon asked for its attempt (monotonic)
        self._behind = False  # the book is not what the database says
        self._losing: dict[int, float] = {}  # job -> when it was asked to end because a GPU of its is lost
        self._stuck: dict[str, Stuck] = {}  # GPUs that this pass found to be left stuck
        self.ending: Callable[[Sequence[Job]], Mapping[str, str] | None] = lambda jobs: None  # facts to be kept with it
        self.ended: Callable[[Sequence[Job]], None] = lambda jobs: None  # who is told of ends, when they are durable
        self._ends: list[Job] = []  # jobs that this pass found to be over
        self._uses: list[Use] = []  # what the attempts that this pass found to be over used

    # --- start ---

    def recover(self) -> None:
        """Read the queue, compare it with the disk, and carry on where the last daemon stopped."""
        self.draining = self.store.remembered("draining") == "yes"
        self.reload()
        on_disk = _numbered(self.settings.state.jobs)
        self.highest_id = on_disk[-1] if on_disk else 0
        self._report_unknown(on_disk)
        for job in self.book.active.values():
            self.preparation.laid_out.add(job.id)
            if job.cancel_requested_at is not None:
                self._stop([self.stop_of(job)])
        self.keep_ballast()

    def reload(self) -> None:
        """The book, read from the database: at the start, and after a transaction that failed."""
        self._behind = True
        book = Book()
        specs: dict[int, JobSpec] = {}
        for job in self.store.unfinished():
            if job.spec_id not in specs:
                specs[job.spec_id] = self.store.spec(job.spec_id)
            states = self.store.states(after.job for after in job.after) if job.after else {}
            book.add([job], specs[job.spec_id], states)
        self.book, self._behind = book, False
        self._stuck.clear()
        self._uses.clear()
        self._ends.clear()
        self.gpus.follow(book.active)

    def _report_unknown(self, on_disk: Sequence[int]) -> None:
        """Directories without a row (an old database was put back): told and stopped, never run, never reused."""
        known = self.store.states(on_disk)
        self.unknown = [job_id for job_id in on_disk if job_id not in known]
        for job_id in self.unknown:
            self.report(f"jobs/{job_id} belongs to no job in the database: kept, not run")
            for number in _numbered(self.settings.state.job(job_id)):
                self._stop([Stop((job_id, number), launch_id(self.store.box_id, job_id, number), grace=0.0)])

    # --- the loop ---

    def pass_once(self, now: float) -> None:
        """One turn. `now`: UTC epoch seconds."""
        if self._behind:
            self.reload()
        self.hear()
        moves, fences = self.settle(now)
        moves += self.fail(now)
        self.end_lost(now)
        decision = self.schedule(now)
        places = decision.placements
        starts = [job for job in decision.starts if job.adopts or self.gpus.settled(places.get(job.id, ()), now)]
        self.apply(starts, moves, fences, now, places)
        if not starts:  # a quiet pass: nobody waits for this
            self.engine.stage([(job.id, job.attempt + 1) for job in self.book.queued[: len(self.book.active)]])
        self.prepare(decision, now)
        self.wakes_at = min(decision.wakes_at, self.gpus.look(now))

    def hear(self) -> None:
        """Attempts whose supervisor will not come are waited for no longer."""
        for job_id, number in self.engine.refusals():
            job = self.book.active.get(job_id)
            if job is not None and job.attempt == number:
                self._asked[job_id] = LONG_AGO

    def settle(self, now: float) -> tuple[list[Move], list[Stop]]:
        """What the disk says about the active jobs."""
        moves: list[Move] = []
        fences: list[Stop] = []
        active = list(self.book.active.values())
        evidence = self.engine.evidence([(job.id, job.attempt) for job in active])
        for job in active:
            if (job.id, job.attempt) not in evidence:
                continue  # unknown is not dead
            verdict = self._judge(job, evidence[job.id, job.attempt], now)
            if verdict.action is Action.FENCE:
                fences.append(self.stop_of(job, fence=True))
            elif verdict.action is not Action.KEEP:
                moves += self._carry(job, verdict, now)
        return moves, fences

    def _judge(self, job: Job, found: Evidence, now: float) -> Verdict:
        waited = time.monotonic() - self._asked.get(job.id, -float("inf"))
        end = self._explained(job, found.exit)
        floor = self.gpus.floor_of(job) if end is not None and end.reason == "cuda_out_of_memory" else None
        self.gpus.supervised(job, found)
        return settle(job, self.book.spec(job), replace(found, exit=end), now, waited, floor)

    def end_lost(self, now: float) -> None:
        """The jobs whose GPU is lost, and not for a moment: they can't go on, and may not even notice."""
        active = [job for job in self.book.active.values() if job.allotted and not job.adopts]
        lost = [job for job in active if self.gpus.lost_of(job, now, sure=True) is not None]
        new = [job for job in lost if not 0 <= now - self._losing.get(job.id, -ASK_AGAIN) < ASK_AGAIN]
        if new:
            self._stop([self.stop_of(job, reason="gpu_lost") for job in new])
            self._losing.update((job.id, now) for job in new)

    def end_idle(self, jobs: Sequence[Job]) -> None:
        """Jobs that asked for it, and have left their GPUs idle."""
        if jobs:
            self._stop([self.stop_of(job, reason="gpu_idle") for job in jobs])

    def fail(self, now: float) -> list[Move]:
        """The queued jobs whose environment or code could not be made."""
        failures, self.preparation.failures = self.preparation.failures, []
        moves: list[Move] = []
        for failure in failures:
            for job in [job for job in self.book.queued if _concerns(failure, job) and not pause(job, now)]:
                verdict = after_waiting(job, self.book.spec(job), failure.reason, failure.detail, now)
                moves += self._carry(job, verdict, now)
        return moves

    def facts(self, now: float) -> Facts:
        """What a decision of this moment rests on."""
        return Facts(
            capacity=self.engine.capacity(),
            now=now,
            ended=self.book.ended,
            building=self.preparation.words(self.book.environments),
            laid_out=self.preparation.laid_out,
            paused=self.paused(),
            proves=self._proves(),
            cards=self.gpus.facts(now),
            links=self.gpus.cards.links,
        )

    def schedule(self, now: float, explain: bool = False, queued: Sequence[Job] | None = None) -> Decision:
        """queued: instead of the whole queue."""
        queued = self.book.queued if queued is None else queued
        return schedule(queued, list(self.book.active.values()), self.facts(now), explain)

    def apply(
        self,
        starts: Sequence[Job],
        moves: Sequence[Move],
        fences: Sequence[Stop],
        now: float,
        placements: Mapping[int, Sequence[str]] = NOWHERE,
    ) -> None:
        """Commit what was decided, then do it. placements: the GPUs of those that start and get some."""
        if moves or starts:
            self._commit(starts, moves, now, placements)
        for move in moves:
            self.events.publish("job", move.job_id, move.to, now)
        if self._ends:
            ends, self._ends = self._ends, []
            self.ended(ends)
        for job in starts:
            self.book.start(job, placements.get(job.id, ()))
            self.gpus.given(job, now)
            self._asked[job.id] = time.monotonic()
            self.events.publish("job", job.id, words.STARTING, now)
        if fences:
            self._stop(fences)
        if starts:
            self.engine.start([made for job in starts if (made := self._launch(job)) is not None])

    def cancel_active(self, jobs: Sequence[Job], grace: float | None, now: float) -> None:
        """Ask jobs that start or run to end."""
        new = [job for job in jobs if job.cancel_requested_at is None]
        if new:
            self._recorded(lambda: self.store.wish([job.id for job in new], cancel_requested_at=now))
        for job in new:
            job.cancel_requested_at = now
        self._stop([self.stop_of(job, grace) for job in jobs])

    def end_queued(self, jobs: Sequence[Job], verdict: Verdict, now: float) -> None:
        """End jobs that wait, and those that waited for them."""
        moves = [move for job in jobs for move in self._carry(job, verdict, now)]
        self.apply([], moves, [], now)

    def prepare(self, decision: Decision, now: float) -> None:
        """Environments of the jobs that wait, and work trees for the next few that could start."""
        queued: Sequence[Job] = self.book.queued
        if self.paused() is not None:
            proves = self._proves()  # asks the disk: once, not for each job that waits
            queued = [] if proves is None else [job for job in queued if job.uid == proves]
        if not queued:
            return
        missing = self.preparation.words(self.book.environments)
        if missing:
            wanted = (job.environment for job in queued if not pause(job, now))
            self.preparation.build(dict.fromkeys(name for name in wanted if name in missing))
        awake = (job for job in queued if not pause(job, now))
        first = list(itertools.islice(awake, 8 * self.settings.trees_ahead))
        if decision.prepares or any(job.snapshot is not None for job in first):
            facts = Facts(self.engine.capacity(), now, self.book.ended)
            soon = [job for job in first if job.snapshot is not None and blocked(job, facts) is None]
            self.preparation.lay_out(decision.prepares + [job for job in soon if job not in decision.prepares])

    # --- steps in memory ---

    def _carry(self, job: Job, verdict: Verdict, now: float) -> list[Move]:
        """A verdict into the book, and as moves for the transaction; an end takes along those who waited for it."""
        if job.id not in self.book.jobs:
            return []  # already ended in this pass, with the job that it waited for
        end = verdict.exit
        queued = job.state == words.QUEUED
        if end is not None:
            job.exit_code, job.signal, job.reason, job.detail = end.exit_code, end.signal, end.reason, end.detail
        if verdict.action is Action.RUN:
            job.state, job.started_at, job.misfires = words.RUNNING, verdict.started_at, 0
            self.preparation.began(job)
            return [Move(job.id, job.attempt, words.RUNNING, started_at=verdict.started_at)]
        peak = self._over(job, end, now)
        if verdict.action is Action.END:
            return self._end(job, verdict.state, end, queued, peak, now)
        again = verdict.action is Action.RETRY
        counted = again and verdict.not_before is not None
        job.not_before = verdict.not_before
        job.retries_used += counted
        job.misfires = job.misfires + 1 if verdict.misfire else 0
        if verdict.gpu_floor_bytes is not None:
            job.gpu_floor_bytes = verdict.gpu_floor_bytes
        self.book.requeue(job)
        state = verdict.state if again else words.LOST
        was = None if queued else state
        move = Move(job.id, job.attempt, words.QUEUED, was, end, None, verdict.not_before, counted, verdict.misfire)
        return [replace(move, gpu_peak_bytes=peak, gpu_floor_bytes=verdict.gpu_floor_bytes)]

    def _end(self, job: Job, state: str, end: Exit | None, queued: bool, peak: int | None, now: float) -> list[Move]:
        job.ended_at = end.ended_at if end is not None else now
        self._ends.append(job)
        if end is not None and end.started_at is not None:
            job.started_at = end.started_at
        moves = [Move(job.id, job.attempt, state, None if queued else state, end, gpu_peak_bytes=peak)]
        for waiter in self.book.end(job, state):
            sentence = broken_dependency(waiter.after, self.book.ended)
            if sentence is not None:
                broken = Exit("dependency_failed", None, None, sentence, now, False)
                moves += self._carry(waiter, Verdict(Action.END, words.FAILED, broken), now)
        return moves

    def _over(self, job: Job, end: Exit | None, now: float) -> int | None:
        """An attempt is over, or a job that waited; the most memory that it was seen to hold on a GPU."""
        self._asked.pop(job.id, None)
        self._losing.pop(job.id, None)
        self.preparation.forget(job.id)
        if job.state == words.QUEUED:
            return None
        peak = self.gpus.peak(job)
        job.gpu_peak_bytes = peak if peak is not None else job.gpu_peak_bytes
        if end is not None and end.stuck:
            self._stuck.update(dict.fromkeys(job.allotted, Stuck(job.id, job.attempt, end.stuck, now)))
        self._uses += self.gpus.used(job, end.ended_at if end is not None else now)
        self.gpus.taken_back(job, now)
        return peak

    def _explained(self, job: Job, end: Exit | None) -> Exit | None:
        """An end with the line of the log that shows its reason."""
        if end is None or not end.started or job.attempt == 0:
            return end
        end = ends.explained(end, self.attempt_dir(job).log)
        if end.reason == "gpu_idle":
            return replace(end, detail=patience.sentence(job))
        lost = self.gpus.lost_of(job, end.ended_at)
        if lost is not None and end.reason in ("exit_code", "signal", "gpu_lost"):
            end = replace(end, reason="gpu_lost", detail=": ".join(filter(None, (lost, end.detail))))
        return end

    def _noticed(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            self.events.publish("notice", notice.id, notice.severity, notice.at)

    # --- hands ---

    def _commit(
        self, starts: Sequence[Job], moves: Sequence[Move], now: float, placements: Mapping[int, Sequence[str]]
    ) -> None:
        stuck, self._stuck = self._stuck, {}
        opened, counts = self.gpus.opening(starts, placements, now)
        uses, self._uses = [*self._uses, *opened], []
        facts = (self.ending(self._ends) if self._ends else None) or {}
        try:
            applied = self._recorded(
                lambda: self.store.apply(starts, moves, now, placements, stuck, uses, counts, facts)
            )
            elsewhere = ({move.job_id for move in moves} | {job.id for job in starts}) - applied
            if elsewhere:
                raise StateDamaged(f"the queue and the database disagreed about jobs {sorted(elsewhere)}")
        except Problem:
            self.reload()  # the book went ahead of the database
            raise
        for uuid, who in stuck.items():
            self.gpus.stuck([uuid], who)

    def _stop(self, stops: Sequence[Stop]) -> None:
        self._recorded(lambda: self.engine.stop(stops))

    def _recorded(self, record: Callable[[], T]) -> T:
        """Ends, and wishes to end, must be recorded even on a full disk: that is what the ballast is for."""
        try:
            return record()
        except (DiskFull, OSError) as error:
            full = isinstance(error, DiskFull) or error.errno in files.DISK_FULL
            if not full or not os.path.exists(self.settings.state.ballast):
                raise
            os.unlink(self.settings.state.ballast)
            self.report("the disk is full: gave up the ballast to record what ended")
            return record()

    def _launch(self, job: Job) -> Launch | None:
        """None, and told, when it can't be made: as when its environment was removed behind our back. That is built
        again, and then there is another attempt."""
        programs = None
        try:
            programs = self.bin_dir(job.environment)
            spec = self.book.spec(job)
            gpus = self.gpus.visible(job, spec.gpu_ids)
            return launch(job, spec, self.settings, self.store.box_id, programs, gpus, self.data())
        except Exception as error:
            self.report(f"job {job.id} could not be started: {type(error).__name__}: {error}")
            self._asked[job.id] = LONG_AGO
            if programs is None and job.environment is not None:
                self.preparation.gone(job.environment)
            return None

    def stop_of(self, job: Job, grace: float | None = None, fence: bool = False, reason: str = words.CANCELLED) -> Stop:
        ours = launch_id(self.store.box_id, job.id, job.attempt)
        return Stop((job.id, job.attempt), ours, grace, fence, job.state == words.RUNNING, reason)

    def attempt_dir(self, job: Job, number: int | None = None) -> AttemptDir:
        return self.settings.state.job(job.id).attempt(job.attempt if number is None else number)

    def data_of(self, job: Job) -> str:
        """The RUNNER_DATA that an active job was started with, as its record says; else that of who starts now."""
        env = (read(self.attempt_dir(job), "spec") or {}).get("env") if job.id in self.book.active else None
        return str(env["RUNNER_DATA"]) if isinstance(env, dict) and "RUNNER_DATA" in env else self.data()

    # --- the state's disk ---

    def paused(self) -> str | None:
        """Why nothing starts at all; None when jobs may start."""
        if self.draining:
            return "the box is draining: `runner drain --off` lets jobs start again"
        return self._full()

    def _proves(self) -> int | None:
        """Whose jobs start on a box that is drained: a provisioned one's own account submits those that show that it
        works, which is wanted before others start again."""
        may = self.draining and self.settings.engine == SYSTEMD and self._full() is None
        return os.geteuid() if may else None

    def _full(self) -> str | None:
        free, total = files.disk_room(self.settings.state)
        wanted = max(self.settings.free_bytes, total // 50)
        if free < wanted:
            return f"nothing starts: {size(free)} free on the box's disk, {size(wanted)} wanted; see `runner clean`"
        return None

    def keep_ballast(self) -> None:
        """Room that can be given up on a full disk, made while there is plenty."""
        path = self.settings.state.ballast
        free, _ = files.disk_room(self.settings.state)
        if os.path.exists(path) or free < self.settings.free_bytes + BALLAST_BYTES:
            return
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, BALLAST_BYTES)
        except OSError:
            os.unlink(path)
        finally:
            os.close(fd)


def _numbered(folder: str) -> list[int]:
    """The folders in a folder whose names are numbers."""
    with os.scandir(folder) as entries:
        return sorted(int(entry.name) for entry in entries if entry.name.isdecimal() and entry.is_dir())


def _concerns(failure: Failure, job: Job) -> bool:
    if failure.job is not None:
        return job.id == failure.job
    return job.environment == failure.environment
