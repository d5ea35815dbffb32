"""The driver: what apt is told, one transaction and the way back, Secure Boot; and, on hosts (`box`), all of it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import hosts
import pytest
from bed import box
from bed.archive import Archive
from bed.runs import Run
from hosts import a_host  # noqa: F401
from machines import CERTIFICATE, Machine, gpubox_decision
from test_playbooks import PLAYBOOKS, Owner, ansible, module
from test_remove import differences, inventory, remove

plan = gpubox_decision.plan
transaction, mok, key = module("gpubox_transaction"), module("gpubox_mok"), module("gpubox_key")
NEXT_BOOT = PLAYBOOKS / "roles/nvidia_driver/files/next-boot"
Build = Callable[[Machine], Machine]

# --- what apt is told ------------------------------------------------------------------------------------------------

NVIDIA = "https://developer.download.nvidia.com/compute/cuda/repos"
OLD_KEY, NEW_KEY = "EB693B3035CD5710E231E123A4B469963BF863CC", "02182E60104FCDC26EAE1B8597A5D4CB8793F200"
DEBIAN = "Types: deb deb-src\nURIs: https://mirror.example/debian\nSuites: {0} {0}-updates\nComponents: main\n" \
    "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"  # fmt: skip
TOOLKITS = {"cuda": ["13.0"]}


class Told(NamedTuple):
    name: str
    system: str
    build: Build
    wishes: dict[str, Any]
    repository: str  # its URL; "": none of ours
    fingerprint: str = ""
    components: tuple[str, ...] = ()  # the rows of the file but its head, paragraphs after one another
    pins: tuple[tuple[str, int], ...] = ()  # (pin, priority) in their order


def debian(machine: Machine) -> Machine:
    return machine.gpu("2204").source("sources.list.d/debian.sources", DEBIAN.format(machine.codename))


def paragraphs(suites: str, components: str, url: str = "https://mirror.example/debian", *more: str) -> tuple[str, ...]:
    known = more or ("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg",)
    return tuple(
        row
        for suite in suites.split()
        for row in ("Types: deb", f"URIs: {url}", f"Suites: {suite}", f"Components: {components}", *known)
    )


def by(branch: int) -> tuple[tuple[str, int], ...]:
    return ((f"version {branch}.*", 1001), ("release l=NVIDIA CUDA", 90))


NOT_NVIDIA = (("release l=NVIDIA CUDA", -1), ("release l=NVIDIA CUDA", 100))
UBUNTU_FIRST = (("release o=Ubuntu", 100),)
OURS = "sources.list.d/gpubox-cuda.sources"

TOLD = [
    Told("22.04, signed", "ubuntu-22.04", lambda m: m.gpu("2204"), {}, ""),
    Told("24.04, signed", "ubuntu-24.04", lambda m: m.gpu("2204"), {}, ""),
    Told("26.04, signed", "ubuntu-26.04", lambda m: m.gpu("2204"), {}, ""),
    Told("24.04, signed, Secure Boot", "ubuntu-24.04", lambda m: m.gpu("2204").secure_boot(True), {}, ""),
    Told("24.04, built here", "ubuntu-24.04", lambda m: m.gpu("2204"), {"driver_source": "ubuntu-dkms"}, ""),
    Told("24.04, mixed cards", "ubuntu-24.04", lambda m: m.gpu("2204").gpu("1b06"), {}, ""),
    Told("24.04, with CUDA", "ubuntu-24.04", lambda m: m.gpu("2204"), TOOLKITS,
         f"{NVIDIA}/ubuntu2404/x86_64/", OLD_KEY, (), NOT_NVIDIA),
    Told("24.04, arm64, with CUDA", "ubuntu-24.04",
         lambda m: m.package("dpkg", "1", architecture="arm64").gpu("2e12"), TOOLKITS,
         f"{NVIDIA}/ubuntu2404/sbsa/", OLD_KEY, (), NOT_NVIDIA),
    Told("22.04, NVIDIA's", "ubuntu-22.04", lambda m: m.gpu("2204"), {"driver_source": "nvidia"},
         f"{NVIDIA}/ubuntu2204/x86_64/", OLD_KEY, (), (*UBUNTU_FIRST, *by(580))),
    Told("26.04, NVIDIA's, 1080 Ti", "ubuntu-26.04", lambda m: m.gpu("1b06"), {},
         f"{NVIDIA}/ubuntu2604/x86_64/", OLD_KEY, (), (*UBUNTU_FIRST, *by(580))),
    Told("Debian 12", "debian-12", debian, {}, f"{NVIDIA}/debian12/x86_64/", OLD_KEY,
         paragraphs("bookworm bookworm-updates", "contrib"), by(580)),
    Told("Debian 13", "debian-13", debian, {}, f"{NVIDIA}/debian13/x86_64/", NEW_KEY,
         paragraphs("trixie trixie-updates", "contrib"), by(580)),
    Told("Debian 13, 595 wished", "debian-13", debian, {"driver_branch": "595"}, f"{NVIDIA}/debian13/x86_64/", NEW_KEY,
         paragraphs("trixie trixie-updates", "contrib"), by(595)),
    Told("Debian 13, Secure Boot", "debian-13", lambda m: debian(m).secure_boot(True), {},
         f"{NVIDIA}/debian13/x86_64/", NEW_KEY, paragraphs("trixie trixie-updates", "contrib"), by(580)),
    Told("Debian 12's own", "debian-12", debian, {"driver_source": "debian"}, "", "",
         paragraphs("bookworm bookworm-updates", "contrib non-free non-free-firmware")),
    Told("Debian 12's own, with CUDA", "debian-12", debian, {"driver_source": "debian", "cuda": ["12.9"]},
         f"{NVIDIA}/debian12/x86_64/", OLD_KEY,
         paragraphs("bookworm bookworm-updates", "contrib non-free non-free-firmware"), NOT_NVIDIA),
    Told("no GPU, with CUDA", "debian-12", lambda m: m, TOOLKITS, f"{NVIDIA}/debian12/x86_64/", OLD_KEY, (),
         NOT_NVIDIA),
    Told("the owner's driver", "debian-12", debian, {"driver_source": "none"}, ""),
    Told("a mirror", "debian-12", debian, {"nvidia_repository_url": "http://box.example/cuda"},
         "http://box.example/cuda/", OLD_KEY, paragraphs("bookworm bookworm-updates", "contrib"), by(580)),
    Told("a mirror with a key of its own", "debian-12", debian,
         {"nvidia_repository_url": "http://box.example/cuda", "nvidia_key_fingerprints": ["AB"]},
         "http://box.example/cuda/", "AB", paragraphs("bookworm bookworm-updates", "contrib"), by(580)),
    Told("one line, with options", "debian-12", lambda m: m.gpu("2204").source("sources.list",
         "deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://d.example/debian/ bookworm main non-free\n"),
         {"driver_source": "debian"}, "", "", paragraphs("bookworm", "contrib non-free-firmware",
         "http://d.example/debian/", "Architectures: amd64", "Signed-By: /k/debian-archive-keyring.gpg")),
    Told("all components are there", "debian-12", lambda m: m.gpu("2204").source("sources.list",
         "deb http://d.example/debian bookworm main contrib\ndeb http://d.example/debian/ bookworm non-free "
         "non-free-firmware\n"), {"driver_source": "debian"}, ""),
    Told("others' sources stay alone", "debian-12", lambda m: debian(m).source("sources.list.d/vpn.list",
         "deb [signed-by=/k/vpn.gpg] https://vpn.example/debian bookworm main\n"), {}, f"{NVIDIA}/debian12/x86_64/",
         OLD_KEY, paragraphs("bookworm bookworm-updates", "contrib"), by(580)),
    Told("a mirror that lists say is Debian's", "debian-12", lambda m: m.gpu("2204").source("sources.list",
         "deb [signed-by=/k/firm.gpg] http://firm.example/a_b bookworm main\n").file(
         "var/lib/apt/lists/firm.example_a%5fb_dists_bookworm_InRelease", "Components: main contrib non-free\n"),
         {}, f"{NVIDIA}/debian12/x86_64/", OLD_KEY,
         paragraphs("bookworm", "contrib", "http://firm.example/a_b", "Signed-By: /k/firm.gpg"), by(580)),
    Told("the owner's own source of it", "debian-12", lambda m: debian(m).source("sources.list.d/cuda.list",
         f"deb [signed-by=/k/cuda.gpg] {NVIDIA}/debian12/x86_64 /\n"), {}, "", OLD_KEY,
         paragraphs("bookworm bookworm-updates", "contrib"), by(580)),
    Told("the owner's own source, Ubuntu's driver", "ubuntu-24.04", lambda m: m.gpu("2204").nvidia_source(), {}, "", "",
         (), NOT_NVIDIA),
    Told("ours, and the driver works", "debian-12", lambda m: debian(m).source(OURS, f"Types: deb\nURIs: {NVIDIA}"
         "/debian12/x86_64/\nSuites: /\nSigned-By: /k\n").packages("580.95.05-1", "nvidia-driver-cuda",
         "nvidia-kernel-open-dkms").loaded("580.95.05"), {}, f"{NVIDIA}/debian12/x86_64/", OLD_KEY,
         paragraphs("bookworm bookworm-updates", "contrib"), by(580)),
    Told("Debian's driver works", "debian-12", lambda m: debian(m).packages("580.95.05-1", "nvidia-kernel-dkms").loaded(
         "580.95.05"), {}, "", "", paragraphs("bookworm bookworm-updates", "contrib non-free non-free-firmware")),
]  # fmt: skip


@pytest.mark.parametrize("row", TOLD, ids=[row.name for row in TOLD])
def test_apt_is_told(tmp_path: Path, row: Told) -> None:
    machine = Machine(tmp_path, row.system)
    told = plan(row.build(machine).facts(), row.wishes)["sources"]
    rows = ("Types: deb", f"URIs: {row.repository}", "Suites: /", "Signed-By: /etc/apt/keyrings/gpubox-cuda.asc")
    assert body(told["repository"]) == (rows if row.repository else ())
    assert told["fingerprints"] == ([row.fingerprint] if row.fingerprint else [])
    assert body(told["components"]) == row.components
    records = re.findall(r"Pin: (.*)\nPin-Priority: (.*)", told["preferences"])
    assert tuple((pin, int(priority)) for pin, priority in records) == row.pins
    assert all(text.startswith("# gpubox") and text.endswith("\n") for text in texts(told)), "each says whose it is"
    for name, text in zip(("components", "cuda"), (told["components"], told["repository"]), strict=True):
        machine.source(f"sources.list.d/gpubox-{name}.sources", text)
    again = plan(machine.facts(), row.wishes)["sources"]
    assert again == told, "with our files there, the same is told again"


def body(text: str) -> tuple[str, ...]:
    return tuple(row for row in text.splitlines() if row and not row.startswith("#"))


def texts(told: dict[str, Any]) -> list[str]:
    return [told[name] for name in ("repository", "components", "preferences") if told[name]]


def test_a_key_within_a_source_is_taken_over_whole(tmp_path: Path) -> None:
    inner = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDME\n -----END PGP PUBLIC KEY BLOCK-----\n"
    text = f"Types: deb\nURIs: http://d.example/debian\nSuites: bookworm\nComponents: main\n{inner}"
    machine = Machine(tmp_path, "debian-12").gpu("2204").source("sources.list.d/d.sources", text)
    machine.file("var/lib/apt/lists/d.example_debian_dists_bookworm_InRelease", "Components: main contrib\n")
    assert inner.partition("\n")[2] in plan(machine.facts())["sources"]["components"]


def test_a_debian_without_a_source_for_the_components_is_a_problem(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "debian-12").gpu("2204")
    machine.source("sources.list", "deb [signed-by=/k/vpn.gpg] https://vpn.example/debian bookworm main\n")
    assert [one["id"] for one in plan(machine.facts())["problems"]] == ["components-not-found"]


def test_a_build_that_failed_here_is_foreseen_until_version_or_kernel_change(tmp_path: Path) -> None:
    machine = debian(Machine(tmp_path, "debian-12")).source(OURS, f"Types: deb\nURIs: {NVIDIA}/x\nSuites: /\n")
    machine.offering("6.1.170-1", "linux-headers-amd64")

    def has(*versions: str) -> Machine:
        return machine.having("nvidia-driver-cuda", *versions).having("nvidia-kernel-open-dkms", *versions)

    has("595.71.05-1", "580.95.05-1")
    failed = {"source": "nvidia", "branch": 580, "version": "580.95.05-1", "kernel": "6.1.0-50-amd64", "why": "e: f"}
    failed["flavour"] = "open"
    chosen = plan(machine.facts())["driver"]
    assert (chosen["source"], chosen["branch"]) == ("nvidia", 580)
    assert [(way["source"], way["branch"]) for way in chosen["others"]] == [("nvidia", 595), ("debian", 535)]
    assert chosen["takes_others"]
    machine.file("etc/gpubox/failed-builds.json", json.dumps([failed]))
    foreseen = plan(machine.facts())
    assert (foreseen["driver"]["source"], foreseen["driver"]["branch"]) == ("nvidia", 595)
    assert (
        "Branch 580 (580.95.05-1, open modules) did not build here for the kernel 6.1.0-50-amd64: e: f."
        in foreseen["driver"]["reason"]
    )
    wished = plan(machine.facts(), {"driver_branch": "580", "driver_source": "nvidia"})
    assert [one["id"] for one in wished["problems"]] == ["driver-does-not-build"]
    failed["flavour"] = "proprietary"
    machine.file("etc/gpubox/failed-builds.json", json.dumps([failed]))
    assert plan(machine.facts())["driver"]["branch"] == 580, "the others' build tells nothing of these"
    failed["flavour"] = "open"
    machine.file("etc/gpubox/failed-builds.json", json.dumps([failed]))
    newer = plan(has("595.71.05-1", "580.126.09-1", "580.95.05-1").facts())
    assert newer["driver"]["branch"] == 580
    has("595.71.05-1", "580.95.05-1").kernel("6.1.0-51-amd64").no_headers("6.1.0-50-amd64")
    assert plan(machine.facts())["driver"]["branch"] == 580


# --- one transaction -------------------------------------------------------------------------------------------------

SIMULATED = """The following packages will be REMOVED:
  nvidia-kernel-dkms
