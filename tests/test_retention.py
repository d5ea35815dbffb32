"""What housekeeping removes, and above all what it never does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tools
import wire
from hypothesis import given
from hypothesis import strategies as st

from runner import words
from runner.box.retention import Candidate, Limit, expired

NOW = 1_000_000.0


def old(seconds: float, size: int = 1) -> Candidate:
    return Candidate("logs", f"{seconds:g}", size, NOW - seconds)


# --- the decision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidates", "limit", "gone"),
    [
        pytest.param([], Limit(10, 10), [], id="nothing"),
        pytest.param([old(5), old(15)], Limit(10), ["15"], id="too old"),
        pytest.param([old(10)], Limit(10), ["10"], id="exactly as old as may be"),
        pytest.param([old(1, 6), old(3, 6), old(2, 6)], Limit(10, 12), ["3"], id="the oldest goes first"),
        pytest.param([old(1, 6), old(2, 6)], Limit(10, 12), [], id="exactly as large as may be"),
        pytest.param([old(1, 20), old(2, 1)], Limit(10, 12), ["2", "1"], id="the newest alone is too large"),
        pytest.param([old(20, 50), old(1, 6)], Limit(10, 12), ["20"], id="what is too old no longer counts"),
    ],
)
def test_what_goes(candidates: list[Candidate], limit: Limit, gone: list[str]) -> None:
    assert [each.what for each in expired(candidates, limit, NOW)] == gone


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 100)), max_size=20), st.floats(0, 100), st.integers(0, 500))
def test_what_stays_is_young_and_small_enough_and_nothing_younger_went(
    pairs: list[tuple[float, int]], seconds: float, most: int
) -> None:
    candidates = [old(age, size) for age, size in pairs]
    gone = expired(candidates, Limit(seconds, most), NOW)
    stays = [each for each in candidates if each not in gone]
    assert all(NOW - each.at < seconds for each in stays)
    assert sum(each.bytes for each in stays) <= most
    assert not gone or not stays or max(each.at for each in gone) <= min(each.at for each in stays)


# --- on a box --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon() -> Iterator[wire.Box]:
    with wire.place() as folder:
        box = wire.Box(Path(folder))
        try:
            box.start()
            yield box
        finally:
            box.end()


WRITES = ["sh", "-c", 'echo log; echo data > "$RUNNER_OUT/a"; echo state > "$RUNNER_CHECKPOINT/c"; exit $CODE']


def ended(daemon: wire.Box, code: int = 0, fetched: bool = False) -> int:
    job_id = daemon.submit(WRITES, env={"CODE": str(code)})
    daemon.ended(job_id)
    if fetched:
        daemon.post(f"/jobs/{job_id}/fetched", {"hashes": [hashlib.sha256(b"data\n").hexdigest()]})
    return job_id


def there(daemon: wire.Box, job_id: int) -> set[str]:
    """Which of a job's log, outputs and checkpoint are still there."""
    job = daemon.state.job(job_id)
    places = {"log": job.attempt(1).log, "out": f"{job.out}/a", "checkpoint": f"{job.checkpoint}/c"}
    return {name for name, path in places.items() if os.path.exists(path)}


def test_outputs_that_nobody_fetched_are_kept_and_counted(daemon: wire.Box) -> None:
    kept, fetched = ended(daemon), ended(daemon, fetched=True)
    before = daemon.post("/box/clean", {"dry_run": True, "older_than_days": 0, "outputs": True})
    assert there(daemon, fetched) == {"log", "out", "checkpoint"}
    done = daemon.post("/box/clean", {"older_than_days": 0, "outputs": True})
    assert done == before
    assert [each["what"] for each in done["removed"] if each["kind"] == "outputs"] == [f"job {fetched}"]
    assert done["kept_unfetched"]["count"] >= 1
    assert done["kept_unfetched"]["bytes"] > 0
    assert there(daemon, kept) == {"log", "out", "checkpoint"}
    assert there(daemon, fetched) == {"log"}
    assert daemon.get(f"/jobs/{fetched}")["job"]["outputs_removed_at"] is not None


def test_only_who_asks_for_it_removes_what_nobody_fetched(daemon: wire.Box) -> None:
    job_id = ended(daemon)
    daemon.post("/box/clean", {"older_than_days": 0})
    assert "out" in there(daemon, job_id)
    daemon.post("/box/clean", {"older_than_days": 0, "unfetched": True})
    assert "out" not in there(daemon, job_id)


def test_the_checkpoint_of_a_job_that_failed_stays(daemon: wire.Box) -> None:
    job_id = ended(daemon, code=1, fetched=True)
    daemon.post("/box/clean", {"older_than_days": 0, "outputs": True})
    assert there(daemon, job_id) == {"log", "checkpoint"}


