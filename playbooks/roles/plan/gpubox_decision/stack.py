"""PURE: what stands on the driver, how large it is, and what an owner should know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpubox_decision.cards import problem, series
from gpubox_decision.driver import Driver
from gpubox_decision.packages import numbers, system_key
from gpubox_decision.tables import GOOD_BRANCH, GPUS, SYSTEMS, TORCH_FOR_CUDA_12, Facts, Wishes


def cuda(wanted: Wishes, cards: list[dict[str, Any]], driver: Driver) -> tuple[dict[str, Any], list[dict[str, str]]]:
    versions = [str(version) for version in wanted["cuda"]]
    if not versions:
        return {"versions": [], "packages": [], "reason": ["Off: PyTorch and JAX bring their own CUDA."]}, []
    old = sorted(
        {card["name"] for card in cards if card["used"] and GPUS["architectures"][card["architecture"]]["cuda"]}
    )
    reason, problems = ["Side by side under /usr/local; none of them pulls a driver."], []
    for version in versions:
        if not re.fullmatch(r"\d+\.\d+", version):
            problems.append(
                problem(
                    "cuda-version",
                    f"CUDA {version} is no version of a toolkit.",
                    "A toolkit has two numbers; what is named with fewer moves on to other versions by itself.",
                    "Ask for two numbers, such as gpubox_cuda: ['13.0'].",
                )
            )
            continue
        major = int(version.split(".")[0])
        if old and major > 12:
            problems.append(
                problem(
                    "cuda-too-new",
                    f"CUDA {version} can't compile for {series(old)}.",
                    "CUDA 13 ended support for cards before Turing.",
                    "Ask for 12.9: gpubox_cuda: ['12.9'].",
                )
            )
        elif driver.branch and major > 12 and driver.branch < GOOD_BRANCH:
            reason.append(f"CUDA {version} compiles here, but runs with driver {GOOD_BRANCH} or newer only.")
    return {
        "versions": versions,
        "packages": [f"cuda-toolkit-{version.replace('.', '-')}" for version in versions],
        "reason": reason,
    }, problems


def torch(cards: list[dict[str, Any]], driver: Driver) -> dict[str, Any]:
    """Which wheels a job should ask for; verify trains with them."""
    used = [card for card in cards if card["used"]]
    if not used or driver.source == "none":
        return {"wheels": "cpu", "below": None, "reason": ["No GPU is used here."]}
    old = sorted({card["name"] for card in used if GPUS["architectures"][card["architecture"]]["cuda"]})
    below = "2.15"
    if old:
        why = f"CUDA 13 has no code for {series(old)}; the wheels of CUDA 12.6 do, up to PyTorch {TORCH_FOR_CUDA_12}."
        return {"wheels": "cu126", "below": below, "reason": [why]}
    if driver.branch is not None and driver.branch < GOOD_BRANCH:
        why = f"Driver {driver.branch} is too old for CUDA 13: wheels of CUDA 12.6, up to PyTorch {TORCH_FOR_CUDA_12}."
        return {"wheels": "cu126", "below": below, "reason": [why]}
    return {"wheels": "default", "below": None, "reason": ["The wheels that pip and uv choose by themselves run."]}


DOCKER_OF_OTHERS = ("docker.io", "docker-engine", "podman-docker")


def containers(facts: Facts, wanted: Wishes, driver: Driver) -> tuple[dict[str, Any], list[dict[str, str]]]:
    engine = wanted["containers"]
    if engine == "none":
        return {"engine": "none", "packages": [], "toolkit": [], "flags": [], "reason": ["You want none."]}, []
    table = SYSTEMS["containers"]
    gpu = driver.source != "none" or bool(wanted["driver_source"] == "none" and facts["driver"]["version"])
    reason = {
        "podman": "Needs no daemon and no root, and no port of it passes the firewall by itself.",
        "docker": "You said so. Ports it opens pass the firewall: they are bound to 127.0.0.1 by default.",
    }[engine]
    old = engine == "podman" and system_key(facts) in table["old_podman"]
    said = [reason, *(["GPUs come in by CDI."] if gpu else ["No driver here: no GPU in containers."])]
    if gpu and engine == "podman" and system_key(facts) in table["podman_without_cdi"]:
        gpu, said[1] = False, "This podman is older than 4.1 and knows no CDI: only with docker do containers see GPUs."
    if old and gpu:
        said.append("This podman is older than 5.1: its CDI file is written without additional group ids.")
    foreign = sorted(set(DOCKER_OF_OTHERS) & set(facts["installs"]["packages"])) if engine == "docker" else []
    problems = [
        problem(
            "docker-of-the-distribution",
            f"{' and '.join(foreign)} {'is' if len(foreign) == 1 else 'are'} installed.",
            "It can't be there beside Docker's own packages, and taking it away would end the containers that it runs.",
            f"sudo apt remove {' '.join(foreign)} (images and volumes stay); or keep it and have podman beside it: "
            "gpubox_containers: podman.",
        )
    ]
    return {
        "engine": engine,
        "packages": list(table[engine]),
        "toolkit": list(table["toolkit"]) if gpu else [],
        "flags": ["no-additional-gids-for-device-nodes"] if old and gpu else [],
        "reason": said,
    }, problems if foreign else []


def python(facts: Facts) -> dict[str, Any]:
    here = facts["system"]["system_python"]
    if here and numbers(here) >= [3, 11]:
        return {
            "source": "system",
            "version": here,
            "reason": [f"The system's Python {here} is new enough for the runner."],
        }
    why = f"The runner needs Python 3.11; the system has {here or 'none that is known'}: uv brings one, for it alone."
    return {"source": "uv", "version": "3.12", "reason": [why]}


def sizes(made: Mapping[str, Any]) -> dict[str, int]:
    """About, on disk; the driver's packages only where some are to come."""
    about, gib = SYSTEMS["about_gib"], 1 << 30
    parts = {
        "base": about["base"] * gib,
        "driver": about["driver"] * gib if made["driver"]["packages"] else 0,
        "cuda": about["cuda"] * gib * len(made["cuda"]["versions"]),
        "containers": about["containers"] * gib if made["containers"]["engine"] != "none" else 0,
    }
    return {**parts, "all": sum(parts.values())}


