"""What the role containers reads and writes; what it does on a host is in test_stack.py."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from machines import Machine, gpubox_decision
from test_playbooks import PLAYBOOKS, ansible

pytestmark = pytest.mark.long

DEFAULTS = {"ip": "127.0.0.1", "features": {"cdi": True}}


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PLAYBOOKS / f"roles/containers/library/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


# --- without a host --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "otherwise"),
    [
        ("", DEFAULTS, []),
        ('{"log-driver": "journald"}', {"log-driver": "journald", **DEFAULTS}, []),
        ('{"ip": "0.0.0.0"}', {"ip": "0.0.0.0", "features": {"cdi": True}}, ["ip"]),
        ('{"features": {"buildkit": true}}', {"features": {"buildkit": True, "cdi": True}, "ip": "127.0.0.1"}, []),
        ('{"features": {"cdi": false}}', {"features": {"cdi": False}, "ip": "127.0.0.1"}, ["features.cdi"]),
        ('{"features": null}', {"features": None, "ip": "127.0.0.1"}, ["features"]),
    ],
)
def test_dockers_settings_keep_what_the_owner_wrote(before: str, after: dict[str, Any], otherwise: list[str]) -> None:
    settings = module("gpubox_docker_settings")
    made, said = settings.merged(settings.parsed(before), DEFAULTS)
    assert made == after
    assert [words.split()[0] for words in said] == otherwise
    assert settings.merged(made, DEFAULTS)[0] == made


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1,}', "ip: 127.0.0.1"])
def test_what_is_no_settings_is_left_alone(text: str) -> None:
    settings = module("gpubox_docker_settings")
    with pytest.raises(settings.Unfit):
        settings.parsed(text)


def test_settings_that_dockerd_refuses_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, path = module("gpubox_docker_settings"), tmp_path / "daemon.json"
    path.write_text("{}")
    path.chmod(0o600)
    dockerd = tmp_path / "dockerd"
    dockerd.write_text("#!/bin/sh\necho no such directive; exit 1\n")
    dockerd.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(settings.Unfit, match="no such directive"):
        settings.write(str(path), "{}\n")
    assert not list(tmp_path.glob("daemon.json?*"))
    dockerd.write_text("#!/bin/sh\n")
    settings.write(str(path), "{}\n")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("{}\n", 0o600)


def test_who_has_no_ids_gets_a_range_that_nobody_has() -> None:
    facts = module("gpubox_container_facts")
    uids, gids = "owner:100000:65536\n1001:165536:65536\n", "owner:100000:65536\n"
    accounts = {"owner": ("owner", "1000"), "ada": ("ada", "1001"), "gpubox-job": ("gpubox-job", "998")}
    assert facts.subids(uids, gids, accounts) == [
        ["--add-subgids", "231072-296607", "ada"],
        ["--add-subuids", "296608-362143", "gpubox-job"],
        ["--add-subgids", "296608-362143", "gpubox-job"],
    ]
    assert facts.subids("", "", {"gpubox-job": ()})[0] == ["--add-subuids", "100000-165535", "gpubox-job"]


def test_apts_words_are_read() -> None:
    text = (
        "podman:\n  Installed: (none)\n  Candidate: 5.4.2+ds1-2\n  Version table:\nx:\n  Installed: 1\n  Candidate: 1\n"
    )
    assert module("gpubox_container_facts").policy(text) == {"podman": ("(none)", "5.4.2+ds1-2"), "x": ("1", "1")}


@pytest.mark.parametrize(
    ("loaded", "installed", "described", "stale"),
    [
        ("", "", set(), False),
        ("", "580.95.05", set(), False),
        ("580.95.05", "580.95.05", set(), True),
        ("580.95.05", "580.95.05", {"580.95.05"}, False),
        ("580.126.09", "580.126.09", {"580.95.05"}, True),
        ("580.126.09", "580.126.09", {"580.95.05", "580.126.09"}, True),
        ("580.95.05", "580.126.09", {"580.95.05"}, False),
    ],
)
def test_a_description_of_another_driver_is_stale(
    loaded: str, installed: str, described: set[str], stale: bool
) -> None:
    assert module("gpubox_container_facts").stale(loaded, installed, described) is stale


REFRESH = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars_files: ["{roles}/defaults/main.yml", "{roles}/vars/main.yml"]
  tasks:
    - ansible.builtin.debug:
        msg: "{{{{ item }}}} {{{{ 'refreshed' if {when} else 'left' }}}}"
      loop: [ready, unready]
      vars:
        plan_decision: {{containers: {{toolkit: [a]}}}}
        containers_older: {{changed: true}}
        containers_newer: {{skipped: true}}
        containers_read: {{ready: "{{{{ item == 'ready' }}}}", stale: false}}
        containers_reread: {{skipped: true}}
"""


def test_gpus_are_not_described_before_their_driver_is_loaded(tmp_path: Path) -> None:
    """Else the toolkit fails, and with it the play, before it comes to the restart that would load the driver."""
    facts = module("gpubox_container_facts")
    assert facts.ready("580.95.05", "580.95.05")
    assert not any(facts.ready(*versions) for versions in (("", ""), ("", "580.95.05"), ("580.95.05", "580.126.09")))
    role = PLAYBOOKS / "roles/containers"
    tasks = yaml.safe_load((role / "tasks/running.yml").read_text())
    when = next(task["when"] for task in tasks if task["name"] == "Describe the GPUs as they are now")
    (tmp_path / "play.yml").write_text(REFRESH.format(roles=role, when=when))
    done = ansible("ansible-playbook", "play.yml", folder=tmp_path)
    assert re.findall(r"msg.*?(\w+ (?:refreshed|left))", done.stdout) == ["ready refreshed", "unready left"], (
        done.stdout
    )


