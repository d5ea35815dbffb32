"""When the daemon takes a turn: soon after anything happens, once however much did; and now and then without."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import traceback
from collections.abc import Callable

from runner import files
from runner.box.daemon import Daemon
from runner.box.memory import Peak
from runner.errors import DiskFull, Problem, StateDamaged

ACTIVE_TICK = 2.0  # seconds between looks while jobs run: the net under lost hints
QUEUED_TICK = 10.0  # while jobs only wait: disk space may have come back
IDLE_TICK = 60.0
STARTED_PATIENCE = 0.01  # a job that began need not be told at once: one that ends by then costs half the commits
HINT_MAX = 256


class Turns:
    def __init__(self, daemon: Daemon, doomed: Callable[[Problem], None]) -> None:
        """doomed: the state can't be written any more, so nothing may be decided any more."""
        self._daemon, self._doomed = daemon, doomed
        self._loop = asyncio.get_running_loop()
        self._called = False
        self._later: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._said = ""
        self._peak = Peak()
        self.stopped = False

    def wake(self) -> None:
        """Have a turn soon. Only on the loop's thread."""
        if not self._called and not self.stopped:
            self._called = True
            self._loop.call_soon(self._turn)

    def wake_within(self, seconds: float) -> None:
        """Have a turn by then, for what nobody waits for."""
        if not self._called and not self.stopped and self._later is None:
            self._later = self._loop.call_later(seconds, self.wake)

    def stop(self) -> None:
        self.stopped = True
        if self._later is not None:
            self._later.cancel()
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        self._called = False
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self.stopped:
            return
        try:
            self._daemon.pass_once(time.time())
            self._said = ""
        except StateDamaged as problem:
            self._end(problem)
        except OSError as error:
            if error.errno in files.DISK_FAILED:
                self._end(StateDamaged(f"the box's disk failed: {error}", "check the disk; running jobs go on"))
            else:
                self._failed(error)
        except Exception as error:
            self._failed(error)
        self._peak.seen(len(self._daemon.book.active) + len(self._daemon.book.queued))
        self._sleep()

    def _end(self, problem: Problem) -> None:
        self.stop()
        self._doomed(problem)

    def _failed(self, error: Exception) -> None:
        """Told once while it stays the same. What was decided but not committed is forgotten: the database holds."""
        self._daemon.wakes_at = float("inf")  # nothing was decided: without an event, not before the next tick
        said = error.message if isinstance(error, DiskFull) else "".join(traceback.format_exception(error))
        if said != self._said:
            self._said = said
            self._daemon.report(said.rstrip())
        try:
            self._daemon.reload()
        except (Problem, OSError) as again:
            self._daemon.report(f"the queue could not be read: {again}")

    def _sleep(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.stopped:
            return
        book = self._daemon.book
        tick = ACTIVE_TICK if book.active else QUEUED_TICK if book.queued else IDLE_TICK
        self._timer = self._loop.call_later(max(0.0, min(self._daemon.wakes_at - time.time(), tick)), self.wake)


class Hints:
    """The socket that supervisors write to when something changed. What they say is only a hint: the files are read."""

    def __init__(self, state: str, path: str, turns: Turns) -> None:
        self._turns = turns
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        if os.path.lexists(path):
            os.unlink(path)
        folder = os.open(state, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # By way of the folder's descriptor: a socket's path may hold only 108 bytes, a state's more.
            self._socket.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        finally:
            os.close(folder)
        os.chmod(path, 0o600)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._hinted)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _hinted(self) -> None:
        urgent = False
        try:
            while True:
                urgent |= not self._socket.recv(HINT_MAX).endswith(b"started")
        except BlockingIOError:
            self._turns.wake() if urgent else self._turns.wake_within(STARTED_PATIENCE)
