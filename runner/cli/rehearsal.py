"""`runner submit --dry-run`: what would be sent, said and not sent."""

from __future__ import annotations

import os

from runner.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.options import Given
    from runner.laptop.snapshot import Snapshot


def rehearse(given: Given, body: dict[str, Any], snap: Snapshot | None, start: str) -> int:
    spec = body["spec"]
    if snap:
        spec["snapshot"] = snap.id
    wanted = spec.get("environment")  # as typed: base, conda:NAME
    environment = wanted or _declared_environment(spec, start)
    size = {"count": snap.count, "bytes": snap.bytes} if snap else {"count": 0, "bytes": 0}
    if "--json" in given:
        output.json({**body, "files": size, "environment": environment})
        return 0
    count = len(body.get("array") or ()) or 1
    for choices in (body.get("sweep") or {}).values():
        count *= len(choices)
    rows = [
        ("jobs", str(count)),
        ("command", output.line(spec["command"])),
        ("directory", os.path.join(spec["project"], spec.get("directory", "")).rstrip("/") or "/"),
        ("files", f"{size['count']}, {output.size(size['bytes'])} (what the box has is not sent again)"),
        ("environment", environment),
    ]
    for name, text in rows:
        output.put(f"{name:<12} {output.clean(text)}\n")
    for warning in snap.warnings if snap else ():
        output.say(f"note: {warning}")
    output.say("nothing was sent")
    return 0


def _declared_environment(spec: dict[str, Any], start: str) -> str:
    """Where the box will find what the job needs installed, in the order in which it looks."""
    if spec.get("script") and start.endswith(".py"):
        with open(start, "rb") as file:
            if b"\n# /// script" in b"\n" + file.read(64 << 10):
                return f"declared in {spec['script']}"
    for name in ("requirements.txt", "uv.lock", "pyproject.toml"):
        if spec.get("snapshot") and os.path.exists(os.path.join(spec["project"], name)):
            return f"declared in {name}"
    return "base"
