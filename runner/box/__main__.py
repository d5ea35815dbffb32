"""`python -m runner.box`: the daemon. `--started-by-command`: end after a while without work. `--ready-fd N`: say there
"ready", or why not. `--demo`: pretend, see box/demo."""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from runner.errors import BadRequest, NotInstalled, Problem


def main(arguments: list[str]) -> NoReturn:
    ready: int | None = None
    try:
        by_command, ready, demo = _options(arguments)
        try:
            from runner.box import serve
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] in ("runner", "dashboard"):
                raise
            raise NotInstalled(f"{missing.name} is not installed", 'pip install ".[box]" in a clone') from None
        sys.exit(serve.serve(by_command, ready, demo))
    except Problem as problem:
        _say(ready, problem)
        sys.exit(problem.exit_code)


def _options(arguments: list[str]) -> tuple[bool, int | None, bool]:
    by_command, ready, demo = False, None, False
    words = iter(arguments)
    for word in words:
        if word == "--started-by-command":
            by_command = True
        elif word == "--demo":
            demo = True
        elif word == "--ready-fd":
            number = next(words, "")
            if not number.isdecimal():
                raise BadRequest("--ready-fd takes the number of a descriptor")
            ready = int(number)
        else:
            raise BadRequest(f"the daemon has no option {word}", "`runner serve --help` shows how it is started")
    return by_command, ready, demo


def _say(ready: int | None, problem: Problem) -> None:
    if ready is not None:
        try:
            os.write(ready, json.dumps(problem.as_json()).encode() + b"\n")
        except OSError:
            pass
    sys.stderr.write(f"error: {problem.message}\n" + (f"hint: {problem.hint}\n" if problem.hint else ""))


if __name__ == "__main__":
    main(sys.argv[1:])
