"""A program of ours that goes on when the command that started it has ended."""

from __future__ import annotations

import os
import sys

import runner


def start(arguments: list[str]) -> int:
    """Start Python with them, without a terminal; its process id. -P: it must not import what lies in the folder."""
    house = os.path.dirname(os.path.dirname(os.path.abspath(runner.__file__)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (house, os.environ.get("PYTHONPATH"))))}
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    return os.posix_spawn(sys.executable, [sys.executable, "-P", *arguments], environment, file_actions=null)
