#!/usr/bin/python
"""Undoes what /etc/gpubox/receipt.json lists, and strikes it out there; may be interrupted and run again.

Step by step: units of ours stop; files, then the owner's units, are as they were; packages go, with what came along
with them and nobody else needs; memberships, accounts, groups; folders. What the owner made stays unless told.
Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import base64
import functools
import glob
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import stat
import subprocess

DOCUMENTATION = r"""
module: gpubox_removal
short_description: Undoes what the receipt lists
description:
  - In check mode it says what it would do, and changes nothing.
  - Fails, with the names of the jobs, before it changes anything while jobs run or wait, unless O(anyway) is true. So
    it does while containers run in an engine that would go.
options:
  data:
    description: >-
      Removes what the owner made, too; the shared data, the queue with its results, conda's environments, and images,
      containers and volumes of an engine that came with gpubox.
    type: bool
    default: false
  anyway:
    description: Ends jobs and containers that run.
    type: bool
    default: false
  spared:
    description: Packages that stay although they came with gpubox.
    type: list
    elements: str
    default: []
  path:
    description: The receipt.
    type: path
    default: /etc/gpubox/receipt.json
author: gpubox
"""

EXAMPLES = r"""
- name: Undo what the receipt lists
  gpubox_removal:
    data: false
"""

RETURN = r"""
steps:
  description: What was done, or in check mode would be, in that order.
  returned: always
  type: list
notes:
  description: What stays and why, and what is left to do.
  returned: always
  type: list
jobs:
  description: The jobs that run or wait, and the containers that run.
  returned: always
  type: list
doors:
  description: >-
    Files that decide who may come in over ssh, with the content that they had, null for none; and in copy where they
    are to be kept as they are now, which is empty where nothing would be lost.
  returned: always
  type: list
"""

UNITS = "/etc/systemd/system/"
UNIT = re.compile(r"\.(service|socket|timer|path|slice|target|mount)$")
SSH = "/etc/ssh/"
KEPT = "/var/backups/gpubox"  # what the owner changed of a file of ours
DOCKER = "/etc/docker/daemon.json"
DOCKERS = {"ip": "127.0.0.1", "features": {"cdi": True}}  # what role containers adds to it
THE_WAY_IN = ("ssh.service", "ssh.socket", "sshd.service")  # started when they should be, never stopped
KERNEL = re.compile(r"linux-(image|modules)-(unsigned-|extra-)?\d")  # one that came with us may be the one that runs
QUIET = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l", "LC_ALL": "C"}
APT = ("apt-get", "--quiet", "--option", "DPkg::Lock::Timeout=300", "--allow-change-held-packages")
# Whose rules changed -> who is told. The first word is a program that may not be there.
TOLD = (
    (UNITS, ("systemctl", "daemon-reload")),
    ("/etc/systemd/system.conf.d/", ("systemctl", "daemon-reload")),
    ("/etc/systemd/logind.conf", ("systemctl", "kill", "--signal=HUP", "systemd-logind.service")),
    ("/etc/ssh/", ("systemctl", "try-reload-or-restart", "ssh.service")),
    ("/etc/udev/rules.d/", ("udevadm", "control", "--reload")),
    ("/etc/systemd/network/", ("udevadm", "control", "--reload")),
    ("/etc/modprobe.d/", ("update-initramfs", "-u", "-k", "all")),
    ("/etc/initramfs-tools/", ("update-initramfs", "-u", "-k", "all")),
    ("/etc/modprobe.d/", ("dracut", "--force", "--regenerate-all")),
    ("/etc/dracut.conf.d/", ("dracut", "--force", "--regenerate-all")),
    ("/etc/default/grub", ("update-grub",)),
    ("/usr/local/share/ca-certificates/", ("update-ca-certificates", "--fresh")),
    ("/etc/ld.so.conf.d/", ("ldconfig",)),
    (DOCKER, ("systemctl", "try-reload-or-restart", "docker.service")),
)


class Refused(Exception):
    """What can't be done, in words for the owner."""