The following packages will be DOWNGRADED:
  libcuda1
Inst libcuda1 [595.71.05-1] (580.95.05-1 NVIDIA CUDA [all])
Inst nvidia-kernel-open-dkms (580.95.05-1 NVIDIA CUDA [all]) []
Remv nvidia-kernel-dkms [535.261.03-1]
Conf libcuda1 (580.95.05-1 NVIDIA CUDA [all])
"""


class Apt:
    """Answers as apt and dpkg would, and remembers what it was asked."""

    def __init__(self, simulated: str = "", installed: str = "", offers: str = "580.95.05-1") -> None:
        self.simulated, self.installed, self.offers, self.asked = simulated, installed, offers, list[tuple[str, ...]]()

    def __call__(self, *words: str) -> tuple[int, str]:
        self.asked.append(words)
        if words[0] == "dpkg-query":
            return 0, self.installed
        if words[:2] == ("apt-cache", "policy"):
            return 0, "".join(f"{name}:\n  Installed: (none)\n  Candidate: {self.offers}\n" for name in words[2:])
        return 0, self.simulated if "--simulate" in words else ""

    def ends(self, **asked: Any) -> dict[str, Any]:
        wanted = {"install": [], "optional": [], "remove": [], "branch": 580, "update": False, **asked}
        made = transaction.Transaction(self, wanted)
        ended, _ = made.simulate(may_update=True)
        found: dict[str, Any] = ended or made.ended("possible")
        return found


def test_what_apt_would_do_is_read_and_driver_packages_may_go_down() -> None:
    apt = Apt(SIMULATED, "libcuda1 amd64 installed 595.71.05-1\nnvidia-kernel-dkms amd64 installed 535.261.03-1\n")
    found = apt.ends(install=["nvidia-kernel-open-dkms", "libcuda1"], remove=["nvidia-kernel-dkms", "not-there"])
    assert (found["outcome"], found["version"]) == ("possible", "580.95.05-1")
    assert found["installs"] == ["libcuda1", "nvidia-kernel-open-dkms"]
    assert found["removes"] == ["nvidia-kernel-dkms"]
    assert apt.asked[-1][-4:] == ("install", "nvidia-kernel-open-dkms", "libcuda1", "nvidia-kernel-dkms-")


@pytest.mark.parametrize("name", ["ubuntu-desktop", "nvidia-container-toolkit", "nvidia-cuda-toolkit", "python3-torch"])
def test_packages_of_others_are_not_removed_with_it(name: str) -> None:
    found = Apt(SIMULATED + f"Remv {name} [1]\n").ends(install=["nvidia-kernel-open-dkms"])
    assert (found["outcome"], found["why"]) == ("refused", f"apt would remove or downgrade {name}.")


def test_another_branch_than_the_planned_one_does_not_come() -> None:
    found = Apt(SIMULATED).ends(install=["nvidia-kernel-open-dkms"], branch=595)
    assert found["outcome"] == "missing"
    assert "libcuda1 580.95.05-1" in found["why"]
    assert Apt(SIMULATED).ends(install=["nvidia-kernel-open-dkms"], branch=0)["outcome"] == "possible"


def test_what_is_installed_in_its_branch_is_not_upgraded_in_passing() -> None:
    apt = Apt(SIMULATED, "nvidia-driver-cuda amd64 installed 580.65.06-1\nmokutil amd64 installed 0.6\n")
    assert apt.ends(install=["nvidia-driver-cuda", "mokutil"])["outcome"] == "nothing"
    assert not any("--simulate" in words for words in apt.asked)
    assert apt.ends(install=["nvidia-driver-cuda"], branch=595)["outcome"] == "missing"


def test_a_kernel_that_is_asked_for_comes_in_its_newest_version_with_its_headers() -> None:
    """A driver of the newest kernel, and that kernel without the rest of its drivers, would start next."""
    here = "linux-image-amd64 amd64 installed 6.12.96-1\nlinux-headers-amd64 amd64 installed 6.12.96-1\n"
    here += "nvidia-driver-cuda amd64 installed 580.65.06-1\n"
    install = ["linux-image-amd64", "linux-headers-amd64", "nvidia-driver-cuda"]
    apt = Apt(SIMULATED, here, offers="6.12.107-1")
    assert apt.ends(install=install)["outcome"] == "possible"
    assert apt.asked[-1][-3:] == ("install", "linux-image-amd64", "linux-headers-amd64")
    assert Apt(SIMULATED, here, offers="6.12.107-1").ends(install=install[1:])["outcome"] == "nothing"
    assert Apt(SIMULATED, here, offers="6.12.96-1").ends(install=install)["outcome"] == "nothing"


class Dpkg(Apt):
    """Takes away what it is told to."""

    def __call__(self, *words: str) -> tuple[int, str]:
        gone = {word[:-1] for word in words if word.endswith("-")}
        self.installed = "".join(f"{row}\n" for row in self.installed.splitlines() if row.split()[0] not in gone)
        return super().__call__(*words)


def test_a_kernel_that_was_upgraded_stays_where_the_driver_goes_again() -> None:
    """Its older version is in no archive any more, and nothing could be put back to it."""
    before = {"linux-image-amd64": ("installed", "6.12.96-1"), "dkms": ("installed", "3")}
    rows = ("linux-image-amd64 amd64 installed 6.12.107-1", "linux-image-6.12.107-amd64 amd64 installed 6.12.107-1")
    rows += ("dkms amd64 installed 3", "nvidia-kernel-dkms amd64 installed 580.95.05-1")
    apt = Dpkg(installed="".join(f"{row}\n" for row in rows))
    asked = {"install": [], "optional": [], "remove": [], "branch": 0, "update": False}
    assert transaction.Transaction(apt, asked).go_back(before, set()) == ""
    assert [words[-1] for words in apt.asked if "install" in words] == ["nvidia-kernel-dkms-"]
    apt = Dpkg(installed="".join(f"{row}\n" for row in rows))
    assert transaction.Transaction(apt, asked).go_back({"dkms": before["dkms"]}, set()) == "", "all of it was new"
    assert [row.split()[0] for row in apt.installed.splitlines()] == ["dkms"]


def test_lists_are_read_anew_where_a_package_is_unknown_and_a_check_only_says_so() -> None:
    apt = Apt(offers="(none)")
    assert apt.ends(install=["nvidia-smi"])["why"] == "apt has no nvidia-smi."
    assert ("apt-get", "update", "--quiet", "-o", "DPkg::Lock::Timeout=300") in apt.asked
    asked = {"install": ["nvidia-smi"], "optional": [], "remove": [], "branch": 0, "update": True}
    ended, _ = transaction.Transaction(apt := Apt(offers="(none)"), asked).simulate(may_update=False)
    assert ended["outcome"] == "unknown"
    assert not any("update" in words for words in apt.asked)


LOGS = {
    "dkms 3.0": "DKMS make.log for nvidia-current-550.163.01 for kernel 6.12.107+deb13-amd64 (x86_64)\n",
    "dkms 3.1": "DKMS (dkms-3.2.2) make.log for nvidia-current/550.163.01 for kernel 6.12.107+deb13-amd64 (x86_64)\n",
}


@pytest.mark.parametrize("head", LOGS.values(), ids=LOGS)
def test_a_log_of_a_build_says_what_and_why(head: str) -> None:
    module, kernel = transaction.built_for(head)
    assert (module[:14], kernel) == ("nvidia-current", "6.12.107+deb13-amd64")
    log = f"{head}make: Entering\nnv.c:7:9: error: too few arguments\nmake[2]: *** [x] Error 1\nmake: *** [y]\n"
    assert transaction.telling(log) == ["nv.c:7:9: error: too few arguments"]
    assert transaction.telling(f"{head}make: *** no rule\n") == ["make: *** no rule"]
    assert transaction.telling("one\n\ntwo\n") == ["one", "two"]


# --- Secure Boot -----------------------------------------------------------------------------------------------------


class Firmware:
    """mokutil, as its source says it answers."""

    def __init__(self, root: Path, keys: bool = True) -> None:
        self.root, self.state, self.asked = root, "is not enrolled", list[tuple[str, ...]]()
        self.typed = ""
        self.path = root / "etc/gpubox/secure-boot.json"
        self.boots("one")
        if keys:
            self.makes_key()

    def makes_key(self) -> None:
        (self.root / "var/lib/dkms").mkdir(parents=True, exist_ok=True)
        (self.root / "var/lib/dkms/mok.pub").write_bytes(CERTIFICATE)

    def boots(self, name: str) -> None:
        boot = self.root / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True, exist_ok=True)
        boot.write_text(f"{name}\n")

    def __call__(self, *words: str, text: str = "") -> tuple[int, str]:
        self.asked.append(words)
        if words == ("dkms", "generate_mok"):
            self.makes_key()
        if words[:2] == ("mokutil", "--test-key"):
            return int("not" not in self.state), f"{words[2]} {self.state}\n"
        if words[:2] == ("mokutil", "--import"):
            assert Path(words[4]).read_text() == "$6$hash\n"
            assert Path(words[4]).stat().st_mode & 0o777 == 0o600
            self.state = "is already in the enrollment request"
        if words[:2] == ("mokutil", "--generate-hash"):
            self.typed = text
            return 0, "input password: \ninput password again: \n$6$hash\n"
        return 0, ""

    def settle(self, check: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = mok.Enrolment(self, str(self.path), str(self.root), lambda: 7.0).settle(check)
        return found


def test_a_key_is_asked_for_once_and_what_became_of_it_is_recognised(tmp_path: Path) -> None:
    firmware = Firmware(tmp_path, keys=False)
    assert firmware.settle(check=True)["changed"]
    assert firmware.asked == [], "a check makes no key"
    first = firmware.settle()
    assert (first["state"], first["missed"], first["changed"]) == ("pending", False, True)
    code, again = firmware.typed.split()
    assert code == again
    assert re.fullmatch(r"[bcdefghjkprstuvx]{10}", code)
    assert not any(code in word for words in firmware.asked for word in words), "no list of processes shows it"
    assert f"type the code {code}; then Reboot" in " ".join(first["instructions"])
    assert code not in firmware.path.read_text(), "it is said once, and kept nowhere"
    waiting = firmware.settle()
    assert (waiting["state"], waiting["changed"]) == ("pending", False)
    assert "revoke-import" in waiting["instructions"][-1]

    firmware.boots("two")
    firmware.state = "is not enrolled"
    missed = firmware.settle()
    assert (missed["state"], missed["missed"], missed["changed"]) == ("pending", True, True)
    assert missed["instructions"] != first["instructions"], "another code"

    firmware.boots("three")
    firmware.state = "is already enrolled"
    done = firmware.settle()
    assert (done["state"], done["changed"], done["instructions"]) == ("enrolled", True, [])
    assert json.loads(firmware.path.read_text())["state"] == "enrolled"
    assert not firmware.settle()["changed"]
    assert not firmware.settle(check=True)["changed"]


def test_a_firmware_that_refuses_is_said_with_the_other_way(tmp_path: Path) -> None:
    firmware = Firmware(tmp_path)
    firmware.state = "EFI variables are not supported on this system"
    found = firmware.settle()
    assert (found["state"], found["changed"]) == ("impossible", False)
    assert "switch Secure Boot off" in found["instructions"][-1]
    assert not firmware.path.exists()


@pytest.mark.long
def test_a_key_that_waits_for_a_person_ends_the_run_before_the_driver_is_verified(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(ENDS)
    said = {"nvidia_driver_for_a_person": ["1. Connect a screen."], "restart_reasons": ["something else asks for one"]}
    command = ("ansible-playbook", "-i", "localhost,", "play.yml", "--extra-vars", json.dumps(said))
    places = {"ANSIBLE_ROLES_PATH": str(PLAYBOOKS / "roles"), "ANSIBLE_LIBRARY": str(PLAYBOOKS / "library")}
    done = ansible(*command, folder=tmp_path, **places)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1. Connect a screen." in done.stdout
    assert "verify :" not in done.stdout
    assert "restart : Read why" not in done.stdout


ENDS = """---
- name: The end of setup.yml
  hosts: all
  connection: local
  gather_facts: false
  vars: {ansible_python_interpreter: /usr/bin/python3}
  roles: [restart, verify]
