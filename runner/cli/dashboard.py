"""The box in a browser: dashboard."""

from __future__ import annotations

import os
import sys

from runner import errors
from runner.cli import options, output, values
from runner.laptop import addresses, boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.laptop.client import Client

DASHBOARD = """\
Usage: runner dashboard [OPTIONS]

The GPUs, the queue and the logs in your browser. What is printed, and opened where there is a screen, is an address
with a code that signs you in: it works once, for a minute. Of a box in another place this carries the pages over the
same link as all commands, until Ctrl-C; they are at 127.0.0.1, so no certificate needs to be looked at.

Options:
  --no-open               only print the address
  --phone                 for a phone in the box's network: a code to type, and the certificate that it meets there
  --share                 a link for others, who only look: no log, no file, no argument
  --for TIME              of a link: how long they may look (7d)
  --label TEXT            of a link: whom it is for
  --shares                the links that there are
  --unshare ID            end one
  --json                  as JSON
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner dashboard
  runner dashboard --box gpubox
  runner dashboard --phone
  runner dashboard --share --for 2d --label anna
"""
MODES = ("--phone", "--share", "--shares", "--unshare")


def dashboard(arguments: list[str]) -> int:
    given = options.parse(DASHBOARD, arguments)
    options.no_words(given, DASHBOARD)
    _check(given)
    name = boxes.choose(given.get("--box"))
    here = name in (addresses.LOCAL, addresses.DEMO)
    if any(mode in given for mode in MODES):
        return _others(boxes.open_box(name), given, here)
    if here:
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


def _check(given: options.Given) -> None:
    chosen = [mode for mode in MODES if mode in given]
    if len(chosen) > 1:
        raise errors.BadRequest(f"{chosen[0]} and {chosen[1]} are two things", "one at a time")
    for option in ("--for", "--label"):
        if option in given and "--share" not in given:
            raise errors.BadRequest(f"{option} is of a link", f"`runner dashboard --share {option} ...`")


def _others(api: Client, given: options.Given, here: bool) -> int:
    """Browsers of other computers, and of other people."""
    if "--shares" in given:
        return _list(api.get("/shares")["shares"], given)
    if "--unshare" in given:
        from runner.laptop.client import quote

        named = given.get("--unshare") or ""
        api.request("DELETE", f"/shares/{quote(named)}")
        output.say(f"nobody looks by the link {named} any more")
        return 0
    wish: dict[str, Any] = {"network": True}
    if "--share" in given:
        wish |= {"share": True, "label": given.get("--label") or ""}
        if (lasts := given.get("--for")) is not None:
            wish["seconds"] = values.duration("--for", lasts)
    try:
        made = api.post("/dashboard", wish)
    except errors.NotInstalled as problem:
        if not (here and "--share" in given):
            raise
        made = api.post("/dashboard", {**wish, "network": False})
        output.say(f"it opens on this computer alone: {problem.message}; {problem.hint}")
    _tell(made, given)
    return 0


def _tell(made: dict[str, Any], given: options.Given) -> None:
    bases = made["urls"] or [f"http://127.0.0.1:{made['port']}"]
    links = [f"{base}/sign-in#{made['code']}" for base in bases]
    if "--json" in given:
        output.json({**made, "links": links})
        return
    output.put("".join(f"{link}\n" for link in links))
    if "--phone" in given:
        output.say(f"or type the code there: {made['code']}")
    output.say(f"it works once, within {output.span(made['seconds'])}")
    if made["fingerprint"]:
        output.say(f"SHA-256 of the box's certificate, which the browser must show, too: {_pairs(made['fingerprint'])}")
    if made["share"] is not None:
        output.say(f"`runner dashboard --unshare {made['share']['id']}` ends it")


def _list(shares: list[dict[str, Any]], given: options.Given) -> int:
    if "--json" in given:
        output.json(shares)
        return 0
    for each in shares:
        opened = f"opened {output.moment(each['opened_at'])}" if each["opened_at"] else "not opened yet"
        until = f"until {output.moment(each['ends_at'])}"
        output.put(f"{each['id']}  {each['user']}  {until}  {opened}  {output.clean(each['label'])}".rstrip() + "\n")
    if not shares:
        output.say("nobody looks by a link; `runner dashboard --share` makes one")
    return 0


def _pairs(digest: str) -> str:
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2)).upper()


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
