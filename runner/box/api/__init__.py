"""The API: thin routes that parse, ask the daemon and answer. Everything under /api/v1, JSON, over a unix socket
and, where the owner says so, over HTTPS.

jobs.py   submit, list, show, wishes          house.py   what the routes may reach
logs.py   logs, outputs, events               front.py   limits, headers, errors
code.py   snapshots and contents                 uploads.py   contents on their way
data.py   data sets
gpus.py   the GPUs
history.py  what they did, notices, numbers for Prometheus
tokens.py who may come in over the network
environments.py  what was built for jobs
secrets.py  what is kept for jobs, and never told
settings.py  what holds, and what may change meanwhile
signin.py a browser's way in
box.py    the box itself
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, Depends, FastAPI

import runner
from runner.box.api import box, code, data, environments, gpus, history, jobs, logs, secrets, settings, signin, tokens
from runner.box.api.front import Front, set_words
from runner.box.api.house import House
from runner.box.api.routes import DESCRIBED
from runner.box.auth import admitted

__all__ = ["House", "make_app"]

PREFIX = "/api/v1"


@dataclass
class Refusal:
    """What every error looks like."""

    code: str
    message: str
    hint: str


REFUSED = {"model": Refusal, "description": "It was refused, or failed; nothing is half done."}


def make_app(house: House | None, pages: Callable[[FastAPI], None] | None = None) -> FastAPI:
    """The application. Without a house it only describes itself. pages: adds what people look at."""
    app = FastAPI(
        title="gpubox",
        version=str(runner.API_LEVEL),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(admitted)],
        responses={"default": REFUSED} if DESCRIBED else None,
        separate_input_output_schemas=False,
        redirect_slashes=False,
    )
    routes = APIRouter(prefix=PREFIX)
    for part in (box, code, data, environments, gpus, history, jobs, logs, secrets, settings, signin, tokens):
        routes.include_router(part.routes)
    app.include_router(routes)
    if pages is not None:
        pages(app)
    set_words(app)
    if house is not None:
        app.state.house = house
        app.add_middleware(Front, house=house)
    return app
