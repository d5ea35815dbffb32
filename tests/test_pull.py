"""Outputs come home once, in whole, into one folder; and what a person made or changed there stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner import errors
from runner.box import outputs
from runner.box.custody import Custody
from runner.laptop import awaited, descent
from runner.laptop import client as http
from runner.laptop import pull as pulling
from runner.laptop.pull import Pulled, pull
from runner.paths import StateDir


class Box:
    """A client whose box is a folder."""

    def __init__(self, out: Path) -> None:
        self.box, self.out, self.state = "local", out, "succeeded"
        self.patience = http.REPLY_SECONDS
        self.state_dir = out.parents[2]
        self.damaged = 0  # that many pieces change on their way
        self.fetched: list[str] = []
        self.acknowledged = 0
        self.torn: list[int] = []  # after how many bytes each connection is lost; then none is
        self.lies: dict[str, Any] | None = None

    def get(self, path: str) -> Any:
        if path == "/jobs/42":
            return {"job": {"id": 42, "state": self.state}}
        assert path == "/jobs/42/outputs"
        return json.loads(json.dumps(self.lies or outputs.listing(str(self.out)).as_json()))

    def post(self, path: str, json: Any = None) -> Any:
        assert path == "/jobs/42/fetched"
        if self.lies:
            return {"differ": []}
        differ = Custody(StateDir(self.state_dir)).differing(42, json["hashes"])
        self.acknowledged += not differ
        return {"differ": differ}

    def stream(self, method: str, path: str) -> Iterator[bytes]:
        where, _, offset = path.removeprefix("/jobs/42/outputs/").partition("?offset=")
        self.fetched.append(f"{where}@{offset}")
        if self.lies:
            yield b"lie"
            return
        fd, found = outputs.open_file(str(self.out), outputs.named(where.encode()))
        for piece in outputs.pieces(fd, int(offset), found.st_size):
            if self.damaged:
                self.damaged -= 1
                yield bytes([piece[0] ^ 1]) + piece[1:]
                continue
            if self.torn:
                yield piece[: self.torn.pop(0)]
                raise http.Lost("the connection was lost")
            yield piece


@pytest.fixture
def box(tmp_path: Path) -> Box:
    out = tmp_path / "box" / "jobs" / "42" / "out"
    (out / "plots").mkdir(parents=True)
    (out / "metrics.json").write_text("{}")
    (out / "plots" / "loss.png").write_bytes(b"\x89PNG")
    return Box(out)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    awaited.remember("local", str(folder))
    return folder


def bring(box: Box, project: Path, name: str = "local") -> Pulled:
    return pull(box, 42, name, str(project))  # type: ignore[arg-type]


def home(project: Path) -> dict[str, str]:
    """What lies in the folder at home, the receipt left out."""
    root = project / "runs" / "local-42"
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file() or path.is_symlink()}
    files.pop(pulling.RECEIPT)
    return {name: path.read_text("latin-1") for name, path in sorted(files.items())}


def test_outputs_come_home_and_are_named(box: Box, project: Path) -> None:
    os.chmod(box.out / "metrics.json", 0o700)
    os.utime(box.out / "metrics.json", (5, 1234.5))
    done = bring(box, project)
    assert done.folder == str(project / "runs" / "local-42")
    assert done.files == [("metrics.json", 2), ("plots/loss.png", 4)]
    assert (done.fetched, done.complete, box.acknowledged) == (2, True, 1)
    assert home(project) == {"metrics.json": "{}", "plots/loss.png": "\x89PNG"}
    found = (project / "runs" / "local-42" / "metrics.json").stat()
    assert found.st_mtime == 1234.5
    assert found.st_mode & 0o100


def test_what_is_home_is_not_fetched_again(box: Box, project: Path) -> None:
    bring(box, project)
    box.fetched.clear()
    done = bring(box, project)
    assert (box.fetched, done.fetched, len(done.files)) == ([], 0, 2)


def test_what_is_missing_is_fetched_again(box: Box, project: Path) -> None:
    bring(box, project)
    (project / "runs" / "local-42" / "metrics.json").unlink()
    bring(box, project)
    assert home(project)["metrics.json"] == "{}"


def test_a_job_without_outputs_makes_no_folder(box: Box, project: Path) -> None:
    shutil.rmtree(box.out)
    done = bring(box, project)
    assert (done.files, done.complete, box.acknowledged) == ([], True, 1)
    assert not (project / "runs").exists()


def test_what_changed_on_its_way_is_fetched_again(box: Box, project: Path) -> None:
    box.damaged = 1
    done = bring(box, project)
    assert (done.complete, box.acknowledged, done.refused) == (True, 1, [])
    assert home(project) == {"metrics.json": "{}", "plots/loss.png": "\x89PNG"}
    assert len(done.files) == 2


def test_what_never_arrives_whole_is_told_and_stays_on_the_box(box: Box, project: Path) -> None:
    box.damaged = 1000
    done = bring(box, project)
    assert (done.complete, box.acknowledged) == (False, 0)
    assert done.refused == [
        (path, "it did not arrive as it is on the box") for path in ("metrics.json", "plots/loss.png")
    ]


def test_what_lay_here_already_is_compared_too(box: Box, project: Path) -> None:
    bring(box, project)
    folder = project / "runs" / "local-42"
    (folder / pulling.RECEIPT).unlink()
    kept = (folder / "metrics.json").stat()
    (folder / "metrics.json").write_text("[]")  # of the same size and time, as if it had come so
    os.utime(folder / "metrics.json", ns=(kept.st_mtime_ns, kept.st_mtime_ns))
    assert bring(box, project).complete
    assert home(project)["metrics.json"] == "{}"


def test_the_box_is_given_time_to_read_them_all_again(box: Box, project: Path) -> None:
    """It answers when it has hashed what was fetched: many gigabytes from a slow disk take minutes."""
    size, given = sum(len(path.read_bytes()) for path in box.out.rglob("*") if path.is_file()), []
    post = box.post
    box.post = lambda path, json=None: given.append(box.patience) or post(path, json)  # type: ignore[method-assign]
    bring(box, project)
    assert given == [http.REPLY_SECONDS + size / pulling.READ_BYTES]
    assert box.patience == http.REPLY_SECONDS


def test_outputs_of_a_running_job_are_not_acknowledged(box: Box, project: Path) -> None:
    box.state = "running"
    assert not bring(box, project).complete
    assert box.acknowledged == 0


def test_our_older_copy_gives_way_to_a_newer_one(box: Box, project: Path) -> None:
    box.state = "running"
    bring(box, project)
    (box.out / "metrics.json").write_text('{"epoch": 2}')
    box.state = "succeeded"
    done = bring(box, project)
    assert home(project) == {"metrics.json": '{"epoch": 2}', "plots/loss.png": "\x89PNG"}
    assert (done.fetched, done.aside) == (1, [])


def test_a_file_that_a_person_changed_is_never_overwritten(box: Box, project: Path) -> None:
    bring(box, project)
    mine = project / "runs" / "local-42" / "metrics.json"
    mine.write_text("my notes")
    assert bring(box, project).fetched == 0
    for text in ("second", "third!"):
        (box.out / "metrics.json").write_text(text)
        done = bring(box, project)
        assert done.aside == [("metrics.json", "metrics.json.from-local-42")]
        assert mine.read_text() == "my notes"
        assert home(project)["metrics.json.from-local-42"] == text
    assert bring(box, project).fetched == 0


def test_a_file_that_a_person_made_is_never_overwritten(box: Box, project: Path) -> None:
    folder = project / "runs" / "local-42"
    folder.mkdir(parents=True)
    for name in ("metrics.json", "metrics.json.from-local-42"):
        (folder / name).write_text("mine")
    done = bring(box, project)
    assert done.aside == [("metrics.json", "metrics.json.from-local-42.2")]
    assert home(project)["metrics.json"] == home(project)["metrics.json.from-local-42"] == "mine"
    assert home(project)["metrics.json.from-local-42.2"] == "{}"


def test_a_persons_folder_is_not_replaced_by_a_file(box: Box, project: Path) -> None:
    folder = project / "runs" / "local-42"
    (folder / "plots" / "loss.png").mkdir(parents=True)
    assert bring(box, project).aside == [("plots/loss.png", "plots/loss.png.from-local-42")]
    assert home(project)["plots/loss.png.from-local-42"] == "\x89PNG"


def test_a_person_may_make_a_file_while_ours_is_fetched(box: Box, project: Path) -> None:
    stream = box.stream

    def meanwhile(method: str, path: str) -> Iterator[bytes]:
        (project / "runs" / "local-42" / "metrics.json").write_text("mine")
        return stream(method, path)

    box.stream = meanwhile  # type: ignore[method-assign]
    done = bring(box, project)
    assert home(project)["metrics.json"] == "mine"
    assert done.aside == [("metrics.json", "metrics.json.from-local-42")]


def test_a_torn_fetch_goes_on_where_it_stopped(box: Box, project: Path) -> None:
    (box.out / "plots" / "loss.png").unlink()
    (box.out / "metrics.json").write_bytes(b"0123456789")
    box.torn = [6, 0]
    with pytest.raises(errors.Unreachable):
        bring(box, project)
    assert home(project).keys() != {"metrics.json"}
    assert box.acknowledged == 0
    bring(box, project)
    assert home(project) == {"metrics.json": "0123456789"}
    assert box.fetched == ["metrics.json@0", "metrics.json@6", "metrics.json@6"]


def test_as_long_as_something_comes_a_torn_fetch_goes_on_by_itself(box: Box, project: Path) -> None:
    (box.out / "plots" / "loss.png").unlink()
    (box.out / "metrics.json").write_bytes(b"0123456789")
    box.torn = [3, 1, 4]
    bring(box, project)
    assert home(project) == {"metrics.json": "0123456789"}
    assert box.fetched == [f"metrics.json@{offset}" for offset in (0, 3, 4, 8)]
    assert box.acknowledged == 1


def test_a_torn_fetch_of_an_older_version_is_not_continued(box: Box, project: Path) -> None:
    (box.out / "metrics.json").write_bytes(b"0123456789")
    box.torn = [6, 0]
    with pytest.raises(errors.Unreachable):
        bring(box, project)
    (box.out / "metrics.json").write_bytes(b"abcdefghijk")
    bring(box, project)
    assert home(project) == {"metrics.json": "abcdefghijk", "plots/loss.png": "\x89PNG"}


def test_a_file_that_grows_while_it_is_fetched_is_fetched_again(box: Box, project: Path) -> None:
    stream = box.stream

    def meanwhile(method: str, path: str) -> Iterator[bytes]:
        with open(box.out / "metrics.json", "a") as file:
            file.write("more")
        return stream(method, path)

    box.stream = meanwhile  # type: ignore[method-assign]
    bring(box, project)
    box.stream = stream  # type: ignore[method-assign]
    done = bring(box, project)
    assert (done.fetched, done.aside) == (1, [])
    assert home(project)["metrics.json"] == (box.out / "metrics.json").read_text()


def test_a_file_removed_while_it_is_fetched_does_not_stop_the_others(box: Box, project: Path) -> None:
    stream = box.stream

    def meanwhile(method: str, path: str) -> Iterator[bytes]:
        (box.out / "metrics.json").unlink(missing_ok=True)
        return stream(method, path)

    box.stream = meanwhile  # type: ignore[method-assign]
    done = bring(box, project)
    assert [path for path, _ in done.refused] == ["metrics.json"]
    assert home(project) == {"plots/loss.png": "\x89PNG"}
    assert not done.complete


@pytest.mark.parametrize("name", ["\udcff", "a b?c#%41", "名前", "-rf", "'"])
def test_odd_names_come_home(box: Box, project: Path, name: str) -> None:
    (box.out / name).write_text("odd")
    bring(box, project)
    assert home(project)[name] == "odd"


HOSTILE = ["../x", "/tmp/x", "a/../../x", "", ".", "a//b", "a/", "nul\0", pulling.RECEIPT, f"{descent.PART}1", "out/x"]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_box_cannot_write_outside_of_the_folder(box: Box, project: Path, tmp_path: Path, path: str) -> None:
    folder = project / "runs" / "local-42"
    folder.mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    before = sorted(map(str, tmp_path.rglob("*")))
    box.lies = {"outputs": [{"path": path, "size": 3, "mode": 0o644, "modified_at": 1.0}], "links": {}}
    done = bring(box, project)
    assert [refused for refused, _ in done.refused] == [path]
    assert not done.complete
    assert sorted(map(str, tmp_path.rglob("*"))) == sorted([*before, str(folder / pulling.RECEIPT)])


def test_a_box_that_lists_a_file_as_a_folder_too_breaks_nothing(box: Box, project: Path) -> None:
    twice = [{"path": path, "size": 3, "mode": 0o644, "modified_at": 1.0} for path in ("a", "a/b", "a")]
    box.lies = {"outputs": twice, "links": {"a/c": "x"}}
    assert [path for path, _ in bring(box, project).refused] == ["a/b", "a/c"]
    assert home(project) == {"a": "lie"}


@pytest.mark.parametrize(
    "listed",
    [
        [],
        {"outputs": [{}], "links": {}},
        {"outputs": [], "links": []},
        {"outputs": [{"path": "a", "size": -1, "mode": 0, "modified_at": 1.0}], "links": {}},
        {"outputs": [{"path": "a", "size": 1, "mode": 0, "modified_at": float("nan")}], "links": {}},
        {"outputs": [{"path": "a", "size": "x", "mode": 0, "modified_at": 1e300}], "links": {}},
    ],
)
def test_what_is_no_listing_is_refused(box: Box, project: Path, listed: Any) -> None:
    box.lies = listed or [1]
    with pytest.raises(errors.BadData):
        bring(box, project)
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("path", "target", "comes"),
    [
        ("last", "plots/loss.png", True),
        ("plots/up", "../metrics.json", True),
        ("up", "../x", False),
        ("plots/up", "../../x", False),
        ("root", "/etc/passwd", False),
        ("twisted", "plots/../../../x", False),
        ("twisted", "plots/..", False),
        ("empty", "", False),
    ],
)
def test_links_come_home_only_if_they_stay_inside(box: Box, project: Path, path: str, target: str, comes: bool) -> None:
    box.lies = {"outputs": [], "links": {path: target}}
    done = bring(box, project)
    link = project / "runs" / "local-42" / path
    assert link.is_symlink() == comes
    assert [refused for refused, _ in done.refused] == ([] if comes else [path])
    if comes:
        assert os.readlink(link) == target
        assert bring(box, project).refused == []
        box.lies = {"outputs": [], "links": {path: "metrics.json"}}
        assert bring(box, project).refused == []
        assert os.readlink(link) == "metrics.json"


def test_a_persons_file_is_not_replaced_by_a_link(box: Box, project: Path) -> None:
    folder = project / "runs" / "local-42"
    folder.mkdir(parents=True)
    (folder / "last").write_text("mine")
    box.lies = {"outputs": [], "links": {"last": "metrics.json"}}
    assert [path for path, _ in bring(box, project).refused] == ["last"]
    assert (folder / "last").read_text() == "mine"


def test_without_the_project_the_outputs_come_here(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    awaited.remember("local", str(tmp_path / "gone"))
    done = bring(box, tmp_path / "gone")
    assert done.folder == str(here / "runs" / "local-42")
    assert "is gone" in done.note
    assert home(here).keys() == {"metrics.json", "plots/loss.png"}


def test_a_full_disk_at_home_says_what_to_do(box: Box, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(errors.DiskFull) as problem:
            bring(box, project)
    assert "runner pull 42" in problem.value.hint
    bring(box, project)
    assert home(project)["metrics.json"] == "{}"


def test_a_damaged_receipt_costs_copies_and_never_a_file(box: Box, project: Path) -> None:
    bring(box, project)
    (project / "runs" / "local-42" / pulling.RECEIPT).write_text("{")
    (box.out / "metrics.json").write_text("new version")
    done = bring(box, project)
    assert done.aside == [("metrics.json", "metrics.json.from-local-42")]
    assert done.fetched == 1


def test_a_box_with_an_odd_name_gets_a_plain_folder(box: Box, project: Path) -> None:
    assert bring(box, project, "../b/x").folder == str(project / "runs" / "_b_x-42")
