"""Running a command that must succeed, and waiting for what must become true."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class BedError(Exception):
    """The bed could not do what it was asked; the text says what and why."""


def call(*command: str, text: str | None = None) -> str:
    """What a command printed; text is its input. Raises BedError with its last words when it fails."""
    done = subprocess.run(command, input=text or "", capture_output=True, text=True)
    if done.returncode:
        raise BedError(f"{shlex.join(command)} ended with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def until(condition: Callable[[], T], seconds: float, story: Callable[[], str], pause: float = 0.01) -> T:
    """The first true value of condition. Raises BedError with what story() says when that takes too long."""
    deadline = time.monotonic() + seconds
    while not (seen := condition()):
        if time.monotonic() > deadline:
            raise BedError(f"not within {seconds:g} s: {story()}")
        time.sleep(pause)
    return seen


def private(folder: Path) -> None:
    """Make a folder that is ours alone. Raises BedError where somebody else made it: anybody can, in /var/tmp."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.lstat()
    if folder.is_symlink() or about.st_uid != os.geteuid():
        raise BedError(f"{folder} belongs to user {about.st_uid}: remove it, or set XDG_CACHE_HOME")
    folder.chmod(0o700)
