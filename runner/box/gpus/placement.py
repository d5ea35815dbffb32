"""PURE: which GPUs a job gets. Who fits where, the best of what fits, and what is in the way in words."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from runner.model import Job, JobSpec

GIB = 1 << 30
FARTHEST = 60  # a level of NVML's topology above all others: nothing is known of this pair
COMBINATIONS_MAX = 500
NAMED_MAX = 4  # obstacles that one reason names

Links = Mapping[tuple[str, str], int]  # (uuid, uuid), sorted -> NVML's level: how far apart they are


@dataclass(slots=True, frozen=True)
class Card:
    """One GPU as placement sees it. What the active jobs hold of it is counted apart, from the jobs themselves."""

    uuid: str
    label: str  # GPU 0
    name: str
    memory_bytes: int  # 0: not known
    foreign_bytes: int = 0  # used by others than the jobs that have it
    closed: str | None = None  # why nothing starts on it: lost, draining, stuck, unknown
    taken: str | None = None  # why no job can have it for itself: a foreign process, memory not free yet
    passing: bool = False  # what it is taken by goes away by itself: memory that is being freed
    asleep: bool = False
    lost: bool = False
    ours_bytes: int = 0  # of foreign_bytes, what goes with our own jobs on it, as far as can be seen
    ours: bool = False  # and so does what it is taken by

    @property
    def open_bytes(self) -> int:
        return max(self.memory_bytes - self.foreign_bytes, 0)

    @property
    def lasting_bytes(self) -> int:
        """What is open when our own jobs on it have ended."""
        return self.memory_bytes if self.passing else min(self.open_bytes + self.ours_bytes, self.memory_bytes)


@dataclass(slots=True)
class Slot:
    """A card, and what the jobs considered so far have of it."""

    card: Card
    jobs: list[int] = field(default_factory=list)
    alone: int = 0  # how many of them have it for themselves: two where one was adopted
    declared_bytes: int = 0
    kept: bool = False  # for the first job that waits

    @property
    def free_bytes(self) -> int:
        return self.card.open_bytes - self.declared_bytes

    def admits(self, job: Job) -> bool:
        if self.alone or self.kept or self.card.closed is not None:
            return False
        if job.shares:
            return not self.card.passing and self.free_bytes >= job.gpu_memory_bytes
        return not self.jobs and self.card.taken is None and _large_enough(self.card.open_bytes, job)

    def could_admit(self, job: Job) -> bool:
        """As soon as our own jobs on it have ended."""
        card = self.card
        if card.closed is not None:
            return False
        if job.shares:
            return card.lasting_bytes >= job.gpu_memory_bytes
        return (card.taken is None or card.passing or card.ours) and _large_enough(card.lasting_bytes, job)

    def copy(self) -> Slot:
        return Slot(self.card, list(self.jobs), self.alone, self.declared_bytes, self.kept)


class Slots:
    """The GPUs of the box while one decision is made."""

    def __init__(self, cards: Iterable[Card], links: Links) -> None:
        self._slots = {card.uuid: Slot(card) for card in cards}
        self._links = links
        self._types: dict[str, list[Slot]] = {}  # what somebody wished for -> the slots that match

    def copy(self) -> Slots:
        other = Slots((), self._links)
        other._slots = {uuid: slot.copy() for uuid, slot in self._slots.items()}
        return other

    def take(self, job: Job, uuids: Iterable[str]) -> None:
        for slot in self._of(uuids):
            slot.jobs.append(job.id)
            slot.declared_bytes += job.gpu_memory_bytes if job.shares else 0
            slot.alone += not job.shares

    def give(self, job: Job, uuids: Iterable[str]) -> None:
        for slot in self._of(uuids):
            slot.jobs.remove(job.id)
            slot.declared_bytes -= job.gpu_memory_bytes if job.shares else 0
            slot.alone -= not job.shares

    def _of(self, uuids: Iterable[str]) -> list[Slot]:
        """A GPU that was taken out of the box is no longer among them."""
        return [self._slots[uuid] for uuid in uuids if uuid in self._slots]

    def _of_type(self, wish: str) -> list[Slot]:
        if wish not in self._types:
            self._types[wish] = [slot for slot in self._slots.values() if matches(wish, slot.card)]
        return self._types[wish]

    # --- choosing ---

    def place(self, job: Job, beside: Slots | None = None) -> tuple[str, ...] | None:
        """The GPUs for a job; None when they are not there. beside: only those that are free there, too."""
        if job.gpu_uuids:
            return tuple(job.gpu_uuids)  # it has them already, whoever else does
        if not job.gpus:
            return ()
        fitting = [slot for slot in self._of_type(job.gpu_type) if slot.admits(job)]
        if beside is not None:
            fitting = [slot for slot in fitting if beside._slots[slot.card.uuid].admits(job)]
        if len(fitting) < job.gpus:
            return None
        fitting.sort(key=lambda slot: _preference(slot, job))
        return self._nearest(fitting, job.gpus)

    def possible(self, job: Job) -> bool:
        """Whether it is only our own jobs that it waits for."""
        return bool(job.gpu_uuids) or len(self._could(job)) >= job.gpus

    def keep(self, job: Job) -> None:
        """Set aside the GPUs that a job waits for whose time is not known: those nearest to being free."""
        could = self._could(job)
        could.sort(key=lambda slot: (not slot.admits(job), len(slot.jobs), -slot.free_bytes, slot.card.label))
        for slot in could[: job.gpus]:
            slot.kept = True

    def _could(self, job: Job) -> list[Slot]:
        return [slot for slot in self._of_type(job.gpu_type) if slot.could_admit(job)]

    def _nearest(self, fitting: Sequence[Slot], number: int) -> tuple[str, ...]:
        """Of the fitting ones, the best first, those that are nearest to each other."""
        names = [slot.card.uuid for slot in fitting]
        if number == 1 or number == len(names) or math.comb(len(names), number) > COMBINATIONS_MAX:
            return tuple(names[:number])
        rank = {name: place for place, name in enumerate(names)}
        best = min(combinations(names, number), key=lambda some: (self._spread(some), sum(rank[name] for name in some)))
        return tuple(best)

    def _spread(self, uuids: Sequence[str]) -> int:
        return sum(self._links.get((min(a, b), max(a, b)), FARTHEST) for a, b in combinations(uuids, 2))

    # --- words ---

    def lacks(self, job: Job) -> str:
        """What a job needs of the GPUs, and what is in its way on each that would do."""
        wanted = self._of_type(job.gpu_type)
        ready = [slot for slot in wanted if slot.admits(job)]
        obstacles = list(dict.fromkeys(_obstacle(slot, job) for slot in wanted if not slot.admits(job)))
        named = "; ".join(obstacles[:NAMED_MAX])
        if len(obstacles) > NAMED_MAX:
            named += f"; and {len(obstacles) - NAMED_MAX} more"
        if len(wanted) == 1 and job.gpus == 1:
            return named
        return f"{needs(job)}, {len(ready)} of {len(wanted)} free: {named}"


def _large_enough(memory: int, job: Job) -> bool:
    if job.gpu_floor_bytes is not None and memory <= job.gpu_floor_bytes:
        return False
    return memory >= job.gpu_memory_bytes


def _preference(slot: Slot, job: Job) -> tuple[bool, bool, int, str]:
    """What is asleep stays so. A job that says what it needs gets the least that has it, beside others if it shares, so
    that large and whole cards stay free for who needs them; one that says nothing gets the largest."""
    if job.shares:
        return (slot.card.asleep, not slot.jobs, slot.free_bytes, slot.card.label)
    if job.gpu_memory_bytes and job.gpu_floor_bytes is None:
        return (slot.card.asleep, False, slot.card.memory_bytes, slot.card.label)
    return (slot.card.asleep, False, -slot.card.open_bytes, slot.card.label)


def _obstacle(slot: Slot, job: Job) -> str:
    """What keeps a job from a card that would do."""
    card = slot.card
    if card.closed is not None:
        return card.closed
    if slot.alone or (slot.jobs and not job.shares):
        return f"{card.label} has {jobs(slot.jobs)}"
    if job.shares:
        beside = f" beside {jobs(slot.jobs)}" if slot.jobs else ""
        left = f"{card.label} has {portion(slot.free_bytes, card.memory_bytes)} left{beside}"
        if card.passing and card.taken is not None:
            return card.taken
        return left if card.taken is None or slot.jobs else f"{left}, {card.taken.removeprefix(f'{card.label} ')}"
    if card.taken is not None:
        return card.taken
    if job.gpu_floor_bytes is not None and card.open_bytes <= job.gpu_floor_bytes:
        return f"{card.label} has {gib(card.open_bytes)} GiB, and it ran out of {gib(job.gpu_floor_bytes)}"
    return f"{card.label} has {portion(card.open_bytes, card.memory_bytes)} left"


def needs(job: Job) -> str:
    """needs 2 GPUs (3090) with 8 GiB each"""
    text = f"needs {job.gpus} GPU{'' if job.gpus == 1 else 's'}"
    if job.gpu_type:
        text += f" ({job.gpu_type})"
    if job.gpu_memory_bytes:
        text += f" with {gib(job.gpu_memory_bytes)} GiB" + (" each" if job.gpus > 1 else "")
    if job.gpu_floor_bytes is not None:
        text += ", alone after it ran out of GPU memory"
    return text


def matches(wish: str, card: Card) -> bool:
    """Whether a card is what --gpu-type says: the start of its UUID, or words of its name ("3090", "rtx 4090")."""
    return not wish or _named(wish.lower(), card.uuid.lower(), card.name)


@functools.lru_cache(1024)
def _named(wish: str, uuid: str, name: str) -> bool:
    """Remembered: one pass asks for each of 10,000 jobs."""
    if wish.startswith("gpu-"):
        return uuid.startswith(wish)
    said, wanted = _words(name), _words(wish)
    return bool(wanted) and all(word in said or word in _pairs(said) for word in wanted)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _pairs(words: Sequence[str]) -> list[str]:
    """`4080super` and `rtx3090` are written so, too."""
    return [first + second for first, second in pairwise(words)]


def gone(wish: str, cards: Sequence[Card]) -> str | None:
    """What is the matter with the one GPU that a wish names by its UUID; None if it is there."""
    named = [card for card in cards if wish.lower().startswith("gpu-") and matches(wish, card)]
    return named[0].closed if len(named) == 1 and named[0].lost else None


def exceeds(job: Job | JobSpec, cards: Sequence[Card]) -> str | None:
    """Why these GPUs can never be enough for a job, whatever else runs; None if they can."""
    if not job.gpus or job.gpu_uuids:
        return None
    asked = f"asks for {job.gpus} GPU{'' if job.gpus == 1 else 's'}"
    if not cards:
        return f"{asked}, the box has none"
    fitting = [card for card in cards if matches(job.gpu_type, card)]
    if not fitting:
        return f"asks for a GPU of the type {job.gpu_type!r}; the box has {inventory(cards)}"
    if len(fitting) < job.gpus:
        of_type = f" of the type {job.gpu_type!r}" if job.gpu_type else ""
        return f"{asked}{of_type}, the box has {len(fitting)}: {inventory(cards)}"
    known = [card.memory_bytes for card in fitting if card.memory_bytes]
    enough = [memory for memory in known if memory >= job.gpu_memory_bytes]
    if len(enough) < job.gpus and len(known) == len(fitting):
        few = f"{len(enough)} of them {'has' if len(enough) == 1 else 'have'} that much"
        there = few if enough else f"the largest has {gib(max(known))} GiB"
        return f"{asked} with {gib(job.gpu_memory_bytes)} GiB; {there}: {inventory(cards)}"
    return None


def inventory(cards: Iterable[Card]) -> str:
    """2 RTX 3090 with 24 GiB, 1 RTX 4090 with 24 GiB"""
    kinds: dict[str, int] = {}
    for card in cards:
        memory = f" with {gib(card.memory_bytes)} GiB" if card.memory_bytes else ""
        kinds[short(card.name) + memory] = kinds.get(short(card.name) + memory, 0) + 1
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def short(name: str) -> str:
    """NVIDIA GeForce RTX 3090 -> RTX 3090"""
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def jobs(ids: Sequence[int]) -> str:
    """job 41; jobs 41, 42"""
    return f"job{'' if len(ids) == 1 else 's'} {', '.join(map(str, sorted(ids)))}"


def portion(part_bytes: int, whole_bytes: int) -> str:
    """11.2 of 24 GiB"""
    return f"{gib(max(part_bytes, 0))} of {gib(whole_bytes)} GiB"


def gib(size_bytes: int) -> str:
    """24 GiB of bytes -> 24; 11.2"""
    return f"{size_bytes / GIB:.1f}".removesuffix(".0")
