"""Snapshots on the laptop: which files, their hashes, the index that saves reading, and what reaches the box."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tools import need

from runner import errors, words
from runner.box import code
from runner.laptop import client, delivery, hashes, index, snapshot, upload, walk

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    return home / "cache"


@pytest.fixture(params=["git", "plain"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    if request.param == "git":
        git(root, "init", "-q")
    return root


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "-q")
    return root


def git(where: Path, *arguments: str) -> None:
    need("git")
    subprocess.run([*GIT, "-C", str(where), *arguments], check=True, capture_output=True)


def put(root: Path, name: str, text: str = "x") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def take(root: Path, **options: Any) -> snapshot.Snapshot:
    taken = snapshot.begin(str(root), **options).finish()
    taken.remember()
    return taken


def names(taken: snapshot.Snapshot) -> set[str]:
    return {*taken.parts["files"], *taken.parts["links"], *(f"{path}/" for path in taken.parts["dirs"])}


def age(root: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 10) -> None:
    """Let the clock of the next look be later than everything on disk."""
    import time

    now = time.time_ns() + int(seconds * 1e9)
    monkeypatch.setattr(snapshot.time, "time_ns", lambda: now)


class FakeBox(client.Client):
    """POST /bundles, /blobs and /jobs, straight into the box's own blobs."""

    def __init__(self, directory: Path, knows_bundles: bool = True) -> None:
        super().__init__(lambda: None, "far")  # type: ignore[arg-type, return-value]
        self.blobs = code.Blobs(str(directory))
        self.knows_bundles = knows_bundles
        self.asked: list[tuple[str, Any]] = []
        self.before_blobs: Callable[[], None] = lambda: None
        self.before_jobs: Callable[[], None] = lambda: None
        self.jobs: list[str] = []

    def request(
        self, method: str, path: str, json: Any = None, body: Any = None, headers: Any = None
    ) -> tuple[int, dict[str, str], Any]:
        wire = loads(json)
        if path == "/bundles":
            return self._bundle(body)
        self.asked.append((path, wire))
        if path == "/jobs":
            self.before_jobs()
            return 201, {}, self._made(wire)
        if path == "/snapshots":
            assert not self.knows_bundles
            return 200, {}, {"missing": self.blobs.offer(wire.pop("id"), **wire)}
        self.before_blobs()
        with received(self.blobs) as receiver:
            for piece in body:
                receiver.feed(piece)
            return 200, {}, {"stored": receiver.close()}

    def _bundle(self, body: bytes) -> tuple[int, dict[str, str], Any]:
        sizes, _, rest = body.partition(b"\n")
        first, second = map(int, sizes.split())
        news = json.loads(rest[first : first + second])
        self.asked.append(("/bundles", dict(news)))
        if not self.knows_bundles:
            raise errors.NotFound("not part of the API")
        with received(self.blobs) as receiver:
            receiver.feed(rest[first + second :])
            missing = self.blobs.offer(news.pop("id"), **news, came=receiver)
        if missing:
            return 202, {}, {"missing": missing, "held": self.blobs.held(missing)}
        return 201, {}, self._made(json.loads(rest[:first]))

    def _made(self, submission: Any) -> Any:
        self.jobs.append(self.blobs.whole(submission["spec"]["snapshot"]).id)
        return {"id": len(self.jobs)}


@contextmanager
def received(blobs: code.Blobs) -> Iterator[code.Receiver]:
    receiver = code.Receiver(blobs)
    try:
        yield receiver
    finally:
        receiver.abort()


def send(box: FakeBox, taken: snapshot.Snapshot) -> snapshot.Snapshot:
    """Submitted with its code; the snapshot that became a job."""
    answer, sent = delivery.deliver(box, {"spec": {}}, taken, "key")
    assert (answer["id"], box.jobs[-1]) == (len(box.jobs), sent.id)
    return sent


def loads(body: Any) -> Any:
    return json.loads(json.dumps(body))


@pytest.fixture
def box(tmp_path: Path) -> FakeBox:
    return FakeBox(tmp_path / "box")


# --- which files ---------------------------------------------------------------------------------------------------


def test_tracked_and_untracked_files_are_taken_as_they_are_on_disk(repository: Path) -> None:
    put(repository, "tracked", "old")
    put(repository, "gone")
    git(repository, "add", "-A")
    put(repository, "tracked", "new")
    (repository / "gone").unlink()
    put(repository, "untracked")
    put(repository, "ignored")
    put(repository, ".gitignore", "ignored\n")
    taken = take(repository)
    assert names(taken) == {"tracked", "untracked", ".gitignore"}
    assert taken.parts["files"]["tracked"][1] == 3


