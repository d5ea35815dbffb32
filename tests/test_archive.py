"""The archive of stand-in packages: apt on a host of the bed takes them, and believes their signature alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import tools
from bed.archive import TOOLS, Archive
from bed.box import Box
from hosts import a_host, bed_run, host  # noqa: F401

pytestmark = pytest.mark.box


def test_a_host_installs_and_upgrades_what_stands_in(host: Box, tmp_path: Path) -> None:  # noqa: F811
    for program in TOOLS:
        tools.need(program)
    archive = Archive(tmp_path / "stand-ins")
    archive.add("half", "1.0-1", files={"/opt/half/run": "#!/bin/sh\necho half\n"})
    archive.add("whole", "1.0-1", depends="half (>= 1.0)", scripts={"postinst": "#!/bin/sh\ntouch /opt/half/told\n"})
    archive.publish()
    url = archive.serve(host)
    host.run("cat >/etc/apt/keyrings/stand-ins.asc", text=archive.key)
    source = f"deb [signed-by=/etc/apt/keyrings/stand-ins.asc] {url} /"
    host.run(f"echo '{source}' >/etc/apt/sources.list.d/stand-ins.list; apt-get update; apt-get install --yes whole")
    assert host.run("/opt/half/run; ls /opt/half").split() == ["half", "run", "told"]

    archive.add("half", "2.0-1", files={"/opt/half/run": "#!/bin/sh\necho second\n"})
    archive.publish()
    archive.serve(host)
    host.run("apt-get update; apt-get upgrade --yes")
    assert host.run("/opt/half/run") == "second\n"
    assert "2.0-1" in host.run("apt-cache policy half")

    with open(archive.folder / "InRelease", "a") as file:
        file.write("not signed\n")
    archive.serve(host)
    assert host.ssh("apt-get update --error-on=any").returncode != 0
