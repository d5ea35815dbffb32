"""What people ask of the queue, who may ask it, and what becomes of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import ADMIN, ANN, BOB, EVE, Hall, Scripted, a_hall, a_job, a_process, a_reading, a_spec

from runner import words
from runner.box.gpus.cards import LOST_FRAMES
from runner.box.wishes import ended_because
from runner.errors import BadRequest, Busy, KeyReused, NotFound, Refused, TooMuch
from runner.job import processes
from runner.model import After, Evidence, Principal, Process, Submission


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    with a_hall(tmp_path / "state") as made:
        yield made


def base(**values: Any) -> dict[str, Any]:
    return {"environment": "base", **values}


# --- submit ---


def test_the_same_key_and_body_make_one_job(hall: Hall) -> None:
    submission = Submission(a_spec("true"))
    first, known = hall.wishes.submit(ANN, submission, "key", "digest")
    again, known_again = hall.wishes.submit(ANN, submission, "key", "digest")
    assert (known, known_again) == (False, True)
    assert first.id == again.id
    assert len(hall.store.unfinished()) == 1
    with pytest.raises(KeyReused):
        hall.wishes.submit(ANN, submission, "key", "other body")
    other, known = hall.wishes.submit(BOB, submission, "key", "other body")
    assert (other.id, known) == (2, False)


def test_a_refused_submission_leaves_nothing_behind(hall: Hall) -> None:
    with pytest.raises(TooMuch):
        hall.submit("true", cpus=5)
    with pytest.raises(BadRequest):
        hall.submit("true", after=[After(9)])
    assert hall.store.counts() == {}
    assert hall.daemon.book.jobs == {}


def test_ids_are_above_every_directory_on_disk(tmp_path: Path) -> None:
    (tmp_path / "state" / "jobs" / "41").mkdir(parents=True)
    with a_hall(tmp_path / "state") as hall:
        assert hall.submit("true").id == 42
        assert hall.daemon.unknown == [41]
        assert hall.reports == ["jobs/41 belongs to no job in the database: kept, not run"]


def test_a_submission_to_a_draining_box_is_taken_with_a_warning(hall: Hall) -> None:
    hall.wishes.drain(ADMIN, True)
    made, _ = hall.wishes.submit(ANN, Submission(a_spec("true")), None, "")
    assert made.warnings == ["the box is draining: `runner drain --off` lets jobs start again"]


def test_a_job_is_rerun_as_it_was(hall: Hall) -> None:
    job = hall.submit("python", "train.py", "{lr}", sweep={"lr": ["1", "2"]}, array=[4, 5], who=ANN, retries=2)
    first = hall.store.jobs([job.id + 3])[0]
    made, _ = hall.wishes.rerun(BOB, first.id, None, "")
    (again,) = hall.store.jobs([made.id])
    for same in ("command", "params", "array_index", "retries", "snapshot"):
        assert getattr(again, same) == getattr(first, same)
    assert (again.user, again.params, again.array_index) == ("bob", {"lr": "2"}, 5)


def test_a_member_of_a_sweep_alone_is_rerun_with_its_parameters(hall: Hall) -> None:
    jobs = hall.submit_all("x", sweep={"lr": ["1", "2"]})
    made, _ = hall.wishes.rerun(ADMIN, jobs[1].id, None, "")
    (again,) = hall.store.jobs([made.id])
    assert (again.params, again.array_index) == ({"lr": "2"}, 1)


def test_a_rerun_gives_nobodys_secrets_to_anothers_code(hall: Hall) -> None:
    job = hall.submit("true", secrets=["KEY"], who=BOB)
    with pytest.raises(Refused, match="given your KEY"):
        hall.wishes.rerun(ANN, job.id, None, "")
    assert hall.wishes.rerun(BOB, job.id, None, "")[0].id > job.id


def test_a_rerun_does_not_wait_for_what_the_first_one_waited_for(hall: Hall) -> None:
    first = hall.submit("true")
    job = hall.submit("true", after=[After(first.id)])
    made, _ = hall.wishes.rerun(ADMIN, job.id, None, "")
    (again,) = hall.store.jobs([made.id])
    assert (again.after, again.group, again.array_index) == ([], None, None)


# --- who may ---


WISHES: dict[str, Callable[[Hall, Principal, int], object]] = {
    "cancel": lambda hall, who, job: hall.wishes.cancel(who, [job], None),
    "hold": lambda hall, who, job: hall.wishes.hold(who, [job]),
    "release": lambda hall, who, job: hall.wishes.release(who, [job]),
    "prioritise": lambda hall, who, job: hall.wishes.prioritise(who, [job], 5),
    "fetched": lambda hall, who, job: hall.wishes.fetched(hall.wishes.fetching(who, job)),
}


@pytest.mark.parametrize("wish", WISHES)
def test_only_its_owner_and_administrators_may_touch_a_job(hall: Hall, wish: str) -> None:
    job = hall.submit("true", who=ANN)
    with pytest.raises(Refused, match="job 1 is ann's; you may not"):
        WISHES[wish](hall, BOB, job.id)
    with pytest.raises(Refused, match="eve may look, but not change anything"):
        WISHES[wish](hall, EVE, job.id)
    assert hall.store.unfinished() == [job]
    WISHES[wish](hall, ANN, job.id)
    WISHES[wish](hall, ADMIN, hall.submit("true", who=ANN).id)


@pytest.mark.parametrize("wish", WISHES)
def test_a_wish_about_no_job_is_refused(hall: Hall, wish: str) -> None:
    with pytest.raises(NotFound, match="there is no job 7"):
        WISHES[wish](hall, ANN, 7)


def test_a_wish_about_one_job_of_another_does_nothing_to_any(hall: Hall) -> None:
    jobs = [hall.submit("true", who=ANN), hall.submit("true", who=BOB)]
    with pytest.raises(Refused):
        hall.wishes.cancel(ANN, [job.id for job in jobs], None)
    assert hall.states(*jobs) == [words.QUEUED, words.QUEUED]


def test_who_only_looks_may_not_submit_or_rerun(hall: Hall) -> None:
    hall.submit("true")
    for ask in (
        lambda: hall.submit("true", who=EVE),
        lambda: hall.wishes.rerun(EVE, 1, None, ""),
        lambda: hall.wishes.drain(EVE, True),
        lambda: hall.wishes.drain(ANN, True),
    ):
        with pytest.raises(Refused):
            ask()


# --- cancel ---


def test_a_queued_job_is_cancelled_at_once(hall: Hall) -> None:
    job = hall.submit("true")
    hall.wishes.cancel(ADMIN, [job.id], None)
    ended = hall.read(job)
    assert (ended.state, ended.reason, ended.attempt) == (words.CANCELLED, "cancelled", 0)
    assert hall.engine.stopped == []
    hall.agrees()


def test_a_running_job_is_asked_to_stop_and_stays_until_it_has(hall: Hall) -> None:
    job = hall.submit("true", **base())
    hall.turn()
    hall.engine.runs(job)
    hall.turn()
    hall.wishes.cancel(ADMIN, [job.id], 3.0)
    (stop,) = hall.engine.stopped
    assert (stop.key, stop.grace, stop.fence, stop.ran) == ((job.id, 1), 3.0, False, True)
    assert hall.read(job).state == words.RUNNING
    assert hall.read(job).cancel_requested_at is not None
    hall.agrees()
    hall.engine.ends(job, reason="cancelled")
    hall.turn()
    assert hall.states(job) == [words.CANCELLED]


def test_a_finished_job_is_left_as_it_is(hall: Hall) -> None:
    job = hall.submit("true", **base())
    hall.turn()
    hall.engine.ends(job)
    hall.turn()
    before = hall.read(job)
    assert hall.wishes.cancel(ADMIN, [job.id], 0) == [before]
    assert hall.read(job) == before
    assert hall.engine.stopped == []


def test_a_chain_that_is_cancelled_as_a_whole_is_cancelled_not_failed(hall: Hall) -> None:
    first = hall.submit("true")
    second = hall.submit("true", after=[After(first.id)])
    third = hall.submit("true", after=[After(second.id)])
    hall.wishes.cancel(ADMIN, [first.id, second.id], None)
    assert hall.states(first, second, third) == [words.CANCELLED, words.CANCELLED, words.FAILED]


def test_a_cancel_outlives_the_daemon(tmp_path: Path) -> None:
    engine = Scripted()
    with a_hall(tmp_path / "state", engine) as hall:
        job = hall.submit("true", **base())
        hall.turn()
        hall.wishes.cancel(ADMIN, [job.id], None)
    engine.stopped.clear()
    with a_hall(tmp_path / "state", engine) as hall:
        assert [stop.key for stop in engine.stopped] == [(job.id, 1)]
        hall.engine.ends(job, reason="cancelled")
        hall.turn()
        assert hall.states(job) == [words.CANCELLED]


# --- hold, release, order ---


def test_a_held_job_waits_until_it_is_released(hall: Hall) -> None:
    job = hall.submit("true", held=True, **base())
    hall.turn()
    assert hall.wishes.why(job) == "held; `runner release 1` lets it go"
    hall.wishes.release(ADMIN, [job.id])
    hall.agrees()
    assert hall.wishes.why(job) == "starts now"
    hall.turn()
    assert hall.states(job) == [words.STARTING]


def test_a_hold_survives_a_restart(tmp_path: Path) -> None:
    with a_hall(tmp_path / "state") as hall:
        job = hall.submit("true", **base())
        hall.wishes.hold(ADMIN, [job.id])
    with a_hall(tmp_path / "state") as hall:
        hall.turn()
        assert hall.states(job) == [words.QUEUED]


def test_only_a_waiting_job_can_be_held_or_moved(hall: Hall) -> None:
    jobs = hall.submit("true", **base()), hall.submit("true", held=True)
    hall.turn()
    with pytest.raises(Busy, match="job 1 is starting; only a waiting job can be held"):
        hall.wishes.hold(ADMIN, [1])
    with pytest.raises(Busy, match="only a waiting job can be moved in the queue"):
        hall.wishes.prioritise(ADMIN, [1], 3)
    assert [job.id for job in hall.wishes.prioritise(ADMIN, [1, 2], 3)] == [2]
    assert (hall.read(jobs[0]).priority, hall.read(jobs[1]).priority) == (0, 3)


def test_a_reprioritised_job_starts_first(hall: Hall) -> None:
    jobs = hall.submit_all("true", array=[0, 1, 2], cpus=4, **base())
    hall.wishes.prioritise(ADMIN, [jobs[2].id], 10)
    hall.wishes.prioritise(ADMIN, [jobs[0].id], -10)
    assert [job.id for job in hall.daemon.book.queued] == [3, 2, 1]
    hall.agrees()
    hall.turn()
    assert hall.states(*jobs) == [words.QUEUED, words.QUEUED, words.STARTING]


@pytest.mark.parametrize("priority", [-1001, 1001])
def test_a_priority_has_bounds(hall: Hall, priority: int) -> None:
    hall.submit("true")
    with pytest.raises(BadRequest, match="it takes -1000 to 1000"):
        hall.wishes.prioritise(ADMIN, [1], priority)


# --- dependencies ---


def test_a_chain_fails_with_a_sentence_when_its_first_job_does(hall: Hall) -> None:
    first = hall.submit("false", **base())
    second = hall.submit("true", after=[After(first.id)], **base())
    third = hall.submit("true", after=[After(second.id)], **base())
    anyhow = hall.submit("true", after=[After(first.id, any_end=True), After(third.id, any_end=True)], **base())
    hall.turn()
    assert hall.states(first, second, third, anyhow) == [words.STARTING, *[words.QUEUED] * 3]
    assert hall.wishes.why(second) == "waits for job 1 to succeed"
    hall.engine.ends(first, reason="exit_code")
    hall.turn()
    assert hall.states(first, second, third) == [words.FAILED] * 3
    assert hall.states(anyhow) == [words.STARTING], "it starts in the same pass"
    assert ended_because(hall.read(second)) == (
        "failed: a job that it waits for did not succeed: job 1, which it waits for, ended as failed"
    )
    assert hall.read(third).detail == "job 2, which it waits for, ended as failed"
    hall.agrees()


def test_a_job_starts_when_all_that_it_waits_for_succeeded(hall: Hall) -> None:
    first, second = hall.submit("true", **base()), hall.submit("true", **base())
    job = hall.submit("true", after=[After(first.id), After(second.id)], **base())
    hall.turn()
    hall.engine.ends(first)
    hall.turn()
    assert hall.wishes.why(job) == "waits for job 2 to succeed"
    hall.engine.ends(second)
    hall.turn()
    assert hall.states(job) == [words.STARTING]
    assert hall.daemon.book.ended.keys() == {first.id, second.id}
    hall.engine.ends(job)
    hall.turn()
    assert hall.daemon.book.ended == {}


def test_a_dependency_that_succeeded_before_is_no_obstacle_even_after_a_restart(tmp_path: Path) -> None:
    with a_hall(tmp_path / "state") as hall:
        first = hall.submit("true", **base())
        hall.turn()
        hall.engine.ends(first)
        hall.turn()
        job = hall.submit("true", after=[After(first.id)], **base())
    with a_hall(tmp_path / "state") as hall:
        hall.turn()
        assert hall.states(job) == [words.STARTING]


# --- drain ---


def test_a_draining_box_starts_nothing_even_after_a_restart(tmp_path: Path) -> None:
    with a_hall(tmp_path / "state") as hall:
        job = hall.submit("true", **base())
        hall.wishes.drain(ADMIN, True)
        hall.turn()
    with a_hall(tmp_path / "state") as hall:
        hall.turn()
        assert hall.wishes.why(job) == "the box is draining: `runner drain --off` lets jobs start again"
        hall.wishes.drain(ADMIN, False)
        hall.turn()
        assert hall.states(job) == [words.STARTING]


# --- questions ---


def test_jobs_are_named_by_number_and_by_group(hall: Hall) -> None:
    hall.submit_all("true", array=[0, 1, 2])
    assert hall.wishes.numbers([7, "8", "g1"]) == [7, 8, 1, 2, 3]
    with pytest.raises(NotFound):
        hall.wishes.numbers(["g2"])


@pytest.mark.parametrize("name", ["", "g", "x", "-1", "1.5", "²", "g²", "g-1"])
def test_what_names_no_job_is_refused(hall: Hall, name: str) -> None:
    with pytest.raises(BadRequest, match=f"{re.escape(repr(name))} is not a job"):
        hall.wishes.numbers([name])


def test_why_tells_what_a_job_does_or_became(hall: Hall) -> None:
    job = hall.submit("true", **base())
    hall.turn()
    assert hall.wishes.why(job) == "it is starting"
    hall.engine.runs(job)
    hall.turn()
    assert re.fullmatch(r"it is running, for .+", hall.wishes.why(job))
    hall.engine.ends(job)
    hall.turn()
    assert hall.wishes.why(hall.read(job)) == "it succeeded"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"state": words.SUCCEEDED}, "it succeeded"),
        ({"state": words.LOST}, "it is lost"),
        (
            {"state": words.FAILED, "reason": "exit_code", "exit_code": 3, "detail": "ValueError"},
            "failed: the command ended with a code other than 0 (3): ValueError",
        ),
        ({"state": words.FAILED, "reason": "signal", "signal": 9}, "failed: the command was ended by a signal (9)"),
        ({"state": words.FAILED, "reason": "from_the_future"}, "failed: from_the_future"),
    ],
)
def test_an_end_is_told_in_a_sentence(values: dict[str, Any], said: str) -> None:
    assert ended_because(a_job(1, **values)) == said


def test_outputs_are_marked_as_fetched_only_when_the_job_is_over(hall: Hall) -> None:
    job = hall.submit("true", **base())
    hall.wishes.fetched(hall.wishes.fetching(ADMIN, job.id))
    assert hall.read(job).fetched_at is None
    hall.turn()
    hall.engine.ends(job)
    hall.turn()
    hall.wishes.fetched(hall.wishes.fetching(ADMIN, job.id))
    assert hall.read(job).fetched_at is not None


# --- GPUs ---

A, B = "GPU-0000", "GPU-0001"
ALICE = Principal(1004, "alice", "submit")


def mine(gib: float = 5, **values: Any) -> Process:
    """This very process, as the driver lists it."""
    me = os.getpid()
    return a_process(me, gib, started=processes.started(me) or 0, **values)


def test_a_process_is_adopted_waited_for_and_let_go(hall: Hall) -> None:
    hall.sees(a_reading(A, 5, processes=[mine()]), a_reading(B, 2, processes=[mine(2)]))
    waiting = hall.submit("true", gpus=2, **base())
    made = hall.wishes.adopt(ALICE, os.getpid())
    (job,) = hall.store.jobs([made.id])
    assert (made.state, job.state, job.cpus, job.gpus, job.allotted) == (words.STARTING, words.STARTING, 0, 2, [A, B])
    assert (job.name, job.user, job.adopts[0]) == ("python train.py", "alice", os.getpid())
    assert hall.engine.launched[0].spec["argv"] == [str(part) for part in job.adopts]
    hall.agrees()
    hall.engine.runs(hall.daemon.book.jobs[job.id])
    hall.turn()
    assert hall.why(waiting) == f"needs 2 GPUs, 0 of 2 free: GPU 0 has job {job.id}; GPU 1 has job {job.id}"
    with pytest.raises(Busy, match=f"process {os.getpid()} belongs to job {job.id} already"):
        hall.wishes.adopt(ALICE, os.getpid())
    hall.sees(a_reading(A, 5, processes=[mine()]), a_reading(B, 2, processes=[mine(2)]))
    assert [gpu.foreign_bytes for gpu in hall.daemon.gpus.view(hall.now)] == [0, 0]
    with pytest.raises(Busy, match="belongs to job"):
        hall.wishes.adopt(ALICE, os.getpid())
    hall.wishes.cancel(ALICE, [job.id], None)
    hall.engine.ends(hall.daemon.book.jobs[job.id], reason="cancelled")
    hall.turn()
    hall.sees(a_reading(A, 5, processes=[mine()]), a_reading(B, 2, processes=[mine(2)]))
    assert hall.states(job, waiting) == [words.CANCELLED, words.QUEUED]
    assert "GPU 0 held by alice, python train.py, 5 of 24 GiB" in str(hall.why(waiting))
    hall.sees(a_reading(A, 0, processes=[]), a_reading(B, 0, processes=[]))
    hall.turn()
    assert hall.states(waiting) == [words.STARTING]


def test_a_process_beside_a_job_of_ours_can_be_adopted_and_its_loss_ends_nothing(hall: Hall) -> None:
    hall.sees(a_reading(A))
    job = hall.submit("true", gpus=1, **base())
    hall.turn()
    hall.sees(a_reading(A, 5, processes=[mine()]))
    adopted = hall.wishes.adopt(ADMIN, os.getpid())
    assert hall.daemon.gpus.view(hall.now)[0].jobs == [job.id, adopted.id]
    for _ in range(LOST_FRAMES):
        hall.sees(a_reading(A, None, state="lost"))
        hall.turn()
    assert [stop.key for stop in hall.engine.stopped] == [(job.id, 1)], "what is not ours is not ended"


def test_an_adopted_process_outlives_the_daemon(tmp_path: Path) -> None:
    engine = Scripted()
    with a_hall(tmp_path / "state", engine) as hall:
        hall.sees(a_reading(A, 5, processes=[mine()]))
        made = hall.wishes.adopt(ADMIN, os.getpid())
        engine.runs(hall.daemon.book.jobs[made.id])
        hall.turn()
    with a_hall(tmp_path / "state", engine) as hall:
        hall.sees(a_reading(A, 5, processes=[mine()]))
        hall.turn()
        (gpu,) = hall.daemon.gpus.view(hall.now)
        assert (gpu.state, gpu.jobs, gpu.foreign_bytes) == (words.BUSY, [made.id], 0)
        with pytest.raises(Busy, match="belongs to job"):
            hall.wishes.adopt(ADMIN, os.getpid())


def test_an_adoption_that_never_began_needs_no_cpu(hall: Hall) -> None:
    hall.sees(a_reading(A, 5, processes=[mine()]))
    made = hall.wishes.adopt(ADMIN, os.getpid())
    job = hall.daemon.book.jobs[made.id]
    hall.engine.said[job.id, 1] = Evidence(None, None, False, abandoned=True)
    hall.turn()
    assert (hall.read(job).state, hall.read(job).attempt, hall.read(job).allotted) == (words.STARTING, 2, [A])


@pytest.mark.parametrize(
    ("who", "process", "error", "said"),
    [
        pytest.param(EVE, {}, Refused, "eve may look", id="who only looks"),
        pytest.param(BOB, {}, Refused, "is alice's; you may not adopt it", id="another's"),
        pytest.param(BOB, {"user": ""}, Refused, "you may not adopt it", id="whose is not known"),
        pytest.param(ADMIN, {"alive": False}, NotFound, "holds no GPU here", id="dead"),
        pytest.param(ADMIN, {"started": 5}, NotFound, "has ended meanwhile", id="another under its number"),
    ],
)
def test_what_can_not_be_adopted_is_refused(
    hall: Hall, who: Principal, process: dict[str, Any], error: type[Exception], said: str
) -> None:
    made = mine()
    for name, value in process.items():
        setattr(made, name, value)
    hall.sees(a_reading(A, 5, processes=[made]))
    with pytest.raises(error, match=said):
        hall.wishes.adopt(who, os.getpid())
    with pytest.raises((NotFound, Refused)):
        hall.wishes.adopt(who, 1 << 30)
    assert hall.store.counts() == {}


def test_a_process_of_a_job_is_not_adopted(hall: Hall) -> None:
    hall.sees(a_reading(A))
    job = hall.submit("true", gpus=1, **base())
    hall.turn()
    hall.sees(a_reading(A, 5, processes=[mine(launch=f"{hall.store.box_id}-{job.id}-1")]))
    with pytest.raises(Busy, match=f"belongs to job {job.id} already"):
        hall.wishes.adopt(ADMIN, os.getpid())


def test_a_job_that_runs_waits_for_nothing_any_more(hall: Hall) -> None:
    hall.sees(a_reading(A, 5, processes=[mine()]))
    job = hall.submit("true", gpus=1, **base())
    hall.turn()
    (waits,) = hall.wishes.fresh([hall.read(job)])
    assert "held by" in waits.why
    hall.sees(a_reading(A, 0, processes=[]))
    hall.turn()
    (began,) = hall.wishes.fresh([hall.read(job)])
    assert (began.state, began.why) == (words.STARTING, "")


def test_an_adoption_is_not_rerun(hall: Hall) -> None:
    hall.sees(a_reading(A, 5, processes=[mine()]))
    made = hall.wishes.adopt(ADMIN, os.getpid())
    with pytest.raises(BadRequest, match=f"job {made.id} only waited for process {os.getpid()}"):
        hall.wishes.rerun(ADMIN, made.id, None, "")


def test_a_gpu_is_drained_by_an_administrator(hall: Hall) -> None:
    hall.sees(a_reading(A))
    with pytest.raises(Refused):
        hall.wishes.drain_gpu(ANN, "0", True)
    assert hall.wishes.drain_gpu(ADMIN, "0", True).state == words.DRAINING
    assert hall.store.gpus()[0].drained
    assert hall.wishes.drain_gpu(ADMIN, A, False).drained is False


def test_only_a_gpu_that_is_lost_and_nobodys_is_forgotten(hall: Hall) -> None:
    hall.sees(a_reading(A), a_reading(B))
    job = hall.submit("true", gpus=2, **base())
    hall.turn()
    with pytest.raises(Refused):
        hall.wishes.forget_gpu(ANN, "1")
    with pytest.raises(Busy, match=f"1 has job {job.id}"):
        hall.wishes.forget_gpu(ADMIN, "1")
    hall.engine.ends(job)
    hall.turn()
    with pytest.raises(Busy, match="1 is here"):
        hall.wishes.forget_gpu(ADMIN, "1")
    hall.sees(a_reading(A))
    hall.sees(a_reading(A))
    hall.wishes.forget_gpu(ADMIN, B)
    assert [gpu.uuid for gpu in hall.store.gpus()] == [A]
    assert hall.read(job).allotted == [A, B], "what it had stays known"


def test_who_submits_is_told_that_nothing_is_known_of_the_gpus(hall: Hall) -> None:
    hall.sees(a_reading(A))
    hall.daemon.gpus.words = lambda now: "nothing is known of the GPUs"
    made, _ = hall.wishes.submit(ANN, Submission(a_spec("true", gpus=1)), None, "")
    assert made.warnings == ["nothing is known of the GPUs"]
    made, _ = hall.wishes.submit(ANN, Submission(a_spec("true")), None, "")
    assert made.warnings == []


def test_who_submits_again_is_told_what_the_last_run_used(hall: Hall) -> None:
    hall.sees(a_reading(A))
    job = hall.submit("python", "train.py", gpus=1, **base())
    hall.turn()
    hall.engine.runs(job)
    hall.sees(a_reading(A, 5, processes=[a_process(50, 5, launch=f"{hall.store.box_id}-{job.id}-1")]))
    hall.turn()
    hall.engine.ends(job, started_at=440.0)
    hall.turn()
    made, _ = hall.wishes.submit(ANN, Submission(a_spec("python", "train.py", gpus=1)), None, "")
    assert made.warnings == [
        "its last run, job 1, used 5 GiB of GPU memory; with --gpu-mem 6G others could share the GPU"
    ]
    assert hall.daemon.book.jobs[made.id].expected_seconds == 60.0
