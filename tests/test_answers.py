"""What a box answers is looked at where it comes in: types, numbers beyond all measure, fields that are missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner import errors
from runner.box import openapi
from runner.cli import boxes
from runner.laptop import answers
from runner.laptop.answers import Asked

JOB = {"id": 1, "state": "running", "fetched_at": None, "submitted_at": 1.5, "after": [{"job": 1, "any_end": False}]}


def came(text: str, request: str = "GET /jobs?ids=1", status: int = 200) -> Any:
    asked = Asked("attic", *request.split(" ", 1))
    return answers.checked(answers.read(text, asked), status, asked)


def test_the_table_is_what_the_description_says() -> None:
    made = openapi.answers(Path(openapi.PATH).read_text())
    assert Path(openapi.ANSWERS).read_text() == made, "run `python -m runner.box.openapi` and look at it"


def test_what_is_as_described_comes_through_whole_and_with_what_is_new() -> None:
    said = {"jobs": [{**JOB, "new": [1, {"x": "y"}]}], "news": "of a later version"}
    assert came(json.dumps(said)) == said
    assert json.dumps(came(json.dumps(said))) == json.dumps(said)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("id", "1", "is not a whole number"), ("id", 1.5, "is not a whole number"), ("id", True, "is not a whole"),
        ("id", None, "is not a whole number"), ("id", 1 << 64, "beyond all measure"), ("state", 7, "is not text"),
        ("id", -(10**4000), "beyond all measure"), ("state", ["x"], "is not text"),
        ("fetched_at", "now", "is not a number or null"), ("fetched_at", 1e300, "beyond all measure"),
        ("fetched_at", 10**17, "beyond all measure"), ("after", {}, "is no list"), ("after", None, "is no list"),
        ("after", [3], r"after\[0\] is no object"), ("after", [{"job": []}], r"after\[0\].job is not a whole number"),
        ("params", {"lr": {}}, r"params.lr is not text"), ("params", [], "is no object"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_nonsense_and_says_where(field: str, value: Any, why: str) -> None:
    with pytest.raises(errors.BadData, match=rf"box attic answered nonsense to GET /jobs\?ids=1: .*{why}") as caught:
        came(json.dumps({"jobs": [{**JOB, field: value}]}))
    assert "runner doctor" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "{nope", "NaN", '{"jobs":[],"x":NaN}', "[-Infinity]", '{"x":' + "1" * 5000 + "}", "[" * 100_000],
    ids=lambda text: text[:9] or "nothing",
)
def test_what_is_no_json_is_nonsense(text: str) -> None:
    with pytest.raises(errors.BadData, match="it is no JSON"):
        came(text)


@pytest.mark.parametrize("text", ["[]", "1", '"x"', "null", '{"jobs": 1}', '{"jobs": [[]]}', '{"jobs": [1e999]}'])
def test_an_answer_of_another_form_is_nonsense(text: str) -> None:
    with pytest.raises(errors.BadData, match="answered nonsense"):
        came(text)


def test_what_is_not_json_at_all_is_none_where_json_is_answered() -> None:
    with pytest.raises(errors.BadData, match="answered nonsense"):
        answers.checked(b"bytes", 200, Asked("attic", "GET", "/jobs"))
    assert answers.checked(b"bytes", 200, Asked("attic", "GET", "/logs/1?attempt=1")) == b"bytes"


def test_what_is_missed_is_told_by_whoever_needs_it() -> None:
    job = came(json.dumps({"jobs": [JOB]}))["jobs"][0]
    assert (job.get("signal"), "signal" in job) == (None, False)
    with pytest.raises(errors.BadData, match=r'nonsense to GET /jobs\?ids=1: it says no "signal"'):
        job["signal"]


@pytest.mark.parametrize(
    ("request_", "status", "fine", "wrong"),
    [
        ("POST /bundles", 201, {"id": 1}, {"id": "x"}),
        ("POST /api/v1/bundles", 202, {"missing": ["ab"], "held": {"ab": 1}}, {"missing": "ab"}),
        ("PUT /data/x", 202, {"missing": [], "held": {}}, {"held": {"ab": "1"}}),
        ("PUT /data/x", 299, {"missing": 1}, {"size": "x", "versions": 1, "name": 1}),
        ("POST /jobs/7/fetched", 200, {"differ": []}, {"differ": [1]}),
        ("GET /jobs/7/outputs", 200, {"outputs": [{"size": 1}]}, {"outputs": [{"size": 1.5}]}),
        ("POST /jobs/cancel?brief=1", 200, {"jobs": [{"id": 1}]}, {"jobs": [{"id": None}]}),
        ("GET /groups/g7", 200, {"jobs": {"running": 1}}, {"jobs": {"running": "all"}}),
    ],
)
def test_each_request_has_its_own_answer(request_: str, status: int, fine: Any, wrong: Any) -> None:
    came(json.dumps(fine), request_, status)
    with pytest.raises(errors.BadData, match="answered nonsense"):
        came(json.dumps(wrong), request_, status)


@pytest.mark.parametrize(
    "said",
    [
        "", "Welcome\n", "[]", "1", "null", '{"made": []}', '{"made": {}, "https": null}', '{"made": 1, "https": {}}',
        '{"made": {"id": 7}, "https": null}', '{"made": {"id": "x"}}', '{"made": {"id": "x"}, "https": [1]}',
    ],
)  # fmt: skip
def test_what_is_no_token_is_no_box_that_can_be_added(said: str) -> None:
    with pytest.raises(errors.BadData, match="is not a token"):
        boxes._read(said, "attic")
