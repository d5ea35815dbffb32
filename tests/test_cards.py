"""What is known of each GPU, from frame to frame: kept, missed, lost, found again, freed."""

from __future__ import annotations

import time
from typing import Any

import pytest
from builders import GIB, a_job, a_process, a_reading

from runner import words
from runner.box.gpus.cards import CLOCK_BACK, FREE_SLACK, GOOD_FRAMES, LOST_FRAMES, MISSED_FRAMES, Cards, clock
from runner.box.gpus.frames import ASLEEP, ERROR, LOST, Frame, Probe, Reading, Xid
from runner.box.gpus.placement import Card
from runner.box.gpus.usage import Ours
from runner.box.store import KnownGpu, Stuck
from runner.model import Gpu, Job, Process

A, B = "GPU-0000", "GPU-0001"
T = 1_000_000.0
PATIENCE = 60.0


def down(uuid: str, state: str, detail: str = "") -> Reading:
    return a_reading(uuid, None, state=state, detail=detail)


class Bench:
    """Cards, the jobs that are active, and a clock."""

    def __init__(self, *known: KnownGpu) -> None:
        self.active: dict[int, Job] = {}
        self.ours = Ours("box", self.active)
        self.cards = Cards(known, self.ours, GIB, PATIENCE)
        self.now = T
        self.silence: str | None = None

    def frame(self, *readings: Reading, after: float = 1.0, **values: Any) -> None:
        self.now += after
        self.cards.learn(Frame(self.now, "570", cards=list(readings), **values))

    def probe(self, reading: Reading, after: float = 0.05) -> None:
        self.now += after
        self.cards.learn_one(Probe(self.now, reading))

    def card(self, uuid: str = A) -> Card:
        every = self.cards.cards(self.active.values(), self.silence, self.now)
        return next(card for card in every if card.uuid == uuid)

    def gpu(self, uuid: str = A) -> Gpu:
        every = self.cards.view(self.active.values(), self.silence, self.now)
        return next(gpu for gpu in every if gpu.uuid == uuid)

    def state(self, uuid: str = A) -> tuple[str, str]:
        return self.gpu(uuid).state, self.gpu(uuid).why

    def given(self, job: Job) -> Job:
        self.active[job.id] = job
        self.cards.given(job)
        return job

    def ends(self, job: Job) -> None:
        del self.active[job.id]
        self.cards.taken_back(job, self.now)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def alone(id: int = 7, *uuids: str, **values: Any) -> Job:
    return a_job(id, words.RUNNING, **{"gpus": 1, "attempt": 1, "allotted": list(uuids or (A,)), **values})


def sharing(id: int = 7, gib: int = 8) -> Job:
    return alone(id, gpu_memory_bytes=gib * GIB)


def of(job: int, pid: int = 50, gib: float | None = 1, **values: Any) -> Process:
    return a_process(pid, gib, launch=f"box-{job}-1", **values)


def a_known(uuid: str = A, **values: Any) -> KnownGpu:
    given = {"memory_bytes": 24 * GIB, "unified": False, "drained": False, "first_seen_at": 1.0, "last_seen_at": T - 9}
    return KnownGpu(uuid, "NVIDIA GeForce RTX 3090", "00000000:00:00.0", **{**given, **values})


# --- who is who ---


def test_a_gpu_is_known_by_its_uuid_when_the_indices_shift(bench: Bench) -> None:
    bench.frame(a_reading(A, 1, index=0), a_reading(B, 2, index=1))
    job = bench.given(alone(7, B))
    bench.frame(a_reading(B, 2, index=0))
    assert (bench.gpu(B).index, bench.gpu(B).jobs, bench.cards.label(B)) == (0, [7], "GPU 0")
    assert (bench.gpu(A).index, bench.cards.index(A)) == (None, None)
    assert bench.cards.label(A) == "GPU-0000 (RTX 3090)"
    assert bench.cards.lost_of(job, bench.now) is None


