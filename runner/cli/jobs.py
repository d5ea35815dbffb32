"""The queue: ps, cancel, hold, release, priority."""

from __future__ import annotations

import sys
import time

from runner import errors, words
from runner.cli import options, output, values
from runner.laptop import answers, boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from runner.laptop.client import Client

PS = f"""\
Usage: runner ps [OPTIONS] [IDS...]

The queue: jobs that wait or run, and the last 20 that ended. An array or a sweep is one line.

Options:
  -a, --all               every job there ever was
  --state STATE...        only these, such as running or failed,lost
  --no-group              each job of an array or a sweep on its own line
  -q, --quiet             ids only
{options.COMMON}
Examples:
  runner ps
  runner ps --state failed
  runner cancel $(runner ps -q --state queued)
"""
CANCEL = f"""\
Usage: runner cancel [OPTIONS] IDS...

End running jobs (asked first, then killed after their grace), take waiting ones out of the queue.

Options:
  --grace TIME            instead of each job's own; 0 kills at once
{options.COMMON}
Examples:
  runner cancel 42
  runner cancel 42-50 g60
  runner cancel --grace 0 42
"""
HOLD = f"""\
Usage: runner hold [OPTIONS] IDS...

Keep queued jobs from starting until `runner release`.

Options:
{options.COMMON}
Examples:
  runner hold 42
  runner hold g42
  runner release g42
"""
RELEASE = f"""\
Usage: runner release [OPTIONS] IDS...

Let jobs start that `runner hold` or `runner submit --hold` keeps from it.

Options:
{options.COMMON}
Examples:
  runner release 42
  runner release 42-50
  runner release g42
"""
PRIORITY = f"""\
Usage: runner priority [OPTIONS] IDS... PRIORITY

Move queued jobs: the higher number starts earlier. It is 0 unless asked otherwise; -1000 to 1000.

Options:
{options.COMMON}
Examples:
  runner priority 42 10
  runner priority g42 -5
  runner priority 42 43 0
"""
HEADINGS = ("ID", "STATE", "NAME", "USER", "AGE", "TIME", "GPUS", "")
GPU = HEADINGS.index("GPUS")  # the column that is there only where a job has any
MANY = 10  # jobs named one by one in a sentence; beyond, they are counted


# --- ps --------------------------------------------------------------------------------------------------------------


def ps(arguments: list[str]) -> int:
    given = options.parse(PS, arguments)
    api = boxes.open_box(given.get("--box"))
    asked = []
    if given.words:
        asked.append("ids=" + values.query(values.jobs(given.words, "runner ps")))
    if states := values.states(given.all("--state")):
        asked.append("state=" + ",".join(states))
    if "--all" in given:
        asked.append("all=1")
    if not {"--all", "--no-group", "--json", "--quiet"} & given.options.keys():
        asked.append("grouped=1")
    path = "/jobs" + ("?" + "&".join(asked) if asked else "")
    if "--all" in given and "--json" in given:
        return _pass_through(api, path)
    answer: dict[str, Any] = {"jobs": list(_streamed(api, path))} if "--all" in given else api.get(path)
    jobs = answer["jobs"]
    if "--json" in given:
        output.json(jobs)
    elif "--quiet" in given:
        for job in jobs:
            output.put(f"{job['id']}\n")
    else:
        groups = answer["groups"] if "groups" in answer else _groups(jobs, "--no-group" not in given)
        _table(jobs, {group["group"]: group for group in groups}, answer.get("gpus") or {})
    return 0


def _pass_through(api: Client, path: str) -> int:
    """JSON lines as they come: 10,000 jobs are not parsed only to be printed."""
    sys.stdout.flush()
    for piece in api.stream("GET", path):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return 0


def _streamed(api: Client, path: str) -> Iterator[dict[str, Any]]:
    rest, asked = b"", answers.Asked(api.box, "GET", path)
    for piece in api.stream("GET", path):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line:
                yield answers.of_shape(answers.read(line.decode("utf-8", "replace"), asked), "@Job", asked)


def _groups(jobs: list[dict[str, Any]], wanted: bool) -> Iterable[dict[str, Any]]:
    """The groups of jobs that came one by one."""
    found: dict[str, dict[str, Any]] = {}
    for job in jobs if wanted else ():
        if name := job.get("group"):
            shown = {field: job[field] for field in ("name", "user", "submitted_at")}
            group = found.setdefault(name, {**job, **shown, "group": name, "first_id": job["id"], "counts": {}})
            group["counts"][job["state"]] = group["counts"].get(job["state"], 0) + 1
    return found.values()


def _table(jobs: list[dict[str, Any]], groups: dict[str, dict[str, Any]], indices: dict[str, int]) -> None:
    """indices: UUID -> index of the box's GPUs."""
    if not jobs and not groups:
        output.say("no jobs; `runner submit train.py` makes one")
        return
    now = time.time()
    rows = [(int(job["id"]), _row(job, now, indices)) for job in jobs if job.get("group") not in groups]
    rows += [(int(group["first_id"]), _group_row(group, now)) for group in groups.values()]
    rows.sort(key=lambda row: row[0])
    table = [list(HEADINGS), *(row for _, row in rows)]
    if not any(row[GPU] for row in table[1:]):
        for row in table:
            del row[GPU]
    last = len(table[0]) - 1
    output.table(table[0], table[1:], gives_way=(last, 2, 3), painted=1)


