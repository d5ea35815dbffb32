"""PURE: what the disk says about an attempt, carried into what the queue should say about its job."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from runner import words
from runner.box.schedule import PAUSE_MAX
from runner.model import Evidence, Exit, Job, JobSpec

START_GRACE = 10.0  # a supervisor that was asked for and has not taken its lock by then is fenced off
MISFIRES_MAX = 3  # attempts in a row that never ran, before the job fails instead of starting again

STATE_OF_REASON = {
    None: words.SUCCEEDED,
    "cancelled": words.CANCELLED,
    "time_limit": words.TIMED_OUT,
    "host_out_of_memory": words.OUT_OF_MEMORY,
    "reboot": words.LOST,
    "supervisor_died": words.LOST,
    "record_missing": words.LOST,
}


class Action(Enum):
    KEEP = "keep"  # nothing new
    RUN = "run"  # starting -> running
    FENCE = "fence"  # make sure that this attempt never runs, or no longer does; look again
    REQUEUE = "requeue"  # it never ran: a new attempt, nothing is counted against it
    RETRY = "retry"  # it ran and ended, and was asked to be tried again
    END = "end"  # its state is final


@dataclass(slots=True, frozen=True)
class Verdict:
    action: Action
    state: str = ""  # END: the final state; RETRY: the attempt's
    exit: Exit | None = None
    started_at: float | None = None
    not_before: float | None = None
    misfire: bool = False  # REQUEUE: counts towards MISFIRES_MAX
    gpu_floor_bytes: int | None = None  # RETRY: it ran out of GPU memory with this much


KEEP = Verdict(Action.KEEP)
FENCE = Verdict(Action.FENCE)
NEVER_RAN = "its supervisor never came to run it"


def settle(
    job: Job, spec: JobSpec, evidence: Evidence, now: float, waited: float, floor_bytes: int | None = None
) -> Verdict:
    """What follows for a starting or running job.

    waited: seconds since this daemon asked for the attempt to start; infinite if an earlier daemon did.
    floor_bytes: the GPU memory that was not enough for it, if the box has GPUs with more.
    """
    if evidence.exit is not None:
        return _ended(job, spec, evidence.exit, now, floor_bytes)
    if evidence.abandoned:
        end = Exit("engine_failed", None, None, NEVER_RAN, now, False)
        return _never_ran(job, end, now, counts=waited < float("inf"))
    if evidence.missing:
        return FENCE if job.state == words.RUNNING or waited > START_GRACE else KEEP
    if evidence.alive:
        if evidence.started_at is not None and job.state == words.STARTING:
            return Verdict(Action.RUN, started_at=evidence.started_at)
        return KEEP
    if evidence.started_at is None and waited <= START_GRACE:
        return KEEP
    return FENCE


def _ended(job: Job, spec: JobSpec, end: Exit, now: float, floor_bytes: int | None) -> Verdict:
    if end.reason in ("engine_failed", "gpu_lost") and not end.started:
        return _never_ran(job, end, now, counts=end.reason == "engine_failed")
    state = STATE_OF_REASON.get(end.reason, words.FAILED)
    if job.cancel_requested_at is None:
        if end.reason == "reboot" and spec.requeue:
            return Verdict(Action.RETRY, state, end)
        hopeless = end.reason == "cuda_out_of_memory" and floor_bytes is None  # it would only run out again
        if may_retry(job, spec, end.reason) and not hopeless:
            floor = floor_bytes if end.reason == "cuda_out_of_memory" else None
            pause = retry_pause(job.retries_used)
            return Verdict(Action.RETRY, state, end, not_before=now + pause, gpu_floor_bytes=floor)
    return Verdict(Action.END, state, end)


def _never_ran(job: Job, end: Exit, now: float, counts: bool) -> Verdict:
    """counts: it is the launch that failed, and not a daemon that died while it launched."""
    if job.cancel_requested_at is not None:
        return Verdict(Action.END, words.CANCELLED, Exit("cancelled", None, None, "", now, False))
    if counts and job.misfires + 1 >= MISFIRES_MAX:
        failed = Exit("engine_failed", None, None, f"{end.detail} ({MISFIRES_MAX} times)", now, False)
        return Verdict(Action.END, words.FAILED, failed)
    pause = retry_pause(job.misfires) if counts and job.misfires else 0.0  # once is an accident, twice is a lack
    return Verdict(Action.REQUEUE, exit=end, not_before=now + pause if pause else None, misfire=counts)


def may_retry(job: Job, spec: JobSpec, reason: str | None) -> bool:
    """Whether a job that ended for this reason is to be tried again: it has retries left and the filter lets it."""
    if reason is None or reason == "cancelled" or job.retries_used >= spec.retries:
        return False
    return reason in (spec.retry_on or words.RETRYABLE)


def retry_pause(used: int) -> float:
    """Seconds before the next retry: 1, 2, 4, ... 300."""
    return min(2.0 ** min(used, 16), PAUSE_MAX)


def after_waiting(job: Job, spec: JobSpec, reason: str, detail: str, now: float) -> Verdict:
    """The end of a job that never got to start: its environment or its code could not be made."""
    end = Exit(reason, None, None, detail, now, False)
    if job.cancel_requested_at is None and may_retry(job, spec, reason):
        return Verdict(Action.RETRY, words.FAILED, end, not_before=now + retry_pause(job.retries_used))
    return Verdict(Action.END, words.FAILED, end)
