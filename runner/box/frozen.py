"""The frozen supervisor: `state/supervisor/<sha256>.pyz`, so that an upgrade never changes what watches a running job;
and the parent process that forks supervisors out of it. `pyz adopt PID START` is the command of an adopting job.

`python -m runner.box.frozen FOLDER` prints the path of a copy in a folder: root's, for the launcher.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import sys
import time
import zipfile

import runner
from runner import files

_MAIN = """\
import sys

from runner.job import adopt, parent, supervisor

match sys.argv[1:]:
    case ["parent"]:
        sys.exit(parent.main())
    case ["adopt", *process]:
        sys.exit(adopt.main(process))
    case _:
        sys.exit(supervisor.main())
"""
_FOLDER = os.path.dirname(os.path.abspath(runner.__file__))


def archive() -> bytes:
    """The same bytes for the same sources, whenever and wherever they are packed."""
    jobs = sorted(name for name in os.listdir(f"{_FOLDER}/job") if name.endswith(".py"))
    sources = ["__init__.py", "files.py", "paths.py", *(f"job/{name}" for name in jobs)]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as pyz:
        _add(pyz, "__main__.py", _MAIN.encode())
        for name in sources:
            with open(f"{_FOLDER}/{name}", "rb") as file:
                _add(pyz, f"runner/{name}", file.read())
    return packed.getvalue()


def freeze(folder: str) -> str:
    """The path of the current sources' archive in a folder; written durably unless it is there and whole."""
    data = archive()
    path = f"{folder}/{hashlib.sha256(data).hexdigest()}.pyz"
    try:
        with open(path, "rb") as file:
            if file.read() == data:
                return path
    except FileNotFoundError:
        pass
    files.replace(path, data)
    return path


def _add(pyz: zipfile.ZipFile, name: str, data: bytes) -> None:
    pyz.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


class Parents:
    """Starts parents of supervisors, one at a time; the next one only when the last has ended."""

    def __init__(self, pyz: str, log: int) -> None:
        """log: where they say what they can't record."""
        # The daemon's own base interpreter, not the jobs': that may be any version.
        self._command = [getattr(sys, "_base_executable", sys.executable), "-I", "-S", pyz, "parent"]
        self._log = log
        self._pids: list[int] = []

    def spawn(self, link: socket.socket) -> int:
        self._reap()
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            connected = [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in ((link.fileno(), 0), (null, 1), (self._log, 2))]
            pid = os.posix_spawn(
                self._command[0], self._command, os.environ, file_actions=connected, setsid=True, setsigmask=[],
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},  # nohup and `&` have some ignored
            )  # fmt: skip
        finally:
            os.close(null)
        self._pids.append(pid)
        return pid

    def wait(self, seconds: float) -> None:
        """For those whose link was closed, so that none stays behind as a zombie of what is executed next."""
        deadline = time.monotonic() + seconds
        while self._reap() and time.monotonic() < deadline:
            time.sleep(0.005)

    def _reap(self) -> bool:
        """True while one is left."""
        self._pids = [pid for pid in self._pids if os.waitpid(pid, os.WNOHANG)[0] == 0]
        return bool(self._pids)


if __name__ == "__main__":
    frozen = freeze(sys.argv[1])
    os.chmod(frozen, 0o644)  # supervisors are not root
    sys.stdout.write(f"{frozen}\n")
