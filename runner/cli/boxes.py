"""The boxes: list, add, use, test, remove."""

from __future__ import annotations

import os
import time

from runner import errors, words
from runner.cli import options, output, token, values
from runner.laptop import addresses, boxes
from runner.laptop.addresses import DEMO, LOCAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runner.cli.options import Given
    from runner.laptop.addresses import Address
    from runner.laptop.link import Link

BOX = """\
Usage: runner box [list] [OPTIONS]
       runner box add [OPTIONS] [USER@]HOST[:PORT]
       runner box use|test|remove [OPTIONS] NAME

The boxes you can use. `local` is this computer: the service that `setup.yml` made of it, for all who are in the group
gpubox; for others, and elsewhere, a box of your own. `demo` is there while `runner serve --demo` plays it.

Change:
  add                     one that you reach with ssh: makes a token for this computer there, and remembers it with the
                          fingerprint of the box's certificate. From then on ssh is only the way around when the box
                          can't be reached directly
  use                     mean this box when none is named
  test                    try each way to it
  remove                  forget it, and end its token

Options:
  --name NAME             what to call a new one here; else as its host
  --scope SCOPE           what its token may do: read, submit or admin; else submit
  --runner PATH           where `runner` is on a new one; else on the path of a login over ssh
  --json                  as JSON
  -h, --help              this text

Examples:
  runner box add me@gpubox
  runner box use gpubox && runner ps
  runner box test gpubox
  GPUBOX_BOX=gpubox runner ps
"""
CLOSED = """\
note: the service of this computer is for the group gpubox, and this session is not in it, so local is your own box
hint: sudo adduser $USER gpubox, and then log in again"""
STARTS = "any command that needs it starts it"
ADD_ONLY = ("--name", "--scope", "--runner")
CLOCK_SECONDS = 5.0
LIST_SECONDS = 4.0  # for boxes in other places to answer, when all are listed
NOT_FOUND = 127  # as a shell says it


def box(arguments: list[str]) -> int:
    given = options.parse(BOX, arguments)
    verb, *typed = given.words or ["list"]
    if verb not in VERBS:
        guess = errors.nearest(verb, VERBS)
        raise errors.BadRequest(f'runner box knows no "{verb}"{guess}', "`runner box --help` lists what there is")
    extra = next((name for name in ADD_ONLY if name in given), None)
    if verb != "add" and extra:
        raise errors.BadRequest(f"{extra} is for a new box", f"`runner box add {extra} ... me@host`")
    if len(typed) != (verb != "list"):
        wanted = {"list": "nothing more", "add": "[user@]host"}.get(verb, "the name of a box")
        raise errors.BadRequest(f"runner box {verb} takes {wanted}", "`runner box --help` has examples")
    return VERBS[verb](given, *typed)


# --- list ------------------------------------------------------------------------------------------------------------


def _list(given: Given) -> int:
    found = {name: _running(name) for name in (LOCAL, DEMO)}
    if found[DEMO] is None:
        del found[DEMO]  # nobody's box while it is not on
    found.update(_far(addresses.names()))
    used = boxes.meant()
    if "--json" in given:
        rows = [
            {"name": name, "running": hello is not None, "used": name == used, "box": hello}
            for name, hello in found.items()
        ]
        output.json(rows)
        return 0
    marked = [
        [f"{name} *" if name == used and len(found) > 1 else name, *_state(name, hello)]
        for name, hello in found.items()
    ]
    output.table(("BOX", "STATE", ""), marked, (2,))
    if boxes.closed():
        output.say(CLOSED)
    return 0


def _far(names: list[str]) -> dict[str, dict[str, Any] | None]:
    """What boxes in other places say of themselves, all asked at once; one that takes too long is away."""
    import _thread

    said: dict[str, dict[str, Any] | None] = dict.fromkeys(names)
    left = set(names)

    def ask(name: str) -> None:
        said[name] = _running(name)
        left.discard(name)

    for name in names:
        _thread.start_new_thread(ask, (name,))
    deadline = time.monotonic() + LIST_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
    return dict(said)


def _state(name: str, hello: dict[str, Any] | None) -> tuple[str, str]:
    """(ready, what it has)."""
    service = name == LOCAL and boxes.provisioned()
    if hello is None and name not in (LOCAL, DEMO):
        return "away", f"`runner box test {name}` says why"
    if hello is None:
        return ("away", "`systemctl status gpubox` says why") if service else ("asleep", STARTS)
    capacity = hello.get("capacity") or {}
    free = hello.get("free") or {}
    parts = [
        output.many(int(capacity["cpus"]), "core") if capacity.get("cpus") else "",
        f"{output.size(capacity['memory_bytes'])} of memory" if capacity.get("memory_bytes") else "",
        output.many(int(capacity["gpus"]), "GPU") if capacity.get("gpus") else "",
        _free(capacity, free),
        "the service of this computer" if service else "",
    ]
    return "draining" if hello.get("draining") else "ready", ", ".join(filter(None, parts))


