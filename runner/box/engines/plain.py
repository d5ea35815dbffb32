"""The plain engine: supervisors as detached processes of one user, forked from a preloaded parent. No root."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from runner.box.engines import Key, Stop
from runner.box.engines.disk import OnDisk
from runner.job import processes
from runner.job.parent import PACKET
from runner.model import Resources
from runner.paths import StateDir

KILL_WAIT = 0.2  # seconds that a fence waits for killed processes to be gone; then the next look goes on

# Starts a parent of supervisors on one end of a socket pair; returns its process id.
Spawn = Callable[[socket.socket], int]
# Has a turn taken whenever a link has something to read; returns what ends that.
Listen = Callable[[socket.socket], Callable[[], object]]


class Plain(OnDisk):
    def __init__(
        self,
        state: StateDir,
        capacity: Resources,
        spawn: Spawn,
        listen: Listen = lambda link: lambda: None,
        report: Callable[[str], None] = lambda said: None,
    ) -> None:
        super().__init__(state, capacity, report)
        self._spawn, self._listen = spawn, listen
        self._link: socket.socket | None = None
        self._unlisten: Callable[[], object] = lambda: None
        self.parent: int | None = None

    # --- what is left of an attempt ---

    def _left(self, stop: Stop) -> set[int]:
        carriers = processes.carriers(stop.launch_id)
        return carriers.union(*map(processes.descendants, carriers))

    def _end_all(self, stop: Stop) -> bool:
        deadline = time.monotonic() + KILL_WAIT
        while family := self._left(stop):
            processes.kill(family)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    # --- the parent of supervisors ---

    def _ask(self, key: Key) -> None:
        """Ask the parent for a supervisor; one that is gone, or stopped with its mail unread, is replaced once."""
        directory = self._dir(key)
        try:
            self.connect().send(os.fsencode(directory), socket.MSG_DONTWAIT)
        except (BrokenPipeError, ConnectionResetError):
            self._lose_parent()
            self.connect().send(os.fsencode(directory), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.close()
            self.connect().send(os.fsencode(directory), socket.MSG_DONTWAIT)

    def connect(self) -> socket.socket:
        """The link to the parent of supervisors, which is started if there is none."""
        if self._link is None:
            self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self.parent = self._spawn(theirs)
            self._unlisten = self._listen(self._link)
        return self._link

    def _hear(self) -> None:
        """What the parent could not do; or that it is gone."""
        while self._link is not None:
            try:
                packet = self._link.recv(PACKET, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionResetError:  # gone, with mail unread
                packet = b""
            if not packet:
                self._lose_parent()
                return
            why, _, directory = os.fsdecode(packet).partition("\0")
            job, attempt = map(int, directory.split("/")[-2:])
            self._report(f"job {job}, attempt {attempt}: no supervisor could be forked: {why}")
            self._refused.add((job, attempt))

    def _lose_parent(self) -> None:
        if self._awaited:
            self._report(f"the parent of supervisors is gone; {len(self._awaited)} that were asked for are asked again")
        self._refused |= self._awaited
        self.close()

    def close(self) -> None:
        """Let the parent go; supervisors stay."""
        if self._link is not None:
            self._unlisten()
            self._link.close()
            self._link = None
        self._awaited.clear()
