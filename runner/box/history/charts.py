"""PURE: which step answers a question, and what was read, put into so many buckets.

A bucket says the mean, the least and the most of what was read in it, or the sum; None where nothing was. Buckets are
multiples of the step that was chosen, and the answer says both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.box.history.archive import STEPS, Row
from runner.box.history.chunk import SECONDS, Chunk
from runner.box.history.columns import GAUGE, STATES, SUM, Column, Kind, reasons

POINTS_MAX = 1000
FINE = 3  # rows a bucket may be made of
COST_MAX = 36_000  # of rows, times what each costs: 25 ms
MINUTES_MAX = 1000  # of all subjects and columns together, that are unpacked second by second: 25 ms
FOREVER = 1 << 40


@dataclass(slots=True, frozen=True)
class Plan:
    """How a question is answered."""

    step: int  # seconds between what is looked at: 1, or one of STEPS
    bucket: int  # seconds
    began: int  # start of the first bucket
    count: int  # of buckets

    @property
    def ended(self) -> int:
        return self.began + self.count * self.bucket

    @property
    def starts(self) -> list[int]:
        return list(range(self.began, self.ended, self.bucket))


@dataclass(slots=True)
class Line:
    """One column of one subject. One value a bucket; None: nothing was read."""

    mean: list[float | None] = field(default_factory=list)
    least: list[float | None] = field(default_factory=list)
    most: list[float | None] = field(default_factory=list)
    sum: list[float | None] = field(default_factory=list)
    last: list[object] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {name: values for name in self.__slots__ if (values := getattr(self, name))}


def plan(
    since: float, until: float, points: int, subjects: int, columns: int, begins: Mapping[int, int], last: bool = False
) -> Plan:
    """begins: step -> the oldest that is kept of it. last: what is only kept second by second is asked for."""
    span = max(until - since, 1.0)
    points = max(1, min(points, POINTS_MAX))
    if _reaches(1, since, begins) and (last or (span / SECONDS + 2) * subjects * columns <= MINUTES_MAX):
        return _buckets(1, since, until, points)
    for step in STEPS:
        rows = span / step
        if rows <= FINE * points and rows * subjects * (2 + columns) <= COST_MAX and _reaches(step, since, begins):
            return _buckets(step, since, until, points)
    return _buckets(STEPS[-1], since, until, points)


def _reaches(step: int, since: float, begins: Mapping[int, int]) -> bool:
    """Whether a step goes back as far as the question, or as any does."""
    return begins.get(step, FOREVER) <= max(since, min(begins.values(), default=FOREVER))


def _buckets(step: int, since: float, until: float, points: int) -> Plan:
    times = max(1, -(-int(max(until - since, 1)) // (step * points)))
    while True:
        bucket = step * times
        began = int(since) // bucket * bucket
        count = -(-(int(until) - began) // bucket) or 1
        if count <= points or count == 1:
            return Plan(step, bucket, began, count)
        times += 1


# --- lines ---------------------------------------------------------------------------------------------------------


def of_rows(rows: Sequence[Row], columns: Sequence[Column], made: Plan) -> dict[str, Line]:
    """rows: as Archive.rows has them for these columns."""
    lines = {}
    at = 1
    for column in columns:
        if column.how == GAUGE:
            lines[column.name] = _gauge(rows, at, column, made)
            at += 4
        elif column.how == SUM:
            lines[column.name] = Line(sum=_sums(((row[0], row[at]) for row in rows), column, made))
            at += 1
    return lines


def _gauge(rows: Sequence[Row], at: int, column: Column, made: Plan) -> Line:
    count, total = [0] * made.count, [0] * made.count
    least: list[int | None] = [None] * made.count
    most: list[int | None] = [None] * made.count
    bucket, began = made.bucket, made.began
    for row in rows:
        number = row[at]
        place = (row[0] - began) // bucket
        if not number or not 0 <= place < made.count:
            continue
        count[place] += number
        total[place] += row[at + 1]
        low, high = row[at + 2], row[at + 3]
        was = least[place]
        least[place] = low if was is None or low < was else was
        was = most[place]
        most[place] = high if was is None or high > was else was
    return _line(column, count, total, least, most)


def _line(
    column: Column, count: list[int], total: list[int], least: Sequence[int | None], most: Sequence[int | None]
) -> Line:
    digits = _digits(column)
    unit = 1 / column.scale
    mean = [round(sum_ / number * unit, digits) if number else None for number, sum_ in zip(count, total, strict=True)]
    return Line(mean, _scaled(least, unit, digits), _scaled(most, unit, digits))


def _scaled(numbers: Iterable[int | None], unit: float, digits: int) -> list[float | None]:
    return [None if number is None else round(number * unit, digits) for number in numbers]


def _digits(column: Column) -> int:
    """One more than what is stored can tell apart."""
    return 0 if column.scale < 1 else len(str(int(column.scale)))


def _sums(pairs: Iterable[tuple[int, int | None]], column: Column, made: Plan) -> list[float | None]:
    sums: list[int | None] = [None] * made.count
    for at, number in pairs:
        place = (at - made.began) // made.bucket
        if number is not None and 0 <= place < made.count:
            sums[place] = (sums[place] or 0) + number
    return _scaled(sums, 1 / column.scale, _digits(column))


def of_chunks(
    kind: Kind, chunks: Sequence[tuple[int, Chunk]], columns: Sequence[Column], made: Plan
) -> dict[str, Line]:
    """chunks: (start of the minute, what was read in it), oldest first."""
    lines = {}
    for column in columns:
        at = kind.place[column.name]
        seconds = [
            (start + second, number)
            for start, chunk in chunks
            for second, number in enumerate(chunk.column(at))
            if number is not None
        ]
        if column.how == GAUGE:
            lines[column.name] = _seconds(seconds, column, made)
        elif column.how == SUM:
            lines[column.name] = Line(sum=_sums(seconds, column, made))
        else:
            lines[column.name] = Line(last=_last(seconds, column, made))
    return lines


def _seconds(seconds: Sequence[tuple[int, int]], column: Column, made: Plan) -> Line:
    found: list[list[int]] = [[] for _ in range(made.count)]
    began, bucket, ended = made.began, made.bucket, made.ended
    for at, number in seconds:
        if began <= at < ended:
            found[(at - began) // bucket].append(number)
    least = [min(numbers) if numbers else None for numbers in found]
    most = [max(numbers) if numbers else None for numbers in found]
    return _line(column, [len(numbers) for numbers in found], [sum(numbers) for numbers in found], least, most)


def _last(seconds: Sequence[tuple[int, int]], column: Column, made: Plan) -> list[object]:
    found: list[object] = [None] * made.count
    for at, number in seconds:
        if made.began <= at < made.ended:
            found[(at - made.began) // made.bucket] = meaning(column, number)
    return found


def meaning(column: Column, number: int) -> object:
    """A stored number as the API says it."""
    if column.name == "throttled_by":
        return reasons(number)
    if column.name == "state":
        return STATES[number] if 0 <= number < len(STATES) else None
    return round(number / column.scale, _digits(column))
