"""Who makes environments on a provisioned box: the jobs' user, in a unit of the launcher's, as an attempt is run.

The daemon writes what is to be done into builds/<id>/, where the supervisor leaves its records, and what is to be
installed into envs/<id>/source/. The jobs' user owns envs/<id>/venv/ and nothing else there; what it holds may be read
by all, since every job needs it and the daemon looks how large it is. Emptying it is the work of its owner again.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO

from runner import files
from runner.box.engines.disk import read
from runner.box.engines.systemd import Systemd
from runner.box.envs.builder import Builder
from runner.job.processes import LAUNCH_VARIABLE
from runner.paths import AttemptDir

TRAVERSED, READABLE, PROGRAM = 0o711, 0o644, 0o755
LOOK_SECONDS = 0.05
START_SECONDS = 60.0  # for a unit that was asked for; then it is fenced
ASK_SECONDS = 15.0  # the unit of the same name may be about to go
REMOVE_SECONDS = 3600.0
LOG_BYTES = 64 << 20
Commands = Sequence[Sequence[str]]


class UnitBuilder(Builder):
    def __init__(self, engine: Systemd) -> None:
        self._engine, self._state = engine, engine.state

    def scratch(self, directory: str) -> str:
        return f"{directory}/venv"

    def run(
        self, commands: Commands, directory: str, env: dict[str, str], log: BinaryIO, lock: int, seconds: float
    ) -> int | None:
        os.chmod(directory, TRAVERSED)
        for folder, _, names in os.walk(f"{directory}/source"):
            os.chmod(folder, PROGRAM)
            for name in names:
                os.chmod(f"{folder}/{name}", READABLE)
        opened = ["chmod", "755", f"{directory}/venv"]  # as its supervisor's umask has not made it
        record = self._attempt(directory, [opened, *commands], f"{directory}/source", env, seconds)
        with suppress(FileNotFoundError), open(self._control(directory).log, "rb") as said:
            shutil.copyfileobj(said, log)
        log.flush()
        if record.get("reason") == "time_limit":
            return None
        if record.get("reason") is None:
            return 0
        log.write(str(record.get("detail", "")).encode())
        log.flush()
        code = record.get("exit_code")
        return code if isinstance(code, int) and code else 1

    def remove(self, directory: str) -> None:
        venv = f"{directory}/venv"
        self._end(self._control(directory))
        if os.path.lexists(venv) and os.lstat(venv).st_uid != os.geteuid():
            emptied = [["chmod", "-R", "u+rwX", venv], ["find", venv, "-mindepth", "1", "-delete"]]
            self._attempt(directory, emptied, "/", {"PATH": os.defpath}, REMOVE_SECONDS)
            os.rmdir(venv)
        shutil.rmtree(directory)
        shutil.rmtree(self._control(directory), ignore_errors=True)

    # --- an attempt ---

    def _control(self, directory: str) -> AttemptDir:
        return AttemptDir(f"{self._state.builds}/{os.path.basename(directory)}")

    def _attempt(
        self, directory: str, commands: Commands, folder: str, env: dict[str, str], seconds: float
    ) -> dict[str, object]:
        """The exit record of a unit that runs them one after the other. OSError: there was none."""
        control, name = self._control(directory), os.path.basename(directory)
        self._end(control)
        shutil.rmtree(control, ignore_errors=True)
        os.mkdir(control, 0o700)
        ours = f"env-{name}-{time.time_ns()}"
        spec = {
            "version": files.SCHEMA, "launch_id": ours, "job": 0, "attempt": 0,
            "argv": ["/bin/sh", "-ec", script(commands)], "directory": folder, "env": env | {LAUNCH_VARIABLE: ours},
            "time_limit": seconds, "grace": 2.0, "log_head_bytes": LOG_BYTES, "log_tail_bytes": LOG_BYTES,
            "events": self._state.events,
        }  # fmt: skip
        with open(control.spec, "x") as file:
            json.dump(spec, file)
        _patiently(lambda: self._engine.build(name))
        return _outcome(control)

    def _end(self, control: AttemptDir) -> None:
        """Of a daemon before us, perhaps: nothing writes into the environment any more, nor will."""
        if not os.path.isdir(control):
            return
        files.put(control, "cancel", {"requested_at": time.time(), "reason": "cancelled", "grace": 0.0})
        while (held := files.lock(control.lock)) is None:
            time.sleep(LOOK_SECONDS)
        files.put(control, "abandoned", {"at": time.time()})
        os.close(held)


def script(commands: Commands) -> str:
    """What a shell is told: readable for all, and after the jobs in the line for a processor."""
    return "\n".join(["umask 022", "renice -n 10 -p $$ >/dev/null", *map(shlex.join, commands)])


def _patiently(ask: Callable[[], None]) -> None:
    deadline = time.monotonic() + ASK_SECONDS
    while True:
        try:
            return ask()
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(LOOK_SECONDS)


def _outcome(control: AttemptDir) -> dict[str, object]:
    """Wait for the exit record. Who is not there by and by is fenced under the lock, as an attempt of a job is."""
    asked = time.monotonic()
    while (record := read(control, "exit")) is None:
        time.sleep(LOOK_SECONDS)
        held = files.lock(control.lock)
        if held is None:
            continue
        try:
            record = read(control, "exit")
            begun = read(control, "started") is not None
            if record is None and (begun or time.monotonic() - asked > START_SECONDS):
                files.put(control, "abandoned", {"at": time.time()})
                raise OSError(0, "its unit ended without a word" if begun else "its unit did not begin", str(control))
        finally:
            os.close(held)
        if record is not None:
            return record
    return record
