"""Each row of the recovery table: what the disk says about an attempt, and what follows for its job."""

from __future__ import annotations

from typing import Any

import pytest
from builders import a_job, a_spec, an_exit

from runner import words
from runner.box.settle import (
    MISFIRES_MAX,
    START_GRACE,
    STATE_OF_REASON,
    Action,
    after_waiting,
    may_retry,
    retry_pause,
    settle,
)
from runner.model import Evidence, Exit

NOW = 1000.0
AGES = float("inf")
LATE = START_GRACE + 1
NEVER = Exit("engine_failed", None, None, "fork failed", 500.0, started=False)


def evidence(exit: Exit | None = None, started_at: float | None = None, alive: bool = False, **values: Any) -> Evidence:
    return Evidence(exit, started_at, alive, **values)


@pytest.mark.parametrize(
    ("state", "seen", "waited", "action"),
    [
        pytest.param(words.STARTING, evidence(an_exit()), 0, Action.END, id="an exit record: it ended"),
        pytest.param(words.RUNNING, evidence(an_exit()), AGES, Action.END, id="an exit record, read once more"),
        pytest.param(words.RUNNING, evidence(an_exit(), alive=True), 0, Action.END, id="its supervisor is leaving"),
        pytest.param(words.STARTING, evidence(alive=True), 0, Action.KEEP, id="lock held, about to run"),
        pytest.param(
            words.STARTING, evidence(alive=True), AGES, Action.KEEP, id="lock held for long: a child may exec"
        ),
        pytest.param(words.STARTING, evidence(None, 5.0, True), 0, Action.RUN, id="lock held and started: it runs"),
        pytest.param(words.RUNNING, evidence(None, 5.0, True), AGES, Action.KEEP, id="it still runs"),
        pytest.param(words.STARTING, evidence(), 0.1, Action.KEEP, id="asked for just now, no lock yet"),
        pytest.param(words.STARTING, evidence(), START_GRACE, Action.KEEP, id="no lock, at the end of its grace"),
        pytest.param(words.STARTING, evidence(), LATE, Action.FENCE, id="no lock for too long: fenced"),
        pytest.param(words.STARTING, evidence(), AGES, Action.FENCE, id="asked for by an earlier daemon: fenced"),
        pytest.param(words.RUNNING, evidence(None, 5.0), 0, Action.FENCE, id="started, lock free: supervisor died"),
        pytest.param(
            words.STARTING, evidence(None, 5.0), 0, Action.FENCE, id="started, lock free, not yet known to run"
        ),
        pytest.param(words.RUNNING, evidence(None, 5.0, rebooted=True), AGES, Action.FENCE, id="another boot"),
        pytest.param(words.STARTING, evidence(missing=True), 0.1, Action.KEEP, id="directory still to be made"),
        pytest.param(words.STARTING, evidence(missing=True), LATE, Action.FENCE, id="no directory for too long"),
        pytest.param(words.STARTING, evidence(missing=True), AGES, Action.FENCE, id="crash before mkdir"),
        pytest.param(words.RUNNING, evidence(missing=True), 0.1, Action.FENCE, id="directory gone while it ran"),
        pytest.param(words.STARTING, evidence(abandoned=True), 0.1, Action.REQUEUE, id="tombstone: a new attempt"),
        pytest.param(
            words.STARTING, evidence(abandoned=True), AGES, Action.REQUEUE, id="tombstone of an earlier daemon"
        ),
        pytest.param(words.STARTING, evidence(NEVER), 0.1, Action.REQUEUE, id="the launch failed: a new attempt"),
    ],
)
def test_the_disk_decides(state: str, seen: Evidence, waited: float, action: Action) -> None:
    assert settle(a_job(1, state, attempt=1), a_spec(), seen, NOW, waited).action is action


