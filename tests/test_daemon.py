"""The loop, driven by hand: gather, settle, schedule, apply, and what a restart finds."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import ADMIN, GIB, Hall, Scripted, a_hall, a_process, a_reading, plain_engine
from tools import wait_until

from runner import files, words
from runner.box.gpus.cards import LOST_FRAMES, MISSED_FRAMES
from runner.box.gpus.frames import LOST, Probe
from runner.box.settle import START_GRACE
from runner.box.store import Move, Stuck
from runner.errors import Busy, DiskFull, NotFound, Problem, StateDamaged
from runner.job import processes
from runner.model import After, Evidence, Job, Principal, Resources
from runner.paths import StateDir


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    with a_hall(tmp_path / "state") as made:
        yield made


def job_of(hall: Hall, **values: Any) -> Job:
    return hall.submit("true", **{"environment": "base", **values})


# --- one job's way ---


def test_a_job_goes_through_the_queue(hall: Hall) -> None:
    job = job_of(hall)
    hall.turn()
    (launch,) = hall.engine.launched
    assert launch.key == (job.id, 1)
    assert hall.states(job) == [words.STARTING]
    hall.engine.runs(job, at=777.0)
    hall.turn()
    assert (hall.read(job).state, hall.read(job).started_at) == (words.RUNNING, 777.0)
    hall.agrees()
    hall.engine.ends(job, started_at=776.0)
    hall.turn()
    assert (hall.read(job).state, hall.read(job).started_at) == (words.SUCCEEDED, 776.0)
    assert hall.daemon.book.jobs == {}
    assert hall.daemon.book.specs == {}
    kinds = [(event.id, event.state) for event in hall.daemon.events.since(hall.daemon.events.last - 4) or []]
    assert kinds == [(1, words.QUEUED), (1, words.STARTING), (1, words.RUNNING), (1, words.SUCCEEDED)]


def test_nothing_is_launched_that_is_not_in_the_database(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(hall)

    def refuse(*_: object) -> set[int]:
        raise DiskFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(hall.store, "apply", refuse)
        os.unlink(hall.daemon.settings.state.ballast)
        with pytest.raises(DiskFull):
            hall.turn()
    assert hall.engine.launched == []
    hall.agrees()
    hall.turn()
    assert hall.states(job) == [words.STARTING]


def test_a_queue_that_disagrees_with_the_database_is_read_again(hall: Hall) -> None:
    job = job_of(hall)
    hall.store.apply([replace(job)], [], 1.0)
    with pytest.raises(StateDamaged, match="disagreed about jobs \\[1\\]"):
        hall.turn()
    assert hall.engine.launched == []
    hall.agrees()


def test_the_ballast_is_given_up_to_record_an_end_on_a_full_disk(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = hall.daemon.settings.state.ballast
    assert os.path.getsize(ballast) == 64 << 20
    job = job_of(hall)
    hall.turn()
    hall.engine.ends(job)
    apply = hall.store.apply

    def full(*given: Any) -> set[int]:
        if os.path.exists(ballast):
            raise DiskFull("full")
        return apply(*given)

    monkeypatch.setattr(hall.store, "apply", full)
    hall.turn()
    assert hall.states(job) == [words.SUCCEEDED]
    assert hall.reports == ["the disk is full: gave up the ballast to record what ended"]
    hall.daemon.keep_ballast()
    assert os.path.exists(ballast)


def test_a_ballast_that_does_not_fit_is_no_ballast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with a_hall(tmp_path / "state") as hall:
        assert not os.path.exists(hall.daemon.settings.state.ballast)


def test_nothing_starts_on_a_disk_that_is_nearly_full(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(hall)
    monkeypatch.setattr(files, "disk_room", lambda path: (1 << 20, 100 << 30))
    hall.turn()
    assert hall.states(job) == [words.QUEUED]
    assert hall.wishes.why(job) == (
        "nothing starts: 1.0 MiB free on the box's disk, 2.0 GiB wanted; see `runner clean`"
    )


# --- retries, misfires, fences ---


def test_a_retry_pauses_and_starts_again_until_none_is_left(hall: Hall) -> None:
    job = job_of(hall, retries=2)
    for attempt, pause in ((1, 1.0), (2, 2.0)):
        hall.turn()
        hall.engine.ends(job, reason="exit_code")
        hall.turn()
        waiting = hall.read(job)
        assert (waiting.state, waiting.attempt, waiting.retries_used) == (words.QUEUED, attempt, attempt)
        assert hall.daemon.wakes_at == waiting.not_before == hall.now + pause
        hall.agrees()
        hall.turn(pause - 0.1)
        assert hall.states(job) == [words.QUEUED]
        hall.now += 0.2
    hall.turn()
    hall.agrees()
    hall.engine.runs(job)
    hall.turn()
    assert hall.daemon.book.jobs[job.id].exit_code is None, "the end of the last attempt is not this one's"
    hall.agrees()
    hall.engine.ends(job, reason="exit_code")
    hall.turn()
    assert (hall.read(job).state, hall.read(job).attempt) == (words.FAILED, 3)
    assert [attempt.state for attempt in hall.store.attempts(job.id)] == [words.FAILED] * 3


def test_the_retry_filter_is_obeyed(hall: Hall) -> None:
    job = job_of(hall, retries=5, retry_on=["signal"])
    hall.turn()
    hall.engine.ends(job, reason="exit_code")
    hall.turn()
    assert hall.states(job) == [words.FAILED]


def test_an_attempt_that_never_runs_is_fenced_and_replaced_and_at_last_given_up(hall: Hall) -> None:
    job = job_of(hall)
    for attempt in (1, 2, 3):
        hall.turn()
        assert hall.read(job).attempt == attempt
        hall.daemon._asked[job.id] -= 60
        hall.engine.said[job.id, attempt] = Evidence(None, None, False)
        hall.turn()
        assert hall.engine.stopped[-1].fence
        hall.engine.said[job.id, attempt] = Evidence(None, None, False, abandoned=True)
        hall.daemon.pass_once(hall.now)
        if attempt < 3:
            assert hall.read(job).misfires == attempt
            hall.agrees()
        if attempt == 2:
            waits = hall.daemon.schedule(hall.now, explain=True).waits
            assert waits[job.id] == "tries again in 2 s (its supervisor did not come)"
            hall.now += 2.0
    ended = hall.read(job)
    assert (ended.state, ended.reason) == (words.FAILED, "engine_failed")
    assert ended.detail == "its supervisor never came to run it (3 times)"
    assert [attempt.ended_at for attempt in hall.store.attempts(job.id)] == [hall.now - 2.0, hall.now - 2.0, hall.now]


@pytest.mark.parametrize("attempt", [1, 2], ids=["this attempt", "another one"])
def test_an_attempt_that_is_known_not_to_come_is_fenced_at_once(hall: Hall, attempt: int) -> None:
    job = job_of(hall)
    hall.turn()
    hall.engine.said[job.id, 1] = Evidence(None, None, False)
    hall.engine.refused += [(job.id, attempt), (99, 1)]
    hall.turn()
    assert [stop.fence for stop in hall.engine.stopped] == [True] * (attempt == 1)


def test_an_attempt_that_can_not_be_read_is_neither_alive_nor_dead(hall: Hall) -> None:
    unreadable, other = job_of(hall), job_of(hall)
    hall.turn()
    del hall.engine.said[unreadable.id, 1]
    hall.engine.ends(other)
    hall.turn(3600.0)
    assert hall.states(unreadable, other) == [words.STARTING, words.SUCCEEDED]


def test_a_job_whose_environment_was_removed_holds_nobody_up_and_has_it_built_again(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = hall.submit("true"), job_of(hall)
    hall.turn()
    hall.engine.ends(first)
    hall.turn()
    third = hall.submit("true")
    hall.environments["e1"] = None  # removed behind the daemon's back
    folders = hall.daemon.bin_dir

    def bin_dir(environment: str | None) -> str:
        if environment in hall.environments:
            raise NotFound("environment e1 is not built")
        return folders(environment)

    monkeypatch.setattr(hall.daemon, "bin_dir", bin_dir)
    fourth = job_of(hall)
    hall.turn()
    assert hall.states(second, third, fourth) == [words.STARTING] * 3
    assert [launch.key[0] for launch in hall.engine.launched] == [first.id, second.id, fourth.id]
    assert hall.reports == [f"job {third.id} could not be started: NotFound: environment e1 is not built"]
    hall.engine.said[third.id, 1] = Evidence(None, None, False, missing=True)
    hall.turn()
    assert hall.engine.stopped[-1].fence
    hall.engine.said[third.id, 1] = Evidence(None, None, False, abandoned=True)
    hall.turn()
    hall.turn()
    assert [launch.key for launch in hall.engine.launched][-1] == (third.id, 2)


def test_a_queue_that_could_only_half_be_read_decides_nothing(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    running, waiting = job_of(hall, cpus=4), job_of(hall, cpus=4)
    hall.turn()
    with monkeypatch.context() as patch:
        patch.setattr(hall.store, "spec", lambda spec_id: _busy())
        with pytest.raises(Busy):
            hall.daemon.reload()
        with pytest.raises(Busy):
            hall.turn()
    assert hall.states(running, waiting) == [words.STARTING, words.QUEUED]
    hall.turn()
    assert hall.states(running, waiting) == [words.STARTING, words.QUEUED]
    hall.agrees()


def _busy() -> None:
    raise Busy("another program has the database")


def test_a_running_job_can_be_cancelled_on_a_full_disk(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = hall.daemon.settings.state.ballast
    job = job_of(hall)
    hall.turn()
    hall.engine.runs(job)
    hall.turn()
    stop = hall.engine.stop

    def full(stops: Any) -> None:
        if os.path.exists(ballast):
            raise OSError(errno.ENOSPC, "No space left on device")
        stop(stops)

    monkeypatch.setattr(hall.engine, "stop", full)
    hall.wishes.cancel(ADMIN, [job.id], None)
    assert [each.key for each in hall.engine.stopped] == [(job.id, 1)]
    hall.agrees()


def test_a_second_cancel_is_passed_on_and_changes_no_time(hall: Hall) -> None:
    job = job_of(hall)
    hall.turn()
    hall.wishes.cancel(ADMIN, [job.id], None)
    hall.wishes.cancel(ADMIN, [job.id], 0.0)
    assert [stop.grace for stop in hall.engine.stopped] == [None, 0.0]
    hall.agrees()


def test_a_clock_that_goes_back_keeps_no_job_waiting(hall: Hall) -> None:
    job = job_of(hall, retries=1)
    hall.turn()
    hall.engine.ends(job, reason="exit_code")
    hall.turn()
    hall.now -= 10 * 365 * 86400
    hall.turn()
    assert hall.read(job).attempt == 2


def test_a_reboot_requeues_in_the_same_pass_and_tells_in_order(hall: Hall) -> None:
    job = job_of(hall, requeue=True)
    hall.turn()
    hall.engine.ends(job, reason="reboot")
    seq = hall.daemon.events.last
    hall.turn()
    assert (hall.read(job).state, hall.read(job).attempt) == (words.STARTING, 2)
    assert [event.state for event in hall.daemon.events.since(seq) or []] == [words.QUEUED, words.STARTING]
    hall.agrees()


# --- made ready ---


def test_an_environment_is_built_while_the_job_waits(hall: Hall) -> None:
    hall.environments["e1"] = None
    job = hall.submit("true")
    assert hall.wishes.why(job) == "its environment (e1) waits to be built"
    hall.daemon.pass_once(hall.now)
    assert hall.wishes.why(job) == "its environment (e1) is being built"
    hall.daemon.pass_once(hall.now)
    assert len(hall.later) == 1, "built once"
    hall.work()
    hall.turn()
    assert hall.states(job) == [words.STARTING]


def test_an_environment_is_built_for_whoever_could_start_however_many_wait_before(hall: Hall) -> None:
    for _ in range(40):
        job_of(hall, held=True)
    hall.environments["e1"] = None
    job = hall.submit("true")
    hall.turn()
    hall.turn()
    assert hall.states(job) == [words.STARTING]


def test_nothing_is_built_while_nothing_may_start(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    hall.environments["e1"] = None
    hall.submit("true")
    monkeypatch.setattr(files, "disk_room", lambda path: (1 << 20, 100 << 30))
    hall.daemon.pass_once(hall.now)
    assert hall.later == []


def test_a_job_that_pauses_is_not_charged_for_a_build_that_another_asked_for(hall: Hall) -> None:
    hall.environments["e1"] = ValueError("network")
    first = hall.submit("true", retries=2)
    hall.turn()
    hall.turn()
    second = hall.submit("true")
    hall.turn(0.1)
    hall.turn(0.1)
    assert hall.states(first, second) == [words.QUEUED, words.FAILED]
    assert hall.read(first).retries_used == 1


def test_a_failed_build_fails_its_jobs_with_the_resolvers_words(hall: Hall) -> None:
    hall.environments["e1"] = Problem("no version of nonsense==9")
    jobs = [hall.submit("true"), hall.submit("true"), job_of(hall)]
    follower = job_of(hall, after=[After(jobs[0].id)])
    hall.turn()
    hall.turn()
    assert hall.states(*jobs) == [words.FAILED, words.FAILED, words.STARTING]
    ended = hall.read(jobs[0])
    assert (ended.reason, ended.detail) == ("environment_failed", "no version of nonsense==9")
    assert hall.states(follower) == [words.FAILED]
    hall.agrees()


def test_a_build_is_tried_again_after_the_pause_and_not_before(hall: Hall) -> None:
    hall.environments["e1"] = ValueError("network")
    job = hall.submit("true", retries=2)
    hall.turn()
    hall.turn()
    assert (hall.read(job).state, hall.read(job).retries_used) == (words.QUEUED, 1)
    hall.agrees()
    for _ in range(3):
        hall.turn()
    assert hall.read(job).retries_used == 1, "while it pauses nothing is built"
    hall.environments["e1"] = None
    hall.turn(1.5)
    hall.turn()
    assert hall.states(job) == [words.STARTING]


def test_a_disk_that_fills_while_building_is_named(hall: Hall) -> None:
    hall.environments["e1"] = DiskFull("no room for torch")
    job = hall.submit("true")
    hall.turn()
    hall.turn()
    assert (hall.read(job).reason, hall.read(job).detail) == ("disk_full", "no room for torch")


def test_work_trees_are_made_for_the_next_few_only(hall: Hall) -> None:
    jobs = [job_of(hall, snapshot=f"s{n}", cpus=4) for n in range(8)]
    hall.turn()
    assert sorted(hall.trees) == [1, 2, 3, 4]
    hall.turn()
    assert hall.states(*jobs) == [words.STARTING, *[words.QUEUED] * 7]
    assert sorted(hall.trees) == [1, 2, 3, 4, 5]
    hall.engine.ends(jobs[0])
    hall.turn()
    assert 1 not in hall.trees


def test_a_retry_gets_a_fresh_tree(hall: Hall) -> None:
    job = job_of(hall, snapshot="s", requeue=True)
    hall.turn()
    hall.turn()
    assert hall.states(job) == [words.STARTING]
    hall.engine.ends(job, reason="reboot")
    hall.daemon.pass_once(hall.now)
    assert len(hall.later) == 1, "it is removed before it is made again"
    hall.work()
    assert hall.trees == {}
    hall.turn()
    assert hall.trees == {job.id: "s"}
    hall.turn()
    assert hall.read(job).attempt == 2


def test_a_tree_whose_job_is_cancelled_while_it_is_made_goes_again(hall: Hall) -> None:
    job = job_of(hall, snapshot="s")
    hall.daemon.pass_once(hall.now)
    assert len(hall.later) == 1
    hall.wishes.cancel(ADMIN, [job.id], None)
    hall.work()
    assert hall.trees == {}
    assert hall.daemon.preparation.laid_out == set()


@pytest.mark.parametrize("cancelled", [False, True], ids=["wanted", "cancelled by then"])
def test_code_that_cannot_be_laid_out_fails_its_job_alone(hall: Hall, cancelled: bool) -> None:
    first, second = job_of(hall, snapshot="s"), job_of(hall, snapshot="s")
    hall.broken_trees[first.id] = StateDamaged("a blob is damaged")
    hall.daemon.pass_once(hall.now)
    if cancelled:
        hall.wishes.cancel(ADMIN, [first.id], None)
    hall.work()
    hall.turn()
    ended = hall.read(first)
    assert ended.reason == ("cancelled" if cancelled else "code_failed")
    assert hall.states(second) == [words.STARTING]


def test_a_held_job_gets_no_tree(hall: Hall) -> None:
    job_of(hall, snapshot="s", held=True)
    hall.turn()
    assert hall.trees == {}


# --- recovery ---


def test_a_restarted_daemon_knows_what_the_last_one_knew(tmp_path: Path) -> None:
    engine = Scripted()
    with a_hall(tmp_path / "state", engine) as hall:
        running, waiting = job_of(hall, cpus=3), job_of(hall, cpus=3, priority=2, held=True)
        third = job_of(hall, after=[After(running.id)])
        hall.turn()
        engine.runs(running)
        hall.turn()
        book = hall.daemon.book
    with a_hall(tmp_path / "state", engine) as hall:
        assert hall.daemon.book.jobs == book.jobs
        assert [job.id for job in hall.daemon.book.queued] == [waiting.id, third.id]
        assert hall.daemon.book.active.keys() == {running.id}
        engine.ends(running)
        hall.turn()
        assert hall.states(running, waiting, third) == [words.SUCCEEDED, words.QUEUED, words.STARTING]


def test_an_attempt_of_an_earlier_daemon_that_never_locked_is_fenced_at_once(tmp_path: Path) -> None:
    engine = Scripted()
    with a_hall(tmp_path / "state", engine) as hall:
        job = job_of(hall)
        hall.turn()
    engine.said[job.id, 1] = Evidence(None, None, False)
    with a_hall(tmp_path / "state", engine) as hall:
        hall.turn()
        assert [stop.fence for stop in engine.stopped] == [True]
        engine.said[job.id, 1] = Evidence(None, None, False, abandoned=True)
        hall.turn()
        assert (hall.read(job).attempt, hall.read(job).misfires) == (2, 0)


def test_directories_without_a_row_are_stopped_told_and_never_run(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    os.makedirs(state.job(7).attempt(2))
    os.makedirs(state.job(7).out)
    engine = Scripted()
    with a_hall(tmp_path / "state", engine) as hall:
        assert [(stop.key, stop.grace) for stop in engine.stopped] == [((7, 2), 0.0)]
        assert hall.daemon.unknown == [7]
        assert job_of(hall).id == 8
        assert os.path.isdir(state.job(7).attempt(2))


def test_a_stray_file_among_the_jobs_is_no_job(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    os.makedirs(state.jobs)
    for name in ("7", "\N{SUPERSCRIPT TWO}", "notes"):
        Path(state.jobs, name).touch()
    with a_hall(tmp_path / "state") as hall:
        assert hall.daemon.unknown == []


# --- with a real engine ---


def test_a_parent_that_is_killed_costs_its_requests_no_ten_seconds(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with plain_engine(state) as engine, a_hall(tmp_path / "state", engine) as hall:
        parent = engine.connect() and engine.parent
        os.kill(parent, signal.SIGSTOP)
        job = job_of(hall)
        hall.turn()
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        began = time.monotonic()
        hall.until_idle()
        assert time.monotonic() - began < START_GRACE / 2
        assert (hall.read(job).state, hall.read(job).attempt) == (words.SUCCEEDED, 2)


def test_a_real_job_runs_and_its_end_names_the_line_of_its_log(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with plain_engine(state) as engine, a_hall(tmp_path / "state", engine) as hall:
        good = hall.submit("sh", "-c", "echo $RUNNER_JOB_ID > $RUNNER_OUT/id", environment="base")
        bad = hall.submit("sh", "-c", "echo ValueError: no; exit 3", environment="base")
        hall.until_idle()
        assert hall.states(good, bad) == [words.SUCCEEDED, words.FAILED]
        assert Path(state.job(good.id).out, "id").read_text() == "1\n"
        assert (hall.read(bad).exit_code, hall.read(bad).detail) == (3, "ValueError: no")


def test_a_job_that_was_cut_off_by_a_reboot_resumes_with_its_checkpoint_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(tmp_path / "state")
    script = "if [ -e $RUNNER_CHECKPOINT/half ]; then exit 0; fi; echo half > $RUNNER_CHECKPOINT/half; exec sleep 600"
    with plain_engine(state) as engine:
        with a_hall(tmp_path / "state", engine) as hall:
            os.makedirs(state.tree(1))
            job = hall.submit("sh", "-c", script, environment="base", requeue=True, snapshot="abc")
            hall.turn()
            hall.turn()
            wait_until(lambda: os.path.exists(f"{state.job(job.id).checkpoint}/half"))
            started = files.get(state.job(job.id).attempt(1), "started") or {}
        supervisor = started["supervisor"]
        os.kill(int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()), 9)
        directory = state.job(job.id).attempt(1)
        wait_until(lambda: os.path.exists(f"{directory}/exit"))
        os.unlink(f"{directory}/exit")  # as if the power had gone instead
        monkeypatch.setenv("GPUBOX_BOOT_ID", "the next boot")
        with a_hall(tmp_path / "state", engine) as hall:
            hall.until_idle()
            ended = hall.read(job)
            assert (ended.state, ended.attempt, ended.snapshot) == (words.SUCCEEDED, 2, "abc")
            first, second = hall.store.attempts(job.id)
            assert (first.state, first.reason, second.state) == (words.LOST, "reboot", words.SUCCEEDED)
            assert hall.read(job).retries_used == 0


@pytest.mark.long
def test_a_hundred_jobs_run_two_at_a_time_and_none_is_lost(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    with plain_engine(state, Resources(2, 1 << 30, 0)) as engine, a_hall(tmp_path / "state", engine) as hall:
        jobs = hall.submit_all("sh", "-c", "echo x >> $RUNNER_OUT/ran", array=list(range(100)), environment="base")
        hall.until_idle(50)
        assert hall.store.counts() == {words.SUCCEEDED: 100}
        assert all(Path(state.job(job.id).out, "ran").read_text() == "x\n" for job in jobs)
        assert all(len(hall.store.attempts(job.id)) == 1 for job in jobs)


def test_a_move_names_the_attempt_that_it_is_about(hall: Hall) -> None:
    """A second reading of an old attempt's end does nothing to the new one."""
    job = job_of(hall, requeue=True)
    hall.turn()
    hall.engine.ends(job, reason="reboot")
    hall.turn()
    assert hall.store.apply([], [Move(job.id, 1, words.FAILED, words.FAILED)], 5.0) == set()
    assert hall.states(job) == [words.STARTING]


