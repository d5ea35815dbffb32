"""The role power: what each GPU may draw, kept and read back; and the card that wakes the box."""

from __future__ import annotations

import ast
import atexit
import ctypes
import functools
import importlib.util
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import tools
import yaml
from bed.box import Box
from fake_nvml import FakeNvml
from hosts import a_host, bed_run  # noqa: F401
from test_playbooks import PLAYBOOKS, Owner

ROLE = PLAYBOOKS / "roles/power"
PROGRAM = ROLE / "module_utils/gpubox_watts.py"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


watts, wake = module(PROGRAM), module(ROLE / "library/gpubox_wake.py")


# --- what each may draw: pure ----------------------------------------------------------------------------------------


def gpu(index: int = 0, name: str = "GeForce RTX 3090", able: tuple[int, int, int] | None = (100, 350, 400)) -> Any:
    least, own, most = able or (None, None, None)
    return {
        "index": index,
        "uuid": f"GPU-{index}",
        "name": f"NVIDIA {name}",
        "address": f"0000:{index + 1:02x}:00.0",
        "minimum": least,
        "default": own,
        "maximum": most,
        "now": own,
        "persistent": True,
    }


TWO = [gpu(0), gpu(1)]
MIXED = [gpu(0), gpu(1, "GeForce RTX 4060", (100, 115, 130))]
OLD = [gpu(0), gpu(1, "GeForce GT 710", None)]


class Row(NamedTuple):
    name: str
    gpus: list[Any]
    wishes: dict[str, Any]
    limits: dict[int, float]  # index -> watts
    says: str = ""  # somewhere in reasons, notes or problems
    refused: bool = False


