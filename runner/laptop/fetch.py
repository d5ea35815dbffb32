"""A data set, brought here: what is missing, in one stream, checked against its hashes as it comes.

The box is not believed: a list with a path that leads out of the folder, or with a link that does, is refused whole,
and no link here is followed. A file of a person is never overwritten; one that an earlier fetch brought, and nobody
changed, gives way to a newer version. Nothing is removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from runner import errors
from runner.laptop import hashes, index, snapshot
from runner.laptop.client import PAUSES, Lost, segment
from runner.laptop.descent import PART, Refusal, check_git, enter, inside, readlink, repositories
from runner.laptop.git import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.laptop.client import Client
    from runner.laptop.folder import Told
    from runner.laptop.index import Stamp

AGAIN = "`runner data pull` goes on where this stopped"


class Entry:
    """A file of the set. number: its place in the list."""

    __slots__ = ("number", "path", "sha", "size")

    def __init__(self, number: int, path: str, size: int, sha: str) -> None:
        self.number, self.path, self.size, self.sha = number, path, size, sha

    @property
    def part(self) -> str:
        return PART + self.sha[:32]


class Fetched:
    """What is here now."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files = self.bytes = 0  # of the set
        self.fetched = self.fetched_bytes = 0  # of these, now
        self.refused: list[tuple[str, str]] = []  # (path, why it was not brought)


def fetch(api: Client, name: str, target: str, told: Told = lambda done, whole: None) -> Fetched:
    made, listed = _listed(api, name)
    done = Fetched(os.path.abspath(target))
    try:
        os.makedirs(done.folder, exist_ok=True)
        here = _Here(api, name, made, done, told)
        try:
            here.bring(listed)
        finally:
            here.close()
    except OSError as error:
        raise _local(error, done.folder) from error
    return done


def _listed(api: Client, name: str) -> tuple[str, dict[str, Any]]:
    """(the version, its list): the sha256 of the one is the other."""
    data = _whole(api, f"/data/{segment(name)}/files")
    listed = snapshot.read_manifest(data)
    try:
        check(listed)
    except (AttributeError, TypeError, ValueError) as error:
        raise errors.BadData(
            f"the box's list of {name} can't be used: {error}", "`runner doctor` compares the versions"
        ) from None
    return hashes.sha256(len(data))(data).hexdigest(), listed


def _whole(api: Client, path: str) -> bytes:
    for pause in (*PAUSES, None):
        try:
            return b"".join(api.stream("GET", path))
        except Lost:
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def check(listed: dict[str, Any]) -> None:
    """ValueError: it names what may not be written."""
    files, links, dirs = listed["files"], listed["links"], listed["dirs"]
    taken = {*files, *links}
    for path in (*files, *links, *dirs):
        parts = path.split("/")
        if "\0" in path or any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
            raise ValueError(f"{shown(path)} is not a path inside the folder")
        if path.startswith(PART[:-1]) or any("/".join(parts[:n]) in taken for n in range(1, len(parts))):
            raise ValueError(f"{shown(path)} lies below a file, or has a name of ours")
    if len(taken) != len(files) + len(links) or not taken.isdisjoint(dirs):
        raise ValueError("a path is named twice")
    for path, (_, size, sha) in files.items():
        if type(size) is not int or not 0 <= size < 1 << 62 or len(sha) != 64 or sha.strip("0123456789abcdef"):
            raise ValueError(f"{shown(path)} has no size and hash")
    for path, to in links.items():
        if not inside(path, to) or "\0" in to:
            raise ValueError(f"{shown(path)} is a link that leads out of the folder")