# --- GPUs ---

A, B = "GPU-0000", "GPU-0001"


def gpu_job(hall: Hall, **values: Any) -> Job:
    return job_of(hall, **{"gpus": 1, **values})


def runs(hall: Hall, *jobs: Job) -> None:
    hall.turn()
    hall.engine.runs(*jobs)
    hall.turn()


def env_of(hall: Hall) -> list[str]:
    return [launch.spec["env"]["CUDA_VISIBLE_DEVICES"] for launch in hall.engine.launched]


def test_a_job_gets_its_gpu_and_nobody_else_does(hall: Hall) -> None:
    hall.sees(a_reading(A), a_reading(B))
    jobs = [gpu_job(hall, gpu_ids="index") for _ in range(3)]
    cpu = job_of(hall)
    hall.turn()
    assert hall.states(*jobs, cpu) == [words.STARTING, words.STARTING, words.QUEUED, words.STARTING]
    assert env_of(hall) == ["0", "1", ""], "a job without a GPU sees none"
    assert [hall.read(job).allotted for job in jobs] == [[A], [B], []]
    assert [attempt.allotted for attempt in hall.store.attempts(jobs[0].id)] == [[A]]
    assert hall.wishes.why(jobs[2]) == "needs 1 GPU, 0 of 2 free: GPU 0 has job 1; GPU 1 has job 2"
    hall.agrees()


