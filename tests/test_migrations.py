"""An older database is copied and carried forward; a newer or damaged one is refused and left as it is."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from runner import files, words
from runner.box import migrations, sqlite
from runner.box.migrations import VERSION
from runner.box.sqlite import translate
from runner.box.store import KnownGpu, Store
from runner.errors import BadRequest, Busy, DiskFull, Problem, StateDamaged

DATA = Path(__file__).parent / "data"


def specimen(path: Path, version: int) -> Path:
    """A database as that version left it, closed cleanly in WAL mode."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript((DATA / f"schema-{version}.sql").read_text())
    connection.close()
    return path


def version_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


def test_there_is_a_specimen_and_a_step_for_every_earlier_version() -> None:
    earlier = range(1, VERSION)
    assert list(migrations.STEPS) == list(earlier)
    assert all((DATA / f"schema-{version}.sql").exists() for version in earlier)


@pytest.mark.parametrize("version", range(1, VERSION))
def test_an_older_database_is_carried_forward_with_all_that_is_in_it(tmp_path: Path, version: int) -> None:
    path = specimen(tmp_path / "runner.db", version)
    store = Store(str(path))
    try:
        jobs = store.jobs([1, 2, 3, 4])
        assert [job.state for job in jobs] == [words.FAILED, words.RUNNING, words.QUEUED, words.QUEUED]
        assert [job.detail for job in jobs] == ["ValueError: no", "", "", ""]
        assert [job.misfires for job in jobs] == [0, 0, 0, 0]
        assert (jobs[1].group, jobs[1].params, jobs[3].held) == ("g2", {"lr": "0.1"}, True)
        assert [attempt.exit_code for attempt in store.attempts(1)] == [3]
        assert [(job.allotted, job.gpu_peak_bytes, job.exclusive) for job in jobs] == [([], None, False)] * 4
        assert [attempt.allotted for attempt in store.attempts(1)] == [[]]
        assert store.gpus() == store.past("train.py") == []
        assert store.remembered("draining") == "yes"
        assert store.known_key(1001, "key", "digest") is not None
    finally:
        store.close()
    assert version_of(path) == VERSION


@pytest.mark.parametrize("version", range(1, VERSION))
def test_a_job_of_an_older_database_goes_on_with_a_gpu(tmp_path: Path, version: int) -> None:
    store = Store(str(specimen(tmp_path / "runner.db", version)))
    try:
        store.see_gpus([KnownGpu("GPU-a", "RTX 3090", "00000000:01:00.0", 24 << 30, False, False, 1.0, 1.0)])
        (job,) = store.jobs([3])
        assert store.apply([job], [], 200.0, {3: ["GPU-a"]}) == {3}
        assert (store.jobs([3])[0].allotted, store.attempts(3)[0].allotted) == (["GPU-a"], ["GPU-a"])
        assert [gpu.uuid for gpu in store.gpus()] == ["GPU-a"]
    finally:
        store.close()


@pytest.mark.parametrize("version", range(1, VERSION))
def test_an_upgraded_database_has_the_schema_of_a_new_one(tmp_path: Path, version: int) -> None:
    old, new = specimen(tmp_path / "old.db", version), tmp_path / "new.db"
    for path in (old, new):
        Store(str(path)).close()
    assert _columns(old) == _columns(new)
    assert _indexes(old) == _indexes(new)


def _columns(path: Path) -> dict[str, dict[str, tuple[Any, ...]]]:
    connection = sqlite3.connect(path)
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {
        table: {row[1]: (row[2], row[3], row[5]) for row in connection.execute(f"PRAGMA table_info({table})")}
        for table in tables
    }
    connection.close()
    return found


def _indexes(path: Path) -> dict[str, str | None]:
    connection = sqlite3.connect(path)
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index'").fetchall())
    connection.close()
    return found


def test_a_copy_is_made_before_and_is_the_old_database(tmp_path: Path) -> None:
    Store(str(specimen(tmp_path / "runner.db", 1))).close()
    copy = tmp_path / f"runner.db.copy-before-1-to-{VERSION}"
    assert version_of(copy) == 1
    assert _dump(copy) == _dump(specimen(tmp_path / "again.db", 1))


