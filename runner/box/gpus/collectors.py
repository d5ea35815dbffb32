"""Collectors as the daemon has them: one process and a socket to it, its own child or one that waits behind a door."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress

from runner.box.gpus.frames import LINE_MAX

Spawn = Callable[[socket.socket], int]  # starts a collector on one end of a socket pair; its process id, or OSError
NO_ANSWER = "the driver does not answer"


class Collector(ABC):
    """One process, the socket to it, and what came of it so far. Times are monotonic."""

    pid: int | None = None

    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        self.link: socket.socket | None = link
        self.fd = link.fileno()
        self.why = NO_ANSWER  # nothing is known, if it stays as it is
        self.began = self.waited_from = time.monotonic()
        self.framed = self.troubled = False
        self.left_at = 0.0
        self.killed_at: float | None = None
        self.work = 0  # that reading it made since the last look
        self._rest = bytearray()

    def lines(self, data: bytes) -> list[bytes]:
        """The lines that data completes. Of one that is too long, a beginning that is too long is kept."""
        first, *others = data.split(b"\n")
        self._rest += first
        del self._rest[LINE_MAX + 1 :]
        if not others:
            return []
        whole = [bytes(self._rest), *others[:-1]]
        self._rest = bytearray(others[-1])
        return whole

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.killed_at = time.monotonic()

    def wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (gone := self.gone()) and time.monotonic() < deadline:
            time.sleep(0.002)
        return gone

    @abstractmethod
    def signal(self, number: int) -> None: ...

    @abstractmethod
    def gone(self) -> bool: ...

    @abstractmethod
    def end(self) -> str: ...


class Distant(Collector):
    """Somebody else's child: to close its socket is all that can be done, and nothing is left of it for us then.
    systemd ends one that hangs (pulse.py)."""

    def signal(self, number: int) -> None:
        pass

    def gone(self) -> bool:
        return self.link is None

    def end(self) -> str:
        return "ended"


class Child(Collector):
    def __init__(self, spawn: Spawn) -> None:
        ours, theirs = socket.socketpair()
        try:
            self.pid: int = spawn(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        super().__init__(ours)
        self._gone = False
        self._code: int | None = None

    def signal(self, number: int) -> None:
        if not self._gone:  # so its process id is still its own
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def gone(self) -> bool:
        """Whether it is; then it is no zombie either."""
        if not self._gone:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._gone = pid != 0
                self._code = os.waitstatus_to_exitcode(status) if self._gone else None
            except ChildProcessError:
                self._gone = True  # somebody else has waited for it
        return self._gone

    def end(self) -> str:
        if self._code is None:
            return "ended"
        return f"was killed by signal {-self._code}" if self._code < 0 else f"ended with code {self._code}"


class Door:
    """A socket at which whoever connects gets a collector of his own, at most one at a time: systemd's."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self) -> Distant:
        """OSError: nobody is behind it."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)  # nor waited for
        try:
            link.connect(self._path)
        except BaseException:
            link.close()
            raise
        return Distant(link)


def spawner(log: int, *options: str) -> Spawn:
    """Starts `python -m runner.box.gpus` with the daemon's interpreter and environment; log: its standard error."""
    command = [sys.executable, "-P", "-m", "runner.box.gpus", *options]

    def spawn(link: socket.socket) -> int:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            connected = [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in ((link.fileno(), 0), (null, 1), (log, 2))]
            return os.posix_spawn(
                command[0], command, os.environ, file_actions=connected, setsid=True, setsigmask=[],
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},  # nohup and `&` have some ignored
            )  # fmt: skip
        finally:
            os.close(null)

    return spawn
