"""PURE: what is worth a word of what was read: a GPU that is held and does nothing, a job that hangs, memory that
creeps up, heat, a disk that fills, a card that left. Each is told once while it lasts, with what to do.

Time is an argument. The thresholds are the names in capitals below; tests/test_judgement.py has a table of each rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from runner.model import Notice

MIB, GIB = 1 << 20, 1 << 30
IDLE = 0.05  # of the time that a kernel runs
NO_TRAFFIC = 0.01  # of the time that memory is touched: kernels that only wait for each other
HELD_BYTES = 256 * MIB  # a context alone takes this much
NEAR, NEAR_WATTS = 1.15, 5.0  # times, and more than, what the card draws at rest: it does nothing
GHOST, GHOST_SECONDS = 0.9, 120.0  # busy without a process
HOT_BELOW, HOT_FALLBACK, HOT_SECONDS = 5.0, 88.0, 60.0  # degrees below slowing down; where that is not said
HELD_BACK = ("hw_thermal", "power_brake")
LOADED, LINK_SECONDS = 0.5, 120.0  # a link is judged under load alone: it drops while the card idles
CREEP_SECONDS, CREEP_POINTS = 3600.0, 12  # looked at over an hour, a point every five minutes
CREEP_SHARE, CREEP_DAY = 0.02, 86400.0  # grows by so much of the card in it, and would fill it within a day
DISK_LOW, DISK_FULL = 0.10, 0.03  # of the disk that is free
FULL_SOON, DISK_SECONDS = 86400.0, 3600.0  # by how it fell in the last hour
OF_JOBS = ("idle", "stalled")
CLEAR_SECONDS = 60.0  # that something is over, before it can be told again


@dataclass(slots=True)
class Held:
    """One GPU that was read, and who has it."""

    uuid: str
    label: str
    jobs: tuple[int, ...]
    sample: Mapping[str, object]
    memory_bytes: int | None
    living: bool  # a process is on it
    by_job: Mapping[int, int] = field(default_factory=dict)  # bytes that jobs hold, as far as the driver says


@dataclass(slots=True)
class Scene:
    """What there is at one moment."""

    now: float
    gpus: list[Held] = field(default_factory=list)
    gone: Mapping[str, str] = field(default_factory=dict)  # UUID of a card that is lost or missing -> the sentence
    silent: Mapping[int, float] = field(default_factory=dict)  # job -> when its log grew last
    disk: tuple[int, int] | None = None  # free, in all


@dataclass(slots=True)
class _Lasting:
    since: float
    told: bool = False
    over_at: float | None = None


class Judge:
    def __init__(self, idle_seconds: float, stalled_seconds: float) -> None:
        """How long a GPU may be held and do nothing, and a log be silent, before it is told. 0: it is never."""
        self._idle, self._stalled = idle_seconds, stalled_seconds
        self._lasting: dict[tuple[object, ...], _Lasting] = {}
        self._asked: set[tuple[object, ...]] = set()  # in this look
        self._rest: dict[str, float] = {}  # UUID -> the least power that it was seen to draw, W
        self._memory: dict[tuple[int, str], list[tuple[float, int]]] = {}  # (job, GPU) -> (time, bytes)
        self._disk: list[tuple[float, int]] = []

    def wait(self, idle_seconds: float, stalled_seconds: float) -> None:
        """From now on it takes so long."""
        self._idle, self._stalled = idle_seconds, stalled_seconds

    def look(self, scene: Scene) -> list[Notice]:
        """What is new and worth a word."""
        found = [notice for gpu in scene.gpus for notice in self._gpu(gpu, scene)]
        found += self._gone(scene)
        if scene.disk is not None:
            found += self._room(*scene.disk, scene.now)
        for key in [key for key in self._lasting if key[0] in OF_JOBS and key not in self._asked]:
            self._once(key, False, scene.now, 0.0)  # of a job that has the GPU no more
        self._asked.clear()
        return found

    # --- one GPU ---

    def _gpu(self, gpu: Held, scene: Scene) -> Iterator[Notice]:
        now, watts = scene.now, _number(gpu.sample, "power_watts")
        if watts is not None:
            self._rest[gpu.uuid] = min(self._rest.get(gpu.uuid, watts), watts)
        yield from self._idle_held(gpu, now)
        yield from self._hangs(gpu, scene)
        yield from self._ghost(gpu, now)
        yield from self._hot(gpu, now)
        yield from self._narrow(gpu, now)
        yield from self._creeps(gpu, now)

    def rests(self, gpu: Held) -> bool:
        """Whether it does nothing: no kernel, and no more power than at rest. Where the two disagree, power wins."""
        busy, watts = _number(gpu.sample, "utilization"), _number(gpu.sample, "power_watts")
        if busy is None or busy >= IDLE:
            return False
        return watts is None or watts <= self._rest.get(gpu.uuid, watts) * NEAR + NEAR_WATTS

    def _idle_held(self, gpu: Held, now: float) -> Iterator[Notice]:
        used = _number(gpu.sample, "memory_used_bytes") or 0.0
        idle = bool(gpu.jobs) and gpu.living and used >= HELD_BYTES and self.rests(gpu)
        if self._once(("idle", gpu.uuid, gpu.jobs), idle, now, self._idle):
            who = _jobs(gpu.jobs)
            yield Notice(
                0, now, "idle", "warning",
                f"{gpu.label} is held by {who} and did nothing for {_minutes(self._idle)}: "
                f"{used / GIB:.1f} GiB in use, no kernel, {_watts(gpu)}at rest",
                f"see `runner logs {gpu.jobs[0]}`; `runner cancel {gpu.jobs[0]}` frees the GPU",
                gpu.uuid, gpu.jobs[0],
            )  # fmt: skip

    def _hangs(self, gpu: Held, scene: Scene) -> Iterator[Notice]:
        """A silent log, and a GPU that does nothing or only waits."""
        busy, traffic = _number(gpu.sample, "utilization"), _number(gpu.sample, "memory_utilization")
        flat = busy is not None and (busy < IDLE or (busy > 0.95 and traffic is not None and traffic < NO_TRAFFIC))
        for job in gpu.jobs:
            quiet = scene.now - scene.silent.get(job, scene.now)
            stalls = flat and quiet >= self._stalled
            if self._once(("stalled", job, gpu.uuid), stalls, scene.now, min(self._stalled, HOT_SECONDS * 5)):
                doing = "does nothing" if busy is not None and busy < IDLE else "spins without touching memory"
                yield Notice(
                    0, scene.now, "stalled", "warning",
                    f"job {job} probably hangs: its log is silent for {_minutes(quiet)}, and {gpu.label} {doing}",
                    f"`runner logs {job}`; a process that waits for another, or for data, looks like this",
                    gpu.uuid, job,
                )  # fmt: skip

    def _ghost(self, gpu: Held, now: float) -> Iterator[Notice]:
        ghost = not gpu.living and not gpu.jobs and (_number(gpu.sample, "utilization") or 0.0) >= GHOST
        if self._once(("ghost", gpu.uuid), ghost, now, GHOST_SECONDS):
            text = f"{gpu.label} says that it is busy, but no process is on it: its counter is stuck"
            yield Notice(
                0, now, "ghost", "warning", text, "`sudo nvidia-smi -r -i INDEX`, or a reboot, ends it", gpu.uuid
            )

    def _hot(self, gpu: Held, now: float) -> Iterator[Notice]:
        """By the card's own limit, or when it says that it slows down for it."""
        celsius, limit = _number(gpu.sample, "temperature_celsius"), _number(gpu.sample, "slowdown_celsius")
        bound = HOT_FALLBACK if limit is None else limit - HOT_BELOW
        reasons = gpu.sample.get("throttled_by")
        why = [word for word in HELD_BACK if isinstance(reasons, list) and word in reasons]
        hot = (celsius is not None and celsius >= bound) or "hw_thermal" in why
        if self._once(("hot", gpu.uuid), hot, now, HOT_SECONDS):
            at = "too hot" if celsius is None else f"at {celsius:.0f} °C"
            slow = " and slows down" if "hw_thermal" in why else f"; it slows down at {limit:.0f} °C" if limit else ""
            hint = "clean filters and fans, give it air; `sudo nvidia-smi -i INDEX -pl WATTS` makes it draw less"
            yield Notice(0, now, "hot", "warning", f"{gpu.label} is {at}{slow}", hint, gpu.uuid, _one(gpu.jobs))
        if self._once(("brake", gpu.uuid), "power_brake" in why, now, HOT_SECONDS):
            text = f"{gpu.label} is held back by the power supply"
            hint = "check the supply and the cables to the card: each plug on a cable of its own"
            yield Notice(0, now, "power_brake", "critical", text, hint, gpu.uuid, _one(gpu.jobs))

    def _narrow(self, gpu: Held, now: float) -> Iterator[Notice]:
        width, most = _number(gpu.sample, "pcie_width"), _number(gpu.sample, "pcie_width_most")
        loaded = (_number(gpu.sample, "utilization") or 0.0) >= LOADED
        narrow = loaded and width is not None and most is not None and width < most
        lasting = self._lasting.get(("narrow", gpu.uuid))
        if not loaded and lasting is not None:
            return  # an idle card says nothing about it
        if self._once(("narrow", gpu.uuid), narrow, now, LINK_SECONDS):
            text = f"{gpu.label} has {width:.0f} of {most:.0f} PCIe lanes under load"
            hint = "reseat the card or its riser; some slots have fewer lanes when others are in use"
            yield Notice(0, now, "pcie", "info", text, hint, gpu.uuid)

    def _creeps(self, gpu: Held, now: float) -> Iterator[Notice]:
        for job, held in gpu.by_job.items():
            seen = self._memory.setdefault((job, gpu.uuid), [])
            if seen and 0 <= now - seen[-1][0] < CREEP_SECONDS / CREEP_POINTS:
                continue
            seen.append((now, held))
            del seen[: -CREEP_POINTS - 1]
            left = full_in(seen, gpu.memory_bytes, CREEP_SECONDS)
            if self._once(("creep", job, gpu.uuid), left is not None, now, 0.0) and left is not None:
                grown = (seen[-1][1] - seen[0][1]) / GIB
                yield Notice(
                    0, now, "memory_creep", "warning",
                    f"job {job} holds ever more of {gpu.label}: {grown:.1f} GiB more within an hour, "
                    f"full in about {_minutes(left)}",
                    "tensors that are kept, such as a loss that is summed up with its graph, look like this",
                    gpu.uuid, job,
                )  # fmt: skip
        for key in [key for key in self._memory if key[1] == gpu.uuid and key[0] not in gpu.by_job]:
            del self._memory[key]

    # --- all of them ---

    def _gone(self, scene: Scene) -> Iterator[Notice]:
        for uuid, sentence in scene.gone.items():
            if self._once(("gone", uuid), True, scene.now, 0.0):
                hint = "check riser, slot, power cables; `runner gpus forget` if it was taken out for good"
                yield Notice(0, scene.now, "gpu_lost", "critical", sentence, hint, uuid)
        for gpu in scene.gpus:
            lasting = self._lasting.get(("gone", gpu.uuid))
            if lasting is not None and gpu.uuid not in scene.gone:
                del self._lasting["gone", gpu.uuid]
                yield Notice(0, scene.now, "gpu_back", "info", f"{gpu.label} is back", "", gpu.uuid)

    def _room(self, free: int, total: int, now: float) -> Iterator[Notice]:
        if not self._disk or now - self._disk[-1][0] >= DISK_SECONDS / CREEP_POINTS or now < self._disk[-1][0]:
            self._disk.append((now, total - free))
            del self._disk[: -CREEP_POINTS - 1]
        hint = "`runner clean` makes room; docs/settings.md says what is kept for how long"
        left = f"{free / GIB:.1f} GiB are free on the box's disk"
        full, low = free < total * DISK_FULL, free < total * DISK_LOW
        if self._once(("disk", "full"), full, now, 0.0):
            yield Notice(0, now, "disk", "critical", f"{left}, {free / total:.0%} of it", hint)
        if self._once(("disk", "low"), low, now, 0.0) and not full:
            yield Notice(0, now, "disk", "warning", f"{left}, {free / total:.0%} of it", hint)
        soon = full_in(self._disk, total, DISK_SECONDS)
        if self._once(("disk", "soon"), soon is not None, now, 0.0) and soon is not None and not low:
            yield Notice(0, now, "disk", "warning", f"{left}; as it fills, it is full in {_minutes(soon)}", hint)

    # --- once ---

    def _once(self, key: tuple[object, ...], holds: bool, now: float, after: float) -> bool:
        """True the moment that something has held for so long; again only after it was over for a while."""
        self._asked.add(key)
        lasting = self._lasting.get(key)
        if not holds:
            if lasting is not None and not lasting.told:
                del self._lasting[key]
            elif lasting is not None:
                lasting.over_at = now if lasting.over_at is None or now < lasting.over_at else lasting.over_at
                if now - lasting.over_at >= CLEAR_SECONDS:
                    del self._lasting[key]
            return False
        if lasting is None or now < lasting.since:
            lasting = self._lasting[key] = _Lasting(now, lasting.told if lasting is not None else False)
        lasting.over_at = None
        if lasting.told or now - lasting.since < after or (key[0] in OF_JOBS and not after):
            return False
        lasting.told = True
        return True


