"""PURE: the decision about the driver, with its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpubox_decision.cards import Need, need_of, problem, series
from gpubox_decision.choices import Choice, against, choices_of, goes
from gpubox_decision.packages import (
    branch_of,
    driver_packages,
    exact_headers,
    half_done,
    installed_source,
    installed_version,
    set_of,
    table_of,
)
from gpubox_decision.sources import components_of
from gpubox_decision.tables import GOOD_BRANCH, SYSTEMS, TORCH_FOR_CUDA_12, Facts, Wishes

HELD = ("nvidia-", "libnvidia-", "linux-modules-nvidia-", "linux-objects-nvidia-", "linux-signatures-nvidia-", "cuda-",
        "libcuda", "xserver-xorg-video-nvidia")  # fmt: skip
HELD_WITH_KERNEL = ("linux-image-", "linux-headers-", "linux-modules-", "linux-generic")
NO_JOBS = {"nvidia-persiste", "Xorg", "Xwayland", "gnome-shell", "kwin_wayland", "kwin_x11", "sddm-greeter", "gdm3"}
NO_SOURCE = "That source has nothing for this system."
SOURCE_NAMES = {
    "ubuntu-signed": "Ubuntu's prebuilt and signed modules",
    "ubuntu-dkms": "Ubuntu's packages, built here",
    "debian": "Debian's own packages, built here",
    "nvidia": "NVIDIA's repository, built here",
    "mirror": "your mirror of NVIDIA's repository, built here",
}


@dataclass
class Driver:
    """The decision, as later roles read it."""

    source: str
    flavour: str | None = None
    branch: int | None = None
    version: str | None = None  # known only where apt or the table says it
    set: str | None = None
    packages: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)  # installed where the source has them
    remove: list[str] = field(default_factory=list)
    repair: list[str] = field(default_factory=list)  # packages that dpkg left half done
    pinned: str | None = None
    held: list[str] = field(default_factory=list)  # what unattended upgrades leave alone, as beginnings of names
    components: list[str] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)  # ways to take where this one fails: source, branch
    takes_others: bool = False  # else they are offered
    mok: str = "not needed"  # not needed, enrolled, pending, to enrol
    reboot: bool = False
    reason: list[str] = field(default_factory=list)


def decide(facts: Facts, wanted: Wishes, cards: list[dict[str, Any]]) -> tuple[Driver, list[dict[str, str]]]:
    why_not = _why_no_driver(facts, wanted, cards)
    if why_not:
        return Driver("none", reason=[why_not]), []
    need = need_of([card for card in cards if card["used"]], wanted)
    kept = _kept(facts, wanted, need)
    if kept:
        return kept, []
    choices = list(choices_of(facts, wanted, need))
    able = [choice for choice in choices if not choice.against]
    if not able:
        return Driver("none", reason=against(choices) or [NO_SOURCE]), [
            _impossible(facts, wanted, cards, need, choices)
        ]
    chosen = next((choice for choice in able if choice.branch >= GOOD_BRANCH), able[0])
    driver = _decided(facts, wanted, need, chosen, choices)
    return driver, in_use(facts, driver.packages, driver.remove)


def _why_no_driver(facts: Facts, wanted: Wishes, cards: list[dict[str, Any]]) -> str:
    machine = facts["system"]["machine"]
    if wanted["driver_source"] == "none":
        return "The driver is left to you, as you said."
    if machine["kind"] == "wsl":
        return "Under WSL the driver is the one of Windows."
    if wanted["driver_without_gpu"]:
        return ""
    if not cards:
        return "There is no NVIDIA GPU here: the box takes CPU jobs, and a driver comes with a rerun once there is one."
    if not any(card["used"] for card in cards):
        return "No GPU here can be used: " + "; ".join(f"{card['name']}: {card['why']}" for card in cards) + "."
    if machine["kind"] == "container":
        return f"This is a container ({machine['name']}): the driver belongs to its host's kernel."
    return ""


def _kept(facts: Facts, wanted: Wishes, need: Need) -> Driver | None:
    """The driver that is here, where it works, fits the cards and is good enough."""
    loaded, installed = facts["driver"]["version"], installed_version(facts)
    if not loaded or half_done(facts):
        return None
    branch = branch_of(loaded)
    source, flavour = installed_source(facts), facts["driver"]["flavour"]
    wished = wanted["driver_branch"]
    fits = (
        (branch >= GOOD_BRANCH if wished == "auto" else branch == int(wished))
        and need.first <= branch <= (need.last or branch)
        and (flavour is None or flavour in need.flavours)
        and wanted["driver_source"] in ("auto", source)
        and (installed is None or branch_of(installed) == branch)
    )
    if not fits:
        return None
    reason = [f"Driver {loaded} is loaded and good for {'these cards' if need.first else 'this box'}: it stays."]
    pending = installed is not None and installed != loaded
    if pending:
        reason.append(
            f"{loaded} is loaded, {installed} is installed: jobs keep running, new ones fail until a restart."
        )
    return Driver(
        "keep", flavour, branch, loaded, held=_held(source), pinned=f"{branch}.*", reboot=pending, reason=reason
    )


def _decided(facts: Facts, wanted: Wishes, need: Need, chosen: Choice, choices: Sequence[Choice]) -> Driver:
    before = choices[: choices.index(chosen)]
    installed = set(driver_packages(facts))
    here = set(chosen.packages) <= set(facts["installs"]["packages"])
    driver = Driver(
        chosen.source,
        chosen.flavour,
        chosen.branch,
        chosen.version,
        set_of(facts, wanted),
        list(chosen.packages),
        _optional(facts, chosen),
        sorted(name for name in installed if goes(name, facts, chosen)),
        half_done(facts),
        f"{chosen.branch}.*",
        _held(chosen.source),
        components_of(facts, chosen.source),
        _others(facts, wanted, need, chosen),
        wanted["driver_source"] == "auto",
        _mok(facts, chosen.source),
        bool(facts["gpus"])  # without a card the module does not load, however often
        and facts["system"]["machine"]["kind"] != "container"
        and not (here and facts["driver"]["version"]),
    )
    driver.reason = [*need.reasons, *against(before), *_too_old(before), *_why(facts, wanted, need, driver, here)]
    return driver


def _optional(facts: Facts, chosen: Choice) -> list[str]:
    known = list(SYSTEMS["optional"].get(table_of(facts, chosen.source, chosen.branch), ()))
    return known if chosen.source == "ubuntu-signed" else [*known, *exact_headers(facts)]


def _others(facts: Facts, wanted: Wishes, need: Need, chosen: Choice) -> list[dict[str, Any]]:
    """The best first. Those that are taken have the branch that is wished; those that are offered need not."""
    branch = wanted["driver_branch"] if wanted["driver_source"] == "auto" else "auto"
    freely = {**wanted, "driver_source": "auto", "driver_branch": branch}
    free = [one for one in choices_of(facts, freely, need) if not one.against]
    ways = [one for one in free if (one.source, one.branch) != (chosen.source, chosen.branch)]
    return [
        {"source": one.source, "branch": one.branch, "name": f"{SOURCE_NAMES[one.source]}, branch {one.branch}"}
        for one in sorted(ways, key=lambda one: one.branch < GOOD_BRANCH)
    ]


def _too_old(choices: Sequence[Choice]) -> list[str]:
    """Those that could be had, but that today's PyTorch does not run on."""
    return [
        f"{SOURCE_NAMES[choice.source]}: branch {choice.branch} could be had, but PyTorch's wheels (CUDA 13) need "
        f"{GOOD_BRANCH} or newer."
        for choice in choices
        if not choice.against
    ]


