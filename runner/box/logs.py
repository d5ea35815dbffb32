"""What a job has printed: read by offset, and followed as it grows.

The job writes the file itself; past a cap its supervisor punches a hole into the middle, so an offset means the same
byte forever. A follower is sent frames: a JSON line that says how many bytes follow it, then those bytes.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import errno
import json
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator

from runner import errors, files, model

FRAME = 64 << 10
ALIVE_SECONDS = 15.0  # a silent follower is told that we are still there
LOOK_SECONDS = 2.0  # events come first; this is the net below them
POLL_SECONDS = 0.5  # where there is no inotify
_GROWS, _APPEARS = files.IN_MODIFY, files.IN_CREATE | files.IN_MOVED_TO
_NO_LINKS = 0x02000000  # IN_DONT_FOLLOW


# --- by offset -----------------------------------------------------------------------------------------------------


def size(path: str) -> int:
    """Bytes printed so far, those dropped from the middle included; 0 before the first."""
    fd = _open(path)
    if fd is None:
        return 0
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def locate(path: str, offset: int) -> int:
    """The offset of the first byte that can be read from `offset` on; a negative one counts from the end."""
    fd = _open(path)
    if fd is None:
        return max(0, offset)
    try:
        end = os.fstat(fd).st_size
        offset = max(0, end + offset) if offset < 0 else min(offset, end)
        return _edge(fd, offset, os.SEEK_DATA, end) if offset < end else offset
    finally:
        os.close(fd)


def read(path: str, offset: int, limit: int) -> bytes:
    """At most `limit` bytes from `locate(path, offset)` on, and none from behind the next gap."""
    offset = locate(path, offset)
    fd = _open(path)
    if fd is None:
        return b""
    try:
        return _piece(fd, offset, min(os.fstat(fd).st_size, offset + limit))[1]
    finally:
        os.close(fd)


def segments(path: str, offset: int, until: int) -> Iterator[tuple[str, int, int]]:
    """("data", from, to) and ("gap", from, to) in turn, which together are offset..until."""
    fd = _open(path)
    if fd is None:
        return
    try:
        until = min(until, os.fstat(fd).st_size)
        while offset < until:
            data = _edge(fd, offset, os.SEEK_DATA, until)
            if data > offset:
                yield "gap", offset, data
            offset = _edge(fd, data, os.SEEK_HOLE, until) if data < until else until
            if data < offset:
                yield "data", data, offset
    finally:
        os.close(fd)


def _open(path: str) -> int | None:
    """The log, opened; None when there is none. It may have become anything: its job could write there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise _not_a_log(path) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _not_a_log(path)
    return fd


def _not_a_log(path: str) -> errors.BadData:
    return errors.BadData(f"{path} is not a log any more, but a link or a device", "`runner rerun` runs the job again")


def _edge(fd: int, offset: int, kind: int, until: int) -> int:
    """Where data (or a hole) begins, at or after offset; `until` if not before."""
    try:
        return min(os.lseek(fd, offset, kind), until)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return until
        if error.errno == errno.EINVAL:  # a file system that does not know: all is data
            return offset if kind == os.SEEK_DATA else until
        raise


def _piece(fd: int, offset: int, until: int) -> tuple[int, bytes]:
    """(its end, its bytes) of the piece that begins at offset; without bytes it is a gap."""
    end = _edge(fd, offset, os.SEEK_DATA, until)
    if end > offset:
        return end, b""
    data = os.pread(fd, until - offset, offset)
    # Asked after the reading: where there is no hole now there was none then.
    data = data[: _edge(fd, offset, os.SEEK_HOLE, until) - offset]
    if data:
        return offset + len(data), data
    end = _edge(fd, offset, os.SEEK_DATA, until)
    return (end if end > offset else until), b""  # punched, or cut, while we read


# --- as it grows -----------------------------------------------------------------------------------------------------


def frame(kind: str, body: bytes = b"", **values: object) -> bytes:
    return json.dumps({"kind": kind, **values, "bytes": len(body)}).encode() + b"\n" + body


