"""PURE: what is known of each GPU, put together from the collector's frames; and what follows for jobs and people.

A GPU is known by its UUID. What is read is kept until it is read again; what is not known is not zero, not free and not
lost. Time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from runner import words
from runner.box.gpus.frames import ASLEEP, ERROR, LOST, OK, Frame, Probe, Reading
from runner.box.gpus.placement import Card, gib, jobs, portion, short
from runner.box.gpus.usage import Ours, Usage, held_by, in_the_way, overrun, told, unclaimed, usage
from runner.box.schedule import clock
from runner.box.store import KnownGpu, Stuck
from runner.model import Gpu, Job, Process, Sample

MISSED_FRAMES = 2  # without a GPU, before it is missing
LOST_FRAMES = 10  # in a row in which it is lost or missing, before jobs are ended: many that seemed so were back soon
GOOD_FRAMES = 3  # with one that was lost, before it is trusted again
FELL_OFF = 79  # the XID that says so
FELL, MISSING = "fell off the bus at", "is missing since"
FREE_SLACK = 256 << 20  # bytes that may still be used on a GPU that is free again
CLOCK_BACK = 60.0  # seconds; no reading is so late: one that seems to be was taken after the clock had gone back
SAMPLE_FIELDS = {each.name for each in fields(Sample)} - {"at"}


@dataclass(slots=True)
class Seen:
    """One GPU as it was last read, all its tiers together."""

    reading: Reading
    at: float
    sample: dict[str, object] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)

    @property
    def used_bytes(self) -> int | None:
        used = self.sample.get("memory_used_bytes")
        return used if isinstance(used, int) else None

    def learn(self, reading: Reading, at: float) -> None:
        self.reading, self.at = reading, at
        if reading.state != OK:  # what was read before is not what it is now
            self.sample, self.absent = {}, {}
        if reading.state == ASLEEP:
            self.processes = []  # or it would not sleep
        self.sample |= reading.sample
        for name in reading.sample:
            self.absent.pop(name, None)
        for name, why in reading.absent.items():
            self.sample.pop(name, None)
            self.absent[name] = why
        if reading.processes is not None:
            self.processes = reading.processes


@dataclass(slots=True)
class Fault:
    """A GPU that is lost or missing."""

    since: float
    words: str  # "fell off the bus at" that time, "is missing since" it
    good: int = 0  # frames in a row in which it was all right again
    bad: int = 0  # frames in a row in which it was not


@dataclass(slots=True)
class Freeing:
    """A GPU whose exclusive job has ended: nothing starts before its memory is seen to be free."""

    job: int
    since: float
    before_bytes: int | None  # what others used when the job got it; None: not known


class Cards:
    def __init__(self, known: Iterable[KnownGpu], ours: Ours, desktop_bytes: int, free_seconds: float) -> None:
        """desktop_bytes, free_seconds: see the settings gpu_desktop_bytes and gpu_free_seconds."""
        self.known = {gpu.uuid: gpu for gpu in known}
        self.ours = ours
        self.links: Mapping[tuple[str, str], int] = {}
        self.peaks: dict[tuple[int, int], int] = {}  # (job, attempt) -> the most bytes it held on one GPU
        self.freeing: dict[str, Freeing] = {}
        self.faults: dict[str, Fault] = {}
        self.driver = self.cuda = ""
        self.architectures: dict[str, int] = {}  # UUID -> NVML's number, as far as the driver said
        self.cost: float | None = None  # seconds of the last cycle
        self._desktop, self._patience = desktop_bytes, free_seconds
        self._seen: dict[str, Seen] = {}
        self._missed: dict[str, int] = {}
        self._before: dict[str, int] = {}  # what others used when a job got the GPU for itself

    # --- learning ---

    def learn(self, frame: Frame) -> None:
        self.driver, self.cuda, self.cost = frame.driver, frame.cuda, frame.cost
        self.architectures |= {card.uuid: card.architecture for card in frame.cards if card.architecture is not None}
        if frame.links is not None:
            self.links = frame.links
        for reading in frame.cards:
            self._see(reading, frame.at)
            self._recover(reading)
            self._missed.pop(reading.uuid, None)
        for uuid in self.known.keys() - {reading.uuid for reading in frame.cards}:
            self._miss(uuid, frame)
        for xid in frame.xids:
            if xid.code == FELL_OFF:
                for uuid in self.at_place(xid.bus_id):
                    self._fell(uuid, xid.at)
        self._look_whether_free()

    def learn_one(self, probe: Probe) -> None:
        self._see(probe.card, probe.at)
        self._look_whether_free()

    def _see(self, reading: Reading, at: float) -> None:
        seen = self._seen.setdefault(reading.uuid, Seen(reading, at))
        seen.learn(reading, at)
        self._know(reading, at)
        if reading.state == LOST:
            self._fell(reading.uuid, at)
        if reading.processes is not None:
            for process in seen.processes:
                process.job = self.ours.job_of(process)
            self._note_peaks(seen)

    def _recover(self, reading: Reading) -> None:
        """One that was lost is trusted again after some cycles in which it was all right."""
        fault = self.faults.get(reading.uuid)
        if fault is None:
            return
        if reading.state in (OK, ASLEEP):
            fault.good, fault.bad = fault.good + 1, 0
        else:
            fault.good, fault.bad = 0, fault.bad + (reading.state == LOST)
        if fault.good >= GOOD_FRAMES:
            del self.faults[reading.uuid]

    def _fell(self, uuid: str, at: float) -> None:
        fault = self.faults.setdefault(uuid, Fault(at, FELL))
        fault.words, fault.good = FELL, 0

    def _know(self, reading: Reading, at: float) -> None:
        known = self.known.get(reading.uuid)
        if known is None:
            known = KnownGpu(reading.uuid, reading.name, reading.bus_id, None, reading.unified, False, at, at)
            self.known[reading.uuid] = known
        known.last_seen_at = at
        known.name, known.bus_id = reading.name or known.name, reading.bus_id or known.bus_id
        known.memory_bytes, known.unified = reading.memory_bytes or known.memory_bytes, reading.unified

    def _miss(self, uuid: str, frame: Frame) -> None:
        """One of which there is no word. Where there are cards that can't say who they are, it may be one of those."""
        self._missed[uuid] = self._missed.get(uuid, 0) + (not frame.unnamed)
        if self._missed[uuid] >= MISSED_FRAMES:
            fault = self.faults.setdefault(uuid, Fault(self.known[uuid].last_seen_at, MISSING))
            fault.good, fault.bad = 0, fault.bad + (not frame.unnamed)

    def _note_peaks(self, seen: Seen) -> None:
        held: dict[int, int] = {}
        for process in seen.processes:
            if process.job is not None and process.job in self.ours.active and process.memory_bytes is not None:
                held[process.job] = held.get(process.job, 0) + process.memory_bytes
        for job_id, amount in held.items():
            key = (job_id, self.ours.active[job_id].attempt)
            self.peaks[key] = max(self.peaks.get(key, 0), amount)

    # --- what jobs do ---

    def given(self, job: Job) -> None:
        """A job gets its GPUs (`job.allotted`)."""
        self.peaks = {key: most for key, most in self.peaks.items() if key[0] in self.ours.active}
        for uuid in job.allotted:
            self.freeing.pop(uuid, None)
            self._before.pop(uuid, None)
            seen = self._seen.get(uuid)
            if not job.shares and seen is not None and (seen.used_bytes is not None or seen.reading.state == ASLEEP):
                self._before[uuid] = self._usage(uuid, [])[1].foreign_bytes

    def taken_back(self, job: Job, now: float) -> None:
        """A job that had GPUs has ended, or never began. Not yet durably: what is known of it is kept, in case that it
        is told again."""
        for uuid in job.allotted:
            if not job.shares and not job.adopts and uuid in self.known:
                self.freeing[uuid] = Freeing(job.id, now, self._before.get(uuid))

    def peak(self, job: Job) -> int | None:
        return self.peaks.get((job.id, job.attempt))

    def lost_of(self, job: Job, now: float, sure: bool = False) -> str | None:
        """The sentence for a job one of whose GPUs is lost. sure: and has been for long enough to end a job for it."""
        least = LOST_FRAMES if sure else 0
        lost = next((uuid for uuid in job.allotted if uuid in self.faults and self.faults[uuid].bad >= least), None)
        if lost is None:
            return None
        return f"{self.label(lost)} {self.faults[lost].words} {clock(self.faults[lost].since, now)}"

    def _look_whether_free(self) -> None:
        for uuid, freeing in list(self.freeing.items()):
            seen = self._seen.get(uuid)
            if seen is None:
                continue
            if seen.at < freeing.since - CLOCK_BACK:
                freeing.since = seen.at
            if seen.at > freeing.since and self._is_free(seen, freeing):
                del self.freeing[uuid]

    def _is_free(self, seen: Seen, freeing: Freeing) -> bool:
        """A foreign process that came meanwhile is in the way in its own name."""
        if seen.reading.state == ASLEEP:
            return True
        if seen.used_bytes is None:
            return False
        living = [process for process in seen.processes if process.alive]
        if any(process.job == freeing.job for process in living):
            return False
        if self.known[seen.reading.uuid].unified:
            return True  # what is used is the host's, and changes all the time
        whose = all(process.memory_bytes is not None for process in living)  # can it be told?
        if not whose and (freeing.before_bytes is None or seen.at - freeing.since > self._patience):
            return True
        before = self._desktop if freeing.before_bytes is None else freeing.before_bytes + FREE_SLACK
        return seen.used_bytes <= max(before, told(living) + FREE_SLACK)

    # --- what follows ---

    def cards(self, active: Iterable[Job], silence: str | None, now: float) -> list[Card]:
        """The GPUs as placement sees them. silence: why nothing is known of any of them."""
        holders = self._holders(active)
        return [self._card(gpu, holders.get(gpu.uuid, []), silence, now) for gpu in self._in_order()]

    def view(self, active: Iterable[Job], silence: str | None, now: float) -> list[Gpu]:
        """The GPUs as people see them."""
        holders = self._holders(active)
        return [self._gpu(gpu, holders.get(gpu.uuid, []), silence, now) for gpu in self._in_order()]

    def label(self, uuid: str) -> str:
        """GPU 0; one that is not there has no index."""
        seen = self._seen.get(uuid)
        if seen is not None and seen.reading.index is not None and uuid not in self._missed:
            return f"GPU {seen.reading.index}"
        return f"{uuid[:12]} ({short(self.known[uuid].name)})" if uuid in self.known else uuid[:12]

    def read_at(self, uuid: str, now: float) -> float:
        """When a GPU was last read; one that sleeps is not read, and needs not be."""
        seen = self._seen.get(uuid)
        if seen is None:
            return 0.0
        return now if seen.reading.state == ASLEEP else seen.at

    def index(self, uuid: str) -> int | None:
        seen = self._seen.get(uuid)
        return seen.reading.index if seen is not None and uuid not in self._missed else None

    def process(self, pid: int) -> tuple[Process, list[str]] | None:
        """A living process and the GPUs that it holds."""
        holds = [
            (each, uuid)
            for uuid, seen in self._seen.items()
            for each in seen.processes
            if each.pid == pid and each.alive and uuid not in self._missed
        ]
        return (holds[0][0], [uuid for _, uuid in holds]) if holds else None

    def at_place(self, bus_id: str) -> list[str]:
        """The GPU in a place on the bus, as far as it is known; one that was taken out may have been there, too."""
        return [uuid for uuid, gpu in self.known.items() if gpu.bus_id.lower() == bus_id.lower()]

    def processes(self, uuid: str) -> list[Process]:
        seen = self._seen.get(uuid)
        return [] if seen is None else seen.processes

    def shared(self, active: Iterable[Job]) -> set[str]:
        """The GPUs that several jobs have."""
        return {uuid for uuid, jobs in self._holders(active).items() if len(jobs) > 1}

    def work(self, uuid: str) -> dict[int, float]:
        """job -> how busy its processes keep a GPU, 0..1; only where the driver says so."""
        found: dict[int, float] = {}
        for process in self.processes(uuid):
            if process.job is not None and process.utilization is not None:
                found[process.job] = found.get(process.job, 0.0) + process.utilization
        return found

    def foreign_pids(self) -> list[int]:
        every = (each for seen in self._seen.values() for each in seen.processes)
        return sorted({each.pid for each in every if each.alive and each.job is None})

    def forget(self, uuid: str) -> None:
        for mine in (self.known, self.faults, self.freeing, self._seen, self._missed, self._before):
            mine.pop(uuid, None)

    # --- one of them ---

    def _in_order(self) -> list[KnownGpu]:
        return sorted(self.known.values(), key=lambda gpu: (gpu.bus_id, gpu.uuid))

    def _holders(self, active: Iterable[Job]) -> dict[str, list[Job]]:
        holders: dict[str, list[Job]] = {}
        for job in active:
            for uuid in job.allotted:
                holders.setdefault(uuid, []).append(job)
        return holders

    def _usage(self, uuid: str, holders: Sequence[Job]) -> tuple[Seen, Usage]:
        seen = self._seen[uuid]
        return seen, usage(seen.used_bytes or 0, seen.processes, holders)

    def _card(self, gpu: KnownGpu, holders: list[Job], silence: str | None, now: float) -> Card:
        label, memory = self.label(gpu.uuid), gpu.memory_bytes or 0
        _, closed = self._closed(gpu, label, silence, now) or ("", None)
        lost = gpu.uuid in self.faults
        if gpu.uuid not in self._seen:
            return Card(gpu.uuid, label, gpu.name, memory, closed=closed, lost=lost)
        seen, found = self._usage(gpu.uuid, holders)
        if seen.reading.state == ASLEEP:
            return Card(gpu.uuid, label, gpu.name, memory, closed=closed, asleep=True, lost=lost)
        taken, passing = self._taken(gpu, found, label)
        over = overrun(found, holders)
        mine = unclaimed(found) if holders else 0
        ours = mine > 0 and not in_the_way(found, self._desktop + mine, gpu.unified)
        foreign = found.foreign_bytes + over
        return Card(
            gpu.uuid, label, gpu.name, memory, foreign, closed, taken, passing, lost=lost, ours_bytes=over + mine,
            ours=ours,
        )  # fmt: skip

    def _closed(self, gpu: KnownGpu, label: str, silence: str | None, now: float) -> tuple[str, str] | None:
        """(its state, why nothing at all starts on it)."""
        fault, freeing, seen = self.faults.get(gpu.uuid), self.freeing.get(gpu.uuid), self._seen.get(gpu.uuid)
        if silence is not None:
            return words.UNKNOWN, silence
        if fault is not None:
            return words.GONE, f"{label} {fault.words} {clock(fault.since, now)}"
        if gpu.stuck is not None:
            return words.STUCK, f"{label} is stuck: {_stuck(gpu.stuck)}"
        if freeing is not None and now - freeing.since > self._patience:
            return words.STUCK, f"{label} is stuck: its memory is not free since job {freeing.job} ended"
        if gpu.drained:
            return words.DRAINING, f"{label} is draining; `runner gpus undrain` opens it again"
        if seen is None:
            return words.UNKNOWN, f"{label} was not read yet"
        if gpu.uuid in self._missed or seen.reading.state == ERROR:
            why = f": {seen.reading.detail}" if seen.reading.detail else ""
            return words.UNKNOWN, f"{label} can't be read just now{why}"
        if seen.reading.state == OK and seen.used_bytes is None:
            why = seen.absent.get("memory_used_bytes", "it was not read")
            return words.UNKNOWN, f"{label}: how much of its memory is in use is not known ({why})"
        return None

    def _taken(self, gpu: KnownGpu, found: Usage, label: str) -> tuple[str | None, bool]:
        """(why no job can have it for itself, whether that passes by itself)."""
        freeing = self.freeing.get(gpu.uuid)
        if freeing is not None:
            still = f", {gib(found.foreign_bytes)} GiB are still in use" if found.foreign_bytes > FREE_SLACK else ""
            return f"{label} is being freed after job {freeing.job}{still}", True
        if in_the_way(found, self._desktop, gpu.unified):
            return f"{label} {held_by(found, gpu.memory_bytes or 0)}", False
        return None, False

    def _gpu(self, gpu: KnownGpu, holders: list[Job], silence: str | None, now: float) -> Gpu:
        card = self._card(gpu, holders, silence, now)
        state, why = self._closed(gpu, card.label, silence, now) or self._state(card, holders)
        seen = self._seen.get(gpu.uuid)
        shown = Gpu(gpu.uuid, gpu.name, self.index(gpu.uuid), gpu.bus_id, gpu.memory_bytes, gpu.unified, state, why)
        shown.drained, shown.jobs = gpu.drained, [job.id for job in holders]
        shown.declared_bytes = sum(job.gpu_memory_bytes for job in holders if job.shares)
        if seen is not None and not card.lost and silence is None:
            shown.foreign_bytes = self._usage(gpu.uuid, holders)[1].foreign_bytes
            sample = {name: value for name, value in seen.sample.items() if name in SAMPLE_FIELDS}
            shown.sample = Sample(seen.at, **sample)  # type: ignore[arg-type]
            shown.absent, shown.processes = dict(seen.absent), seen.processes
        return shown

    def _state(self, card: Card, holders: list[Job]) -> tuple[str, str]:
        """Of one that is open: (its state, who has it)."""
        if holders:
            ids = jobs([job.id for job in holders])
            if not all(job.shares for job in holders):
                return words.BUSY, ids
            declared = sum(job.gpu_memory_bytes for job in holders)
            return words.SHARED, f"{ids}, {portion(declared, card.memory_bytes)} declared"
        if card.taken is not None:
            return (words.BUSY if card.passing else words.FOREIGN), card.taken.removeprefix(f"{card.label} ")
        return (words.ASLEEP if card.asleep else words.FREE), ""


def _stuck(stuck: Stuck) -> str:
    pids = ", ".join(str(pid) for pid, _ in stuck.processes)
    return f"a process of job {stuck.job} can't be ended (pid {pids})"
