"""The parts of the way to a box: ssh's configuration, the pin, the race, the keeper."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fabric
import paramiko
import pytest
import tools

from runner import errors, paths
from runner.box.certificate import Certificate
from runner.box.origins import check, own_names
from runner.laptop import addresses, keeper, link, pin, place, ways
from runner.laptop.addresses import Address

# --- the user's configuration ---


def test_included_files_stand_where_they_are_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(link, "SYSTEM", str(tmp_path / "etc"))
    (tmp_path / ".ssh/conf.d").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / ".ssh/config").write_text('Include "conf.d/*"\nUser top\nHost b\n  Include ~/.ssh/more\n  Port 7\n')
    (tmp_path / ".ssh/conf.d/a").write_text("Host a\n  Port 5\n")
    (tmp_path / ".ssh/more").write_text("Include=conf.d/none\nHostName b.example.org\n")
    (tmp_path / "etc/ssh_config").write_text("Compression yes\nInclude extra\n")
    (tmp_path / "etc/extra").write_text("Port 99\n")
    found = paramiko.SSHConfig.from_text(link.configuration())
    a, b, c = (found.lookup(host) for host in "abc")
    assert (a["port"], a["user"], a["hostname"], a["compression"]) == ("5", "top", "a", "yes")
    assert (b["port"], b["user"], b["hostname"]) == ("7", "top", "b.example.org")
    assert (c["port"], c["user"]) == ("99", "top")


def test_a_file_that_includes_itself_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Include config\n")
    with pytest.raises(errors.BadSettings, match="includes itself"):
        link.Link("box")


@pytest.mark.parametrize(
    ("config", "way"),
    [
        ("Host box\n  ProxyJump none", ["box"]),
        ("Host box\n  ProxyJump one,two:2222", ["one:22", "two:2222", "box:22"]),
        ("Host box\n  ProxyJump me@one\nHost one\n  ProxyJump zero\n  Port 5", ["zero:22", "one:5", "box:22"]),
        ("Host box\n  ProxyCommand nc %h %p", ["box"]),
    ],
)
def test_jump_hosts_are_visited_as_ssh_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, way: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(config)
    hops = link._hops("box", fabric.Config(ssh_config=paramiko.SSHConfig.from_text(link.configuration()), lazy=True))
    assert [f"{hop.host}:{hop.port}" for hop in hops] == [each if ":" in each else f"{each}:22" for each in way]
    (tmp_path / ".ssh/config").write_text("Host *\n  ProxyJump box\n")
    with pytest.raises(errors.BadSettings, match="more than 8 jump hosts"):
        link.Link("box")


# --- known hosts ---


def test_a_line_of_known_hosts_that_is_damaged_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(link, "SYSTEM_KNOWN", str(tmp_path / "system"))
    keys = [paramiko.ECDSAKey.generate() for _ in range(4)]
    box, other, later, systems = (f"{key.get_name()} {key.get_base64()}" for key in keys)
    (tmp_path / ".ssh").mkdir()
    lines = [
        "box ssh-ed25519 AAA", "box ssh-ed25519 !!!", "box ssh-ed25519", "box ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAB",
        "\xff", f"# box {other}", f"@revoked box {other}", f"|1|junk {other}", f"|1|AAAA|AAAA {other}", "\x00", "box",
        f"  box,\xff.local\t{box} of \xe9tienne", f"box {later}", f"other {other}",
    ]  # fmt: skip
    (tmp_path / ".ssh/known_hosts").write_bytes("\n".join(lines).encode("latin-1"))
    (tmp_path / "system").write_text(f"box {other}\nfar {systems}\n")
    (hop,) = link._hops("box", fabric.Config(ssh_config=paramiko.SSHConfig(), lazy=True))
    link._know_hosts(hop, None)
    known = hop.client.get_host_keys()
    kind = keys[0].get_name()
    assert [known.lookup(name)[kind] for name in ("box", "other", "far")] == [keys[0], keys[1], keys[3]]
    assert known.lookup("box").keys() == [kind]
    assert known.lookup("nobody") is None


# --- the pin ---


@pytest.mark.parametrize("usual", [False, True])
def test_the_pin_is_the_same_on_a_python_without_the_short_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: bool
) -> None:
    if usual:
        monkeypatch.setattr(pin, "_client", pin._usual_client)
    made = Certificate(str(tmp_path / "c"), ["box"])
    for fingerprint, right in ((made.fingerprint, True), (made.fingerprint[:-1] + "x", False), ("", False)):
        ours, theirs = socket.socketpair()
        heard: list[bytes] = []
        thread = threading.Thread(target=_echo, args=(made.context, theirs, heard))
        thread.start()
        ours.settimeout(5)
        if right:
            sock = pin.Pinned(ours, fingerprint, "box")
            sock.sendall(b"x" * 100_000)
            assert sock.recv(10) == b"hello"
            assert sock.recv(10) == b""
            sock.close()
        else:
            with pytest.raises(pin.WrongCertificate):
                pin.Pinned(ours, fingerprint, "box")
        ours.close()
        thread.join(5)
        assert sum(map(len, heard)) == (100_000 if right else 0)


def _echo(context: ssl.SSLContext, sock: socket.socket, heard: list[bytes]) -> None:
    try:
        with context.wrap_socket(sock, server_side=True) as tls:
            while sum(map(len, heard)) < 100_000 and (piece := tls.recv(65536)):
                heard.append(piece)
            tls.sendall(b"hello")
            tls.unwrap()
    except OSError:
        sock.close()


def test_a_reply_that_was_cut_is_no_end(tmp_path: Path) -> None:
    made = Certificate(str(tmp_path / "c"), ["box"])
    ours, theirs = socket.socketpair()

    def cut() -> None:
        tls = made.context.wrap_socket(theirs, server_side=True)
        tls.sendall(b"half")
        tls.close()  # without TLS's own goodbye

    thread = threading.Thread(target=cut)
    thread.start()
    ours.settimeout(5)
    sock = pin.Pinned(ours, made.fingerprint, "box")
    assert sock.recv(100) == b"half"
    with pytest.raises(OSError):
        sock.recv(100)
    sock.close()
    thread.join(5)


# --- the race ---


def an_address(port: int, fingerprint: str = "0" * 64, host: str = "127.0.0.1") -> Address:
    values: dict[str, object] = {"ssh": "me@box", "host": host, "port": port, "address": "127.0.0.1"}
    return Address("gpubox", {**values, "fingerprint": fingerprint, "token": "t", "token_id": "i"})


class Slow:
    """A way that takes some time, and leads there or not."""

    def __init__(self, seconds: float, result: object) -> None:
        self.seconds, self.result, self.begun, self.closed = seconds, result, False, threading.Event()

    def __call__(self, address: Address) -> Any:
        self.begun = True
        time.sleep(self.seconds)
        if isinstance(self.result, BaseException):
            raise self.result
        return self

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def roads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(ways, "HEAD_START", 0.05)
    made: dict[str, Any] = {}
    monkeypatch.setattr(ways, "WAYS", made)
    return made


def good(tmp_path: Path) -> list[Any]:
    path = tmp_path / "gpubox/ways"
    return [way for each in json.loads(path.read_text()).values() for way in each.values()] if path.exists() else []


def test_a_quick_direct_way_needs_no_tunnel(roads: dict[str, Any], tmp_path: Path) -> None:
    roads.update(direct=Slow(0, 1), tunnel=Slow(0, 1))
    assert ways.connect(an_address(1)) is roads["direct"]
    assert not roads["tunnel"].begun
    assert good(tmp_path) == ["direct"]


def test_a_slow_direct_way_is_overtaken_and_the_tunnel_remembered(roads: dict[str, Any], tmp_path: Path) -> None:
    roads.update(direct=Slow(0.5, 1), tunnel=Slow(0, 1))
    assert ways.connect(an_address(1)) is roads["tunnel"]
    assert roads["direct"].closed.wait(5), "who comes too late is sent home"
    assert good(tmp_path) == ["tunnel"]
    stand_in = Path(ways._keepers_socket(an_address(1)))
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.touch()
    roads.update(direct=Slow(0, 1), tunnel=Slow(0, 1))
    assert ways.connect(an_address(1)) is roads["tunnel"]
    assert not roads["direct"].begun, "nobody waits for a time-out away from home"


def test_a_tunnel_that_would_be_new_gets_no_head_start(roads: dict[str, Any], tmp_path: Path) -> None:
    roads.update(direct=Slow(0.5, 1), tunnel=Slow(0, 1))
    ways.connect(an_address(1))
    roads.update(direct=Slow(0, 1), tunnel=Slow(0.5, 1))
    assert ways.connect(an_address(1)) is roads["direct"]
    assert good(tmp_path) == ["direct"]


def test_what_fails_at_once_is_not_waited_for(roads: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "HEAD_START", 10.0)
    roads.update(direct=Slow(0, ConnectionRefusedError(111, "Connection refused")), tunnel=Slow(0, 1))
    began = time.monotonic()
    assert ways.connect(an_address(1)) is roads["tunnel"]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("direct", "tunnel", "kind", "said"),
    [
        (
            TimeoutError(),
            errors.Unreachable("ssh hung up"),
            errors.Unreachable,
            "no answer; through ssh me@box: ssh hung",
        ),
        (pin.WrongCertificate("w"), errors.Unreachable("u"), pin.WrongCertificate, "w"),
        (ConnectionRefusedError(111, "no"), errors.Refused("key has changed"), errors.Refused, "key has changed"),
        (OSError(113, "No route"), errors.NotInstalled("no fabric"), errors.NotInstalled, "no fabric"),
        (ZeroDivisionError("x"), errors.Unreachable("u"), ZeroDivisionError, "x"),
    ],
)
def test_when_no_way_leads_there_the_worst_is_told(
    roads: dict[str, Any], direct: BaseException, tunnel: BaseException, kind: type[BaseException], said: str
) -> None:
    roads.update(direct=Slow(0, direct), tunnel=Slow(0, tunnel))
    with pytest.raises(kind, match=said):
        ways.connect(an_address(1))


@pytest.mark.parametrize("usual", [False, True])
def test_an_address_of_yesterday_leaves_time_for_that_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: bool
) -> None:
    """The first one takes the connection, and no TLS ever comes."""
    monkeypatch.setattr(pin, "_client" if usual else "_usual_client", pin._usual_client if usual else None)
    monkeypatch.setattr(ways, "ADDRESS_SECONDS", 0.2)
    made = Certificate(str(tmp_path / "c"), ["box"])
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as box:

        def late() -> None:
            sock, _ = box.accept()
            time.sleep(0.3)  # the last one has what is left
            with made.context.wrap_socket(sock, server_side=True):
                pass

        thread = threading.Thread(target=late, daemon=True)
        thread.start()
        places = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", each.getsockname()) for each in (silent, box)]
        monkeypatch.setattr(ways._socket, "getaddrinfo", lambda *_: places)
        began = time.monotonic()
        ways.direct(an_address(1, made.fingerprint)).close()
        assert time.monotonic() - began < 4
        thread.join(5)


def test_a_damaged_memory_is_none(roads: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "gpubox").mkdir()
    for damage in ("", "[]", "{", '{"x": 1}'):
        (tmp_path / "gpubox/ways").write_text(damage)
        roads.update(direct=Slow(0, 1), tunnel=Slow(0, 1))
        assert ways.connect(an_address(1)) is roads["direct"]


# --- the keeper ---


def test_a_keeper_that_nobody_uses_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(keeper, "TICK", 0.02)
    path = str(tmp_path / "s")
    listener = keeper._listen(path)
    keeper.Keeper(path, listener, "nowhere", ("127.0.0.1", 1)).run()
    listener.close()
    assert not os.path.exists(path)


class Line:
    """In the place of a Link: its channels are sockets, and it may be dead, which nobody is told."""

    def __init__(self) -> None:
        self.dead, self.closed = False, False
        self.waited: list[float] = []
        self.far: list[socket.socket] = []

    def channel(self, target: tuple[str, int], seconds: float) -> Any:
        self.waited.append(seconds)
        if self.dead:
            raise errors.Unreachable("the ssh connection was lost: Timeout opening channel.")
        ours, far = socket.socketpair()
        self.far.append(far)
        return Channel(fileno=ours.detach())

    def close(self) -> None:
        self.closed = True
        for each in self.far:
            each.close()


class Channel(socket.socket):
    def shutdown_write(self) -> None:
        self.shutdown(socket.SHUT_WR)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[keeper.Keeper, list[Any]]]:
    """A keeper that runs, and the links that it will make, or why it can't."""
    links: list[Any] = []

    def made(destination: str) -> Any:
        if isinstance(links[0], BaseException):
            raise links[0]
        return links[0]

    monkeypatch.setattr(link, "Link", made)
    monkeypatch.setattr(keeper, "TICK", 0.02)
    path = str(tmp_path / "s")
    with keeper._listen(path) as listener:
        keeps = keeper.Keeper(path, listener, "box", ("127.0.0.1", 1))
        thread = threading.Thread(target=keeps.run)
        thread.start()
        yield keeps, links
        keeps._drop(keeps._link)
        keeps._unlink()
        tools.wait_until(lambda: not keeps._users)
        thread.join(10)
        assert not thread.is_alive()


