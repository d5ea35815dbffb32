"""PURE: names of packages: what a choice consists of, and what is installed already."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpubox_decision.tables import SYSTEMS, Facts, Wishes

DRIVER_PACKAGE = re.compile(
    r"(lib)?nvidia-(?!container)|linux-(modules|objects|signatures)-nvidia|cuda-drivers|xserver-xorg-video-nvidia|libcuda1"
)
CHOSEN_PACKAGE = re.compile(  # those that a person or a role names; libraries follow them by themselves
    r"nvidia-(driver|headless|dkms|kernel|open|utils|compute-utils|smi)|linux-modules-nvidia|cuda-drivers"
)

NVIDIAS_UBUNTU = re.compile(r"-\d+ubuntu\d+$")  # Ubuntu's own end with the release: -0ubuntu0.24.04.1


def system_key(facts: Facts) -> str:
    return f"{facts['system']['id']}-{facts['system']['version']}"


def table_of(facts: Facts, source: str, branch: int) -> str:
    if source not in ("nvidia", "mirror"):
        return source
    if facts["system"]["id"] == "debian":
        return "nvidia-debian"
    return "nvidia-ubuntu" if branch >= 590 else "nvidia-ubuntu-before-590"


def packages_of(facts: Facts, wanted: Wishes, source: str, branch: int, flavour: str) -> tuple[str, ...]:
    key = table_of(facts, source, branch)
    words = {
        "{branch}": str(branch),
        "{-open}": "-open" if flavour == "open" else "",
        "{kernel}": kernel_flavour(facts) or "generic",
        "{headers}": headers(facts) or "",
        "{metapackage}": "nvidia-open" if flavour == "open" else "cuda-drivers",
    }
    made = [_image(facts)] if source != "ubuntu-signed" else []
    for name in SYSTEMS["packages"][key][set_of(facts, wanted)]:
        for word, value in words.items():
            name = name.replace(word, value)
        made.append(name)
    return tuple(filter(None, made))


def kernel_flavour(facts: Facts) -> str | None:
    """Ubuntu: generic, generic-hwe-24.04, lowlatency, aws, ...: the end of the name of the kernel's metapackage."""
    release, version = facts["kernel"]["next"], facts["system"]["version"]
    found = re.fullmatch(r"(\d+\.\d+)\.\d+-\d+-([a-z][a-z0-9-]*)", release)
    if facts["system"]["id"] != "ubuntu" or not found or found[2] in ("raspi", "kvm", "raspi-nolpae"):
        return None
    kind = found[2].removesuffix("-64k") if found[2].startswith("generic") else found[2]
    metas = [
        name
        for name in facts["installs"]["packages"]
        if re.match(rf"linux-(image-)?{re.escape(kind)}(-hwe|-\d|$)", name)
    ]
    base = SYSTEMS["systems"].get(system_key(facts), {}).get("base_kernel")
    hwe = next((re.sub(r"^linux-(image-)?", "", name) for name in sorted(metas) if "-hwe-" in name), None)
    if kind in ("generic", "lowlatency") and base and numbers(found[1]) > numbers(base):
        return hwe or f"{kind}-hwe-{version}"
    return f"{kind}-{version}" if kind == "oem" else kind


def headers(facts: Facts) -> str | None:
    """The metapackage whose headers come along with each new kernel; None for a kernel that is not the system's."""
    release = facts["kernel"]["next"]
    if facts["system"]["id"] == "ubuntu":
        flavour = kernel_flavour(facts) or next(iter(re.findall(r"-(raspi|kvm)$", release)), None)
        return f"linux-headers-{flavour}" if flavour else None
    found = re.search(r"(?:-|^)((?:cloud-|rt-)?)(amd64|arm64)$", release)
    if found:
        return f"linux-headers-{found[1]}{found[2]}"
    if facts["system"]["machine"]["kind"] == "container":  # its kernel is the host's, and not the one to build for
        return "linux-headers-arm64" if facts["system"]["architecture"] == "aarch64" else "linux-headers-amd64"
    return None


def exact_headers(facts: Facts) -> list[str]:
    """Those of the kernel that starts next, where there is one: the metapackage brings the newest kernel's alone."""
    return [f"linux-headers-{facts['kernel']['next']}"] if facts["kernel"]["installed"] and headers(facts) else []


def _image(facts: Facts) -> str:
    """An old kernel's headers may have left the archive: then the newest kernel comes along with its own."""
    following = next((one for one in facts["kernel"]["installed"] if one["release"] == facts["kernel"]["next"]), None)
    known = facts["apt"]["lists"] and facts["apt"]["offers"]
    if not known or not following or following["headers"] or any(offered(facts, name) for name in exact_headers(facts)):
        return ""
    return image(facts)


