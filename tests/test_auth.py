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
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import ANN, BOB, Hall, a_hall
from fastapi import FastAPI
from fastapi.routing import APIRoute

from runner import errors
from runner.box import auth
from runner.box.api import House, make_app
from runner.box.api.house import Network
from runner.box.auth import Gate, Members, peer, visitor
from runner.box.tokens import Tokens
from runner.model import Principal

OWNER = 1000


class _Nothing:
    """A house that is never entered."""

    daemon = SimpleNamespace(report=lambda said: None)
    gate = Gate(OWNER)
    requests = 0
    connections = ()
    network = None
    pages = None

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


# --- over the network ---

NETWORK = Network(["box"], 7443, "", "", lambda address: None)
NOTHING_ASKED = {
    "ids": [1],
    "priority": 1,
    "on": True,
    "pid": 1,
    "spec": {"command": ["true"]},
    "id": "0" * 64,
    "hashes": [],
    "path": "/usr",
}
# What another member's submit token may do on each route that changes something; a new route has to be put here.
THEIRS_IS_CLOSED = {
    "POST /jobs/cancel", "POST /jobs/hold", "POST /jobs/release", "POST /jobs/priority", "POST /jobs/1/fetched",
    "POST /box/drain", "POST /box/clean", "POST /box/stop", "POST /box/restart", "POST /gpus/1/drain",
    "POST /gpus/1/forget", "POST /environments/prune", "PUT /data/1/link", "POST /notices/test",
    "PUT /settings/1", "DELETE /settings/1",
}  # fmt: skip
OPEN_TO_MEMBERS = {
    "POST /jobs", "POST /jobs/1/rerun", "POST /jobs/adopt", "POST /snapshots", "POST /blobs", "POST /bundles",
    "POST /tokens",
    "POST /notices/seen", "POST /dashboard",
    "PUT /secrets/1", "DELETE /secrets/1",  # of their own
    "POST /data/blobs", "PUT /data/1", "DELETE /data/1",  # a set that is no other member's
    "DELETE /tokens/1", "DELETE /shares/1",  # which are not there, for them
}  # fmt: skip
CHANGES = [(method, path) for method, path in ROUTES if method not in ("GET", "HEAD")]


class Doors:
    """A house with one job of ann's, whose visitors are ann and bob; what else it has is made to fail."""

    def __init__(self, hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = Tokens(hall.store)
        gate = Members(self.tokens)
        monkeypatch.setattr(auth, "_groups", lambda uid: {"gpubox"} if uid in (ANN.uid, BOB.uid) else set())
        self.accounts = {ANN.uid: "ann", BOB.uid: "bob", 4242: "mallory"}
        monkeypatch.setattr(auth.pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name=self.accounts[uid]))
        auth._account.cache_clear()
        hall.submit("true", who=ANN)
        self.house: Any = SimpleNamespace(
            daemon=hall.daemon, wishes=hall.wishes, gate=gate, tokens=self.tokens, network=NETWORK, requests=0,
            pages=None, unreachable=None, connections=(), touch=lambda: None,
            answers=lambda token: nullcontext(), hang_up=lambda token: None,
            gpus_known=_at_once, job=lambda job_id: hall.daemon.book.jobs[job_id],
        )  # fmt: skip
        self.app = make_app(self.house)
        self.daemon = hall.daemon

    def token(self, who: Principal = ANN, scope: str = "submit", seconds: float = 3600.0, ago: float = 0.0) -> str:
        return self.tokens.mint(who, scope, "", seconds, time.time() - ago)[0]

    def shown(self, kind: str) -> list[tuple[str, str]]:
        if kind == "none":
            return []
        if kind == "bad":
            return [("authorization", "Bearer " + self.token()[:-1] + "~")]
        if kind == "expired":
            return [("authorization", "Bearer " + self.token(seconds=10.0, ago=20.0))]
        if kind == "revoked":
            text = self.token()
            self.tokens.revoke(ANN, text.split("_")[1], time.time())
            return [("authorization", "Bearer " + text)]
        if kind == "another scheme":
            return [("authorization", "Basic " + self.token())]
        if kind == "twice":
            return [("authorization", "Bearer " + self.token())] * 2
        if kind == "a stranger's":
            return [("authorization", "Bearer " + self.token(Principal(4242, "mallory", "admin")))]
        if kind == "elsewhere":
            return [("cookie", self.token()), ("x-token", self.token()), ("x-forwarded-for", "uid:0")]
        raise AssertionError(kind)

    def ask(self, method: str, path: str, *headers: tuple[str, str], body: bytes | None = None) -> tuple[int, Any]:
        data = json.dumps(NOTHING_ASKED).encode() if body is None else body
        sent: list[dict[str, Any]] = []
        self.read = 0

        async def receive() -> dict[str, Any]:
            self.read += 1
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        named = [("host", "box:7443"), ("content-type", "application/json"), *headers]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "https",
            "client": visitor(("192.0.2.7", 5555)), "server": ("192.0.2.1", 7443),
            "headers": [(name.encode(), value.encode()) for name, value in named],
        }  # fmt: skip
        asyncio.run(self.app(scope, receive, send))
        closes = dict(sent[0]["headers"]).get(b"connection")
        said = json.loads(b"".join(message.get("body", b"") for message in sent))
        self.closes = closes == b"close"
        return sent[0]["status"], said


