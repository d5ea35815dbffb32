"""A folder as a data set: every file in it, whatever git ignores, named by its content. What did not change since the
last push is not read again.
"""

from __future__ import annotations

import os
import stat
import time

from runner import errors
from runner.laptop import hashes, index, snapshot
from runner.laptop.git import shown
from runner.laptop.ignore import leads_out, refuse_control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runner.laptop.index import Stamp

    Told = Callable[[int, int], object]  # bytes done, of how many

MODE = 0o644  # of every file: a data set is not for running
CHANGES_BYTES = 4 << 20  # of JSON, about: beyond, the whole list is sent, packed


class Folder:
    """parts: its manifest. id: the hash of that. passed: what was left out, in sentences."""

    def __init__(self, root: str, told: Told = lambda done, whole: None) -> None:
        """BadRequest, BadData: it can't be pushed."""
        self.root = os.path.realpath(root)
        if not os.path.isdir(self.root):
            what = "is not a folder" if os.path.lexists(root) else "is not there"
            raise errors.BadRequest(f"{shown(root)} {what}", "`runner data push DIR [NAME]` takes a folder")
        if self.root in ("/", os.path.realpath(os.path.expanduser("~"))):
            raise errors.BadRequest(f"{shown(root)} holds more than data", "name the folder that the data is in")
        began = time.time_ns()
        self.passed: list[str] = []
        self._stamps: dict[str, Stamp] = {}
        self._links: dict[str, tuple[Stamp, str]] = {}
        self._empty: list[str] = []
        before = index.load(self._key)
        self._before = before
        self._walk()
        refuse_control([*self._stamps, *self._links, *self._empty], "rename, or move out of the folder")
        known = before.known() if before else {}
        self._shas = self._hashed(known, told)
        files = {path: [MODE, stamp[0], self._shas[path]] for path, stamp in self._stamps.items()}
        links = {path: target for path, (_, target) in self._links.items()}
        self.parts: dict[str, Any] = {"files": files, "links": links, "dirs": sorted(self._empty)}
        self.list = snapshot.manifest_bytes(self.parts)
        self.id = hashes.sha256(len(self.list))(self.list).hexdigest()
        self.bytes = sum(stamp[0] for stamp in self._stamps.values())
        self._began = began

    @property
    def _key(self) -> str:
        return f"data:{self.root}"

    def changes(self) -> dict[str, Any] | None:
        """The list as changes to the last one that was pushed from here; None: there is none, or it differs much."""
        before = self._before
        if before is None:
            return None
        old = {path: [MODE, before.stats[n * index.FIELDS], before.sha(n)] for n, path in enumerate(before.files)}
        files = {path: entry for path, entry in self.parts["files"].items() if old.get(path) != entry}
        removed = [path for path in old if path not in self.parts["files"]]
        same_links = dict(zip(before.links, before.targets, strict=True)) == self.parts["links"]
        same_dirs = before.empty == self.parts["dirs"]
        links = None if same_links else self.parts["links"]
        dirs = None if same_dirs else self.parts["dirs"]
        named = [*files, *removed, *(dirs or ()), *(links or {}), *(links or {}).values()]
        if sum(6 * len(name) + 100 for name in named) > CHANGES_BYTES:  # \u1234 for a letter
            return None
        return {
            "id": self.id, "base": before.snapshot, "files": files, "removed": removed, "links": links, "dirs": dirs,
        }  # fmt: skip

    def remember(self) -> None:
        """For the next push from here."""
        stamps = [*self._stamps.values(), *(stamp for stamp, _ in self._links.values()), index.ABSENT]
        columns = {
            "snapshot": self.id, "include": [], "bytes": self.bytes, "listings": {}, "files": "\0".join(self._stamps),
            "shas": "".join(self._shas[path] for path in self._stamps), "links": "\0".join(self._links),
            "targets": "\0".join(self.parts["links"].values()), "folders": "", "watched": "", "passed": "",
            "empty": self.parts["dirs"], "warnings": [], "stats": index.settled(stamps, self._began),
        }  # fmt: skip
        index.save(self._key, columns)

    # --- looking ---

    def _walk(self) -> None:
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(f"{self.root}/{folder}") as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                raise _unreadable(folder or self.root, error) from None
            if not entries and folder:
                self._empty.append(folder)
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.lower() == ".git":
                    self.passed.append(f"{shown(path)} is left out: it is git's own")
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                else:
                    self._add(path, entry)

    def _add(self, path: str, entry: os.DirEntry[str]) -> None:
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            self._stamps[path] = index.stamp_of(status)
        elif not stat.S_ISLNK(status.st_mode):
            self.passed.append(f"{shown(path)} is left out: it is a socket, a pipe or a device")
        else:
            target = os.readlink(entry.path)
            if leads_out(path, target):
                self.passed.append(f"{shown(path)} is left out: it is a link out of the folder, to {shown(target)}")
            else:
                self._links[path] = index.stamp_of(status), target

    def _hashed(self, known: dict[str, tuple[Stamp, str]], told: Told) -> dict[str, str]:
        new = {path: stamp for path, stamp in self._stamps.items() if known.get(path, (None,))[0] != stamp}
        whole, done, kind = sum(stamp[0] for stamp in new.values()), 0, hashes.sha256()
        shas = {path: known[path][1] for path in self._stamps if path not in new}

        def so_far(read: int) -> None:
            told(done + read, whole)

        for path in new:
            try:
                self._stamps[path], shas[path] = hashes.of_file(self.root, path, kind, so_far)
            except FileNotFoundError as error:
                raise _unreadable(path, error) from None
            except errors.BadData as problem:
                hint = "wait until nothing writes there, or move it out of the folder"
                raise errors.BadData(problem.message, hint) from None
            done += self._stamps[path][0]
        return shas


def _unreadable(path: str, error: OSError) -> errors.BadData:
    return errors.BadData(
        f"{shown(path)} can't be read: {error.strerror}", "make it readable, or move it out of the folder"
    )
