"""The one stream of each tab: `frame` when the GPUs were read, `changed` when something else did.

A frame is made once, however many look; who is slow gets the newest one, and none that is older.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from dashboard.cards import card
from runner.box.api.house import House, dumps

ALIVE_SECONDS = 15.0
TROUBLE_SECONDS = 5.0  # that a look at the notices is good for
NOTICES = 100
BADGES = {"critical": "-red", "warning": "-amber"}
PAUSE_SECONDS = 0.2  # between two words that something changed: a sweep of a thousand jobs is one


class Live:
    def __init__(self, house: House) -> None:
        self._house = house
        self._made: tuple[int, bytes] = (-1, b"")
        self._worst: tuple[float, str] = (-TROUBLE_SECONDS, "")

    def frame(self) -> bytes:
        if self._made[0] != self._house.frame:
            told = dumps({**cards(self._house), "badge": self.badge()})
            self._made = (self._house.frame, b"event: frame\ndata: %b\n\n" % told)
        return self._made[1]

    def badge(self) -> str:
        """What the icon of a tab says: trouble that nobody has seen yet, else that something runs."""
        now = time.monotonic()
        if now - self._worst[0] >= TROUBLE_SECONDS:
            unseen = {each.severity for each in self._house.daemon.store.notices(None, NOTICES, True)}
            self._worst = (now, next((word for kind, word in BADGES.items() if kind in unseen), ""))
        return self._worst[1] or ("-run" if self._house.daemon.book.active else "")

    async def events(self) -> AsyncIterator[bytes]:
        house, drawn, seen, told_at = self._house, -1, self._house.daemon.events.last, 0.0
        clock = asyncio.get_running_loop().time
        with house.stream(frames=True) as woken:
            yield b"retry: 1000\n\n"
            while not house.closing:
                woken.clear()
                if drawn != house.frame:
                    drawn = house.frame
                    yield self.frame()
                patience = ALIVE_SECONDS
                if seen != house.daemon.events.last:
                    patience = told_at + PAUSE_SECONDS - clock()
                    if patience <= 0:
                        seen, told_at, patience = house.daemon.events.last, clock(), ALIVE_SECONDS
                        yield b"event: changed\ndata: %d\n\n" % seen
                try:
                    await asyncio.wait_for(woken.wait(), patience)
                except TimeoutError:
                    if patience == ALIVE_SECONDS:
                        yield b": alive\n\n"


def cards(house: House) -> dict[str, Any]:
    """All GPUs as they are drawn, and why nothing is known of them."""
    now, rack = time.time(), house.daemon.gpus
    active, seen = house.daemon.book.active, rack.view(now)
    return {
        "at": now,
        "read_at": max((gpu.sample.at for gpu in seen if gpu.sample is not None), default=None),
        "silent": rack.silence(now),
        "hint": rack.hint(),
        "gpus": [card(gpu, active) for gpu in seen],
    }
