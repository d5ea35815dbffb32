"""The two ways to a box: directly, and through ssh. Both are raced, the tunnel a moment behind; the one that was good
is remembered for the network that we are in, so that nobody waits for a time-out away from home.

On each way the certificate is checked before a byte of the token is sent, and whoever shows another one is only a way
that does not lead there.
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from runner import errors, paths
from runner.laptop.light import dumps, loads
from runner.laptop.pin import Pinned, Socket, WrongCertificate
from runner.laptop.place import check_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runner.laptop.addresses import Address

DIRECT, TUNNEL = "direct", "tunnel"
HEAD_START = 0.3  # of the way that is more likely
DIRECT_SECONDS = 5.0
ADDRESS_SECONDS = 1.0  # for one of a name's addresses, but the last: some name servers know addresses of yesterday
TUNNEL_SECONDS = 30.0  # a new one logs in over ssh, perhaps over several hosts
KEEPER_SECONDS = 5.0  # to begin to listen
KEEPS = hasattr(os, "fork") and hasattr(_socket, "AF_UNIX")  # else each command has a tunnel of its own
KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}  # seconds, seconds, tries
LINE_LIMIT = 16 << 10
ELSEWHERE = ("192.0.2.1", 9)  # an address that nobody has (RFC 5737); nothing is sent there


def connect(address: Address) -> Pinned:
    """A connection to the box, on whichever way is first. Unreachable, WrongCertificate, Refused by ssh."""
    race = _Race(address)
    network, known = _network(), _remembered()
    for way, pause in _plan(address, known.get(network, {}).get(address.name)):
        race.begin(way)
        if race.won(pause):
            break
    won, sock = race.finish()
    if known.get(network, {}).get(address.name) != won:
        known.setdefault(network, {})[address.name] = won
        _remember(known)
    return sock


def _plan(address: Address, good: str | None) -> tuple[tuple[str, float], ...]:
    """The ways in order, each with how long to wait for it until the next one begins, too."""
    only = os.environ.get("GPUBOX_WAY")
    if only in (DIRECT, TUNNEL):
        return ((only, 0.0),)
    if good != TUNNEL:
        return ((DIRECT, HEAD_START), (TUNNEL, 0.0))
    if KEEPS and os.path.exists(_keepers_socket(address)):
        return ((TUNNEL, HEAD_START), (DIRECT, 0.0))
    return ((DIRECT, 0.0), (TUNNEL, 0.0))  # a new tunnel takes long: perhaps it is not needed any more


class _Race:
    """Ways that are tried at the same time. `threading` would cost 2 ms."""

    def __init__(self, address: Address) -> None:
        from _queue import SimpleQueue

        self._address = address
        self._results: SimpleQueue[tuple[str, Pinned | BaseException]] = SimpleQueue()
        self._failures: list[tuple[str, BaseException]] = []
        self._running = 0
        self._winner: tuple[str, Pinned] | None = None

    def begin(self, way: str) -> None:
        import _thread

        self._running += 1
        _thread.start_new_thread(self._try, (way,))

    def won(self, seconds: float) -> bool:
        """Wait so long for one to arrive; less when all have failed."""
        deadline = time.monotonic() + seconds
        while self._winner is None and self._running:
            try:
                self._take(self._results.get(timeout=max(0.0, deadline - time.monotonic())))
            except Exception as error:
                if type(error).__name__ != "Empty":  # _queue.Empty: nothing has arrived
                    raise
                break
        return self._winner is not None

    def finish(self) -> tuple[str, Pinned]:
        """The way that was first. When none is good, why."""
        while self._winner is None and self._running:
            self._take(self._results.get())
        if self._winner is None:
            raise _why(self._address, self._failures)
        return self._winner

    def _try(self, way: str) -> None:
        try:
            sock = WAYS[way](self._address)
        except BaseException as error:
            self._results.put((way, error))
            return
        if self._winner is not None:
            sock.close()
        self._results.put((way, sock))

    def _take(self, result: tuple[str, Pinned | BaseException]) -> None:
        way, found = result
        self._running -= 1
        if isinstance(found, BaseException):
            self._failures.append((way, found))
        else:
            self._winner = (way, found)


def _why(address: Address, failures: list[tuple[str, BaseException]]) -> BaseException:
    """What to say when no way led there: a wrong certificate and what ssh refuses need somebody's attention."""
    for _, error in failures:
        if not isinstance(error, (OSError, errors.Problem)):
            return error
    kinds: tuple[type[BaseException], ...] = (WrongCertificate, errors.Refused, errors.NotInstalled)
    for kind in kinds:
        for _, error in failures:
            if isinstance(error, kind):
                return error
    told = "; ".join(f"{_named(way, address)}: {_words(error)}" for way, error in failures)
    return errors.Unreachable(
        f"{address.name} can't be reached ({told})", f"is it on? `runner box test {address.name}`"
    )


