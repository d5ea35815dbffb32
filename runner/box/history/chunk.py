"""PURE: a minute of one subject, second by second, packed: 60 numbers or nothing in each column.

A column is a mask of the seconds that it has, and the differences of their numbers; all of it is compressed. A minute
of a busy GPU takes some 530 bytes, one of an idle GPU 190.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Container, Iterable, Sequence
from itertools import accumulate
from operator import sub

SECONDS = 60
ABSENT = -(1 << 31)
ALL = (1 << SECONDS) - 1
LEVEL = 6  # of compression: 9 takes twice as long for 1 % less

Numbers = Sequence[int | None]  # one a second


class Block:
    """A minute that is being written."""

    __slots__ = ("_cells", "_width")

    def __init__(self, width: int) -> None:
        self._width = width
        self._cells = array("i", [ABSENT]) * (width * SECONDS)

    def put(self, second: int, numbers: Iterable[tuple[int, int]], added: Container[int] = ()) -> None:
        """numbers: (column, number); the last that is said of a second holds, but what is `added` up adds up."""
        for column, number in numbers:
            place = column * SECONDS + second
            if column in added and self._cells[place] != ABSENT:
                number += self._cells[place]
            self._cells[place] = number

    def copy(self) -> Block:
        other = Block(0)
        other._width, other._cells = self._width, self._cells[:]
        return other

    def pack(self) -> bytes:
        cells = self._cells
        return pack([cells[at * SECONDS : (at + 1) * SECONDS] for at in range(self._width)])


def pack(columns: Sequence[Sequence[int]]) -> bytes:
    """columns: 60 numbers each, or ABSENT."""
    masks = []
    differences = array("i")
    for column in columns:
        there = [number for number in column if number != ABSENT]
        masks.append(ALL if len(there) == SECONDS else _mask(column) if there else 0)
        differences.extend(there[:1])
        differences.extend(map(sub, there[1:], there))
    return zlib.compress(struct.pack(f"<B{len(masks)}Q", len(masks), *masks) + _planes(differences), LEVEL)


def _mask(column: Sequence[int]) -> int:
    return sum(1 << second for second, number in enumerate(column) if number != ABSENT)


def _planes(numbers: array[int]) -> bytes:
    """First all lowest bytes, then all second, ...: what compresses best. Zigzag, so that small means small."""
    folded = array("I", [(number << 1 ^ number >> 31) & 0xFFFFFFFF for number in numbers])
    body = folded.tobytes()
    return b"".join(body[at::4] for at in range(4))


class Chunk:
    """A minute that is over. ValueError: it is none."""

    __slots__ = ("_masks", "_numbers", "_starts")

    def __init__(self, packed: bytes) -> None:
        try:
            body = zlib.decompress(packed)
            (width,) = body[:1]
            self._masks: tuple[int, ...] = struct.unpack_from(f"<{width}Q", body, 1)
        except (zlib.error, struct.error) as error:
            raise ValueError(f"a minute can't be read: {error}") from None
        rest = body[1 + 8 * width :]
        count = len(rest) // 4
        self._starts = list(accumulate((mask.bit_count() for mask in self._masks), initial=0))
        if any(mask > ALL for mask in self._masks) or self._starts[-1] * 4 != len(rest):
            raise ValueError("a minute can't be read: its length is wrong")
        folded = array("I", bytes(4 * count))
        view = memoryview(folded).cast("B")
        for at in range(4):
            view[at::4] = rest[at * count : (at + 1) * count]
        self._numbers = folded

    def column(self, at: int) -> Numbers:
        """The numbers of a column, one a second; None where there is none. One that is not there has none."""
        if at >= len(self._masks) or not (mask := self._masks[at]):
            return [None] * SECONDS
        there = self.there(at)
        if mask == ALL:
            return there
        given = iter(there)
        return [next(given) if mask >> second & 1 else None for second in range(SECONDS)]

    def there(self, at: int) -> list[int]:
        """Only those that are there."""
        if at >= len(self._masks):
            return []
        folded = self._numbers[self._starts[at] : self._starts[at + 1]]
        return list(accumulate([number >> 1 ^ -(number & 1) for number in folded]))

    @property
    def seen(self) -> int:
        """The seconds that have anything, as bits."""
        every = 0
        for mask in self._masks:
            every |= mask
        return every


def merge(one: bytes, other: bytes, width: int) -> bytes:
    """Two parts of the same minute; of a second that both have, what the other says holds."""
    return joined(Chunk(one), Chunk(other), width)


def joined(one: Chunk, other: Chunk, width: int) -> bytes:
    columns = []
    for at in range(width):
        pairs = zip(one.column(at), other.column(at), strict=True)
        columns.append([_either(was, is_) for was, is_ in pairs])
    return pack(columns)


def _either(was: int | None, is_: int | None) -> int:
    if is_ is not None:
        return is_
    return ABSENT if was is None else was
