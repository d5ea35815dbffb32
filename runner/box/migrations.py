"""The schema's version: an older database is copied, then carried forward in one transaction; a newer one is refused.

To change the schema: raise VERSION, add the step from the last version to STEPS, put a specimen of the last one under
tests/data/. Plain sqlite3: a step must not depend on table classes that will change after it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

from runner.box.sqlite import damaged, translated
from runner.errors import StateDamaged
from runner.files import failpoint, fsync_dir

VERSION = 5
LOCK_SECONDS = 5.0  # another program may have the database for so long, until it is told to be held


def _from_1(connection: sqlite3.Connection) -> None:
    """2: a job counts the attempts in a row that never came to run."""
    connection.execute("ALTER TABLE jobs ADD COLUMN misfires INTEGER NOT NULL DEFAULT 0")


def _from_2(connection: sqlite3.Connection) -> None:
    """3: GPUs are known; jobs and attempts say which they were given and how much they held, jobs what they run."""
    for column in (
        "allotted VARCHAR NOT NULL DEFAULT '[]'",
        "gpu_floor_bytes INTEGER",
        "gpu_peak_bytes INTEGER",
        "expected_seconds FLOAT",
        "program VARCHAR NOT NULL DEFAULT ''",
    ):
        connection.execute(f"ALTER TABLE jobs ADD COLUMN {column}")
    for column in ("allotted VARCHAR NOT NULL DEFAULT '[]'", "gpu_peak_bytes INTEGER"):
        connection.execute(f"ALTER TABLE attempts ADD COLUMN {column}")
    connection.execute(
        "CREATE TABLE gpus (uuid VARCHAR NOT NULL PRIMARY KEY, name VARCHAR NOT NULL, bus_id VARCHAR NOT NULL, "
        "memory_bytes INTEGER, unified BOOLEAN NOT NULL, drained BOOLEAN NOT NULL, first_seen_at FLOAT NOT NULL, "
        "last_seen_at FLOAT NOT NULL, stuck VARCHAR)"
    )


def _from_3(connection: sqlite3.Connection) -> None:
    """4: tokens, for those who come over the network."""
    connection.execute(
        "CREATE TABLE tokens (id VARCHAR NOT NULL PRIMARY KEY, digest VARCHAR NOT NULL, scope VARCHAR NOT NULL, "
        "label VARCHAR NOT NULL, user VARCHAR NOT NULL, uid INTEGER NOT NULL, created_at FLOAT NOT NULL, "
        "expires_at FLOAT, used_at FLOAT, revoked_at FLOAT, parent VARCHAR NOT NULL)"
    )


def _from_4(connection: sqlite3.Connection) -> None:
    """5: what each attempt used of its GPUs; notices."""
    connection.execute(
        "CREATE TABLE uses (job_id INTEGER NOT NULL, attempt INTEGER NOT NULL, gpu VARCHAR NOT NULL, "
        "since FLOAT NOT NULL, until FLOAT NOT NULL, seen_seconds FLOAT NOT NULL, unseen_seconds FLOAT NOT NULL, "
        "measured_seconds FLOAT NOT NULL, busy_seconds FLOAT NOT NULL, idle_seconds FLOAT NOT NULL, "
        "peak_bytes INTEGER, energy_joules FLOAT, uncounted_seconds FLOAT NOT NULL, cost FLOAT, "
        "currency VARCHAR NOT NULL, hottest_celsius FLOAT, heat_seconds FLOAT NOT NULL, brake_seconds FLOAT NOT NULL, "
        "capped_seconds FLOAT NOT NULL, xids VARCHAR NOT NULL, shared BOOLEAN NOT NULL, counted VARCHAR NOT NULL, "
        "PRIMARY KEY (job_id, attempt, gpu), FOREIGN KEY(job_id) REFERENCES jobs (id))"
    )
    connection.execute(
        "CREATE TABLE notices (id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, at FLOAT NOT NULL, "
        "kind VARCHAR NOT NULL, severity VARCHAR NOT NULL, text VARCHAR NOT NULL, hint VARCHAR NOT NULL, gpu VARCHAR, "
        "job INTEGER, code INTEGER, seen_at FLOAT)"
    )


STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _from_1, 2: _from_2, 3: _from_3, 4: _from_4}


def prepare(path: str) -> None:
    """Make the database at path fit for this version, or leave it untouched and say why not."""
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        return
    connection = _open(path)
    try:
        found = _check(connection, path)
        if found < VERSION:
            with translated(path):
                _copy(connection, f"{path}.copy-before-{found}-to-{VERSION}")
                failpoint("migrate.copied")
                _upgrade(connection, found)
            failpoint("migrate.done")
    finally:
        connection.close()


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=LOCK_SECONDS)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # no -shm file: on a full disk there is no room for it
    return connection


def _check(connection: sqlite3.Connection, path: str) -> int:
    """The version found; StateDamaged if it is newer than ours, or not a sound database."""
    with translated(path):
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    if verdict != "ok":
        raise damaged(path, verdict)
    if version > VERSION:
        raise StateDamaged(
            f"the database {path} was made by a newer gpubox (schema {version}, this one knows {VERSION})",
            "install the newer version again: `pip install '.[box]'` in a clone of it; nothing was changed",
        )
    return version or VERSION


def _copy(connection: sqlite3.Connection, target: str) -> None:
    """A durable copy, by SQLite's own backup: a plain copy of a database in use may be torn."""
    temporary = f"{target}.part"
    if os.path.exists(temporary):
        os.unlink(temporary)
    copy = sqlite3.connect(temporary)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    fd = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, target)
    fsync_dir(os.path.dirname(target))


def _upgrade(connection: sqlite3.Connection, found: int) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        for version in range(found, VERSION):
            STEPS[version](connection)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        failpoint("migrate.committing")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
