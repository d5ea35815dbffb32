"""The porch: connections from the network that have not shown a token yet are few, and have not much time.

A connection is a stranger until a request on it has been let in. Strangers beyond STRANGERS_MAX cost the oldest of the
address that has most of them its place: who fills the room fills it for themselves. Beyond VISITORS_MAX connections in
all, a new one is closed as it is accepted.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from runner.errors import BadSettings

VISITORS_MAX = 128  # strangers and those who are known: beside what the unix socket may have, of 1024 descriptors
STRANGERS_MAX = 64
STRANGER_SECONDS = 10.0  # for the handshake and the first request's headers
GOODBYE_SECONDS = 2.0  # for the other side to close, too
AT_ONCE = 32  # connections accepted before other work has its turn
PAUSE_SECONDS = 1.0  # when descriptors have run out
BACKLOG = 128
ALIVE_SECONDS = 30  # of silence until the other side is asked for a sign of life, and between the tries
ALIVE_TRIES = 4
Address = tuple[str, int]


class NotThere(BadSettings):
    """The address is not there, or the port is taken: now. Later it may be another matter."""


class Visitor:
    """A connection from its accept to its end. An address may have the next one before this one's end is noticed."""

    def __init__(self, address: Address, sock: socket.socket) -> None:
        self.address = address
        # A descriptor of our own: the transport closes its socket when it likes, and what has got the same number since
        # is not ours to shut down.
        self.sock = socket.socket(fileno=os.dup(sock.fileno()))
        self.timer: asyncio.TimerHandle | None = None

    def release(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.sock.close()


class Porch:
    def __init__(
        self, listeners: list[socket.socket], context: ssl.SSLContext, protocol: Callable[[Visitor], asyncio.Protocol]
    ) -> None:
        """protocol: of a connection; it says `gone` when that is lost."""
        self._listeners, self._context, self._protocol = listeners, context, protocol
        self._loop = asyncio.get_running_loop()
        self._visitors: set[Visitor] = set()
        self._strangers: dict[Address, Visitor] = {}  # those of them that are, oldest first
        self._greetings: set[asyncio.Task[None]] = set()
        for listener in listeners:
            self._loop.add_reader(listener, self._accept, listener)

    @property
    def port(self) -> int:
        return int(self._listeners[0].getsockname()[1])

    @property
    def host(self) -> str:
        """An address at which this computer reaches it."""
        host = str(self._listeners[0].getsockname()[0])
        return host if host not in ("::", "0.0.0.0") else "127.0.0.1"

    def let_in(self, address: Address) -> None:
        """A request of who came from there was let in: it is no stranger any more."""
        if address in self._strangers:
            self._strangers.pop(address).release()

    def gone(self, visitor: Visitor) -> None:
        """The connection has ended; that its address may have another one is no concern of this one's."""
        self._visitors.discard(visitor)
        if self._strangers.get(visitor.address) is visitor:
            self._strangers.pop(visitor.address).release()

    def close(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        for stranger in list(self._strangers.values()):
            self._dismiss(stranger)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._loop.remove_reader(listener)
                    self._loop.call_later(PAUSE_SECONDS, self._again, listener)
                return
            self._greet(sock, (address[0], address[1]))

    def _again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)

    def _greet(self, sock: socket.socket, address: Address) -> None:
        if address in self._strangers:  # one that was reset: its end is not noticed yet
            self._dismiss(self._strangers[address])
        if len(self._strangers) >= STRANGERS_MAX:
            self._make_room()
        if len(self._visitors) >= VISITORS_MAX:
            sock.close()
            return
        _prepare(sock)
        visitor = Visitor(address, sock)
        visitor.timer = self._loop.call_later(STRANGER_SECONDS, self._dismiss, visitor)
        self._visitors.add(visitor)
        self._strangers[address] = visitor
        task = self._loop.create_task(self._shake_hands(sock, visitor))
        self._greetings.add(task)
        task.add_done_callback(self._greetings.discard)

    async def _shake_hands(self, sock: socket.socket, visitor: Visitor) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(visitor),
                sock,
                ssl=self._context,
                ssl_handshake_timeout=STRANGER_SECONDS,
                ssl_shutdown_timeout=GOODBYE_SECONDS,
            )
        except (OSError, TimeoutError):  # no TLS, or none that we speak; or gone
            self.gone(visitor)
            sock.close()

    def _make_room(self) -> None:
        (busiest, _), *_ = Counter(host for host, _ in self._strangers).most_common(1)
        self._dismiss(next(each for each in self._strangers.values() if each.address[0] == busiest))

    def _dismiss(self, stranger: Visitor) -> None:
        """It counts as a visitor until its end."""
        with suppress(OSError):
            stranger.sock.shutdown(socket.SHUT_RDWR)  # the transport sees its end, and closes it
        if self._strangers.get(stranger.address) is stranger:
            del self._strangers[stranger.address]
        stranger.release()


def _prepare(sock: socket.socket) -> None:
    """It waits for nothing, and ends when its other side is silently gone: a laptop asleep, in mid-upload perhaps."""
    sock.setblocking(False)
    alive = (("TCP_KEEPIDLE", ALIVE_SECONDS), ("TCP_KEEPINTVL", ALIVE_SECONDS), ("TCP_KEEPCNT", ALIVE_TRIES))
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in alive:
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def listeners(where: str) -> list[socket.socket]:
    """Sockets that listen at `address:port`, `[address]:port` or, at all addresses, `:port`. BadSettings, NotThere."""
    host, colon, port = where.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise BadSettings(f"https is {where!r}, which is no address and port", 'as in https = ":7443"')
    host = host.removeprefix("[").removesuffix("]")
    try:
        if host or not socket.has_dualstack_ipv6():
            found = socket.getaddrinfo(host or "0.0.0.0", int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return [_listener(family, place[:2], False) for family, _, _, _, place in found[:1]]
        return [_listener(socket.AF_INET6, ("::", int(port)), True)]
    except OSError as error:
        hint = "another port, or an address of this computer, in `https`"
        raise NotThere(f"the box can't listen at {where}: {error.strerror or error}", hint) from error


def _listener(family: int, place: tuple[object, ...], dual: bool) -> socket.socket:
    sock = socket.create_server(place, family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    sock.setblocking(False)
    return sock