def test_a_job_that_is_seen_to_run_started_when_its_record_says() -> None:
    assert settle(a_job(1, words.STARTING), a_spec(), evidence(None, 5.0, True), NOW, 0).started_at == 5.0


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (None, words.SUCCEEDED),
        ("exit_code", words.FAILED),
        ("signal", words.FAILED),
        ("cannot_exec", words.FAILED),
        ("disk_full", words.FAILED),
        ("cuda_out_of_memory", words.FAILED),
        ("cancelled", words.CANCELLED),
        ("time_limit", words.TIMED_OUT),
        ("host_out_of_memory", words.OUT_OF_MEMORY),
        ("reboot", words.LOST),
        ("supervisor_died", words.LOST),
        ("record_missing", words.LOST),
    ],
)
def test_a_reason_leads_to_a_state(reason: str | None, state: str) -> None:
    verdict = settle(a_job(1, words.RUNNING), a_spec(), evidence(an_exit(reason)), NOW, 0)
    assert (verdict.action, verdict.state) == (Action.END, state)
    assert verdict.exit == an_exit(reason)


def test_every_reason_that_leads_to_a_state_is_a_word() -> None:
    assert set(STATE_OF_REASON) - {None} <= set(words.REASONS)
    assert set(STATE_OF_REASON.values()) <= set(words.FINISHED)


# --- an attempt that never ran ---


def test_a_launch_that_fails_again_and_again_fails_the_job() -> None:
    job = a_job(1, words.STARTING, misfires=MISFIRES_MAX - 1)
    verdict = settle(job, a_spec(), evidence(NEVER), NOW, 1)
    assert (verdict.action, verdict.state) == (Action.END, words.FAILED)
    assert verdict.exit == Exit("engine_failed", None, None, "fork failed (3 times)", NOW, False)


def test_a_tombstone_counts_as_a_misfire_of_this_daemon_only() -> None:
    job = a_job(1, words.STARTING, misfires=MISFIRES_MAX - 1)
    assert settle(job, a_spec(), evidence(abandoned=True), NOW, 1).action is Action.END
    again = settle(job, a_spec(), evidence(abandoned=True), NOW, AGES)
    assert (again.action, again.misfire) == (Action.REQUEUE, False)


def test_an_attempt_that_never_ran_ended_now() -> None:
    verdict = settle(a_job(1, words.STARTING), a_spec(), evidence(abandoned=True), NOW, 1)
    assert verdict.exit is not None
    assert verdict.exit.ended_at == NOW


@pytest.mark.parametrize("seen", [evidence(abandoned=True), evidence(NEVER)], ids=["tombstone", "launch failed"])
def test_a_cancelled_job_that_never_ran_is_cancelled_not_tried_again(seen: Evidence) -> None:
    job = a_job(1, words.STARTING, cancel_requested_at=900.0)
    verdict = settle(job, a_spec(retries=5), seen, NOW, 1)
    assert (verdict.action, verdict.state) == (Action.END, words.CANCELLED)


# --- retries ---


@pytest.mark.parametrize(
    ("spec", "used", "reason", "again"),
    [
        pytest.param({}, 0, "exit_code", False, id="no retries asked for"),
        pytest.param({"retries": 2}, 0, "exit_code", True, id="the first"),
        pytest.param({"retries": 2}, 1, "exit_code", True, id="the last"),
        pytest.param({"retries": 2}, 2, "exit_code", False, id="none left"),
        pytest.param({"retries": 2}, 0, None, False, id="it succeeded"),
        pytest.param({"retries": 2}, 0, "cancelled", False, id="cancelled"),
        pytest.param({"retries": 2}, 0, "cannot_exec", False, id="a reason that no retry can change"),
        pytest.param({"retries": 2, "retry_on": ["signal"]}, 0, "signal", True, id="the filter lets it"),
        pytest.param({"retries": 2, "retry_on": ["signal"]}, 0, "exit_code", False, id="the filter does not"),
    ],
)
def test_a_job_is_tried_again_as_often_and_for_the_reasons_asked(
    spec: dict[str, Any], used: int, reason: str | None, again: bool
) -> None:
    job = a_job(1, words.RUNNING, retries_used=used)
    assert may_retry(job, a_spec(**spec), reason) is again
    verdict = settle(job, a_spec(**spec), evidence(an_exit(reason)), NOW, 0)
    assert verdict.action is (Action.RETRY if again else Action.END)


