#!/usr/bin/python
"""Upgrades kernel and driver in one apt transaction, after the queue was drained, and knows the way back.

How far it came stands in /etc/gpubox/upgrade.json: prepared, installed; it goes when all is verified.
Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import time

DOCUMENTATION = r"""
module: gpubox_upgrade
short_description: One step of an upgrade of kernel and driver
description:
  - V(look) says what there is to do, what apt would do, how far an upgrade came, and how to go back.
  - V(drain) has the queue start nothing new; V(undrain) takes that back. V(idle) says who works.
  - V(keep) puts the packages of the installed versions aside and writes down what was; V(install) upgrades.
  - V(finish) forgets the way back, and lets jobs start again unless the queue was drained before.
options:
  step:
    description: Which.
    type: str
    choices: [look, drain, idle, undrain, keep, install, finish]
    required: true
  together:
    description: Beginnings of the names of packages that belong together.
    type: list
    elements: str
    default: []
  drained:
    description: With V(keep), whether the queue was drained by somebody else.
    type: bool
    default: false
  book:
    description: Where it is written down how far it came.
    type: path
    default: /etc/gpubox/upgrade.json
  kept:
    description: Where the old packages are.
    type: path
    default: /var/cache/gpubox-upgrade
author: gpubox
"""

EXAMPLES = r"""
- name: Look what there is to do
  gpubox_upgrade:
    step: look
    together: [nvidia-, linux-image-]
"""

RETURN = r"""
state:
  description: none, prepared or installed.
  returned: look
  type: str
wanted:
  description: Packages with their new versions, as apt takes them.
  returned: look
  type: list
removed:
  description: What apt would remove.
  returned: look
  type: list
lost:
  description: Installed versions that can't be had any more.
  returned: look
  type: list
restart:
  description: Whether what was installed waits for a restart.
  returned: look
  type: bool
said:
  description: All that, for people.
  returned: look
  type: list
back:
  description: The commands that go back.
  returned: look
  type: list
by_hand:
  description: The command that shows the whole transaction.
  returned: look
  type: str
drained:
  description: Whether the queue was drained already.
  returned: drain
  type: bool
working:
  description: Jobs that start or run, and who else computes.
  returned: idle
  type: list
"""

RUNNER = "/usr/local/bin/runner"
ARCHIVES = "/var/cache/apt/archives"
GRUB = "/boot/grub/grub.cfg"
CALM = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C",
    "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l", "APT_LISTCHANGES_FRONTEND": "none",
}  # fmt: skip


class Refused(Exception):
    """With words for the owner."""


def run(*words: str, cwd: str | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=proxied(), cwd=cwd)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise Refused(f"{' '.join(words)} ended with {done.returncode}: {said}")
    return done.stdout


def proxied() -> dict[str, str]:
    return {**CALM, **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}}


# --- what apt says ---------------------------------------------------------------------------------------------------


def installed(said: str, together: list[str]) -> dict[str, str]:
    """Package (with its architecture where it can be here twice) -> version, of dpkg-query's lines. What is held back
    is its owner's."""
    found = {}
    for line in said.splitlines():
        name, version, wish, state = line.split("\t")
        if wish == "install" and state in ("installed", "triggers-pending") and name.startswith(tuple(together)):
            found[name] = version
    return found


def candidates(said: str) -> dict[str, str]:
    """Package -> the version that apt would take, of apt-cache policy."""
    found, name = {}, ""
    for line in said.splitlines():
        if line and not line.startswith(" "):
            name = line.rstrip(":")
        elif line.startswith("  Candidate: "):
            found[name] = line.split()[1]
    return {name: version for name, version in found.items() if version != "(none)"}


def simulated(said: str) -> tuple[list[str], list[str]]:
    """(names of what is new, names of what is removed), of apt-get --simulate."""
    new = re.findall(r"^Inst (\S+) \(", said, re.M)  # else there is a version in brackets between
    removed = re.findall(r"^(?:Remv|Purg) (\S+)", said, re.M)
    return new, removed


def deb(name: str, version: str) -> str:
    """What the file of a package is called, up to its architecture."""
    return f"{name.split(':')[0]}_{version.replace(':', '%3a')}_"


OPTIONS = (
    "Dpkg::Options::=--force-confdef", "Dpkg::Options::=--force-confold", "DPkg::Lock::Timeout=300",
    "APT::Install-Recommends=false", "APT::Get::Remove=false",
)  # fmt: skip


def transaction(wanted: list[str]) -> list[str]:
    options = [word for option in OPTIONS for word in ("-o", option)]
    return ["apt-get", "install", "--yes", "--only-upgrade", *options, *wanted]


