"""What a computer will be made into: rows of (computer, wishes) -> (decision, its reason)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from machines import KERNELS, ROLES, Machine, gpubox_decision

Build = Callable[[Machine], Machine]
plan, names, offers = gpubox_decision.plan, gpubox_decision.names, gpubox_decision.offers
FILES = ROLES / "plan/files"
GPUS = json.loads((FILES / "gpus.json").read_text())


class Row(NamedTuple):
    name: str
    system: str
    build: Build
    wishes: dict[str, Any]
    expected: dict[str, Any]  # a key of the driver, or of the plan with its part before a dot
    says: str = ""  # somewhere in its reasons, notices or problems


def ubuntu(machine: Machine, *branches: int, kernel: str = "generic", exact: bool = True, dkms: bool = True) -> Machine:
    """apt's lists are there, with these branches; exact: with a module for the very kernel that starts next."""
    release = machine.facts()["kernel"]["next"]
    for branch in branches:
        version = {580: "580.126.09", 595: "595.71.05"}.get(branch, f"{branch}.1") + "-0ubuntu0.24.04.1"
        for flavour in ("", "-open"):
            module = f"linux-modules-nvidia-{branch}-server{flavour}"
            machine.offering(version, f"nvidia-headless-no-dkms-{branch}-server{flavour}", f"{module}-{kernel}")
            if exact:
                machine.offering(version, f"{module}-{release}")
            if dkms:
                machine.offering(version, f"nvidia-headless-{branch}-server{flavour}")
        machine.offering(version, f"nvidia-utils-{branch}-server")
    return machine.offering("1", f"linux-headers-{kernel}", f"linux-image-{kernel}")


def signed(machine: Machine, branch: int = 580, flavour: str = "-open") -> Machine:
    """As after a first run, and the restart that follows it."""
    version = "580.126.09" if branch == 580 else "595.71.05"
    return machine.packages(
        f"{version}-0ubuntu1",
        f"linux-modules-nvidia-{branch}-server{flavour}-generic",
        f"nvidia-headless-no-dkms-{branch}-server{flavour}",
        f"nvidia-utils-{branch}-server",
        f"libnvidia-compute-{branch}-server",
        "linux-image-generic",
    )


def debian_driver(machine: Machine, version: str = "535.261.03") -> Machine:
    own = ("linux-headers-amd64", "nvidia-kernel-dkms", "nvidia-smi", "libcuda1", "nvidia-persistenced")
    return machine.packages(f"{version}-1", *own)


def old_kernel(machine: Machine) -> Machine:
    """A Debian 13 that has not had its updates yet."""
    for path in (machine.root / "boot").iterdir():
        path.unlink()
    return machine.kernel("6.12.96+deb13-amd64").running("6.12.96+deb13-amd64")


def having(machine: Machine, *versions: str) -> Machine:
    """NVIDIA's repository for Debian is one of apt's sources, with these versions, the newest first."""
    machine.gpu("2204").nvidia_source().offering("6.1.170-1", "linux-headers-amd64")
    return machine.having("nvidia-driver-cuda", *versions).having("nvidia-kernel-open-dkms", *versions)


DEBIAN_580 = ["linux-headers-amd64", "nvidia-driver-cuda", "nvidia-kernel-open-dkms"]
SIGNED_580 = [
    "linux-modules-nvidia-580-server-open-generic",
    "nvidia-headless-no-dkms-580-server-open",
    "nvidia-utils-580-server",
    "linux-image-generic",  # its newest, which the first brings without linux-modules-extra
]
OPEN = {"source": "ubuntu-signed", "flavour": "open", "branch": 580}
LEGACY = {"source": "ubuntu-signed", "flavour": "proprietary", "branch": 580, "torch.wheels": "cu126"}
NVIDIA = {"source": "nvidia", "flavour": "open", "branch": 580}
DEBIANS_OPEN = {"driver_source": "debian", "driver_flavour": "open"}
NONE = {"source": "none", "packages": [], "reboot": False, "torch.wheels": "cpu"}
NEW, OLD = "ubuntu-24.04", "ubuntu-22.04"
VFIO = "0000:0a:00.0"

