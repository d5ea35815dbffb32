"""What the GPUs did, remembered: packed, kept in steps, asked for, lost and found. Without a driver or waiting."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import GIB, a_reading
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import wait_until

from runner.box.gpus.frames import Frame
from runner.box.gpus.meter import Meter
from runner.box.history import Chart, History, archive, charts
from runner.box.history.archive import STEPS, Archive, Gap, Minute, Subject
from runner.box.history.chunk import ABSENT, SECONDS, Block, Chunk, merge, pack
from runner.box.history.columns import GPU, HOST, NUMBER_MAX, bits, numbers, reasons
from runner.box.history.host import Host, rates
from runner.box.history.minutes import MINUTES
from runner.box.settings import Settings
from runner.errors import BadRequest
from runner.paths import StateDir

NOON = 1_700_000_040  # the start of a minute
CARD = "GPU-0000"


class Past:
    """A history with a clock of its own, whose thread is this one; opened again on the same folder, a restarted one."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.reports: list[str] = []
        self.later: list[tuple[Callable[[], object], Callable[[BaseException | None], None]]] = []
        self.now = float(NOON)
        self.meter = Meter()
        chosen = Settings(StateDir(folder), f"{folder}/api.sock", **settings)
        self.history = History(chosen, lambda *work: self.later.append(work), self.reports.append)
        self.history.host = Host(str(folder), str(folder / "proc"))
        self.history.counts = self.meter.count
        for uuid, count in self.history.begin().items():
            self.meter.resume(uuid, count)

    def work(self) -> None:
        while self.later:
            do, done = self.later.pop(0)
            try:
                do()
            except Exception as error:
                done(error)
            else:
                done(None)

    def sees(self, seconds: float = 1.0, *uuids: str, **sample: Any) -> None:
        """The next reading of some GPUs, so much later; what is to be written is written."""
        given = {"memory_used_bytes": GIB, "utilization": 0.5, "power_watts": 100.0, "temperature_celsius": 60.0}
        readings = [a_reading(uuid, sample={**given, **sample}) for uuid in uuids or (CARD,)]
        frame = Frame(self.now, cards=readings)
        self.history.heard(frame, self.meter.read(frame))
        self.work()
        self.now += seconds

    def watches(self, seconds: int, *uuids: str, **sample: Any) -> None:
        for _ in range(seconds):
            self.sees(1.0, *uuids, **sample)

    def asks(self, since: float, until: float, *names: str, points: int = 1000, key: str = CARD) -> Chart:
        return self.history.chart([key], names, since, until, points, self.now)()

    def line(self, name: str, since: float, until: float, points: int = 1000, key: str = CARD) -> charts.Line:
        (series,) = self.asks(since, until, name, points=points, key=key).series
        return series.lines[name]

    def energy(self, since: float, until: float) -> float:
        (series,) = self.asks(since, until, "energy_joules").series
        return sum(filter(None, series.lines["energy_joules"].sum)) + sum(gap.joules or 0 for gap in series.gaps)

    def gaps(self, since: float, until: float) -> list[Gap]:
        (series,) = self.asks(since, until, "utilization").series
        return series.gaps


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Past]:
    made = Past(tmp_path)
    yield made
    made.history.close()


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(folder / "metrics.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


# --- a minute, packed ----------------------------------------------------------------------------------------------

CELL = st.one_of(st.just(ABSENT), st.integers(-NUMBER_MAX, NUMBER_MAX))
COLUMN = st.one_of(st.lists(CELL, min_size=60, max_size=60), CELL.map(lambda cell: [cell] * 60))


@settings(max_examples=40)
@given(st.lists(COLUMN, max_size=3))
def test_what_is_packed_is_what_is_unpacked(columns: list[list[int]]) -> None:
    chunk = Chunk(pack(columns))
    wanted = [[None if cell == ABSENT else cell for cell in column] for column in columns]
    assert [list(chunk.column(at)) for at in range(len(columns))] == wanted
    assert [chunk.there(at) for at in range(len(columns))] == [
        [c for c in column if c is not None] for column in wanted
    ]
    assert chunk.column(len(columns)) == [None] * SECONDS, "a column that came later"


@given(st.binary(max_size=200))
def test_bytes_that_are_no_minute_are_told_as_such(body: bytes) -> None:
    with pytest.raises(ValueError, match="can't be read"):
        Chunk(body)


def test_parts_of_a_minute_are_put_together_by_their_seconds() -> None:
    one, other = Block(2), Block(2)
    one.put(3, [(0, 7), (1, 1)])
    one.put(4, [(0, 8)])
    other.put(4, [(0, 9)])
    other.put(59, [(1, 5)])
    whole = Chunk(merge(one.pack(), other.pack(), 2))
    assert [(at, number) for at, number in enumerate(whole.column(0)) if number is not None] == [(3, 7), (4, 9)]
    assert whole.there(1) == [1, 5]
    assert whole.seen == 1 << 3 | 1 << 4 | 1 << 59


def test_two_readings_of_one_second_are_the_last_but_what_adds_up_adds_up() -> None:
    block = Block(2)
    block.put(0, [(0, 10), (1, 10)], {1})
    block.put(0, [(0, 20), (1, 20)], {1})
    chunk = Chunk(block.pack())
    assert (chunk.there(0), chunk.there(1)) == ([20], [30])


def test_zero_is_a_value_and_absent_is_none() -> None:
    found = dict(numbers(GPU, {"utilization": 0.0, "power_watts": None, "fan": 0.456, "index": 3}))
    assert found == {GPU.place["utilization"]: 0, GPU.place["fan"]: 46}


def test_reasons_of_throttling_are_bits() -> None:
    assert reasons(bits(["hw_thermal", "power_cap", "unheard_of"])) == ["power_cap", "hw_thermal"]


def test_a_minute_of_a_busy_gpu_takes_little(figure: Callable[[str], None]) -> None:
    chance = random.Random(1)
    block = Block(len(GPU.columns))
    for second in range(SECONDS):
        values = {
            "utilization": chance.uniform(0.8, 1), "memory_utilization": chance.uniform(0.4, 0.6),
            "memory_used_bytes": 18 * GIB, "temperature_celsius": 70 + chance.choice((0, 1)),
            "power_watts": chance.gauss(320, 10), "sm_clock_hertz": 1.9e9 + chance.choice((0, 15e6)), "fan": 0.6,
            "energy_joules": chance.gauss(320, 10), "power_cap_seconds": 1.0, "throttled_by": 1, "state": 0,
        }  # fmt: skip
        block.put(second, numbers(GPU, values))
    size = len(block.pack())
    figure(f"a minute of a busy GPU: {size} bytes")
    assert size < 700


# --- kept, and asked for -------------------------------------------------------------------------------------------


def test_the_last_minutes_are_told_second_by_second_without_the_file(past: Past) -> None:
    past.watches(30, utilization=0.2)
    past.watches(30, utilization=0.4)
    line = past.line("utilization", NOON, NOON + 60)
    assert line.mean == [0.2] * 30 + [0.4] * 30
    assert line.least == line.mean
    chart = past.asks(NOON, NOON + 60, "utilization")
    assert (chart.made.step, chart.made.bucket, chart.recorded_from) == (1, 1, NOON)


def test_a_minute_that_is_over_is_in_the_file_once(past: Past, tmp_path: Path) -> None:
    past.watches(121, utilization=0.25, power_watts=200.0)
    past.history.archive.close()
    assert rows(tmp_path, "SELECT ts, utilization_percent_n, utilization_percent_sum FROM gpu_60") == [
        (NOON, 60, 1500),
        (NOON + 60, 60, 1500),
    ]
    (day,) = rows(tmp_path, "SELECT utilization_percent_n, utilization_percent_max, energy_mj FROM gpu_86400")
    assert day == (120, 25, 119 * 200_000)


def test_buckets_say_mean_least_and_most(past: Past) -> None:
    for second in range(600):
        past.sees(utilization=0.9 if second % 60 < 6 else 0.1)
    line = past.line("utilization", NOON, NOON + 600, points=5)
    assert (line.mean, line.least, line.most) == ([0.18] * 5, [0.1] * 5, [0.9] * 5)


def test_every_step_says_the_same_energy(past: Past) -> None:
    for second in range(3700):
        past.sees(power_watts=100.0 + second % 7, energy_joules=50_000.0 + 100 * second)
    exact = 3699 * 100.0
    assert past.energy(NOON - 60, NOON + 3720) == pytest.approx(exact)
    past.history.close()
    for step in STEPS:
        (total,) = rows(Path(past.history.archive.path).parent, f"SELECT sum(energy_mj) FROM gpu_{step}")[0]
        assert total / 1000 == pytest.approx(exact, abs=10)  # each second is rounded to a thousandth


def test_what_was_not_read_is_none_and_not_zero(past: Past) -> None:
    past.watches(10)
    past.now += 120
    past.watches(10, utilization=0.0)
    line = past.line("utilization", NOON, NOON + 140)
    assert line.mean[:10] == [0.5] * 10
    assert line.mean[10:130] == [None] * 120
    assert line.mean[130:140] == [0.0] * 10
    assert past.line("fan", NOON, NOON + 140).mean == [None] * 140


def test_a_gap_has_its_ends_and_its_reason(past: Past) -> None:
    past.watches(10)
    past.history.silent("the driver does not answer")
    past.now += 100
    assert past.gaps(NOON, NOON + 110) == [Gap(CARD, NOON + 10, NOON + 110, "the driver does not answer")], "it goes on"
    past.watches(5)
    assert past.gaps(NOON, NOON + 200) == [Gap(CARD, NOON + 10, NOON + 110, "the driver does not answer")]
    past.watches(120)
    assert past.gaps(NOON, NOON + 300)[0].why == "the driver does not answer", "from the file"


def test_a_card_that_is_lost_has_a_gap_that_says_so(past: Past) -> None:
    past.watches(3)
    past.history.heard(Frame(past.now, cards=[a_reading(state="lost", detail="it fell off the bus", sample={})]), [])
    past.now += 50
    past.sees()
    assert [gap.why for gap in past.gaps(NOON, NOON + 60)] == ["it fell off the bus"]
    past.history.heard(Frame(past.now, cards=[]), [])
    past.now += 50
    past.sees()
    assert [gap.why for gap in past.gaps(NOON, NOON + 200)][-1] == "the card was missing"


def test_what_was_used_in_a_gap_is_told_with_it(past: Past) -> None:
    past.watches(10, energy_joules=1000.0)
    past.now += 600
    past.sees(energy_joules=61_000.0)
    (gap,) = past.gaps(NOON, NOON + 700)
    assert gap.joules == pytest.approx(60_000 - 0, rel=0.02)


def test_a_sleeping_card_is_no_gap(past: Past) -> None:
    past.watches(2)
    for _ in range(120):
        frame = Frame(past.now, cards=[a_reading(state="asleep", sample={})])
        past.history.heard(frame, past.meter.read(frame))
        past.work()
        past.now += 1
    assert past.gaps(NOON, NOON + 122) == []
    (series,) = past.asks(NOON, NOON + 122, "state", "asleep_seconds").series
    assert series.lines["state"].last[1:4] == ["ok", "asleep", "asleep"]
    assert sum(filter(None, series.lines["asleep_seconds"].sum)) == 120


def test_a_question_is_answered_in_so_many_points_at_most(past: Past) -> None:
    past.watches(200)
    for span in (1, 59, 60, 3599, 86_400, 30 * 86_400, 400 * 86_400, 5000 * 86_400):
        for points in (1, 7, 300, 1000, 10**9):
            made = past.asks(NOON + 200 - span, NOON + 200, "utilization", points=points).made
            assert 1 <= made.count <= min(points, 1000)
            assert made.began <= NOON + 200 - span
            assert made.ended >= NOON + 200 - 1
            assert made.bucket % made.step == 0
            assert made.bucket % 60 == 0 or 60 % made.bucket == 0
    begins = {1: NOON - 1, 60: NOON - 1}
    began = time.monotonic()
    assert charts.plan(NOON - 5000 * 86_400, NOON, 1, 1, 1, begins, last=True).count == 1
    assert time.monotonic() - began < 1


def test_a_finer_step_that_is_gone_is_answered_by_a_coarser_one() -> None:
    day = 86400
    begins = {1: 100 * day, 60: 50 * day, 300: 0, 1800: 0, 10800: 0, 86400: 0}
    ask = lambda since, until: charts.plan(since, until, 1000, 1, 1, begins).step  # noqa: E731
    assert ask(100 * day, 100 * day + 3600) == 1
    assert ask(99 * day, 99 * day + 3600) == 60
    assert ask(49 * day, 49 * day + 3600) == 300
    assert ask(100 * day, 200 * day) == 3600 * 3


def test_too_much_of_what_is_only_kept_by_the_second_is_refused_with_how_much_is_not() -> None:
    day = 86400
    begins = {1: 100 * day, 60: 50 * day}
    with pytest.raises(BadRequest, match="too much at once") as refused:
        charts.plan(0, 113 * day, 600, 8, 1, begins, last=True)
    assert "13 hours at most" in refused.value.hint
    assert charts.plan(113 * day - 12 * 3600, 113 * day, 600, 8, 1, begins, last=True).step == 1


def test_a_question_from_the_beginning_of_time_looks_at_what_there_is(past: Past) -> None:
    past.watches(200)
    began = time.monotonic()
    assert [at for at, _ in past.history.archive.chunks(CARD, 0, 1e12)] == [NOON, NOON + 60, NOON + 120]
    assert time.monotonic() - began < 1, "a list of all minutes that ever were takes longer"


def test_a_question_for_nothing_is_answered_with_nothing(past: Past) -> None:
    chart = past.asks(0, NOON, "utilization")
    assert (chart.recorded_from, chart.series) == (None, [])
    past.sees()
    assert past.asks(NOON, NOON + 10, "no such column").series == []
    assert past.line("utilization", 0, NOON - 3600).mean.count(None) > 0


def test_every_column_that_is_kept_is_told_unless_some_are_named(past: Past) -> None:
    past.sees()
    (series,) = past.asks(NOON, NOON + 10).series
    assert "state" not in series.lines
    assert {"utilization", "energy_joules", "asleep_seconds"} <= series.lines.keys()


def test_the_host_has_a_history_too(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "net").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 2048 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n")
    (proc / "stat").write_text("cpu  10 0 10 80 0 0 0 0 0 0\n")
    past = Past(tmp_path)
    past.history.look(past.now)
    (proc / "stat").write_text("cpu  30 0 30 140 0 0 0 0 0 0\n")
    past.history.look(past.now + 5)
    past.now += 5
    assert past.line("cpu", NOON, NOON + 6, key="host").mean == [None] * 5 + [0.4]
    assert past.line("memory_used_bytes", NOON, NOON + 1, key="host").mean == [1 << 20]
    past.history.close()


def test_rates_are_differences_and_a_counter_that_fell_has_none() -> None:
    assert rates({}, {"a": 5.0}, 1.0) == {}
    assert rates({"a": 5.0, "b": 9.0}, {"a": 15.0, "b": 1.0}, 5.0) == {"a": 2.0}
    assert rates({"a": 5.0}, {"a": 15.0}, 0.0) == {}


def test_the_host_is_read_here() -> None:
    host = Host("/")
    host.read(time.monotonic() - 1)
    found = wait_until(lambda: found if "cpu" in (found := host.read(time.monotonic())) else None)
    assert found.keys() <= HOST.place.keys()
    assert found["memory_used_bytes"] > 1 << 20
    assert 0 <= found["cpu"] <= 1
    assert found["disk_free_bytes"] > 0


def test_a_host_that_tells_nothing_is_silent(tmp_path: Path) -> None:
    assert Host(str(tmp_path / "gone"), str(tmp_path)).read(0.0) == {}


# --- restarts ------------------------------------------------------------------------------------------------------


def test_a_daemon_that_ends_well_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    first = Past(tmp_path)
    first.watches(90)
    first.history.close()
    second = Past(tmp_path)
    second.now = first.now
    second.watches(90)
    second.history.close()
    seen = rows(tmp_path, "SELECT ts, utilization_percent_n FROM gpu_60")
    assert seen == [(NOON, 60), (NOON + 60, 60), (NOON + 120, 60)]
    assert rows(tmp_path, "SELECT sum(utilization_percent_n) FROM gpu_86400") == [(180,)]
    assert rows(tmp_path, "SELECT * FROM gaps") == []


def test_a_daemon_that_is_killed_leaves_a_gap(tmp_path: Path) -> None:
    first = Past(tmp_path)
    first.watches(90, energy_joules=1000.0)
    second = Past(tmp_path)  # the first never said goodbye, and holds its file: it is another process's in truth
    assert second.reports
    first.history.archive.close()
    second = Past(tmp_path)
    second.now = first.now + 30
    second.watches(5, energy_joules=13_000.0)
    (gap,) = second.gaps(NOON, NOON + 200)
    assert (gap.began, gap.ended, gap.why) == (NOON + 60, NOON + 120, "the box's daemon was not running")
    assert gap.joules == pytest.approx(12_000, rel=0.01), "the driver counted on"
    second.history.close()


def test_killed_at_any_second_the_history_never_lies(tmp_path: Path) -> None:
    """Of 40 lives, most end without a word: what is told is what was read, once; what is not told is a gap."""
    chance = random.Random(7)
    now, read = float(NOON), set()
    told, last = 0, float("inf")
    for _ in range(40):
        life = Past(tmp_path)
        life.now = now
        for _ in range(chance.randint(1, 150)):
            read.add(int(life.now))
            life.sees(utilization=(int(life.now) % 100) / 100)
        now = life.now + chance.choice((0, 0, 3, 70))
        if chance.random() < 0.3:
            life.history.close()
        else:
            life.history.archive.close()
    life = Past(tmp_path)
    life.now = now
    life.sees(utilization=int(now) % 100 / 100)
    read.add(int(now))
    gaps = life.gaps(NOON, now + 1)
    for start in range(NOON, int(now), 600):
        line = life.line("utilization", start, start + 600)
        for at, value in enumerate(line.mean, start):
            if value is not None:
                told += 1
                assert at in read
                assert value == at % 100 / 100
                last = at
            elif at in read and last < at < now:
                assert at - last <= 5 or any(gap.began <= at < gap.ended for gap in gaps), "what was lost is told"
    life.history.close()
    counted = sum(row[0] for row in rows(tmp_path, "SELECT utilization_percent_n FROM gpu_60"))
    days = sum(row[0] for row in rows(tmp_path, "SELECT utilization_percent_n FROM gpu_86400"))
    assert told == counted == days, "in every step once"


def test_a_clock_that_goes_back_doubles_nothing(past: Past, tmp_path: Path) -> None:
    past.watches(130)
    past.now -= 100
    past.watches(130)
    past.history.close()
    assert rows(tmp_path, "SELECT sum(utilization_percent_n) FROM gpu_86400") == [(160,)]


# --- the file ------------------------------------------------------------------------------------------------------


def test_the_file_may_be_deleted_while_it_is_open(past: Path | Past, tmp_path: Path) -> None:
    assert isinstance(past, Past)
    past.watches(200)
    os.unlink(tmp_path / "metrics.db")
    past.watches(130)
    assert any("was deleted" in report for report in past.reports)
    assert past.line("utilization", NOON, NOON + 330, points=300).mean.count(None) == 0
    past.watches(60)  # what is in memory is written anew
    past.history.close()
    assert len(rows(tmp_path, "SELECT * FROM gpu_60")) == 7


def test_the_file_may_be_deleted_while_nobody_runs(tmp_path: Path) -> None:
    first = Past(tmp_path)
    first.watches(70)
    first.history.close()
    for name in ("metrics.db",):
        os.unlink(tmp_path / name)
    second = Past(tmp_path)
    second.now = first.now
    second.watches(70)
    assert second.reports == []
    second.history.close()


@pytest.mark.parametrize("damage", ["garbage", "hole", "empty", "newer", "another"])
def test_a_damaged_or_newer_file_is_set_aside_with_a_word(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.db"
    first = Past(tmp_path)
    first.watches(600)
    first.history.close()
    if damage == "garbage":
        path.write_bytes(os.urandom(20_000))
    elif damage == "hole":
        body = bytearray(path.read_bytes())
        body[4096:] = os.urandom(len(body) - 4096)
        path.write_bytes(body)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE raw (other)")
        connection.execute(f"PRAGMA user_version = {archive.VERSION + (damage == 'newer')}")
        connection.close()
    second = Past(tmp_path)
    second.now = first.now + 60
    second.watches(200)
    second.history.close()
    assert rows(tmp_path, "SELECT count(*) FROM gpu_60")[0][0] >= 3
    if damage != "empty":
        assert any("begun anew" in report for report in second.reports), second.reports
        assert (tmp_path / "metrics.db.aside").exists()


def test_a_file_that_can_not_be_written_is_told_once_and_tried_again(past: Past, tmp_path: Path) -> None:
    past.watches(10)
    os.rename(tmp_path / "metrics.db", tmp_path / "kept")
    (tmp_path / "metrics.db").mkdir()
    past.watches(300)
    told = [report for report in past.reports if "not written" in report]
    assert len(told) == 1
    assert past.line("utilization", NOON, NOON + 310).mean.count(None) == 0, "memory has it"
    (tmp_path / "metrics.db").rmdir()
    past.watches(130)
    past.history.close()
    assert rows(tmp_path, "SELECT sum(utilization_percent_n) FROM gpu_60") == [(440,)]


def test_what_can_not_be_written_for_two_hours_is_let_go(tmp_path: Path) -> None:
    past = Past(tmp_path)
    past.history.archive.close()
    (tmp_path / "metrics.db").unlink()
    (tmp_path / "metrics.db").mkdir()
    for _ in range(MINUTES + 30):
        past.sees(60.0)
    assert len(past.history.minutes.over) == MINUTES
    assert len(past.history.minutes.packed) == MINUTES
    past.history.close()


def test_what_is_too_old_goes_and_the_coarser_steps_stay(tmp_path: Path) -> None:
    past = Past(tmp_path, keep_seconds_days=1.0, keep_minutes_days=2.0)
    past.watches(121)
    archive_ = past.history.archive
    day = 86400
    assert archive_.forget(1.0, 2.0, NOON + 3600) is False
    assert archive_.begins().keys() == {1, *STEPS}
    archive_.forget(1.0, 2.0, NOON + 1.5 * day)
    assert archive_.begins().keys() == set(STEPS)
    archive_.forget(1.0, 2.0, NOON + 3 * day)
    assert archive_.begins().keys() == set(STEPS[1:])
    past.history.close()


def test_much_that_is_too_old_goes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PIECE", 20)
    past = Past(tmp_path)
    past.watches(60 * 50)
    past.history.archive.forget(0.0, 0.0, NOON)
    turns = 1
    while past.history.archive.forget(0.0, 0.0, NOON + 10**6):
        turns += 1
    assert turns > 2
    assert past.history.archive.begins().keys() == set(STEPS[1:])
    past.history.close()


def test_a_minute_that_is_written_twice_is_there_once(tmp_path: Path) -> None:
    file = Archive(str(tmp_path / "metrics.db"))
    block = Block(len(GPU.columns))
    block.put(5, numbers(GPU, {"utilization": 0.5, "energy_joules": 7.0}))
    minute = Minute(NOON, {CARD: block.pack()}, [Subject(GPU, CARD)])
    for _ in range(3):
        file.write([minute])
    (row,) = file.rows(GPU, 86400, [CARD], [GPU.column("energy_joules")], 0, 2 * NOON)[CARD]
    assert row[1] == 7000
    file.close()


def test_a_minute_whose_body_is_damaged_is_a_gap_and_is_written_over(tmp_path: Path) -> None:
    file = Archive(str(tmp_path / "metrics.db"))
    block = Block(len(GPU.columns))
    block.put(5, numbers(GPU, {"utilization": 0.5}))
    minute = Minute(NOON, {CARD: block.pack()}, [Subject(GPU, CARD)])
    file.write([minute])
    file.close()
    connection = sqlite3.connect(tmp_path / "metrics.db")
    connection.execute("UPDATE raw SET body = x'00'")
    connection.commit()
    connection.close()
    assert file.chunks(CARD, NOON, NOON + 60) == []
    file.write([minute])
    assert len(file.chunks(CARD, NOON, NOON + 60)) == 1
    file.close()
