"""Around every request: limits on what comes in, our headers on what goes out, one shape for whatever goes wrong."""

from __future__ import annotations

import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

import runner
from runner import errors, files
from runner.box import origins
from runner.box.api.house import House, answer
from runner.box.auth import SIGN_IN, WHO, browsing, networked
from runner.model import Principal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CONNECTIONS_MAX = 256  # on the unix socket; a follower costs three descriptors, and 1024 are usual
JSON_BYTES = 8 << 20
MANIFEST_BYTES = 64 << 20  # 100,000 files with long names
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-gpubox-api", str(runner.API_LEVEL).encode()),
    (b"x-gpubox-version", runner.__version__.encode()),
]


class Front:
    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], house: House) -> None:
        self.app, self.house = app, house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*_inert(scope, message.get("headers", ())), *HEADERS]
            await send(message)

        self.house.requests += 1
        try:
            if networked(scope) is None and len(self.house.connections) > CONNECTIONS_MAX:  # porch.py counts the others
                return await too_many()(scope, receive, with_headers)
            try:
                who = self._let_in(scope)
            except errors.Problem as problem:
                doom(self.house, problem)
                return await self._turned_away(scope, problem)(scope, receive, with_headers)
            with ExitStack() as answering:
                for key in (who.token, who.share) if who is not None else ():
                    if key:
                        answering.enter_context(self.house.answers(key))
                await self.app(scope, limited(scope, receive), with_headers)
        except ClientDisconnect:
            pass  # whoever asked has gone, with nobody left to tell
        except Exception as error:
            if isinstance(error, OSError) and error.errno in files.DISK_FAILED:
                self.house.doomed(errors.StateDamaged(f"the box's disk failed: {error}", "check the disk"))
            self.house.daemon.report(
                f"{scope.get('method')} {scope.get('path')}: " + "".join(traceback.format_exception(error)).rstrip()
            )
            if begun:
                raise
            fault = errors.Problem(
                f"the box met an error of its own: {type(error).__name__}", "its log says more: daemon.log in its state"
            )
            await refused(fault)(scope, receive, with_headers)
        finally:
            self.house.requests -= 1
            self.house.touch()

    def _let_in(self, scope: Scope) -> Principal | None:
        """Before a byte of the body is read: from where, under which name, and who. None: it is open to all."""
        network, address = self.house.network, networked(scope)
        door = scope.get("path") == SIGN_IN and scope.get("method") == "GET"
        if browsing(scope):
            origins.check_page(scope["headers"], scope["server"][1], door)
        elif network is not None and address is not None:
            ports = self.house.gate.sessions.ports(time.time())
            origins.check(scope["headers"], network.names, scope["server"][0], network.port, ports, door)
        if self.house.pages is not None and self.house.pages.open(scope):
            return None
        who = scope[WHO] = self.house.gate.admit(scope)
        if network is not None and address is not None:
            network.let_in(address)
        return who

    def _turned_away(self, scope: Scope, problem: errors.Problem) -> Response:
        """Who asks for a page is shown one."""
        pages = self.house.pages
        if pages is None or _is_api(scope):
            return turned_away(problem)
        reply = pages.problem(scope, problem)
        reply.headers["connection"] = "close"
        return reply


def _is_api(scope: Scope) -> bool:
    return str(scope.get("path", "")).startswith("/api/")


def _inert(scope: Scope, headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    """What the API sends is never a page: a job's output that a browser opens runs nothing. No browser keeps it: who
    signs out leaves no log behind."""
    if not _is_api(scope):
        return headers
    kept = [(name, value) for name, value in headers if name != b"cache-control"]
    return [*kept, (b"content-security-policy", b"default-src 'none'; sandbox"), (b"cache-control", b"no-store")]


def turned_away(problem: errors.Problem) -> Response:
    """Refused, and nothing more is read from that connection."""
    reply = refused(problem)
    reply.headers["connection"] = "close"
    return reply


def too_many() -> Response:
    """Refused, and the connection closed: the room is for those who are being answered."""
    full = errors.Unreachable(
        f"the box has more than {CONNECTIONS_MAX} connections open", "try again when some of the followers are gone"
    )
    return turned_away(full)


def limited(scope: Scope, receive: Receive) -> Receive:
    """`receive`, up to as many bytes as this path takes. Contents have a limit of their own."""
    path = scope.get("path", "")
    if path.endswith("/blobs"):
        return receive
    limit = MANIFEST_BYTES if path.endswith(("/snapshots", "/bundles")) else JSON_BYTES
    said = next((value for name, value in scope.get("headers", ()) if name == b"content-length"), b"0")
    room = limit

    async def receive_some() -> Message:
        nonlocal room
        if int(said) > limit:
            raise _too_large(limit)
        message = await receive()
        room -= len(message.get("body", b""))
        if room < 0:
            raise _too_large(limit)
        return message

    return receive_some


def _too_large(limit: int) -> errors.TooLarge:
    return errors.TooLarge(f"the request is larger than {limit >> 20} MiB", "split it into several")


def refused(problem: errors.Problem, status: int | None = None) -> Response:
    return answer(problem.as_json(), status or problem.http_status)


def set_words(app: FastAPI) -> None:
    """One shape for all errors: {code, message, hint}."""
    app.add_exception_handler(errors.Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def _said(request: Request, problem: errors.Problem, status: int | None = None) -> Response:
    pages = getattr(request.app.state.house, "pages", None)
    if pages is None or _is_api(request.scope):
        return refused(problem, status)
    shown: Response = pages.problem(request.scope, problem)
    return shown


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.Problem), "the handler is registered for these"
    doom(request.app.state.house, error)
    return _said(request, error)


def doom(house: House, problem: errors.Problem) -> None:
    """A failed database ends the daemon. A content that is damaged is a StateDamaged, too: the next submit mends it."""
    if isinstance(problem, errors.StateDamaged) and problem is house.daemon.store.damage:
        house.doomed(problem)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "the handler is registered for these"
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _said(request, errors.BadData("the request's body is not JSON", "upgrade `runner`"))
    where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
    said = str(first["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    return _said(
        request, errors.BadRequest(f"{where} {said[:1].lower()}{said[1:]}", "docs/openapi.json says what it takes")
    )


async def _http(request: Request, error: Exception) -> Response:
    """What the framework refuses itself: unknown paths and methods, a body that it could not read."""
    assert isinstance(error, HTTPException), "the handler is registered for these"
    cause = error.__cause__
    if isinstance(cause, errors.Problem):
        return _said(request, cause)
    if isinstance(cause, RecursionError):
        return _said(request, errors.BadData("the request's body is nested too deeply"))
    path = request.url.path[:200]
    if error.status_code == 404:
        return _said(
            request, errors.NotFound(f"{path!a} is not part of the API", "it is described in docs/openapi.json")
        )
    if error.status_code == 405:
        wrong = errors.BadRequest(f"{request.method} is not for {path!a}", "the API is described in docs/openapi.json")
        said = _said(request, wrong, 405)
        said.headers["Allow"] = ", ".join(_methods_of(request))
        return said
    return _said(request, errors.BadData("the request could not be read", "send it again"), error.status_code)


def _methods_of(request: Request) -> list[str]:
    """The methods that a path has: the framework's own word is of one of its routes alone."""
    asked = [{**request.scope, "method": method} for method in ("GET", "POST", "PUT", "DELETE")]
    routes = request.app.routes
    return [scope["method"] for scope in asked if any(route.matches(scope)[0] is Match.FULL for route in routes)]