def test_the_next_job_starts_when_the_memory_of_the_last_is_free(hall: Hall) -> None:
    hall.sees(a_reading(A))
    first, second = gpu_job(hall), gpu_job(hall)
    runs(hall, first)
    ours = a_process(50, 20, launch=f"{hall.store.box_id}-{first.id}-1")
    hall.sees(a_reading(A, 20, processes=[ours]))
    hall.engine.ends(first)
    hall.turn()
    assert hall.states(first, second) == [words.SUCCEEDED, words.QUEUED]
    assert hall.why(second) == "GPU 0 is being freed after job 1, 20 GiB are still in use"
    assert hall.daemon.wakes_at <= hall.now + 0.25
    hall.sees(a_reading(A, 20, processes=[]))
    hall.turn()
    assert hall.states(second) == [words.QUEUED]
    hall.sees(a_reading(A, 0))
    hall.turn()
    assert hall.states(second) == [words.STARTING]
    assert (hall.read(first).gpu_peak_bytes, hall.read(first).allotted) == (20 * GIB, [A])
    assert hall.store.attempts(first.id)[0].gpu_peak_bytes == 20 * GIB
    hall.agrees()


def test_an_end_that_could_not_be_committed_is_told_again_as_it_was(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    hall.sees(a_reading(A, 0.8))
    first, second = gpu_job(hall), gpu_job(hall)
    runs(hall, first)
    hall.sees(a_reading(A, 20, processes=[a_process(50, 19, launch=f"{hall.store.box_id}-{first.id}-1")]))
    hall.engine.ends(first, stuck=((os.getpid(), processes.started(os.getpid()) or 0),))

    def refuse(*_: object) -> set[int]:
        raise DiskFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(hall.store, "apply", refuse)
        os.unlink(hall.daemon.settings.state.ballast)
        with pytest.raises(DiskFull):
            hall.turn()
    gpus = hall.daemon.gpus
    assert gpus.cards.freeing == {}, "it is still the first one's"
    assert gpus.view(hall.now)[0].state == words.BUSY
    assert hall.store.gpus()[0].stuck is None
    hall.agrees()
    hall.turn()
    assert hall.store.attempts(first.id)[0].gpu_peak_bytes == 19 * GIB
    assert gpus.cards.freeing[A].before_bytes == int(0.8 * GIB)
    assert (hall.states(second), gpus.view(hall.now)[0].state) == ([words.QUEUED], words.STUCK)
    known = hall.store.gpus()[0].stuck
    assert known is not None
    assert (known.job, known.attempt, known.processes[0][0]) == (first.id, 1, os.getpid())


def test_a_process_that_would_not_die_keeps_its_gpu_and_no_other(tmp_path: Path) -> None:
    me = (os.getpid(), processes.started(os.getpid()) or 0)
    with a_hall(tmp_path / "state") as hall:
        hall.sees(a_reading(A))
        job = gpu_job(hall)
        runs(hall, job)
        hall.engine.ends(job, reason="cancelled", stuck=(me,))
        hall.turn()
    with a_hall(tmp_path / "state") as hall:
        hall.sees(a_reading(A), a_reading(B))
        first, second = gpu_job(hall), gpu_job(hall)
        hall.turn()
        assert hall.states(first, second) == [words.STARTING, words.QUEUED]
        assert hall.read(first).allotted == [B]
        assert f"GPU 0 is stuck: a process of job 1 can't be ended (pid {me[0]})" in hall.wishes.why(second)
        hall.daemon.gpus.cards.known[A].stuck = Stuck(1, 1, ((1 << 30, 5),), 0.0)
        hall.turn()
        hall.turn()
        assert hall.states(second) == [words.STARTING]


def test_only_the_jobs_of_a_lost_gpu_are_ended_and_once(hall: Hall) -> None:
    hall.sees(a_reading(A), a_reading(B))
    lost, well = gpu_job(hall, retries=1), gpu_job(hall)
    runs(hall, lost, well)
    for _ in range(LOST_FRAMES - 1):
        hall.sees(a_reading(A, None, state=LOST), a_reading(B))
        hall.turn()
    assert hall.engine.stopped == [], "it may be back at once"
    for _ in range(2):
        hall.sees(a_reading(A, None, state=LOST), a_reading(B))
        hall.turn()
    (stop,) = hall.engine.stopped
    assert (stop.key, stop.reason) == ((lost.id, 1), "gpu_lost")
    hall.engine.ends(lost, reason="gpu_lost")
    hall.turn(0.1)
    (attempt,) = hall.store.attempts(lost.id)
    assert (attempt.state, attempt.reason) == (words.FAILED, "gpu_lost")
    assert attempt.detail.startswith("GPU 0 fell off the bus at ")
    hall.engine.ends(well)
    hall.turn(2)
    hall.sees(a_reading(A, None, state=LOST), a_reading(B))
    hall.turn()
    assert (hall.read(lost).state, hall.read(lost).allotted) == (words.STARTING, [B])
    assert hall.daemon._losing == {}
    hall.agrees()


def test_a_job_that_fails_by_itself_on_a_lost_gpu_says_so(hall: Hall) -> None:
    hall.sees(a_reading(A), a_reading(B))
    jobs = [gpu_job(hall), gpu_job(hall)]
    runs(hall, *jobs)
    hall.sees(a_reading(A, None, state=LOST), a_reading(B, None, state=LOST))
    hall.engine.ends(jobs[0], reason="exit_code")
    hall.engine.ends(jobs[1])
    hall.turn()
    assert [(hall.read(job).state, hall.read(job).reason) for job in jobs] == [
        (words.FAILED, "gpu_lost"),
        (words.SUCCEEDED, None),
    ]
    assert hall.engine.stopped == []


def test_a_new_daemon_ends_the_jobs_of_a_gpu_that_is_not_there_any_more(tmp_path: Path) -> None:
    engine = Scripted()
    with a_hall(tmp_path / "state", engine) as hall:
        hall.sees(a_reading(A), a_reading(B))
        jobs = [gpu_job(hall), gpu_job(hall)]
        runs(hall, *jobs)
    with a_hall(tmp_path / "state", engine) as hall:
        hall.turn()
        for _ in range(MISSED_FRAMES - 1 + LOST_FRAMES):
            assert engine.stopped == []
            hall.sees(a_reading(B))
            hall.turn()
        assert [(stop.key, stop.reason) for stop in engine.stopped] == [((jobs[0].id, 1), "gpu_lost")]


def out_of_memory(hall: Hall, job: Job, line: str = "CUDA out of memory. Tried to allocate 2.00 GiB") -> None:
    """It ends with that as the last line of its log."""
    log = Path(hall.daemon.attempt_dir(hall.daemon.book.jobs[job.id]).log)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"torch.OutOfMemoryError: {line}\n")
    hall.engine.ends(hall.daemon.book.jobs[job.id], reason="exit_code")
    hall.turn()


