"""`runner diff`: what changed between the code, the arguments and the options of two jobs, or a job and now."""

from __future__ import annotations

import os
import sys

from runner import comparison, errors
from runner.cli import options, output, values
from runner.comparison import Side
from runner.laptop import boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.laptop.client import Client

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
PAINT = {"+": "32", "-": "31", "@": "36"}


def diff(arguments: list[str]) -> int:
    given = options.parse(DIFF, arguments)
    ids = values.jobs(given.words, "runner diff") if given.words else []
    if len(given.words) not in (1, 2) or not all(isinstance(part, int) for part in ids):
        raise errors.BadRequest("runner diff takes one or two jobs", "such as `runner diff 41 42`")
    api = boxes.open_box(given.get("--box"))
    old = _job_side(api, int(ids[0]))
    new = _job_side(api, int(ids[-1])) if len(given.words) == 2 else _here(old.spec)
    changes = comparison.options(old.spec, new.spec)
    files = comparison.files(old, new)
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
            for line in comparison.lines(old, new, path):
                _put(line)
    if not changes and not files:
        output.say("nothing changed")
    return 0


def _job_side(api: Client, job_id: int) -> Side:
    spec = api.get(f"/jobs/{job_id}")["spec"]
    none: dict[str, Any] = {"files": {}, "links": {}, "dirs": []}
    manifest = api.get(f"/jobs/{job_id}/files") if spec.get("snapshot") else none
    read = lambda sha: b"".join(api.stream("GET", f"/blobs/{sha}"))  # noqa: E731
    return Side(f"job {job_id}", spec, manifest["files"], manifest["links"], read)


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

    return Side("here", spec, parts["files"], parts["links"], read)


def _put(line: str) -> None:
    shown = line[:1] + output.clean(line[1:].expandtabs())
    paint = PAINT.get(line[:1]) if output.colours(sys.stdout) else None
    output.put(f"\x1b[{paint}m{shown}\x1b[0m\n" if paint else f"{shown}\n")


def _shown(value: Any) -> str:
    return output.line(value) if isinstance(value, list) else str(value)
