"""PURE but for one reading: why a job ended, from its exit record and the tail of its log."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from runner.model import Exit

TAIL = 16 << 10
DETAIL_MAX = 300
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# What a log says when the disk was full. The last match wins: it is nearest to the end.
_DISK_FULL = re.compile(r"^.*(?:No space left on device|Errno 28|Disk quota exceeded).*$", re.MULTILINE)


def explain(end: Exit, tail: str) -> Exit:
    """The end with the line of the log that shows its reason, and the reason that line names."""
    if end.reason not in ("exit_code", "signal"):
        return end
    tail = _ESCAPES.sub("", tail.replace("\r", "\n"))
    full = _DISK_FULL.findall(tail)
    if full:
        return replace(end, reason="disk_full", detail=_line(full[-1]))
    lines = [line for line in tail.splitlines() if line.strip()]
    return replace(end, detail=_line(lines[-1])) if lines and not end.detail else end


def explained(end: Exit, log: str) -> Exit:
    """`explain` with the tail of the log at that path; an end that needs no explaining reads nothing."""
    if end.reason not in ("exit_code", "signal"):
        return end
    try:
        # Not waiting: a job may have put a pipe into its place.
        fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return end
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, TAIL, max(size - TAIL, 0))
    except OSError:  # a folder or a pipe
        return end
    finally:
        os.close(fd)
    return explain(end, tail.decode(errors="replace"))


def _line(text: str) -> str:
    text = text.strip()
    return text if len(text) <= DETAIL_MAX else f"{text[:DETAIL_MAX]}…"