def test_gpus_stand_in_the_order_of_the_bus(bench: Bench) -> None:
    bench.frame(a_reading(B, bus_id="00000000:01:00.0"), a_reading(A, bus_id="00000000:41:00.0"))
    assert [card.uuid for card in bench.cards.cards([], None, T)] == [B, A]


def test_a_gpu_that_nobody_knows_has_a_short_name(bench: Bench) -> None:
    assert bench.cards.label("GPU-0123456789abcdef") == "GPU-01234567"
    assert bench.cards.read_at("GPU-0", T) == 0.0


def test_what_was_known_before_is_not_read_yet() -> None:
    bench = Bench(a_known())
    assert bench.state() == (words.UNKNOWN, "GPU-0000 (RTX 3090) was not read yet")
    assert bench.card().closed == "GPU-0000 (RTX 3090) was not read yet"
    bench.frame(a_reading())
    assert bench.state() == (words.FREE, "")
    assert bench.cards.known[A].first_seen_at == 1.0


def test_what_is_not_read_each_time_is_kept_until_it_is(bench: Bench) -> None:
    first = a_reading(A, 1, processes=[a_process(5)], absent={"fan": "not exposed by this card"})
    first.sample["power_limit_watts"] = 350.0
    bench.frame(first, links={(A, B): 10})
    bench.frame(a_reading(A, 2, name="", bus_id="", memory_bytes=None))
    gpu = bench.gpu()
    assert gpu.sample is not None
    assert (gpu.sample.memory_used_bytes, gpu.sample.power_limit_watts, gpu.sample.at) == (2 * GIB, 350.0, bench.now)
    assert gpu.absent == {"fan": "not exposed by this card"}
    assert [process.pid for process in gpu.processes] == [5]
    assert (gpu.name, gpu.bus_id, gpu.memory_bytes) == ("NVIDIA GeForce RTX 3090", "00000000:00:00.0", 24 * GIB)
    assert bench.cards.links == {(A, B): 10}
    assert bench.cards.driver == "570"


def test_what_can_not_be_read_any_more_is_absent_and_not_zero(bench: Bench) -> None:
    reading = a_reading(A, 1)
    reading.sample["fan"] = 0.5
    bench.frame(reading)
    bench.frame(a_reading(A, 1, absent={"fan": "error"}))
    gpu = bench.gpu()
    assert gpu.sample is not None
    assert (gpu.sample.fan, gpu.absent) == (None, {"fan": "error"})
    bench.frame(reading)
    assert bench.gpu().absent == {}


def test_memory_that_can_not_be_read_is_not_free_memory(bench: Bench) -> None:
    bench.frame(a_reading(A, 20))
    bench.frame(a_reading(A, None, absent={"memory_used_bytes": "what was read makes no sense"}))
    assert bench.state() == (
        words.UNKNOWN,
        "GPU 0: how much of its memory is in use is not known (what was read makes no sense)",
    )
    bench.frame(a_reading(B, None))
    assert bench.gpu(B).why == "GPU 1: how much of its memory is in use is not known (it was not read)"


# --- missing, lost, silent, asleep ---


def test_a_gpu_that_is_missing_is_missed_and_welcome_when_it_comes_back(bench: Bench) -> None:
    bench.frame(a_reading(A), a_reading(B))
    seen_at = bench.now
    bench.frame(a_reading(A))
    assert bench.state(B) == (words.UNKNOWN, "GPU-0001 (RTX 3090) can't be read just now")
    assert bench.cards.faults == {}
    for _ in range(MISSED_FRAMES):
        bench.frame(a_reading(A))
    assert bench.state(B) == (words.GONE, f"GPU-0001 (RTX 3090) is missing since {clock(seen_at, bench.now)}")
    assert bench.card(B).lost
    assert bench.gpu(B).sample is None
    assert bench.state(A) == (words.FREE, "")
    for _ in range(GOOD_FRAMES - 1):
        bench.frame(a_reading(A), a_reading(B))
        assert bench.state(B)[0] == words.GONE
    bench.frame(a_reading(A), a_reading(B))
    assert bench.state(B) == (words.FREE, "")


