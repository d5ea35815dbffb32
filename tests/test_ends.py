"""Why a job ended, told by its exit record and the end of its log."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import an_exit

from runner.box.ends import DETAIL_MAX, TAIL, explain, explained


@pytest.mark.parametrize(
    ("tail", "reason", "detail"),
    [
        pytest.param("", "exit_code", "", id="an empty log"),
        pytest.param("Traceback\n  File\nValueError: no\n", "exit_code", "ValueError: no", id="the last line"),
        pytest.param("ValueError: no\n\n   \n\n", "exit_code", "ValueError: no", id="empty lines behind it"),
        pytest.param("10%\r50%\rdied here", "exit_code", "died here", id="a progress bar"),
        pytest.param("\x1b[1;31mError:\x1b[0m no\x07\n", "exit_code", "Error: no", id="colours"),
        pytest.param(
            "OSError: [Errno 28] No space left on device: 'x'\nAborted\n",
            "disk_full",
            "OSError: [Errno 28] No space left on device: 'x'",
            id="a full disk",
        ),
        pytest.param(
            "Disk quota exceeded (1)\nDisk quota exceeded (2)", "disk_full", "Disk quota exceeded (2)", id="quota"
        ),
        pytest.param("y" * 400, "exit_code", "y" * DETAIL_MAX + "…", id="an endless line"),
    ],
)
def test_the_log_shows_the_reason(tail: str, reason: str, detail: str) -> None:
    told = explain(an_exit("exit_code"), tail)
    assert (told.reason, told.detail) == (reason, detail)


@pytest.mark.parametrize("reason", [None, "cancelled", "time_limit", "cannot_exec", "supervisor_died"])
def test_an_end_that_needs_no_explaining_reads_nothing(reason: str | None) -> None:
    end = an_exit(reason)
    assert explain(end, "No space left on device") == end
    assert explained(end, "/no/such/log") == end


def test_a_signal_is_explained_too() -> None:
    assert explain(an_exit("signal", signal=6), "terminate called\n").detail == "terminate called"


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"No space left on device\n" + b"\xff" * TAIL + b"\nthe last\n")
    told = explained(an_exit("exit_code"), str(log))
    assert (told.reason, told.detail) == ("exit_code", "the last")


def test_a_log_that_can_not_be_read_explains_nothing(tmp_path: Path) -> None:
    end = an_exit("exit_code")
    assert explained(end, str(tmp_path / "nowhere")) == end
    secret = tmp_path / "secret"
    secret.write_text("a secret\n")
    os.symlink(secret, tmp_path / "log")
    assert explained(end, str(tmp_path / "log")) == end, "a job may not have us read through a link"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_a_job_put_in_the_place_of_its_log_is_not_waited_for(tmp_path: Path, make: Callable[[str], None]) -> None:
    make(f"{tmp_path}/log")
    end = an_exit("exit_code")
    assert explained(end, f"{tmp_path}/log") == end
