"""Outputs of jobs that nobody followed come home with the next command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import Box, wait_until

pytestmark = pytest.mark.long
LEAVES = ["--base", "--", "sh", "-c", 'echo done > "$RUNNER_OUT/a.txt"']


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    monkeypatch.delenv("GPUBOX_COURIER")
    box = Box(tmp_path / "state")
    try:
        yield box
    finally:
        box.end()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    return folder


def submitted(box: Box, project: Path, *options: str) -> str:
    return box.run("submit", *options, *LEAVES, cwd=project).strip()


def awaited(box: Box) -> set[str]:
    try:
        return {name for name in os.listdir(box.state.awaited) if not name.startswith(".lock")}
    except FileNotFoundError:
        return set()


def rested(box: Box) -> None:
    """As if the last courier had been sent long ago."""
    if os.path.exists(f"{box.state.awaited}/.lock-local"):
        os.utime(f"{box.state.awaited}/.lock-local", (0, 0))


def test_the_next_command_brings_home_what_ended_and_a_later_one_says_so(box: Box, project: Path) -> None:
    job = submitted(box, project, "-d", "--array", "2")
    assert awaited(box) == {f"local:{job}"}
    assert not os.path.exists(f"{box.state.awaited}/.lock-local"), "none is sent for what was submitted just now"
    box.call("wait", job)
    rested(box)
    box.run("ps")
    first = int(job[1:])
    for number in (first, first + 1):
        brought = project / "runs" / f"local-{number}" / "a.txt"
        wait_until(brought.exists, 30, box.story)
    wait_until(lambda: awaited(box) == {".news"}, 30, lambda: awaited(box))
    news = Path(box.state.awaited, ".news").read_text().splitlines()
    assert news == [
        f"the outputs of job {number} came home: 1 file in {project}/runs/local-{number}/"
        for number in (first, first + 1)
    ]


def test_what_was_followed_home_is_not_awaited(box: Box, project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    submitted(box, project, "--pull-to", str(elsewhere))
    assert (elsewhere / "local-1" / "a.txt").read_text() == "done\n"
    assert not (project / "runs").exists()
    submitted(box, project, "--no-pull")
    assert not (project / "runs").exists()
    assert awaited(box) == set()


def test_pull_without_ids_brings_all_that_is_awaited(box: Box, project: Path, tmp_path: Path) -> None:
    box.env["GPUBOX_COURIER"] = "no"
    assert "nothing is awaited from local" in box.call("pull").stderr
    del box.env["GPUBOX_COURIER"]
    job = submitted(box, project, "-d", "--pull-to", str(tmp_path))
    box.env["GPUBOX_COURIER"] = "no"
    wait_until(lambda: not box.json("ps", "--state", "queued,starting,running"), 30, box.story)
    box.run("pull")
    assert (tmp_path / f"local-{job}" / "a.txt").exists()
    assert awaited(box) == set()


def test_what_the_box_does_not_know_any_more_is_awaited_no_longer(box: Box, project: Path) -> None:
    box.env["GPUBOX_COURIER"] = "no"
    assert "nothing is awaited" in box.call("pull").stderr
    del box.env["GPUBOX_COURIER"]
    job = submitted(box, project, "-d", "--array", "2")
    box.env["GPUBOX_COURIER"] = "no"
    Path(box.state.awaited, "local:999").write_text("{}")
    box.call("wait", job)
    done = box.call("pull", cwd=project)
    assert (done.returncode, "does not know job 999 any more" in done.stderr) == (0, True), done.stderr
    assert (project / "runs" / f"local-{job[1:]}" / "a.txt").exists()
    assert awaited(box) == set()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--no-pull", "--pull-to", "."], "do not go together"),
        (["--pull-to", "nowhere"], "there is no such folder"),
    ],
)
def test_a_place_that_is_none_is_refused_before_anything_is_sent(
    box: Box, project: Path, options: list[str], says: str
) -> None:
    done = box.call("submit", *options, *LEAVES, cwd=project)
    assert done.returncode != 0
    assert says in done.stderr
    assert not os.path.exists(box.state)


def test_a_courier_starts_no_daemon_and_gives_up_nothing(box: Box, project: Path) -> None:
    job = submitted(box, project, "-d", "--hold")
    box.run("serve", "--stop")
    rested(box)
    before = os.stat(f"{box.state.awaited}/local:{job}").st_ino
    box.env["GPUBOX_BOX"] = "nobody"
    assert box.call("box", "list").returncode == 0
    wait_until(lambda: os.path.exists(f"{box.state.awaited}/.lock-local"), 20)
    wait_until(lambda: not box.processes(), 20, lambda: box.processes())
    assert os.stat(f"{box.state.awaited}/local:{job}").st_ino == before


def test_a_job_is_brought_to_its_project_again_later_also_from_elsewhere(
    box: Box, project: Path, tmp_path: Path
) -> None:
    job = submitted(box, project, "--no-pull")
    assert awaited(box) == set()
    box.run("pull", "1", cwd=tmp_path)
    assert (project / "runs/local-1/a.txt").exists(), job
    os.unlink(f"{box.state}/projects/local")  # as another computer, or somebody else's job
    done = box.call("pull", "1", cwd=tmp_path)
    assert (tmp_path / "runs/local-1/a.txt").exists()
    assert f"nothing was submitted to local from {project} here" in done.stderr
