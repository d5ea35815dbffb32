"""PURE: numbers as people read them. What is not known is a dash, never a zero."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from functools import lru_cache
from urllib.parse import quote

NONE = "\N{EN DASH}"
GIB, MIB = 1 << 30, 1 << 20
KWH = 3.6e6  # joules
DAY, ZONE_DAYS = 86400, 800
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def percent(share: float | None) -> str:
    return NONE if share is None else f"{share * 100:.0f} %"


def size(count: float | None) -> str:
    """9.1 GiB"""
    if count is None:
        return NONE
    for unit in UNITS:
        if abs(count) < 1000 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit in UNITS[:2] or abs(count) >= 100 else f"{count:.1f} {unit}"


def portion(used: int | None, total: int | None) -> str:
    """18.2 / 24.0 GiB"""
    if used is None:
        return NONE if total is None else f"{NONE} / {total / GIB:.1f} GiB"
    return size(used) if total is None else f"{used / GIB:.1f} / {total / GIB:.1f} GiB"


def span(seconds: float | None) -> str:
    """45 s, 12 min, 3 h 05 min, 2 d 4 h"""
    if seconds is None:
        return NONE
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest:02d} s" if minutes < 10 else f"{minutes} min"
    if whole < 86400:
        hours, rest = divmod(whole, 3600)
        return f"{hours} h {rest // 60:02d} min"
    days, rest = divmod(whole, 86400)
    return f"{days} d {rest // 3600} h"


def moment(at: float | None) -> str:
    """21 Nov 14:02, where the box is"""
    if at is None:
        return NONE
    local = time.localtime(at)
    return f"{local.tm_mday} {time.strftime('%b %H:%M', local)}"


def clock(at: float) -> str:
    return time.strftime("%H:%M", time.localtime(at))


@lru_cache(maxsize=2)
def zone(today: int) -> list[tuple[int, int]]:
    """(from when on, seconds ahead of UTC) where the box is, oldest first, for browsers that are somewhere else: as far
    back as charts go. today: days since 1970."""
    found = [(0, _ahead((today - ZONE_DAYS) * DAY))]
    for start in range((today - ZONE_DAYS) * DAY, (today + 2) * DAY, DAY):
        before, after = _ahead(start), _ahead(start + DAY)
        if before != after:  # to the second, within that day
            turned = bisect_left(range(start, start + DAY), True, key=lambda at: _ahead(at) != found[-1][1])
            found.append((start + turned, after))
    return found


def _ahead(at: int) -> int:
    return time.localtime(at).tm_gmtoff


def energy(joules: float | None) -> str:
    """0.41 kWh, 12 Wh"""
    if joules is None:
        return NONE
    if joules >= KWH / 10:
        return f"{joules / KWH:.2f} kWh"
    hours = joules / 3600
    if 0 < hours < 0.05:
        return "< 0.1 Wh"
    return f"{hours:.0f} Wh" if hours >= 9.95 else f"{hours:.1f} Wh"


def money(cost: float | None, currency: str) -> str:
    return "" if cost is None else f"{cost:.2f} {currency}".rstrip()


def fingerprint(digest: str) -> str:
    """As browsers and terminals show it: AB:CD:..."""
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2)).upper()


def address(path: str) -> str:
    """A file's path as a part of a URL, whatever bytes it has."""
    return quote(os.fsencode(path))


def model(name: str) -> str:
    """NVIDIA GeForce RTX 3090 -> RTX 3090"""
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
