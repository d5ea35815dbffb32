"""The statements of the hot path, built once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter
from sqlalchemy.dialects.sqlite import insert as insert_or
from sqlmodel import bindparam, func, insert, or_, text, update

from runner import words
from runner.box.store.tables import ATTEMPTS, GPUS, JOBS, USES

UNFINISHED = or_(*(JOBS.c.state == state for state in words.UNFINISHED))  # not IN, which no executemany takes

START = (
    update(JOBS)
    .where(JOBS.c.id == bindparam("the_id"), JOBS.c.state == words.QUEUED, JOBS.c.attempt == bindparam("was"))
    .values(state=words.STARTING, attempt=bindparam("attempt_number"), started_at=None, not_before=None)
    .values(exit_code=None, signal=None, reason=None, detail="", allotted=bindparam("gpus"))
)
INSERT_ATTEMPT = insert(ATTEMPTS)
HOW_IT_ENDED: dict[str, BindParameter[Any]] = {
    "exit_code": bindparam("code"),
    "signal": bindparam("number_of_signal"),
    "reason": bindparam("why"),
    "detail": bindparam("what"),
}
MOVE = (
    update(JOBS)
    .where(
        JOBS.c.id == bindparam("the_id"),
        JOBS.c.attempt == bindparam("attempt_number"),
        UNFINISHED,
    )
    .values(
        state=bindparam("to"),
        started_at=func.coalesce(bindparam("started"), JOBS.c.started_at),
        ended_at=bindparam("ended"),
        **HOW_IT_ENDED,
        not_before=bindparam("not_before"),
        retries_used=JOBS.c.retries_used + bindparam("retry"),
        misfires=(JOBS.c.misfires + 1) * bindparam("misfire"),
        allotted=func.coalesce(bindparam("gpus"), JOBS.c.allotted),
        gpu_peak_bytes=func.coalesce(bindparam("peak"), JOBS.c.gpu_peak_bytes),
        gpu_floor_bytes=func.coalesce(bindparam("floor"), JOBS.c.gpu_floor_bytes),
    )
)
MOVE_ATTEMPT = (
    update(ATTEMPTS)
    .where(ATTEMPTS.c.job_id == bindparam("the_id"), ATTEMPTS.c.number == bindparam("attempt_number"))
    .values(
        state=bindparam("attempt_to"),
        started_at=func.coalesce(bindparam("started"), ATTEMPTS.c.started_at),
        ended_at=bindparam("attempt_ended"),
        **HOW_IT_ENDED,
        gpu_peak_bytes=func.coalesce(bindparam("peak"), ATTEMPTS.c.gpu_peak_bytes),
    )
)
SEE_GPU = insert_or(GPUS)
SEE_GPU = SEE_GPU.on_conflict_do_update(
    index_elements=[GPUS.c.uuid],
    set_={
        "name": SEE_GPU.excluded.name,
        "bus_id": SEE_GPU.excluded.bus_id,
        "memory_bytes": func.coalesce(SEE_GPU.excluded.memory_bytes, GPUS.c.memory_bytes),  # unknown is not none
        "unified": SEE_GPU.excluded.unified,
        "last_seen_at": SEE_GPU.excluded.last_seen_at,
    },
)
SAVE_USE = insert_or(USES)
SAVE_USE = SAVE_USE.on_conflict_do_update(
    index_elements=[USES.c.job_id, USES.c.attempt, USES.c.gpu],
    set_={column.name: SAVE_USE.excluded[column.name] for column in USES.c if not column.primary_key},
)
STICK_GPU = update(GPUS).where(GPUS.c.uuid == bindparam("the_uuid")).values(stuck=bindparam("who"))
PAST = text("""
SELECT jobs.id, jobs.state, jobs.reason, attempts.ended_at - attempts.started_at, jobs.gpu_peak_bytes,
  coalesce(json_extract(body, '$.gpu_memory_bytes'), 0), json_array_length(coalesce(attempts.allotted, '[]')),
  jobs.ended_at
FROM jobs JOIN specs ON specs.id = jobs.spec_id LEFT JOIN attempts ON job_id = jobs.id AND number = jobs.attempt
WHERE program = :program AND program <> '' AND jobs.ended_at IS NOT NULL
ORDER BY jobs.ended_at DESC, jobs.id DESC LIMIT :limit
""")
PREVIOUS = text("""
SELECT before.id FROM jobs JOIN jobs AS before ON before.program = jobs.program
WHERE jobs.id = :id AND before.program <> '' AND before.ended_at IS NOT NULL AND before.attempt > 0
  AND before.id < jobs.id AND (jobs.group_id IS NULL OR before.group_id IS NOT jobs.group_id)
ORDER BY before.id DESC LIMIT 1
""")
LAST_OF_ENVIRONMENTS = text("""
SELECT environment, max(id), user FROM jobs WHERE environment IS NOT NULL GROUP BY environment
""")  # with max() SQLite takes the other columns from that row
GROUPS = text("""
SELECT group_id, state, count(*), min(id), max(id), min(name), min(user), min(submitted_at)
FROM jobs WHERE group_id IN :ids GROUP BY group_id, state
""").bindparams(bindparam("ids", expanding=True))
AS_JSON = """
SELECT jobs.id, jobs.spec_id, body, json_object(
  'id', jobs.id, 'state', state, 'name', name, 'user', user, 'uid', uid, 'submitted_at', submitted_at,
  'priority', priority, 'group', CASE WHEN group_id IS NULL THEN NULL ELSE 'g' || group_id END,
  'array_index', array_index, 'params', json(params), 'held', json(CASE WHEN held THEN 'true' ELSE 'false' END),
  'cancel_requested_at', cancel_requested_at, 'not_before', not_before, 'attempt', attempt,
  'started_at', started_at, 'ended_at', ended_at, 'exit_code', exit_code, 'signal', signal, 'reason', reason,
  'detail', detail, 'why', '', 'environment', environment, 'snapshot', snapshot, 'retries_used', retries_used,
  'misfires', misfires, 'fetched_at', fetched_at, 'outputs_removed_at', outputs_removed_at, 'spec_id', spec_id,
  'allotted', json(allotted), 'gpu_floor_bytes', gpu_floor_bytes, 'gpu_peak_bytes', gpu_peak_bytes,
  'expected_seconds', expected_seconds) AS line
FROM jobs JOIN specs ON specs.id = jobs.spec_id WHERE jobs.id > :after {condition} ORDER BY jobs.id LIMIT 500
"""