def _group_row(group: dict[str, Any], now: float) -> list[str]:
    state = _group_state(group["counts"])
    why = f"; {group['why']}" if state == words.QUEUED and group.get("why") else ""
    age = output.span(now - group["submitted_at"])
    return [group["group"], state, group["name"], group["user"], age, "", "", count_text(group["counts"]) + why]


def _row(job: dict[str, Any], now: float, indices: dict[str, int]) -> list[str]:
    if job["state"] in words.FINISHED:
        last = output.ending(job) if job["state"] != words.SUCCEEDED else ""
    else:
        last = str(job.get("why") or "")
    name = job["name"] or output.line(job["command"])
    details = [f"{key}={value}" for key, value in (job.get("params") or {}).items()]
    if job.get("array_index") is not None:
        details.append(f"[{job['array_index']}]")
    name = " ".join([name, *details])
    return [str(job["id"]), job["state"], name, job["user"], *_ages(job, now), _gpus(job, indices), last]


def _gpus(job: dict[str, Any], indices: dict[str, int]) -> str:
    """The GPUs that it has or had (GPU 0,1), or how many it waits for (2 GPUs)."""
    allotted = job.get("allotted") or ()
    given = sorted(indices[uuid] for uuid in allotted if uuid in indices)
    if given and len(given) == len(allotted) and job["state"] != words.QUEUED:
        return "GPU " + ",".join(map(str, given))
    return output.many(job["gpus"], "GPU") if job.get("gpus") else ""


def _ages(job: dict[str, Any], now: float) -> tuple[str, str]:
    """(since it was submitted, how long it ran or has been running)."""
    age = output.span(now - job["submitted_at"])
    started = job.get("started_at")
    return age, output.span((job.get("ended_at") or now) - started) if started else ""


def _group_state(counts: dict[str, int]) -> str:
    """The state that tells most about many jobs: the liveliest, else the worst."""
    order = (words.RUNNING, words.STARTING, words.QUEUED, words.FAILED)
    ended = [state for state in words.FINISHED if state != words.SUCCEEDED]
    return next((state for state in (*order, *ended) if counts.get(state)), words.SUCCEEDED)


def count_text(counts: dict[str, int]) -> str:
    """100 jobs: 90 succeeded, 2 running, 8 queued"""
    order = (words.SUCCEEDED, *(state for state in words.STATES if state not in (words.SUCCEEDED, words.QUEUED)))
    parts = [f"{counts[state]} {state}" for state in (*order, words.QUEUED) if counts.get(state)]
    return f"{output.many(sum(counts.values()), 'job')}: {', '.join(parts)}"


# --- changing them ---------------------------------------------------------------------------------------------------


def cancel(arguments: list[str]) -> int:
    given = options.parse(CANCEL, arguments)
    grace = given.get("--grace")
    seconds = None if grace is None else 0.0 if grace == "0" else values.duration("--grace", grace)
    return _change(given, "cancel", {"grace": seconds}, _cancelled)


def _cancelled(job: dict[str, Any]) -> str:
    """What became of that wish. One that ended otherwise had done so before."""
    if job["state"] not in words.FINISHED:
        return "asked to end"
    return str(job["state"]) if job["state"] == words.CANCELLED else f"had ended already ({job['state']})"


def hold(arguments: list[str]) -> int:
    return _change(options.parse(HOLD, arguments), "hold", {}, lambda job: "held")


def release(arguments: list[str]) -> int:
    return _change(options.parse(RELEASE, arguments), "release", {}, lambda job: "released")


def priority(arguments: list[str]) -> int:
    given = options.parse(PRIORITY, _shield(arguments))
    if len(given.words) < 2:
        raise errors.BadRequest("runner priority needs jobs and a number", "such as `runner priority 42 10`")
    number = values.whole("the priority", given.words.pop(), -1_000_000)
    return _change(given, "priority", {"priority": number}, lambda job: f"priority {job['priority']}")


def _shield(arguments: list[str]) -> list[str]:
    """A negative number at the end is a priority, not an option."""
    last = arguments[-1] if arguments else ""
    return [*arguments[:-1], "--", last] if last[:1] == "-" and last[1:].isdigit() else arguments


def _change(given: options.Given, verb: str, body: dict[str, Any], said: Any) -> int:
    ids = values.jobs(given.words, f"runner {verb}")
    api = boxes.open_box(given.get("--box"))
    brief = "" if "--json" in given else "?brief=1"
    jobs = api.post(f"/jobs/{verb}{brief}", {"ids": ids, **body})["jobs"]
    if "--json" in given:
        output.json(jobs)
    elif len(jobs) <= MANY:
        for job in jobs:
            output.say(f"job {job['id']}: {said(job)}")
    else:
        counts: dict[str, int] = {}
        for job in jobs:
            counts[said(job)] = counts.get(said(job), 0) + 1
        output.say(", ".join(f"{output.many(count, 'job')} {text}" for text, count in counts.items()))
    return 0
