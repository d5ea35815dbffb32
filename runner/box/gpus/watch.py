"""The daemon's side of the collector: starts it, hears it, ends one that fell silent, and says since when nothing is
known. On the daemon's loop, without a thread: one reader, and one timer that is due when the next line is too late.

A collector that hangs in the driver may not even die of KILL. It is not waited for, and there is never a second one
beside it: two would hang where one does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from runner.box.gpus.collectors import NO_ANSWER, Child, Collector, Door, Spawn
from runner.box.gpus.frames import Frame, Probe, Trouble, parse
from runner.box.schedule import clock

READ_MAX = 64 << 10  # bytes at a time, so that a flood leaves the loop to others too
FLOOD = 10_000  # reads, lines and KiB between two looks; 8 GPUs and many probes make some hundred
REAP_SECONDS, REAP_SECONDS_MAX = 0.01, 1.0  # between looks for one that is ending: the first, the slowest
SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")  # the last is the driver of WSL
LIBRARY = "libnvidia-ml.so.1"
NO_DRIVER = "no NVIDIA driver found"
ONCE = ("garbage", "deaf")  # keys of what is told once for ever: it may come with every line


@dataclass(slots=True, frozen=True)
class Silence:
    """Nothing is known of the GPUs any more. The next Frame ends it."""

    since: float  # epoch seconds of the last frame, or of the daemon's start
    words: str


@dataclass(slots=True, frozen=True)
class Times:
    """Seconds."""

    silence: float = 5.0  # without a frame: nothing is known
    patience: float = 10.0  # without a frame: killed
    first: float = 30.0  # for the first frame: without persistence the driver wakes card after card, 1.5 s each
    stuck: float = 5.0  # after KILL: it is said that it can't be ended
    leave: float = 1.0  # to end by itself when its socket is closed
    pause: float = 1.0  # before the next one; doubles up to
    pause_max: float = 30.0  # and is short again after one that worked for so long
    late_pause: float = 5.0  # at most, while a driver is there but no GPU yet
    late: float = 120.0  # for so long: then there is none
    absent: float = 60.0  # between looks for a driver where there is none


Heard = Callable[[Frame | Probe | Trouble | Silence], object]


def driver_there() -> bool:
    """Whether there are signs of a driver: a few looks at files, no process. Also one that only LD_LIBRARY_PATH has."""
    folders = filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    return any(os.path.exists(path) for path in (*SIGNS, *(f"{folder}/{LIBRARY}" for folder in folders)))


class Watch:
    """At most one collector at a time. Everything happens on the loop's thread, on which it is made."""

    def __init__(
        self,
        spawn: Spawn | Door,
        heard: Heard,
        said: Callable[[str], object],
        expected: Callable[[], bool],
        times: Times = Times(),
    ) -> None:
        """spawn: starts one, or is where one waits. heard: takes what is new. said: takes a line for the daemon's log,
        once for each change.
        expected: whether a collector is worth a process: GPUs were seen on this box, or there are signs of a driver."""
        self.silent_since: float | None = None
        self.trouble: Trouble | None = None
        self._spawn, self._heard, self._said, self._expected, self._times = spawn, heard, said, expected, times
        self._loop = asyncio.get_running_loop()
        self._collector: Collector | None = None
        self._step: asyncio.TimerHandle | None = None  # the next thing to do about a collector that is not there
        self._look_at: asyncio.TimerHandle | None = None  # when the next frame is too late
        self._due = 0.0
        self._framed, self._framed_at = time.monotonic(), time.time()  # the last frame; at first, our start
        self._known = False  # a frame was heard
        self._given_up = False  # on one that fell silent; and no frame since
        self._late_since: float | None = None  # a driver without a GPU
        self._pause = times.pause
        self._why = NO_ANSWER
        self._told: set[str] = set()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the collector that is there now and a child of ours."""
        return None if self._collector is None else self._collector.pid

    @property
    def looks(self) -> bool:
        """Whether there is a collector now, whosever child."""
        return self._collector is not None

    def begin(self) -> None:
        self._start()

    def probe(self, uuid: str) -> None:
        """Ask for one GPU at once: a Probe follows, unless the collector is not there or not listening."""
        self._ask(f"probe {uuid}\n")

    def look_closely(self, uuid: str) -> None:
        """Have the frames of the next seconds say more of one GPU."""
        self._ask(f"closely {uuid}\n")

    def _ask(self, line: str) -> None:
        if self._collector is not None and self._collector.link is not None:
            with suppress(OSError):
                self._collector.link.send(line.encode())

    def words(self, now: float) -> str | None:
        """Why nothing is known of the GPUs; None: all is well. now: epoch seconds."""
        why = self.trouble.message if self.trouble is not None else self._why
        if self.silent_since is not None:
            return f"nothing is known of the GPUs since {clock(self.silent_since, now)}: {why}"
        if self.trouble is not None:
            return f"nothing is known of the GPUs: {why}"
        if self._look_at is None:
            return NO_DRIVER
        return None if self._known else "the GPUs are being read for the first time"

    def close(self) -> None:
        """End the collector and wait for it, so that no zombie of it stays; one that can't die is left behind."""
        self._closed = True
        for timer in (self._step, self._look_at):
            if timer is not None:
                timer.cancel()
        collector, self._collector = self._collector, None
        if collector is None:
            return
        self._hang_up(collector)
        if collector.killed_at is not None:
            collector.wait(0.0)  # it had its time
        elif not collector.wait(self._times.leave):
            for number in (signal.SIGTERM, signal.SIGKILL):
                collector.signal(number)
                if collector.wait(self._times.leave):
                    break

    # --- a collector's life ---

    def _start(self) -> None:
        if not self._expected():
            self._absent()
            return
        if self._look_at is None:
            self._framed, self._framed_at = time.monotonic(), time.time()
            self._look_in(self._times.silence)
        try:
            spawn = self._spawn
            self._collector = spawn.open() if isinstance(spawn, Door) else Child(spawn)
        except OSError as error:
            self._why = f"their collector can't be started: {error.strerror}"
            self._tell("spawn", f"the collector of the GPUs can't be started: {error.strerror}")
            self._again()
            return
        self._loop.add_reader(self._collector.fd, self._readable)

    def _absent(self) -> None:
        """No process and no timer but the next look."""
        self._tell("absent", f"{NO_DRIVER}: jobs without GPUs go on")
        if self._look_at is not None:
            self._look_at.cancel()
        self._look_at = self.silent_since = self.trouble = None
        self._next(self._times.absent, self._start)

    def _again(self) -> None:
        pause, self._pause = self._pause, min(self._pause * 2, self._times.pause_max)
        late = self._late_since is not None and time.monotonic() - self._late_since < self._times.late
        self._next(min(pause, self._times.late_pause) if late else pause, self._start)

    def _kill(self, collector: Collector) -> None:
        self._hang_up(collector)
        collector.kill()
        self._reap()

    def _hang_up(self, collector: Collector) -> None:
        if collector.link is not None:
            self._loop.remove_reader(collector.fd)
            collector.link.close()
            collector.link = None
            collector.left_at = time.monotonic()

    def _reap(self, pause: float = REAP_SECONDS) -> None:
        """Look whether one that is ending is gone; kill it when it does not go."""
        collector, now = self._collector, time.monotonic()
        if collector is None:
            return
        if collector.gone():
            self._collector = None
            self._ended(collector)
            return
        if collector.killed_at is None:
            if now - collector.left_at >= self._times.leave:
                collector.kill()
        elif now - collector.killed_at >= self._times.stuck:
            since = clock(self._framed_at, time.time())
            self._tell("stuck", f"{NO_ANSWER} since {since}: process {collector.pid}, which reads it, can't be ended")
        self._next(pause, lambda: self._reap(min(pause * 2, REAP_SECONDS_MAX)))

    def _ended(self, collector: Collector) -> None:
        self._forgive(collector)
        hangs = self._given_up and collector.pid is None  # the door stays closed until systemd has ended that one
        if collector.killed_at is None and not collector.troubled and not hangs:
            self.trouble = None
            self._why = f"their collector {collector.end()}"
            self._tell(f"ended {collector.end()}", f"the collector of the GPUs {collector.end()}; it is started again")
        self._again()

    def _forgive(self, collector: Collector) -> None:
        """After one that worked for long, the next one comes soon, and what goes wrong then is news."""
        if collector.framed and time.monotonic() - collector.began >= self._times.pause_max:
            self._pause = self._times.pause
            self._told.intersection_update(ONCE)

    def _next(self, seconds: float, step: Callable[[], object]) -> None:
        if self._step is not None:
            self._step.cancel()
        self._step = self._loop.call_later(seconds, step)

    # --- what it says ---

    def _readable(self) -> None:
        collector = self._collector
        if collector is None or collector.link is None:
            return
        try:
            data = collector.link.recv(READ_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._read(collector, data)
        else:
            self._hang_up(collector)
            self._reap()

    def _read(self, collector: Collector, data: bytes) -> None:
        lines = collector.lines(data)
        collector.work += 1 + len(data) // 1024 + len(lines)
        if collector.work > FLOOD:
            self._why = "their collector sends more than can be read"
            self._tell("flood", "the collector of the GPUs sends more than can be read; it is started again")
            self._kill(collector)
            return
        for line in lines:
            self._take(collector, line)
            if collector.link is None:
                return  # whoever heard it has closed us

    def _take(self, collector: Collector, line: bytes) -> None:
        try:
            value = parse(line)
        except ValueError as error:
            collector.why = f"their collector sends {error}"
            self._tell("garbage", f"the collector of the GPUs sends {error}; it is passed over")
            return
        if isinstance(value, Frame):
            self._frame(collector, value)
        elif isinstance(value, Trouble):
            self._troubled(collector, value)
        self._hand(value)

    def _frame(self, collector: Collector, frame: Frame) -> None:
        self._framed, self._framed_at = time.monotonic(), time.time()
        self._given_up = False
        collector.framed, collector.waited_from, collector.why = True, self._framed, NO_ANSWER
        if self._known and self.silent_since is None and self.trouble is None:
            return
        self.silent_since = self.trouble = self._late_since = None
        self._known, self._why = True, NO_ANSWER
        count = len(frame.cards)
        self._tell("read", f"{count} GPU{'s' * (count != 1)} seen, driver {frame.driver or 'unknown'}")

    def _troubled(self, collector: Collector, trouble: Trouble) -> None:
        self.trouble, collector.troubled = trouble, True
        if trouble.code != "no_gpu":
            self._late_since = None
        elif self._late_since is None:
            self._late_since = time.monotonic()
        self._tell(f"trouble {trouble.code}", "; ".join(filter(None, (trouble.message, trouble.hint))))

    def _hand(self, value: Frame | Probe | Trouble | Silence) -> None:
        try:
            self._heard(value)
        except Exception as error:  # our own fault, but the next line may be understood
            said = "".join(traceback.format_exception(error)).rstrip()
            self._tell("deaf", f"what the collector of the GPUs said was not understood: {said}")

    def _tell(self, key: str, line: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._said(line)

    # --- what it does not say ---

    def _look_in(self, seconds: float) -> None:
        self._due = time.monotonic() + seconds
        self._look_at = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """A frame is late, or was when this was planned."""
        now, collector, times = time.monotonic(), self._collector, self._times
        self._make_up(collector, now)
        quiet = now - self._framed
        if quiet >= times.silence:
            self._silent(collector)
        elif collector is not None:
            self._forgive(collector)
        if self._closed:
            return  # by whoever heard it
        left = times.silence - quiet if quiet < times.silence else times.silence
        if collector is not None and collector.link is not None:
            deadline = collector.waited_from + (times.patience if collector.framed else times.first)
            if now >= deadline:
                self._give_up(collector)
            else:
                left = min(left, deadline - now)
        self._look_in(left)

    def _make_up(self, collector: Collector | None, now: float) -> None:
        """The time in which we did not run ourselves is not held against it."""
        held_up = now - self._due
        if held_up >= self._times.silence:
            self._framed = min(self._framed + held_up, now)
        if collector is not None:
            collector.work = 0
            if held_up >= self._times.silence:
                collector.waited_from = min(collector.waited_from + held_up, now)

    def _give_up(self, collector: Collector) -> None:
        if not collector.troubled:
            self.trouble, self._why = None, collector.why
        self._given_up = True
        self._kill(collector)

    def _silent(self, collector: Collector | None) -> None:
        if self.silent_since is not None:
            return
        self.silent_since = self._framed_at
        if collector is not None and (collector.framed or collector.why != NO_ANSWER):
            self._why = collector.why
        words = self.words(time.time()) or ""
        if self.trouble is None:  # else it is told
            self._tell("silent", words)
        self._hand(Silence(self.silent_since, words))
