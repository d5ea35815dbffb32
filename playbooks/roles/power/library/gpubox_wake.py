#!/usr/bin/python
"""Waking over the network: which card, whether it listens for a magic packet, and the .link file that keeps it so.

Standard library only, Python 3.9 or newer; ethtool is not needed, the kernel is asked as ethtool asks it.
"""

from __future__ import annotations

import array
import configparser
import errno
import fcntl
import glob
import os
import re
import socket
import struct

DOCUMENTATION = r"""
module: gpubox_wake
short_description: Finds the wired card that a box is woken by, and arms it
description:
  - With O(state=files) it only says which files of gpubox are there.
  - With O(state=read) it reads the card, and renders the file that keeps the card armed after a restart.
  - With O(state=armed) it tells the card now, and reads it back.
options:
  state:
    description: How far to go.
    type: str
    choices: [files, read, armed]
    default: read
  card:
    description: The name of the card, as enp3s0; empty is the wired one that the default route leaves by.
    type: str
    default: ""
  root:
    description: Where the computer's files begin. Another one than / is for tests.
    type: path
    default: /
author: gpubox
"""

EXAMPLES = r"""
- name: Find the card
  gpubox_wake:
  register: power_card

- name: Have it listen
  gpubox_wake:
    card: "{{ power_card['card'] }}"
    state: armed
"""

RETURN = r"""
card:
  description: The name of the card; empty where there is none.
  returned: always
  type: str
mac:
  description: Its address.
  returned: always
  type: str
armed:
  description: Whether it listens for a magic packet.
  returned: always
  type: bool
path:
  description: The file to write, and content is what belongs in it.
  returned: always
  type: str
ours:
  description: The files of that kind that are there.
  returned: always
  type: list
problem:
  description: Why the card can't be armed, with the next step; empty where it can.
  returned: always
  type: str
notes:
  description: What may take it away again.
  returned: always
  type: list
"""

PLACES = ("etc/systemd/network", "run/systemd/network", "usr/local/lib/systemd/network", "usr/lib/systemd/network",
          "lib/systemd/network")  # fmt: skip
SHIPPED = ("/usr/lib/", "/lib/")  # whose .link files are for all cards of a kind, and can be replaced for one
LINK = "50-gpubox-wake.link"
DROP_IN = "50-gpubox-wake.conf"
ABOUT = "# gpubox: this card wakes the box."
GET_WAKE, SET_WAKE, SIOCETHTOOL = 5, 6, 0x8946
MAGIC = 1 << 5
WOL = struct.Struct("=III8x")  # cmd, supported, wolopts; then a password and its padding
NM_DEFAULT, NM_MAGIC, NM_IGNORE = 0x1, 0x40, 0x8000
ROUTE_UP = 1


class Tree:
    def __init__(self, root: str = "/") -> None:
        self.root = os.path.abspath(root)

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *[part.lstrip("/") for part in parts])

    def text(self, *parts: str) -> str:
        try:
            with open(self.path(*parts), errors="replace") as file:
                return file.read().strip()
        except OSError:
            return ""

    def names(self, *parts: str) -> list[str]:
        try:
            return sorted(os.listdir(self.path(*parts)))
        except OSError:
            return []

    def exists(self, *parts: str) -> bool:
        return os.path.lexists(self.path(*parts))


# --- which card -------------------------------------------------------------------------------------------------------


def default_route(tree: Tree) -> str:
    """The interface that packets to the world leave by; empty where there is none."""
    found = []
    for line in tree.text("proc/net/route").splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == words[7] == "00000000" and int(words[3], 16) & ROUTE_UP:
            found.append((int(words[6]), words[0]))
    for line in tree.text("proc/net/ipv6_route").splitlines() if not found else ():
        words = line.split()
        if len(words) > 9 and words[0].strip("0") == "" and words[1] == "00" and words[9] != "lo":
            found.append((int(words[5], 16), words[9]))
    return min(found)[1] if found else ""


def hardware(tree: Tree, name: str) -> list[str]:
    """The cards below an interface: itself, or those of a bridge, bond or VLAN."""
    if tree.exists("sys/class/net", name, "device"):
        return [name]
    lower = [one[len("lower_") :] for one in tree.names("sys/class/net", name) if one.startswith("lower_")]
    return [card for one in lower for card in hardware(tree, one)]


