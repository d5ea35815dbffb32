"""PURE: which jobs start now, and why the others do not. One function for both, so that they can't disagree."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from runner import words
from runner.box.gpus.placement import Card, Links, Slots
from runner.box.gpus.placement import exceeds as cards_exceeded
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
    proves: int | None = None  # whose jobs start all the same (uid)
    cards: Sequence[Card] = ()  # the GPUs
    links: Links = field(default_factory=dict)  # and how near they are to each other


@dataclass(slots=True)
class Decision:
    starts: list[Job] = field(default_factory=list)
    prepares: list[Job] = field(default_factory=list)  # would start if their work trees were there
    placements: dict[int, tuple[str, ...]] = field(default_factory=dict)  # of starts and prepares: UUIDs of GPUs
    waits: dict[int, str] = field(default_factory=dict)  # only with explain: job id -> why, in words
    wakes_at: float = FOREVER  # when time alone changes the decision (a retry's pause ends)


@dataclass(slots=True)
class _Head:
    """The first job that waits for others to end: what may start behind it must not delay it."""

    job: Job
    at: float  # when it is sure to fit, by the time limits of what runs; FOREVER: unknown
    spare: _Room  # what is left beside it at that time


@dataclass(slots=True)
class _Room:
    cpus: int
    memory_bytes: int
    gpus: Slots

    def has(self, job: Job) -> bool:
        """Whether there are the cpus and the memory."""
        # Less than nothing is left where the box became smaller: no harm to a job that asks for none of it, as one that
        # only watches an adopted process.
        return job.cpus <= max(self.cpus, 0) and job.memory_bytes <= max(self.memory_bytes, 0)

    def place(self, job: Job, beside: _Room | None = None) -> tuple[str, ...] | None:
        """The GPUs that it would get, none for a job without; None when there is no room. beside: nor there."""
        if not self.has(job) or (beside is not None and not beside.has(job)):
            return None
        return self.gpus.place(job, None if beside is None else beside.gpus)

    def take(self, job: Job, uuids: Sequence[str]) -> None:
        self.cpus -= job.cpus
        self.memory_bytes -= job.memory_bytes
        self.gpus.take(job, uuids)

    def give(self, job: Job, uuids: Sequence[str]) -> None:
        self.cpus += job.cpus
        self.memory_bytes += job.memory_bytes
        self.gpus.give(job, uuids)

    def copy(self) -> _Room:
        return _Room(self.cpus, self.memory_bytes, self.gpus.copy())


def order(job: Job) -> tuple[int, int]:
    """The queue's order: priority, then submission."""
    return (-job.priority, job.id)


def schedule(queued: Sequence[Job], active: Sequence[Job], facts: Facts, explain: bool = False) -> Decision:
    """Decide over the queue.

    queued: in the queue's order (see `order`). active: starting and running jobs.
    explain: also give a reason for every job that waits; without it the scan stops once nothing more can fit.
    Backfill: a job behind the first that does not fit starts only if it ends before that one can, or leaves it room.
    A job that waits for what is not ours to end (a foreign process, a lost GPU) holds nobody up meanwhile.
    """
    scan = _Scan(active, facts, explain)
    for job in queued:
        if scan.room.cpus <= 0 and not explain:
            break  # every job takes at least one cpu
        reason = scan.consider(job)
        if explain and reason is not None:
            scan.decision.waits[job.id] = reason
    return scan.decision


