"""Tokens: who else may come in, over the network. The text of one is told once, to whoever has it made."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Path, Response

from runner.box.api.house import Here, House, answer
from runner.box.api.routes import Routes
from runner.box.auth import Who
from runner.model import Principal, Token

routes = Routes()

Named = Annotated[str, Path(min_length=1, max_length=100)]


@dataclass
class Wish:
    scope: str = "submit"  # read | submit | admin
    label: str = ""
    seconds: float | None = None  # until it expires; None: never


@dataclass
class Https:
    """Where the box is reached with it, and what its certificate must be."""

    host: str  # what the box calls itself, for a Host header; localhost is as good, and outlives a renaming
    port: int
    address: str  # where the box itself reaches that port: the far end of a tunnel
    fingerprint: str  # SHA-256 of the certificate's DER, in hex


@dataclass
class Minted:
    token: str  # the only time that it is told
    made: Token
    box: str
    https: Https | None  # None: the box listens on its unix socket alone


@dataclass
class Tokens:
    tokens: list[Token] = field(default_factory=list)


@dataclass
class Revoked:
    revoked: list[str]  # ids: that one, and those that were made with it


@routes.get("/tokens", response_model=Tokens)
async def tokens(here: Here, who: Who) -> Response:
    """Those that open something: one's own; to an administrator, all."""
    return answer({"tokens": here.tokens.listed(who, time.time())})


@routes.post("/tokens", status_code=201, response_model=Minted)
async def mint(here: Here, who: Who, wish: Wish) -> Response:
    text, token = here.tokens.mint(who, wish.scope, wish.label, wish.seconds, time.time())
    here.daemon.report(f"token {token.id} ({token.scope}) was made for {token.user}{_by(who)}")
    minted = Minted(text, token, here.daemon.settings.name, _https(here))
    return answer(minted, 201, {"Cache-Control": "no-store"})


@routes.delete("/tokens/{token_id}", response_model=Revoked)
async def revoke(here: Here, who: Who, token_id: Named) -> Response:
    """It opens nothing from now on; what is being answered to who came with it ends."""
    revoked = here.tokens.revoke(who, token_id, time.time())
    here.daemon.report(f"{who.user} revoked {', '.join(revoked)}{_by(who)}")
    for each in revoked:
        here.hang_up(each)
    return answer({"revoked": revoked})


def _by(who: Principal) -> str:
    return f", with token {who.token}" if who.token else ""


def _https(here: House) -> Https | None:
    network = here.network
    return None if network is None else Https(network.names[0], network.port, network.address, network.fingerprint)
