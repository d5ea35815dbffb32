"""Blobs: contents under their sha256, written once, durable before anybody is told so."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import NoReturn

from runner import errors, files
from runner.box.manifests import LIMIT_BYTES, LIMIT_FILES, SHA, Manifest, apply_changes

FEW = 8  # up to so many files or folders are synced one by one; beyond, one syncfs is cheaper
_HEADER = re.compile(rb"([0-9a-f]{64}) (0|[1-9][0-9]{0,18})")
_HEADER_MAX = 64 + 1 + 19 + 1
_libc = ctypes.CDLL(None, use_errno=True)


class Blobs:
    """`<directory>/ab/cdef...`: contents under their sha256. `incoming/` holds what is not yet durable."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._pins = threading.Lock()  # between pinning and collecting
        self._parsed: Manifest | None = None
        self.losses = 0  # contents found missing or damaged
        self._checked = ("", 0)  # the snapshot last found to be whole, and the losses by then
        os.makedirs(directory, 0o700, exist_ok=True)
        self._incoming = f"{directory}/incoming"
        shutil.rmtree(self._incoming, ignore_errors=True)  # of a daemon that died
        os.makedirs(self._incoming, 0o700, exist_ok=True)

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
        receiver = Receiver(self)
        receiver.feed(f"{sha} {len(data)}\n".encode())
        receiver.feed(data)
        receiver.close()
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
        if self._checked != (snapshot, self.losses) and (lost := self.missing(manifest.sizes)):
            raise errors.SnapshotUnknown(
                f"{len(lost)} of {len(manifest.sizes)} contents of the snapshot {snapshot[:12]} are gone from the box",
                "submit again from your computer, which sends them anew",
            )
        return manifest

    def offer(
        self, snapshot: str, base: str | None, files: object, removed: object, links: object, dirs: object
    ) -> list[str]:
        """POST /snapshots: the contents that the box lacks; when there are none, the manifest is kept, durably."""
        known = self.manifest(base) if base is not None else None
        manifest = apply_changes(known, snapshot, files, removed, links, dirs)
        missing = self.missing(manifest.sizes)
        if not missing:
            self.keep(manifest)
            self._checked = manifest.id, self.losses
        return missing

    def keep(self, manifest: Manifest) -> str:
        sha = self.add(manifest.to_bytes())
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
        return freed

    def _all(self) -> Iterator[tuple[str, str]]:
        for first in sorted(os.listdir(self.directory)):
            if len(first) == 2:
                for rest in os.listdir(f"{self.directory}/{first}"):
                    yield first + rest, f"{self.directory}/{first}/{rest}"

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
            _sync(sorted(touched), self.directory, os.O_RDONLY | os.O_DIRECTORY)
        files.failpoint("code.blob.durable")


def _sync(paths: list[str], directory: str, flags: int) -> None:
    if len(paths) > FEW:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(fd) != 0:
                raise OSError(ctypes.get_errno(), "syncfs failed")
        finally:
            os.close(fd)
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


class Receiver:
    """The body of POST /blobs, pushed in pieces of any size: `<sha256> <size>\\n<bytes>`, again and again.

    Nothing is stored before close(), and then everything, durably. Whatever goes wrong leaves nothing behind.
    """

    def __init__(self, blobs: Blobs, limit_bytes: int = LIMIT_BYTES) -> None:
        self._blobs = blobs
        self._room = limit_bytes
        self._header = b""
        self._left = 0
        self._sha = ""
        self._fd: int | None = None
        self._digest = sha256()
        self._shas: dict[str, None] = {}
        with disk_words("a file could not be received"):
            self._folder = blobs.incoming()

    def feed(self, data: bytes) -> None:
        try:
            with disk_words("a file could not be received"):
                view = memoryview(data)
                while len(view):
                    view = self._content(view) if self._fd is not None else self._read_header(view)
        except BaseException:
            self.abort()
            raise

    def close(self) -> int:
        """How many contents are now durable."""
        try:
            if self._fd is not None or self._header:
                raise errors.BadData("the files sent to the box ended in the middle of one", "submit again")
            files.failpoint("code.blob.written")
            if self._shas:
                with disk_words("a file could not be made durable"):
                    self._blobs.settle(self._folder, list(self._shas))
        finally:
            self.abort()
        return len(self._shas)

    def abort(self) -> None:
        """Forget what was not closed."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read_header(self, view: memoryview) -> memoryview:
        piece = bytes(view[:_HEADER_MAX])
        end = piece.find(b"\n")
        self._header += piece if end < 0 else piece[:end]
        if end < 0 and len(self._header) < _HEADER_MAX:
            return view[len(piece) :]
        match = _HEADER.fullmatch(self._header)
        if end < 0 or match is None:
            raise errors.BadData("the files sent to the box are not in its format", "upgrade `runner`")
        self._header = b""
        self._begin(match[1].decode(), int(match[2]))
        return view[end + 1 :]

    def _begin(self, sha: str, size: int) -> None:
        self._room -= size
        if self._room < 0 or len(self._shas) >= LIMIT_FILES:
            raise errors.TooLarge("more was sent than the box takes at once", "leave data out in .runnerignore")
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(f"{self._folder}/{sha}", flags, 0o600)
        self._sha, self._left, self._digest = sha, size, sha256()
        if not size:
            self._end()

    def _content(self, view: memoryview) -> memoryview:
        assert self._fd is not None, "a header comes first"
        piece = view[: self._left]
        self._digest.update(piece)
        self._left -= len(piece)
        rest = view[len(piece) :]
        while len(piece):
            piece = piece[os.write(self._fd, piece) :]
        if not self._left:
            self._end()
        return rest

    def _end(self) -> None:
        if self._digest.hexdigest() != self._sha:
            raise errors.BadData(f"a content does not match its name {self._sha[:12]}", "submit again")
        assert self._fd is not None, "only a begun content ends"
        os.close(self._fd)
        self._fd = None
        self._shas[self._sha] = None
