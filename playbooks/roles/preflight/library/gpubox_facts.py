#!/usr/bin/python
"""What a computer is, read from sysfs, procfs and files below a root. Nothing is run, nothing is written.

Standard library only, Python 3.9 or newer. What is absent is None, [] or {}: nothing here fails on a missing file.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time

DOCUMENTATION = r"""
module: gpubox_facts
short_description: Reads what gpubox has to know of a computer before it changes anything
description:
  - Reads PCI functions, Thunderbolt, Secure Boot, kernels, packages, apt's sources, space and the clock from files.
  - Runs no program, writes nothing and is the same in check mode.
options:
  root:
    description: Where the computer's files begin. Another one than / is for tests.
    type: path
    default: /
author: gpubox
"""

EXAMPLES = r"""
- name: Read what this computer is
  gpubox_facts:
  register: preflight_read
"""

RETURN = r"""
gpubox_facts:
  description: One dictionary; each of its keys is explained at the function of this module that fills it.
  returned: always
  type: dict
"""

NVIDIA = "10de"
DISPLAY_CLASSES = ("0300", "0302")  # with and without a display output
BRIDGE_CLASS = "0680"  # with NVIDIA's vendor id: an NVSwitch
FIRMWARE_VARIABLE = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SHIM_VARIABLE = "605dab50-e046-4300-abb6-3dd810dd8b23"
MACHINE_KEYS = ("var/lib/shim-signed/mok/MOK.der", "var/lib/dkms/mok.pub")  # Ubuntu's, Debian's
PACKAGES = re.compile(
    r"(lib)?nvidia|(lib)?cuda|libcud|libnccl|xserver-xorg-(core$|video-nvidia)|dkms$|linux-(image|headers|modules|objects"
    r"|signatures|generic|lowlatency|oem)|docker|containerd|podman|gdm3$|sddm$|lightdm$|nsight|lambda-"
)
BROKEN = ("half-configured", "half-installed", "unpacked")
SOURCES = {  # a part of an address -> who is behind it
    "/compute/cuda/repos/": "nvidia",
    "nvidia.github.io/libnvidia-container": "nvidia-containers",
    "nvidia.github.io/nvidia-docker": "nvidia-containers",
    "graphics-drivers/ppa": "graphics-drivers-ppa",
    "lambdalabs.com": "lambda",
    "system76": "system76",
    "download.docker.com": "docker",
}
OUR_SOURCE = "etc/apt/sources.list.d/gpubox-cuda.sources"  # NVIDIA's repository, or a mirror of it
FAILED_BUILDS = "etc/gpubox/failed-builds.json"  # which drivers did not build for which kernels, as we found out
NOT_OPTIONS = ("types", "uris", "suites", "components", "enabled")
DEB822 = {"arch": "architectures", "lang": "languages", "target": "targets"}  # what a .list calls otherwise
OLDEST_CLOCK = 1767225600  # 2026-01-01: this file is younger than that


class Tree:
    """The files below a root. Links that begin with / stay below it."""

    def __init__(self, root="/"):
        self.root = os.path.abspath(root)

    def path(self, *parts):
        return os.path.join(self.root, *[part.lstrip("/") for part in parts])

    def bytes(self, *parts):
        """What the file holds; None where it can't be read."""
        try:
            with open(self.path(*parts), "rb") as file:
                return file.read()
        except OSError:
            return None

    def text(self, *parts):
        content = self.bytes(*parts)
        return None if content is None else content.decode("utf-8", "replace").strip("\0 \n")

    def number(self, *parts):
        try:
            return int(self.text(*parts) or "", 0)
        except ValueError:
            return None

    def names(self, *parts):
        try:
            return sorted(os.listdir(self.path(*parts)))
        except OSError:
            return []

    def exists(self, *parts):
        """True also for a link whose target is there below the root."""
        path = self.path(*parts)
        for _ in range(8):
            if not os.path.islink(path):
                break
            target = os.readlink(path)
            path = self.path(target) if target.startswith("/") else os.path.join(os.path.dirname(path), target)
        return os.path.exists(path)

    def link(self, *parts):
        """Where the link leads, as it is written; None where there is none."""
        try:
            return os.readlink(self.path(*parts))
        except OSError:
            return None