def test_out_of_memory_is_tried_again_alone_on_a_larger_gpu_and_no_further(hall: Hall) -> None:
    large = a_reading(B, memory_bytes=48 * GIB)
    hall.sees(a_reading(A), large)
    job = gpu_job(hall, gpu_memory_bytes=8 * GIB, retries=9, retry_on=["cuda_out_of_memory"])
    had = []
    for _ in range(2):
        runs(hall, job)
        had.append(hall.read(job).allotted)
        out_of_memory(hall, job)
        hall.sees(a_reading(A), large, after=5.0)
    assert had[0] == [A]
    ended = hall.read(job)
    assert (ended.state, ended.reason, ended.attempt) == (words.FAILED, "cuda_out_of_memory", 2)
    assert ended.detail.startswith("torch.OutOfMemoryError: CUDA out of memory.")
    assert had[1] == [B], "alone, on the largest"
    assert ended.gpu_floor_bytes == 8 * GIB


@pytest.mark.parametrize(
    ("sizes", "retry_on", "again"),
    [
        ((24, 24), ["cuda_out_of_memory"], False),
        ((24, 48), ["cuda_out_of_memory"], True),
        ((24, 48), ["signal"], False),
        ((24, 48), [], True),
    ],
    ids=["no larger one", "a larger one", "not asked for", "for any reason"],
)
def test_out_of_memory_is_not_tried_where_it_would_happen_again(
    hall: Hall, sizes: tuple[int, int], retry_on: list[str], again: bool
) -> None:
    hall.sees(*(a_reading(f"GPU-{place:04d}", memory_bytes=size * GIB) for place, size in enumerate(sizes)))
    job = gpu_job(hall, retries=5, retry_on=retry_on, gpu_type=A)
    hall.daemon.book.jobs[job.id].gpu_type = ""  # placed on the first, free to go elsewhere
    hall.daemon.gpus.drain(B, True)
    runs(hall, job)
    hall.daemon.gpus.drain(B, False)
    out_of_memory(hall, job)
    assert hall.read(job).state == (words.QUEUED if again else words.FAILED)
    assert hall.store.attempts(job.id)[0].reason == "cuda_out_of_memory"


