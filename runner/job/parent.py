"""The parent of supervisors: preloaded, it forks one per request, which is 10 ms cheaper than a new interpreter.

It reads attempt directories from a socket on descriptor 0, one a packet, and ends when the daemon's side closes.
The supervisors live on: each is its own session, and their records are on disk. One supervisor is always staged:
forked ahead, its pages copied, waiting for its directory on a pipe; it leaves when the pipe closes.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys

from runner import files
from runner.job.supervisor import stage, supervise
from runner.paths import AttemptDir

PACKET = 65536
QUIET_MS = 10


def serve(link: socket.socket) -> None:
    """Fork a supervisor for each attempt directory that arrives; answer only when that fails."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps supervisors: their word is on disk
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the daemon
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, every page in each child
    staged: int | None = None  # the pipe to a supervisor that waits for work
    waiting = select.poll()
    waiting.register(link, select.POLLIN)
    while True:
        # Not before it is quiet: the job that was just asked for needs the processor more.
        if staged is None and not waiting.poll(QUIET_MS):
            staged = _stage_if_possible(link)
        try:
            packet = link.recv(PACKET)
        except ConnectionResetError:  # the daemon ended before it had read what we answered
            return
        if not packet:
            return
        files.failpoint("p.received")
        try:
            if staged is None or not _give(staged, packet):
                _give(_stage(link), packet)
        except OSError as error:
            _answer(link, f"{error.strerror}\0{os.fsdecode(packet)}")
        files.failpoint("p.forked")
        staged = None


def _answer(link: socket.socket, said: str) -> None:
    try:
        link.send(os.fsencode(said), socket.MSG_DONTWAIT)
    except OSError:
        pass  # nobody listens: the attempt is fenced off a little later


def _give(pipe: int, packet: bytes) -> bool:
    """Hand a directory to a staged supervisor; False when that one was killed meanwhile."""
    try:
        os.write(pipe, packet)
    except BrokenPipeError:
        return False
    finally:
        os.close(pipe)
    return True


def _stage_if_possible(link: socket.socket) -> int | None:
    """The pipe to a supervisor that waits for work; None: the next request forks its own, or says why not."""
    try:
        return _stage(link)
    except OSError:
        return None


def _stage(link: socket.socket) -> int:
    """Fork a supervisor ahead; returns the pipe that it waits on."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        os.close(writer)
        _supervisor(link, reader)
    os.close(reader)
    return writer


def _supervisor(link: socket.socket, pipe: int) -> None:
    code, directory = 70, ""
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        if link.fileno() > 0:
            link.close()
        stage()
        directory = os.fsdecode(os.read(pipe, PACKET))
        os.close(pipe)
        if not directory:
            os._exit(0)
        files.failpoint("s.forked")
        code = supervise(AttemptDir(directory))
    except BaseException as error:
        # Without a record the daemon finds the lock free and settles it; the cause goes to its log.
        os.write(2, os.fsencode(f"supervisor {directory}: {type(error).__name__}: {error}\n"))
    finally:
        os._exit(code)


def main() -> int:
    serve(socket.socket(fileno=os.dup(0)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
