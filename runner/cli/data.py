"""Data sets: pushed to a box once, read by its jobs, fetched and removed."""

from __future__ import annotations

import os
import sys
import time

from runner import errors
from runner.cli import options, output
from runner.laptop import boxes
from runner.laptop.client import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.options import Given
    from runner.laptop.client import Client

DATA = f"""\
Usage: runner data [ls] [OPTIONS]
       runner data push [OPTIONS] DIR [NAME]
       runner data pull [OPTIONS] NAME [DIR]
       runner data link [OPTIONS] NAME /PATH/ON/THE/BOX
       runner data rm [OPTIONS] NAME...

Data sets, which jobs find as $RUNNER_DATA/NAME and cannot change. push sends what the box lacks of a folder, of all
files in it but .git, checked by hash; after a cut, run it again: it goes on. What is there already is not sent again. A
job keeps the version that it started with. link gives a name to what is on the box already; pull brings a set here, to
./NAME unless you say where, and overwrites no file of yours.

Options:
{options.COMMON}
Examples:
  runner data push ~/datasets/coco
  runner data push ./shards imagenet-256
  runner data link laion /srv/gpubox/data/laion
  runner submit -- sh -c 'ls $RUNNER_DATA/coco'
"""
VERBS = ("ls", "push", "pull", "link", "rm")
USAGE = {
    "ls": ("", 0, 0),
    "push": ("DIR [NAME]", 1, 2),
    "pull": ("NAME [DIR]", 1, 2),
    "link": ("NAME /PATH/ON/THE/BOX", 2, 2),
    "rm": ("NAME...", 1, 1000),
}
REFUSED_MAX = 10  # named one by one


def data(arguments: list[str]) -> int:
    given = options.parse(DATA, arguments)
    verb, *typed = given.words or ["ls"]
    if verb not in VERBS:
        guess = errors.nearest(verb, VERBS)
        raise errors.BadRequest(f'runner data knows no "{verb}"{guess}', "`runner data --help` lists what there is")
    takes, least, most = USAGE[verb]
    if not least <= len(typed) <= most:
        raise errors.BadRequest(f"`runner data {verb}` takes {takes or 'nothing'}", "`runner data --help` shows how")
    does = {"ls": _list, "push": _push, "pull": _pull, "link": _link, "rm": _remove}[verb]
    return does(given, boxes.open_box(given.get("--box")), typed)


def _path(name: str) -> str:
    return f"/data/{segment(name)}"


def _list(given: Given, api: Client, _: list[str]) -> int:
    found = api.get("/data")
    if "--json" in given:
        output.json(found)
    elif found["sets"]:
        now = time.time()
        output.table(
            ("NAME", "SIZE", "FILES", "PUSHED", "BY", "LINK TO"), [_row(each, now) for each in found["sets"]], (5, 0)
        )
        output.say(f"{output.size(found['free_bytes'])} free on the box")
    else:
        output.say("no data set is on the box; `runner data push DIR` sends one")
    return 0


def _row(each: dict[str, Any], now: float) -> list[str]:
    known = each["bytes"] is not None and each["files"] is not None
    size, count = (output.size(each["bytes"]), f"{each['files']:,}") if known else ("-", "-")
    return [
        each["name"],
        size,
        count,
        f"{output.span(max(0.0, now - each['at']))} ago",
        each["user"],
        each["path"] or "-",
    ]


def _push(given: Given, api: Client, typed: list[str]) -> int:
    from runner.laptop.push import push

    root = typed[0]
    name = typed[1] if len(typed) > 1 else os.path.basename(os.path.abspath(root))
    began = time.monotonic()
    with Bar(f"reading {name}") as reading, Bar(f"pushing {name}") as sending:
        made, folder, sent = push(api, root, name, reading.told, sending.told)
    for sentence in folder.passed[:REFUSED_MAX]:
        output.say(sentence)
    if len(folder.passed) > REFUSED_MAX:
        output.say(f"and {len(folder.passed) - REFUSED_MAX} more are left out")
    if "--json" in given:
        output.json({**made, "sent_bytes": sent})
    else:
        what = f"{output.many(len(folder.parts['files']), 'file')}, {output.size(folder.bytes)}"
        took = output.span(time.monotonic() - began)
        output.say(f"{name} is on {api.box}: {what}; {output.size(sent)} sent in {took}; jobs: $RUNNER_DATA/{name}")
    return 0


