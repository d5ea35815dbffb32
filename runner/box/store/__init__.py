"""The database: what people asked for and what the daemon decided. The only door to sqlmodel.

One connection, one process, exclusive: the daemon alone opens it. Table classes never leave this package; it returns
model.py values. A write is one transaction, durable when the method returns (WAL, synchronous=FULL). Hot paths are
Core statements. Every move names the states it may come from; a row that is elsewhere is left alone.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlmodel import bindparam, delete, func, insert, select, text, update

from runner import words
from runner.box.store import statements
from runner.box.store.rows import (
    Group,
    KnownGpu,
    Move,
    Past,
    Request,
    Stuck,
    asked_by,
    attempt_of,
    dump_spec,
    fresh_job,
    group_name,
    job_of,
    load_spec,
    step,
)
from runner.box.store.tables import ATTEMPTS, JOBS, KEYS, META, SPECS
from runner.box.store.tokens import Tokens
from runner.box.store.usage import NO_FACTS, Usage
from runner.errors import KeyReused, NotFound
from runner.model import Attempt, Job, JobSpec, Submitted, Use

__all__ = [
    "Group", "KnownGpu", "Move", "Past", "Request", "Store", "Stuck", "dump_spec", "group_name", "load_spec",
]  # fmt: skip

BATCH = 500
FEW = 8  # moves that are quicker one by one
NOWHERE: Mapping[int, Sequence[str]] = {}
NONE_STUCK: Mapping[str, Stuck | None] = {}
NO_COUNTS: Mapping[str, str] = {}


class Store(Usage, Tokens):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.box_id = self._box_id()

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
            self._keep({key: value})

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
            jobs = []
            for places in _pieces(range(len(request.indices))):  # 10,000 rows at once would never be given back
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
                        "array_index": request.indices[place],
                        "params": json.dumps(dict(request.params[place])),
                        "submitted_at": now,
                        "held": request.held,
                        "environment": request.environment,
                        "snapshot": spec.snapshot,
                        "program": request.program,
                        "expected_seconds": request.expected_seconds,
                    }
                    for place in places
                ]
                self._connection.execute(insert(JOBS), rows)
                jobs += [fresh_job(row, spec) for row in rows]
            if request.key is not None:
                values = {"uid": request.uid, "key": request.key, "digest": request.digest, "first_id": first}
                made = {"count": len(jobs), "group_id": group, "created_at": now}
                self._connection.execute(insert(KEYS).values(**values, **made))
        return jobs

    # --- moves ---

    def apply(
        self,
        starts: Sequence[Job],
        moves: Sequence[Move],
        now: float,
        placements: Mapping[int, Sequence[str]] = NOWHERE,
        stuck: Mapping[str, Stuck | None] = NONE_STUCK,
        uses: Iterable[Use] = (),
        counts: Mapping[str, str] = NO_COUNTS,
        facts: Mapping[str, str] = NO_FACTS,
    ) -> set[int]:
        """One pass of the daemon: some jobs start (queued -> starting), others move. One transaction.

        placements: job id -> UUIDs of the GPUs that its start is given; a job that is not in it is given none.
        stuck: UUID of a GPU -> who left it so; None: it is free again.
        uses, counts: what attempts that are over, or begin, used of their GPUs; see `save_uses`.
        facts: remembered with them; see `remember`.
        Returns the ids that were where the caller thought; the others were left alone.
        """
        with self._write():
            self._stick(stuck)
            self._use(uses, counts)
            self._keep(facts)
            applied = self._move_all(moves, now)
            applied.update(job.id for job in starts if self._start(job, placements.get(job.id, ()), now))
        return applied

    def _start(self, job: Job, uuids: Sequence[str], now: float) -> bool:
        number, gpus = job.attempt + 1, json.dumps(list(uuids))
        where = {"the_id": job.id, "was": job.attempt, "attempt_number": number}
        if self._connection.execute(statements.START, where | {"gpus": gpus}).rowcount == 0:
            return False
        values = {"job_id": job.id, "number": number, "state": words.STARTING, "created_at": now, "detail": ""}
        self._connection.execute(statements.INSERT_ATTEMPT, values | {"allotted": gpus})
        return True

    def _move_all(self, moves: Sequence[Move], now: float) -> set[int]:
        """Few are moved one by one; many at once, and one by one only when some were elsewhere, to learn which."""
        if len(moves) > FEW:
            with self._connection.begin_nested() as point:
                if self._move_many([step(move, now) for move in moves]) == len(moves):
                    return {move.job_id for move in moves}
                point.rollback()
        return {move.job_id for move in moves if self._move_many([step(move, now)])}

    def _move_many(self, steps: list[dict[str, Any]]) -> int:
        """How many of the rows were where their steps begin."""
        moved: int = self._connection.execute(statements.MOVE, steps).rowcount
        attempts = [each for each in steps if each["attempt_to"] is not None]
        if moved and attempts:
            self._connection.execute(statements.MOVE_ATTEMPT, attempts)
        return moved

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

    def unfetched(self, ids: Iterable[int]) -> list[int]:
        """Those of these jobs that have finished, and whose outputs nobody has brought home."""
        wanted = JOBS.c.state.in_(words.FINISHED) & JOBS.c.fetched_at.is_(None)
        with self._read():
            return [
                row[0]
                for some in _pieces(_storable(sorted(set(ids))))
                for row in self._connection.execute(select(JOBS.c.id).where(wanted & JOBS.c.id.in_(some)))
            ]

    def groups(self, ids: Iterable[int]) -> list[Group]:
        """Groups as a whole: all jobs of one were submitted together, by one user under one name."""
        found: dict[int, Group] = {}
        with self._read():
            for some in _pieces(_storable(set(ids))):
                rows = self._connection.execute(statements.GROUPS, {"ids": some})
                for number, state, count, first, last, name, user, at in rows:
                    group = found.setdefault(number, Group(f"g{number}", name, user, at, first, last, {}))
                    group.first_id, group.last_id = min(group.first_id, first), max(group.last_id, last)
                    group.counts[state] = count
        return list(found.values())

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
            return [attempt_of(row._asdict()) for row in rows]

    def last(self, count: int, states: Sequence[str] = words.FINISHED) -> list[Job]:
        """The last few that finished in one of these states, by id."""
        with self._read():
            done = JOBS.c.state.in_(states)
            last = select(JOBS.c.id).where(done).order_by(JOBS.c.ended_at.desc(), JOBS.c.id.desc()).limit(count)
            ids = [row[0] for row in self._connection.execute(last)]
        return self._jobs(JOBS.c.id.in_(ids))

    def past(self, program: str, limit: int = 20) -> list[Past]:
        """The jobs of the same program that ended last, newest first; of the empty one there are none."""
        with self._read():
            rows = self._connection.execute(statements.PAST, {"program": program, "limit": limit})
            return [Past(*row) for row in rows]

    def previous(self, job_id: int) -> int | None:
        """The last job of the same program that ran before it, and was not submitted together with it."""
        with self._read():
            row = self._connection.execute(statements.PREVIOUS, {"id": job_id}).first()
            return None if row is None else int(row[0])

    def every(self, states: Sequence[str] = ()) -> Iterator[bytes]:
        """Every job as JSON lines, some hundred at a time, made by SQLite itself: 10,000 of them in 60 ms."""
        after = 0
        query = text(statements.AS_JSON.format(condition="AND jobs.state IN :states" if states else ""))
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
                    asked[row.spec_id] = json.dumps(asked_by(load_spec(row.body)), default=asdict)[1:]
            yield "".join(f"{row.line[:-1]}, {asked[row.spec_id]}\n" for row in rows).encode()

    def live_snapshots(self) -> set[str]:
        """The snapshots that some job still names."""
        with self._read():
            rows = self._connection.execute(select(JOBS.c.snapshot).where(JOBS.c.snapshot.is_not(None)).distinct())
            return {row[0] for row in rows}

    def last_of_environments(self) -> dict[str, tuple[int, str]]:
        """Environment -> (id, user) of the last job that was submitted with it."""
        with self._read():
            rows = self._connection.execute(statements.LAST_OF_ENVIRONMENTS)
            return {row[0]: (row[1], row[2]) for row in rows}

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
            jobs.append(job_of(row._asdict(), specs[row.spec_id]))
        return jobs


def _storable(ids: Iterable[int]) -> list[int]:
    """In order, without the numbers that SQLite can't hold, which no job can have."""
    return sorted(number for number in ids if 0 < number < 1 << 63)


def _pieces(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """SQLite takes a limited number of variables in one statement."""
    for at in range(0, len(ids), BATCH):
        yield ids[at : at + BATCH]
