"""The monitor's figures: what watching costs, what is written in a day, a year of history and any chart of it."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.common import Box, Figure, cpu_seconds
from bench.gpus import fake_of
from runner.box.gpus.frames import Frame, Reading
from runner.box.gpus.meter import Meter
from runner.box.history import History
from runner.box.history.archive import INSERT, ROLL_UP, STEPS, SUBJECT_BITS, Archive, Minute, Subject, summary
from runner.box.history.chunk import Block, Chunk
from runner.box.history.columns import GPU, HOST, HOST_KEY, LAST, numbers
from runner.box.settings import Settings
from runner.paths import StateDir

SECONDS = 60
DAY = 86400
NOW = 1_760_000_040 // 60 * 60
GIB = 1 << 30
MIB = 1 << 20


def measure() -> Iterator[Figure]:
    yield _watching(0, 0.7)
    yield _watching(5, 2.0)
    yield from _a_day()
    yield from _a_year()


# --- watching ------------------------------------------------------------------------------------------------------


def _watching(viewers: int, bar: float) -> Figure:
    """The daemon, its collector and the parent of supervisors, with 8 busy GPUs. viewers: as pages listen."""
    mine = Box()
    try:
        fake = fake_of(mine, ["3090", "4090"] * 4)
        for gpu in fake.gpus:
            gpu.set(used=18 * GIB, utilization=93, power=320_000, temperature=71)
        mine.start()
        time.sleep(5)
        pids = mine.processes()
        with ExitStack() as closing:
            for _ in range(viewers):
                closing.enter_context(_viewer(mine))
            before = cpu_seconds(pids)
            time.sleep(SECONDS)
            used = (cpu_seconds(pids) - before) * 60 / SECONDS
        name = f"H1 watching 8 GPUs, {viewers or 'no'} viewer{'s' * (viewers > 1)}, CPU per minute"
        return Figure(name, used, "s", bar, note=f"{len(pids)} processes")
    finally:
        mine.close()


@contextmanager
def _viewer(mine: Box) -> Iterator[None]:
    """Somebody who takes what the Overview's stream says."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(mine.socket)
        link.sendall(b"GET /api/v1/live HTTP/1.1\r\nHost: box\r\n\r\n")
        taken = threading.Thread(target=lambda: all(iter(lambda: link.recv(1 << 16), b"")), daemon=True)
        taken.start()
        yield
        link.shutdown(socket.SHUT_RDWR)
        taken.join()


# --- a day ---------------------------------------------------------------------------------------------------------


@contextmanager
def _folder() -> Iterator[str]:
    made = tempfile.mkdtemp(prefix="gpubox-bench-")
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _busy(chance: random.Random, uuid: str, at: float) -> Reading:
    """A card in the middle of a training; its counters are read every five seconds."""
    sample: dict[str, object] = {
        "utilization": chance.randint(85, 100) / 100, "memory_utilization": chance.randint(40, 60) / 100,
        "memory_used_bytes": 18 * GIB + chance.choice((0, 0, 0, 2)) * MIB,
        "temperature_celsius": float(70 + chance.choice((0, 0, 1))), "power_watts": round(chance.gauss(320, 15), 1),
        "sm_clock_hertz": 1.9e9 + chance.choice((0, 15e6, -15e6)), "throttled_by": ["power_cap"],
    }  # fmt: skip
    if int(at) % 5 == 0:
        sample |= {"fan": 0.6, "performance_state": 2, "memory_clock_hertz": 9.751e9, "energy_joules": at * 320.0}
        sample["throttled_seconds"] = {"power_cap": at * 0.9, "hw_thermal": 0.0}
    return Reading(uuid, 0, "NVIDIA GeForce RTX 3090", "", 24 * GIB, sample=sample)


def _a_day(hours: int = 6) -> Iterator[Figure]:
    """Some hours of 4 busy GPUs, as the daemon writes them; what it takes of the loop, with 8."""
    with _folder() as folder:
        slices, spent = _play(folder, 4, hours)
        told = f"{hours} h of 4 GPUs and the host, {spent / hours / 60 * 1e3:.1f} ms of CPU a minute"
        yield Figure("H2 written in a day, 4 GPUs", _written * 24 / hours / 1e6, "MB", 120.0, note=told)
    with _folder() as folder:
        slices, _ = _play(folder, 8, 1)
        slices.sort()
        told = f"median {slices[len(slices) // 2] * 1e3:.2f} ms, 8 GPUs, a minute's end included"
        yield Figure("H3 the loop is held by history, at most", slices[-1] * 1e3, "ms", 20.0, note=told)


_written = 0


