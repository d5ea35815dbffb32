"""Xids: faults that the NVIDIA driver writes into the kernel's log, the worst of which NVML does not tell."""

from __future__ import annotations

import os
import re
import time

from runner.box.gpus.bus import place
from runner.box.gpus.xids import FELL_OFF, TEXTS

RECORD_MAX = 8192  # a smaller read of /dev/kmsg fails when the record is longer
RECORDS_MAX = 1000  # at once: a storm must not hold the readings up
SAME_SECONDS = 5.0  # a fault that is told twice within this is one

XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),?\s*(.*)")
FALLEN = re.compile(r"NVRM: .*GPU .*has fallen off the bus")
PID = re.compile(r"\bpid=(\d{1,10})\b")
PLACE = re.compile(r"([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Xid = dict[str, object]


class KernelLog:
    """Follows the kernel's log from now on. Where it may not be read it stays silent; `readable` says so."""

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self._fd = -1
        self._told: dict[tuple[str, int], float] = {}  # (bus id, code) -> when it was told last, monotonic
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self.close()

    @property
    def readable(self) -> bool:
        return self._fd >= 0

    def read(self) -> list[Xid]:
        """What was logged since the last call: at, bus_id, code, text of each."""
        found: list[Xid] = []
        for _ in range(RECORDS_MAX if self.readable else 0):
            try:
                record = os.read(self._fd, RECORD_MAX)
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten before we came: on with the oldest that is left
                continue
            except OSError:
                self.close()
                break
            if not record:
                break
            if b"NVRM" in record:
                found += filter(None, map(self._xid, record.decode(errors="replace").splitlines()))
        return found

    def beside(self, told: Iterable[tuple[str, int]]) -> list[Xid]:
        """Of the faults that somebody else tells, as (bus id, code), those that the log has not told."""
        return [found for bus_id, code in told if (found := self._new(bus_id, code, TEXTS.get(code, ""), None))]

    def _xid(self, line: str) -> Xid | None:
        seen = parse(line)
        return None if seen is None else self._new(*seen, pid_of(line))

    def _new(self, bus_id: str, code: int, text: str, pid: int | None) -> Xid | None:
        now = time.monotonic()
        if now - self._told.get((bus_id, code), -SAME_SECONDS) < SAME_SECONDS:
            return None
        self._told[bus_id, code] = now
        found: Xid = {"at": time.time(), "bus_id": bus_id, "code": code, "text": text}
        return found if pid is None else found | {"pid": pid}

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def parse(line: str) -> tuple[str, int, str] | None:
    """(bus id, code, words) of a line that tells of a fault."""
    if line.startswith(" "):  # a record's dictionary, not its message
        return None
    xid = XID.search(line)
    if xid is not None:
        code = int(xid[2])
        return place(xid[1]), code, TEXTS.get(code) or xid[3][:200]
    if FALLEN.search(line) and (found := PLACE.search(line)):
        return place(found[1]), FELL_OFF, TEXTS[FELL_OFF]
    return None


def pid_of(line: str) -> int | None:
    """The process that the driver lays a fault to; it writes `pid=4242, name=python`, or that it does not know."""
    found = PID.search(line)
    return int(found[1]) if found is not None and int(found[1]) > 0 else None
