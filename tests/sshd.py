"""A real sshd on loopback, with keys and a configuration of its own, and a laptop that may log in there as us."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tools


def new_key(path: Path, kind: str = "ed25519") -> str:
    """A key pair; returns its public half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [tools.need("ssh-keygen"), "-q", "-t", kind, "-N", "", "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=30)
    return path.with_name(f"{path.name}.pub").read_text().strip()


class Sshd:
    """One host; its port stays the same when it is started again."""

    def __init__(self, place: Path, lets_in: str, *lines: str) -> None:
        """lets_in: a public key. lines: of its configuration."""
        place.mkdir(parents=True)
        self.place, self.lines = place, lines
        self.key = new_key(place / "host")
        (place / "authorized").write_text(f"{lets_in}\n")
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = _program()
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        (self.place / "config").write_text(
            "\n".join(
                (
                    f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {self.place}/host", "UsePAM no",
                    f"AuthorizedKeysFile {self.place}/authorized", "StrictModes no", "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password", "PidFile none",
                    "UseDNS no", "SetEnv SHLVL=1",  # or bash reads our rc file, which may take a second
                    "PrintMotd no", "MaxStartups 100", *self.lines, "",
                )
            )
        )  # fmt: skip
        with open(self.place / "log", "ab") as log:
            command = [program, "-D", "-e", "-f", str(self.place / "config")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        tools.wait_until(self._listens, 10, self.said)

    def said(self) -> str:
        return (self.place / "log").read_text(errors="replace")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """With all connections that it holds: they are its children."""
        if self.process is None:
            return
        for pid in children(self.process.pid):
            os.kill(pid, 9)
        self.process.kill()
        self.process.wait(10)
        self.process = None

    def known(self) -> str:
        """Its line in known_hosts."""
        return f"[127.0.0.1]:{self.port} {' '.join(self.key.split()[:2])}\n"


def children(pid: int) -> list[int]:
    found = []
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [*children(int(child)), int(child)]
    except OSError:
        pass
    return found


def _program() -> str:
    for path in ("/usr/sbin/sshd", "/usr/bin/sshd"):
        if os.access(path, os.X_OK):
            return path
    return tools.need("sshd")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Laptop:
    """A home with ssh in it, apart from the one of who runs the tests, and `runner` in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        self.key = new_key(home / ".ssh" / "id_ed25519")
        (home / "run").mkdir(mode=0o700)
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        self.env = {
            **kept, "HOME": str(home), "XDG_CONFIG_HOME": f"{home}/config", "XDG_STATE_HOME": f"{home}/state",
            "XDG_CACHE_HOME": f"{home}/cache", "XDG_RUNTIME_DIR": f"{home}/run", "USER": "ann",
            "GPUBOX_COURIER": "no",
            "PYTHONPATH": str(tools.ROOT),
        }  # fmt: skip
        self.known = home / ".ssh" / "known_hosts"
        self.config = home / ".ssh" / "config"

    def hosts(self, text: str) -> None:
        """The ssh configuration; every host in it is us, on loopback."""
        usual = f"Host *\n  HostName 127.0.0.1\n  User {getpass.getuser()}\n  HashKnownHosts no\n"
        self.config.write_text(f"{text}\n{usual}")

    def call(self, *arguments: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "runner", *arguments], env={**self.env, **more}, cwd=cwd or self.home,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def run(self, *arguments: str, cwd: Path | None = None, **more: str) -> str:
        done = self.call(*arguments, cwd=cwd, **more)
        assert done.returncode == 0, f"runner {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def end(self) -> None:
        """Its keepers leave when their socket is gone; they are not waited for longer than that takes."""
        for path in (self.home / "run" / "gpubox").glob("*.sock"):
            path.unlink()
        tools.wait_until(lambda: not tools.processes_naming(str(self.home / "run")), 20)


def runner_of(box: tools.Box, place: Path) -> str:
    """What `runner` is on a host: that of one daemon."""
    path = place / "runner"
    settings = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in box.env.items())
    path.write_text(f'#!/bin/sh\n{settings}\nexec {shlex.quote(sys.executable)} -P -m runner "$@"\n')
    path.chmod(0o755)
    return str(path)


@contextmanager
def hosts(*several: Sshd) -> Iterator[None]:
    try:
        for each in several:
            each.start()
        yield
    finally:
        for each in several:
            each.stop()
