"""Routes that know what they answer only while the API is described: to a daemon, whose answers are made by hand, the
models of them would be a fifth of a second at its start and megabytes for ever."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter

DESCRIBED = bool(os.environ.get("DESCRIBE_API"))  # set by runner.box.openapi, for its own process alone


class Routes(APIRouter):
    def add_api_route(self, path: str, endpoint: Any, **more: Any) -> None:
        if not DESCRIBED:
            more |= {"response_model": None, "responses": None}
        super().add_api_route(path, endpoint, **more)
