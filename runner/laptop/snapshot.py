"""A project's files as one value: found, hashed where they changed, named by one hash. delivery.py sends it to a box.

    walk = begin(root_of("train.py"))   git starts listing
    ...                                 the caller does other work
    snapshot = walk.finish()            nothing is read or hashed that the index knows
    snapshot.remember()                 for the next look; it can wait until the box is at work

Modules that cost milliseconds (hashlib, json, walk, pathspec) are imported when something did change.
"""

from __future__ import annotations

import os
import time

from runner import errors
from runner.laptop import git, hashes, index
from runner.laptop.git import shown
from runner.laptop.light import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from runner.laptop.walk import Names


LIMIT_BYTES = 1 << 30
LIMIT_FILES = 100_000
TRIES = hashes.TRIES


# --- where a project begins ----------------------------------------------------------------------------------------


def root_of(script_or_cwd: str) -> str:
    """The git root around a script or folder, else the nearest folder with a pyproject.toml, else the script's."""
    folder = os.path.abspath(script_or_cwd)
    if not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    folder = os.path.realpath(folder)
    root = _above(folder, ".git") or _above(folder, "pyproject.toml") or folder
    if root in ("/", os.path.realpath(os.path.expanduser("~"))):
        raise errors.BadRequest(
            f"the project's root would be {shown(root)}, and with it everything in there",
            f"run `git init` in the project's own folder (is it {shown(folder)}?)"
            if folder != root
            else "move the script to a folder of its own",
        )
    return root


def _above(folder: str, name: str) -> str | None:
    while not os.path.lexists(os.path.join(folder, name)):
        if folder == "/":
            return None
        folder = os.path.dirname(folder)
    return folder


# --- the value -----------------------------------------------------------------------------------------------------


class Snapshot:
    """id: the hash of its manifest. base: a snapshot that a box may know, as the nearest to tell changes from."""

    __slots__ = (
        "_before", "_columns", "_parts", "base", "bytes", "count", "id", "limits", "root", "seen", "sent", "unchanged",
        "warnings",
    )  # fmt: skip

    def __init__(
        self,
        root: str,
        seen: index.Index,
        before: index.Index | None,
        limits: tuple[int, int],
        columns: dict[str, Any] | None = None,
    ) -> None:
        """columns: of the index, as far as they are not yet written."""
        self.root = root
        self._columns = columns
        self.seen = seen
        self.limits = limits
        self._before = before
        self._parts: dict[str, Any] | None = None
        self.id = seen.snapshot
        self.base = before.snapshot if before else None
        self.bytes = seen.bytes
        self.count = len(seen.files)
        self.warnings = seen.warnings
        self.unchanged = before is seen
        self.sent = 0  # contents that the box lacked

    @property
    def parts(self) -> dict[str, Any]:
        if self._parts is None:
            self._parts = self.seen.parts()
        return self._parts

    def remember(self) -> None:
        """Write the index, unless it says this already. Without it the next look reads again what this one did."""
        columns, self._columns = self._columns, None
        if columns is not None:
            index.save(self.root, columns)

    def offer(self, whole: bool) -> dict[str, Any]:
        """The list of files as a box takes it: all of it, or what changed since the base; links or dirs of None are as
        they were there."""
        parts = self.parts
        files, links, empty = parts["files"], parts["links"], parts["dirs"]
        body: dict[str, Any] = {
            "id": self.id,
            "base": None,
            "files": files,
            "removed": [],
            "links": links,
            "dirs": empty,
        }
        if whole or self._before is None:
            return body
        body["base"] = self.base
        if self._before.files == self.seen.files:
            body["files"] = self.seen.edits(self._before)
        else:
            old = self._before.parts()["files"]
            body["files"] = {path: entry for path, entry in files.items() if old.get(path) != entry}
            body["removed"] = [path for path in old if path not in files]
        if (self.seen.links, self.seen.targets) == (self._before.links, self._before.targets):
            body["links"] = None
        if empty == self._before.empty:
            body["dirs"] = None
        return body


