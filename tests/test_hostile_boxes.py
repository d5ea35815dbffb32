"""A box that means harm, and what it sends home: whatever it lists, nothing outside of runs/<box>-<id>/ changes, no
file of a person does, and what is wrong is told in words of ours."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import cli, errors
from runner.cli.logs import FRAME
from runner.laptop import answers, awaited, boxes, client, descent
from runner.laptop import pull as pulling
from runner.laptop.light import dumps, loads
from runner.laptop.pull import Pulled, pull

pytestmark = pytest.mark.long
PERSONS = "mine.txt"


class Liar:
    """A client whose box lists and sends what it likes."""

    def __init__(self, paths: list[Any], links: dict[Any, Any], size: int = 3, mode: int = 0o6755) -> None:
        listed = [{"path": path, "size": size, "mode": mode, "modified_at": 1.0} for path in paths]
        self.listed = loads(dumps({"outputs": listed, "links": links}))
        self.box, self.patience = "box", client.REPLY_SECONDS
        self.sent = b"lie"
        self.pieces = 1

    def get(self, path: str) -> Any:
        return self.listed if path.endswith("/outputs") else {"job": {"state": "succeeded"}}

    def post(self, path: str, json: Any = None) -> Any:
        return {"differ": ["../x", "nothing", *(each["path"] for each in self.listed["outputs"])]}

    def stream(self, method: str, path: str) -> Iterator[bytes]:
        for _ in range(self.pieces):
            yield self.sent


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUBOX_STATE", str(tmp_path / "state"))
    return laid_out(tmp_path)


def laid_out(place: Path) -> Path:
    """A project with a folder for outputs in which a person already has a file, a folder and two links."""
    target = place / "project/runs/box-1"
    (target / "folder").mkdir(parents=True)
    (target / PERSONS).write_text("mine")
    (place / "outside").mkdir()
    (place / "outside/secret").write_text("secret")
    (target / "out").symlink_to(place / "outside")
    (target / "leaf").symlink_to(place / "outside/secret")
    return place


def outside(place: Path) -> dict[str, Any]:
    """Everything but what lies in the folder of the outputs; and in it what was a person's."""
    found: dict[str, Any] = {}
    for folder, below, names in os.walk(place):
        for name in (*below, *names):
            path = Path(folder, name)
            said = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
            found[str(path.relative_to(place))] = said
    mine = {f"project/runs/box-1/{name}" for name in (PERSONS, "folder", "out", "leaf")}
    return {name: said for name, said in found.items() if not name.startswith("project/runs/box-1/") or name in mine}


def fetch(box: Liar, place: Path) -> Pulled | None:
    """None: it was refused, in our words."""
    awaited.remember("box", str(place / "project"))
    before = outside(place)
    try:
        done = pull(box, 1, "box", str(place / "project"))  # type: ignore[arg-type]
    except (errors.BadData, errors.Refused, errors.DiskFull):
        done = None
    assert outside(place) == before
    for folder, _, names in os.walk(place / "project/runs/box-1"):
        for name in names:
            found = os.lstat(f"{folder}/{name}")
            assert found.st_mode & 0o7000 == 0, "not set-uid"
    return done


BAD_PATHS = [
    "", ".", "..", "/", "//", "./a", "../a", "../../a", "a/../b", "a/..", "a/../../b", "a/./b", "a//b", "a/", "/a",
    "/etc/passwd", "/../a", "..//a", "a/b/../../../c", "\0", "a\0b", "../\0", "out/x", "out/secret", "out/a/b",
    "leaf/x", "mine.txt/x", ".runner-pull", ".runner-pull.json", ".runner-pull-1", ".runner-pull-receipt",
    ".runner-pull/x", "x" * 256, "new/" + "x" * 256, "ü" * 128, "x" * 256 + "/a", "a/" * 101 + "b", "a/" * 5000 + "b",
    "\ud800", "a/\udfff\ud800", "\udc41/\ud9ff", "a/\ud83d", "../runs/box-2/a",
    "a\nb", "\x1b[2J", "a\t/b", "\x7f", "\x9b2J",
    ".git", ".git/config", "a/.GIT/hooks/post-checkout", ".g\u200cit/config", "../../pyproject.toml",
]  # fmt: skip
BAD_LINKS = [
    ("l", ".."), ("l", "../x"), ("l", "/"), ("l", "/etc/passwd"), ("l", ""), ("l", "a/.."), ("l", "a/../.."),
    ("l", "./../x"), ("l", "a/../../x"), ("d/l", "../.."), ("d/l", "../../x"), ("d/l", "x/../../.."), ("l", "\0"),
    ("l", "a\0b"), ("l", "x" * 5000), ("l", "\ud800"), ("\ud800", "a"), ("../l", "a"), ("/l", "a"), ("", "a"),
    ("a\0", "a"), ("out/l", "a"), ("leaf", "a"), ("out", "a"), ("mine.txt", "a"), (".runner-pull.json", "a"),
    (".git", "a"), ("x" * 256, "a"), ("a/" * 200 + "l", "a"),
]  # fmt: skip


