"""PURE: what gpubox must not touch on a computer, each with the next step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Facts = Mapping[str, Any]  # what the module gpubox_facts returns
Wishes = Mapping[str, Any]
Refusal = dict[str, str]  # id, what, why, next

DEFAULTS: Wishes = {
    "driver_source": "auto",
    "ignored_gpus": (),
    "cuda": (),
    "containers": "podman",
    "free_gib": 10,
    "boot_free_mib": 150,
    "core": "",  # ansible-core's version, on the side that runs the play
}
SYSTEMS = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04", "26.04")}
ARCHITECTURES = ("x86_64", "aarch64")
GIB = 1 << 30
MIB = 1 << 20
SOURCES = {  # kind -> (whose it is, what to do)
    "graphics-drivers-ppa": (
        "the graphics-drivers PPA",
        "sudo apt install ppa-purge && sudo ppa-purge ppa:graphics-drivers/ppa",
    ),
    "lambda": (
        "Lambda's repository",
        "remove lambda-stack-cuda and lambda-stack-repo (sudo apt purge 'lambda-*'), then sudo apt autoremove",
    ),
    "system76": ("System76's repository", "remove that source and the NVIDIA packages that came from it"),
}


def refusals(facts: Facts, wishes: Wishes | None = None) -> list[Refusal]:
    """All of them at once, so that one run shows everything that stands in the way; [] is a computer to begin with."""
    wanted = {**DEFAULTS, **(wishes or {})}
    return [refusal for check in CHECKS for refusal in check(facts, wanted)]


def lines(refused: list[Refusal]) -> list[str]:
    """As they are printed: three lines each."""
    return [line for one in refused for line in (f"{one['what']} [{one['id']}]", one["why"], f"Next: {one['next']}")]


def _refusal(code: str, what: str, why: str, then: str) -> Refusal:
    return {"id": code, "what": what, "why": why, "next": then}


def _system(facts: Facts, _: Wishes) -> Iterator[Refusal]:
    system = facts["system"]
    known = ", ".join(f"{name.capitalize()} {' and '.join(versions)}" for name, versions in SYSTEMS.items())
    if system["derivative"]:
        yield _refusal(
            "system-derivative",
            f"This is {system['name']}, a derivative.",
            "Its kernels and drivers are its own: packages of Debian or Ubuntu would mix with them.",
            f"Install {known}.",
        )
    elif system["version"] not in SYSTEMS.get(system["id"], ()):
        yield _refusal(
            "system-unknown",
            f"This is {system['name'] or 'a system without a name'}.",
            "Package names and repositories differ with each release, and were looked up for a few.",
            f"Install {known}.",
        )
    if system["architecture"] not in ARCHITECTURES:
        yield _refusal(
            "architecture",
            f"This system is for {system['architecture']}.",
            "NVIDIA has drivers for x86_64 and aarch64.",
            "Install the 64-bit system.",
        )
    if system["machine"]["kind"] == "wsl":
        yield _refusal(
            "wsl",
            "This is Linux inside Windows (WSL).",
            "The driver there is the one of Windows, and a Linux driver would hide it.",
            "Use gpubox without provisioning (`runner submit` works here), or install Linux on the machine itself.",
        )


def _controller(facts: Facts, wanted: Wishes) -> Iterator[Refusal]:
    python, core = facts["system"]["system_python"] or facts["system"]["python"], wanted["core"]
    if core and _numbers(python) >= [3, 14] and _numbers(core) < [2, 20]:
        yield _refusal(
            "ansible-too-old",
            f"{facts['system']['name']} has Python {python}, and this is ansible-core {core}.",
            "Python 3.14 on the box needs ansible-core 2.20, which itself needs Python 3.12.",
            "Run the play from a computer with Python 3.12 or newer: pip install 'ansible-core>=2.20'.",
        )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


def _clock(facts: Facts, _: Wishes) -> Iterator[Refusal]:
    if facts["clock"]["behind"]:
        yield _refusal(
            "clock",
            "The clock is behind the files of this computer.",
            "apt and TLS refuse what is signed in what looks like the future.",
            "sudo timedatectl set-ntp true, or set it: sudo date -s '2026-11-21 12:00'; change the board's battery.",
        )


def _space(facts: Facts, wanted: Wishes) -> Iterator[Refusal]:
    least = {"/": wanted["free_gib"] * GIB + 9 * GIB * len(wanted["cuda"]), "/boot": wanted["boot_free_mib"] * MIB}
    for mount, space in facts["space"].items():
        if space["free_bytes"] < least.get(mount, 0):
            code = "space-boot" if mount == "/boot" else "space-root"
            what = f"{mount} has {_size(space['free_bytes'])} free; {_size(least[mount])} are needed."
            why = "A disk that fills in the middle of an installation leaves packages half done."
            clean = "sudo apt autoremove --purge removes old kernels; sudo apt clean removes old downloads."
            yield _refusal(code, what, why, clean)


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def _packages(facts: Facts, wanted: Wishes) -> Iterator[Refusal]:
    foreign = [name for name in facts["installs"]["broken"] if "nvidia" not in name]
    if foreign:  # those of the driver are repaired by its own role
        yield _refusal(
            "packages-half-done",
            f"dpkg left half done: {' '.join(foreign)}.",
            "apt installs nothing before that is mended.",
            "sudo dpkg --configure -a && sudo apt --fix-broken install",
        )
    if wanted["cuda"] and "nvidia-cuda-toolkit" in facts["installs"]["packages"]:
        yield _refusal(
            "cuda-of-the-distribution",
            "nvidia-cuda-toolkit of the distribution is installed.",
            "Its nvcc comes first in PATH and is older than the toolkits that you ask for.",
            "sudo apt purge nvidia-cuda-toolkit && sudo apt autoremove",
        )
    if wanted["containers"] == "docker" and facts["installs"]["snap_docker"]:
        yield _refusal(
            "snap-docker",
            "Docker is installed as a snap.",
            "A snap can't reach the driver: no container of it sees a GPU.",
            "sudo snap remove docker (its images and volumes go with it), or keep podman: gpubox_containers: podman.",
        )


def _driver(facts: Facts, wanted: Wishes) -> Iterator[Refusal]:
    if wanted["driver_source"] == "none":  # then all of it is the owner's
        return
    if facts["installs"]["run_file"]:
        yield _refusal(
            "run-file",
            f"A driver was installed by NVIDIA's .run file ({facts['installs']['run_file'][0]}).",
            "It wrote over files that packages own: driver and libraries would not agree with each other.",
            "sudo /usr/bin/nvidia-uninstall, remove /var/log/nvidia-installer.log, restart; or keep it: "
            "gpubox_driver_source: none.",
        )
    for kind, (whose, what_to_do) in SOURCES.items():
        files = sorted({source["file"] for source in facts["apt"]["sources"] if source["kind"] == kind})
        if files:
            yield _refusal(
                f"repository-{kind}",
                f"apt has {whose} ({', '.join(files)}).",
                "Its packages have the same names as those of the distribution, and a mix of both can't be installed.",
                f"{what_to_do}; or keep its driver: gpubox_driver_source: none.",
            )


def _virtual_machines(facts: Facts, wanted: Wishes) -> Iterator[Refusal]:
    bound = [gpu["address"] for gpu in facts["gpus"] if gpu["driver"] == "vfio-pci"]
    for address in bound:
        if address not in wanted["ignored_gpus"]:
            yield _refusal(
                "vfio",
                f"The GPU {address} is kept for virtual machines (vfio-pci).",
                "A driver would take it from them.",
                f"Say that it is to be left alone: gpubox_ignored_gpus: ['{address}']; or take it out of vfio-pci "
                "(/etc/modprobe.d, the kernel's command line) and restart.",
            )


CHECKS: tuple[Callable[[Facts, Wishes], Iterator[Refusal]], ...] = (
    _system,
    _controller,
    _clock,
    _space,
    _packages,
    _driver,
    _virtual_machines,
)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"gpubox_refusals": refusals, "gpubox_refusal_lines": lines}
