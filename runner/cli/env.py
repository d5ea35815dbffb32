"""Environments on the box: list, show, prune."""

from __future__ import annotations

import time

from runner import errors
from runner.cli import options, output, values
from runner.laptop import boxes
from runner.laptop.client import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.options import Given
    from runner.laptop.client import Client

ENV = f"""\
Usage: runner env [list] [OPTIONS]
       runner env show [OPTIONS] ID
       runner env prune [OPTIONS] [ID...]

The environments that the box has built for jobs: each once for all jobs that declare the same. They are built again
when a job needs one that is gone; `runner clean` and the box's own housekeeping remove what is old. prune removes all
that no job needs, or those that are named; never one that a job needs or that is being built.

Options:
  --unused TIME           prune only what no job has used for this long, such as 12h or 7d
  --dry-run               say what prune would remove, and remove nothing
{options.COMMON}
Examples:
  runner env
  runner env show 3f2a
  runner env prune --unused 7d
"""
VERBS = ("list", "show", "prune")
PRUNE_ONLY = ("--unused", "--dry-run")
DAY = 86400.0


def env(arguments: list[str]) -> int:
    given = options.parse(ENV, arguments)
    verb, *typed = given.words or ["list"]
    if verb not in VERBS:
        guess = errors.nearest(verb, VERBS)
        raise errors.BadRequest(f'runner env knows no "{verb}"{guess}', "`runner env --help` lists what there is")
    extra = next((name for name in PRUNE_ONLY if name in given), None)
    if verb != "prune" and extra:
        raise errors.BadRequest(f"{extra} is for prune", f"`runner env prune {extra} ...`")
    api = boxes.open_box(given.get("--box"))
    if verb == "prune":
        return _prune(given, api, typed)
    if verb == "show":
        return _show(given, api, typed)
    if typed:
        raise errors.BadRequest(f'runner env list takes no "{typed[0]}"', f"`runner env show {typed[0]}`")
    return _list(given, api)


def _list(given: Given, api: Client) -> int:
    found = api.get("/environments")["environments"]
    if "--json" in given:
        output.json(found)
    elif found:
        headings = ("ID", "SIZE", "STATE", "USED", "BY", "NEEDED BY", "FROM")
        output.table(headings, [_row(each) for each in found], (6,))
    else:
        output.say("no environment is built; the first job that declares one has it built")
    return 0


def _row(each: dict[str, Any]) -> list[str]:
    return [each["id"], output.size(each["bytes"]), each["state"], _ago(each["used_at"]), each["user"] or "-",
            _needed(each["jobs"]), each["label"]]  # fmt: skip


def _needed(jobs: list[int]) -> str:
    shown = ", ".join(map(str, jobs[:3]))
    return f"{shown} and {len(jobs) - 3} more" if len(jobs) > 3 else shown or "-"


def _ago(at: float) -> str:
    return f"{output.span(max(0.0, time.time() - at))} ago"


def _show(given: Given, api: Client, typed: list[str]) -> int:
    if len(typed) != 1:
        raise errors.BadRequest("runner env show needs one id", "`runner env list` shows them")
    found = api.get(f"/environments/{segment(typed[0])}")
    if "--json" in given:
        output.json(found)
        return 0
    one = found["environment"]
    lines = (
        ("environment", one["id"]),
        ("from", one["label"]),
        ("made by", one["kind"] or "-"),
        ("state", one["state"]),
        ("size", output.size(one["bytes"])),
        ("built", output.moment(one["built_at"]) if one["built_at"] else "-"),
        ("last used", _ago(one["used_at"]) + (f", by job {one['last_job']} of {one['user']}" if one["user"] else "")),
        ("needed by", _needed(one["jobs"])),
        ("packages", ", ".join(found["packages"]) or "-"),
    )
    for name, text in lines:
        output.put(f"{name:<12} {output.clean(text)}\n")
    if one["state"] != "ready" and found["log"]:
        output.put(f"\n{output.lines(found['log'].rstrip(), 0)}\n")
    return 0


def _prune(given: Given, api: Client, ids: list[str]) -> int:
    wish: dict[str, Any] = {"ids": ids, "dry_run": "--dry-run" in given}
    if text := given.get("--unused"):
        wish["unused_days"] = values.duration("--unused", text) / DAY
    done = api.post("/environments/prune", wish)
    if "--json" in given:
        output.json(done)
        return 0
    verb = "would remove" if "--dry-run" in given else "removed"
    for each in done["removed"]:
        output.put(f"{each['id']}  {output.size(each['bytes']):>8}  {output.clean(each['label'])}\n")
    for name, jobs in done["kept"].items():
        output.say(f"kept {name}: needed by {_needed(jobs)}")
    freed = output.size(sum(each["bytes"] for each in done["removed"]))
    output.say(f"{verb} {output.many(len(done['removed']), 'environment')}, {freed}")
    return 0
