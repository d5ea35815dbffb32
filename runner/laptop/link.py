"""ssh, as the user has set it up: the only door to Fabric, imported by who needs it (0.1 s).

Fabric adds the keys of unknown hosts silently, and a jump host is a connection of its own. So each hop gets what is
known of hosts and a policy: an unknown key is shown and asked about as ssh does, and refused where nobody can be asked;
a key that has changed is refused.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import glob
import hashlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import fabric
import paramiko
from paramiko.hostkeys import HostKeyEntry

from runner import errors

CONNECT_SECONDS = 15.0
CHANNEL_SECONDS = 10.0
ALIVE_SECONDS = 15
HOPS_MAX = 8
INCLUDES_MAX = 16  # deep, as in ssh
SYSTEM = "/etc/ssh"
SYSTEM_KNOWN = f"{SYSTEM}/ssh_known_hosts {SYSTEM}/ssh_known_hosts2"
USERS_KNOWN = "~/.ssh/known_hosts ~/.ssh/known_hosts2"

# What it has to say is in its exceptions; otherwise it prints tracebacks of its threads.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


class Link:
    """An ssh connection, over as many hosts as the user's configuration says."""

    def __init__(self, destination: str, ask: Callable[[str], str] | None = None) -> None:
        """destination: [user@]host[:port], a name of the configuration perhaps.
        ask: puts a question to the user, who is at a terminal; None: nobody can be asked.

        Refused: a host's key, or that we come in. Unreachable. BadSettings: the configuration."""
        try:
            config = fabric.Config(ssh_config=paramiko.SSHConfig.from_text(configuration()), lazy=True)
            self._hops = _hops(destination, config)
        except (paramiko.ConfigParseError, paramiko.CouldNotCanonicalize, ValueError) as error:
            raise errors.BadSettings(
                f"the ssh configuration can't be used: {error}", f"ssh -G {destination}"
            ) from error
        self._ask = ask
        for hop in self._hops:
            _know_hosts(hop, ask)
        try:
            for hop in self._hops:
                self._enter(hop)
        except BaseException:
            self.close()
            raise

    @property
    def host(self) -> str:
        """What the target is really called."""
        return str(self._hops[-1].host)

    @property
    def alias(self) -> str:
        """What the target was called by who asked."""
        return str(self._hops[-1].original_host)

    @property
    def user(self) -> str:
        return str(self._hops[-1].user)

    def run(self, command: str) -> tuple[int, str, str]:
        """(exit code, standard output, standard error) of a command there."""
        try:
            done = self._hops[-1].run(command, hide=True, warn=True, in_stream=False, pty=False)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise _lost(self._hops[-1], error) from error
        return int(done.exited), str(done.stdout), str(done.stderr)

    def session(self, command: str, terminal: tuple[str, int, int] | None) -> Any:
        """A command that goes on, as a channel. terminal: its kind, columns and rows; None: plain pipes."""
        last = self._hops[-1]
        try:
            channel = last.transport.open_session(timeout=CHANNEL_SECONDS)
            if terminal is not None:
                channel.get_pty(*terminal)
            channel.exec_command(command)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise _lost(last, error) from error
        return channel

    def channel(self, target: tuple[str, int], seconds: float = CHANNEL_SECONDS) -> Any:
        """A stream to a port, as seen from the host. Unreachable: the link is down, or nobody listens there."""
        last = self._hops[-1]
        try:
            return last.transport.open_channel("direct-tcpip", target, ("127.0.0.1", 0), timeout=seconds)
        except paramiko.ChannelException as error:
            raise errors.Unreachable(
                f"{last.host} lets no tunnel through to its port {target[1]}: {error.text}",
                "is the box's service running there, and AllowTcpForwarding on?",
            ) from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise _lost(last, error) from error

    def close(self) -> None:
        for hop in reversed(self._hops):
            hop.client.close()

    def _enter(self, hop: fabric.Connection) -> None:
        try:
            self._open(hop)
        except paramiko.BadHostKeyException as error:
            raise _changed(hop, error) from error
        except (paramiko.AuthenticationException, paramiko.PasswordRequiredException) as error:
            raise _not_let_in(hop, error) from error
        except paramiko.SSHException as error:
            if "No authentication methods" in str(error) or "private key" in str(error):
                raise _not_let_in(hop, error) from error
            raise _unreachable(hop, error) from error
        except (OSError, EOFError) as error:
            raise _unreachable(hop, error) from error
        hop.transport.set_keepalive(ALIVE_SECONDS)

    def _open(self, hop: fabric.Connection) -> None:
        """Log in; with a password or a key's passphrase, where it takes one and we can ask."""
        try:
            self._connect(hop)
        except paramiko.SSHException as error:
            wanted = isinstance(error, (paramiko.AuthenticationException, paramiko.PasswordRequiredException))
            if self._ask is None or not (wanted or "No authentication methods" in str(error)):
                raise
            hop.client.close()
            hop.connect_kwargs["password"] = getpass.getpass(f"{hop.user}@{hop.host}'s password, or your key's: ")
            self._connect(hop)

    def _connect(self, hop: fabric.Connection) -> None:
        if not hop.gateway:
            usual = socket.create_connection((hop.host, hop.port), hop.connect_timeout or CONNECT_SECONDS)
            hop.connect_kwargs["sock"] = _Prompt(usual)
        hop.open()