def wireless(tree: Tree, name: str) -> bool:
    return any(tree.exists("sys/class/net", name, mark) for mark in ("wireless", "phy80211"))


def address(tree: Tree, name: str) -> str:
    """The card's own: a bond gives all its cards one address, but they are woken by their own."""
    return tree.text("sys/class/net", name, "bonding_slave/perm_hwaddr") or tree.text("sys/class/net", name, "address")


def choose(tree: Tree, card: str = "") -> tuple[str, str]:
    """-> the card, and why there is none."""
    set_it = "Next: name one, gpubox_wake_on_lan_card: enp3s0, or set gpubox_wake_on_lan: false."
    if card:
        here = tree.exists("sys/class/net", card, "device")
        return (card, "") if here else ("", f"{card} is no network card of this box. {set_it}")
    way = default_route(tree)
    if not way:
        return "", f"No card has a default route, so none is known to reach your network. {set_it}"
    below = hardware(tree, way)
    if not below:
        return "", f"{way}, which the default route leaves by, is no hardware: nothing there can wake. {set_it}"
    wired = [name for name in below if not wireless(tree, name)]
    if not wired:
        return "", f"The default route leaves by {below[0]}, which is wireless and sleeps with the box. {set_it}"
    return wired[0], ""


# --- the kernel's word ------------------------------------------------------------------------------------------------


