"""What the last runs of a program say to whoever submits it again."""

from __future__ import annotations

from typing import Any

import pytest
from builders import GIB, a_spec

from runner import words
from runner.box.past import RUNS, expected_seconds, notes, program
from runner.box.store import Past


def a_past(job: int = 1, gib: float | None = None, **values: Any) -> Past:
    peak = None if gib is None else int(gib * GIB)
    ran = {"state": words.SUCCEEDED, "reason": None, "seconds": 60.0, "gpu_memory_bytes": 0, "gpus": 1, "ended_at": 1.0}
    return Past(job, **{**ran, **values}, gpu_peak_bytes=peak)


def test_a_program_is_its_project_and_its_script_whatever_the_arguments() -> None:
    train = a_spec("python", "train.py", "--lr", "1", script="train.py", project="/p")
    same = a_spec("python", "-u", "train.py", script="train.py", project="/p")
    assert program(train) == program(same)
    assert program(train) != program(a_spec("python", "train.py", script="train.py", project="/q"))
    assert program(train) != program(a_spec("python", "eval.py", script="eval.py", project="/p"))


def test_a_command_without_a_script_is_known_by_its_first_words() -> None:
    assert program(a_spec("make", "train", "A=1")) == program(a_spec("make", "train", "A=2"))
    assert program(a_spec("make", "train")) != program(a_spec("make", "test"))
    assert len(program(a_spec("a\udcff"))) == 32, "a word that is not UTF-8"


@pytest.mark.parametrize(
    ("past", "seconds"),
    [
        pytest.param([], None, id="never ran"),
        pytest.param([a_past(seconds=None)], None, id="never measured"),
        pytest.param([a_past(state=words.FAILED, seconds=1.0)], None, id="only failed"),
        pytest.param([a_past(seconds=10.0), a_past(seconds=30.0), a_past(seconds=20.0)], 20.0, id="the median"),
        pytest.param([a_past(seconds=1.0)] * RUNS + [a_past(seconds=99.0)] * 9, 1.0, id="of the last"),
        pytest.param([a_past(state=words.TIMED_OUT, seconds=5.0), a_past(seconds=7.0)], 7.0, id="that succeeded"),
    ],
)
def test_a_run_is_expected_to_take_as_long_as_the_last_that_succeeded(past: list[Past], seconds: float | None) -> None:
    assert expected_seconds(past) == seconds


@pytest.mark.parametrize(
    ("spec", "past", "said"),
    [
        pytest.param({"gpus": 1}, [], [], id="never ran"),
        pytest.param({"gpus": 1}, [a_past(3), a_past(2, 0)], [], id="never seen on a GPU"),
        pytest.param({}, [a_past(3, 5)], [], id="asks for no GPU"),
        pytest.param(
            {"gpus": 1},
            [a_past(4), a_past(3, 5), a_past(2, 9)],
            ["its last run, job 3, used 5 GiB of GPU memory; with --gpu-mem 6G others could share the GPU"],
            id="could share",
        ),
        pytest.param(
            {"gpus": 1, "gpu_memory_bytes": 4 * GIB},
            [a_past(3, 5)],
            ["its last run, job 3, used 5 GiB of GPU memory, more than the 4 GiB that this one says; --gpu-mem 6G"],
            id="says too little",
        ),
        pytest.param(
            {"gpus": 1, "gpu_memory_bytes": 5 * GIB},
            [a_past(3, 5)],
            ["its last run, job 3, used 5 GiB of GPU memory"],
            id="says enough",
        ),
        pytest.param(
            {"gpus": 1, "exclusive": True},
            [a_past(3, 5)],
            ["its last run, job 3, used 5 GiB of GPU memory"],
            id="wants it for itself",
        ),
    ],
)
def test_who_submits_again_is_told_what_the_last_run_used(
    spec: dict[str, Any], past: list[Past], said: list[str]
) -> None:
    assert notes(a_spec(**spec), past, 24 * GIB) == said


def test_no_more_is_suggested_than_the_largest_gpu_has() -> None:
    used = "its last run, job 3, used 23 GiB of GPU memory"
    assert notes(a_spec(gpus=1), [a_past(3, 23)], 24 * GIB) == [used]