def test_these_are_enough() -> None:
    assert len(BAD_PATHS) + len(BAD_LINKS) >= 60


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: ascii(path)[:30])
def test_a_hostile_path_is_refused_and_nothing_else_is(place: Path, path: str) -> None:
    done = fetch(Liar([path, "good"], {}), place)
    assert done is not None
    assert [refused for refused, _ in done.refused] == [path]
    assert (place / "project/runs/box-1/good").read_bytes() == b"lie"
    assert not done.complete


@pytest.mark.parametrize(("path", "target"), BAD_LINKS, ids=lambda part: ascii(part)[:20])
def test_a_hostile_link_is_refused_and_nothing_else_is(place: Path, path: str, target: str) -> None:
    done = fetch(Liar(["good"], {path: target}), place)
    assert done is not None
    assert [refused for refused, _ in done.refused] == [path]
    assert (place / "project/runs/box-1/good").read_bytes() == b"lie"


@pytest.mark.parametrize(
    ("paths", "links"),
    [
        (["up/x"], {"up": "."}), (["a", "a/b"], {}), (["a/b", "a"], {}), (["a", "a"], {}), (["mine.txt"], {}),
        (["folder"], {}), (["leaf"], {}), (["out"], {}), (["l"], {"l": "good"}), (["A", "a"], {}),
    ],
)  # fmt: skip
def test_a_listing_that_contradicts_itself_harms_nothing(place: Path, paths: list[str], links: dict[str, str]) -> None:
    for _ in range(3):  # what was brought by then is met again
        fetch(Liar(paths, links), place)


def test_what_was_sent_as_a_link_is_no_way_out_for_the_next_listing(place: Path) -> None:
    fetch(Liar([], {"d": "folder", "d2": "d"}), place)
    done = fetch(Liar(["d/x", "d2/x"], {"d/y": "z"}), place)
    assert done is not None
    assert len(done.refused) == 3


GIT = ["config", "hooks/pre-commit", "objects/ab/cd", "refs/heads/main"]


@pytest.mark.parametrize("folder", ["", "a/b.git/"])
@pytest.mark.parametrize("head", ["HEAD", "head"])
def test_a_bare_repository_is_not_laid_out_whole(place: Path, folder: str, head: str) -> None:
    done = fetch(Liar([f"{folder}{name}" for name in (head, *GIT, "good")], {}), place)
    assert done is not None
    assert {path for path, _ in done.refused} == {f"{folder}{name}" for name in (head, *GIT)}
    assert (place / f"project/runs/box-1/{folder}good").read_bytes() == b"lie"


@pytest.mark.parametrize(
    "listings",
    [
        [["HEAD", "config"], ["objects/a", "refs/a"]], [["objects/a", "refs/a", "config"], ["HEAD"]],
        [["HEAD"], ["objects/a", "refs/a"], ["config"]], [["HEAD", "config"], ["commondir"]],
        [["objects/a", "refs/a", "config", "x/commondir"], ["x/HEAD"]], [["config", "HEAD"], ["objects/a"], ["refs/a"]],
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("linked", [False, True])
def test_nor_is_one_that_comes_in_parts(place: Path, listings: list[list[str]], linked: bool) -> None:
    for paths in listings:
        links = {"HEAD": "refs/heads/main"} if linked and "HEAD" in paths else {}
        fetch(Liar([path for path in paths if path not in links], links), place)
    home = place / "project/runs/box-1"
    for folder in (home, home / "x"):
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        assert "HEAD" not in names or not ("commondir" in names or names >= {"objects", "refs"})


def test_folders_that_only_sound_like_git_come_home(place: Path) -> None:
    paths = ["head/weights.pt", "objects/a", "config", "refs.txt", "x/HEAD", "x/config", "y/hooks/a", "refs/a"]
    done = fetch(Liar(paths, {}), place)
    assert done is not None
    assert not [why for _, why in done.refused if "git" in why]
    assert all((place / "project/runs/box-1" / path).is_file() for path in paths)


def test_a_listing_without_end_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "ENTRIES_MAX", 10)
    with pytest.raises(errors.TooLarge, match="more than 10 outputs"):
        pull(Liar([f"f{n}" for n in range(11)], {}), 1, "box", str(place / "project"))  # type: ignore[arg-type]


def test_who_sends_far_more_than_was_listed_fills_no_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "GROWTH", 1000)
    box = Liar(["a"], {}, size=10)
    box.sent, box.pieces = b"x" * 100, 1 << 40
    done = fetch(box, place)
    assert done is not None
    assert done.refused == [("a", "the box sends far more than it listed")]
    assert not [name for name in os.listdir(place / "project/runs/box-1") if name.startswith(descent.PART)]


