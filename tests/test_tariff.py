"""What a kilowatt-hour costs."""

from __future__ import annotations

import time

import pytest

from runner.box import tariff
from runner.box.tariff import KWH, Tariff
from runner.errors import BadSettings


def parsed(text: str) -> Tariff:
    found = tariff.parse(text)
    assert found is not None
    return found


def test_nothing_said_is_nothing_counted() -> None:
    assert tariff.parse("") is None
    assert tariff.parse("  ") is None


def test_one_price_holds_all_day() -> None:
    assert parsed("0.32").cost(2 * KWH, 0.0) == pytest.approx(0.64)


@pytest.mark.parametrize(("minute", "price"), [
    (0, 0.2), (5 * 60 + 59, 0.2), (6 * 60, 0.3), (12 * 60, 0.1), (13 * 60 + 30, 0.3), (22 * 60, 0.2),
])  # fmt: skip
def test_a_price_may_have_its_hours_also_over_midnight(minute: int, price: float) -> None:
    assert parsed("0.3 22:00-06:00=0.2 12-13:30=0.1").at(minute) == price


def test_the_hours_are_those_of_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert parsed("1 22:00-06:00=0").cost(KWH, 1_700_000_000) == 0  # 23:13 there
        assert parsed("1 22:00-06:00=0").cost(KWH, 1_700_030_000) == 1
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["cheap", "-1", "nan", "0.3 22=0.2", "0.3 25-6=1", "0.3 22:60-6=1", "0.3 22-6=x"])
def test_what_is_no_tariff_is_refused_in_words(text: str) -> None:
    with pytest.raises(BadSettings, match="tariff"):
        tariff.parse(text)
