"""What is worth a word: tables of each rule, each told once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import Hall, a_hall, a_process, a_reading

from runner.box.gpus.judgement import GIB, Held, Judge, Scene, full_in
from runner.box.gpus.notices import Once
from runner.box.gpus.observer import Observer
from runner.model import Notice

CARD, T = "GPU-0000", 1000.0
TOTAL = 24 * GIB


def held(
    jobs: tuple[int, ...] = (7,), living: bool = True, by_job: dict[int, int] | None = None, **sample: Any
) -> Held:
    given = {"memory_used_bytes": 9 * GIB, "power_watts": 100.0, "utilization": 0.9, "memory_utilization": 0.5}
    return Held(CARD, "GPU 0", jobs, {**given, **sample}, TOTAL, living, by_job or {})


class Watch:
    """A judge who looks every ten seconds."""

    def __init__(self, idle: float = 600.0, stalled: float = 1800.0) -> None:
        self.judge, self.now, self.told = Judge(idle, stalled), T, list[Notice]()

    def sees(self, seconds: float, *gpus: Held, **scene: Any) -> list[str]:
        """For so long; the kinds that were told."""
        until, before = self.now + seconds, len(self.told)
        while self.now < until:
            self.told += self.judge.look(Scene(self.now, list(gpus), **scene))
            self.now += 10
        return [notice.kind for notice in self.told[before:]]


RESTS = {"utilization": 0.0, "power_watts": 30.0}


@pytest.mark.parametrize(("gpu", "told"), [
    (held(**RESTS), ["idle"]),
    (held(utilization=0.04, power_watts=34.0), ["idle"]),
    (held(utilization=0.0, power_watts=90.0), []),  # where the two disagree, power wins
    (held(utilization=0.5, power_watts=30.0), []),
    (held(utilization=0.0, power_watts=None), ["idle"]),
    (held(utilization=None, power_watts=30.0), []),
    (held(jobs=(), **RESTS), []),
    (held(living=False, **RESTS), []),
    (held(memory_used_bytes=100 << 20, **RESTS), []),
])  # fmt: skip
def test_a_gpu_that_is_held_and_does_nothing_is_told_by_three_signals(gpu: Held, told: list[str]) -> None:
    watch = Watch()
    watch.sees(60, held(jobs=(), living=False, **RESTS))  # what it draws at rest
    assert watch.sees(599, gpu) == []
    assert watch.sees(60, gpu) == told
    assert watch.sees(7200, gpu) == [], "once"


def test_it_is_told_again_when_it_was_over_for_a_while() -> None:
    watch = Watch()
    watch.sees(60, held(**RESTS))
    assert watch.sees(660, held(**RESTS)) == ["idle"]
    watch.sees(20, held())
    assert watch.sees(1200, held(**RESTS)) == [], "a moment is no end"
    watch.sees(120, held())
    assert watch.sees(660, held(**RESTS)) == ["idle"]


def test_another_job_is_another_matter() -> None:
    watch = Watch()
    assert watch.sees(700, held(**RESTS)) == ["idle"]
    assert watch.sees(700, held(jobs=(8,), **RESTS)) == ["idle"]
    assert [notice.job for notice in watch.told] == [7, 8]
    assert "runner cancel 8" in watch.told[-1].hint


def test_a_job_that_comes_back_to_its_gpu_has_not_been_idle_meanwhile() -> None:
    watch = Watch()
    watch.sees(60, held(jobs=(), living=False, **RESTS))
    watch.sees(500, held(**RESTS))
    watch.sees(3600, held(jobs=(8,)))
    assert watch.sees(500, held(**RESTS)) == []
    assert watch.sees(200, held(**RESTS)) == ["idle"]
    watch.sees(3600, held(jobs=(8,)))
    assert not any(7 in (key[-1] if isinstance(key[-1], tuple) else key) for key in watch.judge._lasting)


def test_it_is_never_told_where_nobody_wants_it() -> None:
    assert Watch(idle=0.0, stalled=0.0).sees(9000, held(**RESTS), silent={7: 0.0}) == []


@pytest.mark.parametrize(("gpu", "told"), [
    (held(**RESTS), ["stalled"]),
    (held(utilization=1.0, memory_utilization=0.0), ["stalled"]),  # kernels that wait for each other
    (held(utilization=1.0, memory_utilization=0.6), []),  # it prints once an epoch
    (held(utilization=1.0, memory_utilization=None), []),
    (held(utilization=0.4), []),
])  # fmt: skip
def test_a_job_hangs_when_its_log_is_silent_and_its_gpu_flat(gpu: Held, told: list[str]) -> None:
    watch = Watch(idle=0.0)
    assert watch.sees(1200, gpu, silent={7: T}) == []
    assert watch.sees(3600, gpu, silent={7: T}) == told
    talks = Watch(idle=0.0)
    for _ in range(400):
        assert talks.sees(10, gpu, silent={7: talks.now - 60}) == []
    assert Watch(idle=0.0).sees(4000, gpu) == [], "nothing is known of its log"


def test_a_card_that_is_busy_without_a_process_has_a_stuck_counter() -> None:
    watch = Watch()
    assert watch.sees(120, held(jobs=(), living=False, utilization=1.0)) == []
    assert watch.sees(60, held(jobs=(), living=False, utilization=1.0)) == ["ghost"]


@pytest.mark.parametrize(("sample", "told"), [
    ({"temperature_celsius": 85.0, "slowdown_celsius": 95.0}, []),
    ({"temperature_celsius": 90.0, "slowdown_celsius": 95.0}, ["hot"]),
    ({"temperature_celsius": 87.0}, []),
    ({"temperature_celsius": 88.0}, ["hot"]),
    ({"temperature_celsius": 70.0, "throttled_by": ["hw_thermal"]}, ["hot"]),
    ({"throttled_by": ["hw_thermal"]}, ["hot"]),
    ({"throttled_by": ["power_cap", "sw_thermal"]}, []),
    ({"throttled_by": ["power_brake"]}, ["power_brake"]),
])  # fmt: skip
def test_heat_is_judged_by_the_cards_own_limit(sample: dict[str, Any], told: list[str]) -> None:
    watch = Watch()
    assert watch.sees(60, held(**sample)) == []
    assert watch.sees(20, held(**sample)) == told


def test_a_link_is_judged_under_load_alone() -> None:
    watch = Watch()
    narrow = {"pcie_width": 4, "pcie_width_most": 16}
    assert watch.sees(600, held(utilization=0.0, **narrow)) == []
    assert watch.sees(600, held(**narrow)) == ["pcie"]
    assert watch.sees(600, held(utilization=0.0, **narrow)) == []
    assert watch.sees(600, held(**narrow)) == []
    assert Watch().sees(600, held(pcie_width=16, pcie_width_most=16)) == []


def test_memory_that_creeps_up_is_told_with_when_it_is_full() -> None:
    watch = Watch()
    for minute in range(70):
        watch.sees(60, held(by_job={7: 9 * GIB + minute * 20 * (1 << 20)}))
    assert [notice.kind for notice in watch.told] == ["memory_creep"]
    assert "full in about" in watch.told[0].text
    watch.sees(60, held(by_job={}))
    assert watch.judge._memory == {}


@pytest.mark.parametrize(("grow", "creeps"), [
    (lambda place: 1000 + 10 * place, True),
    (lambda place: 1000, False),  # at rest
    (lambda place: 1000 + min(place, 4) * 100, False),  # it filled up at the start
    (lambda place: 1000 + 10 * place - (300 if place == 6 else 0), False),  # it gives back
    (lambda place: 1000 + place, False),  # hardly
])  # fmt: skip
def test_only_what_grows_steadily_creeps(grow: Any, creeps: bool) -> None:
    seen = [(place * 300.0, grow(place)) for place in range(13)]
    assert (full_in(seen, 4000, 3600.0) is not None) == creeps
    assert full_in(seen[:8], 4000, 3600.0) is None, "not long enough"
    assert full_in(seen, None, 3600.0) is None


def test_a_card_that_left_is_told_and_that_it_is_back() -> None:
    watch = Watch()
    gone = {CARD: "GPU 0 fell off the bus at 14:02"}
    assert watch.sees(100, gone=gone) == ["gpu_lost"]
    assert watch.sees(100, held()) == ["gpu_back"]
    assert watch.sees(100, gone=gone) == ["gpu_lost"]
    assert watch.told[0].severity == "critical"


def test_a_disk_that_fills_is_told_in_time() -> None:
    watch = Watch()
    assert watch.sees(100, disk=(50 * GIB, 100 * GIB)) == []
    assert watch.sees(100, disk=(9 * GIB, 100 * GIB)) == ["disk"]
    assert watch.sees(100, disk=(2 * GIB, 100 * GIB)) == ["disk"]
    assert [notice.severity for notice in watch.told] == ["warning", "critical"]
    assert watch.sees(100, disk=(50 * GIB, 100 * GIB)) == []
    filling = Watch()
    for minute in range(70):
        filling.sees(60, disk=((60 * GIB) - minute * GIB // 4, 100 * GIB))
    assert [notice.kind for notice in filling.told] == ["disk"]
    assert "full in" in filling.told[0].text


def test_a_clock_that_goes_back_tells_nothing_twice() -> None:
    watch = Watch()
    assert watch.sees(700, held(**RESTS)) == ["idle"]
    watch.now -= 3600
    assert watch.sees(3000, held(**RESTS)) == []


# --- its hands -----------------------------------------------------------------------------------------------------


def test_what_there_is_is_looked_at_and_told_once_also_over_a_restart(tmp_path: Path) -> None:
    def sees(hall: Hall, seconds: int) -> None:
        observer = Observer(hall.daemon)
        for _ in range(seconds // 10):
            hall.sees(reading, after=10.0)
            observer.look(hall.now)
            observer.look(hall.now + 1)

    rest = {"memory_used_bytes": 2 * GIB, "utilization": 0.0, "power_watts": 30.0}
    reading = a_reading(sample=rest, processes=[a_process(1, 2, launch="x")])
    with a_hall(tmp_path, idle_notice_minutes=5.0) as hall:
        hall.sees(a_reading(sample=rest | {"memory_used_bytes": 0}, processes=[]))
        job = hall.submit(gpus=1)
        hall.turn()
        hall.engine.runs(job, at=hall.now)
        hall.turn()
        log = hall.daemon.attempt_dir(job).log
        os.makedirs(os.path.dirname(log))
        Path(log).touch()
        heard: list[Any] = []
        hall.daemon.gpus.noticed = heard.extend
        sees(hall, 400)
        (notice,) = hall.store.notices()
        assert (notice.kind, notice.job, notice.gpu) == ("idle", job.id, CARD)
        assert heard == [notice]
        engine, now = hall.engine, hall.now
    with a_hall(tmp_path, engine=engine, idle_notice_minutes=5.0) as hall:
        hall.now = now
        sees(hall, 400)
        assert len(hall.store.notices()) == 1


def test_a_card_that_left_is_noticed(tmp_path: Path) -> None:
    with a_hall(tmp_path) as hall:
        observer = Observer(hall.daemon)
        hall.sees(a_reading())
        for _ in range(5):
            hall.sees(after=10.0)
            observer.look(hall.now)
        (notice,) = hall.store.notices()
        assert (notice.kind, notice.gpu) == ("gpu_lost", CARD)
        assert "is missing since" in notice.text


def test_what_gets_worse_is_told_and_a_new_daemon_does_not_begin_anew() -> None:
    low, full = Notice(0, T, "disk", "warning", "low"), Notice(0, T + 60, "disk", "critical", "full")
    once = Once()
    assert once.new([low]) == [low]
    assert once.new([replace(low, at=T + 30), full]) == [full], "within ten minutes, but worse"
    fault = Notice(0, T, "xid", "critical", "off the bus", gpu=CARD, code=79)
    later = Once()  # of the next daemon, an hour later: the disk is as it was
    later.remember([low, full, fault])
    again = [replace(each, at=T + 3600) for each in (low, full, fault)]
    assert later.new(again) == [again[2]]
    assert later.new([replace(low, at=T + 9000)]), "it was better meanwhile: its judge says so once while it lasts"
    eve = Once()
    eve.remember([low])
    assert eve.new([replace(low, at=T + 2 * 86400)])
