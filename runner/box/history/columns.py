"""PURE: what is remembered of a GPU and of the host: as whole numbers, in columns; NULL is absent, 0 is zero.

The order of a kind's columns is the format of what was written: new ones go to the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GAUGE, SUM, LAST = "gauge", "sum", "last"  # averaged, with its least and most; added up; only kept second by second
NUMBER_MAX = (1 << 30) - 1  # a difference of two fits into 32 bits, with its sign

THROTTLES = (  # bit by bit
    "power_cap", "hw_slowdown", "sync_boost", "sw_thermal", "hw_thermal", "power_brake", "set_clocks", "display_clocks",
)  # fmt: skip
STATES = ("ok", "asleep", "lost", "error")


@dataclass(slots=True, frozen=True)
class Column:
    name: str  # as the API says it: model.Sample's word, its unit in it
    stored: str  # in the tables, the unit of its whole numbers in it
    scale: float  # stored = value * scale
    how: str = GAUGE


@dataclass(slots=True, frozen=True, eq=False)
class Kind:
    """Of subjects: what has a history."""

    name: str
    columns: tuple[Column, ...]
    pause: float  # seconds without a reading, before it is a gap
    place: Mapping[str, int] = field(init=False)  # name -> column

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", {column.name: at for at, column in enumerate(self.columns)})

    def column(self, name: str) -> Column:
        return self.columns[self.place[name]]


GPU = Kind(
    "gpu",
    (
        Column("utilization", "utilization_percent", 100),
        Column("memory_utilization", "memory_utilization_percent", 100),
        Column("memory_used_bytes", "memory_mib", 1 / (1 << 20)),
        Column("temperature_celsius", "temperature_celsius", 1),
        Column("power_watts", "power_deciwatts", 10),
        Column("sm_clock_hertz", "sm_clock_mhz", 1e-6),
        Column("fan", "fan_percent", 100),
        Column("memory_temperature_celsius", "memory_temperature_celsius", 1),
        Column("energy_joules", "energy_mj", 1000, SUM),
        Column("hw_thermal_seconds", "hw_thermal_ms", 1000, SUM),
        Column("sw_thermal_seconds", "sw_thermal_ms", 1000, SUM),
        Column("power_brake_seconds", "power_brake_ms", 1000, SUM),
        Column("power_cap_seconds", "power_cap_ms", 1000, SUM),
        Column("asleep_seconds", "asleep_ms", 1000, SUM),
        Column("memory_clock_hertz", "memory_clock_mhz", 1e-6, LAST),
        Column("performance_state", "performance_state", 1, LAST),
        Column("throttled_by", "throttle_bits", 1, LAST),
        Column("state", "state", 1, LAST),
    ),
    pause=5.0,
)
HOST = Kind(
    "host",
    (
        Column("cpu", "cpu_permille", 1000),
        Column("memory_used_bytes", "memory_mib", 1 / (1 << 20)),
        Column("disk_free_bytes", "disk_free_mib", 1 / (1 << 20)),
        Column("disk_read_bytes_per_second", "disk_read_kib_s", 1 / 1024),
        Column("disk_written_bytes_per_second", "disk_written_kib_s", 1 / 1024),
        Column("received_bytes_per_second", "received_kib_s", 1 / 1024),
        Column("sent_bytes_per_second", "sent_kib_s", 1 / 1024),
    ),
    pause=15.0,
)
KINDS = {kind.name: kind for kind in (GPU, HOST)}
HOST_KEY = "host"


def numbers(kind: Kind, values: Mapping[str, object]) -> list[tuple[int, int]]:
    """(column, whole number) of those values that have a column."""
    found = []
    for name, value in values.items():
        place = kind.place.get(name)
        if place is not None and isinstance(value, int | float):
            number = round(value * kind.columns[place].scale)
            found.append((place, max(-NUMBER_MAX, min(number, NUMBER_MAX))))
    return found


def bits(reasons: Sequence[str]) -> int:
    """Why it is throttled, as one number."""
    return sum(1 << place for place, word in enumerate(THROTTLES) if word in reasons)


def reasons(number: int) -> list[str]:
    return [word for place, word in enumerate(THROTTLES) if number & 1 << place]
