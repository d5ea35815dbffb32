"""What a computer is, read from trees of files; and what of it gpubox refuses to touch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines import GIB, NOW, ROLES, Machine, gpubox_facts, gpubox_refusals

Build = Callable[[Machine], Machine]
refusals = gpubox_refusals.refusals
MODULE = ROLES / "preflight/library/gpubox_facts.py"


def ids(facts: dict[str, Any], **wishes: Any) -> list[str]:
    return [refusal["id"] for refusal in refusals(facts, wishes)]


# --- facts -----------------------------------------------------------------------------------------------------------


def test_an_empty_root_has_no_facts_and_no_failure(tmp_path: Path) -> None:
    facts = gpubox_facts.gather(str(tmp_path), NOW)
    assert facts["gpus"] == []
    assert facts["system"]["id"] == ""
    assert facts["secure_boot"]["state"] == "off"
    assert facts["installs"]["packages"] == {}
    json.dumps(facts)


def test_a_desktop_with_a_card_is_read_as_it_is(tmp_path: Path) -> None:
    card = Machine(tmp_path).gpu("2204", "nouveau", boot_vga=True, lanes=(8, 16)).facts()["gpus"][0]
    assert card["device"] == "2204"
    assert card["class"] == "030000"
    assert card["subsystem"] == "1458:403b"
    assert card["driver"] == "nouveau"
    assert card["boot_vga"] is True
    assert card["external"] is False
    assert card["link"]["current_link_width"] == "8"
    assert card["link"]["max_link_speed"] == "16.0 GT/s PCIe"


def test_a_card_without_a_driver_or_boot_flag_says_so_with_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path).gpu("2335", kind="030200")
    next(tmp_path.glob("sys/devices/*/*/*/boot_vga")).unlink()
    card = machine.facts()["gpus"][0]
    assert (card["driver"], card["boot_vga"]) == (None, None)


def test_cards_of_others_are_kept_apart_and_audio_is_no_card(tmp_path: Path) -> None:
    machine = Machine(tmp_path).gpu("249c", kind="030000").gpu("9a60", vendor="8086", boot_vga=True)
    facts = machine.gpu("228b", kind="040300").facts()
    assert [card["device"] for card in facts["gpus"]] == ["249c"]
    assert [card["vendor"] for card in facts["other_gpus"]] == ["8086"]


def test_an_nvswitch_is_seen(tmp_path: Path) -> None:
    assert Machine(tmp_path).gpu("22a3", kind="068000").facts()["nvswitch"] is True


def test_a_card_behind_thunderbolt_is_external(tmp_path: Path) -> None:
    facts = Machine(tmp_path).gpu("2204", external=True).gpu("2684").thunderbolt(authorised=False).facts()
    assert [card["external"] for card in facts["gpus"]] == [True, False]
    assert facts["thunderbolt"]["security"] == "user"
    assert facts["thunderbolt"]["iommu_protection"] is True
    assert facts["thunderbolt"]["devices"] == [
        {"name": "Core X", "vendor": "Razer", "uuid": "d3030000-0000", "authorised": False}
    ]


@pytest.mark.parametrize(
    ("build", "firmware", "state", "validation"),
    [
        (lambda m: m, "bios", "off", False),
        (lambda m: m.secure_boot(True), "uefi", "on", True),
        (lambda m: m.secure_boot(False), "uefi", "off", False),
        (lambda m: m.secure_boot(None), "uefi", "unknown", True),
    ],
    ids=["bios", "on", "off", "unreadable"],
)
def test_secure_boot_is_the_fifth_byte(
    tmp_path: Path, build: Build, firmware: str, state: str, validation: bool
) -> None:
    found = build(Machine(tmp_path)).facts()["secure_boot"]
    assert (found["firmware"], found["state"], found["validation"]) == (firmware, state, validation)


def test_validation_that_the_boot_loader_switched_off_is_off(tmp_path: Path) -> None:
    machine = Machine(tmp_path).secure_boot(True)
    machine.file("sys/firmware/efi/efivars/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23", b"\x06\0\0\0\x01")
    assert machine.facts()["secure_boot"]["validation"] is False


@pytest.mark.parametrize(
    ("build", "key", "enrolled", "pending"),
    [
        (lambda m: m.secure_boot(True), None, False, False),
        (lambda m: m.secure_boot(True, key=True), "/var/lib/dkms/mok.pub", False, False),
        (lambda m: m.secure_boot(True, key=True, pending=True), "/var/lib/dkms/mok.pub", False, True),
        (lambda m: m.secure_boot(True, key=True, enrolled=True), "/var/lib/dkms/mok.pub", True, False),
    ],
    ids=["no key", "a key", "pending", "enrolled"],
)
def test_the_machines_key_is_looked_up_in_the_firmwares_list(
    tmp_path: Path, build: Build, key: str | None, enrolled: bool, pending: bool
) -> None:
    mok = build(Machine(tmp_path)).facts()["secure_boot"]["mok"]
    assert mok == {"key": key, "enrolled": enrolled, "pending": pending}


def test_kernels_are_sorted_as_kernels_and_know_headers_and_modules(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "debian-12", "6.1.0-9-amd64").kernel("6.1.0-50-amd64", headers=False)
    machine.kernel("6.1.0-10-amd64", module="updates/dkms/nvidia-current.ko.xz")
    kernel = machine.facts()["kernel"]
    assert [one["release"] for one in kernel["installed"]] == ["6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-50-amd64"]
    assert (kernel["running"], kernel["next"]) == ("6.1.0-9-amd64", "6.1.0-50-amd64")
    assert [one["headers"] for one in kernel["installed"]] == [True, True, False]
    assert kernel["installed"][1]["nvidia"] == "updates/dkms/nvidia-current.ko.xz"


def test_a_link_to_headers_that_are_gone_is_no_headers(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "debian-12").no_headers("6.1.0-50-amd64")
    assert machine.facts()["kernel"]["running_headers"] is False


def test_the_loaded_module_says_its_version_and_flavour(tmp_path: Path) -> None:
    assert Machine(tmp_path / "a").loaded("580.126.09").facts()["driver"]["flavour"] == "open"
    driver = Machine(tmp_path / "b").loaded("550.163.01", "proprietary").facts()["driver"]
    assert (driver["version"], driver["flavour"]) == ("550.163.01", "proprietary")


def test_who_holds_a_card_is_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path).holder(4242, "python").link("proc/17/fd/3", "/dev/null")
    assert machine.facts()["driver"]["holders"] == [
        {"pid": 4242, "name": "python", "devices": ["/dev/nvidia0", "/dev/nvidiactl"]}
    ]


def test_our_own_collector_is_no_user_of_a_card(tmp_path: Path) -> None:
    """It is a python, as jobs are, and holds NVML open on every box; its cgroup tells it from them."""
    machine = Machine(tmp_path).holder(901, "python").holder(4242, "python")
    machine.file("proc/901/cgroup", "0::/gpubox.slice/gpubox-collector@0-1.service\n")
    machine.file("proc/4242/cgroup", "0::/gpubox.slice/gpubox-jobs.slice/gpubox-job-x-1.service\n")
    assert [one["pid"] for one in machine.facts()["driver"]["holders"]] == [4242]


@pytest.mark.parametrize("name", ["nvidia", "nvidia-open", "nvidia-current", "nvidia-current-open"])
def test_the_module_is_known_by_each_of_its_names(tmp_path: Path, name: str) -> None:
    module = f"updates/dkms/{name}.ko.xz"
    machine = Machine(tmp_path, "debian-13", "6.12.1-amd64").kernel("6.12.1-amd64", module=module)
    assert machine.facts()["kernel"]["installed"][0]["nvidia"] == module
    machine.kernel("6.12.1-amd64", module="updates/dkms/nvidia-current-open-uvm.ko.xz")
    assert machine.facts()["kernel"]["installed"][0]["nvidia"] is None


def test_only_packages_that_matter_are_read_and_half_done_ones_are_named(tmp_path: Path) -> None:
    machine = (
        Machine(tmp_path).packages("1", "vim", "nvidia-smi", "linux-image-amd64").package("gone", "1", "config-files")
    )
    installs = (
        machine.package("nvidia-kernel-dkms", "535", "half-configured")
        .package("mc", "1", "unpacked")
        .facts()["installs"]
    )
    assert installs["packages"].keys() == {"nvidia-smi", "linux-image-amd64", "nvidia-kernel-dkms", "mc"}
    assert installs["broken"] == ["mc", "nvidia-kernel-dkms"]


def test_a_sources_options_are_read_from_both_forms_and_lists_say_what_it_has(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "debian-12")
    machine.source("sources.list", "deb [arch=amd64,arm64 signed-by=/k.gpg] http://b.example/debian stable main\n")
    machine.source(
        "sources.list.d/c.sources",
        "Types: deb\nURIs: http://c.example\nSuites: /\nSigned-By:\n -----BEGIN\n .\n -----END\n",
    )
    machine.source("sources.list.d/s.sources", "Types: deb-src\nURIs: http://s.example\nSuites: /\n")
    machine.file("var/lib/apt/lists/b.example_debian_dists_stable_InRelease", "Origin: D\nComponents: updates/main c\n")
    apt = machine.facts()["apt"]
    assert [one["options"] for one in apt["sources"]] == [
        {"architectures": "amd64 arm64", "signed-by": "/k.gpg"},
        {"signed-by": "\n -----BEGIN\n .\n -----END"},
    ]
    assert apt["released"] == {"b.example_debian_dists_stable": ["c", "main"]}


@pytest.mark.parametrize(
    ("programs", "initramfs", "dracut"),
    [
        ((), None, False),
        (("usr/sbin/update-initramfs",), "update-initramfs", False),
        (("usr/bin/dracut",), "dracut", True),
        (("usr/sbin/update-initramfs", "usr/bin/dracut"), "update-initramfs", True),  # Ubuntu 26.04
    ],
)
def test_what_makes_an_initramfs_is_read(
    tmp_path: Path, programs: tuple[str, ...], initramfs: str | None, dracut: bool
) -> None:
    machine = Machine(tmp_path)
    for program in programs:
        machine.file(program)
    kernel = machine.facts()["kernel"]
    assert (kernel["initramfs"], kernel["dracut"]) == (initramfs, dracut)


def test_builds_that_failed_are_remembered_as_far_as_they_can_be_read(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.facts()["installs"]["failed_builds"] == []
    machine.file("etc/gpubox/failed-builds.json", '[{"branch": 580}]')
    assert machine.facts()["installs"]["failed_builds"] == [{"branch": 580}]
    machine.file("etc/gpubox/failed-builds.json", "[{")
    assert machine.facts()["installs"]["failed_builds"] == []


def test_both_forms_of_sources_are_read_and_switched_off_ones_are_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path).nvidia_source()
    machine.source(
        "sources.list", "# deb https://a.example stable main\ndeb https://b.example stable main contrib # c\n"
    )
    machine.source("sources.list.d/c.sources", "Types: deb\nURIs: https://c.example\nSuites: s\nComponents: main\n")
    machine.source("sources.list.d/d.sources", "Enabled: no\nTypes: deb\nURIs: https://d.example\nSuites: s\n")
    found = machine.facts()["apt"]["sources"]
    assert {one["url"].split("/")[2] for one in found} == {"b.example", "c.example", "developer.download.nvidia.com"}
    assert {one["kind"] for one in found} == {"other", "nvidia"}
    assert found[0]["components"] == ["main", "contrib"]


def test_dkms_shows_for_which_kernels_it_built(tmp_path: Path) -> None:
    machine = Machine(tmp_path).file("var/lib/dkms/nvidia/580.95.05/6.8.0-90-generic/x86_64/module/nvidia.ko")
    assert machine.facts()["installs"]["dkms"] == [{"module": "nvidia", "built": {"580.95.05": ["6.8.0-90-generic"]}}]


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"proc/sys/kernel/osrelease": "6.6.87.2-microsoft-standard-WSL2"}, "wsl"),
        ({"run/systemd/container": "systemd-nspawn"}, "container"),
        ({"sys/class/dmi/id/sys_vendor": "QEMU"}, "virtual"),
        ({"sys/class/dmi/id/sys_vendor": "Gigabyte Technology Co., Ltd."}, "metal"),
    ],
)
def test_the_kind_of_machine_is_read(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    machine = Machine(tmp_path)
    for name, content in files.items():
        machine.file(name, content)
    assert machine.facts()["system"]["machine"]["kind"] == kind


def test_the_architecture_is_the_installed_systems(tmp_path: Path) -> None:
    assert Machine(tmp_path, cpu="arm64").facts()["system"]["architecture"] == "aarch64"


def test_sudo_written_in_rust_is_noticed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "ubuntu-26.04").link("etc/alternatives/sudo", "/usr/lib/cargo/bin/sudo")
    assert machine.facts()["system"]["sudo_rs"] is True


def test_space_is_that_of_the_root(tmp_path: Path) -> None:
    Machine(tmp_path)
    space = gpubox_facts.gather(str(tmp_path), NOW)["space"]
    assert space.keys() == {"/"}, "/boot is no file system of its own here"
    assert 0 < space["/"]["free_bytes"] <= space["/"]["total_bytes"]


# --- refusals --------------------------------------------------------------------------------------------------------

PPA = (
    "Types: deb\nURIs: https://ppa.launchpadcontent.net/graphics-drivers/ppa/ubuntu/\nSuites: noble\nComponents: main\n"
)


def as_pop(machine: Machine) -> Machine:
    return machine.file("etc/os-release", "ID=pop\nID_LIKE='ubuntu debian'\n")


def with_snap(machine: Machine) -> Machine:
    return machine.file("var/lib/snapd/snaps/docker_1.snap")


def with_vfio(machine: Machine) -> Machine:
    return machine.gpu("2204", "vfio-pci", address="0000:0a:00.0")


def with_cuda(machine: Machine) -> Machine:
    return machine.package("nvidia-cuda-toolkit", "11.8")


ROWS: list[tuple[str, str, Build, dict[str, Any], list[str]]] = [
    ("a desktop with an RTX 3090", "ubuntu-24.04", lambda m: m.gpu("2204"), {}, []),
    ("no GPU", "debian-13", lambda m: m, {}, []),
    ("debian 12", "debian-12", lambda m: m.gpu("2204"), {}, []),
    ("debian 11", "debian-11", lambda m: m, {}, ["system-unknown"]),
    ("ubuntu 25.10", "ubuntu-25.10", lambda m: m, {}, ["system-unknown"]),
    ("fedora", "fedora-43", lambda m: m, {}, ["system-unknown"]),
    ("pop", "pop-24.04", as_pop, {}, ["system-derivative"]),
    ("wsl", "ubuntu-24.04", lambda m: m.running("6.6.87.2-microsoft-standard-WSL2"), {}, ["wsl"]),
    ("arm64", "ubuntu-24.04", lambda m: m.package("dpkg", "1", architecture="arm64"), {}, []),
    ("32 bits", "debian-12", lambda m: m.package("dpkg", "1", architecture="i386"), {}, ["architecture"]),
    ("python 3.14, old core", "ubuntu-26.04", lambda m: m, {"core": "2.19.14"}, ["ansible-too-old"]),
    ("python 3.14, new core", "ubuntu-26.04", lambda m: m, {"core": "2.20.1"}, []),
    ("python 3.12, old core", "ubuntu-24.04", lambda m: m, {"core": "2.19.14"}, []),
    (".run", "ubuntu-24.04", lambda m: m.file("usr/bin/nvidia-uninstall"), {}, ["run-file"]),
    (".run's log", "debian-13", lambda m: m.file("var/log/nvidia-installer.log"), {}, ["run-file"]),
    (".run, kept", "debian-13", lambda m: m.file("usr/bin/nvidia-uninstall"), {"driver_source": "none"}, []),
    (
        "ppa",
        "ubuntu-24.04",
        lambda m: m.source(
            "sources.list.d/graphics.sources",
            PPA,
        ),
        {},
        ["repository-graphics-drivers-ppa"],
    ),
    (
        "lambda",
        "ubuntu-22.04",
        lambda m: m.source("sources.list.d/l.list", "deb http://archive.lambdalabs.com/ubuntu jammy main\n"),
        {},
        ["repository-lambda"],
    ),
    ("nvidia's own repository", "ubuntu-24.04", lambda m: m.nvidia_source(), {}, []),
    ("snap, docker", "ubuntu-24.04", with_snap, {"containers": "docker"}, ["snap-docker"]),
    ("snap, podman", "ubuntu-24.04", with_snap, {}, []),
    ("vfio", "debian-13", with_vfio, {}, ["vfio"]),
    ("vfio, left alone", "debian-13", with_vfio, {"ignored_gpus": ["0000:0a:00.0"]}, []),
    ("half done", "debian-13", lambda m: m.package("mc", "1", "half-configured"), {}, ["packages-half-done"]),
    ("half done driver", "debian-13", lambda m: m.package("nvidia-open-kernel-dkms", "550", "half-configured"), {}, []),
    ("its own cuda", "debian-12", with_cuda, {"cuda": ["13.0"]}, ["cuda-of-the-distribution"]),
    ("its own cuda, none wished", "debian-12", with_cuda, {}, []),
    (
        "two at once",
        "debian-11",
        lambda m: m.file("usr/bin/nvidia-uninstall"),
        {},
        ["system-unknown", "run-file"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("system", "build", "wishes", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_what_is_refused(
    tmp_path: Path, system: str, build: Build, wishes: dict[str, Any], expected: list[str]
) -> None:
    found = refusals(build(Machine(tmp_path, system)).facts(), wishes)
    assert [refusal["id"] for refusal in found] == expected
    for refusal in found:
        assert refusal.keys() == {"id", "what", "why", "next"}
        assert all(len(text) > 2 for text in refusal.values())


@pytest.mark.parametrize(
    ("space", "wishes", "expected"),
    [
        ({"/": 9 * GIB}, {}, ["space-root"]),
        ({"/": 11 * GIB}, {}, []),
        ({"/": 11 * GIB}, {"cuda": ["13.0"]}, ["space-root"]),
        ({"/": 2 * GIB}, {"free_gib": 1}, []),
        ({"/": 99 * GIB, "/boot": 100 << 20}, {}, ["space-boot"]),
        ({"/": 99 * GIB, "/boot": 300 << 20}, {}, []),
    ],
)
def test_a_disk_that_would_fill_is_refused(
    tmp_path: Path, space: dict[str, int], wishes: dict[str, Any], expected: list[str]
) -> None:
    machine = Machine(tmp_path)
    machine.space = {mount: {"free_bytes": free, "total_bytes": 500 * GIB} for mount, free in space.items()}
    assert ids(machine.facts(), **wishes) == expected


def test_a_clock_behind_its_own_files_is_refused(tmp_path: Path) -> None:
    Machine(tmp_path)
    facts = gpubox_facts.gather(str(tmp_path), 1000.0)
    assert ids({**facts, "space": {}}) == ["clock"]


# --- as Ansible runs it ----------------------------------------------------------------------------------------------


def test_the_module_answers_as_ansible_asks(tmp_path: Path) -> None:
    pytest.importorskip("ansible.module_utils.basic")
    Machine(tmp_path).gpu("2204")
    asked = json.dumps({"ANSIBLE_MODULE_ARGS": {"root": str(tmp_path), "_ansible_check_mode": True}})
    ran = subprocess.run(
        [sys.executable, str(MODULE)], input=asked, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["changed"] is False
    assert answer["gpubox_facts"]["gpus"][0]["device"] == "2204"


def test_the_module_imports_nothing_but_the_standard_library(tmp_path: Path) -> None:
    code = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['gather'](sys.argv[2])))"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(MODULE), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(ran.stdout)["gpus"] == []


@pytest.mark.parametrize("module", sorted(ROLES.glob("pl*/library/*.py")) + sorted(ROLES.glob("pre*/library/*.py")))
def test_modules_are_written_for_the_oldest_python_of_a_box(module: Path) -> None:
    ast.parse(module.read_text(), feature_version=(3, 9))


def test_this_very_computer_can_be_read() -> None:
    facts = gpubox_facts.gather()
    json.dumps(facts)
    assert facts["kernel"]["running"]
