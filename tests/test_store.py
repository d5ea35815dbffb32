"""The database: durable, compare-and-set, and never giving an id twice."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from builders import a_request, a_spec, an_exit
from tools import need, need_root

from runner import words
from runner.box import migrations
from runner.box.store import Group, KnownGpu, Move, Past, Store, Stuck, dump_spec, load_spec, statements
from runner.errors import Busy, DiskFull, KeyReused, NotFound, StateDamaged
from runner.model import After, Exit, Job, JobSpec


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"{tmp_path}/runner.db")
    yield made
    made.close()


def one(store: Store, **values: Any) -> Job:
    (job,) = store.submit(a_request(**values), 100.0)
    return job


def start(store: Store, job: Job) -> Job:
    assert store.apply([job], [], 110.0) == {job.id}
    return store.jobs([job.id])[0]


def run(store: Store, job: Job) -> Job:
    started = start(store, job)
    assert store.apply([], [Move(job.id, started.attempt, words.RUNNING, started_at=120.0)], 121.0)
    return store.jobs([job.id])[0]


def end(store: Store, job: Job, exit: Exit | None = None, state: str = words.SUCCEEDED) -> Job:
    store.apply([], [Move(job.id, job.attempt, state, state, exit or an_exit())], 500.0)
    return store.jobs([job.id])[0]


# --- submit ---


def test_a_submitted_job_reads_back_as_it_was_answered(store: Store) -> None:
    spec = a_spec("python", "train.py", "--x", name="näme", cpus=2, memory_bytes=5, gpus=1, priority=7, time_limit=9.5)
    spec = replace(
        spec, after=[After(1, True)], env={"A": "b"}, retries=2, requeue=True, snapshot="ab", script="train.py"
    )
    job = one(store, spec=spec, environment="e1", held=True)
    assert store.jobs([job.id]) == store.unfinished() == [job]
    assert store.spec(job.spec_id) == spec
    assert (job.held, job.environment, job.after, job.retries) == (True, "e1", [After(1, True)], 2)


def test_an_array_is_one_group_of_consecutive_ids_and_one_spec(store: Store) -> None:
    one(store)
    request = replace(a_request(jobs=3), params=[{"lr": "1"}, {"lr": "2"}, {}])
    jobs = store.submit(request, 100.0)
    assert [(job.id, job.group, job.array_index, job.params) for job in jobs] == [
        (2, "g2", 0, {"lr": "1"}),
        (3, "g2", 1, {"lr": "2"}),
        (4, "g2", 2, {}),
    ]
    assert len({job.spec_id for job in jobs}) == 1
    assert store.jobs([4, 2, 3]) == jobs
    assert store.group(2) == [2, 3, 4]
    with pytest.raises(NotFound, match="no group g1"):
        store.group(1)


def test_ten_thousand_jobs_are_one_transaction(store: Store) -> None:
    began = time.perf_counter()
    jobs = store.submit(a_request(jobs=10_000), 100.0)
    print(f"10,000 jobs stored in {(time.perf_counter() - began) * 1000:.0f} ms")  # noqa: T201
    assert len(jobs) == 10_000
    assert store.counts() == {words.QUEUED: 10_000}
    assert len(store.unfinished()) == len(store.jobs(range(1, 10_001))) == 10_000
    assert len(store.states(range(20_000))) == 10_000


def test_all_jobs_of_a_request_are_stored_or_none(store: Store) -> None:
    with store._write():
        store._connection.exec_driver_sql(
            "CREATE TRIGGER no_more BEFORE INSERT ON jobs WHEN NEW.id = 3 BEGIN SELECT RAISE(ABORT, 'is full'); END"
        )
    with pytest.raises(DiskFull):
        store.submit(a_request(jobs=5, key="k", digest="d"), 100.0)
    assert store.counts() == {}
    assert store.known_key(1001, "k", "d") is None


def test_ids_start_above_what_is_found_on_disk(store: Store) -> None:
    assert [job.id for job in store.submit(a_request(), 100.0, above=41)] == [42]
    assert one(store).id == 43
    assert [job.id for job in store.submit(a_request(), 100.0, above=7)] == [44]


def test_an_id_is_never_used_again_even_when_its_row_is_gone(tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/runner.db")
    store.submit(a_request(jobs=5), 100.0)
    store.close()
    connection = sqlite3.connect(f"{tmp_path}/runner.db")
    connection.execute("DELETE FROM jobs")
    connection.commit()
    connection.close()
    store = Store(f"{tmp_path}/runner.db")
    assert one(store).id == 6
    store.close()


# --- idempotency ---


def test_a_known_key_gives_the_first_answer_again(store: Store) -> None:
    assert store.known_key(1001, "k", "d") is None
    store.submit(a_request(jobs=3, key="k", digest="d"), 100.0)
    again = store.known_key(1001, "k", "d")
    assert again is not None
    assert (again.id, again.count, again.group) == (1, 3, "g1")


def test_a_key_for_another_request_is_refused(store: Store) -> None:
    one(store, key="k", digest="d")
    with pytest.raises(KeyReused, match="already made job 1, from another request"):
        store.known_key(1001, "k", "another")


def test_a_key_belongs_to_its_user(store: Store) -> None:
    one(store, key="k", digest="d")
    assert store.known_key(1002, "k", "another") is None
    assert one(store, uid=1002, key="k", digest="another").id == 2


def test_old_keys_are_forgotten(store: Store) -> None:
    one(store, key="k", digest="d")
    store.forget_keys(99.0)
    assert store.known_key(1001, "k", "d") is not None
    store.forget_keys(101.0)
    assert store.known_key(1001, "k", "d") is None


# --- moves: compare and set ---


def test_a_job_goes_from_queued_to_its_end_with_its_attempt(store: Store) -> None:
    job = run(store, one(store))
    assert (job.state, job.attempt, job.started_at) == (words.RUNNING, 1, 120.0)
    ended = end(store, job, Exit("exit_code", 3, None, "it said so", 200.0, True, 119.5), words.FAILED)
    assert (ended.state, ended.exit_code, ended.reason, ended.detail) == (words.FAILED, 3, "exit_code", "it said so")
    assert (ended.started_at, ended.ended_at) == (119.5, 200.0)
    (attempt,) = store.attempts(job.id)
    assert (attempt.state, attempt.exit_code, attempt.reason) == (words.FAILED, 3, "exit_code")
    assert (attempt.created_at, attempt.started_at, attempt.ended_at) == (110.0, 119.5, 200.0)


def test_a_start_from_another_state_or_attempt_is_left_alone(store: Store) -> None:
    job = one(store)
    start(store, job)
    assert store.apply([job], [], 111.0) == set(), "it is starting already"
    assert store.apply([replace(job, attempt=5)], [], 111.0) == set()
    assert len(store.attempts(job.id)) == 1


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(Move(1, 7, words.FAILED, words.FAILED, an_exit("exit_code")), id="of another attempt"),
        pytest.param(Move(9, 1, words.FAILED, words.FAILED, an_exit("exit_code")), id="of no job"),
    ],
)
def test_a_move_from_elsewhere_changes_nothing(store: Store, move: Move) -> None:
    run(store, one(store))
    before = store.jobs([1]), store.attempts(1)
    assert store.apply([], [move], 500.0) == set()
    assert (store.jobs([1]), store.attempts(1)) == before


def test_an_end_is_final(store: Store) -> None:
    ended = end(store, run(store, one(store)))
    assert store.apply([ended], [Move(1, 1, words.FAILED, words.FAILED, an_exit("signal"))], 600.0) == set()
    store.wish([1], held=True, priority=9)
    assert store.jobs([1]) == [ended]


def test_a_retry_counts_and_starts_with_a_clean_slate(store: Store) -> None:
    job = run(store, one(store))
    back = Move(1, 1, words.QUEUED, words.FAILED, an_exit("exit_code"), None, 700.0, retry=True)
    store.apply([], [back], 500.0)
    (job,) = store.jobs([1])
    assert (job.state, job.retries_used, job.not_before, job.exit_code) == (words.QUEUED, 1, 700.0, 1)
    job = start(store, job)
    assert (job.attempt, job.not_before, job.exit_code, job.reason, job.started_at) == (2, None, None, None, None)
    assert [attempt.state for attempt in store.attempts(1)] == [words.FAILED, words.STARTING]


def test_misfires_are_counted_in_a_row(store: Store) -> None:
    job = one(store)
    for misfires in (1, 2):
        job = start(store, job)
        store.apply([], [Move(1, job.attempt, words.QUEUED, words.LOST, an_exit("engine_failed"), misfire=True)], 200.0)
        (job,) = store.jobs([1])
        assert job.misfires == misfires
    assert run(store, job).misfires == 0


def test_a_job_that_never_started_ends_without_an_attempt(store: Store) -> None:
    one(store)
    store.apply([], [Move(1, 0, words.CANCELLED, None, an_exit("cancelled"))], 300.0)
    assert store.attempts(1) == []
    assert store.jobs([1])[0].state == words.CANCELLED


def test_moves_come_before_starts_in_one_transaction(store: Store) -> None:
    job = run(store, one(store))
    back = Move(1, 1, words.QUEUED, words.LOST, an_exit("reboot"))
    assert store.apply([replace(job)], [back], 500.0) == {1}
    assert (store.jobs([1])[0].state, store.jobs([1])[0].attempt) == (words.STARTING, 2)


# --- GPUs of a job ---


def test_a_start_records_the_gpus_that_it_was_given(store: Store) -> None:
    first, second = one(store), one(store)
    assert store.apply([first, second], [], 110.0, {first.id: ["GPU-a", "GPU-b"], 99: ["GPU-c"]}) == {1, 2}
    assert [job.allotted for job in store.jobs([1, 2])] == [["GPU-a", "GPU-b"], []]
    assert [store.attempts(job_id)[0].allotted for job_id in (1, 2)] == [["GPU-a", "GPU-b"], []]


def test_a_start_that_is_left_alone_takes_no_gpu(store: Store) -> None:
    job = one(store)
    store.apply([job], [], 110.0, {job.id: ["GPU-a"]})
    assert store.apply([job], [], 111.0, {job.id: ["GPU-b"]}) == set()
    assert store.jobs([job.id])[0].allotted == ["GPU-a"]


def test_a_job_that_goes_back_to_the_queue_has_no_gpu_and_its_attempt_keeps_its_own(store: Store) -> None:
    job = one(store)
    store.apply([job], [], 110.0, {job.id: ["GPU-a"]})
    store.apply([], [Move(1, 1, words.RUNNING, started_at=120.0)], 121.0)
    assert store.jobs([1])[0].allotted == ["GPU-a"]
    store.apply([], [Move(1, 1, words.QUEUED, words.FAILED, an_exit("exit_code"), retry=True)], 500.0)
    (job,) = store.jobs([1])
    assert job.allotted == []
    store.apply([job], [], 600.0, {1: ["GPU-b"]})
    job = end(store, store.jobs([1])[0])
    assert job.allotted == ["GPU-b"]
    assert [attempt.allotted for attempt in store.attempts(1)] == [["GPU-a"], ["GPU-b"]]


def test_what_a_move_says_of_gpu_memory_stays_until_another_says_more(store: Store) -> None:
    job = run(store, one(store))
    store.apply([], [Move(1, 1, words.RUNNING, gpu_peak_bytes=5)], 130.0)
    failed = Exit("cuda_out_of_memory", 1, None, "CUDA out of memory", 200.0, True)
    back = Move(1, 1, words.QUEUED, words.FAILED, failed, retry=True, gpu_peak_bytes=7, gpu_floor_bytes=24)
    store.apply([], [back], 201.0)
    (job,) = store.jobs([1])
    assert (job.gpu_peak_bytes, job.gpu_floor_bytes, job.shares) == (7, 24, False)
    job = end(store, run(store, job))
    assert (job.gpu_peak_bytes, job.gpu_floor_bytes) == (7, 24)
    assert [attempt.gpu_peak_bytes for attempt in store.attempts(1)] == [7, None]


def test_a_job_reads_back_with_what_it_asked_of_gpus(store: Store) -> None:
    spec = a_spec(gpus=2, gpu_type="3090", gpu_memory_bytes=8 << 30, exclusive=True)
    job = one(store, spec=spec, program="train.py", expected_seconds=90.5)
    assert store.jobs([job.id]) == [job]
    assert (job.gpus, job.gpu_type, job.gpu_memory_bytes, job.exclusive) == (2, "3090", 8 << 30, True)
    assert (job.expected_seconds, job.allotted, job.gpu_floor_bytes, job.gpu_peak_bytes) == (90.5, [], None, None)


def test_an_adopted_process_is_a_job_without_a_cpu(store: Store) -> None:
    spec = a_spec("python", "train.py", cpus=0, adopts=[4242, 987654], gpu_uuids=["GPU-a"])
    job = one(store, spec=spec)
    assert (job.cpus, job.adopts, job.gpu_uuids) == (0, [4242, 987654], ["GPU-a"])
    assert store.jobs([job.id]) == [job]
    assert store.spec(job.spec_id) == spec


# --- past runs of a program ---


def test_past_runs_of_a_program_are_told_newest_first(store: Store) -> None:
    small = a_spec(gpus=1, gpu_memory_bytes=8 << 30)
    one(store, program="other.py")
    for spec in (small, small, a_spec()):
        one(store, spec=spec, program="train.py")
    one(store, program="train.py")  # not ended
    end(store, run(store, store.jobs([1])[0]))
    store.apply([store.jobs([2])[0]], [], 110.0, {2: ["GPU-a"]})
    done = Exit(None, 0, None, "", 900.0, True, 130.0)
    store.apply([], [Move(2, 1, words.SUCCEEDED, words.SUCCEEDED, done, gpu_peak_bytes=5 << 30)], 901.0)
    store.apply([], [Move(3, 0, words.CANCELLED, None, replace(an_exit("cancelled"), ended_at=950.0))], 951.0)
    end(store, run(store, store.jobs([4])[0]), replace(an_exit("exit_code"), ended_at=900.0), words.FAILED)
    assert store.past("train.py") == [
        Past(3, words.CANCELLED, "cancelled", None, None, 8 << 30, 0, 950.0),
        Past(4, words.FAILED, "exit_code", 780.0, None, 0, 0, 900.0),
        Past(2, words.SUCCEEDED, None, 770.0, 5 << 30, 8 << 30, 1, 900.0),
    ]
    assert [past.job for past in store.past("train.py", 1)] == [3]


def test_a_past_run_lasted_as_long_as_its_last_attempt_not_as_it_waited_to_be_cancelled(store: Store) -> None:
    job = one(store, program="train.py")
    store.apply([job], [], 110.0, {1: ["GPU-a"]})
    failed = Exit("exit_code", 1, None, "", 200.0, True, 120.0)
    store.apply([], [Move(1, 1, words.QUEUED, words.FAILED, failed, retry=True)], 201.0)
    store.apply([], [Move(1, 1, words.CANCELLED, None, Exit("cancelled", None, None, "", 9000.0, False))], 9000.0)
    assert store.past("train.py") == [Past(1, words.CANCELLED, "cancelled", 80.0, None, 0, 1, 9000.0)]


def test_jobs_without_a_program_have_no_past(store: Store) -> None:
    end(store, run(store, one(store)))
    assert store.past("") == []


def test_past_runs_are_found_by_an_index_and_never_sorted(store: Store) -> None:
    with store._read():
        explain = f"EXPLAIN QUERY PLAN {statements.PAST.text}"
        plan = [row[-1] for row in store._connection.exec_driver_sql(explain, {"program": "train.py", "limit": 20})]
    assert plan[0].startswith("SEARCH jobs USING INDEX jobs_by_program (program=?"), plan
    assert [step.split()[0] for step in plan] == ["SEARCH"] * 3, plan


# --- GPUs of the box ---


def a_gpu(uuid: str = "GPU-a", at: float = 100.0, **values: Any) -> KnownGpu:
    known = {"name": "RTX 3090", "bus_id": "00000000:01:00.0", "memory_bytes": 24 << 30, "unified": False}
    return KnownGpu(**{"uuid": uuid, **known, "drained": False, "first_seen_at": at, "last_seen_at": at, **values})


def test_gpus_that_were_seen_are_known_in_the_order_of_the_bus(store: Store) -> None:
    first, second = a_gpu("GPU-z"), a_gpu("GPU-a", bus_id="00000000:02:00.0", memory_bytes=None, unified=True)
    assert store.gpus() == []
    store.see_gpus([second, first])
    store.see_gpus([])
    assert store.gpus() == [first, second]


def test_seeing_a_gpu_again_keeps_when_it_came_and_what_people_said_of_it(store: Store) -> None:
    stuck = Stuck(7, 2, ((4242, 987654),), 150.0)
    store.see_gpus([a_gpu()])
    store.drain_gpu("GPU-a", True)
    store.stuck_gpu(["GPU-a"], stuck)
    moved = a_gpu(at=200.0, name="NVIDIA GeForce RTX 3090", bus_id="00000000:02:00.0", memory_bytes=None)
    store.see_gpus([moved])
    kept = {"memory_bytes": 24 << 30, "first_seen_at": 100.0, "drained": True, "stuck": stuck}
    assert store.gpus() == [replace(moved, **kept)]
    store.drain_gpu("GPU-a", False)
    store.stuck_gpu(["GPU-a"], None)
    assert store.gpus() == [replace(moved, **kept | {"drained": False, "stuck": None})]


def test_a_new_gpu_is_neither_drained_nor_stuck(store: Store) -> None:
    store.see_gpus([a_gpu(drained=True, stuck=Stuck(1, 1, (), 1.0))])
    assert store.gpus() == [a_gpu()]


def test_a_gpu_is_stuck_in_the_same_transaction_as_its_job_ends(tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/runner.db")
    store.see_gpus([a_gpu(), a_gpu("GPU-b")])
    job = run(store, one(store))
    left = Stuck(job.id, job.attempt, (), 500.0)
    ends = [Move(job.id, job.attempt, words.FAILED, words.FAILED, an_exit("signal"))]
    with store._write():
        store._connection.exec_driver_sql(
            "CREATE TEMP TRIGGER no_more BEFORE UPDATE ON jobs BEGIN SELECT RAISE(ABORT, 'is full'); END"
        )
    with pytest.raises(DiskFull):
        store.apply([], ends, 500.0, stuck={"GPU-a": left})
    assert [gpu.stuck for gpu in store.gpus()] == [None, None]
    with store._write():
        store._connection.exec_driver_sql("DROP TRIGGER no_more")
    assert store.apply([], ends, 500.0, stuck={"GPU-a": left, "GPU-never-seen": left}) == {job.id}
    store.close()
    store = Store(f"{tmp_path}/runner.db")
    assert [gpu.stuck for gpu in store.gpus()] == [left, None]
    store.apply([], [], 501.0, stuck={"GPU-a": None})
    assert [gpu.stuck for gpu in store.gpus()] == [None, None]
    store.close()


def test_a_gpu_is_forgotten_and_one_that_was_never_seen_is_named(store: Store) -> None:
    store.see_gpus([a_gpu()])
    store.forget_gpu("GPU-a")
    assert store.gpus() == []
    with pytest.raises(NotFound, match="this box has no GPU GPU-a"):
        store.forget_gpu("GPU-a")
    with pytest.raises(NotFound, match="this box has no GPU GPU-a"):
        store.drain_gpu("GPU-a", True)


# --- wishes and reading ---


def test_a_wish_reaches_all_the_unfinished_jobs_it_names(store: Store) -> None:
    store.submit(a_request(jobs=1200), 100.0)
    store.wish(range(1, 1101), priority=5)
    assert sum(job.priority == 5 for job in store.unfinished()) == 1100


def test_a_finished_jobs_outputs_are_marked(store: Store) -> None:
    end(store, run(store, one(store)))
    store.mark(1, fetched_at=900.0)
    assert store.jobs([1])[0].fetched_at == 900.0
    assert store.endings(501.0) == [(1, 500.0, 900.0, None)]
    assert store.endings(499.0) == []


def test_a_job_that_is_not_there_is_named(store: Store) -> None:
    one(store)
    for missing in (2, 0, -5, 1 << 70):
        with pytest.raises(NotFound, match=f"there is no job {missing}"):
            store.jobs([1, missing])
    assert store.states([1, 2, -1, 1 << 70]) == {1: words.QUEUED}
    with pytest.raises(NotFound):
        store.group(1 << 70)


def test_the_last_jobs_are_those_that_ended_last(store: Store) -> None:
    jobs = store.submit(a_request(jobs=6), 100.0)
    for place, job in enumerate(jobs[:4]):
        end(store, run(store, job), replace(an_exit(), ended_at=900.0 - place))
    assert [job.id for job in store.last(2)] == [1, 2]
    assert store.last(2, [words.FAILED]) == store.last(0) == []


def test_a_group_is_counted_as_a_whole(store: Store) -> None:
    one(store)
    jobs = store.submit(a_request(a_spec(name="many"), jobs=3), 100.0)
    end(store, run(store, jobs[0]))
    assert store.groups([2, 9]) == [Group("g2", "many", "ann", 100.0, 2, 4, {words.SUCCEEDED: 1, words.QUEUED: 2})]
    assert store.groups([]) == []


def test_many_moves_are_applied_at_once_and_one_by_one_when_some_are_elsewhere(store: Store) -> None:
    jobs = store.submit(a_request(jobs=50), 100.0)
    store.apply(jobs[:25], [], 110.0)
    started = [Move(job.id, 1, words.RUNNING, started_at=120.0) for job in jobs[:25]]
    assert store.apply([], started, 121.0) == {job.id for job in jobs[:25]}
    assert {attempt.state for job in jobs[:25] for attempt in store.attempts(job.id)} == {words.RUNNING}
    ends = [Move(job.id, 0, words.CANCELLED, None, an_exit("cancelled")) for job in jobs]
    assert store.apply([], ends, 300.0) == {job.id for job in jobs[25:]}, "the others are at attempt 1"
    assert store.counts() == {words.RUNNING: 25, words.CANCELLED: 25}


def test_a_database_that_failed_says_so_to_whoever_asks_later(store: Store) -> None:
    assert store.damage is None
    with pytest.raises(StateDamaged) as failure, store._read():
        raise sqlite3.DatabaseError("database disk image is malformed")
    assert store.damage is failure.value


def test_facts_about_the_box_outlive_the_daemon(tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/runner.db")
    assert store.remembered("draining") is None
    store.remember("draining", "yes")
    store.remember("draining", "no")
    box_id = store.box_id
    store.close()
    store = Store(f"{tmp_path}/runner.db")
    assert (store.remembered("draining"), store.box_id) == ("no", box_id)
    store.close()


def test_snapshots_that_jobs_name_are_known(store: Store) -> None:
    for name in ("a", "b", "a", None):
        one(store, spec=a_spec(snapshot=name))
    assert store.live_snapshots() == {"a", "b"}


# --- every job, as JSON ---


def every(store: Store, states: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(store.every(states)).splitlines()]


def test_every_job_as_json_is_the_schema_of_a_job(store: Store) -> None:
    spec = a_spec(
        "sh", "-c", 'echo "ü\\"\n', name='a "name"\n', cpus=2, time_limit=1.5, after=[After(1, True), After(2)]
    )
    spec = replace(spec, gpus=1, gpu_type="3090", gpu_memory_bytes=5, exclusive=True, adopts=[7, 8], gpu_uuids=["GPU"])
    one(store, spec=spec, environment="e1", held=True, program="train.py", expected_seconds=12.5)
    store.submit(replace(a_request(jobs=2), params=[{"lr": '"'}, {}]), 1763712345.125)
    end(store, run(store, store.jobs([2])[0]), Exit("signal", None, 9, "\x1b[31m", 600.25, True, 550.5), words.FAILED)
    store.apply([store.jobs([3])[0]], [], 110.0, {3: ["GPU-a", "GPU-b"]})
    store.apply([], [Move(3, 1, words.RUNNING, gpu_peak_bytes=1 << 40, gpu_floor_bytes=3)], 120.0)
    lines = every(store)
    assert [set(line) for line in lines] == [{each.name for each in fields(Job)}] * 3
    for line, job in zip(lines, store.jobs([1, 2, 3]), strict=True):
        line["after"] = [After(**after) for after in line["after"]]
        assert Job(**line) == job


def test_every_job_may_be_asked_for_by_state_and_in_pieces(store: Store) -> None:
    jobs = store.submit(a_request(jobs=1201), 100.0)
    run(store, jobs[700])
    assert [line["id"] for line in every(store)] == list(range(1, 1202))
    assert [line["id"] for line in every(store, (words.RUNNING, words.FAILED))] == [701]
    assert every(store, ("x') OR ('' = '", '"')) == []


def test_a_spec_of_another_version_loads() -> None:
    spec = a_spec("true", after=[After(3)], env={"A": "b"})
    body = json.loads(dump_spec(spec))
    assert load_spec(json.dumps(body | {"from_the_future": [1]})) == spec
    assert load_spec('{"command": ["true"]}') == JobSpec(["true"])


# --- the file ---


def test_every_commit_is_synced(store: Store) -> None:
    pragmas = {
        name: store._connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
    }
    store._connection.rollback()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}


def test_a_database_that_another_program_has_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{tmp_path}/runner.db"
    Store(path).close()
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN EXCLUSIVE'); print(1, flush=True)"
    script += "; input()"
    command = [sys.executable, "-c", script, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        monkeypatch.setattr(migrations, "LOCK_SECONDS", 0.1)
        with pytest.raises(Busy, match="is held by another program"):
            Store(path)
        other.communicate("\n")
    Store(path).close()


def test_two_daemons_can_not_have_one_database(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "LOCK_SECONDS", 0.1)
    with pytest.raises(Busy):
        Store(store.path)
    assert one(store).id == 1, "the first one goes on"


def test_a_full_database_is_told_and_goes_on_when_there_is_room(store: Store) -> None:
    one(store)
    pages = store._connection.exec_driver_sql("PRAGMA page_count").scalar()
    store._connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    store._connection.rollback()
    with pytest.raises(DiskFull, match="the box's disk is full: nothing was changed"):
        store.submit(a_request(jobs=5000), 100.0)
    assert store.counts() == {words.QUEUED: 1}
    store._connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    store._connection.rollback()
    assert [job.id for job in store.submit(a_request(jobs=2), 100.0)] == [2, 3]


@pytest.mark.root
def test_a_full_disk_is_told_and_nothing_that_was_acknowledged_is_lost(tmp_path: Path) -> None:
    need_root()
    mount, umount = need("mount"), need("umount")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        store = Store(f"{place}/runner.db")
        acknowledged = 0

        def fill() -> None:
            nonlocal acknowledged
            while True:
                acknowledged += len(store.submit(a_request(jobs=100), 100.0))

        with pytest.raises(DiskFull):
            fill()
        assert store.counts() == {words.QUEUED: acknowledged}
        store.close()
        store = Store(f"{place}/runner.db")
        assert store.counts() == {words.QUEUED: acknowledged}
        store.close()
    finally:
        subprocess.run([umount, str(place)], check=True)