def test_one_that_comes_and_goes_is_not_trusted(bench: Bench) -> None:
    bench.frame(a_reading(A), a_reading(B))
    for _ in range(MISSED_FRAMES):
        bench.frame(a_reading(A))
    for _ in range(GOOD_FRAMES):
        bench.frame(a_reading(A), a_reading(B))
        bench.frame(a_reading(A))
        bench.frame(a_reading(A))
    assert bench.state(B)[0] == words.GONE


def test_a_lost_gpu_loses_its_jobs_alone(bench: Bench) -> None:
    bench.frame(a_reading(A), a_reading(B))
    lost, well, both = bench.given(alone(7, A)), bench.given(alone(8, B)), bench.given(alone(9, B, A))
    bench.frame(down(A, LOST, "it fell off the bus"), a_reading(B))
    since = bench.now
    bench.frame(down(A, LOST), a_reading(B))
    said = f"GPU 0 fell off the bus at {clock(since, bench.now)}"
    assert [bench.cards.lost_of(job, bench.now) for job in (lost, well, both)] == [said, None, said]
    assert bench.state(A) == (words.GONE, said)
    assert bench.gpu(A).jobs == [7, 9]


def test_jobs_end_for_a_gpu_only_when_it_is_lost_and_stays_so(bench: Bench) -> None:
    bench.frame(a_reading(A), a_reading(B))
    job = bench.given(alone(7, A))
    for _ in range(2):  # it comes back each time
        for _ in range(LOST_FRAMES - 1):
            bench.frame(down(A, LOST), a_reading(B))
            bench.probe(down(A, LOST))
            assert bench.cards.lost_of(job, bench.now) is not None
            assert bench.cards.lost_of(job, bench.now, sure=True) is None
        bench.frame(a_reading(A), a_reading(B))
    for _ in range(MISSED_FRAMES + LOST_FRAMES - 2):
        bench.frame(a_reading(B))
        assert bench.cards.lost_of(job, bench.now, sure=True) is None
    bench.frame(a_reading(B))
    said = bench.cards.lost_of(job, bench.now, sure=True)
    assert said is not None
    assert said.startswith("GPU-0000 (RTX 3090) fell off the bus at ")


def test_what_the_kernel_says_of_a_card_that_answers_ends_no_job(bench: Bench) -> None:
    bench.frame(a_reading(A))
    job = bench.given(alone(7, A))
    bench.frame(a_reading(A), xids=[Xid(bench.now, "00000000:00:00.0", 79)])
    assert bench.state()[0] == words.GONE
    for _ in range(LOST_FRAMES):
        bench.frame(a_reading(A))
        assert bench.cards.lost_of(job, bench.now, sure=True) is None
    assert bench.state() == (words.BUSY, "job 7")


def test_a_gpu_that_may_be_one_that_can_not_say_who_it_is_is_not_missing(bench: Bench) -> None:
    bench.frame(a_reading(A), a_reading(B))
    job = bench.given(alone(7, A))
    for _ in range(2 * LOST_FRAMES):
        bench.frame(a_reading(B), unnamed=1)
        assert bench.state(A) == (words.UNKNOWN, "GPU-0000 (RTX 3090) can't be read just now")
        assert bench.cards.lost_of(job, bench.now) is None
    bench.frame(a_reading(A), a_reading(B))
    assert bench.state(A) == (words.BUSY, "job 7")


def test_a_lost_gpu_that_can_not_be_read_is_not_all_right(bench: Bench) -> None:
    bench.frame(down(A, LOST))
    for _ in range(GOOD_FRAMES):
        bench.frame(down(A, ERROR, "the driver answers nothing"))
    assert bench.state()[0] == words.GONE
    for _ in range(GOOD_FRAMES):
        bench.probe(a_reading())
    assert bench.state()[0] == words.GONE, "many looks at once are no time"
    for _ in range(GOOD_FRAMES):
        bench.frame(a_reading())
    assert bench.state() == (words.FREE, "")


