"""A log is read by offset, followed as it grows, and printed once, whatever happens in between."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner import errors, files, words
from runner.box import logs
from runner.cli import logs as cli
from runner.laptop import pull
from runner.laptop.answers import Asked
from runner.laptop.client import Lost
from runner.laptop.terminal import Folded
from runner.model import Job

BLOCK = 4096
MISSING = "ModuleNotFoundError: No module named 'x'"
ASKED = Asked("box", "GET", "/logs/42/follow")


def a_job(state: str = words.RUNNING, **values: Any) -> Job:
    return Job(**{"id": 42, "name": "n", "command": ["c"], "user": "u", "uid": 1, "submitted_at": 1.0,
                  "attempt": 1, "state": state, **values})  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "1").mkdir()
    path = tmp_path / "1" / "log"
    path.write_bytes(b"first\nsecond\n")
    return path


@pytest.fixture
def punched(log: Path) -> Path:
    """A log of 20 blocks that has lost those from 3 to 7."""
    log.write_bytes(b"".join(bytes([65 + block]) * BLOCK for block in range(20)))
    with open(log, "r+b") as file:
        try:
            files.punch(file.fileno(), 3 * BLOCK, 4 * BLOCK)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip("needs a file system with holes")
            raise
    return log


# --- by offset -----------------------------------------------------------------------------------------------------


def test_a_log_is_read_by_offset(log: Path) -> None:
    assert logs.size(str(log)) == 13
    assert logs.read(str(log), 6, 100) == b"second\n"
    assert logs.read(str(log), 0, 5) == b"first"
    assert logs.read(str(log), -7, 3) == b"sec"
    assert logs.read(str(log), -100, 5) == b"first"
    assert logs.read(str(log), 99, 5) == b""


def test_a_job_that_has_printed_nothing_has_an_empty_log(tmp_path: Path) -> None:
    path = str(tmp_path / "none" / "log")
    assert (logs.size(path), logs.read(path, 0, 9), list(logs.segments(path, 0, 9))) == (0, b"", [])


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_took_the_place_of_a_log_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    {"link": lambda: path.symlink_to("/etc/passwd"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(errors.BadData, match="not a log any more"):
        logs.read(str(path), 0, 10)


def test_a_log_that_lost_its_middle_keeps_its_offsets(punched: Path) -> None:
    path, end = str(punched), 20 * BLOCK
    gap = ("gap", 3 * BLOCK, 7 * BLOCK)
    assert list(logs.segments(path, 10, end)) == [("data", 10, 3 * BLOCK), gap, ("data", 7 * BLOCK, end)]
    assert list(logs.segments(path, 4 * BLOCK, 5 * BLOCK)) == [("gap", 4 * BLOCK, 5 * BLOCK)]
    assert logs.size(path) == end
    assert logs.read(path, 2 * BLOCK, end) == b"C" * BLOCK
    assert logs.locate(path, 5 * BLOCK) == 7 * BLOCK
    assert logs.read(path, 5 * BLOCK, BLOCK) == b"H" * BLOCK


# --- as it grows -----------------------------------------------------------------------------------------------------


class Watched:
    """A job and its followers' wake-up."""

    def __init__(self, root: Path, job: Job) -> None:
        self.root, self.job = root, job
        self.woken = asyncio.Event()

    def becomes(self, state: str, **values: Any) -> None:
        self.job = a_job(state, **{"attempt": self.job.attempt, **values})
        self.woken.set()

    def follow(self, offset: int = 0, attempt: int | None = None) -> AsyncIterator[bytes]:
        return logs.follow(lambda: self.job, self.log_of, self.woken, offset, attempt)

    def log_of(self, attempt: int) -> str:
        return str(self.root / str(attempt) / "log")