def version_key(release):
    """6.12.107+deb13-amd64 -> something that sorts as kernels do."""
    return [int(part) for part in re.findall(r"\d+", release)]


# --- the system ------------------------------------------------------------------------------------------------------


def system(tree, packages):
    """Which distribution on which kind of machine."""
    release = _settings(tree.text("etc/os-release") or tree.text("usr/lib/os-release") or "")
    distribution = release.get("ID", "")
    return {
        "id": distribution,
        "name": release.get("PRETTY_NAME", distribution),
        "version": release.get("VERSION_ID", ""),
        "codename": release.get("VERSION_CODENAME", ""),
        "derivative": distribution not in ("debian", "ubuntu") and _like(release),
        "architecture": _architecture(packages),
        "machine": _machine(tree),
        "python": platform.python_version(),
        "system_python": _system_python(tree),
        "cgroups": 2 if tree.exists("sys/fs/cgroup/cgroup.controllers") else 1 if _cgroups_1(tree) else None,
        "sudo_rs": bool(re.search(r"sudo-rs|cargo", tree.link("etc/alternatives/sudo") or "")),
        "desktop": any(name in packages for name in ("gdm3", "sddm", "lightdm", "xserver-xorg-core")),
    }


def _settings(text):
    pairs = re.findall(r"^(\w+)=(.*)$", text, re.M)
    return {name: value.strip().strip("'\"") for name, value in pairs}


def _like(release):
    return bool({"debian", "ubuntu"} & set(release.get("ID_LIKE", "").split()))


def _architecture(packages):
    """Of the installed system, which is what packages are chosen for; else of the kernel."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}
    ours = packages.get("dpkg", {}).get("architecture", "")
    return machine.get(ours, ours) or os.uname().machine


def _machine(tree):
    """metal, wsl, or what is around us: the name of a container's manager or of a virtual machine's maker."""
    kernel = (tree.text("proc/sys/kernel/osrelease") or "").lower()
    if "microsoft" in kernel or tree.exists("proc/sys/fs/binfmt_misc/WSLInterop"):
        return {"kind": "wsl", "name": "WSL"}
    inside = tree.text("run/systemd/container") or ("docker" if tree.exists(".dockerenv") else None)
    if inside:
        return {"kind": "container", "name": inside}
    maker = " ".join(filter(None, (tree.text("sys/class/dmi/id/" + name) for name in ("sys_vendor", "product_name"))))
    known = re.search(r"QEMU|KVM|VMware|VirtualBox|Virtual Machine|Xen|Amazon EC2|Google Compute|Bochs", maker)
    if known or tree.exists("sys/hypervisor/uuid"):
        return {"kind": "virtual", "name": known.group() if known else "hypervisor"}
    return {"kind": "metal", "name": maker}


def _system_python(tree):
    found = re.fullmatch(r"python(\d+\.\d+)", os.path.basename(tree.link("usr/bin/python3") or ""))
    return found.group(1) if found else None


def _cgroups_1(tree):
    return tree.exists("sys/fs/cgroup/memory")


def space(tree):
    """Mount point -> bytes. /boot only where it is a file system of its own."""
    found = {}
    for mount in ("/", "/boot"):
        try:
            status = os.statvfs(tree.path(mount))
            own = mount == "/" or os.stat(tree.path(mount)).st_dev != os.stat(tree.path("/")).st_dev
        except OSError:
            continue
        if own:
            block = status.f_frsize
            found[mount] = {"free_bytes": status.f_bavail * block, "total_bytes": status.f_blocks * block}
    return found


def clock(tree, now):
    """A clock behind the files it wrote is wrong, and TLS and apt fail with it."""
    known = [OLDEST_CLOCK]
    for name in ("var/lib/dpkg/status", "etc/os-release"):
        try:
            known.append(int(os.stat(tree.path(name)).st_mtime))
        except OSError:
            continue
    return {
        "now_at": int(now),
        "newest_file_at": max(known),
        "behind": now < max(known) - 86400,
        "synchronised": tree.exists("run/systemd/timesync/synchronized"),
    }


# --- the cards -------------------------------------------------------------------------------------------------------


def cards(tree):
    """All display functions, NVIDIA's first among the keys: gpus, other_gpus; and whether there is an NVSwitch."""
    gpus, others, switch = [], [], False
    for address in tree.names("sys/bus/pci/devices"):
        place = "sys/bus/pci/devices/" + address
        vendor = (tree.text(place, "vendor") or "").replace("0x", "")
        kind = (tree.text(place, "class") or "").replace("0x", "")
        if kind[:4] == BRIDGE_CLASS and vendor == NVIDIA:
            switch = True
        if kind[:4] in DISPLAY_CLASSES or (kind[:2] == "03" and vendor != NVIDIA):
            (gpus if vendor == NVIDIA else others).append(_card(tree, place, address, vendor, kind))
    return {"gpus": gpus, "other_gpus": others, "nvswitch": switch}


