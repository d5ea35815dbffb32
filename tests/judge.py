"""What must hold in a made-up box, computed from its own books and not with the code that decides; and whether what a
waiting job is told is true."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from runner.box.schedule import Decision
from runner.model import Job

if TYPE_CHECKING:
    from simulation import Gpu, History

GIB = 1 << 30
DESKTOP = GIB
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SECONDS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0}
FINER = {"d": 3600.0, "h": 60.0, "min": 1.0, "s": 1.0}


class Violation(AssertionError):
    pass


def must(holds: bool, *said: object) -> None:
    if not holds:
        raise Violation(" ".join(map(str, said)))


class Room:
    """Who has which GPU, and what is left of the rest, at one moment of a decision."""

    def __init__(self, history: History) -> None:
        self.holders: dict[str, list[Job]] = {gpu.uuid: [] for gpu in history.gpus}
        self.cpus, self.memory = history.capacity.cpus, history.capacity.memory_bytes
        for job, uuids in history.seats.values():
            self.take(job, uuids)

    def take(self, job: Job, uuids: Sequence[str]) -> None:
        self.cpus -= job.cpus
        self.memory -= job.memory_bytes
        for uuid in uuids:
            self.holders[uuid].append(job)


class Judge:
    def __init__(self, history: History) -> None:
        self.world = history
        self.promised: dict[int, float] = {}  # job -> when it starts at the latest, as it was told
        self.clauses = _clauses(self)
        self.read: dict[str, tuple[Check, re.Match[str]] | None] = {}  # clauses that were said before

    def look(self, decision: Decision) -> None:
        before, after = Room(self.world), Room(self.world)
        chosen = sorted([*decision.starts, *decision.prepares], key=lambda job: (-job.priority, job.id))
        for job in chosen:
            uuids = decision.placements.get(job.id, ())
            self._may_start(job, uuids, after)
            after.take(job, uuids)
        self.before, self.after, self.decision = before, after, decision
        starting = {job.id for job in decision.starts}
        for job in self.world.book.queued:
            why = decision.waits.get(job.id, "")
            must(bool(why) != (job.id in starting), "job", job.id, "starts and waits, or neither:", why)
            if why:
                self._is_true(job, why)
                late = self.world.orderly and self.world.now > self.promised.get(job.id, float("inf"))
                must(not late, "job", job.id, "was to have started by now:", why)

    # --- what starts ---

    def _may_start(self, job: Job, uuids: Sequence[str], room: Room) -> None:
        must(not job.held, job.id, "is held")
        must(job.not_before is None or job.not_before <= self.world.now, job.id, "has a pause")
        must(len(set(uuids)) == len(uuids) == job.gpus, "job", job.id, "gets", uuids, "for", job.gpus)
        must(job.cpus <= room.cpus, "job", job.id, "gets cpus that are not there")
        must(job.memory_bytes <= max(room.memory, 0), "job", job.id, "gets memory that is not there")
        for uuid in uuids:
            wrong = self.unfit(self.world.gpu(uuid), job, room.holders[uuid])
            must(wrong is None, "job", job.id, "starts on", uuid, "but", wrong)

    def unfit(self, gpu: Gpu, job: Job, holders: Sequence[Job]) -> str | None:
        """Why a GPU, as it was last shown, is none for a job."""
        if not self.meant(job, gpu):
            return f"it is a {gpu.name}, not {job.gpu_type}"
        if gpu.total < job.gpu_memory_bytes or gpu.total <= (job.gpu_floor_bytes or 0):
            return "it is too small"
        closed = self.closed(gpu)
        if closed is not None:
            return closed
        if gpu.dirty is not None:
            return f"its memory was not seen to be free since job {gpu.dirty[0]}"
        alone = [other.id for other in holders if not shares(other)]
        if alone or (holders and not shares(job)):
            return f"it belongs to {[other.id for other in holders]}"
        foreign = self.foreign(gpu)
        if shares(job):
            if self.exact:
                everything = foreign + sum(self.taken_by(gpu, other) for other in holders)
            else:  # what is used may all be theirs
                used = sum(held.bytes for held in gpu.shown or ())
                everything = max(sum(other.gpu_memory_bytes for other in holders), used)
            left = gpu.total - everything
            return f"only {left / GIB} GiB are left" if left < job.gpu_memory_bytes else None
        others = [held for held in gpu.shown or () if held.job not in self.world.seats and held.pid and held.alive]
        if self.listed and any(held.kind == "compute" for held in others):
            return "somebody computes on it"
        if foreign > DESKTOP:
            return f"others hold {foreign / GIB} GiB"
        return "others hold too much" if gpu.total - foreign < job.gpu_memory_bytes else None

    @property
    def exact(self) -> bool:
        return self.world.says == "everything"

    @property
    def listed(self) -> bool:
        return self.world.says != "nothing"

    def meant(self, job: Job, gpu: Gpu) -> bool:
        from simulation import TYPES

        if job.gpu_type.startswith("GPU-"):
            return gpu.uuid.startswith(job.gpu_type)
        return not job.gpu_type or any(card in gpu.name for card in TYPES[job.gpu_type])

    def closed(self, gpu: Gpu) -> str | None:
        if self.world.silent:
            return "nothing is known"
        if gpu.shown_state not in ("ok", "asleep") or gpu.missed or gpu.shown is None:
            return f"it can't be read ({gpu.shown_state})"
        if gpu.fault or gpu.good < 3:
            return f"it was {gpu.fault}"
        if gpu.stuck is not None:
            return "it is stuck"
        return "it is drained" if gpu.drained else None

    def foreign(self, gpu: Gpu) -> int:
        """What others than the jobs on it were shown to hold."""
        here = {job.id for job, uuids in self.world.seats.values() if gpu.uuid in uuids}
        return sum(held.bytes for held in gpu.shown or () if held.job not in here)

    def taken_by(self, gpu: Gpu, job: Job) -> int:
        return max(job.gpu_memory_bytes, sum(held.bytes for held in gpu.shown or () if held.job == job.id))

    def fits_the_box(self, job: Job) -> bool:
        """Whether it could start on an empty box."""
        fit = [gpu for gpu in self.world.gpus if self.meant(job, gpu) and gpu.total >= job.gpu_memory_bytes]
        fit = [gpu for gpu in fit if gpu.total > (job.gpu_floor_bytes or 0)]
        room = self.world.capacity
        return len(fit) >= job.gpus and job.cpus <= room.cpus and job.memory_bytes <= room.memory_bytes

    # --- what is said ---

    def _is_true(self, job: Job, why: str) -> None:
        for clause in _split(why):
            if clause not in self.read:
                known = ((check, found) for form, check in self.clauses if (found := form.fullmatch(clause)))
                self.read[clause] = next(known, None)
            known_as = self.read[clause]
            if known_as is None:
                raise Violation(f"job {job.id} is told what nobody can check: {clause!r} in {why!r}")
            check, found = known_as
            if not check(job, found):
                raise Violation(f"job {job.id} is told what is not true: {clause!r} in {why!r}")

    def free_cpus(self, job: Job, wanted: int, free: int, of: int) -> bool:
        low, high = max(self.after.cpus, 0), max(self.before.cpus, 0)
        return wanted == job.cpus > free and low <= free <= high and of == self.world.capacity.cpus

    def free_memory(self, job: Job, wanted: float, free: float, of: float) -> bool:
        low, high = max(self.after.memory, 0), max(self.before.memory, 0)
        fits = wanted == job.memory_bytes > free and of == self.world.capacity.memory_bytes
        return fits and low - GIB / 16 <= free <= high + GIB / 16

    def free_gpus(self, job: Job, found: re.Match[str]) -> bool:
        number, kind, each, ready, of, rest = found.groups()
        if int(number) != job.gpus or (kind or "") != job.gpu_type:
            return False
        if bool(each) != bool(job.gpu_memory_bytes) or (each and float(each) * GIB != job.gpu_memory_bytes):
            return False
        wanted = [gpu for gpu in self.world.gpus if self.meant(job, gpu) and gpu.uuid in self.world.memory.rows]
        low = sum(self.unfit(gpu, job, self.after.holders[gpu.uuid]) is None for gpu in wanted if not self._unsure(gpu))
        high = sum(self.unfit(gpu, job, self.before.holders[gpu.uuid]) is None for gpu in wanted)
        if int(of) != len(wanted) or not (low if self.exact else 0) <= int(ready) <= high:
            return False
        return int(ready) < job.gpus and self._obstacle(job, rest)

    def _unsure(self, gpu: Gpu) -> bool:
        """Whoever decides may want to be surer than we are that its memory is free."""
        return gpu.uuid in self.world.rack.cards.freeing

    def _obstacle(self, job: Job, text: str) -> bool:
        self._is_true(job, text)
        return True

    def labelled(self, label: str) -> Gpu:
        if label.startswith("GPU "):
            return next(gpu for gpu in self.world.gpus if gpu.index == int(label[4:]))
        return next(gpu for gpu in self.world.gpus if gpu.uuid.startswith(label[:12]))

    def has(self, label: str, ids: str) -> bool:
        said, gpu = _ids(ids), self.labelled(label)
        least, most = ({job.id for job in room.holders[gpu.uuid]} for room in (self.before, self.after))
        return least <= said <= most

    def kept_by(self, job: Job, gpu: Gpu) -> bool:
        return bool(self.after.holders[gpu.uuid]) or not shares(job)

    def left(self, job: Job, found: re.Match[str]) -> bool:
        label, left, of, beside = found.groups()
        gpu = self.labelled(label)
        low, high = (
            gpu.total - self.foreign(gpu) - sum(self.taken_by(gpu, other) for other in room.holders[gpu.uuid])
            for room in (self.after, self.before)
        )
        if beside and not self.has(label, beside):
            return False
        amount = float(left) * GIB
        if not self.exact:
            return amount < max(job.gpu_memory_bytes, 1) + GIB
        near = max(low, 0) - GIB / 16 <= amount <= max(high, 0) + GIB / 16
        return near and float(of) * GIB == gpu.total and amount < job.gpu_memory_bytes + GIB / 16

    def held_by(self, job: Job, found: re.Match[str]) -> bool:
        label, who, others, amount, of = found.groups()
        gpu = self.labelled(label)
        holders = {other.id for other, uuids in self.world.seats.values() if gpu.uuid in uuids}
        shown = [held for held in gpu.shown or () if held.job not in holders]
        if self.exact and abs(sum(held.bytes for held in shown) / GIB - float(amount)) > 0.06:
            return False
        living = [held for held in shown if held.pid and held.alive]
        if others and int(others) != len(living) - 1:
            return False
        if not self.listed:
            return who == "no process that can be seen from here"
        names = {", ".join(filter(None, (held.user, held.command or f"pid {held.pid}"))) for held in living}
        names |= {f"job {held.job}, which does not have it (pid {held.pid})" for held in living}
        names |= {f"a dead process (pid {held.pid})" for held in shown if held.pid and not held.alive}
        if not living and not any(held.pid for held in shown):
            names.add("no process that can be seen from here")
        return who in names and float(of) * GIB == gpu.total

    def being_freed(self, job: Job, found: re.Match[str]) -> bool:
        label, last, amount = found.groups()
        gpu = self.labelled(label)
        right = not amount or not self.exact or abs(self.foreign(gpu) / GIB - float(amount)) < 0.06
        return self.world.had.get(gpu.uuid, [0])[-1] == int(last) and right

    def first(self, job: Job, ahead: int) -> bool:
        """The first that waits for others: it is ahead and waits, and not for anything of its own."""
        other = next((each for each in self.world.book.queued if each.id == ahead), None)
        if other is None or ahead not in self.decision.waits or ahead == job.id:
            return False
        return (-other.priority, other.id) < (-job.priority, job.id) and not other.held

    def skipped(self, job: Job, ahead: int) -> bool:
        other = next((each for each in self.world.book.queued if each.id == ahead), None)
        return other is not None and (-other.priority, other.id) < (-job.priority, job.id)

    def promise(self, job: Job, text: str) -> bool:
        """Kept, if everybody keeps their limits; what was said later can only be earlier."""
        seconds, about = duration(text)
        at = self.world.now + seconds + about + 3.0  # a frame or two
        if self.world.orderly and self.exact:  # else nobody can tell a job's memory from a stranger's
            self.promised[job.id] = min(at, self.promised.get(job.id, at))
        return True

    def too_much(self, job: Job) -> bool:
        known = [gpu for gpu in self.world.gpus if gpu.uuid in self.world.memory.rows and self.meant(job, gpu)]
        enough = [gpu for gpu in known if gpu.total >= job.gpu_memory_bytes]
        room = self.world.capacity
        return len(enough) < job.gpus or job.cpus > room.cpus or job.memory_bytes > room.memory_bytes


Check = Callable[[Job, "re.Match[str]"], bool]
LABEL = r"(GPU \d+|GPU-[0-9a-f]{8} \([^)]+\))"


def _clauses(judge: Judge) -> list[tuple[re.Pattern[str], Check]]:
    """What may be said, and what makes it true."""
    size = r"([\d.]+ (?:B|KiB|MiB|GiB|TiB))"

    def memory(found: re.Match[str], first: int) -> list[float]:
        return [amount(found[place]) for place in range(first, first + 3)]

    def gpu(found: re.Match[str]) -> Any:
        return judge.labelled(found[1])

    known: dict[str, Check] = {
        r"needs (\d+) cpus?, (\d+) of (\d+) free": lambda job, m: judge.free_cpus(job, *map(int, m.groups())),
        rf"needs {size} of memory, {size} of {size} free": lambda job, m: judge.free_memory(job, *memory(m, 1)),
        rf"needs (\d+) cpus?, (\d+) of (\d+) free and {size} of memory, {size} of {size} free": lambda job, m: (
            judge.free_cpus(job, *map(int, m.groups()[:3])) and judge.free_memory(job, *memory(m, 4))
        ),
        r"needs (\d+) GPUs?(?: \(([^)]+)\))?(?: with ([\d.]+) GiB(?: each)?)?"
        r"(?:, alone after it ran out of GPU memory)?, (\d+) of (\d+) free: (.*)": judge.free_gpus,
        rf"{LABEL} has (jobs? [\d, ]+)": lambda job, m: judge.has(m[1], m[2]) and judge.kept_by(job, gpu(m)),
        rf"{LABEL} has ([\d.]+) of ([\d.]+) GiB left(?: beside (jobs? [\d, ]+))?": judge.left,
        rf"{LABEL} has ([\d.]+) of ([\d.]+) GiB left, ((?:held by|is being freed).*)": lambda job, m: judge._obstacle(
            job, f"{m[1]} {m[4]}"
        ),
        rf"{LABEL} has ([\d.]+) GiB, and it ran out of ([\d.]+)": lambda job, m: (
            float(m[2]) <= float(m[3]) + 0.06 and abs(float(m[3]) * GIB - (job.gpu_floor_bytes or 0)) < GIB / 16
        ),
        rf"{LABEL} held by (.+?)(?: and (\d+) others?)?, ([\d.]+) of ([\d.]+) GiB": judge.held_by,
        rf"{LABEL} is being freed after job (\d+)(?:, ([\d.]+) GiB are still in use)?": judge.being_freed,
        rf"{LABEL} is stuck: its memory is not free since job (\d+) ended": lambda job, m: (
            judge.world.had.get(gpu(m).uuid, [0])[-1] == int(m[2])
        ),
        rf"{LABEL} is stuck: a process of job (\d+) can't be ended \(pid (\d+)\)": lambda job, m: (
            gpu(m).stuck is not None and gpu(m).stuck.job == int(m[2])
        ),
        rf"{LABEL} is draining": lambda job, m: gpu(m).drained,
        rf"{LABEL} (?:fell off the bus at|is missing since) [\d: -]+": lambda job, m: bool(gpu(m).fault),
        rf"{LABEL} was not read yet": lambda job, m: gpu(m).shown is None,
        rf"{LABEL} can't be read just now": lambda job, m: gpu(m).missed > 0 or gpu(m).shown_state == "error",
        rf"{LABEL}: how much of its memory is in use is not known \([^)]*\)": lambda job, m: (
            gpu(m).shown_state == "blind"
        ),
        "the driver does not answer": lambda job, m: judge.world.silent,
        r"behind job (\d+)": lambda job, m: judge.first(job, int(m[1])),
        r"waits behind job (\d+), which is first: starting now could delay it": lambda job, m: judge.first(
            job, int(m[1])
        ),
        r"and (\d+) more": lambda job, m: len(judge.world.gpus) - 4 >= int(m[1]) > 0,
        r"expected to start in about ([\w ]+), going by past runs": lambda job, m: True,
        r"expected to start in about ([\w ]+), going by past runs, within ([\w ]+) at the latest": lambda job, m: (
            duration(m[1])[0] <= duration(m[2])[0] + duration(m[2])[1] and judge.promise(job, m[2])
        ),
        r"(?:expected to start in about [\w ]+, going by past runs, |starts )within ([\w ]+) at the latest, "
        r"unless job (\d+) can start before": lambda job, m: judge.skipped(job, int(m[2])),
        r"starts within ([\w ]+) at the latest": lambda job, m: judge.promise(job, m[1]),
        "its code is being laid out": lambda job, m: job.snapshot is not None and job.id not in judge.world.laid_out,
        r"tries again in ([\w ]+) \(retry (\d+) of (\d+)\)": lambda job, m: (
            job.not_before is not None
            and abs(job.not_before - judge.world.now - duration(m[1])[0]) <= duration(m[1])[1]
            and (int(m[2]), int(m[3])) == (job.retries_used, job.retries)
        ),
        "held": lambda job, m: job.held,
        r"`runner [^`]+` (?:lets it go|opens it again)": lambda job, m: True,
        r"asks for .+: it can't start here": lambda job, m: judge.too_much(job),
    }
    return [(re.compile(form), check) for form, check in known.items()]


def _split(why: str) -> list[str]:
    """The clauses of a reason."""
    return why.split("; ") if not why.startswith("asks for") else [re.sub(r"; behind job \d+$", "", why)]


def _ids(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\d+", text)}


def amount(text: str) -> float:
    number, unit = text.split()
    return float(number) * UNITS[unit]


def duration(text: str) -> tuple[float, float]:
    """1 h 5 min -> (3900.0, 60.0): seconds, and how exactly they are told."""
    parts = text.split()
    told = sum(float(number) * SECONDS[unit] for number, unit in zip(parts[::2], parts[1::2], strict=True))
    return told, FINER[parts[1]]


def shares(job: Job) -> bool:
    return bool(job.gpu_memory_bytes) and not job.exclusive and job.gpu_floor_bytes is None
