"""The last two hours in memory: the minute that is being written, and those before it, packed.

PURE but for what it remembers: times are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from runner.box.history.archive import Gap, Minute, Subject
from runner.box.history.chunk import SECONDS, Block, Chunk, merge
from runner.box.history.columns import KINDS, SUM, numbers

MINUTES = 120  # that are kept, besides the one that is being written
NOT_RUNNING = "the box's daemon was not running"
NOT_READ = "nothing was read"
Held = tuple[int, bytes | Block]  # the start of a minute, and what was read in it
ADDED = {
    kind.name: frozenset(place for place, column in enumerate(kind.columns) if column.how == SUM)
    for kind in KINDS.values()
}


@dataclass(slots=True)
class _Seen:
    """A subject, as far as it goes on."""

    subject: Subject
    last_at: float  # the last second that was read
    why: str = NOT_READ  # nothing is read of it since then, if so
    gap: Gap | None = None  # the last one that ended


@dataclass(slots=True)
class Minutes:
    packed: dict[int, dict[str, bytes]] = field(default_factory=dict)  # start of a minute -> subject -> what was read
    seen: dict[str, _Seen] = field(default_factory=dict)
    over: list[Minute] = field(default_factory=list)  # to be written, oldest first
    _at: int = -1  # start of the minute that is being written; -1: none
    _open: dict[str, Block] = field(default_factory=dict)
    _gaps: list[Gap] = field(default_factory=list)

    def know(self, subject: Subject, last_at: float) -> None:
        """It was there before this daemon began."""
        self.seen[subject.key] = _Seen(subject, last_at, NOT_RUNNING)

    def put(self, subject: Subject, at: float, values: Mapping[str, object]) -> bool:
        """What was read of a subject; True when a minute is over by that."""
        start = int(at) // SECONDS * SECONDS
        turned = self._at not in (-1, start)
        if turned:
            self.turn()
        self._at = start
        self._note(subject, at)
        block = self._open.get(subject.key)
        if block is None:
            block = self._open[subject.key] = Block(len(subject.kind.columns))
        block.put(int(at) - start, numbers(subject.kind, values), ADDED[subject.kind.name])
        return turned

    def _note(self, subject: Subject, at: float) -> None:
        seen = self.seen.get(subject.key)
        if seen is None:
            self.seen[subject.key] = _Seen(subject, at)
            return
        if at - seen.last_at > subject.kind.pause:
            seen.gap = Gap(subject.key, int(seen.last_at) + 1, int(at), seen.why)
            self._gaps.append(seen.gap)
        seen.subject, seen.last_at, seen.why = subject, max(seen.last_at, at), NOT_READ

    def missing(self, key: str, why: str) -> None:
        """Nothing is read of a subject just now, and this is why."""
        if key in self.seen:
            self.seen[key].why = why

    def bridged(self, key: str, joules: float) -> None:
        """What a subject used in its last gap."""
        seen = self.seen.get(key)
        if seen is not None and seen.gap is not None:
            seen.gap.joules = joules
            if seen.gap not in self._gaps:  # it may have been written already
                self._gaps.append(seen.gap)

    def turn(self) -> None:
        """The minute that was being written is over."""
        if self._at == -1:
            return
        blocks = {key: block.pack() for key, block in self._open.items()}
        before = self.packed.pop(self._at, {})  # the clock may have gone back
        for key, block in before.items():
            subject = self.seen[key].subject
            blocks[key] = merge(block, blocks[key], len(subject.kind.columns)) if key in blocks else block
        self.packed[self._at] = blocks
        subjects = [self.seen[key].subject for key in blocks]
        self.over.append(Minute(self._at, blocks, subjects, self._gaps))
        self._at, self._open, self._gaps = -1, {}, []
        while len(self.packed) > MINUTES:
            del self.packed[next(iter(self.packed))]
        del self.over[:-MINUTES]

    def all(self) -> list[Minute]:
        """Every minute that is remembered, to be written anew."""
        return [
            Minute(at, dict(blocks), [self.seen[key].subject for key in blocks]) for at, blocks in self.packed.items()
        ]

    # --- questions ---

    @property
    def began(self) -> int | None:
        """The start of the oldest minute."""
        return min(self.packed, default=self._at if self._at != -1 else None)

    def held(self, key: str, since: float, until: float) -> list[Held]:
        """The minutes of a subject, with a copy of the one that is being written; `unpacked` makes chunks of them."""
        found: list[Held] = [
            (at, blocks[key]) for at, blocks in self.packed.items() if key in blocks and since - SECONDS < at < until
        ]
        if key in self._open and since - SECONDS < self._at < until:
            found.append((self._at, self._open[key].copy()))
        return found

    def unwritten(self) -> set[int]:
        """The starts of the minutes that no file has yet."""
        return {minute.at for minute in self.over} | ({self._at} if self._at != -1 else set())

    def gaps(self, key: str, now: float) -> list[Gap]:
        """Those that no file has yet, and the one that goes on."""
        found = [gap for minute in self.over for gap in minute.gaps if gap.key == key]
        found += [gap for gap in self._gaps if gap.key == key]
        seen = self.seen.get(key)
        if seen is not None and now - seen.last_at > seen.subject.kind.pause:
            found.append(Gap(key, int(seen.last_at) + 1, int(now), seen.why))
        return found


def unpacked(held: Iterable[Held], width: int) -> dict[int, Chunk]:
    """By the starts of the minutes. Takes 20 us a minute."""
    blocks: dict[int, bytes] = {}
    for at, block in held:
        packed = block if isinstance(block, bytes) else block.pack()
        blocks[at] = merge(blocks[at], packed, width) if at in blocks else packed
    return {at: Chunk(block) for at, block in blocks.items()}
