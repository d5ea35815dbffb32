"""The box on the network: its certificate, its limits for strangers, what a token leaves behind; with real daemons."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import stat
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import tools
import wire
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from runner.box import porch, settings
from runner.box.certificate import Certificate, fingerprint
from runner.errors import BadSettings, StateDamaged

pytestmark = pytest.mark.long

# --- the certificate ---


def test_a_certificate_is_made_once_and_its_key_is_the_boxs_alone(tmp_path: Path) -> None:
    folder = tmp_path / "certificate"
    first = Certificate(str(folder), ["tower", "tower.local", "192.168.1.5", "fd00::5"])
    assert Certificate(str(folder), ["renamed"]).fingerprint == first.fingerprint
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "box.pem")] == [0o700, 0o600]
    assert os.listdir(folder) == ["box.pem"]
    made = x509.load_pem_x509_certificate(
        (folder / "box.pem").read_bytes().partition(b"-----END PRIVATE KEY-----\n")[2]
    )
    key = made.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert (made.not_valid_after_utc - made.not_valid_before_utc).days > 365 * 20
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["tower", "tower.local"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["192.168.1.5", "fd00::5"]


def test_two_boxes_have_two_certificates(tmp_path: Path) -> None:
    one, two = (Certificate(str(tmp_path / name), ["box"]).fingerprint for name in ("one", "two"))
    assert one != two


def test_of_several_certificates_the_one_that_is_shown_is_told(tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    shown = Certificate(str(one), ["box"]).fingerprint
    Certificate(str(two), ["authority"])
    chain = (two / "box.pem").read_bytes().partition(b"-----END PRIVATE KEY-----\n")[2]
    with open(one / "box.pem", "ab") as file:
        file.write(chain)
    assert Certificate(str(one), ["box"]).fingerprint == shown


@pytest.mark.parametrize("damage", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_certificate_is_told_and_kept(tmp_path: Path, damage: bytes) -> None:
    Certificate(str(tmp_path / "c"), ["box"])
    (tmp_path / "c/box.pem").write_bytes(damage)
    with pytest.raises(StateDamaged, match="can't be used") as told:
        Certificate(str(tmp_path / "c"), ["box"])
    assert "move it away" in told.value.hint
    assert (tmp_path / "c/box.pem").read_bytes() == damage


@pytest.mark.parametrize("where", ["7443", "box", ":", ":x", ":99999", "127.0.0.1", ":-1", "127.0.0.1:7443x"])
def test_where_it_listens_has_to_be_an_address_and_a_port(where: str) -> None:
    with pytest.raises(BadSettings, match="no address and port"):
        porch.listeners(where)


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadSettings, match="can't listen at"):
        porch.listeners(f"127.0.0.1:{taken.getsockname()[1]}")


def test_unless_it_is_said_nothing_listens() -> None:
    assert settings.load({}).https == ""


# --- a daemon ---


class Box(wire.Box):
    """One that is reached over the network, too; and a token of its owner."""

    def __init__(self, place: Path, https: str = "127.0.0.1:0") -> None:
        super().__init__(place, https=https, cpus="4")

    def begin_and_mint(self, scope: str = "submit") -> dict[str, Any]:
        self.start()
        minted: dict[str, Any] = self.post("/tokens", {"scope": scope, "label": "test"})
        return minted


def connect(port: int, **options: Any) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, value in options.items():
        setattr(context, name, value)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="box")


def ask(minted: dict[str, Any], method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    """(status, what it says), with the token unless there is another Authorization."""
    https = minted["https"]
    data = b"" if body is None else json.dumps(body).encode()
    said = {
        "Host": f"{https['host']}:{https['port']}",
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
        "Authorization": f"Bearer {minted['token']}",
        "Connection": "close",
        **headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    with connect(https["port"]) as sock:
        sock.sendall(f"{method} /api/v1{path} HTTP/1.1\r\n{lines}\r\n".encode() + data)
        head, _, rest = everything(sock).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(rest) if b"application/json" in head else rest


def everything(sock: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError, ssl.SSLError):
        while piece := sock.recv(65536):
            data += piece
    return data


@pytest.fixture(scope="module")
def box() -> Iterator[tuple[Box, dict[str, Any]]]:
    with wire.place() as folder:
        made = Box(Path(folder))
        try:
            yield made, made.begin_and_mint()
        finally:
            made.end()


def test_the_certificate_that_was_told_is_the_one_that_is_shown(box: tuple[Box, dict[str, Any]]) -> None:
    with connect(box[1]["https"]["port"]) as sock:
        assert fingerprint(sock.getpeercert(True) or b"") == box[1]["https"]["fingerprint"]
        assert sock.version() == "TLSv1.3"


def test_a_prometheus_elsewhere_asks_as_the_docs_say(box: tuple[Box, dict[str, Any]], tmp_path: Path) -> None:
    """With the certificate alone as its authority, a name that is in it, and a token that only looks."""
    pem = Path(box[0].state.certificate, "box.pem").read_text()
    (tmp_path / "gpubox.crt").write_text(pem[pem.index("-----BEGIN CERTIFICATE-----") :])
    minted = box[0].post("/tokens", {"scope": "read"})
    https = minted["https"]
    context = ssl.create_default_context(cafile=str(tmp_path / "gpubox.crt"))
    with socket.create_connection(("127.0.0.1", https["port"]), 10) as plain:
        sock = context.wrap_socket(plain, server_hostname=https["host"])
        sock.sendall(
            f"GET /api/v1/metrics HTTP/1.1\r\nHost: {https['host']}:{https['port']}\r\n"
            f"Authorization: Bearer {minted['token']}\r\nConnection: close\r\n\r\n".encode()
        )
        said = everything(sock)
        sock.close()
    assert said.startswith(b"HTTP/1.1 200")
    assert b"gpubox_jobs" in said


@pytest.mark.filterwarnings("ignore:.*TLSv1_1.*:DeprecationWarning")
def test_old_tls_and_no_tls_are_turned_away(box: tuple[Box, dict[str, Any]]) -> None:
    port = box[1]["https"]["port"]
    connect(port, maximum_version=ssl.TLSVersion.TLSv1_2).close()
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        connect(port, maximum_version=ssl.TLSVersion.TLSv1_1)
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(b"GET /api/v1/hello HTTP/1.1\r\nHost: box\r\n\r\n")
        assert b"HTTP" not in everything(sock)


def test_a_token_opens_and_a_revoked_one_closes_also_an_open_connection(box: tuple[Box, dict[str, Any]]) -> None:
    minted = box[0].post("/tokens", {"scope": "submit"})
    assert ask(minted, "GET", "/hello")[1]["role"] == "submit"
    https = minted["https"]
    request = (
        f"GET /api/v1/hello HTTP/1.1\r\nHost: {https['host']}:{https['port']}\r\n"
        f"Authorization: Bearer {minted['token']}\r\n\r\n"
    ).encode()
    with connect(https["port"]) as sock:
        sock.sendall(request)
        said = b""
        while not said.endswith(b"}"):
            said += sock.recv(65536)
        assert said.startswith(b"HTTP/1.1 200")
        assert box[0].ask("DELETE", f"/tokens/{minted['made']['id']}").status == 200
        sock.sendall(request)
        assert everything(sock).startswith(b"HTTP/1.1 401")  # and nothing more comes on it
    assert ask(minted, "GET", "/hello")[0] == 401


def test_who_follows_with_a_token_is_cut_off_when_it_is_revoked(box: tuple[Box, dict[str, Any]]) -> None:
    revoked, other = (box[0].post("/tokens", {"scope": "submit"}) for _ in range(2))
    with ExitStack() as open_ones:
        socks = []
        for minted in (revoked, other):
            https = minted["https"]
            sock = open_ones.enter_context(connect(https["port"]))
            lines = f"Host: {https['host']}:{https['port']}\r\nAuthorization: Bearer {minted['token']}\r\n\r\n"
            sock.sendall(f"GET /api/v1/events HTTP/1.1\r\n{lines}".encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            socks.append(sock)
        assert ask(revoked, "DELETE", f"/tokens/{revoked['made']['id']}")[0] == 200, "its own answer still comes"
        everything(socks[0])  # ends
        socks[1].settimeout(0.3)
        with pytest.raises(TimeoutError):  # that of the other goes on
            everything(socks[1])
    assert f"revoked {revoked['made']['id']}, with token {revoked['made']['id']}" in box[0].story()


def test_a_job_over_the_network_is_its_owners(box: tuple[Box, dict[str, Any]]) -> None:
    status, made = ask(
        box[1], "POST", "/jobs", {"spec": {"command": ["sh", "-c", "env; echo fin"], "environment": "base"}}
    )
    assert status == 201
    job = box[0].ended(made["id"])
    assert (job["state"], job["uid"]) == ("succeeded", os.getuid())


def test_a_token_is_found_nowhere_but_where_it_was_told(box: tuple[Box, dict[str, Any]]) -> None:
    """Not on the box's disk, in no log, in no process, not in the environment of a job."""
    made, minted = box
    secret = minted["token"].split("_", 2)[2]
    spec = {
        "command": ["sh", "-c", "cat /proc/self/environ; tr '\\0' '\\n' < /proc/$PPID/environ"],
        "environment": "base",
    }
    made.ended(ask(minted, "POST", "/jobs", {"spec": spec})[1]["id"])
    ask(minted, "GET", f"/jobs?state={secret}")  # who puts it there has only themselves to blame, but no log holds it
    assert tools.processes_naming(secret) == {}
    found = [path for path in Path(made.state).rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert found == []
    assert secret not in made.story()


def test_the_same_certificate_is_shown_by_the_next_daemon() -> None:
    with wire.place() as folder:
        made = Box(Path(folder))
        try:
            minted = made.begin_and_mint()
            made.stop()
            made.start()
            again = made.post("/tokens", {"scope": "read"})
            assert again["https"]["fingerprint"] == minted["https"]["fingerprint"]
            assert ask({**minted, "https": again["https"]}, "GET", "/hello")[0] == 200
        finally:
            made.end()


@pytest.mark.long
def test_a_port_that_is_taken_keeps_nobody_on_the_box_from_it() -> None:
    """It is told, and tried again until it is free."""
    with wire.place() as folder, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = Box(Path(folder), https=f"127.0.0.1:{port}")
        try:
            minted = made.begin_and_mint()
            assert minted["https"] is None
            assert f"can't listen at 127.0.0.1:{port}" in made.get("/hello")["unreachable"]
            assert "laptops can't reach it yet" in made.story()
            taken.close()
            tools.wait_until(lambda: made.get("/hello")["unreachable"] is None, 20, made.story)
            https = made.post("/tokens", {"scope": "read"})["https"]
            assert ask({**minted, "https": https}, "GET", "/hello")[0] == 200
        finally:
            made.end()


BLOBS = b"POST /api/v1/blobs HTTP/1.1\r\nHost: HOST\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"x" * (200 << 10), id="headers without end"),
        pytest.param(BLOBS + b"Content-Length: 9999999999\r\n\r\n" + b"x" * (1 << 20), id="a body before a token"),
        pytest.param(BLOBS + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n" + b"x" * 4096, id="chunks before a token"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n", id="two hosts"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"junk\r\n\r\n", id="no HTTP"),
    ],
)
def test_a_stranger_is_answered_once_and_shown_out(box: tuple[Box, dict[str, Any]], sent: bytes) -> None:
    https = box[1]["https"]
    with connect(https["port"]) as sock:
        with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            sock.sendall(sent.replace(b"HOST", f"{https['host']}:{https['port']}".encode()))
        said = everything(sock)
    assert said.count(b"HTTP/1.1 ") <= 1
    assert not said or said.split()[1] in (b"400", b"401", b"421"), said[:200]
    assert ask(box[1], "GET", "/hello")[0] == 200
    assert "Traceback" not in box[0].story()


