"""PURE: what each job used of each of its GPUs: time, work, memory, energy, money. Kept for ever.

Sums are absolute and kept beside the time up to which they count, and beside the driver's own counters of that moment:
to write them twice changes nothing, and a daemon that comes back goes on from there. What happened while nobody looked
is told as unseen; its energy is known all the same, if the driver counted on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from runner.box.gpus.frames import Frame
from runner.box.gpus.meter import PAUSE, SLACK_JOULES, WATTS_MAX, Count, Step
from runner.box.tariff import Tariff
from runner.model import Job, Process, Use

IDLE = 0.05  # of the time that a kernel runs; below that a GPU does nothing
TAIL = 2.0  # seconds from the last reading to the end that are taken to have been like it
HEAT = ("hw_thermal", "sw_thermal")

Key = tuple[int, int, str]  # job, attempt, UUID of the GPU


@dataclass(slots=True)
class _Account:
    use: Use
    watts: float = 0.0
    busy: float | None = None  # the last utilization
    before: Count | None = None  # the counters as an earlier daemon left them; None: they have been caught up with
    caught: float = 0.0  # joules that were counted since, that the counter will tell again
    gap: float = 0.0  # seconds whose energy the counter may tell yet
    over: bool = False  # it ended with the box, nobody knows when: nothing is added any more


class Ledger:
    def __init__(self, tariff: Tariff | None, currency: str) -> None:
        self._tariff, self.currency = tariff, currency if tariff is not None else ""
        self._accounts: dict[Key, _Account] = {}
        self._changed: set[Key] = set()

    def price(self, tariff: Tariff | None, currency: str) -> None:
        """What energy costs from now on. An attempt that was begun in another currency keeps what it had cost."""
        self._tariff, self.currency = tariff, currency if tariff is not None else ""

    # --- leases ---

    def open(self, job: Job, now: float) -> None:
        """A job gets its GPUs, as the attempt that it is at."""
        for uuid in job.allotted:
            key = (job.id, job.attempt, uuid)
            if key not in self._accounts:
                use = Use(job.id, job.attempt, uuid, now, now, currency=self.currency)
                self._accounts[key] = _Account(use)

    def resume(self, use: Use, count: Count | None, over: bool = False) -> None:
        """What an earlier daemon had counted of an attempt that goes on. One that is counted here already stays.
        over: the box went down since then, and the attempt with it."""
        key = (use.job, use.attempt, use.gpu)
        if key not in self._accounts:
            self._accounts[key] = _Account(use, before=count, over=over)

    def keep(self, active: Mapping[int, Job]) -> None:
        """Forget the attempts that are over, and recorded."""
        for key in [key for key in self._accounts if key[0] not in active or active[key[0]].attempt != key[1]]:
            del self._accounts[key]
            self._changed.discard(key)

    def known(self, job: Job) -> bool:
        return all((job.id, job.attempt, uuid) in self._accounts for uuid in job.allotted)

    # --- reading ---

    def read(self, frame: Frame, steps: Iterable[Step], active: Iterable[Job]) -> None:
        """What the GPUs did since the last frame, laid to the jobs that have them."""
        holders: dict[str, list[Job]] = {}
        for job in active:
            for uuid in job.allotted:
                holders.setdefault(uuid, []).append(job)
        for step in steps:
            for job, share, busy in _shares(step, holders.get(step.uuid, ())):
                self._add(job, step, share, busy, len(holders[step.uuid]) > 1)

    def blame(self, job: Job, uuid: str, code: int) -> None:
        """A fault of a GPU that was laid to a job."""
        account = self._accounts.get((job.id, job.attempt, uuid))
        if account is not None:
            account.use.xids[str(code)] = account.use.xids.get(str(code), 0) + 1
            self._changed.add((job.id, job.attempt, uuid))

    def _add(self, job: Job, step: Step, share: float, busy: float | None, shared: bool) -> None:
        key = (job.id, job.attempt, step.uuid)
        if key not in self._accounts:  # it runs since before anybody counted
            self.open(job, job.started_at or step.at)
        account = self._accounts[key]
        use = account.use
        if use.until - step.at > PAUSE and not account.over:  # the clock went back: its time is moved there, too
            use.since, use.until = use.since - use.until + step.at - step.seconds, step.at - step.seconds
        passed = step.at - use.until
        if passed <= 0 or account.over:  # this was before it had the GPU
            return
        self._changed.add(key)
        seen = min(passed, step.seconds)
        use.until, use.shared = step.at, use.shared or shared
        self._time(use, seen, busy)
        account.gap += passed - seen
        use.unseen_seconds += passed - seen
        use.uncounted_seconds += passed - seen
        self._energy(account, step, share, seen)
        for reason, seconds in step.throttled.items():
            if reason in HEAT:
                use.heat_seconds += seconds
            elif reason == "power_brake":
                use.brake_seconds += seconds
            else:
                use.capped_seconds += seconds
        self._extremes(job, use, step, shared)
        account.busy = busy

    def _time(self, use: Use, seen: float, busy: float | None) -> None:
        use.seen_seconds += seen
        if busy is not None:
            use.measured_seconds += seen
            use.busy_seconds += busy * seen
            use.idle_seconds += seen if busy < IDLE else 0.0

    def _energy(self, account: _Account, step: Step, share: float, seen: float) -> None:
        if step.joules is not None and step.seconds:
            joules = step.joules * share * seen / step.seconds
            self._charge(account.use, joules, step.at)
            # not of the step: that may hold what a gap had used
            account.watts = _drawn(step, step.joules / step.seconds) * share
            account.caught += joules
        if account.before is not None:
            self._catch_up(account, step, share)
        elif step.unseen_joules is not None:
            self._bridge(account, step.unseen_joules * share, step.at)

    def _bridge(self, account: _Account, joules: float, at: float) -> None:
        """What was used in a gap is known after all."""
        self._charge(account.use, joules, at)
        account.use.uncounted_seconds = max(account.use.uncounted_seconds - account.gap, 0.0)
        account.gap = 0.0

    def _catch_up(self, account: _Account, step: Step, share: float) -> None:
        """The driver counted on while no daemon was there."""
        said = step.reading.sample.get("energy_joules") if step.reading is not None else None
        before = account.before
        if before is None or not isinstance(said, float):
            return
        account.before = None
        was = before.energy_joules
        if was is None or not 0 <= said - was <= WATTS_MAX * max(step.at - before.at, 0.0) + SLACK_JOULES:
            return
        self._bridge(account, max((said - was) * share - account.caught, 0.0), step.at)

    def _charge(self, use: Use, joules: float, at: float) -> None:
        use.energy_joules = (use.energy_joules or 0.0) + joules
        if use.cost is None:
            use.currency = self.currency
        if self._tariff is not None and use.currency == self.currency:
            use.cost = (use.cost or 0.0) + self._tariff.cost(joules, at)

    def _extremes(self, job: Job, use: Use, step: Step, shared: bool) -> None:
        sample = step.reading.sample if step.reading is not None else {}
        celsius = sample.get("temperature_celsius")
        if isinstance(celsius, float):
            use.hottest_celsius = max(use.hottest_celsius or celsius, celsius)
        processes = step.reading.processes if step.reading is not None else None
        if processes is not None and (held := _held(job, processes, sample, shared)) is not None:
            use.peak_bytes = max(use.peak_bytes or 0, held)

    # --- the way out ---

    def of(self, job_id: int) -> list[Use]:
        """What the attempt of a job that goes on has used up to now."""
        return [replace(account.use) for key, account in self._accounts.items() if key[0] == job_id]

    def changed(self) -> list[Use]:
        """Copies of those that are not yet as they were recorded; `recorded` says that they are."""
        return [replace(self._accounts[key].use) for key in self._changed]

    def recorded(self, uses: Iterable[Use]) -> None:
        for use in uses:
            key = (use.job, use.attempt, use.gpu)
            if key in self._accounts and self._accounts[key].use.until == use.until:
                self._changed.discard(key)

    def close(self, job: Job, ended_at: float) -> list[Use]:
        """What an attempt that is over used. Told again, if asked again; the accounts stay until `keep`."""
        return [
            self._closed(self._accounts[job.id, job.attempt, uuid], ended_at)
            for uuid in job.allotted
            if (job.id, job.attempt, uuid) in self._accounts
        ]

    def _closed(self, account: _Account, ended_at: float) -> Use:
        use = replace(account.use, xids=dict(account.use.xids))
        rest = ended_at - use.until
        if rest <= 0 or account.over:
            return use
        use.until = ended_at
        if rest > TAIL:
            use.unseen_seconds += rest
            use.uncounted_seconds += rest
            return use
        self._time(use, rest, account.busy)
        if use.energy_joules is not None:
            self._charge(use, account.watts * rest, ended_at)
        return use


def _drawn(step: Step, mean: float) -> float:
    """Watts at the reading; of a card that only counts, the mean of the step."""
    said = step.reading.sample.get("power_watts") if step.reading is not None else None
    return said if isinstance(said, float) else mean


def _shares(step: Step, holders: Sequence[Job]) -> Iterable[tuple[Job, float, float | None]]:
    """(job, its part of the energy, how busy it kept the GPU). Of a GPU that is shared this is a guess: by what the
    driver says of each process, or else all the same."""
    said = step.reading.sample.get("utilization") if step.reading is not None else None
    device = said if isinstance(said, float) else None
    if len(holders) == 1:
        return [(holders[0], 1.0, device)]
    work = step.work or {}
    total = sum(work.get(job.id, 0.0) for job in holders)
    even = 1 / max(len(holders), 1)
    return [
        (job, work.get(job.id, 0.0) / total if total else even, work.get(job.id, 0.0) if work else device)
        for job in holders
    ]


def _held(job: Job, processes: Iterable[Process], sample: Mapping[str, object], shared: bool) -> int | None:
    """What a job holds of a GPU; where the driver does not say it of a process, all that is used, if it is alone."""
    mine = [process.memory_bytes for process in processes if process.job == job.id]
    if mine and None in mine and not shared:
        used = sample.get("memory_used_bytes")
        return used if isinstance(used, int) else None
    return sum(held for held in mine if held is not None) if mine else None
