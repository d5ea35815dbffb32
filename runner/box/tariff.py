"""PURE: what a kilowatt-hour costs, by the time of day: `0.32`, or `0.32 22:00-06:00=0.24`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from runner.errors import BadSettings

KWH = 3.6e6  # joules
HINT = "such as 0.32, or 0.32 22:00-06:00=0.24 with what it costs at night; docs/settings.md"


@dataclass(slots=True, frozen=True)
class Span:
    begins: int  # minute of the day
    ends: int  # before begins: on the next day
    price: float

    def holds(self, minute: int) -> bool:
        if self.begins <= self.ends:
            return self.begins <= minute < self.ends
        return minute >= self.begins or minute < self.ends


@dataclass(slots=True, frozen=True)
class Tariff:
    """Prices of a kilowatt-hour, in the currency of the settings. The first span that holds counts."""

    price: float
    spans: tuple[Span, ...] = ()

    def at(self, minute: int) -> float:
        """minute: of the day, where the box is."""
        return next((span.price for span in self.spans if span.holds(minute)), self.price)

    def cost(self, joules: float, at: float) -> float:
        """Of energy that was used at a time (epoch seconds)."""
        if not self.spans:
            return joules / KWH * self.price
        local = time.localtime(at)
        return joules / KWH * self.at(local.tm_hour * 60 + local.tm_min)


def parse(text: str) -> Tariff | None:
    """None: nothing is said, so nothing is counted. BadSettings."""
    first, *rest = text.split() or [""]
    if not first:
        return None
    return Tariff(_price(first, text), tuple(_span(word, text) for word in rest))


def _span(word: str, text: str) -> Span:
    times, _, price = word.partition("=")
    begins, _, ends = times.partition("-")
    return Span(_minute(begins, text), _minute(ends, text), _price(price, text))


def _minute(word: str, text: str) -> int:
    hour, _, minute = word.partition(":")
    if not (hour.isdecimal() and (minute or "0").isdecimal() and int(hour) <= 24 and int(minute or 0) < 60):
        raise BadSettings(f"the tariff {text!r} names a time that is none: {word!r}", HINT)
    return (int(hour) * 60 + int(minute or 0)) % (24 * 60)


def _price(word: str, text: str) -> float:
    try:
        price = float(word)
        if not 0 <= price < 1e6:
            raise ValueError
    except ValueError:
        raise BadSettings(f"the tariff {text!r} names a price that is none: {word!r}", HINT) from None
    return price