def full_in(seen: list[tuple[float, int]], total: int | None, span: float) -> float | None:
    """Seconds until something that grows steadily is full; None: it does not, or not within a day.

    seen: (time, amount), oldest first. Steady: each is at least the one before, nearly, and over all of the span."""
    if total is None or len(seen) <= CREEP_POINTS or seen[-1][0] - seen[0][0] < span * 0.9:
        return None
    amounts = [amount for _, amount in seen]
    grown = amounts[-1] - amounts[0]
    falls = any(later < sooner - total * 0.001 for sooner, later in itertools.pairwise(amounts))
    late = amounts[-1] - amounts[len(amounts) // 2]  # what only filled up at the start has come to rest
    if falls or grown < total * CREEP_SHARE or late < grown * 0.3:
        return None
    left = (total - amounts[-1]) / grown * (seen[-1][0] - seen[0][0])
    return left if 0 <= left <= CREEP_DAY else None


def _number(sample: Mapping[str, object], name: str) -> float | None:
    value = sample.get(name)
    return float(value) if isinstance(value, int | float) else None


def _one(jobs: Iterable[int]) -> int | None:
    found = list(jobs)
    return found[0] if len(found) == 1 else None


def _jobs(jobs: tuple[int, ...]) -> str:
    return f"job{'s' * (len(jobs) > 1)} {', '.join(map(str, jobs))}"


def _watts(gpu: Held) -> str:
    watts = _number(gpu.sample, "power_watts")
    return "" if watts is None else f"{watts:.0f} W, "


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
