"""A command on the box over ssh, with this terminal or these pipes as its own; and ports of the box, brought here.

The other end is a channel of ssh: anything with paramiko's methods. One thread carries what is typed, since a terminal
can't be waited for together with a channel everywhere.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

from runner import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

PIECE = 32 << 10
BACKLOG = 16
BROKEN_PIPE = 141  # 128 + SIGPIPE
ENDED = 255  # as ssh says it when the connection was lost


def size() -> tuple[int, int]:
    """(columns, rows) of this terminal."""
    try:
        return tuple(os.get_terminal_size(1))  # type: ignore[return-value]
    except OSError:
        return 80, 24


def terminal() -> bool:
    """Whether somebody sits at both ends of this process."""
    return bool(sys.stdin and sys.stdout and sys.stdin.isatty() and sys.stdout.isatty())


def carry(channel: Any, with_terminal: bool) -> int:
    """Until the command on the far side has ended; its exit code."""
    with _raw() if with_terminal else contextlib.nullcontext(), _resized(channel, with_terminal):
        threading.Thread(target=_typed, args=(channel, with_terminal), daemon=True).start()
        said = threading.Thread(target=_pass_on, args=(channel.recv_stderr, 2), daemon=True)
        said.start()
        if not _pass_on(channel.recv, 1):  # who read us has gone, so the command goes, too
            channel.close()
            return BROKEN_PIPE
        said.join()
        code: int = channel.recv_exit_status()
    return ENDED if code < 0 else code


def _pass_on(receive: Callable[[int], bytes], fd: int) -> bool:
    """Until the far side has no more to say. False: nobody takes it here any more."""
    with contextlib.suppress(EOFError):
        while data := receive(PIECE):
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(fd, view) :]
            except OSError:
                return False
    return True


def _typed(channel: Any, with_terminal: bool) -> None:
    with contextlib.suppress(OSError, EOFError):
        while data := os.read(0, PIECE):
            channel.sendall(data)
        if not with_terminal:
            channel.shutdown_write()


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Every key goes to the far side as it is, Ctrl-C too."""
    try:
        import termios
        import tty
    except ImportError:  # Windows: by the line, as its console gives it
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is kept
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resized(channel: Any, with_terminal: bool) -> Iterator[None]:
    import signal

    changed = getattr(signal, "SIGWINCH", None) if with_terminal else None
    if changed is None:
        yield
        return

    def tell(number: int, frame: object) -> None:
        with contextlib.suppress(OSError):
            channel.resize_pty(*size())

    before = signal.signal(changed, tell)
    try:
        yield
    finally:
        signal.signal(changed, before)


# --- ports -----------------------------------------------------------------------------------------------------------


def listen(port: int) -> socket.socket:
    """On this computer alone. Busy: another program has that port."""
    sock = socket.socket()
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise errors.Busy(
            f"port {port} of this computer can't be had: {error.strerror}", "`--local 6007` takes another, 0 any"
        ) from None
    return sock


def forward(listener: socket.socket, channel: Callable[[], Any], complain: Callable[[errors.Problem], None]) -> None:
    """Each connection to a channel of its own, for ever. complain: why one could not be made."""
    from runner.laptop.keeper import join

    def serve(user: socket.socket) -> None:
        with user, contextlib.suppress(OSError):
            try:
                far = channel()
            except errors.Problem as problem:
                complain(problem)
            else:
                join(user, far)

    while True:
        user, _ = listener.accept()
        threading.Thread(target=serve, args=(user,), daemon=True).start()