def _pull(given: Given, api: Client, typed: list[str]) -> int:
    from runner.laptop.fetch import fetch

    name = typed[0]
    target = typed[1] if len(typed) > 1 else name
    if "/" in name or name in (".", ".."):
        raise errors.BadRequest(f"{name} is not the name of a data set", "`runner data ls` lists them")
    with Bar(f"pulling {name}") as bar:
        done = fetch(api, name, target, bar.told)
    if "--json" in given:
        output.json({
            "name": name, "folder": done.folder, "files": done.files, "bytes": done.bytes, "fetched": done.fetched,
            "fetched_bytes": done.fetched_bytes, "refused": dict(done.refused),
        })  # fmt: skip
    else:
        what = f"{output.many(done.files, 'file')}, {output.size(done.bytes)}"
        output.say(f"{name}: {what} in {done.folder}; fetched {done.fetched:,}, {output.size(done.fetched_bytes)}")
    if not done.refused:
        return 0
    for path, why in done.refused[:REFUSED_MAX]:
        output.say(f"  left as it is: {path}: {why}")
    raise errors.BadData(
        f"{output.many(len(done.refused), 'file')} of {name} could not be brought here",
        "move what is in the way, or pull to another folder",
    )


def _link(given: Given, api: Client, typed: list[str]) -> int:
    from runner.laptop.client import new_key

    name, path = typed
    headers = {"Idempotency-Key": new_key()}
    made = api.request("PUT", f"{_path(name)}/link", json={"path": path}, headers=headers)[2]
    if "--json" in given:
        output.json(made)
    else:
        output.say(f"jobs that start from now on find {made['path']} as $RUNNER_DATA/{name}")
    return 0


def _remove(given: Given, api: Client, names: list[str]) -> int:
    done = []
    for name in names:
        gone = api.request("DELETE", _path(name))[2]
        done.append(gone)
        if "--json" not in given:
            _say_removed(name, gone)
    if "--json" in given:
        output.json(done)
    return 0


def _say_removed(name: str, gone: dict[str, Any]) -> None:
    path, kept_by = gone["removed"]["path"], gone["kept_by"]
    if path:
        output.say(f"{name} is no name any more; {path} stays as it is")
    elif kept_by:
        jobs = ", ".join(map(str, kept_by[:5])) + (" and more" if len(kept_by) > 5 else "")
        output.say(f"removed {name}; job {jobs} began with it and keeps it: its room is free when they have ended")
    else:
        output.say(f"removed {name}; {output.size(gone['freed_bytes'])} are free again")


class Bar:
    """A line on a terminal that says how far it is; elsewhere nothing."""

    EVERY = 0.1  # seconds
    WIDE = 20

    def __init__(self, what: str) -> None:
        self.what = what
        self.live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._drawn, self._began, self._from = 0.0, 0.0, 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def told(self, done: int, whole: int) -> None:
        if not self.live or not whole:
            return
        now = time.monotonic()
        if not self._began:
            self._began, self._from = now, done
        if now - self._drawn >= self.EVERY:
            self._drawn = now
            text = output.clean(self.text(done, whole, now - self._began))
            sys.stderr.write(f"\r\x1b[K{output.cut(text, (output.columns(sys.stderr) or 80) - 1)}")
            sys.stderr.flush()

    def text(self, done: int, whole: int, seconds: float) -> str:
        """pushing coco [=====     ]  24%  4.4 of 18 GiB, 52 MiB/s, 4m left"""
        full = self.WIDE * done // whole
        line = f"{self.what} [{'=' * full}{' ' * (self.WIDE - full)}] {100 * done // whole:3}%"
        line += f"  {output.size(done)} of {output.size(whole)}"
        pace = (done - self._from) / seconds if seconds > 1 else 0.0
        return f"{line}, {output.size(pace)}/s, {output.span((whole - done) / pace)} left" if pace else line
