"""The play: the four people submit, attempts pretend to run, cards grow warm. Behind the real daemon and collector.

`act` is one moment of it. `rehearse` plays the hours before the start, so that the curtain rises on a queue in full
swing; then `play` goes on in real time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from random import Random

from runner.box.daemon import Daemon
from runner.box.demo import people, physics, place
from runner.box.demo.people import Task
from runner.box.demo.physics import Card
from runner.box.demo.script import Files, Holder, Slot
from runner.box.engines import Key, Launch
from runner.box.engines.fake import Fake
from runner.box.gpus.frames import Frame, Probe, Reading
from runner.box.gpus.meter import Step
from runner.box.prepare import Preparation
from runner.box.settings import Settings
from runner.box.wishes import Wishes
from runner.model import Exit, Job, Process, Resources

SEED = 15  # with this one a GPU of each kind is there at first: held by one job, shared, held by a stranger
PAST_SECONDS = 3 * 3600.0  # that were played before the start
REMEMBERED_SECONDS = 900.0  # of them, for which there is a history, second by second
BUSY_SECONDS = 300.0  # of them, in which it was as busy as afterwards
PAUSE, CALM_PAUSE = 9.0, 300.0  # seconds between two submissions, on average
QUEUE_MAX = 14  # jobs waiting: nobody submits more
VISIT_SECONDS, VISIT_PAUSE = (480.0, 780.0), (600.0, 1500.0)  # of the one who uses GPUs without the queue
SLEEP_SECONDS = 240.0  # without work, until the last card is powered down
MOMENT = 1.0  # seconds between two looks
SOON = 0.1  # seconds that an attempt takes to begin
PIDS = range(4_194_301, 4_000_000, -31)  # the last ones that Linux gives away, on a computer that is up for very long
DESKTOP = ("root", "/usr/lib/xorg/Xorg :0", 186 << 20)


INVITATION = """\
The demo is on: four people and four GPUs, none of which exist. In another terminal:

  runner gpus --box demo                    the GPUs, and who has them
  runner ps --box demo                      the queue
  runner why --box demo JOB                 why a job waits, or how it ended
  runner logs -f --box demo JOB             what a job prints
  runner submit --box demo --gpu-mem 2G --priority 1 train.py
                                            is queued like all others, and pretends to run