async def _at_once() -> None: ...


@pytest.fixture
def doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doors]:
    with a_hall(tmp_path / "state") as hall:
        yield Doors(hall, monkeypatch)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("none", 401), ("bad", 401), ("expired", 401), ("revoked", 401), ("another scheme", 401), ("twice", 401),
        ("elsewhere", 401), ("a stranger's", 403),
    ],
)  # fmt: skip
def test_every_route_is_closed_to_whoever_shows_no_good_token(doors: Doors, kind: str, status: int) -> None:
    shown = doors.shown(kind)
    for method, path in (
        *ROUTES,
        ("GET", "/"),
        ("GET", "/api/v1/nothing"),
        ("PATCH", "/api/v1/jobs"),
        ("X", "/api/v1/jobs"),
    ):
        got, said = doors.ask(method, path, *shown)
        assert got == status, (method, path, said)
        assert said["hint"]
        assert (doors.read, doors.closes) == (0, True), "not a byte of its body was read"


def test_who_may_look_changes_nothing_on_any_route(doors: Doors) -> None:
    shown = ("authorization", "Bearer " + doors.token(scope="read"))
    for method, path in CHANGES:
        got, said = doors.ask(method, path, shown)
        assert (got, said["code"], doors.read) == (403, "refused", 0), (method, path, said)
    assert doors.ask("GET", "/api/v1/jobs", shown)[0] == 200
    assert doors.ask("GET", "/api/v1/gpus", shown)[0] == 200
    assert doors.ask("GET", "/api/v1/hello", shown)[1]["role"] == "read"


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "")


@pytest.mark.parametrize("kind", ["none", "bad", "expired", "revoked"])
def test_no_method_of_any_path_is_open_also_not_those_that_it_has_not(doors: Doors, kind: str) -> None:
    shown = doors.shown(kind)
    for path in sorted({path for _, path in ROUTES}):
        for method in METHODS:
            got, said = doors.ask(method, path, *shown)
            assert (got, said["code"], doors.read) == (401, "not_trusted", 0), (method, path, said)


def test_who_may_look_has_no_other_method_anywhere(doors: Doors) -> None:
    shown = ("authorization", "Bearer " + doors.token(scope="read"))
    for path in sorted({path for _, path in ROUTES}):
        for method in METHODS[2:]:
            got, said = doors.ask(method, path, shown)
            assert (got, said["code"], doors.read) == (403, "refused", 0), (method, path, said)


def test_a_members_token_is_no_key_to_what_is_anothers(doors: Doors) -> None:
    shown = ("authorization", "Bearer " + doors.token(BOB))
    known = {f"{method} {path.removeprefix('/api/v1')}" for method, path in CHANGES}
    assert known == THEIRS_IS_CLOSED | OPEN_TO_MEMBERS
    for route in sorted(THEIRS_IS_CLOSED):
        method, path = route.split(" ")
        got, said = doors.ask(method, f"/api/v1{path}", shown)
        assert (got, said["code"]) == (403, "refused"), (route, said)
    ids = [token.id for token in doors.tokens.listed(ANN, time.time())] + ["1"]
    mine = doors.token(ANN).split("_")[1]
    for each in (*ids, mine):
        assert doors.ask("DELETE", f"/api/v1/tokens/{each}", shown)[0] == 404
    assert mine not in json.dumps(doors.ask("GET", "/api/v1/tokens", shown)[1])