def test_a_reason_that_only_the_log_tells_is_one_to_retry_on(hall: Hall) -> None:
    job = job_of(hall, retries=1, retry_on=["disk_full"])
    other = job_of(hall, retries=1, retry_on=["exit_code"])
    runs(hall, job, other)
    out_of_memory(hall, job, "OSError: [Errno 28] No space left on device")
    out_of_memory(hall, other, "OSError: [Errno 28] No space left on device")
    assert hall.states(job, other) == [words.QUEUED, words.FAILED]
    assert hall.store.attempts(job.id)[0].reason == "disk_full"


def test_a_gpu_is_looked_at_a_moment_before_a_job_starts_on_it(hall: Hall) -> None:
    asked: list[str] = []
    hall.sees(a_reading(A))
    hall.daemon.gpus.probe = asked.append
    job = gpu_job(hall)
    hall.turn(0.9)
    assert (asked, hall.states(job)) == ([A], [words.QUEUED])
    assert hall.daemon.gpus.heard(Probe(hall.now, a_reading(A, 5, processes=[a_process(9, 5)])), hall.now)
    hall.turn()
    assert hall.wishes.why(job) == "GPU 0 held by alice, python train.py, 5 of 24 GiB"
    hall.sees(a_reading(A, 0, processes=[]))
    hall.turn()
    assert hall.states(job) == [words.STARTING]


