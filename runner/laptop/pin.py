"""TLS to a box whose certificate we know by its SHA-256. There is no other way to trust one, and none to do without.

`import ssl` costs 13 to 40 ms, the module of C beneath it 3; on a Python that has another one, `ssl` does the same.
"""

from __future__ import annotations

import _socket

from runner import errors
from runner.laptop.hashes import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TLS_1_2 = 0x0303
PIECE = 64 << 10


class Socket(_socket.socket):
    """One that `_ssl` can take: it keeps a weak reference."""

    __slots__ = ("__weakref__",)


class WrongCertificate(errors.Refused):
    """Whoever answers is not the box that was added."""


class Pinned:
    """A socket, as far as the HTTP client needs one, with the box at its other end for certain."""

    __slots__ = ("_socket", "_tls")

    def __init__(self, sock: _socket.socket, fingerprint: str, box: str) -> None:
        """Shake hands, within the socket's time-out, and look who is there. Nothing was sent that is worth anything.
        WrongCertificate; OSError, also for what is no TLS."""
        self._socket, self._tls = _client(sock)
        try:
            self._tls.do_handshake()
        except BaseException:
            self.close()
            raise
        shown = self._tls.getpeercert(True) or b""
        if sha256(len(shown))(shown).hexdigest() != fingerprint:
            self.close()
            raise WrongCertificate(
                f"what answers for {box} shows another certificate than {box} did when it was added",
                "if it was made anew: `runner box add` again; else somebody is in between, and got nothing from us",
            )

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]

    def recv(self, size: int) -> bytes:
        """Nothing: the box has closed the connection. One that was cut is an OSError, so that no reply is cut short."""
        data: bytes = self._tls.read(min(size, PIECE))
        return data

    def fileno(self) -> int:
        number: int = self._socket.fileno()
        return number

    def pending(self) -> int:
        """Bytes that have arrived and are decrypted, which no `select` sees."""
        return int(self._tls.pending())

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def close(self) -> None:
        self._socket.close()


def _client(sock: _socket.socket) -> tuple[Any, Any]:
    """The client's side of TLS on a connected socket: (what closes it, what reads and writes)."""
    try:
        import _ssl

        light: Any = _ssl
        context = light._SSLContext(light.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # who it is says the pin
        context.verify_mode = light.CERT_NONE
        context.minimum_version = TLS_1_2
        context.options &= ~getattr(light, "OP_IGNORE_UNEXPECTED_EOF", 0)  # Debian 12: a cut looks like an end
        return sock, context._wrap_socket(sock, False, None)
    except (AttributeError, ImportError, TypeError):
        return _usual_client(sock)


def _usual_client(sock: _socket.socket) -> tuple[Any, Any]:
    import socket
    import ssl

    seconds = sock.gettimeout()
    whole = socket.socket(sock.family, sock.type, sock.proto, sock.detach())
    whole.settimeout(seconds)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    tls = context.wrap_socket(whole, do_handshake_on_connect=False, suppress_ragged_eofs=False)
    return tls, tls
