"""`runner diff`: what changed between the code, the arguments and the options of two jobs, or a job and now."""

from __future__ import annotations

import os
import sys

from runner import errors
from runner.cli import options, output, values
from runner.laptop import boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runner.laptop.client import Client

    Reader = Callable[[str], bytes]

DIFF = """\
Usage: runner diff [OPTIONS] ID [ID]

What changed between two jobs: files, arguments, options. With one ID: between that job and the files here, now.

Options:
  --stat                  name the files only
  --json                  as JSON
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner diff 41 42
  runner diff 41          what changed since job 41
  runner diff --stat 41 42
"""
SHOWN_LIMIT = 1 << 20  # a longer file is named, not compared line by line
COMPARED = (
    "command", "directory", "environment", "cpus", "memory_bytes", "gpus", "gpu_type", "gpu_memory_bytes", "exclusive",
    "gpu_ids", "time_limit", "stop_if_idle", "grace", "retries", "retry_on", "requeue", "env",
)  # fmt: skip
PAINT = {"+": "32", "-": "31", "@": "36"}


class Side:
    """One of the two things compared: its name, its files as in a manifest, and how to read one of them."""

    def __init__(self, label: str, manifest: dict[str, Any], spec: dict[str, Any], read: Reader) -> None:
        self.label, self.spec, self.read = label, spec, read
        self.files = {path: (entry[0], entry[2], entry[1]) for path, entry in manifest["files"].items()}
        self.links: dict[str, str] = manifest["links"]


def diff(arguments: list[str]) -> int:
    given = options.parse(DIFF, arguments)
    ids = values.jobs(given.words, "runner diff") if given.words else []
    if len(given.words) not in (1, 2) or not all(isinstance(part, int) for part in ids):
        raise errors.BadRequest("runner diff takes one or two jobs", "such as `runner diff 41 42`")
    api = boxes.open_box(given.get("--box"))
    old = _job_side(api, int(ids[0]))
    new = _job_side(api, int(ids[-1])) if len(given.words) == 2 else _here(old.spec)
    changes = _options(old.spec, new.spec)
    files = _files(old, new)
    if "--json" in given:
        output.json({"options": changes, "files": [{"path": path, "change": change} for path, change in files]})
        return 0
    for name, (before, after) in changes.items():
        _put(f"-{name}: {_shown(before)}")
        _put(f"+{name}: {_shown(after)}")
    for path, change in files:
        if "--stat" in given:
            output.put(f"{change:<8} {output.clean(path)}\n")
        else:
            _compare(old, new, path)
    if not changes and not files:
        output.say("nothing changed")
    return 0


def _job_side(api: Client, job_id: int) -> Side:
    spec = api.get(f"/jobs/{job_id}")["spec"]
    none: dict[str, Any] = {"files": {}, "links": {}, "dirs": []}
    manifest = api.get(f"/jobs/{job_id}/files") if spec.get("snapshot") else none
    return Side(f"job {job_id}", manifest, spec, lambda sha: b"".join(api.stream("GET", f"/blobs/{sha}")))


def _here(spec: dict[str, Any]) -> Side:
    """The project's files as they are; the options are taken to be the same."""
    from runner.laptop import snapshot

    root = snapshot.root_of(os.getcwd())
    found = snapshot.begin(root).finish()
    found.remember()
    parts = found.parts
    by_sha = {entry[2]: path for path, entry in parts["files"].items()}

    def read(sha: str) -> bytes:
        with open(os.path.join(root, by_sha[sha]), "rb") as file:
            return file.read()

    return Side("here", parts, spec, read)


def _options(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (old.get(name), new.get(name)) for name in COMPARED if old.get(name) != new.get(name)}


def _files(old: Side, new: Side) -> list[tuple[str, str]]:
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


def _compare(old: Side, new: Side, path: str) -> None:
    """One file as a unified diff; a link is a file that says where it points."""
    import difflib

    before, after = _content(old, path), _content(new, path)
    names = (f"{old.label}/{path}", f"{new.label}/{path}")
    if before is None or after is None:
        _put(f"{names[0]} and {names[1]} differ (binary, or over {output.size(SHOWN_LIMIT)})")
        return
    modes = [side.files[path][0] if path in side.files else None for side in (old, new)]
    if None not in modes and modes[0] != modes[1]:
        _put(f"{path}: mode {modes[0]:o} is now {modes[1]:o}")
    for line in difflib.unified_diff(before, after, *names, lineterm=""):
        _put(line)


def _content(side: Side, path: str) -> list[str] | None:
    if path in side.links:
        return [f"link to {side.links[path]}"]
    if path not in side.files:
        return []
    _, sha, size = side.files[path]
    if size > SHOWN_LIMIT:
        return None
    data = side.read(sha)
    return None if b"\0" in data[:8000] else data.decode("utf-8", "replace").splitlines()


def _put(line: str) -> None:
    shown = line[:1] + output.clean(line[1:].expandtabs())
    paint = PAINT.get(line[:1]) if output.colours(sys.stdout) else None
    output.put(f"\x1b[{paint}m{shown}\x1b[0m\n" if paint else f"{shown}\n")


def _shown(value: Any) -> str:
    return output.line(value) if isinstance(value, list) else str(value)
