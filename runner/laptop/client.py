"""A small HTTP/1.1 client over a stream socket: keep-alive, JSON, streams in both directions.

`http.client` costs 21 ms and `socket` 2; this is a page. It believes no size it is told and turns every failure into
an error of ours. A request that can be repeated (GET, or one with an idempotency key) is, while the daemon restarts.
"""

from __future__ import annotations

import os
import time

from runner import errors
from runner.laptop import answers
from runner.laptop.flow import Flow
from runner.laptop.light import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Protocol

    class Socket(Protocol):
        """What a connection needs of one."""

        def sendall(self, data: bytes, /) -> None: ...
        def recv(self, size: int, /) -> bytes: ...
        def settimeout(self, seconds: float | None, /) -> None: ...
        def close(self) -> None: ...


PREFIX = "/api/v1"
CONNECT_SECONDS = 5.0
REPLY_SECONDS = 60.0
HEAD_LIMIT = 64 << 10
LINE_LIMIT = 4 << 10
INFORMED_MAX = 16
BODY_LIMIT = 256 << 20  # of a reply that is kept in memory; streams have no limit
PIECE = 256 << 10
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # between tries: a daemon that restarts is back within about 3 s
QUOTED = b'%?# \\"<>^`{|}'


class Lost(errors.Unreachable):
    """The connection ended before the reply was complete: another try may do."""


def new_key() -> str:
    """An idempotency key: the same over all tries of one request."""
    return os.urandom(16).hex()


def quote(path: str) -> str:
    """A path segment (or several) for a URL: UTF-8, everything unusual as %XX; "/" stays."""
    data = os.fsencode(path)
    return "".join(chr(b) if 32 < b < 127 and b not in QUOTED else f"%{b:02X}" for b in data)


def segment(name: str) -> str:
    """One path segment for a URL, whatever is in the name."""
    return quote(name).replace("/", "%2F")


class Reply:
    """The head of a reply, and its body as an iterator of pieces."""

    __slots__ = ("connection", "headers", "status")

    def __init__(self, status: int, headers: dict[str, str], connection: Connection) -> None:
        self.status, self.headers, self.connection = status, headers, connection

    def pieces(self) -> Iterator[bytes]:
        """The body. Afterwards `connection.reusable` says whether it may carry another request."""
        wire, headers = self.connection, self.headers
        keep = headers.get("connection", "").lower() != "close"
        if self.status in (204, 304):
            wire.reusable = keep
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            yield from wire.chunks()
            wire.reusable = keep
        elif "content-length" in headers:
            yield from wire.exactly(_number(headers["content-length"], 10))
            wire.reusable = keep
        else:
            while piece := wire.some():
                yield piece


