"""What belongs to the jobs' user is handed over, read and removed by way of the launcher, and what is ours is not."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner import errors
from runner.box import custody as custody_module
from runner.box import reader
from runner.box.custody import Custody, Launched
from runner.paths import StateDir


class Engine:
    """The engine, as far as a custody asks it; its readers are threads."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.asked: list[str] = []
        self.trouble: str | None = None

    def ask(self, verb: str, key: tuple[int, int], patience: float | None) -> str:
        if self.trouble is not None:
            raise OSError(0, self.trouble)
        self.asked.append(f"{verb} {key[0]}")
        return ""

    def outputs(self, job_id: int, attempt: int) -> socket.socket:
        self.asked.append(f"read-outputs {job_id}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threading.Thread(target=self._serve, args=(theirs, self.state.job(job_id).out), daemon=True).start()
        return ours

    def _serve(self, link: socket.socket, root: str) -> None:
        with link:
            reader.serve(link, root)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    (tmp_path / "jobs/1/out").mkdir(parents=True)
    (tmp_path / "jobs/1/checkpoint").mkdir()
    (tmp_path / "jobs/2").mkdir()
    (tmp_path / "trees").mkdir()
    return Engine(StateDir(tmp_path))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(params=["ours", "launched"])
def custody(engine: Any, said: list[str], request: pytest.FixtureRequest) -> Custody:
    return Custody(engine.state) if request.param == "ours" else Launched(engine, said.append)


def test_outputs_are_the_same_whoever_reads_them(custody: Custody, tmp_path: Path) -> None:
    (tmp_path / "jobs/1/out/a").write_text("weights")
    (tmp_path / "jobs/1/checkpoint/c").write_text("state")
    assert [each.path for each in custody.listing(1).outputs] == ["a"]
    fd, found = custody.open_file(1, "a")
    with open(fd) as file:
        assert (file.read(), found.st_size) == ("weights", 7)
    sizes = custody.sizes(1)
    assert sizes.out is not None
    assert sizes.out > 0
    assert sizes.checkpoint > 0
    with pytest.raises(errors.Problem):
        custody.open_file(1, "../checkpoint/c")


def test_a_job_without_outputs_has_none(custody: Custody) -> None:
    assert custody.listing(2) == ([], {})
    assert custody.sizes(2) == custody.sizes(1) == (None, 0)
    with pytest.raises(errors.NotFound):
        custody.open_file(2, "a")


def test_sizes_are_asked_for_once(engine: Any, tmp_path: Path) -> None:
    custody = Launched(engine, print)
    assert custody.sizes(1) == custody.sizes(1)
    assert engine.asked == ["read-outputs 1"]
    (tmp_path / "jobs/1/out/new").touch()
    assert custody.sizes(1).out is not None


def test_what_is_ours_is_removed_by_us(engine: Any, said: list[str], tmp_path: Path) -> None:
    gone = tmp_path / "trees/.gone-7-1-1"
    gone.mkdir()
    custody = Launched(engine, said.append)
    custody.remove(str(gone))
    custody.remove(str(gone))
    assert (gone.exists(), engine.asked, said) == (False, [], [])


@pytest.mark.parametrize(("path", "job"), [("trees/.gone-7-1-1", 7), ("jobs/1/.gone-out-5", 1)])
def test_what_is_not_ours_is_removed_by_its_owner(
    engine: Any, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, job: int
) -> None:
    (tmp_path / path).mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    custody = Launched(engine, said.append)
    custody.remove(f"{tmp_path}/{path}")
    assert engine.asked == [f"remove {job}"]
    engine.trouble = "it is away"
    custody.remove(f"{tmp_path}/{path}")
    assert said == [f"{tmp_path}/{path} is not removed yet: it is away"]


def test_what_was_given_away_by_half_is_removed_by_the_launcher(
    engine: Any, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its top is ours, and within are folders that we may not enter."""
    (tmp_path / "trees/.gone-7-1-1").mkdir()
    monkeypatch.setattr(custody_module, "remove_tree", lambda path: None)
    Launched(engine, said.append).remove(str(tmp_path / "trees/.gone-7-1-1"))
    assert (engine.asked, said) == (["remove 7"], [])


def test_a_tree_that_can_not_be_handed_over_is_told(engine: Any) -> None:
    custody = Launched(engine, print)
    custody.hand_over(3)
    assert engine.asked == ["make-tree 3"]
    engine.trouble = "the tree holds what is not the daemon's to give"
    with pytest.raises(errors.Problem, match="could not be given to the jobs' user: the tree holds"):
        custody.hand_over(3)


# --- readers that are none, or not any more: a job can stop or end whom it shares a user with ---


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Custody, socket.socket]]:
    """A custody, and the other end of its reader, who has not answered yet."""
    monkeypatch.setattr(reader, "PATIENCE", 0.05)
    (tmp_path / "jobs/1/out").mkdir(parents=True)
    made = Engine(StateDir(tmp_path))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(made, "outputs", lambda job_id, attempt: ours)
    with theirs:
        yield Launched(made, print), theirs  # type: ignore[arg-type]


def test_a_reader_that_does_not_answer_is_not_waited_for_for_ever(silent: tuple[Custody, socket.socket]) -> None:
    with pytest.raises(errors.Problem, match="the outputs of job 1 can't be read: timed out"):
        silent[0].listing(1)


def test_a_reader_that_is_gone_is_told(silent: tuple[Custody, socket.socket]) -> None:
    silent[1].close()
    with pytest.raises(errors.Problem, match="the outputs of job 1 can't be read"):
        silent[0].open_file(1, "a")


def test_what_is_no_file_is_not_read(silent: tuple[Custody, socket.socket]) -> None:
    """Nobody will ever write into this pipe."""
    out, into = os.pipe()
    socket.send_fds(silent[1], [b"ok"], [out])
    with pytest.raises(errors.NotFound, match="no file"):
        silent[0].open_file(1, "a")
    os.close(out)
    os.close(into)
