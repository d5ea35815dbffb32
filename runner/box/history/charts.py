"""PURE: which step answers a question, and what was read, put into so many buckets.

A bucket says the mean, the least and the most of what was read in it, or the sum; None where nothing was. Buckets are
multiples of the step that was chosen, and the answer says both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.box.history.archive import STEPS, Row
from runner.box.history.chunk import SECONDS, Chunk, Numbers
from runner.box.history.columns import GAUGE, LAST, STATES, SUM, Column, Kind, reasons
from runner.errors import BadRequest

POINTS_MAX = 1000
FINE = 3  # rows a bucket may be made of
COST_MAX = 36_000  # of rows, times what each costs: 25 ms
FINE_COST_MAX = 3000  # of minutes that are unpacked, times what each costs: 30 ms
LAST_COST_MAX = 20_000  # the same, of what is kept in no other way: 200 ms
INSIDE = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30)  # buckets that lie in one minute: cut out of it in one go
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
    """begins: step -> the oldest that is kept of it. last: what is only kept second by second is asked for; BadRequest
    where that is too much."""
    span = max(until - since, 1.0)
    points = max(1, min(points, POINTS_MAX))
    each = subjects * (2 + columns)
    there = until - max(since, begins.get(1, since))
    if last and (there / SECONDS + 2) * each > LAST_COST_MAX:
        raise BadRequest(
            "that is too much at once of what is only kept second by second",
            f"ask for {int(LAST_COST_MAX / each * SECONDS / 3600)} hours at most, or for fewer GPUs or columns",
        )
    if _reaches(1, since, begins) and (last or (span / SECONDS + 2) * each <= FINE_COST_MAX):
        return _buckets(1, since, until, points)
    for step in STEPS:
        rows = span / step
        if rows <= FINE * points and rows * each <= COST_MAX and _reaches(step, since, begins):
            return _buckets(step, since, until, points)
    return _buckets(STEPS[-1], since, until, points)


def _reaches(step: int, since: float, begins: Mapping[int, int]) -> bool:
    """Whether a step goes back as far as the question, or as any does."""
    return begins.get(step, FOREVER) <= max(since, min(begins.values(), default=FOREVER))


def _buckets(step: int, since: float, until: float, points: int) -> Plan:
    times = max(1, -(-int(max(until - since, 1)) // (step * points)))
    while True:
        bucket = step * times
        if step == 1:  # of whole minutes, or an even part of one
            bucket = next((part for part in INSIDE if part >= bucket), -(-bucket // SECONDS) * SECONDS)
        began = int(since) // bucket * bucket
        count = -(-(int(until) - began) // bucket) or 1
        if count <= points or count == 1:
            return Plan(step, bucket, began, count)
        times += 1 + times // 50  # one by one it takes for ever, where a boundary lies in a span of years


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
    bucket, began, ended = made.bucket, made.began, made.ended
    sum_, low, high = at + 1, at + 2, at + 3
    for row in rows:
        number = row[at]
        if not number or not began <= row[0] < ended:
            continue
        place = (row[0] - began) // bucket
        if not count[place]:
            count[place], total[place], least[place], most[place] = number, row[sum_], row[low], row[high]
            continue
        count[place] += number
        total[place] += row[sum_]
        least[place] = min(least[place], row[low])
        most[place] = max(most[place], row[high])
    return _line(column, count, total, least, most)


def _line(
    column: Column, count: list[int], total: list[int], least: Sequence[int | None], most: Sequence[int | None]
) -> Line:
    digits, unit = _digits(column), 1 / column.scale
    mean = [round(sum_ / number * unit, digits) if number else None for number, sum_ in zip(count, total, strict=True)]
    return Line(mean, _scaled(least, column), _scaled(most, column))


def _scaled(numbers: Iterable[int | None], column: Column) -> list[float | None]:
    if column.scale < 1:
        unit = round(1 / column.scale)
        return [None if number is None else number * unit for number in numbers]
    scale = column.scale
    return [None if number is None else number / scale for number in numbers]


def _digits(column: Column) -> int | None:
    """One more than what is stored can tell apart; None: a whole number."""
    return None if column.scale < 1 else len(str(int(column.scale)))


def _sums(pairs: Iterable[tuple[int, int | None]], column: Column, made: Plan) -> list[float | None]:
    sums: list[int | None] = [None] * made.count
    for at, number in pairs:
        place = (at - made.began) // made.bucket
        if number is not None and 0 <= place < made.count:
            sums[place] = (sums[place] or 0) + number
    return _scaled(sums, column)


def of_chunks(
    kind: Kind, chunks: Sequence[tuple[int, Chunk]], columns: Sequence[Column], made: Plan
) -> dict[str, Line]:
    """chunks: (start of the minute, what was read in it), oldest first."""
    lines = {}
    for column in columns:
        at = kind.place[column.name]
        minutes = [(start, chunk.column(at)) for start, chunk in chunks]
        if column.how == LAST:
            lines[column.name] = Line(last=_last(minutes, column, made))
            continue
        parts = _parts(minutes, made)
        lines[column.name] = _spread(parts, column) if column.how == GAUGE else _added(parts, column)
    return lines


def _parts(minutes: Iterable[tuple[int, Numbers]], made: Plan) -> list[list[int]]:
    """The numbers of each bucket."""
    found: list[list[int]] = [[] for _ in range(made.count)]
    began, bucket, ended = made.began, made.bucket, made.ended
    width = min(bucket, SECONDS)
    for start, numbers in minutes:
        for at in range(0, SECONDS, width):
            second = start + at
            if began <= second < ended:
                part = numbers[at : at + width]
                found[(second - began) // bucket] += [number for number in part if number is not None]
    return found


def _spread(parts: Sequence[list[int]], column: Column) -> Line:
    least = [min(numbers) if numbers else None for numbers in parts]
    most = [max(numbers) if numbers else None for numbers in parts]
    return _line(column, [len(numbers) for numbers in parts], [sum(numbers) for numbers in parts], least, most)


def _added(parts: Sequence[list[int]], column: Column) -> Line:
    sums = [sum(numbers) if numbers else None for numbers in parts]
    return Line(sum=_scaled(sums, column))


def _last(minutes: Iterable[tuple[int, Numbers]], column: Column, made: Plan) -> list[object]:
    found: list[object] = [None] * made.count
    for start, numbers in minutes:
        for at, number in enumerate(numbers, start):
            if number is not None and made.began <= at < made.ended:
                found[(at - made.began) // made.bucket] = meaning(column, number)
    return found


def meaning(column: Column, number: int) -> object:
    """A stored number as the API says it."""
    if column.name == "throttled_by":
        return reasons(number)
    if column.name == "state":
        return STATES[number] if 0 <= number < len(STATES) else None
    return _scaled([number], column)[0]
