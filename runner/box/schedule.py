"""PURE: which jobs start now, and why the others do not. One function for both, so that they can't disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runner import words
from runner.model import After, Job, Resources

FOREVER = float("inf")
PAUSE_MAX = 300.0  # seconds; a retry that seems to be further away was written by a clock that has gone back since


@dataclass(slots=True)
class Facts:
    """What a decision rests on besides the jobs themselves."""

    capacity: Resources
    now: float
    ended: Mapping[int, str] = field(default_factory=dict)  # states of the jobs that others wait for
    building: Mapping[str, str] = field(default_factory=dict)  # environment not ready -> what is going on, in words
    laid_out: frozenset[int] | set[int] = frozenset()  # jobs whose work tree is there
    paused: str | None = None  # why nothing starts at all: draining, disk


@dataclass(slots=True)
class Decision:
    starts: list[Job] = field(default_factory=list)
    prepares: list[Job] = field(default_factory=list)  # would start if their work trees were there
    waits: dict[int, str] = field(default_factory=dict)  # only with explain: job id -> why, in words
    wakes_at: float = FOREVER  # when time alone changes the decision (a retry's pause ends)


@dataclass(slots=True)
class _Head:
    """The first job that does not fit: what may start behind it must not delay it."""

    job: Job
    at: float  # when it is sure to fit, by the time limits of what runs; FOREVER: unknown
    spare: _Room  # what is left beside it at that time


@dataclass(slots=True)
class _Room:
    cpus: int
    memory_bytes: int
    gpus: int

    def fits(self, job: Job) -> bool:
        # Less than nothing is left where the box became smaller: no harm to a job that asks for none of it.
        memory, gpus = max(self.memory_bytes, 0), max(self.gpus, 0)
        return job.cpus <= self.cpus and job.memory_bytes <= memory and job.gpus <= gpus

    def take(self, job: Job) -> None:
        self.cpus -= job.cpus
        self.memory_bytes -= job.memory_bytes
        self.gpus -= job.gpus

    def give(self, job: Job) -> None:
        self.cpus += job.cpus
        self.memory_bytes += job.memory_bytes
        self.gpus += job.gpus

    def copy(self) -> _Room:
        return _Room(self.cpus, self.memory_bytes, self.gpus)


def order(job: Job) -> tuple[int, int]:
    """The queue's order: priority, then submission."""
    return (-job.priority, job.id)


def schedule(queued: Sequence[Job], active: Sequence[Job], facts: Facts, explain: bool = False) -> Decision:
    """Decide over the queue.

    queued: in the queue's order (see `order`). active: starting and running jobs.
    explain: also give a reason for every job that waits; without it the scan stops once nothing more can fit.
    Backfill: a job behind the first that does not fit starts only if it ends before that one can, or leaves it room.
    """
    decision = Decision()
    capacity = facts.capacity
    room = _Room(capacity.cpus, capacity.memory_bytes, capacity.gpus)
    for job in active:
        room.take(job)
    head: _Head | None = None
    for job in queued:
        if room.cpus <= 0 and not explain:
            break  # every job takes at least one cpu
        reason = blocked(job, facts)
        if reason is not None:
            if pause(job, facts.now):
                decision.wakes_at = min(decision.wakes_at, facts.now + pause(job, facts.now))
        elif not room.fits(job):
            reason = lacks(job, room, capacity)
            if head is None:
                head = _reserve(job, active, decision.starts + decision.prepares, room, facts)
                if head.at < FOREVER:
                    reason += f"; starts within {duration(head.at - facts.now)} at the latest"
            else:
                reason += f"; behind job {head.job.id}"
        elif head is not None and not _harmless(job, head, facts):
            reason = f"waits behind job {head.job.id}, which is first: starting now could delay it"
        else:
            reason = _begin(job, room, head, facts, decision)
        if explain and reason is not None:
            decision.waits[job.id] = reason
    return decision


def _begin(job: Job, room: _Room, head: _Head | None, facts: Facts, decision: Decision) -> str | None:
    """Give the job its room, at once or as soon as its work tree is there; the reason if it is the latter."""
    room.take(job)
    if head is not None and not _ends_before(job, head, facts):
        head.spare.take(job)
    if job.snapshot is None or job.id in facts.laid_out:
        decision.starts.append(job)
        return None
    decision.prepares.append(job)
    return "its code is being laid out"