ROWS = [
    Row("nothing is wished", TWO, {}, {}),
    Row("watts for all", TWO, {"limit": "280"}, {0: 280, 1: 280}, "you said 280 W"),
    Row("watts as ini files give them", TWO, {"limit": "280 W"}, {0: 280, 1: 280}),
    Row("a part of its own limit", MIXED, {"limit": "90%"}, {0: 315, 1: 103.5}, "you said 90 % of its 115 W"),
    Row("too much is its most", TWO[:1], {"limit": "1000"}, {0: 400}, "1000 W is more than its most, 400 W"),
    Row("too little is its least", TWO[:1], {"limit": "10%"}, {0: 100}, "35 W is less than its least, 100 W"),
    Row("one by name, as people say it", MIXED, {"limits": {"rtx 4060": "110"}}, {1: 110}),
    Row("one by its whole name", MIXED, {"limits": {"NVIDIA GeForce RTX 3090": 300}}, {0: 300}),
    Row("a name is no beginning of another", [gpu(0, "GeForce RTX 3090 Ti")], {"limits": {"RTX 3090": 300}}, {},
        "there is no such GPU. Next: name one of these: 0, NVIDIA GeForce RTX 3090 Ti, GPU-0.", refused=True),
    Row("one by number", TWO, {"limits": {"1": "80%"}}, {1: 280}),
    Row("one by UUID, the others by the limit of all", TWO, {"limit": 300, "limits": {"gpu-1": 200}}, {0: 300, 1: 200}),
    Row("UUID before number before name", TWO, {"limits": {"RTX 3090": 200, "0": 210, "GPU-1": 220}}, {0: 210, 1: 220}),
    Row("a name that is not here leaves the others theirs", TWO, {"limit": 300, "limits": {"RTX 5090": 400}},
        {0: 300, 1: 300}, "gpubox_power_limits names 'RTX 5090'", refused=True),
    Row("nonsense", TWO, {"limit": "much"}, {}, "'much', which is neither watts nor a percentage", refused=True),
    Row("zero", TWO, {"limits": {"0": 0}}, {}, "write 280 or 80%", refused=True),
    Row("nonsense is told without a GPU, too", [], {"limits": {"0": "2OO"}}, {}, "'2OO'", refused=True),
    Row("names are not, without a GPU", [], {"limits": {"RTX 3090": 200}}, {}),
    Row("a card that can't be told", OLD, {"limit": 300}, {0: 300}, "NVIDIA GeForce GT 710 (GPU-1) can't be limited"),
    Row("a card to leave alone", TWO, {"limit": 300, "ignored": ["0000:01:00.0"]}, {1: 300}),
    Row("a supply that is enough", TWO, {"psu_watts": 1600}, {0: 350, 1: 350}, "its own limit fits, with 250 W"),
    Row("a supply to share", TWO, {"psu_watts": 1000}, {0: 275, 1: 275}, "79 % of its 350 W, with 250 W for the rest"),
    Row("shares follow what each is", MIXED, {"psu_watts": 800}, {0: 290, 1: 100}),
    Row("a small computer", TWO, {"psu_watts": 1000, "rest_watts": 150}, {0: 325, 1: 325}),
    Row("whole watts, never above", [gpu(0), gpu(1), gpu(2)], {"psu_watts": 1200}, {0: 236, 1: 236, 2: 236}),
    Row("a supply for less than the least", TWO, {"psu_watts": 500}, {},
        "250 W for the rest + 200 W, which is the least of 2 more GPUs = 450 W, but 80 % of a supply of 500 W is 400 W"
        ": nothing is set. Next: a supply of 600 W", refused=True),
    Row("one by hand, the supply for the other", TWO, {"psu_watts": 1000, "limits": {"0": 350}}, {0: 350, 1: 200}),
    Row("by hand beyond the supply", TWO, {"psu_watts": 850, "limit": 300}, {},
        "250 W for the rest + 600 W that are set or can't be = 850 W, but 80 % of a supply of 850 W is 680 W",
        refused=True),
    Row("one to leave alone draws, too", TWO, {"psu_watts": 1000, "ignored": ["0000:01:00.0"]}, {1: 200}),
    Row("one that says nothing is not counted, and told", OLD, {"psu_watts": 700}, {0: 310},
        "GT 710 (GPU-1) does not say what it may draw: add its watts to gpubox_rest_watts"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_card_gets_what_is_wished_and_possible(row: Row) -> None:
    made = watts.decide(row.gpus, row.wishes)
    assert {one["index"]: one["watts"] for one in made["limits"]} == row.limits
    assert bool(made["problems"]) == row.refused
    assert row.says in "\n".join([one["why"] for one in made["limits"]] + made["notes"] + made["problems"])
    supply = row.wishes.get("psu_watts")
    if supply and made["limits"]:
        rest = row.wishes.get("rest_watts", 250)
        assert sum(row.limits.values()) + rest <= 0.8 * supply
    assert all(problem.count("Next: ") == 1 for problem in made["problems"])


def test_the_program_runs_where_a_box_has_nothing_but_an_old_python() -> None:
    tree = ast.parse(PROGRAM.read_text(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


# --- setting and reading back, over a stand-in of the driver's library -----------------------------------------------


@functools.cache
def library() -> Path:
    """The folder that holds a libnvidia-ml.so.1 with limits (tests/nvml/power.c); gone with this process."""
    folder = Path(tempfile.mkdtemp(prefix="fake-power-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = Path(__file__).with_name("nvml") / "power.c"
    flags = ("-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
    subprocess.run((tools.need("cc"), *flags, "-o", str(folder / "libnvidia-ml.so.1"), str(source)), check=True)
    return folder


def cards(place: Path, *able: tuple[int, int, int] | None) -> Path:
    """Makes the folder that the stand-in reads; one card of each (least, own, most)."""
    for index, each in enumerate(able):
        folder = place / str(index)
        folder.mkdir(parents=True)
        values: dict[str, object] = {"uuid": f"GPU-{index}", "name": "NVIDIA GeForce RTX 3090", "bus": index + 1}
        if each:
            milliwatts = [1000 * value for value in each]
            values.update(zip(("min", "default", "max"), milliwatts, strict=True), now=milliwatts[1])
        for name, value in values.items():
            (folder / name).write_text(f"{value}\n")
    return place


class Program:
    """gpubox-power over the stand-in."""

    def __init__(self, place: Path, *able: tuple[int, int, int] | None) -> None:
        self.place = cards(place / "cards", *able)
        self.settings = place / "power.json"

    def __call__(self, *words: str, **wishes: object) -> subprocess.CompletedProcess[str]:
        self.settings.write_text(json.dumps({**watts.NOTHING, **wishes}))
        env = {"FAKE_POWER": str(self.place), "LD_LIBRARY_PATH": str(library())}
        command = (sys.executable, "-I", str(PROGRAM), *words, str(self.settings))
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)

    def now(self) -> list[int]:
        return [int((self.place / str(index) / "now").read_text()) // 1000 for index in range(2)]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path, (100, 350, 400), (100, 350, 400))


def test_limits_are_set_once_and_said(program: Program) -> None:
    done = program("--check", limit="280")
    assert (done.returncode, program.now()) == (0, [350, 350])
    assert "1 NVIDIA GeForce RTX 3090 (GPU-1): 280 W, you said 280 W (was 350 W)" in done.stdout
    assert (program(limit="280").returncode, program.now()) == (0, [280, 280])
    assert "(was" not in program(limit="280").stdout
    assert program(limits={"1": "80%"}, psu_watts=1000).returncode == 0
    assert program.now() == [270, 280]


def test_a_card_that_keeps_its_own_limit_is_an_error_in_words(program: Program) -> None:
    (program.place / "1/stubborn").touch()
    done = program(limit="280")
    assert (done.returncode, program.now()) == (1, [280, 350])
    assert "NVIDIA GeForce RTX 3090 (GPU-1) was told 280 W, and reads 350 W. Next: " in done.stderr


def test_what_a_card_does_not_let_change_is_told_and_no_error(program: Program) -> None:
    (program.place / "0/fixed").touch()
    (program.place / "1/min").unlink()
    done = program(limit="280")
    assert (done.returncode, program.now()) == (0, [350, 350])
    assert "(GPU-0) names its limits but does not let them be changed" in done.stdout
    assert "(GPU-1) can't be limited" in done.stdout


def test_a_lost_card_does_not_keep_the_others_from_their_limit(program: Program) -> None:
    (program.place / "0/lost").touch()
    (program.place / "1/forgetful").touch()
    done = program(limit="280")
    assert (done.returncode, program.now()) == (0, [350, 280])
    assert "GPU 0 can't be asked: GPU is lost." in done.stdout
    assert "forgets its limit when nobody uses it: nvidia-persistenced does not run" in done.stdout


def test_what_can_not_be_asked_or_read_is_said(program: Program) -> None:
    (program.place / "broken").touch()
    done = program(limit="280")
    assert (done.returncode, done.stderr) == (1, "The GPUs can't be asked: Driver/library version mismatch.\n")
    assert program("/nowhere.json").stderr.endswith("Next: run setup.yml again.\n")
    assert "Traceback" not in program("/nowhere.json").stderr


def test_the_library_is_read_as_the_runners_stand_in_has_it(tmp_path: Path) -> None:
    """tests/nvml/fake.c, which the real nvidia-ml-py reads, too; it has no setters."""
    driver = FakeNvml(tmp_path)
    for model in ("3090", "h200", "gb10"):
        driver.add(model)
    settings = tmp_path / "power.json"
    settings.write_text(json.dumps({**watts.NOTHING, "limit": "90%", "ignored": ["0000:02:00.0"]}))
    command = (sys.executable, "-I", str(PROGRAM), "--check", str(settings))
    done = subprocess.run(command, env=driver.env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert re.fullmatch(
        rf"0 NVIDIA GeForce RTX 3090 \({driver.gpus[0].uuid}\): 315 W, you said 90 % of its 350 W .*", said[0]
    )
    assert "h200" not in done.stdout.lower(), "it is to be left alone"
    assert [line for line in said if "GB10" in line and "can't be limited" in line]


# --- the card that wakes the box -------------------------------------------------------------------------------------

MAC = "00:11:22:aa:bb:cc"
DEFAULT_LINK = """# shipped
[Match]
OriginalName=*

[Link]
NamePolicy=keep kernel database onboard slot path
AlternativeNamesPolicy=database onboard slot path
MACAddressPolicy=persistent
"""


class Net:
    """A computer's network, as files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file("usr/lib/systemd/network/99-default.link", DEFAULT_LINK)
        self._routes: list[str] = []

    def file(self, name: str, content: str = "") -> Net:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return self

    def card(self, name: str, *marks: str, mac: str = MAC, number: int = 2, link: str | None = None) -> Net:
        for mark in marks:
            self.file(f"sys/class/net/{name}/{mark}/x")
        self.file(f"sys/class/net/{name}/address", f"{mac}\n").file(f"sys/class/net/{name}/ifindex", f"{number}\n")
        if link is not None:
            said = f"E:ID_NET_LINK_FILE={link}\n" if link else ""
            self.file(f"run/udev/data/n{number}", f"I:2\nE:ID_PATH=pci-0000:05:00.0\n{said}")
        return self

    def route(self, name: str, metric: int = 100, to: str = "00000000", mask: str = "00000000") -> Net:
        self._routes.append(f"{name}\t{to}\t0101A8C0\t0003\t0\t0\t{metric}\t{mask}\t0\t0\t0")
        return self.file("proc/net/route", "\n".join(["Iface\tDestination\t...", *self._routes]) + "\n")

    def choose(self, card: str = "") -> tuple[str, str]:
        chosen: tuple[str, str] = wake.choose(wake.Tree(str(self.root)), card)
        return chosen

    def keeper(self, name: str = "enp5s0") -> tuple[str, str]:
        made: tuple[str, str] = wake.keeper(wake.Tree(str(self.root)), name, MAC)
        return made


def test_the_card_is_the_wired_one_of_the_default_route(tmp_path: Path) -> None:
    net = Net(tmp_path).card("enp5s0", "device").card("wlp6s0", "device", "phy80211").card("enp7s0", "device")
    net.route("wlp6s0", 600).route("enp7s0", 50, to="0000A8C0", mask="0000FFFF").route("enp5s0", 100)
    assert net.choose() == ("enp5s0", "")
    assert net.choose("enp7s0") == ("enp7s0", "")


def test_below_a_bridge_or_bond_it_is_the_hardware_with_its_own_address(tmp_path: Path) -> None:
    net = Net(tmp_path).route("br0").card("br0", "lower_bond0").card("bond0", "lower_enp5s0", "lower_enp6s0")
    net.card("enp5s0", "device", mac="02:00:00:00:00:01").file("sys/class/net/enp5s0/bonding_slave/perm_hwaddr", MAC)
    assert net.card("enp6s0", "device").choose() == ("enp5s0", "")
    assert wake.address(wake.Tree(str(tmp_path)), "enp5s0") == MAC


def test_a_network_of_ipv6_alone_has_a_default_route_too(tmp_path: Path) -> None:
    zero = "0" * 32
    lines = [f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo",
             f"{zero} 00 {zero} 00 fe80{zero[4:]} 00000400 00000001 00000000 00000003 enp5s0"]  # fmt: skip
    net = Net(tmp_path).card("enp5s0", "device").file("proc/net/ipv6_route", "\n".join(lines))
    assert net.choose() == ("enp5s0", "")


def test_what_can_not_wake_is_refused_with_the_next_step(tmp_path: Path) -> None:
    net = Net(tmp_path)
    assert "No card has a default route" in net.choose()[1]
    assert "wlp6s0, which is wireless" in net.card("wlp6s0", "device", "wireless").route("wlp6s0").choose()[1]
    assert "host0, which the default route leaves by, is no hardware" in net.card("host0").route("host0", 1).choose()[1]
    said = net.choose("enp9s0")[1]
    assert said.startswith("enp9s0 is no network card of this box. Next: name one, gpubox_wake_on_lan_card: enp3s0")


@pytest.mark.parametrize("link", [None, "/lib/systemd/network/99-default.link"])
def test_a_card_with_the_shipped_link_file_gets_its_own_which_repeats_it(tmp_path: Path, link: str | None) -> None:
    """Debian 12 and Ubuntu 22.04 say /lib. Without udev's word, it is what every systemd ships."""
    net = Net(tmp_path).card("enp5s0", "device", link=link).file("lib/systemd/network/99-default.link", DEFAULT_LINK)
    path, content = net.keeper()
    assert path == "/etc/systemd/network/50-gpubox-wake.link"
    assert content.splitlines()[1:] == [
        "[Match]",
        f"MACAddress={MAC}",
        "Type=ether",
        "",
        "[Link]",
        "NamePolicy=keep kernel database onboard slot path",
        "AlternativeNamesPolicy=database onboard slot path",
        "MACAddressPolicy=persistent",
        "WakeOnLan=magic",
    ]
    net.file(path[1:], content).card("enp5s0", "device", link=path)
    assert net.keeper() == (path, content.replace("/lib/", "/usr/lib/") if link else content), "and again the same"


def test_what_the_owner_added_to_the_shipped_one_is_repeated_too(tmp_path: Path) -> None:
    net = Net(tmp_path).card("enp5s0", "device", link="/usr/lib/systemd/network/99-default.link")
    folder = "systemd/network/99-default.link.d"
    net.file(f"etc/{folder}/20-more.conf", "[Match]\nOriginalName=*\n[Link]\n# policy\nMTUBytes=9000\nWakeOnLan=off\n")
    net.file(f"usr/lib/{folder}/20-more.conf", "[Link]\nMTUBytes=1\n")
    net.file(f"run/{folder}/10-a.conf", "[Link]\nGenericSegmentationOffload=no\n")
    lines = net.keeper()[1].splitlines()
    assert lines[-3:] == ["GenericSegmentationOffload=no", "MTUBytes=9000", "WakeOnLan=magic"]
    assert "WakeOnLan=off" not in lines


@pytest.mark.parametrize("link", ["/run/systemd/network/10-netplan-enp5s0.link", "/etc/systemd/network/10-lan.link"])
def test_a_link_file_that_somebody_made_gets_a_drop_in(tmp_path: Path, link: str) -> None:
    path, content = Net(tmp_path).card("enp5s0", "device", link=link).keeper()
    assert path == f"/etc/systemd/network/{Path(link).name}.d/50-gpubox-wake.conf"
    assert content.splitlines()[1:] == ["[Link]", "WakeOnLan=magic"]


def test_who_took_the_names_away_keeps_it_so(tmp_path: Path) -> None:
    net = Net(tmp_path).card("enp5s0", "device", link="")
    assert "NamePolicy" not in net.keeper()[1]
    without_udev = Net(tmp_path / "other").card("enp5s0", "device")
    without_udev.file("etc/systemd/network/99-default.link")
    assert without_udev.keeper()[1].splitlines()[-2:] == ["[Link]", "WakeOnLan=magic"]


@pytest.mark.parametrize(
    ("place", "profile", "says"),
    [
        ("run", "[connection]\nid=netplan-enp5s0\ntype=ethernet\ninterface-name=enp5s0\n[ethernet]\nwake-on-lan=0\n",
         "sudo netplan set ethernets.enp5s0.wakeonlan=true && sudo netplan apply"),
        ("etc", f"[connection]\nid=Wired 1\ntype=ethernet\n[ethernet]\nmac-address={MAC.upper()}\nwake-on-lan=2\n",
         "sudo nmcli connection modify 'Wired 1' 802-3-ethernet.wake-on-lan magic"),
        ("etc", "[connection]\nid=Wired 1\ntype=ethernet\n[ethernet]\nwake-on-lan=64\n", ""),
        ("etc", "[connection]\nid=Wired 1\ntype=ethernet\n[ethernet]\nwake-on-lan=32768\n", ""),
        ("etc", "[connection]\nid=Wired 1\ntype=ethernet\n", ""),
        ("etc", "[connection]\nid=x\ntype=802-3-ethernet\ninterface-name=eth7\n[802-3-ethernet]\nwake-on-lan=0\n", ""),
        ("etc", "[connection]\nid=x\ntype=wifi\n[wifi]\nssid=100%\n", ""),
        ("etc", "no profile at all", ""),
    ],
)  # fmt: skip
def test_a_profile_of_networkmanager_that_switches_it_off_is_told(
    tmp_path: Path, place: str, profile: str, says: str
) -> None:
    Net(tmp_path).file(f"{place}/NetworkManager/system-connections/a.nmconnection", profile)
    notes = wake.overrulers(wake.Tree(str(tmp_path)), "enp5s0", MAC)
    assert [note.partition("Next: ")[2] for note in notes] == ([says] if says else [])


def test_the_kernel_is_asked_as_ethtool_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No card of a test can wake, so the kernel's side is played: struct ethtool_wolinfo behind struct ifreq."""
    card = {"on": 0}

    def ioctl(_: int, request: int, ifreq: bytes) -> int:
        assert (request, len(ifreq), ifreq[:16].rstrip(b"\0")) == (0x8946, 40, b"enp5s0")
        memory = (ctypes.c_uint32 * 5).from_address(struct.unpack("16sP16x", ifreq)[1])
        if memory[0] == 6:
            card["on"] = memory[2]
        memory[1], memory[2] = 0x2F, card["on"]
        return 0

    monkeypatch.setattr(wake.fcntl, "ioctl", ioctl)
    assert wake.wakes("enp5s0") == (False, "")
    wake.ask("enp5s0", wake.SET_WAKE, wake.MAGIC)
    assert wake.wakes("enp5s0") == (True, "")


def test_a_card_that_knows_no_magic_packet_is_refused() -> None:
    tools.need_root()  # the driver tells nobody else
    assert "lo can't be woken by a magic packet, says its driver. Next: " in wake.wakes("lo")[1]


def test_the_line_for_the_laptop_sends_a_magic_packet() -> None:
    line = yaml.safe_load((ROLE / "vars/main.yml").read_text())["power_wake_line"]
    line = re.sub(r"\{\{.*?\}\}", MAC.replace(":", ""), line)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.bind(("127.0.0.1", 0))
        door.settimeout(10)
        line = line.replace("('255.255.255.255', 9)", str(door.getsockname()))
        subprocess.run(line, shell=True, check=True, executable="/bin/sh")
        assert door.recv(1000) == b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) * 16


# --- on a host -------------------------------------------------------------------------------------------------------

BOOK = """
- name: Power alone
  hosts: boxes
  gather_facts: false
  roles: [power] # it needs no other
"""
KERNEL = '''def ask(name: str, command: int = GET_WAKE, options: int = 0) -> tuple[int, int]:
    """The kernel of a test: it remembers."""
    if command == SET_WAKE:
        open("/var/lib/fake-wake", "w").write(str(options))
    return 0x2F, int(open("/var/lib/fake-wake").read())
'''
PERSISTENCED = """[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
"""


class Powered(Owner):
    """Somebody who runs the role power alone. That a card can wake is the test's own word."""

    def __init__(self, host: Box, place: Path) -> None:
        super().__init__(host, place)
        shutil.copytree(PLAYBOOKS, place / "playbooks", ignore=shutil.ignore_patterns("__pycache__"))
        self.book = place / "playbooks/power.yml"
        self.book.write_text(BOOK)
        module = place / "playbooks/roles/power/library/gpubox_wake.py"
        module.write_text(re.sub(r"^def ask\(.*?\n(?=\n\n)", KERNEL, module.read_text(), flags=re.M | re.S))

    def __call__(self, *words: str, fails: bool = False, **wishes: object) -> tuple[int, str]:
        """-> how many tasks changed something, and what was said."""
        done = self.run(self.book, *words, "--extra-vars", json.dumps(wishes))
        assert (done.returncode != 0) == fails, done.stdout[-6000:] + done.stderr
        found = re.search(r"changed=(\d+)", done.stdout)
        assert found is not None
        return int(found[1]), re.sub(r"\n +", "\n", done.stdout)

    def now(self) -> list[int]:
        return [int(line) // 1000 for line in self.host.run("cat /var/lib/fake-power/[01]/now").split()]

    def forget(self) -> None:
        """As a driver does that is loaded again."""
        self.host.run("for card in /var/lib/fake-power/*; do cp $card/default $card/now; done")


LINK = "/etc/systemd/network/50-gpubox-wake.link"


@pytest.mark.box
@pytest.mark.slow
def test_limits_and_the_card_that_wakes_are_kept_on_a_host(
    a_host: Callable[..., Box],  # noqa: F811
    tmp_path: Path,
) -> None:
    owner = Powered(a_host(), tmp_path)
    host = owner.host
    host.run("systemctl mask suspend.target hibernate.target")  # as the role base leaves them
    # Before there is a driver: all is laid out, nothing fails, and nothing runs.
    assert owner("--check", gpubox_psu_watts=1000)[0] > 0
    assert "No NVIDIA driver is loaded. The limits are set as soon as" in owner(gpubox_psu_watts=1000)[1]
    assert owner(gpubox_psu_watts=1000)[0] == 0
    host.run('systemctl start gpubox-power.service; test -z "$(systemctl --failed --no-legend)"')
    # With one, and a card that can wake: set, read back, and told truly by a check.
    _has_a_driver(host, tmp_path)
    name, mac = _has_a_card(host)
    wishes = {"gpubox_psu_watts": 1000, "gpubox_wake_on_lan": True, "power_root": "/tree"}
    assert (owner("--check", **wishes)[0], owner.now()) == (4, [350, 350])
    changed, said = owner(**wishes)
    assert (changed, owner.now(), host.run("cat /var/lib/fake-wake")) == (4, [275, 275], "32")
    assert "275 W, 79 % of its 350 W, with 250 W for the rest, into 80 % of 1000 W (was 350 W)" in said
    assert f"wakeonlan {mac}\n" in said
    assert f"fromhex('ff' * 6 + '{mac.replace(':', '')}' * 16), ('255.255.255.255', 9))\"\n" in said, "in one line"
    assert owner(**wishes)[0] == 0
    assert owner("--check", **wishes)[0] == 0
    # systemd's own parsers have nothing to say about what was written.
    found = host.run(f"SYSTEMD_LOG_LEVEL=debug udevadm test-builtin net_setup_link /sys/class/net/{name} 2>&1")
    assert f"ID_NET_LINK_FILE={LINK}" in found
    assert not re.search(rf"{LINK}:\d+: ", found)
    host.run("udevadm verify /etc/udev/rules.d/60-gpubox-power.rules")
    _a_driver_comes_back(owner)
    # What can't be is refused with its numbers, and nothing is set; a card that does not obey fails the service.
    assert "80 % of a supply of 500 W is 400 W" in owner(gpubox_psu_watts=500, fails=True)[1].replace("\n", " ")
    assert owner.now() == [275, 275]
    owner.forget()
    host.run("touch /var/lib/fake-power/1/stubborn")
    assert host.ssh("systemctl start gpubox-power.service").returncode == 1
    assert "was told 275 W, and reads 350 W" in host.run("journalctl --unit=gpubox-power.service")
    host.run("rm /var/lib/fake-power/1/stubborn; systemctl start gpubox-power.service")
    # No longer wished: back to the cards' own limits, and nothing of it stays.
    assert (owner()[0], owner.now()) == (4, [350, 350])
    assert owner()[0] == 0
    assert host.run(f"ls /usr/local/sbin /etc/systemd/system {LINK} 2>/dev/null | grep gpubox || true") == ""


def _has_a_driver(host: Box, place: Path) -> None:
    host.put(library() / "libnvidia-ml.so.1", "/usr/lib/x86_64-linux-gnu/")
    host.put(cards(place / "cards", (100, 350, 400), (100, 350, 400)), "/var/lib/fake-power")
    host.run("cat >/etc/systemd/system/nvidia-persistenced.service", text=PERSISTENCED)
    host.run("echo 'f /dev/nvidiactl' >/etc/tmpfiles.d/fake.conf; systemd-tmpfiles --create fake.conf")
    host.run("systemctl daemon-reload")


def _has_a_card(host: Box) -> tuple[str, str]:
    """-> its name and address. A host's own is no hardware, so its place among the files is a tree."""
    host.run("apt-get install --yes --quiet --no-install-recommends udev")
    name = host.run("cat /proc/net/route").splitlines()[1].split()[0]
    host.run(
        f"mkdir -p /tree/sys/class/net/{name}/device /tree/proc/net /tree/usr/lib/systemd/network; cd /tree; "
        f"cp /proc/net/route proc/net; cp /usr/lib/systemd/network/99* usr/lib/systemd/network; "
        f"cp /sys/class/net/{name}/address sys/class/net/{name}; echo 0 >/var/lib/fake-wake"
    )
    return name, host.run(f"cat /sys/class/net/{name}/address").strip()


def _a_driver_comes_back(owner: Powered) -> None:
    """nvidia-persistenced starts, starts again; udev calls, for eight cards; the computer starts."""
    rule = owner.host.run("cat /etc/udev/rules.d/60-gpubox-power.rules")
    called = re.findall(r'RUN\+="(.*?)"', rule)[0]
    persistenced = "nvidia-persistenced.service"
    for command in (f"systemctl start {persistenced}", f"systemctl restart {persistenced}", f"{called}; " * 8):
        owner.forget()
        owner.host.run(command)
        tools.wait_until(lambda: owner.now() == [275, 275])
    owner.forget()
    owner.host.reboot()
    tools.wait_until(lambda: owner.now() == [275, 275])
    assert owner.host.run("systemctl --failed --no-legend") == ""
