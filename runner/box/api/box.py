"""The box itself: who it is, what it has, and what its owner asks of it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from fastapi import Response

import runner
from runner import files, words
from runner.box.api.house import Here, House, answer
from runner.box.api.routes import Routes
from runner.box.auth import Admin, Who
from runner.box.envs import interpreter
from runner.box.retention import Cleaning
from runner.box.settings import public
from runner.model import Gpu, Resources

routes = Routes()


@dataclass
class Hello:
    api: int
    version: str
    box: str
    pid: int
    uid: int  # of whoever asks
    role: str
    state: str
    draining: bool
    at: float  # by the box's clock
    unreachable: str | None  # why it is not reached over the network, where its settings say that it is


@dataclass
class Disk:
    free_bytes: int
    total_bytes: int


@dataclass
class Box:
    box: str
    state: str
    capacity: Resources
    free: Resources
    disk: Disk
    paused: str | None  # why nothing starts
    draining: bool
    counts: dict[str, int]  # state -> jobs
    unknown: list[int]  # job directories that belong to no job
    settings: dict[str, str | int | float]
    versions: dict[str, str]


@dataclass
class Drain:
    on: bool


@dataclass
class Removed:
    kind: str
    what: str
    bytes: int


@dataclass
class Kept:
    count: int
    bytes: int
    jobs: list[int]  # the first hundred of them


@dataclass
class Cleaned:
    removed: list[Removed]
    kept_unfetched: Kept


@routes.get("/hello", response_model=Hello)
async def hello(here: Here, who: Who) -> Response:
    settings = here.daemon.settings
    return answer(
        {
            "api": runner.API_LEVEL,
            "version": runner.__version__,
            "box": settings.name,
            "pid": os.getpid(),
            "uid": who.uid,
            "role": who.role,
            "state": settings.state,
            "draining": here.daemon.draining,
            "at": time.time(),
            "unreachable": here.unreachable,
        }
    )


@routes.get("/box", response_model=Box)
async def about(here: Here) -> Response:
    daemon = here.daemon
    await here.gpus_known()
    gpus = [gpu for gpu in daemon.gpus.view(time.time()) if gpu.state != words.GONE]
    free, total = files.disk_room(daemon.settings.state)
    return answer(
        {
            "box": daemon.settings.name,
            "state": daemon.settings.state,
            "capacity": replace(daemon.engine.capacity(), gpus=len(gpus)),
            "free": _free(here, gpus),
            "disk": {"free_bytes": free, "total_bytes": total},
            "paused": daemon.paused(),
            "draining": daemon.draining,
            "counts": daemon.store.counts(),
            "unknown": daemon.unknown,
            "settings": public(daemon.settings),
            "versions": await here.call(lambda: _versions(daemon.settings.base_python)),
        }
    )


def _free(here: House, gpus: Sequence[Gpu]) -> Resources:
    """What active jobs leave; of the GPUs those that nobody uses at all, asleep or not."""
    all_of_it = here.daemon.engine.capacity()
    active = here.daemon.book.active.values()
    return Resources(
        all_of_it.cpus - sum(job.cpus for job in active),
        all_of_it.memory_bytes - sum(job.memory_bytes for job in active),
        sum(gpu.state in (words.FREE, words.ASLEEP) for gpu in gpus),
    )


def _versions(base_python: str) -> dict[str, str]:
    found: dict[str, Any] = {"gpubox": runner.__version__, "python": platform.python_version()}
    found["base_python"] = interpreter(base_python)
    for name in ("fastapi", "uvicorn", "sqlmodel", "uv"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@routes.post("/box/drain", response_model=Drain)
async def drain(here: Here, who: Who, wish: Drain) -> Response:
    here.wishes.drain(who, wish.on)
    return answer(wish)


@routes.post("/box/clean", response_model=Cleaned)
async def clean(here: Here, who: Admin, wish: Cleaning) -> Response:
    """Remove what is older or larger than the settings say, or than asked here."""
    return answer(await here.retention.clean(wish))


@routes.post("/box/stop")
async def stop(here: Here, who: Admin) -> Response:
    """End the daemon; jobs that run go on."""
    here.leave(False)
    return answer({})


@routes.post("/box/restart")
async def restart(here: Here, who: Admin) -> Response:
    """End the daemon and begin a new one in its place, perhaps of a newer version."""
    here.leave(True)
    return answer({})
