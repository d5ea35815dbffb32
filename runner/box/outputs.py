"""What a job left in RUNNER_OUT: listed and read without ever leaving that folder.

The job may have filled it with anything, and may still be at it. So every step goes by descriptor from the folder down,
follows no link, and opens only plain files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from runner import errors

ENTRIES_MAX = 100_000  # files, links and folders
DEPTH_MAX = 100  # folders in folders: each one holds a descriptor open
PIECE = 256 << 10

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Output(NamedTuple):
    """A file. Paths are relative, with "/", and undecodable bytes as os.fsdecode makes them."""

    path: str
    size: int
    mode: int
    modified_at: float


class Listing(NamedTuple):
    outputs: list[Output]
    links: dict[str, str]

    def as_json(self) -> dict[str, object]:
        """For a JSON writer that escapes what is not ASCII: a name can hold halves of surrogate pairs."""
        return {"outputs": [output._asdict() for output in self.outputs], "links": self.links}

    @property
    def bytes(self) -> int:
        return sum(output.size for output in self.outputs)


def listing(root: str) -> Listing:
    """The files and links below an output folder, in order of their paths; nothing when there is no folder."""
    found = Listing([], {})
    try:
        fd = os.open(root, _FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return found
    for count, (path, entry, target) in enumerate(_walk(fd, "", 0), 1):
        if count > ENTRIES_MAX:
            raise errors.TooLarge(
                f"there are more than {ENTRIES_MAX:,} files in the output folder {root}",
                "let the job pack them into one archive",
            )
        if stat.S_ISREG(entry.st_mode):
            found.outputs.append(Output(path, entry.st_size, entry.st_mode & 0o777, entry.st_mtime))
        elif target is not None:
            found.links[path] = target
    found.outputs.sort()
    return found


def _walk(fd: int, prefix: str, depth: int) -> Iterator[tuple[str, os.stat_result, str | None]]:
    """(path, what it is, where it leads if it is a link) of everything below; takes the descriptor over."""
    if depth > DEPTH_MAX:
        os.close(fd)
        raise errors.TooLarge(f"{prefix} is more than {DEPTH_MAX} folders deep", "let the job pack it into an archive")
    try:
        for name in os.listdir(fd):
            try:
                entry = os.stat(name, dir_fd=fd, follow_symlinks=False)
                yield prefix + name, entry, os.readlink(name, dir_fd=fd) if stat.S_ISLNK(entry.st_mode) else None
                if stat.S_ISDIR(entry.st_mode):
                    yield from _walk(os.open(name, _FOLDER, dir_fd=fd), f"{prefix}{name}/", depth + 1)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue  # gone or replaced since, or closed to us
    finally:
        os.close(fd)


def open_file(root: str, path: str) -> tuple[int, os.stat_result]:
    """A descriptor of an output file, and what it is."""
    parts = path.split("/")
    if not path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise errors.BadRequest(f"{path!r} is no path of an output file", "paths are relative to the output folder")
    fd = None
    try:
        fd = os.open(root, _FOLDER)
        for number, name in enumerate(parts, 1):
            inner = os.open(name, _FILE if number == len(parts) else _FOLDER, dir_fd=fd)
            os.close(fd)
            fd = inner
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a file")
    except OSError:
        if fd is not None:
            os.close(fd)
        raise errors.NotFound(f"there is no output file {path!r}", "`runner show ID` lists a job's outputs") from None
    return fd, found


def pieces(fd: int, offset: int, until: int) -> Iterator[bytes]:
    """The bytes offset..until of an open file, fewer if it has become shorter; closes it."""
    try:
        while offset < until and (data := os.pread(fd, min(PIECE, until - offset), offset)):
            offset += len(data)
            yield data
    finally:
        os.close(fd)


def named(raw: bytes) -> str:
    """The path that a URL's raw, percent-encoded bytes mean. A decoded URL has lost what is not UTF-8."""
    return os.fsdecode(unquote_to_bytes(raw))
