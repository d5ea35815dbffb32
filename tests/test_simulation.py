"""Thousands of made-up boxes: no GPU is given twice or beyond its memory, nobody starves, and every reason is true.

`SIMULATION_SEED=4711 pytest tests/test_simulation.py -k told` plays one history again.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any

import pytest
from judge import Violation, duration
from simulation import play

from runner import words
from runner.box import schedule
from runner.box.gpus import placement
from runner.box.gpus.cards import Cards
from runner.box.gpus.placement import Card, Slots

SOME, MANY = 200, 10_000

pytestmark = pytest.mark.long

TRIES = 60  # histories in which a fault must show


def seeds(number: int, first: int = 0) -> Sequence[int]:
    """Those to play; one only, if somebody asked for it."""
    asked = os.environ.get("SIMULATION_SEED")
    return [int(asked)] if asked else range(first, first + number)


def violations(which: Iterable[int]) -> Iterable[str]:
    for seed in which:
        try:
            play(seed)
        except Violation as wrong:
            yield str(wrong)


def first_violations(which: Iterable[int]) -> list[str]:
    return list(islice(violations(which), 3))


def test_nobody_gets_what_another_has_and_everybody_is_told_the_truth() -> None:
    wrong = first_violations(seeds(SOME))
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.crash
def test_ten_thousand_histories_hold(figure: Callable[[str], None]) -> None:
    workers = os.cpu_count() or 1
    shares = [seeds(MANY, SOME)[number::workers] for number in range(workers)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        wrong = [each for found in pool.map(first_violations, shares) for each in found]
    assert not wrong, "\n\n".join(wrong)
    figure(f"{MANY} simulated histories: 0 double bookings, 0 over-commitments, 0 jobs starved, 0 reasons untrue")


def test_a_history_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _mixes_types(monkeypatch)
    first = list(islice(violations(range(TRIES)), 2))
    assert first
    assert list(islice(violations(range(TRIES)), 2)) == first


# --- the simulation sees what is wrong: each of these is a box with one fault ---

Patch = pytest.MonkeyPatch


def _ignores_foreign_memory(patch: Patch) -> None:
    patch.setattr(Card, "open_bytes", property(lambda card: card.memory_bytes))


def _counts_no_sharing(patch: Patch) -> None:
    _after_taking(patch, "declared_bytes")


def _shares_what_is_exclusive(patch: Patch) -> None:
    _after_taking(patch, "alone")


def _after_taking(patch: Patch, name: str) -> None:
    """Slots that forget one thing of what they gave."""
    take = Slots.take

    def forgetful(slots: Slots, job: Any, uuids: Any) -> None:
        take(slots, job, uuids)
        for slot in slots._slots.values():
            setattr(slot, name, 0)

    patch.setattr(Slots, "take", forgetful)


def _forgets_freeing(patch: Patch) -> None:
    patch.setattr(Cards, "taken_back", lambda cards, job, now: None)


def _ignores_the_reservation(patch: Patch) -> None:
    patch.setattr(schedule._Scan, "_ends_before", lambda scan, job: True)


def _keeps_no_gpus(patch: Patch) -> None:
    patch.setattr(Slots, "keep", lambda slots, job: None)


def _opens(patch: Patch, state: str) -> None:
    """GPUs in a state in which nothing may start on them are open all the same."""
    closed = Cards._closed

    def open_all_the_same(cards: Cards, *given: Any) -> Any:
        why = closed(cards, *given)
        return None if why is not None and why[0] == state else why

    patch.setattr(Cards, "_closed", open_all_the_same)


def _mixes_types(patch: Patch) -> None:
    patch.setattr(placement, "matches", lambda wish, card: True)


def _names_the_wrong_job(patch: Patch) -> None:
    jobs = placement.jobs
    patch.setattr(placement, "jobs", lambda ids: jobs([number + 1 for number in ids]))


def _names_the_wrong_process(patch: Patch) -> None:
    patch.setattr("runner.box.gpus.cards.held_by", lambda found, total: "held by eve, xmrig, 1 of 24 GiB")


def _miscounts_what_is_free(patch: Patch) -> None:
    lacks = Slots.lacks
    patch.setattr(Slots, "lacks", lambda slots, job: lacks(slots, job).replace(", 0 of", ", 1 of"))


def _promises_too_much(patch: Patch) -> None:
    end = schedule.expected_end
    patch.setattr(schedule, "expected_end", lambda job, now: now + (end(job, now) - now) / 4)


def _believes_one_good_frame(patch: Patch) -> None:
    patch.setattr("runner.box.gpus.cards.GOOD_FRAMES", 1)


@pytest.mark.parametrize(
    ("fault", "shows"),
    [
        pytest.param(_ignores_foreign_memory, "are left", id="ignores foreign memory"),
        pytest.param(_counts_no_sharing, "are left", id="counts no sharing"),
        pytest.param(_shares_what_is_exclusive, "but it belongs to", id="shares what is exclusive"),
        pytest.param(_forgets_freeing, "not seen to be free", id="forgets freeing"),
        pytest.param(_ignores_the_reservation, "", id="ignores the reservation of the first"),
        pytest.param(_keeps_no_gpus, "starves", id="keeps no GPUs for the first"),
        pytest.param(lambda patch: _opens(patch, words.DRAINING), "it is drained", id="places on drained"),
        pytest.param(lambda patch: _opens(patch, words.STUCK), "it is stuck", id="places on stuck"),
        pytest.param(lambda patch: _opens(patch, words.GONE), "but it", id="places on lost"),
        pytest.param(lambda patch: _opens(patch, words.UNKNOWN), "but", id="places in silence"),
        pytest.param(_believes_one_good_frame, "it was", id="believes one good frame"),
        pytest.param(_mixes_types, "not", id="mixes up types"),
        pytest.param(_names_the_wrong_job, "what is not true", id="names the wrong job"),
        pytest.param(_names_the_wrong_process, "what is not true", id="names the wrong process"),
        pytest.param(_miscounts_what_is_free, "what is not true", id="miscounts what is free"),
        pytest.param(_promises_too_much, "was to have started", id="promises too much"),
    ],
)
def test_a_fault_shows(fault: Callable[[Patch], None], shows: str, monkeypatch: Patch) -> None:
    fault(monkeypatch)
    told = next((wrong for wrong in violations(range(3 * TRIES)) if shows in wrong.splitlines()[0]), None)
    assert told is not None, "no history showed it"


def test_a_duration_is_read_as_it_is_told() -> None:
    for seconds in (0.4, 59.0, 61.0, 3599.0, 3725.0, 90_000.0):
        told, exact = duration(schedule.duration(seconds))
        assert abs(told - seconds) <= exact