def at_hand(name: str, version: str, kept: str) -> str | None:
    """The file of a package that is here."""
    for folder in (kept, ARCHIVES):
        for path in glob.glob(f"{glob.escape(folder)}/{glob.escape(deb(name, version))}*.deb"):
            return path
    return None


def on_offer(name: str, version: str) -> bool:
    try:
        return bool(run("apt-get", "download", "--print-uris", f"{name}={version}").strip())
    except Refused:
        return False


# --- the way back ----------------------------------------------------------------------------------------------------


def entry(menu: str, release: str) -> str | None:
    """What grub-reboot calls a kernel, of grub.cfg."""
    above = None
    for line in menu.splitlines():
        found = re.search(r"^\s*(submenu|menuentry) .*menuentry_id_option '([^']+)'", line)
        if found and found[1] == "submenu":
            above = found[2]
        elif found and f"-{release}-advanced-" in found[2]:
            return f"{above}>{found[2]}" if above else found[2]
    return None


def way_back(book: dict[str, object], path: str, kept: str, menu: str, entries: list[str]) -> list[str]:
    """Commands, in their order. path: of the book; entries: the files in `kept`."""
    commands = []
    if entries:
        commands.append(f"sudo apt-get install --yes --allow-downgrades {kept}/*.deb")
    kernels = [name for name in book["new"] if name.startswith("linux-image-")]
    if kernels:
        named = entry(menu, book["kernel"])
        choose = f"sudo grub-reboot '{named}'" if named else f"choose {book['kernel']} in the boot loader's menu"
        commands.append(f"{choose}    # the kernel before, at the next start")
    commands.append("sudo systemctl reboot")
    if book["new"]:
        commands.append(
            f"sudo apt-get purge {' '.join(book['new'])}    # after the restart: else these start next time"
        )
    forget = f"sudo rm -rf {path} {mark(path)} {kept}    # when the box works again"
    return [*commands, forget, *([] if book["drained"] else ["runner drain --off"])]


# --- the book --------------------------------------------------------------------------------------------------------


def read(path: str) -> dict[str, object]:
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return {"state": "none", "packages": {}, "new": [], "kernel": os.uname().release, "drained": False, "boot": ""}


def write(path: str, book: dict[str, object]) -> None:
    new = f"{path}.new"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "w") as file:
        json.dump(book, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)


def boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


# --- the queue -------------------------------------------------------------------------------------------------------


def queue() -> dict[str, object]:
    try:
        said = json.loads(run(RUNNER, "box", "--json"))[0]
    except FileNotFoundError:
        raise Refused("there is no queue here to drain: ansible-playbook setup.yml makes this computer a box") from None
    if not said["running"]:
        raise Refused("the queue does not run: `systemctl status gpubox` says why")
    return said["box"]


def working() -> list[str]:
    queue()
    jobs = json.loads(run(RUNNER, "ps", "--json", "--no-group", "--state", "starting,running"))
    found = [f"job {job['id']} ({job['user']}'s {job['name']})" for job in jobs]
    for gpu in json.loads(run(RUNNER, "gpus", "--json"))["gpus"]:
        for one in gpu["processes"] or ():
            if one["job"] is None and one["alive"] and one["kind"] != "graphics":
                found.append(f"process {one['pid']} ({one['user']}'s {one['command'][:60]})")
    return sorted(set(found), key=found.index)


# --- steps -----------------------------------------------------------------------------------------------------------


def look(asked: dict[str, object]) -> dict[str, object]:
    query = "${binary:Package}\t${Version}\t${db:Status-Want}\t${db:Status-Status}\n"
    here = installed(run("dpkg-query", "--show", f"--showformat={query}"), asked["together"])
    offered = candidates(run("apt-cache", "policy", *here)) if here else {}
    offered = {name: offered.get(name, offered.get(name.split(":")[0], version)) for name, version in here.items()}
    moved = {name: version for name, version in offered.items() if version != here[name] and newer(version, here[name])}
    wanted = [f"{name}={version}" for name, version in sorted(moved.items())]
    pretend = ["apt-get", "--simulate", "install", "--only-upgrade", "--no-install-recommends", *wanted]
    new, removed = simulated(run(*pretend)) if wanted else ([], [])
    book, kept = read(asked["book"]), asked["kept"]
    under_way = book["state"] != "none"  # so that was asked before
    lost = (
        []
        if under_way
        else [name for name in moved if not (at_hand(name, here[name], kept) or on_offer(name, here[name]))]
    )
    said = [f"{name} {here[name]} -> {version}" for name, version in sorted(moved.items())]
    said += [f"{name} (new)" for name in new]
    if under_way:
        said.insert(0, f"An upgrade that began at {book['at']} goes on.")
    menu = ""
    if os.path.exists(GRUB):
        with open(GRUB) as file:
            menu = file.read()
    entries = sorted(os.listdir(kept)) if os.path.isdir(kept) else []
    return {
        "changed": False,
        "state": book["state"],
        "left_drained": os.path.exists(mark(asked["book"])),
        "wanted": wanted,
        "here": {name: here[name] for name in moved},
        "new": new,
        "removed": removed,
        "lost": [f"{name} {here[name]}" for name in lost],
        "restart": book["state"] == "installed" and book["boot"] == boot(),
        "said": said or ["Kernel and driver are the newest there are."],
        "back": way_back(book, asked["book"], kept, menu, entries) if under_way else [],
        "by_hand": " ".join(["sudo", *pretend]),
    }


