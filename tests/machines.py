"""Computers that are only files: what sysfs, procfs, dpkg and apt show of them, built below a folder."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

ROLES = Path(__file__).resolve().parent.parent / "playbooks" / "roles"
sys.path[:0] = [str(ROLES / place) for place in ("plan", "preflight/library", "preflight/filter_plugins")]

gpubox_facts, gpubox_refusals, gpubox_decision = map(
    importlib.import_module, ("gpubox_facts", "gpubox_refusals", "gpubox_decision")
)

NOW = 1795260000.0  # 2026-11-21
GIB = 1 << 30
KERNELS = {
    "ubuntu-22.04": "5.15.0-160-generic",
    "ubuntu-24.04": "6.8.0-90-generic",
    "ubuntu-26.04": "7.0.0-14-generic",
    "debian-12": "6.1.0-50-amd64",
    "debian-13": "6.12.107+deb13-amd64",
}
PYTHONS = {"ubuntu-22.04": "3.10", "ubuntu-24.04": "3.12", "ubuntu-26.04": "3.14", "debian-12": "3.11"}
CODENAMES = {"ubuntu-22.04": "jammy", "ubuntu-24.04": "noble", "debian-12": "bookworm", "debian-13": "trixie"}
FIRMWARE, SHIM = "8be4df61-93ca-11d2-aa0d-00e098032b8c", "605dab50-e046-4300-abb6-3dd810dd8b23"
CERTIFICATE = b"a certificate in DER"


class Machine:
    """Each verb adds something and gives the machine back."""

    def __init__(self, root: Path, system: str = "ubuntu-24.04", kernel: str | None = None, cpu: str = "amd64") -> None:
        self.root, self.system, self.offers, self.lists = root, system, dict[str, str](), False
        self.versions = dict[str, list[str]]()
        self.codename = CODENAMES.get(system, "")
        self.space: dict[str, dict[str, int]] = {"/": {"free_bytes": 200 * GIB, "total_bytes": 500 * GIB}}
        self._packages: dict[str, tuple[str, str, str]] = {}
        name, _, version = system.partition("-")
        lines = f'ID={name}\nVERSION_ID="{version}"\nPRETTY_NAME="{name.capitalize()} {version}"\n'
        self.file("etc/os-release", f"{lines}VERSION_CODENAME={self.codename}\n")
        self.link("usr/bin/python3", f"python{PYTHONS.get(system, '3.13')}")
        self.package("dpkg", "1.22", architecture=cpu)
        self.kernel(kernel or KERNELS.get(system, "6.1.0-1-amd64")).running(kernel or KERNELS.get(system, "6.1.0"))
        self.file("sys/fs/cgroup/cgroup.controllers", "cpu memory")

    def file(self, name: str, content: str | bytes = "") -> Machine:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self

    def link(self, name: str, target: str) -> Machine:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return self

    def gpu(self, device: str, driver: str | None = None, **more: Any) -> Machine:
        """more: address, vendor, kind (the class), boot_vga, lanes (now, most), external."""
        address = more.get("address", f"0000:{len(list(self.root.glob('sys/bus/pci/devices/*'))) + 1:02x}:00.0")
        bridge = "0000:00:07.0" if more.get("external") else "0000:00:01.0"
        place = f"sys/devices/pci0000:00/{bridge}/{address}"
        now, most = more.get("lanes", (16, 16))
        values = {
            "vendor": f"0x{more.get('vendor', '10de')}",
            "device": f"0x{device}",
            "class": f"0x{more.get('kind', '030000')}",
            "subsystem_vendor": "0x1458",
            "subsystem_device": "0x403b",
            "boot_vga": str(int(more.get("boot_vga", False))),
            "current_link_width": str(now),
            "max_link_width": str(most),
            "current_link_speed": "2.5 GT/s PCIe",
            "max_link_speed": "16.0 GT/s PCIe",
        }
        for name, value in values.items():
            self.file(f"{place}/{name}", f"{value}\n")
        if more.get("external"):
            self.file(f"sys/devices/pci0000:00/{bridge}/removable", "removable\n")
        if driver:
            self.link(f"{place}/driver", f"../../../../bus/pci/drivers/{driver}")
        return self.link(f"sys/bus/pci/devices/{address}", f"../../../devices/pci0000:00/{bridge}/{address}")

    def kernel(self, release: str, headers: bool = True, module: str = "") -> Machine:
        self.file(f"boot/vmlinuz-{release}").file(
            f"lib/modules/{release}/modules.dep", f"kernel/fs/ext4/ext4.ko:\n{module and module + ':'}\n"
        )
        if headers:
            self.file(f"usr/src/linux-headers-{release}/Makefile")
            self.link(f"lib/modules/{release}/build", f"/usr/src/linux-headers-{release}")
        return self

    def running(self, release: str) -> Machine:
        return self.file("proc/sys/kernel/osrelease", f"{release}\n")

    def no_headers(self, release: str) -> Machine:
        (self.root / f"usr/src/linux-headers-{release}/Makefile").unlink()
        (self.root / f"usr/src/linux-headers-{release}").rmdir()
        return self

    def package(self, name: str, version: str, state: str = "installed", architecture: str = "amd64") -> Machine:
        self._packages[name] = (version, state, architecture)
        paragraphs = [
            f"Package: {name}\nStatus: install ok {state}\nArchitecture: {cpu}\nVersion: {version}\n"
            "Description: one\n of many\n"
            for name, (version, state, cpu) in self._packages.items()
        ]
        self.file("var/lib/dpkg/status", "\n".join(paragraphs))
        os.utime(self.root / "var/lib/dpkg/status", (NOW - 3600, NOW - 3600))
        return self

    def packages(self, version: str, *names: str) -> Machine:
        for name in names:
            self.package(name, version)
        return self

    def loaded(self, version: str, flavour: str = "open") -> Machine:
        kind = "Open Kernel Module for x86_64" if flavour == "open" else "x86_64 Kernel Module"
        return self.file("proc/driver/nvidia/version", f"NVRM version: NVIDIA UNIX {kind}  {version}  Release Build\n")

    def holder(self, pid: int, name: str) -> Machine:
        self.file(f"proc/{pid}/comm", f"{name}\n")
        return self.link(f"proc/{pid}/fd/7", "/dev/nvidia0").link(f"proc/{pid}/fd/8", "/dev/nvidiactl")

    def secure_boot(
        self, state: bool | None, key: bool = False, enrolled: bool = False, pending: bool = False
    ) -> Machine:
        self.file("sys/firmware/efi/fw_platform_size", "64\n")
        if state is not None:
            self.file(f"sys/firmware/efi/efivars/SecureBoot-{FIRMWARE}", b"\x06\0\0\0" + bytes([state]))
        if key:
            self.file("var/lib/dkms/mok.pub", CERTIFICATE)
        if pending:
            self.file(f"sys/firmware/efi/efivars/MokNew-{SHIM}", b"\x07\0\0\0" + CERTIFICATE)
        listed = b"others" + (CERTIFICATE if enrolled else b"")
        return self.file(f"sys/firmware/efi/efivars/MokListRT-{SHIM}", b"\x06\0\0\0" + listed)

    def thunderbolt(self, security: str = "user", authorised: bool = True) -> Machine:
        base = "sys/bus/thunderbolt/devices"
        self.file(f"{base}/domain0/security", f"{security}\n").file(f"{base}/domain0/iommu_dma_protection", "1\n")
        self.file(f"{base}/0-0/device_name", "this computer\n").file(f"{base}/0-1/device_name", "Core X\n")
        self.file(f"{base}/0-1/vendor_name", "Razer\n").file(f"{base}/0-1/unique_id", "d3030000-0000\n")
        return self.file(f"{base}/0-1/authorized", f"{int(authorised)}\n")

    def source(self, file: str, content: str) -> Machine:
        return self.file(f"etc/apt/{file}", content)

    def nvidia_source(self) -> Machine:
        url = "https://developer.download.nvidia.com/compute/cuda/repos/some/x86_64/"
        return self.source("sources.list.d/cuda.list", f"deb [signed-by=/usr/share/keyrings/cuda.gpg] {url} /\n")

    def offering(self, version: str, *names: str) -> Machine:
        """What apt, whose lists are there, has of what it is asked for."""
        self.lists = True
        self.offers.update(dict.fromkeys(names, version))
        return self

    def having(self, name: str, *versions: str) -> Machine:
        """All that apt's sources have of it, the newest first, which is what it would take."""
        self.versions[name] = list(versions)
        return self.offering(versions[0], name)

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = gpubox_facts.gather(str(self.root), NOW)
        found["space"] = self.space
        found["apt"].update(lists=self.lists, offers=self.offers, versions=self.versions)
        return found
