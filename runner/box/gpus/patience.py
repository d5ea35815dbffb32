"""PURE: jobs that asked to be ended when they leave their GPUs idle (--stop-if-idle): whom to warn, whom to end.

Seconds are counted in which every GPU of a job was seen to rest. What nobody saw is not counted, and takes nothing
back; a moment of work begins it anew. Of what an earlier daemon counted no more than half the limit is believed, since
the job may have worked in between: so none ends at once, and none that rests all the time much later than it said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runner import words
from runner.box.gpus.judgement import IDLE
from runner.model import Job, Notice

UNSEEN_SECONDS = 30.0  # between two looks; what is beyond was not seen
LEAD_SECONDS, LEAD_SHARE = 300.0, 0.25  # a warning comes so long before the end, or this part of the limit
AGAIN_SECONDS = 30.0  # who was asked to end and has not is asked again

Kept = dict[str, tuple[int, float]]  # its id -> (attempt, seconds), as it is kept over a daemon's end


@dataclass(slots=True)
class _Rest:
    attempt: int
    seconds: float  # that it is idle
    looked_at: float
    busy: float  # seconds that its GPUs had worked for it by then
    warned_at: float | None = None
    ended_at: float | None = None  # it was asked to end


class Patience:
    def __init__(self, kept: Mapping[str, tuple[int, float]]) -> None:
        self._kept = dict(kept)
        self._rests: dict[int, _Rest] = {}

    def look(
        self, now: float, jobs: Iterable[Job], rests: Mapping[str, bool], busy: Mapping[int, float]
    ) -> tuple[list[Notice], list[Job]]:
        """(warnings, jobs to be ended). jobs: those that are active. rests: UUID -> whether that GPU, read just now,
        does nothing. busy: job -> seconds that its attempt has kept GPUs busy so far."""
        asked = {job.id: job for job in jobs if job.stop_if_idle and job.state == words.RUNNING and job.allotted}
        self._rests = {id: rest for id, rest in self._rests.items() if id in asked}
        warnings: list[Notice] = []
        ends: list[Job] = []
        for job in asked.values():
            rest = self._count(job, now, rests, busy.get(job.id, 0.0))
            limit = job.stop_if_idle or 0.0
            lead = min(LEAD_SECONDS, limit * LEAD_SHARE)
            if rest.seconds < limit - lead:
                rest.warned_at = None
            elif rest.warned_at is None:
                rest.warned_at = now
                warnings.append(warning(job, rest.seconds, max(lead, limit - rest.seconds), now))
            elif rest.seconds >= limit and not 0 <= now - rest.warned_at < lead and self._asks(rest, now):
                ends.append(job)
        return warnings, ends

    def _count(self, job: Job, now: float, rests: Mapping[str, bool], busy: float) -> _Rest:
        rest = self._rests.get(job.id)
        if rest is None or rest.attempt != job.attempt:
            attempt, seconds = self._kept.pop(str(job.id), (0, 0.0))
            believed = min(seconds, (job.stop_if_idle or 0.0) / 2) if attempt == job.attempt else 0.0
            rest = self._rests[job.id] = _Rest(job.attempt, believed, now, busy)
            return rest
        passed, worked = now - rest.looked_at, busy - rest.busy
        rest.looked_at, rest.busy = now, busy
        known = [rests.get(uuid) for uuid in job.allotted]
        if False in known or worked > IDLE * max(passed, 1.0):
            rest.seconds = 0.0
        elif None not in known and 0 <= passed <= UNSEEN_SECONDS:
            rest.seconds += passed
        return rest

    @staticmethod
    def _asks(rest: _Rest, now: float) -> bool:
        if rest.ended_at is not None and 0 <= now - rest.ended_at < AGAIN_SECONDS:
            return False
        rest.ended_at = now
        return True

    def kept(self) -> Kept:
        """What the next daemon has to know."""
        return {str(id): (rest.attempt, round(rest.seconds)) for id, rest in self._rests.items() if rest.seconds >= 1}


def warning(job: Job, idle: float, left: float, now: float) -> Notice:
    text = f"job {job.id} has left {_gpus(job)} idle for {span(idle)}; it is ended in {span(left)} (--stop-if-idle)"
    hint = f"see `runner logs {job.id}`; any work on the GPU keeps it"
    return Notice(0, now, "stop_if_idle", "warning", text, hint, job.allotted[0], job.id)


def sentence(job: Job) -> str:
    """Why it was ended."""
    were = "GPUs were" if len(job.allotted) > 1 else "GPU was"
    return f"its {were} idle for {span(job.stop_if_idle or 0.0)} (--stop-if-idle)"


def span(seconds: float) -> str:
    """90 seconds, 30 minutes, 2 hours"""
    whole = round(seconds)
    for size, word in ((3600, "hour"), (60, "minute")):
        if whole >= size and (whole % size == 0 or (word == "minute" and whole >= 600)):
            count = whole // size
            return f"{count} {word}{'s' * (count != 1)}"
    return f"{whole} second{'s' * (whole != 1)}"


def _gpus(job: Job) -> str:
    return "its GPU" if len(job.allotted) == 1 else f"all its {len(job.allotted)} GPUs"