@pytest.mark.parametrize("inside", ["", "pkg/"], ids=["at the root", "deeper"])
def test_ignore_files_hold_with_and_without_git(project: Path, inside: str) -> None:
    put(project, f"{inside}.gitignore", "*.log\ncache/\n!keep.log\n")
    for name in ("a.py", "b.log", "keep.log", "cache/x", "sub/c.log", "sub/d.py"):
        put(project, inside + name)
    assert names(take(project)) == {inside + name for name in (".gitignore", "a.py", "keep.log", "sub/d.py")}


def test_runnerignore_also_removes_tracked_files(project: Path) -> None:
    for name in ("data/big", "data/small", "src/x.py", "src/x.bin"):
        put(project, name)
    put(project, ".runnerignore", "data/\n")
    put(project, "src/.runnerignore", "*.bin\n")
    if (project / ".git").exists():
        git(project, "add", "-A")
    assert names(take(project)) == {".runnerignore", "src/.runnerignore", "src/x.py"}
    put(project, ".runnerignore", "data/big\n")
    assert names(take(project)) == {".runnerignore", "src/.runnerignore", "src/x.py", "data/small"}


def test_outputs_byte_code_and_virtual_environments_stay_behind(project: Path) -> None:
    for name in ("a.py", "runs/local-1/out", "src/runs/mine", "__pycache__/a.pyc", "src/__pycache__/b.pyc"):
        put(project, name)
    put(project, "env/pyvenv.cfg")
    put(project, "env/bin/python")
    assert names(take(project)) == {"a.py", "src/runs/mine"}


def test_empty_folders_are_kept_unless_ignored(project: Path) -> None:
    put(project, "a.py")
    put(project, ".gitignore", "no/\n*.log\n")
    for name in ("empty/deep", "no/empty", "pkg", "env/lib", ".cache"):
        (project / name).mkdir(parents=True)
    put(project, "pkg/m.py")
    (project / "pkg/void").mkdir()
    put(project, "logs/1.log")
    put(project, "env/pyvenv.cfg")
    put(project, ".cache/.gitignore", "*\n")
    if not (project / ".git").exists():
        shutil.rmtree(project / ".cache")
    assert names(take(project)) == {"a.py", ".gitignore", "pkg/m.py", "empty/deep/", "pkg/void/", "logs/"}


def test_submodules_and_nested_repositories_are_part_of_the_project(repository: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    put(library, "lib.py")
    git(library, "add", "-A")
    git(library, "commit", "-qm", "x")
    git(repository, "submodule", "add", "-q", str(library), "vendor/lib")
    put(repository, "vendor/lib/new.py")
    put(repository, "vendor/lib/skip.o")
    put(repository, "vendor/lib/.gitignore", "*.o\n")
    (repository / "vendor/lib/void").mkdir()
    nested = repository / "nested"
    nested.mkdir()
    git(nested, "init", "-q")
    put(nested, "n.py")
    taken = take(repository)
    lib = {f"vendor/lib/{name}" for name in ("lib.py", "new.py", ".gitignore", "void/")}
    assert names(taken) == {".gitmodules", "nested/n.py", *lib}
    put(nested, "later.py")
    assert "nested/later.py" in names(take(repository))


def test_a_submodule_that_is_not_checked_out_is_an_empty_folder(repository: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    put(library, "lib.py")
    git(library, "add", "-A")
    git(library, "commit", "-qm", "x")
    git(repository, "submodule", "add", "-q", str(library), "lib")
    git(repository, "commit", "-qm", "x")
    git(repository, "submodule", "deinit", "-f", "lib")
    assert names(take(repository)) == {".gitmodules", "lib/"}


def test_a_file_in_conflict_appears_once(repository: Path) -> None:
    put(repository, "f", "base")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "base")
    git(repository, "branch", "other")
    put(repository, "f", "ours")
    git(repository, "commit", "-qam", "ours")
    git(repository, "checkout", "-q", "other")
    put(repository, "f", "theirs")
    git(repository, "commit", "-qam", "theirs")
    assert subprocess.run([*GIT, "-C", str(repository), "merge", "-"], capture_output=True).returncode
    taken = take(repository)
    assert names(taken) == {"f"}
    assert taken.count == 1


def test_a_hook_s_git_variables_do_not_lead_elsewhere(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repository, "a")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert names(take(repository)) == {"a"}


def test_a_folder_that_became_a_link_hides_what_git_still_lists_below_it(repository: Path) -> None:
    put(repository, "a/f")
    git(repository, "add", "-A")
    (repository / "a").rename(repository / "b")
    (repository / "a").symlink_to("b")
    assert names(take(repository)) == {"a", "b/f"}


def test_links_are_kept_as_links_and_those_that_lead_out_are_named(project: Path) -> None:
    put(project, "pkg/f")
    for link, target in {
        "pkg/good": "../pkg/f", "dangling": "nothing", "out": "../other", "absolute": "/etc", "sly": "pkg/../../x",
    }.items():  # fmt: skip
        (project / link).symlink_to(target)
    taken = take(project)
    assert taken.parts["links"] == {"pkg/good": "../pkg/f", "dangling": "nothing"}
    assert sorted(warning.split()[0] for warning in taken.warnings) == ["absolute", "out", "sly"]
    assert take(project).warnings == taken.warnings
    (project / "out").unlink()
    (project / "out").symlink_to("pkg")
    assert "out" in take(project).parts["links"]


def test_sockets_and_pipes_are_named_and_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, "a")
    os.mkfifo(project / "pipe")
    monkeypatch.chdir(project)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
        taken = take(project)
    assert names(taken) == {"a"}
    assert [warning.split()[0] for warning in taken.warnings] == ["pipe", "socket"]


