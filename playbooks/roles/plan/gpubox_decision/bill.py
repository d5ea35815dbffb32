"""PURE: what apt says, read; and the plan as a person reads it: what, why, how large, and is there a restart."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

from gpubox_decision.tables import Facts

WIDTH = 110
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
SIZE = r"([\d.,]+) ([kMG]?B)"


def offers(policy: str) -> dict[str, str]:
    """`apt-cache policy NAMES`, in the C locale -> name: the version that apt would install."""
    found = re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (.*)$", policy, re.M)
    return {name: version for name, version in found if version != "(none)"}


def versions(policy: str) -> dict[str, list[str]]:
    """The same -> name: all versions that apt's sources have, the newest first, whichever of them a pin prefers."""
    found = {}
    for name, table in re.findall(r"^(\S+):\n(?:  \S.*\n)+((?: {4,}.*\n?| \*{3} .*\n?)+)", policy, re.M):
        rows = re.findall(r"^ (?:\*{3}| {3}) (\S+) -?\d+\n((?: {8,}.*(?:\n|$))+)", table, re.M)
        offered = [version for version, places in rows if re.search(r"\d (?!/var/lib/dpkg/status)\S", places)]
        if offered:
            found[name] = offered
    return found


def simulation(said: str) -> dict[str, Any]:
    """What `apt-get install --assume-no` said, in the C locale -> download_bytes, disk_bytes (None: it did not say),
    removes (names), impossible (its own words, or "")."""
    download = re.search(rf"^Need to get (?:{SIZE}/)?{SIZE} of archives", said, re.M)
    disk = re.search(rf"^After this operation, {SIZE} (of additional|disk space will be freed)", said, re.M)
    removes = re.search(r"^The following packages will be REMOVED:\n((?:  .*\n)+)", said, re.M)
    trouble = re.search(r"^(E: .*|The following packages have unmet dependencies:(?:\n .*)+)", said, re.M)
    fetched = (download[1] or download[3], download[2] or download[4]) if download else None
    return {
        "download_bytes": _bytes(*fetched) if fetched else None,
        "disk_bytes": None if not disk else _bytes(disk[1], disk[2]) * (1 if disk[3] == "of additional" else -1),
        "removes": removes[1].replace("*", "").split() if removes else [],
        "impossible": trouble[1] if trouble and not download else "",
    }


def _bytes(number: str, unit: str) -> int:
    return round(float(number.replace(",", "")) * UNITS[unit])


def bill(plan: Mapping[str, Any], facts: Facts, apt: Mapping[str, Any] | None = None) -> list[str]:
    """The lines that are printed. apt: what simulation() read, where apt could be asked."""
    system, driver = facts["system"], plan["driver"]
    lines = [f"{system['name']}, {system['architecture']}, kernel {facts['kernel']['running']}"]
    lines += [f"  {card['name']} ({card['kind']}, {card['address']})" for card in plan["cards"]] or ["  no NVIDIA GPU"]
    lines += _item("Driver", _title(driver), driver["reason"])
    lines += _names("  installs", driver["packages"]) + _names("  removes", _removed(driver, apt))
    if apt and apt["impossible"] and driver["source"].startswith("ubuntu"):  # elsewhere the source is not set up yet
        lines += _wrapped("  apt says: " + " ".join(apt["impossible"].split()))
    lines += _item("PyTorch", f"{plan['torch']['wheels']} wheels", plan["torch"]["reason"])
    lines += _item("CUDA", ", ".join(plan["cuda"]["versions"]) or "no toolkit", plan["cuda"]["reason"])
    lines += _item("Containers", plan["containers"]["engine"], plan["containers"]["reason"])
    lines += _item("Python", plan["python"]["source"], plan["python"]["reason"])
    lines += _item("Size", _size(plan, apt), [])
    lines += _item("Restart", "yes, once" if driver["reboot"] else "no", [])
    for notice in plan["notices"]:
        lines += _wrapped("Note: " + notice)
    for problem in plan["problems"]:
        lines += _wrapped(f"NOT POSSIBLE ({problem['id']}): {problem['what']} {problem['why']}")
        lines += _wrapped("Next: " + problem["next"])
    return lines


def _title(driver: Mapping[str, Any]) -> str:
    if driver["source"] == "none":
        return "none"
    if driver["source"] == "keep":
        return f"{driver['version']} stays"
    return f"{driver['source']} {driver['version'] or driver['branch']}, {driver['flavour']} modules, {driver['set']}"


def _removed(driver: Mapping[str, Any], apt: Mapping[str, Any] | None) -> list[str]:
    return sorted({*driver["remove"], *(apt["removes"] if apt else ())})


def _size(plan: Mapping[str, Any], apt: Mapping[str, Any] | None) -> str:
    said = f"about {plan['sizes']['all'] / (1 << 30):.0f} GiB on disk in all"
    if apt and apt["download_bytes"] is not None:
        said += f"; driver: {_short(apt['download_bytes'])} to download, {_short(apt['disk_bytes'] or 0)} on disk"
    elif plan["driver"]["packages"]:
        said += "; the driver's download is known once its source is set up"
    return said


def _short(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if abs(size) >= 10**9 else f"{size / 1e6:.0f} MB"


def _item(name: str, title: str, reasons: list[str]) -> list[str]:
    return [f"{name}: {title}", *(line for reason in reasons for line in _wrapped("  " + reason))]


def _names(title: str, packages: list[str]) -> list[str]:
    return _wrapped(f"{title}: {' '.join(packages)}") if packages else []


def _wrapped(text: str) -> list[str]:
    inner = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.wrap(text, WIDTH, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False)
