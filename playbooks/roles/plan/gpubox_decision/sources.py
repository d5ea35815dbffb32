"""PURE: what apt is told besides: the texts of our files in /etc/apt. "" is a file that is not to be there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpubox_decision.cards import problem
from gpubox_decision.packages import installed_source, system_key
from gpubox_decision.tables import SYSTEMS, Facts, Wishes

REPOSITORY = "/etc/apt/sources.list.d/gpubox-cuda.sources"
COMPONENTS = "/etc/apt/sources.list.d/gpubox-components.sources"
KEY = "/etc/apt/keyrings/gpubox-cuda.asc"
LABEL = "NVIDIA CUDA"  # what NVIDIA's repository calls itself, and a mirror of it
DRIVER_GLOBS = "nvidia-* libnvidia-* *-nvidia-* lib*-nvidia0 xserver-xorg-video-nvidia* cuda-drivers* libcuda1 " \
    "libcudadebugger1 libnvcuvid1 libnvoptix1 libxnvctrl0"  # fmt: skip
HEAD = "# gpubox writes this file, and removes it when it is not needed.\n"


def sources(facts: Facts, wanted: Wishes, source: str, branch: int | None, toolkits: Sequence[str]) -> dict[str, Any]:
    """source, branch: of the driver. -> url (of NVIDIA's repository, None where nothing comes from there), key_url,
    fingerprints, repository, components, preferences (texts)."""
    whose = installed_source(facts) if source == "keep" else source
    theirs = whose in ("nvidia", "mirror")
    ours = any(one["file"] == REPOSITORY for one in facts["apt"]["sources"])
    needed = bool(toolkits) or source in ("nvidia", "mirror") or (theirs and ours)
    found = {"url": None, "key_url": None, "fingerprints": [], "repository": ""}
    if needed and system_key(facts) in SYSTEMS["systems"]:
        found = _repository(facts, wanted)
    near = bool(found["url"]) or bool(_foreign(facts))
    return {
        **found,
        "components": _components(facts, components_of(facts, whose)),
        "preferences": HEAD + _pins(facts, branch, theirs) if near else "",
    }


def _repository(facts: Facts, wanted: Wishes) -> dict[str, Any]:
    """Ours, unless the owner has it in a source already: apt takes no address twice with different keys."""
    table, system = SYSTEMS["nvidia"], SYSTEMS["systems"][system_key(facts)]
    place = table["folders"].get(facts["system"]["architecture"], facts["system"]["architecture"])
    url = _folder(wanted["nvidia_repository_url"] or f"{table['url']}/{system['repository']}/{place}")
    there = any(_folder(one["url"]) == url for one in facts["apt"]["sources"] if one["file"] != REPOSITORY)
    text = f"{HEAD}Types: deb\nURIs: {url}\nSuites: /\nSigned-By: {KEY}\n"
    return {
        "url": url,
        "key_url": wanted["nvidia_key_url"] or url + system["key"],
        "fingerprints": list(wanted["nvidia_key_fingerprints"] or [table["keys"][system["key"]]]),
        "repository": "" if there else text,
    }


def _folder(url: str) -> str:
    return url.rstrip("/") + "/"


def _foreign(facts: Facts) -> list[str]:
    """The owner's own sources of NVIDIA's repository."""
    found = [one for one in facts["apt"]["sources"] if one["kind"] in ("nvidia", "nvidia-mirror")]
    return [one["file"] for one in found if one["file"] != REPOSITORY]


# --- which version wins ----------------------------------------------------------------------------------------------


def _pins(facts: Facts, branch: int | None, theirs: bool) -> str:
    """The first record that fits a version decides. Names of packages, since apt pins no version of everything."""
    nvidia = f"release l={LABEL}"
    if theirs:
        rows = [
            (f"The driver is NVIDIA's, branch {branch}.", DRIVER_GLOBS, f"version {branch}.*", 1001),
            ("Its other branches come only where nothing else can.", DRIVER_GLOBS, nvidia, 90),
        ]
        if facts["system"]["id"] == "ubuntu":  # whose archive has the same branches
            rows.insert(0, ("The driver does not come from here.", DRIVER_GLOBS, "release o=Ubuntu", 100))
    else:
        rows = [
            ("The driver does not come from here.", DRIVER_GLOBS, nvidia, -1),
            ("Toolkits do.", "*", nvidia, 100),
        ]
    records = [
        f"Explanation: {why}\nPackage: {names}\nPin: {pin}\nPin-Priority: {at}\n" for why, names, pin, at in rows
    ]
    return "\n".join(records)


# --- Debian's components ---------------------------------------------------------------------------------------------


def components_of(facts: Facts, source: str | None) -> list[str]:
    """Those that packages of this source come from, or lean on."""
    return list(SYSTEMS["components"].get(source, ())) if facts["system"]["id"] == "debian" else []


def _components(facts: Facts, wanted: Sequence[str]) -> str:
    """A paragraph for each of the machine's own sources of Debian that lacks some: same mirror, suite and key."""
    if not wanted:
        return ""
    paragraphs = []
    for source in debian_sources(facts, wanted):
        for suite in source["suites"]:
            missing = [name for name in wanted if name not in _enabled(facts, source["url"], suite)]
            if missing:
                paragraphs.append(_paragraph(source, suite, missing))
    return HEAD + "\n".join(dict.fromkeys(paragraphs)) if paragraphs else ""


def no_components(facts: Facts, source: str) -> list[dict[str, str]]:
    """The problem of a Debian that has no source to add them to."""
    wanted = components_of(facts, source)
    if not wanted or not facts["apt"]["sources"] or any(debian_sources(facts, wanted)):
        return []
    return [
        problem(
            "components-not-found",
            f"Of apt's sources, none has Debian's {facts['system']['codename']} with {' '.join(wanted)}.",
            "The driver's packages come from there, or lean on packages from there.",
            "Add these components to a source of this machine, sudo apt update, and run this again.",
        )
    ]


def debian_sources(facts: Facts, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Those of the release's own suites that have these components: the lists say so, or else Debian's own key does."""
    suites = {f"{name}{kind}" for name in (facts["system"]["codename"], "stable") for kind in SUITES}
    for source in facts["apt"]["sources"]:
        here = [suite for suite in source["suites"] if suite in suites]
        if source["file"] == COMPONENTS or "main" not in source["components"]:
            continue
        able = [suite for suite in here if _has(facts, source, suite, wanted)]
        if able:
            yield {**source, "suites": able}


SUITES = ("", "-updates", "-security")


def _has(facts: Facts, source: Mapping[str, Any], suite: str, wanted: Sequence[str]) -> bool:
    listed = facts["apt"]["released"].get(list_name(source["url"], suite))
    if listed is not None:
        return set(wanted) <= set(listed)
    return "debian-archive-keyring" in source["options"].get("signed-by", "debian-archive-keyring")


def list_name(url: str, suite: str) -> str:
    """As apt calls its lists of an address and suite."""
    place = re.sub(r"^\w+(\+\w+)*:(//)?([^/@]*@)?", "", f"{_folder(url)}dists/{suite}")
    return re.sub(r"[\\|{}\[\]<>\"^~_=!@#$%&*]", lambda one: f"%{ord(one.group()):02x}", place).replace("/", "_")


def _enabled(facts: Facts, url: str, suite: str) -> set[str]:
    return {
        name
        for one in facts["apt"]["sources"]
        if one["file"] != COMPONENTS and _folder(one["url"]) == _folder(url) and suite in one["suites"]
        for name in one["components"]
    }


def _paragraph(source: Mapping[str, Any], suite: str, components: Sequence[str]) -> str:
    rows = {"Types": "deb", "URIs": source["url"], "Suites": suite, "Components": " ".join(components)}
    options = {
        "-".join(word.capitalize() for word in name.split("-")): text for name, text in source["options"].items()
    }
    return "".join(f"{name}: {text}\n" for name, text in {**rows, **options}.items())
