"""PURE: what a computer will be made into, decided once from what it is and what is wished. Nothing is run, and nothing
read but three tables; later roles follow this and decide nothing of their own."""

from __future__ import annotations

from typing import Any

from gpubox_decision.bill import bill, offers, simulation, versions
from gpubox_decision.cards import cards_of, need_of
from gpubox_decision.choices import choices_of
from gpubox_decision.driver import decide, in_use, users
from gpubox_decision.packages import exact_headers, exact_module, image, installed_branch
from gpubox_decision.sources import no_components, sources
from gpubox_decision.stack import containers, cuda, notices, python, sizes, torch
from gpubox_decision.tables import Facts, Wishes

__all__ = ["DEFAULTS", "bill", "in_use", "names", "offers", "plan", "simulation", "users", "versions"]

DEFAULTS: Wishes = {
    "driver_source": "auto",  # auto, ubuntu-signed, ubuntu-dkms, debian, nvidia, mirror, none
    "driver_flavour": "auto",  # auto, open, proprietary
    "driver_branch": "auto",  # auto or a number
    "driver_set": "auto",  # auto, compute, desktop
    "driver_without_gpu": False,
    "ignored_gpus": (),  # PCI addresses
    "nvidia_repository_url": "",  # a mirror of NVIDIA's repository: the folder that holds its InRelease
    "nvidia_key_url": "",  # "": beside it
    "nvidia_key_fingerprints": (),  # (): NVIDIA's own, from the table
    "offline": False,
    "cuda": (),  # toolkit versions
    "containers": "podman",  # podman, docker, none
}


def plan(facts: Facts, wishes: Wishes | None = None) -> dict[str, Any]:
    """-> cards, driver, sources, sources_before (for the driver that is here now), cuda, torch, containers, python,
    sizes, notices, problems ({id, what, why, next}: what was wished can't be had). Sizes are bytes, from a table; those
    of the driver's packages apt knows better."""
    wanted = {**DEFAULTS, **(wishes or {})}
    cards = cards_of(facts, wanted)
    driver, problems = decide(facts, wanted, cards)
    toolkits, toolkit_problems = cuda(wanted, cards, driver)
    engine, engine_problems = containers(facts, wanted, driver)
    made = {
        "cards": cards,
        "driver": vars(driver),
        "sources": sources(facts, wanted, driver.source, driver.branch, toolkits["packages"]),
        "sources_before": sources(facts, wanted, "keep", installed_branch(facts), toolkits["packages"]),
        "cuda": toolkits,
        "torch": torch(cards, driver),
        "containers": engine,
        "python": python(facts),
        "problems": problems + toolkit_problems + engine_problems + no_components(facts, driver.source),
    }
    return {**made, "sizes": sizes(made), "notices": notices(facts, wanted, made)}


def names(facts: Facts, wishes: Wishes | None = None) -> list[str]:
    """The packages that apt has to be asked about before plan() can decide; their answers go into apt.offers."""
    wanted = {**DEFAULTS, **(wishes or {}), "driver_source": "auto", "driver_branch": "auto"}
    unasked = {**facts, "apt": {**facts["apt"], "lists": False, "offers": {}}}
    need = need_of([card for card in cards_of(facts, wanted) if card["used"]], wanted)
    asked = {name for choice in choices_of(unasked, wanted, need) for name in choice.packages}
    asked |= {*exact_headers(facts), image(facts)} - {""}
    return sorted({*asked, *(exact_module(name, facts) for name in asked if name.startswith("linux-modules-nvidia"))})