def _card(tree, place, address, vendor, kind):
    driver = tree.link(place, "driver")
    halves = [(tree.text(place, "subsystem_" + half) or "").replace("0x", "") for half in ("vendor", "device")]
    return {
        "address": address,
        "vendor": vendor,
        "device": (tree.text(place, "device") or "").replace("0x", "").lower(),
        "class": kind,
        "subsystem": ":".join(halves) if all(halves) else None,
        "driver": os.path.basename(driver) if driver else None,
        "boot_vga": {1: True, 0: False}.get(tree.number(place, "boot_vga")),
        "link": {name: tree.text(place, name) for name in LINK},
        "external": _external(tree, place),
    }


LINK = ("current_link_width", "max_link_width", "current_link_speed", "max_link_speed")


def _external(tree, place):
    """Behind a Thunderbolt, USB4 or other removable port: the kernel marks the card or a bridge above it."""
    path = os.path.realpath(tree.path(place))
    while len(path) > len(tree.path("sys")):
        try:
            with open(os.path.join(path, "removable")) as file:
                if file.read().strip() == "removable":
                    return True
        except OSError:
            pass
        path = os.path.dirname(path)
    return False


def thunderbolt(tree):
    """Ports, how they admit devices, and what is plugged in."""
    base = "sys/bus/thunderbolt/devices"
    names = tree.names(base)
    domain = next((name for name in names if name.startswith("domain")), None)
    plugged = [name for name in names if re.fullmatch(r"\d+-\d+", name) and not name.endswith("-0")]
    return {
        "present": bool(names),
        "security": tree.text(base, domain, "security") if domain else None,
        "iommu_protection": tree.number(base, domain, "iommu_dma_protection") == 1 if domain else False,
        "devices": [
            {
                "name": tree.text(base, name, "device_name") or name,
                "vendor": tree.text(base, name, "vendor_name"),
                "uuid": tree.text(base, name, "unique_id"),
                "authorised": bool(tree.number(base, name, "authorized")),
            }
            for name in plugged
        ],
    }


def driver(tree):
    """The module that is loaded now, and who has the cards open."""
    loaded = tree.text("proc/driver/nvidia/version") or ""
    found = re.search(r"^NVRM version:.*?(\d{3}\.\d+(?:\.\d+)?)", loaded, re.M)
    version = found.group(1) if found else tree.text("sys/module/nvidia/version")
    flavour = None
    if found:
        flavour = "open" if "Open Kernel Module" in loaded else "proprietary"
    return {
        "version": version,
        "flavour": flavour,
        "nouveau": tree.exists("sys/module/nouveau"),
        "uvm": tree.exists("sys/module/nvidia_uvm"),
        "holders": _holders(tree),
    }


COLLECTOR = "/gpubox.slice/gpubox-collector@"  # ours, which reads of the cards for as long as the box runs


def _holders(tree):
    found = []
    for pid in tree.names("proc"):
        if not pid.isdigit() or COLLECTOR in (tree.text("proc", pid, "cgroup") or ""):
            continue
        links = (tree.link("proc", pid, "fd", number) or "" for number in tree.names("proc", pid, "fd"))
        devices = sorted({link for link in links if link.startswith("/dev/nvidia")})
        if devices:
            found.append({"pid": int(pid), "name": tree.text("proc", pid, "comm") or "", "devices": devices})
    return found


# --- firmware and kernels --------------------------------------------------------------------------------------------