@pytest.mark.parametrize(
    ("code", "bus_id", "state"),
    [
        (79, "00000000:00:00.0", words.GONE),
        (31, "00000000:00:00.0", words.FREE),
        (79, "00000000:99:00.0", words.FREE),
    ],
    ids=["fell off", "an error of a program", "another card"],
)
def test_the_kernels_log_tells_first_that_a_gpu_fell_off(bench: Bench, code: int, bus_id: str, state: str) -> None:
    bench.frame(a_reading())
    bench.frame(a_reading(), xids=[Xid(bench.now, bus_id, code)])
    assert bench.state()[0] == state


def test_a_card_that_can_not_be_read_is_unknown_and_shows_nothing_old(bench: Bench) -> None:
    bench.frame(a_reading(A, 5, processes=[a_process(5, 5)]))
    bench.frame(down(A, ERROR, "the driver does not list it"))
    assert bench.state() == (words.UNKNOWN, "GPU 0 can't be read just now: the driver does not list it")
    gpu = bench.gpu()
    assert gpu.sample is not None
    assert gpu.sample.memory_used_bytes is None
    bench.frame(a_reading(A, 5))
    assert bench.state()[0] == words.FOREIGN


def test_silence_is_not_loss(bench: Bench) -> None:
    bench.frame(a_reading(A, 3, processes=[a_process(5, 3)]))
    job = bench.given(alone())
    bench.silence = "nothing is known of the GPUs since 12:00:00: the driver does not answer"
    gpu = bench.gpu()
    assert (gpu.state, gpu.why, gpu.sample, gpu.processes, gpu.jobs) == (words.UNKNOWN, bench.silence, None, [], [7])
    assert bench.card().closed == bench.silence
    assert bench.cards.lost_of(job, bench.now) is None


def test_what_sleeps_is_left_asleep_and_free(bench: Bench) -> None:
    bench.frame(a_reading(A, 3, processes=[a_process(5, 3)]))
    bench.frame(down(A, ASLEEP))
    card, gpu = bench.card(), bench.gpu()
    assert (card.asleep, card.closed, card.taken, card.foreign_bytes) == (True, None, None, 0)
    assert (gpu.state, gpu.why, gpu.processes) == (words.ASLEEP, "", [])
    assert gpu.sample is not None
    assert gpu.sample.memory_used_bytes is None, "it is not known, and not zero"
    assert bench.cards.read_at(A, bench.now + 9) == bench.now + 9, "it needs not be read"


def test_a_job_wakes_a_sleeping_gpu_and_gives_it_back_asleep(bench: Bench) -> None:
    bench.frame(down(A, ASLEEP))
    job = bench.given(alone())
    assert bench.state() == (words.BUSY, "job 7")
    bench.frame(a_reading(A, 9, processes=[of(7, gib=9)]))
    bench.ends(job)
    bench.frame(a_reading(A, 9))
    assert bench.card().passing
    bench.frame(down(A, ASLEEP))
    assert bench.state() == (words.ASLEEP, "")


# --- who has it ---


