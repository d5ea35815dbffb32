"""Rows and values: what the store is given, what it answers, and how both lie in the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runner import words
from runner.model import After, Exit, Job, JobSpec


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


@dataclass(slots=True)
class Group:
    """The jobs of an array or a sweep, as one."""

    group: str  # g<first id>
    name: str
    user: str
    submitted_at: float
    first_id: int
    last_id: int
    counts: dict[str, int]  # state -> how many
    why: str = ""  # what the first of those that wait waits for


def group_name(group_id: int | None) -> str | None:
    return None if group_id is None else f"g{group_id}"


def dump_spec(spec: JobSpec) -> str:
    return json.dumps(asdict(spec))


def load_spec(body: str) -> JobSpec:
    """A spec as it was stored; fields that this version does not know are left out, new ones take their defaults."""
    values = {key: value for key, value in json.loads(body).items() if key in JobSpec.__dataclass_fields__}
    values["after"] = [After(**after) for after in values.get("after", [])]
    return JobSpec(**values)


def step(move: Move, now: float) -> dict[str, Any]:
    """A move as the values of its statements. What becomes of the attempt is `attempt_to`; None: nothing."""
    end = move.exit
    ended = end.ended_at if end is not None else now
    attempt_to = move.to if move.to == words.RUNNING else move.attempt_state
    return {
        "the_id": move.job_id,
        "attempt_number": move.attempt,
        "to": move.to,
        "attempt_to": attempt_to,
        "started": end.started_at if end is not None and end.started_at is not None else move.started_at,
        "ended": ended if move.to in words.FINISHED else None,
        "attempt_ended": None if attempt_to in words.UNFINISHED else ended,
        "code": end.exit_code if end is not None else None,
        "number_of_signal": end.signal if end is not None else None,
        "why": end.reason if end is not None else None,
        "what": end.detail if end is not None else "",
        "not_before": move.not_before,
        "retry": int(move.retry),
        "misfire": int(move.misfire),
    }


def fresh_job(row: Mapping[str, Any], spec: JobSpec) -> Job:
    defaults = {"cancel_requested_at": None, "not_before": None, "attempt": 0, "retries_used": 0, "misfires": 0}
    ends = {"started_at": None, "ended_at": None, "exit_code": None, "signal": None, "reason": None, "detail": ""}
    return job_of({**defaults, **ends, "fetched_at": None, "outputs_removed_at": None, **row}, spec)


def job_of(row: Mapping[str, Any], spec: JobSpec) -> Job:
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
        **asked_by(spec),
    )


def asked_by(spec: JobSpec) -> dict[str, Any]:
    """What a job's row leaves to its spec."""
    return {
        "command": spec.command,
        "cpus": spec.cpus,
        "memory_bytes": spec.memory_bytes,
        "gpus": spec.gpus,
        "time_limit": spec.time_limit,
        "grace": spec.grace,
        "project": spec.project,
        "after": spec.after,
        "requeue": spec.requeue,
        "retries": spec.retries,
        "script": spec.script,
        "directory": spec.directory,
    }
