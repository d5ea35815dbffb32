"""The parent of supervisors: preloaded, it forks one per request, which is 10 ms cheaper than a new interpreter.

It reads attempt directories from a socket on descriptor 0, one a packet, and ends when the daemon's side closes.
The supervisors live on: each is its own session, and their records are on disk.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

from runner import files
from runner.job.supervisor import supervise
from runner.paths import AttemptDir

PACKET = 65536


def serve(link: socket.socket) -> None:
    """Fork a supervisor for each attempt directory that arrives; answer only when that fails."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps supervisors: their word is on disk
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the daemon
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, every page in each child
    while packet := link.recv(PACKET):
        files.failpoint("p.received")
        try:
            pid = os.fork()
        except OSError as error:
            link.send(f"{error.strerror}\0{packet.decode()}".encode())
            continue
        if pid == 0:
            _supervisor(link, packet.decode())
        files.failpoint("p.forked")


def _supervisor(link: socket.socket, directory: str) -> None:
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        if link.fileno() > 0:
            link.close()
        files.failpoint("s.forked")
        code = supervise(AttemptDir(directory))
    except BaseException as error:
        # Without a record the daemon finds the lock free and settles it; the cause goes to its log.
        os.write(2, f"supervisor {directory}: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def main() -> int:
    serve(socket.socket(fileno=os.dup(0)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
