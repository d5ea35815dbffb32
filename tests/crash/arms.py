"""The trigger: at a named fail-point, the n-th time in a role, a process kills itself, or its parent, or waits.

Roles: "daemon", and "run" for what runs without it (the parent, supervisors, their children). A fork inherits its plan.
An arm goes off once in a scenario, whichever process comes first: a file in the scenario's folder is the token.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from runner import files


@dataclass(frozen=True)
class Arm:
    point: str
    occurrence: int = 1
    pause: float = 0.0  # seconds to stand still there
    victim: str = "self"  # self: KILLed after the pause | parent: the process that forked it, before the pause | none

    def __str__(self) -> str:
        name = self.point if self.occurrence == 1 else f"{self.point}#{self.occurrence}"
        return name + (f"~{self.pause:g}s" if self.pause else "") + ("" if self.victim == "self" else f"!{self.victim}")


class Trigger:
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.arms: Sequence[tuple[str, Arm]] = ()  # (token's name, arm)
        self.seen: dict[str, int] = {}

    def set(self, role: str, arms: Sequence[Arm]) -> None:
        """What this process, and all that it forks from now on, is to do."""
        self.arms = [(f"{role}.{arm}", arm) for arm in arms]
        self.seen = {}
        files.armed = self if self.arms else None

    def __call__(self, name: str) -> None:
        for token, arm in self.arms:
            if arm.point != name:
                continue
            self.seen[token] = self.seen.get(token, 0) + 1
            if self.seen[token] == arm.occurrence and self._first(token):
                _strike(arm)

    def _first(self, token: str) -> bool:
        try:
            os.close(os.open(f"{self.folder}/fired.{token}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    def fired(self) -> list[str]:
        return sorted(name.removeprefix("fired.") for name in os.listdir(self.folder) if name.startswith("fired."))


def _strike(arm: Arm) -> None:
    if arm.victim == "parent":
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(arm.pause)
    if arm.victim == "self":
        os.kill(os.getpid(), signal.SIGKILL)