def secure_boot(tree):
    """state: on, off or unknown. validation: what the boot loader's own switch says. mok: our signing key."""
    if not tree.exists("sys/firmware/efi"):
        return {"firmware": "bios", "state": "off", "validation": False, "mok": _mok(tree)}
    value = _efi(tree, "SecureBoot", FIRMWARE_VARIABLE)
    switched_off = _efi(tree, "MokSBStateRT", SHIM_VARIABLE) == b"\x01"
    state = {b"\x00": "off", b"\x01": "on"}.get(value, "unknown")
    return {
        "firmware": "uefi",
        "state": state,
        "validation": state != "off" and not switched_off,
        "mok": _mok(tree),
    }


def _efi(tree, name, owner):
    """A variable's value, without the four bytes of attributes before it."""
    content = tree.bytes(f"sys/firmware/efi/efivars/{name}-{owner}")
    return None if content is None else content[4:]


def _mok(tree):
    """The key that this machine signs modules with. enrolled is None where the firmware's list can't be read."""
    path = next((place for place in MACHINE_KEYS if tree.exists(place)), None)
    certificate = tree.bytes(path) if path else None
    listed = tree.bytes("sys/firmware/efi/mok-variables/MokListRT") or _efi(tree, "MokListRT", SHIM_VARIABLE)
    enrolled = None
    if listed is not None:
        enrolled = bool(certificate) and certificate in listed
    return {
        "key": "/" + path if path else None,
        "enrolled": enrolled,
        "pending": tree.exists("sys/firmware/efi/efivars/MokNew-" + SHIM_VARIABLE),
    }


def kernel(tree):
    """installed, oldest first; next: what the boot loader starts unless told otherwise, which is the newest."""
    running = tree.text("proc/sys/kernel/osrelease") or os.uname().release
    releases = [name for name in tree.names("lib/modules") if tree.exists("boot/vmlinuz-" + name)]
    installed = [_kernel(tree, name) for name in sorted(releases, key=version_key)]
    same_kind = [one["release"] for one in installed]
    return {
        "running": running,
        "running_headers": _headers(tree, running),
        "next": same_kind[-1] if same_kind else running,
        "installed": installed,
        "initramfs": next(
            (name for name in INITRAMFS if tree.exists("usr/sbin", name) or tree.exists("usr/bin", name)), None
        ),
        "dracut": tree.exists("usr/bin/dracut") or tree.exists("usr/sbin/dracut"),
    }


INITRAMFS = ("update-initramfs", "dracut")  # the first stands for the second, where both are


def _kernel(tree, release):
    listed = tree.text("lib/modules", release, "modules.dep") or ""
    modules = re.findall(r"^(\S*/nvidia(?:-current)?(?:-open)?\.ko\S*):", listed, re.M)
    return {"release": release, "headers": _headers(tree, release), "nvidia": modules[0] if modules else None}


def _headers(tree, release):
    places = (("lib/modules", release, "build"), ("usr/src", "linux-headers-" + release))
    return any(tree.exists(*place) for place in places)


# --- what is installed -----------------------------------------------------------------------------------------------


def installed_packages(tree):
    """Name -> version, state and architecture, of what has to do with GPUs, kernels and containers, and of dpkg."""
    found = {}
    for paragraph in (tree.text("var/lib/dpkg/status") or "").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version|Architecture): (.+)$", paragraph, re.M))
        name, state = fields.get("Package", ""), fields.get("Status", "").split()
        if len(state) != 3 or state[2] in ("not-installed", "config-files"):
            continue
        if name == "dpkg" or PACKAGES.match(name) or state[2] in BROKEN:
            found[name] = {
                "version": fields.get("Version", ""),
                "state": state[2],
                "hold": state[0] == "hold",
                "architecture": fields.get("Architecture", ""),
            }
    return found


def sources(tree):
    """apt's enabled sources: one entry for each address of each. options: its other fields, as apt has to see them
    again in a second source of the same address, or it refuses both."""
    files = ["etc/apt/sources.list"]
    files += ["etc/apt/sources.list.d/" + name for name in tree.names("etc/apt/sources.list.d")]
    found = []
    for file in files:
        content = tree.text(file) or ""
        if file.endswith(".list"):
            found += [_source(file, *entry) for entry in _lines(content)]
        elif file.endswith(".sources"):
            found += [_source(file, *entry) for entry in _paragraphs(content)]
    return found