def test_a_gpu_says_who_has_it(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    assert bench.state() == (words.FREE, "")
    bench.given(sharing(7, 8))
    bench.given(sharing(8, 4))
    assert bench.state() == (words.SHARED, "jobs 7, 8, 12 of 24 GiB declared")
    bench.given(alone(9, adopts=[50, 50]))
    assert bench.state() == (words.BUSY, "jobs 7, 8, 9"), "one of them was adopted and shares nothing"


def test_how_busy_a_job_keeps_a_gpu_is_what_the_driver_says_of_its_processes(bench: Bench) -> None:
    bench.given(sharing(7, 8))
    bench.given(sharing(8, 4))
    mine = [of(7, 50, utilization=0.2), of(7, 51, utilization=0.3), of(8, 52), a_process(5, utilization=0.4)]
    bench.frame(a_reading(A, 9, processes=mine))
    assert bench.cards.work(A) == {7: 0.5}, "nothing is said of the other, and a stranger is no job"
    assert bench.cards.work("GPU-0009") == {}


def test_a_foreign_process_is_counted_and_named(bench: Bench) -> None:
    bench.frame(a_reading(A, 11.25, processes=[a_process(5, 11)]))
    said = "held by alice, python train.py, 11.2 of 24 GiB"
    assert bench.state() == (words.FOREIGN, said)
    assert bench.card().taken == f"GPU 0 {said}"
    assert bench.card().open_bytes == 12.75 * GIB
    assert bench.cards.foreign_pids() == [5]


def test_a_process_of_another_gpubox_is_foreign(bench: Bench) -> None:
    bench.given(alone(7))
    bench.frame(a_reading(A, 5, processes=[a_process(5, 5, launch="other-7-1")]))
    assert bench.card().foreign_bytes == 5 * GIB
    assert bench.gpu().processes[0].job is None


def test_a_desktop_is_not_in_the_way(bench: Bench) -> None:
    bench.frame(a_reading(A, 0.5, processes=[a_process(5, 0.5, kind="graphics", command="Xorg")]))
    assert (bench.card().taken, bench.state()) == (None, (words.FREE, ""))


def test_a_sharing_job_that_uses_more_than_it_declared_leaves_less_to_others(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    bench.given(sharing(7, 8))
    bench.frame(a_reading(A, 12, processes=[of(7, gib=10), a_process(5, 2)]))
    assert bench.card().foreign_bytes == 4 * GIB, "two foreign, and two more than it said"
    assert bench.gpu().foreign_bytes == 2 * GIB
    assert bench.gpu().declared_bytes == 8 * GIB


def test_the_memory_of_the_host_is_in_nobodys_way_on_a_gpu_that_shares_it(bench: Bench) -> None:
    bench.frame(a_reading(A, 60, unified=True, memory_bytes=119 * GIB, processes=[]))
    assert bench.state() == (words.FREE, "")
    assert bench.card().open_bytes == 59 * GIB
    job = bench.given(alone())
    bench.frame(a_reading(A, 90, unified=True, memory_bytes=119 * GIB, processes=[of(7, gib=None)]))
    bench.ends(job)
    bench.frame(a_reading(A, 65, unified=True, memory_bytes=119 * GIB, processes=[of(7, gib=None)]))
    assert bench.card().passing, "a process of it is still there"
    bench.frame(a_reading(A, 70, unified=True, memory_bytes=119 * GIB, processes=[]))
    assert bench.state() == (words.FREE, ""), "however the host's memory changed meanwhile"


def test_a_draining_gpu_keeps_its_jobs(bench: Bench) -> None:
    bench.frame(a_reading(A))
    bench.given(alone())
    bench.cards.known[A].drained = True
    gpu = bench.gpu()
    assert (gpu.state, gpu.drained, gpu.jobs) == (words.DRAINING, True, [7])
    assert gpu.why == "GPU 0 is draining; `runner gpus undrain` opens it again"


def test_a_process_that_would_not_die_leaves_its_gpu_stuck(bench: Bench) -> None:
    bench.frame(a_reading(A))
    bench.cards.known[A].stuck = Stuck(7, 1, ((50, 500), (51, 510)), T)
    assert bench.state() == (words.STUCK, "GPU 0 is stuck: a process of job 7 can't be ended (pid 50, 51)")


# --- what a job held ---


def test_the_most_that_a_job_held_on_one_gpu_is_remembered(bench: Bench) -> None:
    job = bench.given(alone(7, A, B))
    assert bench.cards.peak(job) is None
    bench.frame(a_reading(A, 5, processes=[of(7, 50, 3), of(7, 51, 2), of(6, 60, 9)]), a_reading(B, 4, processes=[]))
    bench.frame(a_reading(A, 1, processes=[of(7, 50, 1)]), a_reading(B, 4, processes=[of(7, 50, 4)]))
    assert bench.cards.peak(job) == 5 * GIB
    bench.ends(job)
    assert bench.cards.peak(job) == 5 * GIB, "until it is durable that it ended"
    bench.given(alone(8, A))
    assert bench.cards.peak(job) is None


def test_memory_that_the_driver_does_not_tell_is_no_peak(bench: Bench) -> None:
    job = bench.given(alone())
    bench.frame(a_reading(A, 5, processes=[of(7, gib=None)]))
    assert bench.cards.peak(job) is None


# --- being freed ---


def test_a_gpu_is_given_again_only_when_its_memory_is_seen_to_be_free(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    job = bench.given(alone())
    bench.frame(a_reading(A, 0, processes=[of(7, gib=0)]))
    bench.ends(job)
    assert bench.state() == (words.BUSY, "is being freed after job 7"), "what was read before says nothing"
    bench.frame(a_reading(A, 20, processes=[]))
    assert bench.card().taken == "GPU 0 is being freed after job 7, 20 GiB are still in use"
    assert bench.card().passing
    bench.probe(a_reading(A, 0.2, processes=[of(7, gib=0.2)]))
    assert bench.card().passing, "a process of it lives"
    bench.probe(a_reading(A, 0.2, processes=[of(7, gib=0.2, alive=False)]))
    assert bench.state() == (words.FREE, "")


def test_a_job_that_shared_leaves_what_it_does_not_free_as_foreign(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    first, _ = bench.given(sharing(7)), bench.given(sharing(8))
    bench.frame(a_reading(A, 16, processes=[of(7, 50, 8), of(8, 51, 8)]))
    bench.ends(first)
    assert bench.cards.freeing == {}
    assert bench.card().foreign_bytes == 8 * GIB


@pytest.mark.parametrize(
    ("before", "after", "free"),
    [
        pytest.param(0.0, FREE_SLACK / GIB, True, id="a little is left"),
        pytest.param(0.0, FREE_SLACK / GIB + 0.1, False, id="more than a little"),
        pytest.param(0.9, 1.1, True, id="as much as the desktop used before"),
        pytest.param(0.9, 1.2, False, id="more than the desktop used before"),
        pytest.param(None, 1.0, True, id="nobody knows what was used before: a desktop's part"),
        pytest.param(None, 1.1, False, id="nobody knows what was used before: more than that"),
    ],
)
def test_free_is_what_was_free_before(bench: Bench, before: float | None, after: float, free: bool) -> None:
    bench.frame(a_reading(A, before))
    bench.ends(bench.given(alone()))
    bench.frame(a_reading(A, after, processes=[]))
    assert bench.card().passing is not free


def test_after_a_restart_of_the_daemon_it_is_not_known_what_was_used_before() -> None:
    bench = Bench(a_known())
    job = alone()
    bench.active[7] = job
    bench.ends(job)
    assert bench.card().closed == "GPU-0000 (RTX 3090) was not read yet"
    bench.frame(a_reading(A, 20))
    assert bench.card().passing
    bench.frame(a_reading(A, 0.9))
    assert bench.state() == (words.FREE, "")


def test_who_came_meanwhile_is_in_the_way_in_their_own_name(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    bench.ends(bench.given(alone()))
    bench.frame(a_reading(A, 12, processes=[a_process(5, 4)]))
    assert bench.card().passing, "eight are still the job's"
    bench.frame(a_reading(A, 4.1, processes=[a_process(5, 4)]))
    assert bench.state() == (words.FOREIGN, "held by alice, python train.py, 4.1 of 24 GiB")
    assert not bench.card().passing


def test_where_it_can_not_be_told_whose_the_memory_is_the_living_have_it_in_the_end(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    bench.ends(bench.given(alone()))
    since = bench.now
    bench.frame(a_reading(A, 4, processes=[a_process(5, None)]))
    assert bench.card().passing
    bench.frame(a_reading(A, 4, processes=[a_process(5, None)]), after=PATIENCE)
    assert bench.now - since > PATIENCE
    assert bench.state()[0] == words.FOREIGN


def test_nor_is_it_waited_for_where_nothing_was_known_before() -> None:
    bench = Bench(a_known())
    bench.active[7] = alone()
    bench.ends(bench.active[7])
    bench.frame(a_reading(A, 4, processes=[a_process(5, None, kind="graphics")]))
    assert bench.state()[0] == words.FOREIGN


def test_memory_that_does_not_free_leaves_the_gpu_stuck_until_it_does(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    bench.ends(bench.given(alone()))
    bench.frame(a_reading(A, 9), after=PATIENCE)
    assert bench.card().passing
    bench.frame(a_reading(A, 9))
    assert bench.state() == (words.STUCK, "GPU 0 is stuck: its memory is not free since job 7 ended")
    assert bench.card().closed is not None
    bench.frame(a_reading(A, 0))
    assert bench.state() == (words.FREE, "")


def test_silence_while_it_is_freed_frees_nothing(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    bench.ends(bench.given(alone()))
    bench.now += 2 * PATIENCE
    bench.silence = "the driver does not answer"
    assert bench.state() == (words.UNKNOWN, "the driver does not answer")
    bench.silence = None
    bench.frame(a_reading(A, 0))
    assert bench.state() == (words.FREE, "")


def test_what_can_not_be_read_is_not_free(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    bench.ends(bench.given(alone()))
    bench.frame(a_reading(A, None, absent={"memory_used_bytes": "error"}))
    bench.frame(down(A, ERROR))
    assert A in bench.cards.freeing


def test_a_clock_that_goes_back_does_not_keep_a_gpu(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    bench.ends(bench.given(alone()))
    bench.frame(a_reading(A, 0), after=-2 * CLOCK_BACK)
    bench.frame(a_reading(A, 0))
    assert bench.state() == (words.FREE, "")


def test_who_gets_it_next_waits_for_nobody_before(bench: Bench) -> None:
    bench.frame(a_reading(A, 0))
    bench.ends(bench.given(alone(7)))
    bench.given(alone(8))
    assert bench.cards.freeing == {}
    assert bench.state() == (words.BUSY, "job 8")


def test_an_adopted_process_that_ended_has_nothing_freed_after_it(bench: Bench) -> None:
    bench.frame(a_reading(A, 5, processes=[a_process(50, 5)]))
    job = bench.given(alone(7, adopts=[50, 50]))
    bench.frame(a_reading(A, 5, processes=[a_process(50, 5)]))
    assert bench.gpu().processes[0].job == 7
    assert bench.card().foreign_bytes == 0
    bench.ends(job)
    assert bench.cards.freeing == {}
    assert bench.card().taken == "GPU 0 held by job 7, which does not have it (pid 50), 5 of 24 GiB"


def test_a_gpu_that_was_forgotten_is_freed_from_nobody(bench: Bench) -> None:
    job = bench.given(alone())
    bench.ends(job)
    assert bench.cards.freeing == {}


# --- processes, forgetting ---


def test_a_process_is_found_with_all_gpus_that_it_holds(bench: Bench) -> None:
    bench.frame(
        a_reading(A, 1, processes=[a_process(5), a_process(6, alive=False)]), a_reading(B, 1, processes=[a_process(5)])
    )
    found = bench.cards.process(5)
    assert found is not None
    assert (found[0].command, found[1]) == ("python train.py", [A, B])
    assert bench.cards.process(6) is None, "it is dead"
    assert bench.cards.process(7) is None
    bench.frame(a_reading(A, 1))
    assert bench.cards.process(5) == (found[0], [A]), "what is missing is held by nobody"


def test_a_gpu_that_is_forgotten_is_new_when_it_comes_back(bench: Bench) -> None:
    bench.frame(a_reading(A), a_reading(B))
    bench.cards.forget(B)
    assert [card.uuid for card in bench.cards.cards([], None, T)] == [A]
    bench.frame(a_reading(A), a_reading(B))
    assert bench.cards.known[B].first_seen_at == bench.now


def test_a_time_of_another_day_has_its_date() -> None:
    noon = time.mktime((2026, 5, 4, 12, 0, 5, 0, 0, -1))
    assert clock(noon, noon + 60) == "12:00:05"
    assert clock(noon, noon + 90_000) == "2026-05-04 12:00:05"


def test_a_gpu_that_was_not_read_yet_is_not_free_when_another_is() -> None:
    bench = Bench(a_known())
    bench.active[7] = alone()
    bench.ends(bench.active[7])
    bench.frame(a_reading(B))
    assert bench.cards.freeing.keys() == {A}
