"""A fault of gpubox itself: one line for the person, the details in a file for whoever mends it."""

from __future__ import annotations

import os
import sys

import runner
from runner import errors, paths
from runner.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT = "fault.txt"  # in the cache directory; the latest one replaces those before


def tell(fault: BaseException, arguments: Sequence[str]) -> int:
    """Say what happened in one line, and where the rest is; with GPUBOX_DEBUG=1 show it all."""
    import traceback

    details = "".join(traceback.format_exception(fault))
    if os.environ.get("GPUBOX_DEBUG"):
        output.say(details.rstrip("\n"))
    last = traceback.format_exception_only(fault)[-1].strip()
    output.say(f"runner: a fault of gpubox itself: {last[:300]}\n  hint: {_hint(_keep(details, arguments))}")
    return errors.Problem.exit_code


def _hint(path: str | None) -> str:
    if path is None:
        return "run it again with GPUBOX_DEBUG=1, and please report what it prints on the project's page"
    return f"the details are in {path}: please report it with them, on the project's page"


def _keep(details: str, arguments: Sequence[str]) -> str | None:
    """The options are not kept: they can hold secrets (--env)."""
    path = os.path.join(paths.cache_dir(), KEPT)
    python = ".".join(map(str, sys.version_info[:3]))
    head = f"gpubox {runner.__version__}, Python {python}, {os.uname().sysname} {os.uname().release}"
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{head}\nrunner {' '.join(arguments[:1])}\n\n{details}")
    except OSError:
        return None
    return path
