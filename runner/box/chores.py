"""What the daemon does from time to time, beside the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from runner.box.api import House, data
from runner.box.diary import Diary
from runner.box.gpus.observer import Observer
from runner.box.history import HOST_SECONDS
from runner.box.server import Server
from runner.box.settings import Settings
from runner.box.workers import Workers

PORCH_SECONDS = 10.0  # until it is tried again to listen on the network
HOUSEKEEPING_SECONDS = 3600.0
IDLE_LOOKS = 15  # in the time after which an idle daemon ends


async def keep_house(house: House, diary: Diary) -> None:
    while True:
        try:
            await house.retention.keep_house()
            await data.sweep(house)
            await house.call(lambda: house.sets.collect(time.time()))
        except Exception as error:  # in an hour it may work
            diary.write(f"could not clean up: {type(error).__name__}: {error}")
        await asyncio.sleep(HOUSEKEEPING_SECONDS)


async def open_porch_later(server: Server, chosen: Settings, diary: Diary) -> None:
    while True:
        await asyncio.sleep(PORCH_SECONDS)
        if server.open_porch(chosen, diary):
            return


async def watch_host(house: House, diary: Diary) -> None:
    look, judge = diary.guarded(house.history.look), diary.guarded(Observer(house.daemon).look)
    while True:
        look(time.time())
        judge(time.time())
        await asyncio.sleep(HOST_SECONDS)


async def end_when_idle(house: House, workers: Workers, leave: Callable[[], None]) -> None:
    """A daemon that a command started ends after a while without jobs, requests and followers."""
    patience = house.daemon.settings.idle_minutes * 60
    house.touch()
    while True:
        await asyncio.sleep(patience / IDLE_LOOKS)
        if house.daemon.book.jobs or house.requests or not workers.idle:
            house.touch()
        elif time.monotonic() - house.last_request >= patience:
            return leave()
