"""Who asks, and whether they may. Every route is closed unless it says otherwise.

On the unix socket the kernel says who it is (SO_PEERCRED), on the network a token; a browser, there or at the
dashboard's own port, shows the cookie of a session. The protocol puts which of these, and the caller, into the ASGI
scope's `client`, which no header reaches: proxy headers are off.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import re
import socket
import struct
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Depends, Request

from runner import paths, words
from runner.box import sessions
from runner.box.origins import said_same_site
from runner.box.sessions import Sessions
from runner.box.tokens import ADD_HINT, Tokens
from runner.errors import NotTrusted, Refused
from runner.model import Principal

_MARK = "uid:"  # no address of a network connection begins like this
_NETWORK = "tls:"  # nor like this
_PAGE = "page:"  # nor like this
_LOOKS = ("GET", "HEAD")
SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"  # whoever is in may leave
# All that who came by a link for others may ask for; what is in it for them, the pages know.
OPEN_TO_SHARES = re.compile(
    rf"/|/part/work|/queue|/live|/gpus/[^/]+|/api/v1/history|/api/v1/gpus/[^/]+/traffic|{SIGN_OUT}"
)
ACCOUNT_SECONDS = 2.0  # the name of an account is believed so long: each request asks, and NSS may be slow
WHO = "gpubox.who"  # in an ASGI scope: the Principal whom Front has let in


def peer(sock: socket.socket) -> tuple[str, int]:
    """The ASGI `client` of a unix connection: ("uid:1000", process id)."""
    pid, uid, _ = struct.unpack("i2I", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"{_MARK}{uid}", pid


def visitor(address: tuple[str, int]) -> tuple[str, int]:
    """The ASGI `client` of a connection over the network: ("tls:192.168.1.5", port)."""
    return f"{_NETWORK}{address[0]}", address[1]


def browser(address: tuple[str, int]) -> tuple[str, int]:
    """The ASGI `client` of a connection to the dashboard's own port."""
    return f"{_PAGE}{address[0]}", address[1]


def browsing(scope: MutableMapping[str, Any]) -> bool:
    """Whether this is the dashboard's own port on this computer."""
    return str((scope.get("client") or ("",))[0]).startswith(_PAGE)


def networked(scope: MutableMapping[str, Any]) -> tuple[str, int] | None:
    """The address of a visitor; None for who is on this computer."""
    name, port = scope.get("client") or ("", 0)
    return (name.removeprefix(_NETWORK), port) if name.startswith(_NETWORK) else None


