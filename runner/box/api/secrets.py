"""Secrets: set, named, removed by whom they belong to. No route answers with a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Path, Response

from runner.box.api.house import Here, answer
from runner.box.api.routes import Routes
from runner.box.auth import Who

routes = Routes()

Named = Annotated[str, Path(min_length=1, max_length=64)]


@dataclass
class Value:
    value: str


@dataclass
class Secret:
    name: str
    set_at: int


@dataclass
class Secrets:
    secrets: list[Secret] = field(default_factory=list)


@routes.get("/secrets", response_model=Secrets)
async def secrets(here: Here, who: Who) -> Response:
    """One's own, without their values."""
    found = await here.call(lambda: here.secrets.listed(who.uid))
    return answer({"secrets": [{"name": name, "set_at": at} for name, at in found.items()]})


@routes.put("/secrets/{name}")
async def put(here: Here, who: Who, name: Named, wish: Value) -> Response:
    """Keep a value for the jobs that whoever asks submits with this secret's name; over the old one."""
    await here.call(lambda: here.secrets.put(who.uid, name, wish.value))
    return answer({})


@routes.delete("/secrets/{name}")
async def remove(here: Here, who: Who, name: Named) -> Response:
    await here.call(lambda: here.secrets.remove(who.uid, name))
    return answer({})
