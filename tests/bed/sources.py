"""What this machine knows and a host on it needs: Debian's mirrors, the proxy, the certificate authorities.

All of it is read when a tree is built; nothing of it is written into the project.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from bed.commands import BedError, call

BUNDLE = Path("etc/ssl/certs/ca-certificates.crt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_FIELDS = "|".join(f"$({name})" for name in ("REPO_URI", "RELEASE", "COMPONENT", "ORIGIN"))
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@functools.cache
def mirrors() -> tuple[tuple[str, str], ...]:
    """(URI, "" or "-updates" or "-security") of Debian's own repositories in apt's sources. Raises BedError: none."""
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    known = "|".join({"stable", release[1] if release else "stable"})
    found: dict[tuple[str, str], None] = {}  # a set that keeps its order
    for row in call("apt-get", "indextargets", "--format", _FIELDS, "Created-By: Packages").splitlines():
        uri, name, component, origin = row.split("|")
        kind = re.fullmatch(rf"(?:{known})(|-updates|-security)", name)
        if kind and component == "main" and origin in ("", "Debian"):
            found[uri, kind[1]] = None
    if "" not in {kind for _, kind in found}:
        raise BedError("apt's sources on this machine name no Debian mirror")
    return tuple(found)


def archive() -> str:
    """The mirror that trees are built from."""
    return next(uri for uri, kind in mirrors() if kind == "")


def apt_sources(suite: str) -> str:
    """debian.sources of a host with that suite."""
    fields = "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nSigned-By: {}\n"
    return "\n".join(fields.format(uri, suite + kind, KEYRING) for uri, kind in mirrors())


def apt_settings() -> str:
    """apt.conf of a host: the proxy and the ways to check https that apt has here."""
    kept = re.compile(r"Acquire::(?:https?|ftp)(?:::[^ ]+)*::(?:Proxy|CAInfo|CaInfo|Verify-Peer|Verify-Host|Timeout)\b")
    lines = [line for line in call("apt-config", "dump").splitlines() if kept.match(line)]
    for name in PROXIES[:2]:
        if value := _variable(name):
            lines.append(f'Acquire::{name.partition("_")[0]}::Proxy "{value}";')
    return "".join(f"{line}\n" for line in lines)


def environment() -> str:
    """/etc/environment of a host: this machine's proxy, spelt both ways, since programs read either."""
    rows = [(name, value) for name in PROXIES if (value := _variable(name))]
    return "".join(f"{spelt}={value}\n" for name, value in rows for spelt in (name, name.upper()))


def _variable(name: str) -> str:
    return os.environ.get(name) or os.environ.get(name.upper(), "")


def authorities(root: Path = Path("/")) -> list[str]:
    """The certificates (PEM) that a machine trusts: this one, or the one that lies in root."""
    bundle = root / BUNDLE
    if root == Path("/"):
        bundle = Path(os.environ.get("SSL_CERT_FILE") or bundle)
    return _PEM.findall(bundle.read_text()) if bundle.exists() else []


def resolver() -> str:
    """resolv.conf of a host: a name server on this machine's loopback can't be reached from there."""
    here, behind = Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")
    text = here.read_text() if here.exists() else ""
    return behind.read_text() if "nameserver 127." in text and behind.exists() else text
