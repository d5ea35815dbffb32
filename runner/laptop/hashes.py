"""A file's content by its name: the sha256 of one state of it, which did not change while it was read."""

from __future__ import annotations

import os

from runner import errors
from runner.laptop import index
from runner.laptop.git import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

TRIES = 3  # a file that changes while it is read gets this many chances to sit still
PIECE = 1 << 20
SMALL = 1 << 20  # up to here the interpreter's own sha256 is quicker than the import of OpenSSL's (3 ms)


def sha256(size: int = 1 << 62) -> Callable[..., Any]:
    """The constructor that is quickest for so many bytes altogether."""
    for name in ("_sha2", "_sha256") if size <= SMALL else ():  # Python 3.12 and later; 3.11
        try:
            light: Callable[..., Any] = __import__(name).sha256
        except ImportError:
            continue
        return light
    import hashlib

    return hashlib.sha256


def of_file(
    root: str, path: str, kind: Callable[..., Any], told: Callable[[int], object] = lambda read: None
) -> tuple[index.Stamp, str]:
    """The stamp and hash of one state of a file: it must be the same file before and after the reading. told: how much
    of it was read."""
    for _ in range(TRIES):
        digest = kind()
        fd = open_file(root, path)
        try:
            before = index.stamp_of(os.fstat(fd))
            left = before[0]
            while piece := os.read(fd, PIECE):
                digest.update(piece)
                left -= len(piece)
                if left < 0:
                    break
                told(before[0] - left)
            if left == 0 and index.stamp_of(os.fstat(fd)) == before:
                return before, digest.hexdigest()
        except OSError as error:
            raise unreadable(path, error) from None
        finally:
            os.close(fd)
    raise errors.BadData(
        f"{shown(path)} changed each of the {TRIES} times it was read",
        "wait until it is complete, or leave it out with a line in .runnerignore",
    )


def open_file(root: str, path: str) -> int:
    try:
        return os.open(f"{root}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: str, error: OSError) -> errors.BadData:
    return errors.BadData(
        f"{shown(path)} can't be read: {error.strerror}",
        "make it readable, or leave it out with a line in .runnerignore",
    )
