"""PURE: which Thunderbolt devices are admitted, which can't be, and what is to be known of a GPU behind a cable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]  # what the module gpubox_facts returns

ASKS = ("user", "secure")  # levels at which the firmware leaves it to the system whom it admits
REFUSES = {
    "dponly": "only screens",
    "usbonly": "only USB",
    "nopcie": "no PCI devices",
}
TRUST = "What is admitted may read and write this computer's memory"


def thunderbolt(
    facts: Facts, wished: bool, enrolled: Sequence[str] = (), names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """-> enrol: [{uuid, name}], problem: a sentence or "", notes: sentences. enrolled: the UUIDs that bolt knows by
    now; names: PCI address -> what a card is called."""
    bolt = facts["thunderbolt"]
    problem = _refusal(bolt) if wished else ""
    able = wished and not problem and bolt["security"] in ASKS
    new = [one for one in bolt["devices"] if one["uuid"] and one["uuid"] not in enrolled]
    return {
        "enrol": [{"uuid": one["uuid"], "name": _title(one)} for one in new] if able else [],
        "problem": problem,
        "notes": [*_port(bolt, wished), *_devices(bolt, wished, enrolled), *_cards(facts, names or {})],
    }


def _title(device: Mapping[str, Any]) -> str:
    return " ".join(part for part in (device["vendor"], device["name"]) if part)


def _refusal(bolt: Mapping[str, Any]) -> str:
    if bolt["security"] not in REFUSES:
        return ""
    return (
        f"The firmware admits {REFUSES[bolt['security']]} over Thunderbolt (security level {bolt['security']}), so no "
        "GPU there can be used, and no system can change that. Next: set the Thunderbolt security to 'user "
        "authorization' in the firmware's setup; or leave gpubox_egpu out."
    )


def _port(bolt: Mapping[str, Any], wished: bool) -> list[str]:
    if wished and not bolt["present"]:
        return [
            "No Thunderbolt or USB4 port is here, or it is switched off in the firmware's setup. A GPU on OCuLink or "
            "in a slot needs none."
        ]
    if bolt["security"] == "none":
        guarded = "the IOMMU keeps it to memory of its own" if bolt["iommu_protection"] else "all of the memory is open"
        return [f"The firmware admits every Thunderbolt device without asking (security level none), and {guarded}."]
    if wished and bolt["security"] in ASKS and bolt["iommu_protection"]:
        return ["The IOMMU guards the memory here: bolt admits whatever is plugged in from now on, as its own rule."]
    return []


def _devices(bolt: Mapping[str, Any], wished: bool, enrolled: Sequence[str]) -> list[str]:
    notes = []
    for device in bolt["devices"]:
        if device["authorised"] or bolt["security"] not in ASKS:
            continue
        if device["uuid"] in enrolled:
            notes.append(f"{_title(device)} is known but not admitted. Next: boltctl authorize {device['uuid']}")
        elif not wished:
            notes.append(
                f"{_title(device)} ({device['uuid']}) is plugged in over Thunderbolt and not admitted. {TRUST}. "
                "Next, if it is yours: gpubox_egpu: true, which admits what is plugged in, now and at every start."
            )
    if wished and bolt["present"] and not bolt["devices"] and bolt["security"] in ASKS:
        notes.append("Nothing is plugged in over Thunderbolt now. Switch the GPU's box on, and run this again.")
    return notes


def _cards(facts: Facts, names: Mapping[str, str]) -> list[str]:
    notes = []
    for gpu in facts["gpus"]:
        if not gpu["external"]:
            continue
        name = f"{names.get(gpu['address'], 'The GPU')} ({gpu['address']})"
        lanes, most = gpu["link"].get("current_link_width"), gpu["link"].get("max_link_width")
        now = f" {lanes} of its {most} lanes are in use." if lanes and most and lanes != most else ""
        notes.append(
            f"{name} is behind a cable.{now} Thunderbolt 3 and 4 carry about 3 GB a second to it, a slot ten times "
            "that: loading data waits for it, what stays on the card does not. Models over several GPUs suffer most."
        )
        notes.append(
            f"{name}: never pull the cable, or switch its box off, while the computer runs. The driver loses the card "
            "until a restart, and its jobs fail. Switch the box on before the computer."
        )
    return notes


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"gpubox_thunderbolt": thunderbolt}
