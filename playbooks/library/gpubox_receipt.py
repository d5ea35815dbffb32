#!/usr/bin/python
"""Writes down how a thing was before gpubox changed it, so that remove.yml can undo it: /etc/gpubox/receipt.json.

A role records before it changes. What is recorded once stays as it is: the first `before` is the owner's state.
Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import base64
import grp
import hashlib
import json
import os
import pwd
import subprocess
import time

DOCUMENTATION = r"""
module: gpubox_receipt
short_description: Records what gpubox is about to change
description:
  - Adds one entry for each thing that is not yet in the receipt, with the state it has now as C(before).
  - Packages, users, groups and memberships that are there already are not recorded, since nothing will be undone.
  - An entry is {kind, name, before, role, at}. C(before) is null for what was not there; for a file its content
    (base64), mode and owners; for a folder its mode and owners; for a unit how it was enabled and whether it ran.
  - O(written) comes last of all, and adds C(written) to each file's entry, what is in it by then (sha256, or where a
    link leads). A role that names a file again takes that back, since it is about to write. So remove.yml knows what
    the owner changed since.
  - The first time, all installed packages are remembered, so that what later comes along with ours is told apart.
options:
  role:
    description: Who is about to change them.
    type: str
    required: true
  files:
    description: Paths of files and links.
    type: list
    elements: path
    default: []
  folders:
    description: Paths of folders that may get other things, too; one that was not there goes when it is empty.
    type: list
    elements: path
    default: []
  trees:
    description: Paths of folders in which all is ours; one that was not there goes with what is in it.
    type: list
    elements: path
    default: []
  data:
    description: Paths of folders in which is what the owner made; one that was not there goes when the owner says so.
    type: list
    elements: path
    default: []
  packages:
    description: Names of packages.
    type: list
    elements: str
    default: []
  users:
    description: Names of accounts.
    type: list
    elements: str
    default: []
  groups:
    description: Names of groups.
    type: list
    elements: str
    default: []
  members:
    description: Memberships, as user:group.
    type: list
    elements: str
    default: []
  units:
    description: Names of systemd units.
    type: list
    elements: str
    default: []
  written:
    description: Says that the roles have written what they were about to write.
    type: bool
    default: false
  path:
    description: The receipt.
    type: path
    default: /etc/gpubox/receipt.json
author: gpubox
"""

EXAMPLES = r"""
- name: Write down what was there before
  gpubox_receipt:
    role: base
    files: [/etc/systemd/logind.conf.d/10-gpubox.conf]
    units: [sleep.target]
"""

RETURN = r"""
added:
  description: The names of what was not in the receipt before.
  returned: always
  type: list
"""

SINGULAR = {
    "folders": "folder",
    "trees": "tree",
    "data": "data",
    "groups": "group",
    "users": "user",
    "members": "member",
    "packages": "package",
    "files": "file",
    "units": "unit",
}
KINDS = tuple(SINGULAR)
PATHS = ("files", "folders", "trees", "data")
ALWAYS = (*PATHS, "units")  # these change while they stay; the others come or are there


def before(kind: str, name: str) -> object:
    """How the thing is now; None: it is not there."""
    return {
        "files": _file,
        **dict.fromkeys(("folders", "trees", "data"), _folder),
        "packages": _package,
        "users": lambda name: _known(pwd.getpwnam, name),
        "groups": lambda name: _known(grp.getgrnam, name),
        "members": _member,
        "units": _unit,
    }[kind](name)


def _file(path: str) -> dict[str, object] | None:
    if os.path.islink(path):
        return {"link": os.readlink(path)}
    if not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        return {**_folder(path), "content": base64.b64encode(file.read()).decode()}


def _folder(path: str) -> dict[str, object] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return {"mode": f"{found.st_mode & 0o7777:04o}", "uid": found.st_uid, "gid": found.st_gid, **_default_acl(path)}


def _default_acl(path: str) -> dict[str, object]:
    try:
        return {"acl": base64.b64encode(os.getxattr(path, "system.posix_acl_default", follow_symlinks=False)).decode()}
    except OSError:
        return {}


def _package(name: str) -> bool | None:
    return _said("dpkg-query", "--show", "--showformat=${db:Status-Status}", name) == "installed" or None


def _known(ask, name: str) -> bool | None:
    try:
        return bool(ask(name))
    except KeyError:
        return None


def _member(name: str) -> bool | None:
    user, _, group = name.partition(":")
    try:
        known = grp.getgrnam(group)
        return user in known.gr_mem or pwd.getpwnam(user).pw_gid == known.gr_gid or None
    except KeyError:
        return None


def _unit(name: str) -> dict[str, object] | None:
    enabled = _said("systemctl", "is-enabled", name)
    if enabled in ("", "not-found"):
        return None
    return {"enabled": enabled, "active": _said("systemctl", "is-active", name) == "active"}


def _said(*words: str) -> str:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout.strip()


def packages() -> list[str]:
    """The names of all that are installed, of a foreign architecture as name:architecture."""
    listed = _said("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Architecture} ${Package}\n")
    here = (_said("dpkg", "--print-architecture"), "all")
    found = [line.split() for line in listed.splitlines() if line.startswith("installed ")]
    return sorted(name if architecture in here else f"{name}:{architecture}" for _, architecture, name in found)


def read(path: str) -> dict[str, object]:
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return {"version": 1, "packages": packages(), "items": []}


def write(path: str, receipt: dict[str, object]) -> None:
    """Whole or not at all. It holds files' contents, so it is root's alone."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    new = f"{path}.new"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(receipt, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)


def news(receipt: dict[str, object], wanted: dict[str, list[str]], role: str, now: float) -> list[dict[str, object]]:
    """The entries to add."""
    known = {(item["kind"], item["name"]) for item in receipt["items"]}
    found = []
    for kinds in KINDS:
        kind = SINGULAR[kinds]
        for name in wanted[kinds]:
            if (kind, name) in known:
                continue
            was = before(kinds, name)
            if was is None or kinds in ALWAYS:
                found.append({"kind": kind, "name": name, "before": was, "role": role, "at": int(now)})
                known.add((kind, name))
    return found


def mark(path: str) -> str | None:
    """What tells whether it is still what it was; gpubox_removal has the same."""
    if os.path.islink(path):
        return f"link {os.readlink(path)}"
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def marked(items: list[dict[str, object]], files: list[str], written: bool) -> list[dict[str, object]]:
    """The same, without what the named files were, for they are about to be written; at the end with what they are."""
    found = []
    for item in items:
        named = item["kind"] == "file" and item["name"] in files
        found.append({key: value for key, value in item.items() if key != "written" or not named})
        if written and item["kind"] == "file" and "written" not in found[-1]:
            found[-1]["written"] = mark(item["name"])
    return found


def main() -> None:
    from ansible.module_utils.basic import AnsibleModule

    listed = {"type": "list", "default": []}
    module = AnsibleModule(
        {
            "role": {"type": "str", "required": True},
            "written": {"type": "bool", "default": False},
            "path": {"type": "path", "default": "/etc/gpubox/receipt.json"},
            **{kind: {**listed, "elements": "path" if kind in PATHS else "str"} for kind in KINDS},
        },
        supports_check_mode=True,
    )
    asked = module.params
    receipt = read(asked["path"])
    added = news(receipt, asked, asked["role"], time.time())
    items = marked(receipt["items"] + added, asked["files"], asked["written"])
    if items != receipt["items"] and not module.check_mode:
        write(asked["path"], {**receipt, "items": items})
    module.exit_json(changed=bool(added), added=[f"{item['kind']} {item['name']}" for item in added])


if __name__ == "__main__":
    main()
