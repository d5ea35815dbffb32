"""PURE: jobs as they are listed, and the receipt of one: what it cost and what it did with what it had."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dashboard import figures
from runner import words
from runner.model import PRIORITY_MAX, PRIORITY_MIN, Job, Use

# State -> (its sign, its tone): never colour alone.
SIGNS = {
    words.QUEUED: ("◌", ""),
    words.STARTING: ("◔", "blue"),
    words.RUNNING: ("●", "blue"),
    words.SUCCEEDED: ("✓", "green"),
    words.FAILED: ("✕", "red"),
    words.CANCELLED: (figures.NONE, ""),
    words.TIMED_OUT: ("◷", "amber"),
    words.OUT_OF_MEMORY: ("▲", "red"),
    words.LOST: ("?", "red"),
}
IDLE_SHARE, IDLE_TOLD = 0.25, 120.0  # of its time, and seconds, from which on it is worth advice
ROOM_SHARE = 0.5  # of the card's memory, below which a batch could be larger
SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {  # of rows; what is not known comes below all
    "id": lambda row: row["id"],
    "name": lambda row: row["name"].lower(),
    "user": lambda row: row["user"],
    "state": lambda row: row["order"],
    "started": lambda row: row["started_at"] or 0.0,
    "time": lambda row: row["seconds"] or 0.0,
    "use": lambda row: -1.0 if row["busy"] is None else row["busy"],
    "peak": lambda row: row["peak_bytes"] or -1,
    "energy": lambda row: -1.0 if row["joules"] is None else row["joules"],
}


def state(name: str) -> dict[str, str]:
    sign, tone = SIGNS[name]
    return {"sign": sign, "tone": tone, "text": name.replace("_", " ")}


def seconds(job: Job) -> float | None:
    """How long it has run; None while it runs, or when it never did."""
    return job.ended_at - job.started_at if job.started_at is not None and job.ended_at is not None else None


def row(job: Job, uses: Sequence[Use], indices: Mapping[str, int], mine: bool = True) -> dict[str, Any]:
    """indices: UUID -> index of the GPUs that are there. mine: whoever looks may end it, and the like."""
    return {
        "id": job.id,
        "name": job.name,
        "user": job.user,
        "group": job.group,
        "state": state(job.state),
        "finished": job.finished,
        "held": job.held,
        "why": job.why,
        "reasons": reasons(job.why),
        "wants": wants(job),
        "gpus": ", ".join(sorted((str(indices.get(uuid, "?")) for uuid in job.allotted), key=lambda n: (len(n), n))),
        "submitted_at": job.submitted_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "ends_at": job.started_at + job.expected_seconds
        if job.started_at and job.expected_seconds and not job.finished
        else None,
        "order": words.STATES.index(job.state),
        "seconds": seconds(job),
        "time": figures.span(seconds(job)),
        "busy": busy(uses),
        "util": figures.percent(busy(uses)),
        "peak_bytes": peak(uses),
        "peak": figures.size(peak(uses)),
        "joules": joules(uses),
        "energy": figures.energy(joules(uses)),
        "money": money(uses),
        "hottest": "" if hottest(uses) is None else f"{hottest(uses):.0f} °C",
        "reason": ending(job),
        "priority": job.priority,
        "cancelling": job.cancel_requested_at is not None and not job.finished,
        "mine": mine,
        "can": " ".join(can(job, mine)),
    }


def open_name(job: Job) -> str:
    """A job's name for who came by a link: that of an adopted process is its command."""
    return "an adopted process" if job.adopts else job.name


def open_reason(job: Job) -> str:
    """Why it waits, for who came by a link. The full reason may name the command of a process that is in the way."""
    if job.state != words.QUEUED:
        return ""
    if job.held:
        return "held"
    return f"waits for job {job.after[0].job}" if job.after else f"waits for {wants(job)}"


