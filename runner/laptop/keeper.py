"""`python -m runner.laptop.keeper SOCKET SSH ADDRESS PORT`: keeps one ssh connection, and with it a tunnel to the box's
own HTTPS, for as long as somebody uses it and ten minutes more.

Who connects to SOCKET (mode 0600, in a folder of ours) is told `ok` or a line of JSON that says why not; from then on
the connection is one to ADDRESS:PORT, seen from the box. What goes through is TLS: the keeper knows no token.
"""

from __future__ import annotations

import os
import socket
import sys
import time

from runner import errors
from runner.laptop.light import dumps
from runner.laptop.place import check_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runner.laptop.link import Link

IDLE_SECONDS = 600.0
TICK = 1.0
QUIET_SECONDS = 15.0  # without a byte from the box; then its link may be dead
PATIENCE = 2.0  # for a channel on such a link
SLEPT_SECONDS = 10.0
ALONE_SECONDS = 30.0  # for the handshake through it
BACKLOG = 64
PIECE = 64 << 10


def main(arguments: list[str]) -> int:
    path, destination, address, port = arguments
    held = _lock(path)
    if held is None:
        return 0  # another one is just beginning, or is there
    listener = _listen(path)
    if os.fork():
        return 0
    os.setsid()
    os.chdir("/")
    Keeper(path, listener, destination, (address, int(port))).run()
    return 0


def _lock(path: str) -> int | None:
    import fcntl

    folder = os.path.dirname(path)
    for each in (os.path.dirname(folder), folder):  # the mode is only that of the last folder made
        os.makedirs(each, 0o700, exist_ok=True)
    check_own(folder)
    fd = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _listen(path: str) -> socket.socket:
    before = os.umask(0o177)
    try:
        if os.path.lexists(path):
            os.unlink(path)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        sock.listen(BACKLOG)
    finally:
        os.umask(before)
    return sock


class Keeper:
    def __init__(self, path: str, listener: socket.socket, destination: str, target: tuple[str, int]) -> None:
        import threading

        self._path, self._listener = path, listener
        self._inode = os.stat(path).st_ino
        self._destination, self._target = destination, target
        self._open = threading.Lock()  # held by who makes the ssh connection
        self._link: Link | None = None
        self._users: set[Any] = set()
        self._last_used = self._heard = time.monotonic()
        self._asleep = _asleep()

    def run(self) -> None:
        """Until nobody has used it for a while, or its socket is not there any more: then nobody can."""
        import select
        import threading

        while self._wanted():
            ready = select.select([self._listener], [], [], TICK)[0]
            self._wake_up()
            if not ready:
                continue
            try:
                user, _ = self._listener.accept()
            except OSError:
                break  # it leaves
            self._users.add(user)
            threading.Thread(target=self._serve, args=(user,), daemon=True).start()
        self._unlink()

    def _unlink(self) -> None:
        if self._is_ours():
            os.unlink(self._path)

    def _wake_up(self) -> None:
        """After a sleep the link is dead most likely, and nobody says so: who waits on it comes again."""
        asleep, before = _asleep(), self._asleep
        self._asleep = asleep
        if abs(asleep - before) > SLEPT_SECONDS:
            self._drop(self._link)

    def _drop(self, link: Link | None) -> None:
        if self._link is link:
            self._link = None
        if link is not None:
            link.close()

    def _wanted(self) -> bool:
        if self._users:
            self._last_used = time.monotonic()
        return self._is_ours() and time.monotonic() - self._last_used < IDLE_SECONDS

    def _is_ours(self) -> bool:
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    def _serve(self, user: Any) -> None:
        try:
            with user:
                try:
                    channel = self._channel()
                except Exception as error:
                    self._give_up(user, _told(error))
                    return
                user.sendall(b"ok\n")
                join(user, channel, self._hears)
        except OSError:
            pass  # the user has gone
        finally:
            self._users.discard(user)

    def _give_up(self, user: Any, why: errors.Problem) -> None:
        """One that has no link leaves: the next command's has that command's environment, and its agent perhaps."""
        leaves = self._link is None and self._users == {user}
        if leaves:
            self._unlink()
        try:
            user.sendall(dumps(why.as_json()).encode() + b"\n")
        finally:
            if leaves:
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes `run`

    def _hears(self) -> None:
        self._heard = time.monotonic()

    def _channel(self) -> Any:
        """A new connection to the box's port. A link that died while it was idle is made anew, once."""
        from runner.laptop.link import CHANNEL_SECONDS, Link

        with self._open:
            if (link := self._link) is not None:
                quiet = time.monotonic() - self._heard > QUIET_SECONDS
                try:
                    return self._opened(link, PATIENCE if quiet else CHANNEL_SECONDS)
                except errors.Problem:
                    self._drop(link)
            self._link = Link(self._destination)
            return self._opened(self._link, CHANNEL_SECONDS)

    def _opened(self, link: Link, seconds: float) -> Any:
        channel = link.channel(self._target, seconds)
        self._hears()
        return channel


def _asleep() -> float:
    """Seconds by which the time that passed is ahead of the time in which this computer was awake."""
    passed = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()
    return passed - time.monotonic()


def _told(error: Exception) -> errors.Problem:
    if isinstance(error, errors.Problem):
        return error
    if isinstance(error, ImportError):
        return errors.NotInstalled(f"the tunnel can't be made: {error}", "`pip install .` again, in a clone")
    return errors.Problem(f"the tunnel can't be made: {type(error).__name__}: {error}", "`ssh` there, by hand?")


def alone(destination: str, target: tuple[str, int]) -> socket.socket:
    """A tunnel that lives no longer than this process: where no process can stay behind, or have a socket of a file."""
    import contextlib
    import threading

    from runner.laptop.link import Link

    link = Link(destination)  # which would close when nobody knew it any more
    channel = link.channel(target)
    ours, theirs = socket.socketpair()

    def carry() -> None:
        with theirs, contextlib.suppress(OSError):
            join(theirs, channel)
        link.close()

    threading.Thread(target=carry, daemon=True).start()
    ours.settimeout(ALONE_SECONDS)
    return ours


def join(user: Any, channel: Any, hears: Callable[[], None] = lambda: None) -> None:
    """Carry bytes both ways until both sides have ended, or one has failed. hears: the box has sent some."""
    import contextlib
    import threading

    def upward() -> None:
        try:
            while data := user.recv(PIECE):
                channel.sendall(data)
            channel.shutdown_write()
        except OSError:
            channel.close()

    other = threading.Thread(target=upward, daemon=True)
    other.start()
    try:
        while data := channel.recv(PIECE):
            hears()
            user.sendall(data)
    finally:
        channel.close()
        with contextlib.suppress(OSError):
            user.shutdown(socket.SHUT_RDWR)
        other.join()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except errors.Problem as problem:
        sys.stderr.write(f"{problem.message}\n  hint: {problem.hint}\n")
        sys.exit(problem.exit_code)
