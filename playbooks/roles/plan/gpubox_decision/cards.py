"""PURE: which cards there are, which of them are used, and what those need together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpubox_decision.tables import GPUS, Facts, Wishes


@dataclass(frozen=True)
class Need:
    """What the cards together ask for."""

    flavours: tuple[str, ...]  # the best first
    first: int = 0  # branches
    last: int | None = None
    first_because: str = ""
    last_because: str = ""
    reasons: tuple[str, ...] = ()


def architecture(device: str) -> str:
    """'2204' -> 'ampere'. An id above the table is newer than it; one that is not a number is newer, too."""
    try:
        number = int(device, 16)
    except ValueError:
        return "newer"
    for first, last, name in GPUS["ranges"]:
        if int(first, 16) <= number <= int(last, 16):
            return str(name)
    return "newer"


def cards_of(facts: Facts, wanted: Wishes) -> list[dict[str, Any]]:
    """In the order of facts["gpus"]. Where one driver can't serve all, the newer cards have it."""
    found = [card_of(gpu, wanted) for gpu in facts["gpus"]]
    only_open = [card for card in found if card["used"] and flavours(card) == ["open"]]
    if only_open and any(flavours(card) == ["proprietary"] for card in found if card["used"]):
        names_of_new = " and ".join(sorted({card["name"] for card in only_open}))
        for card in found:
            if card["used"] and flavours(card) == ["proprietary"]:
                card.update(used=False, why=f"{names_of_new} runs with open modules only, which have no {card['kind']}")
    return found


def card_of(gpu: Mapping[str, Any], wanted: Wishes) -> dict[str, Any]:
    kind = architecture(gpu["device"])
    named = GPUS["architectures"][kind]
    card = {
        "address": gpu["address"],
        "device": gpu["device"],
        "name": GPUS["names"].get(gpu["device"], f"NVIDIA GPU {gpu['device']}"),
        "architecture": kind,
        "kind": named["name"],
        "used": True,
        "why": "",
    }
    if gpu["address"] in wanted["ignored_gpus"]:
        card.update(used=False, why="you said to leave it alone")
    elif gpu["driver"] == "vfio-pci":
        card.update(used=False, why="it is kept for virtual machines (vfio-pci)")
    elif not named["flavours"]:
        card.update(used=False, why=f"no driver of today supports {named['name']}")
    return card


def flavours(card: Mapping[str, Any]) -> list[str]:
    return list(GPUS["architectures"][card["architecture"]]["flavours"])


def need_of(cards: Sequence[Mapping[str, Any]], wanted: Wishes) -> Need:
    """Of the cards that are used; no card leaves everything open."""
    shared = [one for one in ("open", "proprietary") if all(one in flavours(card) for card in cards)]
    if wanted["driver_flavour"] != "auto":
        shared = [one for one in shared if one == wanted["driver_flavour"]]
    kinds = [(GPUS["architectures"][card["architecture"]], card["name"]) for card in cards]
    first, first_name = max(((kind["first"], name) for kind, name in kinds), default=(0, ""))
    last, last_name = min(((kind["last"], name) for kind, name in kinds if kind["last"]), default=(None, ""))
    reasons = []
    if last:
        old = series(sorted({name for kind, name in kinds if kind["last"]}))
        newer = sorted({name for kind, name in kinds if not kind["last"]})
        reasons.append(f"{old} has no GSP: it needs the proprietary modules, and {last} is its last branch.")
        if newer:
            reasons.append(f"One driver serves all cards: without it, {series(newer)} could have the open modules.")
    return Need(
        tuple(shared),
        first,
        last,
        f"{first_name} needs {first} or newer" if first else "",
        f"{last} is the last branch for {last_name}" if last else "",
        tuple(reasons),
    )


def series(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def problem(code: str, what: str, why: str, then: str) -> dict[str, str]:
    return {"id": code, "what": what, "why": why, "next": then}