def test_a_retry_pauses_longer_each_time() -> None:
    assert [retry_pause(used) for used in (0, 1, 2, 8, 9, 1000)] == [1, 2, 4, 256, 300, 300]
    job = a_job(1, words.RUNNING, retries_used=3)
    verdict = settle(job, a_spec(retries=9), evidence(an_exit("signal")), NOW, 0)
    assert (verdict.state, verdict.not_before) == (words.FAILED, NOW + 8)


def test_a_reboot_requeues_at_once_and_counts_against_nothing() -> None:
    verdict = settle(a_job(1, words.RUNNING), a_spec(requeue=True), evidence(an_exit("reboot")), NOW, AGES)
    assert (verdict.action, verdict.state, verdict.not_before) == (Action.RETRY, words.LOST, None)


@pytest.mark.parametrize("reason", ["reboot", "exit_code"])
def test_a_cancelled_job_is_never_tried_again(reason: str) -> None:
    job = a_job(1, words.RUNNING, cancel_requested_at=900.0)
    verdict = settle(job, a_spec(requeue=True, retries=5), evidence(an_exit(reason)), NOW, 0)
    assert verdict.action is Action.END


def test_a_reboot_without_requeue_is_lost() -> None:
    verdict = settle(a_job(1, words.RUNNING), a_spec(), evidence(an_exit("reboot")), NOW, AGES)
    assert (verdict.action, verdict.state) == (Action.END, words.LOST)


@pytest.mark.parametrize(
    ("job", "spec", "reason", "action"),
    [
        pytest.param({}, {}, "environment_failed", Action.END, id="no retries"),
        pytest.param({}, {"retries": 1}, "environment_failed", Action.RETRY, id="a build may go better next time"),
        pytest.param({}, {"retries": 1}, "code_failed", Action.END, id="code will not"),
        pytest.param({"cancel_requested_at": 1.0}, {"retries": 1}, "environment_failed", Action.END, id="cancelled"),
    ],
)
def test_a_job_that_could_not_be_made_ready_fails_or_tries_again(
    job: dict[str, Any], spec: dict[str, Any], reason: str, action: Action
) -> None:
    verdict = after_waiting(a_job(1, **job), a_spec(**spec), reason, "uv: no such package", NOW)
    assert (verdict.action, verdict.state) == (action, words.FAILED)
    assert verdict.exit == Exit(reason, None, None, "uv: no such package", NOW, False)
    assert verdict.not_before == (NOW + 1 if action is Action.RETRY else None)


# --- GPU memory ---


@pytest.mark.parametrize(
    ("reason", "floor", "action", "kept"),
    [
        pytest.param("cuda_out_of_memory", 24, Action.RETRY, 24, id="there is a larger GPU"),
        pytest.param("cuda_out_of_memory", None, Action.END, None, id="it would only run out again"),
        pytest.param("gpu_lost", None, Action.RETRY, None, id="lost: elsewhere, with as little as before"),
        pytest.param("exit_code", 24, Action.RETRY, None, id="any other reason says nothing of memory"),
    ],
)
def test_out_of_gpu_memory_is_tried_again_only_where_there_is_more(
    reason: str, floor: int | None, action: Action, kept: int | None
) -> None:
    verdict = settle(a_job(1, words.RUNNING), a_spec(retries=1), evidence(an_exit(reason)), NOW, 0, floor)
    assert (verdict.action, verdict.gpu_floor_bytes) == (action, kept)


def test_a_job_whose_gpu_was_lost_before_it_began_is_queued_again() -> None:
    end = Exit("gpu_lost", None, None, "", 500.0, False)
    verdict = settle(a_job(1, words.STARTING), a_spec(), evidence(end), NOW, 0)
    assert (verdict.action, verdict.misfire, verdict.not_before) == (Action.REQUEUE, False, None)


def test_a_job_on_a_lost_gpu_failed() -> None:
    verdict = settle(a_job(1, words.RUNNING), a_spec(), evidence(an_exit("gpu_lost")), NOW, 0)
    assert (verdict.action, verdict.state) == (Action.END, words.FAILED)
