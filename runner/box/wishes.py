"""What people ask of the queue: submit, cancel, hold, release, reprioritise, drain. Durable before it is answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from runner import words
from runner.box.daemon import Daemon
from runner.box.schedule import duration
from runner.box.settle import Action, Verdict
from runner.box.store import Request
from runner.box.submissions import check, expand
from runner.errors import BadRequest, Busy, Refused
from runner.model import PRIORITY_MAX, PRIORITY_MIN, Exit, Job, JobSpec, Principal, Submission, Submitted


class Wishes:
    def __init__(self, daemon: Daemon, environment: Callable[[JobSpec], str | None], wake: Callable[[], None]) -> None:
        """environment: the id of the environment that a spec's snapshot declares; refuses what can't be one.
        wake: has the loop look at the queue soon."""
        self._daemon = daemon
        self._environment = environment
        self._wake = wake

    # --- new jobs ---

    def submit(self, who: Principal, submission: Submission, key: str | None, digest: str) -> tuple[Submitted, bool]:
        """The jobs made, and whether the idempotency key had already made them."""
        self._may_submit(who)
        if key is not None:
            known = self._daemon.store.known_key(who.uid, key, digest)
            if known is not None:
                return known, True
        spec = submission.spec
        states = self._daemon.store.states(after.job for after in spec.after) if spec.after else {}
        check(submission, self._daemon.engine.capacity(), states)
        indices, params = expand(submission)
        environment = self._environment(spec)
        request = Request(spec, who.user, who.uid, indices, params, submission.held, environment, key, digest)
        jobs = self._daemon.store.submit(request, time.time(), self._daemon.highest_id)
        self._daemon.book.add(jobs, spec, states)
        for job in jobs[:1]:
            self._daemon.events.publish("job", job.id, words.QUEUED, job.submitted_at)
        self._wake()
        first = jobs[0]
        return Submitted(first.id, len(jobs), first.group, words.QUEUED, self._warnings(jobs)), False

    def rerun(self, who: Principal, job_id: int, key: str | None, digest: str) -> tuple[Submitted, bool]:
        """The same command, options and snapshot once more, as a new job."""
        (job,) = self._daemon.store.jobs([job_id])
        spec = self._daemon.store.spec(job.spec_id)
        spec.after = []
        submission = Submission(spec)
        if job.array_index is not None or job.params:
            submission.array = [job.array_index] if job.array_index is not None else None
            submission.sweep = {name: [value] for name, value in job.params.items()} or None
        return self.submit(who, submission, key, digest)

    def _warnings(self, jobs: Sequence[Job]) -> list[str]:
        paused = self._daemon.paused()
        return [paused] if paused is not None else []

    # --- wishes about jobs ---

    def cancel(self, who: Principal, ids: Iterable[int], grace: float | None) -> list[Job]:
        """End them: queued ones at once, running ones by TERM, a grace, KILL. Finished ones are left as they are."""
        jobs = self._mine(who, ids, "cancel")
        now = time.time()
        daemon = self._daemon
        cancelled = Verdict(Action.END, words.CANCELLED, Exit("cancelled", None, None, "", now, False))
        # The last first: one that waits for another of them is cancelled too, not failed by its end.
        daemon.end_queued([job for job in reversed(jobs) if job.state == words.QUEUED], cancelled, now)
        active = [job for job in jobs if job.state in words.ACTIVE]
        if active:
            daemon.cancel_active(active, grace, now)
        self._wake()
        return jobs

    def hold(self, who: Principal, ids: Iterable[int]) -> list[Job]:
        return self._set_held(who, ids, True, "hold")

    def release(self, who: Principal, ids: Iterable[int]) -> list[Job]:
        return self._set_held(who, ids, False, "release")

    def _set_held(self, who: Principal, ids: Iterable[int], held: bool, verb: str) -> list[Job]:
        jobs = self._waiting(self._mine(who, ids, verb), verb)
        self._daemon.store.wish([job.id for job in jobs], held=held)
        for job in jobs:
            job.held = held
        self._wake()
        return jobs

    def prioritise(self, who: Principal, ids: Iterable[int], priority: int) -> list[Job]:
        if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
            raise BadRequest(f"priority is {priority}; it takes {PRIORITY_MIN} to {PRIORITY_MAX}")
        jobs = self._waiting(self._mine(who, ids, "reprioritise"), "reprioritise")
        self._daemon.store.wish([job.id for job in jobs], priority=priority)
        for job in jobs:
            self._daemon.book.prioritise(job, priority)
        self._wake()
        return jobs

    def fetched(self, who: Principal, job_id: int) -> None:
        self._may_submit(who)
        (job,) = self._mine(who, [job_id], "fetch the outputs of")
        if job.state in words.FINISHED:
            self._daemon.store.mark(job_id, fetched_at=time.time())

    def drain(self, who: Principal, on: bool) -> None:
        if who.role != "admin":
            raise Refused("only an administrator may drain the box", "ask the box's owner")
        self._daemon.store.remember("draining", "yes" if on else "no")
        self._daemon.draining = on
        self._wake()

    # --- questions ---

    def numbers(self, named: Iterable[int | str]) -> list[int]:
        """Job ids from ids and groups (`g42`)."""
        found: list[int] = []
        for name in named:
            if isinstance(name, str) and name.startswith("g") and name[1:].isdecimal():
                found += self._daemon.store.group(int(name[1:]))
            elif isinstance(name, int) or name.isdecimal():
                found.append(int(name))
            else:
                raise BadRequest(f"{name!r} is not a job", "42, 42-50 or g42")
        return found

    def fresh(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs as the queue knows them now, the waiting ones with their reason."""
        book = self._daemon.book
        jobs = [book.jobs.get(job.id, job) for job in jobs]
        if any(job.state == words.QUEUED for job in jobs):
            waits = self._daemon.schedule(time.time(), explain=True).waits
            for job in jobs:
                job.why = waits.get(job.id, words.STARTS_NOW) if job.state == words.QUEUED else ""
        return jobs

    def why(self, job: Job) -> str:
        """Why a job waits, or what became of it, in one sentence."""
        (job,) = self.fresh([job])
        if job.state == words.QUEUED:
            return job.why
        if job.state in words.ACTIVE:
            since = f", for {duration(time.time() - job.started_at)}" if job.started_at else ""
            return f"it is {job.state}{since}"
        return ended_because(job)

    # --- who may ---

    def _may_submit(self, who: Principal) -> None:
        if who.role == "read":
            raise Refused(f"{who.user} may look, but not change anything", "ask the box's owner for more")

    def _mine(self, who: Principal, ids: Iterable[int], verb: str) -> list[Job]:
        """The jobs with these ids, all of which this person may touch; or nothing is done to any of them."""
        self._may_submit(who)
        unfinished = self._daemon.book.jobs
        wanted = sorted(set(ids))
        stored = {job.id: job for job in self._daemon.store.jobs(i for i in wanted if i not in unfinished)}
        jobs = [unfinished[i] if i in unfinished else stored[i] for i in wanted]
        for job in jobs:
            if who.role != "admin" and job.uid != who.uid:
                raise Refused(f"job {job.id} is {job.user}'s; you may not {verb} it", "ask them, or an administrator")
        return jobs

    def _waiting(self, jobs: list[Job], verb: str) -> list[Job]:
        late = next((job for job in jobs if job.state != words.QUEUED), None)
        if late is not None and len(jobs) == 1:
            raise Busy(f"job {late.id} is {late.state}; only a waiting job can be {_PARTICIPLES[verb]}")
        return [job for job in jobs if job.state == words.QUEUED]


_PARTICIPLES = {"hold": "held", "release": "released", "reprioritise": "moved in the queue"}


def ended_because(job: Job) -> str:
    """`failed: the command ended with a code other than 0 (1): ModuleNotFoundError: ...`"""
    if job.reason is None:
        return f"it {job.state}" if job.state == words.SUCCEEDED else f"it is {job.state}"
    sentence = words.REASONS.get(job.reason, job.reason)
    if job.exit_code:
        sentence += f" ({job.exit_code})"
    if job.signal:
        sentence += f" ({job.signal})"
    return f"{job.state}: {sentence}" + (f": {job.detail}" if job.detail else "")
