"""Data sets from a laptop to a real daemon, into a job, and back: whole, resumed, and nothing sent twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import tools
import wire
from hypothesis import given
from hypothesis import strategies as st

from runner import errors
from runner.cli import data as command
from runner.laptop import boxes, client, fetch, folder, push, snapshot, upload
from runner.laptop.addresses import Address
from runner.laptop.fetch import Fetched
from runner.laptop.folder import Folder

NOISE = random.Random(8)
QUIET = lambda done, whole: None  # noqa: E731


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def box() -> Iterator[tuple[wire.Box, dict[str, Any]]]:
    """One that is reached over the network, too, and a token of its owner."""
    with wire.place() as place:
        made = wire.Box(Path(place), https="127.0.0.1:0", cpus="4")
        try:
            made.start()
            yield made, made.post("/tokens", {"scope": "submit", "label": "test"})
        finally:
            made.end()


class Cut:
    """A connection that is lost after so many bytes in both directions together."""

    def __init__(self, inner: Any, left: int, sent: Callable[[int], object]) -> None:
        self.inner, self.left, self.sent = inner, left, sent

    def sendall(self, data: bytes) -> None:
        self._spend(0)
        self.inner.sendall(data[: self.left])
        self.sent(min(len(data), self.left))
        self._spend(len(data))

    def recv(self, size: int) -> bytes:
        self._spend(0)
        data: bytes = self.inner.recv(min(size, self.left))
        self._spend(len(data))
        return data

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left <= 0:
            self.close()
            raise ConnectionResetError(104, "cut")

    def settimeout(self, seconds: float | None) -> None:
        if self.left > 0:
            self.inner.settimeout(seconds)

    def close(self) -> None:
        self.inner.close()


class Laptop:
    """Ways to the box; how much went over them, and how often they were cut."""

    def __init__(self, connect: Callable[[], Any], always: dict[str, str], limit: Callable[[], int]) -> None:
        self.connect, self.limit, self.connections, self.carried = connect, limit, 0, 0
        self.api = client.Client(self._connect, "far")
        self.api.always = always
        MADE.append(self)

    def _connect(self) -> Cut:
        self.connections += 1
        return Cut(self.connect(), self.limit(), self._count)

    def _count(self, size: int) -> None:
        self.carried += size

    def push(self, root: Path, name: str) -> tuple[dict[str, Any], int]:
        made, _, sent = push.push(self.api, str(root), name, QUIET, QUIET)
        return made, sent

    def pull(self, name: str, target: Path) -> Fetched:
        return fetch.fetch(self.api, name, str(target))


WAYS = ("unix", "https")


MADE: list[Laptop] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().api.close()


def laptop(box: tuple[wire.Box, dict[str, Any]], way: str, limit: Callable[[], int] = lambda: 1 << 60) -> Laptop:
    made, minted = box
    if way == "unix":

        def connect() -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(made.socket)
            return sock

        return Laptop(connect, {"Host": "box"}, limit)
    https = minted["https"]
    values = {
        "ssh": "me@far", "host": "127.0.0.1", "port": https["port"], "address": https["address"],
        "fingerprint": https["fingerprint"], "token": minted["token"], "token_id": minted["made"]["id"],
    }  # fmt: skip
    far = boxes.remote(Address("far", values))
    return Laptop(far.connect, far.always, limit)


def files_of(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "set"
    for number in range(60):
        path = made / f"part{number % 3}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(NOISE.randbytes(number * 50))
    (made / "big").write_bytes(NOISE.randbytes(1_500_000))
    (made / "text").write_bytes(b"".join(b"%d\n" % NOISE.randrange(10**6) for _ in range(30_000)))
    (made / "link").symlink_to("part0/0.bin")
    (made / "empty").mkdir()
    return made


def versions(box: tuple[wire.Box, dict[str, Any]]) -> Path:
    return Path(box[0].env["GPUBOX_STATE"]) / "data-sets"


# --- there and back ---


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_a_set_goes_there_is_read_and_comes_back(
    way: str, box: tuple[wire.Box, dict[str, Any]], root: Path, tmp_path: Path
) -> None:
    far = laptop(box, way)
    made, sent = far.push(root, way)
    assert (made["files"], made["bytes"]) == (62, sum(map(len, files_of(root).values())))
    assert sent == made["bytes"]
    script = "cd $RUNNER_DATA/$0 && find . -type f | sort | xargs cat | sha256sum && readlink link && test -d empty"
    job = box[0].ended(box[0].submit(["sh", "-c", script, way], environment="base"))
    assert job["state"] == "succeeded", job
    said = box[0].ask("GET", f"/logs/{job['id']}").body.decode().split()
    named = sorted(files_of(root).items(), key=lambda each: f"./{each[0]}".encode())
    assert said[0] == sha256(b"".join(data for _, data in named)).hexdigest()
    assert said[-1] == "part0/0.bin"
    done = far.pull(way, tmp_path / "back")
    assert (done.fetched, done.refused) == (62, [])
    assert files_of(tmp_path / "back") == files_of(root)
    assert os.readlink(tmp_path / "back" / "link") == "part0/0.bin"
    assert (tmp_path / "back" / "empty").is_dir()
    assert far.pull(way, tmp_path / "back").fetched == 0
    box[0].post("/box/clean", {"older_than_days": 0})
    assert far.pull(way, tmp_path / "again").fetched == 62, "housekeeping touches no set"


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_cut_at_random_bytes_nothing_is_lost_and_little_sent_again(
    way: str, box: tuple[wire.Box, dict[str, Any]], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (client, upload, fetch):
        monkeypatch.setattr(module, "PAUSES", (0.0,) * 20)
    chance = random.Random(3)
    for path in root.rglob("*.bin"):
        path.write_bytes(NOISE.randbytes(max(1, path.stat().st_size)))
    (root / "big").write_bytes(NOISE.randbytes(4_000_000))
    far = laptop(box, way, lambda: chance.randrange(1, 400_000))
    far.push(root, "cut")
    assert far.connections > 15
    whole = sum(map(len, files_of(root).values()))
    assert far.carried < 2 * whole, f"{far.carried} for {whole}, over {far.connections} connections"
    pulls = laptop(box, way, lambda: chance.randrange(1, 400_000))
    done = pulls.pull("cut", tmp_path / "back")
    assert done.refused == []
    assert files_of(tmp_path / "back") == files_of(root)
    assert pulls.connections > 10
    assert list((versions(box) / "blobs" / "partial").iterdir()) == []


@pytest.mark.long
def test_of_what_changed_only_that_is_sent_and_of_a_twin_nothing(
    box: tuple[wire.Box, dict[str, Any]], root: Path, tmp_path: Path
) -> None:
    far = laptop(box, "unix")
    far.push(root, "mine")
    (root / "part0" / "3.bin").write_bytes(b"changed")
    moved = laptop(box, "unix")
    assert moved.push(root, "mine")[1] == len(b"changed")
    (root / "big").rename(root / "moved")
    assert far.push(root, "mine")[1] == 0
    assert far.push(root, "twin")[1] == 0
    assert far.push(root, "mine")[1] == 0
    far.pull("mine", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(root)
    shutil.rmtree(tmp_path / "cache")  # another computer
    assert far.push(root, "mine")[1] == 0


@pytest.mark.long
def test_a_job_keeps_the_version_it_began_with(
    box: tuple[wire.Box, dict[str, Any]], root: Path, tmp_path: Path
) -> None:
    far = laptop(box, "unix")
    far.push(root, "moving")
    go = tmp_path / "go"
    read = "cksum <$RUNNER_DATA/moving/text"
    script = f"{read}; echo ready; until test -e {go}; do sleep 0.05; done; {read}"
    job = box[0].submit(["sh", "-c", script], environment="base")
    tools.wait_until(lambda: b"ready" in box[0].ask("GET", f"/logs/{job}").body, 20, box[0].story)
    (root / "text").write_bytes(b"new")
    far.push(root, "moving")
    gone = far.api.request("DELETE", "/data/moving")[2]
    assert (gone["kept_by"], gone["removed"]["name"]) == ([], "moving"), "the job has an older version"
    before = len([*(versions(box) / "versions").iterdir()])
    go.touch()
    box[0].ended(job)
    first, _, second = box[0].ask("GET", f"/logs/{job}").body.decode().splitlines()
    assert first == second
    far.push(root, "moving")
    gone = far.api.request("DELETE", "/data/moving")[2]
    assert gone["freed_bytes"] > 0
    assert len([*(versions(box) / "versions").iterdir()]) < before


@pytest.mark.long
def test_rm_says_who_keeps_it(box: tuple[wire.Box, dict[str, Any]], root: Path, tmp_path: Path) -> None:
    laptop(box, "unix").push(root, "kept")
    go = tmp_path / "go"
    job = box[0].submit(["sh", "-c", f"echo ready; until test -e {go}; do sleep 0.05; done; ls $RUNNER_DATA/kept/big"])
    tools.wait_until(lambda: b"ready" in box[0].ask("GET", f"/logs/{job}").body, 20, box[0].story)
    gone = box[0].ask("DELETE", "/data/kept").json()
    assert (gone["kept_by"], gone["freed_bytes"]) == ([job], 0)
    go.touch()
    assert box[0].ended(job)["state"] == "succeeded"


@pytest.mark.long
def test_a_job_that_has_no_more_than_a_users_rights_writes_nothing(
    box: tuple[wire.Box, dict[str, Any]], root: Path
) -> None:
    laptop(box, "unix").push(root, "safe")
    tries = ("echo x >big", "rm big", "touch new", "mkdir part0/new", "mv part0 away", "echo x >../new", "rm ../safe")
    script = "cd $RUNNER_DATA/safe || exit 9; " + "; ".join(f"({one}) 2>/dev/null && echo DONE" for one in tries)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"] if os.geteuid() == 0 else []
    if drop:
        tools.need("setpriv")
    job = box[0].ended(box[0].submit([*drop, "sh", "-c", f"{script}; cat big | wc -c"], environment="base"))
    said = box[0].ask("GET", f"/logs/{job['id']}").body.decode().split()
    assert said == [str((root / "big").stat().st_size)], said


@pytest.mark.long
def test_the_commands_tell_what_they_did(
    box: tuple[wire.Box, dict[str, Any]], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {**os.environ, **box[0].env, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (*tools.CLI, "data", *words), env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    (root / ".git").mkdir()
    done = run("push", "set", "told")
    assert done.returncode == 0, done.stderr
    assert "told is on local: 62 files" in done.stderr
    assert ".git is left out" in done.stderr
    row = next(line for line in run("ls").stdout.splitlines() if line.startswith("told")).split()
    assert (row[0], row[3]) == ("told", "62"), row
    assert run("pull", "told", "home").returncode == 0
    (tmp_path / "home" / "text").write_text("mine")
    done = run("pull", "told", "home")
    assert (done.returncode, "text: a file of this name is here" in done.stderr) == (65, True), done.stderr
    assert (tmp_path / "home" / "text").read_text() == "mine"
    (tmp_path / "there").mkdir()
    assert run("link", "linked", str(tmp_path / "there")).returncode == 0
    assert "a link to" in run("pull", "linked").stderr
    for wrong, code in (
        (("rm", "tolt"), 66), (("push", "nowhere"), 64), (("push", "set", "a b"), 64), (("link", "x", "/nowhere"), 66),
        (("pul", "told"), 64), (("push",), 64), (("pull", "../told"), 64), (("pull", "nothing"), 66),
    ):  # fmt: skip
        done = run(*wrong)
        assert (done.returncode, "hint:" in done.stderr) == (code, True), (wrong, done.stderr)
    assert "are free again" in run("rm", "told").stderr
    assert "stays as it is" in run("rm", "linked").stderr


@pytest.mark.long
def test_caches_are_put_where_the_box_says_for_jobs_and_for_a_daemon_that_follows(tmp_path: Path) -> None:
    with wire.place() as place:
        made = wire.Box(Path(place), caches=f"{tmp_path}/big")
        made.env["TORCH_HOME"] = "/own"
        try:
            made.start()
            for life in (1, 2):
                job = made.ended(made.submit(["sh", "-c", "echo $HF_HOME $TORCH_HOME"], environment="base"))
                assert made.ask("GET", f"/logs/{job['id']}").body.decode().split() == [
                    f"{tmp_path}/big/huggingface",
                    "/own",
                ]
                made.post("/box/restart")
                tools.wait_until(lambda life=life: made.story().count("listens on") > life, 20, made.story)  # type: ignore[misc]
                tools.wait_until(made.listens, 20, made.story)
        finally:
            made.end()


@pytest.mark.long
def test_a_daemon_that_is_killed_in_a_push_goes_on_where_it_was(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "big").write_bytes(NOISE.randbytes(12_000_000))
    whole, ways = sum(map(len, files_of(root).values())), 0
    with wire.place() as place:
        made = wire.Box(Path(place))

        def limit() -> int:
            nonlocal ways
            ways += 1
            if ways == 2:
                made.stop(signal.SIGKILL)
                made.start()
            return 9_000_000 if ways == 1 else 1 << 60

        try:
            made.start()
            far = laptop((made, {}), "unix", limit)
            far.push(root, "set")
            assert ways == 3
            assert far.carried < 1.5 * whole, f"{far.carried} for {whole}"
            job = made.ended(made.submit(["sh", "-c", "sha256sum <$RUNNER_DATA/set/big"], environment="base"))
            said = made.ask("GET", f"/logs/{job['id']}").body.decode().split()
            assert said[0] == sha256((root / "big").read_bytes()).hexdigest()
        finally:
            made.end()


@pytest.mark.long
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_small_files(count: int, box: tuple[wire.Box, dict[str, Any]], tmp_path: Path) -> None:
    """Generous bounds: docs/verified.md has the figures."""
    root = tmp_path / "many"
    for number in range(count):
        folder = root / f"{number % 100:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.bin").write_bytes(b"%d " % number * 100)
    far, times = laptop(box, "https"), []
    steps: list[Callable[[], object]] = [
        lambda: far.push(root, "many"), lambda: far.push(root, "many"),
        lambda: (root / "00" / "0.bin").write_bytes(b"new"), lambda: far.push(root, "many"),
        lambda: far.pull("many", tmp_path / "back"),
    ]  # fmt: skip
    for step in steps:
        began = time.monotonic()
        step()
        times.append(time.monotonic() - began)
    said = " ".join(f"{each:.2f}" for each in times)
    sys.stderr.write(f"first, again, -, one changed, pulled: {said} s\n")
    assert files_of(tmp_path / "back") == files_of(root)
    assert max(times) < 30


# --- without a box ---


def test_a_folder_is_named_by_what_is_in_it(root: Path, tmp_path: Path) -> None:
    one = Folder(str(root))
    one.remember()
    assert Folder(str(root)).id == one.id
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    (tmp_path / "copy" / "big").chmod(0o755)
    assert Folder(str(tmp_path / "copy")).id == one.id, "modes and times are not kept"
    (root / "big").write_bytes(b"other")
    changes = Folder(str(root)).changes()
    assert changes is not None
    assert (list(changes["files"]), changes["removed"], changes["links"]) == (["big"], [], None)


def test_many_changes_are_sent_as_a_whole_list(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "CHANGES_BYTES", 1000)
    Folder(str(root)).remember()
    (root / "new").touch()
    assert Folder(str(root)).changes() is not None
    for number in range(9):
        (root / f"new{number}").touch()
    assert Folder(str(root)).changes() is None


def test_what_is_no_file_is_named_and_left_out(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "away").symlink_to("/etc")
    (root / "part0" / "up").symlink_to("../../x")
    found = Folder(str(root))
    assert [sentence.split()[0] for sentence in sorted(found.passed)] == ["away", "part0/up", "pipe"]
    assert set(found.parts["links"]) == {"link"}


@pytest.mark.parametrize("there", ["nothing", "file"])
def test_what_is_no_folder_is_refused(there: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.BadRequest, match="is not"):
        Folder(str(tmp_path / there))


@pytest.mark.parametrize("root", ["/", "~"])
def test_a_whole_computer_or_home_is_no_data_set(root: str) -> None:
    with pytest.raises(errors.BadRequest, match="more than data"):
        Folder(os.path.expanduser(root))


def test_reading_says_how_far_it_is_within_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x").write_bytes(b"x" * 5_000_000)
    said: list[tuple[int, int]] = []
    Folder(str(tmp_path / "set"), lambda done, whole: said.append((done, whole)))
    assert len(said) == 5
    assert said[-1] == (5_000_000, 5_000_000)


class Sly:
    """A box that sends what it likes."""

    def __init__(self, listed: bytes, *streams: bytes) -> None:
        self.listed, self.streams = listed, list(streams)

    def stream(self, method: str, path: str) -> Iterator[bytes]:
        if path.endswith("/files"):
            return iter([self.listed])
        return iter([self.streams.pop(0)])


def a_list(files: dict[str, Any], links: dict[str, str] | None = None, dirs: list[str] | None = None) -> bytes:
    return snapshot.manifest_bytes({"files": files, "links": links or {}, "dirs": dirs or []})


def entry(data: bytes) -> list[Any]:
    return [0o644, len(data), sha256(data).hexdigest()]


HOSTILE = [
    a_list({name: entry(b"x")})
    for name in (
        "../x", "/x", "a/../../x", "a//x", "", ".", "a/.", "a\0b", ".git/config", "a/.GIT/x", ".runner-pull-x",
    )
] + [
    a_list({"a": entry(b"x"), "a/b": entry(b"x")}), a_list({}, {"l": "/etc"}), a_list({}, {"l": "../x"}),
    a_list({"l/x": entry(b"x")}, {"l": "/tmp"}), a_list({"l/x": entry(b"x")}, {"l": "d"}),
    a_list({}, {"a/l": "b/../../x"}), a_list({}, {"l": ""}),
    a_list({}, None, ["../x"]), a_list({"a": [0o644, -1, "a" * 64]}), a_list({"a": [0o644, True, "a" * 64]}),
    a_list({"a": [0o644, 1, "../../../../etc/passwd"]}), a_list({"a": [0o644, 1]}), a_list({"a": 5}),
    b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"version": 2}', b'{"version": 1, "files": [], "links": {}, "dirs": [5]}',
]  # fmt: skip


@pytest.mark.parametrize("listed", HOSTILE)
def test_a_box_that_lies_writes_nothing_anywhere(listed: bytes, tmp_path: Path) -> None:
    target = tmp_path / "a" / "target"
    sly: Any = Sly(listed, *[b"x" * 10] * 9)
    with pytest.raises(errors.BadData) as refused:
        fetch.fetch(sly, "set", str(target))
    assert refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


PARTS = st.sampled_from(["", ".", "..", "a", "b", "c", ".git", "..x", "a\0", "\\", "~", ".runner-pull-1"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
LISTS = st.fixed_dictionaries({
    "files": st.dictionaries(PATHS, st.just([0o644, 1, "a" * 64]), max_size=4),
    "links": st.dictionaries(PATHS, PATHS, max_size=3),
    "dirs": st.lists(PATHS, max_size=2),
})  # fmt: skip


@given(LISTS)
def test_no_list_that_is_believed_leads_out(listed: dict[str, Any]) -> None:
    try:
        fetch.check(listed)
    except ValueError:
        return
    for path in (*listed["files"], *listed["links"], *listed["dirs"]):
        assert os.path.normpath(f"/here/{path}") == f"/here/{path}"
        assert not set(path.split("/")[:1]) & {".git", ".runner-pull-1"}
        above = {path[:at] for at, letter in enumerate(path) if letter == "/"}
        assert above.isdisjoint({*listed["files"], *listed["links"]})
    for path, to in listed["links"].items():
        assert os.path.normpath(f"/here/{os.path.dirname(path)}/{to}").startswith("/here")


@pytest.mark.parametrize("sent", [b"no!", b"ab", b"", b"abcd"], ids=["wrong", "short", "nothing", "long"])
def test_contents_that_are_not_what_they_say_are_not_kept(sent: bytes, tmp_path: Path) -> None:
    sly: Any = Sly(a_list({"x": entry(b"abc")}), sent, b"")
    with pytest.raises(errors.BadData) as refused:
        fetch.fetch(sly, "set", str(tmp_path / "t"))
    assert refused.value.hint
    assert sent == b"abcd" or not (tmp_path / "t" / "x").exists()


def test_nothing_is_written_through_a_link_and_no_file_of_a_person_is_touched(tmp_path: Path) -> None:
    target, outside = tmp_path / "t", tmp_path / "outside"
    outside.mkdir()
    target.mkdir()
    (target / "down").symlink_to(outside)
    (target / "mine").write_text("mine")
    sly: Any = Sly(a_list({"down/x": entry(b"x"), "mine": entry(b"their"), "new": entry(b"new")}), b"new")
    done = fetch.fetch(sly, "set", str(target))
    assert [path for path, _ in done.refused] == ["down/x", "mine"]
    assert list(outside.iterdir()) == []
    assert (target / "mine").read_text() == "mine"
    assert (target / "new").read_text() == "new"


def test_a_newer_version_takes_the_place_of_what_was_pulled(tmp_path: Path) -> None:
    target = tmp_path / "t"
    fetch.fetch(_sly({"a": b"one", "b": b"two"}), "set", str(target))
    (target / "b").write_text("a person's")
    done = fetch.fetch(_sly({"a": b"new", "b": b"new"}), "set", str(target))
    assert (target / "a").read_text() == "new"
    assert (target / "b").read_text() == "a person's"
    assert [path for path, _ in done.refused] == ["b"]


def _sly(contents: dict[str, bytes]) -> Any:
    ordered = dict(sorted(contents.items()))
    return Sly(a_list({path: entry(data) for path, data in ordered.items()}), *_streams(ordered))


def _streams(contents: dict[str, bytes]) -> list[bytes]:
    """All of it for who asks for all; else each for itself."""
    whole = b"".join(contents.values())
    return [whole[: len(next(iter(contents.values())))] if len(set(contents.values())) == 1 else whole]


def test_a_disk_that_is_too_small_is_told_before_a_byte_is_fetched(tmp_path: Path) -> None:
    sly: Any = Sly(a_list({"x": [0o644, 1 << 60, "a" * 64]}))
    with pytest.raises(errors.DiskFull, match="to be fetched"):
        fetch.fetch(sly, "set", str(tmp_path / "t"))
    assert sly.streams == []


def test_the_bar_says_how_far_it_is() -> None:
    bar = command.Bar("pushing coco")
    assert bar.text(0, 4 << 30, 0.0) == "pushing coco [                    ]   0%  0 bytes of 4.0 GiB"
    bar._from = 0
    assert bar.text(1 << 30, 4 << 30, 10.0).startswith(
        "pushing coco [=====               ]  25%  1.0 GiB of 4.0 GiB, 102"
    )
    assert bar.text(1 << 30, 4 << 30, 10.0).endswith("MiB/s, 30s left")


def test_a_name_with_control_characters_is_not_pushed(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a\x1b[2J").touch()
    with pytest.raises(errors.BadRequest, match="control characters") as caught:
        Folder(str(tmp_path / "set"))
    assert "'a\\x1b[2J'" in caught.value.message
