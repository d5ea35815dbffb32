"""PURE: who uses a GPU, and how much of it: the processes that the driver lists, and the jobs that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from runner.box.gpus.placement import portion
from runner.model import Job, Process

COMMAND_MAX = 60  # characters of a command in a sentence


@dataclass(slots=True)
class Ours:
    """What tells a job's processes from others'."""

    box_id: str = ""
    active: Mapping[int, Job] = field(default_factory=dict)
    supervisors: dict[int, int] = field(default_factory=dict)  # process id -> job
    cgroups: bool = False  # each attempt has a cgroup of its own

    def job_of(self, process: Process) -> int | None:
        """The job of this box that a process belongs to, ended ones too: by its cgroup, else by its environment or
        that of an ancestor, else by its ancestry. None: it is foreign."""
        for job in self.active.values():
            if job.adopts and tuple(job.adopts) == (process.pid, process.started):
                return job.id
        named = self._named(process.launch)
        if named is not None:
            return named
        return next((self.supervisors[pid] for pid in process.ancestors if pid in self.supervisors), None)

    def _named(self, launch: str | None) -> int | None:
        """`<job>/<attempt>` of a cgroup, `<box>-<job>-<attempt>` of an environment."""
        if launch is None:
            return None
        if "/" in launch:
            job = launch.partition("/")[0] if self.cgroups else ""  # else of another box on this computer
        else:
            box, _, rest = launch.rpartition("-")[0].rpartition("-")
            job = rest if box == self.box_id else ""
        return int(job) if job.isdecimal() and len(job) < 16 else None


@dataclass(slots=True)
class Usage:
    """How the memory of one GPU is divided."""

    by_job: dict[int, int] = field(default_factory=dict)  # of the jobs that have it, as far as the driver says
    foreign_bytes: int = 0  # everything else
    foreign: list[Process] = field(default_factory=list)  # processes of others than those jobs


def usage(used_bytes: int, processes: Iterable[Process], holders: Sequence[Job]) -> Usage:
    """Divide what is used. Processes know their jobs already (`Process.job`). holders: the jobs that have the GPU.

    Where the driver does not say how much each process holds: all of it is the holders' while nobody else is there, and
    what they declared otherwise."""
    have = {job.id: job for job in holders}
    found = Usage()
    unsaid: set[int] = set()
    for process in processes:
        job = process.job
        if job is None or job not in have:
            found.foreign.append(process)
        elif process.memory_bytes is None:
            unsaid.add(job)
        else:
            found.by_job[job] = found.by_job.get(job, 0) + process.memory_bytes
    rest = max(used_bytes - sum(found.by_job.values()), 0)
    if unsaid:
        _guess(found, unsaid, have, max(rest - told(found.foreign), 0))
        rest = max(used_bytes - sum(found.by_job.values()), 0)
    found.foreign_bytes = rest
    return found


def _guess(found: Usage, unsaid: set[int], have: Mapping[int, Job], rest: int) -> None:
    """What they declared comes first: what is guessed beyond it would be in others' way."""
    for job in sorted(unsaid):
        share = min(rest, have[job].gpu_memory_bytes) if have[job].shares else rest
        found.by_job[job] = found.by_job.get(job, 0) + share
        rest -= share
    if rest and not any(process.alive for process in found.foreign):
        found.by_job[min(unsaid)] += rest


def told(processes: Iterable[Process]) -> int:
    """What they hold, as far as the driver says."""
    return sum(process.memory_bytes or 0 for process in processes)


def overrun(found: Usage, holders: Sequence[Job]) -> int:
    """How much more the jobs that share a GPU hold than they declared."""
    return sum(max(found.by_job.get(job.id, 0) - job.gpu_memory_bytes, 0) for job in holders if job.shares)


def unclaimed(found: Usage) -> int:
    """What no living process of others is seen to hold: a driver that lists no processes leaves all of it to guess."""
    living = [process for process in found.foreign if process.alive]
    if any(process.memory_bytes is None for process in living):
        return 0
    return max(found.foreign_bytes - told(living), 0)


def in_the_way(found: Usage, desktop_bytes: int, unified: bool = False) -> bool:
    """Whether a job can't have the GPU for itself. A desktop that only draws is not in the way, up to a point.
    unified: what is used is mostly not the GPU's but the host's; only what the processes hold counts."""
    computes = any(process.alive and process.kind == "compute" for process in found.foreign)
    return computes or (told(found.foreign) if unified else found.foreign_bytes) > desktop_bytes


def held_by(found: Usage, total_bytes: int) -> str:
    """held by alice, python train.py, 11.2 of 24 GiB"""
    return f"held by {_who(found.foreign)}, {portion(found.foreign_bytes, total_bytes)}"


def _who(processes: Sequence[Process]) -> str:
    living = sorted((each for each in processes if each.alive), key=_weight)
    if not living:
        dead = [each.pid for each in processes]
        return f"a dead process (pid {dead[0]})" if dead else "no process that can be seen from here"
    first = living[0]
    if first.job is not None:
        who = f"job {first.job}, which does not have it (pid {first.pid})"
    else:
        command = first.command if len(first.command) <= COMMAND_MAX else f"{first.command[: COMMAND_MAX - 1]}…"
        who = ", ".join(filter(None, (first.user, command or f"pid {first.pid}")))
    others = len(living) - 1
    return who + (f" and {others} other{'' if others == 1 else 's'}" if others else "")


def _weight(process: Process) -> tuple[bool, int, int]:
    """Those that compute first, then the largest."""
    return (process.kind != "compute", -(process.memory_bytes or 0), process.pid)
