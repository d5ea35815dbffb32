#!/usr/bin/python
"""What the role containers has to know: packages apt does not know, ids for podman, the GPUs' description, docker.

Reads files and asks apt and docker; changes nothing. Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import glob
import grp
import os
import pwd
import re
import subprocess

DOCUMENTATION = r"""
module: gpubox_container_facts
short_description: Reads what the role containers depends on
description:
  - Changes nothing. Accounts that are still to come are named in check mode alone.
options:
  root:
    description: Where the driver's files begin. Another place than / is for tests.
    type: path
    default: /
  packages:
    description: Packages to ask apt for.
    type: list
    elements: str
    default: []
  accounts:
    description: Accounts that are to run containers without root.
    type: list
    elements: str
    default: []
  group:
    description: A group whose people are to do that, too.
    type: str
    default: ""
  settings:
    description: Docker's settings.
    type: path
    required: true
  older:
    description: Where it says that GPUs are to be described for an older podman.
    type: path
    default: ""
author: gpubox
"""

EXAMPLES = r"""
- name: Read what is here
  gpubox_container_facts:
    settings: /etc/docker/daemon.json
  register: containers_read
"""

RETURN = r"""
unknown:
  description: Those of the packages that are neither installed nor known to apt.
  returned: always
  type: list
missing:
  description: Those of the packages that are not installed.
  returned: always
  type: list
python3_apt:
  description: Whether Python can talk to apt; else a check can't say what would be installed.
  returned: always
  type: bool
subids:
  description: The words for usermod that give each account without them a range of ids of users and of groups.
  returned: always
  type: list
stale:
  description: Whether the driver that is installed and loaded is another than the one that containers are told of.
  returned: always
  type: bool
ready:
  description: Whether GPUs can be described, which takes a driver that is loaded, and no other one installed.
  returned: always
  type: bool
running:
  description: How many containers docker runs.
  returned: always
  type: int
older:
  description: Whether that file is there.
  returned: always
  type: bool
outdated:
  description: Whether docker's settings are newer than the docker that runs.
  returned: always
  type: bool
"""

RANGE = 65536
FIRST = 100000
SPECIFICATIONS = ("/etc/cdi", "/run/cdi")
LIBRARIES = ("usr/lib/*-linux-gnu/libcuda.so.1", "usr/lib64/libcuda.so.1")
VERSION = r"(\d{3,}\.\d+(?:\.\d+)?)"


def said(*words: str) -> str:
    calm = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False, env=calm
        )
    except FileNotFoundError:
        return ""
    return done.stdout


def text_of(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


# --- apt -------------------------------------------------------------------------------------------------------------


def policy(text: str) -> dict[str, tuple[str, str]]:
    """What apt-cache policy says: package -> (installed, candidate), each "(none)" or a version."""
    found = re.findall(r"^(\S+):\n  Installed: (\S+)\n  Candidate: (\S+)", text, re.M)
    return {name: (installed, candidate) for name, installed, candidate in found}


def python3_apt() -> bool:
    try:
        import apt_pkg  # noqa: F401
    except ImportError:
        return False
    return True


# --- ids for podman without root -------------------------------------------------------------------------------------


def people(group: str) -> list[str]:
    try:
        known = grp.getgrnam(group)
    except KeyError:
        return []
    primary = [one.pw_name for one in pwd.getpwall() if one.pw_gid == known.gr_gid]
    return sorted({*known.gr_mem, *primary})


def ids_of(name: str) -> tuple[str, ...]:
    """What a line may call an account by; nothing for one that is not there."""
    try:
        return (name, str(pwd.getpwnam(name).pw_uid))
    except KeyError:
        return ()


def ranges(text: str) -> list[tuple[str, int, int]]:
    rows = re.findall(r"^([^:\n]+):(\d+):(\d+)\s*$", text, re.M)
    return [(name, int(first), int(count)) for name, first, count in rows]


def subids(uids: str, gids: str, accounts: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """uids, gids: /etc/subuid and /etc/subgid; accounts: name -> what a line may call it."""
    kinds = {"--add-subuids": ranges(uids), "--add-subgids": ranges(gids)}
    free = max([FIRST, *(first + count for rows in kinds.values() for _, first, count in rows)])
    found = []
    for name, called in accounts.items():
        lacks = [option for option, rows in kinds.items() if not any(row[0] in called for row in rows)]
        found += [[option, f"{free}-{free + RANGE - 1}", name] for option in lacks]
        free += RANGE if lacks else 0
    return found


# --- the GPUs' description -------------------------------------------------------------------------------------------


def loaded(root: str) -> str:
    found = re.search(rf"^NVRM version:.*?{VERSION}", text_of(os.path.join(root, "proc/driver/nvidia/version")), re.M)
    return found.group(1) if found else text_of(os.path.join(root, "sys/module/nvidia/version")).strip()


def installed(root: str) -> str:
    """The version of the driver's library, which is what containers get."""
    for pattern in LIBRARIES:
        for path in glob.glob(os.path.join(root, pattern)):
            found = re.search(rf"[.]so[.]{VERSION}$", os.path.realpath(path))
            if found:
                return found.group(1)
    return ""


def described() -> set[str]:
    """The versions of that library in the descriptions of GPUs."""
    texts = [text_of(path) for folder in SPECIFICATIONS for path in glob.glob(f"{folder}/*.[yj]*")]
    ours = [text for text in texts if "nvidia.com/gpu" in text]
    return {version for text in ours for version in re.findall(rf"libcuda[.]so[.]{VERSION}", text)}


def ready(loaded: str, installed: str) -> bool:
    """False where no driver is loaded yet, or its two halves differ: nothing can be described before the next start."""
    return bool(loaded) and loaded == installed


def stale(loaded: str, installed: str, described: set[str]) -> bool:
    return ready(loaded, installed) and described != {installed}


# --- docker ----------------------------------------------------------------------------------------------------------


def running() -> int:
    if said("systemctl", "is-active", "docker.service").strip() != "active":
        return 0  # asking would start it
    return len(said("docker", "ps", "--quiet").split())


def outdated(settings: str) -> bool:
    """docker writes its number when it starts."""
    try:
        return os.stat(settings).st_mtime > os.stat("/run/docker.pid").st_mtime
    except OSError:
        return False


def main() -> None:
    from ansible.module_utils.basic import AnsibleModule

    words = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        {
            "root": {"type": "path", "default": "/"},
            "packages": words,
            "accounts": words,
            "group": {"type": "str", "default": ""},
            "settings": {"type": "path", "required": True},
            "older": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    asked = module.params
    known = policy(said("apt-cache", "policy", *asked["packages"])) if asked["packages"] else {}
    none = ("(none)", "(none)")
    accounts = {name: ids_of(name) for name in dict.fromkeys(asked["accounts"] + people(asked["group"]))}
    here = {name: called for name, called in accounts.items() if called or module.check_mode}
    versions = loaded(asked["root"]), installed(asked["root"])
    module.exit_json(
        changed=False,
        unknown=[name for name in asked["packages"] if known.get(name, none) == none],
        missing=[name for name in asked["packages"] if known.get(name, none)[0] == "(none)"],
        python3_apt=python3_apt(),
        subids=subids(text_of("/etc/subuid"), text_of("/etc/subgid"), here),
        ready=ready(*versions),
        stale=stale(*versions, described()),
        running=running(),
        older=os.path.exists(asked["older"]),
        outdated=outdated(asked["settings"]),
    )


if __name__ == "__main__":
    main()
