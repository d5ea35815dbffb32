"""Xids: faults that the NVIDIA driver writes into the kernel's log, the worst of which NVML does not tell."""

from __future__ import annotations

import os
import re
import time

from runner.box.gpus.bus import place

RECORD_MAX = 8192  # a smaller read of /dev/kmsg fails when the record is longer
RECORDS_MAX = 1000  # at once: a storm must not hold the readings up
SAME_SECONDS = 5.0  # a fault that is told twice within this is one
FELL_OFF = 79

XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),?\s*(.*)")
FALLEN = re.compile(r"NVRM: .*GPU .*has fallen off the bus")
PLACE = re.compile(r"([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)")

TEXTS = {
    13: "an error of the application: its program on the GPU failed",
    31: "an error of the application: it reached for GPU memory that is not its own",
    43: "an error of the application: its work on the GPU was stopped",
    45: "the driver cleared away what an application left behind",
    48: "its memory has an error that can't be corrected",
    62: "its power controller stopped: it needs a reset",
    63: "a damaged piece of its memory was taken out of use",
    64: "a damaged piece of its memory could not be taken out of use",
    74: "its NVLink failed",
    79: "it fell off the bus",
    92: "its memory has many errors that were corrected",
    94: "its memory has an error that hit one application",
    95: "its memory has an error that may have hit every application",
    109: "it took too long to switch between applications",
    119: "its system processor does not answer",
    120: "its system processor failed",
    154: "the driver changed what it needs to recover",
}

TYPE_CHECKING = False
if TYPE_CHECKING:
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

    def _xid(self, line: str) -> Xid | None:
        seen = parse(line)
        now = time.monotonic()
        if seen is None or now - self._told.get(seen[:2], -SAME_SECONDS) < SAME_SECONDS:
            return None
        bus_id, code, text = seen
        self._told[bus_id, code] = now
        return {"at": time.time(), "bus_id": bus_id, "code": code, "text": text}

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