def _why(facts: Facts, wanted: Wishes, need: Need, driver: Driver, here: bool) -> list[str]:
    known = f" ({driver.version})" if driver.version else ""
    said = [f"{SOURCE_NAMES[driver.source]}: branch {driver.branch}{known}, {driver.flavour} modules."]
    assert driver.branch is not None
    if driver.branch < GOOD_BRANCH:
        cuda = SYSTEMS["cuda_of_branch"].get(str(driver.branch), "12")
        said.append(
            f"Branch {driver.branch} carries CUDA {cuda}: today's PyTorch (CUDA 13) needs {GOOD_BRANCH} or newer, so "
            f"jobs must ask for wheels of CUDA 12.6, which end with PyTorch {TORCH_FOR_CUDA_12}. {_newer_ways(facts)}"
        )
    elif driver.branch != SYSTEMS["branch"]["preferred"][0] and wanted["driver_branch"] == "auto":
        said.append(f"{SYSTEMS['branch']['preferred'][0]}, which is supported longer, can't be had this way.")
    if driver.flavour == "open" and need.flavours == ("open",) and need.first:
        said.append("These cards run with the open modules only.")
    if driver.source == "ubuntu-signed":
        said.append("They need no compiler, and load under Secure Boot without a key of your own.")
    said += _secure_boot(facts, driver.mok)
    if driver.repair:
        said.append(f"dpkg left {series(driver.repair)} half done: that is repaired first.")
    if driver.remove:
        said.append("What is removed comes from another source, branch or flavour; the two don't go together.")
    if here and driver.reboot:
        said.append("Its packages are installed; the module is loaded with the next start.")
    elif driver.reboot:
        said.append("The computer restarts once, to load it.")
    return said


