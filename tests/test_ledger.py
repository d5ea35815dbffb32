"""What a job used of its GPUs: over restarts, kills, gaps and neighbours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from builders import GIB, a_hall, a_job, a_process, a_reading

from runner.box.gpus.frames import Frame, Reading, Xid
from runner.box.gpus.ledger import Ledger
from runner.box.gpus.meter import Count, Meter
from runner.box.tariff import KWH, parse
from runner.model import Job, Use

A, B = "GPU-0000", "GPU-0001"
T = 1000.0


class Desk:
    """A ledger and its meter, with a clock."""

    def __init__(self, *jobs: Job, price: str = "") -> None:
        self.meter, self.ledger = Meter(), Ledger(parse(price), "EUR")
        self.jobs = {job.id: job for job in jobs}
        self.now = T

    def sees(self, *readings: Reading, after: float = 1.0, work: dict[int, float] | None = None) -> None:
        frame = Frame(self.now, cards=list(readings))
        steps = self.meter.read(frame)
        for step in steps:
            step.work = work or {}
        self.ledger.read(frame, steps, self.jobs.values())
        self.now += after

    def runs(self, seconds: int, **sample: object) -> None:
        for _ in range(seconds):
            self.sees(reads(**sample))

    def gives(self, job: Job) -> None:
        self.jobs[job.id] = job
        self.ledger.open(job, self.now)


def reads(uuid: str = A, watts: float = 100.0, busy: float = 0.5, **values: object) -> Reading:
    processes = values.pop("processes", None)
    sample = {"power_watts": watts, "utilization": busy, "memory_used_bytes": GIB, **values}
    return a_reading(uuid, sample=sample, processes=processes)


def alone(id: int = 7, *uuids: str) -> Job:
    return a_job(id, "running", gpus=1, allotted=list(uuids or (A,)), attempt=1)


def used(desk: Desk, job: Job, at: float) -> Use:
    (use,) = desk.ledger.close(job, at)
    return use


def test_a_job_is_charged_for_its_own_time_alone() -> None:
    desk = Desk(price="0.36")
    desk.runs(10, watts=400.0)
    desk.now += 0.0
    job = alone()
    desk.gives(job)
    start = desk.now
    desk.now += 0.5
    desk.runs(100, watts=100.0)
    use = used(desk, job, desk.now - 1)
    assert (use.since, use.until) == (start, desk.now - 1)
    assert use.seen_seconds == pytest.approx(99.5)
    assert use.unseen_seconds == pytest.approx(0.0)
    assert use.energy_joules == pytest.approx(99 * 100 + 0.5 * 250, rel=0.01)
    assert use.cost == pytest.approx((use.energy_joules or 0) / KWH * 0.36)
    assert use.currency == "EUR"


def test_busy_and_idle_are_of_what_was_measured() -> None:
    job = alone()
    desk = Desk()
    desk.runs(1)
    desk.gives(job)
    desk.runs(60, busy=0.9)
    desk.runs(40, busy=0.0)
    use = used(desk, job, desk.now - 1)
    assert use.busy_seconds / use.measured_seconds == pytest.approx(0.54, abs=0.01)
    assert use.idle_seconds == pytest.approx(40.0)
    assert use.cost is None
    assert use.currency == ""


def test_the_last_moment_is_taken_to_have_been_like_the_one_before() -> None:
    job = alone()
    desk = Desk()
    desk.runs(1)
    desk.gives(job)
    desk.runs(10, watts=100.0)
    last = desk.now - 1
    assert used(desk, job, last + 0.9).energy_joules == pytest.approx((used(desk, job, last).energy_joules or 0) + 90.0)
    late = used(desk, job, last + 300.0)
    assert (late.unseen_seconds, late.uncounted_seconds) == (300.0, 300.0)
    assert late.until == last + 300.0


def test_a_count_that_comes_late_is_not_taken_for_what_is_drawn_at_the_end() -> None:
    job = alone()
    desk = Desk(job)
    desk.ledger.open(job, T)
    desk.sees(reads(watts=0.0, energy_joules=1000.0))
    desk.sees(reads(watts=0.0, energy_joules=1036.0))
    assert used(desk, job, desk.now).energy_joules == pytest.approx(36.0), "a second after the last reading"


def test_to_close_it_again_says_the_same() -> None:
    job = alone()
    desk = Desk(job)
    desk.runs(10)
    assert desk.ledger.close(job, desk.now) == desk.ledger.close(job, desk.now)
    desk.ledger.keep({})
    assert desk.ledger.close(job, desk.now) == []


def test_a_gap_is_unseen_and_its_energy_counted_by_the_driver() -> None:
    job = alone()
    desk = Desk(job)
    desk.ledger.open(job, T)
    desk.sees(reads(energy_joules=1000.0))
    desk.runs(4, energy_joules=None)
    desk.now += 600
    desk.sees(reads(energy_joules=61_500.0))
    use = used(desk, job, desk.now - 1)
    assert use.unseen_seconds == pytest.approx(601.0)
    assert use.uncounted_seconds == 0.0
    assert use.energy_joules == pytest.approx(60_500.0)
    assert use.seen_seconds + use.unseen_seconds == pytest.approx(use.until - use.since)


def test_a_gap_without_a_counter_is_told_as_not_counted() -> None:
    job = alone()
    desk = Desk(job)
    desk.ledger.open(job, T)
    desk.runs(5)
    desk.now += 600
    desk.runs(5)
    use = used(desk, job, desk.now - 1)
    assert use.uncounted_seconds == use.unseen_seconds == pytest.approx(601.0)
    assert use.energy_joules == pytest.approx(800.0)


def test_what_is_shared_is_divided_by_what_each_does() -> None:
    one, other = alone(7), alone(8)
    desk = Desk(one, other)
    for job in (one, other):
        desk.ledger.open(job, T)
    for _ in range(11):
        desk.sees(reads(watts=200.0, busy=0.9), work={7: 0.6, 8: 0.2})
    first, second = used(desk, one, desk.now - 1), used(desk, other, desk.now - 1)
    assert (first.energy_joules, second.energy_joules) == (pytest.approx(1500.0), pytest.approx(500.0))
    assert first.busy_seconds / first.measured_seconds == pytest.approx(0.6)
    assert first.shared
    assert second.shared


def test_what_is_shared_and_not_known_is_divided_evenly() -> None:
    one, other = alone(7), alone(8)
    desk = Desk(one, other)
    for job in (one, other):
        desk.ledger.open(job, T)
    desk.runs(11, watts=200.0)
    assert used(desk, one, desk.now - 1).energy_joules == used(desk, other, desk.now - 1).energy_joules == 1000.0


def test_several_gpus_are_told_apart() -> None:
    job = alone(7, A, B)
    desk = Desk(job)
    desk.ledger.open(job, T)
    for _ in range(11):
        desk.sees(reads(A, 100.0), reads(B, 300.0))
    assert [use.energy_joules for use in desk.ledger.close(job, desk.now - 1)] == [1000.0, 3000.0]


def test_memory_is_what_its_processes_hold_or_all_of_it_when_they_do_not_say() -> None:
    job = alone()
    desk = Desk(job)
    desk.ledger.open(job, T)
    desk.sees(reads())
    mine, foreign = a_process(1, 2, job=7), a_process(2, 9)
    desk.sees(reads(processes=[mine, a_process(3, 1, job=7), foreign]))
    desk.sees(reads(processes=[mine]))
    assert used(desk, job, desk.now).peak_bytes == 3 * GIB
    desk.sees(reads(processes=[a_process(1, None, job=7)], memory_used_bytes=5 * GIB))
    assert used(desk, job, desk.now).peak_bytes == 5 * GIB


def test_heat_and_faults_are_remembered() -> None:
    job = alone()
    desk = Desk(job)
    desk.ledger.open(job, T)
    kept = {"hw_thermal": 1.0, "sw_thermal": 0.0, "power_brake": 0.0, "power_cap": 0.0}
    desk.sees(reads(temperature_celsius=60.0, throttled_seconds=kept))
    desk.sees(reads(temperature_celsius=92.0), after=4.0)
    later = {"hw_thermal": 2.0, "sw_thermal": 0.5, "power_brake": 0.25, "power_cap": 3.0}
    desk.sees(reads(temperature_celsius=70.0, throttled_seconds=later))
    desk.ledger.blame(job, A, 31)
    desk.ledger.blame(job, A, 31)
    desk.ledger.blame(alone(99), A, 31)
    use = used(desk, job, desk.now)
    assert (use.hottest_celsius, use.heat_seconds, use.brake_seconds, use.capped_seconds) == (92.0, 1.5, 0.25, 3.0)
    assert use.xids == {"31": 2}


def test_a_clock_that_goes_back_takes_the_jobs_time_with_it() -> None:
    job = alone()
    desk = Desk(job)
    desk.ledger.open(job, T)
    desk.runs(20)
    desk.now -= 3600
    desk.runs(20)
    use = used(desk, job, desk.now)
    assert (use.until - use.since, use.unseen_seconds) == (pytest.approx(40.0, abs=2), 0.0)
    assert use.energy_joules == pytest.approx(3900.0, abs=100.0)


def test_a_daemon_that_comes_back_goes_on_from_what_was_recorded() -> None:
    job = alone()
    first = Desk(job)
    first.ledger.open(job, T)
    first.sees(reads(energy_joules=1000.0))
    first.runs(59)
    kept, count = first.ledger.changed()[0], first.meter.count(A)
    first.runs(30)  # and then it was killed
    second = Desk(job)
    second.now = first.now + 20
    second.ledger.resume(kept, count)
    second.ledger.resume(dataclasses.replace(kept, seen_seconds=1e9), count)  # told again: nothing new
    counted = 1000.0 + (second.now - T) * 100.0
    second.sees(reads(energy_joules=counted))
    second.runs(10)
    use = used(second, job, second.now - 1)
    assert use.energy_joules == pytest.approx((second.now - 1 - T) * 100.0), "as the driver counted it"
    assert use.uncounted_seconds == 0.0
    assert use.unseen_seconds == pytest.approx(51.0)
    assert use.seen_seconds + use.unseen_seconds == pytest.approx(use.until - use.since)


@pytest.mark.parametrize("count", [None, Count(T, None), Count(T, 5e9)])
def test_a_count_that_is_of_no_use_leaves_the_gap_uncounted(count: Count | None) -> None:
    job = alone()
    desk = Desk(job)
    desk.ledger.resume(Use(7, 1, A, T - 100, T, energy_joules=5.0), count)
    desk.now = T + 50
    desk.sees(reads(energy_joules=1000.0))
    use = used(desk, job, desk.now - 1)
    assert (use.energy_joules, use.uncounted_seconds) == (5.0, 50.0)


def test_what_ended_with_the_box_is_not_counted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_hall(tmp_path) as hall:
        hall.sees(reads(energy_joules=100.0))
        job = hall.submit(gpus=1)
        hall.turn()
        hall.engine.runs(job, at=hall.now)
        for _ in range(70):
            hall.sees(reads())
        hall.turn()
        (before,) = hall.daemon.gpus.uses(job.id)
        engine, now = hall.engine, hall.now
    monkeypatch.setenv("GPUBOX_BOOT_ID", "another")
    with a_hall(tmp_path, engine=engine) as hall:
        hall.now = now + 100_000
        hall.sees(reads(energy_joules=5e4))
        engine.ends(job, reason="reboot")
        end = engine.said[job.id, 1]
        engine.said[job.id, 1] = dataclasses.replace(end, exit=dataclasses.replace(end.exit, ended_at=hall.now))
        hall.turn()
        (use,) = hall.daemon.gpus.uses(job.id)
        assert before.until - 60 <= use.until <= before.until, "as it was recorded last"
        assert use.unseen_seconds < 2


def test_what_is_recorded_is_not_recorded_again_until_it_changes() -> None:
    job = alone()
    desk = Desk(job)
    desk.ledger.open(job, T)
    desk.runs(3)
    changed = desk.ledger.changed()
    desk.runs(1)
    desk.ledger.recorded(changed)
    assert len(desk.ledger.changed()) == 1, "it changed meanwhile"
    desk.ledger.recorded(desk.ledger.changed())
    assert desk.ledger.changed() == []


# --- in the daemon -------------------------------------------------------------------------------------------------


def test_the_end_of_a_job_is_recorded_with_what_it_used(tmp_path: Path) -> None:
    with a_hall(tmp_path, tariff="0.5") as hall:
        hall.sees(reads())
        job = hall.submit(gpus=1)
        hall.turn()
        hall.engine.runs(job, at=hall.now)
        for _ in range(70):
            hall.sees(reads(watts=300.0, busy=0.9))
        hall.turn()
        (use,) = hall.daemon.gpus.uses(job.id)
        assert use.energy_joules is not None
        (kept, counted), *_ = hall.store.uses([job.id])
        assert kept.until <= use.until
        assert "energy_joules" in counted
        hall.engine.ends(job)
        end = hall.engine.said[job.id, 1]
        hall.engine.said[job.id, 1] = dataclasses.replace(
            end, exit=dataclasses.replace(end.exit, ended_at=hall.now + 0.5)
        )
        hall.turn()
        ((final, rest),) = hall.store.uses([job.id])
        assert (final.attempt, final.gpu, rest) == (1, A, "")
        assert final.until == hall.now + 0.5
        assert final.energy_joules == pytest.approx(300.0 * (final.until - final.since), rel=0.02)
        assert final.cost == pytest.approx((final.energy_joules or 0.0) / KWH * 0.5)
        assert hall.daemon.gpus.uses(job.id) == [final]
        for _ in range(70):
            hall.sees(reads(watts=300.0, busy=0.9))
        hall.daemon.gpus.save()
        assert hall.store.uses([job.id]) == [(final, "")], "the record of what is over is the last word"


def test_a_job_that_goes_on_is_counted_by_the_next_daemon(tmp_path: Path) -> None:
    with a_hall(tmp_path) as hall:
        hall.sees(reads(energy_joules=100.0))
        job = hall.submit(gpus=1)
        hall.turn()
        hall.engine.runs(job, at=hall.now)
        for _ in range(130):
            hall.sees(reads(energy_joules=100.0 + (hall.now - 1_000_000.0) * 100.0))
        hall.turn()
        engine, now = hall.engine, hall.now
    with a_hall(tmp_path, engine=engine) as hall:
        hall.now = now + 100
        hall.turn()
        hall.sees(reads(energy_joules=100.0 + (hall.now + 1 - 1_000_000.0) * 100.0))
        (use,) = hall.daemon.gpus.uses(job.id)
        assert use.energy_joules == pytest.approx((use.until - use.since) * 100.0, rel=0.02)
        assert use.unseen_seconds > 100


def test_a_fault_is_a_notice_that_says_whose_job_it_was(tmp_path: Path) -> None:
    with a_hall(tmp_path) as hall:
        hall.sees(reads())
        job = hall.submit(gpus=1)
        hall.turn()
        place = a_reading(A).bus_id
        for _ in range(3):
            hall.sees(reads(), xids=[Xid(hall.now, place, 31, "", 4242)])
        hall.sees(reads(), xids=[Xid(hall.now, place, 79, "")])
        hall.sees(reads(), xids=[Xid(hall.now, "00000000:77:00.0", 79, "")])
        lost, mine = hall.store.notices()
        assert (mine.kind, mine.severity, mine.job, mine.gpu, mine.code) == ("xid", "job", job.id, A, 31)
        assert mine.text.startswith("GPU 0: an error of the application")
        assert f"job {job.id} had it" in mine.text
        assert (lost.severity, lost.code) == ("critical", 79)
        assert hall.daemon.gpus.uses(job.id)[0].xids == {"31": 3, "79": 1}
        assert hall.store.see_notices(mine.id, hall.now) == 1
        assert [notice.id for notice in hall.store.notices(unseen=True)] == [lost.id]
        assert hall.store.notices(before=lost.id)[0].seen_at == hall.now


def test_another_price_holds_from_now_on_and_currencies_are_never_added() -> None:
    job = alone()
    desk = Desk(job, price="1")
    desk.gives(job)
    desk.runs(11)
    before = desk.ledger.of(job.id)[0].cost
    assert before is not None
    desk.ledger.price(parse("2"), "EUR")
    desk.runs(10)
    after = desk.ledger.of(job.id)[0].cost
    assert after is not None
    assert after - before == pytest.approx(2 * before, rel=0.2)
    desk.ledger.price(parse("2"), "CHF")
    desk.runs(10)
    use = desk.ledger.of(job.id)[0]
    assert (use.cost, use.currency) == (after, "EUR")
