"""`runner help`, `--help` and `version`."""

from __future__ import annotations

import sys

import runner
from runner import errors
from runner.cli import COMMANDS, TABLE, options, output

HELP = """\
Usage: runner help [COMMAND]

Explain a command, or list them all.
"""
VERSION = """\
Usage: runner version

Which version of gpubox this is.
"""
OPENING = f"""\
Usage: runner COMMAND ...

gpubox {runner.__version__}: your own small training cloud.
"""
EXAMPLES = """
Examples:
  runner submit train.py --lr 0.1    run it on the box, follow it, bring its outputs home
  runner ps                          what runs and what waits
  runner why 42                      why job 42 does not start, or how it ended

`runner COMMAND --help` explains a command.
"""


def help(arguments: list[str]) -> int:
    if arguments in ([], ["--help"], ["-h"]):
        return explain(overview())
    name, *more = arguments
    if more:
        raise errors.BadRequest("runner help explains one command", f"such as `runner help {name}`")
    if name not in TABLE:
        guess = errors.nearest(name, TABLE)
        raise errors.BadRequest(f'runner has no command "{name}"{guess}', "`runner help` lists them")
    if name == "help":
        return explain(HELP)
    from runner.cli import run

    return run([name, "--help"])


def version(arguments: list[str]) -> int:
    options.no_words(options.parse(VERSION, arguments), VERSION)
    output.put(f"gpubox {runner.__version__}\n")
    return 0


def overview() -> str:
    parts = [OPENING]
    for group, commands in COMMANDS.items():
        parts.append(f"\n{group}:\n")
        parts += [f"  {name:<12}{summary}\n" for name, (_, _, summary) in commands.items()]
    return "".join(parts) + EXAMPLES


def explain(text: str) -> int:
    """Print a help text; headings are bold on a terminal."""
    colour = output.colours(sys.stdout)
    for line in text.splitlines():
        heading = line.endswith(":") and not line.startswith(" ")
        output.put(f"\x1b[1m{line}\x1b[0m\n" if heading and colour else f"{line}\n")
    return 0
