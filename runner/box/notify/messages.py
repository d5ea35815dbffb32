"""PURE: what is told elsewhere, and its words. Of a job they say its number, its name and how it ended: no arguments,
no line of its log, no path, since who runs the service reads them, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner import words
from runner.model import Job, Notice

FAILED, FINISHED = OF_JOBS = ("failed", "finished")
TITLES = {
    FAILED: "job failed",
    FINISHED: "job finished",
    "xid": "fault of a GPU",
    "gpu_lost": "GPU lost",
    "gpu_back": "GPU is back",
    "idle": "GPU held and idle",
    "stop_if_idle": "idle job is about to be ended",
    "stalled": "job seems to hang",
    "memory_creep": "memory creeps up",
    "hot": "GPU too hot",
    "power_brake": "power supply holds a GPU back",
    "ghost": "GPU counter is stuck",
    "pcie": "GPU has few lanes",
    "disk": "disk fills",
}
TEST = "test"
NAME_MAX, TEXT_MAX = 80, 500  # characters
FEW = 4  # ends of jobs that wait to be told; more become one message


@dataclass(slots=True, frozen=True)
class Message:
    kind: str  # of TITLES, or TEST
    severity: str  # critical | warning | job | info
    title: str
    text: str
    hint: str
    at: float
    job: int | None = None
    gpu: str | None = None
    finished: int = 0  # jobs that it tells the end of
    failed: int = 0


def of_notice(notice: Notice, box: str) -> Message:
    title = f"{box}: {TITLES.get(notice.kind, notice.kind)}"
    return Message(
        notice.kind, notice.severity, title, plain(notice.text), notice.hint, notice.at, notice.job, notice.gpu
    )


def of_end(job: Job, box: str, now: float) -> Message | None:
    """None: a person asked for that end, and needs not be told."""
    if job.state == words.CANCELLED:
        return None
    kind = FINISHED if job.state == words.SUCCEEDED else FAILED
    known = job.name and not job.adopts  # an adopted process is called after its command, arguments and all
    name = f" ({plain(job.name, NAME_MAX)})" if known else ""
    why = "" if job.reason is None else f": {_reason(job)}"
    ran = "" if job.started_at is None else f", after {span((job.ended_at or now) - job.started_at)}"
    text = f"job {job.id}{name} {kind}{ran}{why}"
    hint = f"`runner pull {job.id}` brings its outputs" if kind == FINISHED else f"`runner logs {job.id}`"
    severity = "info" if kind == FINISHED else "warning"
    at, counts = job.ended_at or now, (int(kind == FINISHED), int(kind == FAILED))
    return Message(kind, severity, f"{box}: job {job.id} {kind}", text, hint, at, job.id, None, *counts)


def a_test(box: str, now: float) -> Message:
    text = "this is a test: what the box notices comes here"
    return Message(TEST, "info", f"{box}: test", text, "`runner notices` shows all of them", now)


def merged(waiting: Sequence[Message], box: str) -> list[Message]:
    """Many ends of jobs at once, as of a sweep, become one message; everything else stays as it is."""
    ends = [each for each in waiting if each.kind in OF_JOBS]
    if len(ends) <= FEW:
        return list(waiting)
    finished, failed = sum(each.finished for each in ends), sum(each.failed for each in ends)
    one = Message(
        FAILED if failed else FINISHED,
        "warning" if failed else "info",
        f"{box}: {finished + failed} jobs have ended",
        f"{finished + failed} jobs have ended: {finished} finished, {failed} failed",
        "`runner ps` lists them",
        ends[-1].at,
        finished=finished,
        failed=failed,
    )
    return [one, *(each for each in waiting if each.kind not in OF_JOBS)]


def bounded(waiting: Sequence[Message], most: int) -> list[Message]:
    """As many as there is room for, in their order: of a flood the newest, but what is critical before all else."""
    ranked = sorted(range(len(waiting)), key=lambda at: (waiting[at].severity == "critical", at), reverse=True)
    return [waiting[at] for at in sorted(ranked[:most])]


def plain(text: str, most: int = TEXT_MAX) -> str:
    """One line without anything that is not text, and not too long."""
    line = "".join(c if c.isprintable() else " " for c in text).strip()
    return line if len(line) <= most else f"{line[: most - 3]}..."


def span(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _reason(job: Job) -> str:
    if job.reason == "exit_code":
        return f"exit code {job.exit_code}"
    return words.REASONS.get(job.reason or "", job.reason or "")
