"""The judge of the crash tests is itself judged: each way to get the protocol wrong must be caught."""

from __future__ import annotations

import os

import pytest
from crash.harness import play_all
from crash.variants import VARIANTS, Variant

QUICK = (
    "the supervisor takes no lock",
    "no tombstone",
    "a second supervisor runs it again",
    "the fence ignores `started`",
)


def _caught(variant: Variant) -> str:
    outcomes = play_all(variant.scenarios, 1, variant.prepare, until_fault=True)
    return next((fault for outcome in outcomes for fault in outcome.faults), "")


def test_there_are_enough_of_them() -> None:
    assert len({variant.name for variant in VARIANTS}) >= 12


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.name in QUICK], ids=lambda variant: variant.name)
def test_a_wrong_protocol_is_caught_at_once(variant: Variant) -> None:
    assert _caught(variant)


@pytest.mark.crash
def test_every_wrong_protocol_is_caught_and_the_right_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    sound = play_all(list(dict.fromkeys(scenario for variant in VARIANTS for scenario in variant.scenarios)))
    assert not [(outcome.scenario, outcome.faults) for outcome in sound if outcome.faults]
    caught = {variant.name: _caught(variant) for variant in VARIANTS}
    with capsys.disabled():
        table = "\n".join(f"  {name:45} {fault[:70]}" for name, fault in caught.items())
        os.write(1, f"\n{len(caught)} wrong protocols\n{table}\n".encode())
    assert all(caught.values()), [name for name, fault in caught.items() if not fault]
