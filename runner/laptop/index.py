"""What the last snapshot of a project saw, so that the next one need not read what did not change.

Columns, not rows: one list of numbers for everything is what json reads fastest. Losing the index costs one hashing
of everything.
"""

from __future__ import annotations

import os
from _thread import get_ident  # threading itself would cost a millisecond
from binascii import crc32

from runner import paths
from runner.laptop.light import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

VERSION = 2
FIELDS = 5  # numbers per path in `stats`
RACY_NS = 2_000_000_000  # a file this young can change again without its times showing it (FAT counts in 2 s)

Stamp = tuple[int, int, int, int, int]
ABSENT: Stamp = (0, 0, 0, 0, 0)


class Index:
    """files, links, folders, watched: paths, whose stamps stand in this order in `stats`.

    folders: every folder that was looked into; when none changed, no name appeared or went.
    watched: files with ignore rules that are not part of the snapshot.
    passed: folders that were seen and not entered, being ignored; they have no stamp.
    """

    __slots__ = (
        "bytes", "empty", "files", "folders", "include", "links", "listings", "passed", "shas", "snapshot", "stats",
        "targets", "warnings", "watched",
    )  # fmt: skip

    def __init__(self, columns: dict[str, Any]) -> None:
        self.snapshot: str = columns["snapshot"]
        self.include: list[str] = columns["include"]
        self.bytes: int = columns["bytes"]
        self.listings: dict[str, str] = columns["listings"]  # repository's folder -> git's answer; empty without git
        self.files: list[str] = _split(columns["files"])
        self.shas: str = columns["shas"]
        self.links: list[str] = _split(columns["links"])
        self.targets: list[str] = _split(columns["targets"])
        self.folders: list[str] = columns["folders"].split("\0")  # the root is "", so never without one
        self.watched: list[str] = _split(columns["watched"])
        self.passed: list[str] = _split(columns["passed"])
        self.empty: list[str] = columns["empty"]
        self.warnings: list[str] = columns["warnings"]
        self.stats: list[int] = columns["stats"]
        whole = len(self.files) + len(self.links) + len(self.folders) + len(self.watched)
        if len(self.stats) != FIELDS * whole or len(self.shas) != 64 * len(self.files):
            raise ValueError("columns of different lengths")
        if len(self.links) != len(self.targets):
            raise ValueError("links without targets")

    def paths(self) -> list[str]:
        return self.files + self.links + self.folders + self.watched

    def columns(self) -> dict[str, Any]:
        """What an Index is made from."""
        joined = ("files", "links", "targets", "folders", "watched", "passed")
        plain = ("snapshot", "include", "bytes", "listings", "shas", "empty", "warnings", "stats")
        found = {name: "\0".join(getattr(self, name)) for name in joined}
        return {**found, **{name: getattr(self, name) for name in plain}}

    def sha(self, number: int) -> str:
        return self.shas[64 * number : 64 * number + 64]

    def stamps(self) -> list[Stamp]:
        """In the order of paths()."""
        stats = iter(self.stats)
        return list(zip(stats, stats, stats, stats, stats, strict=True))

    def known(self) -> dict[str, tuple[Stamp, str]]:
        """path -> its stamp and hash."""
        pairs = zip(self.files, self.stamps(), strict=False)
        return {path: (stamp, self.sha(n)) for n, (path, stamp) in enumerate(pairs)}

    def names(self) -> set[str]:
        """All that was judged."""
        return {*self.paths(), *self.passed}

    def entry(self, number: int) -> list[int | str]:
        """A file's mode, size and hash, as in a manifest."""
        stats, at = self.stats, number * FIELDS
        return [mode_of(stats[at + 4]), stats[at], self.shas[64 * number : 64 * number + 64]]

    def edits(self, before: Index) -> dict[str, list[int | str]]:
        """The entries that changed; both must have the same files."""
        changed = {}
        for number, path in enumerate(self.files):
            at, here = number * FIELDS, slice(64 * number, 64 * number + 64)
            if self.stats[at : at + FIELDS] != before.stats[at : at + FIELDS] or self.shas[here] != before.shas[here]:
                entry = self.entry(number)
                if entry != before.entry(number):
                    changed[path] = entry
        return changed

    def parts(self) -> dict[str, Any]:
        """The manifest that `snapshot` is the hash of."""
        files = {path: self.entry(number) for number, path in enumerate(self.files)}
        return {"files": files, "links": dict(zip(self.links, self.targets, strict=True)), "dirs": self.empty}


def _split(joined: str) -> list[str]:
    return joined.split("\0") if joined else []


def stamp_of(stat: os.stat_result) -> Stamp:
    """ctime is here because nobody can set it back: it shows an edit whose mtime was restored."""
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_mode)


def mode_of(st_mode: int) -> int:
    return 0o755 if st_mode & 0o100 else 0o644


def stats_of(root: str, names: Iterable[str]) -> list[int]:
    """The stamps of many paths, flat; zeros for one that is gone or out of reach."""
    numbers: list[int] = []
    prefix, lstat = f"{root}/", os.lstat
    for name in names:
        try:
            stat = lstat(prefix + name)
        except OSError:
            numbers += ABSENT
        else:
            numbers += (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_mode)
    return numbers


def settled(stamps: Iterable[Stamp], began_ns: int) -> list[int]:
    """Flat stamps for the index. A young one loses its times, so that it never matches and is looked at again."""
    numbers: list[int] = []
    for size, mtime, ctime, inode, mode in stamps:
        young = max(mtime, ctime) > began_ns - RACY_NS
        numbers += (size, 0, 0, inode, mode) if young else (size, mtime, ctime, inode, mode)
    return numbers


def path_of(root: str) -> str:
    checksum = 0xCBF29CE484222325  # FNV-1a; the index names its root, so a collision only costs time
    for byte in os.fsencode(root):
        checksum = ((checksum ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{paths.cache_dir()}/index/{checksum:016x}.json"


def load(root: str) -> Index | None:
    """The index of a project; None when there is none, or it is damaged or of another version."""
    try:
        with open(path_of(root), "rb") as file:
            data = file.read()
        if data[:_CHECK] != _check(data[_CHECK:]):
            return None
        columns = loads(data[_CHECK:].decode("ascii"))
        return Index(columns) if columns["version"] == VERSION and columns["root"] == root else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


_CHECK = 9  # hex digits and a newline before the JSON: a wrong hash in here would be believed


def _check(data: bytes) -> bytes:
    return b"%08x\n" % crc32(data)


def save(root: str, columns: dict[str, Any]) -> None:
    """Readers see the old index or the new one. A cache that can't be written is no reason to refuse a submit."""
    path = path_of(root)
    temporary = f"{path}.{os.getpid()}-{get_ident()}.tmp"
    data = dumps({"version": VERSION, "root": root, **columns}).encode("ascii")
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(_check(data) + data)
        os.rename(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass
