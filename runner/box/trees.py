"""Trees: the folders that jobs run in, made from a manifest and blobs, never linked to them."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256

from runner import errors, files
from runner.box.blobs import Blobs, disk_words
from runner.box.manifests import Manifest

PIECE = 1 << 20
SPARE_BYTES = 256 << 20  # a spare tree larger than this is not worth its room
SPARE_CHANGES = 200  # differences up to which patching a spare beats making a tree

_BOOT = ".boot"
_GONE = ".gone-"
Stamps = dict[str, tuple[int, int, int, int, int]]


def make_tree(blobs: Blobs, manifest: Manifest, destination: str) -> None:
    """Lay a snapshot out in a new folder. It appears complete or not at all; every content is checked on the way."""
    making = f"{os.path.dirname(destination)}/.making-{os.path.basename(destination)}"
    try:
        with disk_words("the code could not be laid out"):
            remove_tree(making)
            os.mkdir(making, 0o700)
            for folder in manifest.folders():
                os.mkdir(f"{making}/{folder}", 0o755)
            for path, entry in manifest.files.items():
                _copy(blobs, entry, path, f"{making}/{path}")
            for path, target in manifest.links.items():  # last: nothing is ever written through one
                os.symlink(target, f"{making}/{path}")
            os.rename(making, destination)
    except BaseException:
        remove_tree(making)
        raise
    files.failpoint("code.tree.made")


def _copy(blobs: Blobs, entry: tuple[int, int, str], path: str, destination: str) -> None:
    """Read, check, write. The reading is needed for the check, so letting the kernel copy would save nothing."""
    mode, size, sha = entry
    try:
        source = os.open(f"{blobs.directory}/{sha[:2]}/{sha[2:]}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        blobs.losses += 1
        raise errors.StateDamaged(
            f"the content of {path!a} is missing on the box", "submit again from your computer, which sends it anew"
        ) from None
    try:
        target = os.open(destination, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            digest = sha256()
            while piece := os.read(source, min(size + 1, PIECE)):
                digest.update(piece)
                written = os.write(target, piece)
                while written < len(piece):
                    written += os.write(target, piece[written:])
            os.fchmod(target, mode)  # whatever the umask
        finally:
            os.close(target)
    finally:
        os.close(source)
    if digest.hexdigest() != sha:
        blobs.damaged(sha, f"the content of {path!a}")


def remove_tree(path: str) -> None:
    """Remove a tree, also one whose folders were made read-only."""
    shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(path):
        return
    _open_up(path)
    for folder, below, _ in os.walk(path):
        for name in below:
            _open_up(f"{folder}/{name}")
    shutil.rmtree(path, ignore_errors=True)


def _open_up(folder: str) -> None:
    if not os.path.islink(folder):
        with suppress(OSError):  # of another user, as containers leave them
            os.chmod(folder, 0o700)


class Trees:
    """`<directory>/<job id>`: the work trees of the next few jobs.

    One spare tree of the snapshot last prepared waits in `.spare`. A job of the same or nearly the same snapshot gets
    it, patched, by rename, which takes a tenth of making a tree; it is given away, never shared. It is only trusted
    while every file and folder in it carries the times and inode that it had when we made it.
    """

    def __init__(
        self,
        directory: str,
        blobs: Blobs,
        hand_over: Callable[[int], None] = lambda job_id: None,
        remove: Callable[[str], None] = remove_tree,
    ) -> None:
        """hand_over: give the tree of a job to whom jobs run as. remove: a hidden one, whosever it is by then."""
        self.directory = directory
        self._blobs = blobs
        self._give, self._delete = hand_over, remove
        self._lock = threading.Lock()
        self._spare: tuple[Manifest, Stamps] | None = None
        self._sparing: str | None = None  # the snapshot whose spare is being made
        self._count = 0
        os.makedirs(directory, 0o700, exist_ok=True)
        self._forget_other_boots()

    def path(self, job_id: int) -> str:
        return f"{self.directory}/{job_id}"

    def make(self, job_id: int, snapshot: str) -> str:
        """The tree of a job; made once, also when asked again after a crash."""
        destination = self.path(job_id)
        if not os.path.isdir(destination):
            manifest = self._blobs.manifest(snapshot)
            if not self._reuse(manifest, destination):
                make_tree(self._blobs, manifest, destination)
        self._give(job_id)
        return destination

    def prepare(self, snapshot: str) -> bool:
        """Make the spare tree, for a quiet moment after a job was started. False when there is nothing to do."""
        manifest = self._blobs.manifest(snapshot)
        with self._lock:
            if self._spare is not None and self._spare[0].id == snapshot:
                return False
            if manifest.bytes > SPARE_BYTES or not manifest.files:
                return False
            self._drop_spare()
            self._sparing = snapshot
            try:
                make_tree(self._blobs, manifest, self._spare_path)
            finally:
                self._sparing = None
            self._spare = manifest, _stamps(self._spare_path, manifest)
        return True

    def remove(self, job_id: int) -> None:
        """The tree's name is gone at once; its files as far as they can be removed, the rest at the next sweep."""
        self._remove(str(job_id))

    def sweep(self, keep: Iterable[int]) -> None:
        """Remove every tree but those of these jobs, and what a crash left half made."""
        kept = {_BOOT, *map(str, keep)}
        with self._lock:
            if self._spare is not None:
                kept.add(os.path.basename(self._spare_path))
            for name in os.listdir(self.directory):
                if name not in kept:
                    self._remove(name)

    def _forget_other_boots(self) -> None:
        """Trees are not synced, because making one again is cheap: after a power cut none can be trusted."""
        stamp = f"{self.directory}/{_BOOT}"
        try:
            with open(stamp) as file:
                same = file.read() == files.boot_id()
        except FileNotFoundError:
            same = False
        if not same:
            self.sweep(())
            files.replace(stamp, files.boot_id().encode())

    @property
    def _spare_path(self) -> str:
        return f"{self.directory}/.spare"

    def _remove(self, name: str) -> None:
        gone = f"{self.directory}/{name}"
        if not name.startswith(_GONE):
            self._count += 1
            gone = f"{self.directory}/{_GONE}{name}-{os.getpid()}-{self._count}"
            try:
                os.rename(f"{self.directory}/{name}", gone)
            except FileNotFoundError:
                return
        self._delete(gone)

    def _drop_spare(self) -> None:
        self._spare = None
        self._remove(os.path.basename(self._spare_path))

    def _reuse(self, manifest: Manifest, destination: str) -> bool:
        if not self._lock.acquire(blocking=self._sparing == manifest.id):
            return False  # a spare of other code is being made: do not wait for it
        try:
            if self._spare is None:
                return False
            old, stamps = self._spare
            patch = _Patch(old, manifest)
            if patch.changes > SPARE_CHANGES:
                return False
            self._spare = None
            try:
                if _stamps(self._spare_path, old) == stamps:
                    patch.apply(self._blobs, self._spare_path)
                    os.rename(self._spare_path, destination)
                    files.failpoint("code.tree.made")
                    return True
            except (OSError, errors.Problem):
                pass  # make_tree meets the same trouble, and names it
            self._drop_spare()
            return False
        finally:
            self._lock.release()