"""


@pytest.mark.long
def test_only_what_belongs_to_an_installed_kernel_is_looked_at_for_nouveau(tmp_path: Path) -> None:
    """What a purged kernel or a person left in /boot is rebuilt by nobody, and would ask for it with every run."""
    facts = Machine(tmp_path, "debian-13").file("boot/initrd.img-6.1.0-1-amd64").kernel("6.12.9+deb13-amd64").facts()
    variables = f"@{PLAYBOOKS / 'roles/nvidia_driver/vars/main.yml'}"
    words = ("-m", "ansible.builtin.debug", "-a", "var=nvidia_driver_initramfs", "-e", variables)
    done = ansible("ansible", "localhost", *words, "-e", json.dumps({"preflight_facts": facts}), folder=tmp_path)
    assert re.findall(r"/boot/[^\"]*", done.stdout) == [
        "/boot/initrd.img-6.12.9+deb13-amd64",
        "/boot/initrd.img-6.12.107+deb13-amd64",
    ], done.stderr


# --- the next boot ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["kernel/nvidia-580/nvidia.ko", "updates/dkms/nvidia-current-open.ko.xz"])
def test_logins_are_told_of_a_restart_that_would_lose_the_gpu(tmp_path: Path, module: str) -> None:
    told = tmp_path / "run/motd.d/50-gpubox-next-boot"

    def look() -> int:
        return subprocess.run(("sh", str(NEXT_BOOT)), env={"ROOT": str(tmp_path), "PATH": PATH}, check=False).returncode

    assert look() == 0, "no kernel here, as in a container"
    machine = Machine(tmp_path, "debian-12").kernel("6.1.0-9-amd64")
    machine.file("lib/modules/6.1.0-50-amd64/updates/dkms/nvidia-current.ko.xz")
    assert look() == 0
    assert not told.exists()
    machine.kernel("6.1.0-100-amd64")
    assert look() == 1
    assert "the kernel 6.1.0-100-amd64 has no NVIDIA module" in told.read_text()
    machine.file("lib/modules/6.1.0-100-amd64/updates/dkms/nvidia-current-open-uvm.ko.xz")
    assert look() == 1
    machine.file(f"lib/modules/6.1.0-100-amd64/{module}")
    assert look() == 0
    assert not told.exists()


PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# --- the key ---------------------------------------------------------------------------------------------------------


def packet(tag: int, body: bytes) -> bytes:
    return bytes([0x80 | tag << 2 | 1]) + len(body).to_bytes(2, "big") + body


PUBLIC, SUB = b"\x04" + b"\0" * 4 + b"\x16one", b"\x04" + b"\0" * 4 + b"\x16two"
FINGERPRINTS = [hashlib.sha1(b"\x99\0\x09" + body).hexdigest().upper() for body in (PUBLIC, SUB)]


@pytest.mark.parametrize("armor", [True, False])
def test_a_key_is_known_by_its_fingerprint_with_or_without_armor(armor: bool) -> None:
    raw = packet(6, PUBLIC) + packet(13, b"NVIDIA") + packet(2, b"signature")
    content = key.armored(raw).encode() if armor else raw
    assert key.checked(content, [f"0x{FINGERPRINTS[0][:20]} {FINGERPRINTS[0][20:].lower()}"]) == FINGERPRINTS[:1]
    assert key.binary(key.armored(raw).encode()) == raw


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (packet(6, SUB), "its fingerprints are"),
        (packet(6, PUBLIC) + packet(14, SUB), "its fingerprints are"),
        (packet(6, PUBLIC) + packet(6, SUB), "its fingerprints are"),
        (packet(6, PUBLIC)[:-1], "cut off"),
        (packet(13, b"only a name"), "no public key"),
        (packet(6, b"\x03" + PUBLIC[1:]), "version 3"),
        (b"<html>404</html>", "not an OpenPGP key"),
        (b"", "no public key"),
    ],
)
def test_a_key_that_is_not_the_one_is_not_trusted(content: bytes, why: str) -> None:
    with pytest.raises(key.Unfit, match=why):
        key.checked(content, FINGERPRINTS[:1])
    assert key.checked(packet(6, PUBLIC) + packet(14, SUB), FINGERPRINTS) == FINGERPRINTS, "a subkey that is named"


# --- on hosts --------------------------------------------------------------------------------------------------------

KERNEL = "6.1.0-99-amd64"  # of no host: its headers are a stand-in, and dkms builds for it all the same
GOOD = "int nv(void) { return 0; }\n"
BROKEN = "int resize(int a, int b, int c);\nint nv(void) { return resize(1, 2); }\n"
DKMS = """PACKAGE_NAME="nvidia"
PACKAGE_VERSION="{version}"
BUILT_MODULE_NAME[0]="nvidia"
DEST_MODULE_LOCATION[0]="/updates/dkms"
MAKE[0]="make nvidia.ko"
CLEAN="true"
AUTOINSTALL="yes"
"""
UNIT = "[Service]\nExecStart=/usr/bin/nvidia-persistenced\n[Install]\nWantedBy=multi-user.target\n"
PLAY = """---
- name: The driver alone
  hosts: boxes
  gather_facts: false
  roles: [preflight, plan, nvidia_driver]