def test_the_executable_bit_is_the_mode(project: Path) -> None:
    put(project, "a")
    put(project, "b").chmod(0o700)
    assert {path: entry[0] for path, entry in take(project).parts["files"].items()} == {"a": 0o644, "b": 0o755}
    (project / "a").chmod(0o755)
    assert take(project).parts["files"]["a"][0] == 0o755


ODD = [
    "-rf",
    ":x",
    'q"uote',
    "it's",
    "ü",
    "名前",
    b"\xff\xfe",
    " sp ace ",
    "back\\slash",
    "*",
    "!n",
]


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "Icon\r", "\x7f", "\x9b2J", "d\t/x"])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_name_with_control_characters_is_refused_and_shown_escaped(project: Path, name: str, kind: str) -> None:
    (project / name).parent.mkdir(exist_ok=True)
    make = {"file": Path.touch, "folder": Path.mkdir, "link": lambda path: path.symlink_to("a")}[kind]
    make(project / name)
    put(project, "fine")
    with pytest.raises(errors.BadRequest, match="control characters are in the name") as caught:
        take(project)
    assert ascii(name) in caught.value.message
    assert ".runnerignore" in caught.value.hint
    put(project, ".runnerignore", "?" * len(name.partition("/")[0]))
    assert name not in take(project).parts["files"]


def test_odd_names_reach_the_box_and_its_trees(project: Path, box: FakeBox, tmp_path: Path) -> None:
    spelled = [os.fsdecode(name) for name in ODD]
    for name in spelled:
        (project / name).mkdir()
        put(project, f"{name}/{name}")
        (project / name / "void").mkdir()
    taken = send(box, take(project))
    assert names(taken) == {f"{name}/{name}" for name in spelled} | {f"{name}/void/" for name in spelled}
    code.make_tree(box.blobs, box.blobs.manifest(taken.id), str(tmp_path / "tree"))
    assert sorted(os.listdir(os.fsencode(tmp_path / "tree"))) == sorted(map(os.fsencode, spelled))
    assert take(project).unchanged or take(project).id == taken.id


PLAIN = bytes(number if number > 31 and number not in (47, 127) else 95 for number in range(256))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.binary(min_size=1, max_size=20), st.binary(max_size=50), max_size=6))
def test_any_name_and_any_content_comes_out_as_it_went_in(tmp_path: Path, files: dict[bytes, bytes]) -> None:
    root = tmp_path / "any"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    expected = {}
    for raw, content in files.items():
        name = raw.translate(PLAIN)
        name = name if words.CONTROL.isdisjoint(os.fsdecode(name)) else name.hex().encode()[:200]
        if name in (b".", b"..", b"runs") or name.lower() in (b".git", b".gitignore", b".runnerignore", b"__pycache__"):
            continue
        if not snapshot_refuses(os.fsdecode(name)):
            expected[name] = content
            (root / os.fsdecode(name)).write_bytes(content)
    box = FakeBox(tmp_path / "blobs")
    taken = send(box, take(root))
    shutil.rmtree(tmp_path / "tree", ignore_errors=True)
    code.make_tree(box.blobs, box.blobs.manifest(taken.id), str(tmp_path / "tree"))
    made = os.fsencode(tmp_path / "tree")
    assert {name: Path(os.fsdecode(made), os.fsdecode(name)).read_bytes() for name in os.listdir(made)} == expected


