"""A browser's way in: a code for one, from somebody who may come in already; and links for others, who only look."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Body, Path, Response

from runner.box import sessions
from runner.box.api.house import Here, House, answer
from runner.box.api.routes import Routes
from runner.box.auth import Who
from runner.box.sessions import Share
from runner.errors import NotInstalled, Refused

routes = Routes()

Named = Annotated[str, Path(min_length=1, max_length=64)]
WEEK = 7 * 86400.0


@dataclass
class Invitation:
    code: str  # for `/sign-in#CODE`, once
    seconds: float  # that it works
    port: int  # on 127.0.0.1 of the computer with the browser; 0: it is for the addresses below
    urls: list[str] = field(default_factory=list)  # of the box on the network, as in https://192.168.1.5:7443
    fingerprint: str = ""  # SHA-256 of the certificate that is met there, in hex
    share: Share | None = None


@dataclass
class Wish:
    port: Annotated[int | None, Body(ge=1, le=65535)] = None
    network: bool = False  # for a browser that comes over the network, with a code that can be typed
    share: bool = False  # for others: no log, no file, no argument
    label: str = ""  # of a link: whom it is for
    seconds: float = WEEK  # of a link: that they may look


@dataclass
class Shares:
    shares: list[Share] = field(default_factory=list)


@routes.post("/dashboard", status_code=201, response_model=Invitation)
async def invite(here: Here, who: Who, wish: Wish) -> Response:
    """A code with which a browser signs in as who asks. port: of its own 127.0.0.1, from which it is brought here;
    without one the box opens a port on the computer that it runs on. network: over HTTPS instead."""
    if who.share:
        raise Refused("who came by a link lets in nobody", "who gave it to you can give others")
    known, now = here.gate.sessions, time.time()
    if wish.network:
        urls, fingerprint = _network(here)
        port = 0
    else:
        urls, fingerprint = [], ""
        port = wish.port if wish.port is not None else await here.open_page()
    if wish.share:
        code, share = known.share(who, port, wish.label, wish.seconds, now)
        here.daemon.report(f"{who.user} made a link for others, {share.id}")
        seconds = min(sessions.LINK_SECONDS, wish.seconds)
        return answer(Invitation(code, seconds, port, urls, fingerprint, share), 201)
    if wish.network:
        code = known.invite_phone(who, now)
        return answer(Invitation(code, sessions.TYPED_SECONDS, port, urls, fingerprint), 201)
    return answer(Invitation(known.invite(who, port, now), sessions.CODE_SECONDS, port), 201)


def _network(here: House) -> tuple[list[str], str]:
    """Where browsers of other computers find the box, the likeliest first; NotInstalled: nowhere."""
    network = here.network
    if network is None:
        raise NotInstalled(
            here.unreachable or "this box listens on its own computer alone",
            'set https = ":7443" in box.toml and restart it: docs/settings.md',
        )
    return [f"https://{each}:{network.port}" for each in network.found_at()], network.fingerprint


@routes.get("/shares", response_model=Shares)
async def shares(here: Here, who: Who) -> Response:
    """The links for others that open something: one's own; to an administrator, all."""
    return answer({"shares": here.gate.sessions.shares(who, time.time())})


@routes.delete("/shares/{share_id}")
async def unshare(here: Here, who: Who, share_id: Named) -> Response:
    """Nobody looks by it any more."""
    here.gate.sessions.unshare(who, share_id, time.time())
    here.hang_up(share_id)
    here.daemon.report(f"{who.user} revoked the link {share_id}")
    return answer({})
