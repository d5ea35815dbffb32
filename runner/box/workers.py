"""Threads for what would hold up the loop: builds, work trees, removals. They end with the process."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

THREADS = 6  # environments take at most two of them


class Workers:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.wake: Callable[[], None] = lambda: None  # called on the loop's thread after each piece of background work
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads = 0
        self._pending = 0

    @property
    def idle(self) -> bool:
        return self._pending == 0

    def background(self, work: Callable[[], object], done: Callable[[BaseException | None], None]) -> None:
        """Run `work` in a thread, then `done` with its error, if it had one, on the loop's thread."""
        self._pending += 1

        def run() -> None:
            error: BaseException | None = None
            try:
                work()
            except BaseException as caught:
                error = caught
            self._loop.call_soon_threadsafe(self._ended, done, error)

        self._work.put(run)
        if self._threads < min(THREADS, self._pending):
            try:
                threading.Thread(target=self._serve, name=f"worker-{self._threads + 1}", daemon=True).start()
            except RuntimeError:  # too many processes now: it waits for another thread, or for the next call
                return
            self._threads += 1

    async def call(self, work: Callable[[], T]) -> T:
        """The result of `work`, run in a thread."""
        future: asyncio.Future[T] = self._loop.create_future()
        results: list[T] = []

        def done(error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(results[0])

        self.background(lambda: results.append(work()), done)
        return await future

    def _ended(self, done: Callable[[BaseException | None], None], error: BaseException | None) -> None:
        self._pending -= 1
        done(error)
        self.wake()

    def _serve(self) -> None:
        while True:
            try:
                self._work.get()()
            except RuntimeError:
                return  # the loop is closed: the process is about to end