def snapshot_refuses(name: str) -> bool:
    from runner.laptop.ignore import is_secret

    return is_secret(name)


# --- what was named ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        ".env",
        "conf/.env.local",
        "tls.pem",
        "a.KEY",
        "id_ed25519",
        ".netrc",
        "kaggle.json",
        ".aws/credentials",
        ".ssh/x",
    ],
)
def test_secrets_are_refused_until_named_or_left_out(project: Path, secret: str) -> None:
    put(project, secret)
    with pytest.raises(errors.BadRequest) as refused:
        take(project)
    assert secret in refused.value.message
    assert f"--include {secret}" in refused.value.hint
    assert f"!{secret}" in refused.value.hint
    assert secret in names(take(project, include=[secret]))
    put(project, ".runnerignore", f"!{secret}\n")
    assert secret in names(take(project))
    put(project, ".runnerignore", f"{secret}\n")
    assert secret not in names(take(project))


@pytest.mark.parametrize("harmless", [".env.example", ".env.sample", ".env.template", "environment.yml", "key.py"])
def test_templates_of_secrets_are_no_secrets(project: Path, harmless: str) -> None:
    put(project, harmless)
    assert names(take(project)) == {harmless}


def test_include_brings_in_ignored_files_and_folders(project: Path) -> None:
    put(project, ".gitignore", "data/\nmodel.bin\n")
    for name in ("data/a", "data/b/c", "data/__pycache__/x", "model.bin", "runs/local-1/best.pt"):
        put(project, name)
    (project / "data/void").mkdir()
    taken = take(project, include=["data", "model.bin", "runs/local-1/best.pt"])
    assert names(taken) == {".gitignore", "data/a", "data/b/c", "data/void/", "model.bin", "runs/local-1/best.pt"}
    assert names(take(project)) == {".gitignore"}
    put(project, "data/new")
    assert "data/new" in names(take(project, include=["data", "model.bin", "runs/local-1/best.pt"]))


@pytest.mark.parametrize("name", ["nothing", "../x", "/etc", ".", "", ".git/config"])
def test_include_of_what_is_not_in_the_project_is_refused(project: Path, name: str) -> None:
    with pytest.raises(errors.BadRequest, match="include"):
        take(project, include=[name])


# --- limits and trouble --------------------------------------------------------------------------------------------


def test_over_the_limit_the_largest_are_named_before_anything_is_read(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(project, "data/train/set.bin", "x" * 5000)
    for n in range(3):
        put(project, f"images/{n}.png", "x" * 1000)
    put(project, "train.py", "x")
    monkeypatch.setattr(hashes, "of_file", lambda *_: pytest.fail("read"))
    with pytest.raises(errors.TooLarge) as refused:
        take(project, limit_bytes=2048)
    assert "data/train/set.bin (4.9 KiB), images/ (2.9 KiB), train.py (1 bytes)" in refused.value.message
    assert ".runnerignore" in refused.value.hint
    assert "--max-size" in refused.value.hint


def test_too_many_files_are_counted_by_folder(project: Path) -> None:
    for n in range(6):
        put(project, f"many/{n}")
    with pytest.raises(errors.TooLarge, match=r"6 files, the limit is 5; largest: many/ \(6\)"):
        take(project, limit_files=5)


def test_the_limit_also_holds_for_an_unchanged_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, "a", "x" * 100)
    age(project, monkeypatch)
    take(project)
    with pytest.raises(errors.TooLarge):
        take(project, limit_bytes=10)


def test_what_can_t_be_read_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, "closed")
    real = os.open

    def refuse(path: str, *rest: Any) -> int:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *rest)

    monkeypatch.setattr(snapshot.os, "open", refuse)
    with pytest.raises(errors.BadData, match="closed can't be read: Permission denied"):
        take(project)


def test_a_folder_that_can_t_be_read_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "closed").mkdir()
    real = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(errors.BadData, match="the folder closed can't be read"):
        take(project)


def test_a_file_that_goes_while_we_look_is_simply_gone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, "a")
    put(project, "b")
    real = hashes.of_file

    def vanish(root: str, path: str, kind: Any) -> Any:
        (project / "b").unlink(missing_ok=True)
        return real(root, path, kind)

    monkeypatch.setattr(hashes, "of_file", vanish)
    assert names(take(project)) == {"a"}


