"""A terminal that is ours for a while: no echo, keys one by one, the other screen; given back however this ends."""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ENTER, LEAVE = b"\x1b[?1049h\x1b[?25l\x1b[2J", b"\x1b[0m\x1b[?25h\x1b[?1049l"
KEYS = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"\x1b[H": "home", b"\x1b[1~": "home",
    b"\x1bOH": "home", b"\x1b[F": "end", b"\x1b[4~": "end", b"\x1bOF": "end", b"\x1b[5~": "home", b"\x1b[6~": "end",
    b"\r": "enter", b"\n": "enter", b"\x1b": "escape",
}  # fmt: skip


class Console:
    """Enter it with `with`. Times are the kernel's matter: `fileno` is readable when a key was typed."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """wake: called, perhaps in the middle of anything, when the size changed or the terminal is ours again."""
        self.fileno = sys.stdin.fileno()
        self._out = sys.stdout.fileno()
        self._wake = wake
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self.ended = 0  # by this signal
        self.fresh = True  # nothing of ours is on it

    def __enter__(self) -> Console:
        for number, handler in (
            (signal.SIGWINCH, self._resized),
            (signal.SIGTSTP, self._stopped),
            (signal.SIGCONT, self._continued),
            (signal.SIGTERM, self._asked_to_end),
            (signal.SIGHUP, self._asked_to_end),
        ):
            self._handlers[number] = signal.signal(number, handler)
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def take(self) -> None:
        if not self._before:
            self._before = termios.tcgetattr(self.fileno)
        tty.setcbreak(self.fileno, termios.TCSANOW)
        self.write(ENTER)
        self.fresh = True

    def give_back(self) -> None:
        if self._before:
            self.write(LEAVE)
            try:
                termios.tcsetattr(self.fileno, termios.TCSANOW, self._before)
            except termios.error:
                pass  # it is gone
            self._before = []

    def write(self, data: bytes) -> None:
        """All of it; a terminal that is gone takes nothing."""
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except OSError:
            self.ended = self.ended or signal.SIGHUP

    def size(self) -> tuple[int, int]:
        """(columns, lines)"""
        try:
            found = os.get_terminal_size(self._out)
        except OSError:
            return 80, 24
        return max(1, found.columns), max(1, found.lines)

    def typed(self) -> list[str]:
        """What was typed: words of KEYS, or characters."""
        try:
            data = os.read(self.fileno, 1024)
        except OSError:
            data = b""
        if not data:
            self.ended = self.ended or signal.SIGHUP
        return read_keys(data)

    # --- signals ---

    def _resized(self, *_: object) -> None:
        self.fresh = True
        self._wake()

    def _stopped(self, *_: object) -> None:
        ours = bool(self._before)
        self.give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # here we stand until `fg`
        signal.signal(signal.SIGTSTP, self._stopped)
        if ours:
            self.take()
            self._wake()

    def _continued(self, *_: object) -> None:
        """Also after a stop that nobody could hear of."""
        if self._before:
            self.take()
            self._wake()

    def _asked_to_end(self, number: int, _: object) -> None:
        self.ended = number
        self._wake()
        if not self._before:
            raise SystemExit(128 + number)  # whatever has the terminal meanwhile ends, too


def read_keys(data: bytes) -> list[str]:
    """Bytes from a terminal as keys; what is unknown is left out."""
    found = []
    at = 0
    while at < len(data):
        known = next((key for key in sorted(KEYS, key=len, reverse=True) if data.startswith(key, at)), b"")
        if known == b"\x1b" and data[at + 1 : at + 2] in (b"[", b"O"):  # a sequence that we don't know
            at += 2
            while at < len(data) and not 0x40 <= data[at] <= 0x7E:
                at += 1
            at += 1
            continue
        if known:
            found.append(KEYS[known])
        elif 32 <= data[at] < 127:
            found.append(chr(data[at]))
        at += len(known) or 1
    return found
