"""PURE: the ways to a driver, each with what is against it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpubox_decision.cards import Need
from gpubox_decision.packages import (
    CHOSEN_PACKAGE,
    branch_of,
    exact_module,
    has_nvidia,
    headers,
    installed_source,
    kernel_flavour,
    numbers,
    of_branch,
    offered,
    packages_of,
    system_key,
    version_of,
)
from gpubox_decision.tables import BREAKAGES, OPEN_FROM, SYSTEMS, Facts, Wishes


@dataclass(frozen=True)
class Choice:
    """One way to a driver; against: why it can't be taken."""

    source: str
    branch: int
    version: str | None = None
    flavour: str = ""
    packages: tuple[str, ...] = ()
    against: str = ""
    broken: bool = False  # against it is that it does not build


def choices_of(facts: Facts, wanted: Wishes, need: Need) -> Iterator[Choice]:
    """In the order in which they are liked: signed modules, the distribution's, NVIDIA's."""
    ubuntu = facts["system"]["id"] == "ubuntu"
    theirs = "mirror" if wanted["nvidia_repository_url"] else "nvidia"
    if wanted["driver_source"] not in ("auto", "mirror", "nvidia"):
        sources: tuple[str, ...] = (wanted["driver_source"],)
    elif wanted["driver_source"] == "auto":
        sources = ("ubuntu-signed", "ubuntu-dkms", theirs) if ubuntu else ("debian", theirs)
    else:
        sources = (wanted["driver_source"],)
    for source in sources:
        for branch in _branches(facts, wanted, source):
            yield _weighed(facts, wanted, need, source, branch)


def _branches(facts: Facts, wanted: Wishes, source: str) -> list[int]:
    system = SYSTEMS["systems"].get(system_key(facts), {})
    if source == "debian":
        archive = offered(facts, "nvidia-kernel-dkms") or system.get("archive")
        return [branch_of(archive)] if archive else []
    if wanted["driver_branch"] != "auto":
        return [int(wanted["driver_branch"])]
    listed = SYSTEMS["nvidia"]["branches"] if source in ("nvidia", "mirror") else SYSTEMS["branch"]["preferred"]
    return [int(branch) for branch in listed]


def _weighed(facts: Facts, wanted: Wishes, need: Need, source: str, branch: int) -> Choice:
    flavour = _flavour(need, branch)
    packages = packages_of(facts, wanted, source, branch, flavour or "open")
    version = version_of(facts, source, branch, packages)
    against, broken = _objection(facts, wanted, need, Choice(source, branch, version, flavour or "", packages)), False
    if not against:
        against = _breakage(facts, source, branch, version, flavour or "")
        broken = bool(against)
    return Choice(source, branch, version, flavour or "", packages, against, broken)


def _flavour(need: Need, branch: int) -> str | None:
    """Open from 560 on, where all cards can; the proprietary modules end with 610."""
    liked = need.flavours if branch >= OPEN_FROM else tuple(reversed(need.flavours))
    able = [one for one in liked if one != "proprietary" or branch <= SYSTEMS["nvidia"]["proprietary_until"]]
    return able[0] if able else None


def _objection(facts: Facts, wanted: Wishes, need: Need, choice: Choice) -> str:
    system, source, branch = facts["system"], choice.source, choice.branch
    whose = {"debian": "Debian's own driver", "nvidia": "NVIDIA's repository", "mirror": "your mirror"}.get(
        source, "Ubuntu's archive"
    )
    if source.split("-")[0] in ("ubuntu", "debian") and source.split("-")[0] != system["id"]:
        return f"{source} is not for {system['name']}."
    if wanted["driver_branch"] != "auto" and branch != int(wanted["driver_branch"]):
        return f"{whose} is branch {branch}, not {wanted['driver_branch']}."
    if branch < need.first:
        return f"{whose} has branch {branch}, but {need.first_because}."
    if need.last and branch > need.last:
        return f"{whose} has branch {branch}, but {need.last_because}."
    if not choice.flavour:
        return f"Branch {branch} has no modules of a flavour that these cards and wishes allow."
    if source == "nvidia" and wanted["offline"]:
        return "NVIDIA's repository can't be reached from here."
    if source in ("nvidia", "mirror") and system["architecture"] not in SYSTEMS["nvidia"]["architectures"].get(
        system["id"], ()
    ):
        return f"NVIDIA's repository has nothing for {system['id']} on {system['architecture']}."
    if source == "ubuntu-signed" and not kernel_flavour(facts):
        return f"There are no prebuilt modules for the kernel {facts['kernel']['next']}."
    if source != "ubuntu-signed" and not headers(facts):
        return f"Modules would have to be built, but {facts['kernel']['next']} is no kernel of {system['name']}: " \
            "its headers can't be installed."  # fmt: skip
    missing = _missing(facts, source, choice)
    return f"{whose} has no {missing}." if missing else ""


