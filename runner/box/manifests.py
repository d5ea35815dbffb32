"""Manifests: a snapshot's list of files, and the checks that keep a hostile one inside its own tree."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

from runner import errors, words

VERSION = 1
LIMIT_FILES = 100_000
LIMIT_BYTES = 64 << 30  # of one snapshot; a laptop's own limit is far lower
LIMIT_DEPTH = 64
SHA = re.compile(r"[0-9a-f]{64}")


class Limits(NamedTuple):
    files: int
    bytes: int
    hint: str


CODE = Limits(LIMIT_FILES, LIMIT_BYTES, "leave data out in .runnerignore; `runner data push` is for data")
DATA = Limits(1_000_000, 1 << 50, "put many small files into archives: a training reads those faster, too")


@dataclass(slots=True, frozen=True)
class Manifest:
    """A snapshot: every file's mode, size and content, every link's target, every empty folder. Always valid."""

    id: str
    files: dict[str, tuple[int, int, str]]
    links: dict[str, str]
    dirs: list[str]
    data: bytes = field(repr=False, compare=False)  # the way it is written down

    @classmethod
    def parse(cls, data: bytes, limits: Limits = CODE) -> Manifest:
        """BadData when it is not a manifest, or would write anywhere but into its own tree."""
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError):
            raise _hostile("it is not JSON") from None
        if not isinstance(raw, dict) or raw.get("version") != VERSION:
            raise _hostile(f"it is not of version {VERSION}")
        if raw.keys() != {"version", "files", "links", "dirs"}:
            raise _hostile("it has other parts than files, links and dirs")
        return cls.of(raw["files"], raw["links"], raw["dirs"], limits)

    @classmethod
    def of(cls, files: object, links: object, dirs: object, limits: Limits = CODE) -> Manifest:
        checked = _files(files, limits)
        targets = _links(links)
        empty = _dirs(dirs)
        if len(checked) + len(targets) + len(empty) > limits.files:
            raise errors.TooLarge(f"at most {limits.files:,} files are taken at once", limits.hint)
        _small_enough(checked, limits)
        _one_tree([*checked, *targets, *empty])
        data = manifest_bytes(checked, targets, empty)
        return cls(sha256(data).hexdigest(), checked, targets, empty, data)

    def edited(self, files: Mapping[str, object], limits: Limits = CODE) -> Manifest:
        """The same tree with other contents or modes of some files: it is as valid as this one was."""
        whole = {**self.files, **_files(files, limits)}
        _small_enough(whole, limits)
        data = manifest_bytes(whole, self.links, self.dirs)
        return Manifest(sha256(data).hexdigest(), whole, self.links, self.dirs, data)

    @property
    def bytes(self) -> int:
        return sum(size for _, size, _ in self.files.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Content -> its size."""
        return {sha: size for _, size, sha in self.files.values()}

    def folders(self) -> list[str]:
        """Every folder, those above before those in them."""
        found = set(self.dirs)
        for path in (*self.files, *self.links):
            while "/" in path:
                path = path.rpartition("/")[0]
                if path in found:
                    break
                found.add(path)
        for path in self.dirs:
            found.update(_ancestors(path))
        return sorted(found)


def manifest_bytes(files: Mapping[str, Sequence[Any]], links: Mapping[str, str], dirs: Sequence[str]) -> bytes:
    """The one way to write a manifest down: its hash is the snapshot's id."""
    whole = {"version": VERSION, "files": files, "links": links, "dirs": dirs}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def apply_changes(
    base: Manifest | None,
    snapshot: str,
    files: object,
    removed: object,
    links: object,
    dirs: object,
    limits: Limits = CODE,
) -> Manifest:
    """The manifest that `snapshot` names, from one that the box has and what changed. links and dirs: all of them, or
    None: as they were."""
    if not isinstance(files, dict) or not isinstance(removed, list):
        raise _hostile("files or removed are missing")
    if base is not None and links is None and dirs is None and not removed and files.keys() <= base.files.keys():
        manifest = base.edited(files, limits)
    else:
        gone = set(map(str, removed))
        kept = {path: entry for path, entry in base.files.items() if path not in gone} if base else {}
        links = base.links if base is not None and links is None else links
        dirs = base.dirs if base is not None and dirs is None else dirs
        manifest = Manifest.of({**kept, **files}, links, dirs, limits)
        plain(manifest)
    if manifest.id != snapshot:
        raise errors.BadData(
            "the list of files does not match the snapshot's name", "submit again; if it stays, see `runner doctor`"
        )
    return manifest