def test_the_drivers_library_says_its_version(tmp_path: Path) -> None:
    facts = module("gpubox_container_facts")
    real = tmp_path / "usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.550.163.01"
    real.parent.mkdir(parents=True)
    real.touch()
    (real.parents[2] / "libcuda.so.1").symlink_to(real)
    assert facts.installed(str(tmp_path)) == "550.163.01"
    assert facts.loaded(str(tmp_path)) == ""


# --- what each release gets ------------------------------------------------------------------------------------------

TOOLKIT = ["nvidia-container-toolkit", "nvidia-container-toolkit-base", "libnvidia-container-tools",
           "libnvidia-container1"]  # fmt: skip
NVIDIAS = ("https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH)", "Suites: /")
OLDER = "/etc/systemd/system/nvidia-cdi-refresh.service.d/gpubox.conf"
LOCAL = {"ip": "127.0.0.1", "features": {"cdi": True}}
OWN = "deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/ubuntu noble stable\n"


def docker_of(system: str, codename: str) -> tuple[str, str]:
    return f"https://download.docker.com/linux/{system}", f"Suites: {codename}\nComponents: stable"


# Release, engine -> repositories that apt is told of, packages of the toolkit, and whether GPUs are described for an
# older podman.
RELEASES: dict[tuple[str, str], tuple[list[tuple[str, str]], list[str], bool]] = {
    ("debian-12", "podman"): ([NVIDIAS], TOOLKIT, True),
    ("debian-13", "podman"): ([NVIDIAS], TOOLKIT, False),
    ("ubuntu-22.04", "podman"): ([], [], False),
    ("ubuntu-24.04", "podman"): ([NVIDIAS], TOOLKIT, True),
    ("ubuntu-26.04", "podman"): ([NVIDIAS], TOOLKIT, False),
    ("debian-12", "docker"): ([docker_of("debian", "bookworm"), NVIDIAS], TOOLKIT, False),
    ("debian-13", "docker"): ([docker_of("debian", "trixie"), NVIDIAS], TOOLKIT, False),
    ("ubuntu-22.04", "docker"): ([docker_of("ubuntu", "jammy"), NVIDIAS], TOOLKIT, False),
    ("ubuntu-24.04", "docker"): ([docker_of("ubuntu", "noble"), NVIDIAS], TOOLKIT, False),
    ("ubuntu-26.04", "docker"): ([docker_of("ubuntu", "resolute"), NVIDIAS], TOOLKIT, False),
    ("ubuntu-24.04, a source of the owner's", "docker"): ([NVIDIAS], TOOLKIT, False),
    ("ubuntu-24.04, no GPU", "docker"): ([docker_of("ubuntu", "noble")], [], False),
}
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars_files: ["{roles}/defaults/main.yml", "{roles}/vars/main.yml"]
  tasks:
    - ansible.builtin.set_fact:
        rows: "{{{{ rows | default([]) + [row] }}}}"
      loop: "{{{{ machines }}}}"
      vars:
        preflight_facts: "{{{{ item['facts'] }}}}"
        plan_decision: "{{{{ item['plan'] }}}}"
        row: "{{{{ [containers_added, containers_packages, containers_files, containers_docker_defaults] }}}}"
    - ansible.builtin.copy:
        content: "{{{{ rows | to_json }}}}"
        dest: "{place}/rows.json"
        mode: "0600"
"""


def test_each_release_gets_its_own_repositories_and_settings(tmp_path: Path) -> None:
    machines = []
    for number, (release, engine) in enumerate(RELEASES):
        system, _, special = release.partition(", ")
        machine = Machine(tmp_path / f"root{number}", system)
        if special != "no GPU":
            machine.gpu("2204").loaded("580.126.09")
        if special == "a source of the owner's":
            machine.source("sources.list.d/docker.list", OWN)
        facts = machine.facts()
        facts["system"]["codename"] = facts["system"]["codename"] or "resolute"
        machines.append({"facts": facts, "plan": gpubox_decision.plan(facts, {"containers": engine})})
    (tmp_path / "machines.json").write_text(json.dumps({"machines": machines}))
    (tmp_path / "play.yml").write_text(PLAY.format(roles=PLAYBOOKS / "roles/containers", place=tmp_path))
    done = ansible("ansible-playbook", "-e", "@machines.json", "play.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    for row, ((release, engine), (repositories, toolkit, older)) in zip(rows, RELEASES.items(), strict=True):
        added, packages, files, settings = row
        name = f"{engine} on {release}"
        assert [(one["url"], one["where"]) for one in added] == repositories, name
        assert [package for package in packages if "nvidia" in package] == toolkit, name
        assert packages[0] == {"podman": "podman", "docker": "docker-ce"}[engine], name
        assert (OLDER in files) == older, name
        assert all(f"/etc/apt/keyrings/{one['name']}.asc" in files for one in added), name
        assert settings == (LOCAL if toolkit else {"ip": "127.0.0.1"}), name
