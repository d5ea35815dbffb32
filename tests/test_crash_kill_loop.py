"""kill -9 of a real daemon, its parent of supervisors and supervisors, under load."""

from __future__ import annotations

import os

import pytest
from crash import kill_loop

RECOVERY_SECONDS = 2.0


def _check(found: kill_loop.Findings, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        os.write(1, f"\n{found.line()}\n".encode())
    assert not found.faults(), "\n".join(found.faults())
    assert found.jobs
    assert found.recoveries


@pytest.mark.crash
def test_a_daemon_under_load_survives_being_killed_at_random_windows(capsys: pytest.CaptureFixture[str]) -> None:
    _check(kill_loop.run(20), capsys)


@pytest.mark.slow
def test_two_hundred_kills_spread_over_every_window_do_no_harm(capsys: pytest.CaptureFixture[str]) -> None:
    found = kill_loop.run(200)
    _check(found, capsys)
    assert all(found.kills[window] >= 5 for window in kill_loop.WINDOWS)
    assert max(found.recoveries) <= RECOVERY_SECONDS
