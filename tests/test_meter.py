"""What a GPU used between two readings, by counters that stop, fall, jump and come back."""

from __future__ import annotations

import pytest
from builders import a_reading

from runner.box.gpus.frames import Frame
from runner.box.gpus.meter import Count, Meter, Step

CARD = "GPU-0000"


def step(meter: Meter, at: float, state: str = "ok", **sample: object) -> Step:
    (found,) = meter.read(Frame(at, cards=[a_reading(CARD, sample=sample, state=state)]))
    return found


def joules(steps: list[Step]) -> float:
    return sum(each.joules or 0.0 for each in steps)


def test_between_two_counts_energy_is_guessed_and_then_corrected() -> None:
    meter = Meter()
    steps = [step(meter, 100.0, power_watts=200.0, energy_joules=1000.0)]
    steps += [step(meter, 100.0 + second, power_watts=200.0) for second in range(1, 5)]
    assert joules(steps) == 800.0
    steps.append(step(meter, 105.0, power_watts=200.0, energy_joules=2100.0))
    assert joules(steps) == pytest.approx(1100.0), "as it was counted"
    steps.append(step(meter, 106.0, power_watts=100.0))
    assert joules(steps) == pytest.approx(1250.0)


def test_the_first_reading_is_of_no_time() -> None:
    first = step(Meter(), 100.0, power_watts=200.0, energy_joules=1e6, throttled_seconds={"hw_thermal": 9.0})
    assert (first.seconds, first.unseen, first.joules, first.throttled) == (0.0, 0.0, None, {})


def test_a_card_without_a_counter_is_measured_by_its_power() -> None:
    meter = Meter()
    steps = [step(meter, float(at), power_watts=100.0 + at) for at in range(61)]
    assert joules(steps) == pytest.approx(60 * 130.0)


def test_a_card_that_tells_neither_has_none() -> None:
    meter = Meter()
    assert [step(meter, float(at), utilization=0.5).joules for at in range(3)] == [None, None, None]


@pytest.mark.parametrize("said", [0.0, 400.0, 1e9])
def test_a_counter_that_falls_or_leaps_is_begun_again(said: float) -> None:
    meter = Meter()
    steps = [step(meter, 0.0, power_watts=100.0, energy_joules=5000.0)]
    steps.append(step(meter, 1.0, power_watts=100.0, energy_joules=said))
    assert joules(steps) == 100.0, "by the power"
    steps.append(step(meter, 2.0, power_watts=100.0, energy_joules=said + 300.0))
    assert joules(steps) == pytest.approx(400.0), "and counted from there"


def test_what_was_used_in_a_gap_is_told_apart() -> None:
    meter = Meter()
    step(meter, 0.0, power_watts=100.0, energy_joules=1000.0)
    first = step(meter, 600.0, power_watts=100.0)
    assert (first.seconds, first.unseen, first.joules, first.unseen_joules) == (0.0, 600.0, None, None)
    second = step(meter, 601.0, power_watts=100.0, energy_joules=61_100.0)
    assert (second.seconds, second.joules, second.unseen_joules) == (1.0, 100.0, 60_000.0)


def test_sleep_is_seen_time_and_its_energy_is_told_when_it_wakes() -> None:
    meter = Meter()
    step(meter, 0.0, power_watts=100.0, energy_joules=1000.0)
    asleep = [step(meter, float(at), "asleep") for at in range(1, 60)]
    assert [each.seconds for each in asleep] == [1.0] * 59
    woken = step(meter, 60.0, power_watts=20.0, energy_joules=1030.0)
    assert (woken.joules, woken.unseen_joules) == (None, 30.0)


def test_a_counter_that_is_not_told_for_a_while_corrects_all_of_it() -> None:
    meter = Meter()
    step(meter, 0.0, power_watts=100.0, energy_joules=1000.0)
    steps = [step(meter, float(at), power_watts=100.0) for at in range(1, 30)]
    steps.append(step(meter, 30.0, power_watts=100.0, energy_joules=4300.0))
    assert joules(steps) == pytest.approx(3300.0)


def test_a_clock_that_goes_back_counts_nothing() -> None:
    meter = Meter()
    step(meter, 1000.0, power_watts=100.0)
    back = step(meter, 400.0, power_watts=100.0)
    assert (back.seconds, back.unseen, back.joules) == (0.0, 0.0, None)
    assert step(meter, 401.0, power_watts=100.0).joules == 100.0


def test_time_held_back_is_a_difference_of_counters() -> None:
    meter = Meter()
    step(meter, 0.0, throttled_seconds={"hw_thermal": 10.0, "power_cap": 5.0, "sync_boost": 1.0})
    assert step(meter, 1.0, throttled_by=["hw_thermal"]).throttled == {}, "the next count says it"
    later = step(meter, 5.0, throttled_seconds={"hw_thermal": 12.5, "power_cap": 5.0, "sync_boost": 9.0})
    assert later.throttled == {"hw_thermal": 2.5}
    assert step(meter, 10.0, throttled_seconds={"hw_thermal": 0.0, "power_cap": 999.0}).throttled == {}


def test_without_counters_it_is_what_the_card_says_each_second() -> None:
    meter = Meter()
    step(meter, 0.0, throttled_by=["sw_thermal"])
    assert step(meter, 1.0, throttled_by=["sw_thermal", "set_clocks"]).throttled == {"sw_thermal": 1.0}


def test_counting_goes_on_from_what_was_kept() -> None:
    first = Meter()
    for at in range(4):
        step(first, float(at), power_watts=100.0, **({"energy_joules": 1000.0} if at == 0 else {}))
    kept = first.count(CARD)
    assert kept == Count(3.0, 1300.0, {}), "with what was guessed since the count"
    second = Meter()
    second.resume(CARD, kept)
    resumed = step(second, 103.0, power_watts=100.0, energy_joules=11_300.0)
    assert (resumed.unseen, resumed.unseen_joules) == (100.0, 10_000.0)
    assert second.count("GPU-9999") is None


def test_a_lost_card_has_no_step() -> None:
    assert Meter().read(Frame(1.0, cards=[a_reading(CARD, state="lost", sample={})])) == []