@pytest.mark.parametrize("scope", ["submit", "admin"])
def test_nobody_enters_an_environment_that_another_has_chosen(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    """`runner shell 1` runs here as who asks, with the job's PATH and LD_PRELOAD."""
    monkeypatch.setattr(auth, "_groups", lambda uid: {"gpubox", "gpubox-admin"})
    shown = ("authorization", "Bearer " + doors.token(Principal(BOB.uid, "bob", "admin"), scope))
    got, said = doors.ask("GET", "/api/v1/jobs/1/surroundings", shown)
    assert (got, said["code"], "would run as you" in said["message"]) == (403, "refused", True), said


def test_a_token_gives_no_more_than_it_has(doors: Doors) -> None:
    shown = ("authorization", "Bearer " + doors.token())
    got, said = doors.ask("POST", "/api/v1/tokens", shown, body=b'{"scope": "admin"}')
    assert (got, "can't give admin" in said["message"]) == (403, True)
    got, said = doors.ask("POST", "/api/v1/tokens", shown, body=b'{"scope": "read"}')
    assert (got, said["made"]["scope"], said["made"]["user"]) == (201, "read", auth.user_name(ANN.uid))


def test_an_admins_token_is_no_admins_when_its_owner_is_none_any_more(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = ("authorization", "Bearer " + doors.token(Principal(ANN.uid, "ann", "admin"), "admin"))
    roles = []
    for groups in ({"gpubox", "gpubox-admin"}, {"gpubox"}, set()):
        monkeypatch.setattr(auth, "_groups", lambda uid, groups=groups: groups)
        got, said = doors.ask("GET", "/api/v1/hello", shown)
        roles.append(said.get("role", got))
    assert roles == ["admin", "submit", 403]


def test_a_token_is_not_inherited_by_who_gets_the_number_of_its_owner(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`deluser ann; adduser bea`, while the daemon runs."""
    clock = [1000.0]
    monkeypatch.setattr(auth.time, "monotonic", lambda: clock[0])
    shown = ("authorization", "Bearer " + doors.token())
    got = []
    for name in ("ann", "bea", None, "ann"):
        doors.accounts.pop(ANN.uid, None)
        if name:
            doors.accounts[ANN.uid] = name
        clock[0] += 5.0
        got.append(doors.ask("GET", "/api/v1/hello", shown)[0])
    assert got == [200, 401, 401, 200]
    doors.accounts[ANN.uid] = "bea"
    clock[0] += 5.0
    assert auth.user_name(ANN.uid) == "bea", "and what she makes now is hers"


def test_on_the_unix_socket_a_token_is_nothing(doors: Doors) -> None:
    """There the kernel says who it is."""
    text = doors.token()
    assert ask("GET", "/api/v1/jobs", ("uid:1001", 1), {"Authorization": f"Bearer {text}"})[0] == 403


@pytest.mark.parametrize("client", [("192.0.2.7", 1), ("uid:0x0", 1), ("tls", 1)])
def test_only_the_protocol_of_the_network_takes_tokens(doors: Doors, client: tuple[str, int]) -> None:
    scope = {"client": client, "headers": [(b"authorization", b"Bearer " + doors.token().encode())]}
    with pytest.raises(errors.Refused, match="without saying who they are"):
        doors.house.gate.admit(scope)


@pytest.mark.parametrize(("host", "origin"), [("evil.com:7443", None), ("box", None), ("box:7443", "https://evil.com")])
def test_a_good_token_does_not_help_who_comes_under_a_wrong_name(doors: Doors, host: str, origin: str | None) -> None:
    doors.house.network = Network(["other"], 7443, "", "", lambda address: None)
    shown = [("authorization", "Bearer " + doors.token()), ("origin", origin or "https://box:7443")]
    assert doors.ask("GET", "/api/v1/jobs", *shown)[0] == 421
    doors.house.network = NETWORK
    if origin:
        assert doors.ask("GET", "/api/v1/jobs", *shown)[0] == 403


def test_on_a_full_disk_a_token_still_opens_and_a_failed_one_is_told(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it was used last is written in admission: before whatever is asked, also what only looks."""
    doomed: list[errors.Problem] = []
    doors.house.doomed = doomed.append
    store = doors.daemon.store

    def fails(problem: errors.Problem) -> int:
        def use_tokens(used: object) -> None:
            raise problem

        monkeypatch.setattr(store, "use_tokens", use_tokens)
        return doors.ask("GET", "/api/v1/jobs", ("authorization", "Bearer " + doors.token()))[0]

    assert fails(errors.DiskFull("the box's disk is full")) == 200
    store.damage = errors.StateDamaged("the database is damaged: disk I/O error")
    assert (fails(store.damage), doomed) == (500, [store.damage])
    store.damage = None


def test_the_connections_of_the_box_itself_are_no_matter_of_visitors(doors: Doors) -> None:
    """And the other way round: those of visitors are not among them."""
    doors.house.connections = range(10_000)
    assert doors.ask("GET", "/api/v1/jobs", ("authorization", "Bearer " + doors.token()))[0] == 200


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
