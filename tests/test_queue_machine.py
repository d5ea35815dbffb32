"""The daemon's core, driven at random over a fake engine, against a model of what it must never do."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from runner import words
from runner.box import settle as settle_module
from runner.box.daemon import Daemon
from runner.box.engines.fake import Fake
from runner.box.prepare import Preparation
from runner.box.schedule import order
from runner.box.settings import Settings
from runner.box.store import Store
from runner.box.wishes import Wishes
from runner.errors import BadRequest, Busy
from runner.model import After, JobSpec, Principal, Resources, Submission
from runner.paths import StateDir

ME = Principal(0, "tester", "admin")
BOX = Resources(4, 1000, 0)
PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Queue(RuleBasedStateMachine):
    jobs = Bundle("jobs")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="queue-", dir=PLACE)
        self.state = StateDir(self.folder)
        os.mkdir(self.state.jobs)
        open(self.state.ballast, "x").close()
        self.engine = Fake(BOX)
        self.now = time.time()
        self.late = 0.0  # what time has passed, on top of the clock's
        self.ends: dict[int, str] = {}  # final states, as first seen
        self.attempts: dict[int, int] = {}
        self.cancelled: set[int] = set()  # acknowledged while unfinished
        self.acknowledged: list[int] = []
        self.open()

    def open(self) -> None:
        self.store = Store(self.state.database)
        preparation = Preparation(
            lambda environment: True, lambda environment: None, lambda job, snapshot: None, lambda job: None,
            lambda work, done: (work(), done(None))[1], 4,
        )  # fmt: skip
        ours = Settings(self.state, f"{self.state}/s", cpus=BOX.cpus, memory_bytes=BOX.memory_bytes, free_bytes=0)
        self.daemon = Daemon(ours, self.store, self.engine, preparation, lambda environment: "/bin", lambda line: None)
        self.daemon.recover()
        self.wishes = Wishes(self.daemon, lambda spec: None, lambda: None)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.settle_down()
            self.store.close()
            shutil.rmtree(self.folder)

    def settle_down(self) -> None:
        """From wherever it was left, the queue drains when everything that runs ends well."""
        self.drain(False)
        self.wishes.release(ME, [job.id for job in self.daemon.book.queued])
        for _ in range(60 + 2 * len(self.acknowledged)):  # some need the whole box, one after the other
            if not self.daemon.book.jobs:
                break
            self.pass_time(400.0)
            self.tick()
            for key in self.engine.running():
                self.engine.begin(key, self.time)
                self.engine.finish(key, 0, self.time)
        assert not self.daemon.book.jobs, [(job.id, job.state) for job in self.daemon.book.jobs.values()]
        states = self.store.states(self.acknowledged)
        assert set(states) == set(self.acknowledged)
        assert set(states.values()) <= set(words.FINISHED)
        self.nothing_final_changes()

    @property
    def time(self) -> float:
        return time.time() + self.late

    # --- what people do ---

    @rule(
        target=jobs,
        count=st.integers(1, 3),
        cpus=st.integers(1, 4),
        memory=st.integers(0, 1000),
        priority=st.integers(-2, 2),
        limit=st.none() | st.floats(1, 100),
        retries=st.integers(0, 2),
        requeue=st.booleans(),
        held=st.booleans(),
    )
    def submit(
        self,
        count: int,
        cpus: int,
        memory: int,
        priority: int,
        limit: float | None,
        retries: int,
        requeue: bool,
        held: bool,
    ) -> object:
        spec = JobSpec(
            ["true"],
            cpus=cpus,
            memory_bytes=memory,
            priority=priority,
            time_limit=limit,
            retries=retries,
            requeue=requeue,
        )
        return self._submitted(Submission(spec, array=list(range(count)) if count > 1 else None, held=held))

    @rule(target=jobs, first=jobs, any_end=st.booleans(), cpus=st.integers(1, 4))
    def submit_after(self, first: int, any_end: bool, cpus: int) -> object:
        spec = JobSpec(["true"], cpus=cpus, after=[After(first, any_end)])
        try:
            return self._submitted(Submission(spec))
        except BadRequest:
            ended = self.store.states([first])[first]
            assert not any_end
            assert ended in words.FINISHED
            assert ended != words.SUCCEEDED
            return multiple()

    def _submitted(self, submission: Submission) -> object:
        done, _ = self.wishes.submit(ME, submission, None, "")
        ids = list(range(done.id, done.id + done.count))
        assert not self.acknowledged or done.id > max(self.acknowledged), "ids grow"
        self.acknowledged += ids
        return multiple(*ids)

    @rule(job=jobs, grace=st.none() | st.just(0.0))
    def cancel(self, job: int, grace: float | None) -> None:
        unfinished = job in self.daemon.book.jobs
        self.wishes.cancel(ME, [job], grace)
        if unfinished and not self._ended_by_itself(job):
            self.cancelled.add(job)

    def _ended_by_itself(self, job: int) -> bool:
        known = self.daemon.book.jobs.get(job)
        attempt = self.engine.attempts.get((job, known.attempt)) if known is not None else None
        return attempt is not None and attempt.end is not None and attempt.end.reason != "cancelled"

    @rule(job=jobs, held=st.booleans())
    def hold_or_release(self, job: int, held: bool) -> None:
        try:
            (self.wishes.hold if held else self.wishes.release)(ME, [job])
        except Busy:
            assert self.store.states([job])[job] != words.QUEUED

    @rule(job=jobs, priority=st.integers(-3, 3))
    def prioritise(self, job: int, priority: int) -> None:
        try:
            self.wishes.prioritise(ME, [job], priority)
        except Busy:
            assert self.store.states([job])[job] != words.QUEUED

    @rule(on=st.booleans())
    def drain(self, on: bool) -> None:
        self.wishes.drain(ME, on)

    # --- what happens ---

    @rule()
    def tick(self) -> None:
        before = set(self.daemon.book.active)
        queued = [(order(job), job.id, job) for job in self.daemon.book.queued]
        self.daemon.pass_once(self.time)
        started = [(place, job) for place, job_id, job in queued if job_id in self.daemon.book.active]
        if self.daemon.draining:
            assert not set(self.daemon.book.active) - before, "nothing starts while draining"
        if started:
            last = max(place for place, _ in started)
            for place, job_id, job in queued:
                passed_over = place < last and job_id in self.daemon.book.jobs and job.state == words.QUEUED
                alike = [other for at, other in started if at > place and _needs_no_less(other, job)]
                ready = not job.held and not job.after and (job.not_before or 0.0) <= self.time
                assert not (passed_over and ready and alike), f"job {job_id} was passed over by {alike}"

    @rule(seconds=st.sampled_from([0.5, 3.0, 15.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.late += seconds
        for job in self.daemon._asked:
            self.daemon._asked[job] -= seconds

    @precondition(lambda self: self.engine.running())
    @rule(data=st.data())
    def begin_attempt(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.engine.running()))
        if self.engine.attempts[key].began is None:
            self.engine.begin(key, self.time)

    @precondition(
        lambda self: any(a.began is not None and k in self.engine.running() for k, a in self.engine.attempts.items())
    )
    @rule(data=st.data(), code=st.sampled_from([0, 0, 1, 137]))
    def end_attempt(self, data: st.DataObject, code: int) -> None:
        begun = [key for key in self.engine.running() if self.engine.attempts[key].began is not None]
        self.engine.finish(data.draw(st.sampled_from(begun)), code, self.time)

    @precondition(lambda self: self.engine.running())
    @rule(data=st.data())
    def supervisor_dies(self, data: st.DataObject) -> None:
        self.engine.kill_supervisor(data.draw(st.sampled_from(self.engine.running())))

    @rule()
    def daemon_dies(self) -> None:
        self.store.close()
        self.open()

    @rule()
    def box_reboots(self) -> None:
        self.engine.reboot()
        self.daemon_dies()

    # --- what always holds ---

    @invariant()
    def never_more_than_the_box_has(self) -> None:
        book = self.daemon.book
        active = list(book.active.values())
        assert sum(job.cpus for job in active) <= BOX.cpus
        assert sum(job.memory_bytes for job in active) <= BOX.memory_bytes
        known = {(job.id, job.attempt) for job in active}
        assert set(self.engine.running()) <= known, "what may run is known to run"

    @invariant()
    def nothing_final_changes(self) -> None:
        for job, state in self.store.states(self.acknowledged).items():
            before = self.ends.get(job)
            assert before in (None, state), f"job {job} went from {before} to {state}"
            if state in words.FINISHED:
                self.ends[job] = state
                assert job not in self.cancelled or state in (words.CANCELLED, words.LOST), f"job {job}: {state}"

    @invariant()
    def attempts_only_grow(self) -> None:
        for job in self.daemon.book.jobs.values():
            assert job.attempt >= self.attempts.get(job.id, 0)
            self.attempts[job.id] = job.attempt
            numbers = [number for (job_id, number) in sorted(self.engine.attempts) if job_id == job.id]
            assert all(later == earlier + 1 for earlier, later in pairwise(numbers))

    @invariant()
    def everything_that_waits_says_why(self) -> None:
        decision = self.daemon.schedule(self.time, explain=True)
        starting = {job.id for job in decision.starts}
        for job in self.daemon.book.queued:
            why = decision.waits.get(job.id, "")
            assert bool(why) != (job.id in starting), (job.id, why)
            if self.daemon.draining:
                assert "draining" in why
            elif job.held:
                assert "held" in why
            elif job.not_before is not None and job.not_before > self.time and not job.after:
                assert "tries again" in why

    @invariant()
    def the_book_is_the_database(self) -> None:
        rows = {job.id: job for job in self.store.unfinished()}
        assert rows.keys() == self.daemon.book.jobs.keys()
        for job in self.daemon.book.jobs.values():
            row = rows[job.id]
            for name in ("state", "attempt", "held", "priority", "retries_used", "misfires", "not_before"):
                assert getattr(row, name) == getattr(job, name), (job.id, name, getattr(row, name), getattr(job, name))


def _needs_no_less(other: object, job: object) -> bool:
    return other.cpus >= job.cpus and other.memory_bytes >= job.memory_bytes and other.time_limit is None  # type: ignore[attr-defined]


QUIET = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)


class TestQueue(Queue.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=QUIET)


@pytest.mark.crash
class TestQueueForLong(Queue.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=QUIET)


def test_the_model_knows_the_grace_of_a_start() -> None:
    """`pass_time` steps over it with 15 s."""
    assert settle_module.START_GRACE < 15