ROWS = [
    # --- cards -----------------------------------------------------------------------------------------------------
    Row("RTX 3090", NEW, lambda m: m.gpu("2204"), {}, {**OPEN, "packages": SIGNED_580, "reboot": True}, "no compiler"),
    Row("two RTX 3090", NEW, lambda m: m.gpu("2204").gpu("2204"), {}, OPEN),
    Row("RTX 2080 Ti", NEW, lambda m: m.gpu("1e07"), {}, {**OPEN, "torch.wheels": "default"}),
    Row("GTX 1660 Ti", NEW, lambda m: m.gpu("2182"), {}, OPEN),
    Row("RTX 4090", NEW, lambda m: m.gpu("2684"), {}, OPEN),
    Row("A100", NEW, lambda m: m.gpu("20b0", kind="030200"), {}, OPEN),
    Row("H100", NEW, lambda m: m.gpu("2330", kind="030200"), {}, OPEN),
    Row("GTX 1080 Ti", NEW, lambda m: m.gpu("1b06"), {}, LEGACY, "no GSP"),
    Row("GTX 980 Ti", NEW, lambda m: m.gpu("17c8"), {}, LEGACY, "580 is its last branch"),
    Row("GTX 960", NEW, lambda m: m.gpu("1401"), {}, LEGACY),
    Row("V100", NEW, lambda m: m.gpu("1db4", kind="030200"), {}, LEGACY, "CUDA 12.6 do, up to PyTorch 2.14"),
    Row("P100", NEW, lambda m: m.gpu("15f8", kind="030200"), {}, LEGACY),
    Row("3090 and 1080 Ti", NEW, lambda m: m.gpu("2204").gpu("1b06"), {}, LEGACY,
        "GeForce RTX 3090 could have the open"),
    Row("RTX 5090", NEW, lambda m: m.gpu("2b85"), {}, OPEN, "open modules only"),
    Row("5090, proprietary wished", NEW, lambda m: m.gpu("2b85"), {"driver_flavour": "proprietary"},
        {"source": "none", "problems": ["driver-not-available"]}, "leave the choice to gpubox (auto)"),
    Row("3090, proprietary wished", NEW, lambda m: m.gpu("2204"), {"driver_flavour": "proprietary"},
        {"flavour": "proprietary", "source": "ubuntu-signed"}),
    Row("1080 Ti, open wished", NEW, lambda m: m.gpu("1b06"), {"driver_flavour": "open"},
        {"source": "none", "problems": ["driver-not-available"]}, "no modules of a flavour"),
    Row("1080 Ti, 595 wished", NEW, lambda m: m.gpu("1b06"), {"driver_branch": "595"},
        {"source": "none", "problems": ["driver-not-available"]}, "580 is the last branch for GeForce GTX 1080 Ti"),
    Row("5090 and 1080 Ti", NEW, lambda m: m.gpu("2b85").gpu("1b06"), {}, {**OPEN, "used": [True, False]},
        "runs with open modules only"),
    Row("GTX 780", NEW, lambda m: m.gpu("1004"), {}, NONE, "no driver of today supports Kepler or older"),
    Row("3090 and GTX 780", NEW, lambda m: m.gpu("2204").gpu("1004"), {}, {**OPEN, "used": [True, False]}),
    Row("a card of tomorrow", NEW, lambda m: m.gpu("3abc"), {},
        {"flavour": "open", "branch": 595}, "newer than the table"),
    Row("GB10, arm64", NEW, lambda m: m.package("dpkg", "1", architecture="arm64").gpu("2e12"), {}, OPEN),
    Row("GH200, arm64", NEW, lambda m: m.package("dpkg", "1", architecture="arm64").gpu("2342", kind="030200"), {},
        OPEN),
    Row("B300", NEW, lambda m: m.gpu("3182", kind="030200"), {}, OPEN),
    Row("no GPU", NEW, lambda m: m, {}, NONE, "no NVIDIA GPU here"),
    Row("an AMD card alone", NEW, lambda m: m.gpu("744c", vendor="1002"), {}, NONE, "no NVIDIA GPU here"),
    Row("a laptop", NEW, lambda m: m.gpu("249c").gpu("9a60", vendor="8086", boot_vga=True).package("gdm3", "1"), {},
        {**OPEN, "set": "compute"}),
    Row("a desktop's screen", NEW, lambda m: m.gpu("2204", boot_vga=True).package("gdm3", "1"), {},
        {"set": "desktop", "packages": ["linux-modules-nvidia-580-open-generic", "nvidia-driver-580-open",
                                        "linux-image-generic"]}),
    Row("a desktop, compute wished", NEW, lambda m: m.gpu("2204", boot_vga=True).package("gdm3", "1"),
        {"driver_set": "compute"}, {"set": "compute", "packages": SIGNED_580}),
    Row("vfio, left alone", NEW, lambda m: m.gpu("2204", "vfio-pci", address=VFIO), {"ignored_gpus": [VFIO]}, NONE),
    Row("vfio beside another", NEW, lambda m: m.gpu("2204", "vfio-pci", address=VFIO).gpu("2b85"), {},
        {**OPEN, "used": [True, False]}, "kept for virtual machines"),
    Row("eGPU", NEW, lambda m: m.gpu("2204", external=True).thunderbolt(), {}, OPEN, "behind Thunderbolt"),
    Row("eGPU, not admitted", NEW, lambda m: m.thunderbolt(authorised=False), {}, NONE,
        "boltctl enroll --policy auto d303"),
    Row("eGPU, firmware says no", NEW, lambda m: m.thunderbolt("nopcie"), {}, NONE, "only the firmware's setup"),
    Row("half the lanes", NEW, lambda m: m.gpu("2204", lanes=(8, 16)), {}, OPEN, "has 8 of its 16 lanes"),
    Row("nouveau", NEW, lambda m: m.gpu("2204", "nouveau"), {}, OPEN, "nouveau holds a card"),
    Row("NVSwitch", NEW, lambda m: m.gpu("2330", kind="030200").gpu("22a3", kind="068000"), {}, OPEN, "fabricmanager"),
    # --- kinds of machine ------------------------------------------------------------------------------------------
    Row("WSL", NEW, lambda m: m.running("6.6.87-microsoft-standard-WSL2").gpu("2204"), {}, NONE, "the one of Windows"),
    Row("a container", NEW, lambda m: m.file("run/systemd/container", "lxc").gpu("2204"), {}, NONE, "host's kernel"),
    Row("a container, forced", "debian-12", lambda m: m.file("run/systemd/container", "systemd-nspawn"),
        {"driver_without_gpu": True, "driver_source": "debian"}, {"source": "debian", "branch": 535, "reboot": False}),
    Row("a container, forced, host's kernel", "debian-13",
        lambda m: m.file("run/systemd/container", "systemd-nspawn").no_headers(KERNELS["debian-13"]),
        {"driver_without_gpu": True, **DEBIANS_OPEN}, {"problems": ["driver-does-not-build"]}),
    Row("a VM with a card", NEW, lambda m: m.file("sys/class/dmi/id/sys_vendor", "QEMU").gpu("2204"), {}, OPEN),
    Row("a GPU to come", NEW, lambda m: m, {"driver_without_gpu": True}, {**OPEN, "reboot": False}),
    Row("the owner's driver", NEW, lambda m: m.gpu("2204"), {"driver_source": "none"}, NONE, "left to you"),
    # --- Ubuntu ----------------------------------------------------------------------------------------------------
    Row("22.04", OLD, lambda m: m.gpu("2204"), {}, {**OPEN, "python.source": "uv"}, "Python 3.11; the system has 3.10"),
    Row("22.04, HWE", OLD, lambda m: m.kernel("6.8.0-90-generic").running("6.8.0-90-generic").gpu("2204"), {},
        {"first": "linux-modules-nvidia-580-server-open-generic-hwe-22.04"}),
    Row("24.04, HWE", NEW, lambda m: m.kernel("6.14.0-35-generic").package("linux-image-generic-hwe-24.04",
        "1").gpu("2204"),
        {}, {"first": "linux-modules-nvidia-580-server-open-generic-hwe-24.04"}),
    Row("24.04, low latency", NEW, lambda m: m.kernel("6.8.0-99-lowlatency").gpu("2204"), {},
        {"first": "linux-modules-nvidia-580-server-open-lowlatency"}),
    Row("24.04, on AWS", NEW, lambda m: m.kernel("6.8.0-1099-aws").gpu("2330"), {},
        {"first": "linux-modules-nvidia-580-server-open-aws"}),
    Row("24.04, a kernel of its own", NEW, lambda m: m.kernel("6.18.9-custom").gpu("2204"), {},
        {"source": "none", "problems": ["driver-not-available"]}, "its headers can't be installed"),
    Row("26.04 has 595", "ubuntu-26.04", lambda m: m.gpu("2204"), {}, {**OPEN, "branch": 595}, "supported longer"),
    Row("26.04, 1080 Ti", "ubuntu-26.04", lambda m: m.gpu("1b06"), {},
        {"source": "nvidia", "branch": 580, "flavour": "proprietary"}, "580 is the last branch"),
    Row("apt has 580 and 595", NEW, lambda m: ubuntu(m.gpu("2204"), 580, 595), {},
        {**OPEN, "version": "580.126.09-0ubuntu0.24.04.1"}),
    Row("apt has 595 alone", NEW, lambda m: ubuntu(m.gpu("2204"), 595), {},
        {**OPEN, "branch": 595}, "has no linux-modules"),
    Row("apt has no module for this kernel", NEW, lambda m: ubuntu(m.gpu("2204"), 580, exact=False), {},
        {"source": "ubuntu-dkms", "branch": 580, "first": "linux-headers-generic"}, "has no linux-modules"),
    Row("apt has none of it", NEW, lambda m: ubuntu(m.gpu("2204")), {}, {**NVIDIA}, "NVIDIA's repository, built here"),
    Row("none, and offline", NEW, lambda m: ubuntu(m.gpu("2204")), {"offline": True},
        {"source": "none", "problems": ["driver-not-available"]}, "name a mirror"),
    Row("a mirror", NEW, lambda m: ubuntu(m.gpu("2204")), {"nvidia_repository_url": "https://mirror.example/x"},
        {"source": "mirror", "sources.url": "https://mirror.example/x/"}, "your mirror"),
    Row("NVIDIA's wished, 580", NEW, lambda m: m.gpu("2204"), {"driver_source": "nvidia"},
        {**NVIDIA, "optional": ["nvidia-persistenced", "linux-headers-6.8.0-90-generic"], "packages": [
            "linux-headers-generic", "libnvidia-compute-580", "nvidia-utils-580", "nvidia-dkms-580-open"]}),
    Row("NVIDIA's wished, 595", NEW, lambda m: m.gpu("2204"), {"driver_source": "nvidia", "driver_branch": "595"},
        {"packages": ["linux-headers-generic", "libnvidia-compute", "nvidia-dkms-open"]}),
    Row("615 has no proprietary modules", NEW, lambda m: m.gpu("2204"),
        {"driver_source": "nvidia", "driver_branch": "615", "driver_flavour": "proprietary"},
        {"problems": ["driver-not-available"]}, "no modules of a flavour"),
    Row("Debian's on Ubuntu", NEW, lambda m: m.gpu("2204"), {"driver_source": "debian"},
        {"problems": ["driver-not-available"]}, "leave the choice to gpubox"),
    # --- Debian ----------------------------------------------------------------------------------------------------
    Row("Debian 12", "debian-12", lambda m: m.gpu("2204"), {},
        {**NVIDIA, "packages": DEBIAN_580}, "branch 535 could be had"),
    Row("Debian 13 of today", "debian-13", lambda m: m.gpu("2204"), {}, {**NVIDIA, "packages": DEBIAN_580},
        "branch 550 could be had"),
    Row("Debian 13 of today, open modules", "debian-13", lambda m: m.gpu("2204"), {"driver_flavour": "open"}, NVIDIA,
        "550.163.01-2 does not build for the kernel 6.12.107+deb13-amd64: the kernel's pci_resize_resource"),
    Row("Debian 13, older kernel", "debian-13",
        lambda m: old_kernel(m.gpu("2204")), {}, NVIDIA, "branch 550 could be had"),
    Row("Debian 12's own", "debian-12", lambda m: m.gpu("2204"), {"driver_source": "debian"},
        {"source": "debian", "branch": 535, "flavour": "proprietary", "torch.wheels": "cu126", "components":
         ["contrib", "non-free", "non-free-firmware"]}, "Branch 535 carries CUDA 12.2"),
    Row("Debian 13's own", "debian-13", lambda m: m.gpu("2204"), {"driver_source": "debian"},
        {"source": "debian", "branch": 550, "flavour": "proprietary", "problems": []}, "Branch 550 carries CUDA 12.4"),
    Row("Debian 13's own, open modules", "debian-13", lambda m: m.gpu("2204"), DEBIANS_OPEN,
        {"source": "none", "problems": ["driver-does-not-build"]}, "NVIDIA's repository, built here, branch 580"),
    Row("Debian 13's own, older kernel", "debian-13", lambda m: old_kernel(m.gpu("2204")), DEBIANS_OPEN,
        {"source": "debian", "branch": 550, "flavour": "open", "problems": []}, "Branch 550 carries CUDA 12.4"),
    Row("Debian 13's own, two kernels", "debian-13", lambda m: m.kernel("6.12.96+deb13-amd64").gpu("2204"),
        DEBIANS_OPEN, {"problems": ["driver-does-not-build"]}, "start 6.12.96+deb13-amd64"),
    Row("Debian 13's own, headers to come", "debian-13",
        lambda m: old_kernel(m.gpu("2204")).offering("6.12.107-1", "linux-headers-amd64"),
        DEBIANS_OPEN, {"problems": ["driver-does-not-build"]},
        "does not build for the kernel 6.12.107-1"),
    Row("Debian 13's own, mended", "debian-13",
        lambda m: m.gpu("2204").offering("550.163.01-2+deb13u1", "nvidia-kernel-dkms"),
        DEBIANS_OPEN, {"source": "debian", "version": "550.163.01-2+deb13u1", "problems": []}),
    Row("Debian 13's own at 580", "debian-13",
        lambda m: m.gpu("2204").offering("580.126.09-1", "nvidia-kernel-dkms"), {},
        {"source": "debian", "branch": 580, "flavour": "open"}),
    Row("Debian 12's own, kernel of backports", "debian-12", lambda m: m.kernel("6.12.57+deb12-amd64").gpu("2204"),
        {"driver_source": "debian"}, {"problems": ["driver-does-not-build"]},
        "older than the kernel's memory interface"),
    Row("Debian 13, 5090", "debian-13", lambda m: m.gpu("2b85"), {}, NVIDIA, "GeForce RTX 5090 needs 570 or newer"),
    Row("Debian 13's own, 5090", "debian-13", lambda m: m.gpu("2b85"), {"driver_source": "debian"},
        {"problems": ["driver-not-available"]}, "leave the choice to gpubox (auto): NVIDIA's repository"),
    Row("Debian 13, 1080 Ti", "debian-13", lambda m: m.gpu("1b06"), {},
        {"source": "nvidia", "flavour": "proprietary", "last": "nvidia-kernel-dkms", "torch.wheels": "cu126"}),
    Row("Debian 12, offline", "debian-12", lambda m: m.gpu("2204"), {"offline": True},
        {"source": "debian", "branch": 535}, "Branch 535 carries CUDA 12.2"),
    Row("Debian 13, offline", "debian-13", lambda m: m.gpu("2204"), {"offline": True},
        {"source": "debian", "branch": 550, "problems": []}, "Branch 550 carries CUDA 12.4"),
    Row("Debian 13, offline, open modules", "debian-13", lambda m: m.gpu("2204"),
        {"offline": True, "driver_flavour": "open"},
        {"source": "none", "problems": ["driver-does-not-build"]}, "name a mirror"),
    Row("Debian 13, arm64", "debian-13",
        lambda m: m.package("dpkg", "1", architecture="arm64").kernel("6.12.120+deb13-arm64").gpu("2e12"), {},
        {"problems": ["driver-not-available"]}, "nothing for debian on aarch64"),
    Row("Debian 12, a cloud kernel", "debian-12", lambda m: m.kernel("6.1.0-99-cloud-amd64").gpu("2204"), {},
        {"first": "linux-headers-cloud-amd64"}, "a cloud kernel"),
    Row("Debian 13, a kernel of its own", "debian-13", lambda m: m.kernel("6.18.44-fc-v669").gpu("2204"), {},
        {"problems": ["driver-not-available"]}, "its headers can't be installed"),
    Row("Debian, a screen", "debian-13", lambda m: m.gpu("2204", boot_vga=True).package("gdm3", "1"), {},
        {"set": "desktop", "last": "nvidia-open"}),
    Row("an old driver of NVIDIA's", "debian-13", lambda m: m.gpu("2204").nvidia_source().offering(
        "570.172.08-1", "linux-headers-amd64", "nvidia-driver-cuda", "nvidia-kernel-open-dkms"),
        {"driver_source": "nvidia", "driver_branch": "570"}, {"problems": ["driver-does-not-build"]},
        "pci_resize_resource"),
    # --- what is there already -------------------------------------------------------------------------------------
    Row("a good driver", NEW, lambda m: signed(m.gpu("2204", "nvidia")).loaded("580.126.09"), {},
        {"source": "keep", "branch": 580, "packages": [], "remove": [], "reboot": False}, "it stays"),
    Row("a newer one", NEW, lambda m: signed(m.gpu("2204", "nvidia"), 595).loaded("595.71.05"), {}, {"source": "keep"}),
    Row("a good driver, its jobs", NEW, lambda m: signed(m.gpu("2204")).loaded("580.126.09").holder(7, "python"), {},
        {"source": "keep", "problems": []}),
    Row("updated, not restarted", NEW, lambda m: signed(m.gpu("2204")).loaded("580.95.05"), {},
        {"source": "keep", "reboot": True}, "580.95.05 is loaded, 580.126.09 is installed"),
    Row("kept, next kernel without it", NEW, lambda m: signed(m.gpu("2204")).loaded("580.126.09"), {},
        {"source": "keep"},
        "the next restart loses the GPU"),
    Row("installed, not restarted", NEW, lambda m: signed(m.gpu("2204", "nouveau")), {},
        {**OPEN, "reboot": True, "remove": []}, "loaded with the next start"),
    Row("too old", "debian-12", lambda m: debian_driver(m.gpu("2204")).loaded("535.261.03", "proprietary"), {},
        {**NVIDIA, "remove": ["nvidia-kernel-dkms", "nvidia-smi"], "reboot": True}, "another source"),
    Row("too old, wished so", "debian-12", lambda m: debian_driver(m.gpu("2204")).loaded("535.261.03", "proprietary"),
        {"driver_source": "debian"}, {"source": "debian", "remove": [], "reboot": False}),
    Row("too old, and in use", "debian-12",
        lambda m: debian_driver(m.gpu("2204")).loaded("535.261.03", "proprietary").holder(4242, "python"), {},
        {"source": "nvidia", "problems": ["driver-in-use"]}, "while python (4242) uses a GPU"),
    Row("too old, a screen holds it", "debian-12",
        lambda m: debian_driver(m.gpu("2204")).loaded("535.261.03", "proprietary").holder(9, "Xorg"), {},
        {"source": "nvidia", "problems": []}),
    Row("the wrong flavour", NEW, lambda m: signed(m.gpu("2b85"), flavour=""), {},
        {**OPEN, "remove": ["linux-modules-nvidia-580-server-generic", "nvidia-headless-no-dkms-580-server"]}),
    Row("a wished branch", NEW, lambda m: signed(m.gpu("2204")).loaded("580.126.09"), {"driver_branch": "595"},
        {"source": "ubuntu-signed", "branch": 595, "remove": SIGNED_580[:3]}),
    Row("a wished source", NEW, lambda m: signed(m.gpu("2204")).loaded("580.126.09"), {"driver_source": "nvidia"},
        {"source": "nvidia"}, "another source"),
    Row("NVIDIA's on Ubuntu", NEW, lambda m: m.gpu("2204").nvidia_source().packages("580.95.05-0ubuntu1",
        "libnvidia-compute-580", "nvidia-utils-580", "nvidia-dkms-580-open").loaded("580.95.05"),
        {"driver_source": "nvidia"}, {"source": "keep"}),
    Row("Ubuntu's beside NVIDIA's source", NEW, lambda m: m.gpu("2204").nvidia_source().packages(
        "580.95.05-0ubuntu0.24.04.1", "libnvidia-compute-580", "nvidia-dkms-580-open").loaded("580.95.05"),
        {"driver_source": "ubuntu-dkms"}, {"source": "keep"}),
    Row("NVIDIA's lists, another branch pinned", "debian-12", lambda m: having(
        m, "620.1-1", "595.71.05-1", "580.95.05-1"), {}, {**NVIDIA, "version": "580.95.05-1"}),
    Row("a kernel whose headers are there to be had", "debian-12", lambda m: having(m, "580.95.05-1").no_headers(
        KERNELS["debian-12"]).offering("6.1.170-1", "linux-headers-6.1.0-50-amd64"), {},
        {"first": "linux-headers-amd64", "optional": ["linux-headers-6.1.0-50-amd64"]}),
    Row("a kernel whose headers are gone", "debian-12", lambda m: having(m, "580.95.05-1").no_headers(
        KERNELS["debian-12"]).offering("6.1.170-1", "linux-image-amd64"), {}, {"first": "linux-image-amd64"}),
    Row("NVIDIA's source, its lists not read yet", "debian-12", lambda m: m.gpu("2204").nvidia_source().offering(
        "6.1.170-1", "linux-headers-amd64"), {}, {**NVIDIA, "version": None}),
    Row("NVIDIA's lists without 580", "debian-12", lambda m: having(m, "620.1-1", "595.71.05-1"), {},
        {**NVIDIA, "branch": 595, "version": "595.71.05-1"},
        "NVIDIA's repository has no nvidia-driver-cuda of branch 580"),
    Row("half done", "debian-13",
        lambda m: m.gpu("2204").package("nvidia-open-kernel-dkms", "550.163.01-2", "half-configured"), {},
        {**NVIDIA, "repair": ["nvidia-open-kernel-dkms"], "remove": ["nvidia-open-kernel-dkms"]}, "repaired first"),
    # --- Secure Boot -----------------------------------------------------------------------------------------------
    Row("Secure Boot, Ubuntu", NEW, lambda m: m.gpu("2204").secure_boot(True), {},
        {**OPEN, "mok": "not needed"}, "Secure Boot"),
    Row("Secure Boot, Debian", "debian-13", lambda m: m.gpu("2204").secure_boot(True), {},
        {"mok": "to enrol"}, "USB keyboard"),
    Row("Secure Boot, pending", "debian-13", lambda m: m.gpu("2204").secure_boot(True, key=True, pending=True), {},
        {"mok": "pending"}, "Enroll MOK"),
    Row("Secure Boot, enrolled", "debian-13", lambda m: m.gpu("2204").secure_boot(True, key=True, enrolled=True), {},
        {"mok": "enrolled"}, "modules built here load"),
    Row("Secure Boot off", "debian-13", lambda m: m.gpu("2204").secure_boot(False), {}, {"mok": "not needed"}),
    Row("Secure Boot unknown", "debian-13", lambda m: m.gpu("2204").secure_boot(None), {},
        {"mok": "to enrol"}, "can't be read"),
    Row("Secure Boot, no module signed", NEW, lambda m: ubuntu(m.gpu("2204").secure_boot(True), 580, exact=False), {},
        {"source": "ubuntu-dkms", "mok": "to enrol"}),
    # --- what stands on it -----------------------------------------------------------------------------------------
    Row("CUDA", NEW, lambda m: m.gpu("2204"), {"cuda": ["13.0", "12.9"]},
        {"cuda.packages": ["cuda-toolkit-13-0", "cuda-toolkit-12-9"]}),
    Row("no CUDA", NEW, lambda m: m.gpu("2204"), {}, {"cuda.packages": []}, "bring their own CUDA"),
    Row("CUDA, not exact", NEW, lambda m: m.gpu("2204"), {"cuda": ["13"]}, {"problems": ["cuda-version"]},
        "two numbers"),
    Row("CUDA 13, Pascal", NEW, lambda m: m.gpu("1b06"), {"cuda": ["13.0"]}, {"problems": ["cuda-too-new"]}, "12.9"),
    Row("CUDA 13, old driver", "debian-12", lambda m: m.gpu("2204"), {"cuda": ["13.0"], "driver_source": "debian"},
        {"problems": []}, "runs with driver 580 or newer only"),
    Row("podman", "debian-13", lambda m: m.gpu("2204"), {}, {"containers.engine": "podman", "containers.flags": []},
        "by CDI"),
    Row("old podman", NEW, lambda m: m.gpu("2204"), {}, {"containers.flags": ["no-additional-gids-for-device-nodes"]}),
    Row("podman without CDI", OLD, lambda m: m.gpu("2204"), {}, {"containers.toolkit": [], "containers.flags": []},
        "only with docker"),
    Row("docker, old system", OLD, lambda m: m.gpu("2204"), {"containers": "docker"}, {"containers.flags": []},
        "GPUs come in by CDI"),
    Row("Debian's own docker", "debian-13", lambda m: m.gpu("2204").package("docker.io", "26"),
        {"containers": "docker"}, {"problems": ["docker-of-the-distribution"]}, "sudo apt remove docker.io"),
    Row("Debian's own docker beside podman", "debian-13", lambda m: m.gpu("2204").package("docker.io", "26"), {},
        {"problems": []}),
    Row("a driver of the owner's, in containers", NEW, lambda m: m.gpu("2204").loaded("580.126.09"),
        {"driver_source": "none"}, {"source": "none", "containers.flags": ["no-additional-gids-for-device-nodes"]}),
    Row("docker", NEW, lambda m: m.gpu("2204"), {"containers": "docker"}, {"containers.engine": "docker"}, "127.0.0.1"),
    Row("no containers", NEW, lambda m: m.gpu("2204"), {"containers": "none"}, {"containers.packages": []}),
    Row("containers, no GPU", NEW, lambda m: m, {}, {"containers.toolkit": []}, "no GPU in containers"),
    Row("Python of the system", "debian-12", lambda m: m, {}, {"python.source": "system", "python.version": "3.11"}),
    Row("held with the kernel", NEW, lambda m: m.gpu("2204"), {}, {"holds": "linux-image-"}),
]  # fmt: skip


