"""What the driver's faults mean: a table."""

from __future__ import annotations

import pytest

from runner.box.gpus import xids


@pytest.mark.parametrize(("code", "severity"), [
    *((code, xids.CRITICAL) for code in (48, 62, 64, 74, 79, 95, 119, 120)),
    *((code, xids.JOB) for code in (13, 31, 43, 45)),
    *((code, xids.INFO) for code in (63, 92)),
    (94, xids.WARNING), (154, xids.WARNING), (9999, xids.WARNING),
])  # fmt: skip
def test_a_fault_is_as_bad_as_it_is(code: int, severity: str) -> None:
    assert xids.severity(code) == severity


def test_each_has_words_and_what_to_do() -> None:
    for code in xids.KNOWN:
        assert xids.words(code)
        assert xids.advice(code)


def test_one_that_is_not_known_says_what_the_driver_said() -> None:
    assert xids.words(9999, "something new") == "something new"
    assert xids.advice(9999)