def _named(way: str, address: Address) -> str:
    return f"at {address.host}:{address.port}" if way == DIRECT else f"through ssh {address.ssh}"


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    return str(getattr(error, "message", None) or getattr(error, "strerror", None) or error)


# --- directly --------------------------------------------------------------------------------------------------------


def direct(address: Address) -> Pinned:
    """OSError, WrongCertificate."""
    deadline = time.monotonic() + DIRECT_SECONDS
    failure: OSError = OSError(0, "it has no address")
    found = _socket.getaddrinfo(address.host, address.port, 0, _socket.SOCK_STREAM)
    for left, (family, kind, protocol, _, place) in zip(range(len(found), 0, -1), found, strict=True):
        room = max(0.1, deadline - time.monotonic())
        sock = Socket(family, kind, protocol)
        try:
            sock.settimeout(room if left == 1 else min(ADDRESS_SECONDS, room / left))
            sock.connect(place)
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            _keep_alive(sock)
            return Pinned(sock, address.fingerprint, address.name)
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def _keep_alive(sock: _socket.socket) -> None:
    """A box that is at work for minutes is told from one that lost its power, and no router forgets the connection."""
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE.items():
        if hasattr(_socket, option):
            sock.setsockopt(_socket.IPPROTO_TCP, getattr(_socket, option), value)


# --- through ssh -----------------------------------------------------------------------------------------------------


def tunnelled(address: Address) -> Pinned:
    """Through the ssh connection that a keeper holds; one is started where there is none. OSError, Problem."""
    if not KEEPS:
        from runner.laptop import keeper

        return Pinned(keeper.alone(address.ssh, (address.address, address.port)), address.fingerprint, address.name)
    for last in (False, True):
        sock = _keeper(address)
        try:
            sock.settimeout(TUNNEL_SECONDS)
            line = _line(sock)
            if not line and not last:
                sock.close()
                continue  # it was just leaving
            if line != b"ok":
                raise errors.from_json(loads(line.decode() or "null"), 503)
            return Pinned(sock, address.fingerprint, address.name)
        except BaseException:
            sock.close()
            raise
    raise AssertionError("the last try returns or raises")


def end_tunnel(address: Address) -> None:
    """Its keeper leaves when nobody can reach it any more."""
    try:
        if KEEPS:
            os.unlink(_keepers_socket(address))
    except OSError:
        pass  # there is none


def _line(sock: _socket.socket) -> bytes:
    """Byte by byte: what follows it is the box's."""
    line = b""
    while len(line) < LINE_LIMIT:
        piece = sock.recv(1)
        if piece in (b"", b"\n"):
            break
        line += piece
    return line


def _keepers_socket(address: Address) -> str:
    return paths.tunnel_socket(f"{address.name}\0{address.ssh}\0{address.address}\0{address.port}")


def _keeper(address: Address) -> _socket.socket:
    """A connection to the keeper of this box's tunnel."""
    path = _keepers_socket(address)
    deadline = time.monotonic() + KEEPER_SECONDS
    while (sock := _try(path)) is None:
        if time.monotonic() > deadline:
            raise errors.Unreachable("the keeper of the tunnel does not start", f"`{_command(address, path)}` says why")
        _start_keeper(address, path)
        time.sleep(0.01)
    return sock


def _try(path: str) -> _socket.socket | None:
    sock = Socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        check_own(os.path.dirname(path))
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _command(address: Address, path: str) -> str:
    return " ".join([sys.executable, "-P", *_arguments(address, path)])


def _arguments(address: Address, path: str) -> list[str]:
    return ["-m", "runner.laptop.keeper", path, address.ssh, address.address, str(address.port)]


def _start_keeper(address: Address, path: str) -> None:
    """Its first process listens, forks off the one that stays, and ends: then somebody can be connected to."""
    from runner.laptop import detached

    pid = detached.start(_arguments(address, path))
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # who started us has the kernel forget children


WAYS: dict[str, Callable[[Address], Pinned]] = {DIRECT: direct, TUNNEL: tunnelled}


# --- what was good ---------------------------------------------------------------------------------------------------


def _network() -> str:
    """What tells the network that we are in from others: our own address there."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        sock.connect(ELSEWHERE)
        return str(sock.getsockname()[0])
    except OSError:
        return "none"
    finally:
        sock.close()


def _remembered() -> dict[str, Any]:
    """network -> box -> way"""
    try:
        with open(_memory(), "rb") as file:
            known = loads(file.read().decode())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(each, dict) for each in known.values()) else {}


def _remember(known: dict[str, Any]) -> None:
    path = _memory()
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(f"{path}.{os.getpid()}", "w") as file:
            file.write(dumps(known))
        os.replace(file.name, path)
    except OSError:
        pass  # it is found out again


def _memory() -> str:
    return f"{paths.cache_dir()}/ways"
