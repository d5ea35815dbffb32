"""The body of POST /blobs: contents read from disk, checked on the way, in parts that zlib packs where that pays."""

from __future__ import annotations

import os
import time

from runner import errors
from runner.laptop import hashes
from runner.laptop.client import PAUSES, Lost
from runner.laptop.git import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, NoReturn

    Send = Callable[[list[str], dict[str, int]], dict[str, Any] | None]  # what is missing, what is held of it

    from runner.laptop.folder import Folder
    from runner.laptop.snapshot import Snapshot

PART = 128 << 10  # the unit that a cut may have to send again
SAMPLE = 64 << 10
WORTH = 4 << 10  # shorter contents are sent as they are
SHRINKS = 0.8  # packed only where a sample becomes at most this much of itself
LEVEL = 1
WINDOW = 16 << 20  # bytes after which what was measured counts half


class Changed(Exception):
    """A file is no longer what was said of it."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Tries:
    """However often an upload is cut, it goes on while something arrives."""

    def __init__(self) -> None:
        self._least, self._idle = 1 << 62, 0  # bytes left, at best; tries that brought nothing, in a row

    def go(self, left: int, asked: dict[str, Any], send: Send) -> dict[str, Any] | None:
        """What `send` returns. None: ask the box again what it lacks. asked: as it said it. left: bytes of that."""
        self._least, self._idle = (left, 0) if left < self._least else (self._least, self._idle + 1)
        trouble: errors.Problem = errors.BadData("the box asks again for what was sent", "see `runner doctor`")
        answer = None
        try:
            answer = send(asked["missing"], asked["held"])
        except errors.SnapshotUnknown as lost:  # between the upload and the submission
            trouble = lost
        except Lost as cut:
            trouble = cut
            time.sleep(PAUSES[min(self._idle, len(PAUSES) - 1)])
        except errors.BadData as wrong:
            if not asked["held"]:
                raise
            trouble = wrong  # perhaps with what was held: then it is no more
        if answer is None and self._idle >= len(PAUSES):
            raise trouble
        return answer


def left(sizes: Mapping[str, int], answer: dict[str, Any]) -> int:
    """Bytes that a box lacks, by what it says; each content counts one more. sizes: of all, by their hashes."""
    held, missing = answer["held"], answer["missing"]
    if not all(sha in sizes for sha in missing):
        raise errors.BadData("the box asks for what is not ours", "see `runner doctor`")
    return sum(sizes[sha] + 1 - min(max(held.get(sha, 0), 0), sizes[sha]) for sha in missing)


def frame(sha: str, data: bytes, packs: bool) -> bytes:
    """A whole content."""
    sent = packed(data) if packs else data
    if len(sent) < len(data):
        return b"%b %d 0 %d %d\n%b" % (sha.encode(), len(data), len(data), len(sent), sent)
    return b"%b %d\n%b" % (sha.encode(), len(data), data)


def packed(data: bytes) -> bytes:
    """Shorter, or as it is."""
    if len(data) < WORTH:
        return data
    import zlib

    sample = data[:SAMPLE]
    found = zlib.compress(sample, LEVEL)
    if len(found) > SHRINKS * len(sample):
        return data
    if len(data) > len(sample):
        found = zlib.compress(data, LEVEL)
    return found if len(found) < len(data) else data


class Pace:
    """Whether packing saves more time than it takes, by what both were seen to take."""

    def __init__(self) -> None:
        self.sent = self.read = self.saved = 0  # bytes: on the wire; packed, and less by that
        self.sending = self.packing = 0.0  # seconds

    def pays(self) -> bool:
        if not (self.read and self.sent):
            return True
        return self.sending / self.sent * self.saved > self.packing

    def tell_sent(self, size: int, seconds: float) -> None:
        self.sent, self.sending = self.sent + size, self.sending + seconds
        if self.sent > WINDOW:
            self.sent, self.sending = self.sent // 2, self.sending / 2

    def packed(self, data: bytes) -> bytes:
        began = time.perf_counter()
        found = packed(data)
        if len(data) >= WORTH:
            self.packing += time.perf_counter() - began
            self.read += len(data)
            self.saved += len(data) - len(found)
        return found


class Stream:
    """What the box lacks. Small contents share a piece. complete: how many have been read to their ends."""

    def __init__(
        self, snapshot: Snapshot | Folder, missing: Iterable[str], held: Mapping[str, int], packs: bool, plain: bool
    ) -> None:
        """held: of which the box has the beginning, and how much. plain: whole contents only, for an older box."""
        self._root, self._held, self._packs, self._plain = snapshot.root, held, packs, plain
        paths = {entry[2]: (path, entry[1]) for path, entry in snapshot.parts["files"].items()}
        try:
            wanted = [(sha, *paths[sha]) for sha in missing]
        except KeyError as error:
            raise errors.BadData(f"the box asks for what is not ours: {error}", "see `runner doctor`") from None
        self._wanted = sorted(wanted, key=lambda each: not held.get(each[0]))  # first what is on its way already
        self._kind = hashes.sha256(sum(size for _, _, size in wanted))
        self._pace = Pace()
        self.changed: str | None = None
        self.complete = 0
        self.read = 0  # bytes of contents, by now

    def __iter__(self) -> Iterator[bytes]:
        gathered: list[bytes] = []
        weight = 0
        for sha, path, size in self._wanted:
            for piece in self._plainly(sha, path, size) if self._plain else self._parts(sha, path, size):
                gathered.append(piece)
                weight += len(piece)
                if weight >= hashes.PIECE:
                    yield from self._timed(gathered, weight)
                    gathered, weight = [], 0
            self.complete += 1
        if gathered:
            yield b"".join(gathered)

    def _timed(self, pieces: list[bytes], weight: int) -> Iterator[bytes]:
        began = time.perf_counter()
        yield b"".join(pieces)
        self._pace.tell_sent(weight, time.perf_counter() - began)

    def _plainly(self, sha: str, path: str, size: int) -> Iterator[bytes]:
        yield f"{sha} {size}\n".encode()
        yield from self._pieces(sha, path, size)

    def _parts(self, sha: str, path: str, size: int) -> Iterator[bytes]:
        start = min(self._held.get(sha, 0), size)
        if start == size:  # also of an empty one: the box only looks whether it is right
            yield f"{sha} {size} {start} 0 0\n".encode()
        position = 0
        for piece in self._pieces(sha, path, size):
            data = piece[max(0, start - position) :]
            position += len(piece)
            if data:
                sent = self._pace.packed(data) if self._packs and self._pace.pays() else data
                yield f"{sha} {size} {position - len(data)} {len(data)} {len(sent)}\n".encode()
                yield sent

    def _pieces(self, sha: str, path: str, size: int) -> Iterator[bytes]:
        """A piece is only given away when what follows can still show the box that the content is not what it says:
        the last one waits for the hash."""
        digest = self._kind()
        left = size
        try:
            fd = hashes.open_file(self._root, path)
        except (OSError, errors.BadData):
            self._give_up(path)
        try:
            while left:
                piece = os.read(fd, min(left, PART))
                digest.update(piece)
                left -= len(piece)
                if not piece or (not left and digest.hexdigest() != sha):
                    self._give_up(path)
                self.read += len(piece)
                yield piece
            if not size and digest.hexdigest() != sha:
                self._give_up(path)
        except OSError as error:
            raise hashes.unreadable(path, error) from None
        finally:
            os.close(fd)

    def _give_up(self, path: str) -> NoReturn:
        self.changed = path
        raise errors.BadData(f"{shown(path)} changed while it was sent")