def _reserve(job: Job, active: Sequence[Job], begun: Sequence[Job], room: _Room, facts: Facts) -> _Head:
    """When will the first job that does not fit be sure to, and what is left beside it then?"""
    later = room.copy()
    ends = sorted(((expected_end(other, facts.now), other) for other in (*active, *begun)), key=lambda pair: pair[0])
    at = facts.now
    for end, other in ends:
        if later.fits(job):
            break
        later.give(other)
        at = end
    if at == FOREVER:  # unknown, it may be any moment: only what is left beside it even now can do it no harm
        later = room.copy()
    later.take(job)
    return _Head(job, at, later)


def expected_end(job: Job, now: float) -> float:
    if job.time_limit is None:
        return FOREVER
    return (job.started_at if job.started_at is not None else now) + job.time_limit + job.grace


def _ends_before(job: Job, head: _Head, facts: Facts) -> bool:
    return head.at < FOREVER and expected_end(job, facts.now) <= head.at


def _harmless(job: Job, head: _Head, facts: Facts) -> bool:
    return _ends_before(job, head, facts) or head.spare.fits(job)


# --- reasons ---


def blocked(job: Job, facts: Facts) -> str | None:
    """Why a job could not start even on an empty box; None if it could."""
    too_much = exceeds(job.cpus, job.memory_bytes, job.gpus, facts.capacity)
    if too_much is not None:  # the box had more when the job was submitted
        return f"{too_much}: it can't start here"
    if facts.paused is not None:
        return facts.paused
    if job.held:
        return f"held; `runner release {job.id}` lets it go"
    for after in job.after:
        state = facts.ended.get(after.job)
        if state is None or state in words.UNFINISHED:
            wanted = "end" if after.any_end else "succeed"
            return f"waits for job {after.job} to {wanted}"
    if pause(job, facts.now):
        why = "its supervisor did not come" if job.misfires else f"retry {job.retries_used} of {job.retries}"
        return f"tries again in {duration(pause(job, facts.now))} ({why})"
    if job.environment is not None and job.environment in facts.building:
        return facts.building[job.environment]
    return None


def pause(job: Job, now: float) -> float:
    """Seconds until a job may be tried again."""
    wait = job.not_before - now if job.not_before is not None else 0.0
    return wait if 0 < wait <= PAUSE_MAX else 0.0


def broken_dependency(after: Sequence[After], ended: Mapping[int, str]) -> str | None:
    """The sentence for a job that waits for the success of one that did not; None if it may still start."""
    for wish in after:
        state = ended.get(wish.job)
        if state in words.FINISHED and state != words.SUCCEEDED and not wish.any_end:
            return f"job {wish.job}, which it waits for, ended as {state}"
    return None


def lacks(job: Job, room: _Room, capacity: Resources) -> str:
    """What a job needs and what there is of it."""
    parts = []
    if job.cpus > room.cpus:
        parts.append(f"{count(job.cpus, 'cpu')}, {max(room.cpus, 0)} of {capacity.cpus} free")
    if job.memory_bytes > max(room.memory_bytes, 0):
        free = size(max(room.memory_bytes, 0))
        parts.append(f"{size(job.memory_bytes)} of memory, {free} of {size(capacity.memory_bytes)} free")
    if job.gpus > max(room.gpus, 0):
        parts.append(f"{count(job.gpus, 'GPU')}, {max(room.gpus, 0)} of {capacity.gpus} free")
    return "needs " + " and ".join(parts)


def exceeds(spec_cpus: int, spec_memory: int, spec_gpus: int, capacity: Resources) -> str | None:
    """Why a request can never be met on this box; None if it can."""
    if spec_cpus > capacity.cpus:
        return f"asks for {count(spec_cpus, 'cpu')}, the box has {capacity.cpus}"
    if spec_memory > capacity.memory_bytes:
        return f"asks for {size(spec_memory)} of memory, the box has {size(capacity.memory_bytes)}"
    if spec_gpus > capacity.gpus:
        return f"asks for {count(spec_gpus, 'GPU')}, the box has {capacity.gpus or 'none'}"
    return None


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(seconds: float) -> str:
    """75 -> 1 min 15 s; the two largest units."""
    whole = max(round(seconds), 0)
    for unit, length, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"