def manifest_bytes(parts: Mapping[str, Any]) -> bytes:
    manifest = {"version": 1, "files": parts["files"], "links": parts["links"], "dirs": sorted(parts["dirs"])}
    return dumps(manifest, ordered=True).encode("ascii")


def read_manifest(data: bytes) -> dict[str, Any]:
    """The parts of a manifest that a box sent."""
    try:
        manifest = loads(data.decode("ascii"))
        if manifest["version"] == 1:
            return {"files": manifest["files"], "links": manifest["links"], "dirs": manifest["dirs"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise errors.BadData("the box sent a list of files that can't be read", "see `runner doctor`") from None
    raise errors.BadData("the box sent a list of files of a newer version", "upgrade this `runner`")


# --- looking -------------------------------------------------------------------------------------------------------


class Walk:
    """A look at a project that has begun: git runs beside us until finish() needs its answers."""

    __slots__ = ("_began", "_include", "_known", "_limits", "_questions", "root")

    def __init__(self, root: str, include: list[str], limits: tuple[int, int], known: bool) -> None:
        self.root = root
        self._include = include
        self._limits = limits
        self._questions: dict[str, git.Question] = {}
        self._began = time.time_ns()
        if os.path.lexists(f"{root}/.git"):
            self._questions[""] = git.listing(root, top=True)
        self._known = index.load(root) if known else None
        for prefix in self._known.listings if self._known else ():
            if prefix and os.path.lexists(f"{root}/{prefix}.git"):
                self._questions[prefix] = git.listing(f"{root}/{prefix}", top=False)

    def finish(self) -> Snapshot:
        known = self._known
        stats = index.stats_of(self.root, known.paths()) if known else []
        listings = {prefix: question.answer() for prefix, question in self._questions.items()}
        self._questions = {}
        if (
            known
            and stats == known.stats
            and listings == known.listings
            and known.include == self._include
            and known.bytes <= self._limits[0]
            and len(known.files) <= self._limits[1]
        ):
            return Snapshot(self.root, known, known, self._limits)
        if known and listings == known.listings and known.include == self._include:
            columns = _mend(self.root, known, stats, self._began, self._limits)
            if columns:
                return Snapshot(self.root, index.Index(columns), known, self._limits, columns)
        return self._look(listings.get(""))

    def _look(self, top: str | None) -> Snapshot:
        from runner.laptop import walk

        known = self._known.known() if self._known else {}
        for _ in range(TRIES):
            try:
                names = walk.of(self.root, top, self._include)
                _check_size(names, *self._limits)
                columns = _hash(names, known, self._began)
                return Snapshot(self.root, index.Index(columns), self._known, self._limits, columns)
            except FileNotFoundError:
                continue  # a file went between being found and being read: look again
            except OSError as error:
                raise hashes.unreadable(os.path.relpath(os.fsdecode(error.filename or "."), self.root), error) from None
        raise errors.BadData("files disappear while they are read", "wait until nothing changes them, and try again")


def begin(
    root: str,
    include: Iterable[str] = (),
    limit_bytes: int = LIMIT_BYTES,
    limit_files: int = LIMIT_FILES,
    known: bool = True,
) -> Walk:
    """Start looking at a project. include: names that belong to it though ignored or secret. known: trust the index."""
    names = list(include)
    if names:
        from runner.laptop import walk

        names = walk.included(names)
    return Walk(root, names, (limit_bytes, limit_files), known)


def _hash(names: Names, known: dict[str, tuple[index.Stamp, str]], began_ns: int) -> dict[str, Any]:
    """Name every file by its content, reading only those that the index does not know: the columns of a new index."""
    sha256 = hashes.sha256()
    files: dict[str, tuple[index.Stamp, str]] = {}
    for path, stamp in names.files.items():
        entry = known.get(path)
        files[path] = entry if entry and entry[0] == stamp else hashes.of_file(names.root, path, sha256)
    entries = {path: [index.mode_of(stamp[4]), stamp[0], sha] for path, (stamp, sha) in files.items()}
    links = {path: target for path, (_, target) in names.links.items()}
    manifest = manifest_bytes({"files": entries, "links": links, "dirs": names.empty})
    stamps = [stamp for stamp, _ in files.values()]
    stamps += [stamp for stamp, _ in names.links.values()]
    stamps += [*names.folders.values(), *names.watched.values()]
    return {
        "snapshot": sha256(manifest).hexdigest(),
        "include": names.include,
        "bytes": sum(stamp[0] for stamp, _ in files.values()),
        "listings": names.listings,
        "files": "\0".join(files),
        "shas": "".join(sha for _, sha in files.values()),
        "links": "\0".join(links),
        "targets": "\0".join(links.values()),
        "folders": "\0".join(names.folders),
        "watched": "\0".join(names.watched),
        "passed": "\0".join(names.passed),
        "empty": names.empty,
        "warnings": names.warnings,
        "stats": index.settled(stamps, began_ns),
    }


def _mend(
    root: str, known: index.Index, stats: list[int], began_ns: int, limits: tuple[int, int]
) -> dict[str, Any] | None:
    """The last look with the edits since, as the columns of a new index; None when a new look is needed."""
    from runner.laptop import edits

    found = edits.mended(root, known, stats)
    if found is None or found.bytes > limits[0] or len(known.files) > limits[1]:
        return None
    columns = known.columns()
    columns["shas"] = "".join(found.shas)
    columns["bytes"] = found.bytes
    columns["stats"] = [number for stamp in found.stamps for number in stamp]
    manifest = manifest_bytes(index.Index(columns).parts())
    columns["snapshot"] = hashes.sha256(len(manifest))(manifest).hexdigest()
    columns["stats"] = index.settled(found.stamps, began_ns)
    return columns


# --- size ----------------------------------------------------------------------------------------------------------


def _check_size(names: Names, limit_bytes: int, limit_files: int) -> None:
    sizes = {path: stamp[0] for path, stamp in names.files.items()}
    total = sum(sizes.values())
    if total > limit_bytes:
        problem = f"the project's files are {size_text(total)}, the limit is {size_text(limit_bytes)}"
        largest = ", ".join(f"{shown(path)} ({size_text(size)})" for path, size in _largest(sizes))
        otherwise = ", or raise the limit with --max-size"
    elif len(sizes) > limit_files:
        problem = f"the project has {len(sizes):,} files, the limit is {limit_files:,}"
        largest = ", ".join(f"{shown(path)} ({n:,})" for path, n in _largest(dict.fromkeys(sizes, 1)))
        otherwise = ""
    else:
        return
    raise errors.TooLarge(
        f"{problem}; largest: {largest}",
        f"leave them out with lines in .runnerignore (data: `runner data push`){otherwise}",
    )


def _largest(sizes: Mapping[str, int], number: int = 5) -> list[tuple[str, int]]:
    """The heaviest files and folders, none inside another: a folder stands for what it holds, unless one thing in it
    is nearly all of its weight."""
    weights: dict[str, int] = {}
    children: dict[str, set[str]] = {}
    for path, size in sizes.items():
        below = path
        weights[path] = weights.get(path, 0) + size
        while below:
            above = below.rpartition("/")[0]
            children.setdefault(above, set()).add(below)
            weights[above] = weights.get(above, 0) + size
            below = above

    def heaviest(folder: str) -> list[str]:
        return sorted(children[folder], key=lambda path: (-weights[path], path))

    chosen = []
    for path in heaviest("")[:number]:
        while path in children and weights[heaviest(path)[0]] >= 0.8 * weights[path]:
            path = heaviest(path)[0]
        chosen.append((f"{path}/" if path in children else path, weights[path]))
    return chosen


def size_text(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
