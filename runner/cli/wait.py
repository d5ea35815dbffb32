"""`runner wait`, and watching an array: events only say when to look again, the jobs themselves say what is true."""

from __future__ import annotations

import gc
import sys
import time

from runner import errors, words
from runner.cli import logs, options, output, values
from runner.laptop import boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from runner.laptop.client import Client

WAIT = """\
Usage: runner wait [OPTIONS] IDS...

Wait until all these jobs have ended. Ends with 0 if all succeeded, else with the first other exit code.

Options:
  --timeout TIME          give up after this long, with 75
  -q, --quiet             do not name each job as it ends
  --json                  the ended jobs as JSON
  --box NAME              which box (GPUBOX_BOX, else local)
  -h, --help              this text

Examples:
  runner wait 42
  runner wait g42 && runner submit evaluate.py
  runner wait --timeout 2h 42-50
"""
PATIENCE = 15.0  # seconds without an event after which we look anyway
PAUSE = 0.2  # between two looks at a busy array


def wait(arguments: list[str]) -> int:
    given = options.parse(WAIT, arguments)
    ids = values.jobs(given.words, "runner wait")
    limit = given.get("--timeout")
    deadline = time.monotonic() + values.duration("--timeout", limit) if limit else None
    gc.enable()  # we may stay for days
    api = boxes.open_box(given.get("--box"))
    ended: dict[int, dict[str, Any]] = {}
    for job in _ends(api, ids, deadline):
        ended[job["id"]] = job
        if "--quiet" not in given and "--json" not in given:
            output.say(f"job {job['id']}: {job['state']} {output.ending(job)}".rstrip())
    if "--json" in given:
        output.json([ended[job_id] for job_id in sorted(ended)])
    return next((code for _, job in sorted(ended.items()) if (code := logs.exit_code(job))), 0)


def _ends(api: Client, ids: list[int | str], deadline: float | None) -> Iterator[dict[str, Any]]:
    """Jobs as they end, until all have."""
    wanted: list[int | str] = ids
    for _ in _looks(api, deadline):
        jobs = api.get(f"/jobs?ids={values.query(wanted)}")["jobs"]
        missing = {part for part in wanted if isinstance(part, int)} - {job["id"] for job in jobs}
        if missing:
            raise errors.NotFound(f"there is no job {min(missing)}", "`runner ps --all` lists them")
        yield from (job for job in jobs if job["state"] in words.FINISHED)
        wanted = [job["id"] for job in jobs if job["state"] in words.UNFINISHED]
        if not wanted:
            return


def _looks(api: Client, deadline: float | None = None) -> Iterator[None]:
    """Yields whenever it is time to look: once events are being listened to, after every event, and now and then.
    A lost connection is only another reason to look."""
    while True:
        try:
            events = api.stream("GET", "/events", patience=_patience(deadline))
            yield
            buffer = b""
            looked = time.monotonic()
            for piece in events:
                buffer = (buffer + piece)[-64:]
                if b"\n\n" not in buffer and b"\r\n\r\n" not in buffer:
                    continue
                buffer = b""
                time.sleep(max(0.0, looked + PAUSE - time.monotonic()))
                _check(deadline)
                yield
                looked = time.monotonic()
        except errors.Unreachable:
            _check(deadline)  # silence or a restart; if the box is really gone, the next look says so
        time.sleep(PAUSE)


def _patience(deadline: float | None) -> float:
    return PATIENCE if deadline is None else max(0.01, min(PATIENCE, deadline - time.monotonic()))


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise errors.Busy("not all of these jobs have ended in time", "they go on; `runner ps` shows them")


def watch_group(api: Client, group: str) -> int:
    """The counts of an array on one line until it has ended; 0 if all succeeded, else 1."""
    from runner.cli.jobs import count_text

    live = sys.stderr.isatty()
    said = ""
    for _ in _looks(api):
        counts = api.get(f"/groups/{group}")["jobs"]
        done = not any(counts.get(state) for state in words.UNFINISHED)
        text = f"{group}: {count_text(counts)}"
        if live and text != said:
            sys.stderr.write(f"\r\x1b[K{output.cut(text, output.columns(sys.stderr) or 80)}" + "\n" * done)
            sys.stderr.flush()
        elif done or (not live and not said):
            output.say(text)
        said = text
        if done:
            break
    if counts.get(words.SUCCEEDED, 0) == sum(counts.values()):
        output.say(f"`runner pull {group}` brings their outputs home")
        return 0
    output.say(f"`runner ps --no-group {group}` names those that did not succeed")
    return 1
