"""PURE: two jobs side by side: what was asked for and which files each was given. For `runner diff` and its page."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

COMPARED = (
    "command", "directory", "environment", "cpus", "memory_bytes", "gpus", "gpu_type", "gpu_memory_bytes", "exclusive",
    "gpu_ids", "time_limit", "stop_if_idle", "grace", "retries", "retry_on", "requeue", "env",
)  # fmt: skip
SHOWN_LIMIT = 1 << 20  # bytes; a longer file is named, not compared line by line
BINARY_LOOK = 8000  # bytes, in which a file that is no text has a zero


class Side:
    """One of the two: its name, options, files (path -> mode, size, sha256), and how to read one by its sha256."""

    def __init__(
        self,
        label: str,
        spec: dict[str, Any],
        files: Mapping[str, Any],
        links: Mapping[str, str],
        read: Callable[[str], bytes],
    ) -> None:
        self.label, self.spec, self.links, self.read = label, spec, links, read
        self.files = {path: (entry[0], entry[2], entry[1]) for path, entry in files.items()}


def options(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Option -> before and after, of those that differ."""
    return {name: (old.get(name), new.get(name)) for name in COMPARED if old.get(name) != new.get(name)}


def files(old: Side, new: Side) -> list[tuple[str, str]]:
    """(path, added | removed | changed | mode), in order."""
    found = []
    for path in sorted({*old.files, *new.files, *old.links, *new.links}):
        before, after = old.files.get(path), new.files.get(path)
        if before == after and old.links.get(path) == new.links.get(path):
            continue
        if path not in old.files and path not in old.links:
            found.append((path, "added"))
        elif path not in new.files and path not in new.links:
            found.append((path, "removed"))
        else:
            found.append((path, "mode" if before and after and before[1] == after[1] else "changed"))
    return found


def lines(old: Side, new: Side, path: str, most: int = SHOWN_LIMIT) -> list[str]:
    """One file as a unified diff; a link is a file that says where it points. most: bytes that are compared."""
    import difflib

    before, after = _content(old, path, most), _content(new, path, most)
    names = (f"{old.label}/{path}", f"{new.label}/{path}")
    if before is None or after is None:
        return [f"{names[0]} and {names[1]} differ (binary, or over {most >> 10:,} KiB)"]
    modes = [side.files[path][0] if path in side.files else None for side in (old, new)]
    told = [f"{path}: mode {modes[0]:o} is now {modes[1]:o}"] if None not in modes and modes[0] != modes[1] else []
    return told + list(difflib.unified_diff(before, after, *names, lineterm=""))


def _content(side: Side, path: str, most: int) -> list[str] | None:
    """None: it can't be shown by lines."""
    if path in side.links:
        return [f"link to {side.links[path]}"]
    if path not in side.files:
        return []
    _, sha, size = side.files[path]
    if size > most:
        return None
    data = side.read(sha)
    return None if b"\0" in data[:BINARY_LOOK] else data.decode("utf-8", "replace").splitlines()