def said(*words: str) -> str:
    """What a program prints; nothing when it fails or is not there."""
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def do(*words: str) -> None:
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env={**os.environ, **QUIET}
    )
    if done.returncode:
        raise Refused(f"{' '.join(words)} ended with {done.returncode}: {done.stdout.strip()[-2000:]}")


# --- packages: pure --------------------------------------------------------------------------------------------------

# Name, name:architecture if foreign -> {"needs", "wants": [{names}, ...], "provides": {names}, "automatic": bool}
Packages = dict


def name_of(package: str) -> str:
    return package.partition(":")[0]


def to_purge(ours: set[str], before: set[str], installed: Packages) -> set[str]:
    """Of what is installed: ours, and what came along with it, unless something else that is here needs it.

    No kernel does. ours: names, with or without an architecture; before: what was installed before the first of ours.
    Something the owner installed since keeps also what it merely recommends.
    """
    of_name: dict[str, set[str]] = {}
    for package, about in installed.items():
        for name in {name_of(package), *about["provides"]}:
            of_name.setdefault(name, set()).add(package)

    def asked(package: str, wants: bool) -> list[set[str]]:
        about = installed[package]
        groups = about["needs"] + (about["wants"] if wants else [])
        return [set().union(*(of_name.get(name, set()) for name in names)) for names in groups]

    come = {package for package in installed if package in ours or name_of(package) in ours}
    come = {package for package in come if not KERNEL.match(package)}
    todo = list(come)
    while todo:
        for providers in asked(todo.pop(), wants=True):
            for package in providers - come - before:
                if installed[package]["automatic"] and not KERNEL.match(package):
                    come.add(package)
                    todo.append(package)
    todo = [package for package in installed if package not in come]
    while todo:
        package = todo.pop()
        for providers in asked(package, wants=package not in before):
            if providers and providers <= come:
                come -= providers
                todo.extend(providers)
    return come


def dependencies(field: str) -> list[set[str]]:
    """ "a (>= 1) | b:any, c" -> [{"a", "b"}, {"c"}]"""
    groups = [{re.split(r"[\s(:\[]", one.strip())[0] for one in group.split("|")} for group in field.split(",")]
    return [names - {""} for names in groups if names - {""}]


def installed_packages() -> Packages:
    fields = ("db:Status-Status", "Package", "Architecture", "Pre-Depends", "Depends", "Recommends", "Provides")
    form = "\\t".join(f"${{{field}}}" for field in fields) + "\\n"
    automatic = set(said("apt-mark", "showauto").split())
    here = (said("dpkg", "--print-architecture"), "all")
    found = {}
    for line in said("dpkg-query", "--show", f"--showformat={form}").splitlines():
        status, name, architecture, first, needs, wants, provides = line.split("\t")
        if status in ("not-installed", "config-files"):
            continue
        found[name if architecture in here else f"{name}:{architecture}"] = {
            "needs": dependencies(first) + dependencies(needs),
            "wants": dependencies(wants),
            "provides": set().union(*dependencies(provides)),
            "automatic": bool({name, f"{name}:{architecture}"} & automatic),  # apt-mark names ours without
        }
    return found


def half_purged() -> list[str]:
    """Removed, while their settings are still here."""
    lines = said("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\\n").splitlines()
    return [line.split()[1] for line in lines if line.startswith("config-files ")]


# --- jobs ------------------------------------------------------------------------------------------------------------


def unfinished_jobs(data: bool) -> list[str]:
    """What runs or waits, in words. The queue is asked; where it does not answer, systemd knows what runs."""
    told = said("/usr/local/bin/runner", "ps", "--state", "queued,starting,running", "--json")
    try:
        return [f"{job['id']} ({job['name']}, {job['state']}, of {job['user']})" for job in json.loads(told)]
    except ValueError:
        running = running_units()
    if data and os.path.exists(f"{UNITS}gpubox.service"):
        running.append("any that wait: the queue does not answer (journalctl --unit gpubox)")
    return running


