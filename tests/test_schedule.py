"""What starts, what waits, and why: in the queue's order, and never at the cost of the job at its head."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from builders import GIB, a_card, a_job
from hypothesis import example, given
from hypothesis import strategies as st

from runner import words
from runner.box.schedule import (
    FOREVER,
    Decision,
    Facts,
    broken_dependency,
    count,
    duration,
    exceeds,
    expected_end,
    order,
    schedule,
    size,
)
from runner.model import After, Job, Resources

NOW = 1000.0
FOUR = Resources(cpus=4, memory_bytes=8 * GIB, gpus=2)
CARDS = [a_card(0), a_card(1)]


def facts(**values: Any) -> Facts:
    return replace(Facts(capacity=FOUR, now=NOW, cards=CARDS), **values)


def running(id: int, **values: Any) -> Job:
    """A job that has the first GPUs, as many as it asks for."""
    allotted = [card.uuid for card in CARDS[: values.get("gpus", 0)]]
    return a_job(id, words.RUNNING, **{"started_at": NOW, "allotted": allotted, **values})


def decide(queued: list[Job], active: list[Job] | None = None, explain: bool = True, **values: Any) -> Decision:
    return schedule(sorted(queued, key=order), active or [], facts(**values), explain)


def started(decision: Decision) -> list[int]:
    return [job.id for job in decision.starts]


# --- order ---


def test_jobs_start_in_the_order_of_submission_while_there_is_room() -> None:
    decision = decide([a_job(id) for id in (3, 1, 2, 4, 5)])
    assert started(decision) == [1, 2, 3, 4]
    assert decision.waits == {5: "needs 1 cpu, 0 of 4 free"}


def test_a_higher_priority_starts_before_an_earlier_submission() -> None:
    assert started(decide([a_job(1), a_job(2, priority=5), a_job(3, priority=-5)])) == [2, 1, 3]


def test_what_runs_takes_its_room() -> None:
    decision = decide([a_job(3)], [running(1, cpus=3), running(2)])
    assert started(decision) == []


def test_more_running_than_the_box_has_is_no_fault() -> None:
    decision = decide([a_job(3)], [running(1, cpus=6, memory_bytes=20 * GIB)])
    assert decision.waits == {3: "needs 1 cpu, 0 of 4 free"}
    assert started(decide([a_job(3)], [running(1, memory_bytes=20 * GIB)])) == [3]


# --- reasons ---


@pytest.mark.parametrize(
    ("job", "given", "reason"),
    [
        pytest.param({"held": True}, {}, "held; `runner release 7` lets it go", id="held"),
        pytest.param({}, {"paused": "the box is draining"}, "the box is draining", id="drained"),
        pytest.param(
            {"not_before": NOW + 90, "retries": 3, "retries_used": 1},
            {},
            "tries again in 1 min 30 s (retry 1 of 3)",
            id="a retry's pause",
        ),
        pytest.param({"after": [After(3)]}, {}, "waits for job 3 to succeed", id="dependency nobody knows yet"),
        pytest.param(
            {"after": [After(3)]}, {"ended": {3: words.RUNNING}}, "waits for job 3 to succeed", id="dependency runs"
        ),
        pytest.param({"after": [After(3, any_end=True)]}, {}, "waits for job 3 to end", id="any end"),
        pytest.param(
            {"environment": "e9"}, {"building": {"e9": "it is being built"}}, "it is being built", id="environment"
        ),
        pytest.param({"cpus": 9}, {}, "asks for 9 cpus, the box has 4: it can't start here", id="too large by now"),
        pytest.param({"snapshot": "abc"}, {}, "its code is being laid out", id="work tree not there"),
    ],
)
def test_a_job_that_waits_on_an_empty_box_says_why(job: dict[str, Any], given: dict[str, Any], reason: str) -> None:
    decision = decide([a_job(7, **job)], **given)
    assert decision.waits == {7: reason}
    assert started(decision) == []


@pytest.mark.parametrize(
    "job",
    [
        pytest.param({"not_before": NOW}, id="a retry's pause is over"),
        pytest.param({"after": [After(3)]}, id="its dependency succeeded"),
        pytest.param({"after": [After(4, any_end=True)]}, id="its dependency ended"),
        pytest.param({"environment": "e1"}, id="its environment stands"),
        pytest.param({"snapshot": "abc"}, id="its tree stands"),
    ],
)
def test_a_job_starts_when_nothing_is_in_its_way(job: dict[str, Any]) -> None:
    decision = decide(
        [a_job(7, **job)],
        ended={3: words.SUCCEEDED, 4: words.FAILED},
        building={"e2": "another's"},
        laid_out={7},
    )
    assert started(decision) == [7]
    assert decision.waits == {}


def test_all_that_a_job_lacks_is_named_with_the_numbers() -> None:
    job = a_job(2, cpus=3, memory_bytes=6 * GIB, gpus=2)
    decision = decide([job], [running(1, cpus=2, memory_bytes=4 * GIB, gpus=1)])
    assert decision.waits[2] == (
        "needs 3 cpus, 2 of 4 free and 6.0 GiB of memory, 4.0 GiB of 8.0 GiB free; "
        "needs 2 GPUs, 1 of 2 free: GPU 0 has job 1"
    )


def test_the_decision_says_when_time_alone_will_change_it() -> None:
    queue = [a_job(1, not_before=NOW + 30), a_job(2, not_before=NOW + 10), a_job(3, not_before=NOW - 1)]
    assert decide(queue).wakes_at == NOW + 10
    assert decide([a_job(1, held=True)]).wakes_at == FOREVER


@pytest.mark.parametrize(
    ("after", "states", "sentence"),
    [
        pytest.param([After(1)], {1: words.SUCCEEDED}, None, id="succeeded"),
        pytest.param([After(1)], {1: words.RUNNING}, None, id="still runs"),
        pytest.param([After(1)], {}, None, id="unknown"),
        pytest.param([After(1, any_end=True)], {1: words.FAILED}, None, id="any end"),
        pytest.param([After(1)], {1: words.LOST}, "job 1, which it waits for, ended as lost", id="lost"),
        pytest.param(
            [After(1), After(2)],
            {1: words.SUCCEEDED, 2: words.CANCELLED},
            "job 2, which it waits for, ended as cancelled",
            id="the second",
        ),
    ],
)
def test_a_broken_dependency_is_told_in_a_sentence(
    after: list[After], states: dict[int, str], sentence: str | None
) -> None:
    assert broken_dependency(after, states) == sentence


# --- room that is promised ---


def test_a_job_whose_tree_is_not_there_keeps_its_place() -> None:
    decision = decide([a_job(1, cpus=3, snapshot="abc"), a_job(2, cpus=2), a_job(3)])
    assert [job.id for job in decision.prepares] == [1]
    assert started(decision) == []
    assert decision.waits[2] == "needs 2 cpus, 1 of 4 free"
    assert decision.waits[3].startswith("waits behind job 2")


def test_a_small_job_does_not_overtake_a_head_whose_start_is_unknown() -> None:
    decision = decide([a_job(2, cpus=3), a_job(3, time_limit=5)], [running(1, cpus=2)])
    assert started(decision) == []
    assert decision.waits == {
        2: "needs 3 cpus, 2 of 4 free",
        3: "waits behind job 2, which is first: starting now could delay it",
    }


def test_a_job_that_uses_nothing_the_head_waits_for_passes_it() -> None:
    queue = [a_job(2, gpus=2), a_job(3), a_job(4, gpus=1), a_job(5, cpus=2)]
    decision = decide(queue, [running(1, gpus=1)])
    assert started(decision) == [3]
    assert decision.waits[4] == "waits behind job 2, which is first: starting now could delay it"
    assert decision.waits[5].startswith("waits behind job 2")


def test_jobs_that_pass_one_after_another_never_starve_the_head() -> None:
    active = [running(1, cpus=2)]
    for id in range(10, 20):
        decision = decide([a_job(2, cpus=3), a_job(id)], active)
        active += [replace(job, state=words.RUNNING, started_at=NOW) for job in decision.starts]
    assert started(decide([a_job(2, cpus=3)], active[1:])) == [2]


def test_a_job_that_ends_before_the_head_can_start_passes_it() -> None:
    queue = [a_job(2, cpus=4), a_job(3, time_limit=60), a_job(4, time_limit=61), a_job(5)]
    decision = decide(queue, [running(1, cpus=2, time_limit=60)])
    assert started(decision) == [3]
    assert decision.waits[2] == "needs 4 cpus, 2 of 4 free; starts within 1 min 30 s at the latest"
    assert decision.waits[4] == "waits behind job 2, which is first: starting now could delay it"
    assert decision.waits[5] == "waits behind job 2, which is first: starting now could delay it"


def test_a_job_that_leaves_the_head_its_room_passes_it_but_only_once() -> None:
    queue = [a_job(2, cpus=3), a_job(3, cpus=1), a_job(4, cpus=1)]
    decision = decide(queue, [running(1, cpus=2, time_limit=60)])
    assert started(decision) == [3]
    assert decision.waits[4].startswith("waits behind job 2")


def test_only_the_first_that_does_not_fit_has_a_reservation() -> None:
    queue = [a_job(2, cpus=4), a_job(3, cpus=3)]
    decision = decide(queue, [running(1, cpus=2, time_limit=60)])
    assert decision.waits[3] == "needs 3 cpus, 2 of 4 free; behind job 2"


def test_a_job_that_may_overrun_its_limit_by_its_grace_does_not_pass() -> None:
    queue = [a_job(2, cpus=4), a_job(3, time_limit=60, grace=31.0), a_job(4, time_limit=60, grace=30.0)]
    assert started(decide(queue, [running(1, cpus=2, time_limit=60)])) == [4]


def test_the_reservation_counts_what_starts_in_the_same_decision() -> None:
    queue = [a_job(1, cpus=3, time_limit=60), a_job(2, cpus=4), a_job(3, time_limit=30)]
    decision = decide(queue)
    assert started(decision) == [1, 3]
    assert decision.waits[2].endswith("starts within 1 min 30 s at the latest")


def test_a_head_that_the_box_became_too_small_for_blocks_nobody() -> None:
    assert started(decide([a_job(1, cpus=9), a_job(2)])) == [2]


# --- explaining changes nothing ---


def jobs(first: int, state: str) -> st.SearchStrategy[list[Job]]:
    one = st.builds(
        a_job,
        state=st.just(state),
        cpus=st.integers(1, 4),
        memory_bytes=st.sampled_from([0, GIB, 5 * GIB]),
        gpus=st.integers(0, 2),
        priority=st.integers(-1, 1),
        held=st.just(False) if state != words.QUEUED else st.booleans(),
        snapshot=st.sampled_from([None, "abc"]),
        not_before=st.sampled_from([None, NOW - 1, NOW + 1]),
        time_limit=st.sampled_from([None, 10.0, 60.0]),
        started_at=st.sampled_from([None, NOW - 5]) if state != words.QUEUED else st.none(),
    )
    numbered = st.lists(one, max_size=12)
    return numbered.map(lambda jobs: [_seated(replace(job, id=first + at), at, state) for at, job in enumerate(jobs)])


def _seated(job: Job, place: int, state: str) -> Job:
    """A running job on some of the GPUs, perhaps beside others: the box may have been larger."""
    uuids = [CARDS[(place + more) % 2].uuid for more in range(job.gpus)]
    return replace(job, allotted=uuids) if state != words.QUEUED else job


@given(jobs(100, words.QUEUED), jobs(1, words.RUNNING), st.sets(st.integers(100, 112)))
def test_the_decision_is_the_same_whether_it_is_explained_or_not(
    queued: list[Job], active: list[Job], laid_out: set[int]
) -> None:
    explained = decide(queued, active, explain=True, laid_out=laid_out)
    brief = decide(queued, active, explain=False, laid_out=laid_out)
    assert started(brief) == started(explained)
    assert brief.prepares == explained.prepares
    assert brief.waits == {}
    assert explained.waits.keys() == {job.id for job in queued} - {job.id for job in explained.starts}
    assert all(explained.waits.values())


@given(jobs(100, words.QUEUED), jobs(1, words.RUNNING), st.sets(st.integers(100, 112)))
def test_what_starts_always_fits(queued: list[Job], active: list[Job], laid_out: set[int]) -> None:
    decision = decide(queued, active, laid_out=laid_out)
    for amount in ("cpus", "memory_bytes"):
        taken = sum(getattr(job, amount) for job in active)
        ours = sum(getattr(job, amount) for job in decision.starts + decision.prepares)
        assert ours == 0 or taken + ours <= getattr(FOUR, amount)
    given_away = [uuid for uuids in decision.placements.values() for uuid in uuids]
    assert len(set(given_away)) == len(given_away)
    assert not set(given_away) & {uuid for job in active for uuid in job.allotted}
    assert {job.id: job.gpus for job in decision.starts + decision.prepares if job.gpus} == {
        job: len(uuids) for job, uuids in decision.placements.items()
    }


# --- backfill never delays the head, by simulation ---

Plan = tuple[int, int, int]  # cpus, gpus, seconds


def start_times(plans: list[Plan], backfill: bool) -> dict[int, float]:
    """When each job of a queue starts, if all run exactly as long as their time limits say."""
    capacity = Resources(4, 0, 2)
    queue = [a_job(id, cpus=cpus, gpus=gpus, time_limit=took) for id, (cpus, gpus, took) in enumerate(plans, 1)]
    active: list[Job] = []
    at: dict[int, float] = {}
    now = NOW
    while queue:
        active = [job for job in active if expected_end(job, now) > now]
        seen = queue if backfill else _until_one_waits(queue, active, capacity)
        decision = schedule(seen, active, Facts(capacity, now, cards=CARDS))
        for job in decision.starts:
            job.allotted = list(decision.placements.get(job.id, ()))
            at[job.id] = job.started_at = now
            active.append(job)
        queue = [job for job in queue if job.id not in at]
        now = min((expected_end(job, now) for job in active), default=now)
    return at


def _until_one_waits(queue: list[Job], active: list[Job], capacity: Resources) -> list[Job]:
    """The queue as far as a scheduler without backfill would look."""
    seen: list[Job] = []
    cpus = capacity.cpus - sum(job.cpus for job in active)
    gpus = capacity.gpus - sum(job.gpus for job in active)
    for job in queue:
        cpus, gpus = cpus - job.cpus, gpus - job.gpus
        if cpus < 0 or gpus < 0:
            break
        seen.append(job)
    return seen


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=12))
@example([(2, 0, 9), (4, 0, 1), (1, 0, 9), (2, 0, 8)])
def test_backfill_never_delays_the_first_job_that_does_not_fit(plans: list[Plan]) -> None:
    without, with_backfill = start_times(plans, backfill=False), start_times(plans, backfill=True)
    head = next((id for id, at in sorted(without.items()) if at > NOW), None)
    if head is not None:
        assert with_backfill[head] <= without[head]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=10),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(1, 9)), max_size=6),
)
def test_who_submits_later_never_delays_the_head(first: list[Plan], later: list[Plan]) -> None:
    alone, crowded = start_times(first, backfill=True), start_times(first + later, backfill=True)
    head = next((id for id, at in sorted(alone.items()) if at > NOW), None)
    if head is not None:
        assert crowded[head] <= alone[head]


@given(jobs(100, words.QUEUED), jobs(1, words.RUNNING))
def test_a_job_without_any_known_end_before_it_is_delayed_by_nobody(queued: list[Job], active: list[Job]) -> None:
    """Whatever of what runs ends first, the head fits as soon as it would have without the jobs that passed it."""
    active = [replace(job, time_limit=None) for job in active]
    queued = [replace(job, time_limit=None, snapshot=None) for job in queued]
    decision = decide(queued, active)
    passed = [
        job for job in decision.starts if any(w.startswith("needs") for i, w in decision.waits.items() if i < job.id)
    ]
    heads = [i for i, why in decision.waits.items() if why.startswith("needs") and "behind job" not in why]
    if not heads or not passed:
        return
    (head,) = (job for job in queued if job.id == heads[0])
    for amount in ("cpus", "memory_bytes"):
        taken = sum(getattr(job, amount) for job in passed if order(job) > order(head))
        everyone = sum(getattr(job, amount) for job in (*active, *decision.starts, head))
        assert taken == 0 or everyone <= getattr(FOUR, amount)


# --- speed, printed ---


def test_ten_thousand_waiting_jobs_are_decided_quickly() -> None:
    queue = [a_job(id) for id in range(1, 10_001)]
    active = [running(20_000 + place) for place in range(3)]
    began = time.perf_counter()
    brief = schedule(queue, active, facts())
    brief_ms = (time.perf_counter() - began) * 1000
    began = time.perf_counter()
    full = schedule(queue, active, facts(), explain=True)
    full_ms = (time.perf_counter() - began) * 1000
    print(f"10,000 waiting jobs: decided in {brief_ms:.2f} ms, explained in {full_ms:.1f} ms")  # noqa: T201
    assert started(brief) == started(full) == [1]
    assert brief_ms < 250


# --- GPUs: who goes first ---


def on(id: int, *places: int, **values: Any) -> Job:
    """A running job that has these GPUs."""
    values = {"gpus": len(places), "allotted": [CARDS[place].uuid for place in places], **values}
    return a_job(id, words.RUNNING, **{"started_at": NOW, **values})


def test_small_jobs_do_not_starve_one_that_needs_all_gpus() -> None:
    """One after another ends and a new small one comes each time; the large one starts when the first two are over."""
    active = [on(1, 0), on(2, 1)]
    large = a_job(3, gpus=2)
    for ended in (0, 1):
        decision = decide([large, *(a_job(id, gpus=1) for id in range(10, 20))], active[ended:])
        assert started(decision) == []
    assert decision.waits[10] == "waits behind job 3, which is first: starting now could delay it"
    assert started(decide([large, a_job(10, gpus=1)], [])) == [3]


def test_a_small_job_that_ends_in_time_passes_one_that_needs_all_gpus() -> None:
    queue = [a_job(3, gpus=2), a_job(4, gpus=1, time_limit=60), a_job(5, gpus=1, time_limit=61), a_job(6, gpus=1)]
    decision = decide(queue, [on(1, 0, time_limit=60)])
    assert started(decision) == [4]
    assert decision.waits[3] == "needs 2 GPUs, 1 of 2 free: GPU 0 has job 1; starts within 1 min 30 s at the latest"


def test_jobs_on_other_gpus_pass_the_first_that_waits() -> None:
    cards = [a_card(0), a_card(1, "NVIDIA GeForce RTX 4090")]
    queue = [a_job(3, gpus=1, gpu_type="3090"), a_job(4, gpus=1), a_job(5, gpus=1)]
    decision = decide(queue, [on(1, 0)], cards=cards)
    assert started(decision) == [4]
    assert decision.placements == {4: (cards[1].uuid,)}
    assert decision.waits[3] == "GPU 0 has job 1"


def test_who_shares_waits_first_too_and_nobody_takes_its_room() -> None:
    big = a_job(3, gpus=1, gpu_memory_bytes=20 * GIB)
    small = [a_job(id, gpus=1, gpu_memory_bytes=4 * GIB) for id in (4, 5)]
    active = [on(1, 0, gpu_memory_bytes=8 * GIB)]
    decision = decide([big, *small], active, cards=CARDS[:1])
    assert started(decision) == []
    assert decision.waits[3] == "GPU 0 has 16 of 24 GiB left beside job 1"
    active[0].time_limit = 60
    decision = decide([big, *small], active, cards=CARDS[:1])
    assert started(decision) == [4], "beside it there are four left"


@pytest.mark.parametrize(
    "card",
    [
        pytest.param({"taken": "GPU 1 held by alice"}, id="held by a foreign process"),
        pytest.param({"closed": "GPU 1 is missing", "lost": True}, id="missing"),
        pytest.param({"closed": "GPU 1 is draining"}, id="draining"),
    ],
)
def test_who_waits_for_what_is_not_ours_holds_nobody_up(card: dict[str, Any]) -> None:
    cards = [a_card(0), a_card(1, **card)]
    decision = decide([a_job(3, gpus=2), a_job(4, gpus=1)], cards=cards)
    assert started(decision) == [4]
    assert decision.waits == {3: f"needs 2 GPUs, 1 of 2 free: {next(iter(card.values()))}"}


def test_who_waits_for_memory_that_is_being_freed_is_first() -> None:
    cards = [a_card(0, taken="GPU 0 is being freed after job 1", passing=True)]
    decision = decide([a_job(3, gpus=1), a_job(4, gpus=1, gpu_memory_bytes=GIB)], cards=cards)
    assert started(decision) == []
    assert decision.waits == {
        3: "GPU 0 is being freed after job 1",
        4: "GPU 0 is being freed after job 1; behind job 3",
    }


def test_an_array_does_not_hold_up_what_is_more_important() -> None:
    array = [a_job(id, gpus=1) for id in range(1, 1001)]
    urgent = a_job(2000, gpus=1, priority=1)
    assert started(decide([*array, urgent], [on(3000, 0)])) == [2000]


def test_a_job_that_needs_cpus_keeps_its_gpu_too() -> None:
    queue = [a_job(3, gpus=1, cpus=4), a_job(4, gpus=1), a_job(5, gpus=1)]
    decision = decide(queue, [running(1, cpus=1, time_limit=60)])
    assert started(decision) == []


def test_the_gpus_of_one_job_are_near_each_other() -> None:
    cards = [a_card(0), a_card(1), a_card(2)]
    decision = decide([a_job(1, gpus=2)], cards=cards, links={(cards[0].uuid, cards[2].uuid): 10})
    assert decision.placements == {1: (cards[0].uuid, cards[2].uuid)}


def test_gpus_that_are_gone_for_good_are_waited_for_in_vain() -> None:
    assert decide([a_job(1, gpus=1)], cards=[]).waits == {1: "asks for 1 GPU, the box has none: it can't start here"}
    decision = decide([a_job(1, gpus=1, gpu_type="4090"), a_job(2, gpus=1)])
    assert (started(decision), decision.waits[1][:40]) == ([2], "asks for a GPU of the type '4090'; the b")


def test_an_adopted_process_is_watched_however_full_the_box_is() -> None:
    watcher = a_job(5, cpus=0, gpus=1, gpu_uuids=[CARDS[0].uuid], adopts=[1, 2])
    decision = decide([watcher], [on(1, 0), running(2, cpus=9)])
    assert decision.placements == {5: (CARDS[0].uuid,)}


# --- when will it start ---


@pytest.mark.parametrize(
    ("active", "said"),
    [
        pytest.param({}, "GPU 0 has job 1", id="nobody knows"),
        pytest.param({"time_limit": 3600}, "GPU 0 has job 1; starts within 1 h at the latest", id="a limit"),
        pytest.param(
            {"expected_seconds": 600.0},
            "GPU 0 has job 1; expected to start in about 10 min, going by past runs",
            id="past runs",
        ),
        pytest.param(
            {"time_limit": 3600, "expected_seconds": 600.0},
            "GPU 0 has job 1; expected to start in about 10 min, going by past runs, within 1 h at the latest",
            id="both",
        ),
        pytest.param(
            {"time_limit": 3600, "expected_seconds": 600.0, "started_at": NOW - 700},
            "GPU 0 has job 1; starts within 48 min 50 s at the latest",
            id="it took longer already",
        ),
        pytest.param(
            {"time_limit": 60, "expected_seconds": 600.0},
            "GPU 0 has job 1; starts within 1 min 30 s at the latest",
            id="its limit comes first",
        ),
        pytest.param(
            {"expected_seconds": 600.0, "state": words.STARTING, "started_at": None},
            "GPU 0 has job 1; expected to start in about 10 min, going by past runs",
            id="it has only just begun",
        ),
    ],
)
def test_the_first_is_told_when_it_is_expected_to_start(active: dict[str, Any], said: str) -> None:
    given = {"gpus": 1, "allotted": [CARDS[0].uuid], "started_at": NOW, "grace": 30.0, **active}
    if given.get("time_limit") == 3600:
        given["grace"] = 0.0
        said = said.replace("48 min 50 s", "48 min 20 s")
    job = replace(a_job(1, words.RUNNING), **given)
    assert decide([a_job(3, gpus=1)], [job], cards=CARDS[:1]).waits == {3: said}


# --- GPUs: what always holds ---


def gpu_jobs(first: int, most: int) -> st.SearchStrategy[list[Job]]:
    one = st.builds(
        a_job,
        gpus=st.integers(0, 3),
        gpu_memory_bytes=st.sampled_from([0, 4 * GIB, 10 * GIB, 20 * GIB, 30 * GIB]),
        exclusive=st.booleans(),
        gpu_floor_bytes=st.sampled_from([None, None, 10 * GIB]),
        gpu_type=st.sampled_from(["", "", "3090", "4090"]),
        time_limit=st.sampled_from([None, 10.0, 60.0, 70.0]),
        expected_seconds=st.sampled_from([None, 5.0]),
        priority=st.integers(-1, 1),
    )
    return st.lists(one, max_size=most).map(lambda made: [replace(job, id=first + at) for at, job in enumerate(made)])


CARD = st.builds(
    lambda name, gib, foreign, closed, taken: (name, gib, foreign, closed, taken),
    st.sampled_from(["NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090"]),
    st.sampled_from([8, 24]),
    st.sampled_from([0, 0, 6]),
    st.sampled_from([None, None, None, "closed"]),
    st.sampled_from([(None, False), (None, False), ("taken", False), ("freed", True)]),
)


def cards_of(made: list[tuple[str, int, int, str | None, tuple[str | None, bool]]]) -> list[Any]:
    return [
        a_card(place, name, gib, foreign_bytes=foreign * GIB, closed=closed, taken=taken[0], passing=taken[1])
        for place, (name, gib, foreign, closed, taken) in enumerate(made)
    ]


@given(st.lists(CARD, max_size=4).map(cards_of), gpu_jobs(1, 6), gpu_jobs(100, 12))
def test_no_gpu_is_given_twice_or_beyond_its_memory(cards: list[Any], first: list[Job], queue: list[Job]) -> None:
    box = Resources(cpus=64, memory_bytes=0)
    empty = schedule(sorted(first, key=order), [], Facts(box, NOW, cards=[replace(c, closed=None) for c in cards]))
    active = [
        replace(job, state=words.RUNNING, started_at=NOW, allotted=list(empty.placements.get(job.id, ())))
        for job in empty.starts
    ]
    queue = sorted(queue, key=order)
    brief = schedule(queue, active, Facts(box, NOW, cards=cards))
    full = schedule(queue, active, Facts(box, NOW, cards=cards), explain=True)
    assert (started(brief), brief.placements) == (started(full), full.placements)
    assert full.waits.keys() == {job.id for job in queue} - set(started(full))
    assert all(full.waits.values())
    by_card = {card.uuid: card for card in cards}
    have: dict[str, list[Job]] = {}
    for job, uuids in [(job, job.allotted) for job in active] + [
        (j, full.placements.get(j.id, ())) for j in full.starts
    ]:
        assert len(set(uuids)) == job.gpus
        for uuid in uuids:
            have.setdefault(uuid, []).append(job)
    for uuid, holders in have.items():
        if any(not job.shares for job in holders):
            assert len(holders) == 1
        new = [job for job in holders if job.id >= 100]
        card = by_card[uuid]
        if new:
            assert card.closed is None
            assert not card.passing
            assert all(job.shares or card.taken is None for job in new)
            assert sum(job.gpu_memory_bytes for job in holders) <= card.open_bytes
            assert all(job.gpu_type in card.name for job in new)
            assert all(job.gpu_floor_bytes is None or card.open_bytes > job.gpu_floor_bytes for job in new)


# --- GPUs: speed, printed ---


QUEUES: dict[str, Callable[[int], dict[str, Any]]] = {
    "of one shape": lambda place: {},
    "of 50 shapes": lambda place: {"gpus": 1 + place % 2, "gpu_memory_bytes": place % 25 * GIB},
    "each needs more memory": lambda place: {"gpu_memory_bytes": 5 * GIB + place},
    "each needs less memory": lambda place: {"gpu_memory_bytes": 6 * GIB - place},
    "each may take longer": lambda place: {"time_limit": 100.0 + place},
    "each needs more and takes less": lambda place: {
        "gpu_memory_bytes": 5 * GIB + place, "time_limit": 90_000.0 - place, "gpu_type": "3090",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", QUEUES)
@pytest.mark.parametrize("free", [0, 2])
def test_ten_thousand_gpu_jobs_are_decided_quickly(kind: str, free: int) -> None:
    cards = [a_card(place) for place in range(8)]
    active = [
        a_job(20_000 + place, words.RUNNING, started_at=NOW, gpus=1, allotted=[cards[place].uuid])
        for place in range(8 - free)
    ]
    queue = [a_job(1, gpus=8), *(a_job(2 + place, **{"gpus": 1, **QUEUES[kind](place)}) for place in range(10_000))]
    given = Facts(Resources(64, 64 * GIB), NOW, cards=cards)
    began = time.perf_counter()
    decision = schedule(queue, active, given)
    took = (time.perf_counter() - began) * 1000
    print(f"10,000 GPU jobs, {kind}, {free} GPUs free: decided in {took:.1f} ms")  # noqa: T201
    assert started(decision) == []
    assert took < 3000  # also where coverage is measured


# --- words ---


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        pytest.param((4, 8 * GIB), None, id="all of it"),
        pytest.param((5, 0), "asks for 5 cpus, the box has 4", id="cpus"),
        pytest.param((1, 9 * GIB), "asks for 9.0 GiB of memory, the box has 8.0 GiB", id="memory"),
    ],
)
def test_a_request_over_what_the_box_has_is_told_with_the_numbers(asked: tuple[int, int], sentence: str | None) -> None:
    assert exceeds(*asked, FOUR) == sentence


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min"),
        (75, "1 min 15 s"),
        (3600, "1 h"),
        (3725, "1 h 2 min"),
        (180000, "2 d 2 h"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("bytes", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (GIB, "1.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_a_size_is_told_in_binary_units(bytes: int, said: str) -> None:
    assert size(bytes) == said


def test_one_is_not_told_as_many() -> None:
    assert (count(1, "cpu"), count(2, "cpu"), count(0, "cpu")) == ("1 cpu", "2 cpus", "0 cpus")
