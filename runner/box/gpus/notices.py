"""PURE: what its owner should know of, each once: in words, with what to do. Time is an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from runner.box.gpus import xids
from runner.box.gpus.frames import Xid
from runner.model import Job, Notice, Process

AGAIN_SECONDS = 600.0  # the same within this is not told again
LASTING = ("disk", "ghost")  # what outlives a daemon, which may be a new one with each command
LASTING_SECONDS = 86400.0

Key = tuple[str, str, str | None, int | None, int | None]


class Once:
    """Lets through what was not told a while ago."""

    def __init__(self) -> None:
        self._told: dict[Key, float] = {}
        self._before: dict[Key, float] = {}  # by an earlier daemon, and not seen by this one yet

    def remember(self, notices: Iterable[Notice]) -> None:
        """These were told, by an earlier daemon."""
        for notice in notices:
            key = _key(notice)
            self._told[key] = max(notice.at, self._told.get(key, 0.0))
            if notice.kind in LASTING:
                self._before[key] = self._told[key]

    def new(self, notices: Iterable[Notice]) -> list[Notice]:
        found = []
        for notice in notices:
            key = _key(notice)
            lasts = 0 <= notice.at - self._before.pop(key, -LASTING_SECONDS) < LASTING_SECONDS
            if not lasts and not 0 <= notice.at - self._told.get(key, -AGAIN_SECONDS) < AGAIN_SECONDS:
                found.append(notice)
                self._told[key] = notice.at
        if len(self._told) > 10_000:
            self._told.clear()
        return found


def _key(notice: Notice) -> Key:
    """What gets worse is told, whatever was."""
    return notice.kind, notice.severity, notice.gpu, notice.job, notice.code


def blamed(xid: Xid, processes: Iterable[Process], holders: Sequence[Job]) -> int | None:
    """The job that a fault is laid to: that of the process which the driver names, else the only one that has the GPU.
    A fault of the card itself is laid to nobody, but hits whoever has it: that is told, too."""
    by_pid: Mapping[int, int | None] = {process.pid: process.job for process in processes}
    if xid.pid is not None and by_pid.get(xid.pid) is not None:
        return by_pid[xid.pid]
    return holders[0].id if len(holders) == 1 else None


def of_xid(xid: Xid, uuid: str, label: str, job: int | None) -> Notice:
    said = xids.words(xid.code, xid.text)
    who = "" if job is None else f"; job {job} had it"
    text = f"{label}: {said or 'a fault'} (Xid {xid.code}){who}"
    return Notice(0, xid.at, "xid", xids.severity(xid.code), text, xids.advice(xid.code), uuid, job, xid.code)
