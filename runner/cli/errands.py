"""What a command does in passing: it says which outputs came home meanwhile, and has others fetched."""

from __future__ import annotations

import sys

from runner.cli import output
from runner.laptop import awaited


def run(names: list[str]) -> None:
    """names: what lies in the folder of awaited jobs."""
    if awaited.NEWS in names and sys.stderr.isatty():
        for line in awaited.news():
            output.say(line)
    awaited.send(names)