def ask(name: str, command: int = GET_WAKE, options: int = 0) -> tuple[int, int]:
    """What a card can wake by, and what is switched on; raises OSError."""
    data = array.array("B", WOL.pack(command, 0, options))
    request = struct.pack("16sP16x", name.encode(), data.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        fcntl.ioctl(door.fileno(), SIOCETHTOOL, request)
    _, supported, active = WOL.unpack(data.tobytes())
    return supported, active


def wakes(name: str) -> tuple[bool, str]:
    """-> whether it listens, and why it can't."""
    try:
        supported, active = ask(name)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
            raise
        supported, active = 0, 0
    if not supported & MAGIC:
        return False, (
            f"{name} can't be woken by a magic packet, says its driver. Next: switch Wake-on-LAN on in the firmware's "
            "setup (and ErP or deep sleep off), and run this again; or set gpubox_wake_on_lan: false."
        )
    return bool(active & MAGIC), ""


# --- the file that keeps it -------------------------------------------------------------------------------------------


def applied_link(tree: Tree, name: str) -> str:
    """The .link file that udev gave this card; what every systemd ships where udev did not say."""
    number = tree.text("sys/class/net", name, "ifindex")
    found = re.search(r"^E:ID_NET_LINK_FILE=(.+)$", tree.text("run/udev/data", f"n{number}"), re.M)
    if found:
        return found.group(1)
    if tree.exists("run/udev/data", f"n{number}"):
        return ""  # udev knows the card and has none for it: the owner took it away
    masked = tree.exists("etc/systemd/network/99-default.link")
    places = [place for place in PLACES if tree.exists(place, "99-default.link")]
    return f"/{places[0]}/99-default.link" if places and not masked else ""


def link_section(tree: Tree, path: str) -> list[str]:
    """The lines below [Link] of a .link file and of its drop-ins, in the order in which systemd reads them."""
    base, parts = os.path.basename(path), {}
    for place in reversed(PLACES):
        for name in tree.names(place, base + ".d"):
            if name.endswith(".conf"):
                parts[name] = tree.path(place, base + ".d", name)
    lines = []
    for file in (tree.path(path), *(parts[name] for name in sorted(parts))):
        section = ""
        for line in tree.text(file[len(tree.root) :]).splitlines():
            line = line.strip()
            if line.startswith("["):
                section = line
            elif section == "[Link]" and "=" in line and line[0] not in "#;":
                lines.append(line)
    return lines


def keeper(tree: Tree, name: str, mac: str) -> tuple[str, str]:
    """-> path and content. systemd takes the first .link file that matches, and no other: so what is shipped for all
    cards is repeated for this one, or it would lose its name; and what somebody made for it gets a drop-in."""
    applied = applied_link(tree, name)
    if os.path.basename(applied) == LINK:  # a run before this one wrote it
        applied = next((f"/{place}/99-default.link" for place in PLACES if tree.exists(place, "99-default.link")), "")
    if applied and not applied.startswith(SHIPPED):
        folder = f"/etc/systemd/network/{os.path.basename(applied)}.d"
        return f"{folder}/{DROP_IN}", f"{ABOUT}\n[Link]\nWakeOnLan=magic\n"
    repeated = [line for line in (link_section(tree, applied) if applied else []) if not line.startswith("WakeOnLan")]
    about = [f"{ABOUT} What else is below [Link] is {applied}'s, for its name to stay."] if repeated else [ABOUT]
    match = ["[Match]", f"MACAddress={mac}", "Type=ether", "", "[Link]"]
    return f"/etc/systemd/network/{LINK}", "\n".join([*about, *match, *repeated, "WakeOnLan=magic", ""])


def ours(tree: Tree) -> list[str]:
    folder = tree.path("etc/systemd/network")
    found = [*glob.glob(f"{folder}/{LINK}"), *glob.glob(f"{folder}/*.link.d/{DROP_IN}")]
    return sorted("/" + os.path.relpath(path, tree.root) for path in found)


def overrulers(tree: Tree, name: str, mac: str) -> list[str]:
    """NetworkManager's profiles for this card that switch it off: they come after udev, so they win."""
    notes = []
    for place in ("etc", "run"):
        folder = f"{place}/NetworkManager/system-connections"
        for file in tree.names(folder):
            profile = configparser.RawConfigParser(strict=False)
            try:
                profile.read_string(tree.text(folder, file))
            except configparser.Error:
                continue
            note = _overrules(profile, name, mac, f"/{folder}/{file}")
            notes += [note] if note else []
    return notes


def _overrules(profile: configparser.RawConfigParser, name: str, mac: str, path: str) -> str:
    def value(key: str, *sections: str) -> str:
        return next((profile[one][key] for one in sections if profile.has_option(one, key)), "")

    wired = ("ethernet", "802-3-ethernet")
    said = value("wake-on-lan", *wired)
    other = value("interface-name", "connection") not in ("", name)
    other = other or value("mac-address", *wired).lower() not in ("", mac)
    if other or value("type", "connection") not in wired or not said.isdigit():
        return ""
    if int(said) & (NM_DEFAULT | NM_MAGIC | NM_IGNORE):
        return ""
    profile_id = value("id", "connection")
    command = f"sudo nmcli connection modify '{profile_id}' 802-3-ethernet.wake-on-lan magic"
    if profile_id.startswith("netplan-"):
        command = f"sudo netplan set ethernets.{profile_id[len('netplan-') :]}.wakeonlan=true && sudo netplan apply"
    return f"NetworkManager's profile {path} switches waking off again whenever the card comes up. Next: {command}"


def read(root: str, card: str, files_alone: bool = False) -> dict[str, object]:
    tree = Tree(root)
    name, problem = ("", "") if files_alone else choose(tree, card)
    found = {"card": name, "mac": "", "armed": False, "path": "", "content": "", "ours": ours(tree), "notes": []}
    if name:
        armed, problem = wakes(name)
        mac = address(tree, name).lower()
        path, content = keeper(tree, name, mac)
        found.update(mac=mac, armed=armed, path=path, content=content, notes=overrulers(tree, name, mac))
        if "/usb" in os.path.realpath(tree.path("sys/class/net", name, "device")):
            found["notes"] += [f"{name} is on USB: few firmwares keep power there while the box is off. Try it once."]
    return {**found, "problem": problem}


def main() -> None:
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(
        {
            "state": {"type": "str", "choices": ["files", "read", "armed"], "default": "read"},
            "card": {"type": "str", "default": ""},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    try:
        found = read(module.params["root"], module.params["card"], module.params["state"] == "files")
        changed = module.params["state"] == "armed" and not found["armed"]
        if module.params["state"] == "armed" and found["problem"]:
            module.fail_json(msg=found["problem"], **found)
        if changed and not module.check_mode:
            _, active = ask(found["card"])
            ask(found["card"], SET_WAKE, active | MAGIC)
            found["armed"], _ = wakes(found["card"])
            if not found["armed"]:
                module.fail_json(msg=f"{found['card']} was told to listen, and does not: see journalctl -k.", **found)
    except OSError as error:
        module.fail_json(msg=f"The network card can't be asked: {error}.")
    module.exit_json(changed=changed, **found)


if __name__ == "__main__":
    main()
