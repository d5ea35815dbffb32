"""The GPUs of the box: what each one is and who has it, and what its owner asks of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Annotated

from fastapi import Path, Response

from runner.box.api.house import Here, answer
from runner.box.api.routes import Routes
from runner.box.auth import Who
from runner.model import Gpu

routes = Routes()

Named = Annotated[str, Path(min_length=1, max_length=100)]  # an index ("0"), a UUID or its start


@dataclass
class Gpus:
    gpus: list[Gpu]
    silent: str | None  # why nothing is known of them just now
    hint: str  # what to do about that


@dataclass
class Draining:
    on: bool


@dataclass
class One:
    gpu: Gpu


@routes.get("/gpus", response_model=Gpus)
async def gpus(here: Here) -> Response:
    """Every GPU that the box has, or had until somebody said that it is gone for good."""
    await here.gpus_known()
    now = time.time()
    rack = here.daemon.gpus
    return answer({"gpus": rack.view(now), "silent": rack.silence(now), "hint": rack.hint()})


@dataclass
class Traffic:
    """Read every two seconds, from the first question until ten seconds after the last one; before that, nothing."""

    pcie_sent_per_second: float | None  # bytes
    pcie_received_per_second: float | None
    encoder: float | None  # 0..1
    decoder: float | None
    absent: dict[str, str]  # field -> why it is None


@routes.get("/gpus/{name}/traffic", response_model=Traffic)
async def traffic(here: Here, name: Named) -> Response:
    """What a GPU moves over the bus, and how busy its video units are."""
    await here.gpus_known()
    rack = here.daemon.gpus
    uuid = rack.named(name)
    rack.look_closely(uuid)
    seen = rack.one(uuid, time.time())
    known = [each.name for each in fields(Traffic) if each.name != "absent"]
    absent = {field: why for field, why in seen.absent.items() if field in known}
    return answer({field: getattr(seen.sample, field, None) for field in known} | {"absent": absent})


@routes.post("/gpus/{name}/drain", response_model=One)
async def drain(here: Here, who: Who, name: Named, wish: Draining) -> Response:
    """Start nothing new on it, or (off) start jobs on it again. What runs on it goes on."""
    await here.gpus_known()
    return answer({"gpu": here.wishes.drain_gpu(who, name, wish.on)})


@routes.post("/gpus/{name}/forget")
async def forget(here: Here, who: Who, name: Named) -> Response:
    """It was taken out of the box for good: it is missed no longer."""
    await here.gpus_known()
    here.wishes.forget_gpu(who, name)
    return answer({})
