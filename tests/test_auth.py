"""Who may: every route is closed to whom the kernel does not name, or names as somebody else."""

from __future__ import annotations

import asyncio
import functools
import grp
import json
import os
import pwd
import re
import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from runner import errors
from runner.box import auth
from runner.box.api import House, make_app
from runner.box.auth import Gate, Members, peer

OWNER = 1000


class _Nothing:
    """A house that is never entered."""

    daemon = SimpleNamespace(report=lambda said: None)
    gate = Gate(OWNER)
    requests = 0
    connections = ()

    def touch(self) -> None: ...


@functools.cache
def application() -> FastAPI:
    house: Any = _Nothing()
    assert not isinstance(house, House)
    return make_app(house)


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of all there is, as its own description lists it."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), re.sub(r"{\w+}", "1", path)


ROUTES = sorted(routes(application()))


def ask(method: str, path: str, client: object, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """A request straight into the application, with the caller that a protocol would have put there."""
    app = application()
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "client": client,
        "server": None, "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda part: str(part))
@pytest.mark.parametrize(
    "client", [None, ("", 0), ("127.0.0.1", 1), ("uid:", 1), ("uid:1001", 1), ("uid:-1", 1), ("uid:0x0", 1)], ids=str
)
def test_every_route_is_closed_to_strangers(method: str, path: str, client: object) -> None:
    status, said = ask(method, path, client)
    assert (status, said["code"]) == (403, "refused"), said
    assert said["message"]
    assert said["hint"]


def test_the_walk_above_misses_no_route() -> None:
    there = [(method, route) for route in _routes(application().routes) for method in route.methods - {"HEAD"}]
    assert len(there) == len(ROUTES) > 25


def _routes(found: Any) -> Iterator[Any]:
    """What really answers, also what the description leaves out; routers can be nested."""
    for route in found:
        inner = getattr(route, "original_router", route)
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(inner, "routes"):
            yield from _routes(inner.routes)
        else:
            raise AssertionError(f"{route} is not known to be closed")


def test_no_header_says_who_asks() -> None:
    forged = {"X-Forwarded-For": "uid:0", "Forwarded": "for=uid:0", "X-Real-IP": "uid:0", "Client": "uid:0"}
    assert ask("GET", "/api/v1/jobs", ("uid:1001", 1), forged)[0] == 403


@pytest.mark.parametrize("uid", [OWNER, 0])
def test_the_owner_and_root_may_do_everything(uid: int) -> None:
    assert Gate(OWNER).admit({"client": (f"uid:{uid}", 7)}).role == "admin"


def test_another_user_is_told_whose_box_it_is() -> None:
    with pytest.raises(errors.Refused, match=r"belongs to .*, not to 54321"):
        Gate(OWNER).admit({"client": ("uid:54321", 7)})


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer(ours) == (f"uid:{os.getuid()}", os.getpid())


def test_a_large_number_is_a_user_like_any_other() -> None:
    sock: Any = SimpleNamespace(getsockopt=lambda *_: struct.pack("i2I", 7, 4_000_000_000, 0))
    assert peer(sock) == ("uid:4000000000", 7)


@pytest.mark.parametrize(
    ("belongs", "role"),
    [({"gpubox"}, "submit"), ({"gpubox", "gpubox-admin"}, "admin"), ({"gpubox-admin"}, "admin"), ({"users"}, None)],
    ids=str,
)
def test_on_a_provisioned_box_groups_decide(
    monkeypatch: pytest.MonkeyPatch, belongs: set[str], role: str | None
) -> None:
    monkeypatch.setattr(auth, "_groups", lambda uid: belongs)
    client = {"client": ("uid:1001", 7)}
    if role is None:
        with pytest.raises(errors.Refused, match="for the group gpubox"):
            Members().admit(client)
    else:
        assert Members().admit(client).role == role
    assert Members().admit({"client": ("uid:0", 7)}).role == "admin"


def test_whom_the_box_does_not_know_it_refuses() -> None:
    with pytest.raises(errors.Refused, match="4000000000 is not in it"):
        Members().admit({"client": ("uid:4000000000", 7)})


def test_the_groups_are_those_of_the_account() -> None:
    entry = pwd.getpwuid(os.getuid())
    assert grp.getgrgid(entry.pw_gid).gr_name in auth._groups(entry.pw_uid)
