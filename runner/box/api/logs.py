"""What jobs print and leave behind, and the stream of what changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.convertors import PathConvertor, register_url_convertor

from runner import errors, words
from runner.box import logs, outputs
from runner.box.api.house import ID_MAX, Here, House, JobId, answer, dumps
from runner.box.api.jobs import Output
from runner.box.api.routes import Routes
from runner.model import Job

routes = Routes()


class _AnyPath(PathConvertor):
    """A path with whatever in it: the usual one ends at a newline, which a file's name may hold."""

    regex = r"[\s\S]*"


register_url_convertor("any_path", _AnyPath())

PIECE = 1 << 20  # of a log, unless asked otherwise
PIECE_MAX = 16 << 20
ALIVE_SECONDS = 15.0
WHY_SECONDS = 1.0  # a follower's reason is renewed at most so often: it takes a look at the whole queue

Attempt = Annotated[int | None, Query(ge=1, le=ID_MAX)]
Offset = Annotated[int, Query(ge=-ID_MAX, le=ID_MAX)]


# --- logs ---


@routes.get("/logs/{job_id}", response_class=Response)
async def log(
    here: Here,
    job_id: JobId,
    attempt: Attempt = None,
    offset: Offset = 0,
    limit: Annotated[int, Query(ge=0, le=PIECE_MAX)] = PIECE,
) -> Response:
    """Bytes of a log from an offset on; a negative one counts from the end. X-Gpubox-Offset: where they begin, which is
    later where the middle was dropped. X-Gpubox-Size: how long the log is."""
    job = here.job(job_id)
    path = here.daemon.attempt_dir(job, _existing(job, attempt)).log
    begin, data, size = await here.call(lambda: _read(path, offset, limit))
    headers = {"X-Gpubox-Size": str(size), "X-Gpubox-Offset": str(begin)}
    return Response(data, headers=headers, media_type="text/plain; charset=utf-8")


def _read(path: str, offset: int, limit: int) -> tuple[int, bytes, int]:
    begin = logs.locate(path, offset)
    return begin, logs.read(path, begin, limit), logs.size(path)


def _existing(job: Job, attempt: int | None) -> int:
    if attempt is not None and attempt > max(job.attempt, 1):
        raise errors.NotFound(f"job {job.id} has had {job.attempt} attempts, not {attempt}", f"`runner show {job.id}`")
    return attempt or max(job.attempt, 1)


@routes.get("/logs/{job_id}/follow", response_class=StreamingResponse)
async def follow(here: Here, job_id: JobId, attempt: Attempt = None, offset: Offset = 0) -> Response:
    """Frames until the job ends: a line of JSON {"kind", ..., "bytes": n}, then n bytes. Kinds: log, gap, state, alive,
    end."""
    _existing(here.job(job_id), attempt)
    return StreamingResponse(_frames(here, job_id, attempt, offset), media_type="application/x-gpubox-frames")


class _Leaving(Exception):
    """The daemon ends: the follower comes back to the next one."""


async def _frames(here: House, job_id: int, attempt: int | None, offset: int) -> AsyncIterator[bytes]:
    job_of = _watched(here, job_id)
    log_of = lambda number: here.daemon.attempt_dir(job_of(), number).log  # noqa: E731
    with here.stream() as woken:
        try:
            async for frame in logs.follow(job_of, log_of, woken, offset, attempt):
                yield frame
        except _Leaving:
            return


def _watched(here: House, job_id: int) -> Callable[[], Job]:
    """The job as it is now, cheap to ask at every event: what costs a look at the queue is a moment old."""
    asked_at = 0.0

    def job_of() -> Job:
        nonlocal asked_at
        if here.closing:
            raise _Leaving
        job = here.job(job_id)
        if job.state == words.QUEUED and time.monotonic() - asked_at >= WHY_SECONDS:
            here.wishes.fresh([job])
            asked_at = time.monotonic()
        return job

    return job_of


# --- outputs ---


@dataclass
class Left:
    """What a job left."""

    outputs: list[Output]
    links: dict[str, str]  # path -> target


@routes.get("/jobs/{job_id}/outputs", response_model=Left)
async def listing(here: Here, job_id: JobId) -> Response:
    job = here.job(job_id)
    return answer(await here.call(lambda: here.custody.listing(job.id).as_json()))


@routes.get("/jobs/{job_id}/outputs/{path:any_path}", response_class=StreamingResponse)
async def output(
    here: Here, request: Request, job_id: JobId, path: str, offset: Annotated[int, Query(ge=0, le=ID_MAX)] = 0
) -> Response:
    """The bytes of an output file from an offset on."""
    job = here.job(job_id)
    name = outputs.named(request.scope["raw_path"].partition(b"/outputs/")[2])
    fd, found = await here.call(lambda: here.custody.open_file(job.id, name))
    headers = {"Content-Length": str(max(0, found.st_size - offset)), "Content-Disposition": "attachment"}
    pieces = outputs.pieces(fd, offset, found.st_size)
    return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")


# --- events ---


@routes.get("/events", response_class=StreamingResponse)
async def events(
    here: Here,
    after: Annotated[int | None, Query(ge=0)] = None,
    last: Annotated[int | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """Server-sent events: `job` for each change; `resync` when some were missed: look at the jobs afresh."""
    seen = after if after is not None else last
    stream = _events(here, here.daemon.events.last if seen is None else seen)
    return StreamingResponse(stream, headers={"Cache-Control": "no-store"}, media_type="text/event-stream")


async def _events(here: House, seen: int) -> AsyncIterator[bytes]:
    known = here.daemon.events
    with here.stream() as woken:
        yield b"retry: 1000\n\n"
        while not here.closing:
            woken.clear()
            news = known.since(seen)
            if news is None:
                yield _event(known.last, "resync", {"seq": known.last})
            elif news:
                yield b"".join(_event(each.seq, each.kind, each) for each in news)
            seen = known.last
            try:
                await asyncio.wait_for(woken.wait(), ALIVE_SECONDS)
            except TimeoutError:
                yield b": alive\n\n"


def _event(seq: int, kind: str, value: object) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (seq, kind.encode(), dumps(value))
