"""Rows and values: what the store is given, what it answers, and how both lie in the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runner import words
from runner.model import After, Attempt, Exit, Job, JobSpec


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
    program: str = ""  # names what it runs; empty: nothing that past runs could tell of
    expected_seconds: float | None = None  # from past runs


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
    gpu_peak_bytes: int | None = None  # of the attempt; None: what was recorded stays
    gpu_floor_bytes: int | None = None  # of the job; None: what was recorded stays


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


@dataclass(slots=True, frozen=True)
class Past:
    """An ended job, as far as the next run of the same program is likely to resemble it."""

    job: int
    state: str
    reason: str | None
    seconds: float | None  # of its last attempt; None: it never ran
    gpu_peak_bytes: int | None  # on one GPU; None: never seen on any
    gpu_memory_bytes: int  # what it declared; 0: nothing
    gpus: int  # that its last attempt was given
    ended_at: float


@dataclass(slots=True, frozen=True)
class Stuck:
    """Who left a GPU so that nothing more may start on it."""

    job: int
    attempt: int
    processes: tuple[tuple[int, int], ...]  # (pid, start in clock ticks) that would not die; (): memory not freed
    since: float


@dataclass(slots=True)
class KnownGpu:
    """A GPU that this box has seen, there now or not."""

    uuid: str
    name: str
    bus_id: str
    memory_bytes: int | None
    unified: bool
    drained: bool
    first_seen_at: float
    last_seen_at: float
    stuck: Stuck | None = None


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
        "gpus": "[]" if move.to == words.QUEUED else None,
        "peak": move.gpu_peak_bytes,
        "floor": move.gpu_floor_bytes,
    }


FRESH: Mapping[str, Any] = {  # what a row that was just submitted has beyond what it was submitted with
    **dict.fromkeys(("cancel_requested_at", "not_before", "fetched_at", "outputs_removed_at")),
    **dict.fromkeys(("started_at", "ended_at", "exit_code", "signal", "reason", "gpu_floor_bytes", "gpu_peak_bytes")),
    **dict.fromkeys(("attempt", "retries_used", "misfires"), 0),
    "detail": "",
    "allotted": "[]",
}


def fresh_job(row: Mapping[str, Any], spec: JobSpec) -> Job:
    return job_of({**FRESH, **row}, spec)


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
        allotted=json.loads(row["allotted"]) if row["allotted"] != "[]" else [],  # most wait: spare them the parser
        gpu_floor_bytes=row["gpu_floor_bytes"],
        gpu_peak_bytes=row["gpu_peak_bytes"],
        expected_seconds=row["expected_seconds"],
        **asked_by(spec),
    )


def asked_by(spec: JobSpec) -> dict[str, Any]:
    """What a job's row leaves to its spec."""
    return {
        "command": spec.command,
        "cpus": spec.cpus,
        "memory_bytes": spec.memory_bytes,
        "gpus": spec.gpus,
        "gpu_type": spec.gpu_type,
        "gpu_memory_bytes": spec.gpu_memory_bytes,
        "exclusive": spec.exclusive,
        "adopts": spec.adopts,
        "gpu_uuids": spec.gpu_uuids,
        "time_limit": spec.time_limit,
        "stop_if_idle": spec.stop_if_idle,
        "grace": spec.grace,
        "project": spec.project,
        "after": spec.after,
        "requeue": spec.requeue,
        "retries": spec.retries,
        "script": spec.script,
        "directory": spec.directory,
    }


def attempt_of(row: Mapping[str, Any]) -> Attempt:
    values = {key: value for key, value in row.items() if key != "job_id"}
    return Attempt(**values | {"allotted": json.loads(row["allotted"])})


def dump_stuck(stuck: Stuck | None) -> str | None:
    return None if stuck is None else json.dumps(asdict(stuck))


def gpu_of(row: Mapping[str, Any]) -> KnownGpu:
    return KnownGpu(**{**row, "stuck": None if row["stuck"] is None else _load_stuck(row["stuck"])})


def _load_stuck(body: str) -> Stuck:
    values = json.loads(body)
    processes = tuple((pid, started) for pid, started in values.pop("processes"))
    return Stuck(**values, processes=processes)
