"""A Debian host in a container, booted by systemd-nspawn on a private cgroup v2 mount; real systemd, sshd, apt.

    box = Box(run, "bookworm")     # run: runs.Run; up when this returns
    box.run("apt-get install --yes hello")
    box.close()

Its kernel is this machine's. So these do not work in it, and are for vm.py: loading modules, memory and process limits
of units and out-of-memory (no controllers are handed on), device rules, sysctls outside of net, the kernel's log, the
clock, udev, suspend, a boot loader. /proc/self/cgroup shows this machine's v1 hierarchies too, where it has some.
`reboot` in it is a new boot of its userland, with a new boot id, on the same disk.

Packages that hosts downloaded are kept beside the tree and lent to the next ones: a download is seen once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from bed import base, cgroups, network, sources
from bed.commands import until
from bed.host import Host
from bed.runs import Run

BOOT = Path(__file__).with_name("boot.sh")
PACKAGES = Path("var/cache/apt/archives")
TOOLS = ("debootstrap", "systemd-nspawn", "ip", "nft", "ssh", "scp", "setpriv", "unshare", "nsenter", "apt-get")


class Box(Host):
    """Up when it is made. run: whose number it takes; suite: trixie or bookworm; user: who ssh and Ansible are."""

    def __init__(self, run: Run, suite: str = "trixie", user: str = "root") -> None:
        name, self.place, address = run.names_a_host()
        super().__init__(name, address, 22, user)
        self._run = run
        self._base = base.tree(suite)
        self._kept = base.CACHE / f"packages-{suite}"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._furnish()
            self._boot()
        except BaseException:
            self.close()
            raise

    def _furnish(self) -> None:
        for folder in ("upper/etc", "work", "root"):
            (self.place / folder).mkdir(parents=True)
        etc = self.place / "upper/etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{self.address} {self.name}\n")
        (etc / "resolv.conf").write_text(sources.resolver())
        (self.place / "upper" / PACKAGES).mkdir(parents=True)
        _link_packages(self._kept, self.place / "upper" / PACKAGES)

    def _boot(self) -> None:
        self._run.connect()
        alone = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net")
        with open(self.place / "console", "wb") as console:
            self._process = subprocess.Popen(
                (*alone, "sh", str(BOOT), self.name, str(self._base.path), str(self.place)),
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                start_new_session=True,  # a Ctrl-C is ours to answer
            )
        pid = self._process.pid
        here = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{pid}/ns/net") != here, 10, self.console, pause=0.001)
        network.attach(self._run.number, self.name, self.address, pid)
        assert self._process.stdin is not None
        self._process.stdin.write(b"connected\n")
        self._process.stdin.close()
        self.wait()

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def console(self) -> str:
        path = self.place / "console"
        return path.read_text(errors="replace")[-4000:] if path.exists() else "nothing on its console"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self.place.exists():
            cgroups.remove(self.name)
            _link_packages(self.place / "upper" / PACKAGES, self._kept)
            shutil.rmtree(self.place)
            self._base.close()


def _link_packages(source: Path, target: Path) -> None:
    """Hard links: whole packages only, and no bytes are copied (between file systems: none are lent)."""
    target.mkdir(parents=True, exist_ok=True)
    for package in source.glob("*.deb"):
        try:
            os.link(package, target / package.name)
        except OSError:
            continue


def main() -> None:
    run = Run()
    try:
        box = Box(run, *sys.argv[1:2])
        print(f"ssh -i {box.key} root@{box.address}   # Ctrl-C here removes the host", flush=True)  # noqa: T201
        assert box._process is not None
        box._process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        run.close()


if __name__ == "__main__":
    main()
