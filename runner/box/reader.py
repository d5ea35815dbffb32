"""A job's outputs, read as the jobs' user where the daemon is another: by a process that the launcher makes for it.

`serve` answers packets: `list` with a descriptor of the listing as JSON, `sizes` with one of what it takes on the disk,
`open PATH` with one of that file; trouble with words. It has no right that a job has not, and ends with its socket.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from typing import NamedTuple

from runner import files
from runner.box import outputs
from runner.box.outputs import Listing, Output
from runner.errors import NotFound, Problem

PACKET = 16 << 10  # a path is at most 4 KiB, in words of JSON 6 times as long
PATIENCE = 120.0  # seconds for an answer: a job may stop whom it shares a user with


class Sizes(NamedTuple):
    """Bytes on the disk."""

    out: int | None  # None: it is empty, or not there
    checkpoint: int


def measured(out: str) -> Sizes:
    """Of an output folder, and of the checkpoint beside it."""
    try:
        with os.scandir(out) as entries:
            holds = next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        holds = False
    checkpoint = f"{os.path.dirname(out)}/checkpoint"
    return Sizes(files.tree_bytes([out]) if holds else None, files.tree_bytes([checkpoint]))


class Reader:
    """The daemon's end. Blocking, for a worker's thread."""

    def __init__(self, link: socket.socket) -> None:
        link.settimeout(PATIENCE)
        self._link = link

    def listing(self) -> Listing:
        with open(self._ask(b"list"), "rb") as file:
            said = json.loads(file.read())
        return Listing([Output(*each) for each in said["outputs"]], said["links"])

    def sizes(self) -> Sizes:
        with open(self._ask(b"sizes"), "rb") as file:
            return Sizes(*json.loads(file.read()))

    def open_file(self, path: str) -> tuple[int, os.stat_result]:
        """A descriptor of an output file, and what it is."""
        fd = self._ask(b"open " + os.fsencode(path))
        return fd, os.fstat(fd)

    def close(self) -> None:
        self._link.close()

    def _ask(self, request: bytes) -> int:
        """A descriptor of a plain file. OSError: nobody answered; NotFound, with words: there is none."""
        self._link.send(request)
        said, fds, _, _ = socket.recv_fds(self._link, PACKET, 1)
        if not fds:
            raise NotFound(said.decode(errors="replace") or "nobody could read the outputs", "see `runner show ID`")
        if not stat.S_ISREG(os.fstat(fds[0]).st_mode):
            os.close(fds[0])
            raise NotFound("that is no file", "see `runner show ID`")
        os.lseek(fds[0], 0, os.SEEK_SET)
        return fds[0]


def serve(link: socket.socket, root: str) -> None:
    while request := link.recv(PACKET):
        verb, _, path = request.partition(b" ")
        try:
            match verb:
                case b"list":
                    fd = _listed(root)
                case b"sizes":
                    fd = _in_memory(measured(root))
                case _:
                    fd = outputs.open_file(root, os.fsdecode(path))[0]
        except Problem as problem:
            link.send(problem.message.encode(errors="replace")[:PACKET])
            continue
        socket.send_fds(link, [b"ok"], [fd])
        os.close(fd)


def _listed(root: str) -> int:
    found = outputs.listing(root)
    return _in_memory({"outputs": found.outputs, "links": found.links})


def _in_memory(value: object) -> int:
    """A file in memory, because a listing may be larger than any packet."""
    fd = os.memfd_create("answer", os.MFD_CLOEXEC)
    with open(os.dup(fd), "wb") as file:
        file.write(json.dumps(value).encode())
    return fd