class Connection:
    """One socket and what was read from it but not yet used. flow: by which what comes is judged, if it is."""

    __slots__ = ("buffer", "flow", "reusable", "socket")

    def __init__(self, sock: Socket) -> None:
        self.socket, self.buffer, self.reusable = sock, b"", False
        self.flow: Flow | None = None

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise _silent() from None
        except OSError as error:
            raise Lost(f"the connection to the box was lost: {error.strerror or error}", LOST_HINT) from None

    def head(self, patience: float = REPLY_SECONDS, informed: int = 0) -> Reply:
        """The status and headers of the next reply, within `patience` seconds. informed: how many of those before it
        were none yet."""
        deadline = time.monotonic() + patience
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if len(self.buffer) > HEAD_LIMIT:
                raise _malformed("its headers do not end")
            if time.monotonic() > deadline:
                raise _silent()
            piece = self._receive()
            if not piece:
                if self.buffer:
                    raise _malformed("its headers are cut off")
                raise Lost("the box closed the connection without an answer", LOST_HINT)
            self.buffer += piece
        first, *lines = self.buffer[:end].decode("latin-1").split("\r\n")
        self.buffer = self.buffer[end + 4 :]
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1."):
            raise _malformed("it does not speak HTTP/1.1")
        status = _number(rest[:3], 10)
        if 100 <= status < 200:  # "100 Continue": the real one follows
            if informed == INFORMED_MAX:
                raise _malformed("it never comes to its answer")
            return self.head(deadline - time.monotonic(), informed + 1)
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise _malformed("a header has no name")
            headers[name.strip().lower()] = value.strip()
        return Reply(status, headers, self)

    def some(self) -> bytes:
        """What has arrived; nothing at the end of the stream."""
        if self.buffer:
            data, self.buffer = self.buffer, b""
            return data
        return self._receive()

    def exactly(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.some()
            if not data:
                raise Lost("the connection to the box was lost in the middle of a reply", LOST_HINT)
            if len(data) > size:
                data, self.buffer = data[:size], data[size:]
            size -= len(data)
            yield data

    def chunks(self) -> Iterator[bytes]:
        while size := _number(self._line().partition(b";")[0].decode("latin-1"), 16):
            yield from self.exactly(size)
            if self._line():
                raise _malformed("a chunk is longer than it says")
        while self._line():
            pass  # trailers

    def close(self) -> None:
        self.socket.close()

    __del__ = close

    def _line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            if len(self.buffer) > LINE_LIMIT:
                raise _malformed("a chunk has no size")
            piece = self._receive()
            if not piece:
                raise Lost("the connection to the box was lost in the middle of a reply", LOST_HINT)
            self.buffer += piece
        line, self.buffer = self.buffer[:end], self.buffer[end + 2 :]
        return line

    def _receive(self) -> bytes:
        began = time.monotonic()
        try:
            data = self.socket.recv(PIECE)
        except TimeoutError:
            raise _silent() from None
        except OSError as error:
            raise Lost(f"the connection to the box was lost: {error.strerror or error}", LOST_HINT) from None
        if self.flow is not None:
            self.flow.tell(time.monotonic() - began, len(data))
        return data


class Client:
    """Talks to one box. A connection that has carried a whole reply is kept for the next request."""

    def __init__(self, connect: Callable[[], Socket], box: str = "local") -> None:
        self.box = box
        self.connect = connect
        self.patience = REPLY_SECONDS  # for a reply
        self.always = {"Host": box}  # headers of every request
        self.greet: Callable[[Client, dict[str, str]], bool] | None = None  # sees the first reply; True: ask again
        self.meanwhile: Callable[[], None] | None = None  # done once, while the box is at work on the next request
        self._downloads = Flow()
        self._idle: Connection | None = None

    def request(
        self,
        method: str,
        path: str,
        json: object = None,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, what the body says: JSON, looked at by answers.py, else bytes). An error status is
        raised."""
        asked = answers.Asked(self.box, method, path)
        for pause in (*PAUSES, None):
            try:
                reply = self._send(method, path, json, body, headers)
                reply.connection.flow = Flow()
                return reply.status, reply.headers, _parsed(reply, self._body(reply), asked)
            except Lost:
                if pause is None or not _repeatable(method, headers):
                    raise
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def stream(
        self,
        method: str,
        path: str,
        json: object = None,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
        patience: float | None = None,
    ) -> Iterator[bytes]:
        """The body in pieces as they arrive. patience: how far apart they may be where a box has not always something
        to say; else it is a download, which has to keep coming. The reply has begun, and is no error, when this
        returns."""
        flow = self._downloads if patience is None else None
        for pause in (*PAUSES, None):
            try:
                reply = self._send(method, path, json, body, headers, flow)
                reply.connection.socket.settimeout(patience or REPLY_SECONDS)
                return self._pieces(reply)
            except Lost:
                if pause is None or not _repeatable(method, headers):
                    raise
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def get(self, path: str) -> Any:
        return self.request("GET", path)[2]

    def post(self, path: str, json: object = None) -> Any:
        """A POST that does no harm when it arrives twice: its key makes it repeatable."""
        return self.request("POST", path, json={} if json is None else json, headers={"Idempotency-Key": new_key()})[2]

    def close(self) -> None:
        if self._idle:
            self._idle.close()
            self._idle = None

    def _send(
        self,
        method: str,
        path: str,
        json: object,
        body: bytes | Iterable[bytes] | None,
        headers: dict[str, str] | None,
        flow: Flow | None = None,
    ) -> Reply:
        """Send a request and read the head of its reply; an error status is raised."""
        reply = self._exchange(method, path, json, body, headers, flow)
        if self.greet:
            greet, self.greet = self.greet, None
            if self._greeted(greet, reply) and _repeatable(method, headers):
                reply.connection.close()
                reply = self._exchange(method, path, json, body, headers, flow)
        if reply.status >= 400:
            reply.connection.flow = Flow()
            raise errors.from_json(_error_body(self._body(reply)), reply.status)
        return reply

    def _exchange(
        self,
        method: str,
        path: str,
        json: object,
        body: bytes | Iterable[bytes] | None,
        headers: dict[str, str] | None,
        flow: Flow | None,
    ) -> Reply:
        began = time.monotonic()
        connection, self._idle = self._idle or Connection(self.connect()), None
        connection.socket.settimeout(self.patience)
        connection.flow = flow
        if flow is not None:
            flow.tell(time.monotonic() - began, 0)
        sent = {**self.always, **(headers or {})}
        if json is not None:
            body = dumps(json).encode()
            sent["Content-Type"] = "application/json"
        if isinstance(body, bytes):
            sent["Content-Length"] = str(len(body))
        elif body is not None:
            sent["Transfer-Encoding"] = "chunked"
            sent.setdefault("Content-Type", "application/octet-stream")
        elif method != "GET":
            sent["Content-Length"] = "0"
        path = path if path.startswith("/api/") else PREFIX + path
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        head = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()
        try:
            self._upload(connection, head, body)
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile:
                meanwhile()
            return connection.head(self.patience)
        except BaseException:
            connection.close()
            raise

    def _upload(self, connection: Connection, head: bytes, body: bytes | Iterable[bytes] | None) -> None:
        try:
            if body is None or isinstance(body, bytes):
                connection.send(head + (body or b""))
                return
            connection.send(head)
            for piece in body:
                if piece:
                    connection.send(b"".join((b"%x\r\n" % len(piece), piece, b"\r\n")))
            connection.send(b"0\r\n\r\n")
        except Lost:
            # A box that refuses an upload answers before its end and hangs up: its words are worth more than ours.
            connection.socket.settimeout(CONNECT_SECONDS)

    def _greeted(self, greet: Callable[[Client, dict[str, str]], bool], reply: Reply) -> bool:
        try:
            return greet(self, reply.headers)
        except BaseException:
            reply.connection.close()
            raise

    def _body(self, reply: Reply) -> bytes:
        parts, size = [], 0
        for piece in self._pieces(reply):
            size += len(piece)
            if size > BODY_LIMIT:
                raise errors.TooLarge(f"the box's reply is longer than {BODY_LIMIT >> 20} MiB")
            parts.append(piece)
        return b"".join(parts)

    def _pieces(self, reply: Reply) -> Iterator[bytes]:
        try:
            yield from reply.pieces()
            self._keep(reply.connection)
        finally:
            if self._idle is not reply.connection:
                reply.connection.close()  # left in the middle

    def _keep(self, connection: Connection) -> None:
        if connection.reusable and not connection.buffer and self._idle is None:
            connection.reusable = False
            self._idle = connection
        else:
            connection.close()


LOST_HINT = "try again; if it stays so, see `runner doctor`"


def _repeatable(method: str, headers: dict[str, str] | None) -> bool:
    return method == "GET" or "Idempotency-Key" in (headers or {})


def _parsed(reply: Reply, data: bytes, asked: answers.Asked) -> Any:
    said: Any = data
    if reply.headers.get("content-type", "").startswith("application/json"):
        said = answers.read(data.decode("utf-8", "replace"), asked)
    return answers.checked(said, reply.status, asked)


def _error_body(data: bytes) -> object:
    try:
        return loads(data.decode())
    except ValueError:
        return None


def _number(text: str, base: int) -> int:
    """A size on the wire: digits only (`int` would take signs, blanks and underscores), and not absurdly many."""
    digits = "0123456789abcdef"[:base]
    text = text.strip().lower()
    if not text or len(text) > 15 or text.strip(digits):
        raise _malformed("a number is not one")
    return int(text, base)


def _malformed(why: str) -> errors.Unreachable:
    return errors.Unreachable(f"what answers is not a box: {why}", "see `runner doctor`: which socket is it?")


def _silent() -> errors.Unreachable:
    return errors.Unreachable("the box does not answer", "`runner doctor` looks why")
