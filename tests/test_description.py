"""The API keeps to its own description: schemathesis asks a real daemon what docs/openapi.json allows, and what not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tools
import wire

pytestmark = pytest.mark.long
# These end the daemon or our own token, or never end.
APART = r"/box/(stop|restart)$|/events$|/follow$|/tokens/\{"
# What JSON Schema can't say (two times in order, the bytes of an upload); 0 for false; and that an environment might be
# called "prune". Every other check is made.
TOLERATED = {"Schema-valid request rejected", "Schema-violating request accepted", "Allow header mismatch"}


def test_every_answer_is_as_described_and_none_is_a_fault_of_ours(figure: Callable[[str], None]) -> None:
    with wire.place() as folder:
        box = wire.Box(Path(folder), https="127.0.0.1:0", cpus="4")
        try:
            box.start()
            box.ended(box.submit(wire.HELLO))
            minted = box.post("/tokens", {"scope": "admin", "label": "asks"})
            token, port = minted["token"], minted["https"]["port"]
            command = [
                f"{Path(sys.executable).parent}/schemathesis", "run", f"{tools.ROOT}/docs/openapi.json", "--url",
                f"https://127.0.0.1:{port}", "--tls-verify", "false", "-H", f"Authorization: Bearer {token}",
                "--checks", "all", "--max-examples", "10", "--exclude-path-regex", APART, "--continue-on-failure",
                "--request-timeout", "10", "--seed", "4", "--no-color", "--generation-database", "none",
            ]  # fmt: skip
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)
            said = box.story()
        finally:
            box.end()
    summary = done.stdout.rpartition(" SUMMARY ")[2]
    found = set(re.findall(r"ST\d+ (.*?): \d+", summary))
    assert found <= TOLERATED, f"{sorted(found - TOLERATED)}\n{done.stdout}"
    assert "Errors:" not in summary, done.stdout
    assert "Traceback" not in said, said
    count = int(re.search(r"(\d+) generated", summary)[1])  # type: ignore[index]
    assert count > 1500
    figure(f"the API's description: {count} requests, allowed and not: 0 unhandled errors")
