"""A Debian 13 machine with its own kernel, under software emulation (no KVM needed): real reboots, modules, cgroup v2
with its controllers, out-of-memory. It answers about 40 s after it was started, and is some ten times slower than this
machine. It has one core.

    machine = Machine(run)         # run: runs.Run; up when this returns
    machine.cut_power(); machine.start()
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys

from bed import base
from bed.commands import call
from bed.host import Host
from bed.runs import Run

# Without cmpxchg16b: with it, under QEMU 7.2, this kernel now and then panics in kmalloc, right behind that instruction
# and with flags that no processor leaves.
PROCESSOR = "qemu64,-cx16"
MEMORY_MIB = 3072
TOOLS = ("debootstrap", "qemu-system-x86_64", "mke2fs", "ssh", "scp", "setpriv", "unshare", "apt-get")


class Machine(Host):
    """Up when it is made; its sshd is a port of this machine's loopback. user: who ssh and Ansible are."""

    patience_seconds = 240.0

    def __init__(self, run: Run, user: str = "root") -> None:
        name, self.place, _ = run.names_a_host()
        super().__init__(name, "127.0.0.1", _free_port(), user)
        self._image = base.image()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            call("cp", "--sparse=always", str(self._image.path / "disk"), str(self.place / "disk"))
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Switch it on, with the disk that it has; returns when ssh answers."""
        command = (
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-name", self.name, "-nographic"),
            *("-accel", "tcg", "-cpu", PROCESSOR, "-smp", "1", "-m", str(MEMORY_MIB)),
            *("-kernel", str(self._image.path / "kernel"), "-initrd", str(self._image.path / "initrd")),
            *("-append", "console=ttyS0 root=/dev/vda rw"),
            *("-drive", f"file={self.place / 'disk'},if=virtio,format=raw,cache=writethrough"),
            *("-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{self.port}-:22", "-device", "virtio-net,netdev=net0"),
        )
        with open(self.place / "console", "ab") as console:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        self.wait()

    def cut_power(self) -> None:
        """Everything that was not on the disk is lost; start() boots it again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def console(self) -> str:
        path = self.place / "console"
        return path.read_text(errors="replace")[-4000:] if path.exists() else "nothing on its console"

    def close(self) -> None:
        self.cut_power()
        if self.place.exists():
            shutil.rmtree(self.place)
            self._image.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    run = Run()
    try:
        machine = Machine(run, *sys.argv[1:2])
        way = f"ssh -i {machine.key} -p {machine.port} {machine.user}@127.0.0.1"
        print(f"{way}   # Ctrl-C here removes the machine", flush=True)  # noqa: T201
        assert machine._process is not None
        machine._process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        run.close()


if __name__ == "__main__":
    main()
