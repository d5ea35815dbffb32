"""The statements of the hot path, built once."""

from __future__ import annotations

from sqlmodel import bindparam, func, insert, or_, text, update

from runner import words
from runner.box.store.tables import ATTEMPTS, JOBS

UNFINISHED = or_(*(JOBS.c.state == state for state in words.UNFINISHED))  # not IN, which no executemany takes

START = (
    update(JOBS)
    .where(JOBS.c.id == bindparam("the_id"), JOBS.c.state == words.QUEUED, JOBS.c.attempt == bindparam("was"))
    .values(state=words.STARTING, attempt=bindparam("attempt_number"), started_at=None, not_before=None)
    .values(exit_code=None, signal=None, reason=None, detail="")
)
INSERT_ATTEMPT = insert(ATTEMPTS)
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
        exit_code=bindparam("code"),
        signal=bindparam("number_of_signal"),
        reason=bindparam("why"),
        detail=bindparam("what"),
        not_before=bindparam("not_before"),
        retries_used=JOBS.c.retries_used + bindparam("retry"),
        misfires=(JOBS.c.misfires + 1) * bindparam("misfire"),
    )
)
MOVE_ATTEMPT = (
    update(ATTEMPTS)
    .where(ATTEMPTS.c.job_id == bindparam("the_id"), ATTEMPTS.c.number == bindparam("attempt_number"))
    .values(
        state=bindparam("attempt_to"),
        started_at=func.coalesce(bindparam("started"), ATTEMPTS.c.started_at),
        ended_at=bindparam("attempt_ended"),
        exit_code=bindparam("code"),
        signal=bindparam("number_of_signal"),
        reason=bindparam("why"),
        detail=bindparam("what"),
    )
)
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
  'misfires', misfires, 'fetched_at', fetched_at, 'outputs_removed_at', outputs_removed_at, 'spec_id', spec_id) AS line
FROM jobs JOIN specs ON specs.id = jobs.spec_id WHERE jobs.id > :after {condition} ORDER BY jobs.id LIMIT 500
"""