def _free(capacity: dict[str, Any], free: dict[str, Any]) -> str:
    """5 cores free; with GPUs also those that nobody uses."""
    parts = [
        output.many(int(free[name]), thing)
        for name, thing in (("cpus", "core"), ("gpus", "GPU"))
        if capacity.get(name) and name in free
    ]
    return f"{' and '.join(parts)} free" if parts else ""


def _running(name: str) -> dict[str, Any] | None:
    """What a box says of itself; None when it does not answer, or does not let us in."""
    try:
        api = boxes.open_box(name, start=False)
        return {**api.get("/hello"), **api.get("/box")}
    except (errors.Unreachable, errors.Refused, errors.BadData):
        return None


# --- add -------------------------------------------------------------------------------------------------------------


def _add(given: Given, destination: str) -> int:
    """One login over ssh, in which the box's own `runner` makes the token; then the way that will be used is tried."""
    from runner.laptop import link

    name, scope = given.get("--name"), values.choice("--scope", given.get("--scope") or "submit", words.ROLES)
    if name is not None:
        addresses.check_name(name)
    if destination.startswith("-") or not destination.isprintable() or " " in destination:
        raise errors.BadRequest(f"{destination[:80]!a} is no host", "as ssh is told: me@gpubox")
    way = link.Link(destination, link.at_terminal())
    try:
        program = given.get("--runner") or "runner"
        address = _minted(way, destination, name, scope, program)
        replaced = _previous(address.name)
        if replaced is not None and replaced.ssh != destination and replaced.fingerprint != address.fingerprint:
            _revoke(way, program, address.token_id)
            hint = f"runner box add --name ANOTHER {destination}; or `runner box remove {address.name}` first"
            raise errors.Busy(f"{address.name} is another box, {replaced.ssh}", hint)
        try:
            addresses.write(address)
        except errors.Problem:
            _revoke(way, program, address.token_id)  # nobody has it
            raise
        if replaced is not None and replaced.fingerprint == address.fingerprint:
            _revoke(way, program, replaced.token_id)  # nobody has it any more
    finally:
        way.close()
    first = addresses.in_use() == LOCAL
    if first:
        addresses.use(address.name)
    tried = _tries(address)
    if "--json" in given:
        output.json({"name": address.name, "used": addresses.in_use() == address.name, "ways": tried})
    else:
        _tell(address, tried)
        if first:
            output.say(f"commands mean {address.name} from now on, unless --box or `runner box use` says another")
    return 0 if any("seconds" in each for each in tried.values()) else errors.Unreachable.exit_code


def _minted(way: Link, destination: str, name: str | None, scope: str, program: str) -> Address:
    label = f"{os.environ.get('USER', 'somebody')}@{os.uname().nodename if hasattr(os, 'uname') else 'laptop'}"
    command = [program, "token", "new", "--json", "--box", LOCAL, "--scope", scope, "--label", label[: token.LABEL_MAX]]
    code, said, complaint = way.run(output.line(command))
    if code == NOT_FOUND:
        raise errors.NotInstalled(
            f"there is no `{program}` on {way.host}, or not on the path of a login over ssh",
            f"runner box add --runner /path/to/runner {destination}; or make a box of it first, with setup.yml",
        )
    if code and 'no command "token"' in complaint:
        raise errors.NotInstalled(f"the gpubox on {way.host} is too old for this", "upgrade it there")
    if code:
        spoken = complaint.strip().removeprefix("runner: ") or f"`runner token new` ended with {code}"
        raise errors.Refused(f"{way.host} says: {spoken[:1000]}", f"`ssh {destination} runner doctor` looks there")
    made = _read(said, way.host)
    https = made["https"]
    if https is None:
        _revoke(way, program, str(made["made"]["id"]))
        if CLOSED.partition("\n")[0] in way.run(output.line([program, "box"]))[2]:
            raise errors.Refused(
                f"the box on {way.host} is for the group gpubox, and {way.user} is not in it",
                f"an administrator of it can say: sudo adduser {way.user} gpubox",
            )
        raise errors.NotInstalled(
            f"the box on {way.host} does not listen on the network",
            'there: https = ":7443" in box.toml (docs/settings.md), `runner serve --stop`; or make it with setup.yml',
        )
    try:
        fields = {
            "ssh": destination, "host": way.host, "port": https["port"], "address": https["address"],
            "fingerprint": https["fingerprint"], "token": made["token"], "token_id": made["made"]["id"],
        }  # fmt: skip
        return addresses.Address(name or _name(way.alias, str(made["box"])), fields)
    except (KeyError, TypeError, ValueError):
        raise _unexpected(way.host) from None