class _Scan:
    """One look over the queue, from its first job on."""

    def __init__(self, active: Sequence[Job], facts: Facts, explain: bool) -> None:
        self.facts, self.explain = facts, explain
        self.decision = Decision()
        self.room = _Room(facts.capacity.cpus, facts.capacity.memory_bytes, Slots(facts.cards, facts.links))
        self.running = [(job, tuple(job.allotted)) for job in active]  # and what this pass gave room
        for job, uuids in self.running:
            self.room.take(job, uuids)
        self.head: _Head | None = None
        self.skipped: Job | None = None  # the first that waits for what is not ours to end, and comes first after it
        # Room only shrinks in a pass: what did not fit will not, and need not be looked at for each of 10,000 jobs.
        self.refused: dict[_Shape, str] = {}
        self.least: dict[_Kind, tuple[int, float]] = {}  # the least of a kind that was: nor will what asks for more

    def consider(self, job: Job) -> str | None:
        """Give a job its room; or the reason why not."""
        reason = blocked(job, self.facts)
        if reason is not None:
            self.skipped = self.skipped or job
            if pause(job, self.facts.now):
                self.decision.wakes_at = min(self.decision.wakes_at, self.facts.now + pause(job, self.facts.now))
            return reason
        shape = _shape(job)
        reason = self._refused(shape)
        if reason is None:
            reason, uuids = self._fit(job)
            if reason is None:
                return self._begin(job, uuids)
            if self.explain and self.head is not None and self.head.job is job:
                self._refuse(shape, f"{reason}; behind job {job.id}")
                return reason + self._expectation(job)
            self._refuse(shape, reason)
        return reason

    def _refused(self, shape: _Shape) -> str | None:
        """Why such a job does not start, if that is known from another. The words are only of its own shape."""
        reason = self.refused.get(shape)
        if reason is not None or self.explain:
            return reason
        kind, memory, seconds = shape
        least = self.least.get(kind)
        return "" if least is not None and memory >= least[0] and seconds >= least[1] else None

    def _refuse(self, shape: _Shape, reason: str) -> None:
        self.refused[shape] = reason
        kind, memory, seconds = shape
        least = self.least.get(kind)
        if least is None or (memory <= least[0] and seconds <= least[1]):
            self.least[kind] = (memory, seconds)

    def _fit(self, job: Job) -> tuple[str | None, tuple[str, ...]]:
        """(None, its GPUs), or (why it does not start, nothing)."""
        head = None if self._ends_before(job) else self.head
        uuids = self.room.place(job, None if head is None else head.spare)
        if uuids is not None:
            return None, uuids
        if self.head is not None and not self.explain:
            return "", ()
        too_much = hopeless(job, self.facts)
        if too_much is not None:
            return too_much, ()
        if head is not None and self.room.place(job) is not None:
            return f"waits behind job {head.job.id}, which is first: starting now could delay it", ()
        reason = self._lacks(job)
        if self.head is None and self.room.gpus.possible(job):
            self.head = self._reserve(job)
        elif self.head is None:
            self.skipped = self.skipped or job
        return reason, ()

    def _lacks(self, job: Job) -> str:
        """What it lacks, when somebody wants to know: words cost more than the decision."""
        if not self.explain:
            return ""
        reason = lacks(job, self.room, self.facts.capacity)
        return reason if self.head is None else f"{reason}; behind job {self.head.job.id}"

    def _begin(self, job: Job, uuids: tuple[str, ...]) -> str | None:
        """Give the job its room, at once or as soon as its work tree is there; the reason if it is the latter."""
        self.room.take(job, uuids)
        self.running.append((job, uuids))
        if self.head is not None and not self._ends_before(job):
            self.head.spare.take(job, uuids)
        if uuids:
            self.decision.placements[job.id] = uuids
        if job.snapshot is None or job.id in self.facts.laid_out:
            self.decision.starts.append(job)
            return None
        self.decision.prepares.append(job)
        return "its code is being laid out"

    def _reserve(self, job: Job) -> _Head:
        """When will the first job that does not fit be sure to, and what is left beside it then?"""
        at, later = self._fits_at(job, expected_end)
        if at == FOREVER:  # unknown, it may be any moment: only what is left beside it even now can do it no harm
            later = self.room.copy()
            later.take(job, ())
            later.gpus.keep(job)
        else:
            later.take(job, later.place(job) or ())
        return _Head(job, at, later)

    def _fits_at(self, job: Job, end_of: Callable[[Job, float], float]) -> tuple[float, _Room]:
        """When there is room for a job, if what runs ends as `end_of` says; and the room at that time."""
        now = self.facts.now
        later, at = self.room.copy(), now
        ends = sorted(((end_of(other, now), other, uuids) for other, uuids in self.running), key=lambda each: each[0])
        for end, other, uuids in ends:
            if later.place(job) is not None:
                return at, later
            later.give(other, uuids)
            at = end
        return (at if later.place(job) is not None else FOREVER), later

    def _expectation(self, job: Job) -> str:
        """`; expected to start in 12 min, within 2 h at the latest`, as far as it is known."""
        now = self.facts.now
        sure = self.head.at if self.head is not None else FOREVER
        likely, _ = self._fits_at(job, likely_end)
        unless = f", unless job {self.skipped.id} can start before" if self.skipped is not None else ""
        latest = f"within {duration(sure - now)} at the latest{unless}" if sure < FOREVER else ""
        if likely < sure:
            said = f"; expected to start in about {duration(likely - now)}, going by past runs"
            return f"{said}, {latest}" if latest else said
        return f"; starts {latest}" if latest else ""

    def _ends_before(self, job: Job) -> bool:
        """Whether a job that starts now is sure to have ended before the first one can start."""
        return self.head is not None and self.head.at < FOREVER and expected_end(job, self.facts.now) <= self.head.at


