"""The box in a browser: dashboard."""

from __future__ import annotations

import os
import sys

from runner.cli import options, output
from runner.laptop import addresses, boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DASHBOARD = """\
Usage: runner dashboard [OPTIONS]

The GPUs, the queue and the logs in your browser. What is printed, and opened where there is a screen, is an address
with a code that signs you in: it works once, for a minute. Of a box in another place this carries the pages over the
same link as all commands, until Ctrl-C; they are at 127.0.0.1, so no certificate needs to be looked at.

Options:
  --no-open               only print the address
  --json                  as JSON
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner dashboard
  runner dashboard --no-open
  runner dashboard --box gpubox
"""


def dashboard(arguments: list[str]) -> int:
    given = options.parse(DASHBOARD, arguments)
    options.no_words(given, DASHBOARD)
    name = boxes.choose(given.get("--box"))
    if name in (addresses.LOCAL, addresses.DEMO):
        _show(boxes.open_box(name).post("/dashboard", {}), given)
        return 0
    from runner.laptop import forward, ways

    address = addresses.read(name)
    with forward.listen() as listener:
        port = listener.getsockname()[1]
        _show(boxes.remote(address).post("/dashboard", {"port": port}), given)
        output.say(f"it is carried from {name} until Ctrl-C; `runner dashboard` elsewhere makes another code")
        forward.serve(listener, lambda: ways.connect(address), output.say)
    return 0


def _show(invitation: dict[str, Any], given: options.Given) -> None:
    where = f"http://127.0.0.1:{int(invitation['port'])}/sign-in#{invitation['code']}"
    if "--json" in given:
        output.json({**invitation, "url": where})
    else:
        output.put(f"{where}\n")
    if "--no-open" not in given and "--json" not in given and _has_screen():
        import webbrowser

        webbrowser.open(where)
    elif os.environ.get("SSH_CONNECTION") and "--json" not in given:
        port = int(invitation["port"])
        output.say(f"from your own computer: `ssh -L {port}:127.0.0.1:{port}` to here, or add this box there")
    sys.stdout.flush()


def _has_screen() -> bool:
    """Else a browser of the terminal would take it over."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
