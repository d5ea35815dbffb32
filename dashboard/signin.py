"""The only open doors: the page that takes a code, and what it gives for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from runner.box.api.house import House
from runner.box.auth import SIGN_IN, networked
from runner.box.origins import said_same_site
from runner.box.sessions import cookie_name
from runner.errors import BadData, Refused

if TYPE_CHECKING:
    from dashboard.pages import Pages

CODE_BYTES = 200
PATH = SIGN_IN


async def page(pages: Pages, request: Request) -> Response:
    """Over the network it says which certificate the box has: terminal and browser must say the same."""
    network = pages.network() if networked(request.scope) is not None else None
    return pages.render("sign-in.html", fingerprint=network.fingerprint if network is not None else "")


async def enter(house: House, request: Request) -> Response:
    """The code is the body. NotTrusted."""
    headers = request.scope["headers"]
    if not said_same_site(headers):
        raise Refused("this request does not say from which page it comes", "use a browser of this decade")
    now, known = time.time(), house.gate.sessions
    cookie = known.enter(await _code(request), now)
    reply = Response(None, 204)
    secure = not any(name == b"origin" and value.startswith(b"http://") for name, value in headers)
    reply.set_cookie(
        cookie_name(headers), cookie, int(known.seconds(cookie, now)), path="/", secure=secure, httponly=True,
        samesite="strict",
    )  # fmt: skip
    return reply


async def _code(request: Request) -> str:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > CODE_BYTES:
            raise BadData("a code is shorter than this")
    return body.decode("utf-8", "replace").strip()