def test_what_a_cpu_job_leaves_in_memory_goes_with_it(hall: Hall) -> None:
    job = job_of(hall)
    hall.turn()
    hall.engine.said[job.id, 1] = Evidence(None, 5.0, True, supervisor=77)
    hall.turn()
    assert hall.daemon.gpus.ours.supervisors == {77: job.id}
    hall.engine.ends(job)
    hall.turn()
    assert hall.daemon.gpus.ours.supervisors == {}


def test_a_drained_gpu_keeps_its_job_and_gets_no_other(hall: Hall) -> None:
    hall.sees(a_reading(A))
    first, second = gpu_job(hall, gpu_memory_bytes=GIB), gpu_job(hall, gpu_memory_bytes=GIB)
    hall.wishes.hold(ADMIN, [second.id])
    runs(hall, first)
    hall.wishes.drain_gpu(ADMIN, "0", True)
    hall.wishes.release(ADMIN, [second.id])
    hall.turn()
    assert hall.states(first, second) == [words.RUNNING, words.QUEUED]
    assert hall.wishes.why(second) == "GPU 0 is draining; `runner gpus undrain` opens it again"
    hall.wishes.drain_gpu(ADMIN, "0", False)
    hall.turn()
    assert hall.states(second) == [words.STARTING]


def test_on_a_drained_box_its_own_account_shows_that_it_works(hall: Hall) -> None:
    """Where it has an account of its own; on a box of somebody's own that would be everybody."""
    own, other = Principal(os.geteuid(), "gpubox", "submit"), Principal(os.geteuid() + 1, "ada", "submit")
    hall.wishes.drain(ADMIN, True)
    proof, job = hall.submit("true", who=own, environment="base"), hall.submit("true", who=other, environment="base")
    hall.turn()
    assert hall.states(proof, job) == [words.QUEUED] * 2
    hall.daemon.settings = replace(hall.daemon.settings, engine="systemd")
    hall.turn()
    assert hall.states(proof, job) == [words.STARTING, words.QUEUED]
    assert "draining" in hall.wishes.why(job)


def test_a_full_disk_stops_the_proof_too(hall: Hall) -> None:
    own = Principal(os.geteuid(), "gpubox", "submit")
    hall.daemon.settings = replace(hall.daemon.settings, engine="systemd", free_bytes=1 << 60)
    hall.wishes.drain(ADMIN, True)
    proof = hall.submit("true", who=own, environment="base")
    hall.turn()
    assert hall.states(proof) == [words.QUEUED]
