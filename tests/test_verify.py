"""What a box is told about itself: every judgement as a table, and whole visits of computers that are files, with a
driver, a CUDA and programs that are not real."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tools
from fake_nvml import FLAGS, SOURCE, FakeNvml
from machines import Machine, gpubox_decision, gpubox_facts

from runner.box.checks import adder, cards, containers, cuda, driver, finding, house, table, trials
from runner.box.checks.computer import Card, Computer, Kernel, Said, SecureBoot
from runner.box.checks.finding import Check, Finding

VERSION, OLDER = "580.126.20", "580.95.05"
RELEASE, NEWER = "6.12.107+deb13-amd64", "6.12.110+deb13-amd64"
BUILT = "updates/dkms/nvidia-current.ko.xz"
LIBRARY = "usr/lib/x86_64-linux-gnu"
READY = Kernel(RELEASE, BUILT, VERSION, "DKMS module signing key")
CARD = Card("0000:01:00.0", "nvidia", 16, 16)


# --- judgements ------------------------------------------------------------------------------------------------------

Row = tuple[Callable[[], Finding], str, str]
FACTS: dict[str, Any] = {"driver": VERSION, "cuda": "13.0", "failed": []}
GPU: dict[str, Any] = {"uuid": "GPU-1", "name": "RTX 3090", "place": "00000000:01:00.0", "processes": 0, "values": {}}
FINE = Said(0)
ADDED: dict[str, Any] = {
    "uuid": "GPU-1",
    "name": "RTX 3090",
    "capability": [8, 6],
    "call": "",
    "code": 0,
    "right": True,
}
ONE: dict[str, Any] = {"call": "", "code": 0, "version": 13000, "gpus": [ADDED]}
LAUNCHED = "no this is no request"


def nvml(*gpus: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**FACTS, "gpus": [{**GPU, **gpu} for gpu in gpus], **more}


def trouble(code: str) -> dict[str, Any]:
    return {"trouble": {"code": code, "message": f"it is {code}", "hint": ""}}


def said(**more: Any) -> dict[str, Any]:
    """One card, of which something else is said."""
    return {**ONE, "gpus": [{**ADDED, **more}]}


def cuda_fails(code: int, call: str = "cuInit") -> dict[str, Any]:
    return {"call": call, "code": code, "version": None, "gpus": []}


LOOKS: dict[str, Row] = {
    "no card": (lambda: cards.on_bus([]), "skipped", "no NVIDIA card"),
    "one card": (lambda: cards.on_bus([CARD]), "ok", "1 GPU: 0000:01:00.0"),
    "one of two is a virtual machine's": (lambda: cards.on_bus([CARD, Card("b", "vfio-pci")]), "ok", "1 GPU"),
    "all are virtual machines'": (lambda: cards.on_bus([Card("0000:01:00.0", "vfio-pci")]), "skipped", "vfio-pci"),
    "all lanes": (lambda: cards.links([CARD]), "ok", "all their lanes"),
    "no widths": (lambda: cards.links([Card("a")]), "ok", "not told"),
    "a narrow slot": (lambda: cards.links([Card("a", "", 4, 16)]), "warning", "4 of 16 lanes"),
    "a narrow cable": (lambda: cards.links([Card("a", "", 4, 16, True)]), "ok", "behind a Thunderbolt port"),
    "nouveau has none": (lambda: driver.nouveau([CARD], False), "ok", "no card"),
    "nouveau since before": (lambda: driver.nouveau([Card("a", "nouveau")], True), "failed", "nouveau holds a"),
    "nouveau for ever": (lambda: driver.nouveau([Card("a", "nouveau")], False), "failed", "nothing keeps it out"),
    "ready-made modules": (lambda: driver.dkms([], [], [READY], RELEASE, []), "skipped", "ready-made"),
    "built": (
        lambda: driver.dkms([], [f"nvidia/{VERSION}, {RELEASE}, x86_64: installed"], [READY], RELEASE, []),
        "ok",
        RELEASE,
    ),
    "built, said as dkms 2 says it": (
        lambda: driver.dkms([], [f"nvidia, {VERSION}, {RELEASE}, x86_64: installed"], [READY], RELEASE, []),
        "ok",
        RELEASE,
    ),
    "not built for the next kernel": (
        lambda: driver.dkms(
            [], [f"nvidia/{VERSION}, {RELEASE}, x86_64: installed"], [READY, Kernel(NEWER)], RELEASE, ["error: no"]
        ),
        "failed",
        f"for {NEWER}",
    ),
    "half-configured": (
        lambda: driver.dkms(["nvidia-open-kernel-dkms is half-configured"], [], [READY], RELEASE, ["a.c:1: error: b"]),
        "failed",
        "did not finish",
    ),
    "half-configured, no build": (lambda: driver.dkms(["x is unpacked"], [], [], RELEASE, []), "failed", "interrupted"),
    "secure boot off": (lambda: driver.secure_boot(SecureBoot(False), [READY], RELEASE), "ok", "off"),
    "secure boot unreadable": (lambda: driver.secure_boot(SecureBoot(None), [READY], RELEASE), "warning", "can't be"),
    "signed by the distribution": (
        lambda: driver.secure_boot(SecureBoot(True), [Kernel(RELEASE, "kernel/n.ko", "1", "Canonical")], RELEASE),
        "ok",
        "by the distribution",
    ),
    "nothing to sign": (lambda: driver.secure_boot(SecureBoot(True), [Kernel(RELEASE)], RELEASE), "ok", "no module"),
    "not signed": (
        lambda: driver.secure_boot(SecureBoot(True, "/mok.pub"), [Kernel(RELEASE, BUILT, "1")], RELEASE),
        "failed",
        "mokutil --import /mok.pub",
    ),
    "not signed, and no key": (
        lambda: driver.secure_boot(SecureBoot(True), [Kernel(RELEASE, BUILT, "1")], RELEASE),
        "failed",
        finding.SETUP,
    ),
    "enrolled": (lambda: driver.secure_boot(SecureBoot(True, "/k", True), [READY], RELEASE), "ok", "is enrolled"),
    "not enrolled": (lambda: driver.secure_boot(SecureBoot(True, "/k", False), [READY], RELEASE), "failed", "is not"),
    "pending": (
        lambda: driver.secure_boot(SecureBoot(True, "/k", False, True), [READY], RELEASE), "failed", "Enroll MOK"
    ),
    "enrolled or not": (lambda: driver.secure_boot(SecureBoot(True, "/k", None), [READY], RELEASE), "warning", "test"),
    "loaded": (lambda: driver.loaded(VERSION, [READY], RELEASE, [CARD]), "ok", VERSION),
    "not loaded": (lambda: driver.loaded("", [READY], RELEASE, [Card("a")]), "failed", "modprobe nvidia"),
    "not installed": (lambda: driver.loaded("", [Kernel(RELEASE)], RELEASE, [Card("a")]), "failed", "no NVIDIA driver"),
    "built for another kernel": (
        lambda: driver.loaded("", [READY, Kernel(NEWER)], NEWER, [Card("a")]), "failed", f"built for {RELEASE}"
    ),
    "somebody else has it": (lambda: driver.loaded("", [READY], RELEASE, [Card("a", "nova")]), "failed", "nova holds"),
    "versions agree": (lambda: driver.versions_agree(VERSION, VERSION, [READY]), "ok", VERSION),
    "upgraded while loaded": (
        lambda: driver.versions_agree(OLDER, VERSION, [READY]),
        "failed",
        f"module {OLDER} loaded, {VERSION} installed: running jobs go on, new ones fail until a restart",
    ),
    "libraries of a version that no kernel has": (
        lambda: driver.versions_agree(OLDER, VERSION, [Kernel(RELEASE, BUILT, OLDER)]), "failed", finding.SETUP
    ),
    "no libraries": (lambda: driver.versions_agree(VERSION, "", [READY]), "failed", "libnvidia-ml.so.1 is missing"),
    "the next module is another": (
        lambda: driver.versions_agree(OLDER, OLDER, [READY]), "warning", f"the next start loads the module {VERSION}"
    ),
    "the next kernel has it": (lambda: driver.next_boot([Kernel("6.1"), READY]), "ok", "6.1 has none"),
    "the next kernel lacks it": (lambda: driver.next_boot([READY, Kernel(NEWER)]), "failed", "loses the GPUs"),
    "a container's kernel": (lambda: driver.next_boot([]), "skipped", "somebody else"),
    "all found": (lambda: cards.found([CARD], nvml({})), "ok", "1 GPU, CUDA 13.0"),
    "one lost": (
        lambda: cards.found([CARD, Card("0000:02:00.0")], nvml({}, failed=["it fell off the bus"])), "failed", "02:00.0"
    ),
    "the driver is silent": (lambda: cards.found([CARD], trouble("version_mismatch")), "failed", "sudo reboot"),
    "nobody to ask it": (lambda: cards.found([CARD], trouble("no_reader")), "skipped", ".[box]"),
    "to be reset": (lambda: cards.found([CARD], nvml({"values": {"recovery": "reset"}})), "failed", "recovery"),
    "the log is root's": (lambda: cards.faults(None), "skipped", "for root"),
    "no fault": (lambda: cards.faults([]), "ok", "no fault"),
    "a program's fault": (lambda: cards.faults([("1", 31, "an error of the application")]), "ok", "1 error"),
    "a small fault": (lambda: cards.faults([("1", 63, "a damaged piece")]), "warning", "1 fault of GPUs"),
    "a grave fault": (lambda: cards.faults([("1", 79, "x"), ("1", 31, "y")]), "failed", "it fell off the bus"),
    "awake": (lambda: cards.persistence(nvml({"values": {"persistence": True}}, {})), "ok", "awake"),
    "it sleeps": (
        lambda: cards.persistence(nvml({"values": {"persistence": False}})), "warning", "start nvidia-persistenced"
    ),
    "CUDA begins": (lambda: cuda.init(ONE, FINE, True), "ok", "CUDA 13.0, 1 GPU"),
    "CUDA hangs": (lambda: cuda.init(None, Said(None), True), "failed", "does not return"),
    "CUDA crashes": (lambda: cuda.init(None, Said(-6, err="x\nbad"), True), "failed", "ended with -6"),
    "no libcuda": (lambda: cuda.init(cuda_fails(-1, "loading libcuda.so.1"), FINE, True), "failed", "loading libcuda"),
    "999, uvm away": (lambda: cuda.init(cuda_fails(999), FINE, False), "failed", "sudo modprobe nvidia-uvm"),
    "999, uvm there": (lambda: cuda.init(cuda_fails(999), FINE, True), "failed", "sudo rmmod nvidia_uvm"),
    "100": (lambda: cuda.init(cuda_fails(100), FINE, True), "failed", "CUDA finds no GPU"),
    "no card at all": (lambda: cuda.init({**ONE, "gpus": []}, FINE, True), "failed", "CUDA finds no GPU"),
    "802": (lambda: cuda.init(cuda_fails(802), FINE, True), "failed", "nvidia-fabricmanager"),
    "803": (lambda: cuda.init(cuda_fails(803), FINE, True), "failed", "sudo reboot"),
    "46": (lambda: cuda.init(cuda_fails(46), FINE, True), "failed", "nvidia-smi -c DEFAULT"),
    "an unknown code": (lambda: cuda.init(cuda_fails(4711), FINE, True), "failed", "error 4711"),
    "it adds": (lambda: cuda.kernel(ONE, FINE, ["GPU-1"], True), "ok", "1 GPU added two vectors"),
    "it adds wrong": (lambda: cuda.kernel(said(right=False), FINE, ["GPU-1"], True), "failed", "gpus drain GPU-1"),
    "all in use": (lambda: cuda.kernel(said(right=None), FINE, [], True), "skipped", "left alone"),
    "one in use": (
        lambda: cuda.kernel({**ONE, "gpus": [ADDED, {**ADDED, "uuid": "GPU-2", "right": None}]}, FINE, ["GPU-1"], True),
        "ok",
        "1 in use, left alone",
    ),
    "no memory left": (lambda: cuda.kernel(said(code=2, right=None), FINE, ["GPU-1"], True), "skipped", "left alone"),
    "it can't launch": (
        lambda: cuda.kernel(said(call="cuLaunchKernel", code=209, right=None), FINE, ["GPU-1"], True),
        "failed",
        "RTX 3090: cuLaunchKernel says 209",
    ),
    "it went meanwhile": (lambda: cuda.kernel(None, Said(None), ["GPU-1"], True), "failed", "does not return"),
    "a job adds": (lambda: cuda.in_a_job("noise\n" + json.dumps(ONE)), "ok", "a job computed on RTX 3090"),
    "a job is let see nothing": (lambda: cuda.in_a_job(json.dumps(cuda_fails(999))), "failed", "the job's unit"),
    "a job adds wrong": (lambda: cuda.in_a_job(json.dumps(said(right=False))), "failed", "computes wrong"),
    "a job babbles": (lambda: cuda.in_a_job("{nothing\n"), "failed", "nothing that can be read"),
    "not asked to train": (cuda.not_asked, "skipped", "runner doctor --train"),
    "it trains": (
        lambda: cuda.trained('{"torch": "2.14", "device": "RTX 3090", "before": 1.0, "after": 0.1}', "x"),
        "ok",
        "fell from 1 to 0.1",
    ),
    "it learns nothing": (
        lambda: cuda.trained('{"torch": "2.14", "device": "x", "before": 1.0, "after": NaN}', "x"), "failed", "nothing"
    ),
    "it can't train": (
        lambda: cuda.trained('{"torch": "2.14", "error": "RuntimeError: no kernel image"}', "x"), "failed", "no kernel"
    ),
    "it says nothing": (lambda: cuda.trained("Killed", "x"), "failed", "nothing that can be read"),
    "it fails": (lambda: cuda.job_failed("environment_failed", "a\nb"), "failed", "environment_failed"),
    "no turn": (lambda: cuda.too_busy("all GPUs are in use"), "skipped", "taken back: all GPUs are in use"),
    "no engine": (lambda: containers.engine("", Said(127)), "skipped", "no container engine"),
    "podman": (lambda: containers.engine("podman", Said(0, "5.4.2\n")), "ok", "podman 5.4.2"),
    "docker is away": (lambda: containers.engine("docker", Said(1, err="no daemon")), "failed", "status docker"),
    "podman hangs": (lambda: containers.engine("podman", Said(None)), "failed", "does not answer"),
    "no toolkit": (lambda: containers.cdi_current(False, {}, VERSION, False), "skipped", "not installed"),
    "no file of CDI": (lambda: containers.cdi_current(True, {}, VERSION, True), "failed", "nvidia-cdi-refresh"),
    "no file, by hand": (lambda: containers.cdi_current(True, {}, VERSION, False), "failed", "nvidia-ctk cdi generate"),
    "CDI is old": (lambda: containers.cdi_current(True, {"/c": [OLDER]}, VERSION, True), "failed", f"/c is of {OLDER}"),
    "CDI is current": (lambda: containers.cdi_current(True, {"/c": [VERSION]}, VERSION, True), "ok", "of this driver"),
    "a container sees it": (lambda: containers.gpu("podman", Said(0, "GPU 0: a\n"), 1), "ok", "sees 1"),
    "a container sees one": (lambda: containers.gpu("podman", Said(0, "GPU 0: a\n"), 2), "failed", "1 of 2"),
    "a container sees none": (
        lambda: containers.gpu("podman", Said(125, err="Error: unresolvable CDI devices nvidia.com/gpu=all"), 1),
        "failed",
        "finds no file of CDI",
    ),
    "a container fails": (lambda: containers.gpu("docker", Said(1, err="NVML: Unknown Error"), 1), "failed", "Unknown"),
    "a container hangs": (lambda: containers.gpu("docker", Said(None), 1), "failed", "did not end"),
    "no limit wished": (lambda: house.limits(False, Said(127)), "skipped", "no limit"),
    "limits hold": (lambda: house.limits(True, Said(0, "0 RTX 3090: 280 W, by hand\n")), "ok", "in force"),
    "limits are off": (
        lambda: house.limits(True, Said(0, "0 RTX 3090: 280 W, by hand (was 350 W)\n")), "failed", "start gpubox-power"
    ),
    "limits can't be": (lambda: house.limits(True, Said(1, err="The GPUs can't be asked.")), "failed", "asked"),
    "no limit possible": (lambda: house.limits(True, Said(0)), "ok", "none of these"),
    "suspend is away": (lambda: house.suspend(house.SLEEP, True), "ok", "taken away"),
    "suspend on demand": (lambda: house.suspend([], True), "ok", "only when"),
    "it may suspend": (lambda: house.suspend(["sleep.target"], False), "failed", "suspend.target"),
    "room": (lambda: house.disk("/", 90 << 30, 100 << 30), "ok", "90.0 of 100 GiB"),
    "little room": (lambda: house.disk("/", 5 << 30, 100 << 30), "warning", "below 2.0 GiB"),
    "no room": (lambda: house.disk("/", 1 << 30, 100 << 30), "failed", "nothing starts"),
    "the clock is wrong": (lambda: house.clock(0.0, 1e9, True, ""), "failed", "the clock is wrong"),
    "a container's clock": (lambda: house.clock(2e9, 1e9, False, "lxc"), "skipped", "lxc"),
    "nobody's clock": (lambda: house.clock(2e9, 1e9, False, ""), "warning", "set-ntp"),
    "a kept clock": (lambda: house.clock(2e9, 1e9, True, ""), "ok", "kept"),
    "the launcher": (lambda: house.launcher(LAUNCHED), "ok", "refuses"),
    "the launcher is not for us": (lambda: house.launcher(None), "skipped", "for the queue and root"),
    "the launcher is away": (lambda: house.launcher("/run/x: No such file"), "failed", "No such file"),
    "a job": (lambda: house.job("succeeded", "gpubox-job\n", "gpubox-job", "gpubox"), "ok", "as gpubox-job"),
    "a member's job": (lambda: house.job("succeeded", "gpubox-job\n", "", "ada"), "ok", "from end to end"),
    "a job of the wrong user": (lambda: house.job("succeeded", "root\n", "gpubox-job", "gpubox"), "failed", "as root"),
    "a job fails": (lambda: house.job("failed", "no\n", "gpubox-job", "gpubox"), "failed", "failed"),
    "a job is not taken": (lambda: house.job("", "runner: no\n", "", ""), "failed", "was not taken"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_is_judged(name: str) -> None:
    judge, state, says = LOOKS[name]
    found = judge()
    text = " ".join((found.what, found.why, found.next, *found.evidence))
    assert (found.state, says in text) == (state, True), text
    if found.state in (finding.FAILED, finding.WARNING):
        assert found.next, "a failure names the next command"


@pytest.mark.parametrize(
    ("capability", "version", "index", "wish"),
    [
        ((8, 6), 13000, "", "torch\n"),
        ((12, 0), 13020, "https://mirror/cu130", "--extra-index-url https://mirror/cu130\ntorch\n"),
        ((6, 1), 13000, "", f"--extra-index-url {cuda.TORCH_OLD_INDEX}\ntorch<2.15\n"),
        ((8, 6), 12060, "", f"--extra-index-url {cuda.TORCH_OLD_INDEX}\ntorch<2.15\n"),
        ((7, 0), 12080, "https://mirror/cu126", "--extra-index-url https://mirror/cu126\ntorch<2.15\n"),
    ],
)
def test_verify_trains_with_wheels_that_driver_and_cards_can_run(
    capability: tuple[int, int], version: int, index: str, wish: str
) -> None:
    assert cuda.torch_wish({**said(capability=list(capability)), "version": version}, index)[0] == wish


# --- what stands on what ---------------------------------------------------------------------------------------------


def fixed(id: str, found: Finding, *after: str, explained_by: tuple[str, ...] = ()) -> Check:
    return Check(id, lambda _: found, after, explained_by)


BAD = finding.failed("broken", "", "mend it")


def test_what_stands_on_a_failure_is_skipped_and_never_failed_too() -> None:
    checks = [
        fixed("a", BAD),
        fixed("b", BAD, "a"),
        fixed("c", BAD, "b"),
        fixed("d", BAD, explained_by=("a",)),
        fixed("e", BAD, explained_by=("b",)),
        fixed("f", finding.ok("well"), "other"),
    ]
    found = {one.id: one for one in finding.examine(checks, Computer(), {"other": finding.skipped("no card")})}
    assert {id: one.state for id, one in found.items()} == {
        "a": "failed", "b": "skipped", "c": "skipped", "d": "skipped", "e": "failed", "f": "skipped",
    }  # fmt: skip
    assert found["b"].why == found["c"].why == "a failed", "the first cause is named"
    assert found["d"].why == "a failed, which explains: broken"
    assert found["f"].why == "no card"


def test_a_check_that_breaks_is_told_and_the_others_go_on() -> None:
    checks = [Check("a", lambda computer: 1 / 0), fixed("b", finding.ok("well"))]  # type: ignore[arg-type, return-value]
    first, second = finding.examine(checks, Computer(), {})
    assert "ZeroDivisionError" in first.what
    assert (first.state, second.state) == ("failed", "ok")


def test_who_asks_for_a_check_gets_what_it_stands_on() -> None:
    checks = table.checks(table.Visit(Computer(), False, ""))
    ids = [check.id for check in checks]
    assert len(ids) == len(set(ids))
    for number, check in enumerate(checks):
        above = set(check.after + check.explained_by) - set(table.SERVED)
        assert above <= set(ids[:number]), f"{check.id} comes after what it stands on"
    assert [check.id for check in finding.chosen(checks, ["cuda.init"])] == [
        "gpus.bus", "driver.loaded", "driver.versions-agree", "gpus.found", "cuda.init",
    ]  # fmt: skip
    assert [check.id for check in finding.chosen(checks, ["disk", "clock"])] == ["disk.free", "clock"]
    assert len(finding.chosen(checks, [])) == len(checks)


# --- computers that are files ----------------------------------------------------------------------------------------


@functools.cache
def libcuda() -> Path:
    """The folder of the fake libcuda.so.1, beside that of the fake NVML and gone with it."""
    from fake_nvml import library

    command = (tools.need("cc"), *FLAGS, "-o", str(library() / "libcuda.so.1"), str(SOURCE.with_name("cuda.c")))
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60)
    return library()


class Patient:
    """A Debian 13 with one RTX 3090 that is well; each test makes it ill in its own way."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Machine(place / "root", "debian-13").gpu("2204", "nvidia").loaded(VERSION)
        self.machine.kernel(RELEASE, module=BUILT).file("sys/module/nvidia_uvm/refcnt", "0\n").file("dev/kmsg")
        self.library(VERSION)
        self.place, self._env = place, monkeypatch
        self.nvml = FakeNvml(place)
        self.gpu = self.nvml.add("3090")
        self.gpu.set(persistence=1)
        self.says("modinfo", f'case "$4" in version) echo {VERSION};; signer) echo DKMS;; esac')
        self.says("dkms", f"echo nvidia/{VERSION}, {RELEASE}, x86_64: installed")
        libcuda()
        for name, value in self.nvml.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", f"{place}/bin:/usr/bin:/bin")

    def says(self, program: str, script: str) -> None:
        """A stand-in for a program."""
        path = self.place / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def library(self, version: str) -> None:
        """As Debian lays it: behind an alternative."""
        self.machine.file(f"{LIBRARY}/nvidia/current/libnvidia-ml.so.{version}")
        self.machine.link(f"{LIBRARY}/nvidia/current/libnvidia-ml.so.1", f"libnvidia-ml.so.{version}")
        self.machine.link("etc/alternatives/nvidia--libnvidia-ml.so.1", f"/{LIBRARY}/nvidia/current/libnvidia-ml.so.1")
        self.machine.link(f"{LIBRARY}/libnvidia-ml.so.1", "/etc/alternatives/nvidia--libnvidia-ml.so.1")

    def cuda(self, words: str) -> None:
        self._env.setenv("FAKE_CUDA", words)

    def computer(self) -> Computer:
        return Computer(str(self.machine.root))

    def examined(self, *wanted: str) -> dict[str, Finding]:
        computer = self.computer()
        checks = [check for check in table.checks(table.Visit(computer, False, "")) if check.everywhere]
        return {one.id: one for one in finding.examine(finding.chosen(checks, wanted), computer, {})}

    def complaints(self, *wanted: str) -> dict[str, str]:
        """What is not well, by id. Skipped ones are named by the beginning of their reason."""
        found = self.examined(*wanted)
        return {id: one.what or one.why for id, one in found.items() if one.state in (finding.FAILED, finding.WARNING)}


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Patient]:
    return Patient(tmp_path, monkeypatch)  # type: ignore[return-value]


