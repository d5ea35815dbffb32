"""What this computer shows of itself, read when it is first asked for: files below a root, and what programs say.

Another root and PATH than the computer's own are for tests. The role preflight reads some of the same before there is
anything of ours on a box; tests/test_verify.py holds the two to the same answers.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from runner.box.gpus import kernel_log
from runner.box.gpus.bus import place

NVIDIA = "0x10de"
DISPLAYS = ("0x0300", "0x0302")  # classes: with and without a monitor's plug
LIBRARIES = (
    "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "lib/x86_64-linux-gnu",
)  # fmt: skip
MACHINE_KEYS = ("var/lib/shim-signed/mok/MOK.der", "var/lib/dkms/mok.pub")  # Ubuntu's, Debian's
FIRMWARE, SHIM = "8be4df61-93ca-11d2-aa0d-00e098032b8c", "605dab50-e046-4300-abb6-3dd810dd8b23"
BROKEN = ("half-configured", "half-installed", "unpacked", "triggers-awaited")
CDI = ("etc/cdi", "run/cdi", "var/run/cdi")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LIMIT = 20.0  # seconds for a program to say what it has to say
WAKING = 60.0  # and for the driver, which may have to wake eight cards
KILLED = 2.0  # seconds for one that was killed: one that hangs in the driver may not even end then
SAID_MAX = 1 << 20


@dataclass(frozen=True)
class Said:
    """How a program ended. code is None when it took too long, 127 when there is none of that name."""

    code: int | None
    out: str = ""
    err: str = ""

    @property
    def last(self) -> str:
        """The end of what it complained about, in a line."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""


@dataclass(frozen=True)
class Card:
    """A GPU of NVIDIA's on the PCI bus."""

    address: str
    driver: str = ""  # that holds it
    lanes: int = 0  # now
    most_lanes: int = 0
    external: bool = False

    @property
    def place(self) -> str:
        """As NVML writes the address."""
        return place(self.address)


@dataclass(frozen=True)
class Kernel:
    release: str
    module: str = ""  # the NVIDIA module's file below lib/modules/<release>
    version: str = ""
    signer: str = ""

    @property
    def built_here(self) -> bool:
        return "/dkms/" in f"/{self.module}"


@dataclass(frozen=True)
class SecureBoot:
    """on: modules must be signed by a key that the firmware or the boot loader knows."""

    on: bool | None  # None: it can't be read
    key: str = ""  # this machine's own, which signs what DKMS builds
    enrolled: bool | None = None
    pending: bool = False


