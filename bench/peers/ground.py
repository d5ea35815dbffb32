"""What one peer is measured on: a folder of its own, a quiet environment, and the three measures that all share."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bench.common import NULL, Figure, against_yardstick, seconds
from bench.dispatch import gaps

PATIENCE = 120.0


class Absent(Exception):
    """The peer can't run here: what to install, or who to be."""


@dataclass(frozen=True)
class Ground:
    """env reaches the peer's servers, clients and jobs; stamp is the job of M3, None without a compiler."""

    peer: str
    folder: str
    env: dict[str, str]
    stamp: str | None

    def submit(self, *command: str, before: Callable[[], None] | None = None, note: str = "") -> Figure:
        """M1, over the same yardstick as ours; it has no bar."""
        name = f"peer {self.peer} M1 submit"
        figure = against_yardstick(name, lambda: self.run(*command, before=before), self.env, self.folder, 0, note=note)
        return replace(figure, bar=None, note=f"{figure.note}; {_load()}")

    def gap(self, finish: Callable[[list[str]], object]) -> list[Figure]:
        """M3: finish() runs the job that it is given, as often as a backlog is long, in one slot."""
        if self.stamp is None:
            return []
        times = f"{self.folder}/times"
        finish([self.stamp, times, "20"])
        found = sorted(gaps(times))
        told = f"p90 {found[int(len(found) * 0.9)]:.1f} ms, min {found[0]:.1f} ms, n {len(found)}; {_load()}"
        return [Figure(f"peer {self.peer} M3 end to next start", statistics.median(found), "ms", note=told)]

    def rate(self, jobs: int, taken: float, note: str) -> Figure:
        """M4: so many no-op jobs in so many seconds, from before the first was submitted."""
        return Figure(f"peer {self.peer} M4 of {jobs:,} jobs", jobs / taken, "/s", note=f"{note}; {_load()}")

    def run(self, *command: str, before: Callable[[], None] | None = None) -> float:
        return seconds(command, self.env, self.folder, before)

    def said(self, *command: str) -> str:
        return subprocess.check_output(command, env=self.env, cwd=self.folder, stdin=NULL, text=True, timeout=PATIENCE)

    @contextmanager
    def server(self, *command: str) -> Iterator[int]:
        """The pid of a process that stays in the foreground for a while; whatever happens, it is ended by that pid."""
        process = subprocess.Popen(command, env=self.env, cwd=self.folder, stdin=NULL, stdout=NULL, stderr=NULL)
        try:
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(done: Callable[[], bool], what: str, pause: float = 0.02) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"waited {PATIENCE:g} s for {what}")
        time.sleep(pause)


def _load() -> str:
    return f"load {os.getloadavg()[0]:.2f}"
