"""The process that brings outputs home in the background, and boxes that are in its way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runner import errors, paths
from runner.laptop import awaited, client, courier, detached, flow


class Box:
    """A client whose box says what it was told to say."""

    def __init__(self, name: str, jobs: Any, project: str = "") -> None:
        self.box, self.jobs, self.project = name, jobs, project
        self.patience = client.REPLY_SECONDS

    def get(self, path: str) -> Any:
        if isinstance(self.jobs, Exception):
            raise self.jobs
        if path.startswith("/jobs?ids="):
            number = int(path.removeprefix("/jobs?ids=").partition("&")[0])
            known = {"id": number, "state": "succeeded", "fetched_at": None, "project": self.project}
            return {"jobs": [known]} if self.jobs == "fine" else self.jobs
        if path.endswith("/outputs"):
            return {"outputs": [{"path": "a", "size": 3, "mode": 0o644, "modified_at": 1.0}], "links": {}}
        return {"job": {"id": int(path.rpartition("/")[2]), "state": "succeeded"}}

    def post(self, path: str, json: Any = None) -> Any:
        return {"differ": []}

    def stream(self, method: str, path: str) -> Any:
        yield b"abc"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUBOX_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("GPUBOX_COURIER", raising=False)
    monkeypatch.setattr(os, "setsid", lambda: None)
    (tmp_path / "project").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


def visit(monkeypatch: pytest.MonkeyPatch, *found: Box) -> list[str]:
    """What couriers say that found these boxes."""
    known = {each.box: each for each in found}
    monkeypatch.setattr(courier.boxes, "open_box", lambda name, start=True: known[name])
    for name in known:
        assert courier.main(name) == 0
    return awaited.news()


@pytest.mark.parametrize(
    "said",
    [
        {"jobs": [{}]}, {"jobs": None}, {}, [], "text",
        {"jobs": [{"id": "x", "state": "succeeded", "fetched_at": None}]},
        errors.Unreachable("away"), errors.NotTrusted("revoked"), RecursionError(), OSError(5, "odd"),
    ],
    ids=str,
)  # fmt: skip
def test_a_box_that_is_away_or_says_nonsense_keeps_no_other_from_coming(
    home: Path, monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    project = str(home / "project")
    awaited.note("abad", "1", "", project)
    awaited.note("good", "2", "", project)
    told = visit(monkeypatch, Box("abad", said), Box("good", "fine"))
    assert told == [f"the outputs of job 2 came home: 1 file in {project}/runs/good-2/"]
    assert (home / "project/runs/good-2/a").read_text() == "abc"
    assert awaited.all_of() == {"abad": {"1": ""}}


def test_a_box_does_not_say_where_outputs_go_in_the_background(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "private").mkdir()
    awaited.note("box", "1", "", str(home / "project"))
    visit(monkeypatch, Box("box", "fine", project=str(home / "private")))
    assert (home / "project/runs/box-1/a").exists()
    assert os.listdir(home / "private") == []


def test_what_has_no_place_any_more_is_told_once_and_put_nowhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    awaited.note("box", "1", "", str(home / "gone"))
    awaited.note("box", "2", "", str(home / "project"))
    told = visit(monkeypatch, Box("box", "fine"))
    assert told == [
        f"the outputs of 1 are still on box: there is no writing to {home}/gone; "
        "`runner pull 1` brings them to where you are",
        f"the outputs of job 2 came home: 1 file in {home}/project/runs/box-2/",
    ]
    assert (os.listdir(home / "cwd"), awaited.all_of()) == ([], {})


def test_a_full_disk_is_told_too_and_is_in_nobodys_way(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring = courier.pull

    def pull(api: Any, job_id: int, *more: Any) -> Any:
        if job_id == 1:
            raise errors.DiskFull("no room on this computer", "make room; then `runner pull 1`")
        return bring(api, job_id, *more)

    monkeypatch.setattr(courier, "pull", pull)
    for number in ("1", "2"):
        awaited.note("box", number, "", str(home / "project"))
    told = visit(monkeypatch, Box("box", "fine"))
    assert told[0] == "the outputs of 1 are still on box: no room on this computer; make room; then `runner pull 1`"
    assert "the outputs of job 2 came home" in told[1]
    assert visit(monkeypatch, Box("box", "fine")) == []


def test_each_box_has_a_courier_of_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(detached, "start", started.append)
    for box in ("slow", "fine"):
        awaited.note(box, "1", "", str(home / "project"))
        awaited.note(box, "2", "", str(home / "project"))
    monkeypatch.setattr(awaited, "_noted", "")
    held = awaited.lock("slow")
    assert held is not None
    awaited.send(os.listdir(paths.state_dir().awaited))
    assert started == [["-m", "runner.laptop.courier", "fine"]], "one to the other was sent a moment ago"
    assert visit(monkeypatch, Box("slow", "fine")) == [], "and is at it"
    assert len(visit(monkeypatch, Box("fine", "fine"))) == 2
    os.close(held)


def test_a_box_that_sends_next_to_nothing_is_left_for_now_and_told_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    awaited.note("box", "1", "", str(home / "project"))
    slow, fine = Box("box", flow.Trickle("next to nothing", "try again")), Box("box", "fine")
    said = ["the outputs of your jobs on box do not come: next to nothing; try again"]
    assert [visit(monkeypatch, slow) for _ in range(3)] == [said, [], []]
    assert awaited.all_of() == {"box": {"1": ""}}
    assert len(visit(monkeypatch, fine)) == 1, "it comes with the next one"
    awaited.note("box", "2", "", str(home / "project"))
    assert visit(monkeypatch, slow) == said


class Array(Box):
    """Of a group of 10,000 jobs, of which one came home already and the last goes on."""

    asked: list[str]

    def get(self, path: str) -> Any:
        self.asked.append(path)
        if path.startswith("/groups/"):
            return {"group": "g1", "jobs": {"succeeded": 9999, **self.jobs}}
        if path == "/jobs?ids=g1&unfetched=1":
            return {"jobs": [{"id": 7, "state": "succeeded", "fetched_at": None, "project": ""}]}
        return super().get(path)


@pytest.mark.parametrize("state", ["running", "succeeded"])
def test_of_a_group_only_what_is_new_is_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    awaited.note("box", "g1", "", str(home / "project"))
    box = Array("box", {state: 1})
    box.asked = []
    assert len(visit(monkeypatch, box)) == 1
    assert box.asked[:2] == ["/groups/g1", "/jobs?ids=g1&unfetched=1"]
    assert not [path for path in box.asked[2:] if not path.startswith("/jobs/7")]
    assert awaited.all_of() == ({"box": {"g1": ""}} if state == "running" else {})


def test_nor_does_it_for_a_job_of_which_no_folder_was_noted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "private").mkdir()
    awaited.note("box", "1", "", "")  # as `runner rerun -d` notes it
    told = visit(monkeypatch, Box("box", "fine", project=str(home / "private")))
    assert "there is no writing to its project's folder" in told[0]
    assert (os.listdir(home / "private"), os.listdir(home / "cwd")) == ([], [])
    awaited.remember("box", str(home / "project"))
    awaited.note("box", "2", "", "")
    visit(monkeypatch, Box("box", "fine", project=str(home / "project")))
    assert (home / "project/runs/box-2/a").exists()
