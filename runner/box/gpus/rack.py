"""The box's GPUs as the daemon deals with them: what is known, what is remembered, what is asked of the collector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from runner.box import tariff
from runner.box.envs.wheels import Driver
from runner.box.gpus.cards import Cards
from runner.box.gpus.counts import another_boot, dumped, loaded
from runner.box.gpus.frames import Frame, Probe
from runner.box.gpus.ledger import Ledger
from runner.box.gpus.meter import Meter, Step
from runner.box.gpus.notices import Once, blamed, of_xid
from runner.box.gpus.placement import Card, matches
from runner.box.gpus.usage import Ours
from runner.box.settings import SYSTEMD, Settings
from runner.box.store import KnownGpu, Store, Stuck
from runner.errors import BadRequest, DiskFull, NotFound, StateDamaged
from runner.job import processes
from runner.model import Evidence, Gpu, Job, Notice, Process, Use

FRESH_SECONDS = 0.25  # a reading older than this is not enough to start a job on
ASKED_SECONDS = 2.0  # but one that was asked for is, however slow the driver is
PROBE_SECONDS, PROBE_SECONDS_MAX = 0.015, 0.2  # between looks at a GPU that is being freed: the first, the slowest
STUCK_SECONDS = 2.0  # between looks for processes that would not die
SEEN_SECONDS = 3600.0  # how far `last_seen_at` in the database may be behind
SAVE_SECONDS = 60.0  # between looks into the database of what running jobs have used
FOREVER = float("inf")


class Rack:
    def __init__(self, settings: Settings, store: Store) -> None:
        self._store, self._patience = store, settings.gpu_free_seconds
        self.ours = Ours(store.box_id, cgroups=settings.engine == SYSTEMD)
        self.cards = Cards(store.gpus(), self.ours, settings.gpu_desktop_bytes, settings.gpu_free_seconds)
        # What is not known before somebody watches: by default there is no collector, and no GPU.
        self.words: Callable[[float], str | None] = lambda now: "no NVIDIA driver found"
        self.look_closely: Callable[[str], None] = lambda uuid: None  # has more of a GPU read for some seconds
        self.probe: Callable[[str], None] | None = None  # has one GPU read at once; None: nobody to ask
        self.hint: Callable[[], str] = lambda: ""  # what to do about `words`
        self._written = {uuid: replace(gpu) for uuid, gpu in self.cards.known.items()}  # as the database has them
        self._probes: dict[str, tuple[float, float]] = {}  # being freed -> (when to look again, pause after that)
        self._asked: dict[str, float] = {}  # GPU -> when `settled` asked for it
        self._awaited: set[str] = set()  # of these, those that were not read since
        self._answered: dict[str, float] = {}  # GPU -> when a reading came that `settled` had asked for
        self._signs: object = None  # what was last told to matter
        self.meter = Meter()
        self.ledger = Ledger(tariff.parse(settings.tariff), settings.currency)
        self.told: Callable[[Frame, Sequence[Step]], None] = lambda frame, steps: None  # who remembers what was read
        self.noticing: Callable[[Sequence[Notice]], Mapping[str, str] | None] = lambda notices: None  # kept with them
        self.noticed: Callable[[Sequence[Notice]], None] = lambda notices: None  # who tells them on
        self.xids: Counter[tuple[str, int]] = Counter()  # (UUID, code) -> how often, since this daemon began
        self._once = Once()
        self._once.remember(store.notices())
        self._saved_at = 0.0

    # --- hearing ---

    def heard(self, value: object, now: float) -> bool:
        """Take what the collector (or its absence) says; True when it may change what starts or ends."""
        if isinstance(value, Frame):
            self.cards.learn(value)
            self._remember(now)
            self._count(value, now)
            self.notify(self._faults(value))
        elif isinstance(value, Probe):
            self.cards.learn_one(value)
        answers = {uuid for uuid in self._awaited if self.cards.read_at(uuid, now) >= self._asked[uuid]}
        self._awaited -= answers
        self._answered.update(dict.fromkeys(answers, now))
        signs = self._meaning(now)
        changed, self._signs = signs != self._signs, signs
        return changed or bool(answers)

    def _meaning(self, now: float) -> object:
        cards = self.facts(now)
        coarse = [(c.uuid, c.closed is None, c.taken is None, c.passing, c.lost, c.open_bytes >> 26) for c in cards]
        return coarse, set(self.cards.freeing)

    def _remember(self, now: float) -> None:
        """New and changed GPUs into the database; when each was last seen, now and then."""
        changed = [gpu for gpu in self.cards.known.values() if self._differs(gpu)]
        if changed:
            with suppress(DiskFull):  # later, with another frame
                self._store.see_gpus(changed)
                self._written.update((gpu.uuid, replace(gpu)) for gpu in changed)

    def _count(self, frame: Frame, now: float) -> None:
        """What the GPUs used since the last frame: for the jobs that have them, and for whoever remembers."""
        steps = self.meter.read(frame)
        shared = self.cards.shared(self.ours.active.values())
        for step in steps:
            if step.uuid in shared:
                step.work = self.cards.work(step.uuid)
        self.ledger.read(frame, steps, self.ours.active.values())
        self.told(frame, steps)
        if not 0 <= now - self._saved_at < SAVE_SECONDS:
            self._saved_at = now
            self.save()

    def _faults(self, frame: Frame) -> list[Notice]:
        """What the driver reported, and whose job it was."""
        found = []
        for xid in frame.xids:
            for uuid in self.cards.at_place(xid.bus_id):
                holders = [job for job in self.ours.active.values() if uuid in job.allotted]
                job = blamed(xid, self.cards.processes(uuid), holders)
                if job is not None and job in self.ours.active:
                    self.ledger.blame(self.ours.active[job], uuid, xid.code)
                self.xids[uuid, xid.code] += 1
                found.append(of_xid(xid, uuid, self.cards.label(uuid), job))
        return found

    def notify(self, notices: Iterable[Notice]) -> None:
        """Each once in a while; kept for ever, and told on."""
        new = self._once.new(notices)
        if new:
            with suppress(DiskFull):  # then it is only told
                self._store.notify(new, self.noticing(new) or {})
            self.noticed(new)

    def save(self) -> None:
        """What the jobs that run have used up to now: what is lost, when this daemon is killed, is told as unseen."""
        self.ledger.keep(self.ours.active)  # of what is over the record is the last word
        changed = self.ledger.changed()
        if not changed:
            return
        with suppress(DiskFull):  # later, or with their end
            self._store.save_uses(changed, {use.gpu: dumped(self.meter.count(use.gpu)) for use in changed})
            self.ledger.recorded(changed)

    def _differs(self, gpu: KnownGpu) -> bool:
        was = self._written.get(gpu.uuid)
        if was is None or gpu.last_seen_at - was.last_seen_at > SEEN_SECONDS:
            return True
        return (was.name, was.bus_id, was.memory_bytes, was.unified) != (
            gpu.name, gpu.bus_id, gpu.memory_bytes, gpu.unified,
        )  # fmt: skip

    # --- for the loop ---

    def follow(self, active: Mapping[int, Job]) -> None:
        """These are the active jobs, now and as the mapping changes; what they have is not being freed."""
        self.ours.active = active
        self.ledger.keep(active)
        self._resume(active.values())
        for job in active.values():
            for uuid in job.allotted:
                self.cards.freeing.pop(uuid, None)

    def _resume(self, active: Iterable[Job]) -> None:
        """Jobs that an earlier daemon counted for."""
        known = {job.id: job for job in active if job.allotted and not self.ledger.known(job)}
        for use, counted in self._store.uses(known) if known else ():
            if use.attempt == known[use.job].attempt:
                self.ledger.resume(use, loaded(counted), over=another_boot(counted))

    def facts(self, now: float) -> list[Card]:
        return self.cards.cards(self.ours.active.values(), self.words(now), now)

    def visible(self, job: Job, kind: str) -> str:
        """CUDA_VISIBLE_DEVICES of a job: UUIDs, or the indices that they have just now. StateDamaged."""
        if kind == "uuid":
            return ",".join(job.allotted)
        indices = [self.cards.index(uuid) for uuid in job.allotted]
        if None in indices:
            raise StateDamaged("one of its GPUs is not there", "`runner gpus` shows which")
        return ",".join(map(str, indices))

    def supervised(self, job: Job, evidence: Evidence) -> None:
        if evidence.supervisor is not None:
            self.ours.supervisors[evidence.supervisor] = job.id

    def given(self, job: Job, now: float) -> None:
        self.cards.given(job)
        self.ledger.keep(self.ours.active)
        self.ledger.open(job, now)

    def uses(self, job_id: int) -> list[Use]:
        """What all attempts of a job used, up to now."""
        recorded = {(use.attempt, use.gpu): use for use, _ in self._store.uses([job_id])}
        if job_id in self.ours.active:  # of what is over, the record is the last word
            recorded |= {(use.attempt, use.gpu): use for use in self.ledger.of(job_id)}
        return [recorded[key] for key in sorted(recorded)]

    def opening(
        self, starts: Iterable[Job], placements: Mapping[int, Sequence[str]], now: float
    ) -> tuple[list[Use], dict[str, str]]:
        """The first lines of what jobs that are about to start will use, with the counters of this moment."""
        uses = [
            Use(job.id, job.attempt + 1, uuid, now, now, currency=self.ledger.currency)
            for job in starts
            for uuid in placements.get(job.id, ())
        ]
        return uses, {use.gpu: dumped(self.meter.count(use.gpu)) for use in uses}

    def used(self, job: Job, ended_at: float) -> list[Use]:
        """What an attempt that is over used of its GPUs, to be recorded with its end."""
        return self.ledger.close(job, ended_at)

    def taken_back(self, job: Job, now: float) -> None:
        """A job's attempt has ended; what it held is looked at again at once, and until it is free."""
        for pid in [pid for pid, owner in self.ours.supervisors.items() if owner == job.id]:
            del self.ours.supervisors[pid]
        self.cards.taken_back(job, now)
        for uuid in job.allotted:
            if uuid in self.cards.freeing:
                self._probes[uuid] = (now + PROBE_SECONDS, PROBE_SECONDS)
            self._ask(uuid)

    def _ask(self, uuid: str) -> None:
        if self.probe is not None:
            self.probe(uuid)

    def settled(self, uuids: Iterable[str], now: float) -> bool:
        """Whether these were read a moment ago, so that whoever came in the last second was seen. If not, they are read
        now, and it is told (`heard`) when that is done."""
        old = [uuid for uuid in uuids if self.probe is not None and not self._is_fresh(uuid, now)]
        for uuid in old:
            if uuid not in self._awaited or self._asked[uuid] > now:  # a clock that went back
                self._asked[uuid] = now
                self._awaited.add(uuid)
                self._ask(uuid)
        return not old

    def _is_fresh(self, uuid: str, now: float) -> bool:
        read, asked = self.cards.read_at(uuid, now), self._asked.get(uuid, -FOREVER)
        if now - read <= FRESH_SECONDS or now - ASKED_SECONDS <= asked <= read:
            return True
        return asked <= read and 0 <= now - self._answered.get(uuid, -FOREVER) <= FRESH_SECONDS

    def look(self, now: float) -> float:
        """Probe what is being freed, see whether stuck processes are gone; returns when to come again."""
        again = FOREVER
        for uuid in list(self._probes):
            due, pause = self._probes[uuid]
            freeing = self.cards.freeing.get(uuid)
            if freeing is None or now - freeing.since > self._patience:  # stuck: the frames will tell
                del self._probes[uuid]
                continue
            if due <= now:
                self._ask(uuid)
                pause = min(pause * 1.5, PROBE_SECONDS_MAX)
                due = now + pause
                self._probes[uuid] = (due, pause)
            again = min(again, due)
        stuck = [gpu for gpu in self.cards.known.values() if gpu.stuck is not None]
        for gpu in stuck:
            self._look_at_stuck(gpu)
        return min(again, now + STUCK_SECONDS) if stuck else again

    def _look_at_stuck(self, gpu: KnownGpu) -> None:
        if gpu.stuck is not None and not processes.living(gpu.stuck.processes):
            self._store.stuck_gpu([gpu.uuid], None)
            gpu.stuck = None

    def stuck(self, uuids: Iterable[str], stuck: Stuck) -> None:
        """They were marked so in the database."""
        for uuid in uuids:
            if uuid in self.cards.known:
                self.cards.known[uuid].stuck = stuck

    def peak(self, job: Job) -> int | None:
        return self.cards.peak(job)

    def lost_of(self, job: Job, now: float, sure: bool = False) -> str | None:
        """The sentence for a job one of whose GPUs is lost. sure: and has been for long enough to end a job for it."""
        return self.cards.lost_of(job, now, sure)

    def floor_of(self, job: Job) -> int | None:
        """What was not enough for a job that ran out of GPU memory; None when there is nothing roomier to try."""
        cards = self.facts(0.0)
        had = [card.memory_bytes for card in cards if card.uuid in job.allotted]
        if not had:
            return None
        floor = job.gpu_memory_bytes if job.shares else min(had)
        there = (card for card in cards if matches(job.gpu_type, card) and not card.lost)
        roomier = [card for card in there if card.memory_bytes > floor]
        return floor if len(roomier) >= job.gpus else None

    def by_index(self) -> dict[int, list[int]]:
        """index of a GPU -> the jobs that have it."""
        found: dict[int, list[int]] = {}
        for job in self.ours.active.values():
            for uuid in job.allotted:
                index = self.cards.index(uuid)
                if index is not None:
                    found.setdefault(index, []).append(job.id)
        return found

    # --- for people ---

    def driver(self) -> Driver | None:
        """What runs on these GPUs, as a frame said last; with nothing in it where none has yet. None: no GPUs."""
        cards = self.cards
        if not cards.driver and not cards.known:
            return None
        known = [number for uuid, number in cards.architectures.items() if uuid in cards.known]
        return Driver(cards.driver, cards.cuda, min(known, default=None))

    def view(self, now: float) -> list[Gpu]:
        return self.cards.view(self.ours.active.values(), self.words(now), now)

    def one(self, uuid: str, now: float) -> Gpu:
        """That which `named` gave."""
        return next(gpu for gpu in self.view(now) if gpu.uuid == uuid)

    def silence(self, now: float) -> str | None:
        """Why nothing is known of the GPUs; None: all is well."""
        return self.words(now)

    def named(self, name: str) -> str:
        """The UUID of a GPU called by its index, its UUID or the start of it. NotFound, BadRequest."""
        if name.isdecimal():
            found = [uuid for uuid in self.cards.known if self.cards.index(uuid) == int(name[:6])]
        else:
            found = [uuid for uuid in self.cards.known if name and uuid.lower().startswith(name.lower())]
        if not found:
            raise NotFound(f"there is no GPU {name}", "`runner gpus` lists them")
        if len(found) > 1:
            raise BadRequest(f"{name} could be {' or '.join(sorted(found))}", "write more of it")
        return found[0]

    def drain(self, uuid: str, on: bool) -> None:
        self._store.drain_gpu(uuid, on)
        self.cards.known[uuid].drained = on

    def forget(self, uuid: str) -> None:
        self._store.forget_gpu(uuid)
        self.cards.forget(uuid)
        self._written.pop(uuid, None)

    def process(self, pid: int) -> tuple[Process, list[str]] | None:
        return self.cards.process(pid)
