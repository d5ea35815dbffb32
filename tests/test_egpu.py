"""The role egpu: whom Thunderbolt admits, and what is said of a GPU behind a cable."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bed.box import Box
from hosts import a_host, bed_run  # noqa: F401
from machines import ROLES, Machine
from test_playbooks import PLAYBOOKS, Owner

sys.path.insert(0, str(ROLES / "egpu/filter_plugins"))

from gpubox_thunderbolt import thunderbolt

UUID = "d3030000-0000"


class Row(NamedTuple):
    name: str
    build: Callable[[Machine], Machine]
    wished: bool
    enrols: bool = False
    problem: str = ""
    says: tuple[str, ...] = ()  # each somewhere in the notes; none: there are none
    enrolled: tuple[str, ...] = ()


def unguarded(machine: Machine) -> Machine:
    return machine.file("sys/bus/thunderbolt/devices/domain0/iommu_dma_protection", "0\n")


def unplugged(machine: Machine) -> Machine:
    shutil.rmtree(machine.root / "sys/bus/thunderbolt/devices/0-1")
    return machine


OUT: dict[str, Any] = {"authorised": False}
ROWS = [
    Row("no Thunderbolt", lambda m: m.gpu("2204"), False),
    Row("no Thunderbolt, wished", lambda m: m.gpu("2204"), True, says=("No Thunderbolt or USB4 port is here",)),
    Row("a dock, not wished", lambda m: m.thunderbolt(**OUT), False,
        says=(f"Razer Core X ({UUID}) is plugged in over Thunderbolt and not admitted", "gpubox_egpu: true")),
    Row("a dock, wished", lambda m: unguarded(m.thunderbolt(**OUT)), True, enrols=True),
    Row("secure", lambda m: unguarded(m.thunderbolt("secure", **OUT)), True, enrols=True),
    Row("with an IOMMU, bolt admits what comes", lambda m: m.thunderbolt(**OUT), True, enrols=True,
        says=("bolt admits whatever is plugged in from now on",)),
    Row("admitted by the firmware at boot, but not for good", lambda m: unguarded(m.thunderbolt()), True, enrols=True),
    Row("for good", lambda m: unguarded(m.thunderbolt()), True, enrolled=(UUID,)),
    Row("known, but kept out", lambda m: unguarded(m.thunderbolt(**OUT)), True, enrolled=(UUID,),
        says=(f"Next: boltctl authorize {UUID}",)),
    Row("nothing plugged in", lambda m: unguarded(unplugged(m.thunderbolt())), True,
        says=("Nothing is plugged in over Thunderbolt now.",)),
    Row("none: nobody is asked", lambda m: unguarded(m.thunderbolt("none")), True,
        says=("without asking (security level none), and all of the memory is open",)),
    Row("none, and an IOMMU", lambda m: m.thunderbolt("none"), False, says=("keeps it to memory of its own",)),
    *(
        Row(f"{level}, {'wished' if wished else 'not wished'}", lambda m, level=level: m.thunderbolt(level, **OUT),  # type: ignore[misc]
            wished, problem=f"(security level {level})" if wished else "")
        for level in ("dponly", "usbonly", "nopcie")
        for wished in (True, False)
    ),
    Row("a GPU behind a cable", lambda m: unguarded(m.gpu("2204", external=True, lanes=(4, 16)).thunderbolt()), True,
        enrolled=(UUID,), says=("GeForce RTX 3090 (0000:01:00.0) is behind a cable. 4 of its 16 lanes are in use.",
                                "about 3 GB a second", "never pull the cable")),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_whom_thunderbolt_admits(tmp_path: Path, row: Row) -> None:
    facts = row.build(Machine(tmp_path)).facts()
    made = thunderbolt(facts, row.wished, row.enrolled, {"0000:01:00.0": "GeForce RTX 3090"})
    assert made["enrol"] == ([{"uuid": UUID, "name": "Razer Core X"}] if row.enrols else [])
    assert row.problem in made["problem"]
    assert bool(row.problem) == bool(made["problem"])
    notes = "\n".join(made["notes"])
    assert [words for words in row.says if words not in notes] == []
    assert bool(notes) == bool(row.says)


def test_nothing_here_sets_a_parameter_of_the_kernel() -> None:
    for path in [*(PLAYBOOKS / "roles/egpu").rglob("*.yml"), *(PLAYBOOKS / "roles/egpu").rglob("*.py")]:
        assert not re.search(r"grub|cmdline|pci=|pcie_|iommu=|modprobe", path.read_text()), path


BOOK = """
- name: A GPU behind Thunderbolt alone
  hosts: boxes
  gather_facts: false
  vars: # what the role takes of the plan, which asks apt for longer than all the rest takes
    plan_facts: "{{ preflight_facts }}"
    plan_decision: {cards: [{address: "0000:01:00.0", name: GeForce RTX 3090}]}
  roles: [preflight, egpu]