def containers(packages: set[str], proc: str = "/proc") -> list[str]:
    """What runs in an engine that goes. To look changes nothing: `podman ps` writes, `docker ps` may start docker."""
    found = []
    if "docker-ce" in packages and said("systemctl", "is-active", "docker.service") == "active":
        names = said("docker", "ps", "--format", "{{.Names}} ({{.Image}})").splitlines()
        found += [f"the container {name} of docker" for name in names]
    if "podman" in packages:
        found += [f"the container {name} of podman" for name in conmons(proc)]
    return found


def conmons(proc: str) -> list[str]:
    """The names of podman's containers, whoever's: each has a program beside it, conmon, that knows its name."""
    found = []
    for path in glob.glob(f"{proc}/[0-9]*/cmdline"):
        try:
            words = text_of(path).split("\0")
        except OSError:
            continue
        if os.path.basename(words[0]) == "conmon" and "-n" in words[:-1]:
            found.append(words[words.index("-n") + 1])
    return sorted(found)


def running_units() -> list[str]:
    form = ("--plain", "--no-legend", "--state=active,activating,deactivating,reloading")
    lines = said("systemctl", "list-units", *form, "gpubox-job-*.service").splitlines()
    return [line.split()[0] for line in lines]


# --- the way back ----------------------------------------------------------------------------------------------------


def same_file(path: str, was: dict[str, object] | None) -> bool:
    if was is None or "link" in was:
        there = os.readlink(path) if os.path.islink(path) else "" if os.path.lexists(path) else None
        return there == (was and was["link"])
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return same_owner(path, was) and file.read() == base64.b64decode(was["content"])


def mark(path: str) -> str | None:
    """As gpubox_receipt makes it."""
    if os.path.islink(path):
        return f"link {os.readlink(path)}"
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def loses(item: dict[str, object]) -> bool:
    """Whether something would be lost with this file: it is neither as we wrote it nor as it was, as far as we know."""
    now, was = mark(item["name"]), item["before"]
    content = hashlib.sha256(base64.b64decode(was["content"])).hexdigest() if was and "content" in was else None
    former = f"link {was['link']}" if was and "link" in was else content
    return now is not None and now not in (item.get("written"), former)


def place_for(path: str) -> str:
    """No copy replaces another."""
    place = f"{KEPT}{path}"
    while os.path.lexists(place):
        place += "~"
    return place


def keep(path: str, place: str) -> None:
    os.makedirs(KEPT, mode=0o700, exist_ok=True)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    shutil.copy2(path, place, follow_symlinks=False)


def without(now: dict[str, object], was: dict[str, object], ours: dict[str, object]) -> dict[str, object]:
    """now, without those keys of ours that still say what we said, and were not there before."""
    found = dict(now)
    for key, value in ours.items():
        if isinstance(value, dict) and isinstance(now.get(key), dict) and isinstance(was.get(key, {}), dict):
            found[key] = without(now[key], was.get(key, {}), value)
            gone = not found[key]
        else:
            gone = now.get(key) == value
        if gone and key in now and key not in was:
            del found[key]
    return found


def settings(text: str) -> dict[str, object]:
    found = json.loads(text) if text.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("it holds no settings")
    return found


def text_of(path: str) -> str:
    with open(path) as file:
        return file.read()


def same_owner(path: str, was: dict[str, object]) -> bool:
    return owner_of(path) == {key: was[key] for key in ("mode", "uid", "gid")}


def owner_of(path: str) -> dict[str, object]:
    found = os.lstat(path)
    return {"mode": f"{found.st_mode & 0o7777:04o}", "uid": found.st_uid, "gid": found.st_gid}


def own(path: str, was: dict[str, object]) -> None:
    os.chown(path, was["uid"], was["gid"])
    os.chmod(path, int(was["mode"], 8))


def restore_file(path: str, was: dict[str, object] | None) -> None:
    new = f"{path}.gpubox-new"
    if was is None:
        os.unlink(path)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(new):
        os.unlink(new)
    if "link" in was:
        os.symlink(was["link"], new)
    else:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(base64.b64decode(was["content"]))
        own(new, was)
    os.rename(new, path)


ACL = "system.posix_acl_default"


def default_acl(path: str) -> str | None:
    try:
        return base64.b64encode(os.getxattr(path, ACL)).decode()
    except OSError:
        return None


