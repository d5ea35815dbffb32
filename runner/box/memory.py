"""Memory back to the system after many jobs: the allocator keeps what it had at the peak unless it is asked."""

from __future__ import annotations

import ctypes
import gc

MANY = 500  # unfinished jobs at once, after which there is something to give back


class Peak:
    """How full the queue was since it was last empty."""

    def __init__(self) -> None:
        self._jobs = 0

    def seen(self, jobs: int) -> None:
        self._jobs = max(self._jobs, jobs)
        if jobs == 0:
            if self._jobs >= MANY:
                give_back()
            self._jobs = 0


def give_back() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)
