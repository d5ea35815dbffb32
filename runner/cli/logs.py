"""`runner logs`, and how a job is followed from its submit to its end."""

from __future__ import annotations

import os
import sys
import time

from runner import errors, words
from runner.cli import options, output, values
from runner.laptop import answers, boxes
from runner.laptop.terminal import Folded, Screen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from runner.laptop.client import Client

LOGS = """\
Usage: runner logs [OPTIONS] ID

What a job has printed: in its latest attempt, unless you name another. In a pipe a line that was redrawn (a progress
bar) is its last state, without colours.

Options:
  -f, --follow            stay until the job ends, then bring its outputs home; Ctrl-C leaves, and the job goes on
  --attempt N             of this attempt
  --tail N                begin N lines before the end
  --head N                the first N lines
  --raw                   every byte as it was written, escape codes too: only for jobs that you trust
  --json                  one JSON object for each piece of the log, change of state and end
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

With -f the exit code is the job's own; 128 + n if signal n ended it; 143 if it was cancelled before, 124 over its time
limit, 137 out of memory, 1 if it was lost; 130 if you left with Ctrl-C.

Examples:
  runner logs -f 42
  runner logs --tail 20 42
  runner logs 42 | grep loss
"""

PATIENCE = 45.0  # seconds; a box that is there says so every 15
PAUSES = (0.1, 0.3, 1.0, 2.0, 5.0)  # between tries to come back; the last one again and again
FRAME = {
    "kind": "s", "bytes": "i", "attempt": "i", "offset": "i", "until": "i", "state": "s", "why": "s", "job": "@Job",
}  # fmt: skip
HEAD_LIMIT = 16 << 20  # of a frame's head: the last one holds the whole job
BLOCK = 64 << 10
NAMED = 20  # outputs named one by one
INTERRUPTED = 130
ENDED = {
    words.SUCCEEDED: "succeeded",
    words.FAILED: "failed",
    words.CANCELLED: "was cancelled",
    words.TIMED_OUT: "timed out",
    words.OUT_OF_MEMORY: "ran out of memory",
    words.LOST: "was lost",
}


def main(arguments: list[str]) -> int:
    import gc

    gc.enable()  # we may stay for days
    given = options.parse(LOGS, arguments)
    job_id, stay = values.job(given.words, "runner logs"), "--follow" in given
    if "--tail" in given and "--head" in given:
        raise errors.BadRequest("--tail and --head exclude each other", "give one of them")
    attempt, tail, head = _number(given, "--attempt", 1), _number(given, "--tail"), _number(given, "--head")
    client = boxes.open_box(given.get("--box"))
    offset = 0
    if tail is not None:
        attempt_now = attempt or max(1, int(client.get(f"/jobs/{job_id}")["job"]["attempt"]))
        offset = tail_offset(client, job_id, attempt_now, tail)
    form = "json" if "--json" in given else "raw" if "--raw" in given else None
    return follow(client, job_id, offset, attempt, pull=stay and not form, until_end=stay, form=form, head=head)


def _number(given: options.Given, name: str, least: int = 0) -> int | None:
    value = given.get(name)
    return None if value is None else values.whole(name, value, least)


def follow(
    client: Client,
    job_id: int,
    offset: int = 0,
    attempt: int | None = None,
    pull: bool = True,
    quiet: bool = False,
    until_end: bool = True,
    form: str | None = None,
    head: int | None = None,
) -> int:
    """Print a job's log; returns the exit code for the command that does so.

    attempt: this one alone. until_end: stay until the job ends, else print what there is. form: "raw" or "json";
    None suits the terminal, or the pipe. head: stop after so many lines.
    """
    follower = Follower(client, job_id, offset, attempt, quiet or not until_end, form, head)
    try:
        job = follower.to_end() if until_end else follower.to_now()
    except KeyboardInterrupt:
        follower.leave(until_end)
        return INTERRUPTED
    except errors.Problem:
        follower.pause()
        raise
    if job is None:
        return 0
    code = exit_code(job)
    if not quiet or code:
        for line in ending(job):
            output.say(line)
    if pull:
        bring_home(client, job, quiet)
    return code