def test_a_computer_that_is_well_has_nothing_to_complain_of(patient: Patient) -> None:
    found = patient.examined()
    assert {id: one for id, one in found.items() if one.state != "ok"} == {}
    assert found["gpus.found"].what == "the driver has all of them: 1 GPU, CUDA 12.8"
    assert found["cuda.kernel"].what == "1 GPU added two vectors as they should"
    assert found["driver.versions-agree"].what == f"module and libraries are {VERSION}"
    assert found["driver.next-boot"].what == f"{RELEASE} has {BUILT}"


def test_without_a_card_everything_is_skipped_for_that_reason(patient: Patient) -> None:
    for entry in (patient.machine.root / "sys/bus/pci/devices").iterdir():
        entry.unlink()
    assert {(one.state, one.why) for one in patient.examined().values()} == {
        ("skipped", "there is no NVIDIA card in this computer")
    }
    assert patient.nvml.calls() == 0


def test_an_upgrade_under_a_loaded_driver_is_one_failure(patient: Patient) -> None:
    patient.machine.loaded(OLDER)
    patient.nvml.version_mismatch()
    patient.cuda("cuInit=803")
    found = patient.examined()
    assert [id for id, one in found.items() if one.state == "failed"] == ["driver.versions-agree"]
    assert found["cuda.kernel"].why == "driver.versions-agree failed"
    assert "sudo reboot" in found["driver.versions-agree"].next


