"""What the GPUs and the host did: charts, a table for other programs, numbers for Prometheus, notices."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Query, Response
from fastapi.responses import StreamingResponse

from runner import errors
from runner.box import exposition
from runner.box.api.house import ID_MAX, Here, House, answer
from runner.box.api.routes import Routes
from runner.box.auth import Admin, Who
from runner.box.gpus.exports import families
from runner.box.history import Chart
from runner.box.history.archive import STEPS
from runner.box.history.charts import POINTS_MAX, Plan
from runner.box.history.columns import HOST_KEY, KINDS
from runner.model import Notice

routes = Routes()

AT_ONCE = 1000  # buckets in one piece of a table
NAMES_MAX = 2000  # characters
TIME_MAX = 1e11
TO_COME = 60.0  # seconds: two clocks may differ; beyond is nothing to be looked for
LAST_SECONDS = 3600.0

Time = Annotated[float | None, Query(ge=0, le=TIME_MAX)]
Names = Annotated[str, Query(max_length=NAMES_MAX)]


@dataclass
class Line:
    """One value a bucket; null: nothing was read in it. What is kept second by second alone has `last`."""

    mean: list[float | None] = field(default_factory=list)
    least: list[float | None] = field(default_factory=list)
    most: list[float | None] = field(default_factory=list)
    sum: list[float | None] = field(default_factory=list)
    last: list[Any] = field(default_factory=list)


@dataclass
class Gap:
    began: float
    ended: float
    why: str
    energy_joules: float | None  # that was used meanwhile, where the driver counted on


@dataclass
class Series:
    subject: str  # UUID of a GPU, or host
    kind: str  # gpu | host
    lines: dict[str, Line]
    gaps: list[Gap]


@dataclass
class Drawn:
    since: int
    until: int
    step: int  # seconds: what was looked at
    bucket: int  # seconds: what one value stands for
    at: list[int]  # the start of each bucket
    recorded_from: float | None  # nothing is known of before
    trouble: str  # why only the last two hours could be looked at
    series: list[Series]


@dataclass
class Extent:
    """What the history takes, and how far it goes back."""

    bytes: int
    steps: dict[str, int]  # seconds -> start of the oldest
    keep_seconds_days: float
    keep_minutes_days: float


@dataclass
class Notices:
    notices: list[Notice]


@dataclass
class Told:
    """What became of one way to tell."""

    ok: bool
    said: str
    hint: str
    again: bool  # a notice would be tried again


@dataclass
class Tried:
    outcomes: list[Told]


@dataclass
class Seen:
    up_to: int


async def _which(
    here: Here,
    of: Names = "",
    since: Time = None,
    until: Time = None,
    last: Annotated[float, Query(gt=0, le=TIME_MAX)] = LAST_SECONDS,
    job: Annotated[int | None, Query(ge=1, le=ID_MAX)] = None,
) -> tuple[float, float, list[str]]:
    """(since, until, keys of subjects). BadRequest, NotFound."""
    await here.gpus_known()
    now = time.time()
    keys = [_key(here, name) for name in of.split(",") if name]
    if job is not None:
        asked = here.job(job)
        if asked.started_at is None:
            raise errors.BadRequest(f"job {job} has not run yet", "`runner why` says what it waits for")
        since, until = since or asked.started_at, until or asked.ended_at or now
        keys = keys or [*asked.allotted, HOST_KEY]
    until = now if until is None else min(until, now + TO_COME)
    since = until - last if since is None else since
    if not (math.isfinite(since) and since < until):
        raise errors.BadRequest("the time that is asked for ends before it begins", "since must be less than until")
    return max(since, 0.0), until, list(dict.fromkeys(keys)) or list(here.history.subjects)


Asked = Annotated[tuple[float, float, list[str]], Depends(_which)]


@routes.get("/history", response_model=Drawn)
async def history(
    here: Here,
    asked: Asked,
    columns: Names = "",
    points: Annotated[int, Query(ge=1, le=POINTS_MAX)] = 600,
) -> Response:
    """A chart, in the step that suits its length. of: GPUs by index or UUID, and `host`; empty: all. since, until:
    epoch seconds; else the last so many seconds, or the time of a job, with its GPUs."""
    began, ended, keys = asked
    ask = here.history.chart(keys, _columns(columns), began, ended, points, time.time())
    chart: Chart = await here.call(ask)
    made = chart.made
    return answer(
        {
            "since": made.began,
            "until": made.ended,
            "step": made.step,
            "bucket": made.bucket,
            "at": made.starts,
            "recorded_from": chart.recorded_from,
            "trouble": chart.trouble,
            "series": [
                {
                    "subject": series.subject,
                    "kind": series.kind,
                    "lines": {name: line.as_json() for name, line in series.lines.items()},
                    "gaps": [Gap(gap.began, gap.ended, gap.why, gap.joules) for gap in series.gaps],
                }
                for series in chart.series
            ],
        }
    )


@routes.get("/history/table", response_class=Response)
async def table(
    here: Here,
    asked: Asked,
    columns: Names = "",
    step: int = 60,
) -> Response:
    """The same as CSV, in a step that is asked for: 1, 60, 300, 1800, 10800 or 86400 seconds, however long it is."""
    if step not in (1, *STEPS):
        raise errors.BadRequest(f"there is no step of {step} s", f"one of {', '.join(map(str, (1, *STEPS)))}")
    began, ended, keys = asked
    pieces = _pieces(here, keys, _columns(columns), began, ended, step)
    return StreamingResponse(pieces, media_type="text/csv; charset=utf-8")


async def _pieces(
    here: House, keys: Sequence[str], columns: Sequence[str], since: float, until: float, step: int
) -> AsyncIterator[bytes]:
    first = True
    since = max(since, await here.call(here.history.recorded_from) or until)
    at = int(since) // step * step
    while at < until:
        count = min(AT_ONCE, -(-int(until - at) // step) or 1)
        made = Plan(step, step, at, count)
        ask: Callable[[], Chart] = here.history.chart(keys, columns, at, made.ended, count, time.time(), made)
        yield _rows(await here.call(ask), step, first)
        first, at = False, made.ended


def _rows(chart: Chart, step: int, first: bool) -> bytes:
    """Lines of CSV; those in which nothing was read are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = list(dict.fromkeys(name for series in chart.series for name in series.lines))
    parts = {name: _parts(name, step) for name in names}
    if first:
        writer.writerow(["at", "subject", *(f"{name}{end}" for name in names for end, _ in parts[name])])
    for series in chart.series:
        cells = [_cells(series.lines.get(name), part) for name in names for _, part in parts[name]]
        for place, at in enumerate(chart.made.starts):
            row = [column[place] if column else None for column in cells]
            if any(cell is not None for cell in row):
                writer.writerow([at, series.subject, *row])
    return out.getvalue().encode()


