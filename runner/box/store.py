"""The database: what people asked for and what the daemon decided. The only door to sqlmodel.

One connection, one process, exclusive: the daemon alone opens it. Table classes never leave this module; it returns
model.py values. A write is one transaction, durable when the method returns (WAL, synchronous=FULL). Hot paths are
Core statements. Every move names the states it may come from; a row that is elsewhere is left alone.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import event
from sqlmodel import Field, SQLModel, bindparam, create_engine, delete, func, insert, select, text, update

from runner import words
from runner.box import migrations
from runner.box.sqlite import translated
from runner.errors import KeyReused, NotFound
from runner.files import failpoint
from runner.model import After, Attempt, Exit, Job, JobSpec, Submitted

BATCH = 500


class Meta(SQLModel, table=True):
    __tablename__ = "meta"
    key: str = Field(primary_key=True)
    value: str


class SpecRow(SQLModel, table=True):
    """What was asked, once for all jobs of an array."""

    __tablename__ = "specs"
    id: int | None = Field(default=None, primary_key=True)
    body: str  # JSON of a JobSpec


class JobRow(SQLModel, table=True):
    """The columns that are asked for by themselves; the rest of what was asked is in the spec."""

    __tablename__ = "jobs"
    __table_args__ = {"sqlite_autoincrement": True}  # an id is never used again
    id: int | None = Field(default=None, primary_key=True)
    spec_id: int = Field(foreign_key="specs.id")
    state: str
    name: str
    user: str
    uid: int
    priority: int
    group_id: int | None = Field(default=None, index=True)
    array_index: int | None = None
    params: str = "{}"
    submitted_at: float
    held: bool = False
    cancel_requested_at: float | None = None
    not_before: float | None = None
    attempt: int = 0
    retries_used: int = 0
    misfires: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    detail: str = ""
    environment: str | None = None
    snapshot: str | None = Field(default=None, index=True)
    fetched_at: float | None = None
    outputs_removed_at: float | None = None


class AttemptRow(SQLModel, table=True):
    __tablename__ = "attempts"
    job_id: int = Field(primary_key=True, foreign_key="jobs.id")
    number: int = Field(primary_key=True)
    state: str
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    detail: str = ""


class KeyRow(SQLModel, table=True):
    """An idempotency key and what it made, so that a repeated request is answered, not repeated."""

    __tablename__ = "keys"
    uid: int = Field(primary_key=True)
    key: str = Field(primary_key=True)
    digest: str
    first_id: int
    count: int
    group_id: int | None = None
    created_at: float


JOBS = JobRow.__table__  # type: ignore[attr-defined]
ATTEMPTS = AttemptRow.__table__  # type: ignore[attr-defined]
SPECS = SpecRow.__table__  # type: ignore[attr-defined]
KEYS = KeyRow.__table__  # type: ignore[attr-defined]
META = Meta.__table__  # type: ignore[attr-defined]


@dataclass(slots=True, frozen=True)
class Request:
    """A submission as it goes into the database."""

    spec: JobSpec
    user: str
    uid: int
    indices: Sequence[int | None]  # one job each; [None] for a single job
    params: Sequence[Mapping[str, str]]  # parallel to indices
    held: bool
    environment: str | None
    key: str | None = None
    digest: str = ""


@dataclass(slots=True, frozen=True)
class Move:
    """A job's step from one state to another, with what it records. Applied only where the row is still there."""

    job_id: int
    attempt: int
    to: str
    attempt_state: str | None = None  # what becomes of the attempt; None: it is left as it is
    exit: Exit | None = None
    started_at: float | None = None
    not_before: float | None = None
    retry: bool = False  # counts against the job's retries
    misfire: bool = False


