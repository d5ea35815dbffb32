"""Data sets on the box: versions that share their contents, views that never change, and what is refused."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from runner import errors, files
from runner.box import sets
from runner.box.manifests import manifest_bytes
from runner.box.sets import DataSet, Lacking, Push, Sets
from runner.box.settings import Settings
from runner.model import Principal
from runner.paths import StateDir

ANN, BOB, OWNER = Principal(1001, "ann", "submit"), Principal(1002, "bob", "submit"), Principal(0, "root", "admin")
PAIR = {"a.bin": b"one", "deep/b.bin": b"two"}


@pytest.fixture
def kept(tmp_path: Path) -> Sets:
    return opened(tmp_path)


def opened(place: Path, **settings: Any) -> Sets:
    state = StateDir(place / "state")
    os.makedirs(state, exist_ok=True)
    return Sets(Settings(state, f"{state}/api.sock", **{"free_bytes": 0, "data": f"{place}/shared", **settings}))


def manifest(contents: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    entries = {path: (0o644, len(data), sha256(data).hexdigest()) for path, data in contents.items()}
    return manifest_bytes(entries, links or {}, [])


def push(kept: Sets, name: str, contents: dict[str, bytes], who: Principal = ANN) -> DataSet:
    listed = manifest(contents)
    for data in (*contents.values(), listed):
        kept.blobs.add(data)
    made = kept.offer(name, Push(sha256(listed).hexdigest()), who)
    assert isinstance(made, DataSet)
    return made


def seen(view: str, name: str) -> dict[str, bytes]:
    root = Path(view) / name
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def sweep(kept: Sets, *used: str) -> int:
    return kept.sweep(set(kept.stale_views()) - set(used))


def contents(kept: Sets) -> int:
    return len([*kept.blobs.paths()])


def test_what_is_missing_is_asked_for_first_the_list_then_the_contents(kept: Sets) -> None:
    listed = manifest(PAIR)
    wish = Push(sha256(listed).hexdigest())
    assert kept.offer("set", wish, ANN) == Lacking([wish.id], {})
    kept.blobs.add(listed)
    kept.blobs.add(b"one")
    assert kept.offer("set", wish, ANN) == Lacking([sha256(b"two").hexdigest()], {})
    kept.blobs.add(b"two")
    made = kept.offer("set", wish, ANN)
    assert isinstance(made, DataSet)
    assert (made.name, made.files, made.bytes, made.user) == ("set", 2, 6, "ann")
    assert seen(kept.view, "set") == PAIR


def test_a_content_is_on_the_disk_once_for_all_sets_and_versions(kept: Sets) -> None:
    push(kept, "one", {"x": b"same", "y": b"same"})
    push(kept, "two", {"z": b"same", "new": b"other"}, BOB)
    found = {os.stat(f"{kept.view}/{path}").st_ino for path in ("one/x", "one/y", "two/z")}
    assert len(found) == 1


def test_nobody_may_write_to_what_jobs_read(kept: Sets) -> None:
    push(kept, "set", PAIR)
    root = Path(kept.view)
    assert stat.S_IMODE(root.stat().st_mode) == 0o555
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (root / "set").resolve().parent.rglob("*")}
    assert modes == {0o444, 0o555}
    entered = [kept.directory, f"{kept.directory}/versions", f"{kept.directory}/views"]
    assert {stat.S_IMODE(os.stat(folder).st_mode) for folder in entered} == {0o711}


def test_who_began_with_a_version_keeps_it(kept: Sets) -> None:
    push(kept, "set", PAIR)
    before = kept.view
    push(kept, "set", {**PAIR, "a.bin": b"changed"})
    assert sweep(kept, before) == 0
    assert (seen(before, "set")["a.bin"], seen(kept.view, "set")["a.bin"]) == (b"one", b"changed")
    kept.remove("set", ANN)
    assert not os.path.lexists(f"{kept.view}/set")
    sweep(kept, before)
    assert seen(before, "set") == PAIR
    assert sweep(kept) > 0
    assert contents(kept) == 0
    assert os.listdir(f"{kept.directory}/versions") == []


def test_what_two_versions_share_stays_when_one_goes(kept: Sets) -> None:
    push(kept, "set", PAIR)
    push(kept, "set", {"a.bin": b"one"})
    sweep(kept)
    assert seen(kept.view, "set") == {"a.bin": b"one"}
    assert contents(kept) == 2, "a file and the list"


def test_the_next_daemon_knows_the_sets_and_tidies_up(kept: Sets, tmp_path: Path) -> None:
    push(kept, "set", PAIR)
    old = kept.view
    os.makedirs(f"{kept.directory}/versions/.half-made/tree")
    again = opened(tmp_path)
    assert again.listed() == kept.listed()
    assert again.view != old
    assert seen(again.view, "set") == PAIR
    assert os.listdir(f"{kept.directory}/versions") == [again.listed()[0].id]
    sweep(again)
    assert os.listdir(f"{kept.directory}/views") == [os.path.basename(again.view)]


def test_a_record_that_is_damaged_takes_no_data_along(kept: Sets, tmp_path: Path) -> None:
    push(kept, "set", PAIR)
    Path(kept.directory, "names", "set").write_bytes(b"{")
    again = opened(tmp_path)
    assert again.listed() == []
    assert sweep(again) == 0
    assert len(os.listdir(f"{kept.directory}/versions")) == 1


@pytest.mark.parametrize("point", ["data.laid_out", "data.named"])
def test_a_daemon_that_dies_in_a_push_leaves_the_old_version_or_the_new(
    point: str, kept: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(kept, "set", PAIR)

    class Dead(BaseException):
        pass

    def die(name: str) -> None:
        if name == point:
            raise Dead

    monkeypatch.setattr(files, "armed", die)
    with pytest.raises(Dead):
        push(kept, "set", {"a.bin": b"new"})
    monkeypatch.setattr(files, "armed", None)
    again = opened(tmp_path)
    assert seen(again.view, "set") == (PAIR if point == "data.laid_out" else {"a.bin": b"new"})
    assert seen(push(again, "set", {"a.bin": b"new"}) and again.view, "set") == {"a.bin": b"new"}


def test_changes_to_a_version_are_a_version(kept: Sets) -> None:
    first = push(kept, "set", PAIR)
    kept.blobs.add(b"three")
    whole = manifest({**PAIR, "c": b"three"})
    entry = (0o644, 5, sha256(b"three").hexdigest())
    wish = Push(sha256(whole).hexdigest(), first.id, {"c": entry}, [], None, None)
    made = kept.offer("set", wish, ANN)
    assert isinstance(made, DataSet)
    assert seen(kept.view, "set") == {**PAIR, "c": b"three"}
    with pytest.raises(errors.SnapshotUnknown):
        kept.offer("set", Push(wish.id, "0" * 64, {}, [], None, None), ANN)


def test_a_content_that_has_too_many_names_is_copied(kept: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    link, refusals = os.link, []

    def few(source: str, path: str) -> None:
        if os.stat(source).st_nlink > 2:
            refusals.append(path)
            raise OSError(sets.errno.EMLINK, "too many links")
        link(source, path)

    monkeypatch.setattr(os, "link", few)
    push(kept, "set", {f"empty{n}": b"" for n in range(6)})
    assert len(refusals) >= 3
    assert seen(kept.view, "set") == {f"empty{n}": b"" for n in range(6)}
    assert {stat.S_IMODE(os.stat(f"{kept.view}/set/empty{n}").st_mode) for n in range(6)} == {0o444}


def test_what_does_not_fit_is_refused_before_it_is_sent(kept: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "disk_room", lambda path: (10 << 20, 100 << 20))
    entries = {"big": (0o644, 9 << 20, "a" * 64)}
    listed = manifest_bytes(entries, {}, [])
    kept.blobs.add(listed)
    with pytest.raises(errors.DiskFull) as full:
        kept.offer("set", Push(sha256(listed).hexdigest()), ANN)
    assert "needs 9.0 MiB more" in full.value.message, full.value.message
    assert "10.0 MiB are free" in full.value.message
    assert "`runner data rm NAME`" in full.value.hint


def hostile(files: object = None, links: object = None, dirs: object = None) -> bytes:
    parts = {"version": 1, "files": files or {}, "links": links or {}, "dirs": dirs or []}
    return json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()


ENTRY = [0o644, 3, "a" * 64]


@pytest.mark.parametrize(
    "listed",
    [
        hostile({"../x": ENTRY}), hostile({"/etc/x": ENTRY}), hostile({"a/../../x": ENTRY}), hostile({"a//b": ENTRY}),
        hostile({".git/hooks/x": ENTRY}), hostile({"a\0b": ENTRY}), hostile({"": ENTRY}), hostile({".": ENTRY}),
        hostile({"a": ENTRY, "a/b": ENTRY}), hostile({"/".join("d" * 70): ENTRY}), hostile({"n" * 300: ENTRY}),
        hostile({"a": [0o4755, 3, "a" * 64]}), hostile({"a": [0o644, -1, "a" * 64]}),
        hostile({"a": [0o644, 3, "../x"]}),
        hostile({"a": [0o644, 1 << 60, "a" * 64]}), hostile({"a": [True, 3, "a" * 64]}), hostile([]) + b" ",
        hostile(links={"l": "/etc"}), hostile(links={"l": "../x"}), hostile(links={"a/l": "../../x"}),
        hostile({"l/x": ENTRY}, {"l": "a"}), hostile(links={"l": "a/../../x"}), hostile(dirs=["../x"]),
        hostile(dirs=["b", "a"]), b"{}", b"[", b"[" * 100_000, b'{"version": 1}',
    ],
)  # fmt: skip
def test_a_hostile_list_is_refused_and_lays_nothing_out(kept: Sets, listed: bytes) -> None:
    kept.blobs.add(listed)
    before = sorted(os.listdir(kept.directory))
    with pytest.raises((errors.BadData, errors.BadRequest)) as refused:
        kept.offer("set", Push(sha256(listed).hexdigest()), ANN)
    assert refused.value.hint
    assert os.listdir(f"{kept.directory}/versions") == []
    assert sorted(os.listdir(kept.directory)) == before


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "a b", "a\n", "x" * 65, "shared", "x.tmp", "-rf", "ä"])
def test_a_name_is_plain(kept: Sets, name: str) -> None:
    with pytest.raises(errors.BadRequest) as refused:
        kept.offer(name, Push("0" * 64), ANN)
    assert "64 letters" in refused.value.hint
    with pytest.raises(errors.BadRequest):
        kept.link(name, "/usr", OWNER)


def test_a_set_is_changed_by_whom_it_belongs_to_and_by_an_administrator(kept: Sets) -> None:
    push(kept, "set", PAIR)
    changes: list[Callable[[], object]] = [
        lambda: push(kept, "set", {"a": b"x"}, BOB), lambda: kept.remove("set", BOB),
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(errors.Refused, match="ann's"):
            change()
    assert seen(kept.view, "set") == PAIR
    push(kept, "set", {"a": b"x"}, OWNER)
    kept.remove("set", OWNER)
    with pytest.raises(errors.NotFound):
        kept.remove("set", ANN)


# --- links ---


def test_a_link_gives_a_name_to_what_is_there(kept: Sets, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "x").write_bytes(b"x")
    made = kept.link("far", str(there), OWNER)
    assert (made.id, made.bytes, made.path) == (None, None, str(there))
    assert seen(kept.view, "far") == {"x": b"x"}
    with pytest.raises(errors.BadRequest, match="a link to"):
        kept.fetched("far")
    with pytest.raises(errors.Refused):
        push(kept, "far", PAIR)
    kept.link("far", "/usr", OWNER)
    kept.remove("far", OWNER)
    sweep(kept)
    assert (there / "x").exists()


def test_a_link_leads_to_data_and_nowhere_else(kept: Sets, tmp_path: Path) -> None:
    state = kept._state
    for path in ("relative", "", "/nowhere/at/all", "/dev/null", "/", f"{state}", f"{state}/secrets", str(tmp_path)):
        with pytest.raises(errors.Problem) as refused:
            kept.link("far", path, OWNER)
        assert refused.value.hint, path
    os.symlink(state, tmp_path / "sly")
    with pytest.raises(errors.BadRequest, match="the queue's own"):
        kept.link("far", str(tmp_path / "sly"), OWNER)
    push(kept, "mine", PAIR)
    with pytest.raises(errors.Busy):
        kept.link("mine", "/usr", OWNER)
    assert [each.name for each in kept.listed()] == ["mine"]


def test_a_service_that_can_not_see_a_path_says_where_it_can(tmp_path: Path) -> None:
    kept = opened(tmp_path, engine="systemd")
    with pytest.raises(errors.Refused) as refused:
        kept.link("far", "/root/data", OWNER)
    assert "homes are closed" in refused.value.message
    assert f"move it to {tmp_path}/shared" in refused.value.hint


def test_what_people_share_can_be_linked_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service may not look into that folder; its jobs may."""
    kept = opened(tmp_path, engine="systemd")
    stat_of = os.stat

    def closed(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(f"{tmp_path}/shared/"):
            raise PermissionError(13, "Permission denied", path)
        return stat_of(path, *rest, **more)

    monkeypatch.setattr(os, "stat", closed)
    assert kept.link("far", f"{tmp_path}/shared/set", OWNER).path == f"{tmp_path}/shared/set"
    assert os.readlink(f"{kept.view}/far") == f"{tmp_path}/shared/set"


def test_what_no_push_came_for_goes_after_a_day(kept: Sets) -> None:
    push(kept, "set", PAIR)
    kept.blobs.add(b"left behind")
    now = os.stat(kept.directory).st_mtime
    assert kept.collect(now) == 0
    assert kept.collect(now + 2 * sets.DAY) > 0
    assert contents(kept) == 3
    assert seen(kept.view, "set") == PAIR
