"""The daemon's log: plain lines with the time in UTC; the last one is kept beside it when it has grown."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

BYTES_MAX = 10 << 20
P = ParamSpec("P")
T = TypeVar("T")


class Diary:
    def __init__(self, path: str) -> None:
        before = _inode(path)
        if os.path.exists(path) and os.path.getsize(path) > BYTES_MAX:
            os.rename(path, f"{path}.1")
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        for standard in (1, 2):
            if before is not None and _inode(standard) == before:
                os.dup2(self.fd, standard)  # whoever started us had put the log there
        self._aloud = sys.stderr is not None and sys.stderr.isatty()

    def write(self, said: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        lines = "".join(f"{now} {line}\n" for line in said.splitlines())
        try:
            os.write(self.fd, lines.encode(errors="backslashreplace"))
        except OSError:
            pass  # a full disk must not end the daemon
        if self._aloud:
            sys.stderr.write(lines)

    def guarded(self, work: Callable[P, T]) -> Callable[P, T | None]:
        """The same, but what goes wrong in it is told, once while it stays the same, and is nobody else's trouble."""
        told = ""

        def guard(*args: P.args, **kwargs: P.kwargs) -> T | None:
            nonlocal told
            try:
                made = work(*args, **kwargs)
                told = ""
                return made
            except Exception as error:
                said = "".join(traceback.format_exception(error)).rstrip()
                if said != told:
                    told = said
                    self.write(said)
                return None

        return guard


def _inode(file: str | int) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
