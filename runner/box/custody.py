"""Whose the folders of a job are, and how the daemon still gets at them. Blocking, for a worker's thread.

On an embedded box all is the daemon's own. On a provisioned one the work tree, the outputs and the checkpoint belong to
the jobs' user: they are given away, read and removed by way of the launcher.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from runner import errors
from runner.box import outputs
from runner.box.engines.systemd import Systemd
from runner.box.outputs import Listing
from runner.box.reader import Reader, Sizes, measured
from runner.box.trees import remove_tree
from runner.paths import StateDir

LOOK = "`journalctl -u gpubox-launcher` on the box may say more"


class Custody:
    """The embedded box's: nothing is anybody else's."""

    def __init__(self, state: StateDir) -> None:
        self.state = state

    def hand_over(self, job_id: int) -> None:
        """The tree that was laid out for a job becomes the job's."""

    def remove(self, path: str) -> None:
        """What was hidden (`.gone-*`) below trees/ or jobs/<id>/; what can't go now is for the next sweep."""
        remove_tree(path)

    def listing(self, job_id: int) -> Listing:
        return outputs.listing(self.state.job(job_id).out)

    def open_file(self, job_id: int, path: str) -> tuple[int, os.stat_result]:
        return outputs.open_file(self.state.job(job_id).out, path)

    def differing(self, job_id: int, hashes: Sequence[str]) -> list[str]:
        """The outputs that are not those with these hashes (SHA-256, in the order of the listing)."""
        root = self.state.job(job_id).out
        return _differing(outputs.listing(root), lambda path: outputs.open_file(root, path)[0], hashes)

    def sizes(self, job_id: int) -> Sizes:
        """Of a job that is over."""
        return measured(self.state.job(job_id).out)


@dataclass(frozen=True)
class _Measured:
    changed_at: int  # of the output folder, ns
    sizes: Sizes


class Launched(Custody):
    """A provisioned box's."""

    def __init__(self, engine: Systemd, report: Callable[[str], None]) -> None:
        super().__init__(engine.state)
        self._engine, self._report = engine, report
        self._measured: dict[int, _Measured] = {}  # each costs a process, and what is over changes no more

    def hand_over(self, job_id: int) -> None:
        try:
            self._engine.ask("make-tree", (job_id, 1), None)
        except OSError as error:
            raise errors.Problem(
                f"the code could not be given to the jobs' user: {error.strerror}",
                "see `journalctl -u gpubox-launcher`",
            ) from error

    def remove(self, path: str) -> None:
        try:
            ours = os.lstat(path).st_uid == os.geteuid()
        except FileNotFoundError:
            return
        if ours:
            remove_tree(path)
            if not os.path.lexists(path):  # else it was given away by half
                return
        job = self._job_of(path)
        self._measured.pop(job, None)
        try:
            self._engine.ask("remove", (job, 1), None)
        except OSError as error:
            self._report(f"{path} is not removed yet: {error.strerror}")

    def _job_of(self, path: str) -> int:
        """trees/.gone-<job>-..., jobs/<job>/.gone-..."""
        folder, name = os.path.split(path)
        return int(name.split("-")[1] if folder == self.state.trees else os.path.basename(folder))

    def listing(self, job_id: int) -> Listing:
        with self._reader(job_id) as reader:
            return reader.listing() if reader is not None else Listing([], {})

    def open_file(self, job_id: int, path: str) -> tuple[int, os.stat_result]:
        with self._reader(job_id) as reader:
            if reader is None:
                raise errors.NotFound(f"there is no output file {path!r}", "`runner show ID` lists a job's outputs")
            return reader.open_file(path)

    def differing(self, job_id: int, hashes: Sequence[str]) -> list[str]:
        with self._reader(job_id) as reader:
            if reader is None:
                return []
            return _differing(reader.listing(), lambda path: reader.open_file(path)[0], hashes)

    def sizes(self, job_id: int) -> Sizes:
        try:
            changed_at = os.stat(self.state.job(job_id).out).st_ctime_ns
        except FileNotFoundError:
            return Sizes(None, 0)
        known = self._measured.get(job_id)
        if known is None or known.changed_at != changed_at:
            with self._reader(job_id) as reader:
                sizes = reader.sizes() if reader is not None else Sizes(None, 0)
            known = self._measured[job_id] = _Measured(changed_at, sizes)
        return known.sizes

    @contextmanager
    def _reader(self, job_id: int) -> Iterator[Reader | None]:
        """None: there is no output folder."""
        if not os.path.isdir(self.state.job(job_id).out):
            yield None
            return
        try:
            with closing(Reader(self._engine.outputs(job_id, 1))) as reader:
                yield reader
        except OSError as error:
            raise errors.Problem(
                f"the outputs of job {job_id} can't be read: {error.strerror or error}", LOOK
            ) from error


def _differing(found: Listing, opened: Callable[[str], int], hashes: Sequence[str]) -> list[str]:
    if len(found.outputs) != len(hashes):
        raise errors.BadRequest(
            f"the job left {len(found.outputs)} outputs, {len(hashes)} are said to have arrived", "`runner pull` again"
        )
    differ = []
    for output, expected in zip(found.outputs, hashes, strict=True):
        with open(opened(output.path), "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                differ.append(output.path)
    return differ