def restore_folder(path: str, was: dict[str, object]) -> None:
    own(path, was)
    if was.get("acl"):
        os.setxattr(path, ACL, base64.b64decode(was["acl"]))
    elif default_acl(path):
        os.removexattr(path, ACL)


def ids_within(folders: list[str]) -> tuple[set[int], set[int]]:
    """The users and groups that something in there belongs to."""
    users, groups, todo = set(), set(), list(folders)
    while todo:
        path = todo.pop()
        try:
            found = os.lstat(path)
            users.add(found.st_uid)
            groups.add(found.st_gid)
            if stat.S_ISDIR(found.st_mode):
                todo.extend(entry.path for entry in os.scandir(path))
        except FileNotFoundError:
            continue
    return users, groups


def unless_gone(ask, name: str):
    try:
        return ask(name)
    except KeyError:
        return None


class Removal:
    """In the order of main(). With doing=False nothing is changed, and what would be is known from what is there."""

    def __init__(self, receipt: dict[str, object], path: str, data: bool, anyway: bool, spared: list[str], doing: bool):
        self.receipt, self.path, self.data, self.anyway, self.doing = receipt, path, data, anyway, doing
        self.spared = set(spared)
        self.steps: list[str] = []
        self.notes: list[str] = []
        self.gone: set[str] = set()  # paths; when nothing is done, they are there
        there = [name for name, _ in self.items("data") if os.path.isdir(name)]
        self.kept_data = there if not data and any(map(os.listdir, there)) else []
        users, groups = ids_within(self.kept_data)
        accounts = [unless_gone(pwd.getpwnam, name) for name, _ in self.items("user")]
        self.kept_users = {one.pw_name for one in accounts if one and one.pw_uid in users}
        groups |= {one.pw_gid for one in accounts if one and one.pw_name in self.kept_users}
        self.kept_groups = {one.gr_name for one in grp.getgrall() if one.gr_gid in groups}

    def items(self, *kinds: str) -> list[tuple[str, object]]:
        return [(one["name"], one["before"]) for one in self.receipt["items"] if one["kind"] in kinds]

    def step(self, words: str, act) -> None:
        self.steps.append(words)
        if self.doing:
            act()

    def strike(self, *kinds: str, but=lambda name: False) -> None:
        """These are done with."""
        left = [one for one in self.receipt["items"] if one["kind"] not in kinds or but(one["name"])]
        if self.doing and len(left) < len(self.receipt["items"]):
            self.write(left)

    def write(self, items: list[dict[str, object]]) -> None:
        self.receipt["items"] = items
        new = f"{self.path}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(self.receipt, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, self.path)

    # --- units ---

    def stop(self) -> None:
        """What we brought, and what is made of the unit files we wrote; slices last, since jobs run in them."""
        ours = [name for name, was in self.items("unit") if was is None]
        written = [path[len(UNITS) :] for path, was in self.items("file") if was is None and path.startswith(UNITS)]
        written = [name for name in written if UNIT.search(name) and os.path.exists(UNITS + name)]
        enabled = [name for name in ours if said("systemctl", "is-enabled", name).startswith(("enabled", "alias"))]
        patterns = [*written, *ours, "gpubox-revert-*.timer", "gpubox.slice"]
        loaded = self.loaded([name.replace("@.", "@*.") for name in patterns if name not in THE_WAY_IN])
        first = [name for name in loaded if not name.endswith(".slice")]
        slices = [name for name in loaded if name.endswith(".slice")]
        if first:
            self.step(f"stop {' '.join(first)}", functools.partial(self.stop_unless_busy, first))
        if slices:
            self.step(f"stop {' '.join(slices)} and all in there", lambda: do("systemctl", "stop", *slices))
        for name in enabled:
            self.step(f"disable {name}", lambda name=name: do("systemctl", "disable", "--quiet", name))

    def loaded(self, patterns: list[str]) -> list[str]:
        form = ("--plain", "--no-legend", "--state=active,activating,reloading,deactivating")
        lines = said("systemctl", "list-units", *form, *patterns).splitlines() if patterns else []
        return [line.split()[0] for line in lines]

    def stop_unless_busy(self, names: list[str]) -> None:
        """Once nothing can start any more, a job that came after we looked is seen."""
        do("systemctl", "stop", *names)
        late = [] if self.anyway else running_units()
        if late:
            do("systemctl", "start", *(name for name in names if "@" not in name and not name.endswith(".timer")))
            raise Refused(
                f"{', '.join(late)} began while the queue was being stopped. It was started again; repeat this"
            )

    def give_units_back(self) -> None:
        for name, was in self.items("unit"):
            if was is None:
                continue
            for verb in self.differs(name, was):
                self.step(f"{verb} {name}", lambda verb=verb, name=name: do("systemctl", "--quiet", verb, name))
        self.strike("unit")

    def differs(self, name: str, was: dict[str, object]) -> list[str]:
        now = said("systemctl", "is-enabled", name)
        if now in ("", "not-found"):
            return []
        verbs = ["unmask"] if now == "masked" and was["enabled"] != "masked" else []
        if was["enabled"] != now and was["enabled"] in ("enabled", "disabled", "masked"):
            verbs.append({"enabled": "enable", "disabled": "disable", "masked": "mask"}[was["enabled"]])
        active = said("systemctl", "is-active", name) == "active"
        if was["active"] and not active and not name.endswith(".target"):
            verbs.append("start")
        if active and not was["active"] and was["enabled"] in ("disabled", "masked") and name not in THE_WAY_IN:
            verbs.append("stop")
        return verbs

    # --- files ---

    def restore_files(self) -> None:
        told = []
        for item in [one for one in self.receipt["items"] if one["kind"] == "file"]:
            path, was = item["name"], item["before"]
            told += [words for place, words in TOLD if path.startswith(place) and words not in told]
            if path == DOCKER and self.loosen_docker(path, was):
                continue
            self.gone |= {path} if was is None else set()
            if same_file(path, was):
                continue
            if loses(item) and not path.startswith(f"{os.path.dirname(self.path)}/"):
                place = place_for(path)
                self.step(f"copy {path} to {place}", functools.partial(keep, path, place))
                self.notes.append(f"{path} may hold what you wrote, since it is not as gpubox left it: see {place}")
            words = f"remove {path}" if was is None else f"restore {path}"
            self.step(words, functools.partial(restore_file, path, was))
        for words in told:  # also when no file differs any more: an interrupted run got so far, and told nobody
            if shutil.which(words[0]):
                self.step(" ".join(words), functools.partial(do, *words))
        self.strike("file")

    def loosen_docker(self, path: str, was: dict[str, object] | None) -> bool:
        """The file is the owner's, and some keys in it are ours. -> whether that is all there is to do."""
        if not os.path.lexists(path):
            return True  # its owner took it away
        if os.path.islink(path) or (was is not None and "link" in was):
            return False
        try:
            former = settings(base64.b64decode(was["content"]).decode()) if was else {}
            now = settings(text_of(path))
        except ValueError as error:
            self.notes.append(f"{path} stays as it is: {error}. gpubox added {json.dumps(DOCKERS)}")
            return True
        rest = without(now, former, DOCKERS)
        if rest == former:
            return False  # nothing of the owner's came since
        if rest != now:
            with_owner = {
                "content": base64.b64encode(f"{json.dumps(rest, indent=2)}\n".encode()).decode(),
                **owner_of(path),
            }
            self.step(f"take out of {path} what gpubox added", functools.partial(restore_file, path, with_owner))
        self.notes.append(f"{path} keeps what you wrote there")
        return True

    def open_ufw(self) -> None:
        """What base added to a firewall of the owner's carries our name."""
        for line in said("ufw", "show", "added").splitlines():
            rule = re.fullmatch(r"ufw (allow .*?)\s+comment 'gpubox'", line.strip())
            if rule:
                words = ("ufw", "--force", "delete", *rule[1].split())
                self.step(" ".join(words), functools.partial(do, *words))

    # --- packages ---

    def purge(self) -> None:
        recorded = {name for name, _ in self.items("package")}
        installed = installed_packages()
        before = set(self.receipt.get("packages") or installed)
        spared = {name for name in installed if name_of(name) in self.spared and name_of(name) in recorded}
        going = to_purge(recorded - self.spared, before, installed)
        going |= {name for name in half_purged() if name in recorded}
        mine = {name for name in installed if name in recorded or name_of(name) in recorded}
        for name in sorted(map(name_of, spared)):
            self.notes.append(f"{name} stays: you are here through it. Later, if you like: sudo apt purge {name}")
        kernels = {name for name in mine if KERNEL.match(name)}
        if kernels:
            named = " ".join(sorted(map(name_of, kernels)))
            self.notes.append(
                f"{named}: stays, since the computer may run it. Once it runs another one: sudo apt purge {named}"
            )
        needed = sorted(map(name_of, mine - going - spared - kernels))
        if needed:
            self.notes.append(f"{' '.join(needed)}: stays, since packages of yours need it; apt removes it with them")
            manual = [name for name in needed if name in said("apt-mark", "showmanual").split()]
            if manual:
                self.step(f"apt-mark auto {' '.join(manual)}", lambda: do("apt-mark", "auto", *manual))
        if going:
            names = sorted(map(name_of, going))
            self.step(
                f"purge {len(names)} packages: {' '.join(names)}", functools.partial(self.purge_these, sorted(going))
            )
            if os.path.isdir("/sys/module/nvidia") and any("nvidia" in name for name in names):
                self.notes.append("The driver's modules are still loaded: restart the computer when it suits you.")
        self.strike("package")

    def purge_these(self, names: list[str]) -> None:
        files = said("dpkg-query", "--listfiles", *names).splitlines()
        theirs = self.loaded(
            [os.path.basename(path) for path in files if "/systemd/system/" in path and UNIT.search(path)]
        )
        if theirs:  # not all packages end what they started
            do("systemctl", "stop", *(name for name in theirs if name not in THE_WAY_IN))
        said("dpkg", "--configure", "--pending")  # what was interrupted; what is broken may go broken
        plan = said("env", *(f"{key}={value}" for key, value in QUIET.items()), *APT, "--simulate", "purge", *names)
        goes = set(re.findall(r"^(?:Purg|Remv) (\S+)", plan, re.M))
        more = goes - set(map(name_of, names)) - set(names)
        if more:
            raise Refused(
                f"apt would also remove {' '.join(sorted(more))}, which gpubox did not bring; nothing was purged"
            )
        # Killed in the middle, dpkg no longer knows who needed whom: then these are known by name.
        known = {name for name, _ in self.items("package")}
        more = [{"kind": "package", "name": name, "before": None} for name in names if name not in known]
        self.write(self.receipt["items"] + more)
        do(*APT, "--yes", "purge", *names)
        left = sorted(set(half_purged()) & set(names))
        if left:  # where apt had been killed, it was content with removing them
            do("dpkg", "--purge", *left)

    # --- accounts ---

    def forget_accounts(self) -> None:
        for name, _ in self.items("member"):
            user, _, group = name.partition(":")
            known = unless_gone(grp.getgrnam, group)
            if known and user in known.gr_mem and group not in self.kept_groups:
                words = ("gpasswd", "--delete", user, group)
                self.step(f"take {user} out of {group}", functools.partial(do, *words))
        for name, _ in self.items("user"):
            if unless_gone(pwd.getpwnam, name) and name not in self.kept_users:
                self.step(f"remove the account {name}", functools.partial(do, "userdel", name))
        for name, _ in self.items("group"):
            if unless_gone(grp.getgrnam, name) and name not in self.kept_groups:
                self.step(f"remove the group {name}", functools.partial(do, "groupdel", name))
        self.strike("member", but=lambda name: name.partition(":")[2] in self.kept_groups)
        self.strike("user", but=self.kept_users.__contains__)
        self.strike("group", but=self.kept_groups.__contains__)

    # --- folders ---

    def clear_folders(self) -> None:
        mine = os.path.dirname(self.path)
        for kind, name, was in sorted(
            ((one["kind"], one["name"], one["before"]) for one in self.receipt["items"]),
            key=lambda one: one[1],
            reverse=True,
        ):
            if kind not in ("tree", "data", "folder") or not os.path.isdir(name) or os.path.islink(name):
                continue
            if name in self.kept_data:
                continue
            if was is not None:
                if not same_owner(name, was) or default_acl(name) != was.get("acl"):
                    self.step(f"restore owner and mode of {name}", functools.partial(restore_folder, name, was))
            elif name == mine:
                self.clear_mine(name)
            elif kind != "folder":
                self.step(f"remove {name} with all in there", functools.partial(shutil.rmtree, name))
                self.gone.add(name)
            elif not (left := self.left_in(name)):
                self.step(f"remove {name}", functools.partial(os.rmdir, name))
                self.gone.add(name)
            elif not self.keeps(name):
                self.notes.append(f"{name} stays: {', '.join(left[:5])} in there is not ours")
        self.strike("tree", "data", "folder", but=self.keeps)

    def clear_mine(self, folder: str) -> None:
        """The receipt goes last, when there is nothing in it."""
        left = [entry.path for entry in os.scandir(folder) if entry.path not in (*self.gone, self.path)]
        for path in sorted(left):
            act = shutil.rmtree if os.path.isdir(path) and not os.path.islink(path) else os.unlink
            self.step(f"remove {path}", functools.partial(act, path))

    def left_in(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in os.scandir(folder) if entry.path not in self.gone)

    def keeps(self, folder: str) -> bool:
        """Whether it holds, or is, what the owner made."""
        return any(kept == folder or kept.startswith(f"{folder}/") for kept in self.kept_data) or (
            bool(self.kept_data) and folder == os.path.dirname(self.path)
        )

    def forget(self) -> None:
        if self.kept_data:
            accounts = sorted(self.kept_users | {name for name, _ in self.items("group") if name in self.kept_groups})
            self.notes.append(
                f"Kept, since it is yours: {', '.join(sorted(self.kept_data))}; and with it the receipt and the "
                f"accounts it belongs to ({', '.join(accounts) or 'none of ours'}). To remove that as well, say "
                "--extra-vars gpubox_remove_data=true"
            )
            return

        def last() -> None:
            os.unlink(self.path)
            folder = os.path.dirname(self.path)
            if not any(os.scandir(folder)):
                os.rmdir(folder)

        self.step(f"remove {self.path}", last)

    def run(self) -> None:
        self.stop()
        self.restore_files()
        self.open_ufw()
        self.give_units_back()
        self.purge()
        self.forget_accounts()
        self.clear_folders()
        self.forget()


