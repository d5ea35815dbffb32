"""PURE: what a GPU used between two readings: energy, time, and time in which it was held back.

The driver counts energy and throttling since it was loaded, and is asked for both every five seconds. In between,
energy is guessed from the power that is drawn, and the next count corrects the guess: sums are those of the counter. A
counter that falls (the driver was loaded anew), or jumps further than a card can, is begun again from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from runner.box.gpus.frames import ASLEEP, OK, Frame, Reading

PAUSE = 5.0  # seconds between two readings; a longer time is a gap: nobody knows what happened in it
WATTS_MAX = 2000.0  # of one card, and then some
SLACK_JOULES = 2 * WATTS_MAX  # what the counter may be late
COUNTED_SECONDS = 15.0  # throttling that was not counted for so long is guessed
HELD_BACK = {  # reason of the driver -> ours; a card at its power limit is working as it should
    "hw_thermal": "hw_thermal", "sw_thermal": "sw_thermal", "power_brake": "power_brake", "power_cap": "power_cap",
}  # fmt: skip


@dataclass(slots=True)
class Step:
    """One GPU, from its last reading to this one."""

    uuid: str
    at: float
    seconds: float  # that passed and were seen: 0 for the first reading and after a gap
    unseen: float  # seconds of the gap before this reading
    joules: float | None  # in the seconds; None: not known. Slightly negative where a guess was too high
    unseen_joules: float | None = None  # of a gap, this one or one of a moment ago: as the driver counted meanwhile
    throttled: dict[str, float] = field(default_factory=dict)  # reason -> seconds
    reading: Reading | None = None
    work: dict[int, float] = field(default_factory=dict)  # job -> how busy it keeps a GPU that it shares, 0..1


@dataclass(slots=True)
class Count:
    """What the driver's counters said last; kept, it bridges the time in which nobody looked."""

    at: float
    energy_joules: float | None = None
    throttled: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Known:
    at: float
    watts: float | None = None
    joules: float | None = None  # of the counter
    joules_at: float = 0.0
    guessed: float = 0.0  # joules since then
    gap: bool = False  # there was a gap since then, or sleep
    throttled: dict[str, float] | None = None
    throttled_at: float = 0.0


class Meter:
    """Of all GPUs. Frames in the order in which they come."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def read(self, frame: Frame) -> list[Step]:
        """One step for each GPU that could be read, or sleeps."""
        return list(self._steps(frame))

    def _steps(self, frame: Frame) -> Iterable[Step]:
        for reading in frame.cards:
            if reading.state in (OK, ASLEEP):
                yield self._step(reading, frame.at)

    def resume(self, uuid: str, count: Count) -> None:
        """Go on from what was counted before this process began."""
        if uuid not in self._known:
            known = _Known(count.at, joules=count.energy_joules, joules_at=count.at, throttled_at=count.at)
            known.throttled = dict(count.throttled) or None
            self._known[uuid] = known

    def count(self, uuid: str) -> Count | None:
        """As of the last reading, to be kept. The energy includes the guess, so that a sum that was kept beside it is
        corrected, too."""
        known = self._known.get(uuid)
        if known is None:
            return None
        joules = None if known.joules is None else known.joules + known.guessed
        return Count(known.at, joules, known.throttled or {})

    def _step(self, reading: Reading, at: float) -> Step:
        known = self._known.get(reading.uuid)
        if known is None:
            known = self._known[reading.uuid] = _Known(at)
        passed = at - known.at
        seconds, unseen = (passed, 0.0) if 0 <= passed <= PAUSE else (0.0, max(passed, 0.0))
        known.gap = known.gap or unseen > 0 or reading.state == ASLEEP
        guess = _guessed(known, reading, seconds)
        joules, hidden = self._counted(known, reading, at, guess)
        step = Step(reading.uuid, at, seconds, unseen, joules, hidden, reading=reading)
        step.throttled = self._throttled(known, reading, at, seconds)
        known.at = at
        return step

    def _counted(
        self, known: _Known, reading: Reading, at: float, guess: float | None
    ) -> tuple[float | None, float | None]:
        """(joules of the seconds that were seen, of a gap before them)."""
        said = reading.sample.get("energy_joules")
        if not isinstance(said, float):
            return guess, None
        was, guessed, gap, elapsed = known.joules, known.guessed, known.gap, at - known.joules_at
        known.joules, known.joules_at, known.guessed, known.gap = said, at, 0.0, False
        if was is None or not 0 <= said - was <= WATTS_MAX * max(elapsed, 0.0) + SLACK_JOULES:
            return guess, None
        missed = said - was - guessed
        return (guess, max(missed, 0.0)) if gap else ((guess or 0.0) + missed, None)

    def _throttled(self, known: _Known, reading: Reading, at: float, seconds: float) -> dict[str, float]:
        said = reading.sample.get("throttled_seconds")
        if isinstance(said, dict):
            was, elapsed = known.throttled, at - known.throttled_at
            known.throttled, known.throttled_at = dict(said), at
            if was is None:
                return {}
            grown = {ours: said[name] - was.get(name, said[name]) for name, ours in HELD_BACK.items() if name in said}
            return {name: more for name, more in grown.items() if 0 < more <= elapsed + PAUSE}
        if known.throttled is not None and at - known.throttled_at <= COUNTED_SECONDS:
            return {}  # the next count says it
        now = reading.sample.get("throttled_by")
        return {name: seconds for name in HELD_BACK if isinstance(now, list) and name in now and seconds}


def _guessed(known: _Known, reading: Reading, seconds: float) -> float | None:
    """Joules of some seconds, by the power at their ends."""
    watts, was = reading.sample.get("power_watts"), known.watts
    known.watts = watts if isinstance(watts, float) else None
    if known.watts is None or was is None or not seconds:
        return None
    guess = (known.watts + was) / 2 * seconds
    known.guessed += guess
    return guess
