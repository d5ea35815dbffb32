"""A box that is made up: GPUs, jobs, other people's processes, faults and the daemon's death, in one seeded history.

What decides is real (schedule, placement, Cards, Rack, Book); processes, driver and database are not there. The world
keeps its own books of who has what and of what the driver has shown; judge.py compares.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from judge import Judge, Violation

from runner import words
from runner.box.book import Book
from runner.box.gpus.frames import ASLEEP, ERROR, LOST, OK, Frame, Probe, Reading, Xid
from runner.box.gpus.rack import Rack
from runner.box.schedule import Decision, Facts, schedule
from runner.box.settings import Settings
from runner.box.settle import retry_pause
from runner.box.store import KnownGpu, Stuck
from runner.model import Evidence, Job, JobSpec, Notice, Process, Resources, Use
from runner.paths import StateDir

GIB = 1 << 30
BEGIN = 1_700_000_000.0
DESKTOP_BYTES, FREE_SECONDS = GIB, 60.0
SILENCE = "the driver does not answer"
STEPS = 20
CARDS = {
    "NVIDIA GeForce RTX 2080 SUPER": 8,
    "NVIDIA GeForce RTX 3090": 24,
    "NVIDIA GeForce RTX 4080 SUPER": 16,
    "NVIDIA GeForce RTX 4090": 24,
    "NVIDIA H200": 140,
    "NVIDIA GB10": 119,
}
# What --gpu-type may say -> the cards that it means, by hand.
TYPES = {
    "3090": ("3090",),
    "RTX 3090": ("3090",),
    "rtx4090": ("4090",),
    "4080super": ("4080",),
    "super": ("2080", "4080"),
    "geforce": ("2080", "3090", "4080", "4090"),
    "h200": ("H200",),
    "gb10": ("GB10",),
}
EVERYTHING, NO_MEMORY, NOTHING = "everything", "no memory", "nothing"  # what the driver says of processes
FOREVER = float("inf")


@dataclass(slots=True)
class Held:
    """A piece of GPU memory and who holds it."""

    bytes: int
    pid: int = 0  # 0: nobody whom the driver lists
    job: int | None = None
    user: str = "ann"
    command: str = "python train.py"
    kind: str = "compute"
    alive: bool = True
    launch: str | None = None
    ancestors: tuple[int, ...] = ()
    until: float = FOREVER


@dataclass(slots=True)
class Gpu:
    uuid: str
    index: int
    name: str
    total: int
    bus_id: str
    held: list[Held] = field(default_factory=list)
    state: str = OK  # OK, LOST, ERROR, ASLEEP, "missing", "blind": its memory can't be read
    drained: bool = False
    stuck: Stuck | None = None
    # What this daemon was shown.
    shown: list[Held] | None = None  # None: nothing yet
    shown_state: str = ""  # of the last frame or probe
    fault: str = ""  # lost, missing: until it was all right three times
    good: int = 3
    missed: int = 0
    dirty: tuple[int, float] | None = None  # (job that had it for itself, its end): not seen to be free since
    clean: bool = False  # nobody else was on it when that job got it, and this daemon knows

    @property
    def used(self) -> int:
        return sum(held.bytes for held in self.held)


@dataclass(slots=True)
class Plan:
    """What a job really does."""

    seconds: float
    bytes: int  # on each of its GPUs
    late: float = 0.0  # seconds for which its memory stays
    runs_out: bool = False  # of GPU memory
    ends: float = FOREVER
    supervisor: int = 0


class Memory:
    """The few things that the database keeps of GPUs."""

    box_id = "sim"

    def __init__(self) -> None:
        self.rows: dict[str, KnownGpu] = {}

    def gpus(self) -> list[KnownGpu]:
        return [replace(row) for row in self.rows.values()]

    def see_gpus(self, gpus: Sequence[KnownGpu]) -> None:
        for gpu in gpus:
            was = self.rows.get(gpu.uuid)
            self.rows[gpu.uuid] = replace(gpu, drained=was.drained if was else False, stuck=was.stuck if was else None)

    def drain_gpu(self, uuid: str, on: bool) -> None:
        self.rows[uuid].drained = on

    def stuck_gpu(self, uuids: Sequence[str], stuck: Stuck | None) -> None:
        for uuid in uuids:
            self.rows[uuid].stuck = stuck

    def forget_gpu(self, uuid: str) -> None:
        del self.rows[uuid]

    def save_uses(self, uses: Sequence[Use], counts: Mapping[str, str]) -> None:
        pass

    def uses(self, ids: Iterable[int]) -> list[tuple[Use, str]]:
        return []

    def notify(self, notices: Sequence[Notice], facts: Mapping[str, str]) -> None:
        pass

    def notices(self) -> list[Notice]:
        return []


SETTINGS = Settings(StateDir("/nowhere"), "/nowhere/s", gpu_desktop_bytes=DESKTOP_BYTES, gpu_free_seconds=FREE_SECONDS)
SPEC = JobSpec(["true"])


class History:
    """One box from its first job on. `run` raises judge.Violation where something is not as it must be."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.now = BEGIN
        self.orderly = self.dice.random() < 0.3  # limits are kept, nothing breaks, nobody interferes
        self.says = self.dice.choices((EVERYTHING, NO_MEMORY, NOTHING), (8, 1, 1))[0]
        self.gpus = self._gpus()
        self.capacity = Resources(self.dice.randint(2, 16), self.dice.choice((8, 32, 64)) * GIB, 0)
        self.plans: dict[int, Plan] = {}
        self.seats: dict[int, tuple[Job, tuple[str, ...]]] = {}  # who has what, by our own books
        self.had: dict[str, list[int]] = {}  # GPU -> jobs that had it for themselves
        self.laid_out: set[int] = set()
        self.silent, self.framed_at = False, 0.0
        self.last_id, self.last_pid = 0, 1000
        self.ends = 0
        self.log: list[str] = []
        self.memory = Memory()
        self.book = Book()
        self.judge = Judge(self)
        if self.dice.random() < 0.5:
            for gpu in self.gpus:
                if self.dice.random() < 0.3:
                    self.somebody(gpu)
        self.begin_daemon()

    def _gpus(self) -> list[Gpu]:
        number = self.dice.choice((1, 1, 2, 2, 3, 4, 4, 6, 8))
        names = self.dice.choices(list(CARDS), k=self.dice.randint(1, 3))
        every = []
        for index in range(number):
            name = self.dice.choice(names)
            uuid = f"GPU-{self.dice.getrandbits(32):08x}-{index}"
            every.append(Gpu(uuid, index, name, CARDS[name] * GIB, f"00000000:{index + 1:02x}:00.0"))
        return every

    def note(self, text: str) -> None:
        self.log.append(f"{self.now - BEGIN:8.2f} {text}")

    # --- the daemon ---

    def begin_daemon(self) -> None:
        """All that was only in memory is gone; what is in the database and what runs is there."""
        jobs = [job for job, _ in self.seats.values()] + list(self.book.queued)
        self.rack = Rack(SETTINGS, self.memory)  # type: ignore[arg-type]
        self.rack.ours.cgroups = True
        self.rack.words = lambda now: SILENCE if self.silent else None
        self.book = Book()
        self.book.add(sorted(jobs, key=lambda job: job.id), SPEC, {})
        self.rack.follow(self.book.active)
        for gpu in self.gpus:
            gpu.shown, gpu.shown_state, gpu.fault, gpu.good, gpu.missed, gpu.dirty = None, "", "", 3, 0, None
            gpu.clean = False
        for job in self.book.active.values():
            if job.state == words.RUNNING:
                self.rack.supervised(job, self._evidence(job))

    def _evidence(self, job: Job) -> Evidence:
        return Evidence(None, job.started_at, True, supervisor=self.plans[job.id].supervisor)

    def decide(self) -> Decision:
        facts = Facts(
            self.capacity, self.now, laid_out=self.laid_out, cards=self.rack.facts(self.now),
            links=self.rack.cards.links,
        )  # fmt: skip
        active = list(self.book.active.values())
        decision = schedule(self.book.queued, active, facts, explain=True)
        if self.dice.random() < 0.3:
            brief = schedule(self.book.queued, active, facts)
            if (brief.starts, brief.placements) != (decision.starts, decision.placements):
                raise Violation(f"explaining changes what starts: {brief.placements}, {decision.placements}")
        self.judge.look(decision)
        for job in decision.starts:
            uuids = decision.placements.get(job.id, ())
            self.book.start(job, uuids)
            self.rack.given(job, self.now)
            self._begin(job, uuids)
        self.laid_out.update(job.id for job in decision.prepares)
        return decision

    def frame(self) -> None:
        """The collector's line of one second."""
        if self.silent:
            return
        self.framed_at = self.now
        cards = [self._read(gpu) for gpu in self.gpus if gpu.state != "missing"]
        for gpu in self.gpus:
            gpu.missed = gpu.missed if gpu.state == "missing" else 0
            if gpu.good < 3 and gpu.state != "missing":
                gpu.good = 0 if gpu.state in (LOST, ERROR) else gpu.good + 1
                gpu.fault = "" if gpu.good == 3 else gpu.fault
        for gpu in self.gpus:
            if gpu.state == "missing":
                gpu.missed += 1
                if gpu.missed >= 2 and gpu.uuid in self.memory.rows:
                    gpu.fault, gpu.good = gpu.fault or "missing", 0
        xids = []
        if not self.orderly and self.dice.random() < 0.005:
            gpu = self.dice.choice(self.gpus)
            xids.append(Xid(self.now, gpu.bus_id, 79))
            if gpu.state != "missing" or gpu.uuid in self.memory.rows:
                gpu.fault, gpu.good = "lost", 0
                self.note(f"XID 79 of GPU {gpu.index}")
        self.rack.heard(Frame(self.now, "570", "12.8", cards=cards, links=self._links(), xids=xids), self.now)

    def _links(self) -> dict[tuple[str, str], int] | None:
        if self.rack.cards.links:
            return None
        ids = sorted(gpu.uuid for gpu in self.gpus)
        return {(a, b): self.dice.choice((10, 30, 40, 50)) for place, a in enumerate(ids) for b in ids[place + 1 :]}

    def probe(self, gpu: Gpu) -> None:
        if not self.silent and gpu.state != "missing":
            self.rack.heard(Probe(self.now, self._read(gpu)), self.now)

    def _read(self, gpu: Gpu) -> Reading:
        reading = Reading(gpu.uuid, gpu.index, gpu.name, gpu.bus_id, gpu.total)
        gpu.shown_state = gpu.state
        if gpu.state in (LOST, ERROR, ASLEEP):
            reading.state, reading.detail = gpu.state, "fell off the bus" if gpu.state == LOST else ""
            if gpu.state == LOST:
                gpu.fault, gpu.good = "lost", 0
            if gpu.state == ASLEEP:
                gpu.shown = []
        elif gpu.state == "blind":
            reading.absent = {"memory_used_bytes": "unknown error"}
        else:
            unchanged = gpu.shown == gpu.held and self.dice.random() < 0.5
            reading.sample = {"memory_used_bytes": gpu.used, "utilization": 0.5}
            reading.processes = None if unchanged else self._listed(gpu)
            gpu.shown = [replace(held) for held in gpu.held]
        self._seen_free(gpu)
        return reading

    def _seen_free(self, gpu: Gpu) -> None:
        """Whether what was shown proves that the memory of the last job is free."""
        if gpu.dirty is None or gpu.state not in (OK, ASLEEP) or self.now <= gpu.dirty[1] or gpu.shown is None:
            return
        # One that is known by its ancestry alone is a stranger when its supervisor is gone: in the way in its own name.
        left = [held for held in gpu.shown if held.job == gpu.dirty[0] and held.job not in self.seats]
        if self.says != NOTHING and any(held.alive and held.pid and held.launch for held in left):
            return
        slack = GIB // 4 if gpu.clean and self.says == EVERYTHING else GIB + GIB // 4
        others = [held for held in gpu.shown if held.job is None]
        left = [held for held in left if not (held.alive and held.pid)]
        if sum(held.bytes for held in left) <= slack or (self.says != EVERYTHING and others):
            gpu.dirty = None

    def _listed(self, gpu: Gpu) -> list[Process]:
        if self.says == NOTHING:
            return []
        return [
            Process(
                held.pid, held.pid, held.bytes if self.says == EVERYTHING else None, held.kind, held.alive,
                held.user if held.alive else "", held.command if held.alive else "", held.launch, list(held.ancestors),
            )
            for held in gpu.held
            if held.pid
        ]  # fmt: skip

    # --- jobs ---

    def submit(self, **values: Any) -> Job:
        self.last_id += 1
        asked = {**self._wish(), **values}
        job = Job(self.last_id, words.QUEUED, "", ["true"], "ann", 1, self.now, **asked)
        self.plans[job.id] = self._plan(job)
        self.book.add([job], SPEC, {})
        gpus = f"{job.gpus} GPUs {job.gpu_type} {job.gpu_memory_bytes // GIB} GiB{' alone' * job.exclusive}"
        self.note(f"job {job.id}: {job.cpus} cpus, {gpus if job.gpus else ''} limit {job.time_limit} p{job.priority}")
        return job

    def _wish(self) -> dict[str, Any]:
        dice = self.dice
        asked: dict[str, Any] = {
            "cpus": dice.choice((1, 1, 1, 2, 4)),
            "memory_bytes": dice.choice((0, 0, 1, 4, 16)) * GIB,
            "priority": 0 if self.orderly else dice.choice((0, 0, 0, 0, 1, -1)),
            "time_limit": dice.choice((None, 10.0, 60.0, 600.0)) if dice.random() < 0.7 or self.orderly else None,
            "expected_seconds": dice.choice((None, 5.0, 40.0)),
            "grace": dice.choice((0.0, 5.0)),
            "snapshot": "s" if not self.orderly and dice.random() < 0.1 else None,
            "retries": dice.choice((0, 2)),
        }
        if dice.random() < 0.85:
            number = dice.choice((1, 1, 1, 1, 2, 3, len(self.gpus)))
            asked["gpus"] = min(number, len(self.gpus)) if dice.random() < 0.98 else number
            if dice.random() < 0.25:
                asked["gpu_type"] = self._type()
            if dice.random() < 0.6:
                asked["gpu_memory_bytes"] = dice.choice((1, 2, 4, 6, 8, 12, 16, 20, 24)) * GIB
                asked["exclusive"] = dice.random() < 0.2
        return asked

    def _type(self) -> str:
        if self.dice.random() < 0.2:
            return self.dice.choice(self.gpus).uuid[: self.dice.choice((8, 12))]
        if self.dice.random() < 0.1:
            return self.dice.choice(list(TYPES))
        name = self.dice.choice(self.gpus).name
        return self.dice.choice([wish for wish, cards in TYPES.items() if any(card in name for card in cards)])

    def _plan(self, job: Job) -> Plan:
        dice = self.dice
        seconds = dice.choice((0.2, 5.0, 30.0, 100.0)) * (0.5 + dice.random())
        if job.time_limit is not None:
            latest = job.time_limit + job.grace * dice.random()
            seconds = min(seconds, latest if self.orderly or dice.random() < 0.9 else latest + 100)
        wanted = job.gpu_memory_bytes or dice.choice((1, 6, 20)) * GIB
        if job.gpu_memory_bytes:
            over = not self.orderly and dice.random() < 0.1
            wanted = int(wanted * (1.5 if over else dice.choice((0.25, 0.5, 1.0))))
        late = 0.0 if self.orderly or dice.random() < 0.6 else dice.choice((0.1, 3.0, 30.0, 90.0))
        return Plan(seconds, wanted, late, not self.orderly and bool(job.gpus) and dice.random() < 0.1)

    def _begin(self, job: Job, uuids: Sequence[str]) -> None:
        self.note(f"job {job.id} starts on {[self.gpu(uuid).index for uuid in uuids]}")
        self.seats[job.id] = (job, tuple(uuids))
        self.judge.promised.pop(job.id, None)
        plan = self.plans[job.id]
        self.last_pid += 1
        plan.supervisor, plan.ends = self.last_pid, self.now + plan.seconds
        for uuid in uuids:
            gpu = self.gpu(uuid)
            if not _shares(job):
                self.had.setdefault(uuid, []).append(job.id)
                gpu.dirty, gpu.clean = None, gpu.shown == []
            if gpu.state == ASLEEP:
                gpu.state = OK
        if self.orderly or self.dice.random() < 0.8:
            self.run(job)

    def run(self, job: Job) -> None:
        """starting -> running: its processes come."""
        job.state, job.started_at = words.RUNNING, self.now
        self.rack.supervised(job, self._evidence(job))
        plan = self.plans[job.id]
        for uuid in self.seats[job.id][1]:
            gpu = self.gpu(uuid)
            free = gpu.total - gpu.used
            if plan.bytes > free and gpu.state == OK:
                plan.runs_out, plan.ends = True, self.now
            amount = max(min(plan.bytes, free), 0)
            self.last_pid += 1
            how = self.dice.randrange(3)  # by its cgroup, its environment, its ancestry
            launch = (f"{job.id}/{job.attempt}", f"sim-{job.id}-{job.attempt}", None)[how]
            gpu.held.append(Held(amount, self.last_pid, job.id, launch=launch, ancestors=(plan.supervisor, 1)))

    def end(self, job: Job, why: str = "ended", stuck: bool = False) -> None:
        """A job that has its place is over, or tries again."""
        self.ends += 1
        plan, (_, uuids) = self.plans[job.id], self.seats.pop(job.id)
        self.note(f"job {job.id} {why}")
        ran_out = plan.runs_out and why == "ended" and bool(uuids)
        floor = self.rack.floor_of(job) if ran_out else None
        if stuck:
            left = Stuck(job.id, job.attempt, ((plan.supervisor, plan.supervisor),), self.now)
            self.memory.stuck_gpu([uuid for uuid in uuids if uuid in self.memory.rows], left)
        self.rack.taken_back(job, self.now)
        for uuid in uuids:
            self._leave(self.gpu(uuid), job, plan.late, stuck)
        again = ran_out and floor is not None and job.retries_used < job.retries
        if again:
            job.gpu_floor_bytes, job.not_before = floor, self.now + retry_pause(job.retries_used)
            job.retries_used += 1
            plan.runs_out, plan.ends = False, FOREVER
            self.book.requeue(job)
            self.judge.promised.clear()  # it is ahead of many again
        else:
            self.book.end(job, words.SUCCEEDED)
        if stuck:
            for uuid in uuids:
                if uuid in self.memory.rows:
                    self.rack.stuck([uuid], left)
                    self.gpu(uuid).stuck = left
        self.now += 0.005
        for uuid in uuids:
            self.probe(self.gpu(uuid))

    def _leave(self, gpu: Gpu, job: Job, late: float, stuck: bool) -> None:
        for held in [held for held in gpu.held if held.job == job.id and held.until == FOREVER]:
            if late or stuck:
                held.alive, held.until = stuck, FOREVER if stuck else self.now + late
                held.pid = held.pid if stuck or self.dice.random() < 0.5 else 0
            else:
                gpu.held.remove(held)
        if not _shares(job) and gpu.uuid in self.memory.rows:
            gpu.dirty = (job.id, self.now)

    def gpu(self, uuid: str) -> Gpu:
        return next(gpu for gpu in self.gpus if gpu.uuid == uuid)

    # --- time ---

    def advance(self, seconds: float, each: bool) -> None:
        """each: decide after each end, as the daemon does; else they all seem to come at once."""
        until = self.now + seconds
        while True:
            due = min(((self.plans[i].ends, i) for i in self.seats), default=(FOREVER, 0))
            if due[0] > until:
                break
            if each:
                self.now = max(self.now, due[0])
            self._free(min(self.now, due[0]))
            self.end(self.seats[due[1]][0])
            if each:
                if self.now - self.framed_at > 1.0:
                    self.frame()
                self.decide()
        self.now = max(until, self.now)
        self._free(self.now)

    def _free(self, at: float) -> None:
        for gpu in self.gpus:
            if any(held.until <= at for held in gpu.held):
                gpu.held = [held for held in gpu.held if held.until > at]

    # --- what others do ---

    def somebody(self, gpu: Gpu) -> None:
        """A process that the queue knows nothing of."""
        desktop = self.dice.random() < 0.3
        amount = GIB // 4 if desktop else self.dice.choice((1, 3, 8, 20)) * GIB // 2
        if gpu.used + amount > gpu.total or gpu.state not in (OK, "blind"):
            return
        self.last_pid += 1
        user, command = self.dice.choice((("alice", "python eval.py"), ("bob", "ollama serve"), ("", "")))
        if desktop:
            user, command = "root", "Xorg :0"
        dead = not desktop and self.dice.random() < 0.1
        self.note(f"pid {self.last_pid} of {user} comes to GPU {gpu.index}: {amount / GIB} GiB")
        kind = "graphics" if desktop else "compute"
        gpu.held.append(Held(amount, self.last_pid, None, user, command, kind, not dead))

    def happen(self) -> None:
        """One thing out of many."""
        calm: list[tuple[int, Callable[[], object]]] = [
            (10, self.submit), (2, self._array), (1, self._cancel), (1, self._kill_daemon),
        ]  # fmt: skip
        wild: list[tuple[int, Callable[[], object]]] = [
            (3, self._foreign), (2, self._fault), (2, self._heal), (1, self._drain), (1, self._stick),
            (1, self._silence), (1, self._forget), (1, self._hold), (1, self._prioritise), (2, self._grow),
        ]  # fmt: skip
        events = calm if self.orderly else calm + wild
        self.dice.choices([event for _, event in events], [weight for weight, _ in events])[0]()

    def _array(self) -> None:
        wish = self._wish()
        for _ in range(self.dice.randint(3, 6)):
            self.submit(**wish)

    def _cancel(self) -> None:
        waiting = list(self.book.queued)
        if waiting and self.dice.random() < 0.5:
            job = self.dice.choice(waiting)
            self.note(f"job {job.id} cancelled")
            self.book.end(job, words.CANCELLED)
        elif self.seats:
            self.end(self.dice.choice([job for job, _ in self.seats.values()]), "cancelled")

    def _kill_daemon(self) -> None:
        self.note("the daemon is killed")
        self.begin_daemon()
        if not self.orderly:
            self.decide()  # before anything was read
        self.frame()

    def _foreign(self) -> None:
        gpu = self.dice.choice(self.gpus)
        there = [held for held in gpu.held if held.job is None]
        if there and self.dice.random() < 0.5:
            self.note(f"somebody leaves GPU {gpu.index}")
            gpu.held.remove(self.dice.choice(there))
        else:
            self.somebody(gpu)

    def _grow(self) -> None:
        gpu = self.dice.choice(self.gpus)
        if gpu.held:
            held = self.dice.choice(gpu.held)
            held.bytes += min(self.dice.choice((1, 4)) * GIB, gpu.total - gpu.used)

    def _fault(self) -> None:
        gpu = self.dice.choice(self.gpus)
        states = [LOST, ERROR, "missing", "blind"] + ([ASLEEP] if not gpu.held and not self._sits(gpu) else [])
        gpu.state = self.dice.choice(states)
        if gpu.state in (LOST, "missing"):
            gpu.held = [held for held in gpu.held if held.job in self.seats]
        self.note(f"GPU {gpu.index} is {gpu.state}")

    def _sits(self, gpu: Gpu) -> bool:
        return any(gpu.uuid in uuids for _, uuids in self.seats.values())

    def _heal(self) -> None:
        for gpu in self.gpus:
            gpu.state = OK
        self.note("all GPUs are there")

    def _drain(self) -> None:
        gpu = self.dice.choice(self.gpus)
        if gpu.uuid in self.memory.rows:
            gpu.drained = not gpu.drained
            self.rack.drain(gpu.uuid, gpu.drained)
            self.note(f"GPU {gpu.index} drained: {gpu.drained}")

    def _stick(self) -> None:
        stuck = [gpu for gpu in self.gpus if gpu.stuck is not None]
        if stuck:
            self._unstick(self.dice.choice(stuck))
        elif self.seats:
            self.end(self.dice.choice([job for job, _ in self.seats.values()]), "will not die", stuck=True)

    def _unstick(self, gpu: Gpu) -> None:
        """The processes that would not die are gone; the daemon sees that in its next look."""
        self.note(f"GPU {gpu.index} is not stuck any more")
        left, gpu.stuck = gpu.stuck, None
        gpu.held = [held for held in gpu.held if left is None or held.job != left.job or held.job in self.seats]
        if gpu.uuid in self.rack.cards.known:
            self.rack.cards.known[gpu.uuid].stuck = None
            self.memory.stuck_gpu([gpu.uuid], None)

    def _silence(self) -> None:
        self.silent = not self.silent
        self.note(f"the collector is silent: {self.silent}")
        self.frame()

    def _forget(self) -> None:
        for gpu in self.gpus:
            if gpu.fault == "missing" and gpu.state == "missing" and not self._sits(gpu):
                self.note(f"GPU {gpu.index} is forgotten")
                self.rack.forget(gpu.uuid)
                gpu.shown, gpu.shown_state, gpu.fault, gpu.good, gpu.dirty = None, "", "", 3, None
                gpu.drained, gpu.stuck = False, None

    def _hold(self) -> None:
        if self.book.queued:
            job = self.dice.choice(self.book.queued)
            job.held = not job.held

    def _prioritise(self) -> None:
        if self.book.queued:
            self.book.prioritise(self.dice.choice(self.book.queued), self.dice.choice((-1, 0, 1)))

    def _lose(self) -> None:
        """The daemon ends the jobs whose GPUs are lost."""
        for job, uuids in list(self.seats.values()):
            said = self.rack.lost_of(job, self.now)
            if said is not None:
                if not any(self.gpu(uuid).fault for uuid in uuids):
                    raise Violation(f"job {job.id} is ended, {said}, but its GPUs are all right")
                if self.dice.random() < 0.7:
                    self.end(job, "lost its GPU")

    # --- the whole of it ---

    def play(self) -> None:
        try:
            self.frame()
            for _ in range(STEPS):
                self._step()
            self.afterwards()
        except Violation as wrong:
            story = "\n".join(self.log[-80:])
            raise Violation(f"history {self.seed}: {wrong}\n{story}") from None

    def _step(self) -> None:
        for _ in range(self.dice.choice((0, 1, 1, 2))):
            self.happen()
        self.decide()
        self.advance(self.dice.choice((0.05, 0.3, 1.0, 1.0, 5.0, 20.0, 70.0)), each=self.orderly)
        for job, _ in list(self.seats.values()):
            if job.state == words.STARTING:
                self.run(job)
        if self.orderly or self.dice.random() < 0.7:
            self.frame()
        elif self.rack.cards.freeing:
            self.probe(self.gpu(self.dice.choice(list(self.rack.cards.freeing))))
        self._lose()
        self.decide()

    def heal(self) -> None:
        """Everybody else leaves, whatever was broken works, nothing is held back."""
        self.note("everything heals")
        self._heal()
        self.silent = False
        for gpu in self.gpus:
            gpu.held = [held for held in gpu.held if held.job in self.seats]
            self._unstick(gpu)
            if gpu.drained:
                gpu.drained = False
                self.rack.drain(gpu.uuid, False)
        for job in self.book.queued:
            job.held, job.snapshot = False, None
        for _ in range(4):
            self.now += 1.0
            self.frame()
        self.orderly = True

    def afterwards(self) -> None:
        """Each job of the history that fits the box starts, however many small ones come after it."""
        self.heal()
        wanted = [job.id for job in self.book.queued if self.judge.fits_the_box(job)]
        lowest = min((job.priority for job in self.book.queued), default=0)
        for job in [*self.book.queued, *self.book.active.values()]:
            plan = self.plans[job.id]
            plan.seconds, plan.late, plan.runs_out = 1 + 9 * self.dice.random(), 0.0, False
            if job.time_limit is not None:
                plan.seconds = min(plan.seconds, job.time_limit)
            plan.ends = min(plan.ends, self.now + plan.seconds) if job.id in self.seats else FOREVER
            if job.started_at is not None and job.time_limit is not None:
                plan.ends = max(min(plan.ends, job.started_at + job.time_limit + job.grace), self.now)
        bound = self.ends + 40 + 40 * len(wanted)
        while waiting := [job for job in self.book.queued if job.id in wanted]:
            if self.ends > bound:
                job = waiting[0]
                why = self.decide().waits.get(job.id)
                raise Violation(f"job {job.id} starves: {self.ends} ends, and still it waits: {why}")
            while len(self.book.queued) < len(waiting) + 4:
                self._stream(lowest)
            self.decide()
            soonest = min((self.plans[i].ends for i in self.seats), default=self.now + 1.0)
            self.advance(max(soonest - self.now, 0.0) + 0.01, each=True)
            for job, _ in list(self.seats.values()):
                if job.state == words.STARTING:
                    self.run(job)
            self.frame()

    def _stream(self, priority: int) -> None:
        shared = self.dice.random() < 0.6
        values = {"gpus": self.dice.choice((0, 1, 1, 1)), "gpu_memory_bytes": (1 + 2 * self.dice.randrange(3)) * GIB}
        job = self.submit(
            cpus=1, memory_bytes=0, priority=priority, gpu_type="", exclusive=False, snapshot=None, retries=0,
            gpus=values["gpus"], gpu_memory_bytes=values["gpu_memory_bytes"] if shared and values["gpus"] else 0,
            time_limit=self.dice.choice((None, None, 20.0)), expected_seconds=None,
        )  # fmt: skip
        self.plans[job.id].seconds = 1 + 9 * self.dice.random()


def _shares(job: Job) -> bool:
    return bool(job.gpu_memory_bytes) and not job.exclusive and job.gpu_floor_bytes is None


def play(seed: int) -> None:
    History(seed).play()