class _Prompt(socket.socket):
    """Waits for nothing: what is sent goes at once, and what came is acknowledged at once, because sshd holds its next
    small word back until then. Otherwise many questions take 40 ms longer."""

    def __init__(self, usual: socket.socket) -> None:
        seconds = usual.gettimeout()
        super().__init__(usual.family, usual.type, usual.proto, usual.detach())
        self.settimeout(seconds)
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        with contextlib.suppress(AttributeError, OSError):  # Linux has it
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data


# --- the way there, by the user's configuration ----------------------------------------------------------------------


def configuration() -> str:
    """The user's and the system's ssh configuration in one text, what they include in its place."""
    home = os.path.expanduser("~/.ssh")
    every = "Host *"
    parts = [_expanded(f"{home}/config", home, every), every, _expanded(f"{SYSTEM}/ssh_config", SYSTEM, every)]
    return "\n".join(parts)


def _expanded(path: str, folder: str, block: str, depth: int = 0) -> str:
    """A file with its Include lines replaced. block: the line of the block it stands in, which goes on after each."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    if depth > INCLUDES_MAX:
        raise ValueError(f"{path} includes itself")
    found = []
    for line in lines:
        key, _, rest = line.strip().replace("=", " ", 1).partition(" ")
        if key.lower() in ("host", "match"):
            block = line
        if key.lower() != "include":
            found.append(line)
            continue
        for pattern in rest.replace('"', " ").split():
            place = os.path.join(folder, os.path.expanduser(pattern))
            found += [_expanded(each, folder, block, depth + 1) for each in sorted(glob.glob(place))]
        found.append(block)
    return "\n".join(found)


def _hops(destination: str, config: fabric.Config, depth: int = 0) -> list[fabric.Connection]:
    """The connections to make one through the other, the target last."""
    if depth > HOPS_MAX:
        raise ValueError(f"more than {HOPS_MAX} jump hosts on the way to {destination}")
    first = fabric.Connection(destination, config=config, gateway=False)
    found = first.ssh_config
    jumps = [each.strip() for each in found.get("proxyjump", "none").split(",")]
    if jumps and jumps[0].lower() != "none":
        way = _hops(jumps[0], config, depth + 1)
        for jump in jumps[1:]:
            way.append(fabric.Connection(jump, config=config, gateway=way[-1]))
        return [*way, fabric.Connection(destination, config=config, gateway=way[-1])]
    command = found.get("proxycommand", "none")
    if command.lower() != "none":
        return [fabric.Connection(destination, config=config, gateway=command)]
    return [first]


# --- whose key it is -------------------------------------------------------------------------------------------------


def _know_hosts(hop: fabric.Connection, ask: Callable[[str], str] | None) -> None:
    ours = _files(hop, "userknownhostsfile", USERS_KNOWN)
    known, found = hop.client.get_host_keys(), set()
    for path in (*ours, *_files(hop, "globalknownhostsfile", SYSTEM_KNOWN)):
        for name, key in _lines(path):
            if (name, key.get_name()) not in found:  # the first one is meant
                known.add(name, key.get_name(), key)
                found.add((name, key.get_name()))
    hashed = str(hop.ssh_config.get("hashknownhosts", "no")).lower() == "yes"
    hop.client.set_missing_host_key_policy(_Asks(ask, ours[0] if ours else "", hashed))


def _lines(path: str) -> Iterator[tuple[str, paramiko.PKey]]:
    """(name, perhaps hashed; key) of each line that can be read; the others are passed over, as ssh does."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return  # there is none
    for line in lines:
        try:
            entry = HostKeyEntry.from_line(" ".join(line.split()))
            for name in entry.hostnames if entry is not None else ():
                if name.startswith("|"):
                    paramiko.HostKeys.hash_host("", name)  # fails on what could not be compared later
        except Exception:  # damage of any kind: paramiko has several exceptions for it
            continue
        if entry is not None and not line.lstrip().startswith("#"):
            yield from ((name, entry.key) for name in entry.hostnames)