def plain(manifest: Manifest) -> None:
    """BadData: a name holds control characters. Asked of what comes; what came before this was asked still runs."""
    names = (*manifest.files, *manifest.links, *manifest.dirs)
    if not words.CONTROL.isdisjoint("".join(names)):
        odd = next(path for path in names if not words.CONTROL.isdisjoint(path))
        raise _hostile(f"control characters are in the name {odd!a}")


def _hostile(why: str) -> errors.BadData:
    return errors.BadData(f"the list of files can't be used: {why}", "upgrade `runner` and submit again")


def _small_enough(files: Mapping[str, tuple[int, int, str]], limits: Limits) -> None:
    if sum(size for _, size, _ in files.values()) > limits.bytes:
        raise errors.TooLarge(f"more than {limits.bytes >> 30:,} GiB is not taken at once", limits.hint)


def _files(value: object, limits: Limits) -> dict[str, tuple[int, int, str]]:
    if not isinstance(value, dict):
        raise _hostile("files is not an object")
    checked = {}
    for path, entry in value.items():
        _check_path(path)
        if not isinstance(entry, (list, tuple)) or len(entry) != 3:
            raise _hostile(f"{path!a} is not [mode, size, sha256]")
        mode, size, sha = entry
        if mode not in (0o644, 0o755) or type(mode) is not int:
            raise _hostile(f"{path!a} has the mode {mode!a}")
        if type(size) is not int or not 0 <= size <= limits.bytes:
            raise _hostile(f"{path!a} has the size {size!a}")
        if not isinstance(sha, str) or not SHA.fullmatch(sha):
            raise _hostile(f"{path!a} has no sha256")
        checked[path] = (mode, size, sha)
    return checked


def _links(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _hostile("links is not an object")
    for path, target in value.items():
        _check_path(path)
        if not isinstance(target, str) or not target or "\0" in target or len(_encoded(target)) > 4095:
            raise _hostile(f"the link {path!a} has no target")
        parts = [part for part in target.split("/") if part not in ("", ".")]
        ups = next((n for n, part in enumerate(parts) if part != ".."), len(parts))
        # `..` after a name could step out of wherever that name, itself a link, leads.
        if target.startswith("/") or ups > path.count("/") or ".." in parts[ups:]:
            raise _hostile(f"the link {path!a} leads out of the tree")
    return value


def _dirs(value: object) -> list[str]:
    if not isinstance(value, list):
        raise _hostile("dirs is not a list")
    for path in value:
        _check_path(path)
    if value != sorted(set(value)):
        raise _hostile("dirs is not sorted")
    return value


def _check_path(path: object) -> None:
    if not isinstance(path, str) or not path or "\0" in path:
        raise _hostile(f"{path!a} is not a path")
    parts = path.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        raise _hostile(f"{path!a} is not a path inside a tree")
    encoded = _encoded(path)
    if len(parts) > LIMIT_DEPTH or len(encoded) > 3000 or (len(encoded) > 255 and max(map(_size, parts)) > 255):
        raise _hostile(f"{path[:80]!a}... is too long or too deep")


def _encoded(text: str) -> bytes:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        raise _hostile(f"{text!a} can't be a file's name") from None


def _size(part: str) -> int:
    return len(_encoded(part))


def _one_tree(paths: list[str]) -> None:
    """Nothing twice, and nothing below what is not a plain folder."""
    known = set(paths)
    if len(known) != len(paths):
        raise _hostile("a path is named twice")
    for path in paths:
        for above in _ancestors(path):
            if above in known:
                raise _hostile(f"{path!a} lies below {above!a}, which is not a folder with things in it")


def _ancestors(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