def main() -> None:
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(
        {
            "data": {"type": "bool", "default": False},
            "anyway": {"type": "bool", "default": False},
            "spared": {"type": "list", "elements": "str", "default": []},
            "path": {"type": "path", "default": "/etc/gpubox/receipt.json"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    try:
        with open(asked["path"]) as file:
            receipt = json.load(file)
    except FileNotFoundError:
        module.exit_json(changed=False, steps=[], notes=["Nothing of gpubox is here."], jobs=[], doors=[])
    brought = {one["name"] for one in receipt["items"] if one["kind"] == "package"}
    jobs = unfinished_jobs(asked["data"]) + containers(brought)
    doors = [
        {
            "path": one["name"],
            "content": one["before"] and base64.b64decode(one["before"]["content"]).decode(),
            "copy": place_for(one["name"]) if loses(one) else "",
        }
        for one in receipt["items"]
        if one["kind"] == "file" and one["name"].startswith(SSH) and not same_file(one["name"], one["before"])
    ]
    if jobs and not asked["anyway"] and not module.check_mode:
        module.fail_json(msg=f"These jobs run or wait: {', '.join(jobs)}", jobs=jobs)
    removal = Removal(
        receipt, asked["path"], asked["data"], asked["anyway"], asked["spared"], doing=not module.check_mode
    )
    try:
        removal.run()
    except (OSError, Refused) as error:
        module.fail_json(
            msg=f"{error}. What is done is struck out of {asked['path']}: run this again", steps=removal.steps
        )
    module.exit_json(changed=bool(removal.steps), steps=removal.steps, notes=removal.notes, jobs=jobs, doors=doors)


if __name__ == "__main__":
    main()