class Computer:
    def __init__(self, root: str = "/") -> None:
        self.root = os.path.abspath(root)
        self.own_root = self.root == "/"

    # --- files ---

    def path(self, *parts: str) -> str:
        """Below the root, wherever links lead."""
        path = os.path.join(self.root, *(part.lstrip("/") for part in parts))
        for _ in range(8):
            if not os.path.islink(path):
                break
            target = os.readlink(path)
            path = os.path.join(self.root, target[1:]) if target.startswith("/") else _beside(path, target)
        return path

    def content(self, *parts: str) -> bytes | None:
        try:
            with open(self.path(*parts), "rb") as file:
                return file.read(SAID_MAX << 4)
        except OSError:
            return None

    def text(self, *parts: str) -> str:
        """What a file holds; nothing where it can't be read."""
        return (self.content(*parts) or b"").decode(errors="replace").strip("\0 \n")

    def names(self, *parts: str) -> list[str]:
        try:
            return sorted(os.listdir(self.path(*parts)))
        except OSError:
            return []

    def exists(self, *parts: str) -> bool:
        return os.path.exists(self.path(*parts))

    def link(self, *parts: str) -> str:
        """Where a link leads, as it is written."""
        try:
            return os.readlink(os.path.join(self.root, *parts))
        except OSError:
            return ""

    # --- programs ---

    @cached_property
    def programs(self) -> str:
        """PATH, and where administrators' programs are: these are not on everybody's."""
        return f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"

    def find(self, name: str) -> str:
        places = (os.path.join(folder, name) for folder in self.programs.split(":") if folder)
        return next((path for path in places if os.path.isfile(path) and os.access(path, os.X_OK)), "")

    def run(self, *command: str, limit: float = LIMIT, env: Mapping[str, str] = {}, **more: Any) -> Said:
        """Its output goes to files: whoever holds a pipe of a program that can't be ended waits for ever."""
        program = self.find(command[0]) if "/" not in command[0] else command[0]
        if not program:
            return Said(127, err=f"{command[0]} is not installed")
        variables = {**os.environ, "LC_ALL": "C", "PATH": self.programs, **env}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                child = subprocess.Popen(
                    [program, *command[1:]], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=variables,
                    start_new_session=True, **more,
                )  # fmt: skip
            except OSError as error:
                return Said(127, err=f"{program}: {error.strerror}")
            code = _wait(child, limit)
            return Said(code, _read(out), _read(err))

    def json(self, *command: str, limit: float = LIMIT, env: Mapping[str, str] = {}) -> tuple[Any, Said]:
        """A program of ours that prints an object; None where it did not."""
        said = self.run(*command, limit=limit, env=env)
        try:
            return json.loads(said.out) if said.code == 0 else None, said
        except ValueError:
            return None, said

    # --- the cards ---

    @cached_property
    def cards(self) -> list[Card]:
        return [card for address in self.names("sys/bus/pci/devices") if (card := self._card(address))]

    def _card(self, address: str) -> Card | None:
        folder = f"sys/bus/pci/devices/{address}"
        if self.text(folder, "vendor") != NVIDIA or not self.text(folder, "class").startswith(DISPLAYS):
            return None
        real = os.path.realpath(os.path.join(self.root, folder))
        driver = os.path.basename(self.link(os.path.relpath(real, self.root), "driver"))
        now, most = (_number(self.text(folder, f"{which}_link_width")) for which in ("current", "max"))
        return Card(address, driver, now, most, self._external(real))

    def _external(self, path: str) -> bool:
        """The kernel marks the card, or a bridge above it, that is behind a port such as Thunderbolt's."""
        while len(path) > len(os.path.join(self.root, "sys")):
            if self.text(os.path.relpath(path, self.root), "removable") == "removable":
                return True
            path = os.path.dirname(path)
        return False

    @cached_property
    def used(self) -> list[Card]:
        """Without those that are given to virtual machines."""
        return [card for card in self.cards if card.driver != "vfio-pci"]

    # --- the driver ---

    @cached_property
    def loaded(self) -> str:
        """The version of the NVIDIA module in the kernel; nothing where none is."""
        found = re.search(r"^NVRM version:.*?(\d{3}\.\d+(?:\.\d+)?)", self.text("proc/driver/nvidia/version"), re.M)
        return found[1] if found else self.text("sys/module/nvidia/version")

    @cached_property
    def library(self) -> str:
        """The version of the driver's libraries: the end of the name of the file behind libnvidia-ml.so.1."""
        for folder in LIBRARIES:
            found = re.search(r"\.so\.(\d{3}\.\d+(?:\.\d+)?)$", self.path(folder, "libnvidia-ml.so.1"))
            if found and self.exists(folder, "libnvidia-ml.so.1"):
                return found[1]
        return ""

    @cached_property
    def running(self) -> str:
        return self.text("proc/sys/kernel/osrelease") or os.uname().release

    @cached_property
    def kernels(self) -> list[Kernel]:
        """Those that can be started, oldest first; the boot loader takes the last one unless told otherwise."""
        names = [name for name in self.names("lib/modules") if self.exists(f"boot/vmlinuz-{name}")]
        return [self._kernel(name) for name in sorted(names, key=version_key)]

    def _kernel(self, release: str) -> Kernel:
        listed = self.text("lib/modules", release, "modules.dep")
        found = re.search(r"^(\S*/(nvidia(?:-current)?(?:-open)?)\.ko\S*):", listed, re.M)
        if not found:
            return Kernel(release)
        asked = (
            self.run("modinfo", "-k", release, "-F", field, found[2]).out.strip() for field in ("version", "signer")
        )
        return Kernel(release, found[1], *asked)

    @cached_property
    def nouveau_is_kept_out(self) -> bool:
        """Whether a file of modprobe's says so."""
        folders = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
        texts = (self.text(folder, name) for folder in folders for name in self.names(folder))
        return any(re.search(r"^\s*blacklist\s+nouveau\b", text, re.M) for text in texts)

    @cached_property
    def broken_packages(self) -> list[str]:
        """Those of the driver that dpkg did not finish."""
        found = []
        for paragraph in self.text("var/lib/dpkg/status").split("\n\n"):
            fields = dict(re.findall(r"^(Package|Status): (.+)$", paragraph, re.M))
            state = fields.get("Status", "").split()
            if state[2:] and state[2] in BROKEN and re.match(r"(lib)?nvidia|dkms$|linux-", fields.get("Package", "")):
                found.append(f"{fields['Package']} is {state[2]}")
        return found

    @cached_property
    def dkms(self) -> list[str]:
        """What dkms says of NVIDIA's modules: `nvidia/580.126.20, 6.12.107-amd64, x86_64: installed`."""
        lines = self.run("dkms", "status").out.splitlines()
        return [line.strip() for line in lines if line.startswith("nvidia")]

    @cached_property
    def make_log(self) -> tuple[str, ...]:
        """The end of the last build of NVIDIA's modules that failed: from its first error on."""
        modules = [name for name in self.names("var/lib/dkms") if name.startswith("nvidia")]
        folders = [f"var/lib/dkms/{name}/{version}" for name in modules for version in self.names("var/lib/dkms", name)]
        lines = next((text.splitlines() for folder in folders if (text := self.text(folder, "build/make.log"))), [])
        first = next((number for number, line in enumerate(lines) if re.search(r"\berror:|\*\*\*", line, re.I)), -8)
        return tuple(line.strip() for line in lines[first:][:8])

    @cached_property
    def secure_boot(self) -> SecureBoot:
        key = next((path for path in MACHINE_KEYS if self.exists(path)), "")
        if not self.exists("sys/firmware/efi"):
            return SecureBoot(False, key and f"/{key}")
        state = {b"\0": False, b"\1": True}.get(self._efi("SecureBoot", FIRMWARE) or b"")
        if self._efi("MokSBStateRT", SHIM) == b"\1":  # the boot loader's own switch
            state = False
        certificate = self.content(key) if key else None
        listed = self.content("sys/firmware/efi/mok-variables/MokListRT") or self._efi("MokListRT", SHIM)
        enrolled = None if listed is None else bool(certificate) and (certificate or b"") in listed
        pending = self.exists(f"sys/firmware/efi/efivars/MokNew-{SHIM}")
        return SecureBoot(state, key and f"/{key}", enrolled, pending)

    def _efi(self, name: str, owner: str) -> bytes | None:
        """A variable's value, which comes after four bytes of attributes."""
        content = self.content(f"sys/firmware/efi/efivars/{name}-{owner}")
        return None if content is None else content[4:]

    @cached_property
    def faults(self) -> list[tuple[str, int, str]] | None:
        """(place on the bus, Xid, words) of what the kernel's log tells since the start; None: we may not read it."""
        try:
            fd = os.open(self.path("dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        text = b""
        try:
            while piece := _record(fd):
                text += piece if b"NVRM" in piece else b""
        finally:
            os.close(fd)
        lines = text.decode(errors="replace").splitlines()
        return [fault for line in lines if (fault := kernel_log.parse(line))]

    @cached_property
    def nvml(self) -> dict[str, Any]:
        """What the driver's management library says, asked by a process that may hang: see nvml_reader.py."""
        found, said = self.json(sys.executable, "-P", "-m", "runner.box.checks.nvml_reader", limit=WAKING)
        if isinstance(found, dict):
            return found
        why = "it does not answer" if said.code is None else said.last or f"its reader ended with {said.code}"
        return {"trouble": {"code": "unknown", "message": f"the driver can't be asked: {why}", "hint": ""}}

    # --- the house ---

    @cached_property
    def state(self) -> str:
        """The folder of the queue that setup.yml made; nothing elsewhere."""
        found = re.search(r'^state = "(.*)"', self.text("etc/gpubox/launcher.toml"), re.M)
        return found[1] if found else ""

    @cached_property
    def container(self) -> str:
        """The manager of the container that this is; nothing elsewhere."""
        return self.text("run/systemd/container")

    @cached_property
    def cdi(self) -> dict[str, list[str]]:
        """File of CDI that names NVIDIA's devices -> versions of the driver that are in it."""
        found = {}
        for folder in CDI[:2] if self.exists("run/cdi") else CDI:
            for name in self.names(folder):
                text = self.text(folder, name)
                if name.endswith((".yaml", ".json")) and "nvidia.com/gpu" in text:
                    found[f"/{folder}/{name}"] = sorted(set(re.findall(r"\.so\.(\d{3}\.\d+(?:\.\d+)?)\b", text)))
        return found

    @cached_property
    def clock_kept(self) -> bool:
        """Whether the kernel says that its clock is kept by somebody."""
        if self.exists("run/systemd/timesync/synchronized"):
            return True
        return bool(self.own_root and ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)) not in (-1, 5))

    @cached_property
    def newest_file(self) -> float:
        """When the newest of a few files was written, which can't be in the future."""
        known = [0.0]
        for name in ("var/lib/dpkg/status", "etc/os-release"):
            try:
                known.append(os.stat(self.path(name)).st_mtime)
            except OSError:
                continue
        return max(known)

    def space(self, path: str) -> tuple[int, int]:
        """(bytes free, bytes in all) of the file system that holds it."""
        found = os.statvfs(self.path(path))
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def version_key(release: str) -> list[int]:
    """6.12.107+deb13-amd64 -> something that sorts as kernels do."""
    return [int(part) for part in re.findall(r"\d+", release)]


def _beside(path: str, target: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(path), target))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _record(fd: int) -> bytes:
    """A record of the kernel's log; nothing after the last one."""
    while True:
        try:
            return os.read(fd, kernel_log.RECORD_MAX)
        except BrokenPipeError:  # some were overwritten while we read
            continue
        except OSError:
            return b""


def _wait(child: subprocess.Popen[bytes], limit: float) -> int | None:
    try:
        return child.wait(limit)
    except subprocess.TimeoutExpired:
        _kill(child.pid)
    except BaseException:
        _kill(child.pid)
        raise
    try:
        child.wait(KILLED)
    except subprocess.TimeoutExpired:
        pass
    return None


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read(SAID_MAX).decode(errors="replace"))