class Store:
    def __init__(self, path: str) -> None:
        self.path = path
        migrations.prepare(path)
        options = {"timeout": migrations.LOCK_SECONDS, "check_same_thread": False}
        self._engine = create_engine(f"sqlite:///{path}", connect_args=options)
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        with translated(path):
            self._connection = self._engine.connect()
            with self._write():
                SQLModel.metadata.create_all(self._connection)
                self._connection.exec_driver_sql(_INDEXES)
                if self._connection.exec_driver_sql("PRAGMA user_version").scalar() != migrations.VERSION:
                    self._connection.exec_driver_sql(f"PRAGMA user_version = {migrations.VERSION}")
            self.box_id = self._box_id()

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[None]:
        with translated(self.path), self._connection.begin():
            yield
            failpoint("db.commit")
        failpoint("db.committed")

    @contextmanager
    def _read(self) -> Iterator[None]:
        with translated(self.path):
            try:
                yield
            finally:
                self._connection.rollback()

    def _box_id(self) -> str:
        """A name of this state that no other box has; launch ids are made from it."""
        with self._write():
            row = self._connection.execute(select(META.c.value).where(META.c.key == "box_id")).first()
            if row is not None:
                return str(row[0])
            made = uuid.uuid4().hex[:16]
            self._connection.execute(insert(META).values(key="box_id", value=made))
            return made

    def remembered(self, key: str) -> str | None:
        """A fact about the box itself that outlives the daemon (`draining`)."""
        with self._read():
            row = self._connection.execute(select(META.c.value).where(META.c.key == key)).first()
        return None if row is None else str(row[0])

    def remember(self, key: str, value: str) -> None:
        with self._write():
            self._connection.execute(delete(META).where(META.c.key == key))
            self._connection.execute(insert(META).values(key=key, value=value))

    # --- submit ---

    def known_key(self, uid: int, key: str, digest: str) -> Submitted | None:
        """The answer that this idempotency key was given before. KeyReused when it stood for another request."""
        with self._read():
            row = self._connection.execute(select(KEYS).where(KEYS.c.uid == uid, KEYS.c.key == key)).first()
        if row is None:
            return None
        if row.digest != digest:
            raise KeyReused(
                f"this Idempotency-Key already made job {row.first_id}, from another request",
                "use a new key for a new request",
            )
        made = row._mapping
        return Submitted(made["first_id"], made["count"], group_name(made["group_id"]), words.QUEUED)

    def submit(self, request: Request, now: float, above: int = 0) -> list[Job]:
        """All jobs of a request, in one transaction with its idempotency key.

        above: ids start higher than this (the highest directory found on disk), so none is ever used twice.
        """
        spec = request.spec
        with self._write():
            spec_id = self._connection.execute(insert(SPECS).values(body=dump_spec(spec))).lastrowid
            highest = self._connection.execute(text("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'")).scalar()
            first = max(int(highest or 0), above) + 1
            group = first if len(request.indices) > 1 or request.indices[0] is not None else None
            rows = [
                {
                    "id": first + place,
                    "spec_id": spec_id,
                    "state": words.QUEUED,
                    "name": spec.name,
                    "user": request.user,
                    "uid": request.uid,
                    "priority": spec.priority,
                    "group_id": group,
                    "array_index": index,
                    "params": json.dumps(dict(params)),
                    "submitted_at": now,
                    "held": request.held,
                    "environment": request.environment,
                    "snapshot": spec.snapshot,
                }
                for place, (index, params) in enumerate(zip(request.indices, request.params, strict=True))
            ]
            self._connection.execute(insert(JOBS), rows)
            if request.key is not None:
                values = {"uid": request.uid, "key": request.key, "digest": request.digest, "first_id": first}
                made = {"count": len(rows), "group_id": group, "created_at": now}
                self._connection.execute(insert(KEYS).values(**values, **made))
        return [_fresh(row, spec) for row in rows]

    # --- moves ---

    def apply(self, starts: Sequence[Job], moves: Sequence[Move], now: float) -> set[int]:
        """One pass of the daemon: some jobs start (queued -> starting), others move. One transaction.

        Returns the ids that were where the caller thought; the others were left alone.
        """
        applied: set[int] = set()
        with self._write():
            for move in moves:
                if self._move(move, now):
                    applied.add(move.job_id)
            for job in starts:
                if self._start(job, now):
                    applied.add(job.id)
        return applied

    def _start(self, job: Job, now: float) -> bool:
        statement = _START, {"the_id": job.id, "was": job.attempt, "attempt_number": job.attempt + 1}
        if self._connection.execute(*statement).rowcount == 0:
            return False
        values = {"job_id": job.id, "number": job.attempt + 1, "state": words.STARTING, "created_at": now, "detail": ""}
        self._connection.execute(_INSERT_ATTEMPT, values)
        return True

    def _move(self, move: Move, now: float) -> bool:
        end = move.exit
        finished = move.to in words.FINISHED
        values: dict[str, Any] = {"the_id": move.job_id, "attempt_number": move.attempt, "to": move.to}
        started = end.started_at if end is not None and end.started_at is not None else move.started_at
        values |= {"started": started, "not_before": move.not_before}
        values |= {"retry": int(move.retry), "misfire": int(move.misfire)}
        values |= {"ended": (end.ended_at if end is not None else now) if finished else None}
        values |= {
            "code": end.exit_code if end is not None else None,
            "number_of_signal": end.signal if end is not None else None,
            "why": end.reason if end is not None else None,
            "what": end.detail if end is not None else "",
        }
        if self._connection.execute(_MOVE, values).rowcount == 0:
            return False
        state = move.to if move.to == words.RUNNING else move.attempt_state
        if state is not None:
            ended = None if state in words.UNFINISHED else (end.ended_at if end is not None else now)
            self._connection.execute(_MOVE_ATTEMPT, values | {"to": state, "ended": ended})
        return True

    # --- wishes ---

    def wish(self, ids: Sequence[int], **values: object) -> None:
        """Set a wish (held, cancel_requested_at, priority) on unfinished jobs."""
        with self._write():
            for some in _pieces(ids):
                where = JOBS.c.id.in_(some) & JOBS.c.state.in_(words.UNFINISHED)
                self._connection.execute(update(JOBS).where(where).values(**values))

    def mark(self, job_id: int, **values: object) -> None:
        """Set a fact about a finished job's outputs (fetched_at, outputs_removed_at)."""
        with self._write():
            self._connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(**values))

    # --- reading ---

    def spec(self, spec_id: int) -> JobSpec:
        with self._read():
            body = self._connection.execute(select(SPECS.c.body).where(SPECS.c.id == spec_id)).scalar_one()
        return load_spec(body)

    def unfinished(self) -> list[Job]:
        return self._jobs(JOBS.c.state.in_(words.UNFINISHED))

    def jobs(self, ids: Iterable[int]) -> list[Job]:
        """The jobs with these ids, in order; NotFound names the first that is not there."""
        wanted = sorted(set(ids))
        found = [job for some in _pieces(_storable(wanted)) for job in self._jobs(JOBS.c.id.in_(some))]
        if len(found) < len(wanted):
            known = {job.id for job in found}
            missing = next(job_id for job_id in wanted if job_id not in known)
            raise NotFound(f"there is no job {missing}", "`runner ps --all` lists every job")
        return found

    def group(self, group_id: int) -> list[int]:
        of = _storable([group_id])
        with self._read():
            rows = self._connection.execute(select(JOBS.c.id).where(JOBS.c.group_id.in_(of)).order_by(JOBS.c.id))
            ids = [row[0] for row in rows]
        if not ids:
            raise NotFound(f"there is no group g{group_id}", "`runner ps` shows the groups")
        return ids

    def states(self, ids: Iterable[int]) -> dict[int, str]:
        """The states of some jobs; an id that does not exist is left out."""
        found: dict[int, str] = {}
        with self._read():
            for some in _pieces(_storable(set(ids))):
                rows = self._connection.execute(select(JOBS.c.id, JOBS.c.state).where(JOBS.c.id.in_(some)))
                found.update((row[0], row[1]) for row in rows)
        return found

    def counts(self) -> dict[str, int]:
        with self._read():
            rows = self._connection.execute(select(JOBS.c.state, func.count()).group_by(JOBS.c.state))
            return {row[0]: row[1] for row in rows}

    def attempts(self, job_id: int) -> list[Attempt]:
        with self._read():
            rows = self._connection.execute(
                select(ATTEMPTS).where(ATTEMPTS.c.job_id == job_id).order_by(ATTEMPTS.c.number)
            )
            return [Attempt(**{key: value for key, value in row._mapping.items() if key != "job_id"}) for row in rows]

    def recent(self, finished: int, states: Sequence[str] = words.FINISHED) -> list[Job]:
        """The unfinished jobs and the last few that finished in one of these states, by id."""
        with self._read():
            done = JOBS.c.state.in_(states)
            last = select(JOBS.c.id).where(done).order_by(JOBS.c.ended_at.desc(), JOBS.c.id.desc()).limit(finished)
            ids = [row[0] for row in self._connection.execute(last)]
        return sorted(self.unfinished() + self._jobs(JOBS.c.id.in_(ids)), key=lambda job: job.id)

    def every(self, states: Sequence[str] = ()) -> Iterator[bytes]:
        """Every job as JSON lines, some hundred at a time, made by SQLite itself: 10,000 of them in 60 ms."""
        after = 0
        query = text(_AS_JSON.format(condition="AND jobs.state IN :states" if states else ""))
        values: dict[str, Any] = {}
        if states:
            query, values = query.bindparams(bindparam("states", expanding=True)), {"states": list(states)}
        asked: dict[int, str] = {}  # spec id -> its part of a line
        while True:
            with self._read():
                rows = self._connection.execute(query, {**values, "after": after}).all()
            if not rows:
                return
            after = rows[-1].id
            for row in rows:
                if row.spec_id not in asked:
                    asked[row.spec_id] = json.dumps(_asked(load_spec(row.body)), default=asdict)[1:]
            yield "".join(f"{row.line[:-1]}, {asked[row.spec_id]}\n" for row in rows).encode()

    def live_snapshots(self) -> set[str]:
        """The snapshots that some job still names."""
        with self._read():
            rows = self._connection.execute(select(JOBS.c.snapshot).where(JOBS.c.snapshot.is_not(None)).distinct())
            return {row[0] for row in rows}

    def endings(self, before: float) -> list[tuple[int, float, float | None, float | None]]:
        """(id, ended_at, fetched_at, outputs_removed_at) of the jobs that ended before a time, oldest first."""
        with self._read():
            columns = (JOBS.c.id, JOBS.c.ended_at, JOBS.c.fetched_at, JOBS.c.outputs_removed_at)
            ended = JOBS.c.state.in_(words.FINISHED) & (JOBS.c.ended_at < before)
            rows = self._connection.execute(select(*columns).where(ended).order_by(JOBS.c.ended_at))
            return [(row[0], row[1], row[2], row[3]) for row in rows]

    def forget_keys(self, before: float) -> None:
        with self._write():
            self._connection.execute(delete(KEYS).where(KEYS.c.created_at < before))

    def _jobs(self, condition: Any) -> list[Job]:
        with self._read():
            query = select(JOBS, SPECS.c.body).join(SPECS, SPECS.c.id == JOBS.c.spec_id)
            rows = self._connection.execute(query.where(condition).order_by(JOBS.c.id)).all()
        specs: dict[int, JobSpec] = {}
        jobs = []
        for row in rows:
            if row.spec_id not in specs:
                specs[row.spec_id] = load_spec(row.body)
            jobs.append(_job(row._asdict(), specs[row.spec_id]))
        return jobs


