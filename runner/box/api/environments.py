"""Environments on the box: what there is, who needs it, and what may go."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Path, Response

from runner import errors, files
from runner.box.api.house import Here, House, answer
from runner.box.api.routes import Routes
from runner.box.auth import Admin
from runner.box.envs import READY, Environments
from runner.box.settings import DAY

routes = Routes()

Named = Annotated[str, Path(min_length=1, max_length=40)]
LOG_BYTES = 16 << 10
NEEDED_MAX = 100  # jobs that are named, of those that need one


@dataclass
class Environment:
    id: str
    label: str  # where it was declared: "requirements.txt"
    kind: str
    bytes: int
    state: str  # ready | building | broken: what a build that died left | failed: only its log is left
    built_at: float | None
    used_at: float
    user: str | None  # of the last job that was submitted with it
    last_job: int | None
    jobs: list[int]  # unfinished ones that need it: while there are any, it stays


@dataclass
class Listed:
    environments: list[Environment] = field(default_factory=list)


@dataclass
class Shown:
    environment: Environment
    packages: list[str]  # "name version"
    log: str  # the end of what its build said


@dataclass
class Wish:
    """Without ids: all that no job needs."""

    ids: list[str] = field(default_factory=list)
    unused_days: float = 0.0  # only those that no job has used for so long
    dry_run: bool = False


@dataclass
class Gone:
    id: str
    label: str
    bytes: int


@dataclass
class Pruned:
    removed: list[Gone]
    kept: dict[str, list[int]]  # environment -> jobs that need it


@routes.get("/environments", response_model=Listed)
async def environments(here: Here) -> Response:
    """Those that are there, the one used last first."""
    return answer({"environments": await _found(here)})


@routes.get("/environments/{env_id}", response_model=Shown)
async def environment(here: Here, env_id: Named) -> Response:
    """One that is there, or that could not be built."""
    found = await _found(here)
    if not any(one.id.startswith(env_id) for one in found):
        found = _failed(here, await here.call(lambda: _logs(here.environments)))
    one = _of(found, env_id)
    packages, log = await here.call(lambda: _inside(here.environments, one.id))
    return answer({"environment": one, "packages": packages, "log": log})


@routes.post("/environments/prune", response_model=Pruned)
async def prune(here: Here, who: Admin, wish: Wish) -> Response:
    """Remove those that no job needs; never one that is in use or being built."""
    if not (math.isfinite(wish.unused_days) and wish.unused_days >= 0):
        raise errors.BadRequest(f"unused_days is {wish.unused_days}; it takes 0 or more")
    found = await _found(here)
    chosen = [_of(found, name) for name in wish.ids] if wish.ids else found
    for one in chosen if wish.ids else ():
        if one.jobs or one.state == "building":
            raise errors.Busy(f"the environment {one.id} {_why(one)}", "wait for that, or `runner cancel`")
    old = time.time() - wish.unused_days * DAY
    gone = [one for one in chosen if not one.jobs and one.state != "building" and one.used_at <= old]
    kept = {one.id: one.jobs for one in chosen if one.jobs}
    if not wish.dry_run:
        gone = [one for one in gone if await here.retention.remove_environment(one.id)]
        if gone:
            here.daemon.report(f"{who.user} removed {len(gone)} environments of {sum(one.bytes for one in gone)} bytes")
    return answer({"removed": [Gone(one.id, one.label, one.bytes) for one in gone], "kept": kept})


def _of(found: list[Environment], name: str) -> Environment:
    """By its id or the start of that."""
    fits = [one for one in found if one.id.startswith(name)]
    if len(fits) != 1:
        what = f"there are {len(fits)} environments" if fits else "there is no environment"
        raise errors.NotFound(f"{what} {name[:40]!a}", "`runner env list` shows them")
    return fits[0]


def _why(one: Environment) -> str:
    if not one.jobs:
        return "is being built"
    return f"is needed by {'job' if len(one.jobs) == 1 else 'jobs'} {', '.join(map(str, one.jobs[:5]))}"


async def _found(here: House) -> list[Environment]:
    needed: dict[str, list[int]] = {}
    for job in here.daemon.book.jobs.values():
        if job.environment is not None and len(needed.setdefault(job.environment, [])) < NEEDED_MAX:
            needed[job.environment].append(job.id)
    last = here.daemon.store.last_of_environments()
    building = here.daemon.preparation.building
    rows, records = await asyncio.gather(
        here.call(here.environments.inventory), here.call(lambda: _records(here.environments))
    )
    found = []
    for name, size, used_at, ready in rows:
        record, (last_job, user) = records.get(name, {}), last.get(name, (None, None))
        state = "building" if name in building else "ready" if ready else "broken"
        label = str(record.get("label") or here.recipes.label(name))
        built_at = record.get("built_at")
        built = built_at if isinstance(built_at, float) else None
        found.append(
            Environment(
                name, label, str(record.get("kind", "")), size, state,
                built, used_at, user, last_job, sorted(needed.get(name, [])),
            )
        )  # fmt: skip
    return found[::-1]


def _failed(here: House, logs: dict[str, float]) -> list[Environment]:
    """What is left of builds that failed; those that are there have logs, too, but were looked for before."""
    last = here.daemon.store.last_of_environments()
    found = []
    for name, used_at in logs.items():
        last_job, user = last.get(name, (None, None))
        label = here.recipes.label(name)
        found.append(Environment(name, label, "", 0, "failed", None, used_at, user, last_job, []))
    return found


def _logs(environments: Environments) -> dict[str, float]:
    """Environment -> when its build last wrote to its log."""
    found = {}
    with os.scandir(environments.directory) as entries:
        for entry in entries:
            name, _, kind = entry.name.rpartition(".")
            if kind == "log":
                try:
                    found[name] = entry.stat().st_mtime
                except FileNotFoundError:
                    continue
    return found


def _records(environments: Environments) -> dict[str, dict[str, object]]:
    found = {}
    for name in os.listdir(environments.directory):
        try:
            found[name] = files.get(environments.path(name), READY) or {}
        except (OSError, ValueError):
            continue  # it is no environment, or is being removed
    return found


def _inside(environments: Environments, name: str) -> tuple[list[str], str]:
    packages = []
    for folder, folders, _ in os.walk(f"{environments.path(name)}/venv/lib"):
        if os.path.basename(folder) == "site-packages":
            packages += [m[1] + " " + m[2] for each in folders if (m := re.fullmatch(r"(.+)-([^-]+)\.dist-info", each))]
            folders.clear()
    try:
        with open(environments.log(name), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            log = file.read().decode(errors="replace")
    except FileNotFoundError:
        log = ""
    return sorted(packages, key=str.lower), log