def _stamps(tree: str, manifest: Manifest) -> Stamps:
    """What can't be kept while changing a tree: the times and inode of everything in it."""
    found: Stamps = {}
    for path in ("", *manifest.folders(), *manifest.files, *manifest.links):
        try:
            status = os.lstat(f"{tree}/{path}" if path else tree)
        except OSError:
            continue
        found[path] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


class _Patch:
    """The way from one tree to another."""

    def __init__(self, old: Manifest, new: Manifest) -> None:
        self.written = {path: entry for path, entry in new.files.items() if old.files.get(path) != entry}
        self.linked = {path: target for path, target in new.links.items() if old.links.get(path) != target}
        self.unlinked = [path for path in old.files if new.files.get(path) != old.files[path]]
        self.unlinked += [path for path in old.links if new.links.get(path) != old.links[path]]
        before, after = old.folders(), new.folders()
        staying = set(before) & set(after)
        self.unfolded = [folder for folder in reversed(before) if folder not in staying]
        self.folded = [folder for folder in after if folder not in staying]

    @property
    def changes(self) -> int:
        parts = (self.written, self.linked, self.unlinked, self.unfolded, self.folded)
        return sum(len(part) for part in parts)

    def apply(self, blobs: Blobs, tree: str) -> None:
        act: Callable[[str], None]
        for act, paths in ((os.unlink, self.unlinked), (os.rmdir, self.unfolded), (os.mkdir, self.folded)):
            for path in paths:
                act(f"{tree}/{path}")
        for path in self.folded:
            os.chmod(f"{tree}/{path}", 0o755)
        for path, entry in self.written.items():
            _copy(blobs, entry, path, f"{tree}/{path}")
        for path, target in self.linked.items():
            os.symlink(target, f"{tree}/{path}")