def newer(one: str, other: str) -> bool:
    return subprocess.run(("dpkg", "--compare-versions", one, "gt", other), check=False).returncode == 0


def mark(book: str) -> str:
    """There while the queue is drained because of us: a run may end before there is a book."""
    return f"{book}.drained"


def drain(asked: dict[str, object], check: bool) -> dict[str, object]:
    drained, ours = queue()["draining"], os.path.exists(mark(asked["book"]))
    if not check and not drained:
        with open(mark(asked["book"]), "w") as file:
            os.fsync(file.fileno())
        run(RUNNER, "drain")
    return {"changed": not drained, "drained": drained and not ours}


def undrain(asked: dict[str, object], check: bool) -> dict[str, object]:
    drained = queue()["draining"]
    if not check:
        if drained:
            run(RUNNER, "drain", "--off")
        unlink(mark(asked["book"]))
    return {"changed": drained}


def unlink(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)


def keep(asked: dict[str, object], check: bool) -> dict[str, object]:
    """The book first: from now on the queue is drained because of us."""
    found, kept = look(asked), asked["kept"]
    if check:
        return {"changed": True}
    shutil.rmtree(kept, ignore_errors=True)
    os.makedirs(kept, mode=0o755)
    for name, version in found["here"].items():
        path = at_hand(name, version, kept)
        if path is not None:
            shutil.copy2(path, kept)
        elif on_offer(name, version):
            run("apt-get", "-o", "APT::Sandbox::User=root", "download", f"{name}={version}", cwd=kept)
    at = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    book = {
        "state": "prepared",
        "at": at,
        "boot": boot(),
        "kernel": os.uname().release,
        "packages": found["here"],
        "wanted": found["wanted"],
        "new": found["new"],
        "drained": asked["drained"],
    }
    write(asked["book"], book)
    return {"changed": True}


def install(asked: dict[str, object], check: bool) -> dict[str, object]:
    book = read(asked["book"])
    wanted = look(asked)["wanted"]
    if check:
        return {"changed": bool(wanted)}
    run("dpkg", "--configure", "--pending")  # what an attempt before this one left
    if wanted:
        run(*transaction(wanted))
    write(asked["book"], {**book, "state": "installed", "boot": boot()})
    return {"changed": True}


def finish(asked: dict[str, object], check: bool) -> dict[str, object]:
    book = read(asked["book"])
    drained = queue()["draining"]
    if not check:
        if drained and not book["drained"]:
            run(RUNNER, "drain", "--off")
        unlink(asked["book"])
        unlink(mark(asked["book"]))
        shutil.rmtree(asked["kept"], ignore_errors=True)
    return {"changed": book["state"] != "none" or drained}


def main() -> None:
    from ansible.module_utils.basic import AnsibleModule

    steps = {"drain": drain, "undrain": undrain, "keep": keep, "install": install, "finish": finish}
    module = AnsibleModule(
        {
            "step": {
                "type": "str",
                "required": True,
                "choices": ["look", "drain", "idle", "undrain", "keep", "install", "finish"],
            },
            "together": {"type": "list", "elements": "str", "default": []},
            "drained": {"type": "bool", "default": False},
            "book": {"type": "path", "default": "/etc/gpubox/upgrade.json"},
            "kept": {"type": "path", "default": "/var/cache/gpubox-upgrade"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    try:
        if asked["step"] == "look":
            module.exit_json(**look(asked))
        if asked["step"] == "idle":
            module.exit_json(changed=False, working=working())
        module.exit_json(**steps[asked["step"]](asked, module.check_mode))
    except (Refused, OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