def _dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def test_a_half_made_copy_of_a_crash_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / f"runner.db.copy-before-1-to-{VERSION}.part").write_bytes(b"torn")
    Store(str(specimen(tmp_path / "runner.db", 1))).close()
    assert sorted(os.listdir(tmp_path)) == ["home", "runner.db", f"runner.db.copy-before-1-to-{VERSION}"]


@pytest.mark.parametrize("point", ["migrate.copied", "migrate.committing"])
def test_an_upgrade_that_is_cut_short_leaves_the_old_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    path = specimen(tmp_path / "runner.db", 1)

    def fail(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "armed", fail)
        with pytest.raises(KeyboardInterrupt):
            migrations.prepare(str(path))
    assert version_of(path) == 1
    migrations.prepare(str(path))
    assert version_of(path) == VERSION


def test_a_failing_step_is_told_and_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = specimen(tmp_path / "runner.db", 1)

    def step(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM jobs")
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setitem(migrations.STEPS, 1, step)
    with pytest.raises(DiskFull):
        migrations.prepare(str(path))
    assert version_of(path) == 1
    assert _dump(path) == _dump(specimen(tmp_path / "again.db", 1))


def test_a_newer_database_is_refused_and_left_untouched(tmp_path: Path) -> None:
    path = specimen(tmp_path / "runner.db", 1)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StateDamaged, match=f"newer gpubox \\(schema {VERSION + 1}, this one knows {VERSION}\\)"):
        Store(str(path))
    assert path.read_bytes() == before
    assert [name for name in os.listdir(tmp_path) if "copy" in name] == []


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"not a database at all" * 500, id="another file"),
        pytest.param(lambda data: data[:4096] + b"\xff" * 4096 + data[8192:], id="a page overwritten"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut in half"),
    ],
)
def test_a_damaged_database_is_refused_and_left_as_it_is(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "runner.db"
    Store(str(path)).close()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(StateDamaged, match=r"is damaged .*; it was left as it is and nothing was started") as refusal:
        Store(str(path))
    assert "put a backup in its place" in refusal.value.hint
    assert path.read_bytes() == before


def test_the_hint_of_a_damaged_database_names_the_last_copy(tmp_path: Path) -> None:
    path = tmp_path / "runner.db"
    path.write_bytes(b"damaged" * 1000)
    for name in ("runner.db.copy-before-1-to-2", "runner.db.copy-before-2-to-3"):
        (tmp_path / name).touch()
    with pytest.raises(StateDamaged) as refusal:
        Store(str(path))
    assert f"put {tmp_path}/runner.db.copy-before-2-to-3 in its place" in refusal.value.hint


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "runner.db"
    path.touch()
    Store(str(path)).close()
    assert version_of(path) == VERSION


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (sqlite3.OperationalError("database or disk is full"), DiskFull),
        (sqlite3.OperationalError("database is locked"), Busy),
        (sqlite3.DatabaseError("database disk image is malformed"), StateDamaged),
        (sqlite3.DatabaseError("file is not a database"), StateDamaged),
        (sqlite3.OperationalError("disk I/O error"), StateDamaged),
        (sqlite3.IntegrityError("UNIQUE constraint failed: jobs.id"), BadRequest),
        (sqlite3.OperationalError("no such table: jobs"), StateDamaged),
    ],
    ids=str,
)
def test_what_sqlite_says_becomes_an_error_of_ours(tmp_path: Path, error: sqlite3.Error, kind: type[Problem]) -> None:
    told = translate(error, f"{tmp_path}/runner.db")
    assert type(told) is kind
    assert told.message
    with pytest.raises(kind), sqlite.translated(f"{tmp_path}/runner.db"):
        raise error


def test_other_errors_pass_untouched(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sqlite.translated(f"{tmp_path}/runner.db"):
        raise ZeroDivisionError
