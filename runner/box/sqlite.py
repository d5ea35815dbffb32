"""SQLite's errors as ours: what happened to the database, and what to do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import BadRequest, Busy, DiskFull, Problem, StateDamaged

Connection = sqlite3.Connection
PATIENCE = 1.0  # seconds that another program may have a file
PLAIN = (
    "auto_vacuum = INCREMENTAL",  # before the first table
    "locking_mode = EXCLUSIVE",
    "journal_mode = WAL",
    "synchronous = NORMAL",
    "journal_size_limit = 4194304",
)


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Run database work; whatever SQLite (or the library on top of it) raises leaves as one of our errors."""
    try:
        yield
    except Exception as error:
        cause = getattr(error, "orig", error)
        if not isinstance(cause, sqlite3.Error):
            raise
        raise translate(cause, path) from error


def translate(error: BaseException, path: str) -> Problem:
    said = str(error)
    if "is full" in said:
        return DiskFull("the box's disk is full: nothing was changed", "free some space there, or `runner clean`")
    if "locked" in said:
        hint = "close what has it open (sqlite3, a backup) and try again"
        return Busy(f"the database {path} is held by another program", hint)
    if any(sign in said for sign in ("malformed", "not a database", "disk I/O", "corrupt")):
        return damaged(path, said)
    if isinstance(error, sqlite3.IntegrityError):
        return BadRequest(f"the database refused it: {said}")
    return StateDamaged(f"the database {path} failed: {said}", "see the daemon's log; `runner doctor` checks the state")


def damaged(path: str, said: str) -> StateDamaged:
    folder = os.path.dirname(path)
    copies = sorted(name for name in os.listdir(folder) if name.startswith("runner.db.copy-"))
    instead = f"{folder}/{copies[-1]}" if copies else "a backup"
    return StateDamaged(
        f"the database {path} is damaged ({' '.join(said.split())}); it was left as it is and nothing was started",
        f"keep it (mv {path} {path}.damaged; its -wal too) and put {instead} in its place; running jobs go on",
    )


def plain(path: str) -> Connection:
    """A file that may be lost: a connection that nobody else has, in autocommit, for one thread at a time."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE, check_same_thread=False)
    try:
        for pragma in PLAIN:
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def useless(problem: Problem) -> bool:
    """Whether a file that failed so is better begun anew: not one that is held, or full, or that we may not open."""
    said = str(problem.__cause__)
    return isinstance(problem.__cause__, sqlite3.Error) and any(
        sign in said for sign in ("malformed", "not a database", "corrupt", "no such", "no column", "has no")
    )
