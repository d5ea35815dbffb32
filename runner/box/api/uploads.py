"""An upload that is going on: its bytes on their way to a Receiver, and who may take it over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from runner import errors
from runner.box.code import Receiver

HOP_BYTES = 2 << 20  # gathered while a thread writes as much: a hop for each 64 KiB would cost more than the writing


class Upload:
    def __init__(self, receiver: Receiver, call: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        """call: runs something blocking in a thread."""
        self._receiver, self._call = receiver, call
        self._gathered = bytearray()
        self._turn = asyncio.Lock()  # what is gathered reaches the receiver in its order
        self._writing: asyncio.Future[Any] | None = None

    async def take(self, piece: bytes) -> None:
        self._gathered += piece
        if len(self._gathered) >= HOP_BYTES:
            async with self._turn:
                await self._written()
                data = self._flushed()
                self._writing = asyncio.ensure_future(self._call(lambda: self._receiver.feed(data)))

    async def close(self) -> int:
        """How many contents are now durable."""
        async with self._turn:
            await self._written()
            rest = self._flushed()
            stored: int = await self._call(lambda: _close(self._receiver, rest))
        return stored

    async def keep(self) -> None:
        """The connection is lost, or its laptop has come back on another one: what arrived is kept."""
        async with self._turn:
            with suppress(errors.Problem):  # what was wrong, nobody is there to hear
                await self._written()
            rest = self._flushed()
            await self._call(lambda: _keep(self._receiver, rest))

    async def end(self) -> None:
        """Nothing is left of what was neither stored nor kept. Cancelled at any instant, what arrived is kept, too."""
        with suppress(errors.Problem):
            await self._written()
        await self._call(lambda: _keep(self._receiver, b""))

    async def _written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    def _flushed(self) -> bytes:
        data = bytes(self._gathered)
        self._gathered.clear()
        return data


def _close(receiver: Receiver, rest: bytes) -> int:
    receiver.feed(rest)
    return receiver.close()


def _keep(receiver: Receiver, rest: bytes) -> None:
    try:
        receiver.feed(rest)
        receiver.keep()
    except errors.Problem:
        pass  # it is over, or was wrong
