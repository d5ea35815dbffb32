#!/usr/bin/python
"""What the role base has to know of a computer: who came in, which accounts are missing, who keeps time and firewall.

Reads files and asks systemd and sshd; changes nothing. Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import struct
import subprocess

DOCUMENTATION = r"""
module: gpubox_base_facts
short_description: Reads what the role base depends on
description:
  - Changes nothing and is the same in check mode.
options:
  data:
    description: The shared folder.
    type: path
    required: true
  group:
    description: Whose shared folder it is.
    type: str
    required: true
  folders:
    description: Folders that are to be there.
    type: list
    elements: path
    default: []
  units:
    description: Units of which it matters whether they are masked.
    type: list
    elements: str
    default: []
author: gpubox
"""

EXAMPLES = r"""
- name: Read what is here
  gpubox_base_facts:
    data: /srv/gpubox/data
    group: gpubox-data
  register: base_read
"""

RETURN = r"""
came_as:
  description: The account that Ansible came in as, before it became root.
  returned: always
  type: str
has_key:
  description: Whether that account has keys in its authorized_keys.
  returned: always
  type: bool
users:
  description: The names of all accounts.
  returned: always
  type: list
groups:
  description: The names of all groups.
  returned: always
  type: list
members:
  description: All memberships, as user:group.
  returned: always
  type: list
no_folders:
  description: Those of the folders that are not there.
  returned: always
  type: list
masked:
  description: Those of the units that are masked.
  returned: always
  type: list
shared:
  description: Whether the shared folder has its mode, group and default ACL.
  returned: always
  type: bool
time_service:
  description: The enabled service that keeps the clock; empty when there is none.
  returned: always
  type: str
firewall:
  description: The firewall of the owner's that is active; empty when there is none.
  returned: always
  type: str
opened:
  description: What the owner let ufw open, as it shows that; not what gpubox did.
  returned: always
  type: list
ssh:
  description: Whether sshd is installed and reads drop-ins, and the ports that it listens on.
  returned: always
  type: dict
apt:
  description: Whether Python can talk to apt and apt knows packages; else a check can't say what would be installed.
  returned: always
  type: bool
"""

TIME = ("chrony", "chronyd", "systemd-timesyncd", "ntpsec", "ntp", "openntpd")
FIREWALLS = ("firewalld", "nftables", "netfilter-persistent")
SSHD = "/usr/sbin/sshd"
FOLDER_MODE = 0o2770
ACL_GROUP = 8  # the kernel's tag of an entry for a named group
ACL_ENTRY = struct.Struct("<HHI")


def said(*words: str) -> str:
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout


def text_of(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def first_enabled(names: tuple[str, ...]) -> str:
    """The first of these services that starts at boot."""
    for name in names:
        if said("systemctl", "is-enabled", f"{name}.service").strip() in ("enabled", "enabled-runtime", "alias"):
            return name
    return ""


def masked(unit: str) -> bool:
    path = f"/etc/systemd/system/{unit}"
    return os.path.islink(path) and os.readlink(path) == "/dev/null"


def came_as() -> str:
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


def has_key(user: str) -> bool:
    keys = text_of(os.path.join(os.path.expanduser(f"~{user}"), ".ssh/authorized_keys"))
    return any(line.strip() and not line.lstrip().startswith("#") for line in keys.splitlines())


def members() -> list[str]:
    named = [f"{user}:{group.gr_name}" for group in grp.getgrall() for user in group.gr_mem]
    names = {group.gr_gid: group.gr_name for group in grp.getgrall()}
    return named + [f"{user.pw_name}:{names[user.pw_gid]}" for user in pwd.getpwall() if user.pw_gid in names]


def shared(path: str, group: str) -> bool:
    try:
        gid = grp.getgrnam(group).gr_gid
        found = os.stat(path)
        default = os.getxattr(path, "system.posix_acl_default")
    except (KeyError, OSError):
        return False
    entries = list(ACL_ENTRY.iter_unpack(default[4:]))
    right = found.st_mode & 0o7777 == FOLDER_MODE and found.st_gid == gid
    return right and (ACL_GROUP, 7, gid) in entries


def firewall() -> str:
    if re.search(r"^ENABLED=yes", text_of("/etc/ufw/ufw.conf"), re.M) and os.path.exists("/usr/sbin/ufw"):
        return "ufw"
    return first_enabled(FIREWALLS)


def opened() -> list[str]:
    """A rule that is given again takes our comment, and would go with us."""
    rules = re.findall(r"^ufw (allow .+?)(?: comment '(.*)')?$", said("ufw", "show", "added"), re.M)
    return [rule for rule, comment in rules if comment != "gpubox"]


def ssh() -> dict[str, object]:
    ports = re.findall(r"^port (\d+)$", said(SSHD, "-T"), re.M)
    main = text_of("/etc/ssh/sshd_config")
    return {
        "installed": os.path.exists(SSHD),
        "reads_drop_ins": bool(re.search(r"^\s*Include\s+/etc/ssh/sshd_config\.d/\*\.conf", main, re.M | re.I)),
        "ports": sorted({int(port) for port in ports}) or [22],
    }


def apt_answers() -> bool:
    try:
        import apt_pkg  # noqa: F401
    except ImportError:
        return False
    return any(name.endswith("Packages") or "_Packages." in name for name in os.listdir("/var/lib/apt/lists"))


def main() -> None:
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(
        {
            "data": {"type": "path", "required": True},
            "group": {"type": "str", "required": True},
            "folders": {"type": "list", "elements": "path", "default": []},
            "units": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    asked = module.params
    user = came_as()
    module.exit_json(
        changed=False,
        came_as=user,
        has_key=has_key(user),
        users=[one.pw_name for one in pwd.getpwall()],
        groups=[one.gr_name for one in grp.getgrall()],
        members=members(),
        no_folders=[path for path in asked["folders"] if not os.path.isdir(path)],
        masked=[name for name in asked["units"] if masked(name)],
        shared=shared(asked["data"], asked["group"]),
        time_service=first_enabled(TIME),
        firewall=firewall(),
        opened=opened(),
        ssh=ssh(),
        apt=apt_answers(),
    )


if __name__ == "__main__":
    main()
