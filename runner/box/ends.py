"""PURE but for one reading: why a job ended, from its exit record and the tail of its log."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from runner.model import Exit

TAIL = 16 << 10
DETAIL_MAX = 300
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_DISK_FULL = re.compile(r"No space left on device|Errno 28|Disk quota exceeded")

# What libraries say that found no memory on a GPU and gave up. Each is text of the GPU alone: the host's memory, too,
# is exhausted in words like these. The gaps are bounded, or a line of 16 KiB could be made to take minutes.
_GPU_FULL = re.compile(
    "|".join(
        (
            r"\bCUDA out of memory\. Tried to allocate|Error: CUDA out of memory",  # PyTorch
            # PyTorch, NCCL, ggml, ONNX Runtime, RMM, TensorRT
            r"(?i:\bCUDA (?:runtime )?(?:error|failure|failed with error)\b.{0,300}\bout of memory)",
            r"\b(?:CU[A-Z]{1,20}_STATUS|CUFFT)_ALLOC_FAILED\b",  # cuBLAS, cuDNN, ...
            r"\bOOM when allocating tensor\b.{0,300}\bdevice:GPU:\d",  # TensorFlow
            r"\bdevice:GPU:\d.{0,300}\bDst tensor is not initialized",  # TensorFlow: nowhere to copy it to
            # XLA, of JAX and TensorFlow
            r"\b(?:RESOURCE_EXHAUSTED|Resource exhausted): Out of memory while trying to allocate",
            r"\bcupy\.cuda\.memory\.OutOfMemoryError\b|\bcudaErrorMemoryAllocation\b",  # CuPy; Thrust, XGBoost
            r"\bstd::bad_alloc: out_of_memory: (?:CUDA|RMM)\b|\bRMM_ERROR_OUT_OF_MEMORY\b",
            r"(?:Error|Exception)\b.{0,300}\bCUDA_ERROR_OUT_OF_MEMORY\b",  # Numba and others
            r"\bcu(?!\w{0,40}Host)\w{1,40}(?: retry)? failed: out of memory",  # ggml, PyCUDA
        )
    )
)
# What they also log when they go on, with less or in another way: it tells only if nothing else went wrong after it.
_GPU_SHORT = re.compile(
    r"\bCUDA_ERROR_OUT_OF_MEMORY\b|\bAllocator \(GPU_\d+_bfc\) ran out of memory|\bCuda Runtime \(out of memory\)"
)
_HARMLESS = re.compile(r"\bbytes on host: CUDA_ERROR|\bis not a failure\b|\bmay not be fatal\b")
_ERROR = re.compile(r"[\w.]{0,200}(?:Error|Exception|Interrupt)(?::|$)")
_OF_MEMORY = re.compile(r"(?i)out of memory|\bOOM\b|resource.?exhausted|failed to allocate")


def explain(end: Exit, tail: str) -> Exit:
    """The end with the line of the log that shows its reason, and the reason that line names."""
    if end.reason not in ("exit_code", "signal"):
        return end
    lines = [line for line in _ESCAPES.sub("", tail.replace("\r", "\n")).splitlines() if line.strip()]
    if not lines:
        return end
    reason, line = _told(lines) or (end.reason, lines[-1])
    return replace(end, reason=reason, detail="; ".join(filter(None, (_line(line), end.detail))))


def _told(lines: list[str]) -> tuple[str, str] | None:
    """(the reason, the line that names it): of all such lines the one nearest to the end."""
    other = False  # something else went wrong after the line
    for line in reversed(lines):
        if _DISK_FULL.search(line):
            return "disk_full", line
        if (_GPU_FULL.search(line) or (not other and _GPU_SHORT.search(line))) and not _HARMLESS.search(line):
            return "cuda_out_of_memory", line
        other = other or bool(_ERROR.match(line) and not _OF_MEMORY.search(line))
    return None


def explained(end: Exit, log: str) -> Exit:
    """`explain` with the tail of the log at that path; an end that needs no explaining reads nothing."""
    if end.reason not in ("exit_code", "signal"):
        return end
    try:
        # Not waiting: a job may have put a pipe into its place.
        fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return end
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, TAIL, max(size - TAIL, 0))
    except OSError:  # a folder or a pipe
        return end
    finally:
        os.close(fd)
    return explain(end, tail.decode(errors="replace"))


def _line(text: str) -> str:
    text = text.strip()
    return text if len(text) <= DETAIL_MAX else f"{text[:DETAIL_MAX]}…"
