"""`runner env`: the environments on the box, and that none goes that somebody needs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import tools
from builders import ANN, BOB, a_hall
from tools import wait_until

from runner import files
from runner.box.envs import READY


def an_environment(box: tools.Box, name: str, days_ago: float = 0.0, ready: bool = True) -> None:
    """As a build leaves it; it need not work."""
    place = Path(box.state.envs, name)
    (place / "venv/lib/python3.13/site-packages/some_package-1.2.dist-info").mkdir(parents=True)
    (place / "venv/lib/python3.13/site-packages/some_package-1.2.dist-info/RECORD").write_bytes(b"x" * 100_000)
    Path(f"{place}.log").write_text("what its build said\n")
    if ready:
        files.put(str(place), READY, {"kind": "uv", "label": "requirements.txt", "built_at": 1e9})
        used_at = time.time() - days_ago * 86400
        os.utime(place / READY, (used_at, used_at))


def test_the_last_job_of_each_environment_and_its_user_are_known(tmp_path: Path) -> None:
    with a_hall(tmp_path / "state") as hall:
        first, _, last = (hall.submit("true", who=who) for who in (BOB, BOB, ANN))
        base = hall.submit("true", who=BOB, environment="base")
        assert (first.environment, base.environment) == ("e1", None)
        assert hall.store.last_of_environments() == {"e1": (last.id, ANN.user)}


@pytest.mark.long
def test_environments_are_listed_shown_and_pruned(box: tools.Box) -> None:
    an_environment(box, "aaaa000000000001", days_ago=2)
    an_environment(box, "aaaa000000000002", days_ago=1)
    an_environment(box, "bbbb000000000003", ready=False)
    found: list[dict[str, Any]] = box.json("env")
    assert [one["id"][:4] + one["id"][-1] for one in found] == ["bbbb3", "aaaa2", "aaaa1"]
    assert [one["state"] for one in found] == ["broken", "ready", "ready"]
    assert all(one["bytes"] > 100_000 and one["jobs"] == [] and one["user"] is None for one in found)
    assert box.run("env").splitlines()[0].split()[:4] == ["ID", "SIZE", "STATE", "USED"]
    said = box.run("env", "show", "bbbb")
    assert "some_package 1.2" in said
    assert "what its build said" in said
    assert "there are 2 environments 'aaaa'" in box.call("env", "show", "aaaa").stderr
    assert "there is no environment 'cccc'" in box.call("env", "prune", "cccc").stderr
    assert "--unused is for prune" in box.call("env", "--unused", "12h").stderr
    trial = box.json("env", "prune", "--dry-run", "--unused", "12h")
    assert sorted(one["id"][-1] for one in trial["removed"]) == ["1", "2"], "the broken one is new"
    assert len(os.listdir(box.state.envs)) == 3 + 3, "with their logs"
    assert [one["id"] for one in box.json("env", "prune", "aaaa000000000001")["removed"]] == ["aaaa000000000001"]
    assert "removed 2 environments" in box.call("env", "prune").stderr
    assert box.json("env") == []
    assert "no environment is built" in box.call("env").stderr


@pytest.mark.long
def test_what_a_job_needs_stays(box: tools.Box, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "requirements.txt").write_text("# nothing\n")
    (project / "train.py").write_text("import time; time.sleep(600)\n")
    job = box.run("submit", "-d", "train.py", cwd=project).strip()
    wait_until(lambda: box.json("ps")[0]["state"] == "running", 60, box.story)
    (one,) = box.json("env")
    assert (one["jobs"], one["last_job"], one["label"], one["state"]) == (
        [int(job)], int(job), "requirements.txt", "ready",
    )  # fmt: skip
    assert one["user"]
    done = box.json("env", "prune")
    assert (done["removed"], done["kept"]) == ([], {one["id"]: [int(job)]})
    refused = box.call("env", "prune", one["id"])
    assert (refused.returncode, f"is needed by job {job}" in refused.stderr) == (75, True)
    box.run("cancel", "--grace", "0", job)
    wait_until(lambda: box.json("env")[0]["jobs"] == [], 20)
    assert [gone["id"] for gone in box.json("env", "prune")["removed"]] == [one["id"]]
    again = box.run("submit", "-d", "train.py", cwd=project).strip()
    wait_until(lambda: [each for each in box.json("ps") if each["state"] == "running"], 60, box.story)
    assert box.json("env")[0]["jobs"] == [int(again)], "it was built anew"
    box.run("cancel", "--grace", "0", again)
