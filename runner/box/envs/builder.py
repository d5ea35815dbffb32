"""Who runs the programs that make an environment, and removes one: processes of the daemon, as its own user."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import BinaryIO

_LEASH = f"{os.path.dirname(__file__)}/leash.py"


class Builder:
    def scratch(self, directory: str) -> str:
        """The folder of an environment in which its programs may write down what they pass on to each other."""
        return f"{directory}/source"

    def run(
        self, commands: Sequence[Sequence[str]], directory: str, env: dict[str, str], log: BinaryIO, lock: int,
        seconds: float,
    ) -> int | None:  # fmt: skip
        """The code of the first that failed, or 0; None: out of time. Nothing of it runs any more on return."""
        leash = [sys.executable, "-I", _LEASH, str(os.getpid()), str(lock), json.dumps(commands)]
        process = subprocess.Popen(
            leash, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=f"{directory}/source", env=env,
            start_new_session=True, pass_fds=[lock],
        )  # fmt: skip
        ended = os.pidfd_open(process.pid)
        try:
            in_time = select.select([ended], [], [], seconds)[0]
        finally:
            os.close(ended)
            os.killpg(process.pid, signal.SIGKILL)  # before it is reaped, so that the number is still its own
            process.wait()
        return process.returncode if in_time else None

    def remove(self, directory: str) -> None:
        """The whole folder of an environment. OSError."""
        shutil.rmtree(directory)
