"""What may be asked for, each refusal in a sentence; and how one request becomes many jobs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from builders import GIB, a_card, a_spec
from hypothesis import given
from hypothesis import strategies as st

from runner import words
from runner.box.submissions import check, command, expand
from runner.errors import BadRequest, TooMuch
from runner.model import After, Resources, Submission

BOX = Resources(4, 8 * GIB, 0)


@pytest.mark.parametrize(
    ("argv", "values", "said"),
    [
        pytest.param([], {"command": []}, "the command is empty", id="no command"),
        pytest.param([""], {}, "the command is empty", id="an empty program"),
        pytest.param(["a\0b"], {}, "holds a NUL character", id="NUL in the command"),
        pytest.param(["a"], {"env": {"A": "\0"}}, "holds a NUL character", id="NUL in a variable"),
        pytest.param(
            ["a", "\ud800"], {}, "'\\ud800' is not text that a program can be given", id="half a surrogate pair"
        ),
        pytest.param(["a", "x" * (1 << 17)], {}, "the command is 131075 bytes long, 131072 are the most", id="long"),
        pytest.param(["a"], {"directory": "/etc"}, "'/etc' is not a path inside the project", id="absolute folder"),
        pytest.param(["a"], {"script": "a/../../b"}, "'a/../../b' is not a path inside the project", id="script above"),
        pytest.param(["a"], {"cpus": 0}, "cpus is 0; it takes 1 or more", id="no cpu"),
        pytest.param(["a"], {"cpus": 10**400}, "cpus is 1000", id="more cpus than a float can count"),
        pytest.param(["a"], {"memory_bytes": -1}, "memory is -1; it takes 0 or more", id="negative memory"),
        pytest.param(["a"], {"gpus": -1}, "gpus is -1; it takes 0 or more", id="negative gpus"),
        pytest.param(["a"], {"priority": 1001}, "priority is 1001; it takes -1000 to 1000", id="priority"),
        pytest.param(["a"], {"grace": -0.5}, "grace is -0.5; it takes 0 to 86400", id="negative grace"),
        pytest.param(["a"], {"grace": float("nan")}, "grace is nan; it takes 0 to 86400", id="no number"),
        pytest.param(["a"], {"retries": 1001}, "retries is 1001; it takes 0 to 1000", id="retries"),
        pytest.param(["a"], {"time_limit": 0.0}, "the time limit is 0.0 s; it takes more than 0", id="no time"),
        pytest.param(["a"], {"time_limit": float("inf")}, "the time limit is inf s", id="endless time"),
        pytest.param(["a"], {"name": "\udc80"}, "the name '\\udc80' is not UTF-8", id="a name of bytes"),
        pytest.param(["a"], {"name": "n" * 201}, "the name is 201 characters long, 200 are the most", id="long name"),
        pytest.param(
            ["a"], {"retry_on": ["signl"]}, "no reason 'signl' to retry on, did you mean \"signal\"?", id="reason"
        ),
        pytest.param(
            ["a"], {"retry_on": ["cancelled"]}, "no reason 'cancelled' to retry on", id="no retry of a cancel"
        ),
        pytest.param(["a"], {"env": {"A=B": "c"}}, "'A=B' is not a name for an environment variable", id="variable"),
        pytest.param(["a"], {"env": {"A\n": "c"}}, "is not a name for an environment variable", id="newline in a name"),
        pytest.param(["a"], {"env": {"RUNNER_X": "c"}}, "RUNNER_X is set by the box itself", id="reserved"),
        pytest.param(["a"], {"env": {"CUDA_VISIBLE_DEVICES": "0"}}, "is set by the box itself", id="GPUs"),
        pytest.param(["a"], {"environment": "conda"}, "there is no environment 'conda'", id="environment"),
        pytest.param(["a"], {"after": [After(9)]}, "there is no job 9 to wait for", id="unknown dependency"),
        pytest.param(["a"], {"after": [After(2)]}, "job 2 has already ended as failed", id="broken dependency"),
    ],
)
def test_what_can_not_be_done_is_refused_in_a_sentence(argv: list[str], values: dict[str, Any], said: str) -> None:
    spec = a_spec("x", **{name: value for name, value in values.items() if name != "command"})
    spec.command = argv
    with pytest.raises(BadRequest, match=re.escape(said)):
        check(Submission(spec), BOX, {1: words.SUCCEEDED, 2: words.FAILED})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cpus": 5}, "the job asks for 5 cpus, the box has 4"),
        ({"memory_bytes": 9 * GIB}, "the job asks for 9.0 GiB of memory, the box has 8.0 GiB"),
        ({"gpus": 1}, "the job asks for 1 GPU, the box has none"),
    ],
    ids=["cpus", "memory", "gpus"],
)
def test_more_than_the_box_has_is_refused_with_the_numbers(values: dict[str, Any], said: str) -> None:
    with pytest.raises(TooMuch, match=said):
        check(Submission(a_spec(**values)), BOX, {})


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="the least"),
        pytest.param({"cpus": 4, "memory_bytes": 8 * GIB, "time_limit": 0.1, "grace": 0.0}, id="all of it"),
        pytest.param({"after": [After(1), After(2, any_end=True), After(3)]}, id="dependencies"),
        pytest.param(
            {"retry_on": list(words.RETRYABLE), "env": {"_a1": "ü\n", "CUDA_LAUNCH_BLOCKING": "1"}}, id="names"
        ),
        pytest.param({"directory": "a/..b", "script": "x y/ü.py", "name": "\x1b[31m\n"}, id="odd but possible"),
    ],
)
def test_what_can_be_done_is_not_refused(values: dict[str, Any]) -> None:
    check(Submission(a_spec(**values)), BOX, {1: words.SUCCEEDED, 2: words.FAILED, 3: words.RUNNING})


# --- many jobs ---


@pytest.mark.parametrize(
    ("array", "sweep", "expected"),
    [
        pytest.param(None, None, [(None, {})], id="one"),
        pytest.param([3, 1], None, [(3, {}), (1, {})], id="an array keeps its order"),
        pytest.param(None, {"a": ["1", "2"]}, [(0, {"a": "1"}), (1, {"a": "2"})], id="a sweep is numbered"),
        pytest.param(
            None,
            {"a": ["1", "2"], "b": ["x", "y"]},
            [
                (0, {"a": "1", "b": "x"}),
                (1, {"a": "1", "b": "y"}),
                (2, {"a": "2", "b": "x"}),
                (3, {"a": "2", "b": "y"}),
            ],
            id="every combination",
        ),
        pytest.param(
            [5, 6], {"a": ["1", "2"]}, [(5, {"a": "1"}), (6, {"a": "1"}), (5, {"a": "2"}), (6, {"a": "2"})], id="both"
        ),
        pytest.param(None, {}, [(None, {})], id="an empty sweep is none"),
    ],
)
def test_a_request_becomes_its_jobs(array: Any, sweep: Any, expected: list[tuple[int | None, dict[str, str]]]) -> None:
    indices, params = expand(Submission(a_spec(), array, sweep))
    assert list(zip(indices, params, strict=True)) == expected


@pytest.mark.parametrize(
    ("array", "sweep", "said"),
    [
        pytest.param(list(range(10_001)), None, "this makes 10001 jobs, 10000 are the most at once", id="long array"),
        pytest.param(None, {"a": ["1"] * 101, "b": ["1"] * 100}, "this makes 10100 jobs", id="large sweep"),
        pytest.param(list(range(5001)), {"a": ["1", "2"]}, "this makes 10002 jobs", id="both together"),
        pytest.param(None, {c: ["1"] * 1000 for c in "abcdefgh"}, f"this makes {10**24} jobs", id="astronomic"),
        pytest.param([], None, "this makes no job at all", id="empty array"),
        pytest.param(None, {"a": []}, "this makes no job at all", id="empty sweep"),
        pytest.param(None, {"a b": ["1"]}, "'a b' can't be a parameter's name", id="odd name"),
        pytest.param(None, {"a": ["\0"]}, "a value of a holds a NUL character", id="NUL"),
        pytest.param(None, {"a": ["\udfff"]}, "is not text that a program can be given", id="half a surrogate pair"),
        pytest.param([-1], None, "-1 can't be an array index", id="negative index"),
        pytest.param([2**31], None, "can't be an array index", id="huge index"),
        pytest.param([1, 1], None, "the array names an index twice", id="twice"),
    ],
)
def test_a_request_that_makes_too_many_or_no_jobs_is_refused(array: Any, sweep: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        expand(Submission(a_spec(), array, sweep))


def test_ten_thousand_jobs_are_allowed() -> None:
    assert len(expand(Submission(a_spec(), list(range(10_000))))[0]) == 10_000


# --- a job's own command ---


@pytest.mark.parametrize(
    ("written", "params", "made"),
    [
        pytest.param(["a", "{x}"], {}, ["a", "{x}"], id="no parameters"),
        pytest.param(["a", "--lr={lr}", "{lr}{lr}"], {"lr": "3"}, ["a", "--lr=3", "33"], id="replaced everywhere"),
        pytest.param(["a"], {"lr": "3", "n": "4"}, ["a", "--lr=3", "--n=4"], id="appended"),
        pytest.param(["a", "{n}"], {"lr": "3", "n": "4"}, ["a", "4", "--lr=3"], id="one of each"),
        pytest.param(["a", "{lr}", "{n}"], {"lr": "{n}", "n": "4"}, ["a", "{n}", "4"], id="a value is no mark"),
        pytest.param(["a", "{other}"], {"lr": "3"}, ["a", "{other}", "--lr=3"], id="another mark stays"),
        pytest.param(["a", "{lr}"], {"lr": r"\1 \g<0>"}, ["a", r"\1 \g<0>"], id="a value is no pattern"),
        pytest.param(["a", "{lr}"], {"lr": ""}, ["a", ""], id="an empty value"),
    ],
)
def test_parameters_go_where_they_are_named_or_else_behind(
    written: list[str], params: dict[str, str], made: list[str]
) -> None:
    assert command(written, params) == made


@given(
    st.lists(st.text(max_size=8), min_size=1),
    st.dictionaries(st.from_regex(r"[A-Za-z_]\w{0,3}\Z"), st.text(max_size=8)),
)
def test_no_value_is_ever_lost(written: list[str], params: dict[str, str]) -> None:
    made = command(written, params)
    assert len(made) >= len(written)
    for name, value in params.items():
        assert f"--{name}={value}" in made or any(f"{{{name}}}" in word for word in written)


# --- GPUs ---

CARDS = [
    a_card(0),
    a_card(1, "NVIDIA GeForce RTX 4090"),
    a_card(2, closed="GPU 2 fell off the bus at 12:00", lost=True),
]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param({"gpus": 4}, "the job asks for 4 GPUs, the box has 3: 2 RTX 3090 with 24 GiB, 1 RTX 4090", id="n"),
        pytest.param({"gpu_type": "h100"}, "a GPU of the type 'h100'; the box has 2 RTX 3090", id="unknown model"),
        pytest.param({"gpu_type": "!"}, "a GPU of the type '!'; the box has 2 RTX 3090", id="no word of a model"),
        pytest.param({"gpu_memory_bytes": 25 * GIB}, "1 GPU with 25 GiB; the largest has 24 GiB", id="memory"),
        pytest.param({"gpu_memory_bytes": 2**53 + 1}, "the GPU memory is 9007199254740993; it takes", id="absurd"),
        pytest.param({"gpu_memory_bytes": -1}, "the GPU memory is -1; it takes 0 or more", id="negative"),
        pytest.param({"gpu_type": "GPU-0002"}, "GPU 2 fell off the bus at 12:00", id="a UUID that is gone"),
        pytest.param({"gpu_type": "GPU-0009"}, "of the type 'GPU-0009'", id="a UUID that never was"),
        pytest.param({"gpu_type": "x" * 201}, "the GPU's type is 201 characters long, 200 are the most", id="long"),
        pytest.param({"gpu_ids": "name"}, "there are no GPU ids of the kind 'name'", id="ids"),
        pytest.param({"exclusive": True}, "exclusive says how a job has its GPUs, and it asks for none", id="no GPU"),
        pytest.param({"adopts": [1, 2], "cpus": 0}, "adopts and gpu_uuids are set by the box itself", id="adopts"),
        pytest.param({"gpu_uuids": ["GPU-0000"]}, "adopts and gpu_uuids are set by the box itself", id="holds already"),
    ],
)
def test_gpus_that_there_are_not_are_refused_with_the_numbers(values: dict[str, Any], said: str) -> None:
    with pytest.raises((BadRequest, TooMuch), match=re.escape(said)):
        check(Submission(a_spec(**values)), BOX, {}, CARDS)


@pytest.mark.parametrize(
    "values",
    [
        {"gpus": 3},
        {"gpu_type": "3090", "gpu_memory_bytes": 24 * GIB, "exclusive": True},
        {"gpu_type": "GPU-0001", "gpu_ids": "index"},
        {"gpus": 2, "gpu_memory_bytes": GIB},
    ],
    ids=["all", "a model", "a UUID", "two of them"],
)
def test_gpus_that_there_are_can_be_asked_for(values: dict[str, Any]) -> None:
    spec = a_spec(**values)
    check(Submission(spec), BOX, {}, CARDS)
    assert spec.gpus == values.get("gpus", 1), "who says which, or how much of it, wants one"
