"""Going from one version to the next: of the runner, and of kernel and driver (`upgrade.yml`)."""

from __future__ import annotations

import os
from pathlib import Path

from test_playbooks import module

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
