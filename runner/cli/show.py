"""One job: show, why."""

from __future__ import annotations

from runner import words
from runner.cli import options, output, usage, values
from runner.laptop import boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.laptop.client import Client

SHOW = f"""\
Usage: runner show [OPTIONS] IDS...

Everything about a job: what was asked, what became of it, each attempt, its outputs.

Options:
  --files                 the files of its snapshot
{options.COMMON}
Examples:
  runner show 42
  runner show 42 --files
  runner show 42 --json
"""
WHY = f"""\
Usage: runner why [OPTIONS] IDS...

Why a job waits, or how it ended, in a sentence.

Options:
{options.COMMON}
Examples:
  runner why 42
  runner why g42
  runner why 42 --json
"""
SAID = ("why", "detail")  # these may have several lines, as a resolver's words have
MARGIN = 16


def show(arguments: list[str]) -> int:
    given = options.parse(SHOW, arguments)
    ids = values.jobs(given.words, "runner show")
    api = boxes.open_box(given.get("--box"))
    for position, job_id in enumerate(_each(api, ids)):
        if "--files" in given:
            _show_files(api.get(f"/jobs/{job_id}/files"), "--json" in given)
            continue
        found = api.get(f"/jobs/{job_id}")
        if "--json" in given:
            output.json(found)
            continue
        output.put("\n" if position else "")
        _show_job(found)
    return 0


def _each(api: Client, ids: list[int | str]) -> list[int]:
    """Job numbers; a group is asked for its jobs."""
    if all(isinstance(part, int) for part in ids):
        return [int(part) for part in ids]
    return [int(job["id"]) for job in api.get(f"/jobs?ids={values.query(ids)}")["jobs"]]


