"""PURE: whether all GPUs are there, and how they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.box.checks.computer import Card
from runner.box.checks.finding import SETUP, Finding, failed, ok, skipped, warning
from runner.box.gpus import xids
from runner.box.gpus.faults import HINTS

NEXT = {  # code of a trouble of NVML's -> what to type; faults.HINTS says more
    "driver_not_loaded": "sudo modprobe nvidia",
    "version_mismatch": "sudo reboot",
    "no_gpu": "sudo dmesg | grep -i nvrm",
    "no_permission": "ls -l /dev/nvidia*",
    "no_library": SETUP,
    "lost": "sudo reboot",
    "no_reader": 'pip install ".[box]" in a clone',
    "unknown": "nvidia-smi",
}


def on_bus(cards: Sequence[Card]) -> Finding:
    used = [card for card in cards if card.driver != "vfio-pci"]
    away = [f"{card.address} is given to virtual machines" for card in cards if card not in used]
    if not cards:
        return skipped("there is no NVIDIA card in this computer")
    if not used:
        return skipped("all NVIDIA cards are given to virtual machines (vfio-pci)")
    return ok(f"{_many(len(used), 'GPU')}: {', '.join(card.address for card in used)}", *away)


def found(cards: Sequence[Card], said: dict[str, Any]) -> Finding:
    """The driver's list against the bus's. said: as nvml_reader.py prints it."""
    if trouble := said.get("trouble"):
        code = str(trouble["code"])
        if code == "no_reader":
            return skipped(f"{trouble['message']}, which asks the driver", NEXT[code])
        why = str(trouble["hint"] or HINTS.get(code, ""))
        return failed(str(trouble["message"]), why, NEXT.get(code, "nvidia-smi"))
    places = {str(gpu["place"]) for gpu in said["gpus"]}
    missing = [card.address for card in cards if card.place not in places]
    names = [f"{gpu['name']} at {gpu['place']}" for gpu in said["gpus"]]
    if missing or said["failed"]:
        why = "; ".join(said["failed"]) or "it gave up on it, or the card is not supported by these modules"
        gone = ", ".join(missing) or "one"
        return failed(
            f"the driver has {len(said['gpus'])} of {_many(len(cards), 'GPU')}: {gone} is missing",
            why,
            "sudo dmesg | grep -i nvrm    # then a restart; power supply, riser and slot if it stays so",
            *names,
        )
    recover = [f"{gpu['name']}: {value}" for gpu in said["gpus"] if (value := gpu["values"].get("recovery"))
               not in (None, "none")]  # fmt: skip
    if recover:
        return failed(
            f"the driver asks for a recovery of {', '.join(recover)}", "it had a fault since it started", "sudo reboot"
        )
    return ok(f"the driver has all of them: {_many(len(names), 'GPU')}, CUDA {said['cuda'] or 'unknown'}", *names)


def faults(seen: Sequence[tuple[str, int, str]] | None) -> Finding:
    """Xids in the kernel's log since the start: (place on the bus, number, words)."""
    if seen is None:
        return skipped("the kernel's log is for root", "sudo runner doctor gpus.xid")
    told = list(dict.fromkeys(f"GPU at {place}: Xid {code}: {words}" for place, code, words in seen))
    codes = {code for _, code, _ in seen}
    if grave := sorted(code for code in codes if xids.severity(code) == xids.CRITICAL):
        words = "; ".join(f"Xid {code}: {xids.words(code)}" for code in grave)
        why = "a power supply, riser or slot that is too weak, heat, or a card that dies: `runner gpus` shows which"
        return failed(f"a GPU had a grave fault since the start: {words}", why, "sudo reboot", *told[-10:])
    if any(xids.severity(code) != xids.JOB for code in codes):
        why = "it went on, but it may announce a worse one"
        return warning(f"{_many(len(told), 'fault')} of GPUs since the start", why, "runner gpus", *told[-10:])
    if told:
        return ok(f"no fault of a GPU since the start; programs made {_many(len(told), 'error')}", *told[-10:])
    return ok("no fault since the start")


def links(cards: Sequence[Card]) -> Finding:
    """Width alone: the speed is lowered while a card idles."""
    narrow = [card for card in cards if 0 < card.lanes < card.most_lanes]
    if not narrow:
        return ok("all have all their lanes" if any(card.lanes for card in cards) else "their widths are not told")
    told = [
        f"{card.address} has {card.lanes} of {card.most_lanes} lanes{', behind a Thunderbolt port' * card.external}"
        for card in narrow
    ]
    if all(card.external for card in narrow):
        return ok("; ".join(told))
    why = "the slot has or shares no more, or the card or its riser sits badly; training that loads much data is slower"
    return warning("; ".join(told), why, f"sudo lspci -vv -s {narrow[0].address} | grep -i lnk")


def persistence(said: dict[str, Any]) -> Finding:
    off = [str(gpu["name"]) for gpu in said["gpus"] if gpu["values"].get("persistence") is False]
    if not off:
        return ok("the driver stays awake between jobs")
    return warning(
        f"the driver lets go of {', '.join(off)} between jobs",
        "each job then waits some seconds for it, and limits of power are forgotten",
        "sudo systemctl start nvidia-persistenced",
    )


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