def test_a_disk_that_could_not_hold_it_is_told_before_it_is_full(place: Path) -> None:
    awaited.remember("box", str(place / "project"))
    with pytest.raises(errors.DiskFull, match="no room on this computer") as caught:
        pull(Liar(["a"], {}, size=1 << 60), 1, "box", str(place / "project"))  # type: ignore[arg-type]
    assert "runner pull 1" in caught.value.hint


NAMES = st.text("ab./\\\0\n\x1b\ud800ü~", max_size=12) | st.sampled_from(["out/x", "mine.txt", "leaf", "../x"])


@settings(max_examples=40, deadline=None)
@given(st.lists(NAMES, max_size=5), st.dictionaries(NAMES, NAMES, max_size=5), st.integers(0, 8))
def test_whatever_a_box_lists_stays_in_its_folder(paths: list[str], links: dict[str, str], size: int) -> None:
    before = os.environ.get("GPUBOX_STATE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPUBOX_STATE"] = f"{folder}-state"
        try:
            place = laid_out(Path(folder))
            fetch(Liar(paths, links, size), place)
            fetch(Liar([*links, *paths], {path: path for path in paths}, size), place)
        finally:
            os.environ.pop("GPUBOX_STATE")
            if before is not None:
                os.environ["GPUBOX_STATE"] = before


@pytest.mark.parametrize("meant", ["outside", "elsewhere"])
def test_a_box_does_not_choose_where_on_this_computer_it_writes(
    place: Path, monkeypatch: pytest.MonkeyPatch, meant: str
) -> None:
    awaited.remember("box", str(place / "project"))
    awaited.remember("other", str(place / meant))
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    done = pull(Liar(["a"], {}), 1, "box", str(place / meant))  # type: ignore[arg-type]
    assert done.folder == str(place / "here/runs/box-1")
    assert f"nothing was submitted to box from {place / meant} here" in done.note
    assert sorted(os.listdir(place / "outside")) == ["secret"]
    assert not (place / "elsewhere").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "[" * 100_000 + "]" * 100_000])
def test_json_that_is_nested_without_end_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(text)


def test_a_reply_that_never_comes_to_its_point_is_no_reply() -> None:
    class Endless:
        def recv(self, size: int) -> bytes:
            return b"HTTP/1.1 100 Continue\r\n\r\n" * 100

        def close(self) -> None: ...

    wire: Any = Endless()
    with pytest.raises(errors.Unreachable, match="never comes to its answer"):
        client.Connection(wire).head()


# --- answers ---------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None,
    "x",
    "\x1b]0;x\x07",
    "\ud800",
    "",
    -1,
    1 << 70,
    1e300,
    1.5,
    True,
    [],
    {},
    ["x"],
    [None],
    {"a": 1},
    "9" * 30,
]


