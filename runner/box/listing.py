"""The queue as people look at it: a group is one line, however many jobs it has, and says why its first job waits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from runner import words
from runner.box.daemon import Daemon
from runner.box.store import Group
from runner.errors import NotFound
from runner.model import Job


def overview(daemon: Daemon, finished: int, states: Sequence[str], now: float) -> tuple[list[Job], list[Group]]:
    """What is unfinished and the last few that ended: groups as a whole, and all jobs but those that wait in one."""
    ends = [name for name in states or words.FINISHED if name in words.FINISHED]
    unfinished = daemon.book.jobs.values()
    jobs = daemon.store.last(finished, ends)
    names = {job.group for job in (*unfinished, *jobs) if job.group is not None}
    jobs += [job for job in unfinished if job.group is None or job.state != words.QUEUED]
    groups = daemon.store.groups(map(number, names))
    if states:
        jobs = [job for job in jobs if job.state in states]
        groups = [group for group in groups if any(state in group.counts for state in states)]
    return sorted(jobs, key=lambda job: job.id), _explained(daemon, jobs, groups, now)


def named(
    daemon: Daemon, names: Iterable[int | str], states: Sequence[str], now: float
) -> tuple[list[Job], list[Group]]:
    """The jobs and the groups with these names. NotFound."""
    ids: list[int] = []
    asked: set[int] = set()
    for name in names:
        (asked.add if str(name).startswith("g") else ids.append)(number(name))
    groups = daemon.store.groups(asked)
    absent = asked - {group.first_id for group in groups}
    if absent:
        raise NotFound(f"there is no group g{min(absent)}", "`runner ps` shows the groups")
    jobs = [daemon.book.jobs.get(job.id, job) for job in daemon.store.jobs(ids)]
    if states:
        jobs = [job for job in jobs if job.state in states]
        groups = [group for group in groups if any(state in group.counts for state in states)]
    return jobs, _explained(daemon, jobs, groups, now)


def number(name: int | str) -> int:
    """g42 -> 42."""
    return int(str(name).removeprefix("g"))


def _explained(daemon: Daemon, jobs: Sequence[Job], groups: list[Group], now: float) -> list[Group]:
    """The jobs and groups with the reasons of those that wait."""
    waiting = {job.id for job in jobs if job.state == words.QUEUED}
    if waiting or any(words.QUEUED in group.counts for group in groups):
        sample = list(_telling(daemon.book.queued, waiting, daemon.engine.capacity().cpus, now))
        waits = daemon.schedule(now, explain=True, queued=sample).waits
        for job in jobs:
            job.why = waits.get(job.id, words.STARTS_NOW) if job.id in waiting else ""
        reasons: dict[str | None, str] = {}
        for job in sorted(sample, key=lambda job: _pauses(job, now)):
            if job.id in waits:
                held = f"held; `runner release {job.group}` lets them go"
                reasons.setdefault(job.group, held if job.held else waits[job.id])
        for group in groups:
            group.why = reasons.get(group.group, words.STARTS_NOW) if words.QUEUED in group.counts else ""
    return groups


def _telling(queued: Iterable[Job], wanted: set[int], cpus: int, now: float) -> Iterator[Job]:
    """The queue without what changes no reason. Jobs of a group ask for the same, and each takes at least one cpu: when
    as many as there are cpus have been tried, the next of them does not fit either."""
    tried: dict[tuple[str, bool], int] = {}
    for job in queued:
        if job.group is not None:
            kind = (job.group, _pauses(job, now))
            tried[kind] = tried.get(kind, 0) + 1
            if tried[kind] > (1 if kind[1] else cpus + 1) and job.id not in wanted:
                continue
        yield job


def _pauses(job: Job, now: float) -> bool:
    return job.held or (job.not_before is not None and job.not_before > now)
