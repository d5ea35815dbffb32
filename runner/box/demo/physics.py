"""PURE: a graphics card as a physicist sees it: load goes in; watts, degrees, fan, clocks and joules come out."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIB = 1 << 20
ROOM = 24.0  # degrees
RISE = 40.0  # degrees over the room at full power, with the fan at its highest
STILL_AIR = 0.45  # of the cooling that is left without a fan
HOT, HOTTER = 82.0, 8.0  # degrees from which on the driver gives less power, and over which it goes down to half
POWER_SECONDS, HEAT_SECONDS, FAN_SECONDS = 1.5, 45.0, 8.0  # until a change is two thirds done
STEP = 5.0  # seconds at once, at most: what they change must be small
CAPPED = 0.97  # of the limit: from here on the limit is what holds the clocks back


@dataclass(slots=True, frozen=True)
class Model:
    key: str  # what the fake library calls it
    name: str
    memory_bytes: int  # without what the driver keeps for itself
    idle_watts: float
    limit_watts: float
    boost_clock: int  # MHz
    memory_clock: int  # MHz
    generation: int  # of PCIe


RTX_3090 = Model("3090", "NVIDIA GeForce RTX 3090", (24576 - 317) * MIB, 24.0, 350.0, 1935, 9751, 4)
RTX_4090 = Model("4090", "NVIDIA GeForce RTX 4090", (24564 - 352) * MIB, 18.0, 450.0, 2745, 10501, 4)
RTX_4080S = Model("4080s", "NVIDIA GeForce RTX 4080 SUPER", (16376 - 323) * MIB, 13.0, 320.0, 2760, 11501, 4)


@dataclass(slots=True)
class Card:
    model: Model
    airflow: float = 1.0  # of what a card alone in its case has
    load: float = 0.0  # 0..1
    watts: float = 0.0
    degrees: float = ROOM
    fan: float = 0.0  # 0..1
    joules: float = 0.0
    capped_seconds: float = 0.0  # held back by its power limit
    hot_seconds: float = 0.0  # held back by its temperature

    @property
    def hot(self) -> bool:
        return self.degrees > HOT and self.load > 0

    @property
    def capped(self) -> bool:
        return self._wanted_watts() >= CAPPED * self.model.limit_watts

    @property
    def clock(self) -> int:
        """Of its multiprocessors, MHz."""
        if self.load == 0:
            return 210
        return round(self.model.boost_clock * (1 - 0.06 * self.load) * (1 - 0.5 * self._relief()))

    def pass_time(self, seconds: float, load: float) -> None:
        """So much time under so much load."""
        self.load = load
        while seconds > 0:
            self._step(min(seconds, STEP))
            seconds -= STEP

    def settled_degrees(self) -> float:
        """What its temperature tends to, with the power and the fan of now."""
        cooling = self.airflow * (STILL_AIR + (1 - STILL_AIR) * self.fan)
        return ROOM + RISE * self.watts / self.model.limit_watts / cooling

    def _step(self, seconds: float) -> None:
        self.watts += (self._wanted_watts() - self.watts) * _done(seconds, POWER_SECONDS)
        self.degrees += (self.settled_degrees() - self.degrees) * _done(seconds, HEAT_SECONDS)
        self.fan += (self._wanted_fan() - self.fan) * _done(seconds, FAN_SECONDS)
        self.joules += self.watts * seconds
        self.capped_seconds += seconds * self.capped
        self.hot_seconds += seconds * self.hot

    def _wanted_watts(self) -> float:
        model = self.model
        return model.idle_watts + (model.limit_watts - model.idle_watts) * self.load * (1 - self._relief())

    def _wanted_fan(self) -> float:
        """It stands still on a cool card."""
        return 0.0 if self.degrees < 45 else min(0.3 + (self.degrees - 45) / 38 * 0.7, 1.0)

    def _relief(self) -> float:
        """The part of the power that a hot card is not given."""
        return min(max((self.degrees - HOT) / HOTTER, 0.0), 1.0) / 2


def _done(seconds: float, constant: float) -> float:
    return 1 - math.exp(-seconds / constant)
