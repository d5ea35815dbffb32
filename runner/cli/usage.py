"""What jobs used of the GPUs, in words."""

from __future__ import annotations

from runner.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Use = dict[str, Any]

KWH = 3.6e6  # joules
TOLD_SECONDS = 5.0  # less than this is not worth a word


def total(uses: Sequence[Use]) -> str:
    """2 h of GPUs, 0.41 kWh, 0.13 EUR: of all attempts on all GPUs"""
    seconds = sum(use["until"] - use["since"] for use in uses)
    if not seconds:
        return ""
    parts = [f"{output.span(seconds)} of GPU{'s' * (len({use['gpu'] for use in uses}) > 1)}", _energy(uses)]
    return ", ".join(filter(None, parts))


def words(use: Use) -> str:
    """87 % busy, idle for 4 min, peak 9.1 GiB, 0.41 kWh, 0.13 EUR, at most 83 °C: of one attempt on one GPU"""
    parts = [_work(use)]
    if use.get("peak_bytes") is not None:
        parts.append(f"peak {output.portion(use['peak_bytes'], None)}")
    parts.append(_energy([use]))
    if use.get("hottest_celsius") is not None:
        parts.append(f"at most {use['hottest_celsius']:.0f} °C")
    for name, what in (("heat_seconds", "by heat"), ("brake_seconds", "by its power supply")):
        if use.get(name, 0) >= TOLD_SECONDS:
            parts.append(f"held back {what} for {output.span(use[name])}")
    parts += [f"Xid {code}{f' {count} times' * (count > 1)}" for code, count in (use.get("xids") or {}).items()]
    if use.get("unseen_seconds", 0) >= TOLD_SECONDS:
        parts.append(f"nobody looked for {output.span(use['unseen_seconds'])}")
    return ", ".join(filter(None, parts)) or "nothing was seen of it"


def _work(use: Use) -> str:
    measured = use.get("measured_seconds") or 0.0
    if not measured:
        return ""
    idle = f", idle for {output.span(use['idle_seconds'])}" if use["idle_seconds"] >= TOLD_SECONDS else ""
    return f"{use['busy_seconds'] / measured * 100:.0f} % busy{idle}"


def _energy(uses: Sequence[Use]) -> str:
    """0.41 kWh (a guess: the GPU was shared), 0.13 EUR"""
    known = [use["energy_joules"] for use in uses if use.get("energy_joules") is not None]
    if not known:
        return ""
    joules = sum(known)
    text = f"{joules / KWH:.2f} kWh" if joules >= KWH / 10 else f"{joules / 3600:.3g} Wh"
    lacks = sum(use.get("uncounted_seconds") or 0.0 for use in uses)
    doubts = ["a guess: shared"] * any(use.get("shared") for use in uses)
    doubts += [f"without {output.span(lacks)}"] * (lacks >= TOLD_SECONDS)
    text += f" ({', '.join(doubts)})" * bool(doubts)
    costs = [use["cost"] for use in uses if use.get("cost") is not None]
    return f"{text}, {sum(costs):.2f} {uses[0].get('currency', '')}".rstrip() if costs else text