def _read(said: str, host: str) -> Any:
    """The last line of what it printed: a login may greet with others."""
    from runner.laptop.light import loads

    lines = said.strip().splitlines()
    try:
        made = loads(lines[-1])
        if isinstance(made["made"]["id"], str) and isinstance(made["https"], dict | None):
            return made
    except (IndexError, KeyError, TypeError, ValueError):
        pass
    raise _unexpected(host)


def _unexpected(host: str) -> errors.BadData:
    return errors.BadData(
        f"what `runner` on {host} says is not a token", "is it the same version there? `runner version`"
    )


def _name(typed: str, called: str) -> str:
    """As it was typed, without its domain; one that was reached by an address is called what it calls itself."""
    if typed.replace(".", "").isdecimal() or ":" in typed:
        typed = called if called not in (LOCAL, DEMO) else f"box-{typed}"
    else:
        typed = typed.partition(".")[0]
    kept = "".join(letter if letter in addresses.LETTERS else "-" for letter in typed).lstrip(".-")
    return addresses.check_name(kept[: addresses.NAME_MAX] if kept not in ("", LOCAL, DEMO) else "gpubox")


def _previous(name: str) -> Address | None:
    try:
        return addresses.read(name)
    except errors.Problem:
        return None


def _revoke(way: Link, program: str, token_id: str) -> None:
    way.run(output.line([program, "token", "revoke", "--box", LOCAL, token_id]))


# --- use, test, remove -----------------------------------------------------------------------------------------------


def _use(given: Given, name: str) -> int:
    if name not in (LOCAL, DEMO):
        addresses.read(name)
    addresses.use(name)
    output.say(f"commands mean {name} from now on")
    return 0


def _test(given: Given, name: str) -> int:
    address = addresses.read(name)
    tried = _tries(address)
    if "--json" in given:
        output.json(tried)
    else:
        _tell(address, tried)
    return 0 if any("seconds" in each for each in tried.values()) else errors.Unreachable.exit_code


def _tries(address: Address) -> dict[str, dict[str, Any]]:
    """way -> {"seconds", "version", "clock_ahead"} or {"message", "hint"}"""
    from runner.laptop import ways
    from runner.laptop.client import Client

    found: dict[str, dict[str, Any]] = {}
    for way, connect in ways.WAYS.items():
        began = time.monotonic()
        try:
            api = Client(lambda connect=connect: connect(address), address.name)  # type: ignore[misc]
            api.always = address.always()
            hello, now = api.get("/hello"), time.time()
            found[way] = {"seconds": time.monotonic() - began, "version": hello["version"]}
            found[way]["clock_ahead"] = float(hello.get("at", now)) - now
        except errors.Problem as problem:
            found[way] = {"message": problem.message, "hint": problem.hint}
        except OSError as error:
            found[way] = {"message": error.strerror or str(error) or "no answer", "hint": ""}
    return found


def _tell(address: Address, tried: dict[str, dict[str, Any]]) -> None:
    for way, where in (("direct", f"{address.host}:{address.port}"), ("tunnel", f"ssh {address.ssh}")):
        result = tried[way]
        if "seconds" in result:
            said = f"{result['seconds'] * 1000:.0f} ms, version {result['version']}{_clock(result['clock_ahead'])}"
        else:
            said = result["message"] + (f"; {result['hint']}" if result["hint"] else "")
        output.put(f"{address.name}  {way}  {output.clean(where)}: {output.clean(said)}\n")


def _clock(ahead: float) -> str:
    """Nothing, unless the two clocks are so far apart that times and the ends of tokens confuse."""
    if abs(ahead) < CLOCK_SECONDS:
        return ""
    return f"; its clock is {output.span(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}: let both set theirs by NTP"


def _remove(given: Given, name: str) -> int:
    """Also what is damaged, or away: then its token is told, for somebody to revoke it there."""
    if name not in addresses.names():
        addresses.read(name)  # says what there is
    from runner.laptop import ways

    left = ""
    try:
        address = addresses.read(name)
        left = address.token_id
        try:
            token.revoke(boxes.remote(address), address.token_id)
        finally:
            ways.end_tunnel(address)
        left = ""
    except errors.NotTrusted:
        left = ""  # it opens nothing any more
    except errors.Problem as problem:
        output.say(f"note: its token could not be ended: {problem.message}")
    addresses.remove(name)
    output.say(f"removed {name}")
    if left:
        output.say(f"  hint: on the box: runner token revoke {left}")
    return 0


VERBS: dict[str, Callable[..., int]] = {"list": _list, "add": _add, "use": _use, "test": _test, "remove": _remove}
