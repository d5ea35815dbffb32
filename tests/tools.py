"""What many tests need: a tool or a skip, patience with a deadline, a box of one's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from runner import paths

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")
CLI = (sys.executable, "-m", "runner")


def need(tool: str) -> str:
    """The path of a program, or a skip. In CI a skip is a failure: .ci/run installs what the tests need."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"needs {tool}")
    return found


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


def wait_until(condition: Callable[[], T], timeout: float = 10.0, on_timeout: Callable[[], object] | None = None) -> T:
    """The first true value of condition. Fails with the last value seen, and with what on_timeout() says."""
    deadline = time.monotonic() + timeout
    while True:
        seen = condition()
        if seen:
            return seen
        if time.monotonic() > deadline:
            story = "" if on_timeout is None else f"\n{on_timeout()}"
            pytest.fail(f"not true within {timeout:g} s; last seen: {seen!r}{story}")
        time.sleep(0.005)


def processes_naming(text: str) -> dict[int, str]:
    """pid -> command line, of the processes that have a text in their command line or environment."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = Path(entry.path, "cmdline").read_bytes()
            if text.encode() in command or text.encode() in Path(entry.path, "environ").read_bytes():
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # it ended, or it is not ours
    return found


class Box:
    """An embedded box: a real daemon on a state directory of its own, and the command line that talks to it."""

    def __init__(self, state: Path) -> None:
        self.state = paths.StateDir(state)
        self.socket = paths.api_socket(self.state)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.env = {**os.environ, "GPUBOX_STATE": str(state)}

    def start(self) -> None:
        with open(f"{self.state}.out", "ab") as out:
            command = (sys.executable, "-m", "runner.box")
            self.daemon = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        wait_until(self._listens, 20, self.story)

    def _listens(self) -> bool:
        assert self.daemon is not None
        if self.daemon.poll() is not None:
            pytest.fail(f"the daemon ended with {self.daemon.returncode}\n{self.story()}")
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.socket) == 0

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End the daemon alone, by its pid: jobs live on, as they must."""
        assert self.daemon is not None
        self.daemon.send_signal(how)
        return self.daemon.wait(20)

    def end(self) -> None:
        """End the daemon and everything that belongs to its state: supervisors and jobs."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait(20)
        wait_until(self._swept, 20, self.processes)

    def _swept(self) -> bool:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not self.processes()

    def processes(self) -> dict[int, str]:
        return processes_naming(self.state)

    def story(self) -> str:
        """The ends of what the daemon said, for a test that failed."""
        logs = (Path(f"{self.state}.out"), Path(self.state.daemon_log))
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-4000:]}" for log in logs if log.exists())

    def call(self, *args: str, cwd: Path | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """`runner ARGS`, without a terminal; whatever code it ends with."""
        return subprocess.run(
            (*CLI, *args),
            env=self.env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def run(self, *args: str, cwd: Path | None = None, timeout: float = 60) -> str:
        """What `runner ARGS` printed; it must succeed."""
        done = self.call(*args, cwd=cwd, timeout=timeout)
        assert done.returncode == 0, (
            f"runner {' '.join(args)} ended with {done.returncode}\n{done.stderr}\n{self.story()}"
        )
        return done.stdout

    def json(self, *args: str, cwd: Path | None = None) -> Any:
        """What `runner ARGS --json` printed, as values; options of ours stand before the script."""
        return json.loads(self.run(args[0], "--json", *args[1:], cwd=cwd))
