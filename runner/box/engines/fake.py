"""An engine without processes: attempts are entries in memory, moved by hand. For the model's tests and the demo."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from runner.box.engines import Key, Launch, Stop
from runner.job.supervisor import STOP_REASONS
from runner.model import Evidence, Exit, Resources


@dataclass(slots=True)
class Attempt:
    """One attempt as the disk would know it."""

    launch: Launch
    began: float | None = None  # None: its supervisor has not come to it yet
    end: Exit | None = None
    dead: bool = False  # its supervisor was killed
    abandoned: bool = False
    rebooted: bool = False


class Fake:
    """What was started stays for ever, as on disk; a daemon that comes back finds it."""

    def __init__(self, capacity: Resources, clock: Callable[[], float] = time.time) -> None:
        self._capacity, self._clock = capacity, clock
        self.attempts: dict[Key, Attempt] = {}

    # --- the verbs ---

    def capacity(self) -> Resources:
        return self._capacity

    def start(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            if launch.key in self.attempts:
                raise RuntimeError(f"attempt {launch.key} was started before")
            self.attempts[launch.key] = Attempt(launch)

    def refusals(self) -> Collection[Key]:
        return ()

    def stage(self, keys: Sequence[Key]) -> None:
        return

    def stop(self, stops: Sequence[Stop]) -> None:
        for stop in stops:
            attempt = self.attempts.get(stop.key)
            if attempt is None and stop.fence:
                self.attempts[stop.key] = Attempt(Launch(stop.key, stop.launch_id, {}), abandoned=True)
            elif attempt is not None and attempt.end is None and not attempt.abandoned:
                self._stop(attempt, stop)

    def evidence(self, keys: Sequence[Key]) -> Mapping[Key, Evidence]:
        return {key: self._evidence(self.attempts.get(key)) for key in keys}

    # --- the hand that moves it ---

    def begin(self, key: Key, now: float) -> None:
        """Its supervisor comes and executes the command."""
        self.attempts[key].began = now

    def finish(self, key: Key, code: int, now: float) -> None:
        """The command ends by itself."""
        reason = "exit_code" if code else None
        self._end(self.attempts[key], Exit(reason, code, None, "", now, True, self.attempts[key].began))

    def kill_supervisor(self, key: Key) -> None:
        self.attempts[key].dead = True

    def reboot(self) -> None:
        """The box goes down and comes back: nothing runs any more, what is on disk stays."""
        for attempt in self.attempts.values():
            attempt.dead = attempt.rebooted = True

    def running(self) -> list[Key]:
        """What uses the box right now, and what still may."""
        return [key for key, attempt in self.attempts.items() if _may_run(attempt)]

    # --- steps ---

    def _stop(self, attempt: Attempt, stop: Stop) -> None:
        if not stop.fence:
            if not attempt.dead:
                reason = stop.reason if stop.reason in STOP_REASONS else STOP_REASONS[0]
                started = attempt.began is not None
                self._end(attempt, Exit(reason, None, 15, "", self._clock(), started, attempt.began))
        elif attempt.began is None:
            attempt.abandoned = True
        elif attempt.dead:
            reason = "reboot" if attempt.rebooted else "supervisor_died"
            self._end(attempt, Exit(reason, None, None, "", self._clock(), True, attempt.began))

    def _end(self, attempt: Attempt, end: Exit) -> None:
        if attempt.end is None:
            attempt.end = end

    def _evidence(self, attempt: Attempt | None) -> Evidence:
        if attempt is None:
            return Evidence(None, None, False, missing=True)
        alive = _may_run(attempt) and attempt.began is not None
        return Evidence(attempt.end, attempt.began, alive, attempt.rebooted, attempt.abandoned)


def _may_run(attempt: Attempt) -> bool:
    return attempt.end is None and not attempt.dead and not attempt.abandoned
