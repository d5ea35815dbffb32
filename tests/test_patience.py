"""--stop-if-idle: who is warned, who is ended, and when not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import Hall, a_hall, a_job, a_process, a_reading

from runner import words
from runner.box.gpus.observer import Observer
from runner.box.gpus.patience import Patience, sentence, span
from runner.errors import BadRequest
from runner.model import Job

A, B = "GPU-0000", "GPU-0001"
LIMIT = 1800.0
RESTING, WORKING = {A: True, B: True}, {A: False, B: True}
GIB = 1 << 30


def a_lazy_job(id: int = 7, state: str = words.RUNNING, **values: Any) -> Job:
    return a_job(id, state, **{"stop_if_idle": LIMIT, "allotted": [A], "attempt": 1, **values})


class Watch:
    """Somebody patient who looks every ten seconds."""

    def __init__(self, job: Job, kept: Mapping[str, tuple[int, float]] | None = None) -> None:
        self.job, self.patience, self.now, self.busy = job, Patience(kept or {}), 1000.0, 0.0
        self.warned_at: list[float] = []
        self.ended_at: list[float] = []
        self.said: list[str] = []

    def sees(self, seconds: float, rests: Mapping[str, bool], busy: float = 0.0) -> Watch:
        """busy: seconds of work in each of these ten."""
        until = self.now + seconds
        while self.now < until:
            self.busy += busy
            warnings, ends = self.patience.look(self.now, [self.job], rests, {self.job.id: self.busy})
            self.warned_at += [self.now - 1000] * len(warnings)
            self.said += [warning.text for warning in warnings]
            self.ended_at += [self.now - 1000] * len(ends)
            self.now += 10
        return self


def test_a_warning_comes_first_and_then_the_end() -> None:
    watch = Watch(a_lazy_job()).sees(3000, RESTING)
    assert (watch.warned_at, watch.ended_at[0]) == ([1500], 1800)
    assert watch.said == ["job 7 has left its GPU idle for 25 minutes; it is ended in 5 minutes (--stop-if-idle)"]
    assert watch.ended_at[1] - watch.ended_at[0] == 30, "one that does not end is asked again"


@pytest.mark.parametrize(("job", "rests", "busy"), [
    (a_lazy_job(), WORKING, 0.0),
    (a_lazy_job(allotted=[A, B]), WORKING, 0.0),  # one of them works
    (a_lazy_job(), RESTING, 0.6),  # it worked between the looks
    (a_lazy_job(), {}, 0.0),  # nothing can be read
    (a_lazy_job(allotted=[A, "GPU-away"]), RESTING, 0.0),
    (a_lazy_job(stop_if_idle=None), RESTING, 0.0),
    (a_lazy_job(state=words.STARTING), RESTING, 0.0),
    (a_lazy_job(allotted=[]), RESTING, 0.0),
])  # fmt: skip
def test_who_works_or_can_not_be_seen_is_left_alone(job: Job, rests: Mapping[str, bool], busy: float) -> None:
    watch = Watch(job).sees(7200, rests, busy)
    assert (watch.warned_at, watch.ended_at) == ([], [])


def test_a_moment_of_work_begins_it_anew_and_what_was_not_seen_only_stops_it() -> None:
    watch = Watch(a_lazy_job()).sees(1700, RESTING).sees(10, WORKING).sees(1700, RESTING)
    assert (watch.warned_at, watch.ended_at) == ([1500, 3200], [])
    away = Watch(a_lazy_job()).sees(1000, RESTING).sees(5000, {}).sees(1000, RESTING)
    assert away.ended_at[0] == 6800, "the 5000 seconds are not counted, and take nothing back"
    jumped = Watch(a_lazy_job()).sees(1000, RESTING)
    jumped.now += 86400  # the computer slept, or its clock was set
    assert jumped.sees(500, RESTING).ended_at == []
    jumped.now -= 2 * 86400
    assert jumped.sees(300, RESTING).ended_at == []


def test_an_attempt_begins_anew() -> None:
    watch = Watch(a_lazy_job()).sees(1700, RESTING)
    watch.job = a_lazy_job(attempt=2)
    assert watch.sees(1700, RESTING).ended_at == []


@pytest.mark.parametrize(("kept", "warned", "ended"), [
    ({}, 1500, 1800),
    ({"7": (1, 600.0)}, 900, 1200),
    ({"7": (1, 1790.0)}, 600, 900),  # no more than half of it is believed
    ({"7": (2, 1790.0)}, 1500, 1800),  # of another attempt
    ({"8": (1, 1790.0)}, 1500, 1800),
])  # fmt: skip
def test_a_restarted_daemon_neither_ends_at_once_nor_forgets(kept: Any, warned: float, ended: float) -> None:
    watch = Watch(a_lazy_job(), kept).sees(2400, RESTING)
    assert (watch.warned_at[0], watch.ended_at[0]) == (warned, ended)


def test_a_short_limit_has_a_short_warning() -> None:
    watch = Watch(a_lazy_job(stop_if_idle=60.0, allotted=[A, B])).sees(200, RESTING)
    assert (watch.warned_at, watch.ended_at[0]) == ([50], 70)
    assert watch.said == [
        "job 7 has left all its 2 GPUs idle for 50 seconds; it is ended in 15 seconds (--stop-if-idle)"
    ]
    assert sentence(watch.job) == "its GPUs were idle for 1 minute (--stop-if-idle)"
    assert [span(90), span(1800), span(7200), span(5400)] == ["90 seconds", "30 minutes", "2 hours", "90 minutes"]


# --- its hands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "said"), [
    ({"stop_if_idle": 1800.0}, "about the job's GPUs, and it asks for none"),
    ({"stop_if_idle": 30.0, "gpus": 1}, "takes 60 or more"),
    ({"stop_if_idle": float("nan"), "gpus": 1}, "takes 60 or more"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    with a_hall(tmp_path) as hall:
        hall.sees(a_reading())
        with pytest.raises(BadRequest, match=said) as refusal:
            hall.submit(**asked)
        assert refusal.value.hint


def test_an_idle_job_is_warned_of_and_ended_once_for_all_also_over_a_restart(tmp_path: Path) -> None:
    rest = {"memory_used_bytes": 2 * GIB, "utilization": 0.0, "power_watts": 30.0}
    reading = a_reading(sample=rest, processes=[a_process(1, 2, launch="x")])

    def sees(hall: Hall, observer: Observer, seconds: int) -> None:
        for _ in range(seconds // 10):
            hall.sees(reading, after=10.0)
            observer.look(hall.now)

    with a_hall(tmp_path) as hall:
        hall.sees(a_reading(sample=rest | {"memory_used_bytes": 0}, processes=[]))
        job = hall.submit(gpus=1, stop_if_idle=LIMIT, retries=3)
        hall.turn()
        hall.engine.runs(job, at=hall.now)
        hall.turn()
        assert hall.read(job).stop_if_idle == LIMIT
        sees(hall, Observer(hall.daemon), 1000)
        engine, now = hall.engine, hall.now
    with a_hall(tmp_path, engine=engine) as hall:
        hall.now = now
        hall.sees(reading)
        hall.turn()
        observer = Observer(hall.daemon)
        sees(hall, observer, 700)
        kinds = [notice.kind for notice in hall.store.notices()]
        assert [kind for kind in kinds if kind != "disk"] == ["stop_if_idle"], "the disk is a real one"
        assert engine.stopped == []
        sees(hall, observer, 300)
        assert {(stop.key, stop.reason) for stop in engine.stopped} == {((job.id, 1), "gpu_idle")}
        engine.ends(job, reason="gpu_idle")
        hall.turn()
        ended = hall.read(job)
        assert (ended.state, ended.reason) == (words.FAILED, "gpu_idle")
        assert ended.detail == "its GPU was idle for 30 minutes (--stop-if-idle)"
