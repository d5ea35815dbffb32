"""What every host of the bed can do: it is reached by ssh, as any machine would be."""

from __future__ import annotations

import abc
import shlex
import subprocess
from pathlib import Path

from bed import base
from bed.commands import BedError, call, until

SSH_OPTIONS = (
    *("-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
    *("-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
    *("-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=6"),
)
GROUP = "boxes"


class Host(abc.ABC):
    """A Debian host. name: its host name; address and port: of its sshd; user: root, or base.OWNER, who has sudo."""

    patience_seconds = 30.0  # until ssh must answer

    def __init__(self, name: str, address: str, port: int, user: str) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.user = user
        self.key = base.key()

    def ssh(self, command: str, *, text: str = "", timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the host, text as its input; whatever code it ends with (255: ssh itself failed)."""
        words = ("ssh", *SSH_OPTIONS, "-i", str(self.key), "-p", str(self.port), f"{self.user}@{self.address}", command)
        return subprocess.run(words, input=text, capture_output=True, text=True, timeout=timeout)

    def run(self, command: str, *, text: str = "", timeout: float = 600) -> str:
        """What a shell command on the host printed; it must succeed."""
        done = self.ssh(command, text=text, timeout=timeout)
        said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == 0, f"on {self.name}: {command}\nended with {done.returncode}\n{said}"
        return done.stdout

    def put(self, local: Path | str, remote: str) -> None:
        """Copy a file or a folder to the host."""
        words = ("scp", "-r", "-p", *SSH_OPTIONS, "-i", str(self.key), "-P", str(self.port), str(local))
        call(*words, f"{self.user}@{self.address}:{remote}")

    @property
    def inventory(self) -> str:
        """An Ansible inventory with this host in the group `boxes`."""
        variables = {
            "ansible_host": self.address,
            "ansible_port": str(self.port),
            "ansible_user": self.user,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": shlex.join(SSH_OPTIONS),
        }
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        return f"[{GROUP}]\n{self.name} {words}\n"

    def add_component(self, component: str) -> None:
        """Add `non-free`, `contrib`, ... to the host's sources, and read their lists."""
        root = "" if self.user == "root" else "sudo "
        self.run(f"{root}sed -i '/^Components:/s/$/ {component}/' /etc/apt/sources.list.d/debian.sources")
        self.run(f"{root}apt-get update --quiet")

    def boot_id(self) -> str:
        """Of the boot that answers now; empty when none does."""
        try:
            return self.ssh("cat /proc/sys/kernel/random/boot_id", timeout=10).stdout.strip()
        except subprocess.TimeoutExpired:
            return ""

    def wait(self, old_boot_id: str = "") -> None:
        """Until ssh answers, from another boot than the one named."""

        def booted() -> bool:
            if not self.runs():
                raise BedError(f"{self.name} ended: {self.console()}")
            return self.boot_id() not in ("", old_boot_id)

        until(booted, self.patience_seconds, self.console, pause=0.02)

    def reboot(self) -> None:
        """Boot it again, with its disk, as somebody would who is logged in; returns when ssh answers."""
        before = self.boot_id()
        if not before:
            raise BedError(f"{self.name} does not answer, so it can't be told to reboot")
        self.ssh("systemctl reboot" if self.user == "root" else "sudo systemctl reboot", timeout=30)
        self.wait(before)

    @abc.abstractmethod
    def runs(self) -> bool:
        """Whether it is switched on."""

    @abc.abstractmethod
    def console(self) -> str:
        """The last words of its console."""

    @abc.abstractmethod
    def close(self) -> None:
        """Switch it off and forget its disk. May be called twice."""