def _play(folder: str, gpus: int, hours: int) -> tuple[list[float], float]:
    """(seconds that each frame held the loop, CPU of it all)."""
    global _written
    chance, meter = random.Random(1), Meter()
    later: list[tuple[Callable[[], object], Callable[[BaseException | None], None]]] = []
    history = History(Settings(StateDir(folder), ""), lambda *work: later.append(work), print)
    history.begin()
    slices = []
    before, began = _write_bytes(), time.process_time()
    generated = 0.0
    for second in range(hours * 3600):
        at = float(NOW + second)
        making = time.process_time()
        frame = Frame(at, cards=[_busy(chance, f"GPU-{place}", at) for place in range(gpus)])
        generated += time.process_time() - making
        held = time.thread_time()
        history.heard(frame, meter.read(frame))
        if second % 5 == 0:
            history.look(at)
        slices.append(time.thread_time() - held)
        while later:
            work, done = later.pop(0)
            work()
            done(None)
    history.close()
    os.sync()
    _written = _write_bytes() - before
    return slices, time.process_time() - began - generated


def _write_bytes() -> int:
    with open("/proc/self/io") as file:
        return int(next(line for line in file if line.startswith("write_bytes")).split()[1])


# --- a year --------------------------------------------------------------------------------------------------------


def _a_year() -> Iterator[Figure]:
    with _folder() as folder:
        path = StateDir(folder).metrics
        cards = [f"GPU-{place}" for place in range(8)]
        _generate(path, cards)
        yield Figure("H4 a year of 8 GPUs and the host", Path(path).stat().st_size / 1e6, "MB", 1000.0)
        yield from _charts(folder, cards)


def _generate(path: str, cards: list[str], days: int = 365, raw_days: int = 14) -> None:
    """Minutes of a hundred kinds, in the tables as the daemon would have left them."""
    chance, archive = random.Random(2), Archive(path)
    kinds: dict[str, list[bytes]] = {GPU.name: [], HOST.name: []}
    for _ in range(100):
        block, host = Block(len(GPU.columns)), Block(len(HOST.columns))
        for second in range(60):
            sample = dict(_busy(chance, "", float(second)).sample) | {"energy_joules": chance.gauss(320, 15)}
            block.put(second, numbers(GPU, sample))
            if second % 5 == 0:
                host.put(second, numbers(HOST, {column.name: chance.uniform(1e8, 1e9) for column in HOST.columns}))
        kinds[GPU.name].append(block.pack())
        kinds[HOST.name].append(host.pack())
    subjects = [*(Subject(GPU, card) for card in cards), Subject(HOST, HOST_KEY)]
    first = (NOW - days * DAY) // 60 * 60
    archive.write([Minute(first, {each.key: kinds[each.kind.name][0] for each in subjects}, subjects)])
    known = archive.known()
    archive.close()
    connection = sqlite3.connect(path)
    for kind in (GPU, HOST):
        kept = [column for column in kind.columns if column.how != LAST]
        rows = [summary(kind, Chunk(body), kept) for body in kinds[kind.name]]
        numbers_ = [each.number for each in known if each.subject.kind is kind]
        minutes = ((at, number, *rows[chance.randrange(100)]) for at in range(first, NOW, 60) for number in numbers_)
        connection.executemany(INSERT[kind.name], minutes)
        for finer, step in itertools.pairwise(STEPS):
            starts = ((start,) for start in range(first // step * step, NOW, step))
            connection.executemany(ROLL_UP[kind.name, step, finer], starts)
    raw = (
        (at // 60 << SUBJECT_BITS | each.number, kinds[each.subject.kind.name][chance.randrange(100)])
        for at in range(NOW - raw_days * DAY, NOW, 60)
        for each in known
    )
    connection.executemany("INSERT OR REPLACE INTO raw VALUES (?, ?)", raw)
    connection.execute("UPDATE subjects SET last_at = ?", (NOW,))
    connection.commit()
    connection.close()


def _charts(folder: str, cards: list[str]) -> Iterator[Figure]:
    """Every length of time, of one GPU and of all, of one column and of all."""
    history = History(Settings(StateDir(folder), ""), lambda work, done: None, print)
    history.begin()
    worst, slowest = 0.0, ""
    most = 0
    spans = {"5 min": 300, "2 h": 7200, "8 h": 28800, "1 d": DAY, "3 d": 3 * DAY, "14 d": 14 * DAY, "60 d": 60 * DAY,
             "1 y": 365 * DAY}  # fmt: skip
    for span, seconds in spans.items():
        for keys in ([cards[0]], cards):
            for names in (
                ["power_watts"],
                ["utilization", "memory_used_bytes", "power_watts", "temperature_celsius"],
                [],
            ):
                taken = []
                for _ in range(5):
                    began = time.thread_time()  # of this processor: other work here is none of its own
                    chart = history.chart(keys, names, NOW - seconds, NOW, 1000, NOW)()
                    taken.append(time.thread_time() - began)
                most = max(most, chart.made.count)
                if min(taken) > worst:
                    worst = min(taken)
                    slowest = f"{span} of {len(keys)} GPUs, {len(names) or 'all'} columns: {chart.made.count} points"
    history.close()
    yield Figure("H5 the slowest chart of a year", worst * 1e3, "ms", 50.0, note=slowest)
    yield Figure("H5 points of a chart, at most", most, "", 1000.0)