# --- statements of the hot path, built once ---

_START = (
    update(JOBS)
    .where(JOBS.c.id == bindparam("the_id"), JOBS.c.state == words.QUEUED, JOBS.c.attempt == bindparam("was"))
    .values(state=words.STARTING, attempt=bindparam("attempt_number"), started_at=None, not_before=None)
    .values(exit_code=None, signal=None, reason=None, detail="")
)
_INSERT_ATTEMPT = insert(ATTEMPTS)
_MOVE = (
    update(JOBS)
    .where(
        JOBS.c.id == bindparam("the_id"),
        JOBS.c.attempt == bindparam("attempt_number"),
        JOBS.c.state.in_(words.UNFINISHED),
    )
    .values(
        state=bindparam("to"),
        started_at=func.coalesce(bindparam("started"), JOBS.c.started_at),
        ended_at=bindparam("ended"),
        exit_code=bindparam("code"),
        signal=bindparam("number_of_signal"),
        reason=bindparam("why"),
        detail=bindparam("what"),
        not_before=bindparam("not_before"),
        retries_used=JOBS.c.retries_used + bindparam("retry"),
        misfires=(JOBS.c.misfires + 1) * bindparam("misfire"),
    )
)
_MOVE_ATTEMPT = (
    update(ATTEMPTS)
    .where(ATTEMPTS.c.job_id == bindparam("the_id"), ATTEMPTS.c.number == bindparam("attempt_number"))
    .values(
        state=bindparam("to"),
        started_at=func.coalesce(bindparam("started"), ATTEMPTS.c.started_at),
        ended_at=bindparam("ended"),
        exit_code=bindparam("code"),
        signal=bindparam("number_of_signal"),
        reason=bindparam("why"),
        detail=bindparam("what"),
    )
)
_INDEXES = "CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (state, ended_at, id)"