def shown(made: dict[str, Any], key: str) -> Any:
    driver = made["driver"]
    special = {
        "first": lambda: driver["packages"][0],
        "last": lambda: driver["packages"][-1],
        "used": lambda: sorted((card["used"] for card in made["cards"]), reverse=True),
        "problems": lambda: [problem["id"] for problem in made["problems"]],
        "holds": lambda: next((name for name in driver["held"] if name == "linux-image-"), None),
    }
    if key in special:
        return special[key]()
    part, dot, name = key.partition(".")
    return made[part][name] if dot else driver[key]


def words(made: dict[str, Any]) -> str:
    parts = [made[name]["reason"] for name in ("driver", "cuda", "torch", "containers", "python")]
    problems = [text for problem in made["problems"] for text in problem.values()]
    return " ".join([*chain(*parts), *made["notices"], *problems])


def test_there_are_enough_rows_and_each_has_its_own_name() -> None:
    assert len(ROWS) >= 60
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_the_decision(tmp_path: Path, row: Row) -> None:
    facts = row.build(Machine(tmp_path, row.system)).facts()
    made = plan(facts, row.wishes)
    found = {key: shown(made, key) for key in row.expected}
    assert found == row.expected, words(made)
    assert row.says in words(made), words(made)
    assert made["driver"]["reason"], "every decision has a reason"
    assert "{" not in " ".join(made["driver"]["packages"])
    assert json.loads(json.dumps(made)) == made, "what Ansible keeps is what was decided"
    assert all(len(line) <= 200 for line in gpubox_decision.bill(made, facts)), "it can be read"


