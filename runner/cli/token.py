"""Tokens: what laptops and programs show when they come to a box over the network."""

from __future__ import annotations

import time

from runner import errors, words
from runner.cli import options, output, values
from runner.laptop import boxes
from runner.laptop.client import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.options import Given
    from runner.laptop.client import Client

TOKEN = f"""\
Usage: runner token [list] [OPTIONS]
       runner token new [OPTIONS]
       runner token revoke [OPTIONS] ID...

The keys with which laptops and programs come to a box over the network; `runner box add` makes one for a laptop. A
token acts as you, and may never more than you. The box keeps only its hash, so that it is printed once, when it is new.

Options:
  --scope SCOPE           of a new one: read (looks), submit (has jobs), admin (everything); else submit
  --label TEXT            of a new one: what it is for
  --expires TIME          of a new one: when it ends, such as 12h or 90d, or never; else after a year
{options.COMMON}
Examples:
  runner token
  runner token new --scope read --label wallboard --expires 30d
  runner token revoke 1f0c2d3e4a5b
"""
VERBS = ("list", "new", "revoke")
NEW_ONLY = ("--scope", "--label", "--expires")
YEAR = "365d"
NEVER = "never"
LABEL_MAX = 100


def token(arguments: list[str]) -> int:
    given = options.parse(TOKEN, arguments)
    verb, *typed = given.words or ["list"]
    if verb not in VERBS:
        guess = errors.nearest(verb, VERBS)
        raise errors.BadRequest(f'runner token knows no "{verb}"{guess}', "`runner token --help` lists what there is")
    extra = next((name for name in NEW_ONLY if name in given), None)
    if verb != "new" and extra:
        raise errors.BadRequest(f"{extra} is for a new token", f"`runner token new {extra} ...`")
    if verb == "revoke":
        return _revoke(given, typed)
    if typed:
        raise errors.BadRequest(
            f'runner token {verb} takes no "{typed[0]}"', "`runner token --help` lists what there is"
        )
    return _new(given) if verb == "new" else _list(given)


def _new(given: Given) -> int:
    wish = {
        "scope": values.choice("--scope", given.get("--scope") or "submit", words.ROLES),
        "label": given.get("--label") or "",
        "seconds": _seconds(given.get("--expires") or YEAR),
    }
    made = boxes.open_box(given.get("--box")).request("POST", "/tokens", json=wish)[2]
    if "--json" in given:
        output.json(made)
        return 0
    output.put(f"{made['token']}\n")
    output.say(f"that is the only time that it is shown; `runner token revoke {made['made']['id']}` ends it")
    return 0


def _seconds(text: str) -> float | None:
    return None if text == NEVER else values.duration("--expires", text)


def _list(given: Given) -> int:
    found = boxes.open_box(given.get("--box")).get("/tokens")["tokens"]
    if "--json" in given:
        output.json(found)
    elif found:
        output.table(("ID", "SCOPE", "USER", "USED", "EXPIRES", "LABEL"), [_row(each) for each in found], (5,))
    else:
        output.say("there is no token; `runner token new` makes one")
    return 0


def _row(each: dict[str, Any]) -> list[str]:
    used, ends, now = each.get("used_at"), each.get("expires_at"), time.time()
    return [
        each["id"],
        each["scope"],
        each["user"],
        "never" if used is None else f"{output.span(max(0.0, now - used))} ago",
        NEVER if ends is None else f"in {output.span(max(0.0, ends - now))}",
        each["label"] or "-",
    ]


def _revoke(given: Given, ids: list[str]) -> int:
    if not ids:
        raise errors.BadRequest("runner token revoke needs the id of a token", "`runner token list` shows them")
    api = boxes.open_box(given.get("--box"))
    over = [named for each in ids for named in revoke(api, each)]
    if "--json" in given:
        output.json(over)
    else:
        output.say(f"revoked {', '.join(over)}")
    return 0


def revoke(api: Client, named: str) -> list[str]:
    over: list[str] = api.request("DELETE", f"/tokens/{segment(named)}")[2]["revoked"]
    return over
