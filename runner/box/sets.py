"""Data sets: trees of files under a name, for jobs to read. Nobody changes one: a push makes a new version beside it.

    blobs/           their contents by sha256, in a store of their own (blobs.py)
    versions/<id>/   the manifest `list`, and `tree/`: hard links to the contents, so each is on the disk once
    names/<name>     the record of a set: which version, or which path of this computer it stands for; whose it is
    views/<n>/       a RUNNER_DATA: a link for each name, as of one moment. Never changed, and never current again

A job gets the view that is current when it starts, and keeps it. What neither a name nor a living job's view leads to
goes. Files and folders are readable for all and writable for nobody: on a provisioned box jobs are another user. The
folders above them can be entered, not listed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from runner import errors, files
from runner.box.blobs import Blobs, disk_words, sync_all
from runner.box.manifests import DATA, Manifest, apply_changes, plain
from runner.box.schedule import size
from runner.box.settings import SYSTEMD, Settings
from runner.box.trees import remove_tree
from runner.model import Principal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHARED = "shared"  # in each view: the folder that people and jobs share, which is nobody's set
ENTERED, FOLDER, FILE = 0o711, 0o555, 0o444
BLOCK = 4096
DAY = 86400.0
REMEMBERED = 100_000  # files of a list that is worth its memory
HOMES = ("/home", "/root", "/run/user")  # which the service and its jobs don't see
_HIDDEN = "."  # what is being made or removed begins so


@dataclass(slots=True, frozen=True)
class DataSet:
    """A set, as its record says. at: when it was pushed or linked, UTC epoch seconds."""

    name: str
    id: str | None  # of its version; None: it is a link
    path: str | None  # that a link leads to
    bytes: int | None  # not known of a link
    files: int | None
    at: float
    user: str
    uid: int


@dataclass(slots=True, frozen=True)
class Lacking:
    """What the box needs before a push is complete."""

    missing: list[str]
    held: dict[str, int]  # of these, what is there of their beginnings


@dataclass
class Push:
    """A set's list of files, as its id, and perhaps as changes to another version; else the list is a content, too."""

    id: str
    base: str | None = None
    files: dict[str, tuple[int, int, str]] | None = None
    removed: list[str] | None = None
    links: dict[str, str] | None = None
    dirs: list[str] | None = None


