"""Which GPUs a job gets, and what is in its way on those that it does not get."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from builders import GIB, a_card, a_job, a_spec
from hypothesis import given
from hypothesis import strategies as st

from runner.box.gpus.placement import (
    COMBINATIONS_MAX,
    Card,
    Slots,
    exceeds,
    gib,
    gone,
    inventory,
    jobs,
    matches,
    needs,
    portion,
    short,
)
from runner.model import Job

SMALL, LARGE = a_card(0, "NVIDIA GeForce RTX 2080 SUPER", 8), a_card(1, "NVIDIA GeForce RTX 4090", 24)


def slots(*cards: Card, held: dict[str, list[Job]] | None = None, **links: int) -> Slots:
    """held: label of a card -> jobs that have it. links: `_0_1=10`, how far apart two are."""
    named = {tuple(f"GPU-{int(end):04d}" for end in pair[1:].split("_")): level for pair, level in links.items()}
    made = Slots(cards, named)  # type: ignore[arg-type]
    for label, holders in (held or {}).items():
        (uuid,) = (card.uuid for card in cards if card.label == label)
        for job in holders:
            made.take(job, [uuid])
    return made


def alone(id: int = 1, **values: Any) -> Job:
    return a_job(id, **{"gpus": 1, **values})


def sharing(id: int = 1, gib: float = 8, **values: Any) -> Job:
    return a_job(id, **{"gpus": 1, "gpu_memory_bytes": int(gib * GIB), **values})


def placed(made: Slots, job: Job) -> list[int] | None:
    uuids = made.place(job)
    return None if uuids is None else [int(uuid[-4:]) for uuid in uuids]


# --- who fits where ---


def test_a_job_without_gpus_gets_none_and_is_never_in_the_way() -> None:
    made = slots()
    assert made.place(a_job(1)) == ()
    assert made.possible(a_job(1))


@pytest.mark.parametrize(
    ("card", "job", "fits"),
    [
        pytest.param({}, alone(), True, id="free"),
        pytest.param({"closed": "it is lost"}, alone(), False, id="closed"),
        pytest.param({"closed": "it is lost"}, sharing(), False, id="closed to who shares, too"),
        pytest.param({"taken": "held by alice"}, alone(), False, id="taken"),
        pytest.param({"taken": "held by alice", "foreign_bytes": 16 * GIB}, sharing(), True, id="room beside others"),
        pytest.param({"taken": "x", "foreign_bytes": 17 * GIB}, sharing(), False, id="no room beside others"),
        pytest.param({"taken": "x", "passing": True}, sharing(), False, id="being freed"),
        pytest.param({"asleep": True}, alone(), True, id="asleep"),
        pytest.param({}, sharing(gib=24), True, id="all of it"),
        pytest.param({}, sharing(gib=24.1), False, id="more than it has"),
        pytest.param({}, sharing(gib=24.1, exclusive=True), False, id="more than it has, alone"),
        pytest.param({"foreign_bytes": GIB}, sharing(gib=24, exclusive=True), False, id="a desktop takes of it"),
        pytest.param({"foreign_bytes": GIB}, alone(), True, id="says nothing of memory"),
        pytest.param({}, alone(gpu_floor_bytes=24 * GIB), False, id="it ran out of that much"),
        pytest.param({}, alone(gpu_floor_bytes=23 * GIB), True, id="it has more than what was not enough"),
        pytest.param({}, sharing(gpu_floor_bytes=8 * GIB), True, id="alone where it ran out of what it declared"),
        pytest.param({"memory_bytes": 0}, sharing(), False, id="nobody knows how much it has"),
        pytest.param({"memory_bytes": 0}, alone(), True, id="nobody needs to know"),
    ],
)
def test_a_gpu_is_given_when_it_is_free_enough(card: dict[str, Any], job: Job, fits: bool) -> None:
    made = Card("GPU-0000", "GPU 0", "RTX 3090", **{"memory_bytes": 24 * GIB, **card})
    assert (slots(made).place(job) is not None) is fits


@pytest.mark.parametrize(
    ("holders", "job", "fits"),
    [
        pytest.param([sharing(1, 8)], sharing(2, 16), True, id="beside, as it fits"),
        pytest.param([sharing(1, 8)], sharing(2, 16.5), False, id="beside, it does not fit"),
        pytest.param([sharing(1, 8), sharing(2, 8)], sharing(3, 8), True, id="a third"),
        pytest.param([sharing(1, 8)], alone(2), False, id="not alone beside others"),
        pytest.param([sharing(1, 8)], sharing(2, 8, exclusive=True), False, id="nor alone with a declared need"),
        pytest.param([sharing(1, 8)], sharing(2, 8, gpu_floor_bytes=GIB), False, id="nor alone after it ran out"),
        pytest.param([alone(1)], sharing(2, 1), False, id="nobody beside who has it alone"),
        pytest.param([sharing(1, 4, exclusive=True)], sharing(2, 1), False, id="however little that needs"),
    ],
)
def test_jobs_share_a_gpu_within_what_each_declared(holders: list[Job], job: Job, fits: bool) -> None:
    assert (slots(a_card(0), held={"GPU 0": holders}).place(job) is not None) is fits


def test_what_is_given_back_is_free_again() -> None:
    made = slots(a_card(0), held={"GPU 0": [sharing(1, 20)]})
    assert placed(made, sharing(2, 8)) is None
    made.give(sharing(1, 20), ["GPU-0000"])
    assert placed(made, sharing(2, 8)) == [0]
    assert placed(made, alone(2)) == [0]


def test_a_gpu_stays_taken_while_one_of_two_holders_has_it_for_itself() -> None:
    adopted = alone(2, gpu_uuids=["GPU-0000"])
    made = slots(a_card(0), held={"GPU 0": [alone(1), adopted]})
    made.give(adopted, ["GPU-0000"])
    assert placed(made, sharing(3, 1)) is None
    made.give(alone(1), ["GPU-0000"])
    assert placed(made, sharing(3, 1)) == [0]


def test_a_copy_is_a_world_of_its_own() -> None:
    made = slots(a_card(0), held={"GPU 0": [sharing(1)]})
    other = made.copy()
    other.give(sharing(1), ["GPU-0000"])
    other.take(alone(2), ["GPU-0000"])
    assert placed(made, sharing(3)) == [0]
    assert placed(other, sharing(3)) is None


def test_a_gpu_that_was_taken_out_of_the_box_is_held_by_nobody() -> None:
    made = slots(a_card(0))
    made.take(alone(1), ["GPU-gone"])
    made.give(alone(1), ["GPU-gone"])
    assert placed(made, alone(2)) == [0]


def test_an_adopted_process_has_its_gpus_whoever_else_does() -> None:
    made = slots(a_card(0, closed="it is lost"), held={"GPU 0": [alone(1)]})
    job = alone(2, gpu_uuids=["GPU-0000"])
    assert placed(made, job) == [0]
    assert made.possible(job)


# --- which is best ---


@pytest.mark.parametrize(
    ("job", "best"),
    [
        pytest.param(alone(), 1, id="who says nothing gets the largest"),
        pytest.param(sharing(gib=6), 0, id="who shares gets the least that does"),
        pytest.param(sharing(gib=9), 1, id="that does"),
        pytest.param(sharing(gib=6, exclusive=True), 0, id="who needs it alone, too"),
        pytest.param(sharing(gib=6, gpu_floor_bytes=6 * GIB), 1, id="who ran out gets the largest"),
        pytest.param(alone(gpu_type="2080"), 0, id="the one asked for"),
    ],
)
def test_a_job_gets_the_gpu_that_suits_it_best(job: Job, best: int) -> None:
    assert placed(slots(SMALL, LARGE), job) == [best]


def test_who_shares_goes_beside_others_so_that_whole_gpus_stay_free() -> None:
    made = slots(a_card(0, gib=16), a_card(1), held={"GPU 1": [sharing(1, 4)]})
    assert placed(made, sharing(2, 8)) == [1]
    made = slots(a_card(0), a_card(1), held={"GPU 0": [sharing(1, 4)], "GPU 1": [sharing(2, 12)]})
    assert placed(made, sharing(3, 8)) == [1], "the fuller of two"


@pytest.mark.parametrize("job", [alone(), sharing(), sharing(exclusive=True)], ids=["whole", "sharing", "exclusive"])
def test_what_sleeps_is_left_asleep_while_another_does(job: Job) -> None:
    assert placed(slots(a_card(0, asleep=True), a_card(1)), job) == [1]
    assert placed(slots(a_card(0, asleep=True), a_card(1, closed="x")), job) == [0]


def test_the_gpus_of_one_job_are_the_nearest_to_each_other() -> None:
    cards = [a_card(index) for index in range(4)]
    far = dict.fromkeys(("_0_1", "_0_2", "_0_3", "_1_2", "_2_3"), 40)
    assert placed(slots(*cards, **far, _1_3=5), alone(gpus=2)) == [1, 3]
    assert placed(slots(*cards, _2_3=40), alone(gpus=2)) == [2, 3], "known to be far is nearer than not known"
    assert placed(slots(*cards), alone(gpus=2)) == [0, 1]
    assert placed(slots(*cards), alone(gpus=4)) == [0, 1, 2, 3]
    assert placed(slots(*cards), alone(gpus=5)) is None


def test_of_equally_near_ones_the_best_are_taken() -> None:
    cards = [a_card(0, gib=8), a_card(1), a_card(2), a_card(3)]
    assert placed(slots(*cards), alone(gpus=2)) == [1, 2]


def test_among_very_many_gpus_the_best_are_taken_wherever_they_are() -> None:
    cards = [a_card(index) for index in range(16)]
    assert COMBINATIONS_MAX < 1820
    best = [a_card(3, gib=48), a_card(5, gib=48), a_card(7, gib=48), a_card(9, gib=48)]
    cards = [*best, *(card for card in cards if card.uuid not in {each.uuid for each in best})]
    assert sorted(placed(slots(*cards, _14_15=1), alone(gpus=4)) or []) == [3, 5, 7, 9]


@given(
    st.lists(st.tuples(st.sampled_from([8, 24]), st.booleans(), st.booleans()), max_size=6),
    st.integers(1, 3),
    st.sampled_from([0, 4, 20]),
    st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.integers(0, 50)),
)
def test_what_is_placed_is_distinct_and_fits_and_no_nearer_set_does(
    made: list[tuple[int, bool, bool]], number: int, wanted: int, near: dict[tuple[int, int], int]
) -> None:
    cards = [
        a_card(index, gib=size, closed="x" if closed else None, taken="y" if taken else None)
        for index, (size, closed, taken) in enumerate(made)
    ]
    links = {(f"GPU-{a:04d}", f"GPU-{b:04d}"): level for (a, b), level in near.items() if a < b}
    job = a_job(1, gpus=number, gpu_memory_bytes=wanted * GIB)
    could = [c.uuid for c in cards if c.closed is None and c.memory_bytes >= wanted * GIB and (wanted or not c.taken)]
    found = Slots(cards, links).place(job)
    assert (found is not None) == (len(could) >= number)
    if found is not None:
        spread = {some: sum(links.get(pair, 60) for pair in combinations(sorted(some), 2))
                  for some in combinations(could, number)}  # fmt: skip
        assert len(set(found)) == number
        assert set(found) <= set(could)
        assert sum(links.get(pair, 60) for pair in combinations(sorted(found), 2)) == min(spread.values())


# --- room beside the first that waits ---


def test_who_passes_the_first_that_waits_takes_only_what_is_free_then_too() -> None:
    made = slots(a_card(0), a_card(1))
    spare = made.copy()
    spare.take(alone(1), ["GPU-0000"])
    assert made.place(alone(2), spare) == ("GPU-0001",)
    assert made.place(alone(2, gpus=2), spare) is None


def test_what_is_kept_is_what_is_nearest_to_being_free() -> None:
    made = slots(
        a_card(0), a_card(1), a_card(2), a_card(3, closed="lost"),
        held={"GPU 0": [sharing(1, 4), sharing(2, 4)], "GPU 1": [alone(3)]},
    )  # fmt: skip
    made.keep(alone(9, gpus=2))
    assert made.place(sharing(10, 1)) == ("GPU-0000",)
    assert made.place(alone(10)) is None
    made.keep(a_job(11))
    assert made.place(sharing(10, 1)) == ("GPU-0000",), "who needs none keeps none"


@pytest.mark.parametrize(
    ("card", "job", "possible"),
    [
        pytest.param({}, alone(), True, id="free"),
        pytest.param({"closed": "it is lost"}, alone(), False, id="lost"),
        pytest.param({"taken": "held by alice"}, alone(), False, id="nobody knows when a foreign process ends"),
        pytest.param({"taken": "being freed", "passing": True}, alone(), True, id="memory is being freed"),
        pytest.param({"foreign_bytes": 20 * GIB}, sharing(), False, id="a foreign process leaves too little"),
        pytest.param({"foreign_bytes": 4 * GIB}, sharing(), True, id="a foreign process leaves enough"),
        pytest.param({"foreign_bytes": 20 * GIB, "taken": "x", "passing": True}, sharing(), True, id="that is freed"),
        pytest.param({"foreign_bytes": 20 * GIB, "taken": "x", "passing": True},
                     sharing(gib=20, exclusive=True), True, id="that is freed for one alone"),
        pytest.param({}, alone(gpu_floor_bytes=24 * GIB), False, id="it ran out of that"),
    ],
)  # fmt: skip
def test_a_job_waits_for_our_own_jobs_alone_or_for_what_nobody_knows(
    card: dict[str, Any], job: Job, possible: bool
) -> None:
    made = slots(a_card(0, **card), held={"GPU 0": [alone(5)]})
    assert made.possible(job) is possible


# --- words ---


@pytest.mark.parametrize(
    ("card", "holders", "job", "said"),
    [
        pytest.param({"closed": "GPU 0 is draining"}, [], alone(), "GPU 0 is draining", id="closed"),
        pytest.param({}, [alone(5)], alone(), "GPU 0 has job 5", id="another has it"),
        pytest.param({}, [alone(5)], sharing(), "GPU 0 has job 5", id="another has it alone"),
        pytest.param({}, [sharing(6), sharing(5)], alone(), "GPU 0 has jobs 5, 6", id="others share it"),
        pytest.param({}, [sharing(5, 20)], sharing(), "GPU 0 has 4 of 24 GiB left beside job 5", id="they share it"),
        pytest.param(
            {"foreign_bytes": 20 * GIB, "taken": "GPU 0 held by alice, python, 20 of 24 GiB"},
            [],
            sharing(),
            "GPU 0 has 4 of 24 GiB left, held by alice, python, 20 of 24 GiB",
            id="a foreign process leaves too little",
        ),
        pytest.param({"foreign_bytes": 20 * GIB}, [], sharing(), "GPU 0 has 4 of 24 GiB left", id="a desktop does"),
        pytest.param({"taken": "GPU 0 held by alice"}, [], alone(), "GPU 0 held by alice", id="a foreign process"),
        pytest.param(
            {"taken": "GPU 0 is being freed", "passing": True}, [], sharing(), "GPU 0 is being freed", id="passing"
        ),
        pytest.param(
            {},
            [],
            alone(gpu_floor_bytes=24 * GIB),
            "GPU 0 has 24 GiB, and it ran out of 24",
            id="it ran out there",
        ),
        pytest.param(
            {"foreign_bytes": GIB}, [], sharing(gib=24, exclusive=True), "GPU 0 has 23 of 24 GiB left", id="too small"
        ),
        pytest.param(
            {"foreign_bytes": 25 * GIB}, [sharing(5)], sharing(6), "GPU 0 has 0 of 24 GiB left beside job 5", id="over"
        ),
    ],
)
def test_what_is_in_the_way_on_the_only_gpu_is_said(
    card: dict[str, Any], holders: list[Job], job: Job, said: str
) -> None:
    assert slots(a_card(0, **card), held={"GPU 0": holders}).lacks(job) == said


def test_what_is_in_the_way_on_many_is_counted_and_the_first_few_are_named() -> None:
    cards = [a_card(index) for index in range(7)]
    held = {f"GPU {index}": [alone(index)] for index in range(6)}
    assert slots(*cards, held=held).lacks(alone(9, gpus=2)) == (
        "needs 2 GPUs, 1 of 7 free: GPU 0 has job 0; GPU 1 has job 1; GPU 2 has job 2; GPU 3 has job 3; and 2 more"
    )


def test_what_is_the_matter_with_all_of_them_is_said_once() -> None:
    cards = [a_card(index, closed="nothing is known of the GPUs") for index in range(2)]
    assert slots(*cards).lacks(alone()) == "needs 1 GPU, 0 of 2 free: nothing is known of the GPUs"


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (alone(), "needs 1 GPU"),
        (sharing(gib=1.5, gpu_type="3090"), "needs 1 GPU (3090) with 1.5 GiB"),
        (sharing(gpus=2), "needs 2 GPUs with 8 GiB each"),
        (alone(gpu_floor_bytes=1), "needs 1 GPU, alone after it ran out of GPU memory"),
    ],
)
def test_what_a_job_needs_is_said(job: Job, said: str) -> None:
    assert needs(job) == said


@pytest.mark.parametrize(
    ("wish", "name", "fits"),
    [
        ("", "NVIDIA H200", True),
        ("3090", "NVIDIA GeForce RTX 3090", True),
        ("RTX 3090", "NVIDIA GeForce RTX 3090", True),
        ("rtx3090", "NVIDIA GeForce RTX 3090", True),
        ("4080 super", "NVIDIA GeForce RTX 4080 SUPER", True),
        ("4080super", "NVIDIA GeForce RTX 4080 SUPER", True),
        ("super 4080", "NVIDIA GeForce RTX 4080 SUPER", True),
        ("309", "NVIDIA GeForce RTX 3090", False),
        ("4090", "NVIDIA GeForce RTX 3090", False),
        ("3090 ti", "NVIDIA GeForce RTX 3090", False),
        ("--", "NVIDIA H200", False),
        ("gpu-0007", "NVIDIA H200", True),
        ("GPU-00", "NVIDIA H200", True),
        ("GPU-0008", "NVIDIA H200", False),
    ],
)
def test_a_type_is_words_of_the_name_or_the_start_of_the_uuid(wish: str, name: str, fits: bool) -> None:
    assert matches(wish, a_card(7, name)) is fits


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        pytest.param("GPU-0000", "GPU 0 fell off the bus at 12:00", id="lost"),
        pytest.param("GPU-0001", None, id="there"),
        pytest.param("GPU-0002", None, id="draining: it will be back"),
        pytest.param("GPU-000", None, id="any of these"),
        pytest.param("GPU-9", None, id="never seen"),
        pytest.param("3090", None, id="no UUID"),
    ],
)
def test_a_gpu_named_by_its_uuid_that_is_gone_is_told(wish: str, said: str | None) -> None:
    lost = a_card(0, closed="GPU 0 fell off the bus at 12:00", lost=True)
    assert gone(wish, [lost, a_card(1), a_card(2, closed="GPU 2 is draining")]) == said


@pytest.mark.parametrize(
    ("asked", "cards", "said"),
    [
        pytest.param({}, [], None, id="no GPU asked for"),
        pytest.param({"gpus": 1, "gpu_uuids": ["x"]}, [], None, id="it has it already"),
        pytest.param({"gpus": 2}, [], "asks for 2 GPUs, the box has none", id="none"),
        pytest.param({"gpus": 1}, [SMALL], None, id="there is one"),
        pytest.param(
            {"gpus": 1, "gpu_type": "3090"},
            [SMALL, LARGE],
            "asks for a GPU of the type '3090'; the box has 1 RTX 2080 SUPER with 8 GiB, 1 RTX 4090 with 24 GiB",
            id="an unknown model",
        ),
        pytest.param(
            {"gpus": 3},
            [SMALL, SMALL],
            "asks for 3 GPUs, the box has 2: 2 RTX 2080 SUPER with 8 GiB",
            id="too many",
        ),
        pytest.param(
            {"gpus": 2, "gpu_type": "4090"},
            [SMALL, LARGE],
            "asks for 2 GPUs of the type '4090', the box has 1: 1 RTX 2080 SUPER with 8 GiB, 1 RTX 4090 with 24 GiB",
            id="too many of that model",
        ),
        pytest.param(
            {"gpus": 1, "gpu_memory_bytes": 25 * GIB},
            [LARGE],
            "asks for 1 GPU with 25 GiB; the largest has 24 GiB: 1 RTX 4090 with 24 GiB",
            id="too much memory",
        ),
        pytest.param(
            {"gpus": 2, "gpu_memory_bytes": 20 * GIB},
            [SMALL, LARGE],
            "asks for 2 GPUs with 20 GiB; 1 of them has that much: 1 RTX 2080 SUPER with 8 GiB, 1 RTX 4090 with 24 GiB",
            id="too much memory on one of them",
        ),
        pytest.param({"gpus": 1, "gpu_memory_bytes": 99 * GIB}, [a_card(0, gib=0)], None, id="nobody knows how much"),
        pytest.param({"gpus": 2}, [a_card(0, lost=True, closed="lost"), LARGE], None, id="one is lost: it may return"),
    ],
)
def test_what_can_never_be_met_is_told_with_the_numbers(
    asked: dict[str, Any], cards: list[Card], said: str | None
) -> None:
    assert exceeds(a_spec(**asked), cards) == said
    assert exceeds(a_job(1, **asked), cards) == said


def test_words_of_gpus() -> None:
    assert short("NVIDIA GeForce RTX 3090") == "RTX 3090"
    assert short("NVIDIA H200") == "H200"
    assert jobs([42]) == "job 42"
    assert jobs([43, 42]) == "jobs 42, 43"
    assert portion(int(11.25 * GIB), 24 * GIB) == "11.2 of 24 GiB"
    assert portion(-5, 24 * GIB) == "0 of 24 GiB"
    assert gib(24 * GIB) == "24"
    assert inventory([a_card(0), a_card(1), a_card(2, "NVIDIA X", gib=0)]) == "2 RTX 3090 with 24 GiB, 1 X"
