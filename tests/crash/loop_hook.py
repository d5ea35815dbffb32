"""Armed inside a real daemon and the frozen parent of its supervisors: dies where an order lies, and leaves a trace.

Standard library and runner.files only: its source is put in front of the frozen parent's own.
"""

import os
import signal
import sys

from runner import files

ROLE = "run" if sys.argv[1:] == ["parent"] else "daemon"
FOLDER = os.environ["CRASH_FOLDER"]


def _attempt() -> str:
    """The attempt directory that somebody on the stack works for."""
    frame = sys._getframe(2)
    while frame is not None:
        found = frame.f_locals.get("directory")
        if found is not None:
            return str(found)
        frame = frame.f_back  # type: ignore[assignment]
    return "-"


def die_on_order(name: str) -> None:
    window = f"{ROLE}:{name}"
    try:
        os.rename(f"{FOLDER}/order.{window}", f"{FOLDER}/taken.{window}")  # one process gets it
    except FileNotFoundError:
        return
    trace = os.open(f"{FOLDER}/trace", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    os.write(trace, f"{window} {os.getpid()} {_attempt()}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


files.armed = die_on_order
