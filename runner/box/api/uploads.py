"""An upload that is going on: its bytes on their way to a Receiver, and who may take it over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from runner import errors
from runner.box.code import Receiver

HOP_BYTES = 2 << 20  # gathered while a thread writes as much: a hop for each 64 KiB would cost more than the writing
BUFFER_BYTES = HOP_BYTES + (256 << 10)  # two, in turn: fresh memory for each hop would cost more than the copying


class Upload:
    def __init__(self, receiver: Receiver, call: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        """call: runs something blocking in a thread."""
        self._receiver, self._call = receiver, call
        self._gathered, self._spare, self._size = bytearray(BUFFER_BYTES), bytearray(BUFFER_BYTES), 0
        self._turn = asyncio.Lock()  # what is gathered reaches the receiver in its order
        self._writing: asyncio.Future[Any] | None = None

    async def take(self, piece: bytes) -> None:
        self._gathered[self._size : self._size + len(piece)] = piece
        self._size += len(piece)
        if self._size >= HOP_BYTES:
            async with self._turn:
                await self._written()
                feed = self._flushed()
                self._writing = asyncio.ensure_future(self._call(feed))

    async def close(self) -> int:
        """How many contents are now durable."""
        async with self._turn:
            await self._written()
            feed = self._flushed()
            stored: int = await self._call(lambda: _close(self._receiver, feed))
        return stored

    async def keep(self) -> None:
        """The connection is lost, or its laptop has come back on another one: what arrived is kept."""
        async with self._turn:
            with suppress(errors.Problem):  # what was wrong, nobody is there to hear
                await self._written()
            feed = self._flushed()
            await self._call(lambda: _keep(self._receiver, feed))

    async def end(self) -> None:
        """Nothing is left of what was neither stored nor kept. Cancelled at any instant, what arrived is kept, too."""
        with suppress(errors.Problem):
            await self._written()
        await self._call(lambda: _keep(self._receiver, lambda: None))

    async def _written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    def _flushed(self) -> Callable[[], None]:
        """Feeds the receiver with what is gathered. To be called when what was being written is."""
        buffer, size = self._gathered, self._size
        self._gathered, self._spare, self._size = self._spare, buffer, 0
        return lambda: self._receiver.feed(memoryview(buffer)[:size])


def _close(receiver: Receiver, feed: Callable[[], None]) -> int:
    feed()
    return receiver.close()


def _keep(receiver: Receiver, feed: Callable[[], None]) -> None:
    try:
        feed()
        receiver.keep()
    except errors.Problem:
        pass  # it is over, or was wrong
