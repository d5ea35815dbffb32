"""Where jobs run: a few verbs in our words, many jobs at once. plain and systemd are this box, slurm comes later."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from runner.model import Evidence, Resources

Key = tuple[int, int]  # (job id, attempt number)


@dataclass(slots=True, frozen=True)
class Launch:
    """One attempt to start: what the supervisor needs to know, as written to its `spec` record."""

    key: Key
    launch_id: str
    spec: dict[str, object]


@dataclass(slots=True, frozen=True)
class Stop:
    """A wish that an attempt end.

    grace: seconds between TERM and KILL; 0 is at once.
    fence: its supervisor is gone: make sure that it never runs, or no longer does, and leave a record that says so.
    ran: the queue knows that it ran (so that a missing record is not mistaken for an attempt that never started).
    reason: what its end shall say, cancelled, gpu_lost or gpu_idle (all else is cancelled). The first wish decides.
    """

    key: Key
    launch_id: str
    grace: float | None = None
    fence: bool = False
    ran: bool = False
    reason: str = "cancelled"


class Engine(Protocol):
    def capacity(self) -> Resources:
        """What this engine can give away in all."""

    def start(self, launches: Sequence[Launch]) -> None:
        """Hand attempts over. Returns before they run; what became of them shows up as evidence."""

    def refusals(self) -> Collection[Key]:
        """Those handed over whose supervisor will not come, as became known since the last call."""

    def stage(self, keys: Sequence[Key]) -> None:
        """These are likely to start next: whatever can be made ready for them without doing anything yet."""

    def stop(self, stops: Sequence[Stop]) -> None:
        """Make the wishes durable and pass them on; the ends show up as evidence."""

    def evidence(self, keys: Sequence[Key]) -> Mapping[Key, Evidence]:
        """What is known of each attempt, read afresh. One that can't be read just now is left out."""