def _show_files(manifest: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.json(manifest)
        return
    rows = [[oct(mode)[-3:], str(size), path] for path, (mode, size, _) in manifest["files"].items()]
    rows += [["link", "-", f"{path} -> {target}"] for path, target in manifest["links"].items()]
    rows += [["dir", "-", f"{path}/"] for path in manifest["dirs"]]
    output.table(("MODE", "BYTES", "FILE"), sorted(rows, key=lambda row: row[2]), gives_way=())


def _show_job(found: dict[str, Any]) -> None:
    job, spec, gpus = found["job"], found["spec"], found.get("gpus") or {}
    state = output.state(job["state"])
    output.put(f"job {job['id']}  {state}  {output.clean(job['name'])}\n")
    files = found.get("files") or {}
    why, detail = str(found.get("why") or ""), str(job.get("detail") or "")
    facts = [
        ("why", why),
        ("ended", output.ending(job) if job["state"] in words.FINISHED else ""),
        ("detail", "" if detail in why else detail),
        ("command", "" if job.get("adopts") else output.line(job["command"])),  # an adopted one's waits for it
        ("directory", spec.get("directory") or ("the project's root" if spec.get("snapshot") else "")),
        ("project", job.get("project")),
        (
            "files",
            f"{output.many(files.get('count', 0), 'file')}, {output.size(files.get('bytes', 0))}" if files else "",
        ),
        ("snapshot", job.get("snapshot")),
        ("environment", job.get("environment") or spec.get("environment")),
        ("process", f"{job['adopts'][0]}, adopted: watched, never ended" if job.get("adopts") else ""),
        ("needs", _needs(job)),
        ("expected", f"to run for about {output.span(job['expected_seconds'])}" if job.get("expected_seconds") else ""),
        ("GPUs", ", ".join(_called(uuid, gpus, model=True) for uuid in job.get("allotted") or ())),
        ("GPU memory", _peak(job, gpus)),
        ("used", usage.total(found.get("uses") or ())),
        ("user", job["user"]),
        ("group", job.get("group")),
        ("parameters", ", ".join(f"{key}={value}" for key, value in (job.get("params") or {}).items())),
        ("waits for", ", ".join(f"{after['job']}{':any' * after['any_end']}" for after in spec.get("after") or ())),
        ("variables", " ".join(sorted(spec.get("env") or ()))),
        ("secrets", " ".join(sorted(spec.get("secrets") or ()))),
        ("priority", str(job["priority"]) if job.get("priority") else ""),
        ("retries", _retries(spec)),
        ("submitted", output.moment(job["submitted_at"])),
        ("brought home", output.moment(job["fetched_at"]) if job.get("fetched_at") else ""),
    ]
    for name, text in facts:
        if text:
            output.put(f"  {name:<13} {output.lines(text, MARGIN) if name in SAID else output.clean(str(text))}\n")
    for attempt in found.get("attempts") or ():
        output.put(f"  {'attempt ' + str(attempt['number']):<13} {output.clean(_attempt(attempt, gpus))}\n")
        for use in found.get("uses") or ():
            if use["attempt"] == attempt["number"]:
                said = f"{_called(use['gpu'], gpus)}: {usage.words(use)}"
                output.put(f"  {'':<13} {output.clean(said)}\n")
    for position, entry in enumerate(found.get("outputs") or ()):
        label = "" if position else "outputs"
        output.put(f"  {label:<13} {output.clean(entry['path'])} ({output.size(entry['size'])})\n")


def _needs(job: dict[str, Any]) -> str:
    parts = [output.many(job["cpus"], "core")]
    if job.get("memory_bytes"):
        parts.append(f"{output.size(job['memory_bytes'])} of memory")
    if job.get("gpus"):
        parts.append(_gpus(job))
    if job.get("time_limit"):
        parts.append(f"at most {output.span(job['time_limit'])}")
    if job.get("stop_if_idle"):
        parts.append(f"ended when idle for {output.span(job['stop_if_idle'])}")
    return ", ".join(parts)


def _gpus(job: dict[str, Any]) -> str:
    """2 GPUs (3090) with 8 GiB each, which others may share"""
    text = output.many(job["gpus"], "GPU")
    if job.get("gpu_type"):
        text += f" ({job['gpu_type']})"
    memory, floor = job.get("gpu_memory_bytes"), job.get("gpu_floor_bytes")
    if memory:
        text += f" with {output.portion(memory, None)}" + " each" * (job["gpus"] > 1)
    if floor is not None:
        return f"{text}, next alone on more than {output.portion(floor, None)}"
    return text + (", alone" if job.get("exclusive") else ", which others may share") * bool(memory)


def _called(uuid: str, gpus: dict[str, Any], model: bool = False) -> str:
    """GPU 0 (RTX 3090), or without the model; by its UUID when it is no longer there."""
    gpu = gpus.get(uuid)
    if gpu is None:
        return uuid
    name = uuid if gpu.get("index") is None else f"GPU {gpu['index']}"
    return f"{name} ({output.model(gpu['name'])})" if model else name


def _peak(tried: dict[str, Any], gpus: dict[str, Any]) -> str:
    """peak 9.1 of 24 GiB on GPU 0: of a job or an attempt"""
    if tried.get("gpu_peak_bytes") is None:
        return ""
    uuids = tried.get("allotted") or ()
    sizes = {gpus[uuid].get("memory_bytes") if uuid in gpus else None for uuid in uuids}
    where = " or ".join(_called(uuid, gpus) for uuid in uuids)
    text = f"peak {output.portion(tried['gpu_peak_bytes'], sizes.pop() if len(sizes) == 1 else None)}"
    return f"{text} on {where}" if where else text


def _retries(spec: dict[str, Any]) -> str:
    parts = []
    if spec.get("retries"):
        only = ", ".join(spec.get("retry_on") or ())
        parts.append(f"up to {spec['retries']}" + (f", only for {only}" if only else ""))
    if spec.get("requeue"):
        parts.append("again after a reboot")
    return "; ".join(parts)


def _attempt(attempt: dict[str, Any], gpus: dict[str, Any]) -> str:
    parts = [attempt["state"], f"from {output.moment(attempt.get('started_at') or attempt['created_at'])}"]
    if attempt.get("started_at") and attempt.get("ended_at"):
        parts.append(f"for {output.span(attempt['ended_at'] - attempt['started_at'])}")
    if attempt.get("gpu_peak_bytes") is not None:
        parts.append(_peak(attempt, gpus))
    elif attempt.get("allotted"):
        parts.append("on " + ", ".join(_called(uuid, gpus) for uuid in attempt["allotted"]))
    parts += [text for text in (output.ending(attempt), attempt.get("detail")) if text]
    return ", ".join(parts)


def why(arguments: list[str]) -> int:
    given = options.parse(WHY, arguments)
    ids = values.jobs(given.words, "runner why")
    api = boxes.open_box(given.get("--box"))
    numbers = _each(api, ids)
    for job_id in numbers:
        found = api.get(f"/jobs/{job_id}/why")
        if "--json" in given:
            output.json(found)
        else:
            before = f"job {job_id}: " if len(numbers) > 1 else ""
            output.put(f"{before}{output.lines(str(found['why']), 2)}\n")
    return 0