def image(facts: Facts) -> str:
    return (headers(facts) or "").replace("linux-headers-", "linux-image-")


def offered(facts: Facts, name: str) -> str | None:
    version = facts["apt"]["offers"].get(name)
    return str(version) if version else None


def of_branch(facts: Facts, name: str, branch: int) -> str | None:
    """The newest version of that branch. The candidate may be of another one: names hold no branch, and pins prefer."""
    known = facts["apt"]["versions"].get(name) or [facts["apt"]["offers"].get(name, "")]
    return next((version for version in known if re.match(rf"(\d+:)?{branch}\.", version)), None)


def version_of(facts: Facts, source: str, branch: int, packages: Sequence[str]) -> str | None:
    named = [name for name in packages if CHOSEN_PACKAGE.match(name)]
    if source in ("nvidia", "mirror"):
        return next((one for name in named if has_nvidia(facts) and (one := of_branch(facts, name, branch))), None)
    found = next((version for name in named if (version := offered(facts, name))), None)
    if source == "debian":
        return (
            found
            or offered(facts, "nvidia-kernel-dkms")
            or SYSTEMS["systems"].get(system_key(facts), {}).get("archive")
        )
    return found


def has_nvidia(facts: Facts) -> bool:
    """Is NVIDIA's repository, or a mirror of it, one of apt's sources already?"""
    return any(one["kind"] in ("nvidia", "nvidia-mirror") for one in facts["apt"]["sources"])


def exact_module(name: str, facts: Facts) -> str:
    """linux-modules-nvidia-580-server-open-generic -> the one of the kernel that starts next."""
    kernel = kernel_flavour(facts)
    return f"{name.removesuffix(kernel)}{facts['kernel']['next']}" if kernel else name


def set_of(facts: Facts, wanted: Wishes) -> str:
    """A desktop on the NVIDIA card needs its drawing libraries, too."""
    if wanted["driver_set"] != "auto":
        return str(wanted["driver_set"])
    shows = any(gpu["boot_vga"] for gpu in facts["gpus"]) or not facts["other_gpus"]
    return "desktop" if facts["system"]["desktop"] and facts["gpus"] and shows else "compute"


# --- what is installed already ---------------------------------------------------------------------------------------


def driver_packages(facts: Facts) -> list[str]:
    return [name for name in facts["installs"]["packages"] if DRIVER_PACKAGE.match(name)]


def half_done(facts: Facts) -> list[str]:
    return [name for name in facts["installs"]["broken"] if DRIVER_PACKAGE.match(name)]


def branch_of(version: str) -> int:
    return numbers(version)[0]


def installed_version(facts: Facts) -> str | None:
    """Of the userland: what has to agree with the loaded module."""
    for name in sorted(driver_packages(facts)):
        if re.match(r"libnvidia-compute|libcuda1$|nvidia-utils|nvidia-driver-cuda$|libnvidia-ml1$", name):
            found = re.search(r"\d{3}\.\d+(?:\.\d+)?", facts["installs"]["packages"][name])
            if found:
                return found.group()
    return None


def installed_branch(facts: Facts) -> int | None:
    version = installed_version(facts)
    return branch_of(version) if version else None


def installed_source(facts: Facts) -> str | None:
    installed = facts["installs"]["packages"]
    found = " ".join(driver_packages(facts))
    if "linux-modules-nvidia-" in found:
        return "ubuntu-signed"
    of_nvidia = re.search(
        r"nvidia-driver-pinning|nvidia-driver-cuda|nvidia-kernel-open-dkms|nvidia-dkms(-open)?( |$)", found
    )
    if of_nvidia or (
        has_nvidia(facts) and any(NVIDIAS_UBUNTU.search(installed[name]) for name in driver_packages(facts))
    ):
        return "mirror" if any(one["kind"] == "nvidia-mirror" for one in facts["apt"]["sources"]) else "nvidia"
    if re.search(r"nvidia-(open-)?kernel-dkms", found) and facts["system"]["id"] == "debian":
        return "debian"
    return "ubuntu-dkms" if any("ubuntu" in installed[name] for name in driver_packages(facts)) else None


def numbers(version: str) -> list[int]:
    """Upstream's part: 550.163.01-2 -> 550, 163, 1; 6.12.107+deb13-amd64 -> 6, 12, 107."""
    return [int(part) for part in re.findall(r"\d+", re.split(r"[-+~]", version.partition(":")[2] or version)[0])]
