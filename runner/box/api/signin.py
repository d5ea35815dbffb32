"""A browser's way in: a code for one, from somebody who may come in already."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Body, Response

from runner.box.api.house import Here, answer
from runner.box.auth import Who
from runner.box.sessions import CODE_SECONDS

routes = APIRouter()


@dataclass
class Invitation:
    code: str  # for `/sign-in#CODE`, once
    seconds: float  # that it works
    port: int  # on 127.0.0.1 of the computer with the browser


@dataclass
class Wish:
    port: Annotated[int | None, Body(ge=1, le=65535)] = None


@routes.post("/dashboard", status_code=201, response_model=Invitation)
async def invite(here: Here, who: Who, wish: Wish) -> Response:
    """A code with which a browser signs in as who asks. port: of its own 127.0.0.1, from which it is brought here;
    without one the box opens a port on the computer that it runs on."""
    port = wish.port if wish.port is not None else await here.open_page()
    code = here.gate.sessions.invite(who, port, time.time())
    return answer(Invitation(code, CODE_SECONDS, port), 201)