class Frames:
    """A stream of frames, taken apart; what is silent is an error after ten seconds."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self.stream = stream

    async def next(self) -> tuple[dict[str, Any], bytes]:
        data = await asyncio.wait_for(anext(self.stream), 10)
        ((head, body),) = cli.frames([data], ASKED)
        return head, body

    async def all(self) -> list[tuple[dict[str, Any], bytes]]:
        found = [await self.next()]
        while found[-1][0]["kind"] != "end":
            found.append(await self.next())
        return found


def followed(root: Path, job: Job, story: Callable[[Watched, Frames], Any], **where: Any) -> Any:
    async def main() -> Any:
        watched = Watched(root, job)
        async with aclosing(watched.follow(**where)) as stream:  # type: ignore[type-var]
            return await asyncio.wait_for(story(watched, Frames(stream)), 30)

    before = len(os.listdir("/proc/self/fd"))
    result = asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before, "a follower left a descriptor open"
    return result


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def kinds(found: list[tuple[dict[str, Any], bytes]]) -> list[str]:
    return [head["kind"] for head, _ in found]


def test_an_ended_job_is_its_log_and_its_end(log: Path) -> None:
    async def story(watched: Watched, frames: Frames) -> None:
        (first, body), (last, _) = await frames.all()
        assert first == {"kind": "log", "attempt": 1, "offset": 0, "bytes": 13}
        assert body == b"first\nsecond\n"
        assert last["job"]["state"] == "succeeded"

    followed(log.parent.parent, a_job(words.SUCCEEDED), story)


@pytest.mark.parametrize(("offset", "expected"), [(6, b"second\n"), (-3, b"nd\n"), (13, b""), (99, b"")])
def test_following_begins_at_an_offset(log: Path, offset: int, expected: bytes) -> None:
    async def story(watched: Watched, frames: Frames) -> None:
        assert b"".join(body for _, body in await frames.all()) == expected

    followed(log.parent.parent, a_job(words.SUCCEEDED), story, offset=offset)


def test_a_line_reaches_a_follower_as_soon_as_it_is_written(log: Path) -> None:
    async def story(watched: Watched, frames: Frames) -> list[float]:
        assert (await frames.next())[0]["state"] == "running"
        assert (await frames.next())[1] == b"first\nsecond\n"
        took = []
        for number in range(20):
            asyncio.get_running_loop().call_later(0.001, append, log, b"%d\n" % number)
            arrived = await frames.next()
            took.append(time.time() - os.stat(log).st_mtime)
            assert arrived[1] == b"%d\n" % number
        return took

    assert min(followed(log.parent.parent, a_job(), story)) < logs.POLL_SECONDS / 2, "no inotify here?"


def test_without_inotify_a_line_still_comes(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "too many")

    async def story(watched: Watched, frames: Frames) -> None:
        await frames.next()
        await frames.next()
        append(log, b"third\n")
        assert (await frames.next())[1] == b"third\n"

    monkeypatch.setattr(files, "Watch", none_left)
    monkeypatch.setattr(logs, "POLL_SECONDS", 0.01)
    followed(log.parent.parent, a_job(), story)


def test_a_waiting_job_says_why_and_its_log_is_seen_when_it_appears(tmp_path: Path) -> None:
    async def story(watched: Watched, frames: Frames) -> None:
        assert (await frames.next())[0]["why"] == "needs 2 cpus, 1 free"
        watched.becomes(words.QUEUED, why="is next", attempt=0)
        assert (await frames.next())[0]["why"] == "is next"
        silent = asyncio.ensure_future(frames.next())  # nobody wakes the follower now but the file itself
        for step in (tmp_path.mkdir, (tmp_path / "1").mkdir, lambda: append(tmp_path / "1" / "log", b"line\n")):
            if step != tmp_path.mkdir:
                step()
            await asyncio.sleep(0)
        head, body = await silent
        assert (head["attempt"], body) == (1, b"line\n")
        watched.becomes(words.RUNNING, attempt=1)
        assert (await frames.next())[0]["state"] == "running"

    followed(tmp_path, a_job(words.QUEUED, attempt=0, why="needs 2 cpus, 1 free"), story)


def test_the_next_attempts_log_follows_the_whole_of_the_last(log: Path) -> None:
    async def story(watched: Watched, frames: Frames) -> None:
        await frames.next()
        second = log.parent.parent / "2"
        second.mkdir()
        append(second / "log", b"again\n")
        watched.becomes(words.RUNNING, attempt=2)
        (first, body), (state, _), (later, more) = [await frames.next() for _ in range(3)]
        assert (first["attempt"], body) == (1, b"first\nsecond\n")
        assert (state["kind"], state["attempt"]) == ("state", 2)
        assert (later["attempt"], later["offset"], more) == (2, 0, b"again\n")
        append(second / "log", b"last words")
        watched.becomes(words.FAILED, attempt=2)
        assert [body for _, body in await frames.all()] == [b"last words", b""]

    followed(log.parent.parent, a_job(), story)


def test_a_log_that_is_gone_ends_with_its_job(tmp_path: Path) -> None:
    async def story(watched: Watched, frames: Frames) -> None:
        assert kinds(await frames.all()) == ["end"]

    followed(tmp_path, a_job(words.FAILED), story)


def test_a_gap_is_one_frame(punched: Path) -> None:
    async def story(watched: Watched, frames: Frames) -> None:
        found = await frames.all()
        assert kinds(found) == ["log", "gap", "log", "end"]
        assert found[1][0] == {"kind": "gap", "attempt": 1, "offset": 3 * BLOCK, "until": 7 * BLOCK, "bytes": 0}
        assert found[2][1][:1] == b"H"

    followed(punched.parent.parent, a_job(words.SUCCEEDED), story)


def test_a_log_punched_while_it_is_read_never_shows_zeros(punched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread

    def late(fd: int, count: int, offset: int) -> bytes:
        if offset < 3 * BLOCK:
            with open(punched, "r+b") as file:
                files.punch(file.fileno(), BLOCK, 6 * BLOCK)
        return pread(fd, count, offset)

    async def story(watched: Watched, frames: Frames) -> None:
        found = await frames.all()
        assert b"\0" not in b"".join(body for _, body in found)
        assert [(head["offset"], head.get("until")) for head, _ in found[1:-1]] == [
            (BLOCK, 7 * BLOCK),
            (7 * BLOCK, None),
        ]

    monkeypatch.setattr(os, "pread", late)
    followed(punched.parent.parent, a_job(words.SUCCEEDED), story)


def test_a_flood_is_sent_in_frames_and_read_no_faster_than_it_is_taken(log: Path) -> None:
    os.truncate(log, 0)
    append(log, os.urandom(1 << 20))

    async def story(watched: Watched, frames: Frames) -> None:
        found = await frames.all()
        assert b"".join(body for _, body in found) == log.read_bytes()
        assert max(len(body) for _, body in found) == logs.FRAME

    followed(log.parent.parent, a_job(words.SUCCEEDED), story)


def test_what_is_written_after_the_end_does_not_keep_a_follower(log: Path) -> None:
    async def story(watched: Watched, frames: Frames) -> None:
        found = []
        while not found or found[-1][0]["kind"] != "end":
            append(log, b"x" * 70_000)  # by a process that escaped
            found.append(await frames.next())
        assert len(found) < 5

    followed(log.parent.parent, a_job(words.SUCCEEDED), story)


def test_a_log_that_its_job_cut_off_goes_on_with_what_is_new(log: Path) -> None:
    async def story(watched: Watched, frames: Frames) -> None:
        await frames.next()
        await frames.next()
        news = asyncio.ensure_future(frames.next())
        os.truncate(log, 0)
        while not news.done():
            await asyncio.sleep(0.001)
            append(log, b"n\n")
        head, body = await news
        assert head["offset"] < 13
        assert body == b"n\n" * (len(body) // 2)

    followed(log.parent.parent, a_job(), story)


def test_a_silent_job_is_alive(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(watched: Watched, frames: Frames) -> None:
        assert [(await frames.next())[0]["kind"] for _ in range(4)] == ["state", "log", "alive", "alive"]

    monkeypatch.setattr(logs, "ALIVE_SECONDS", 0.02)
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.01)
    followed(log.parent.parent, a_job(), story)


# --- frames, taken apart ---------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 60))
def test_frames_are_the_same_however_the_stream_is_cut(bodies: list[bytes], piece: int) -> None:
    stream = b"".join(logs.frame("log", body, offset=number) for number, body in enumerate(bodies))
    chunks = [stream[at : at + piece] for at in range(0, len(stream), piece)]
    assert [(head["offset"], body) for head, body in cli.frames(chunks, ASKED)] == list(enumerate(bodies))
    assert len(list(cli.frames([stream[:-1]], ASKED))) == max(0, len(bodies) - 1)


@pytest.mark.parametrize(
    "line", [b"<html>", b"{}", b'{"kind":"log","bytes":-1}', b'{"kind":1,"bytes":1}', b"\xff", b"[]"]
)
def test_what_is_no_frame_is_refused(line: bytes) -> None:
    with pytest.raises(errors.BadData):
        list(cli.frames([line + b"\n"], ASKED))
    with pytest.raises(errors.BadData):
        list(cli.frames([b"x" * (cli.HEAD_LIMIT + 1)], ASKED))


# --- printed --------------------------------------------------------------------------------------------------------


class Box:
    """A client of a box with one ended job; `cuts` says after how many bytes each connection is lost."""

    box = "local"

    def __init__(self, *attempts: bytes, cuts: list[int] | None = None, **job: Any) -> None:
        self.logs = attempts
        self.cuts = cuts or []
        self.job = {"id": 42, "state": "succeeded", "attempt": len(attempts), "project": "", "exit_code": 0, **job}
        self.waits: list[str] = []
        self.calls = 0

    def get(self, path: str) -> Any:
        return {"job": self.job}

    def request(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        values = _query(path)
        data, offset = self.logs[values["attempt"] - 1], values["offset"]
        headers = {"x-gpubox-size": str(len(data)), "x-gpubox-offset": str(offset)}
        return 200, headers, data[offset : offset + values["limit"]]

    def stream(self, method: str, path: str, patience: float) -> Iterator[bytes]:
        self.calls += 1
        values = _query(path)
        whole = b"".join(self._frames(values["offset"], values.get("attempt", 1)))
        cut = self.cuts.pop(0) if self.cuts else None
        yield whole[:cut]
        if cut is not None:
            raise Lost("the connection was lost")

    def _frames(self, offset: int, first: int) -> Iterator[bytes]:
        for why in self.waits:
            yield logs.frame("state", state="queued", why=why, attempt=0)
        for attempt in range(first, len(self.logs) + 1):
            yield logs.frame("state", state="running", why="", attempt=attempt)
            data = self.logs[attempt - 1]
            for at in range(offset if attempt == first else 0, len(data), 5):
                yield logs.frame("log", data[at : at + 5], attempt=attempt, offset=at)
        yield logs.frame("alive")
        yield logs.frame("end", job=self.job)


def _query(path: str) -> dict[str, int]:
    pairs = (pair.split("=") for pair in path.partition("?")[2].split("&"))
    return {name: int(value) for name, value in pairs}


def run(box: Box, **options: Any) -> int:
    return cli.follow(box, 42, pull=False, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "PAUSES", (0.0,))


def test_a_followed_job_is_its_log_on_stdout_and_its_story_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    box = Box(b"10%\r100%\nunfinished", started_at=100.0, ended_at=112.0)
    box.waits = ["needs 2 cpus, 1 free", "needs 2 cpus, 1 free", "is \x1b]0;next"]
    assert run(box) == 0
    out, err = capfd.readouterr()
    assert out == "100%\nunfinished\n"
    assert err.splitlines() == [
        "job 42 waits: needs 2 cpus, 1 free",
        "job 42 waits: is \\x1b]0;next",
        "job 42 started",
        "job 42 succeeded in 12s",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.lists(st.integers(0, 900), max_size=6))
def test_no_byte_is_lost_or_printed_twice_over_lost_connections(
    capfdbinary: pytest.CaptureFixture[bytes], data: bytes, cuts: list[int]
) -> None:
    capfdbinary.readouterr()
    box = Box(data, b"second\n", cuts=[400, *cuts])
    assert run(box, form="raw") == 0
    assert capfdbinary.readouterr().out == data + b"second\n"


def test_a_lost_connection_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    box = Box(b"0123456789" * 3, cuts=[200, 0, 0, 0])
    assert run(box) == 0
    out, err = capfd.readouterr()
    assert out == "0123456789" * 3 + "\n"
    assert err.count("connection lost, trying again") == 1
    assert box.calls == 5


def test_a_box_that_never_answered_is_an_error_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.Unreachable):
        run(Box(b"x", cuts=[0]), attempt=1)


def test_a_retry_begins_on_a_line_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    run(Box(b"first", b"second"))
    out, err = capfd.readouterr()
    assert out == "first\nsecond\n"
    assert "attempt 2 starts" in err


def test_one_attempt_alone_can_be_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    box = Box(b"first\n", b"second\n", b"third\n")
    assert run(box, attempt=2) == 0
    assert run(box, attempt=1, until_end=False) == 0
    assert run(box, until_end=False) == 0
    assert capfd.readouterr().out == "second\nfirst\nthird\n"


def test_what_there_is_is_printed_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(Box(b"line\n", state="failed", exit_code=3), until_end=False) == 0
    assert capfd.readouterr() == ("line\n", "")


@pytest.mark.parametrize(("head", "expected"), [(0, ""), (1, "one\n"), (2, "one\ntwo\n"), (9, "one\ntwo\nthree\n")])
def test_the_first_lines_can_be_asked_for(capfd: pytest.CaptureFixture[str], head: int, expected: str) -> None:
    run(Box(b"one\ntwo\nthree"), until_end=False, head=head)
    assert capfd.readouterr().out == expected


@pytest.mark.parametrize("block", [1, 4, 1000])
@pytest.mark.parametrize("data", [b"one\ntwo\nthree\n", b"one\ntwo\nthree", b"", b"\n\n\n", b"x"])
@pytest.mark.parametrize("lines", [0, 1, 2, 9])
def test_the_last_lines_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, data: bytes, lines: int, block: int) -> None:
    monkeypatch.setattr(cli, "BLOCK", block)
    offset = cli.tail_offset(Box(data), 42, 1, lines)  # type: ignore[arg-type]
    assert data[offset:].splitlines() == (data.splitlines()[-lines:] if lines else [])


def test_a_gap_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    box = Box(b"")
    middle = [logs.frame("log", b"ab", attempt=1, offset=0), logs.frame("gap", attempt=1, offset=2, until=3 << 30)]
    rest = [logs.frame("log", b"yz", attempt=1, offset=3 << 30), logs.frame("end", job=box.job)]
    box._frames = lambda offset, first: iter(middle + rest)  # type: ignore[method-assign]
    run(box)
    out, err = capfd.readouterr()
    assert out == "ab\nyz\n"
    assert "… 3.0 GiB of the log's middle were dropped" in err


def test_json_is_every_frame_on_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    run(Box(b"a\xff\n"), form="json")
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["kind"] for line in found] == ["state", "log", "end"]
    assert found[1]["text"].encode("utf-8", "surrogateescape") == b"a\xff\n"


def test_ctrl_c_leaves_and_says_how_to_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    box = Box(b"text")

    def interrupted(offset: int, first: int) -> Iterator[bytes]:
        yield logs.frame("log", b"text", attempt=1, offset=0)
        raise KeyboardInterrupt

    box.stream = lambda *_, **__: interrupted(0, 1)  # type: ignore[method-assign]
    assert run(box) == 130
    out, err = capfd.readouterr()
    assert out == "text\n"
    assert "`runner logs -f 42`" in err
    assert "`runner cancel 42`" in err


@pytest.mark.parametrize(
    ("job", "code", "lines"),
    [
        ({"state": "succeeded"}, 0, ["job 42 succeeded"]),
        (
            {"state": "failed", "reason": "exit_code", "exit_code": 3, "detail": "ValueError: x"},
            3,
            ["job 42 failed: the command ended with exit code 3", "  ValueError: x"],
        ),
        (
            {"state": "failed", "reason": "exit_code", "exit_code": 1, "detail": MISSING},
            1,
            [
                "job 42 failed: the command ended with exit code 1",
                f"  {MISSING}",
                "  hint: a package is declared in requirements.txt or in the script's header; "
                "a file of yours has to be among `runner show --files 42`",
            ],
        ),
        (
            {"state": "failed", "reason": "signal", "signal": 11},
            139,
            ["job 42 failed: the command was ended by SIGSEGV"],
        ),
        ({"state": "failed", "reason": "environment_failed"}, 1, ["job 42 failed: its environment could not be built"]),
        ({"state": "cancelled", "reason": "cancelled"}, 143, ["job 42 was cancelled"]),
        ({"state": "cancelled", "reason": "cancelled", "signal": 9}, 137, ["job 42 was cancelled"]),
        ({"state": "cancelled", "reason": "cancelled", "exit_code": 0}, 143, ["job 42 was cancelled"]),
        ({"state": "timed_out", "reason": "time_limit", "signal": 15}, 124, None),
        ({"state": "out_of_memory", "reason": "host_out_of_memory"}, 137, None),
        ({"state": "lost", "reason": "reboot"}, 1, ["job 42 was lost: the box went down while it ran"]),
    ],
    ids=lambda value: value.get("state") if isinstance(value, dict) else None,
)
def test_how_a_job_ended_is_a_sentence_and_a_code(job: dict[str, Any], code: int, lines: list[str] | None) -> None:
    assert cli.exit_code(job) == code
    if lines:
        assert cli.ending({"id": 42, **job}) == lines


def test_every_way_to_end_has_words() -> None:
    assert set(cli.ENDED) == set(words.FINISHED)


def test_outputs_are_brought_home_and_named(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def bring(client: object, job_id: int, box: str, project: str) -> pull.Pulled:
        done = pull.Pulled(os.path.join(os.getcwd(), "runs", f"{box}-{job_id}"))
        done.files = [("metrics.json", 2048), ("a\nb", 1)]
        done.refused = [("../x", "not a path inside the folder")]
        return done

    monkeypatch.setattr(pull, "pull", bring)
    assert cli.follow(Box(b""), 42) == 0  # type: ignore[arg-type]
    err = capfd.readouterr().err
    assert "2 outputs in runs/local-42/ (2.0 KiB)\n  metrics.json  2.0 KiB\n  a\\nb  1 byte\n" in err
    assert "not fetched: ../x: not a path inside the folder" in err


def test_outputs_that_cannot_come_leave_the_jobs_code_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise errors.DiskFull("no room on this computer")

    monkeypatch.setattr(pull, "pull", full)
    assert cli.follow(Box(b"", state="failed", reason="exit_code", exit_code=3), 42) == 3  # type: ignore[arg-type]
    assert "`runner pull 42`" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["x"], ["1", "2"], ["--tail", "x", "1"], ["--tail=1", "--head=1", "1"]])
def test_what_cannot_be_asked_is_said(arguments: list[str]) -> None:
    with pytest.raises(errors.BadRequest):
        cli.main(arguments)


def test_a_terminal_gets_colours_and_a_clean_line_before_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = os.openpty()
    with open(there, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        run(Box(b"\x1b[31mred\x1b[2J", b"\r50%\r100%\n"))
        shown = ""
        while not shown.endswith("succeeded\r\n"):
            shown += os.read(here, 10_000).decode()
    os.close(here)
    expected = ["job 42 started", "\x1b[31mred\x1b[0m", "attempt 2 starts", "\r50%\r100%", "job 42 succeeded", ""]
    assert shown.replace("\r\n", "\n").split("\n") == expected


def test_a_jobs_first_plain_line_waits_for_no_slow_import() -> None:
    show = "from runner.cli import logs; from runner.laptop.terminal import Folded, Screen"
    feed = "Screen().feed('n█n\\n'.encode()); Folded().feed(b'a\\n')"
    slow = "{'re', 'enum', 'json', 'typing', 'asyncio', 'subprocess', 'http', 'ssl', 'urllib'}"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = f"import sys; sys.path.insert(0, {root!r}); {show}; {feed}; print(*({slow} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-I", "-S", "-c", code], text=True) == "\n"


# --- nested progress bars in a pipe ----------------------------------------------------------------------------------

ROUND = "\rinner 0%\x1b[A\n\rinner 50%\x1b[A\n\rinner 100%\x1b[A\n\r          \x1b[A\router {}%\n"
NESTED = b"\router 0%\n" + "".join(ROUND[:-1].format(n) for n in range(1, 101)).encode() + b"\n"
PANEL = "a 0\nb 0\n" + "".join(f"\x1b[2A\r\x1b[2Ka {n}\n\x1b[2Kb {n}\n" for n in range(1, 50))


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (NESTED + b"done\n", ["outer 0%", "outer 100%", "done"]),
        (PANEL.encode() + b"done", ["a 0", "b 0", "a 49", "b 49", "done"]),
        (b"one\n\x1b[Atwo\nthree\n", ["one", "two", "three"]),
        (b"\x1b[999999Ax\n\x1b[Ay", ["y"]),
    ],
    ids=["nested", "panel", "up", "far up"],
)
def test_in_a_pipe_lines_that_are_gone_back_to_are_their_last_state(written: bytes, lines: list[str]) -> None:
    for size in (1, 7, len(written)):
        fold = Folded()
        pieces = [fold.feed(written[at : at + size]) for at in range(0, len(written), size)]
        assert (b"".join(pieces) + fold.finish()).decode().splitlines() == lines


def test_lines_after_the_bars_are_at_most_a_few_late_and_then_not_at_all() -> None:
    fold = Folded()
    fold.feed(NESTED)
    late = [fold.feed(b"loss %d\n" % n).count(b"\n") for n in range(60)]
    assert sum(late[:30]) >= 29
    assert late[30:] == [1] * 30


def test_a_line_without_end_between_bars_is_not_held() -> None:
    fold = Folded()
    fold.feed(NESTED)
    written = b"".join(fold.feed(b"x" * 4096) for _ in range(100))
    assert len(written) > 300_000
    assert (written + fold.finish()).count(b"x") == 409_600
