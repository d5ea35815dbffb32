"""Signed in with a browser: whoever may come in already asks for a code, and a browser exchanges it for a cookie.

Both live in memory as hashes and end with the daemon. A code works once: one for a browser of the same computer within
a minute (192 bits), one that is typed on a phone within five (60 bits), one in a link for others within a day.

A session acts as who asked for the code, with no more than they may at that moment; what a token asked for ends with
it. One of a link only looks, and ends when the link is revoked or over.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

from runner.errors import BadRequest, NotFound, NotTrusted, Refused
from runner.model import Principal

CODE_SECONDS = 60.0
TYPED_SECONDS = 300.0
LINK_SECONDS = 86400.0
SESSION_SECONDS = 7 * 86400.0
SHARE_SECONDS_MAX = 90 * 86400.0
SHARES_MAX = 64
LABEL_MAX = 100
CODES_MAX = 32  # that are open at once, and sessions of it 16 times as many: the oldest make room
SESSIONS_MAX = 512
SECRET_BYTES = 24
TYPED_LETTERS, TYPED_LENGTH = "23456789abcdefghjkmnpqrstuvwxyz", 12  # none that looks like another
HINT = "`runner dashboard` opens it with a new code"
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True, frozen=True)
class Session:
    who: Principal
    port: int  # on 127.0.0.1, at which the browser sees the box; 0: under the box's own name
    ends_at: float


@dataclass(slots=True)
class Share:
    """A link for others, who look and see no log, file or argument."""

    id: str
    user: str  # who made it
    uid: int
    label: str
    made_at: float
    ends_at: float
    opened_at: float | None = None


class Sessions:
    def __init__(self) -> None:
        self._codes: dict[bytes, Session] = {}  # oldest first
        self._sessions: dict[bytes, Session] = {}
        self._shares: dict[str, Share] = {}

    def invite(self, who: Principal, port: int, now: float) -> str:
        """A code for somebody who was let in."""
        return self._code(secrets.token_urlsafe(SECRET_BYTES), Session(who, port, now + CODE_SECONDS), now)

    def invite_phone(self, who: Principal, now: float) -> str:
        """One that can be typed: kmq4-7hxp-2wzt. Under the box's own name only."""
        letters = [secrets.choice(TYPED_LETTERS) for _ in range(TYPED_LENGTH)]
        code = "-".join("".join(letters[at : at + 4]) for at in range(0, TYPED_LENGTH, 4))
        return self._code(code, Session(who, 0, now + TYPED_SECONDS), now)

    def share(self, who: Principal, port: int, label: str, seconds: float, now: float) -> tuple[str, Share]:
        """A code for others, who then look for so long. BadRequest, Refused."""
        if not 60 <= seconds <= SHARE_SECONDS_MAX:
            raise BadRequest("a link lasts from a minute to 90 days", "--for 7d")
        if len(label) > LABEL_MAX or not label.isprintable():
            raise BadRequest(f"a label is one line of at most {LABEL_MAX} letters", "--label anna")
        self._forget(now)
        if len(self._shares) >= SHARES_MAX:
            raise Refused(f"there are {SHARES_MAX} links already", "`runner dashboard --unshare ID` ends one")
        share = Share(secrets.token_hex(4), who.user, who.uid, label, now, now + seconds)
        self._shares[share.id] = share
        guest = replace(who, role="read", share=share.id)
        ends_at = min(now + LINK_SECONDS, share.ends_at)
        return self._code(secrets.token_urlsafe(SECRET_BYTES), Session(guest, port, ends_at), now), share

    def shares(self, who: Principal, now: float) -> list[Share]:
        """The links that still open something: one's own; to an administrator all."""
        self._forget(now)
        return [each for each in self._shares.values() if who.role == "admin" or each.uid == who.uid]

    def unshare(self, who: Principal, named: str, now: float) -> None:
        """Nobody looks by this link any more. NotFound."""
        if named not in {each.id for each in self.shares(who, now)}:
            raise NotFound(f"there is no link {named[:40]!a} of yours", "`runner dashboard --shares` lists them")
        del self._shares[named]
        self._forget(now)

    def _code(self, code: str, session: Session, now: float) -> str:
        self._forget(now)
        while len(self._codes) >= CODES_MAX:
            del self._codes[next(iter(self._codes))]
        self._codes[_digest(code)] = session
        return code

    def enter(self, code: str, now: float) -> str:
        """The cookie for a code, which is used up by that. NotTrusted."""
        self._forget(now)
        found = self._codes.pop(_digest(code), None) or self._codes.pop(_digest(code.lower()), None)
        if found is None:
            raise NotTrusted("this code is none, was used, or is too old", HINT)
        share = self._shares.get(found.who.share)
        if share is not None:
            share.opened_at = now
        while len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        cookie = secrets.token_urlsafe(SECRET_BYTES)
        ends_at = now + SESSION_SECONDS if share is None else share.ends_at
        self._sessions[_digest(cookie)] = Session(found.who, found.port, ends_at)
        return cookie

    def seconds(self, cookie: str, now: float) -> float:
        """That a cookie lasts."""
        return self._sessions[_digest(cookie)].ends_at - now

    def holder(self, cookie: str, now: float) -> Principal:
        """Who shows this cookie. NotTrusted."""
        found = self._sessions.get(_digest(cookie))
        if found is None or found.ends_at <= now or not self._lasts(found, now):
            raise NotTrusted("you are not signed in, or no longer", HINT)
        return found.who

    def leave(self, cookie: str) -> None:
        self._sessions.pop(_digest(cookie), None)

    def ports(self, now: float) -> set[int]:
        """Ports of 127.0.0.1 at which browsers may see the box."""
        known = (*self._codes.values(), *self._sessions.values())
        return {each.port for each in known if each.port and each.ends_at > now}

    def _lasts(self, session: Session, now: float) -> bool:
        """Whether the link that it came by, if any, is still good."""
        share = self._shares.get(session.who.share)
        return not session.who.share or (share is not None and share.ends_at > now)

    def _forget(self, now: float) -> None:
        for named in [each.id for each in self._shares.values() if each.ends_at <= now]:
            del self._shares[named]
        for kept in (self._codes, self._sessions):
            for digest in [key for key, each in kept.items() if each.ends_at <= now or not self._lasts(each, now)]:
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