class Sets:
    """Any thread may call. `view` is for whoever starts jobs."""

    def __init__(self, settings: Settings) -> None:
        self.directory = directory = settings.data_sets or settings.state.data_sets
        self.shared = settings.data or f"{settings.state}/data"
        self._state, self._free = settings.state, settings.free_bytes
        self._provisioned = settings.engine == SYSTEMD  # where jobs are another user
        self._versions, self._names, self._views = (f"{directory}/{each}" for each in ("versions", "names", "views"))
        for folder in (directory, self._versions, self._names, self._views):
            os.makedirs(folder, exist_ok=True)
            os.chmod(folder, 0o700 if folder == self._names else ENTERED)  # whatever the umask
        self.blobs = Blobs(f"{directory}/blobs")
        self._lock = threading.Lock()  # names, versions and views belong together
        for name in os.listdir(self._versions):
            if name.startswith(_HIDDEN):
                remove_tree(f"{self._versions}/{name}")
        self._parsed: Manifest | None = None  # the last that was asked for
        self._damaged = False  # then nobody knows which versions still have a name
        self._sets = self._read()
        self.view = self._look()

    def listed(self) -> list[DataSet]:
        return sorted(self._sets.values(), key=lambda each: each.name)

    def get(self, name: str) -> DataSet:
        found = self._sets.get(name)
        if found is None:
            raise errors.NotFound(
                f"the box has no data set {name!a}{errors.nearest(name, self._sets)}", "`runner data ls` lists them"
            )
        return found

    def fetched(self, name: str) -> Manifest:
        """What was pushed. NotFound, BadRequest: there is nothing to fetch."""
        found = self.get(name)
        if found.id is None:
            raise errors.BadRequest(
                f"{name} is a link to {found.path} on the box, which the queue does not copy",
                "fetch it over ssh, as with `rsync`",
            )
        return self.manifest(found.id)

    def tree(self, version: str) -> str:
        return f"{self._version(version)}/tree"

    # --- pushing ---

    def offer(self, name: str, wish: Push, who: Principal) -> DataSet | Lacking:
        """The set, which has the files of the wish now; or what has to be sent before it can."""
        self._allow(name, who)
        manifest = self._wanted(wish)
        if manifest is None:
            return Lacking([wish.id], self.blobs.held([wish.id]))
        if not os.path.isdir(self._version(manifest.id)):
            lacks = self._lacking(manifest)
            if lacks:
                held = self.blobs.held(lacks)
                self._room(name, [length - held.get(sha, 0) for sha, length in lacks.items()])
                return Lacking([*lacks], held)
        try:
            return self._commit(name, manifest, who)
        except FileNotFoundError:  # a content went since we looked, with the set that had it
            lacks = self._lacking(manifest)
            return Lacking([*lacks], self.blobs.held(lacks))

    def _wanted(self, wish: Push) -> Manifest | None:
        if wish.files is None:
            try:
                data = self.blobs.read(wish.id)
            except errors.NotFound:
                return None
            manifest = Manifest.parse(data, DATA)
            plain(manifest)
            if manifest.id != wish.id:
                raise errors.BadData("the list of files is not written as it should be", "upgrade `runner`")
            return manifest
        base = None if wish.base is None else self.manifest(wish.base)
        parts = (wish.files, wish.removed or [], wish.links, wish.dirs)
        manifest = apply_changes(base, wish.id, *parts, limits=DATA)
        self.blobs.add(manifest.data)
        return manifest

    def manifest(self, version: str) -> Manifest:
        """SnapshotUnknown: it is not here."""
        known = self._parsed
        if known is None or known.id != version or not os.path.isdir(self._version(version)):
            try:
                with open(f"{self._version(version)}/list", "rb") as file:
                    known = Manifest.parse(file.read(), DATA)
            except FileNotFoundError:
                gone = f"the box does not have the version {version[:12]} of a data set"
                raise errors.SnapshotUnknown(gone, "try again: it was pushed anew, or removed") from None
            self._parsed = known if len(known.files) <= REMEMBERED else None
        return known

    def _lacking(self, manifest: Manifest) -> dict[str, int]:
        """Content -> size, of what is not here. What is, and no version has yet, is kept for a day."""
        lacks = {}
        for sha, length in manifest.sizes.items():
            path = self.blobs.path(sha)
            try:
                found = os.stat(path)
                if found.st_size != length:
                    lacks[sha] = length
                elif found.st_nlink == 1:
                    os.utime(path)
            except FileNotFoundError:
                lacks[sha] = length
        return lacks

    def _room(self, name: str, sizes: Iterable[int]) -> None:
        """DiskFull before a byte is sent, where that can be known."""
        needed = sum((each + BLOCK - 1) // BLOCK * BLOCK for each in sizes)
        free, total = files.disk_room(self.directory)
        kept = max(self._free, total // 50)
        if needed > free - kept:
            raise errors.DiskFull(
                f"{name} needs {size(needed)} more on the box's disk; {size(free)} are free there, "
                f"of which {size(kept)} are kept for the queue",
                "`runner data ls` shows the sets, `runner data rm NAME` and `runner clean` make room",
            )

    def _commit(self, name: str, manifest: Manifest, who: Principal) -> DataSet:
        path, making = self._version(manifest.id), None
        if not os.path.isdir(path):
            with disk_words("the data set could not be laid out"):
                making = self._lay_out(manifest)
        made = DataSet(name, manifest.id, None, manifest.bytes, len(manifest.files), time.time(), who.user, who.uid)
        with self._lock:
            self._allow(name, who)  # somebody may have been quicker
            if making is not None and not os.path.isdir(path):
                os.rename(making, path)
                files.fsync_dir(self._versions)
            elif not os.path.isdir(path):
                raise FileNotFoundError(path)  # it was removed meanwhile, with the last name that had it
            self._put(made)
        if making is not None:
            remove_tree(making)
        return made

    def _lay_out(self, manifest: Manifest) -> str:
        """A hidden folder that holds the version, durably. FileNotFoundError: a content is gone."""
        making = f"{self._versions}/{_HIDDEN}{manifest.id}-{time.monotonic_ns()}"
        tree = f"{making}/tree"
        try:
            os.makedirs(tree)
            self._link(manifest.id, f"{making}/list")
            folders = [f"{tree}/{folder}" for folder in manifest.folders()]
            for folder in folders:
                os.mkdir(folder)
            for path, (_, _, sha) in manifest.files.items():
                self._link(sha, f"{tree}/{path}")
            for path, target in manifest.links.items():  # last: nothing is ever written through one
                os.symlink(target, f"{tree}/{path}")
            for folder in (*reversed(folders), tree, making):
                os.chmod(folder, FOLDER)
            sync_all(making)
        except BaseException:
            remove_tree(making)
            raise
        files.failpoint("data.laid_out")
        return making

    def _link(self, sha: str, path: str) -> None:
        source = f"{self.blobs.directory}/{sha[:2]}/{sha[2:]}"
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno == errno.EMLINK:  # as of 100,000 empty files
                shutil.copyfile(source, path)
            elif error.errno in (errno.EPERM, errno.EOPNOTSUPP):
                raise errors.BadSettings(
                    f"the file system of {self.directory} has no hard links",
                    "set `data_sets` in box.toml to a folder on ext4, xfs or btrfs",
                ) from error
            else:
                raise
        if stat.S_IMODE(os.stat(path).st_mode) != FILE:
            os.chmod(path, FILE)

    # --- links, removals ---

    def link(self, name: str, path: str, who: Principal) -> DataSet:
        """Give a name to what is on this computer already. Jobs see it as it is at each moment."""
        if name not in self._sets:
            self._allow(name, who)
        elif self._sets[name].id is not None:
            raise errors.Busy(
                f"{name} is a data set that was pushed", f"`runner data rm {name}` first, or another name"
            )
        self._look_at(path)
        made = DataSet(name, None, os.path.normpath(path), None, None, time.time(), who.user, who.uid)
        with self._lock:
            self._put(made)
        return made

    def _look_at(self, path: str) -> None:
        """Whether a link may lead there."""
        if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > 4000:
            raise errors.BadRequest(f"{path[:200]!a} is no absolute path", "give the whole path, as it is on the box")
        real, shared = os.path.realpath(path), os.path.realpath(self.shared)
        own = [os.path.realpath(each) for each in (self.directory, self._state)]
        if any(_within(each, real) for each in own) or (_within(real, *own) and not _within(real, shared)):
            raise errors.BadRequest(f"{path} is the queue's own", "link the folder that holds the data, and no other")
        try:
            found = os.stat(path)
            readable = os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(found.st_mode) else 0))
            if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
                raise errors.BadRequest(f"{path} is neither a folder nor a file", "link the folder that holds the data")
        except (FileNotFoundError, NotADirectoryError):
            if self._provisioned and _within(path, *HOMES):
                raise self._unseen(path) from None
            raise errors.NotFound(f"{path} is not on the box", "`ls` it there: is the name right?") from None
        except OSError:
            readable = False
        if not readable and not _within(path, self.shared):  # into which its jobs see, and perhaps not the daemon
            raise self._unseen(path)

    def _unseen(self, path: str) -> errors.Refused:
        if self._provisioned:
            return errors.Refused(
                f"the box's service can't look into {path}, and neither can its jobs: homes are closed to them, and so "
                "is what other users may not read",
                f"move it to {self.shared}, or to another folder, and make it readable: chmod -R a+rX",
            )
        return errors.Refused(f"{path} can't be read", "make it readable: chmod -R u+rX")

    def remove(self, name: str, who: Principal) -> DataSet:
        """The name goes at once; a version when no job has it any more."""
        with self._lock:
            found = self.get(name)
            self._allow(name, who)
            os.unlink(f"{self._names}/{name}")
            files.fsync_dir(self._names)
            del self._sets[name]
            self.view = self._look()
        return found

    def _allow(self, name: str, who: Principal) -> None:
        if not NAME.fullmatch(name) or name == SHARED or name.endswith(".tmp"):
            raise errors.BadRequest(
                f"{name!a} can't be the name of a data set",
                f"up to 64 letters, digits and . _ -, the first a letter or digit; not {SHARED!r}",
            )
        found = self._sets.get(name)
        if found is not None and found.uid != who.uid and who.role != "admin":
            raise errors.Refused(f"{name} is {found.user}'s: you may not change it", "take another name, or ask them")

    # --- what jobs see ---

    def stale_views(self) -> list[str]:
        """Those that no job will get any more. For the thread that starts jobs: asked in the same turn as which jobs
        have one, the answer stays right."""
        current = int(os.path.basename(self.view))
        return [f"{self._views}/{name}" for name in os.listdir(self._views) if int(name) < current]

    def seen(self, view: str, found: DataSet) -> bool:
        """Whether who has this view sees this very version."""
        with suppress(OSError, ValueError):
            return found.id is not None and _version_of(os.readlink(f"{view}/{found.name}")) == found.id
        return False

    def sweep(self, views: Iterable[str]) -> int:
        """Remove stale views, and what no name and no other view leads to. Returns the bytes freed."""
        with self._lock:
            for view in views:
                if view != self.view:
                    remove_tree(view)
            kept = {each.id for each in self._sets.values()}
            for view in os.listdir(self._views):
                for entry in os.scandir(f"{self._views}/{view}"):
                    kept.add(_version_of(os.readlink(entry.path)))
            doomed = []
            for version in os.listdir(self._versions):
                if not version.startswith(_HIDDEN) and version not in kept and not self._damaged:
                    hidden = f"{self._versions}/{_HIDDEN}gone-{version}-{time.monotonic_ns()}"
                    os.rename(f"{self._versions}/{version}", hidden)
                    doomed.append((version, hidden))
        return sum(self._forget(*each) for each in doomed)

    def _forget(self, version: str, hidden: str) -> int:
        shas = {version}
        with suppress(OSError, errors.Problem), open(f"{hidden}/list", "rb") as file:
            shas |= Manifest.parse(file.read(), DATA).sizes.keys()
        remove_tree(hidden)
        return sum(self._unlink(self.blobs.path(sha)) for sha in shas)

    def collect(self, now: float) -> int:
        """Remove what was sent for a push that never came about. Once a day: it looks at every content."""
        stamp = f"{self.directory}/collected"
        with suppress(FileNotFoundError):
            if 0 <= now - os.stat(stamp).st_mtime < DAY:
                return 0
        freed = sum(self._unlink(path, now - DAY) for path in self.blobs.paths())
        files.replace(stamp, b"")
        return freed

    def _unlink(self, path: str, older: float = float("inf")) -> int:
        """A content that no version has. A push that counted on it is told so, and sends it again."""
        with suppress(FileNotFoundError):
            found = os.stat(path)
            if found.st_nlink == 1 and found.st_ctime < older:
                os.unlink(path)
                return found.st_blocks * 512
        return 0

    # --- records ---

    def _version(self, version: str) -> str:
        self.blobs.path(version)  # refuses what is no sha256
        return f"{self._versions}/{version}"

    def _read(self) -> dict[str, DataSet]:
        found = {}
        for name in os.listdir(self._names):
            if NAME.fullmatch(name) and not name.endswith(".tmp"):
                try:
                    with open(f"{self._names}/{name}", "rb") as file:
                        record: dict[str, Any] = json.load(file)
                    record.pop("version")
                    found[name] = DataSet(**record)
                except (ValueError, TypeError, KeyError, AttributeError):
                    self._damaged = True
        return found

    def _put(self, made: DataSet) -> None:
        files.replace(f"{self._names}/{made.name}", json.dumps({"version": files.SCHEMA, **asdict(made)}).encode())
        files.failpoint("data.named")
        self._sets[made.name] = made
        self.view = self._look()

    def _look(self) -> str:
        """A new view."""
        last = max(map(int, os.listdir(self._views)), default=0)
        view = f"{self._views}/{max(time.time_ns(), last + 1)}"
        os.mkdir(view, 0o700)
        os.symlink(self.shared, f"{view}/{SHARED}")
        for each in self._sets.values():
            target = each.path if each.id is None else self.tree(each.id)
            assert target is not None, "a set is a version or a path"
            os.symlink(target, f"{view}/{each.name}")
        os.chmod(view, FOLDER)
        return view


def _version_of(target: str) -> str | None:
    """The version that a link in a view leads to."""
    folder, _, last = target.rpartition("/")
    return os.path.basename(folder) if last == "tree" else None


def _within(path: str, *folders: str) -> bool:
    return any(path == folder or path.startswith(f"{folder.rstrip('/')}/") for folder in folders)
