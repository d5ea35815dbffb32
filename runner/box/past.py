"""PURE: what past runs of the same program say about the next one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from runner import words
from runner.box.gpus.placement import GIB, gib
from runner.box.store import Past
from runner.model import JobSpec

RUNS = 5  # the last ones that count
MARGIN = 1.1  # of memory, beyond what was seen


def program(spec: JobSpec) -> str:
    """Names what a job runs, whatever its arguments: the project and its script, or the first words of its command."""
    what = spec.script or " ".join(spec.command[:2])
    return hashlib.sha256(f"{spec.project}\0{what}".encode(errors="surrogateescape")).hexdigest()[:32]


def expected_seconds(past: Sequence[Past]) -> float | None:
    """How long it is likely to run: the median of the last that succeeded. past: the newest first."""
    took = sorted([each.seconds for each in past if each.state == words.SUCCEEDED and each.seconds is not None][:RUNS])
    return (took[(len(took) - 1) // 2] + took[len(took) // 2]) / 2 if took else None


def notes(spec: JobSpec, past: Sequence[Past], largest_bytes: int) -> list[str]:
    """What whoever submits it should know about the GPU memory that it used. largest_bytes: of the box's GPUs."""
    last = next((each for each in past if each.gpu_peak_bytes), None)
    if last is None or last.gpu_peak_bytes is None or not spec.gpus:
        return []
    used = f"its last run, job {last.job}, used {gib(last.gpu_peak_bytes)} GiB of GPU memory"
    enough = -(-int(last.gpu_peak_bytes * MARGIN) // GIB)
    if enough * GIB > largest_bytes:
        return [used]
    if spec.gpu_memory_bytes and last.gpu_peak_bytes > spec.gpu_memory_bytes:
        return [f"{used}, more than the {gib(spec.gpu_memory_bytes)} GiB that this one says; --gpu-mem {enough}G"]
    if not spec.gpu_memory_bytes and not spec.exclusive:
        return [f"{used}; with --gpu-mem {enough}G others could share the GPU"]
    return [used]
