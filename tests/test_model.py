"""The words of the house fit together."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from builders import a_job, a_spec

from runner import errors, words
from runner.box.settle import STATE_OF_REASON
from runner.model import After


@pytest.mark.parametrize("state", words.STATES)
def test_a_job_is_finished_in_the_final_states_only(state: str) -> None:
    assert a_job(1, state).finished is (state not in words.UNFINISHED)


def test_states_are_finished_or_not_and_never_both() -> None:
    assert set(words.FINISHED) | set(words.UNFINISHED) == set(words.STATES)
    assert not set(words.FINISHED) & set(words.UNFINISHED)
    assert set(words.ACTIVE) < set(words.UNFINISHED)


def test_every_reason_has_a_sentence() -> None:
    assert set(words.RETRYABLE) <= set(words.REASONS)
    assert set(STATE_OF_REASON) - {None} <= set(words.REASONS)
    assert all(sentence and not sentence.endswith(".") for sentence in words.REASONS.values())


def test_values_of_one_spec_share_nothing() -> None:
    first, second = a_spec(), a_spec()
    first.env["A"] = "b"
    first.after.append(After(1))
    assert (second.env, second.after) == ({}, [])


def test_a_job_is_json() -> None:
    job = a_job(1, after=[After(3, True)], params={"a": "b"})
    assert json.loads(json.dumps(asdict(job)))["after"] == [{"job": 3, "any_end": True}]


def test_every_error_has_its_own_code_and_says_what_to_type() -> None:
    kinds = errors.BY_CODE.values()
    assert len({kind.code for kind in kinds}) == len(errors.BY_CODE)
    for kind in kinds:
        assert 64 <= kind.exit_code <= 78
        assert 400 <= kind.http_status < 600
        error = kind("what happened", "what next")
        again = errors.from_json(json.loads(json.dumps(error.as_json())), error.http_status)
        assert (type(again), again.message, again.hint) == (kind, "what happened", "what next")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"code": "from_the_future", "message": "x"}, 404, errors.NotFound),
        ({"code": "from_the_future", "message": "x"}, 418, errors.Problem),
        ({"detail": "x"}, 500, errors.Problem),
        ("text", 502, errors.Problem),
        (None, 200, errors.Problem),
    ],
)
def test_an_answer_that_is_no_error_of_ours_still_becomes_one(body: object, status: int, kind: type) -> None:
    assert type(errors.from_json(body, status)) is kind


def test_the_nearest_right_name_is_offered() -> None:
    assert errors.nearest("cancl", ["cancel", "submit"]) == ', did you mean "cancel"?'
    assert errors.nearest("xyz", ["cancel", "submit"]) == ""
