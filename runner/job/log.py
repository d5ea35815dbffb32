"""A job's log: written by the job itself, its middle given back past a cap while offsets stay true."""

from __future__ import annotations

import os

from runner import files
from runner.paths import AttemptDir

PUNCH_STEP = 8 << 20


class Log:
    def __init__(self, directory: AttemptDir, spec: dict[str, object]) -> None:
        self.fd = open_log(directory)
        self.head = int(str(spec["log_head_bytes"])) & ~4095
        self.tail = int(str(spec["log_tail_bytes"]))
        self.punched = self.head  # everything in head..punched is already a hole

    def trim(self) -> None:
        end = (os.fstat(self.fd).st_size - self.tail) & ~4095
        if end - self.punched < PUNCH_STEP:
            return
        try:
            files.punch(self.fd, self.punched, end - self.punched)
        except OSError:
            return  # a file system without holes keeps the whole log
        self.punched = end


def open_log(directory: AttemptDir) -> int:
    return os.open(directory.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
