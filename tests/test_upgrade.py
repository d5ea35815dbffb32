"""Going from one version to the next: of the runner, and of kernel and driver (`upgrade.yml`)."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import hosts
import pytest
import yaml
from bed import archive, box
from bed.archive import Archive
from bed.runs import Run
from test_playbooks import PLAYBOOKS, Owner, module
from tools import wait_until

# --- the runner's ----------------------------------------------------------------------------------------------------


def test_old_versions_go_unless_something_runs_from_them(tmp_path: Path) -> None:
    versions = module("gpubox_versions")
    for number, name in enumerate(("runs", "stands", "loaded", "unused", "before", "now")):
        (tmp_path / "opt" / name).mkdir(parents=True)
        (tmp_path / "opt" / name / "requirements.txt").touch()
        os.utime(tmp_path / "opt" / name / "requirements.txt", (number, number))
    (tmp_path / "opt/python-3.12/bin").mkdir(parents=True)
    here = str(tmp_path / "opt")
    signs = {"cmdline": f"python3\0{here}/runs/supervisor.pyz\0", "maps": f"7f-8f r-x {here}/loaded/lib/x.so\n"}
    for pid, name in enumerate((*signs, "cwd"), 1):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        if name in signs:
            (tmp_path / f"proc/{pid}" / name).write_text(signs[name])
    (tmp_path / "proc/3/cwd").symlink_to(tmp_path / "opt/stands")
    (tmp_path / "proc/self").mkdir()
    assert versions.old(here, "now", str(tmp_path / "proc")) == ["unused"]
    assert versions.old(here, "new", str(tmp_path / "proc")) == ["unused", "before"]
    assert versions.old(str(tmp_path / "none"), "now") == []


# --- kernel and driver: what apt says, and the way back --------------------------------------------------------------


@pytest.fixture(scope="module")
def upgrade() -> ModuleType:
    return module("gpubox_upgrade")


def test_what_goes_together_is_what_does_not_come_by_itself() -> None:
    held = [yaml.safe_load((PLAYBOOKS / f"roles/{role}/vars/main.yml").read_text()) for role in ("base", "upgrade")]
    assert held[0]["base_held"] == held[1]["upgrade_together"]


def test_packages_are_those_that_are_here_and_not_held_back(upgrade: ModuleType) -> None:
    lines = (
        "nvidia-driver\t580.1-1\tinstall\tinstalled",
        "libnvidia-cfg1:amd64\t580.1-1\tinstall\tinstalled",
        "nvidia-smi\t580.1-1\thold\tinstalled",
        "nvidia-settings\t580.1-1\tdeinstall\tconfig-files",
        "bash\t5.2\tinstall\tinstalled",
    )
    assert upgrade.installed("\n".join(lines), ["nvidia-", "libnvidia-"]) == {
        "nvidia-driver": "580.1-1",
        "libnvidia-cfg1:amd64": "580.1-1",
    }


def test_candidates_are_those_that_there_are(upgrade: ModuleType) -> None:
    said = "nvidia-driver:\n  Installed: 1\n  Candidate: 2\n  Version table:\n     2 500\nodd:\n  Candidate: (none)\n"
    assert upgrade.candidates(said) == {"nvidia-driver": "2"}


def test_a_simulation_says_what_is_new_and_what_goes(upgrade: ModuleType) -> None:
    said = (
        "Remv nvidia-old [1]\nInst linux-image-6.1.0-51-amd64 (6.1.140-1 Debian:12 [amd64])\n"
        "Inst linux-image-amd64 [6.1.139-1] (6.1.140-1 Debian:12 [amd64])\nConf linux-image-amd64 (6.1.140-1)\n"
    )
    assert upgrade.simulated(said) == (["linux-image-6.1.0-51-amd64"], ["nvidia-old"])


def test_a_kept_package_is_found_by_its_exact_version(
    upgrade: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "ARCHIVES", "/nowhere")  # not what this computer has fetched
    for name in ("nvidia-driver_1%3a580.1-1_amd64.deb", "nvidia-driver_1%3a580.1-10_amd64.deb"):
        (tmp_path / name).touch()
    assert upgrade.at_hand("nvidia-driver:amd64", "1:580.1-1", str(tmp_path)).endswith("580.1-1_amd64.deb")
    assert upgrade.at_hand("nvidia-driver", "580.1-1", str(tmp_path)) is None


GRUB = r"""
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-0a1b' {
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-0a1b' {
    menuentry 'Debian, with Linux 6.1.0-51-amd64' $menuentry_id_option 'gnulinux-6.1.0-51-amd64-advanced-0a1b' {
    menuentry 'Debian, with Linux 6.1.0-50-amd64' $menuentry_id_option 'gnulinux-6.1.0-50-amd64-advanced-0a1b' {
    menuentry 'Debian (recovery mode)' $menuentry_id_option 'gnulinux-6.1.0-50-amd64-recovery-0a1b' {
"""


@pytest.mark.parametrize(
    ("menu", "choice"),
    [
        (GRUB, "sudo grub-reboot 'gnulinux-advanced-0a1b>gnulinux-6.1.0-50-amd64-advanced-0a1b'"),
        ("", "choose 6.1.0-50-amd64 in the boot loader's menu"),
    ],
)
def test_the_way_back_leads_over_the_old_kernel(upgrade: ModuleType, menu: str, choice: str) -> None:
    book = {"new": ["linux-image-6.1.0-51-amd64"], "kernel": "6.1.0-50-amd64", "drained": False}
    said = [line.split("    #")[0] for line in upgrade.way_back(book, "/etc/book", "/var/kept", menu, ["a.deb"])]
    assert said == [
        "sudo apt-get install --yes --allow-downgrades /var/kept/*.deb",
        choice,
        "sudo systemctl reboot",
        "sudo apt-get purge linux-image-6.1.0-51-amd64",
        "sudo rm -rf /etc/book /etc/book.drained /var/kept",
        "runner drain --off",
    ]


def test_the_way_back_of_a_driver_alone_is_short(upgrade: ModuleType) -> None:
    book = {"new": [], "kernel": "6.1.0-50-amd64", "drained": True}
    said = upgrade.way_back(book, "/etc/book", "/var/kept", "", ["a.deb"])
    assert [line.split()[1] for line in said] == ["apt-get", "systemctl", "rm"], "and the queue stays as it was"


@pytest.mark.parametrize("owners", [False, True])
def test_a_run_that_ends_while_it_waits_leaves_word_whose_the_drain_is(
    upgrade: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owners: bool
) -> None:
    queue = {"draining": owners}
    monkeypatch.setattr(upgrade, "queue", lambda: queue)
    monkeypatch.setattr(upgrade, "run", lambda *words, **more: queue.update(draining=words[-1] != "--off"))
    asked = {"book": str(tmp_path / "book"), "kept": str(tmp_path / "kept")}
    for _ in range(2):  # the second run finds what the first has drained
        assert upgrade.drain(asked, False)["drained"] is owners
    assert queue["draining"]
    assert upgrade.read(asked["book"])["state"] == "none"
    if not owners:
        upgrade.undrain(asked, False)
        assert (queue["draining"], list(tmp_path.glob("book*"))) == (False, [])


# --- on a host -------------------------------------------------------------------------------------------------------

BREAKS = {"/usr/lib/systemd/system/gpubox-job-.service.d/broken.conf": "[Service]\nExecStartPre=/bin/false\n"}


def offer(repository: Archive, host: box.Box, version: str, kernel: str, breaks: bool = False) -> str:
    """Kernel and driver of a version; the URL."""
    repository.add("nvidia-driver", version, depends=f"nvidia-kernel-dkms (= {version})")
    repository.add("nvidia-kernel-dkms", version, files=BREAKS if breaks else {"/usr/share/nvidia/version": version})
    repository.add(f"linux-image-{kernel}", version)
    repository.add("linux-image-stand-in", version, depends=f"linux-image-{kernel}")
    repository.publish()
    return repository.serve(host)


@pytest.fixture(scope="module")
def owner(bed_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    """Of a box with a queue, and nothing else."""
    hosts._need((*box.TOOLS, *archive.TOOLS))
    with closing(box.Box(bed_run, "trixie")) as host:
        place = tmp_path_factory.mktemp("owner")
        owner = Owner(host, place)
        owner.setup(book=owner.book("preflight", "plan", "base", "runner"))
        yield owner


@pytest.fixture(scope="module")
def repository(owner: Owner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    made = Archive(tmp_path_factory.mktemp("archive") / "stand-ins")
    url = offer(made, owner.host, "580.1-1", "6.1.0-50-stand-in")
    owner.host.run("cat >/etc/apt/keyrings/stand-ins.asc", text=made.key)
    line = f"deb [signed-by=/etc/apt/keyrings/stand-ins.asc] {url} /\n"
    owner.host.run("cat >/etc/apt/sources.list.d/stand-ins.list", text=line)
    owner.host.run("apt-get update --quiet && apt-get install --yes nvidia-driver linux-image-stand-in")
    yield made
    made.remove()


def go(owner: Owner, *words: str) -> subprocess.CompletedProcess[str]:
    owner.host.run("apt-get update --quiet")
    return owner.run(PLAYBOOKS / "upgrade.yml", *words)


def versions(owner: Owner) -> dict[str, str]:
    query = r"dpkg-query --show --showformat='${Package} ${Version} ${db:Status-Status}\n' 'nvidia*' 'linux-image*'"
    rows = [line.split() for line in owner.host.run(query).splitlines()]
    return {row[0]: row[1] for row in rows if row[-1] == "installed"}


def submit(owner: Owner, words: str) -> str:
    return owner.host.run(f"mkdir -p project; cd project; runner submit --base {words}")


def way_back(said: str) -> list[str]:
    """The printed commands, which YAML quotes where they have a remark."""
    return re.findall(r"^ *- '?((?:sudo|runner) .*?)(?:    #.*)?'?$", said.split("rescued=")[0], re.M)


@pytest.mark.box
def test_an_upgrade_that_fails_stays_drained_and_its_way_back_leads_back(owner: Owner, repository: Archive) -> None:
    host = owner.host
    done = go(owner)
    assert "the newest there are" in done.stdout
    assert "changed=0" in done.stdout

    offer(repository, host, "580.2-1", "6.1.0-51-stand-in", breaks=True)
    before = versions(owner)
    script = 'while [ ! -e "$RUNNER_OUT/go" ]; do sleep 0.05; done; exit 3'
    job = submit(owner, f"-d -- sh -c {shlex.quote(script)}").split()[-1]
    wait_until(lambda: "running" in host.run("runner ps"), 20)
    refused = go(owner)
    assert refused.returncode != 0
    assert f"Still at work: job {job} (root's sh)" in " ".join(refused.stdout.split())
    assert (versions(owner), "draining" in host.run("runner box")) == (before, False)
    assert "running" in host.run("runner ps"), "not disturbed"
    host.run(f"touch /var/lib/gpubox/jobs/{job}/out/go")
    assert host.ssh(f"runner wait {job}").returncode == 3

    boot = host.boot_id()
    done = go(owner, "-e", "gpubox_upgrade_wait=1")
    assert done.returncode != 0
    assert host.boot_id() != boot
    assert versions(owner)["nvidia-driver"] == "580.2-1"
    assert "linux-image-6.1.0-51-stand-in" in versions(owner)
    assert "draining" in host.run("runner box")
    assert json.loads(host.run("cat /etc/gpubox/upgrade.json"))["state"] == "installed"

    commands = way_back(done.stdout)
    assert [line.split()[1] for line in commands] == ["apt-get", "systemctl", "apt-get", "rm", "drain"]
    for line in commands:
        if "systemctl reboot" in line:
            host.reboot()
        else:
            host.run(line.replace("sudo ", "").replace("purge", "purge --yes"))
    assert versions(owner) == before
    assert "works" in submit(owner, "-- echo works")


@pytest.mark.box
def test_an_upgrade_that_was_cut_goes_on_and_lets_jobs_start(owner: Owner, repository: Archive, tmp_path: Path) -> None:
    host = owner.host
    offer(repository, host, "580.3-1", "6.1.0-52-stand-in")
    host.run("apt-get update --quiet")
    steps = [
        {"gpubox_upgrade": {"step": one, "together": ["nvidia-", "linux-"]}} for one in ("drain", "keep", "install")
    ]
    shutil.copytree(PLAYBOOKS / "roles/upgrade/library", tmp_path / "library")
    book = tmp_path / "cut.yml"
    book.write_text(yaml.safe_dump([{"hosts": "boxes", "gather_facts": False, "tasks": steps}]))
    assert owner.run(book).returncode == 0
    waits = submit(owner, "-d -- echo later").split()[-1]
    done = go(owner)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "goes on" in done.stdout
    assert versions(owner)["nvidia-driver"] == "580.3-1"
    assert host.ssh(f"runner wait {waits}").returncode == 0, "it waited for the proof, and then ran"
    assert host.ssh("ls /etc/gpubox/upgrade.json /var/cache/gpubox-upgrade").returncode != 0
    assert "changed=0" in go(owner).stdout
