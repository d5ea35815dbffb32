"""The open file: one connection that nobody else has, transactions on it, SQLite's errors as ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event
from sqlmodel import create_engine

from runner.box import migrations
from runner.box.sqlite import translated
from runner.box.store import tables
from runner.errors import StateDamaged
from runner.files import failpoint


class Database:
    def __init__(self, path: str) -> None:
        self.path = path
        self.damage: StateDamaged | None = None  # what it failed with: nothing may be decided any more
        migrations.prepare(path)
        options = {"timeout": migrations.LOCK_SECONDS, "check_same_thread": False}
        self._engine = create_engine(f"sqlite:///{path}", connect_args=options)
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        with translated(path):
            self._connection = self._engine.connect()
            with self._write():
                tables.make(self._connection)
                if self._connection.exec_driver_sql("PRAGMA user_version").scalar() != migrations.VERSION:
                    self._connection.exec_driver_sql(f"PRAGMA user_version = {migrations.VERSION}")

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[None]:
        with self._noted(), translated(self.path), self._connection.begin():
            yield
            failpoint("db.commit")
        failpoint("db.committed")

    @contextmanager
    def _read(self) -> Iterator[None]:
        with self._noted(), translated(self.path):
            try:
                yield
            finally:
                self._connection.rollback()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except StateDamaged as damage:
            self.damage = damage
            raise


def _configure(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # we say BEGIN IMMEDIATE ourselves: a later upgrade of a read could not wait
    # Exclusive also steps around the WAL-reset fault of SQLite before 3.51.3, which needs two connections.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_size_limit = 67108864")