# --- the porch: those who have not shown a token yet ---


class _Mute(asyncio.Protocol):
    """Takes what comes and says nothing."""

    def __init__(self, lost: Callable[[porch.Visitor], None], visitor: porch.Visitor) -> None:
        self.lost, self.visitor = lost, visitor
        self.address: tuple[str, int] = ("", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.address = self.visitor.address

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost(self.visitor)


@asynccontextmanager
async def a_porch(folder: Path) -> AsyncIterator[tuple[porch.Porch, list[_Mute]]]:
    made: list[_Mute] = []

    def protocol(visitor: porch.Visitor) -> _Mute:
        made.append(_Mute(here.gone, visitor))
        return made[-1]

    context = Certificate(str(folder / "c"), ["box"]).context
    here = porch.Porch(porch.listeners("127.0.0.1:0"), context, protocol)
    try:
        yield here, made
    finally:
        here.close()


def run(story: Callable[[porch.Porch, list[_Mute]], Awaitable[None]], folder: Path) -> None:
    async def told() -> None:
        async with a_porch(folder) as (here, made):
            await asyncio.wait_for(story(here, made), 20)

    asyncio.run(told())


async def ended(sock: socket.socket) -> None:
    """Wait until the other side closes; drips bytes meanwhile, as who wants to stay would."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    while True:
        try:
            await loop.sock_sendall(sock, b"\x16")
            if await asyncio.wait_for(loop.sock_recv(sock, 100), 0.02) == b"":
                return
        except TimeoutError:
            continue
        except OSError:
            return


def test_who_drips_bytes_has_no_more_time_than_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(porch, "STRANGER_SECONDS", 0.3)

    async def story(here: porch.Porch, made: list[_Mute]) -> None:
        with socket.create_connection(("127.0.0.1", here.port)) as sock:
            began = time.monotonic()
            await ended(sock)
            assert time.monotonic() - began < 5
        assert here._strangers == {}

    run(story, tmp_path)


def test_after_its_handshake_a_stranger_has_not_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(porch, "STRANGER_SECONDS", 0.3)

    async def story(here: porch.Porch, made: list[_Mute]) -> None:
        context = ssl._create_unverified_context()
        strange, _ = await asyncio.open_connection("127.0.0.1", here.port, ssl=context)
        trusted, writer = await asyncio.open_connection("127.0.0.1", here.port, ssl=context)
        while len(made) < 2 or not made[1].address[1]:
            await asyncio.sleep(0.01)
        ours = writer.get_extra_info("sockname")
        here.let_in((ours[0], ours[1]))
        assert await strange.read() == b""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(trusted.read(), 0.5)
        writer.close()

    run(story, tmp_path)


def test_who_fills_the_porch_loses_the_oldest_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(porch, "STRANGERS_MAX", 3)

    async def story(here: porch.Porch, made: list[_Mute]) -> None:
        loop = asyncio.get_running_loop()
        before = len(os.listdir("/proc/self/fd"))
        socks = []
        for host in ("127.0.0.9", "127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"):
            sock = socket.create_connection(("127.0.0.1", here.port), source_address=(host, 0))
            sock.setblocking(False)
            socks.append(sock)
            while (host, sock.getsockname()[1]) not in here._strangers:
                await asyncio.sleep(0.01)
        assert len(here._strangers) == 3
        for gone in socks[1:3]:
            assert await asyncio.wait_for(loop.sock_recv(gone, 100), 5) == b""
        assert [host for host, _ in here._strangers] == ["127.0.0.9", "127.0.0.1", "127.0.0.1"]
        for sock in socks:
            sock.close()
        while here._strangers or len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0.01)

    run(story, tmp_path)


RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets


def visit(there: int, port: int = 0) -> socket.socket:
    """A connection from a port of ours."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.connect(("127.0.0.1", there))
    return sock


@pytest.mark.long
def test_a_flood_from_the_network_does_not_lock_the_owner_out(box: tuple[Box, dict[str, Any]]) -> None:
    """Handshake, reset, again from the same port, which then stays; and again from the next one."""
    made, minted = box
    assert made.daemon is not None
    port, context = minted["https"]["port"], ssl._create_unverified_context()
    fds = Path(f"/proc/{made.daemon.pid}/fd")
    before, most = len(list(fds.iterdir())), 0
    with ExitStack() as open_ones:
        for _ in range(350):
            with suppress(OSError):  # one that was turned away
                first = context.wrap_socket(visit(port))
                place = first.getsockname()[1]
                first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                first.close()
                open_ones.enter_context(visit(port, place))
            most = max(most, len(list(fds.iterdir())) - before)
        assert made.ask("GET", "/hello").status == 200
        assert most <= 2 * porch.VISITORS_MAX
    tools.wait_until(lambda: len(list(fds.iterdir())) <= before)
    assert ask(minted, "GET", "/hello")[0] == 200


@pytest.mark.parametrize("shakes", [True, False])
def test_who_resets_and_comes_back_from_the_same_port_is_a_stranger_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shakes: bool
) -> None:
    """Though the end of the first connection is noticed only after the second one was accepted."""
    monkeypatch.setattr(porch, "STRANGER_SECONDS", 0.5)

    async def story(here: porch.Porch, made: list[_Mute]) -> None:
        first: socket.socket = visit(here.port)
        port = first.getsockname()[1]
        if shakes:
            context = ssl._create_unverified_context()
            first = await asyncio.to_thread(context.wrap_socket, first)
        while not made or bool(made[0].address[1]) != shakes:
            await asyncio.sleep(0.01)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        first.close()
        with visit(here.port, port) as second:
            here._accept(here._listeners[0])  # before the loop sees that the first one has ended
            while len(made) < 2 or made[0].visitor in here._visitors:
                await asyncio.sleep(0.01)
            assert list(here._strangers.values()) == [made[1].visitor], "it is counted"
            await asyncio.wait_for(ended(second), 5)  # and timed
        while here._visitors:
            await asyncio.sleep(0.01)

    run(story, tmp_path)