def use(keeps: keeper.Keeper) -> str:
    """What it says to one who connects, and goes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(keeps._path)
        return sock.makefile().readline()


def test_a_keeper_that_can_not_log_in_leaves_and_takes_its_environment_along(kept: Any) -> None:
    keeps, links = kept
    links.append(errors.Refused("box does not let me in: no agent"))
    assert "no agent" in use(keeps)
    assert not os.path.exists(keeps._path)


def test_on_a_link_that_was_quiet_nobody_waits_long(kept: Any) -> None:
    keeps, links = kept
    links.append(first := Line())
    assert [use(keeps), use(keeps)] == ["ok\n"] * 2
    first.dead = True
    links[0] = second = Line()
    keeps._heard -= keeper.QUIET_SECONDS + 1
    assert use(keeps) == "ok\n"
    assert (first.waited, second.waited) == ([10.0, 10.0, 2.0], [10.0])
    assert first.closed


def test_after_a_sleep_the_link_is_a_new_one(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keeps, links = kept
    links.append(first := Line())
    assert use(keeps) == "ok\n"
    slept = keeper._asleep() + 3600.0
    monkeypatch.setattr(keeper, "_asleep", lambda: slept)
    tools.wait_until(lambda: first.closed)
    links[0] = second = Line()
    assert use(keeps) == "ok\n"
    assert (len(first.waited), len(second.waited), second.closed) == (1, 1, False)


def test_a_place_that_others_can_write_to_gets_no_socket(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for path in (str(tmp_path / "open/s"), str(tmp_path / "open/gpubox/s")):
        with pytest.raises(errors.Refused, match="others may write"):
            keeper._lock(path)
        with pytest.raises(errors.Refused, match="others may write"):
            ways._try(path)
    (tmp_path / "open").chmod(0o1777)  # as /tmp is: what is ours there, nobody else can move
    (tmp_path / "open/gpubox/s").touch()
    os.close(keeper._lock(str(tmp_path / "open/gpubox/s")) or 0)
    assert ways._try(str(tmp_path / "open/gpubox/s")) is None


def test_a_place_of_somebody_elses_gets_none_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpubox").mkdir(0o700)
    place.check_own(str(tmp_path / "gpubox"))
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(errors.Refused, match="belongs to others"):
        place.check_own(str(tmp_path / "gpubox"))


def test_a_new_place_is_ours_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        os.close(keeper._lock(str(tmp_path / "gpubox-1000/gpubox/s")) or 0)
    finally:
        os.umask(before)
    assert (tmp_path / "gpubox-1000").stat().st_mode & 0o777 == 0o700


def test_a_tunnels_socket_has_a_short_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert len(paths.tunnel_socket("x" * 500)) < paths.SOCKET_PATH_MAX


# --- the file of an address ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", "box\r\nX: y"), ("address", ""), ("address", "a b"), ("token", "t\nHost: evil"), ("token", ""),
        ("port", 0), ("port", 70000), ("port", "7443"), ("port", True), ("fingerprint", "0" * 63),
        ("fingerprint", "G" * 64), ("ssh", 5), ("host", None),
    ],
)  # fmt: skip
def test_what_a_box_says_of_itself_is_not_believed(field: str, value: object) -> None:
    values = an_address(7443).as_json()
    with pytest.raises((TypeError, ValueError)):
        Address("gpubox", {**values, field: value})


@pytest.mark.parametrize("name", ["", "local", "demo", "../x", "a/b", ".x", "-x", "a b", "ü", "x" * 65, "a\n"])
def test_not_everything_is_a_name(name: str) -> None:
    with pytest.raises(errors.BadRequest):
        addresses.check_name(name)


def test_a_box_that_was_renamed_still_answers_us() -> None:
    host = an_address(7443).always()["Host"].encode()
    check([(b"host", host)], own_names("renamed", ""), "192.168.1.5", 7443)


def test_an_address_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    addresses.write(an_address(7443))
    assert addresses.read("gpubox").as_json() == an_address(7443).as_json()
    assert (addresses.names(), addresses.in_use()) == (["gpubox"], "local")
    addresses.use("gpubox")
    assert addresses.in_use() == "gpubox"
    addresses.remove("gpubox")
    assert (addresses.names(), addresses.in_use()) == ([], "local")
    with pytest.raises(errors.NotFound):
        addresses.read("gpubox")


def test_a_full_disk_here_is_told_when_an_address_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(addresses.os, "write", full)
        with pytest.raises(errors.DiskFull, match="no room on this computer"):
            addresses.write(an_address(7443))
    assert addresses.names() == []
