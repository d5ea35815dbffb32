"""What may go: logs, outputs that were brought home, code and environments that nobody needs, by age and by size.

Never the log of an unfinished job. Never outputs that nobody has fetched, unless somebody asks for exactly that. A
checkpoint goes with the outputs of a job that succeeded; a failed job keeps its own, because it may be all that is left
of days of training. Decided by `expired`, which is pure; a removal is a rename, after which nobody finds it, and then
the slow part, in a thread.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner import words
from runner.box.code import Blobs
from runner.box.custody import Custody
from runner.box.daemon import Daemon
from runner.box.envs import READY, Environments
from runner.box.settings import DAY
from runner.errors import BadRequest, Busy
from runner.paths import JobDir

PIN_SECONDS = DAY  # contents that somebody asked about within it are about to be submitted
KEY_SECONDS = 7 * DAY  # idempotency keys are remembered this long
HIDDEN = ".gone-"
NAMED_MAX = 100  # jobs whose outputs nobody has fetched, as far as they are named one by one


@dataclass(slots=True, frozen=True)
class Candidate:
    """Something that may go."""

    kind: str  # logs | outputs | unfetched | envs | trees | code
    what: str
    bytes: int
    at: float  # when it was last of use
    paths: Sequence[str] = ()
    job: int | None = None


@dataclass(slots=True, frozen=True)
class Limit:
    seconds: float
    bytes: float = float("inf")


@dataclass
class Cleaning:
    """What is asked to go. Naming none of the kinds means all of them but `unfetched`."""

    dry_run: bool = False
    older_than_days: float | None = None  # instead of what the settings say
    logs: bool = False
    outputs: bool = False
    unfetched: bool = False  # outputs that nobody has brought home
    envs: bool = False
    code: bool = False

    def wants(self, kind: str) -> bool:
        named = self.logs or self.outputs or self.unfetched or self.envs or self.code
        return bool(getattr(self, kind)) if named else kind != "unfetched"


@dataclass(slots=True)
class Cleaned:
    removed: list[Candidate] = field(default_factory=list)
    kept: list[Candidate] = field(default_factory=list)  # outputs that nobody has fetched

    def as_json(self) -> dict[str, Any]:
        return {
            "removed": [{"kind": each.kind, "what": each.what, "bytes": each.bytes} for each in self.removed],
            "kept_unfetched": {
                "count": len(self.kept),
                "bytes": sum(each.bytes for each in self.kept),
                "jobs": sorted(each.job for each in self.kept if each.job is not None)[:NAMED_MAX],
            },
        }


def expired(candidates: Iterable[Candidate], limit: Limit, now: float) -> list[Candidate]:
    """PURE: those too old, and of the rest the oldest, until what stays is small enough."""
    ordered = sorted(candidates, key=lambda each: each.at)
    total = sum(each.bytes for each in ordered)
    gone = []
    for each in ordered:
        if now - each.at < limit.seconds and total <= limit.bytes:
            break
        gone.append(each)
        total -= each.bytes
    return gone


@dataclass(slots=True, frozen=True)
class _Ended:
    """A finished job, as far as its files go."""

    job: int
    ended_at: float
    fetched_at: float | None
    removed_at: float | None
    succeeded: bool


class Retention:
    def __init__(
        self,
        daemon: Daemon,
        blobs: Blobs,
        environments: Environments,
        custody: Custody,
        call: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        """call: runs something blocking in a thread."""
        self._daemon, self._blobs, self._environments, self._call = daemon, blobs, environments, call
        self._custody = custody
        self._state = daemon.settings.state
        self._one_at_a_time = asyncio.Lock()

    async def keep_house(self) -> None:
        """What the settings say, from time to time."""
        self._daemon.keep_ballast()
        self._daemon.store.forget_keys(time.time() - KEY_SECONDS)
        await self.clean(Cleaning())

    async def clean(self, wish: Cleaning) -> dict[str, Any]:
        days = wish.older_than_days
        if days is not None and not (math.isfinite(days) and days >= 0):
            raise BadRequest(f"older_than_days is {days}; it takes 0 or more")
        async with self._one_at_a_time:
            now = time.time()
            ended = self._ended(now)
            cleaned: Cleaned = await self._call(lambda: self._decide(wish, ended, now))
            cleaned.removed += self._strays()
            if not wish.dry_run:
                for each in cleaned.removed:
                    await self._remove(each, now)
            if wish.wants("code"):
                await self._collect(cleaned, wish.dry_run)
            if wish.dry_run:
                return cleaned.as_json()
            freed = sum(each.bytes for each in cleaned.removed)
            if freed:
                self._daemon.report(f"cleaned: {len(cleaned.removed)} things of {freed} bytes")
            return cleaned.as_json()

    # --- deciding ---

    def _ended(self, now: float) -> list[_Ended]:
        rows = self._daemon.store.endings(now)
        states = self._daemon.store.states(row[0] for row in rows)
        return [_Ended(*row, succeeded=states[row[0]] == words.SUCCEEDED) for row in rows]

    def _decide(self, wish: Cleaning, ended: Sequence[_Ended], now: float) -> Cleaned:
        """Reads the disk, so it runs in a thread."""
        settings = self._daemon.settings
        cleaned = Cleaned()
        for each in ended:
            for leftover in _leftovers(self._state.job(each.job)):
                self._custody.remove(leftover)
        if wish.wants("logs"):
            limit = _limit(wish, settings.keep_logs_days, settings.keep_logs_bytes)
            cleaned.removed += expired(self._logs(ended), limit, now)
        fetched, unfetched = self._outputs(ended)
        if wish.wants("outputs"):
            limit = _limit(wish, settings.keep_outputs_days, settings.keep_outputs_bytes)
            cleaned.removed += expired(fetched, limit, now)
        if wish.wants("unfetched"):
            gone = expired(unfetched, _limit(wish, settings.keep_outputs_days), now)
            cleaned.removed += gone
            unfetched = [each for each in unfetched if each not in gone]
        cleaned.kept = unfetched
        if wish.wants("envs"):
            limit = _limit(wish, settings.keep_envs_days, settings.keep_envs_bytes)
            cleaned.removed += expired(self._unused(now), limit, now)
        return cleaned

    def _logs(self, ended: Iterable[_Ended]) -> list[Candidate]:
        found = []
        for each in ended:
            folder = self._state.job(each.job)
            sizes = {log: size for log in _logs_of(folder) if (size := _blocks(log)) is not None}
            if sizes:
                found.append(Candidate("logs", f"job {each.job}", sum(sizes.values()), each.ended_at, [*sizes]))
        return found

    def _outputs(self, ended: Iterable[_Ended]) -> tuple[list[Candidate], list[Candidate]]:
        """(fetched, not fetched); empty folders don't count."""
        fetched, unfetched = [], []
        for each in ended:
            folder = self._state.job(each.job)
            if each.removed_at is not None:
                continue
            size, beside = self._custody.sizes(each.job)
            if size is None:
                continue
            paths = [folder.out, folder.checkpoint] if each.succeeded else [folder.out]
            size += beside if each.succeeded else 0
            name = f"job {each.job}"
            if each.fetched_at is not None:
                fetched.append(Candidate("outputs", name, size, each.fetched_at, paths, each.job))
            else:
                unfetched.append(Candidate("unfetched", name, size, each.ended_at, paths, each.job))
        return fetched, unfetched

    def _unused(self, now: float) -> list[Candidate]:
        """Environments; one that is half made, by a build that died, is as old as can be."""
        found = []
        for name, size, used_at, ready in self._environments.inventory():
            if ready or now - used_at > DAY:
                found.append(Candidate("envs", name, size, used_at if ready else 0.0))
        return found

    def _strays(self) -> list[Candidate]:
        """Work trees of jobs that are over."""
        found = []
        for name in os.listdir(self._state.trees):
            if name.isdigit() and int(name) not in self._daemon.book.jobs:
                path = self._state.tree(int(name))
                found.append(Candidate("trees", f"job {name}", 0, 0.0, [path]))
        return found

    # --- removing ---

    async def _remove(self, each: Candidate, now: float) -> None:
        if each.kind == "envs":
            await self.remove_environment(each.what)
            return
        if each.job is not None:
            self._daemon.store.mark(each.job, outputs_removed_at=now)
        if each.kind == "logs":
            await self._call(lambda: _unlink(each.paths))
            return
        hidden = [place for path in each.paths if (place := _hide(path)) is not None]
        await self._call(lambda: self._delete(hidden))

    def _delete(self, folders: Iterable[str]) -> None:
        for folder in folders:
            self._custody.remove(folder)

    async def remove_environment(self, name: str) -> bool:
        """Unless a job waits for it or uses it: then it is not unused after all. Whether it is gone."""
        if any(job.environment == name for job in self._daemon.book.jobs.values()):
            return False
        try:
            # At once, on the loop's thread: a job submitted from now on finds that it has to be built.
            os.unlink(f"{self._environments.path(name)}/{READY}")
        except FileNotFoundError:
            pass
        self._daemon.preparation.gone(name)
        try:
            await self._call(lambda: self._environments.remove(name))
        except Busy:
            return False  # somebody builds it anew
        return True

    async def _collect(self, cleaned: Cleaned, dry_run: bool) -> None:
        kept = self._daemon.store.live_snapshots()
        freed: int = await self._call(lambda: self._blobs.collect(kept, PIN_SECONDS, dry_run=dry_run))
        if freed:
            cleaned.removed.append(Candidate("code", "contents that no job needs", freed, 0.0))


def _limit(wish: Cleaning, days: float, most: float = float("inf")) -> Limit:
    if wish.older_than_days is not None:
        return Limit(wish.older_than_days * DAY)
    return Limit(days * DAY, most)


def _logs_of(folder: JobDir) -> list[str]:
    try:
        return [folder.attempt(int(name)).log for name in os.listdir(folder) if name.isdigit()]
    except FileNotFoundError:
        return []


def _leftovers(folder: JobDir) -> list[str]:
    """What a daemon that died had begun to remove."""
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder) if name.startswith(HIDDEN)]
    except FileNotFoundError:
        return []


def _blocks(path: str) -> int | None:
    """Disk space of a file; None when there is none."""
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return None


def _hide(path: str) -> str | None:
    """Rename a folder so that nobody finds it any more; the new name, or None when it was not there."""
    folder, name = os.path.split(path)
    hidden = f"{folder}/{HIDDEN}{name}-{time.monotonic_ns()}"
    try:
        os.rename(path, hidden)
    except FileNotFoundError:
        return None
    return hidden


def _unlink(paths: Iterable[str]) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
