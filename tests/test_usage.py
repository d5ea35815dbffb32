"""Whose the memory of a GPU is: jobs of this box, others, and who can't be told."""

from __future__ import annotations

from typing import Any

import pytest
from builders import GIB, a_job, a_process

from runner import words
from runner.box.gpus.usage import Ours, Usage, held_by, in_the_way, overrun, unclaimed, usage
from runner.model import Job, Process


def sharing(id: int, gib: int = 8) -> Job:
    return a_job(id, words.RUNNING, gpus=1, gpu_memory_bytes=gib * GIB)


def alone(id: int) -> Job:
    return a_job(id, words.RUNNING, gpus=1)


def gibs(found: Usage) -> tuple[dict[int, float], float]:
    return {job: held / GIB for job, held in found.by_job.items()}, found.foreign_bytes / GIB


# --- whose a process is ---


@pytest.mark.parametrize(
    ("process", "job"),
    [
        pytest.param({"launch": "box-5-2"}, 5, id="its environment"),
        pytest.param({"launch": "other-5-2"}, None, id="of another gpubox on this computer"),
        pytest.param({"launch": "box-5"}, None, id="no launch id"),
        pytest.param({"launch": "box-x-2"}, None, id="no job's number"),
        pytest.param({"launch": "box--2"}, None, id="no number at all"),
        pytest.param({"launch": f"box-{'9' * 30}-2"}, None, id="a number that no job has"),
        pytest.param({"launch": "5/2"}, 5, id="its cgroup"),
        pytest.param({"launch": "x/2"}, None, id="a cgroup that is none of a job"),
        pytest.param({"launch": "box-5-2", "ancestors": [77]}, 5, id="the environment is stronger than ancestry"),
        pytest.param({"ancestors": [3, 77, 1]}, 6, id="its ancestry"),
        pytest.param({"ancestors": [3, 1]}, None, id="nobody's child"),
        pytest.param({"launch": "other-5-2", "ancestors": [77]}, 6, id="another box's, started by a job of ours"),
        pytest.param({}, None, id="nothing is known"),
    ],
)
def test_a_process_belongs_to_the_job_that_the_strongest_sign_names(process: dict[str, Any], job: int | None) -> None:
    ours = Ours("box", {}, {77: 6}, cgroups=True)
    assert ours.job_of(a_process(10, **process)) == job


def test_a_box_whose_jobs_have_no_cgroups_takes_those_of_another_for_foreign() -> None:
    assert Ours("box", {}, {77: 6}).job_of(a_process(10, launch="5/2")) is None


def test_an_adopted_process_is_known_by_its_number_and_its_start() -> None:
    ours = Ours("box", {4: a_job(4), 9: a_job(9, words.RUNNING, adopts=[10, 500])})
    assert ours.job_of(a_process(10, started=500, launch="box-5-1")) == 9
    assert ours.job_of(a_process(10, started=501)) is None, "another process under the same number"


# --- dividing ---


def test_what_no_holder_uses_is_foreign() -> None:
    found = usage(10 * GIB, [a_process(1, 4, job=7), a_process(2, 2, job=7), a_process(3, 1)], [alone(7)])
    assert gibs(found) == ({7: 6}, 4), "three of it by nobody that can be seen"
    assert [process.pid for process in found.foreign] == [3]


def test_a_job_that_has_ended_or_has_another_gpu_is_foreign_here() -> None:
    found = usage(5 * GIB, [a_process(1, 5, job=6)], [sharing(7)])
    assert gibs(found) == ({}, 5)


def test_processes_that_hold_more_than_is_used_leave_nothing_foreign() -> None:
    assert gibs(usage(3 * GIB, [a_process(1, 4, job=7)], [alone(7)])) == ({7: 4}, 0)


def test_nobody_uses_a_gpu_that_is_empty() -> None:
    assert gibs(usage(0, [], [])) == ({}, 0)


@pytest.mark.parametrize(
    ("processes", "holders", "found"),
    [
        pytest.param([a_process(1, None, job=7)], [alone(7)], ({7: 10}, 0), id="one job: all of it"),
        pytest.param(
            [a_process(1, None, job=7), a_process(2, None, job=8)],
            [sharing(7), sharing(8)],
            ({7: 8, 8: 2}, 0),
            id="two jobs and nobody else: what they declared first",
        ),
        pytest.param(
            [a_process(1, None, job=7), a_process(2, None)],
            [sharing(7, 8)],
            ({7: 8}, 2),
            id="beside a foreign one: what it declared",
        ),
        pytest.param(
            [a_process(1, None, job=7), a_process(2, None)],
            [sharing(7, 20)],
            ({7: 10}, 0),
            id="but not more than is used",
        ),
        pytest.param(
            [a_process(1, None, job=7), a_process(2, 3)],
            [alone(7)],
            ({7: 7}, 3),
            id="what the driver says of the foreign one is that one's",
        ),
        pytest.param(
            [a_process(1, None, job=7), a_process(2, None, alive=False)],
            [sharing(7, 4)],
            ({7: 10}, 0),
            id="the dead are not in the way",
        ),
        pytest.param(
            [a_process(1, None, job=7), a_process(2, 4, job=8)],
            [sharing(7), sharing(8)],
            ({8: 4, 7: 6}, 0),
            id="one says it, the other does not",
        ),
        pytest.param(
            [a_process(1, None, job=7), a_process(2, 3, job=7)], [alone(7)], ({7: 10}, 0), id="one job says half of it"
        ),
    ],
)
def test_where_the_driver_does_not_say_it_is_guessed(
    processes: list[Process], holders: list[Job], found: tuple[dict[int, float], float]
) -> None:
    assert gibs(usage(10 * GIB, processes, holders)) == found


