"""Blobs: contents under their sha256, written once, durable before anybody is told so."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn

from runner import errors, files
from runner.box.manifests import SHA, Manifest, apply_changes

if TYPE_CHECKING:
    from runner.box.receiver import Receiver

FEW = 8  # up to so many files or folders are synced one by one; beyond, one syncfs is cheaper
FRESH_SECONDS = 3600.0  # a snapshot found whole is not looked through again; well below the grace of a collection
_libc = ctypes.CDLL(None, use_errno=True)


class Blobs:
    """`<directory>/ab/cdef...`: contents under their sha256. `incoming/` holds what is not yet durable, `partial/` the
    beginnings of contents whose upload was cut."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._pins = threading.Lock()  # between pinning and collecting
        self._parsed: Manifest | None = None
        self.losses = 0  # contents found missing or damaged, or taken away
        self._checked = ("", 0, 0.0)  # the snapshot last found to be whole, the losses by then, and when it was pinned
        self._incoming, self._partial = f"{directory}/incoming", f"{directory}/partial"
        for folder in (self._incoming, self._partial):
            os.makedirs(folder, 0o700, exist_ok=True)
        self._rescue()

    def path(self, sha: str) -> str:
        if not SHA.fullmatch(sha):
            raise errors.BadData(f"{sha!a} is not a sha256")
        return f"{self.directory}/{sha[:2]}/{sha[2:]}"

    def has(self, sha: str) -> bool:
        return os.path.exists(self.path(sha))

    def missing(self, wanted: Iterable[str] | Mapping[str, int]) -> list[str]:
        """What is not here, or not in its full size where sizes are given. What is here is pinned: collect()
        leaves it alone for its grace."""
        sizes = wanted if isinstance(wanted, Mapping) else {}
        absent = []
        with self._pins:
            for sha in wanted:
                path = self.path(sha)
                try:
                    os.utime(path)
                    if sha in sizes and os.stat(path).st_size != sizes[sha]:
                        absent.append(sha)
                except FileNotFoundError:
                    absent.append(sha)
        return absent

    def read(self, sha: str) -> bytes:
        """A content, checked against its name."""
        try:
            with open(self.path(sha), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise errors.NotFound(f"the box has no content {sha[:12]}", "it may have been cleaned away") from None
        if sha256(data).hexdigest() != sha:
            self.damaged(sha, "a content")
        return data

    def add(self, data: bytes) -> str:
        """Store a content; durable when this returns."""
        sha = sha256(data).hexdigest()
        if not self.missing({sha: len(data)}):
            return sha
        with disk_words("a file could not be stored"):
            folder = self.incoming()
            try:
                write(f"{folder}/{sha}", data)
                files.failpoint("code.blob.written")
                self.settle(folder, [sha])
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return sha

    def manifest(self, snapshot: str) -> Manifest:
        parsed = self._parsed
        if parsed is not None and parsed.id == snapshot and self.has(snapshot):
            return parsed
        try:
            data = self.read(snapshot)
        except errors.BadData:
            raise errors.BadRequest(f"{snapshot!a} is not the name of a snapshot") from None
        except errors.NotFound:
            raise errors.SnapshotUnknown(
                f"the box does not have the snapshot {snapshot[:12]}", "submit again"
            ) from None
        self._parsed = parsed = Manifest.parse(data)
        return parsed  # not what is remembered: that may by now be of another thread

    def whole(self, snapshot: str) -> Manifest:
        """A manifest with all of its contents here. SnapshotUnknown when some are not, so that they are sent again."""
        manifest = self.manifest(snapshot)
        losses, now = self.losses, time.time()
        if self._pinned(snapshot) is not None:
            return manifest
        if lost := self.missing(manifest.sizes):
            raise errors.SnapshotUnknown(
                f"{len(lost)} of {len(manifest.sizes)} contents of the snapshot {snapshot[:12]} are gone from the box",
                "submit again from your computer, which sends them anew",
            )
        self._checked = snapshot, losses, now
        return manifest

    def _pinned(self, snapshot: str | None) -> float | None:
        """When the contents of this snapshot were last found and pinned, if that is not long ago and none was lost."""
        checked, losses, when = self._checked
        fresh = 0 <= time.time() - when < FRESH_SECONDS
        return when if checked == snapshot and losses == self.losses and fresh else None

    def offer(
        self,
        snapshot: str,
        base: str | None,
        files: object,
        removed: object,
        links: object,
        dirs: object,
        came: Receiver | None = None,
    ) -> list[str]:
        """The contents that the box lacks, besides those that came along. The manifest is kept with these, durably."""
        known = self.manifest(base) if base is not None else None
        manifest = apply_changes(known, snapshot, files, removed, links, dirs)
        losses, now = self.losses, time.time()
        pinned = self._pinned(base)
        if known is not None and pinned is not None:
            now, old = pinned, known.sizes
            wanted = {sha: size for sha, size in manifest.sizes.items() if sha not in old}
        else:
            wanted = manifest.sizes
        missing = self.missing(wanted)
        if came is None:
            self.keep(manifest)
        else:
            missing = [sha for sha in missing if sha not in came.whole]
            if self.missing([manifest.id]):
                came.put(manifest.id, manifest.data)
            came.close()
            self._parsed = manifest
        if not missing:
            self._checked = manifest.id, losses, now
        return missing

    def held(self, missing: Iterable[str]) -> dict[str, int]:
        """How many bytes of the beginning of each are here, durably, of those that were cut while they arrived."""
        found = {}
        for sha in missing:
            try:
                fd = os.open(self.partial(sha), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                with disk_words("what arrived could not be made durable"):
                    os.fsync(fd)
                found[sha] = os.fstat(fd).st_size
            finally:
                os.close(fd)
        return found

    def partial(self, sha: str) -> str:
        """Where the beginning of a content waits for the rest."""
        if not SHA.fullmatch(sha):
            raise errors.BadData(f"{sha!a} is not a sha256")
        return f"{self._partial}/{sha}"

    def keep_partial(self, path: str, sha: str) -> None:
        """Put the beginning of a content aside, unless more of it is here already."""
        with self._pins:
            if self.has(sha):
                return
            try:
                known = os.stat(self.partial(sha)).st_size
            except FileNotFoundError:
                known = 0
            if os.stat(path).st_size > known:
                os.rename(path, self.partial(sha))

    def keep(self, manifest: Manifest) -> str:
        sha = self.add(manifest.data)
        files.failpoint("code.manifest.durable")
        self._parsed = manifest
        return sha

    def collect(
        self, keep_manifests: Iterable[str], grace_seconds: float, now: float | None = None, dry_run: bool = False
    ) -> int:
        """Remove what no kept manifest names and nobody asked about within the grace. Returns the bytes freed, or that
        would be."""
        kept: set[str] = set()
        for snapshot in keep_manifests:
            kept.add(snapshot)
            try:
                kept.update(self.manifest(snapshot).sizes)
            except errors.SnapshotUnknown:
                continue  # nothing can be made from it any more
        old = (time.time() if now is None else now) - grace_seconds
        freed = 0
        for sha, path in self._all():
            if sha in kept:
                continue
            with self._pins:
                try:
                    status = os.stat(path)
                    if status.st_mtime < old:
                        if not dry_run:
                            os.unlink(path)
                        freed += status.st_blocks * 512
                except FileNotFoundError:
                    continue
        if freed and not dry_run:
            self.losses += 1  # what was found whole before has to be looked through again
        return freed

    def paths(self) -> Iterator[str]:
        """Of all contents, and of the beginnings of some."""
        return (path for _, path in self._all())

    def _all(self) -> Iterator[tuple[str, str]]:
        for first in sorted(os.listdir(self.directory)):
            if len(first) == 2:
                for rest in os.listdir(f"{self.directory}/{first}"):
                    yield first + rest, f"{self.directory}/{first}/{rest}"
        for name in os.listdir(self._partial):
            yield "", f"{self._partial}/{name}"

    def _rescue(self) -> None:
        """What a daemon that died was receiving is the beginning of something, to be checked when the rest comes."""
        for folder in os.listdir(self._incoming):
            for sha in os.listdir(f"{self._incoming}/{folder}"):
                if SHA.fullmatch(sha):
                    os.rename(f"{self._incoming}/{folder}/{sha}", self.partial(sha))
            shutil.rmtree(f"{self._incoming}/{folder}", ignore_errors=True)

    def damaged(self, sha: str, what: str) -> NoReturn:
        """Take a damaged blob away, so that the next submit sends it anew, and say so."""
        try:
            os.unlink(self.path(sha))
        except FileNotFoundError:
            pass
        self.losses += 1
        raise errors.StateDamaged(
            f"{what} ({sha[:12]}) was damaged on the box's disk and has been removed",
            "submit again from your computer, which sends it anew; check the box's disk",
        )

    def incoming(self) -> str:
        return tempfile.mkdtemp(dir=self._incoming)

    def settle(self, folder: str, shas: Sequence[str]) -> None:
        """Make received contents durable, first themselves, then their names."""
        _sync([f"{folder}/{sha}" for sha in shas], self.directory, os.O_RDONLY)
        touched = set()
        with self._pins:  # until the names are durable too, nobody may be told that these are here
            for sha in shas:
                into = f"{self.directory}/{sha[:2]}"
                if into not in touched:
                    touched.add(into)
                    try:
                        os.mkdir(into, 0o700)
                        touched.add(self.directory)
                    except FileExistsError:
                        pass
                os.rename(f"{folder}/{sha}", f"{into}/{sha[2:]}")
            for sha in {*os.listdir(self._partial)}.intersection(shas):
                with suppress(FileNotFoundError):  # taken by an upload that goes on with it
                    os.unlink(f"{self._partial}/{sha}")
            _sync(sorted(touched), self.directory, os.O_RDONLY | os.O_DIRECTORY)
        files.failpoint("code.blob.durable")


def write(path: str, data: bytes) -> None:
    """A new file, not yet durable."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        files.write_all(fd, data)
    finally:
        os.close(fd)


def sync_all(directory: str) -> None:
    """All that was written to its file system is durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs failed")
    finally:
        os.close(fd)


def _sync(paths: list[str], directory: str, flags: int) -> None:
    if len(paths) > FEW:
        sync_all(directory)
        return
    for path in paths:
        fd = os.open(path, flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def disk_words(doing: str) -> Iterator[None]:
    """What the disk says, in our words."""
    try:
        yield
    except OSError as error:
        if error.errno in files.DISK_FULL:
            raise errors.DiskFull(f"the box's disk is full: {doing}", "free some with `runner clean`") from error
        if error.errno in files.DISK_FAILED:
            raise errors.StateDamaged(f"the box's disk failed: {doing}: {error.strerror}", "check the disk") from error
        raise
