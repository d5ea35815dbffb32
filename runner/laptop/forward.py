"""A port of this computer that leads to a box: a browser's bytes are carried over the pinned link."""

from __future__ import annotations

import os
import socket

from runner import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runner.laptop.pin import Pinned

LOOPBACK = "127.0.0.1"
PORT = 7480  # the one that the box itself takes, so that a browser keeps what it knows; another one where it is taken
PIECE = 64 << 10
WRITE_SECONDS = 60.0
AT_ONCE = 32  # a browser opens six
BACKLOG = 16


def listen() -> socket.socket:
    """Busy: no port is free."""
    for port in (PORT, 0):
        sock = socket.socket()
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, port))
            sock.listen(BACKLOG)
            return sock
        except OSError:
            sock.close()
    raise errors.Busy(f"no port of {LOOPBACK} is free", "close what uses them")


def serve(listener: socket.socket, connect: Callable[[], Pinned], report: Callable[[str], None]) -> None:
    """Carry what comes in, until it is interrupted. report: why a connection did not come about, once each time."""
    import threading

    room = threading.BoundedSemaphore(AT_ONCE)
    told = ""

    def carry(browser: socket.socket) -> None:
        nonlocal told
        try:
            with browser:
                box = connect()
                told = ""
                try:
                    join(browser, box)
                finally:
                    box.close()
        except errors.Problem as problem:
            if told != problem.message:
                told = problem.message
                report(f"{problem.message}; {problem.hint}")
        except OSError:
            pass  # one of the two has gone
        finally:
            room.release()

    while True:
        browser, _ = listener.accept()
        room.acquire()
        threading.Thread(target=carry, args=(browser,), daemon=True).start()


def join(browser: socket.socket, box: Pinned) -> None:
    """One thread for both directions: TLS of one connection can't be read and written at once."""
    import select

    browser.settimeout(WRITE_SECONDS)
    box.settimeout(WRITE_SECONDS)
    while True:
        both: list[Any] = [browser, box]
        ready = [box] if box.pending() else select.select(both, [], [])[0]
        if browser in ready:
            data = browser.recv(PIECE)
            if not data:
                return
            box.sendall(data)
        if box in ready:
            data = box.recv(PIECE)
            if not data:
                return
            browser.sendall(data)
