"""What people ask of the queue: submit, cancel, hold, release, reprioritise, drain. Durable before it is answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from runner import words
from runner.box import past, submissions
from runner.box.daemon import Daemon
from runner.box.forecast import expectation
from runner.box.gpus import placement
from runner.box.schedule import duration
from runner.box.settle import Action, Verdict
from runner.box.store import Request
from runner.box.submissions import check, expand
from runner.errors import BadRequest, Busy, NotFound, Refused
from runner.job import processes
from runner.model import PRIORITY_MAX, PRIORITY_MIN, Exit, Gpu, Job, JobSpec, Principal, Submission, Submitted


class Wishes:
    def __init__(
        self,
        daemon: Daemon,
        environment: Callable[[JobSpec], str | None],
        wake: Callable[[], None],
        watcher: Sequence[str] = (),
    ) -> None:
        """environment: the id of the environment that a spec's snapshot declares; refuses what can't be one.
        wake: has the loop look at the queue soon. watcher: the command that waits for an adopted process."""
        self._daemon = daemon
        self._watcher = watcher
        self._environment = environment
        self._wake = wake

    # --- new jobs ---

    def submit(
        self, who: Principal, submission: Submission, key: str | None, digest: str, now: float | None = None
    ) -> tuple[Submitted, bool]:
        """The jobs made, and whether the idempotency key had already made them. now: when, if not just now."""
        self._may_submit(who)
        if key is not None:
            known = self._daemon.store.known_key(who.uid, key, digest)
            if known is not None:
                return known, True
        spec = submission.spec
        states = self._daemon.store.states(after.job for after in spec.after) if spec.after else {}
        now = time.time() if now is None else now
        cards = self._daemon.gpus.facts(now)
        check(submission, self._daemon.engine.capacity(), states, cards)
        indices, params = expand(submission)
        environment = self._environment(spec)
        program = past.program(spec)
        runs = self._daemon.store.past(program)
        request = Request(
            spec, who.user, who.uid, indices, params, submission.held, environment, key, digest,
            program, past.expected_seconds(runs),
        )  # fmt: skip
        jobs = self._taken(request, states, now)
        self._wake()
        first = jobs[0]
        warnings = self._warnings(spec, now) + past.notes(
            spec, runs, max((card.memory_bytes for card in cards), default=0)
        )
        return Submitted(first.id, len(jobs), first.group, words.QUEUED, warnings), False

    def _taken(self, request: Request, states: Mapping[int, str], now: float) -> list[Job]:
        """New jobs in the database and in the book."""
        daemon = self._daemon
        jobs = daemon.store.submit(request, now, daemon.highest_id)
        daemon.book.add(jobs, request.spec, states)
        daemon.events.publish("job", jobs[0].id, words.QUEUED, now)
        return jobs

    def see_notices(self, who: Principal, up_to: int) -> None:
        """Somebody knows of all notices up to one."""
        self._may_submit(who)
        self._daemon.store.see_notices(up_to, time.time())

    def adopt(self, who: Principal, pid: int) -> Submitted:
        """A process that the queue did not start becomes a job: waited for and reported, never ended."""
        self._may_submit(who)
        daemon, now = self._daemon, time.time()
        found = daemon.gpus.process(pid)
        if found is None:
            raise NotFound(f"process {pid} holds no GPU here", "`runner gpus --processes` lists those that do")
        process, uuids = found
        adopter = next((job.id for job in daemon.book.jobs.values() if job.adopts == [pid, process.started]), None)
        if adopter is not None or process.job in daemon.book.jobs:
            raise Busy(f"process {pid} belongs to job {adopter or process.job} already")
        if processes.started(pid) != process.started:
            raise NotFound(f"process {pid} has ended meanwhile", "`runner gpus --processes` lists those that are there")
        if who.role != "admin" and process.user != who.user:
            raise Refused(f"process {pid} is {process.user}'s; you may not adopt it", "ask them, or an administrator")
        spec = JobSpec(
            [*self._watcher, str(pid), str(process.started)],
            name=process.command[: submissions.NAME_MAX] or f"process {pid}",
            environment="base", cpus=0, gpus=len(uuids), priority=PRIORITY_MAX,
            adopts=[pid, process.started], gpu_uuids=uuids,
        )  # fmt: skip
        (job,) = self._taken(Request(spec, who.user, who.uid, [None], [{}], False, None), {}, now)
        daemon.apply([job], [], [], now, {job.id: uuids})
        return Submitted(job.id, 1, None, job.state)

    def rerun(self, who: Principal, job_id: int, key: str | None, digest: str) -> tuple[Submitted, bool]:
        """The same command, options and snapshot once more, as a new job."""
        (job,) = self._daemon.store.jobs([job_id])
        spec = self._daemon.store.spec(job.spec_id)
        if spec.adopts:
            raise BadRequest(f"job {job_id} only waited for process {spec.adopts[0]}", "`runner adopt PID` adopts one")
        if spec.secrets and job.uid != who.uid:
            raise Refused(
                f"job {job_id} is {job.user}'s, and its code would be given your {', '.join(spec.secrets)}",
                "submit the code yourself, with --secret",
            )
        spec.after = []
        submission = Submission(spec)
        if job.array_index is not None or job.params:
            submission.array = [job.array_index] if job.array_index is not None else None
            submission.sweep = {name: [value] for name, value in job.params.items()} or None
        return self.submit(who, submission, key, digest)

    def _warnings(self, spec: JobSpec, now: float) -> list[str]:
        silence = self._daemon.gpus.silence(now) if spec.gpus else None
        return [why for why in (self._daemon.paused(), silence) if why is not None]

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

    def fetching(self, who: Principal, job_id: int) -> Job:
        """The job whose outputs somebody brought home."""
        self._may_submit(who)
        (job,) = self._mine(who, [job_id], "fetch the outputs of")
        return job

    def fetched(self, job: Job) -> None:
        if job.state in words.FINISHED:
            self._daemon.store.mark(job.id, fetched_at=time.time())

    def drain(self, who: Principal, on: bool) -> None:
        self._owns(who, "drain the box")
        self._daemon.store.remember("draining", "yes" if on else "no")
        self._daemon.draining = on
        self._wake()

    def drain_gpu(self, who: Principal, name: str, on: bool) -> Gpu:
        """Nothing new on a GPU, or (off) as usual again. name: its index, its UUID or the start of that."""
        self._owns(who, "drain a GPU")
        uuid = self._daemon.gpus.named(name)
        self._daemon.gpus.drain(uuid, on)
        self._wake()
        return self._daemon.gpus.one(uuid, time.time())

    def forget_gpu(self, who: Principal, name: str) -> None:
        """A GPU was taken out of the box for good."""
        self._owns(who, "have the box forget a GPU")
        gpus = self._daemon.gpus
        uuid = gpus.named(name)
        gpu = gpus.one(uuid, time.time())
        label = gpus.cards.label(uuid)
        if gpu.jobs:
            raise Busy(f"{label} has {placement.jobs(gpu.jobs)}", "wait for them, or cancel them")
        if gpu.state != words.GONE:
            raise Busy(f"{label} is here ({gpu.state}): only one that is lost can be forgotten", "`runner gpus drain`")
        gpus.forget(uuid)
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
            daemon = self._daemon
            active = list(daemon.book.active.values())
            return job.why + expectation(job, job.why, daemon.book.queued, active, daemon.facts(time.time()))
        if job.state in words.ACTIVE:
            since = f", for {duration(time.time() - job.started_at)}" if job.started_at else ""
            return f"it is {job.state}{since}"
        return ended_because(job)

    # --- who may ---

    def _may_submit(self, who: Principal) -> None:
        if who.role == "read":
            raise Refused(f"{who.user} may look, but not change anything", "ask the box's owner for more")

    def _owns(self, who: Principal, what: str) -> None:
        if who.role != "admin":
            raise Refused(f"only an administrator may {what}", "ask the box's owner")

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
    if job.signal and job.reason == "signal":
        sentence += f" ({job.signal})"
    return f"{job.state}: {sentence}" + (f": {job.detail}" if job.detail else "")