def test_only_who_shares_can_use_more_than_it_declared() -> None:
    found = usage(22 * GIB, [a_process(1, 10, job=7), a_process(2, 5, job=8)], [sharing(7, 8), sharing(8, 8), alone(9)])
    assert overrun(found, [sharing(7, 8), sharing(8, 8), alone(9)]) == 2 * GIB


# --- in the way ---


@pytest.mark.parametrize(
    ("processes", "used", "blocked"),
    [
        pytest.param([], 0, False, id="nobody"),
        pytest.param([a_process(1, 0.1)], 0.1, True, id="one that computes, however little it holds"),
        pytest.param([a_process(1, 0.5, kind="graphics")], 0.5, False, id="a desktop"),
        pytest.param([a_process(1, 2, kind="graphics")], 2, True, id="a desktop that takes much"),
        pytest.param([], 2, True, id="memory of nobody"),
        pytest.param([a_process(1, 0.1, alive=False)], 0.1, False, id="a dead one that holds next to nothing"),
        pytest.param([a_process(1, 3, alive=False)], 3, True, id="a dead one that holds much"),
        pytest.param([a_process(1, None)], 0, True, id="one whose memory is not known"),
    ],
)
def test_a_desktop_is_not_in_the_way_but_who_computes_is(processes: list[Process], used: float, blocked: bool) -> None:
    assert in_the_way(usage(int(used * GIB), processes, []), GIB) is blocked


def test_the_hosts_own_memory_is_not_in_the_way_of_a_gpu_that_shares_it() -> None:
    assert not in_the_way(usage(60 * GIB, [], []), GIB, unified=True)
    assert not in_the_way(usage(60 * GIB, [a_process(1, 0.5, kind="graphics")], []), GIB, unified=True)
    assert in_the_way(usage(60 * GIB, [a_process(1, 5, kind="graphics")], []), GIB, unified=True)
    assert in_the_way(usage(60 * GIB, [a_process(1, None)], []), GIB, unified=True)


# --- words ---


@pytest.mark.parametrize(
    ("processes", "said"),
    [
        pytest.param([a_process(1, 11.25)], "alice, python train.py", id="who and what"),
        pytest.param(
            [a_process(1, 9, kind="graphics", command="Xorg"), a_process(2, 1), a_process(3, 2, command="big")],
            "alice, big and 2 others",
            id="who computes first, then the largest",
        ),
        pytest.param([a_process(1, 1), a_process(2, None)], "alice, python train.py and 1 other", id="one other"),
        pytest.param([a_process(8, 1, command="")], "alice, pid 8", id="a command that can't be read"),
        pytest.param([a_process(8, 1, user="", command="")], "pid 8", id="nothing can be read"),
        pytest.param([a_process(8, 1, command="x" * 61)], f"alice, {'x' * 59}…", id="a long command"),
        pytest.param([a_process(8, 1, command="x" * 60)], f"alice, {'x' * 60}", id="a command that just fits"),
        pytest.param([a_process(8, 1, job=5)], "job 5, which does not have it (pid 8)", id="a job that left somebody"),
        pytest.param([a_process(8, 1, alive=False)], "a dead process (pid 8)", id="a dead one"),
        pytest.param([], "no process that can be seen from here", id="a hidden one"),
    ],
)
def test_who_holds_a_gpu_is_named(processes: list[Process], said: str) -> None:
    found = Usage(foreign_bytes=int(11.25 * GIB), foreign=processes)
    assert held_by(found, 24 * GIB) == f"held by {said}, 11.2 of 24 GiB"


@pytest.mark.parametrize(
    ("processes", "gibs"),
    [
        pytest.param([], 5, id="nobody is listed"),
        pytest.param([a_process(1, 2)], 3, id="one holds a part of it"),
        pytest.param([a_process(1, 2, alive=False)], 5, id="the dead claim nothing"),
        pytest.param([a_process(1, None)], 0, id="one may hold all of it"),
        pytest.param([a_process(1, 9)], 0, id="more than there is"),
    ],
)
def test_what_no_living_process_holds_is_nobodys(processes: list[Process], gibs: int) -> None:
    assert unclaimed(Usage(foreign_bytes=5 * GIB, foreign=processes)) == gibs * GIB