@pytest.mark.parametrize("system", KERNELS)
def test_a_second_run_decides_the_same(tmp_path: Path, system: str) -> None:
    machine = Machine(tmp_path, system).gpu("2204")
    first = plan(machine.facts())
    again = plan(machine.packages("580.126.09-1", *first["driver"]["packages"]).facts())
    assert again["driver"]["packages"] == first["driver"]["packages"]
    assert again["driver"]["remove"] == []
    assert again["driver"]["reboot"], "not loaded yet"
    version = f"{first['driver']['branch']}.126.09"
    settled = plan(machine.packages(f"{version}-1", *first["driver"]["packages"]).loaded(version).facts())
    assert (settled["driver"]["source"], settled["driver"]["reboot"]) == ("keep", False)


def test_the_same_facts_are_not_changed_by_deciding(tmp_path: Path) -> None:
    facts = Machine(tmp_path).gpu("2204").gpu("1b06").facts()
    before = json.dumps(facts)
    plan(facts, {"cuda": ["13.0"]})
    assert json.dumps(facts) == before


# --- the tables ------------------------------------------------------------------------------------------------------


def test_every_id_has_one_architecture() -> None:
    ends = [(int(first, 16), int(last, 16)) for first, last, _ in GPUS["ranges"]]
    assert ends[0][0] == 0
    assert all(after[0] == before[1] + 1 for before, after in pairwise(ends)), "no gap, no overlap"
    assert {name for _, _, name in GPUS["ranges"]} | {"newer"} == GPUS["architectures"].keys()
    assert ends[-1][1] == int(GPUS["newest_known"], 16)


