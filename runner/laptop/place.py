"""The folder of our sockets, which may be below /tmp: whether it is ours alone."""

from __future__ import annotations

import os

from runner import errors

WRITE_OF_OTHERS, STICKY = 0o022, 0o1000  # `stat` would cost an import


def check_own(folder: str) -> None:
    """Nobody else may put a socket of theirs in the place of ours, nor the folder in the place of this one. Refused."""
    for path, owners in ((folder, (os.getuid(),)), (os.path.dirname(folder), (os.getuid(), 0))):
        named, found = os.lstat(path), os.stat(path)
        theirs = found.st_mode & WRITE_OF_OTHERS and not (found.st_mode & STICKY and 0 in owners)
        if theirs or named.st_uid not in owners or found.st_uid not in owners:
            raise errors.Refused(f"{path} belongs to others, or others may write to it", "set XDG_RUNTIME_DIR")
