"""The GPUs as the daemon deals with them: heard, remembered, probed, drained, forgotten."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from builders import GIB, Hall, a_hall, a_job, a_process, a_reading

from runner import words
from runner.box.api.box import _free
from runner.box.api.house import House
from runner.box.gpus.frames import LOST, Frame, Probe, Trouble
from runner.box.gpus.rack import (
    ASKED_SECONDS,
    FOREVER,
    FRESH_SECONDS,
    PROBE_SECONDS,
    PROBE_SECONDS_MAX,
    STUCK_SECONDS,
    Rack,
)
from runner.box.store import Stuck
from runner.errors import BadRequest, DiskFull, NotFound, StateDamaged
from runner.job import processes
from runner.model import Evidence, Job

A, B = "GPU-0000", "GPU-0001"


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    with a_hall(tmp_path / "state") as made:
        yield made


@pytest.fixture
def rack(hall: Hall) -> Rack:
    return hall.daemon.gpus


def alone(*uuids: str, id: int = 7) -> Job:
    return a_job(id, words.RUNNING, gpus=len(uuids), attempt=1, allotted=list(uuids))


def probes(rack: Rack) -> list[str]:
    """From now on, what is asked of the collector."""
    asked: list[str] = []
    rack.probe = asked.append
    return asked


@pytest.mark.parametrize(("engine", "job"), [("plain", None), ("systemd", 7)])
def test_units_tell_whose_a_process_is_where_jobs_have_units(hall: Hall, engine: str, job: int | None) -> None:
    rack = Rack(replace(hall.daemon.settings, engine=engine), hall.daemon.store)
    assert rack.ours.job_of(a_process(10, launch="7/1")) == job


# --- hearing ---


def test_only_what_can_change_what_starts_or_ends_wakes_the_loop(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A))

    def heard(value: object) -> bool:
        hall.now += 1
        return rack.heard(value, hall.now)

    assert not heard(Frame(hall.now, cards=[a_reading(A)]))
    assert heard(Frame(hall.now, cards=[a_reading(A, 3)]))
    assert not heard(Frame(hall.now, cards=[a_reading(A, 3)]))
    assert heard(Probe(hall.now, a_reading(A)))
    assert heard(Frame(hall.now, cards=[a_reading(A, None, state=LOST)]))
    assert not heard(Trouble(hall.now, "unknown", "the driver is gone"))
    rack.words = lambda now: "the driver is gone"
    assert not heard(Trouble(hall.now, "unknown", "the driver is gone")), "it was closed before"


def test_what_was_seen_is_remembered_by_the_next_daemon(tmp_path: Path) -> None:
    with a_hall(tmp_path / "state") as hall:
        assert hall.daemon.gpus.silence(0.0) == "no NVIDIA driver found"
        hall.sees(a_reading(A), a_reading(B))
        hall.daemon.gpus.drain(B, True)
        first = hall.now
        hall.sees(a_reading(A), a_reading(B))
        hall.sees(a_reading(A), a_reading(B), after=2 * 3600)
        hall.sees(a_reading(A, index=3), a_reading(B))
    with a_hall(tmp_path / "state") as hall:
        known = hall.daemon.gpus.cards.known
        assert [(gpu.uuid, gpu.drained, gpu.first_seen_at) for gpu in known.values()] == [(B, True, first),
                                                                                        (A, False, first)]  # fmt: skip
        assert known[A].bus_id == "00000000:03:00.0"
        assert known[A].last_seen_at == first + 2 * 3600 + 2


def test_a_full_disk_makes_nobody_deaf(hall: Hall, rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DiskFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(hall.store, "see_gpus", refuse)
        hall.sees(a_reading(A))
    assert [gpu.uuid for gpu in rack.view(hall.now)] == [A]
    assert hall.store.gpus() == []
    hall.sees(a_reading(A))
    assert [gpu.uuid for gpu in hall.store.gpus()] == [A]


# --- read a moment before a job starts ---


def test_a_gpu_is_read_a_moment_before_a_job_starts_on_it(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A), a_reading(B))
    assert rack.settled([A], hall.now + 9), "there is nobody to ask"
    asked = probes(rack)
    assert rack.settled([A, B], hall.now + FRESH_SECONDS)
    hall.now += 0.5
    assert not rack.settled([A, B], hall.now)
    assert not rack.settled([A, B], hall.now + 0.1)
    assert asked == [A, B], "once"
    assert not rack.heard(Frame(hall.now - 0.01, cards=[a_reading(A), a_reading(B)]), hall.now), "read before"
    assert rack.heard(Probe(hall.now, a_reading(A)), hall.now + 0.4), "the loop is woken by the answer"
    assert not rack.settled([A, B], hall.now + 0.4)
    assert rack.heard(Probe(hall.now + 0.4, a_reading(B)), hall.now + 0.9)
    assert rack.settled([A, B], hall.now + 0.9), "however slow the driver is"
    assert not rack.settled([A], hall.now + ASKED_SECONDS + 0.1)
    assert asked == [A, B, A]


def test_a_gpu_that_sleeps_or_answers_nothing_is_told_apart(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A, None, state="asleep"), a_reading(B))
    asked = probes(rack)
    assert rack.settled([A], hall.now + 9)
    for later in (1.0, 1.1, 1.0 + ASKED_SECONDS + 0.1):
        assert not rack.settled([B], hall.now + later)
    assert asked == [B], "the next frame answers it, too"


def test_a_driver_that_takes_long_is_waited_for_and_believed_when_it_answers(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A))
    asked, start = probes(rack), hall.now + 10
    for later in (0.0, ASKED_SECONDS + 0.1, 2 * ASKED_SECONDS):
        assert not rack.settled([A], start + later)
    heard_at = start + 2 * ASKED_SECONDS + 0.5
    assert rack.heard(Probe(start + 0.1, a_reading(A)), heard_at)
    assert rack.settled([A], heard_at)
    assert not rack.settled([A], heard_at + FRESH_SECONDS + 0.1)
    assert asked == [A, A]


def test_a_clock_that_goes_back_while_a_gpu_is_asked_for_holds_nothing_up(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A))
    asked, start = probes(rack), hall.now + 10
    assert not rack.settled([A], start)
    rack.heard(Probe(start - 3600, a_reading(A)), start - 3600)
    assert not rack.settled([A], start - 3599)
    assert asked == [A, A]
    rack.heard(Probe(start - 3599, a_reading(A)), start - 3599)
    assert rack.settled([A], start - 3599)


def test_a_gpu_that_sleeps_is_free_for_who_asks_for_the_box(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A, None, state="asleep"), a_reading(B))
    gpus = rack.view(hall.now)
    assert [gpu.state for gpu in gpus] == [words.ASLEEP, words.FREE]
    assert _free(cast(House, SimpleNamespace(daemon=hall.daemon)), gpus).gpus == 2


# --- given, taken back, probed ---


def test_what_is_freed_is_looked_at_at_once_and_ever_more_slowly(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A))
    asked, job = probes(rack), alone(A)
    rack.given(job, hall.now)
    rack.taken_back(job, hall.now)
    assert asked == [A]
    looks = []
    for _ in range(20):
        due = rack.look(hall.now)
        looks.append(round(due - hall.now, 3))
        hall.now = due
    assert looks == sorted(looks)
    assert (looks[0], looks[-1]) == (pytest.approx(PROBE_SECONDS, abs=0.001), PROBE_SECONDS_MAX)
    assert len(asked) == 20
    rack.heard(Probe(hall.now, a_reading(A)), hall.now)
    assert rack.look(hall.now) == FOREVER
    assert len(asked) == 20


def test_one_that_is_stuck_is_not_probed_for_ever(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A, 9))
    asked = probes(rack)
    rack.taken_back(alone(A), hall.now)
    assert rack.look(hall.now + 60) < FOREVER
    assert rack.look(hall.now + 61) == FOREVER
    assert len(asked) == 2
    assert rack.view(hall.now + 61)[0].state == words.STUCK


def test_without_a_collector_nobody_is_asked(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A))
    rack.taken_back(alone(A), hall.now)
    assert rack.look(hall.now) == hall.now + PROBE_SECONDS


def test_processes_that_would_not_die_are_looked_after_until_they_have(
    hall: Hall, rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    hall.sees(a_reading(A), a_reading(B))
    me = (os.getpid(), processes.started(os.getpid()) or 0)
    stuck = Stuck(7, 1, (me,), hall.now)
    hall.store.stuck_gpu([A], stuck)
    rack.stuck([A, "GPU-gone"], stuck)
    assert rack.look(hall.now) == hall.now + STUCK_SECONDS
    assert rack.view(hall.now)[0].why == f"GPU 0 is stuck: a process of job 7 can't be ended (pid {me[0]})"
    monkeypatch.setattr(processes, "living", lambda pairs: [])
    rack.look(hall.now)
    assert rack.look(hall.now) == FOREVER
    assert rack.view(hall.now)[0].state == words.FREE
    assert hall.store.gpus()[0].stuck is None


def test_a_supervisor_is_forgotten_with_its_attempt(rack: Rack) -> None:
    rack.supervised(a_job(7), Evidence(None, None, True))
    rack.supervised(a_job(7), Evidence(None, 1.0, True, supervisor=70))
    rack.supervised(a_job(8), Evidence(None, 1.0, True, supervisor=80))
    assert rack.ours.supervisors == {70: 7, 80: 8}
    rack.taken_back(a_job(7), 1.0)
    assert rack.ours.supervisors == {80: 8}


def test_a_job_sees_its_gpus_by_uuid_or_as_numbers(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A, index=4), a_reading(B, index=2))
    job = alone(A, B)
    assert rack.visible(job, "uuid") == "GPU-0000,GPU-0001"
    assert rack.visible(job, "index") == "4,2"
    assert rack.visible(a_job(8), "uuid") == rack.visible(a_job(8), "index") == ""
    hall.sees(a_reading(B, index=0))
    with pytest.raises(StateDamaged, match="one of its GPUs is not there"):
        rack.visible(job, "index")


# --- out of memory ---


@pytest.mark.parametrize(
    ("sizes", "job", "floor"),
    [
        pytest.param([24, 48], {"allotted": [A]}, 24, id="a larger one is there"),
        pytest.param([24, 24], {"allotted": [A]}, None, id="none is larger"),
        pytest.param([24, 48], {"allotted": [B]}, None, id="it had the largest"),
        pytest.param([24, 24], {"allotted": [A], "gpu_memory_bytes": 8 * GIB}, 8, id="it shared: alone next"),
        pytest.param([24, 24], {"allotted": [A], "gpu_memory_bytes": 24 * GIB}, None, id="it shared with nobody"),
        pytest.param(
            [24, 24], {"allotted": [A], "gpu_memory_bytes": 8 * GIB, "gpu_floor_bytes": 8 * GIB}, None, id="again"
        ),
        pytest.param([24, 48], {"allotted": [A], "gpu_memory_bytes": 8 * GIB, "exclusive": True}, 24, id="exclusive"),
        pytest.param([24, 48, 48], {"gpus": 2, "allotted": [A, B]}, 24, id="two, the smaller was not enough"),
        pytest.param([24, 48], {"gpus": 2, "allotted": [A, B]}, None, id="two, and there is one that is larger"),
        pytest.param([24, 48], {"allotted": [A], "gpu_type": "GPU-0000"}, None, id="it wants no other"),
        pytest.param([24, -48], {"allotted": [A]}, None, id="the larger one is lost"),
        pytest.param([24], {"gpus": 0, "allotted": []}, None, id="it had no GPU"),
        pytest.param([24], {"allotted": ["GPU-gone"]}, None, id="its GPU was taken out"),
    ],
)
def test_who_ran_out_of_memory_is_tried_again_only_where_there_is_more(
    hall: Hall, rack: Rack, sizes: list[int], job: dict[str, object], floor: int | None
) -> None:
    cards = [
        a_reading(f"GPU-{place:04d}", 0, memory_bytes=abs(size) * GIB, state="ok" if size > 0 else LOST)
        for place, size in enumerate(sizes)
    ]
    hall.sees(*cards)
    made = a_job(7, words.RUNNING, **{"gpus": 1, **job})  # type: ignore[arg-type]
    assert rack.floor_of(made) == (None if floor is None else floor * GIB)


# --- for people ---


def test_a_gpu_is_called_by_its_index_or_the_start_of_its_uuid(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A, index=1), a_reading(B, index=0))
    assert [rack.named(name) for name in ("1", "0", "gpu-0001", B)] == [A, B, B, B]
    with pytest.raises(BadRequest, match="GPU-0 could be GPU-0000 or GPU-0001"):
        rack.named("GPU-0")
    for name in ("2", "GPU-9", "x", "", "99999999999999999999999", "-1"):
        with pytest.raises(NotFound, match=f"there is no GPU {name}"):
            rack.named(name)


def test_nothing_is_everything_on_a_box_with_one_gpu(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A))
    with pytest.raises(NotFound):
        rack.named("")


def test_a_forgotten_gpu_is_forgotten_in_the_database_too(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A), a_reading(B))
    rack.forget(B)
    assert [gpu.uuid for gpu in hall.store.gpus()] == [A]
    hall.sees(a_reading(A), a_reading(B))
    assert [gpu.uuid for gpu in hall.store.gpus()] == [A, B], "it came back after all"


def test_a_process_is_found(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A, 1, processes=[a_process(5)]))
    found = rack.process(5)
    assert found is not None
    assert found[1] == [A]


def test_the_signs_follow_what_is_being_freed(hall: Hall, rack: Rack) -> None:
    hall.sees(a_reading(A))
    rack.taken_back(alone(A), hall.now)
    hall.now += 1
    assert rack.heard(Probe(hall.now, a_reading(A, 5)), hall.now)
    assert rack.cards.freeing.keys() == {A}
    assert rack.heard(Probe(hall.now, a_reading(A)), hall.now)
    assert rack.cards.freeing == {}
    assert rack.peak(alone(A)) is None