def _files(hop: fabric.Connection, option: str, usual: str) -> list[str]:
    named = str(hop.ssh_config.get(option, usual))
    return [os.path.expanduser(path.strip('"')) for path in named.split() if path.lower() != "none"]


class _Asks(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """The policy for a host whose key is not known."""

    def __init__(self, ask: Callable[[str], str] | None, file: str, hashed: bool) -> None:
        self._ask, self._file, self._hashed = ask, file, hashed

    def missing_host_key(self, client: Any, hostname: str, key: paramiko.PKey) -> None:
        shown = fingerprint(key)
        if self._ask is None:
            raise errors.Refused(
                f"the key of {hostname} is not known here, and nobody can be asked about it",
                f"connect once with ssh, in a terminal, and compare: {key.get_name()} {shown}",
            )
        answer = self._ask(
            f"{hostname} is not known here. It shows the key\n  {key.get_name()} {shown}\n"
            "Is that the key of your box? (yes, no, or the fingerprint) "
        )
        if answer.strip().lower() != "yes" and answer.strip() != shown:
            raise errors.Refused(f"the key of {hostname} was not accepted", "on the box: ssh-keygen -lf /etc/ssh/*.pub")
        if self._file:
            _append(self._file, hostname, key, self._hashed)


def fingerprint(key: paramiko.PKey) -> str:
    """As ssh shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _append(path: str, hostname: str, key: paramiko.PKey, hashed: bool) -> None:
    name = paramiko.HostKeys.hash_host(hostname) if hashed else hostname
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with open(fd, "r+", encoding="ascii", errors="replace") as file:
        text = file.read()
        between = "" if not text or text.endswith("\n") else "\n"
        file.write(f"{between}{name} {key.get_name()} {key.get_base64()}\n")


def at_terminal() -> Callable[[str], str] | None:
    """Asks whoever sits there; None where nobody does."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question: str) -> str:
        sys.stderr.write(question)
        sys.stderr.flush()
        return sys.stdin.readline()

    return ask


# --- what went wrong -------------------------------------------------------------------------------------------------


def _changed(hop: fabric.Connection, error: paramiko.BadHostKeyException) -> errors.Refused:
    place = hop.host if hop.port == 22 else f"[{hop.host}]:{hop.port}"
    return errors.Refused(
        f"the key of {place} has changed: it shows {fingerprint(error.key)}. Somebody may be in between",
        f"if you know why: ssh-keygen -R '{place}', and again",
    )


def _not_let_in(hop: fabric.Connection, error: Exception) -> errors.Refused:
    return errors.Refused(
        f"{hop.host} does not let {hop.user} in: {error}", f"`ssh {hop.user}@{hop.original_host}` has to work first"
    )


def _unreachable(hop: fabric.Connection, error: Exception) -> errors.Unreachable:
    said = getattr(error, "strerror", None) or str(error) or "it hung up"
    return errors.Unreachable(f"ssh can't reach {hop.host} port {hop.port}: {said}", "is it on, and in this network?")


def _lost(hop: fabric.Connection, error: Exception) -> errors.Unreachable:
    return errors.Unreachable(f"the ssh connection to {hop.host} was lost: {error}", "try again")