def test_every_table_has_its_source_and_date() -> None:
    for path in FILES.glob("*.json"):
        table = json.loads(path.read_text())
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", table["date"]), path.name
        assert table.get("sources") or all(pair["seen"] for pair in table["pairs"])


# --- what apt says ---------------------------------------------------------------------------------------------------

POLICY = """nvidia-kernel-dkms:
  Installed: (none)
  Candidate: 535.261.03-1~deb12u1
  Version table:
     535.261.03-1~deb12u1 500
        500 http://archive.example/debian bookworm/non-free amd64 Packages
nvidia-smi:
  Installed: (none)
  Candidate: (none)
  Version table:
"""
TRANSACTION = """Reading package lists...
The following packages will be REMOVED:
  nvidia-utils-550* libnvidia-compute-550*
The following NEW packages will be installed:
  nvidia-utils-580-server
0 upgraded, 1 newly installed, 2 to remove and 0 not upgraded.
Need to get 1,024 kB/312 MB of archives.
After this operation, 1.1 GB of additional disk space will be used.
Abort.
"""


def test_what_apt_has_is_read() -> None:
    assert offers(POLICY) == {"nvidia-kernel-dkms": "535.261.03-1~deb12u1"}
    assert offers("") == {}


PINNED = """nvidia-kernel-open-dkms:
  Installed: 595.71.05-1
  Candidate: 595.71.05-1
  Version table:
     620.10.01-1 90
        500 http://127.0.0.1:8901  Packages
 *** 595.71.05-1 1001
        500 http://127.0.0.1:8901  Packages
        100 /var/lib/dpkg/status
     580.95.05-1 90
        500 http://127.0.0.1:8901  Packages
     570.1-1 100
        100 /var/lib/dpkg/status
nvidia-smi:
  Installed: (none)
  Candidate: (none)
  Version table:
"""


