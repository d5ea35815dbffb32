"""SQLite's errors as ours: what happened to the database, and what to do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import BadRequest, Busy, DiskFull, Problem, StateDamaged


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