def _missing(facts: Facts, source: str, choice: Choice) -> str | None:
    """A package that is not there, as far as apt or the table knows."""
    apt = facts["apt"]
    if source.startswith("ubuntu"):
        listed = SYSTEMS["systems"].get(system_key(facts), {}).get("branches", [])
        if not (apt["lists"] and apt["offers"]):
            return None if choice.branch in listed else f"branch {choice.branch}"
        exact = [exact_module(name, facts) for name in choice.packages if name.startswith("linux-modules-nvidia")]
        asked: tuple[str, ...] = (*choice.packages, *exact)
    elif source in ("nvidia", "mirror") and has_nvidia(facts) and apt["offers"]:
        ours = [name for name in choice.packages if CHOSEN_PACKAGE.match(name)]
        if not any(offered(facts, name) for name in ours if name != "nvidia-kernel-dkms"):  # which Debian has, too
            return None  # its lists were not read yet: a run stopped before that
        lacking = next((name for name in ours if not of_branch(facts, name, choice.branch)), None)
        if lacking:
            return f"{lacking} of branch {choice.branch}"
        asked = choice.packages
    else:
        return None
    return next((name for name in asked if not offered(facts, name)), None)


def _breakage(facts: Facts, source: str, branch: int, version: str | None, flavour: str) -> str:
    if source == "ubuntu-signed":
        return ""
    for pair in BREAKAGES["pairs"]:
        if source not in pair["source"] or not _affected(pair, version, flavour):
            continue
        for release in _build_kernels(facts):
            if any(_between(release, first, last) for first, last in pair["kernels"]):
                name = "Debian's own driver" if source == "debian" else "The driver"
                return f"{name} {version or branch} does not build for the kernel {release}: {pair['why']}."
    for one in facts["installs"]["failed_builds"]:
        same = (one["source"], one["branch"], one["flavour"]) == (source, branch, flavour)
        if same and version in (None, one["version"]) and one["kernel"] in _build_kernels(facts):
            which = f"Branch {branch} ({one['version']}, {flavour} modules)"
            return f"{which} did not build here for the kernel {one['kernel']}: {one['why']}."
    return ""


def _affected(pair: Mapping[str, Any], version: str | None, flavour: str) -> bool:
    """Without a version it is the newest of its branch, which is mended."""
    if version is None or flavour not in pair.get("flavours", [flavour]):
        return False
    if "versions" in pair:
        return version in pair["versions"]
    return _between(version, pair["from"], pair["below"])


def _between(version: str, first: str, last: str | None) -> bool:
    number = numbers(version)
    return numbers(first) <= number and (last is None or number < numbers(last))


def _build_kernels(facts: Facts) -> list[str]:
    """Those that DKMS would build for: with headers, the next one, and the one that comes with the headers."""
    kernel = facts["kernel"]
    found = [one["release"] for one in kernel["installed"] if one["headers"]]
    if kernel["installed"] or facts["system"]["machine"]["kind"] != "container":
        found.append(kernel["next"])
    coming = offered(facts, headers(facts) or "")
    return list(dict.fromkeys([*found, *([coming] if coming else [])]))


def against(choices: Sequence[Choice]) -> list[str]:
    return list(dict.fromkeys(choice.against for choice in choices if choice.against))


def goes(name: str, facts: Facts, chosen: Choice) -> bool:
    """Does an installed package stand against the chosen ones? Libraries leave by themselves."""
    if not CHOSEN_PACKAGE.match(name) or name in chosen.packages:
        return False
    version = re.search(r"\d{3}\.", facts["installs"]["packages"][name])
    other_branch = bool(version) and int(version.group()[:-1]) != chosen.branch if version else False
    twin = {one.replace("-open", "") for one in chosen.packages}
    return other_branch or installed_source(facts) != chosen.source or name.replace("-open", "") in twin
