"""What a job was given and what it left, as pages: files, pictures, texts, and what changed since the run before."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dashboard import previews, render
from runner import comparison, errors
from runner.box import logs, outputs
from runner.box.api.house import ID_MAX, House, JobId
from runner.model import Job

OUTPUTS_SHOWN, PICTURES_SHOWN = 200, 24
FILES_SHOWN = 2000
DIFFED_FILES, DIFFED_LINES, DIFFED_BYTES = 100, 4000, 256 << 10  # of one page, of one page, of one file
LOG_PIECE = 1 << 20
DOWNLOAD_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Content-Disposition": "attachment",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PICTURE_HEADERS = {  # even opened by itself it is a picture, and nothing else
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Content-Disposition": "inline",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, max-age=86400, immutable",  # its address has the time of its last change
}
KINDS = {"added": "+", "removed": "\N{MINUS SIGN}", "changed": "~", "mode": "~"}
Base = Callable[[MutableMapping[str, Any], str], dict[str, Any]]


class Contents:
    def __init__(self, house: House, base: Base) -> None:
        self._house, self._base = house, base

    def ways(self) -> dict[str, Callable[..., Awaitable[Response]]]:
        return {
            "/part/jobs/{job_id}/outputs": self.part_outputs,
            "/jobs/{job_id}/outputs/{path:any_path}": self.output,
            "/jobs/{job_id}/picture/{path:any_path}": self.picture,
            "/jobs/{job_id}/files": self.files,
            "/jobs/{job_id}/files/{path:any_path}": self.file,
            "/jobs/{job_id}/diff": self.diff,
            "/jobs/{job_id}/log": self.log,
        }

    # --- what it printed ---

    async def log(self, job_id: JobId) -> Response:
        """All of it that is kept, to be downloaded; a gap in its middle is told."""
        job = self._house.job(job_id)
        path = self._house.daemon.attempt_dir(job, max(job.attempt, 1)).log
        pieces = self._printed(path, await self._house.call(lambda: logs.size(path)))
        return StreamingResponse(pieces, headers=DOWNLOAD_HEADERS, media_type="text/plain; charset=utf-8")

    async def _printed(self, path: str, size: int) -> AsyncIterator[bytes]:
        at = 0
        while at < size:
            begin, data = await self._house.call(partial(_piece, path, at))
            if begin > at:
                yield b"\n[%d bytes in the middle were dropped]\n" % (begin - at)
            if not data:
                return
            yield data
            at = begin + len(data)

    # --- what it left ---

    async def left(self, job: Job) -> dict[str, Any]:
        """For the templates: its outputs, and which of them are shown as pictures."""
        found = (await self._house.call(lambda: self._house.custody.listing(job.id))).outputs
        small = [each for each in found if previews.named_picture(each.path)]
        small = [each for each in small if 0 < each.size <= previews.PICTURE_BYTES]
        return {
            "outputs": found[:OUTPUTS_SHOWN],
            "outputs_more": max(0, len(found) - OUTPUTS_SHOWN),
            "pictures": small[:PICTURES_SHOWN],
        }

    async def part_outputs(self, request: Request, job_id: JobId) -> Response:
        job = self._house.job(job_id)
        return render.page("outputs.html", {"job": job, **await self.left(job), **self._base(request.scope, "jobs")})

    async def output(self, request: Request, job_id: JobId) -> Response:
        path = self._path(request, b"/outputs/")
        head, size, changed_at = await self._house.call(lambda: self._head(job_id, path))
        values = {
            "path": path,
            "size": size,
            "picture": previews.picture(head) if size <= previews.PICTURE_BYTES else None,
            "version": int(changed_at * 1000),
            "raw": f"/api/v1/jobs/{job_id}/outputs/",
            "back": (f"/jobs/{job_id}#outputs-title", f"Outputs of job {job_id}"),
        }
        return self._shown(request, job_id, values, head)

    def _head(self, job_id: int, path: str) -> tuple[bytes, int, float]:
        fd, found = self._house.custody.open_file(job_id, path)
        return b"".join(outputs.pieces(fd, 0, previews.TEXT_BYTES)), found.st_size, found.st_mtime

    async def picture(self, request: Request, job_id: JobId) -> Response:
        """NotFound where its bytes are no picture, whatever its name says."""
        path = self._path(request, b"/picture/")
        self._house.job(job_id)
        fd, found, kind = await self._house.call(lambda: self._picture(job_id, path))
        headers = {**PICTURE_HEADERS, "Content-Length": str(found.st_size)}
        return StreamingResponse(outputs.pieces(fd, 0, found.st_size), headers=headers, media_type=kind)

    def _picture(self, job_id: int, path: str) -> tuple[int, os.stat_result, str]:
        fd, found = self._house.custody.open_file(job_id, path)
        kind = None
        try:
            if found.st_size <= previews.PICTURE_BYTES:
                kind = previews.picture(os.pread(fd, previews.HEAD_BYTES, 0))
            if kind is None:
                raise errors.NotFound(f"{path!a} is no picture that can be shown", "it can be downloaded")
        except BaseException:
            os.close(fd)
            raise
        return fd, found, kind

    # --- what it was given ---

    async def files(self, request: Request, job_id: JobId) -> Response:
        job = self._house.job(job_id)
        files, links = await self._house.call(lambda: self._manifest(job))
        told = sorted([(path, entry[1], "") for path, entry in files.items()])
        told = sorted([*told, *((path, None, target) for path, target in links.items())], key=lambda each: each[0])
        values = {
            "job": job,
            "files": told[:FILES_SHOWN],
            "count": len(told),
            "bytes": sum(entry[1] for entry in files.values()),
        }
        return render.page("files.html", {**values, **self._base(request.scope, "jobs")})

    async def file(self, request: Request, job_id: JobId) -> Response:
        path = self._path(request, b"/files/")
        files, _ = await self._house.call(lambda: self._manifest(self._house.job(job_id)))
        if path not in files:
            raise errors.NotFound(f"job {job_id} was given no file {path!a}", "its page names those that it was")
        _, size, sha = files[path]
        head = await self._house.call(lambda: self._content(sha, previews.TEXT_BYTES))
        values = {
            "path": path,
            "size": size,
            "picture": None,
            "version": 0,
            "raw": "",
            "back": (f"/jobs/{job_id}/files", f"Files of job {job_id}"),
        }
        return self._shown(request, job_id, values, head)

    def _manifest(self, job: Job) -> tuple[Mapping[str, tuple[int, int, str]], Mapping[str, str]]:
        if job.snapshot is None:
            return {}, {}
        found = self._house.blobs.manifest(job.snapshot)
        return found.files, found.links

    def _content(self, sha: str, most: int) -> bytes:
        try:
            with open(self._house.blobs.path(sha), "rb") as file:
                return file.read(most)
        except FileNotFoundError:
            raise errors.NotFound("the box does not have this file any more", "it was cleaned away") from None

    # --- what changed ---

    async def diff(
        self, request: Request, job_id: JobId, to: Annotated[int | None, Query(ge=1, le=ID_MAX)] = None
    ) -> Response:
        """to: the other job; without it the run before of the same program."""
        new = self._house.job(job_id)
        other = to if to is not None else self.previous(new)
        if other is None:
            raise errors.NotFound(f"job {job_id} is the first of its program here", "`runner diff` compares any two")
        old = self._house.job(other)
        values = await self._house.call(lambda: self._compared(old, new))
        return render.page("diff.html", {"job": new, "old": old, **values, **self._base(request.scope, "jobs")})

    def previous(self, job: Job) -> int | None:
        return self._house.daemon.store.previous(job.id)

    def _compared(self, old: Job, new: Job) -> dict[str, Any]:
        before, after = self._side(old), self._side(new)
        found = comparison.files(before, after)
        room, told = DIFFED_LINES, []
        for path, change in found[:DIFFED_FILES]:
            try:
                lines = comparison.lines(before, after, path, DIFFED_BYTES) if room > 0 else []
            except errors.NotFound:
                lines = ["the box does not have its contents any more"]
            heads = {f"--- {before.label}/{path}", f"+++ {after.label}/{path}"}
            marked = [_marked(line) for line in lines[:room] if line not in heads]
            told.append({"path": path, "change": change, "sign": KINDS[change], "lines": marked})
            room -= len(lines)
        changes = comparison.options(before.spec, after.spec)
        return {
            "options": {name: tuple(previews.plain(_said(each)) for each in both) for name, both in changes.items()},
            "files": told,
            "left_out": len(found) - len(told),
            "cut": room <= 0,
        }

    def _side(self, job: Job) -> comparison.Side:
        files, links = self._manifest(job)
        spec = asdict(self._house.daemon.store.spec(job.spec_id))
        spec["env"] = dict(sorted(spec["env"].items()))
        return comparison.Side(f"job {job.id}", spec, files, links, self._house.blobs.read)

    # --- both ---

    def _shown(self, request: Request, job_id: int, values: dict[str, Any], head: bytes) -> Response:
        shown = None if values["picture"] else previews.text(head)
        more = max(0, values["size"] - len(head)) if shown is not None else 0
        told = {"job": self._house.job(job_id), "text": shown, "more": more, **values}
        return render.page("file.html", {**told, **self._base(request.scope, "jobs")})

    def _path(self, request: Request, after: bytes) -> str:
        return outputs.named(request.scope["raw_path"].partition(after)[2])


def _piece(path: str, at: int) -> tuple[int, bytes]:
    return logs.locate(path, at), logs.read(path, at, LOG_PIECE)


def _said(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(each) for each in value)
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items())
    return "\N{EN DASH}" if value in (None, "") else str(value)


def _marked(line: str) -> tuple[str, str]:
    """(class, line): never colour alone, its first character says the same."""
    return {"+": "ins", "-": "del", "@": "at"}.get(line[:1], ""), previews.plain(line)
