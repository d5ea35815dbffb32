"""Settings: what holds, where each comes from, and the change of those that may change while the daemon runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Path, Response

from runner.box.api.house import Here, answer
from runner.box.api.routes import Routes
from runner.box.auth import Admin, Who
from runner.box.choices import Setting

routes = Routes()

Named = Annotated[str, Path(min_length=1, max_length=64)]


@dataclass
class Value:
    value: str | int | float


@dataclass
class Settings:
    settings: list[Setting]


@routes.get("/settings", response_model=Settings)
async def settings(here: Here, who: Who) -> Response:
    """source: environment (GPUBOX_*), chosen (here), file (box.toml) or default."""
    return answer({"settings": here.choices.listed()})


@routes.put("/settings/{name}", response_model=Settings)
async def choose(here: Here, who: Admin, name: Named, wish: Value) -> Response:
    """It holds from now on, over what box.toml says, also after a restart. BadRequest: it can't change now."""
    here.choices.choose(name, wish.value)
    here.daemon.report(f"{who.user} set {name} to {wish.value!a}")
    return answer({"settings": here.choices.listed()})


@routes.delete("/settings/{name}", response_model=Settings)
async def undo(here: Here, who: Admin, name: Named) -> Response:
    """As box.toml says again."""
    here.choices.undo(name)
    here.daemon.report(f"{who.user} left {name} to box.toml again")
    return answer({"settings": here.choices.listed()})