async def follow(
    job_of: Callable[[], model.Job],
    log_of: Callable[[int], str],
    woken: asyncio.Event,
    offset: int = 0,
    attempt: int | None = None,
) -> AsyncIterator[bytes]:
    """The frames of a job's log from an attempt's offset on, through later attempts, to the job's end.

    job_of: the job as it is now. log_of: the path of an attempt's log. woken: set by the caller when the job may have
    changed (and by us when the log has). A slow reader is waited for, and never costs more than one frame of memory.
    """
    clock = asyncio.get_running_loop().time
    first = job_of()
    tail = _Tail(log_of, woken, attempt or max(1, first.attempt), offset)
    told: tuple[object, ...] = ()
    sent_at = clock()
    try:
        while True:
            woken.clear()
            job = copy.copy(job_of())  # as it is before we read: it goes on while a slow reader takes the pieces
            news = (job.state, job.why, job.attempt)
            if news != told and not job.finished and job.attempt <= tail.attempt:
                told, sent_at = news, clock()
                yield frame("state", state=job.state, why=job.why, attempt=job.attempt)
            for piece in tail.pieces():  # all that was printed before `job` was as it is
                sent_at = clock()
                yield piece
                await asyncio.sleep(0)  # a reader that is always ready must not keep others from their turn
            if job.attempt > tail.attempt:
                tail.turn_to(tail.attempt + 1)
                continue
            if job.finished:
                yield frame("end", job=dataclasses.asdict(job))
                return
            await _wait(woken, tail.patience)
            if clock() - sent_at >= ALIVE_SECONDS:
                sent_at = clock()
                yield frame("alive")
    finally:
        tail.close()


async def _wait(woken: asyncio.Event, seconds: float) -> None:
    timer = asyncio.get_running_loop().call_later(seconds, woken.set)
    try:
        await woken.wait()
    finally:
        timer.cancel()


class _Tail:
    """The end of one attempt's log: what is new there, and a wake-up when there is more."""

    def __init__(self, log_of: Callable[[int], str], woken: asyncio.Event, attempt: int, offset: int) -> None:
        self._log_of, self._woken = log_of, woken
        self.attempt, self._offset = attempt, offset
        self._fd: int | None = None
        self._watched: dict[str, int] = {}  # path -> its number in the watch
        self._watch: files.Watch | None = None
        try:
            self._watch = files.Watch()
        except OSError:  # too many of them: look from time to time
            return
        asyncio.get_running_loop().add_reader(self._watch.fd, self._stirred)

    @property
    def patience(self) -> float:
        return LOOK_SECONDS if self._watched else POLL_SECONDS

    def turn_to(self, attempt: int) -> None:
        self._forget()
        self.attempt, self._offset = attempt, 0

    def pieces(self) -> Iterator[bytes]:
        """Frames of what there is now, read one by one as they are asked for."""
        if self._fd is None:
            self._look()
        if self._fd is None:
            return
        until = os.fstat(self._fd).st_size
        if self._offset < 0:
            self._offset = max(0, until + self._offset)
        self._offset = min(self._offset, until)  # a job can cut its own log; what it prints then is new
        while self._offset < until:
            start = self._offset
            end, data = _piece(self._fd, start, min(until, start + FRAME))
            if data:
                self._offset = end
                yield frame("log", data, attempt=self.attempt, offset=start)
            else:
                self._offset = end = max(end, _edge(self._fd, start, os.SEEK_DATA, until))
                yield frame("gap", attempt=self.attempt, offset=start, until=end)

    def close(self) -> None:
        self._forget()
        if self._watch:
            asyncio.get_running_loop().remove_reader(self._watch.fd)
            self._watch.close()

    def _look(self) -> None:
        """Open the log, or watch where it will appear. Watched first: nothing can come in between unseen."""
        log = self._log_of(self.attempt)
        directory = os.path.dirname(log)
        for path in (log, directory, os.path.dirname(directory)):
            if self._add(path, _GROWS if path == log else _APPEARS):
                break
        self._fd = _open(log)
        if self._fd is not None and self._add(log, _GROWS):
            for path in set(self._watched) - {log}:
                self._drop(path)

    def _add(self, path: str, mask: int) -> bool:
        if self._watch and path not in self._watched:
            try:
                self._watched[path] = self._watch.add(path, mask | _NO_LINKS)
            except OSError:  # not there yet, or too many watches
                return False
        return path in self._watched

    def _drop(self, path: str) -> None:
        assert self._watch is not None, "only what was added can be dropped"
        self._watch.remove(self._watched.pop(path))

    def _forget(self) -> None:
        for path in list(self._watched):
            self._drop(path)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _stirred(self) -> None:
        assert self._watch is not None, "it is the watch that calls"
        self._watch.drain()
        self._woken.set()