class Gate:
    """The embedded box's: its owner and root may do everything, nobody else anything."""

    def __init__(self, owner: int | None = None, tokens: Tokens | None = None) -> None:
        self.owner = os.getuid() if owner is None else owner
        self.tokens = tokens
        self.sessions = Sessions()

    def admit(self, scope: MutableMapping[str, Any]) -> Principal:
        """Who asks. Who may only look changes nothing, on whatever route."""
        who = self._who(scope)
        path = str(scope.get("path", ""))
        if who.share and not OPEN_TO_SHARES.fullmatch(path):
            raise Refused("this link does not show that", "who gave it to you can show it")
        if who.role == "read" and path != SIGN_OUT and scope.get("method") not in _LOOKS:
            raise Refused(f"{who.user} may look, but not change anything", "a token with --scope submit may")
        return who

    def _who(self, scope: MutableMapping[str, Any]) -> Principal:
        over_network = networked(scope) is not None and self.tokens is not None
        if browsing(scope) or (over_network and not _shows_token(scope) and sessions.shown(_headers(scope))):
            return self._signed_in(scope)
        if over_network and self.tokens is not None:
            return self._holder(self.tokens, scope)
        name = (scope.get("client") or ("",))[0]
        if not name.startswith(_MARK) or not name[len(_MARK) :].isdecimal():
            raise Refused("nobody may use the box without saying who they are", "use its unix socket")
        uid = int(name[len(_MARK) :])
        return Principal(uid, user_name(uid), self.role(uid))

    def _holder(self, tokens: Tokens, scope: MutableMapping[str, Any]) -> Principal:
        shown = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
        kind, _, text = (shown[0] if len(shown) == 1 else b"").decode("latin-1").partition(" ")
        if kind.lower() != "bearer":
            raise NotTrusted("over the network this box asks for a token", ADD_HINT)
        token = tokens.holder(text.strip(), time.time())
        if user_name(token.uid) != token.user:  # the number of an account that was removed is given to the next one
            raise NotTrusted(f"the account that this token was made for ({token.user}) is not there any more", ADD_HINT)
        role = min(token.scope, self.role(token.uid), key=words.ROLES.index)
        return Principal(token.uid, token.user, role, token.id)

    def _signed_in(self, scope: MutableMapping[str, Any]) -> Principal:
        """Who shows a session's cookie. A browser sends it by itself, so what changes something has to come from a page
        of ours, as Origin or Sec-Fetch-Site says; that they are the right ones was looked at before."""
        now, headers = time.time(), _headers(scope)
        who = self.sessions.holder(sessions.shown(headers), now)
        if scope.get("method") not in _LOOKS and not said_same_site(headers):
            raise Refused("this request does not say from which page it comes", "use a browser of this decade")
        if who.token and self.tokens is not None:
            self.tokens.good(who.token, now)
        if user_name(who.uid) != who.user:  # as for a token
            raise NotTrusted(f"the account that signed in ({who.user}) is not there any more", sessions.HINT)
        role = min(who.role, self.role(who.uid), key=words.ROLES.index)
        return Principal(who.uid, who.user, role, who.token, who.share)

    def role(self, uid: int) -> str:
        """submit or admin. Refused: neither."""
        if uid not in (self.owner, 0):
            raise Refused(
                f"this box belongs to {user_name(self.owner)}, not to {user_name(uid)}",
                "unset GPUBOX_SOCKET and GPUBOX_STATE to use a box of your own",
            )
        return "admin"


class Members(Gate):
    """A provisioned box's: root and the group of admins may do everything, the box's own group submits.

    The groups are those of the accounts, not of a session: who was just added need not log in again for this."""

    def __init__(self, tokens: Tokens | None = None, members: str = paths.MEMBERS, admins: str = paths.ADMINS) -> None:
        super().__init__(0, tokens)
        self.members, self.admins = members, admins

    def role(self, uid: int) -> str:
        belongs = _groups(uid)
        if uid == 0 or self.admins in belongs:
            return "admin"
        if self.members in belongs:
            return "submit"
        raise Refused(
            f"this box is for the group {self.members}, and {user_name(uid)} is not in it",
            f"an administrator of it can say: sudo adduser {user_name(uid)} {self.members}",
        )


def _headers(scope: MutableMapping[str, Any]) -> list[tuple[bytes, bytes]]:
    return list(scope.get("headers", ()))


def _shows_token(scope: MutableMapping[str, Any]) -> bool:
    return any(name == b"authorization" for name, _ in _headers(scope))


def _groups(uid: int) -> set[str]:
    """The names of a user's groups; none for one whom the box does not know."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return set()
    found = set()
    for gid in os.getgrouplist(entry.pw_name, entry.pw_gid):
        with suppress(KeyError):
            found.add(grp.getgrgid(gid).gr_name)
    return found


def user_name(uid: int) -> str:
    """What the account with this number is called; the number, where there is none."""
    return _account(uid, int(time.monotonic() / ACCOUNT_SECONDS))


@functools.lru_cache(maxsize=256)
def _account(uid: int, moment: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


async def admitted(request: Request) -> Principal:
    """The dependency of the whole application. Front has asked before it let the request in; who came another way is
    asked here."""
    known = request.scope.get(WHO)
    if isinstance(known, Principal):
        return known
    gate: Gate = request.app.state.house.gate
    return gate.admit(request.scope)


async def administrator(request: Request) -> Principal:
    who = await admitted(request)
    if who.role != "admin":
        raise Refused("only an administrator may do this", "ask the box's owner")
    return who


Who = Annotated[Principal, Depends(admitted)]
Admin = Annotated[Principal, Depends(administrator)]
