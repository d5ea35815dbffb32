"""The only open doors: the page that takes a code, and what it gives for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from runner.box.api.house import House
from runner.box.origins import said_same_site
from runner.box.sessions import SESSION_SECONDS, cookie_name
from runner.errors import BadData, Refused

if TYPE_CHECKING:
    from dashboard.pages import Pages

CODE_BYTES = 200
PATH = "/sign-in"


async def page(pages: Pages, request: Request) -> Response:
    return pages.render("sign-in.html")


async def enter(house: House, request: Request) -> Response:
    """The code is the body. NotTrusted."""
    headers = request.scope["headers"]
    if not said_same_site(headers):
        raise Refused("this request does not say from which page it comes", "use a browser of this decade")
    cookie = house.gate.sessions.enter(await _code(request), time.time())
    reply = Response(None, 204)
    secure = not any(name == b"origin" and value.startswith(b"http://") for name, value in headers)
    reply.set_cookie(
        cookie_name(headers), cookie, int(SESSION_SECONDS), path="/", secure=secure, httponly=True, samesite="strict"
    )
    return reply


async def _code(request: Request) -> str:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > CODE_BYTES:
            raise BadData("a code is shorter than this")
    return body.decode("utf-8", "replace").strip()
