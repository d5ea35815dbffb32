"""Snapshots and contents: what a laptop has that the box lacks, and the bytes themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from runner import errors
from runner.box import outputs
from runner.box.api.house import Here, JobId, answer
from runner.box.auth import Who
from runner.box.code import Receiver
from runner.errors import Refused
from runner.model import Principal

routes = APIRouter()

HOP_BYTES = 1 << 20  # gathered before a thread writes them: a hop for each 64 KiB would cost more than the writing


@dataclass
class Offer:
    """A snapshot, as changes to one that the box has."""

    id: str
    base: str | None = None
    files: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # path -> mode, size, sha256
    removed: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)  # all of them
    dirs: list[str] = field(default_factory=list)  # all empty folders


@dataclass
class Missing:
    missing: list[str]


@dataclass
class Stored:
    stored: int


@dataclass
class Manifest:
    """The files of a snapshot."""

    version: int
    files: dict[str, tuple[int, int, str]]
    links: dict[str, str]
    dirs: list[str]


@routes.post("/snapshots", response_model=Missing)
async def offer(here: Here, who: Who, wish: Offer) -> Response:
    """Which contents the box lacks. When there are none, the snapshot is kept and jobs may name it."""
    _may_send(who)
    missing = await here.call(
        lambda: here.blobs.offer(wish.id, wish.base, wish.files, wish.removed, wish.links, wish.dirs)
    )
    return answer({"missing": missing})


_FRAMES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@routes.post("/blobs", response_model=Stored, openapi_extra={"requestBody": _FRAMES})
async def receive(here: Here, who: Who, request: Request) -> Response:
    """Contents, one after the other: `<sha256> <size>\\n<bytes>`. All of them are durable when this is answered."""
    _may_send(who)
    receiver = await here.call(lambda: Receiver(here.blobs, here.daemon.settings.upload_bytes))
    try:
        gathered = bytearray()
        async for piece in request.stream():
            gathered += piece
            if len(gathered) >= HOP_BYTES:
                data, gathered = bytes(gathered), bytearray()
                await here.call(lambda data=data: receiver.feed(data))  # type: ignore[misc]
        stored = await here.call(lambda: _close(receiver, bytes(gathered)))
    finally:
        await here.call(receiver.abort)
    return answer({"stored": stored})


def _close(receiver: Receiver, rest: bytes) -> int:
    receiver.feed(rest)
    return receiver.close()


def _may_send(who: Principal) -> None:
    if who.role == "read":
        raise Refused(f"{who.user} may look, but not send code", "ask the box's owner for more")


@routes.get("/blobs/{sha}", response_class=StreamingResponse)
async def content(here: Here, sha: str) -> Response:
    """The bytes of a content. Their hash is in the question, so whoever asks can check them."""
    path = here.blobs.path(sha)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise errors.NotFound(f"the box has no content {sha[:12]}", "it may have been cleaned away") from None
    size = os.fstat(fd).st_size
    headers = {"Content-Length": str(size)}
    return StreamingResponse(outputs.pieces(fd, 0, size), headers=headers, media_type="application/octet-stream")


@routes.get("/jobs/{job_id}/files", response_model=Manifest)
async def files(here: Here, job_id: JobId) -> Response:
    snapshot = here.job(job_id).snapshot
    if snapshot is None:
        return answer({"version": 1, "files": {}, "links": {}, "dirs": []})
    manifest = await here.call(lambda: here.blobs.manifest(snapshot).to_bytes())
    return Response(manifest, media_type="application/json")
