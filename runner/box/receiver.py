"""What a laptop uploads: a stream of frames, each the whole of a content or a part of one, checked and stored."""

from __future__ import annotations

import os
import re
import shutil
import threading
import zlib
from hashlib import sha256

from runner import errors, files
from runner.box.blobs import Blobs, disk_words, write
from runner.box.manifests import CODE, LIMIT_BYTES, LIMIT_FILES

PART_BYTES = 4 << 20  # the most that one part may hold: a packed one is unpacked in memory
WORTH_KEEPING = 64 << 10  # a beginning shorter than this is sent again
PIECE = 1 << 20
STRIDE = 8 << 20  # the disk is at work while a long content arrives, not only at its end
_NUMBER = rb"(0|[1-9][0-9]{0,18})"
_HEADER = re.compile(rb"([0-9a-f]{64}) %b(?: %b %b %b)?" % (_NUMBER, _NUMBER, _NUMBER, _NUMBER))
_HEADER_MAX = 64 + 4 * (1 + 19) + 1
_DOING = "a file could not be received"


class Receiver:
    r"""The body of POST /blobs, pushed in pieces of any size. Each frame is one of

        <sha256> <size>\n<bytes>                                a whole content
        <sha256> <size> <start> <length> <sent>\n<bytes>        `length` bytes of it from `start` on, as `sent` bytes:
                                                                packed by zlib if those are fewer

    The parts of a content follow each other. The first may go on where a cut left off, as Blobs.held() told. Nothing
    is stored before close(), and then everything, durably; after a cut keep() stores what came whole, and puts the
    beginning of the rest aside. Whatever is wrong with the stream leaves nothing behind. Any thread may call.
    """

    def __init__(self, blobs: Blobs, limit_bytes: int = LIMIT_BYTES) -> None:
        self._blobs = blobs
        self._room = limit_bytes
        self._lock = threading.Lock()
        self._over = False
        self._header = b""
        self._left = 0  # bytes of this frame that are still to come
        self._packed: bytearray | None = None  # what came of a packed part
        self._length = 0  # of that part, unpacked
        self._sha = ""
        self._size = self._position = 0  # of the content that is arriving
        self._begun = 0  # how much of it the disk was told to begin with
        self._fd: int | None = None
        self._digest = sha256()
        self.whole: dict[str, None] = {}  # what came, and was what it says
        self._folder = ""  # made when there is something to put in it

    def feed(self, data: bytes | memoryview) -> None:
        with self._lock:
            if self._over:
                raise errors.Busy("this upload went on over another connection", "")
            try:
                with disk_words(_DOING):
                    view = memoryview(data)
                    while len(view):
                        view = self._content(view) if self._left else self._read_header(view)
            except BaseException:
                self._end()
                raise

    def put(self, sha: str, data: bytes) -> None:
        """A content of the box's own, to become durable with the others."""
        with disk_words(_DOING):
            write(self._path(sha), data)
        self.whole[sha] = None

    def close(self) -> int:
        """How many contents are now durable."""
        with self._lock:
            if self._over:
                raise errors.Busy("this upload went on over another connection", "")
            try:
                if self._fd is not None or self._header:
                    raise errors.BadData("the files sent to the box ended in the middle of one", "submit again")
                self._store()
            finally:
                self._end()
        return len(self.whole)

    def keep(self) -> None:
        """The stream was cut, or is taken over: nothing of it has to be sent again."""
        with self._lock:
            if self._over:
                return
            try:
                self._store()
                if self._fd is not None and self._position >= WORTH_KEEPING:
                    self._blobs.keep_partial(self._path(self._sha), self._sha)
            finally:
                self._end()

    def abort(self) -> None:
        """Forget what was not closed."""
        with self._lock:
            self._end()

    def _store(self) -> None:
        files.failpoint("code.blob.written")
        if self.whole:
            with disk_words("a file could not be made durable"):
                self._blobs.settle(self._folder, list(self.whole))

    def _end(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if not self._over:
            self._over = True
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, sha: str) -> str:
        self._folder = self._folder or self._blobs.incoming()
        return f"{self._folder}/{sha}"

    # --- frames ---

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
        sha, size = match[1].decode(), int(match[2])
        if match[3] is None:
            self._part(sha, size, 0, size, size)
        elif int(match[4]) > PART_BYTES:
            raise errors.BadData("a part sent to the box is too long", "upgrade `runner`")
        else:
            self._part(sha, size, int(match[3]), int(match[4]), int(match[5]))
        return view[end + 1 :]

    def _part(self, sha: str, size: int, start: int, length: int, sent: int) -> None:
        if self._fd is None:
            self._open(sha, size, start)
        if (sha, size, start) != (self._sha, self._size, self._position) or not sent <= length <= size - start:
            raise errors.BadData("the parts of a file sent to the box do not follow each other", "submit again")
        self._left, self._length = sent, length
        self._packed = bytearray() if sent < length else None
        if not sent:
            self._arrived()

    def _open(self, sha: str, size: int, start: int) -> None:
        self._room -= size - start
        if self._room < 0 or len(self.whole) >= LIMIT_FILES:
            raise errors.TooLarge("more was sent than the box takes at once", CODE.hint)
        path = self._path(sha)
        self._sha, self._size, self._position, self._digest = sha, size, start, sha256()
        self._begun = start
        if not start:
            self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            return
        try:
            os.rename(self._blobs.partial(sha), path)  # from here on it is nobody else's
        except FileNotFoundError:
            raise _gone(sha) from None
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        left = start
        while left and (piece := os.read(self._fd, min(left, PIECE))):
            self._digest.update(piece)
            left -= len(piece)
        if left:
            raise _gone(sha)
        os.ftruncate(self._fd, start)

    def _content(self, view: memoryview) -> memoryview:
        piece = view[: self._left]
        self._left -= len(piece)
        if self._packed is None:
            self._take(piece)
        else:
            self._packed += piece
        if not self._left:
            self._arrived()
        return view[len(piece) :]

    def _arrived(self) -> None:
        """A frame is complete."""
        if self._packed is not None:
            data, self._packed = self._unpacked(bytes(self._packed)), None
            self._take(data)
        if self._position == self._size:
            self._complete()

    def _unpacked(self, data: bytes) -> bytes:
        stream = zlib.decompressobj()
        try:
            found = stream.decompress(data, self._length + 1)
        except zlib.error:
            found = b""
        if len(found) != self._length or not stream.eof or stream.unused_data:
            raise errors.BadData("a part sent to the box can't be unpacked", "submit again")
        return found

    def _take(self, data: bytes | memoryview) -> None:
        assert self._fd is not None, "a header comes first"
        self._digest.update(data)
        files.write_all(self._fd, data)
        self._position += len(data)
        if self._position - self._begun >= STRIDE:
            files.begin_sync(self._fd, self._begun, self._position - self._begun)
            self._begun = self._position

    def _complete(self) -> None:
        if self._digest.hexdigest() != self._sha:
            raise errors.BadData(f"a content does not match its name {self._sha[:12]}", "submit again")
        assert self._fd is not None, "only a begun content ends"
        os.close(self._fd)
        self._fd = None
        self.whole[self._sha] = None


def _gone(sha: str) -> errors.BadData:
    return errors.BadData(f"what the box had of {sha[:12]} is gone", "submit again")