def _parts(name: str, step: int) -> list[tuple[str, str]]:
    """(what follows the name in the heading, the part of a line), of a column."""
    how = next(kind.column(name).how for kind in KINDS.values() if name in kind.place)
    if how != "gauge":
        return [("", how)]
    return [("", "mean")] if step == 1 else [("", "mean"), ("_least", "least"), ("_most", "most")]


def _cells(line: Any, part: str) -> Sequence[object]:
    found: Sequence[object] = [] if line is None else getattr(line, part)
    return ["+".join(cell) if isinstance(cell, list) else cell for cell in found]


def _key(here: House, name: str) -> str:
    if name == HOST_KEY or name in here.history.subjects:
        return name
    return here.daemon.gpus.named(name)


def _columns(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    known = [column for kind in KINDS.values() for column in kind.place]
    for name in names:
        if name not in known:
            raise errors.BadRequest(f"there is no column {name[:40]!a}{errors.nearest(name, known)}", "docs/monitor.md")
    return names


@routes.get("/history/kept", response_model=Extent)
async def kept(here: Here) -> Response:
    """How much room the history takes, and how far back it goes."""
    settings = here.daemon.settings
    steps = await here.call(here.history.begins)
    return answer(
        {
            "bytes": here.history.archive.bytes(),
            "steps": {str(step): start for step, start in steps.items()},
            "keep_seconds_days": settings.keep_seconds_days,
            "keep_minutes_days": settings.keep_minutes_days,
        }
    )


@routes.get("/metrics", response_class=Response)
async def metrics(here: Here) -> Response:
    """Numbers of this moment, as Prometheus reads them."""
    await here.gpus_known()
    text = exposition.render(families(here.daemon, time.time()))
    return Response(text.encode(), media_type=exposition.TYPE)


@routes.get("/notices", response_model=Notices)
async def notices(
    here: Here,
    before: Annotated[int | None, Query(ge=1, le=ID_MAX)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    unseen: bool = False,
) -> Response:
    """What its owner should know of, the newest first. before: older than one. unseen: only what nobody has seen."""
    return answer({"notices": here.daemon.store.notices(before, limit, unseen)})


@routes.post("/notices/test", response_model=Tried)
async def test(here: Here, who: Admin) -> Response:
    """Tell something by each way that the settings name, and say what came of it."""
    if here.tell_test is None:
        raise errors.BadRequest(
            "the box tells nobody: none of notify_ntfy, notify_webhook and notify_command is set",
            'such as notify_ntfy = "https://ntfy.sh/a-word-nobody-guesses" in box.toml (docs/monitor.md)',
        )
    return answer({"outcomes": await here.tell_test()})


@routes.post("/notices/seen", response_model=Seen)
async def seen(here: Here, who: Who, wish: Seen) -> Response:
    """Somebody knows of all of them, up to this one."""
    here.wishes.see_notices(who, min(wish.up_to, ID_MAX))
    return answer({"up_to": wish.up_to})