_Kind = tuple[object, ...]
_Shape = tuple[_Kind, int, float]


def _shape(job: Job) -> _Shape:
    """Jobs of the same shape fit, or do not, in the same places; of the same kind, what asks for less GPU memory and
    time fits wherever one does that asks for more."""
    kind = (job.cpus, job.memory_bytes, job.gpus, job.gpu_type, job.shares, job.gpu_floor_bytes, *job.gpu_uuids)
    return kind, job.gpu_memory_bytes, FOREVER if job.time_limit is None else job.time_limit + job.grace


def expected_end(job: Job, now: float) -> float:
    """When a job is sure to have ended, by its time limit."""
    if job.time_limit is None:
        return FOREVER
    return (job.started_at if job.started_at is not None else now) + job.time_limit + job.grace


def likely_end(job: Job, now: float) -> float:
    """When a job will most likely have ended, by past runs of its program; one that took longer already may take on."""
    sure = expected_end(job, now)
    if job.expected_seconds is None:
        return sure
    likely = (job.started_at if job.started_at is not None else now) + job.expected_seconds
    return min(sure, likely) if likely > now else sure


# --- reasons ---


def blocked(job: Job, facts: Facts) -> str | None:
    """Why a job could not start even if the box were empty; None if it could."""
    if facts.paused is not None and job.uid != facts.proves:
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


def hopeless(job: Job, facts: Facts) -> str | None:
    """Why a job can't start however long it waits: the box had more when it was submitted."""
    too_much = exceeds(job.cpus, job.memory_bytes, facts.capacity) or cards_exceeded(job, facts.cards)
    return None if too_much is None else f"{too_much}: it can't start here"


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
    said = ["needs " + " and ".join(parts)] if parts else []
    if job.gpus and room.gpus.place(job) is None:
        said.append(room.gpus.lacks(job))
    return "; ".join(said)


def exceeds(spec_cpus: int, spec_memory: int, capacity: Resources) -> str | None:
    """Why a request can never be met on this box; None if it can."""
    if spec_cpus > capacity.cpus:
        return f"asks for {count(spec_cpus, 'cpu')}, the box has {capacity.cpus}"
    if spec_memory > capacity.memory_bytes:
        return f"asks for {size(spec_memory)} of memory, the box has {size(capacity.memory_bytes)}"
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


def clock(at: float, now: float) -> str:
    """The time of day, for people on this box; with the date when it was not today."""
    then = time.localtime(at)
    today = then[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)