"""


def add_driver(archive: Archive, version: str, code: str) -> None:
    """What NVIDIA's repository for Debian has of one version: names and relations are theirs, the rest is ours."""
    upstream = version.partition("-")[0]
    source = f"/usr/src/nvidia-{upstream}"
    exact = f"(= {version})"
    archive.add("libcuda1", version)
    archive.add(
        "nvidia-persistenced",
        version,
        files={
            "/usr/lib/systemd/system/nvidia-persistenced.service": UNIT,
            "/usr/bin/nvidia-persistenced": "#!/bin/sh\n",
        },
    )
    archive.add(
        "nvidia-driver-cuda",
        version,
        depends=f"libcuda1 {exact}, nvidia-persistenced {exact}, nvidia-kernel-open-dkms {exact}",
        files={"/usr/bin/nvidia-smi": "#!/bin/sh\n"},
    )
    archive.add(
        "nvidia-kernel-open-dkms",
        version,
        depends="dkms",
        files={
            f"{source}/dkms.conf": DKMS.format(version=upstream),
            f"{source}/Makefile": "nvidia.ko: nvidia.c\n\tgcc -c -o $@ $<\n",
            f"{source}/nvidia.c": code,
        },
        scripts={
            "postinst": f'#!/bin/sh\nset -e\n[ "$1" != configure ] || '
            f'/usr/lib/dkms/common.postinst nvidia {upstream} /usr/share/nvidia "" "$2"\n',
            "prerm": f"#!/bin/sh\ndkms remove -m nvidia -v {upstream} --all || true\n",
        },
    )


