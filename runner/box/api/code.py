"""Snapshots and contents: what a laptop has that the box lacks, and the bytes themselves."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from runner import errors
from runner.box import outputs
from runner.box.api.house import Here, House, JobId, Key, answer
from runner.box.api.jobs import AGAIN, submitted
from runner.box.api.routes import Routes
from runner.box.api.uploads import Upload
from runner.box.auth import Who
from runner.box.code import Receiver
from runner.errors import Refused
from runner.model import Principal, Submission, Submitted

routes = Routes()

INLINE_BYTES = 4 << 20  # of contents in a bundle


@dataclass
class Offer:
    """A snapshot, as changes to one that the box has."""

    id: str
    base: str | None = None
    files: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # path -> mode, size, sha256
    removed: list[str] = field(default_factory=list)
    links: dict[str, str] | None = field(default_factory=dict)  # all of them; null: as in the base
    dirs: list[str] | None = field(default_factory=list)  # all empty folders; null: as in the base


@dataclass
class Missing:
    """What the box lacks. What it has is pinned for a day."""

    missing: list[str]
    held: dict[str, int] = field(default_factory=dict)  # of these, where a cut left the beginning here: its bytes


@dataclass
class Stored:
    stored: int


_SUBMISSION: TypeAdapter[Submission] = TypeAdapter(Submission)
_OFFER: TypeAdapter[Offer] = TypeAdapter(Offer)


@dataclass
class Manifest:
    """The files of a snapshot."""

    version: int
    files: dict[str, list[int | str]]  # [mode, size, sha256]
    links: dict[str, str]
    dirs: list[str]


@routes.post("/snapshots", response_model=Missing)
async def offer(here: Here, who: Who, wish: Offer) -> Response:
    """Which contents the box lacks. The snapshot is kept; when nothing is missing, jobs may name it."""
    _may_send(who)
    return answer(await here.call(lambda: _missing(here, wish)))


def _missing(here: House, wish: Offer, came: Receiver | None = None) -> dict[str, Any]:
    blobs = here.blobs
    lacks = blobs.offer(wish.id, wish.base, wish.files, wish.removed, wish.links, wish.dirs, came)
    return {"missing": lacks, "held": blobs.held(lacks)}


FRAMES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}

UploadKey = Annotated[str | None, Header(alias="Upload-Key", min_length=1, max_length=200)]


@routes.post("/blobs", response_model=Stored, openapi_extra={"requestBody": FRAMES})
async def receive(here: Here, who: Who, request: Request, key: UploadKey = None) -> Response:
    """Contents, one after the other: `<sha256> <size>\\n<bytes>`, or in parts: `<sha256> <size> <start> <length>
    <sent>\\n<bytes>`, which zlib packed where `sent` is less. All of them are durable when this is answered; after a
    cut the next question says what need not be sent again. Upload-Key: the Idempotency-Key of the question."""
    _may_send(who)
    return await taken(here, who, request, key, Receiver(here.blobs, here.daemon.settings.upload_bytes))


async def taken(here: House, who: Principal, request: Request, key: str | None, receiver: Receiver) -> Response:
    """The contents that a request brings, durable when this is answered."""
    upload = Upload(receiver, here.call)
    try:
        with here.upload(who.uid, key, upload):
            async for piece in request.stream():
                await upload.take(piece)
            stored = await upload.close()
    except ClientDisconnect:
        await upload.keep()
        raise
    finally:
        await upload.end()
    return answer({"stored": stored})


@routes.post(
    "/bundles",
    status_code=201,
    response_model=Submitted,
    responses={**AGAIN, 202: {"model": Missing, "description": "No job yet: the box lacks contents"}},
    openapi_extra={"requestBody": FRAMES},
)
async def bundle(here: Here, who: Who, request: Request, key: Key = None) -> Response:
    """A submission with its code, at once: `<n> <m>\\n`, n bytes of JSON as for POST /jobs, m bytes of JSON as for POST
    /snapshots, then, as for POST /blobs, small contents that the box may lack. A job only if it then has them all."""
    _may_send(who)
    submission, wish, frames, digest = _unbundled(await request.body())
    if key is not None and (upload := here.uploads.get((who.uid, key))) is not None:
        await upload.keep()  # whoever asks again has lost the connection, even if we don't know that yet
    missing = await here.call(lambda: _delivered(here, submission, wish, frames))
    if missing["missing"]:
        return answer(missing, 202)
    return await submitted(here, who, submission, key, digest)


def _delivered(here: House, submission: Submission, wish: Offer, frames: memoryview) -> dict[str, Any]:
    receiver = Receiver(here.blobs, INLINE_BYTES)
    try:
        receiver.feed(frames)
        missing = _missing(here, wish, receiver)
    finally:
        receiver.abort()
    if not missing["missing"]:
        here.recipes.environment(submission.spec)  # while we are in a thread; the submission finds it in memory
    return missing


def _unbundled(body: bytes) -> tuple[Submission, Offer, memoryview, str]:
    """(the submission, the changes, the frames, what the idempotency key stands for)."""
    end = body.find(b"\n", 0, 40)
    sizes = body[: max(end, 0)].split(b" ")
    if len(sizes) != 2 or not all(size.isdigit() for size in sizes):
        raise errors.BadData("the request is no bundle", "docs/openapi.json says what it takes")
    first = end + 1 + int(sizes[0])
    second = first + int(sizes[1])
    if second > len(body):
        raise errors.BadData("the bundle is cut short", "submit again")
    said = body[end + 1 : first]
    try:
        submission: Submission = _SUBMISSION.validate_json(said)
        wish: Offer = _OFFER.validate_json(body[first:second])
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from None
    if submission.spec.snapshot != wish.id:
        raise errors.BadRequest("the submission names another snapshot than the one that comes with it")
    return submission, wish, memoryview(body)[second:], hashlib.sha256(said).hexdigest()


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
    manifest = await here.call(lambda: here.blobs.manifest(snapshot).data)
    return Response(manifest, media_type="application/json")
