"""Signed in with a browser: whoever may come in already asks for a code, and a browser exchanges it for a cookie.

Both have 192 bits, live in memory as hashes, end with the daemon. A code works once, within a minute. A session acts
as who asked for the code, with no more than they may at that moment; one that a token asked for ends with the token.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from runner.errors import NotTrusted
from runner.model import Principal

CODE_SECONDS = 60.0
SESSION_SECONDS = 7 * 86400.0
CODES_MAX = 32  # that are open at once, and sessions of it 16 times as many: the oldest make room
SESSIONS_MAX = 512
SECRET_BYTES = 24
HINT = "`runner dashboard` opens it with a new code"
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True, frozen=True)
class Session:
    who: Principal
    port: int  # on 127.0.0.1, at which the browser sees the box; 0: under the box's own name
    ends_at: float


class Sessions:
    def __init__(self) -> None:
        self._codes: dict[bytes, Session] = {}  # oldest first
        self._sessions: dict[bytes, Session] = {}

    def invite(self, who: Principal, port: int, now: float) -> str:
        """A code for somebody who was let in."""
        self._forget(now)
        while len(self._codes) >= CODES_MAX:
            del self._codes[next(iter(self._codes))]
        code = secrets.token_urlsafe(SECRET_BYTES)
        self._codes[_digest(code)] = Session(who, port, now + CODE_SECONDS)
        return code

    def enter(self, code: str, now: float) -> str:
        """The cookie for a code, which is used up by that. NotTrusted."""
        self._forget(now)
        found = self._codes.pop(_digest(code), None)
        if found is None:
            raise NotTrusted("this code is none, was used, or is older than a minute", HINT)
        while len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        cookie = secrets.token_urlsafe(SECRET_BYTES)
        self._sessions[_digest(cookie)] = Session(found.who, found.port, now + SESSION_SECONDS)
        return cookie

    def holder(self, cookie: str, now: float) -> Principal:
        """Who shows this cookie. NotTrusted."""
        found = self._sessions.get(_digest(cookie))
        if found is None or found.ends_at <= now:
            raise NotTrusted("you are not signed in, or no longer", HINT)
        return found.who

    def leave(self, cookie: str) -> None:
        self._sessions.pop(_digest(cookie), None)

    def ports(self, now: float) -> set[int]:
        """Ports of 127.0.0.1 at which browsers may see the box."""
        known = (*self._codes.values(), *self._sessions.values())
        return {each.port for each in known if each.port and each.ends_at > now}

    def _forget(self, now: float) -> None:
        for kept in (self._codes, self._sessions):
            for digest in [digest for digest, each in kept.items() if each.ends_at <= now]:
                del kept[digest]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def cookie_name(headers: Headers) -> str:
    """Cookies of 127.0.0.1 are the same on all ports; two boxes at once have two names."""
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    port = hosts[0].rpartition(":")[2] if hosts else ""
    return f"gpubox-{port}" if port.isdecimal() and len(port) <= 5 else "gpubox"


def shown(headers: Headers) -> str:
    """The cookie of ours that a request shows; empty: none, or several."""
    headers = list(headers)
    wanted = cookie_name(headers)
    found = []
    for name, value in headers:
        if name == b"cookie":
            for part in value.decode("latin-1").split(";"):
                key, _, text = part.strip().partition("=")
                found += [text] if key == wanted else []
    return found[0] if len(found) == 1 else ""
