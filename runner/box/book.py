"""The queue in memory: the unfinished jobs in order, and who waits for whom. A mirror of the database."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from runner import words
from runner.box.schedule import order
from runner.model import Job, JobSpec


class Book:
    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}  # every unfinished job
        self.queued: list[Job] = []  # in the queue's order
        self.active: dict[int, Job] = {}  # starting and running
        self.specs: dict[int, JobSpec] = {}  # by spec id, of the jobs above
        self.ended: dict[int, str] = {}  # final states of jobs that others were asked to wait for
        self._waiting: dict[int, set[int]] = {}  # job -> the queued jobs that wait for it
        self._of_spec: Counter[int] = Counter()
        self.environments: Counter[str] = Counter()  # those that unfinished jobs need, and how many do

    def add(self, jobs: Iterable[Job], spec: JobSpec, states: Mapping[int, str]) -> None:
        """Take unfinished jobs of one spec in. states: of the jobs that they wait for."""
        for job in jobs:
            self.jobs[job.id] = job
            self.specs[job.spec_id] = spec
            self._of_spec[job.spec_id] += 1
            if job.environment is not None:
                self.environments[job.environment] += 1
            for after in job.after:
                if states.get(after.job) in words.FINISHED:
                    self.ended[after.job] = states[after.job]
                self._waiting.setdefault(after.job, set()).add(job.id)
            if job.state == words.QUEUED:
                insort(self.queued, job, key=order)
            else:
                self.active[job.id] = job

    def spec(self, job: Job) -> JobSpec:
        return self.specs[job.spec_id]

    def start(self, job: Job, allotted: Sequence[str] = ()) -> None:
        """queued -> starting, with a new attempt number. allotted: UUIDs of the GPUs that it gets."""
        self._unqueue(job)
        job.allotted = list(allotted)
        job.state, job.attempt = words.STARTING, job.attempt + 1
        job.started_at, job.not_before = None, None
        job.exit_code, job.signal, job.reason, job.detail, job.why = None, None, None, "", ""
        self.active[job.id] = job

    def requeue(self, job: Job) -> None:
        if job.state == words.QUEUED:
            return
        del self.active[job.id]
        job.state, job.started_at, job.allotted = words.QUEUED, None, []
        insort(self.queued, job, key=order)

    def end(self, job: Job, state: str) -> list[Job]:
        """An unfinished job ends; returns the queued jobs that waited for it."""
        if job.state == words.QUEUED:
            self._unqueue(job)
        self.active.pop(job.id, None)
        self.jobs.pop(job.id, None)
        job.state = state
        for after in job.after:
            self._waiting.get(after.job, set()).discard(job.id)
            if not self._waiting.get(after.job):
                self._waiting.pop(after.job, None)
                self.ended.pop(after.job, None)
        if job.environment is not None:
            self.environments[job.environment] -= 1
            if not self.environments[job.environment]:
                del self.environments[job.environment]
        self._of_spec[job.spec_id] -= 1
        if not self._of_spec[job.spec_id]:
            del self._of_spec[job.spec_id], self.specs[job.spec_id]
        waiters = [self.jobs[waiter] for waiter in sorted(self._waiting.get(job.id, ()))]
        if waiters:
            self.ended[job.id] = state
        return waiters

    def prioritise(self, job: Job, priority: int) -> None:
        queued = job.state == words.QUEUED
        if queued:
            self._unqueue(job)
        job.priority = priority
        if queued:
            insort(self.queued, job, key=order)

    def _unqueue(self, job: Job) -> None:
        del self.queued[bisect_left(self.queued, order(job), key=order)]