_AS_JSON = """
SELECT jobs.id, jobs.spec_id, body, json_object(
  'id', jobs.id, 'state', state, 'name', name, 'user', user, 'uid', uid, 'submitted_at', submitted_at,
  'priority', priority, 'group', CASE WHEN group_id IS NULL THEN NULL ELSE 'g' || group_id END,
  'array_index', array_index, 'params', json(params), 'held', json(CASE WHEN held THEN 'true' ELSE 'false' END),
  'cancel_requested_at', cancel_requested_at, 'not_before', not_before, 'attempt', attempt,
  'started_at', started_at, 'ended_at', ended_at, 'exit_code', exit_code, 'signal', signal, 'reason', reason,
  'detail', detail, 'why', '', 'environment', environment, 'snapshot', snapshot, 'retries_used', retries_used,
  'misfires', misfires, 'fetched_at', fetched_at, 'outputs_removed_at', outputs_removed_at, 'spec_id', spec_id) AS line
FROM jobs JOIN specs ON specs.id = jobs.spec_id WHERE jobs.id > :after {condition} ORDER BY jobs.id LIMIT 500
"""


# --- rows and values ---


def group_name(group_id: int | None) -> str | None:
    return None if group_id is None else f"g{group_id}"


def dump_spec(spec: JobSpec) -> str:
    return json.dumps(asdict(spec))


