"""A bridge for the hosts of one run, an address range of its own, and the way out to the mirrors.

Nothing of the machine changes for good: the bridge and the nft table go with the run, and forwarding is switched on for
the interfaces that need it (never for all of them) and off again by the last run that leaves.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bed.commands import call

PLACE = Path("/run/gpubox-bed")
CONF = Path("/proc/sys/net/ipv4/conf")
RANGE = ipaddress.IPv4Network("10.78.0.0/16")


def subnet(number: int) -> ipaddress.IPv4Network:
    """The /24 of a run; .1 is this machine."""
    return list(RANGE.subnets(new_prefix=24))[number]


def taken(number: int) -> bool:
    """Whether somebody else on this machine routes to that range, or has that bridge."""
    ours = subnet(number)
    routes = [route["dst"] for route in _ip("route", "show", "table", "all") if route["dst"] != "default"]
    return any(_overlaps(ours, route) for route in routes) or f"bed{number}" in _links()


def _overlaps(ours: ipaddress.IPv4Network, route: str) -> bool:
    return ":" not in route and ours.overlaps(ipaddress.IPv4Network(route, strict=False))


def create(number: int) -> None:
    bridge, gateway = f"bed{number}", subnet(number)[1]
    with _one_at_a_time():
        uplinks = {route["dev"] for route in _ip("route", "show", "default")}
        mtu = min([link["mtu"] for link in _ip("link", "show") if link["ifname"] in uplinks], default=1500)
        made = (f"link add {bridge} type bridge", f"link set {bridge} mtu {mtu}")  # set: else it follows its cables
        _batch(*made, f"addr add {gateway}/24 dev {bridge}", f"link set {bridge} up")
        for device in (bridge, *uplinks):
            _forward(device)
    rule = f"ip saddr {subnet(number)} oifname != {bridge} masquerade"
    call("nft", f"table ip {bridge} {{ chain out {{ type nat hook postrouting priority 100; {rule}; }}; }}")


def _forward(device: str) -> None:
    switch = CONF / device / "forwarding"
    if switch.read_text().strip() == "0":
        (PLACE / f"forwarding-{device}").touch()  # before the change: a kill between the two is swept
        switch.write_text("1")


def remove(number: int) -> None:
    """Whatever is there of a run's network; also when it is only a part of it."""
    bridge = f"bed{number}"
    with _one_at_a_time():
        call("nft", f"table ip {bridge}; delete table ip {bridge}")  # made first: so it need not be there
        for link in _links():
            if re.fullmatch(rf"{bridge}(-\d+)?", link):
                call("ip", "link", "del", link)
        (PLACE / f"forwarding-{bridge}").unlink(missing_ok=True)
        if not any(re.fullmatch(r"bed\d+", link) for link in _links()):
            _forward_no_more()


def _forward_no_more() -> None:
    for mark in PLACE.glob("forwarding-*"):
        switch = CONF / mark.name.partition("-")[2] / "forwarding"
        if switch.exists() and (CONF / "all/forwarding").read_text().strip() == "0":  # else somebody needs it by now
            switch.write_text("0")
        mark.unlink()


def attach(number: int, name: str, address: str, pid: int) -> None:
    """Give the network namespace of a process an eth0 with that address, on the run's bridge."""
    bridge, gateway = f"bed{number}", subnet(number)[1]
    mtu = next(link["mtu"] for link in _ip("link", "show") if link["ifname"] == bridge)
    pair = f"link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pid}"
    _batch(pair, f"link set {name} master {bridge} up")
    inside = (
        "link set lo up",
        f"addr add {address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {gateway}",
    )
    _batch(*inside, enter=("nsenter", f"--net=/proc/{pid}/ns/net"))


def _batch(*lines: str, enter: tuple[str, ...] = ()) -> None:
    call(*enter, "ip", "-batch", "-", text="".join(f"{line}\n" for line in lines))


def _ip(*words: str) -> list[dict[str, Any]]:
    """The answer of `ip`, a dictionary per route or link."""
    rows: list[dict[str, Any]] = json.loads(call("ip", "-json", "-4", *words) or "[]")
    return rows


def _links() -> list[str]:
    return [path.name for path in Path("/sys/class/net").iterdir()]


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    with open(PLACE / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
