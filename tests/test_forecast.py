"""When a waiting job is expected to start: what past runs and time limits say, played forward."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import ADMIN, GIB, a_card, a_hall, a_job

from runner import words
from runner.box.forecast import expectation, start_of
from runner.box.schedule import Facts, order, schedule
from runner.model import Job, Resources

NOW = 1000.0
HOUR = 3600.0
CARDS = [a_card(index) for index in range(4)]
BOX = Resources(16, 64 * GIB, 0)


def facts(**values: Any) -> Facts:
    return replace(Facts(BOX, NOW, cards=CARDS), **values)


def runs(id: int, *places: int, **values: Any) -> Job:
    """A job that has had these GPUs since now."""
    uuids = [CARDS[place].uuid for place in places]
    return a_job(id, words.RUNNING, gpus=len(uuids), allotted=uuids, started_at=NOW, **values)


def waits(job: Job, queued: list[Job], active: list[Job], **values: Any) -> float | None:
    """Seconds until it is expected to start."""
    at = start_of(job, sorted([*queued, job], key=order), active, facts(**values))
    return None if at is None else at - NOW


def said(job: Job, queued: list[Job], active: list[Job], **values: Any) -> str:
    """The whole reason, as a person reads it."""
    queue, given = sorted([*queued, job], key=order), facts(**values)
    why = schedule(queue, active, given, explain=True).waits[job.id]
    return why + expectation(job, why, queue, active, given)


def full(**values: Any) -> list[Job]:
    """All four GPUs taken for an hour, as past runs say."""
    return [runs(place + 1, place, **{"expected_seconds": HOUR, **values}) for place in range(4)]


# --- one after the other ---


def test_it_starts_when_enough_of_what_runs_has_ended() -> None:
    active = [runs(place + 1, place, expected_seconds=HOUR * (place + 1)) for place in range(4)]
    assert waits(a_job(9, gpus=1), [], active) == HOUR
    assert waits(a_job(9, gpus=3), [], active) == 3 * HOUR


def test_those_ahead_come_first_and_take_their_time() -> None:
    queue = [a_job(id, gpus=4, expected_seconds=600.0) for id in (5, 6)]
    assert waits(a_job(9, gpus=1), queue, full()) == HOUR + 1200


def test_the_reason_ends_with_the_guess_and_what_it_goes_by() -> None:
    first = a_job(5, gpus=4, time_limit=570.0)
    assert said(a_job(9, gpus=4), [first], full()).endswith(
        "behind job 5; expected to start in about 1 h 10 min, going by past runs and time limits"
    )


def test_a_job_that_needs_all_gpus_starts_after_what_runs_and_before_the_small_ones_behind_it() -> None:
    active = [runs(place + 1, place, expected_seconds=600.0 * (place + 1)) for place in range(4)]
    small = [a_job(id, gpus=1, expected_seconds=HOUR) for id in range(20, 60)]
    assert waits(a_job(9, gpus=4), small, active) == 2400
    behind = a_job(70, gpus=4)
    assert waits(behind, [a_job(9, gpus=4, expected_seconds=60.0), *small], active) == 2400 + 60 + 10 * HOUR


def test_a_job_before_an_array_of_1000_waits_for_one_end() -> None:
    array = [a_job(id, gpus=1, expected_seconds=HOUR) for id in range(10, 1010)]
    urgent = a_job(2000, gpus=1, priority=5)
    assert waits(urgent, array, full(expected_seconds=600.0)) == 600
    assert "expected to start in about 10 min, going by past runs" in said(urgent, array, full(expected_seconds=600.0))


def test_a_job_behind_an_array_of_1000_waits_for_all_of_it() -> None:
    array = [a_job(id, gpus=1, expected_seconds=HOUR) for id in range(10, 1010)]
    wait = waits(a_job(2000, gpus=1), array, full())
    assert wait == pytest.approx(251 * HOUR, rel=0.03)


def test_an_array_that_shares_is_counted_by_what_fits_beside_each_other() -> None:
    array = [a_job(id, gpus=1, gpu_memory_bytes=12 * GIB, expected_seconds=HOUR) for id in range(10, 810)]
    wait = waits(a_job(2000, gpus=1, gpu_memory_bytes=12 * GIB), array, full())
    assert wait == pytest.approx(101 * HOUR, rel=0.05)


def test_a_job_that_may_pass_those_ahead_is_not_told_to_wait_for_them() -> None:
    head = a_job(5, gpus=4, expected_seconds=HOUR)
    active = [runs(1, 0, time_limit=HOUR, grace=0.0), runs(2, 1, time_limit=600.0, grace=0.0)]
    busy = a_job(6, words.RUNNING, cpus=14, started_at=NOW, expected_seconds=60.0, time_limit=120.0, grace=0.0)
    assert waits(a_job(9, cpus=4, gpus=1, time_limit=300.0), [head], [*active, busy]) == 60


def test_a_retry_that_pauses_ahead_is_waited_for() -> None:
    retry = a_job(5, gpus=4, not_before=NOW + 30, retries=1, retries_used=1, expected_seconds=HOUR)
    assert waits(a_job(9, gpus=4), [retry], full(expected_seconds=60.0)) == HOUR + 60


def test_memory_that_is_being_freed_is_free_by_then() -> None:
    freeing = replace(CARDS[0], taken="GPU 0 is being freed after job 3", passing=True, foreign_bytes=20 * GIB)
    active = [runs(2, 1, expected_seconds=600.0)]
    assert waits(a_job(9, gpus=2), [], active, cards=[freeing, CARDS[1]]) == 600


# --- nothing is said where nothing is known ---


@pytest.mark.parametrize(
    ("job", "active", "given"),
    [
        pytest.param({"gpus": 1}, {"expected_seconds": None}, {}, id="what runs has no known end"),
        pytest.param({"gpus": 1, "held": True}, {}, {}, id="held"),
        pytest.param({"gpus": 5}, {}, {}, id="more than there is"),
        pytest.param({"gpus": 1, "environment": "e"}, {}, {"building": {"e": "it is being built"}}, id="built"),
        pytest.param({"gpus": 4}, {}, {"paused": "the box is draining"}, id="draining"),
        pytest.param(
            {"gpus": 4},
            {},
            {"cards": [*CARDS[:3], replace(CARDS[3], closed="GPU 3 is missing")]},
            id="a GPU is missing",
        ),
        pytest.param(
            {"gpus": 4}, {}, {"cards": [*CARDS[:3], replace(CARDS[3], taken="GPU 3 held by ann")]}, id="a stranger"
        ),
    ],
)
def test_what_is_not_known_is_not_guessed(job: dict[str, Any], active: dict[str, Any], given: dict[str, Any]) -> None:
    waiting = a_job(9, **job)
    assert waits(waiting, [], full(**active), **given) is None
    assert "expected" not in said(waiting, [], full(**active), **given)


def test_a_long_queue_of_unknown_length_is_not_guessed() -> None:
    array = [a_job(id, gpus=1, expected_seconds=HOUR if id < 500 else None) for id in range(10, 1010)]
    assert waits(a_job(2000, gpus=1), array, full()) is None


def test_what_the_reason_says_already_is_not_said_twice() -> None:
    assert said(a_job(9, gpus=4), [], full()).count("expected to start") == 1
    assert "expected" not in said(a_job(9, gpus=4), [], full(expected_seconds=None, time_limit=60.0))


def test_nothing_is_changed_by_playing() -> None:
    queue = [a_job(id, gpus=1, expected_seconds=60.0, snapshot="s") for id in range(10, 30)]
    active = full()
    before = [replace(job) for job in (*queue, *active)]
    assert waits(a_job(99, gpus=1), queue, active) is not None
    assert [*queue, *active] == before


# --- its price ---


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(lambda id: {"gpus": 1, "expected_seconds": HOUR}, id="one array"),
        pytest.param(
            lambda id: {"gpus": 1 + id % 4, "gpu_memory_bytes": (1 + id % 20) * GIB, "expected_seconds": 60.0 + id},
            id="all different",
        ),
        pytest.param(lambda id: {"gpus": 1, "held": True}, id="all held"),
    ],
)
def test_a_queue_of_10000_is_guessed_within_a_moment(
    kind: Callable[[int], dict[str, Any]], figure: Callable[[str], None]
) -> None:
    queue = [a_job(id, **kind(id)) for id in range(10, 10_010)]
    last = a_job(20_000, gpus=1)
    queue.append(last)
    began = time.process_time()
    start_of(last, queue, full(), facts())
    took = (time.process_time() - began) * 1000
    figure(f"when the last of 10,000 waiting jobs starts, guessed in {took:.0f} ms")
    assert took < 500


# --- what people read ---


def test_why_of_a_waiting_job_ends_with_it(tmp_path: Path) -> None:
    with a_hall(tmp_path / "state") as hall:
        first, second, third = (hall.submit("true", cpus=4, environment="base") for _ in range(3))
        hall.now = time.time()
        hall.turn()
        hall.engine.runs(first, at=time.time())
        hall.turn()
        first.expected_seconds = second.expected_seconds = 1200.0
        assert hall.wishes.why(second).endswith("expected to start in about 20 min, going by past runs")
        why = hall.wishes.why(third)
        assert why.startswith("needs 4 cpus, 0 of 4 free; behind job 2; expected to start in about ")
        assert why.endswith("min, going by past runs")
        hall.wishes.hold(ADMIN, [third.id])
        assert "expected" not in hall.wishes.why(third)
