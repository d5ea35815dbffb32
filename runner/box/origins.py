"""Under which name the box was asked for, and from which page: what a browser that was led astray gives away.

A page of another site can have its name point to the box (DNS rebinding): then Host is not one of the box's. It can ask
the box by its right name: then Origin or Sec-Fetch-Site says so. A program that is no browser sends neither.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Iterable, Sequence

from runner.errors import Misdirected, Refused

Headers = Iterable[tuple[bytes, bytes]]
LOOPBACK = "127.0.0.1"
LOCAL = ("localhost", "127.0.0.1", "::1")


def own_names(name: str, more: str) -> list[str]:
    """What the box is called, its own host name first: that, the box's name, both with .local, and those of a list."""
    host = socket.gethostname().lower().partition(".")[0]
    full = socket.gethostname().lower()
    names = [host, f"{host}.local", full, name.lower(), f"{name.lower()}.local", *more.lower().split(",")]
    kept = [each.strip() for each in names if _sound(each.strip())]
    return list(dict.fromkeys(kept)) or ["gpubox"]


def own_address() -> str | None:
    """By which this computer is seen from its network; None: it has none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))  # of no computer: only the way there is asked for
            return str(asked.getsockname()[0])
        except OSError:
            return None


def _sound(name: str) -> bool:
    return bool(name) and name.isascii() and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789.-_:")


def check(
    headers: Headers,
    names: Sequence[str],
    address: str,
    port: int,
    forwarded: Collection[int] = frozenset(),
    door: bool = False,
) -> None:
    """Misdirected: Host is not one of our names, with our port. Refused: a page of another site asks.

    address: ours, on which this connection came in; that is a right name as well. forwarded: ports of the browser's
    own 127.0.0.1 that lead here, as those who opened them said. door: it is the page of the way in, to which a link in
    any other page may lead."""
    found = list(headers)
    host = _only(found, b"host")
    scheme = "http" if _is_forwarded(host, forwarded) else "https"
    if host is None or not (scheme == "http" or _ours(host, names, address, port)):
        raise Misdirected("the box has another name than the one that it was asked for", "https_names may name more")
    if not door:
        _same_site(found, f"{scheme}://{host}")


def check_page(headers: Headers, port: int, door: bool = False) -> None:
    """The same for the page that this computer's own browser sees, as http://127.0.0.1:port."""
    found = list(headers)
    host = _only(found, b"host")
    if not _is_forwarded(host, (port,)):
        raise Misdirected("the dashboard has another address than this", f"it is at http://{LOOPBACK}:{port}")
    if not door:
        _same_site(found, f"http://{host}")


def said_same_site(headers: Headers) -> bool:
    """Whether a browser vouches for the page that asks: the checks above let in those that say nothing, too."""
    return any(name == b"origin" or (name, value) == (b"sec-fetch-site", b"same-origin") for name, value in headers)


def _same_site(found: Headers, ours: str) -> None:
    site = _only(found, b"sec-fetch-site", "none")
    origin = _only(found, b"origin", ours)
    if site not in ("same-origin", "none") or origin is None or origin.lower() != ours.lower():
        raise Refused("a page of another site asks, and this box does not answer those")


def _is_forwarded(host: str | None, ports: Collection[int]) -> bool:
    return host in {f"{LOOPBACK}:{port}" for port in ports}


def _only(headers: Iterable[tuple[bytes, bytes]], name: bytes, absent: str | None = None) -> str | None:
    """The value of a header; None where it is there several times."""
    values = [value.decode("latin-1") for each, value in headers if each == name]
    return absent if not values else values[0] if len(values) == 1 else None


def _ours(host: str, names: Sequence[str], address: str, port: int) -> bool:
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        if ":" not in name:
            return False
    else:
        name, colon, digits = host.partition(":")
        rest = colon + digits
    if rest != f":{port}" and not (rest == "" and port == 443):
        return False
    return name.lower() in (*names, *LOCAL) or _same(name, address)


def _same(name: str, address: str) -> bool:
    try:
        ours, said = ipaddress.ip_address(address.partition("%")[0]), ipaddress.ip_address(name)
    except ValueError:
        return False
    return said in (ours, getattr(ours, "ipv4_mapped", None))