def test_the_log_of_a_job_that_runs_stays(daemon: wire.Box) -> None:
    over = ended(daemon)
    runs = daemon.submit(["sh", "-c", "echo on; sleep 600"])
    log = daemon.state.job(runs).attempt(1).log
    tools.wait_until(lambda: os.path.exists(log) and os.path.getsize(log) and daemon.state_of(runs) == words.RUNNING)
    removed = daemon.post("/box/clean", {"older_than_days": 0, "logs": True})["removed"]
    assert f"job {over}" in [each["what"] for each in removed]
    assert "log" not in there(daemon, over)
    assert os.path.exists(log)
    assert daemon.ask("GET", f"/logs/{over}").body == b""
    daemon.post("/jobs/cancel", {"ids": [runs], "grace": 0})
    daemon.ended(runs)


def test_by_the_settings_alone_what_is_young_stays(daemon: wire.Box) -> None:
    job_id = ended(daemon, fetched=True)
    daemon.post("/box/clean", {})
    assert there(daemon, job_id) == {"log", "out", "checkpoint"}


def test_work_trees_and_half_removed_folders_of_ended_jobs_go(daemon: wire.Box) -> None:
    job_id = ended(daemon)
    waits = daemon.submit(WRITES, held=True)
    for number in (job_id, waits):
        os.makedirs(f"{daemon.state.tree(number)}/sub")
    os.makedirs(f"{daemon.state.job(job_id)}/.gone-out-1/sub")
    daemon.post("/box/clean", {})
    assert not os.path.exists(daemon.state.tree(job_id))
    assert not os.path.exists(f"{daemon.state.job(job_id)}/.gone-out-1")
    assert os.path.exists(daemon.state.tree(waits))
    daemon.post("/jobs/cancel", {"ids": [waits]})


def test_an_environment_goes_unless_a_job_wants_it(daemon: wire.Box) -> None:
    half = f"{daemon.state.envs}/half"
    whole = f"{daemon.state.envs}/whole"
    for folder in (half, whole):
        os.makedirs(f"{folder}/venv/bin")
    Path(whole, "ready").write_text('{"version": 1, "kind": "uv"}')
    daemon.post("/box/clean", {"older_than_days": 0, "envs": True})
    assert os.path.exists(half), "it may be under construction"
    assert not os.path.exists(whole)


def test_nothing_is_removed_by_half(daemon: wire.Box) -> None:
    hidden = [name for folder, below, _ in os.walk(daemon.state.jobs) for name in below if name.startswith(".gone")]
    assert hidden == []


@pytest.mark.parametrize("days", [b"-1", b"NaN", b"Infinity"], ids=bytes.decode)
def test_an_age_that_is_none_removes_nothing(daemon: wire.Box, days: bytes) -> None:
    job_id = ended(daemon, fetched=True)
    assert daemon.ask("POST", "/box/clean", b'{"older_than_days": ' + days + b"}").status == 422
    assert there(daemon, job_id) == {"log", "out", "checkpoint"}


def test_the_command_says_what_a_box_removes_keeps_and_how_to_get_it(daemon: wire.Box) -> None:
    daemon.post("/box/clean", {"older_than_days": 0, "unfetched": True})
    kept, fetched = ended(daemon), ended(daemon, fetched=True)
    trial = daemon.call("clean", "--dry-run", "--older-than", "0")
    assert trial.returncode == 0, trial.stderr
    assert {line.split()[0] for line in trial.stdout.splitlines()} >= {"WHAT", "logs", "outputs"}
    assert f"fetched, of job {kept}\n" in trial.stderr
    assert f"`runner pull {kept}` brings them home" in trial.stderr
    assert "KiB would be freed" in trial.stderr
    assert there(daemon, fetched) == {"log", "out", "checkpoint"}
    done = daemon.call("clean", "--older-than", "0")
    assert (done.returncode, done.stdout) == (0, trial.stdout)
    assert (there(daemon, fetched), there(daemon, kept)) == (set(), {"out", "checkpoint"})
    assert "outputs not fetched" in daemon.run("clean", "--unfetched", "--older-than", "0")
    assert there(daemon, kept) == set()
    assert daemon.call("clean", "--older-than", "0").stderr == "nothing to remove\n"


def test_a_trial_counts_the_code_that_would_go(daemon: wire.Box) -> None:
    path = f"{daemon.state.blobs}/ab/{'c' * 62}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_bytes(b"x" * 10_000)
    os.utime(path, (0, 0))
    for dry_run in (True, False):
        assert os.path.exists(path)
        removed = daemon.post("/box/clean", {"dry_run": dry_run, "code": True})["removed"]
        assert [each["bytes"] for each in removed if each["kind"] == "code"] == [12288]
    assert not os.path.exists(path)
