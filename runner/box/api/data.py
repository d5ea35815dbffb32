"""Data sets: pushed, listed, fetched, linked, removed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated

from fastapi import Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from runner import errors, files
from runner.box.api.code import FRAMES, Manifest, Missing, Stored, UploadKey, taken
from runner.box.api.house import ID_MAX, Here, House, Key, answer
from runner.box.api.routes import Routes
from runner.box.auth import Admin, Who
from runner.box.code import Receiver
from runner.box.manifests import Manifest as Listed
from runner.box.sets import DataSet, Lacking, Push

routes = Routes()

Named = Annotated[str, Path(min_length=1, max_length=64)]
PIECE = 1 << 20


@dataclass
class DataSets:
    sets: list[DataSet]
    shared: str  # the folder that people and jobs share
    free_bytes: int  # on the disk that holds the sets


@dataclass
class Target:
    path: str  # on the box


@dataclass
class DataSetRemoved:
    removed: DataSet
    freed_bytes: int
    kept_by: list[int] = field(default_factory=list)  # the jobs that began with it and have it until they end


@routes.get("/data", response_model=DataSets)
async def sets(here: Here) -> Response:
    free, _ = files.disk_room(here.sets.directory)
    return answer(DataSets(here.sets.listed(), here.sets.shared, free))


@routes.post("/data/blobs", response_model=Stored, openapi_extra={"requestBody": FRAMES})
async def receive(here: Here, who: Who, request: Request, key: UploadKey = None) -> Response:
    """Contents of a set, and its list, as for POST /blobs."""
    free, _ = files.disk_room(here.sets.directory)
    room = max(0, free - here.daemon.settings.free_bytes)
    return await taken(here, who, request, key, Receiver(here.sets.blobs, room))


@routes.put(
    "/data/{name}",
    status_code=201,
    response_model=DataSet,
    responses={202: {"model": Missing, "description": "Not yet: the box lacks contents"}},
)
async def push(here: Here, who: Who, name: Named, wish: Push, key: Key = None) -> Response:
    """Have a set consist of these files from now on. `files` null: their list is a content of the name `id`, in the
    form of a manifest. Jobs that run keep what they began with."""
    if key is not None and (upload := here.uploads.get((who.uid, key))) is not None:
        await upload.keep()  # whoever asks again has lost the connection
    made = await here.call(lambda: here.sets.offer(name, wish, who))
    if isinstance(made, Lacking):
        return answer(Missing(made.missing, made.held), 202)
    here.daemon.report(f"{who.user} pushed the data set {name}: {made.files} files, {made.bytes} bytes")
    await sweep(here)
    return answer(made, 201)


@routes.put("/data/{name}/link", status_code=201, response_model=DataSet)
async def link(here: Here, who: Admin, name: Named, to: Target) -> Response:
    """Give a name to what is on the box already."""
    made = await here.call(lambda: here.sets.link(name, to.path, who))
    here.daemon.report(f"{who.user} linked the data set {name} to {made.path!a}")
    return answer(made, 201)


@routes.delete("/data/{name}", response_model=DataSetRemoved)
async def remove(here: Here, who: Who, name: Named) -> Response:
    """A link's target stays as it is."""
    found = await here.call(lambda: here.sets.remove(name, who))
    views = in_use(here)
    kept_by = [job for job, view in views.items() if here.sets.seen(view, found)]
    here.daemon.report(f"{who.user} removed the data set {name}")
    return answer(DataSetRemoved(found, await sweep(here), kept_by))


def in_use(here: House) -> dict[int, str]:
    """Job -> its RUNNER_DATA, of those that start or run."""
    daemon = here.daemon
    return {job.id: daemon.data_of(job) for job in daemon.book.active.values()}


async def sweep(here: House) -> int:
    """Remove what no job and no name leads to. Returns the bytes freed."""
    stale = set(here.sets.stale_views()) - set(in_use(here).values())  # in one turn: nothing starts in between
    freed: int = await here.call(lambda: here.sets.sweep(stale))
    return freed


# --- what is fetched ---


@routes.get("/data/{name}/files", response_model=Manifest)
async def listing(here: Here, name: Named) -> Response:
    """The files of a set. The sha256 of this very answer is its version's id."""
    found: Listed = await here.call(lambda: here.sets.fetched(name))
    return Response(found.data, media_type="application/json")


@routes.get("/data/{name}/contents", response_class=StreamingResponse)
async def contents(
    here: Here,
    name: Named,
    id: Annotated[str, Query(pattern="^[0-9a-f]{64}$")],
    first: Annotated[int, Query(ge=0, le=ID_MAX)] = 0,
    last: Annotated[int, Query(ge=0, le=ID_MAX)] = ID_MAX,
    offset: Annotated[int, Query(ge=0, le=ID_MAX)] = 0,
) -> Response:
    """The contents of the files first..last of a version, counted in the order of its list, one after the other; of the
    first one from the offset on. NotFound: the set has another version by now."""
    found: Listed = await here.call(lambda: here.sets.fetched(name))
    if found.id != id:
        raise errors.NotFound(f"{name} was pushed anew meanwhile", f"`runner data pull {name}` again")
    tree, chosen = here.sets.tree(id), islice(found.files.items(), first, last + 1)
    wanted = [(f"{tree}/{path}", size) for path, (_, size, _) in chosen]
    return StreamingResponse(_pieces(wanted, offset), media_type="application/octet-stream")


def _pieces(wanted: list[tuple[str, int]], offset: int) -> Iterator[bytes]:
    """Small ones share a piece. It breaks off where a file is not what it was, so that the reader notices."""
    gathered = bytearray()
    for path, size in wanted:
        with suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while data := file.read(PIECE):
                gathered += data
                offset += len(data)
                if len(gathered) >= PIECE:
                    yield bytes(gathered)
                    gathered.clear()
        if offset != size:
            raise OSError(0, "it is not as long as it was", os.path.basename(path))
        offset = 0
    yield bytes(gathered)
