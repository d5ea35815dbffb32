"""Made ready before a job may start: its environment, built while it waits, and its work tree, for the next few only.

The work happens in the background (threads under the daemon, at once in tests); what came of it is read by the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from runner.errors import Problem
from runner.model import Job

# Runs the first callable somewhere, then the second one on the loop's own thread with the error, if there was one.
Background = Callable[[Callable[[], object], Callable[[BaseException | None], None]], None]

BUILDS_AT_ONCE = 2


@dataclass(slots=True, frozen=True)
class Failure:
    """An environment or a work tree that could not be made: the jobs that need it end for this reason."""

    reason: str  # environment_failed | code_failed | disk_full
    detail: str
    job: int | None = None
    environment: str | None = None


class Preparation:
    """What stands ready, what is being made, what could not be made."""

    def __init__(
        self,
        ready: Callable[[str], bool],
        build: Callable[[str], None],
        make_tree: Callable[[int, str], object],
        remove_tree: Callable[[int], None],
        background: Background,
        trees_ahead: int,
        spare: Callable[[str], object] = lambda snapshot: None,
        label: Callable[[str], str] = lambda name: name,
    ) -> None:
        """spare: make another tree of a snapshot, for whoever submits it again. label: an environment, for people."""
        self._spare, self._label = spare, label
        self._ready, self._build = ready, build
        self._make_tree, self._remove_tree = make_tree, remove_tree
        self._background = background
        self._trees_ahead = trees_ahead
        self.laid_out: set[int] = set()
        self._busy: set[int] = set()  # jobs whose tree is being made or removed, by one hand at a time
        self._unwanted: set[int] = set()  # trees that go as soon as they are made
        self._standing: set[str] = set()  # environments known to be ready
        self.building: set[str] = set()
        self.failures: list[Failure] = []

    def stands(self, environment: str | None) -> bool:
        if environment is None or environment in self._standing:
            return True
        if environment not in self.building and self._ready(environment):
            self._standing.add(environment)
            return True
        return False

    def words(self, environments: Iterable[str]) -> dict[str, str]:
        """Environments that are not ready -> what is going on, for the schedule's reasons."""
        told = {}
        for name in environments:
            if self.stands(name):
                continue
            doing = "is being built" if name in self.building else "waits to be built"
            told[name] = f"its environment ({self._label(name)}) {doing}"
        return told

    def build(self, environments: Iterable[str]) -> None:
        """Begin with the environments that are wanted and not there, the first ones first."""
        for name in environments:
            if len(self.building) >= BUILDS_AT_ONCE:
                return
            if name not in self.building and not self.stands(name):
                self.building.add(name)
                self._background(lambda name=name: self._build(name), lambda error, name=name: self._built(name, error))  # type: ignore[misc]

    def lay_out(self, jobs: Sequence[Job]) -> None:
        """Make the work trees of the first few of these jobs, which are in the order in which they will start."""
        for job in jobs[: self._trees_ahead]:
            if job.snapshot is not None and job.id not in self.laid_out and job.id not in self._busy:
                self._busy.add(job.id)
                make = lambda job=job: self._make_tree(job.id, job.snapshot)  # noqa: E731
                self._background(make, lambda error, job=job: self._laid(job.id, error))  # type: ignore[misc]

    def began(self, job: Job) -> None:
        """A job runs: while nothing else wants its code, a spare tree of it is made for the next submit."""
        snapshot = job.snapshot
        if snapshot is not None and not self._busy:
            self._background(lambda: self._spare(snapshot), lambda error: None)

    def gone(self, environment: str) -> None:
        """It was removed: whoever wants it next has it built."""
        self._standing.discard(environment)

    def forget(self, job_id: int) -> None:
        """The job's attempt is over: its tree goes; a new attempt gets a fresh one."""
        if job_id in self.laid_out:
            self.laid_out.discard(job_id)
            self._busy.add(job_id)
            self._background(lambda: self._remove_tree(job_id), lambda error: self._removed(job_id))
        elif job_id in self._busy:
            self._unwanted.add(job_id)

    def _removed(self, job_id: int) -> None:
        self._busy.discard(job_id)
        self._unwanted.discard(job_id)

    def _built(self, name: str, error: BaseException | None) -> None:
        self.building.discard(name)
        if error is None:
            self._standing.add(name)
        else:
            self.failures.append(Failure(_reason(error, "environment_failed"), _said(error), environment=name))

    def _laid(self, job_id: int, error: BaseException | None) -> None:
        unwanted = job_id in self._unwanted
        self._removed(job_id)
        if error is None:
            self.laid_out.add(job_id)
            if unwanted:
                self.forget(job_id)
        elif not unwanted:
            self.failures.append(Failure(_reason(error, "code_failed"), _said(error), job=job_id))


def _reason(error: BaseException, otherwise: str) -> str:
    return "disk_full" if isinstance(error, Problem) and error.code == "disk_full" else otherwise


def _said(error: BaseException) -> str:
    """What happened, and what to type next."""
    if not isinstance(error, Problem):
        return f"{type(error).__name__}: {error}"
    return f"{error.message}\n  hint: {error.hint}" if error.hint else error.message