def test_a_file_that_never_sits_still_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, "growing", "x")
    real = os.read

    def grow(fd: int, count: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("growing"):
            with open(project / "growing", "a") as file:
                file.write("y")
        return real(fd, count)

    monkeypatch.setattr(os, "read", grow)
    with pytest.raises(errors.BadData, match="growing changed each of the 3 times"):
        take(project)


def test_a_hash_is_that_of_one_state_while_a_thread_appends(project: Path) -> None:
    from hashlib import sha256

    path = put(project, "log", "x" * 3_000_000)
    stop = threading.Event()

    def append() -> None:
        with path.open("a") as file:
            while not stop.is_set():
                file.write("y")
                file.flush()

    thread = threading.Thread(target=append)
    thread.start()
    try:
        for _ in range(5):
            try:
                _, size, sha = take(project).parts["files"]["log"]
            except errors.BadData:
                continue
            assert sha == sha256(path.read_bytes()[:size]).hexdigest()
    finally:
        stop.set()
        thread.join()


def test_a_broken_repository_is_reported_in_git_s_words(tmp_path: Path) -> None:
    need("git")
    (tmp_path / ".git").mkdir()
    with pytest.raises(errors.BadRequest, match="not a git repository"):
        take(tmp_path)


def test_without_git_installed_a_repository_says_so(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(errors.NotInstalled, match="git can't be started"):
        take(repository)


# --- roots ---------------------------------------------------------------------------------------------------------


def test_the_root_is_git_s_then_pyproject_s_then_the_script_s_folder(tmp_path: Path) -> None:
    script = put(tmp_path, "a/b/c/train.py")
    assert snapshot.root_of(str(script)) == str(tmp_path / "a/b/c")
    put(tmp_path, "a/b/pyproject.toml")
    assert snapshot.root_of(str(script)) == str(tmp_path / "a/b")
    assert snapshot.root_of(str(tmp_path / "a/b/c")) == str(tmp_path / "a/b")
    (tmp_path / "a/.git").mkdir()
    assert snapshot.root_of(str(script)) == str(tmp_path / "a")


def test_a_home_directory_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    script = put(tmp_path, "train.py")
    with pytest.raises(errors.BadRequest) as refused:
        snapshot.root_of(str(script))
    assert "folder of its own" in refused.value.hint
    (tmp_path / ".git").mkdir()
    with pytest.raises(errors.BadRequest) as refused:
        snapshot.root_of(str(put(tmp_path, "exp/train.py")))
    assert "git init" in refused.value.hint
    with pytest.raises(errors.BadRequest):
        snapshot.root_of("/train.py")


# --- the index -----------------------------------------------------------------------------------------------------


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    real = hashes.of_file
    monkeypatch.setattr(hashes, "of_file", lambda root, path, kind: (read.append(path), real(root, path, kind))[1])
    return read


def test_an_unchanged_project_is_recognized_and_a_changed_file_alone_is_read(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c/d"):
        put(project, name, name)
    age(project, monkeypatch)
    first = take(project)
    read = reads(monkeypatch)
    second = take(project)
    assert second.unchanged
    assert (second.id, second.parts, second.bytes, second.count) == (first.id, first.parts, first.bytes, first.count)
    put(project, "b", "longer")
    third = take(project)
    assert read == ["b"]
    assert third.base == first.id
    assert third.offer(whole=False)["files"] == {"b": third.parts["files"]["b"]}
    (project / "a").unlink()
    assert take(project).offer(whole=False)["removed"] == ["a"]


def test_an_edit_of_the_same_size_within_two_seconds_is_seen(project: Path) -> None:
    put(project, "a", "one")
    before = take(project)
    status = (project / "a").stat()
    put(project, "a", "two")
    os.utime(project / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert take(project).id != before.id


def test_a_young_entry_is_read_again_until_it_is_old(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, "a")
    first = take(project)
    read = reads(monkeypatch)
    assert not take(project).unchanged
    assert read == ["a"]
    age(project, monkeypatch)
    assert take(project).id == first.id
    assert read == ["a", "a"]
    assert take(project).unchanged
    assert read == ["a", "a"]


def test_an_edit_whose_mtime_was_restored_is_seen(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, "a", "one")
    age(project, monkeypatch)
    before = take(project)
    status = (project / "a").stat()
    with open(project / "a", "r+") as file:
        file.write("two")
    os.utime(project / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert take(project).id != before.id


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new file": lambda root: put(root, "sub/new"),
    "a file gone": lambda root: (root / "sub/a").unlink(),
    "a new empty folder": lambda root: (root / "sub/void").mkdir(),
    "an empty folder gone": lambda root: (root / "empty").rmdir(),
    "a rename": lambda root: (root / "sub/a").rename(root / "sub/b"),
    "a file became a link": lambda root: ((root / "sub/a").unlink(), (root / "sub/a").symlink_to("x")),
    "a link's target": lambda root: ((root / "link").unlink(), (root / "link").symlink_to("empty")),
    "the executable bit": lambda root: (root / "sub/a").chmod(0o755),
    "a new rule": lambda root: put(root, ".runnerignore", "sub/\n"),
    "a rule in a folder": lambda root: put(root, "sub/.gitignore", "a\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_index_sees(project: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]) -> None:
    put(project, "sub/a", "a")
    (project / "empty").mkdir()
    (project / "link").symlink_to("sub")
    age(project, monkeypatch)
    before = take(project)
    assert take(project).unchanged
    change(project)
    after = take(project)
    fresh = take(project, known=False)
    assert after.id != before.id
    assert after.id == fresh.id


EDITS: dict[str, Callable[[Path], object]] = {
    "in place": lambda root: put(root, "pkg/b", "longer"),
    "by a new file that takes its place": lambda root: put(root, "new", "other").rename(root / "pkg/b"),
    "the executable bit": lambda root: (root / "a").chmod(0o755),
    "a link made anew": lambda root: ((root / "link").unlink(), (root / "link").symlink_to("a")),
    "what is ignored": lambda root: put(root, "build/more"),
    "outputs": lambda root: put(root, "runs/local-1/x"),
    "byte code": lambda root: put(root, "pkg/__pycache__/x.pyc"),
}


def mendable(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A project with an index, and the list of looks that it takes from now on."""
    for name in ("a", "pkg/b", "build/x", ".venv/pyvenv.cfg", ".venv/lib/y", "runs/old/z"):
        put(root, name, name)
    put(root, ".gitignore", "build/\n")
    (root / "link").symlink_to("a")
    (root / "empty").mkdir()
    age(root, monkeypatch)
    take(root)
    looks: list[str] = []
    real = walk.of
    monkeypatch.setattr(walk, "of", lambda *given: (looks.append("all"), real(*given))[1])
    return looks


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edit_needs_no_new_look_and_comes_to_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[Path], object]
) -> None:
    looks = mendable(project, monkeypatch)
    edit(project)
    mended = take(project)
    assert looks == []
    fresh = take(project, known=False)
    assert (mended.id, mended.parts, mended.bytes, mended.count) == (fresh.id, fresh.parts, fresh.bytes, fresh.count)
    assert take(project).id == fresh.id


NEWS: dict[str, Callable[[Path], object]] = {
    "a new file": lambda root: put(root, "pkg/new"),
    "a file that went": lambda root: (root / "a").unlink(),
    "a new empty folder": lambda root: (root / "pkg/void").mkdir(),
    "a file in the empty folder": lambda root: put(root, "empty/new"),
    "a file that became a link": lambda root: ((root / "a").unlink(), (root / "a").symlink_to("pkg/b")),
    "a folder that became a file": lambda root: ((root / "empty").rmdir(), put(root, "empty")),
    "a link that points elsewhere": lambda root: ((root / "link").unlink(), (root / "link").symlink_to("pkg")),
    "a rule": lambda root: put(root, ".gitignore", "build/\npkg/\n"),
    "a rule of ours": lambda root: put(root, ".runnerignore", "a\n"),
    "a pipe": lambda root: os.mkfifo(root / "pipe"),
}


@pytest.mark.parametrize("news", NEWS.values(), ids=NEWS.keys())
def test_what_is_more_than_an_edit_is_looked_at(
    project: Path, monkeypatch: pytest.MonkeyPatch, news: Callable[[Path], object]
) -> None:
    looks = mendable(project, monkeypatch)
    put(project, "pkg/b", "edited, too")
    news(project)
    taken = take(project)
    assert looks == ["all"]
    assert taken.id == take(project, known=False).id


def test_an_edit_over_the_limit_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mendable(project, monkeypatch)
    put(project, "a", "x" * 5000)
    with pytest.raises(errors.TooLarge, match="largest: a "):
        take(project, limit_bytes=1000)


def test_an_edit_costs_no_heavy_import(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mendable(project, monkeypatch)
    put(project, "a", "edited")
    code = (
        "import sys; from runner.laptop import snapshot; snapshot.begin(sys.argv[1]).finish();"
        "print(*(n for n in ('json', 'hashlib', 're', 'pathspec', 'runner.laptop.walk') if n in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(project)], capture_output=True, text=True, check=True)
    assert ran.stdout == "\n"


def test_contents_of_any_size_get_the_same_name(tmp_path: Path) -> None:
    for size in (0, 10, hashes.SMALL, hashes.SMALL + 1):
        data = b"x" * size
        assert hashes.sha256(size)(data).digest() == hashes.sha256()(data).digest()


def test_excluding_in_git_s_own_file_is_seen(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repository, "a")
    (repository / "void").mkdir()
    age(repository, monkeypatch)
    assert names(take(repository)) == {"a", "void/"}
    put(repository, ".git/info/exclude", "void/\n")
    assert names(take(repository)) == {"a"}


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"version": 2}', '{"version": 1, "root": 5}'])
@pytest.mark.parametrize("checked", [False, True], ids=["as it is", "with the right checksum"])
def test_a_damaged_index_is_ignored(project: Path, damage: str, checked: bool) -> None:
    put(project, "a")
    first = take(project)
    data = damage.encode()
    Path(index.path_of(str(project))).write_bytes(index._check(data) + data if checked else data)
    assert take(project).id == first.id


def test_an_index_damaged_anywhere_never_stops_a_submit(project: Path, box: FakeBox) -> None:
    put(project, "a", "text")
    right = take(project).id
    path = Path(index.path_of(str(project)))
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert index.load(str(project)) is None
        path.write_bytes(whole[:at])
        assert index.load(str(project)) is None
    assert send(box, take(project)).id == right


def test_a_cache_that_can_t_be_written_does_no_harm(project: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    put(project, "a")
    assert take(project).id == take(project).id


def test_two_looks_at_once_agree(project: Path) -> None:
    for n in range(50):
        put(project, f"f{n}", str(n))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(take(project).id)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert take(project).id == found[0]


def test_an_unchanged_project_costs_no_heavy_import(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, "a")
    put(project, ".runnerignore", "b\n")
    age(project, monkeypatch)
    take(project)
    program = (
        "import sys; from runner.laptop import snapshot\n"
        f"assert snapshot.begin({str(project)!r}).finish().unchanged\n"
        "print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=os.getcwd())
    heavy = {
        "ssl", "http.client", "dataclasses", "typing", "pathlib", "subprocess", "hashlib", "asyncio", "pathspec",
        "runner.laptop.walk", "runner.model", "json", "re",
    }  # fmt: skip
    assert not heavy & set(ran.stdout.split())


# --- sending -------------------------------------------------------------------------------------------------------


def test_only_what_the_box_lacks_is_sent(project: Path, box: FakeBox) -> None:
    put(project, "a", "one")
    put(project, "same", "one")
    put(project, "b", "two" * 1_000_000)
    put(project, "none", "")
    first = send(box, take(project))
    assert [path for path, _ in box.asked] == ["/bundles", "/blobs", "/jobs"]
    assert box.blobs.manifest(first.id).files["a"][2] == first.parts["files"]["same"][2]
    assert snapshot.read_manifest(box.blobs.read(first.id)) == first.parts
    put(project, "a", "changed")
    box.asked.clear()
    second = send(box, take(project))
    assert box.asked[0][1]["base"] == first.id
    assert list(box.asked[0][1]["files"]) == ["a"]
    assert [path for path, _ in box.asked] == ["/bundles"], "a small edit is one request"
    assert box.blobs.manifest(second.id).id == second.id


def test_a_box_that_does_not_know_the_base_gets_everything(project: Path, box: FakeBox, tmp_path: Path) -> None:
    put(project, "a", "one")
    send(box, take(project))
    put(project, "a", "two")
    other = FakeBox(tmp_path / "other")
    taken = send(other, take(project))
    assert other.blobs.manifest(taken.id).id == taken.id


def test_a_box_without_bundles_is_asked_as_its_time_did(project: Path, tmp_path: Path) -> None:
    older = FakeBox(tmp_path / "older", knows_bundles=False)
    put(project, "a", "one" * 100_000)
    os.symlink("a", project / "l")
    first = send(older, take(project))
    assert [path for path, _ in older.asked] == ["/bundles", "/snapshots", "/blobs", "/snapshots", "/jobs"]
    put(project, "a", "two")
    older.asked.clear()
    send(older, take(project))
    changes = older.asked[1][1]
    assert (changes["base"], list(changes["files"]), changes["links"]) == (first.id, ["a"], {"l": "a"})


def test_what_the_box_lost_between_upload_and_submission_is_sent_again(project: Path, box: FakeBox) -> None:
    put(project, "a", "one")
    put(project, "b", "two")
    left = iter([True, False])

    def lose() -> None:
        if next(left):
            os.unlink(box.blobs.path(hashes.sha256()(b"one").hexdigest()))
            box.blobs.losses += 1

    box.before_jobs = lose
    sent = send(box, take(project))
    assert [path for path, _ in box.asked] == ["/bundles", "/blobs", "/jobs", "/bundles", "/blobs", "/jobs"]
    assert box.jobs == [sent.id]
    assert list(box.asked[3][1]["files"]) == []


def test_a_box_that_always_asks_for_more_is_given_up(project: Path, box: FakeBox) -> None:
    put(project, "a", "one")

    def lose() -> None:
        os.unlink(box.blobs.path(hashes.sha256()(b"one").hexdigest()))
        box.blobs.losses += 1

    box.before_jobs = lose
    with pytest.raises(errors.SnapshotUnknown):
        send(box, take(project))


def test_a_box_that_asks_for_what_is_not_ours_is_told_so(project: Path, box: FakeBox) -> None:
    put(project, "a", "one")
    taken = take(project)
    for answer in ({"missing": ["0" * 64], "held": {}}, {"missing": ["../x"], "held": {"../x": 1}}):
        with pytest.raises(errors.BadData, match="not ours"):
            delivery.Delivery(box, {"spec": {}}, taken, "key")._complete(answer)


def test_an_edit_of_much_is_asked_about_first(project: Path, box: FakeBox) -> None:
    put(project, "a", "one")
    send(box, take(project))
    put(project, "a", "x" * (delivery.INLINE_BYTES + 1))
    box.asked.clear()
    send(box, take(project))
    assert [path for path, _ in box.asked] == ["/bundles", "/blobs", "/jobs"]


def test_a_small_file_that_changes_before_it_is_read_is_taken_anew(project: Path, box: FakeBox) -> None:
    put(project, "a", "one")
    send(box, take(project))
    put(project, "a", "two")
    second = take(project)
    put(project, "a", "three")
    sent = send(box, second)
    assert sent.id != second.id
    assert box.blobs.read(sent.parts["files"]["a"][2]) == b"three"


def test_packing_ends_where_it_costs_more_than_it_saves() -> None:
    pace = upload.Pace()
    text = b"word " * 20_000
    assert pace.pays()
    assert len(pace.packed(text)) < len(text) / 10
    pace.tell_sent(1_000_000, 1000.0)
    assert pace.pays()
    for _ in range(20):
        pace.tell_sent(10_000_000, 0.0)
    assert not pace.pays()
    noise = os.urandom(100_000)
    assert upload.packed(noise) is noise
    assert upload.packed(b"short") == b"short"
    assert upload.frame("0" * 64, text, packs=False).endswith(b" 100000\n" + text)


def test_a_file_that_changes_before_it_is_sent_is_taken_anew(project: Path, box: FakeBox) -> None:
    put(project, "a", "one")
    first = take(project)
    put(project, "a", "two")
    sent = send(box, first)
    assert sent.id != first.id
    assert box.blobs.read(sent.parts["files"]["a"][2]) == b"two"


def test_a_file_that_changes_whenever_it_is_sent_is_named(project: Path, box: FakeBox) -> None:
    put(project, "a", "one")
    count = iter(range(100))
    box.before_blobs = lambda: put(project, "a", f"other {next(count)}") and None
    with pytest.raises(errors.BadData, match="a changed each of the 3 times it was sent"):
        send(box, take(project))
    assert os.listdir(f"{box.blobs.directory}/incoming") == []


def test_trouble_of_the_box_is_passed_on(project: Path, box: FakeBox) -> None:
    def full() -> None:
        raise errors.DiskFull("full")

    put(project, "a")
    box.before_blobs = full
    with pytest.raises(errors.DiskFull):
        send(box, take(project))


@pytest.mark.parametrize("data", [b"", b"[]", b'{"version":2}', b'{"version":1}', b"\xff"])
def test_a_list_of_files_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(errors.BadData):
        snapshot.read_manifest(data)