def notices(facts: Facts, wanted: Wishes, made: Mapping[str, Any]) -> list[str]:
    said = [f"{card['name']} ({card['address']}) is not used: {card['why']}." for card in made["cards"] if card["why"]]
    said += [_link(gpu, card) for gpu, card in _pairs(facts, made) if card["used"]]
    said += [
        f"{card['name']} is behind Thunderbolt: its link carries a quarter of a slot's, and pulling it out while it "
        "works takes the driver down until a restart."
        for gpu, card in _pairs(facts, made)
        if gpu["external"]
    ]
    said += [
        f"{one['name']} is plugged in over Thunderbolt but not admitted: `boltctl enroll --policy auto {one['uuid']}`."
        for one in facts["thunderbolt"]["devices"]
        if not one["authorised"]
    ]
    if facts["thunderbolt"]["security"] in ("dponly", "usbonly", "nopcie"):
        said.append("Thunderbolt admits no PCI devices here: only the firmware's setup can change that.")
    if any(card["architecture"] == "newer" for card in made["cards"]):
        said.append(
            f"A card is newer than the table of {GPUS['date']}: open modules and the newest branch are a guess."
        )
    if any(gpu["driver"] == "nouveau" for gpu in facts["gpus"]) and made["driver"]["packages"]:
        said.append("nouveau holds a card now: it is kept out from the next start on.")
    if facts["nvswitch"]:
        said.append(
            "There is an NVSwitch: it needs nvidia-fabricmanager of the same version, which gpubox does not manage."
        )
    if made["driver"]["source"] == "keep":
        said += _next_boot(facts)
    if "cloud" in facts["kernel"]["next"]:
        said.append(
            "This is a cloud kernel, made without many drivers; linux-image-amd64 is the one for real hardware."
        )
    if facts["installs"]["snap_docker"] and wanted["containers"] != "docker":
        said.append("Docker is here as a snap, which can't use GPUs; podman does not mind it.")
    return [one for one in said if one]


def _pairs(facts: Facts, made: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return list(zip(facts["gpus"], made["cards"], strict=True))


def _link(gpu: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Width alone: the speed is lowered while a card idles."""
    now, most = gpu["link"].get("current_link_width"), gpu["link"].get("max_link_width")
    if not (now and most and now.isdigit() and most.isdigit()) or not 0 < int(now) < int(most):
        return ""
    return f"{card['name']} ({card['address']}) has {now} of its {most} lanes: the slot shares or lacks them."


def _next_boot(facts: Facts) -> list[str]:
    following = [one for one in facts["kernel"]["installed"] if one["release"] == facts["kernel"]["next"]]
    if not following or following[0]["nvidia"]:
        return []
    return [
        f"The kernel that starts next, {following[0]['release']}, has no NVIDIA module: the next restart loses the GPU."
    ]
