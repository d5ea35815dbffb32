"""What the box as a whole does and has used: the line above the cards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner import files
from runner.box import tariff
from runner.box.api.house import House
from runner.box.history.columns import HOST_KEY

KEEP_SECONDS = 20.0  # that a look at the history is good for
LATELY = 30.0  # seconds in which the host has been read for certain
POINTS = 288
LITTLE, VERY_LITTLE = 0.1, 0.03  # of the disk


@dataclass(slots=True, frozen=True)
class Totals:
    joules: float | None  # of all GPUs since midnight, where the box is
    cost: float | None
    currency: str
    cpu: float | None  # 0..1
    memory_used_bytes: float | None
    memory_bytes: int
    disk_free_bytes: int
    disk_bytes: int

    @property
    def disk_tone(self) -> str:
        share = self.disk_free_bytes / self.disk_bytes if self.disk_bytes else 1.0
        return "red" if share < VERY_LITTLE else "amber" if share < LITTLE else ""


class Sums:
    """The totals, made anew when they are old."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._made: tuple[float, Totals] | None = None

    async def now(self) -> Totals:
        if self._made is None or time.monotonic() - self._made[0] > KEEP_SECONDS:
            self._made = (time.monotonic(), await self._look())
        return self._made[1]

    async def _look(self) -> Totals:
        house, now = self._house, time.time()
        settings = house.daemon.settings
        gpus = [key for key in house.history.subjects if key != HOST_KEY]
        today = await house.call(
            house.history.chart(gpus, ["energy_joules"], min(midnight(now), now - 1), now, POINTS, now)
        )
        host = await house.call(
            house.history.chart([HOST_KEY], ["cpu", "memory_used_bytes"], now - LATELY, now, POINTS, now)
        )
        prices = tariff.parse(settings.tariff)
        spent = [
            (joules, at)
            for series in today.series
            for joules, at in zip(series.lines["energy_joules"].sum, today.made.starts, strict=True)
            if joules is not None
        ]
        lines: dict[str, Any] = host.series[0].lines if host.series else {}
        free, total = files.disk_room(settings.state)
        return Totals(
            sum(joules for joules, _ in spent) if spent else None,
            sum(prices.cost(joules, at) for joules, at in spent) if prices is not None and spent else None,
            settings.currency,
            _latest(lines["cpu"].mean) if "cpu" in lines else None,
            _latest(lines["memory_used_bytes"].mean) if "memory_used_bytes" in lines else None,
            settings.memory_bytes,
            free,
            total,
        )


def midnight(now: float) -> float:
    local = time.localtime(now)
    return time.mktime((local.tm_year, local.tm_mon, local.tm_mday, 0, 0, 0, 0, 0, -1))


def _latest(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