def test_a_connection_whose_other_side_is_silently_gone_ends(tmp_path: Path) -> None:
    async def story(here: porch.Porch, made: list[_Mute]) -> None:
        with visit(here.port):
            while not here._strangers:
                await asyncio.sleep(0.01)
            (stranger,) = here._visitors
            assert stranger.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert [stranger.sock.getsockopt(socket.IPPROTO_TCP, each) for each in tcp] == [30, 30, 4]

    run(story, tmp_path)


def test_beyond_so_many_connections_a_new_one_is_closed_as_it_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(porch, "VISITORS_MAX", 2)

    async def story(here: porch.Porch, made: list[_Mute]) -> None:
        loop = asyncio.get_running_loop()
        known = [visit(here.port) for _ in range(2)]
        while len(here._strangers) < 2:
            await asyncio.sleep(0.01)
        for sock in known:
            here.let_in(sock.getsockname())
        assert here._strangers == {}
        for _ in range(2):
            with visit(here.port) as more:
                more.setblocking(False)
                assert await asyncio.wait_for(loop.sock_recv(more, 100), 5) == b""
        assert len(made) == 2
        known[0].close()
        while len(here._visitors) == 2:
            await asyncio.sleep(0.01)
        with visit(here.port):
            while len(made) < 3:
                await asyncio.sleep(0.01)
        known[1].close()

    run(story, tmp_path)