def _newer_ways(facts: Facts) -> str:
    other = " or Debian's backports" if facts["system"]["id"] == "debian" else ""
    return f"A newer one comes from NVIDIA's repository (gpubox_driver_source: nvidia){other}, where it has one."


def _secure_boot(facts: Facts, mok: str) -> list[str]:
    boot = facts["secure_boot"]
    sure = "is on" if boot["state"] == "on" else "can't be read, and may be on"
    return {
        "to enrol": [
            f"Secure Boot {sure}: modules built here load only when their key is enrolled. That takes a screen and a "
            "USB keyboard at the next start, within ten seconds, and is remembered."
        ],
        "pending": [
            "The key waits to be enrolled: have a screen and a keyboard at the next start, and choose Enroll MOK."
        ],
        "enrolled": [f"Secure Boot {sure}, and this machine's key is enrolled: modules built here load."],
    }.get(mok, [])


def _mok(facts: Facts, source: str) -> str:
    boot = facts["secure_boot"]
    if source == "ubuntu-signed" or boot["state"] == "off" or not boot["validation"]:
        return "not needed"
    if boot["mok"]["enrolled"]:
        return "enrolled"
    return "pending" if boot["mok"]["pending"] else "to enrol"


def _held(source: str | None) -> list[str]:
    """A kernel may not come alone where its module is a package of its own."""
    return [*HELD, *(HELD_WITH_KERNEL if source == "ubuntu-signed" else ())]


def users(facts: Facts) -> list[str]:
    """Who computes on a GPU, with its number."""
    return [f"{one['name']} ({one['pid']})" for one in facts["driver"]["holders"] if one["name"] not in NO_JOBS]


def in_use(facts: Facts, packages: Sequence[str], remove: Sequence[str]) -> list[dict[str, str]]:
    """Never a driver out from under a job."""
    holders = users(facts)
    changes = set(packages) - set(facts["installs"]["packages"]) or remove
    if not holders or not changes or not facts["driver"]["version"]:
        return []
    named = series(holders[:4])
    return [
        problem(
            "driver-in-use",
            f"The driver would change from {facts['driver']['version']} while {named} uses a GPU.",
            "New CUDA processes fail between that change and the restart, and a restart ends jobs.",
            "Wait for them or end them, then run this again; `ansible-playbook playbooks/upgrade.yml` drains a box.",
        )
    ]


def _impossible(
    facts: Facts, wanted: Wishes, cards: list[dict[str, Any]], need: Need, choices: Sequence[Choice]
) -> dict[str, str]:
    broken = any(choice.broken for choice in choices)
    free = {"driver_source": "auto", "driver_branch": "auto", "driver_flavour": "auto"}
    ways = []
    if any(wanted[name] != value for name, value in free.items()):
        other, problems = decide(facts, {**wanted, **free}, cards)
        if not [one for one in problems if one["id"] != "driver-in-use"] and other.source != "none":
            source = SOURCE_NAMES.get(other.source, "what is here")
            ways.append(f"leave the choice to gpubox (auto): {source}, branch {other.branch}, {other.flavour} modules")
    if broken and (older := _kernels_that_build(facts, wanted, need)):
        ways.append(f"start {older[-1]}, for which it builds, and hold that kernel")
    if broken and facts["installs"]["failed_builds"]:
        ways.append("have it tried again: sudo rm /etc/gpubox/failed-builds.json")
    if wanted["offline"]:
        ways.append("name a mirror (gpubox_nvidia_repository_url)")
    ways.append("bring a driver yourself and set gpubox_driver_source: none")
    return problem(
        "driver-does-not-build" if broken else "driver-not-available",
        "No driver can be had here as wished." if not broken else "The driver that is wished does not build here.",
        " ".join(against(choices)) or NO_SOURCE,
        "One of: " + "; ".join(ways) + ".",
    )


def _kernels_that_build(facts: Facts, wanted: Wishes, need: Need) -> list[str]:
    able = []
    for one in facts["kernel"]["installed"]:
        kernel = {**facts["kernel"], "running": one["release"], "next": one["release"], "installed": [one]}
        alone = {**facts, "kernel": kernel, "apt": _without_kernels(facts["apt"])}
        if any(not choice.against for choice in choices_of(alone, wanted, need)):
            able.append(one["release"])
    return able


def _without_kernels(apt: Mapping[str, Any]) -> dict[str, Any]:
    offers = {name: version for name, version in apt["offers"].items() if not name.startswith("linux-headers-")}
    return {**apt, "offers": offers}
