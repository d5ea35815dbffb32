"""What the GPUs and the host did: two hours in memory, the rest in metrics.db. Nothing of the queue depends on it.

Everything is called on the loop's thread and returns at once; the file is read and written in a thread. What can't be
written is kept for two hours and tried again each minute, and told once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.box.gpus.counts import dumped, loaded
from runner.box.gpus.frames import ASLEEP, OK, Frame
from runner.box.gpus.meter import Count, Step
from runner.box.history.archive import Archive, Gap, Minute, Row, Subject, summary
from runner.box.history.charts import Line, Plan, of_chunks, of_rows, plan
from runner.box.history.chunk import Chunk, joined
from runner.box.history.columns import GPU, HOST, HOST_KEY, LAST, STATES, Column, Kind, bits
from runner.box.history.host import Host
from runner.box.history.minutes import Minutes, unpacked
from runner.box.settings import Settings
from runner.errors import Problem

HOST_SECONDS = 5.0  # between looks at the host
TIDY_SECONDS = 600.0  # between removals of what is too old
SOON = 1.0  # seconds; a gap that ends later than this ago goes on

Background = Callable[[Callable[[], object], Callable[[BaseException | None], None]], None]
Call = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(slots=True)
class Series:
    """What is known of one subject in a time."""

    subject: str
    kind: str
    lines: dict[str, Line]
    gaps: list[Gap]


@dataclass(slots=True)
class Chart:
    made: Plan
    recorded_from: float | None  # nothing was read before; None: nothing was read at all
    series: list[Series] = field(default_factory=list)
    trouble: str = ""  # why the file could not be asked


class History:
    def __init__(self, settings: Settings, background: Background, report: Callable[[str], None]) -> None:
        """background: runs work in a thread, then says how it ended. report: a line for the daemon's log."""
        self._settings, self._background, self._report = settings, background, report
        self.archive = Archive(settings.state.metrics)
        self.minutes = Minutes()
        self.host = Host(settings.state)
        self.counts: Callable[[str], Count | None] = lambda uuid: None  # what the driver's counters said last
        self._gpus: dict[str, Subject] = {}
        self._host = Subject(HOST, HOST_KEY)
        self._busy = False  # somebody writes
        self._told = ""
        self._tidied_at = 0.0

    def keep(self, settings: Settings) -> None:
        """How long, from now on."""
        self._settings = settings

    def begin(self) -> dict[str, Count]:
        """Find out what the last daemon left; returns, by GPU, the counters as they were then. Takes milliseconds."""
        counts = {}
        try:
            known = self.archive.known()
        except Problem as problem:
            self._say(problem.message)
            known = []
        self._tell()
        self.archive.anew = False
        for each in known:
            self.minutes.know(each.subject, each.last_at)
            if each.subject.kind is GPU:
                self._gpus[each.subject.key] = each.subject
                if (count := loaded(each.subject.counted)) is not None:
                    counts[each.subject.key] = count
        return counts

    # --- hearing ---

    def heard(self, frame: Frame, steps: Iterable[Step]) -> None:
        """A cycle of the collector, and what the GPUs used since the last."""
        turned = False
        for step in steps:
            turned |= self.minutes.put(self._gpu(step), step.at, _values(step))
            if step.unseen_joules is not None:
                self.minutes.bridged(step.uuid, step.unseen_joules)
        for reading in frame.cards:
            if reading.state not in (OK, ASLEEP):
                self.minutes.missing(reading.uuid, reading.detail or f"the card was {reading.state}")
        for uuid in self._gpus.keys() - {reading.uuid for reading in frame.cards}:
            self.minutes.missing(uuid, "the card was missing")
        if turned:
            self.flush()

    def silent(self, why: str) -> None:
        """Nothing is read of any GPU, from now on."""
        for uuid in self._gpus:
            self.minutes.missing(uuid, why)

    def look(self, now: float) -> None:
        """Read the host."""
        if self.minutes.put(self._host, now, self.host.read(time.monotonic())):
            self.flush()

    def _gpu(self, step: Step) -> Subject:
        subject = self._gpus.get(step.uuid)
        if subject is None:
            subject = self._gpus[step.uuid] = Subject(GPU, step.uuid)
        if step.reading is not None:
            subject.name = step.reading.name or subject.name
        return subject

    # --- writing ---

    def flush(self) -> None:
        """Have the minutes that are over written."""
        if self._busy or not self.minutes.over:
            return
        self._busy = True
        batch = list(self.minutes.over)
        self._keep_counts()
        now = float(batch[-1].at)
        tidy = now - self._tidied_at >= TIDY_SECONDS or now < self._tidied_at

        def work() -> None:
            self.archive.write(batch)
            if tidy and not self.archive.forget(
                self._settings.keep_seconds_days, self._settings.keep_minutes_days, now
            ):
                self._tidied_at = now

        def done(error: BaseException | None) -> None:
            self._busy = False
            self._written(batch, error)

        self._background(work, done)

    def _keep_counts(self) -> None:
        for uuid, subject in self._gpus.items():
            count = self.counts(uuid)
            if count is not None:
                subject.counted = dumped(count)

    def _written(self, batch: Sequence[Minute], error: BaseException | None) -> None:
        self._tell()
        if error is None:
            done = {id(minute) for minute in batch}
            self.minutes.over = [minute for minute in self.minutes.over if id(minute) not in done]
            self._told = ""
        else:
            self._say(error.message if isinstance(error, Problem) else f"{type(error).__name__}: {error}")
        if self.archive.anew:
            self.archive.anew = False
            self.minutes.over = self.minutes.all()  # to write a minute again changes nothing

    def _tell(self) -> None:
        said, self.archive.said = self.archive.said, []
        for line in said:
            self._report(line)

    def _say(self, why: str) -> None:
        """Once while it stays the same."""
        if why != self._told:
            self._told = why
            self._report(f"the history of the GPUs is not written: {why}; it is tried again each minute")

    def close(self) -> None:
        """Write what there is, the begun minute too."""
        self.minutes.turn()
        self._keep_counts()
        try:
            if self.minutes.over:
                self.archive.write(self.minutes.over)
        except (Problem, OSError) as error:  # the way out goes on
            self._say(error.message if isinstance(error, Problem) else str(error))
        self._tell()
        self.archive.close()

    # --- questions ---

    def begins(self) -> dict[int, int]:
        """Step -> the oldest that there is of it; reads the file."""
        begins, _ = _try(self.archive.begins, {})
        if self.minutes.began is not None:
            begins[1] = min(begins.get(1, self.minutes.began), self.minutes.began)
        found: dict[int, int] = begins
        return found

    def recorded_from(self) -> float | None:
        """Nothing was read before; reads the file."""
        return min(self.begins().values(), default=None)

    @property
    def subjects(self) -> dict[str, Subject]:
        """What has a history, by its key: GPUs by their UUIDs, and the host."""
        return {key: seen.subject for key, seen in self.minutes.seen.items()}

    def chart(
        self,
        keys: Sequence[str],
        names: Sequence[str],
        since: float,
        until: float,
        points: int,
        now: float,
        made: Plan | None = None,
    ) -> Callable[[], Chart]:
        """What answers it, to be called in a thread: what is in memory is taken now.

        names: of columns; none: all that are kept for long. A subject without a column of a name is passed over.
        made: how, if the caller knows better."""
        columns = {key: _chosen(seen.subject.kind, names) for key in keys if (seen := self.minutes.seen.get(key))}
        wanted = {key: chosen for key, chosen in columns.items() if chosen}
        parts = {key: self.minutes.held(key, since, until) for key in wanted}
        gaps = [gap for key in wanted for gap in self.minutes.gaps(key, now)]
        kinds = {key: self.minutes.seen[key].subject.kind for key in wanted}
        unwritten, began = self.minutes.unwritten(), self.minutes.began

        def answer() -> Chart:
            begins, trouble = _try(self.archive.begins, {})
            if began is not None:
                begins[1] = min(begins.get(1, began), began)
            width = max(map(len, wanted.values()), default=1)
            last = any(column.how == LAST for chosen in wanted.values() for column in chosen)
            drawn = made or plan(since, until, points, len(wanted), width, begins, last)
            old, _ = _try(lambda: self.archive.gaps(list(wanted), drawn.began, drawn.ended), [])
            told = _joined([*old, *gaps], drawn)
            if drawn.step == 1:
                held = {key: unpacked(parts[key], len(kinds[key].columns)) for key in wanted}
                lines = {key: self._fine(key, kinds[key], wanted[key], drawn, held[key], began) for key in wanted}
            else:
                late = {key: [part for part in parts[key] if part[0] in unwritten] for key in wanted}
                tails = {key: unpacked(late[key], len(kinds[key].columns)) for key in wanted}
                lines = self._coarse(kinds, wanted, drawn, tails)
            series = [
                Series(key, kinds[key].name, lines[key], [gap for gap in told if gap.key == key]) for key in wanted
            ]
            return Chart(drawn, min(begins.values(), default=None), series, trouble)

        return answer

    def _fine(
        self, key: str, kind: Kind, columns: Sequence[Column], made: Plan, held: Mapping[int, Chunk], began: int | None
    ) -> dict[str, Line]:
        chunks = dict(held)
        if began is None or made.began <= began:
            until = made.ended if began is None else min(began, made.ended)
            old, _ = _try(lambda: self.archive.chunks(key, made.began, until), [])
            for at, chunk in old:  # of the minute in which this daemon began, the file has the other part
                mine = chunks.get(at)
                chunks[at] = chunk if mine is None else Chunk(joined(chunk, mine, len(kind.columns)))
        return of_chunks(kind, sorted(chunks.items(), key=lambda pair: pair[0]), columns, made)

    def _coarse(
        self,
        kinds: Mapping[str, Kind],
        wanted: Mapping[str, Sequence[Column]],
        made: Plan,
        tails: Mapping[str, Mapping[int, Chunk]],
    ) -> dict[str, dict[str, Line]]:
        lines = {}
        for name, kind in {kind.name: kind for kind in kinds.values()}.items():
            keys = [key for key in wanted if kinds[key].name == name]
            columns = wanted[keys[0]]  # the same of each of a kind
            ask = functools.partial(self.archive.rows, kind, made.step, keys, columns, made.began, made.ended)
            found, _ = _try(ask, {})
            for key in keys:
                rows: list[Row] = found.get(key, [])
                rows += [(at, *summary(kind, chunk, columns)) for at, chunk in tails[key].items()]
                lines[key] = of_rows(rows, columns, made)
        return lines


