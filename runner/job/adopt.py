"""The command of a job that adopts: it watches a process that the queue did not start, until that one ends.

It only looks: the process is no child of it and hears nothing from it, so a cancel lets go of it and it runs on.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from runner.job import processes

GONE = 3  # exit code when there is no such process
_UNITS = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


class LetGo(Exception):
    """TERM: the job that watches was cancelled."""


def main(argv: list[str]) -> int:
    """argv: the pid, its start in clock ticks since boot. Returns the exit code: 0, or GONE."""
    pid, start = (int(word) for word in argv)
    signal.signal(signal.SIGTERM, _let_go)
    try:
        pidfd = _hold(pid, start)
        if pidfd is None:
            _say(f"process {pid} is gone")
            return GONE
        _say(f"watching process {pid}: {_command(pid)}")
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        _say(f"process {pid} ended after {_duration(_age(start))}; its exit code is known to its parent alone")
    except LetGo:
        _say(f"let go of process {pid}, which runs on")
    return 0


def _hold(pid: int, start: int) -> int | None:
    """A descriptor of this very process. Its start is read when we have it: from then on the pid means nobody else."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # there is none, or the number is that of a thread
        return None
    return pidfd if processes.started(pid) == start else None


def _let_go(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough, and a second must not cut off what we say
    raise LetGo


def _command(pid: int) -> str:
    """As it was typed, in one line that a terminal can show; in brackets the name of one that has none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().replace(b"\0", b" ")
        with open(f"/proc/{pid}/comm", "rb") as file:
            name = file.read()
    except OSError:  # just now
        return "?"
    text = (words.strip() or b"[" + name.strip() + b"]").decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _age(start: int) -> float:
    """Seconds since a start in clock ticks; both count from boot and through suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")


def _duration(seconds: float) -> str:
    """3725 -> 1 h 2 min; the two largest units."""
    whole = max(round(seconds), 0)
    for unit, length, below, part in _UNITS:
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