class Driver:
    """A host, and who runs the three roles on it; wishes are variables of the owner's, without their gpubox_."""

    def __init__(self, host: box.Box, place: Path, playbooks: Path = PLAYBOOKS, **wishes: object) -> None:
        self.host, self.place, self.playbooks = host, place, playbooks
        self.wishes = {"driver_without_gpu": True, "free_gib": 1, **wishes}
        (place / "inventory.ini").write_text(host.inventory)
        (place / "play.yml").write_text(PLAY)

    def run(self, *words: str, **wishes: object) -> subprocess.CompletedProcess[str]:
        said = json.dumps({f"gpubox_{name}": value for name, value in {**self.wishes, **wishes}.items()})
        places = {"ROLES_PATH": self.playbooks / "roles", "LIBRARY": self.playbooks / "library"}
        config = {f"ANSIBLE_{name}": str(place) for name, place in places.items()}
        command = ("ansible-playbook", "-i", "inventory.ini", *words, "--extra-vars", said, "play.yml")
        return ansible(*command, folder=self.place, **config)

    def converge(self, *words: str, **wishes: object) -> tuple[int, str]:
        """-> how many tasks changed something, and what was said, on one line."""
        done = self.run(*words, **wishes)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        changed = int(re.findall(r"changed=(\d+)", done.stdout)[-1])
        return changed, " ".join(done.stdout.split())

    def installed(self, name: str) -> str:
        return self.host.ssh(f"dpkg-query --show --showformat='${{db:Status-Status}} ${{Version}}' {name}").stdout


