"""What an environment is made of, and the interface that each way of making one has."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from runner import errors

Read = Callable[[str], bytes | None]  # a snapshot file's content by its path; None: no such file


@dataclass(frozen=True)
class Recipe:
    """All that decides what an environment holds. Equal recipes share one environment."""

    kind: str
    id: str
    label: str  # where it came from, for people: "header of train.py"
    files: dict[str, bytes]  # laid in the build folder under these names; the first one is installed from
    python: str | None = None  # the version asked for, like ">=3.12"; None: the box's
    wheels: str = ""  # of wheels.CHOICES: which of PyTorch's

    @classmethod
    def of(
        cls,
        kind: str,
        method: int,
        base: str,
        label: str,
        files: dict[str, bytes],
        python: str | None = None,
        wheels: str = "",
    ) -> Recipe:
        """method: the kind's version of how it builds, so that a better way does not reuse what the old one made."""
        digest = hashlib.sha256(f"{kind}\0{method}\0{base}\0{python or ''}\0".encode())
        for name, content in files.items():
            digest.update(os.fsencode(f"{name}\0{len(content)}\0") + content)
        if wheels:
            digest.update(f"wheels\0{wheels}\0".encode())
        return cls(kind, digest.hexdigest()[:16], label, files, python, wheels)


class Kind(Protocol):
    """A way to make environments: uv; conda and containers beside it."""

    name: str

    def recipe(self, read: Read, script: str | None, chosen: str = "") -> Recipe | None:
        """What the snapshot declares for this kind; None: nothing. BadRequest when it can't be used. chosen: of
        wheels.CHOICES, for what leaves that open."""

    def build(self, recipe: Recipe, directory: str, log: BinaryIO, lock: int) -> None:
        """Make it, and return when all of it is on the disk. Processes that write below `directory` inherit `lock`."""

    def bin_dir(self, directory: str) -> str:
        """Where its programs are, to be put first on a job's PATH."""


class EnvironmentFailed(errors.Problem):
    code, exit_code, http_status = "environment_failed", 65, 422


@functools.cache
def interpreter(python: str) -> str:
    """Version and place of an interpreter. Its place counts too: an environment is a link to that very file."""
    path = os.path.realpath(python)
    if path == os.path.realpath(sys.executable):
        return f"{platform.python_version()} {path}"
    program = "import platform; print(platform.python_version())"
    try:
        ran = subprocess.run([path, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise errors.BadSettings(f"the base Python {python} does not run: {error}", "see `runner doctor`") from error
    return f"{ran.stdout.strip()} {path}"