_NO_DIGITS = {ord(digit): None for digit in "0123456789."}


class Follower:
    """Where we are in a job's log. That survives a lost connection, so no byte is lost or printed twice."""

    def __init__(
        self,
        client: Client,
        job_id: int,
        offset: int,
        only: int | None,
        quiet: bool,
        form: str | None,
        head: int | None,
    ) -> None:
        self.client, self.job_id, self.quiet, self.form = client, job_id, quiet or form == "json", form
        self.offset, self.only, self.attempt = offset, only, only
        self.lines = head  # still to print; None: all
        self.until: int | None = None  # stop here; None: at the job's end
        self.started = 0  # the attempt whose start has been told
        self.waited = ""
        self.met = False  # the box has said something
        terminal = sys.stdout.isatty() and not form
        self.filter: Screen | Folded | None = None if form else Screen() if terminal else Folded()

    def to_now(self) -> dict[str, Any] | None:
        """Print what there is."""
        if self.only is None:
            self.attempt = self.only = max(1, int(self.client.get(f"/jobs/{self.job_id}")["job"]["attempt"]))
        self.until = _size(self.client, self.job_id, self.only)
        if self.offset < self.until:
            self.to_end()
        return None

    def to_end(self) -> dict[str, Any] | None:
        """Print up to the job's end and return it; None when we are to stop before."""
        lost = 0
        while self.lines != 0:
            try:
                asked = answers.Asked(self.client.box, "GET", self._path())
                chunks = self.client.stream("GET", self._path(), patience=PATIENCE)
                for frame, body in frames(self._heard(chunks), asked):
                    lost = lost if frame["kind"] == "state" else 0  # a box that falls over at once is left in peace
                    if self._take(frame, body):
                        self.pause()
                        return frame.get("job")
            except errors.Unreachable:
                if not self.met:
                    raise
            if not lost:
                self._say("connection lost, trying again (Ctrl-C leaves, the job goes on)", aloud=True)
            time.sleep(PAUSES[min(lost, len(PAUSES) - 1)])
            lost += 1
        return None

    def _heard(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.met |= bool(chunk)  # also when the connection ends before its first frame
            yield chunk

    def leave(self, aloud: bool) -> None:
        """On Ctrl-C: the terminal as it was, and how to come back."""
        ended = self.pause().endswith(b"\n")
        if aloud:
            back, end = f"runner logs -f {self.job_id}", f"runner cancel {self.job_id}"
            line = f"job {self.job_id} goes on without us\n  `{back}` comes back to it, `{end}` ends it"
            output.say(line if ended else f"\n{line}")

    def _path(self) -> str:
        attempt = "" if self.attempt is None else f"&attempt={self.attempt}"
        return f"/logs/{self.job_id}/follow?offset={self.offset}{attempt}"

    def _take(self, frame: dict[str, Any], body: bytes) -> bool:
        """Act on one frame. True when it was the last one that we want."""
        kind, number = frame["kind"], int(frame.get("attempt") or 0)
        if self.only is not None and number > self.only:
            return True
        if self.form == "json" and kind != "alive":
            text = {"text": body.decode("utf-8", "surrogateescape")} if body else {}
            output.json({**frame, **text})
            sys.stdout.flush()
        if kind == "state":
            self._state(frame)
        elif kind in ("log", "gap"):
            self._turn_to(number)
            if kind == "log":
                self._print(body, int(frame["offset"]))
            else:
                self._skip(int(frame["offset"]), int(frame["until"]))
            return self.lines == 0 or (self.until is not None and self.offset >= self.until)
        return kind == "end" or (kind == "alive" and self.until is not None)

    def _state(self, frame: dict[str, Any]) -> None:
        if self.attempt is None:
            self.attempt = max(1, int(frame["attempt"]))
        if frame["state"] == words.RUNNING:
            self._start(int(frame["attempt"]))
        elif frame["state"] == words.QUEUED:
            why = str(frame["why"])
            if _lasting(why) != self.waited:
                self.waited = _lasting(why)
                if why and why != words.STARTS_NOW:
                    self._say(f"job {self.job_id} waits: {why}")

    def _turn_to(self, attempt: int) -> None:
        if self.attempt is not None and attempt > self.attempt:
            self.pause()
            self.offset = 0
        self.attempt = attempt
        self._start(attempt)

    def _start(self, attempt: int) -> None:
        """Tell once that an attempt runs; its first line may come before the box knows."""
        if attempt > self.started:
            self.started, self.waited = attempt, ""
            self._say(f"attempt {attempt} starts" if attempt > 1 else f"job {self.job_id} started")

    def _print(self, data: bytes, offset: int) -> None:
        if self.until is not None:
            data = data[: max(0, self.until - offset)]
        if self.lines is not None:
            data = _first_lines(data, self.lines)
            self.lines -= data.count(b"\n")
        self.offset = offset + len(data)
        if self.form != "json":
            _write(self.filter.feed(data) if self.filter else data)

    def _skip(self, offset: int, until: int) -> None:
        self.pause()
        self._say(f"… {output.size(until - offset)} of the log's middle were dropped", aloud=True)
        self.offset = until

    def _say(self, line: str, aloud: bool = False) -> None:
        if aloud or not self.quiet:
            if isinstance(self.filter, Screen):
                self.pause()
            output.say(line)

    def pause(self) -> bytes:
        """End the line that the log is in, for other words to begin on a line of their own."""
        rest = self.filter.finish() if self.filter else b""
        if rest:
            _write(rest)
        return rest


def frames(chunks: Iterable[bytes], asked: answers.Asked) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The frames of a stream, each with its bytes. One that the stream tears off is left out."""
    held = b""
    for chunk in chunks:
        held += chunk
        at = 0
        while (end := held.find(b"\n", at)) >= 0:
            head = _head(held[at:end], asked)
            after = end + 1 + head["bytes"]
            if len(held) < after:
                break
            yield head, held[end + 1 : after]
            at = after
        held = held[at:]
        if len(held) > HEAD_LIMIT:
            raise asked.nonsense("a frame of a log does not end")


def _head(line: bytes, asked: answers.Asked) -> dict[str, Any]:
    head: dict[str, Any] = answers.of_shape(answers.read(line.decode("utf-8", "replace"), asked), FRAME, asked)
    if not 0 <= head["bytes"] <= HEAD_LIMIT:
        raise asked.nonsense("a frame of a log is longer than any")
    return head


# --- where to begin --------------------------------------------------------------------------------------------------


def _size(client: Client, job_id: int, attempt: int) -> int:
    path = f"/logs/{job_id}?attempt={attempt}&offset=0&limit=0"
    return _place(client, path, client.request("GET", path)[1], "x-gpubox-size")


def _place(client: Client, path: str, headers: dict[str, str], name: str) -> int:
    """A place in a log, from a header."""
    text = headers.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise answers.Asked(client.box, "GET", path).nonsense(f"its header {name} is no number")
    return int(text)


def tail_offset(client: Client, job_id: int, attempt: int, lines: int) -> int:
    """Where the last so many lines of a log begin: read backwards, as far as needed or to a gap."""
    end = offset = _size(client, job_id, attempt)
    while offset and lines:
        block = max(0, offset - BLOCK)
        path = f"/logs/{job_id}?attempt={attempt}&offset={block}&limit={offset - block}"
        data: bytes
        _, headers, data = client.request("GET", path)
        begin = _place(client, path, headers, "x-gpubox-offset")
        if begin + len(data) < offset:
            break  # a gap
        at = len(data) - 1 if offset == end else len(data)  # the newline at the very end begins no line
        while (at := data.rfind(b"\n", 0, at)) >= 0:
            lines -= 1
            if not lines:
                return begin + at + 1
        offset = begin
        if begin > block:
            break
    return offset


def _first_lines(data: bytes, lines: int) -> bytes:
    if data.count(b"\n") < lines:
        return data
    at = -1
    for _ in range(lines):
        at = data.index(b"\n", at + 1)
    return data[: at + 1]


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


# --- the end ---------------------------------------------------------------------------------------------------------


def exit_code(job: dict[str, Any]) -> int:
    """What a command that waited for this job ends with."""
    match job["state"]:
        case words.SUCCEEDED:
            return 0
        case words.TIMED_OUT:
            return 124
        case words.LOST:
            return 1
    if job.get("signal"):
        return 128 + int(job["signal"])
    if job["state"] == words.CANCELLED:
        return 143
    return 137 if job["state"] == words.OUT_OF_MEMORY else int(job.get("exit_code") or 1)


def ending(job: dict[str, Any]) -> list[str]:
    """How a job ended, in words: a line, and where known the line of its log that shows why."""
    what = ENDED.get(job["state"], job["state"])
    if job["state"] == words.SUCCEEDED:
        began, ended = job.get("started_at"), job.get("ended_at")
        return [f"job {job['id']} {what}" + (f" in {_took(ended - began)}" if began and ended else "")]
    why = _why(job)
    lines = [f"job {job['id']} {what}" + (f": {why}" if why else "")]
    detail = str(job.get("detail") or "")
    if detail and detail != why:
        lines.append(f"  {detail}")
    if detail.startswith("ModuleNotFoundError"):
        files = f"a file of yours has to be among `runner show --files {job['id']}`"
        lines.append(f"  hint: a package is declared in requirements.txt or in the script's header; {files}")
    return lines


def _took(seconds: float) -> str:
    if seconds < 9.95:
        return f"{max(0.0, seconds):.{1 if seconds >= 0.95 else 2}f}s"
    return output.span(seconds)


def _lasting(why: str) -> str:
    """A reason without what counts down or wavers in it: times, sizes. What is left is told when it changes."""
    return why.partition("; expected to start")[0].partition("; starts within")[0].translate(_NO_DIGITS)


def _why(job: dict[str, Any]) -> str:
    reason = str(job.get("reason") or "")
    if reason == "exit_code" and job.get("exit_code") is not None:
        return f"the command ended with exit code {job['exit_code']}"
    if reason == "signal" and job.get("signal"):
        return f"the command was ended by {output.signal_name(int(job['signal']))}"
    return "" if job["state"] == words.CANCELLED and reason == "cancelled" else words.REASONS.get(reason, reason)


def bring_home(client: Client, job: dict[str, Any], quiet: bool = False) -> None:
    """Fetch a job's outputs and name them. A failure is told, and leaves the job's exit code alone."""
    from runner.laptop import pull

    try:
        done = pull.pull(client, int(job["id"]), client.box, str(job.get("project") or ""))
    except errors.Problem as problem:
        output.say(f"its outputs are still on the box: {problem.message}\n  `runner pull {job['id']}` fetches them")
        return
    if not quiet or done.refused:
        tell(done)


def near(folder: str) -> str:
    """A folder as seen from here, if it is below."""
    try:
        short = os.path.relpath(folder)
    except OSError:  # the current directory is gone
        return folder
    return folder if short.startswith("..") else short


def tell(done: Any) -> None:
    """Name what a pull brought home."""
    if done.note:
        output.say(done.note)
    if done.files:
        folder = near(done.folder)
        whole = output.size(sum(size for _, size in done.files))
        output.say(f"{output.many(len(done.files), 'output')} in {output.clean(folder)}/ ({whole})")
        for path, size in done.files[:NAMED]:
            output.say(f"  {output.clean(path)}  {output.size(size)}")
        if len(done.files) > NAMED:
            output.say(f"  … and {len(done.files) - NAMED} more")
    for path, place in done.aside:
        output.say(f"{output.clean(path)} is yours: the job's own lies beside it, as {output.clean(place)}")
    for path, why in done.refused:
        output.say(f"not fetched: {output.clean(path)}: {output.clean(why)}")