def test_all_versions_that_the_sources_have_are_read_whichever_is_pinned() -> None:
    found = gpubox_decision.versions(POLICY + PINNED)
    assert found == {
        "nvidia-kernel-dkms": ["535.261.03-1~deb12u1"],
        "nvidia-kernel-open-dkms": ["620.10.01-1", "595.71.05-1", "580.95.05-1"],
    }
    assert gpubox_decision.versions("") == {}


def test_what_apt_would_do_is_read() -> None:
    said = gpubox_decision.simulation(TRANSACTION)
    assert said["download_bytes"] == 1_024_000
    assert said["disk_bytes"] == 1_100_000_000
    assert said["removes"] == ["nvidia-utils-550", "libnvidia-compute-550"]
    assert said["impossible"] == ""


def test_what_apt_can_not_do_is_in_its_own_words() -> None:
    said = gpubox_decision.simulation("E: Unable to locate package nvidia-open\n")
    assert said["impossible"] == "E: Unable to locate package nvidia-open"
    assert said["download_bytes"] is None


def test_the_bill_is_what_why_how_large_and_whether_it_restarts(tmp_path: Path) -> None:
    facts = Machine(tmp_path).gpu("2204").gpu("1b06").facts()
    made = plan(facts)
    text = "\n".join(gpubox_decision.bill(made, facts, gpubox_decision.simulation(TRANSACTION)))
    parts = (
        "GeForce RTX 3090 (Ampere, 0000:01:00.0)",
        "no GSP",
        "installs: linux-modules-nvidia-580-server-generic",
        "removes: libnvidia-compute-550 nvidia-utils-550",
        "1 MB to download",
        "Restart: yes, once",
    )
    for part in parts:
        assert part in text