"""
BOLTCTL = f"""#!/bin/sh
# enroll --policy auto UUID
echo "$*" >>/var/tmp/said
mkdir -p /tree/var/lib/boltd/devices
echo "policy=$3" >"/tree/var/lib/boltd/devices/$4"
[ "$4" = {UUID} ] && echo 1 >/tree/sys/bus/thunderbolt/devices/0-1/authorized
"""


@pytest.mark.box
def test_a_device_is_admitted_on_a_host_where_its_owner_says_so(
    a_host: Callable[..., Box],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Thunderbolt is files, and boltctl a stand-in: a host of the bed has no ports. The package is real."""
    owner = Owner(a_host(), tmp_path)
    host = owner.host
    shutil.copytree(PLAYBOOKS, tmp_path / "playbooks", ignore=shutil.ignore_patterns("__pycache__"))
    book = tmp_path / "playbooks/egpu.yml"
    book.write_text(BOOK)
    machine = Machine(tmp_path / "tree", "debian-13").gpu("2204", external=True, lanes=(4, 16))
    unguarded(machine.thunderbolt(authorised=False))
    shutil.make_archive(str(tmp_path / "tree"), "tar", machine.root)  # its links lead nowhere here, so no scp
    host.put(tmp_path / "tree.tar", "/tmp/tree.tar")
    host.run("mkdir /tree; tar --extract --file=/tmp/tree.tar --directory=/tree")
    host.run("cat >/usr/local/bin/boltctl; chmod +x /usr/local/bin/boltctl", text=BOLTCTL)

    def setup(*words: str, fails: bool = False, **wishes: object) -> tuple[int, str]:
        roots = {"preflight_root": "/tree", "egpu_root": "/tree"}
        done = owner.run(book, *words, "--extra-vars", json.dumps({**roots, **wishes}))
        assert (done.returncode != 0) == fails, done.stdout[-6000:] + done.stderr
        found = re.search(r"changed=(\d+)", done.stdout)
        assert found is not None
        return int(found[1]), " ".join(done.stdout.split())

    assert setup("--check", gpubox_egpu=True)[0] == 3
    changed, said = setup(gpubox_egpu=True)
    assert changed == 3
    assert "GeForce RTX 3090 (0000:01:00.0) is behind a cable. 4 of its 16 lanes are in use." in said
    assert host.run("cat /var/tmp/said") == f"enroll --policy auto {UUID}\n"
    assert host.run("dpkg-query --show --showformat='${db:Status-Status} ' bolt polkitd") == "installed installed "
    assert setup(gpubox_egpu=True)[0] == 0
    assert setup("--check", gpubox_egpu=True)[0] == 0
    kinds = {(one["kind"], one["name"]) for one in json.loads(host.run("cat /etc/gpubox/receipt.json"))["items"]}
    assert {("package", "bolt"), ("file", f"/var/lib/boltd/devices/{UUID}")} <= kinds
    host.run("echo nopcie >/tree/sys/bus/thunderbolt/devices/domain0/security")
    changed, said = setup(fails=True, gpubox_egpu=True)
    assert "admits no PCI devices over Thunderbolt" in said
    assert changed == 0
