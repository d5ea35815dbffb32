"""`runner wait`, and watching an array: events only say when to look again, the jobs themselves say what is true."""

from __future__ import annotations

import gc
import os
import sys
import time

from runner import errors, words
from runner.cli import logs, options, output, values
from runner.laptop import addresses, answers, awaited, boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from runner.laptop.client import Client
    from runner.laptop.pull import Pulled

WAIT = """\
Usage: runner wait [OPTIONS] IDS...

Wait until all these jobs have ended. Ends with 0 if all succeeded, else with the exit code of the first of them, by
number, that did not.

Options:
  --timeout TIME          give up after this long, with 75
  -q, --quiet             do not name each job as it ends
  --json                  the ended jobs as JSON
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner wait 42
  runner wait g42 && runner submit evaluate.py
  runner wait --timeout 2h 42-50
"""
PATIENCE = 15.0  # seconds without an event after which we look anyway
NAMED = 10  # jobs of an array whose failure is told one by one
AWAY_PAUSE = 5.0
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
            output.say(logs.ending(job)[0])
    if "--json" in given:
        output.json([ended[job_id] for job_id in sorted(ended)])
    return next((code for _, job in sorted(ended.items()) if (code := logs.exit_code(job))), 0)


def _ends(api: Client, ids: list[int | str], deadline: float | None) -> Iterator[dict[str, Any]]:
    """Jobs as they end, until all have."""
    wanted: list[int | str] = ids
    only = ""
    for _ in _looks(api, deadline):
        jobs = _ask(api, f"/jobs?ids={values.query(wanted)}{only}", bool(only))["jobs"]
        yield from (job for job in jobs if job["state"] in words.FINISHED)
        if only:
            ended = {job["id"] for job in jobs}
            wanted = [part for part in wanted if part not in ended]
        else:
            missing = {part for part in wanted if isinstance(part, int)} - {job["id"] for job in jobs}
            if missing:
                raise errors.NotFound(f"there is no job {min(missing)}", "`runner ps --all` lists them")
            wanted = [job["id"] for job in jobs if job["state"] in words.UNFINISHED]
            only = f"&state={','.join(words.FINISHED)}"  # from now on only news: an array can have 10,000 jobs
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


def _ask(api: Client, path: str, met: bool) -> Any:
    """GET. A box in another place that has answered before is waited for: a closed lid is no reason to give up."""
    while True:
        try:
            return api.get(path)
        except errors.Unreachable:
            if not met or api.box in (addresses.LOCAL, addresses.DEMO):
                raise
        time.sleep(AWAY_PAUSE)


def _patience(deadline: float | None) -> float:
    return PATIENCE if deadline is None else max(0.01, min(PATIENCE, deadline - time.monotonic()))


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise errors.Busy("not all of these jobs have ended in time", "they go on; `runner ps` shows them")


# --- following an array ----------------------------------------------------------------------------------------------


def watch_group(api: Client, group: str, pull: bool = True) -> int:
    """The counts of an array on one line until it has ended, its outputs brought home job by job. The exit code is
    that of `wait`."""
    watch = _Watch(api, group, pull)
    for _ in _looks(api):
        if watch.look():
            break
    return watch.close()


class _Watch:
    """What is known of an array: which of its jobs have not ended, the codes of those that have, what came home."""

    def __init__(self, api: Client, group: str, pull: bool) -> None:
        self.api, self.group, self.pull = api, group, pull
        self.to, self.project = awaited.meant(api.box, group)
        self.left: dict[int, None] | None = None  # the jobs that have not ended, in order
        self.codes: dict[int, int] = {}  # of those that did not succeed
        self.states: dict[str, None] = {}  # theirs
        self.home: list[Pulled] = []
        self.behind: list[int] = []  # jobs whose outputs are still on the box
        self.live = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.shown = ""

    def look(self) -> bool:
        """Whether all have ended."""
        path = f"/groups/{self.group}"
        counts = _ask(self.api, path, self.left is not None)["jobs"]
        if self.left is None:
            first, count = int(self.group[1:]), sum(counts.values())
            if not 0 <= count <= values.SWEEP_LIMIT:
                raise answers.Asked(self.api.box, "GET", path).nonsense("so many jobs are no group")
            self.left = dict.fromkeys(range(first, first + count))
        if sum(counts.get(state, 0) for state in words.UNFINISHED) < len(self.left):
            self._take(self.left)
        self._show(counts)
        return not self.left

    def _take(self, left: dict[int, None]) -> None:
        """The jobs that ended since the last look. Only those are asked for: an array can have 10,000."""
        ids = values.query(list(left))
        for job in _ask(self.api, f"/jobs?ids={ids}&state={','.join(words.FINISHED)}", True)["jobs"]:
            left.pop(int(job["id"]), None)
            self._ended(job)

    def _ended(self, job: dict[str, Any]) -> None:
        from runner.laptop import pull

        job_id = int(job["id"])
        if code := logs.exit_code(job):
            self.codes[job_id] = code
            self.states[job["state"]] = None
            if len(self.codes) <= NAMED:
                self._say(*logs.ending(job))
        if not self.pull:
            return
        try:
            done = pull.pull(self.api, job_id, self.api.box, self.project or str(job.get("project") or ""), self.to)
        except errors.Problem as problem:
            if not self.behind:
                self._say(f"the outputs of job {job_id} are still on the box: {problem.message}")
            self.behind.append(job_id)
            return
        if done.aside or done.refused:
            self._say(f"job {job_id}:")
            logs.tell(done)
        elif done.files:
            self.home.append(done)

    def _show(self, counts: dict[str, int]) -> None:
        from runner.cli.jobs import count_text

        text = f"{self.group}: {count_text(counts)}"
        done = not self.left
        if self.live and text != self.shown:
            sys.stderr.write(f"\r\x1b[K{output.cut(text, output.columns(sys.stderr) or 80)}" + "\n" * done)
            sys.stderr.flush()
        elif done or not self.shown:
            output.say(text)
        self.shown = text

    def _say(self, *lines: str) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[K")
            self.shown = "\n"  # the counts are written again below
        for line in lines:
            output.say(line)

    def close(self) -> int:
        """Say what came home and what did not succeed; the exit code for it all."""
        if not self.behind:
            awaited.forget(self.api.box, self.group)
        if self.home:
            count = sum(len(done.files) for done in self.home)
            size = sum(size for done in self.home for _, size in done.files)
            first, last = (logs.near(done.folder) for done in (self.home[0], self.home[-1]))
            where = first if len(self.home) == 1 else f"{first}/ to {os.path.basename(last)}"
            output.say(f"{output.many(count, 'output')} in {output.clean(where)}/ ({output.size(size)})")
        if self.behind:
            output.say(f"`runner pull {values.query(list(self.behind))}` fetches the outputs that are still on the box")
        if len(self.codes) > NAMED:
            states = ",".join(self.states)
            output.say(f"`runner ps --no-group --state {states} {self.group}` names all that did not succeed")
        return self.codes[min(self.codes)] if self.codes else 0