def _lines(content):
    for line in content.splitlines():
        line = line.partition("#")[0]
        words = re.sub(r"\[[^]]*\]", "", line).split()
        pairs = [word.partition("=") for word in (re.findall(r"\[([^]]*)\]", line) or [""])[0].split()]
        if len(words) > 1 and words[0] == "deb":
            options = {DEB822.get(name, name): value.replace(",", " ") for name, _, value in pairs}
            yield words[1], words[2:3], words[3:], options


def _paragraphs(content):
    for paragraph in re.split(r"\n\s*\n", content):
        fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t]+.+)*)$", paragraph, re.M))
        fields = {name.lower(): value for name, value in fields.items()}
        if fields.get("enabled", "yes").strip().lower() in ("no", "false", "0"):
            continue
        if "deb" not in fields.get("types", "deb").split():
            continue
        options = {name: value for name, value in fields.items() if name not in NOT_OPTIONS}
        for url in fields.get("uris", "").split():
            yield url, fields.get("suites", "").split(), fields.get("components", "").split(), options


def _source(file, url, suites, components, options):
    kind = next((kind for part, kind in SOURCES.items() if part in url), "other")
    if kind == "other" and file == OUR_SOURCE:
        kind = "nvidia-mirror"
    return {
        "file": "/" + file,
        "url": url,
        "suites": suites,
        "components": components,
        "options": options,
        "kind": kind,
    }


def released(tree):
    """What the lists that apt has fetched say of each address and suite: the components there are."""
    found = {}
    for name in tree.names("var/lib/apt/lists"):
        if not name.endswith(("_InRelease", "_Release")):
            continue
        fields = dict(
            re.findall(r"^(Components|Origin|Label): *(.*)$", tree.text("var/lib/apt/lists", name) or "", re.M)
        )
        names = [part.rpartition("/")[2] for part in fields.get("Components", "").split()]
        found[re.sub(r"_(In)?Release$", "", name)] = sorted(set(names))
    return found


def installs(tree, packages):
    """What was installed here before us, by which way."""
    marks = ("usr/bin/nvidia-uninstall", "usr/bin/nvidia-installer", "var/log/nvidia-installer.log")
    snaps = [name for name in tree.names("var/lib/snapd/snaps") if name.startswith("docker_")]
    return {
        "packages": {name: one["version"] for name, one in packages.items() if name != "dpkg"},
        "held": sorted(name for name, one in packages.items() if one["hold"]),
        "broken": sorted(name for name, one in packages.items() if one["state"] in BROKEN),
        "run_file": ["/" + mark for mark in marks if tree.exists(mark)],
        "snap_docker": bool(snaps) or tree.exists("snap/docker"),
        "failed_builds": _json(tree, FAILED_BUILDS, []),
        "dkms": [_dkms(tree, name) for name in tree.names("var/lib/dkms") if name.startswith("nvidia")],
    }


def _json(tree, path, otherwise):
    try:
        return json.loads(tree.text(path) or "")
    except ValueError:
        return otherwise


def _dkms(tree, module):
    versions = [name for name in tree.names("var/lib/dkms", module) if name[:1].isdigit()]
    kernels = {
        version: [name for name in tree.names("var/lib/dkms", module, version) if re.match(r"\d+\.\d+\.", name)]
        for version in versions
    }
    return {"module": module, "built": kernels}


def gather(root="/", now=None):
    """All of it. now: seconds since 1970, where a test says what the clock shows."""
    tree = Tree(root)
    packages = installed_packages(tree)
    found = {
        "system": system(tree, packages),
        "space": space(tree),
        "clock": clock(tree, time.time() if now is None else now),
        "kernel": kernel(tree),
        "secure_boot": secure_boot(tree),
        "thunderbolt": thunderbolt(tree),
        "driver": driver(tree),
        "installs": installs(tree, packages),
        "apt": {
            "sources": sources(tree),
            "lists": _has_lists(tree),
            "released": released(tree),
            "offers": {},
            "versions": {},
        },
    }
    found.update(cards(tree))
    return found


def _has_lists(tree):
    return any("_Packages" in name for name in tree.names("var/lib/apt/lists"))


def main():
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(argument_spec={"root": {"type": "path", "default": "/"}}, supports_check_mode=True)
    module.exit_json(changed=False, gpubox_facts=gather(module.params["root"]))


if __name__ == "__main__":
    main()