or `export GPUBOX_BOX=demo` there, once. Ctrl-C here ends it all."""


class Actors(Fake):
    """The engine: what was handed over waits for the stage to begin it."""

    def __init__(self, capacity: Resources, clock: Callable[[], float]) -> None:
        super().__init__(capacity, clock)
        self.fresh: list[Launch] = []

    def start(self, launches: Sequence[Launch]) -> None:
        super().start(launches)
        self.fresh += launches

    def time_out(self, key: Key, now: float) -> None:
        attempt = self.attempts[key]
        self._end(attempt, Exit("time_limit", None, 15, "", now, True, attempt.began))

    def over(self, key: Key) -> bool:
        return self.attempts[key].end is not None or self.attempts[key].abandoned

    def connect(self) -> None:
        """There is nobody to connect to."""

    def close(self) -> None:
        return


@dataclass(slots=True)
class Run:
    """One attempt, while it pretends to run."""

    key: Key
    job: Job
    task: Task
    end: str  # of people: how it will end
    began: float
    ends: float
    log: str  # its path
    lines: int  # of progress that it would write in all
    pace: float  # seconds between them
    said: int = 0
    holders: list[tuple[Slot, Holder]] = field(default_factory=list)


class Stage:
    invitation = INVITATION

    def __init__(self, settings: Settings) -> None:
        """settings: of `place`; its folders are there already."""
        self.settings = settings
        self.now = time.time()
        self.engine = Actors(Resources(settings.cpus, settings.memory_bytes), lambda: self.now)
        self.files = Files(settings.state)
        models = (physics.RTX_3090, physics.RTX_3090, physics.RTX_4090, physics.RTX_4080S)
        self.slots = [Slot(index, Card(model)) for index, model in enumerate(models)]
        self.slots[1].card.airflow = 0.66  # between two others it gets hot
        self._linked = [(self.slots[0], self.slots[1])]
        self._chance = Random(SEED)
        self._noise = Random(SEED)  # of loads alone, so that the play is the same without them
        self._tasks = {task.name: task for task in people.TASKS}
        self._pids = itertools.cycle(PIDS)
        self._runs: dict[Key, Run] = {}
        self._visitor: tuple[Slot, Holder] | None = None
        self._started = self.now - PAST_SECONDS
        self._submits_at = self._looked_at = self._started
        self._live_from = self.now
        self._visits_at, self._leaves_at = self.now - BUSY_SECONDS, self.now  # so that one is there at first
        user, command, used = DESKTOP
        self.slots[0].holders.append(Holder(self._pid(), used, user, command, kind="graphics"))

    def enter(self, daemon: Daemon, wishes: Wishes) -> None:
        """Play the hours before the start to a daemon that nobody can reach yet."""
        self._daemon, self._wishes = daemon, wishes
        daemon.gpus.words = lambda now: None
        at = self._started
        told, daemon.gpus.told = daemon.gpus.told, lambda frame, steps: None  # what is long past is not remembered
        daemon.gpus.heard(self._frame(at), at)
        while at < self._live_from:
            self._move(at)
            daemon.gpus.heard(self._frame(at), at)
            daemon.pass_once(at)
            after = at + SOON if self.engine.fresh else max(self._next(), at + MOMENT)
            self._pass_time(at, min(after, self._live_from), told)
            at = after
        self.act(self._live_from)

    def _pass_time(self, at: float, until: float, told: Callable[[Frame, Sequence[Step]], None]) -> None:
        """What the collector would have said between two moments of the play, in the last minutes of its past."""
        second = max(at, self._live_from - REMEMBERED_SECONDS) // 1 + 1
        while second < until:
            self._daemon.gpus.told = told
            for slot in self.slots:
                slot.card.pass_time(second - self._looked_at, self._load(slot, self._noise))
            self._looked_at = second
            self._daemon.gpus.heard(self._frame(second), second)
            second += 1

    @staticmethod
    def _load(slot: Slot, chance: Random) -> float:
        return min(sum(holder.load for holder in slot.holders) * chance.uniform(0.95, 1.0), 1.0)

    async def play(self, wake: Callable[[], None], report: Callable[[str], None]) -> None:
        """From now on, in real time. wake: has the daemon take a turn."""
        while True:
            try:
                if self.act(time.time()):
                    wake()
            except Exception as error:  # the next moment may go better
                report(f"the demo forgot its lines: {type(error).__name__}: {error}")
            await asyncio.sleep(MOMENT)

    def act(self, now: float) -> bool:
        """One moment: the play moves on, and the fake library and the fake /proc know of it. True if jobs changed."""
        changed = self._move(now)
        self.files.write(self.slots, self._linked)
        return changed

    def environment(self) -> dict[str, str]:
        """For the collector: where its library and the library's script are."""
        others = os.environ.get("LD_LIBRARY_PATH")
        folder = str(self.settings.state)
        return {"LD_LIBRARY_PATH": f"{folder}:{others}" if others else folder, "FAKE_NVML": self.files.script}

    def heard(self, value: object) -> None:
        """Whose processes they are: the users of the play have no entry in this computer's list of users."""
        readings = value.cards if isinstance(value, Frame) else [value.card] if isinstance(value, Probe) else []
        users = {holder.pid: holder.user for slot in self.slots for holder in slot.holders}
        for reading in readings:
            for process in reading.processes or ():
                process.user = users.get(process.pid, process.user)

    def preparation(self) -> Preparation:
        """Everything is ready: nothing is built, no code is laid out."""
        return Preparation(
            ready=lambda name: True,
            build=lambda name: None,
            make_tree=lambda job, snapshot: None,
            remove_tree=lambda job: None,
            background=lambda work, done: done(None),
            trees_ahead=self.settings.trees_ahead,
        )

    # --- time ---

    def _move(self, now: float) -> bool:
        self.now = now
        seconds, self._looked_at = now - self._looked_at, now
        for slot in self.slots:
            slot.card.pass_time(seconds, self._load(slot, self._chance))
        fresh = self._fresh()
        for launch in fresh:
            self._begin(launch)
        over = [run for run in list(self._runs.values()) if self._carry_on(run)]
        self._visit()
        self._rest()
        return self._submit() or bool(fresh or over)

    def _next(self) -> float:
        """When something happens next."""
        visit = self._visits_at if self._visitor is None else self._leaves_at
        return min(self._submits_at, visit if visit > self.now else inf, *(run.ends for run in self._runs.values()))

    # --- people ---

    def _submit(self) -> bool:
        if self.now < self._submits_at:
            return False
        self._submits_at = self.now + self._pause()
        book = self._daemon.book
        wanted = [task for task in people.TASKS if self._unfinished(task) < task.most]
        if not wanted or len(book.queued) >= QUEUE_MAX:
            return False
        (task,) = self._chance.choices(wanted, [task.often for task in wanted])
        self._wishes.submit(people.who(task.user), people.submission(task), None, "", self.now)
        return True

    def _pause(self) -> float:
        """Until the next submission: long in the hours before the start, but for the last minutes of them."""
        calm = self._live_from - BUSY_SECONDS - self.now
        if calm <= 0:
            return self._chance.expovariate(1 / PAUSE)
        return min(self._chance.expovariate(1 / CALM_PAUSE), calm + MOMENT)

    def _unfinished(self, task: Task) -> int:
        jobs = self._daemon.book.jobs.values()
        return len({job.group or job.id for job in jobs if job.name == task.name and job.user == task.user})

    def _visit(self) -> None:
        """Somebody takes the emptiest GPU without asking the queue, for a while."""
        if self._visitor is not None and self.now >= self._leaves_at:
            self._visitor[0].holders.remove(self._visitor[1])
            self._visitor, self._visits_at = None, self.now + self._chance.uniform(*VISIT_PAUSE)
        free = min(reversed(self.slots), key=lambda slot: slot.used_bytes)
        room = free.card.model.memory_bytes - free.used_bytes
        if self._visitor is not None or self.now < self._visits_at or room < people.VISITOR_BYTES:
            return
        user, command = people.VISITOR
        self._visitor = free, self._holder(people.VISITOR_BYTES, user, command, 0.15)
        self._hold(*self._visitor)
        self._leaves_at = self.now + self._chance.uniform(*VISIT_SECONDS)

    # --- attempts ---

    def _fresh(self) -> list[Launch]:
        fresh, self.engine.fresh = self.engine.fresh, []
        return [launch for launch in fresh if not self.engine.over(launch.key)]

    def _begin(self, launch: Launch) -> None:
        job = self._daemon.book.active[launch.key[0]]
        task = self._tasks.get(job.name) if job.uid in people.PEOPLE.values() else None
        task = task or people.stranger(job)
        end, planned, seconds = people.fate(task, self._chance)
        pace = people.pace(task)
        folder = self.settings.state.job(job.id)
        for path in (folder.out, folder.checkpoint, folder.attempt(job.attempt)):
            os.makedirs(path, 0o700, exist_ok=True)
        self.engine.begin(launch.key, self.now)
        log = folder.attempt(job.attempt).log
        run = Run(
            launch.key, replace(job), task, end, self.now, self.now + seconds, log, int(planned / pace) or 1, pace
        )
        for slot in [slot for slot in self.slots if slot.uuid in job.allotted]:
            used = min(int(task.uses * people.GIB), int(slot.card.model.memory_bytes * 0.94))
            holder = self._holder(used, job.user, " ".join(job.command), task.load, launch.launch_id)
            self._hold(slot, holder)
            run.holders.append((slot, holder))
        self._runs[launch.key] = run
        _append(log, people.first_lines(task, job.gpus))

    def _carry_on(self, run: Run) -> bool:
        """True when it is over."""
        self._say(run)
        if not self.engine.over(run.key):
            self._end(run)
        if not self.engine.over(run.key):
            return False
        for slot, holder in run.holders:
            slot.holders.remove(holder)
        del self._runs[run.key]
        return True

    def _end(self, run: Run) -> None:
        """End it, if it is time."""
        limit = run.job.time_limit
        if limit is not None and self.now >= run.began + limit:
            self.engine.time_out(run.key, self.now)
        elif self.now >= run.ends:
            job = self._daemon.book.active.get(run.job.id)
            if run.end == people.CANCEL and job is not None:
                self._daemon.cancel_active([job], None, self.now)
                return
            memory = max((slot.card.model.memory_bytes for slot, _ in run.holders), default=0)
            _append(run.log, people.last_lines(run.task, run.end, memory, self._chance))
            self.engine.finish(run.key, int(run.end != people.OK), self.now)

    def _say(self, run: Run) -> None:
        """The lines of progress that are due."""
        due = min(int((min(self.now, run.ends) - run.began) / run.pace), run.lines)
        if due > run.said:
            numbers = range(run.said + 1, due + 1)
            _append(run.log, "".join(people.line(run.task.counts, n, run.lines, self._chance) for n in numbers))
            run.said = due

    # --- cards ---

    def _holder(self, used: int, user: str, command: str, load: float, launch: str = "") -> Holder:
        started = round((self.now - self._started) * os.sysconf("SC_CLK_TCK")) + 1
        return Holder(self._pid(), used, user, command, load, launch=launch, started=started)

    def _pid(self) -> int:
        """One that no process of this computer has: somebody may want to end it."""
        return next(pid for pid in self._pids if not os.path.exists(f"/proc/{pid}"))

    def _hold(self, slot: Slot, holder: Holder) -> None:
        slot.holders.append(holder)
        slot.asleep = False

    def _rest(self) -> None:
        """The last card is powered down while nobody needs it."""
        slot = self.slots[-1]
        if slot.holders:
            slot.idle_since = self.now
        slot.asleep = self.now - slot.idle_since > SLEEP_SECONDS

    def _frame(self, at: float) -> Frame:
        """What the collector would have said."""
        cards = []
        for slot in self.slots:
            model = slot.card.model
            reading = Reading(slot.uuid, slot.index, model.name, slot.bus_id, model.memory_bytes)
            reading.sample = {"memory_used_bytes": slot.used_bytes, **slot.readings()}
            reading.processes = [
                Process(each.pid, each.started, each.memory_bytes, each.kind, True, each.user, each.command,
                        each.launch or None)
                for each in slot.holders
            ]  # fmt: skip
            cards.append(reading)
        return Frame(at, cards=cards)


def prepare() -> Stage:
    """A clean state with the library in it, and a stage on it. NotInstalled, Refused, Busy: nothing was begun."""
    compiler, source = place.parts()
    settings = place.settings()
    place.clear(settings.state)
    place.compile_library(compiler, source, settings.state)
    return Stage(settings)


def _append(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)
