"""What pages are drawn with: files of this package, read once, compressed once, known by their hash."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from runner.errors import NotFound

FOLDER = Path(__file__).parent / "static"
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
FOR_EVER = "public, max-age=31536000, immutable"  # of what has its version in its name
LOOK_AGAIN = "no-cache"


@dataclass(slots=True, frozen=True)
class Asset:
    data: bytes
    packed: bytes
    kind: str
    tag: str
    keep: str


@cache
def assets() -> dict[str, Asset]:
    """By their path below static/. What has no type of ours, such as a licence, is not given out."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in TYPES:
            name, data = path.relative_to(FOLDER).as_posix(), path.read_bytes()
            keep = FOR_EVER if name.startswith("vendor/") else LOOK_AGAIN
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            found[name] = Asset(data, gzip.compress(data, mtime=0), TYPES[path.suffix], tag, keep)
    return found


async def serve(request: Request) -> Response:
    name = request.url.path.removeprefix("/static/")
    asset = assets().get(name)
    if asset is None:
        raise NotFound("there is no such file")
    headers = {"ETag": asset.tag, "Cache-Control": asset.keep, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(None, 304, headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=asset.kind)
    return Response(asset.data, headers=headers, media_type=asset.kind)