def test_apt_is_asked_after_all_that_could_be_chosen(tmp_path: Path) -> None:
    asked = names(Machine(tmp_path).gpu("2204").facts())
    assert {"linux-modules-nvidia-580-server-open-6.8.0-90-generic", "linux-headers-generic", *SIGNED_580} <= set(asked)
    asked = names(Machine(tmp_path / "d", "debian-12").facts())
    assert {"nvidia-kernel-dkms", "nvidia-driver-cuda", "linux-headers-6.1.0-50-amd64", "linux-image-amd64"} <= set(
        asked
    )


def test_the_decision_needs_nothing_of_ansible(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import gpubox_decision; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROLES / "plan")], capture_output=True, text=True, check=True
    )
    assert "ansible" not in ran.stdout


# --- as Ansible runs it ----------------------------------------------------------------------------------------------

PLAY = """---
- name: Decide
  hosts: all
  connection: local
  gather_facts: false
  roles: [preflight, plan]
"""


@pytest.mark.long
def test_the_roles_print_the_plan_change_nothing_and_stop_where_they_must(tmp_path: Path) -> None:
    """Three computers in one play with --check: one to begin with, one with a wish too many, one not to be touched."""
    command = Path(sys.executable).parent / "ansible-playbook"
    if not command.exists():
        pytest.skip("ansible-playbook is not installed beside this Python")
    hosts = {
        name: {
            "ansible_python_interpreter": sys.executable,
            "preflight_root": str(tmp_path / name),
            "gpubox_free_gib": 0,
        }
        for name in ("good", "wishful", "touched")
    }
    Machine(tmp_path / "good", "debian-13").gpu("2204").secure_boot(True)
    Machine(tmp_path / "wishful", "debian-13").gpu("2204")
    Machine(tmp_path / "touched", "debian-13").gpu("2204").file("usr/bin/nvidia-uninstall")
    hosts["good"] |= {"gpubox_cuda": ["13.0"], "gpubox_free_gib": -9}  # its 9 GiB need not be free where tests run
    hosts["wishful"] |= {"gpubox_driver_source": "debian", "gpubox_driver_flavour": "open"}
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (tmp_path / "play.yml").write_text(PLAY)
    places = {f"ANSIBLE_{name.upper()}_TEMP": str(tmp_path / name) for name in ("local", "remote")}
    ran = subprocess.run(
        [str(command), "-i", "inventory.json", "--check", "play.yml"],
        env={**os.environ, **places, "ANSIBLE_ROLES_PATH": str(ROLES), "LC_ALL": "C.UTF-8"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    said = ran.stdout
    assert ran.returncode == 2, said + ran.stderr
    assert re.search(r"^good .* changed=0 .* failed=0 ", said, re.M)
    assert "Driver: nvidia 580, open modules, compute" in said
    assert "does not build for the kernel 6.12.107" in said
    assert re.search(r"^wishful .* changed=0 .* failed=1 ", said, re.M)
    assert "leave the choice to gpubox (auto)" in said
    assert re.search(r"^touched .* changed=0 .* failed=1 ", said, re.M)
    assert "A driver was installed by NVIDIA's .run file (/usr/bin/nvidia-uninstall). [run-file]" in said