def load_spec(body: str) -> JobSpec:
    """A spec as it was stored; fields that this version does not know are left out, new ones take their defaults."""
    values = {key: value for key, value in json.loads(body).items() if key in JobSpec.__dataclass_fields__}
    values["after"] = [After(**after) for after in values.get("after", [])]
    return JobSpec(**values)


def _fresh(row: Mapping[str, Any], spec: JobSpec) -> Job:
    defaults = {"cancel_requested_at": None, "not_before": None, "attempt": 0, "retries_used": 0, "misfires": 0}
    ends = {"started_at": None, "ended_at": None, "exit_code": None, "signal": None, "reason": None, "detail": ""}
    return _job({**defaults, **ends, "fetched_at": None, "outputs_removed_at": None, **row}, spec)


def _job(row: Mapping[str, Any], spec: JobSpec) -> Job:
    params = json.loads(row["params"])
    return Job(
        id=row["id"],
        state=row["state"],
        name=row["name"],
        user=row["user"],
        uid=row["uid"],
        submitted_at=row["submitted_at"],
        priority=row["priority"],
        group=group_name(row["group_id"]),
        array_index=row["array_index"],
        params=params,
        held=row["held"],
        cancel_requested_at=row["cancel_requested_at"],
        not_before=row["not_before"],
        attempt=row["attempt"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        exit_code=row["exit_code"],
        signal=row["signal"],
        reason=row["reason"],
        detail=row["detail"],
        environment=row["environment"],
        snapshot=row["snapshot"],
        retries_used=row["retries_used"],
        misfires=row["misfires"],
        fetched_at=row["fetched_at"],
        outputs_removed_at=row["outputs_removed_at"],
        spec_id=row["spec_id"],
        **_asked(spec),
    )


def _asked(spec: JobSpec) -> dict[str, Any]:
    """What a job's row leaves to its spec."""
    return {
        "command": spec.command,
        "cpus": spec.cpus,
        "memory_bytes": spec.memory_bytes,
        "gpus": spec.gpus,
        "time_limit": spec.time_limit,
        "project": spec.project,
        "after": spec.after,
        "requeue": spec.requeue,
        "retries": spec.retries,
        "script": spec.script,
        "directory": spec.directory,
    }


def _storable(ids: Iterable[int]) -> list[int]:
    """In order, without the numbers that SQLite can't hold, which no job can have."""
    return sorted(number for number in ids if 0 < number < 1 << 63)


def _pieces(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """SQLite takes a limited number of variables in one statement."""
    for at in range(0, len(ids), BATCH):
        yield ids[at : at + BATCH]


# --- the connection ---


def _configure(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # we say BEGIN IMMEDIATE ourselves: a later upgrade of a read could not wait
    # Exclusive also steps around the WAL-reset fault of SQLite before 3.51.3, which needs two connections.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_size_limit = 67108864")
