"""metrics.db: what was read, second by second for some days, and in five coarser steps for longer.

Plain sqlite3, one connection in one place, under a lock: whoever calls is in a thread. A minute is one transaction,
durable soon (WAL, synchronous=NORMAL): it may be lost in a power cut, never torn. The file may be deleted at any time,
also while it is open; one that is damaged or from a newer version is set aside. No job depends on it.

    subjects  what has a history: a GPU, the host
    raw       a minute of a subject, packed (chunk.py); place = minute << 12 | subject
    gpu_60    a minute of a GPU as a row: of each gauge how many readings, their sum, least and most; of what adds up
              the sum. gpu_300, gpu_1800, ... are made anew from the finer step whenever a minute comes in, so that
              nothing is counted twice, and nothing drifts. host_60, ... are the host's.
    gaps      when nothing was read, and why
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from runner.box import sqlite
from runner.box.history.chunk import SECONDS, Chunk, merge
from runner.box.history.columns import GAUGE, KINDS, LAST, Column, Kind
from runner.box.sqlite import Connection
from runner.errors import Problem

VERSION = 1
STEPS = (60, 300, 1800, 10800, 86400)  # seconds; each is made from the one before
SUBJECT_BITS = 12
PIECE = 5000  # rows that one transaction removes
PAGES = 500  # that one housekeeping gives back to the disk
DAY = 86400
RAW_LEAST = 7200.0  # seconds that are kept one by one in any case: parts of a minute are put together from them
ASIDE = ".aside"

Row = tuple[Any, ...]  # whole numbers, or None


@dataclass(slots=True)
class Subject:
    """What has a history: a GPU by its UUID, or the host."""

    kind: Kind
    key: str
    name: str = ""
    counted: str = ""  # JSON of what the driver's counters said last


@dataclass(slots=True)
class Gap:
    """Nothing was read of a subject, from one second up to (not with) another."""

    key: str
    began: float
    ended: float
    why: str
    joules: float | None = None  # that it used meanwhile, by the driver's own count


@dataclass(slots=True)
class Minute:
    """What one transaction writes."""

    at: int  # epoch seconds, a multiple of 60
    blocks: dict[str, bytes]  # key of a subject -> its minute, packed
    subjects: list[Subject] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


@dataclass(slots=True)
class Known:
    """A subject as the file has it."""

    subject: Subject
    number: int
    last_at: float  # the last second that was read


class Archive:
    def __init__(self, path: str) -> None:
        self.path = path
        self.said: list[str] = []  # what happened to the file, for the daemon's log
        self._lock = threading.Lock()
        self._open: Connection | None = None
        self._inode = (0, 0)
        self._numbers: dict[str, int] = {}
        self.anew = False  # the file holds nothing of before; whoever has read this resets it

    # --- the file ---

    @contextmanager
    def _file(self) -> Iterator[Connection]:
        """The connection, to whatever is at the path now. Problem: it can't be had; a damaged file is set aside."""
        with self._lock:
            try:
                with sqlite.translated(self.path):
                    yield self._connected()
            except BaseException as error:
                self._shut()  # what was numbered in a transaction that failed is not
                if isinstance(error, Problem) and sqlite.useless(error):
                    self._set_aside("it was damaged")
                raise

    def _connected(self) -> Connection:
        if self._open is not None and self._inode != _inode(self.path):
            self._shut()
            self.said.append(f"{self.path} was deleted or replaced: what is read from now on goes into the new one")
        if self._open is None:
            self._open = self._made()
            self._inode = _inode(self.path)
        return self._open

    def _made(self) -> Connection:
        connection = sqlite.plain(self.path)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                connection.close()
                self._set_aside(f"it is of a newer gpubox (version {version}, this one knows {VERSION})")
                connection = sqlite.plain(self.path)
            connection.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
            rows = connection.execute("SELECT key, number FROM subjects").fetchall()
        except BaseException:
            connection.close()
            raise
        self._numbers = dict(rows)
        self.anew = self.anew or not rows
        return connection

    def _shut(self) -> None:
        if self._open is not None:
            with suppress(Exception):  # it goes on without
                self._open.close()
        self._open = None

    def _set_aside(self, why: str) -> None:
        """One is kept; the next takes its place."""
        aside = self.path + ASIDE
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.replace(self.path + end, aside + end)
        self.said.append(
            f"the history of the GPUs is begun anew: {why}; the old one is {aside}, jobs are not concerned"
        )

    def close(self) -> None:
        with self._lock:
            self._shut()

    def bytes(self) -> int:
        """Of the file and what belongs to it."""
        total = 0
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                total += os.stat(self.path + end).st_blocks * 512
        return total

    # --- writing ---

    def known(self) -> list[Known]:
        """Every subject that there is. Problem."""
        with self._file() as connection:
            rows = connection.execute("SELECT number, kind, key, name, counted, last_at FROM subjects").fetchall()
        return [
            Known(Subject(KINDS[kind], key, name, counted), number, last_at)
            for number, kind, key, name, counted, last_at in rows
            if kind in KINDS
        ]

    def write(self, minutes: Sequence[Minute]) -> None:
        """Some minutes, in one transaction. To write one again changes nothing. Problem: nothing was written."""
        with self._file() as connection, _transaction(connection):
            touched: dict[Kind, set[int]] = {}
            for minute in minutes:
                self._subjects(connection, minute)
                for kind in self._blocks(connection, minute):
                    touched.setdefault(kind, set()).add(minute.at)
                self._gaps(connection, minute.gaps)
            for kind, starts in touched.items():
                _roll_up(connection, kind, starts)

    def _subjects(self, connection: Connection, minute: Minute) -> None:
        for subject in minute.subjects:
            values = (subject.kind.name, subject.key, subject.name, subject.counted, minute.at)
            connection.execute(SEE, values)
            if subject.key not in self._numbers:
                rows = connection.execute("SELECT number FROM subjects WHERE key = ?", (subject.key,)).fetchone()
                self._numbers[subject.key] = rows[0]

    def _blocks(self, connection: Connection, minute: Minute) -> Iterator[Kind]:
        kinds = {subject.key: subject.kind for subject in minute.subjects}
        for key, block in minute.blocks.items():
            number, kind = self._numbers[key], kinds[key]
            place = minute.at // SECONDS << SUBJECT_BITS | number
            row = connection.execute("SELECT body FROM raw WHERE place = ?", (place,)).fetchone()
            if row is not None and row[0] != block:
                with suppress(ValueError):  # else what was there can't be read, and is of no use
                    block = merge(row[0], block, len(kind.columns))
            chunk = Chunk(block)
            connection.execute("INSERT OR REPLACE INTO raw VALUES (?, ?)", (place, block))
            connection.execute(INSERT[kind.name], (minute.at, number, *summary(kind, chunk, _kept(kind))))
            last = minute.at + max(second for second in range(SECONDS) if chunk.seen >> second & 1)
            connection.execute("UPDATE subjects SET last_at = max(last_at, ?) WHERE number = ?", (last, number))
            yield kind

    def _gaps(self, connection: Connection, gaps: Iterable[Gap]) -> None:
        for gap in gaps:
            if gap.key in self._numbers:
                energy = None if gap.joules is None else round(gap.joules * 1000)
                values = (self._numbers[gap.key], round(gap.began), round(gap.ended), gap.why, energy)
                connection.execute("INSERT OR REPLACE INTO gaps VALUES (?, ?, ?, ?, ?)", values)

    def forget(self, seconds_days: float, minutes_days: float, now: float) -> bool:
        """Remove some of what is too old; whether there is more. Problem."""
        oldest = int(now - max(seconds_days * DAY, RAW_LEAST)) // SECONDS << SUBJECT_BITS
        old = "SELECT place FROM raw WHERE place < ? ORDER BY place LIMIT ?"
        more = False
        with self._file() as connection:
            with _transaction(connection):
                gone = connection.execute(f"DELETE FROM raw WHERE place IN ({old})", (oldest, PIECE)).rowcount
                more |= gone == PIECE
                for kind in KINDS:
                    until = int(now - max(minutes_days * DAY, RAW_LEAST))
                    first = connection.execute(f"SELECT min(ts) FROM {kind}_{STEPS[0]}").fetchone()[0]
                    if first is not None and first < until:
                        until, wanted = min(until, first + PIECE * STEPS[0] // 10), until
                        connection.execute(f"DELETE FROM {kind}_{STEPS[0]} WHERE ts < ?", (until,))
                        more |= until < wanted
            connection.execute(f"PRAGMA incremental_vacuum({PAGES})").fetchall()
        return more

    # --- reading ---

    def rows(
        self, kind: Kind, step: int, keys: Sequence[str], columns: Sequence[Column], since: float, until: float
    ) -> dict[str, list[Row]]:
        """Per subject the rows (start, then of each column count, sum, least, most; or its sum), oldest first."""
        names = ", ".join(name for column in columns for name in _cells(column))
        with self._file() as connection:
            numbers = {self._numbers[key]: key for key in keys if key in self._numbers}
            if not numbers:
                return {}
            chosen = ", ".join(map(str, numbers))
            found = connection.execute(
                f"SELECT subject, ts{', ' * bool(names)}{names} FROM {kind.name}_{step} "
                f"WHERE ts >= ? AND ts < ? AND subject IN ({chosen}) ORDER BY ts",
                (int(since) // step * step, until),
            ).fetchall()
        rows: dict[str, list[Row]] = {key: [] for key in numbers.values()}
        for subject, *row in found:
            rows[numbers[subject]].append(tuple(row))
        return rows

    def chunks(self, key: str, since: float, until: float) -> list[tuple[int, Chunk]]:
        """The minutes of a subject, one by one, as far as they are still kept that way."""
        with self._file() as connection:
            number = self._numbers.get(key)
            if number is None:
                return []
            first, last = connection.execute(ENDS).fetchone()
            if first is None:
                return []
            began = max(int(since) // SECONDS, first >> SUBJECT_BITS)
            minutes = range(began, min(int(until) // SECONDS, last >> SUBJECT_BITS) + 1)
            places = json.dumps([minute << SUBJECT_BITS | number for minute in minutes])
            wanted = "SELECT place, body FROM json_each(?) JOIN raw ON place = value ORDER BY place"
            found = connection.execute(wanted, (places,)).fetchall()
        chunks = []
        for place, body in found:
            with suppress(ValueError):  # one that can't be read is a gap
                chunks.append(((place >> SUBJECT_BITS) * SECONDS, Chunk(body)))
        return chunks

    def gaps(self, keys: Sequence[str], since: float, until: float) -> list[Gap]:
        with self._file() as connection:
            found = connection.execute(GAPS, (until, since)).fetchall()
        return [
            Gap(key, began, ended, why, None if energy is None else energy / 1000)
            for key, began, ended, why, energy in found
            if key in keys
        ]

    def begins(self) -> dict[int, int]:
        """Step (1: each second) -> the start of the oldest that is kept. Those that are empty are left out."""
        found: dict[int, int] = {}
        with self._file() as connection:
            place = connection.execute("SELECT min(place) FROM raw").fetchone()[0]
            if place is not None:
                found[1] = (place >> SUBJECT_BITS) * SECONDS
            for step in STEPS:
                starts = [connection.execute(f"SELECT min(ts) FROM {kind}_{step}").fetchone()[0] for kind in KINDS]
                there = [start for start in starts if start is not None]
                if there:
                    found[step] = min(there)
            first = connection.execute("SELECT min(first_at) FROM subjects").fetchone()[0]
        return {step: max(start, first or 0) for step, start in found.items()}


def _inode(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return (0, 0)
    return stat.st_dev, stat.st_ino


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


# --- the tables ----------------------------------------------------------------------------------------------------


def _kept(kind: Kind) -> list[Column]:
    return [column for column in kind.columns if column.how != LAST]


def _cells(column: Column) -> list[str]:
    """The names of a column in a row of a step."""
    if column.how == GAUGE:
        return [f"{column.stored}_{part}" for part in ("n", "sum", "min", "max")]
    return [column.stored]


def _table(kind: Kind, step: int) -> str:
    cells = ", ".join(f"{cell} INTEGER" for column in _kept(kind) for cell in _cells(column))
    return (
        f"CREATE TABLE IF NOT EXISTS {kind.name}_{step} "
        f"(ts INTEGER, subject INTEGER, {cells}, PRIMARY KEY (ts, subject)) WITHOUT ROWID"
    )


def _sums(kind: Kind, step: int, finer: int) -> str:
    """One bucket of a step, from those of the finer one."""
    cells = []
    for column in _kept(kind):
        how = ("sum", "sum", "min", "max") if column.how == GAUGE else ("sum",)
        cells += [f"{call}({cell})" for call, cell in zip(how, _cells(column), strict=True)]
    return (
        f"INSERT OR REPLACE INTO {kind.name}_{step} SELECT ?1, subject, {', '.join(cells)} "
        f"FROM {kind.name}_{finer} WHERE ts >= ?1 AND ts < ?1 + {step} GROUP BY subject"
    )


def _roll_up(connection: Connection, kind: Kind, minutes: Iterable[int]) -> None:
    starts = set(minutes)
    for finer, step in itertools.pairwise(STEPS):
        starts = {start // step * step for start in starts}
        connection.executemany(ROLL_UP[kind.name, step, finer], [(start,) for start in sorted(starts)])


def summary(kind: Kind, chunk: Chunk, columns: Iterable[Column]) -> list[int | None]:
    """The cells of some columns of a minute, as a row of the finest step has them."""
    cells: list[int | None] = []
    for column in columns:
        there = chunk.there(kind.place[column.name])
        if column.how == GAUGE:
            cells += [len(there), sum(there), min(there), max(there)] if there else [None] * 4
        else:
            cells.append(sum(there) if there else None)
    return cells


SCHEMA = (
    "CREATE TABLE IF NOT EXISTS subjects (number INTEGER PRIMARY KEY, kind TEXT, key TEXT UNIQUE, name TEXT, "
    "counted TEXT, first_at INTEGER, last_at INTEGER)",
    "CREATE TABLE IF NOT EXISTS raw (place INTEGER PRIMARY KEY, body BLOB)",
    "CREATE TABLE IF NOT EXISTS gaps (subject INTEGER, began INTEGER, ended INTEGER, why TEXT, energy_mj INTEGER, "
    "PRIMARY KEY (subject, began)) WITHOUT ROWID",
    *(_table(kind, step) for kind in KINDS.values() for step in STEPS),
)
SEE = (
    "INSERT INTO subjects (kind, key, name, counted, first_at, last_at) VALUES (?1, ?2, ?3, ?4, ?5, ?5) "
    "ON CONFLICT (key) DO UPDATE SET name = excluded.name, counted = excluded.counted"
)
ENDS = "SELECT (SELECT min(place) FROM raw), (SELECT max(place) FROM raw)"  # both at once would read all of it
GAPS = (
    "SELECT key, began, ended, why, energy_mj FROM gaps JOIN subjects ON number = subject "
    "WHERE began < ? AND ended > ? ORDER BY began"
)
INSERT = {
    kind.name: f"INSERT OR REPLACE INTO {kind.name}_{STEPS[0]} VALUES (?, ?"
    + ", ?" * sum(len(_cells(column)) for column in _kept(kind))
    + ")"
    for kind in KINDS.values()
}
ROLL_UP = {
    (kind.name, step, finer): _sums(kind, step, finer)
    for kind in KINDS.values()
    for finer, step in itertools.pairwise(STEPS)
}