class Mirror(Driver):
    """With stand-ins for NVIDIA's repository, which the host serves to itself, and a kernel that has only headers."""

    def __init__(self, host: box.Box, place: Path) -> None:
        self.archive = Archive(place / "nvidia", label="NVIDIA CUDA")
        super().__init__(
            host,
            place,
            nvidia_repository_url="http://127.0.0.1:8901",
            nvidia_key_url="file:///root/key.asc",
            nvidia_key_fingerprints=[self.archive.fingerprint],
        )
        self.archive.add("linux-headers-amd64", "6.1.900-1")
        kernel = f"mkdir -p /usr/lib/modules/{KERNEL}/build/include; touch /boot/vmlinuz-{KERNEL}"
        host.run(f"{kernel}; cat >/root/key.asc", text=self.archive.key)

    def publish(self) -> None:
        self.archive.publish()
        self.archive.serve(self.host)


@pytest.fixture(scope="module")
def driver(bed_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    hosts._need(box.TOOLS)
    with closing(box.Box(bed_run, "bookworm")) as host:
        host.run("apt-get install --yes --no-install-recommends dkms gcc make")  # once, and not in each way to a driver
        made = Mirror(host, tmp_path_factory.mktemp("driver"))
        add_driver(made.archive, "580.95.05-1", BROKEN)
        add_driver(made.archive, "595.71.05-1", GOOD)
        made.publish()
        yield made
        made.archive.remove()


@pytest.mark.box
def test_a_module_that_does_not_build_is_explained_and_another_branch_taken(driver: Mirror) -> None:
    before = driver.host.run("dpkg-query --show")
    ours = (
        "cd /etc; ls modprobe.d apt/apt.conf.d apt/preferences.d apt/sources.list.d modules-load.d | grep gpubox || :"
    )
    done = driver.run(nvidia_key_fingerprints=["0" * 40])
    assert done.returncode == 2
    assert "Stop all the same" in done.stdout
    assert done.stdout.count("0" * 40) > 1, "its reason is said again"
    assert driver.host.run(ours) == "", "nouveau stays, and apt is told nothing"
    changed, said = driver.converge("--check")
    assert changed > 0
    assert driver.host.run("dpkg-query --show") == before
    changed, said = driver.converge()
    assert "nvidia-580.95.05 does not build for the kernel 6.1.0-99-amd64: nvidia.c:2:" in said
    assert "too few arguments to function" in said
    assert "Now: your mirror of NVIDIA's repository, built here, branch 595." in said
    assert driver.installed("nvidia-kernel-open-dkms") == "installed 595.71.05-1"
    assert driver.host.run("dpkg --audit") == ""
    assert f"{KERNEL}/updates/dkms/nvidia.ko" in driver.host.run("find /usr/lib/modules -name 'nvidia.ko*'")
    assert driver.host.run("systemctl is-enabled nvidia-persistenced") == "enabled\n"
    driver.host.run("systemctl start nvidia-persistenced")
    assert driver.host.run("systemctl show --property=Result,ActiveState nvidia-persistenced").split() == [
        "Result=success",
        "ActiveState=inactive",
    ], "no module is loaded: it is left out, and does not fail"
    receipt = json.loads(driver.host.run("cat /etc/gpubox/receipt.json"))
    assert {"nvidia-kernel-open-dkms", "libcuda1", "/etc/apt/preferences.d/10-gpubox-nvidia"} <= {
        one["name"] for one in receipt["items"]
    }
    assert driver.converge()[0] == 0
    changed, said = driver.converge("--check")
    assert changed == 0
    assert "Branch 580 (580.95.05-1, open modules) did not build here for the kernel 6.1.0-99-amd64" in said


@pytest.mark.slow
@pytest.mark.box
def test_where_it_was_mended_the_branch_comes_and_its_pin_holds(driver: Mirror) -> None:
    """Another branch, downwards; and then one that does not build puts all back, and only offers."""
    add_driver(driver.archive, "580.126.09-1", GOOD)
    add_driver(driver.archive, "590.44.01-1", BROKEN)
    driver.publish()
    driver.host.run("apt-get update")
    driver.converge()
    assert driver.installed("nvidia-kernel-open-dkms") == "installed 580.126.09-1"
    assert driver.installed("libcuda1") == "installed 580.126.09-1"
    assert "580.126.09-1" in driver.host.run("apt-cache policy libcuda1 | grep Candidate")
    assert driver.converge()[0] == 0

    state = "dpkg-query --show; apt-mark showauto; cat /etc/apt/preferences.d/10-gpubox-nvidia"
    before = driver.host.run(state)
    done = driver.run(driver_source="mirror", driver_branch="590")
    said = " ".join(done.stdout.split())
    assert done.returncode == 2
    assert "nvidia-590.44.01 does not build" in said
    assert "leave source and branch to gpubox (auto), which has these ways: your mirror of NVIDIA's repository" in said
    assert driver.host.run(state) == before
    assert driver.host.run("dpkg --audit") == ""


@pytest.mark.box
def test_what_was_left_half_done_is_repaired_first(driver: Mirror) -> None:
    driver.host.ssh("dpkg --unpack /srv/stand-ins-8901/nvidia-kernel-open-dkms_590*.deb; dpkg --configure -a")
    assert "half-configured" in driver.installed("nvidia-kernel-open-dkms")
    driver.converge()
    assert driver.host.run("dpkg --audit") == ""
    assert driver.installed("nvidia-kernel-open-dkms") == "installed 580.126.09-1"


# --- Debian's own drivers, built -------------------------------------------------------------------------------------

HEADERS = "apt-get install --yes --no-install-recommends linux-headers-amd64 && touch /boot/vmlinuz-$(ls /lib/modules)"


@pytest.mark.slow
@pytest.mark.box
def test_the_driver_of_debian_12_builds_for_its_kernel(
    a_host: Callable[..., box.Box],  # noqa: F811
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """A host of the bed has no kernel of its own, so it gets Debian's headers, and a file where the kernel would be."""
    owner = Owner(a_host(suite="bookworm"), tmp_path)
    host, words = owner.host, ("--extra-vars", '{"gpubox_driver_source": "debian", "gpubox_driver_without_gpu": true}')
    host.run(f"apt-get update -qq; apt-get upgrade --quiet --yes; {HEADERS}")
    kernel, before = host.run("ls /lib/modules").strip(), inventory(host)
    assert owner.setup("--check", *words)["changed"] > 0
    began = time.monotonic()
    owner.setup(*words)
    version = host.run("dpkg-query --show --showformat='${Version}' nvidia-kernel-dkms")
    figure(
        f"setup.yml, first run with Debian's {version}, built for {kernel}: {time.monotonic() - began:.0f} s (bar 600)"
    )
    assert version.startswith("535.")
    assert host.run(f"ls /lib/modules/{kernel}/updates/dkms/nvidia-current.ko*")
    assert host.run("dpkg --audit; systemctl --failed --no-legend") == ""
    assert owner.setup(*words)["changed"] == 0
    assert owner.setup("--check", *words)["changed"] == 0

    remove(owner, "--extra-vars", "gpubox_remove_data=true")
    left = differences(before, inventory(host))  # accounts of packages, depmod's tables, lists of apt's
    assert [line for line in left if not re.match(r"[+-] (file|folder) ", line)] == []
    assert not any("nvidia" in line for line in left), left


@pytest.mark.slow
@pytest.mark.box
def test_the_driver_of_debian_13_is_foreseen_not_to_build_or_caught(
    a_host: Callable[..., box.Box],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Its open modules. Foreseen by the table; by a plan without it, caught, explained, repaired; then the others."""
    host = a_host(suite="trixie")
    host.run(HEADERS)
    kernel = host.run("ls /lib/modules").strip()
    wishes = {"driver_source": "debian", "driver_flavour": "open"}
    done = Driver(host, tmp_path, **wishes).run()
    said = " ".join(done.stdout.split())
    if done.returncode == 0:
        print(f"Debian's own driver builds for {kernel} now: the row in breakages.json can go")  # noqa: T201
        return
    assert f"does not build for the kernel {kernel}: the kernel's pci_resize_resource" in said

    shutil.copytree(PLAYBOOKS, tmp_path / "forgetful", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "forgetful/roles/plan/files/breakages.json"
    table.write_text(json.dumps({**json.loads(table.read_text()), "pairs": []}))
    before = host.run("dpkg-query --show; apt-mark showauto")
    done = Driver(host, tmp_path, tmp_path / "forgetful", **wishes).run()
    said = " ".join(done.stdout.split())
    assert done.returncode == 2
    assert re.search(
        rf"nvidia-current.open.550\.\S+ does not build for the kernel {re.escape(kernel)}: \S+pci.c:\d+", said
    )
    assert "The packages are as they were." in said
    assert host.run("dpkg-query --show; apt-mark showauto") == before
    assert host.run("dpkg --audit") == ""
    print(kernel, re.findall(r"nvidia-current.open.550\S+ does not build for[^\"]*", said)[:1])  # noqa: T201

    driver = Driver(host, tmp_path, driver_source="debian")
    said = driver.converge()[1]
    assert "Driver: debian 550." in said
    assert "proprietary modules" in said
    assert host.run(f"ls /lib/modules/{kernel}/updates/dkms/nvidia-current.ko*")
    assert driver.converge()[0] == 0