def _chosen(kind: Kind, names: Sequence[str]) -> list[Column]:
    if not names:
        return [column for column in kind.columns if column.how != LAST]
    return [kind.column(name) for name in names if name in kind.place]


def _try(ask: Callable[[], Any], otherwise: Any) -> tuple[Any, str]:
    """What the file says; where it can't be asked, what is in memory is all."""
    try:
        return ask(), ""
    except Problem as problem:
        return otherwise, problem.message


def _joined(gaps: Sequence[Gap], made: Plan) -> list[Gap]:
    """Each once: what was written and is still remembered is the same."""
    found = {(gap.key, round(gap.began)): gap for gap in gaps if gap.ended > made.began and gap.began < made.ended}
    return [found[name] for name in sorted(found)]


def _values(step: Step) -> dict[str, object]:
    """What is kept of one GPU in one second."""
    reading = step.reading
    values: dict[str, object] = {} if reading is None else dict(reading.sample)
    values["energy_joules"] = step.joules  # that it used, in the place of the driver's count
    for name, seconds in step.throttled.items():
        values[f"{name}_seconds"] = seconds
    if reading is None:
        return values
    values["state"] = STATES.index(reading.state)
    throttled = reading.sample.get("throttled_by")
    if isinstance(throttled, list):
        values["throttled_by"] = bits(throttled)
    if reading.state == ASLEEP:
        values["asleep_seconds"] = step.seconds
    return values
