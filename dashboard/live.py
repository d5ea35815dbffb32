"""The one stream of each tab: `frame` when the GPUs were read, or were not for a while, `changed` for all else.

A frame is made once, however many look; who is slow gets the newest one, and none that is older.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from dashboard.cards import card
from dashboard.cards import veiled as veil
from runner.box.api.house import House, dumps

QUIET_SECONDS = 4.0  # without a reading, after which a frame says so: there is no GPU, or nobody reads them
ASK_SECONDS = 30.0  # after which who looks is asked anew: they may have signed out, or their link may be over
TROUBLE_SECONDS = 5.0  # that a look at the notices is good for
NOTICES = 100
BADGES = {"critical": "-red", "warning": "-amber"}
PAUSE_SECONDS = 0.2  # between two words that something changed: a sweep of a thousand jobs is one


class Live:
    def __init__(self, house: House) -> None:
        self._house = house
        self._made: dict[bool, tuple[int, float, bytes]] = {}  # for who came by a link, and for the others
        self._worst: tuple[float, str] = (-TROUBLE_SECONDS, "")

    def frame(self, veiled: bool = False) -> bytes:
        number, made_at, made = self._made.get(veiled, (-1, 0.0, b""))
        now = time.monotonic()
        if number != self._house.frame or now - made_at >= QUIET_SECONDS / 2:
            told = dumps({**cards(self._house, veiled), "badge": self.badge()})
            made = b"event: frame\ndata: %b\n\n" % told
            self._made[veiled] = self._house.frame, now, made
        return made

    def badge(self) -> str:
        """What the icon of a tab says: trouble that nobody has seen yet, else that something runs."""
        now = time.monotonic()
        if now - self._worst[0] >= TROUBLE_SECONDS:
            unseen = {each.severity for each in self._house.daemon.store.notices(None, NOTICES, True)}
            self._worst = (now, next((word for kind, word in BADGES.items() if kind in unseen), ""))
        return self._worst[1] or ("-run" if self._house.daemon.book.active else "")

    async def events(
        self, veiled: bool = False, seen: int | None = None, admitted: Callable[[], bool] = lambda: True
    ) -> AsyncIterator[bytes]:
        """veiled: for who came by a link. seen: the last change that they know of; what came since is told at once.
        admitted: whether they still may look."""
        house, clock = self._house, asyncio.get_running_loop().time
        drawn, drawn_at, told_at = -1, 0.0, 0.0
        seen = house.daemon.events.last if seen is None else seen
        ask_at = clock() + ASK_SECONDS
        with house.stream(frames=True) as woken:
            yield b"retry: 1000\n\n"
            while not house.closing:
                woken.clear()
                if clock() >= ask_at:
                    if not admitted():
                        return
                    ask_at = clock() + ASK_SECONDS
                if drawn != house.frame or clock() >= drawn_at + QUIET_SECONDS:
                    drawn, drawn_at = house.frame, clock()
                    yield self.frame(veiled)
                if seen != house.daemon.events.last and clock() >= told_at + PAUSE_SECONDS:
                    seen, told_at = house.daemon.events.last, clock()
                    yield b"id: %d\nevent: changed\ndata: %d\n\n" % (seen, seen)
                until = drawn_at + QUIET_SECONDS
                if seen != house.daemon.events.last:
                    until = min(until, told_at + PAUSE_SECONDS)
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), max(until - clock(), 0.0))


def cards(house: House, veiled: bool = False) -> dict[str, Any]:
    """All GPUs as they are drawn, and why nothing is known of them. veiled: for who came by a link."""
    now, rack = time.time(), house.daemon.gpus
    silent = rack.silence(now)
    active, seen = house.daemon.book.active, rack.view(now)
    return {
        "at": now,
        "read_at": max((gpu.sample.at for gpu in seen if gpu.sample is not None), default=None),
        "silent": "the GPUs are not read just now" if silent and veiled else silent,
        "hint": "" if veiled else rack.hint(),
        "gpus": [veil(card(gpu, active), active) if veiled else card(gpu, active) for gpu in seen],
    }
