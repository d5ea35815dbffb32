"""PURE: a GPU as it is drawn. The page is rendered from it, and each frame of the live stream is one per GPU, so that
what the server writes and what the browser changes afterwards are the same words.

Colour is for trouble only: temperature by the card's own limits, memory when it is nearly full. A busy card, and one at
its power limit, is as it should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dashboard import figures, work
from runner import words
from runner.model import Gpu, Job, Sample

FULL, NEARLY_FULL = 0.97, 0.9  # of its memory
HOT, WARM = 5.0, 15.0  # degrees below where it slows down
HOT_CELSIUS, WARM_CELSIUS = 88.0, 80.0  # where the card does not say
PROCESSES_SHOWN = 2
STATES = {
    words.FREE: "Free",
    words.BUSY: "Busy",
    words.SHARED: "Shared",
    words.FOREIGN: "Foreign",
    words.DRAINING: "Draining",
    words.STUCK: "Stuck",
    words.GONE: "Lost",
    words.ASLEEP: "Asleep",
    words.UNKNOWN: "Unknown",
}
TONES = {
    words.FOREIGN: "amber",
    words.DRAINING: "amber",
    words.STUCK: "red",
    words.GONE: "red",
    words.UNKNOWN: "amber",
    words.BUSY: "blue",
    words.SHARED: "blue",
}
HELD_BACK = {  # reason -> (its badge, its tone, what it means)
    "hw_thermal": ("heat", "red", "the hardware slows down: the card is too hot"),
    "sw_thermal": ("heat", "amber", "the driver slows down: the card is at its temperature limit"),
    "power_brake": ("power brake", "red", "the power supply asks the card to slow down"),
}


def card(gpu: Gpu, jobs: Mapping[int, Job]) -> dict[str, Any]:
    """jobs: those that run, by id."""
    sample = gpu.sample or Sample(0.0)
    used, total = sample.memory_used_bytes, gpu.memory_bytes
    return {
        "uuid": gpu.uuid,
        "label": figures.NONE if gpu.index is None else f"GPU {gpu.index}",
        "index": gpu.index,
        "model": figures.model(gpu.name),
        "state": STATES.get(gpu.state, gpu.state),
        "tone": TONES.get(gpu.state, ""),
        "why": gpu.why,
        "util": figures.percent(sample.utilization),
        "util_share": _share(sample.utilization),
        "util_absent": _absent(gpu, "utilization"),
        "memory": figures.portion(used, total),
        "memory_share": _share(used / total if used is not None and total else None),
        "memory_tone": _memory_tone(used, total),
        "temperature": figures.NONE if sample.temperature_celsius is None else f"{sample.temperature_celsius:.0f} °C",
        "temperature_tone": _temperature_tone(sample),
        "power": _power(sample),
        "fan": "" if sample.fan is None else f"fan {sample.fan * 100:.0f} %",
        "clock": "" if sample.sm_clock_hertz is None else f"{sample.sm_clock_hertz / 1e9:.2f} GHz",
        "capped": "at its power limit" if "power_cap" in (sample.throttled_by or ()) else "",
        "jobs": [_job(jobs[each]) for each in gpu.jobs if each in jobs],
        "others": _others(gpu),
        "badges": badges(sample),
        "raw": [sample.utilization, sample.power_watts, sample.temperature_celsius, used],
    }


def badges(sample: Sample) -> list[dict[str, str]]:
    """What holds it back and should not; each word once."""
    found: dict[str, dict[str, str]] = {}
    for reason in sample.throttled_by or ():
        if reason in HELD_BACK:
            word, tone, means = HELD_BACK[reason]
            if word not in found or tone == "red":
                found[word] = {"text": word, "tone": tone, "title": means}
    if sample.recovery not in (None, "none"):
        found["recovery"] = {"text": f"needs {sample.recovery}", "tone": "red", "title": "the driver asks for this"}
    return list(found.values())


def _share(value: float | None) -> float:
    return 0.0 if value is None else round(min(max(value, 0.0), 1.0), 3)


def _absent(gpu: Gpu, name: str) -> str:
    return gpu.absent.get(name, "")


def _memory_tone(used: int | None, total: int | None) -> str:
    if used is None or not total or used / total < NEARLY_FULL:
        return ""
    return "red" if used / total >= FULL else "amber"


def _temperature_tone(sample: Sample) -> str:
    degrees, limit = sample.temperature_celsius, sample.slowdown_celsius
    if "hw_thermal" in (sample.throttled_by or ()):
        return "red"
    if degrees is None:
        return ""
    hot, warm = (HOT_CELSIUS, WARM_CELSIUS) if limit is None else (limit - HOT, limit - WARM)
    return "red" if degrees >= hot else "amber" if degrees >= warm else ""


def _power(sample: Sample) -> str:
    if sample.power_watts is None:
        return f"{figures.NONE} W"
    limit = "" if sample.power_limit_watts is None else f"/{sample.power_limit_watts:.0f}"
    return f"{sample.power_watts:.0f}{limit} W"


def _job(job: Job) -> dict[str, Any]:
    return {"id": job.id, "name": job.name, "user": job.user, "since": job.started_at, "path": f"/jobs/{job.id}"}


def veiled(card: dict[str, Any], jobs: Mapping[int, Job]) -> dict[str, Any]:
    """For who came by a link: without the commands of processes, and without ways to what they may not see."""
    others = "a process that is not the queue's" if card["others"] else ""
    shown = [{**each, "name": work.open_name(jobs[each["id"]]), "path": ""} for each in card["jobs"]]
    return {**card, "others": others, "why": "it is not free" if card["why"] else "", "jobs": shown}


def _others(gpu: Gpu) -> str:
    """Processes that the queue did not start, as far as they count as such."""
    foreign = [each for each in gpu.processes if each.job is None and each.kind != "graphics"]
    if gpu.state != words.FOREIGN and not gpu.foreign_bytes:
        return ""
    named = [f"{each.user or 'somebody'} {each.command}".strip() for each in foreign[:PROCESSES_SHOWN]]
    more = f" and {len(foreign) - PROCESSES_SHOWN} more" if len(foreign) > PROCESSES_SHOWN else ""
    return f"not of the queue: {'; '.join(named)}{more}" if named else ""