class Answers:
    """A connection to a box whose answers are as described, but for one thing in each."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.asked, self.said = dice, b"", b""

    def sendall(self, data: bytes) -> None:
        self.asked += data

    def recv(self, size: int) -> bytes:
        if not self.said:
            method, path = self.asked.split(b" ", 2)[:2]
            kind, body = self._answer(method.decode(), path.decode())
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            places = "".join(f"X-Gpubox-{name}: {self.dice.choice([*map(str, ODD), '7'])}\r\n" for name in ("Size",))
            self.said = head.encode() + places.encode("ascii", "replace").replace(b"\x1b", b"") + b"\r\n" + body
        data, self.said = self.said[:size], self.said[size:]
        return data

    def settimeout(self, seconds: float | None) -> None: ...

    def close(self) -> None: ...

    def _answer(self, method: str, path: str) -> tuple[str, bytes]:
        shape: Any = answers._shape(f"{method} {path}", 200)
        if path.endswith("/follow") or "/follow?" in path:
            lines = [json.dumps({**self._value(FRAME), "bytes": 0, "kind": kind}) for kind in FRAMES]
            return "application/octet-stream", "\n".join([self._odd_in(line) for line in lines] + [""]).encode()
        if "all=1" in path:
            return "application/x-ndjson", (self._odd_in(json.dumps(self._value("@Job"))) + "\n").encode()
        if shape is None or path.endswith(("/events", "/live")):
            return "text/plain", self.dice.choice([b"", b"x\n\n", b'{"a":1}'])
        return "application/json", self._odd_in(json.dumps(self._value(shape))).encode()

    def _odd_in(self, text: str) -> str:
        """The same, with one value of another kind, or without one."""
        value = json.loads(text)
        places = list(_places(value, []))
        if not places:
            return text
        *way, last = self.dice.choice(places)
        at = value
        for step in way:
            at = at[step]
        if isinstance(at, dict) and self.dice.random() < 0.3:
            del at[last]
        else:
            at[last] = self.dice.choice(ODD)
        return json.dumps(value)

    def _value(self, shape: Any) -> Any:
        if shape is None:
            return self.dice.choice(ODD)
        if isinstance(shape, str) and shape[0] == "@":
            return self._value(answers._known("shapes")[shape[1:]])
        if isinstance(shape, str):
            plain = {"i": [1, 2, 7], "n": [1.5, 2], "s": ["g1", "running", "succeeded", "a" * 64], "b": [True, False]}
            return self.dice.choice({**plain, "0": [None]}[self.dice.choice(shape)])
        if isinstance(shape, list):
            return [self._value(shape[0]) for _ in range(self.dice.randrange(3))]
        if "?" in shape:
            return self._value(self.dice.choice(shape["?"]))
        if "#" in shape:
            return [self._value(each) for each in shape["#"]]
        if "*" in shape:
            return {name: self._value(shape["*"]) for name in self.dice.sample(["running", "queued", "x"], 2)}
        return {name: self._value(inner) for name, inner in shape.items()}


def _places(value: Any, way: list[Any]) -> Iterator[list[Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, each in inner:
        yield [*way, step]
        yield from _places(each, [*way, step])


FRAMES = ("state", "log", "gap", "alive", "end")
COMMANDS = [
    "ps", "ps --all", "ps --json g1", "show 1", "show --json 1", "show --files 1", "why 1", "logs 1", "logs -f 1",
    "logs --tail 3 1", "wait 1 g1", "wait --timeout 1s 1", "pull 1", "pull", "cancel 1", "hold 1", "release 1",
    "priority 5 1", "rerun -d 1", "rerun 1", "submit --no-files -- true", "submit train.py", "submit --json train.py",
    "submit --sweep a=1,2 train.py", "submit --after g1 --no-files -- true", "diff 1 2", "gpus", "gpus --json",
    "gpus drain 0", "notices", "box", "box list", "drain", "clean --all", "data ls", "data push set", "data pull x out",
    "data link x /srv/x", "data rm x", "secret list", "token list", "env list", "env show abc", "env prune",
    "dashboard list", "box test",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_a_box_answers_is_no_fault_of_ours(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    def paused(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses > 20:
            raise KeyboardInterrupt

    project = place / "project"
    (project / "train.py").write_text("print(1)")
    (project / "set").mkdir()
    (project / "set/a").write_text("a")
    monkeypatch.chdir(project)
    monkeypatch.setattr(client.time, "sleep", paused)
    for seed in range(40):
        dice = random.Random(f"{command} {seed}")
        pauses = 0
        boxed = lambda name=None, start=True, dice=dice: client.Client(lambda: Answers(dice), "box")  # noqa: E731
        monkeypatch.setattr(boxes, "open_box", boxed)
        monkeypatch.setattr(boxes, "choose", lambda name: "box")
        try:
            cli._answer(command.split())
        except KeyboardInterrupt:
            pass
        except Exception as fault:
            raise AssertionError(f"seed {seed}") from fault
    capsys.readouterr()
