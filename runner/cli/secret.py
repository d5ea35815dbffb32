"""Secrets: values that a job finds in its environment and that are nowhere else. They go to the box, and never back."""

from __future__ import annotations

import sys
import time

from runner import errors
from runner.cli import options, output
from runner.laptop import boxes
from runner.laptop.client import new_key, segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.options import Given

SECRET = f"""\
Usage: runner secret [list] [OPTIONS]
       runner secret set [OPTIONS] NAME
       runner secret remove [OPTIONS] NAME...

Keys and passwords for your jobs: `runner submit --secret NAME` puts one into a job's environment, and only there. A
value is asked for without showing it, or read from standard input; it is never an argument, and no command shows it
again. What a job itself prints of it stands in its log.

Options:
{options.COMMON}
Examples:
  runner secret set WANDB_API_KEY
  runner secret set HF_TOKEN < ~/.cache/huggingface/token
  runner submit --secret WANDB_API_KEY train.py
"""
VERBS = ("list", "set", "remove")
VALUE_MAX = 32 << 10  # bytes
SEEN = "everybody on this computer could read it in the list of processes"


def secret(arguments: list[str]) -> int:
    given = options.parse(SECRET, arguments)
    verb, *typed = given.words or ["list"]
    if verb == "list" and not typed:
        return _list(given)
    if verb == "set":
        return _set(given, typed)
    if verb == "remove":
        return _remove(given, typed)
    if verb == "list":
        raise errors.BadRequest("runner secret list takes no names", "`runner secret list`")
    guess = errors.nearest(verb, VERBS)
    raise errors.BadRequest(f'runner secret knows no "{verb}"{guess}', "`runner secret --help` lists what there is")


def _list(given: Given) -> int:
    found = boxes.open_box(given.get("--box")).get("/secrets")["secrets"]
    if "--json" in given:
        output.json(found)
    elif found:
        now = time.time()
        rows = [[each["name"], f"{output.span(max(0.0, now - each['set_at']))} ago"] for each in found]
        output.table(("NAME", "SET"), rows, (0,))
    else:
        output.say("no secret of yours is set; `runner secret set NAME` sets one")
    return 0


def _set(given: Given, typed: list[str]) -> int:
    if not typed:
        raise errors.BadRequest("runner secret set needs a name", "such as `runner secret set WANDB_API_KEY`")
    name, equals, _ = typed[0].partition("=")
    if equals or len(typed) > 1:
        raise errors.BadRequest(
            f"a secret's value is no argument: {SEEN}",
            f"`runner secret set {name}` asks for it, or reads it from a pipe",
        )
    api = boxes.open_box(given.get("--box"))
    body = {"value": _value(name)}
    api.request("PUT", _path(name), json=body, headers={"Idempotency-Key": new_key()})
    if "--json" in given:
        output.json({"name": name})
    else:
        output.say(f"{name} is set on {api.box}; `runner submit --secret {name}` gives it to a job")
    return 0


def _value(name: str) -> str:
    """As text; bytes that are none survive the journey as halves of surrogate pairs."""
    if sys.stdin and sys.stdin.isatty():
        import getpass

        value = getpass.getpass(f"the value of {name}: ")
    else:
        data = sys.stdin.buffer.read(VALUE_MAX + 2) if sys.stdin else b""
        value = data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    if not value:
        raise errors.BadRequest(f"the value of {name} is empty", "type it, or `runner secret remove` takes one away")
    return value


def _remove(given: Given, names: list[str]) -> int:
    if not names:
        raise errors.BadRequest("runner secret remove needs a name", "`runner secret list` shows them")
    api = boxes.open_box(given.get("--box"))
    for name in names:
        api.request("DELETE", _path(name))
    if "--json" in given:
        output.json(names)
    else:
        output.say(f"removed {', '.join(names)}; jobs that were to get it and have not begun will fail")
    return 0


def _path(name: str) -> str:
    return f"/secrets/{segment(name)}"