def veiled(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """The row for who came by a link."""
    short = open_reason(job)
    return {**row, "name": open_name(job), "why": short, "reasons": (short, "")}


def can(job: Job, mine: bool = True) -> list[str]:
    """What somebody may want to do with it now, as the page's buttons call it."""
    if job.finished:
        return [] if job.adopts else ["rerun"]
    if not mine:
        return []
    if job.state == words.QUEUED:
        return ["cancel", "release" if job.held else "hold"]
    return ["cancel", "kill"]


def moves(queue: Sequence[Job], at: int) -> dict[str, int | None]:
    """The priority that brings a job of the queue to its top, before the one above or after the one below it; None
    where there is none. Among equals the older one is first."""
    job = queue[at]

    def before(other: Job) -> int | None:
        wanted = other.priority + (job.id > other.id)
        return wanted if wanted <= PRIORITY_MAX else None

    def after(other: Job) -> int | None:
        wanted = other.priority - (job.id < other.id)
        return wanted if wanted >= PRIORITY_MIN else None

    return {
        "top": before(queue[0]) if at else None,
        "up": before(queue[at - 1]) if at else None,
        "down": after(queue[at + 1]) if at + 1 < len(queue) else None,
    }


def wants(job: Job) -> str:
    """2 GPUs (3090), 8.0 GiB each"""
    if not job.gpus:
        return figures.many(job.cpus, "core")
    kind = f" ({job.gpu_type})" if job.gpu_type else ""
    memory = f", {figures.size(job.gpu_memory_bytes)}" if job.gpu_memory_bytes else ""
    return f"{figures.many(job.gpus, 'GPU')}{kind}{memory}{' each' * bool(memory and job.gpus > 1)}"


def reasons(why: str) -> tuple[str, str]:
    """Why it waits: in short, and what is to be said of each GPU."""
    short, colon, more = why.partition(": ")
    return short, more if colon else ""


def ending(job: Job) -> str:
    """Why it ended as it did; empty when all went well."""
    if job.reason is None or job.reason == "cancelled":
        return ""
    if job.reason == "exit_code":
        return f"exit code {job.exit_code}"
    return words.REASONS.get(job.reason, job.reason)


# --- what was used ---


def busy(uses: Iterable[Use]) -> float | None:
    found = list(uses)
    measured = sum(use.measured_seconds for use in found)
    return sum(use.busy_seconds for use in found) / measured if measured else None


def joules(uses: Iterable[Use]) -> float | None:
    known = [use.energy_joules for use in uses if use.energy_joules is not None]
    return sum(known) if known else None


def peak(uses: Iterable[Use]) -> int | None:
    return max((use.peak_bytes for use in uses if use.peak_bytes is not None), default=None)


def hottest(uses: Iterable[Use]) -> float | None:
    return max((use.hottest_celsius for use in uses if use.hottest_celsius is not None), default=None)


def money(uses: Sequence[Use]) -> str:
    known = [use.cost for use in uses if use.cost is not None]
    return figures.money(sum(known), uses[0].currency) if known else ""


def receipt(job: Job, uses: Sequence[Use], memory_bytes: int | None, now: float) -> list[dict[str, str]]:
    """Lines of {name, value, note, title, tone}. memory_bytes: of the smallest GPU that it had."""
    lines = [_line("Ran for", _ran(job, now), title="from its start to its end, of the last attempt")]
    if not uses:
        return lines
    idle = sum(use.idle_seconds for use in uses)
    heat, brake = sum(use.heat_seconds for use in uses), sum(use.brake_seconds for use in uses)
    guess = "a guess: it shared a GPU" if any(use.shared for use in uses) else ""
    lines.append(_line("Energy", figures.energy(joules(uses)), guess, "by the driver's own counter"))
    if cost := money(uses):
        lines.append(_line("Cost", cost, "", "by the tariff of its time"))
    lines.append(
        _line("GPU busy", figures.percent(busy(uses)), title="share of time in which a kernel ran; not how well")
    )
    lines.append(_line("GPU idle", figures.span(idle), title="time with less than 5 % to do, of all its GPUs"))
    of = f"of {figures.size(memory_bytes)}" if memory_bytes else ""
    lines.append(_line("Peak memory", figures.size(peak(uses)), of, "the most that it held on one GPU"))
    if (top := hottest(uses)) is not None:
        lines.append(_line("Hottest", f"{top:.0f} °C", title="the highest temperature of its GPUs meanwhile"))
    for name, spent, tone in (("Held back by heat", heat, "amber"), ("Held back by the power supply", brake, "red")):
        if spent >= 1:
            lines.append(_line(name, figures.span(spent), title="as the driver counted", tone=tone))
    for code, count in _xids(uses).items():
        lines.append(
            _line(f"Xid {code}", figures.many(count, "time"), title="a fault that the driver laid to it", tone="red")
        )
    return lines


def advice(job: Job, uses: Sequence[Use], memory_bytes: int | None) -> list[str]:
    """What its owner could do better next time, if anything."""
    found = []
    measured = sum(use.measured_seconds for use in uses)
    idle = sum(use.idle_seconds for use in uses)
    if measured and idle >= IDLE_TOLD and idle / measured >= IDLE_SHARE:
        found.append(
            f"Its GPU had nothing to do for {idle / measured * 100:.0f} % of the time: "
            "more workers that load data, or data nearer by, may help."
        )
    top = peak(uses)
    if job.state == words.SUCCEEDED and top and memory_bytes and top < memory_bytes * ROOM_SHARE:
        if job.shares:
            return found
        found.append(
            f"It held {figures.size(top)} of {figures.size(memory_bytes)}: a batch could be larger, or, with "
            f"--gpu-mem {math.ceil(top * 1.1 / figures.GIB)}G, others could use the rest."
        )
    return found


def _xids(uses: Iterable[Use]) -> dict[str, int]:
    found: dict[str, int] = {}
    for use in uses:
        for code, count in use.xids.items():
            found[code] = found.get(code, 0) + count
    return found


def _ran(job: Job, now: float) -> str:
    if job.started_at is None:
        return figures.NONE
    return figures.span((job.ended_at or now) - job.started_at)


def _line(name: str, value: str, note: str = "", title: str = "", tone: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "note": note, "title": title, "tone": tone}