class _Here:
    """The folder, and what we know of it."""

    def __init__(self, api: Client, name: str, version: str, done: Fetched, told: Told) -> None:
        self.api, self.done, self.told = api, done, told
        self.source = f"/data/{segment(name)}/contents?id={version}"
        self.began = time.time_ns()
        self.key = f"fetch:{os.path.realpath(done.folder)}"
        self.whole = self.came = 0  # bytes to fetch, and fetched
        self.repositories: set[str] = set()  # folders in which git would find one
        self.ours: dict[str, tuple[Stamp, str]] = {}
        known = index.load(self.key)
        self.known = known.known() if known else {}
        self.fd = os.open(done.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.fd, fcntl.LOCK_EX)  # another fetch to this folder is waited for

    def close(self) -> None:
        self._remember()
        os.close(self.fd)

    def bring(self, listed: dict[str, Any]) -> None:
        entries = [Entry(n, path, size, sha) for n, (path, (_, size, sha)) in enumerate(listed["files"].items())]
        self.done.files, self.done.bytes = len(entries), sum(entry.size for entry in entries)
        self.repositories = repositories(self.fd, (*listed["files"], *listed["links"], *listed["dirs"]))
        wanted = [entry for entry in entries if self._wants(entry)]
        begun = set(os.listdir(self.fd))
        self._room(wanted)
        self.whole = sum(entry.size for entry in wanted)
        for run in _runs(wanted, begun):
            self._fetch(run)
        for path in listed["dirs"]:
            self._make(path, None)
        for path, to in listed["links"].items():
            self._make(path, to)
        for name in os.listdir(self.fd):
            if name.startswith(PART):
                os.unlink(name, dir_fd=self.fd)

    # --- what is wanted ---

    def _wants(self, entry: Entry) -> bool:
        """Whether to fetch it. What is here and right is known from then on; what is somebody's is told."""
        try:
            status = self._status(entry.path)
            if status is None:
                return True
            if not stat.S_ISREG(status.st_mode):
                raise Refusal("what has its name here is no file")
            known = self.known.get(entry.path)
            if known is not None and known[0] == index.stamp_of(status):
                if known[1] != entry.sha:
                    return True  # ours, of an older version
                self.ours[entry.path] = known
                return False
            if status.st_size == entry.size:
                stamp, sha = hashes.of_file(self.done.folder, entry.path, hashes.sha256())
                if sha == entry.sha:
                    self.ours[entry.path] = stamp, sha
                    return False
            raise Refusal("a file of this name is here, with other contents")
        except Refusal as refusal:
            self.done.refused.append((entry.path, str(refusal)))
        return False

    def _status(self, path: str) -> os.stat_result | None:
        try:
            folder, name = self._enter(path, False)
        except FileNotFoundError:
            return None
        try:
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        finally:
            os.close(folder)

    def _enter(self, path: str, make: bool) -> tuple[int, str]:
        check_git(path, self.repositories)
        return enter(self.fd, path, make)

    def _room(self, wanted: list[Entry]) -> None:
        """DiskFull before a byte is fetched."""
        room = os.fstatvfs(self.fd)
        free, needed = room.f_bavail * room.f_frsize, 0
        for entry in wanted:
            needed += (entry.size + room.f_frsize - 1) // room.f_frsize * room.f_frsize
        if needed > free:
            raise errors.DiskFull(
                f"{snapshot.size_text(needed)} are to be fetched, and {snapshot.size_text(free)} are free on the disk "
                f"of {self.done.folder}",
                f"make room, or pull to another disk; {AGAIN}",
            )

    # --- fetching ---

    def _fetch(self, run: list[Entry]) -> None:
        """Files that follow each other in the list, the first of which may have begun to arrive. The connection may be
        cut any number of times, and a few in a row before anything comes."""
        idle = 0
        while run:
            entry = run[0]
            fd, size, digest = self.begun(entry)
            came = _Came(self, run, fd, size, digest)
            try:
                if size < entry.size:
                    query = f"&first={entry.number}&last={run[-1].number}&offset={size}"
                    for piece in self.api.stream("GET", self.source + query):
                        came.take(piece)
                came.take(b"")  # what is empty, or was here
            except Lost:
                idle = 0 if came.progress else idle + 1
                if idle > len(PAUSES):
                    raise
                time.sleep(PAUSES[max(0, idle - 1)])
                continue
            finally:
                came.close()
                run = came.left
            if run and not came.progress:
                raise errors.BadData(f"the box sent less of {shown(run[0].path)} than it has", AGAIN)

    def begun(self, entry: Entry) -> tuple[int, int, Any]:
        """(descriptor, how much of it is here, the hash of that)."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(entry.part, flags, 0o666, dir_fd=self.fd)
        digest, size = hashes.sha256()(), 0
        if os.fstat(fd).st_size > entry.size:
            os.ftruncate(fd, 0)
        while piece := os.read(fd, hashes.PIECE):
            digest.update(piece)
            size += len(piece)
        if size == entry.size and digest.hexdigest() != entry.sha:  # it went bad here
            os.ftruncate(fd, 0)
            return fd, 0, hashes.sha256()()
        return fd, size, digest

    def passed(self, count: int) -> None:
        self.came += count
        self.told(min(self.came, self.whole), self.whole)

    def arrived(self, entry: Entry, fd: int, sha: str) -> None:
        """A whole file, which takes its place."""
        if sha != entry.sha:
            os.ftruncate(fd, 0)
            raise errors.BadData(
                f"what came of {shown(entry.path)} is not what its hash says",
                "try again; if it stays so the box's disk has damaged it: `runner data rm` the set, and push it again",
            )
        try:
            here = self._status(entry.path)
            known = self.known.get(entry.path)
            if here is not None and (known is None or known[0] != index.stamp_of(here)):
                raise Refusal("a file of this name was made here meanwhile")
            folder, name = self._enter(entry.path, True)
        except Refusal as refusal:
            self.done.refused.append((entry.path, str(refusal)))
            return
        try:
            os.rename(entry.part, name, src_dir_fd=self.fd, dst_dir_fd=folder)
        finally:
            os.close(folder)
        self.ours[entry.path] = index.stamp_of(os.fstat(fd)), sha
        self.done.fetched += 1
        self.done.fetched_bytes += entry.size

    def _make(self, path: str, to: str | None) -> None:
        """An empty folder, or a link."""
        try:
            folder, name = self._enter(path, True)
            try:
                here = readlink(name, folder)
                if here is None and to is not None:
                    os.symlink(to, name, dir_fd=folder)
                elif here is None:
                    os.mkdir(name, dir_fd=folder)
                elif to is not None and here != to:
                    raise Refusal("a link; what has its name here is another thing")
            finally:
                os.close(folder)
        except Refusal as refusal:
            self.done.refused.append((path, str(refusal)))

    def _remember(self) -> None:
        kept = {**{path: each for path, each in self.known.items() if path not in self.ours}, **self.ours}
        stamps = [*(stamp for stamp, _ in kept.values()), index.ABSENT]
        columns = {
            "snapshot": "", "include": [], "bytes": 0, "listings": {}, "files": "\0".join(kept),
            "shas": "".join(sha for _, sha in kept.values()), "links": "", "targets": "", "folders": "", "watched": "",
            "passed": "", "empty": [], "warnings": [], "stats": [number for stamp in stamps for number in stamp],
        }  # fmt: skip
        index.save(self.key, columns)


class _Came:
    """A stream of contents, one after the other, on its way into files."""

    def __init__(self, here: _Here, run: list[Entry], fd: int, size: int, digest: Any) -> None:
        self.here, self.progress = here, False
        self._run, self._at = run, 0
        self._fd, self._size, self._digest = fd, size, digest

    @property
    def left(self) -> list[Entry]:
        return self._run[self._at :]

    def take(self, piece: bytes) -> None:
        view = memoryview(piece)
        while True:
            if self._at == len(self._run):
                if view:
                    raise errors.BadData("the box sent more than its list says", "`runner doctor` looks why")
                return
            entry = self._run[self._at]
            if self._fd < 0:
                self._fd, self._size, self._digest = self.here.begun(entry)
                if self._size:  # not the first: whole from the beginning
                    os.ftruncate(self._fd, 0)
                    self._size, self._digest = 0, hashes.sha256()()
            part = view[: entry.size - self._size]
            view = view[len(part) :]
            self._write(part)
            if self._size < entry.size:
                return
            self._at += 1
            self.progress = True
            self.here.arrived(entry, self._fd, self._digest.hexdigest())
            self.close()

    def _write(self, part: memoryview) -> None:
        self._digest.update(part)
        self._size += len(part)
        self.progress = self.progress or bool(part)
        self.here.passed(len(part))
        while part:
            part = part[os.write(self._fd, part) :]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _runs(wanted: list[Entry], begun: set[str]) -> list[list[Entry]]:
    """Those that one request brings: neighbours in the list. One that has begun to arrive is the first of its run."""
    runs: list[list[Entry]] = []
    for entry in wanted:
        if runs and runs[-1][-1].number == entry.number - 1 and entry.part not in begun:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _local(error: OSError, folder: str) -> errors.Problem:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.DiskFull(f"no room on this computer, in {folder}", f"make room; {AGAIN}")
    where = error.filename if isinstance(error.filename, str) else folder
    return errors.Refused(f"can't write to {folder}: {error.strerror} ({shown(where)})", f"look why; {AGAIN}")