def test_a_build_that_failed_explains_what_comes_of_it(patient: Patient) -> None:
    """Debian 13's 550 and its own kernel."""
    (patient.machine.root / "proc/driver/nvidia/version").unlink()
    patient.machine.kernel(RELEASE).package("nvidia-open-kernel-dkms", "550.163.01-2", "half-configured")
    log = "make[1]: Entering directory\nnv-pci.c:249:9: error: too many arguments to function\nmake: *** Error 2\n"
    patient.machine.file("var/lib/dkms/nvidia-current/550.163.01/build/make.log", log)
    found = patient.examined()
    assert [id for id, one in found.items() if one.state == "failed"] == ["driver.dkms"]
    assert found["driver.dkms"].evidence[0].startswith("nv-pci.c:249:9: error: too many arguments")
    assert found["driver.loaded"].why.startswith("driver.dkms failed, which explains")
    assert found["driver.next-boot"].why.startswith("driver.dkms failed, which explains")
    assert found["gpus.found"].why.startswith("driver.dkms failed")


@pytest.mark.parametrize(
    ("make_ill", "complaint"),
    [
        (lambda p: p.machine.gpu("2204", "nouveau", address="0000:01:00.0"), "driver.nouveau"),
        (lambda p: p.machine.kernel(NEWER), "driver.dkms"),
        (lambda p: p.machine.secure_boot(True, key=True), "driver.secure-boot"),
        (lambda p: p.machine.gpu("2204", "nvidia", lanes=(1, 16)), "gpus.found"),
        (lambda p: p.machine.file("dev/kmsg", "6,1,2,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1\n"), "gpus.xid"),
        (lambda p: p.nvml.driver_not_loaded(), "gpus.found"),
        (lambda p: p.gpu.lost(), "gpus.found"),
        (lambda p: p.gpu.set(persistence=0), "driver.persistence"),
        (lambda p: p.cuda("cuInit=999"), "cuda.init"),
        (lambda p: p.cuda("cuInit=crash"), "cuda.init"),
        (lambda p: p.cuda("wrong"), "cuda.kernel"),
        (lambda p: p.cuda("cuLaunchKernel=700"), "cuda.kernel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_illness_is_one_complaint(patient: Patient, make_ill: Callable[[Patient], object], complaint: str) -> None:
    make_ill(patient)
    complaints = patient.complaints()
    assert complaint in complaints, complaints
    assert set(complaints) - {complaint} <= {"gpus.link"}


def test_a_card_that_is_computed_on_is_left_alone(patient: Patient) -> None:
    patient.gpu.process(4242, 1 << 30)
    patient.cuda("cuMemAlloc_v2=crash")
    kernel = patient.examined("cuda")["cuda.kernel"]
    assert (kernel.state, kernel.why) == ("skipped", "jobs or others compute on all cards, and are left alone")


def test_a_driver_that_hangs_is_given_up(patient: Patient) -> None:
    patient.cuda("cuInit=hang")
    found, how = patient.computer().json(sys.executable, trials.ADDER, limit=0.5)
    assert (found, how.code) == (None, None)
    assert tools.processes_naming(str(patient.nvml.script)) == {}


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    said = Computer(str(tmp_path)).run("no-such-program-anywhere")
    assert (said.code, said.last) == (127, "no-such-program-anywhere is not installed")


def test_an_old_card_is_given_code_that_it_knows(patient: Patient) -> None:
    patient.cuda("capability=61")
    assert patient.examined("cuda")["cuda.kernel"].state == "ok"


def test_files_of_cdi_are_read_where_they_lie(patient: Patient) -> None:
    text = f"kind: nvidia.com/gpu\n- hostPath: /usr/lib/libcuda.so.{OLDER}\n"
    patient.machine.file("etc/cdi/nvidia.yaml", text).file("etc/cdi/other.yaml", "kind: vendor.com/x")
    assert patient.computer().cdi == {"/etc/cdi/nvidia.yaml": [OLDER]}


def test_a_container_is_made_of_this_computers_files_and_sees_what_the_engine_gives(patient: Patient) -> None:
    patient.says("podman", 'for word; do case $word in /*/root) ls "$word/usr/bin" >&2;; esac; done; echo "GPU 0: one"')
    seen = trials.container(patient.computer(), "podman")
    assert (seen.code, seen.out, seen.err) == (0, "GPU 0: one\n", "sh\n")
    patient.says("docker", 'echo "$1" >>' + f"{patient.place}/docker" + '; [ "$1" != run ] || echo "GPU 0: one"')
    assert trials.container(patient.computer(), "docker").out == "GPU 0: one\n"
    assert (patient.place / "docker").read_text().split() == ["import", "run", "rmi"]


def test_limits_of_power_are_asked_of_the_program_that_sets_them(patient: Patient) -> None:
    visit = table.Visit(patient.computer(), False, "")
    assert visit.limits(patient.computer()).state == "skipped"
    program = tools.ROOT / "playbooks/roles/power/module_utils/gpubox_watts.py"
    patient.machine.file(table.POWER, program.read_text())
    (patient.machine.root / table.POWER).chmod(0o755)
    for watts, state in (("200", "failed"), ("350", "ok")):
        wishes = {"limit": watts, "limits": {}, "psu_watts": 0, "rest_watts": 250, "ignored": []}
        patient.machine.file(table.POWER_SETTINGS, json.dumps(wishes))
        found = visit.limits(patient.computer())
        assert found.state == state, found
        assert f": {watts} W" in " ".join((found.what, *found.evidence))


@pytest.mark.parametrize(
    "build",
    [
        lambda m: m,
        lambda m: m.gpu("2204", "nvidia", lanes=(4, 16)).gpu("2684", "vfio-pci", external=True).loaded(VERSION),
        lambda m: m.gpu("9a60", vendor="8086").gpu("228b", kind="040300").kernel(NEWER, module=BUILT),
        lambda m: m.kernel("6.1.0-9-amd64", module="kernel/nvidia/nvidia.ko").secure_boot(True, key=True),
        lambda m: m.kernel("6.1.0-9-amd64", module="updates/dkms/nvidia-current-open.ko.xz"),
        lambda m: m.secure_boot(True, key=True, enrolled=True),
        lambda m: m.secure_boot(None).loaded(OLDER, "proprietary"),
        lambda m: m.secure_boot(False, key=True, pending=True),
    ],
)
def test_the_box_and_the_playbook_read_the_same(tmp_path: Path, build: Callable[[Machine], Machine]) -> None:
    """They share no code: the playbook's comes to a computer that has nothing of ours yet."""
    machine = build(Machine(tmp_path, "debian-13"))
    facts, computer = gpubox_facts.gather(str(machine.root), 0.0), Computer(str(machine.root))
    boot, mok = facts["secure_boot"], facts["secure_boot"]["mok"]
    assert [(one["address"], one["driver"] or "", one["external"]) for one in facts["gpus"]] == [
        (card.address, card.driver, card.external) for card in computer.cards
    ]
    assert [(one["release"], one["nvidia"] or "") for one in facts["kernel"]["installed"]] == [
        (kernel.release, kernel.module) for kernel in computer.kernels
    ]
    assert (facts["kernel"]["running"], facts["driver"]["version"] or "") == (computer.running, computer.loaded)
    ours = computer.secure_boot
    assert (boot["validation"], mok["key"] or "", mok["enrolled"], mok["pending"]) == (
        ours.on is not False, ours.key, ours.enrolled, ours.pending,
    )  # fmt: skip


def test_the_program_for_cuda_runs_where_a_job_has_nothing_but_an_old_python() -> None:
    import ast

    tree = ast.parse(Path(adder.__file__).read_text(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names <= sys.stdlib_module_names


# --- jobs, by a queue of one's own -----------------------------------------------------------------------------------


@pytest.fixture
def queue(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> Iterator[tools.Box]:
    """A box of one's own whose GPU is the patient's."""
    for name in [name for name in os.environ if name.startswith(("GPUBOX_", "RUNNER_", "CUDA_"))]:
        monkeypatch.delenv(name)
    for kind in ("STATE", "CONFIG", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(patient.place / kind))
    monkeypatch.setenv("GPUBOX_STATE", str(patient.place / "state"))
    monkeypatch.setenv("GPUBOX_CPUS", "2")
    box = tools.Box(patient.place / "state")
    box.start()
    try:
        yield box
    finally:
        box.end()


def states(queue: tools.Box) -> dict[str, str]:
    jobs = [json.loads(line) for line in queue.run("ps", "--all", "--json").splitlines()]
    return {job["name"]: job["state"] for job in jobs}


@pytest.mark.long
def test_jobs_say_that_the_box_works(patient: Patient, queue: tools.Box) -> None:
    visit = table.Visit(patient.computer(), False, "")
    found = visit.job(patient.computer())
    assert (found.state, found.what) == ("ok", "a job ran from end to end")
    found = visit.gpu_job(patient.computer())
    assert (found.state, found.what) == ("ok", "a job computed on Fake GPU 0")
    assert states(queue) == {"doctor": "succeeded", "doctor-cuda": "succeeded"}


@pytest.mark.long
def test_a_job_that_gets_no_turn_is_taken_back(
    patient: Patient, queue: tools.Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "JOB_LIMIT", 1.0)
    patient.gpu.process(1, 20 << 30)
    tools.wait_until(lambda: queue.json("gpus")["gpus"][0]["state"] == "foreign")
    found = table.Visit(patient.computer(), True, "").gpu_job(patient.computer())
    assert found.state == "skipped"
    assert "was taken back" in found.why
    assert states(queue) == {"doctor-cuda": "cancelled"}


@pytest.mark.long
def test_training_says_what_the_wheels_can_not(
    patient: Patient, queue: tools.Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The torch that uv installs; here it is a stand-in that does not know the card."""
    wheel = "class cuda: pass\n__version__ = '2.99'\ndef device(name): raise RuntimeError('no kernel image')\n"
    make_wheel(patient.place / "wheels", "torch", "2.99", wheel)
    queue.stop()
    queue.env |= {"UV_FIND_LINKS": str(patient.place / "wheels"), "UV_NO_INDEX": "1"}
    queue.start()
    found = table.Visit(patient.computer(), True, "").trained(patient.computer())
    assert (found.state, found.what) == ("failed", "PyTorch 2.99 (as pip and uv choose it) can't train on the GPU")
    assert found.why == "RuntimeError: no kernel image"


def make_wheel(place: Path, name: str, version: str, text: str) -> None:
    place.mkdir()
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(place / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, content in {**files, f"{info}/RECORD": "".join(f"{one},,\n" for one in files)}.items():
            archive.writestr(path, content)


def test_the_plan_and_the_box_choose_the_same_old_wheels(tmp_path: Path) -> None:
    facts = Machine(tmp_path, "debian-13").gpu("1b06").facts()
    chosen = gpubox_decision.plan(facts, {"driver_branch": "580", "driver_source": "nvidia"})["torch"]
    assert (f"torch<{chosen['below']}", chosen["wheels"]) == (cuda.TORCH_OLD, cuda.TORCH_OLD_INDEX.rpartition("/")[2])


# --- the role --------------------------------------------------------------------------------------------------------


def test_the_role_says_what_failed_and_what_to_type() -> None:
    path = tools.ROOT / "playbooks/roles/verify/filter_plugins/gpubox_findings.py"
    spec = importlib.util.spec_from_file_location("gpubox_findings", path)
    assert spec is not None
    assert spec.loader is not None
    filters = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(filters)
    made = [
        {"id": "a", "state": "ok", "what": "well", "why": "", "next": "", "evidence": []},
        {"id": "b", "state": "failed", "what": "ill", "why": "a cause", "next": "mend", "evidence": ["line"]},
        {"id": "c", "state": "skipped", "what": "", "why": "b failed", "next": "", "evidence": []},
        {"id": "d", "state": "skipped", "what": "", "why": "b failed", "next": "", "evidence": []},
        {"id": "e", "state": "warning", "what": "so so", "why": "", "next": "better it", "evidence": []},
    ]
    assert filters.lines(made, "failed") == ["b: ill (a cause)", "  | line", "  next: mend"]
    assert filters.summary(made) == [
        "1 ok, 1 warning, 1 failed", "e: so so", "  next: better it", "not checked (c, d): b failed",
    ]  # fmt: skip
