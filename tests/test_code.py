"""Code on the box: hostile lists of files and streams, durable contents, and trees that share nothing."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import errors, files
from runner.box import blobs as blobs_module
from runner.box import code, manifests, trees
from runner.box.api import uploads
from runner.box.receiver import STRIDE
from runner.box.recipes import Recipes
from runner.model import JobSpec

SHA = "a" * 64
NOISE = random.Random(7)


@pytest.fixture
def blobs(tmp_path: Path) -> code.Blobs:
    return code.Blobs(str(tmp_path / "blobs"))


def sha(data: bytes) -> str:
    return sha256(data).hexdigest()


def frame(data: bytes) -> bytes:
    return f"{sha(data)} {len(data)}\n".encode() + data


def receive(blobs: code.Blobs, *pieces: bytes, **limits: int) -> int:
    receiver = code.Receiver(blobs, **limits)
    for piece in pieces:
        receiver.feed(piece)
    return receiver.close()


def stored(blobs: code.Blobs) -> set[str]:
    return {name for name, _ in blobs._all()}


def tidy(blobs: code.Blobs) -> bool:
    return os.listdir(f"{blobs.directory}/incoming") == []


def make(blobs: code.Blobs, contents: dict[str, bytes], links: Any = None, dirs: Any = None) -> code.Manifest:
    """A stored snapshot."""
    for data in contents.values():
        blobs.add(data)
    entries = {path: [0o755 if path.endswith(".sh") else 0o644, len(d), sha(d)] for path, d in contents.items()}
    manifest = code.Manifest.of(entries, links or {}, dirs or [])
    blobs.keep(manifest)
    return manifest


def content(tree: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder, below, names in os.walk(tree):
        for name in (*below, *names):
            path = f"{folder}/{name}"
            key = os.path.relpath(path, tree)
            if os.path.islink(path):
                found[key] = f"-> {os.readlink(path)}"
            elif os.path.isfile(path):
                found[key] = Path(path).read_bytes(), os.stat(path).st_mode & 0o777
            elif not os.listdir(path):
                found[key] = "empty"
    return found


# --- manifests -----------------------------------------------------------------------------------------------------

GOOD = {"version": 1, "files": {"a/b": [0o644, 1, SHA]}, "links": {"l": "a/b"}, "dirs": ["e", "f/g"]}


def test_a_manifest_is_named_by_its_canonical_bytes() -> None:
    shuffled = dict(reversed(GOOD.items()))
    manifest = code.Manifest.parse(json.dumps(shuffled).encode())
    assert manifest.data == json.dumps(GOOD, sort_keys=True, separators=(",", ":")).encode()
    assert manifest.id == sha(manifest.data)
    assert manifest.folders() == ["a", "e", "f", "f/g"]


HOSTILE_PATHS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a/..",
    ".",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "a\0b",
    "\0",
    ".git/config",
    "sub/.git/hooks/post-checkout",
    ".GIT/config",
    "x" * 256,
    "ü" * 128,
    "/".join("x" * 65),
    "y" * 200 + "/" + "z" * 3000,
    "\ud800",
    "\udfff",
]


@pytest.mark.parametrize("path", HOSTILE_PATHS, ids=lambda path: ascii(path)[:30])
@pytest.mark.parametrize("part", ["files", "links", "dirs"])
def test_a_path_that_is_not_inside_the_tree_is_refused(path: str, part: str) -> None:
    value: Any = {"files": {path: [0o644, 1, SHA]}, "links": {path: "t"}, "dirs": [path]}[part]
    with pytest.raises(errors.BadData):
        code.Manifest.parse(json.dumps({**GOOD, part: value}).encode())


@pytest.mark.parametrize("path", ["-rf", "a\nb", "\x1b[2J", "ü", "\udcff", " ", "...", "..a", ".gitignore", "a b/c"])
def test_an_odd_path_inside_the_tree_is_fine(path: str) -> None:
    assert path in code.Manifest.of({path: [0o644, 1, SHA]}, {}, []).files


@pytest.mark.parametrize("path", ["a\nb", "\x1b[2J", "d\t/x", "\x7f", "\x9b2J"])
@pytest.mark.parametrize("part", ["files", "links", "dirs"])
def test_control_characters_in_the_name_of_what_comes_are_refused(path: str, part: str) -> None:
    value: Any = {"files": {path: [0o644, 1, SHA]}, "links": {path: "t"}, "dirs": [path]}[part]
    parts = {"files": {}, "links": {}, "dirs": [], part: value}
    before = code.Manifest.of(parts["files"], parts["links"], parts["dirs"])  # from when this was not asked
    with pytest.raises(errors.BadData, match="control characters are in the name"):
        code.apply_changes(None, before.id, parts["files"], [], parts["links"], parts["dirs"])


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("l", "/etc"),
        ("l", ".."),
        ("l", "../x"),
        ("d/l", "../.."),
        ("d/l", "../../x"),
        ("l", "a/../../x"),
        ("l", "a/.."),
        ("d/e/l", "../x/../../.."),
        ("l", ""),
        ("l", "a\0"),
        ("l", "x" * 4096),
        ("l", 5),
        ("l", "\ud800"),
    ],
)
def test_a_link_that_could_lead_out_is_refused(path: str, target: Any) -> None:
    with pytest.raises(errors.BadData):
        code.Manifest.of({}, {path: target}, [])


@pytest.mark.parametrize(("path", "target"), [("l", "a/b"), ("d/l", "../a"), ("d/e/l", "../../x/y"), ("l", ".")])
def test_a_link_inside_the_tree_is_fine(path: str, target: str) -> None:
    assert code.Manifest.of({}, {path: target}, []).links == {path: target}


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2},
        {"version": None},
        {"more": 1},
        {"files": []},
        {"files": None},
        {"links": []},
        {"dirs": {}},
        {"dirs": ["b", "a"]},
        {"dirs": ["a/x", "a/x"]},
        {"dirs": [5]},
        {"files": {"a": [0o644, 1]}},
        {"files": {"a": 5}},
        {"files": {"a": [0o777, 1, SHA]}},
        {"files": {"a": [0o4755, 1, SHA]}},
        {"files": {"a": [420.0, 1, SHA]}},
        {"files": {"a": [0o644, -1, SHA]}},
        {"files": {"a": [0o644, True, SHA]}},
        {"files": {"a": [0o644, 1 << 70, SHA]}},
        {"files": {"a": [0o644, 1, "A" * 64]}},
        {"files": {"a": [0o644, 1, "a" * 63]}},
        {"files": {"a": [0o644, 1, SHA + "\n"]}},
        {"files": {"l": [0o644, 1, SHA]}},
        {"files": {"e": [0o644, 1, SHA]}},
        {"files": {"e/x": [0o644, 1, SHA]}},
        {"files": {"l/x": [0o644, 1, SHA]}},
        {"files": {"a": [0o644, 1, SHA], "a/b": [0o644, 1, SHA]}},
        {"links": {"e": "x"}},
        {"links": {"a/b/c": "x"}},
        {"dirs": ["a/b/c"]},
        {"dirs": ["l/x"]},
        {"dirs": ["e", "e/f"]},
    ],
    ids=lambda changed: ascii(changed)[:60],
)
def test_a_list_that_is_no_tree_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(errors.BadData):
        code.Manifest.parse(json.dumps({**GOOD, **changed}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"5", b"{", b"\xff", b"[" * 100_000, b'{"version":1}'])
def test_what_is_no_manifest_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(errors.BadData):
        code.Manifest.parse(data)


NAMES = st.text("ab./\\\0\n\x1b\ud800ü~", max_size=8) | st.sampled_from(["..", "../x", "/x", ".git/x", "a/b", "a"])
TEN = b"ten bytes!"


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(NAMES, st.sampled_from([0o644, 0o755, 0o4755, 0, "x"]), max_size=4),
    st.dictionaries(NAMES, NAMES, max_size=4),
    st.lists(NAMES, max_size=3, unique=True).map(sorted),
)
def test_whatever_a_laptop_lists_is_refused_or_stays_in_its_tree(
    files: dict[str, Any], links: dict[str, str], dirs: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        blobs = code.Blobs(f"{folder}/blobs")
        blobs.add(TEN)
        entries = {path: [mode, len(TEN), sha(TEN)] for path, mode in files.items()}
        data = json.dumps({"version": 1, "files": entries, "links": links, "dirs": dirs}).encode()
        os.makedirs(f"{folder}/trees")
        before = content(folder)
        try:
            manifest = code.Manifest.parse(data)
            code.make_tree(blobs, manifest, f"{folder}/trees/1")
        except errors.Problem:
            assert content(folder) == before, "nothing is left of what was refused"
            return
        root = os.path.realpath(f"{folder}/trees/1")
        made = content(root)
        assert set(made) >= set(files) | set(links)
        for path in links:
            assert os.path.normpath(f"{root}/{os.path.dirname(path)}/{os.readlink(f'{root}/{path}')}").startswith(root)
        shutil.rmtree(f"{folder}/trees/1")
        assert content(folder) == before, "and nothing was written elsewhere"


def test_a_manifest_over_the_limits_is_too_large() -> None:
    with pytest.raises(errors.TooLarge, match="at most 1 files"):
        code.Manifest.of({"a": [0o644, 1, SHA]}, {"b": "a"}, [], manifests.Limits(1, 9, ""))
    with pytest.raises(errors.TooLarge, match="more than"):
        code.Manifest.of({"a": [0o644, 1, SHA], "b": [0o644, 1, SHA]}, {}, [], manifests.Limits(9, 1, ""))


def test_changes_to_a_known_manifest_must_add_up() -> None:
    base = code.Manifest.of({"a": [0o644, 1, SHA], "b": [0o644, 2, SHA]}, {"l": "a"}, ["d"])
    wanted = code.Manifest.of({"b": [0o755, 2, SHA], "c": [0o644, 3, SHA]}, {}, ["x"])
    changes = {"b": [0o755, 2, SHA], "c": [0o644, 3, SHA]}
    assert code.apply_changes(base, wanted.id, changes, ["a"], {}, ["x"]) == wanted
    for wrong in ([changes, [], {}, ["x"]], [{}, ["a"], {}, ["x"]], [changes, ["a"], {}, []], [None, [], {}, []]):
        with pytest.raises(errors.BadData):
            code.apply_changes(base, wanted.id, *wrong)


# --- receiving -----------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=60), max_size=6), st.lists(st.integers(1, 90), min_size=1))
def test_contents_arrive_however_the_stream_is_cut(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], cuts: list[int]
) -> None:
    blobs = code.Blobs(str(tmp_path_factory.mktemp("blobs")))
    stream = b"".join(map(frame, contents))
    receiver = code.Receiver(blobs)
    at = turn = 0
    while at < len(stream):
        receiver.feed(stream[at : at + cuts[turn % len(cuts)]])
        at += cuts[turn % len(cuts)]
        turn += 1
    assert receiver.close() == len(set(contents))
    assert all(blobs.read(sha(data)) == data for data in contents)
    assert stored(blobs) == set(map(sha, contents))
    assert tidy(blobs)


def test_many_contents_are_made_durable_together(blobs: code.Blobs) -> None:
    contents = [str(n).encode() for n in range(300)]
    assert receive(blobs, *map(frame, contents)) == 300
    assert blobs.missing(map(sha, contents)) == []


GOOD_FRAME = frame(b"good")
BAD_STREAMS = {
    "a content that is not its name's": f"{SHA} 3\nabc".encode(),
    "an empty content that is not its name's": f"{SHA} 0\n".encode(),
    "no newline ever": b"a" * 1000,
    "no size": f"{SHA}\n".encode(),
    "a negative size": f"{SHA} -1\n".encode(),
    "a size with a plus": f"{SHA} +1\nx".encode(),
    "a size with zeros": f"{sha(b'x')} 01\nx".encode(),
    "a size that is no number": f"{SHA} ten\n".encode(),
    "an enormous size": f"{SHA} {10**18}\n".encode(),
    "too many digits": f"{SHA} {10**30}\n".encode(),
    "capitals": f"{'A' * 64} 1\nx".encode(),
    "a path for a name": b"../../etc/passwd 3\nabc",
    "a carriage return": f"{SHA} 3\r\nabc".encode(),
    "an empty line": b"\n",
    "a zero byte": b"\0" * 65,
    "ends in a content": GOOD_FRAME[:-1],
    "ends in a header": SHA.encode(),
    "more after the size": frame(b"x") + b"y",
}


@pytest.mark.parametrize("stream", BAD_STREAMS.values(), ids=BAD_STREAMS.keys())
@pytest.mark.parametrize("step", [1, 1 << 20], ids=["byte by byte", "at once"])
def test_a_bad_stream_is_refused_and_nothing_of_it_is_stored(blobs: code.Blobs, stream: bytes, step: int) -> None:
    whole = GOOD_FRAME + stream
    with pytest.raises(errors.BadData):
        receive(blobs, *(whole[at : at + step] for at in range(0, len(whole), step)))
    assert stored(blobs) == set()
    assert tidy(blobs)


# --- parts, and cuts -----------------------------------------------------------------------------------------------


def part(data: bytes, start: int, end: int, packed: bool = False) -> bytes:
    sent = min(zlib.compress(data[start:end]) if packed else data[start:end], data[start:end], key=len)
    return b"%b %d %d %d %d\n%b" % (sha(data).encode(), len(data), start, end - start, len(sent), sent)


TEXT = b"word " * 40_000


@settings(max_examples=20)
@given(st.lists(st.integers(1, len(TEXT) - 1), max_size=5), st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_content_arrives_in_parts_packed_or_not(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], packed: list[bool]
) -> None:
    blobs = code.Blobs(str(tmp_path_factory.mktemp("blobs")))
    at = [0, *sorted(set(cuts)), len(TEXT)]
    stream = b"".join(part(TEXT, start, end, each) for start, end, each in zip(at, at[1:], packed, strict=False))
    assert receive(blobs, frame(b"before"), stream[:1000], stream[1000:], part(b"", 0, 0), frame(b"after")) == 4
    assert blobs.read(sha(TEXT)) == TEXT
    assert tidy(blobs)


BAD_PARTS = {
    "a gap": part(TEXT, 0, 10) + part(TEXT, 11, len(TEXT)),
    "one twice": part(TEXT, 0, 10) + part(TEXT, 0, 10),
    "another content in between": part(TEXT, 0, 10) + frame(b"x"),
    "a later one first": part(TEXT, 10, len(TEXT)),
    "the last is missing": part(TEXT, 0, 10),
    "longer than the content": f"{sha(b'abc')} 3 0 4 4\nabcd".encode(),
    "longer packed than unpacked": f"{sha(b'abc')} 3 0 3 4\nabcd".encode(),
    "too long": f"{SHA} {1 << 30} 0 {1 << 30} 5\nabcde".encode(),
    "packed by nobody": f"{SHA} 1000 0 1000 5\nabcde".encode(),
    "packed to nothing": f"{SHA} 1000 0 1000 0\n".encode(),
    "a bomb": f"{SHA} 100 0 100 50\n".encode() + zlib.compress(bytes(10_000)).ljust(50, b"\0")[:50],
    "less than it says": f"{SHA} 100 0 100 10\n".encode() + zlib.compress(b"aa").ljust(10, b"x")[:10],
    "another content's": part(b"abc", 0, 3).replace(b"abc", b"abd"),
    "a part of four numbers": f"{SHA} 10 0 10\n0123456789".encode(),
}


@pytest.mark.parametrize("stream", BAD_PARTS.values(), ids=BAD_PARTS.keys())
def test_a_bad_part_is_refused_and_nothing_of_it_is_stored(blobs: code.Blobs, stream: bytes) -> None:
    with pytest.raises(errors.BadData):
        receive(blobs, GOOD_FRAME, stream)
    assert stored(blobs) == set()
    assert tidy(blobs)
    assert blobs.held([sha(TEXT), SHA]) == {}


@pytest.mark.parametrize("at", [1, 80, 70_000, 131_500, 199_999])
def test_after_a_cut_nothing_that_arrived_is_sent_again(blobs: code.Blobs, at: int) -> None:
    first = frame(b"first") + frame(TEXT)
    receiver = code.Receiver(blobs)
    receiver.feed(first[:at])
    receiver.keep()
    receiver.keep()
    with pytest.raises(errors.Busy):
        receiver.feed(first[at:])
    lacks = blobs.missing({sha(b"first"): 5, sha(TEXT): len(TEXT)})
    assert lacks == ([sha(b"first")] if at < 75 else []) + [sha(TEXT)]
    held = blobs.held(lacks).get(sha(TEXT), 0)
    assert at - held < 64 << 10 if at < 65_000 else at - held < 200
    assert receive(blobs, frame(b"first"), part(TEXT, held, len(TEXT), True)) == 2
    assert blobs.read(sha(TEXT)) == TEXT
    assert blobs.held([sha(TEXT)]) == {}
    assert tidy(blobs)


def test_a_shorter_beginning_does_not_replace_a_longer_one(blobs: code.Blobs) -> None:
    for length in (100_000, 80_000):
        receiver = code.Receiver(blobs)
        receiver.feed(frame(TEXT)[: length + 72])
        receiver.keep()
        assert 99_900 < blobs.held([sha(TEXT)])[sha(TEXT)] <= 100_000
    receive(blobs, frame(TEXT))
    assert blobs.held([sha(TEXT)]) == {}


def test_a_beginning_is_taken_by_one_upload_only(blobs: code.Blobs) -> None:
    receiver = code.Receiver(blobs)
    receiver.feed(frame(TEXT)[:100_072])
    receiver.keep()
    held = blobs.held([sha(TEXT)])[sha(TEXT)]
    first = code.Receiver(blobs)
    first.feed(part(TEXT, held, len(TEXT))[:200])
    with pytest.raises(errors.BadData, match="is gone"):
        receive(blobs, part(TEXT, held, len(TEXT)))
    first.feed(part(TEXT, held, len(TEXT))[200:])
    assert first.close() == 1


def test_what_a_killed_daemon_was_receiving_is_a_beginning_for_the_next(blobs: code.Blobs) -> None:
    receiver = code.Receiver(blobs)
    receiver.feed(frame(b"whole") + frame(TEXT)[:150_000])
    again = code.Blobs(blobs.directory)
    held = again.held([sha(b"whole"), sha(TEXT)])
    assert held[sha(b"whole")] == 5
    assert receive(again, part(b"whole", 5, 5), part(TEXT, held[sha(TEXT)], len(TEXT))) == 2
    assert (again.read(sha(b"whole")), again.read(sha(TEXT))) == (b"whole", TEXT)
    assert tidy(again)


def test_a_beginning_that_nobody_continues_is_collected(blobs: code.Blobs) -> None:
    receiver = code.Receiver(blobs)
    receiver.feed(frame(TEXT)[:150_000])
    receiver.keep()
    assert blobs.collect([], 3600) == 0
    assert blobs.collect([], 3600, time.time() + 4000, dry_run=True) > 100_000
    assert blobs.collect([], 3600, time.time() + 4000) > 100_000
    assert blobs.held([sha(TEXT)]) == {}


def test_what_a_snapshot_was_found_to_have_is_pinned_again_within_the_hour(
    blobs: code.Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a day passes before a collection may touch it, however often its answer came from memory."""
    first = make(blobs, {"a": b"one", "b": b"two"})
    blobs.offer(first.id, first.id, {}, [], None, None)
    after = code.Manifest.of({**first.files, "a": (0o644, 5, sha(b"three"))}, {}, [])
    old = blobs.path(sha(b"two"))
    os.utime(old, (0, 0))
    came = code.Receiver(blobs)
    came.feed(frame(b"three"))
    assert blobs.offer(after.id, first.id, {"a": [0o644, 5, sha(b"three")]}, [], None, None, came) == []
    assert os.stat(old).st_mtime == 0, "found a moment ago: not touched"
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert blobs.whole(after.id).id == after.id
    assert os.stat(old).st_mtime > 0
    assert blobs.read(sha(b"three")) == b"three"


def test_a_change_of_names_is_checked_like_a_whole_list(blobs: code.Blobs) -> None:
    base = make(blobs, {"a": b"one", "d/b": b"two"})
    entry = [0o644, 3, sha(b"one")]
    for files_, removed in (({"d": entry}, []), ({"a/x": entry}, []), ({"../x": entry}, []), ({"a": "?"}, [])):
        with pytest.raises(errors.BadData):
            code.apply_changes(base, SHA, files_, removed, None, None)
    wanted = code.Manifest.of({"c": entry, "d/b": base.files["d/b"]}, {}, [])
    assert code.apply_changes(base, wanted.id, {"c": entry}, ["a"], None, None) == wanted


def test_more_than_the_limit_is_refused_before_it_is_written(blobs: code.Blobs) -> None:
    with pytest.raises(errors.TooLarge):
        receive(blobs, frame(b"12345"), frame(b"678901"), limit_bytes=10)
    assert tidy(blobs)


def test_a_full_disk_leaves_nothing_behind(blobs: code.Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(errors.DiskFull):
        receive(blobs, frame(b"data"))
    monkeypatch.undo()
    assert stored(blobs) == set()
    assert tidy(blobs)


def test_a_disk_that_fails_to_sync_is_not_believed(blobs: code.Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(errors.StateDamaged):
        receive(blobs, frame(b"data"))
    assert stored(blobs) == set()


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("point", "kept"), [("code.blob.written", False), ("code.blob.durable", True), ("code.manifest.durable", True)]
)
def test_a_daemon_killed_while_storing_starts_clean(
    blobs: code.Blobs, monkeypatch: pytest.MonkeyPatch, point: str, kept: bool
) -> None:
    manifest = code.Manifest.of({}, {}, ["d"])

    def kill(name: str) -> None:
        if name == point:
            raise Killed

    monkeypatch.setattr(files, "armed", kill)
    with pytest.raises(Killed):
        blobs.keep(manifest)
    monkeypatch.undo()
    again = code.Blobs(blobs.directory)
    assert again.has(manifest.id) is kept
    assert tidy(again)


def test_a_name_that_is_no_hash_reaches_no_file(blobs: code.Blobs) -> None:
    for name in ("../x", "", "a" * 63, "A" * 64, SHA + "/"):
        with pytest.raises(errors.BadData):
            blobs.read(name)
        with pytest.raises(errors.BadData):
            blobs.missing([name])
        with pytest.raises(errors.BadRequest):
            blobs.manifest(name)
    with pytest.raises(errors.NotFound):
        blobs.read(SHA)
    with pytest.raises(errors.SnapshotUnknown):
        blobs.manifest(SHA)


# --- offers and collecting -----------------------------------------------------------------------------------------


def test_an_offer_names_what_is_missing_and_is_a_base_from_then_on(blobs: code.Blobs) -> None:
    entries = {"a": [0o644, 3, sha(b"one")]}
    manifest = code.Manifest.of(entries, {}, [])
    assert blobs.offer(manifest.id, None, entries, [], {}, []) == [sha(b"one")]
    assert blobs.manifest(manifest.id) == manifest
    with pytest.raises(errors.SnapshotUnknown, match="1 of 1 contents"):
        blobs.whole(manifest.id)
    assert blobs.offer(manifest.id, manifest.id, {}, [], None, None) == [sha(b"one")]
    receive(blobs, frame(b"one"))
    assert blobs.offer(manifest.id, manifest.id, {}, [], None, None) == []
    assert blobs.whole(manifest.id) == manifest
    assert blobs.offer(manifest.id, manifest.id, {}, [], {}, []) == []
    with pytest.raises(errors.SnapshotUnknown):
        blobs.offer(manifest.id, SHA, {}, [], {}, [])


def test_the_disk_begins_with_a_long_content_before_its_end(blobs: code.Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(files, "begin_sync", lambda _, start, length: begun.append((start, length)))
    data = os.urandom(3 * STRIDE)
    sent = frame(data)
    receive(blobs, *(sent[at : at + (1 << 20)] for at in range(0, len(sent), 1 << 20)))
    assert len(begun) == 2
    assert [start for start, _ in begun] == [0, begun[0][1]], "each byte once"
    assert blobs.read(sha(data)) == data


def test_a_wish_that_the_disk_begins_needs_no_disk() -> None:
    ours, theirs = os.pipe()
    try:
        files.begin_sync(theirs, 0, 1)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("size", [1, 1000, 65536, uploads.HOP_BYTES - 1, uploads.BUFFER_BYTES, 3_000_000])
def test_pieces_of_any_size_reach_the_receiver_in_their_order(size: int) -> None:
    """Though it takes them as late as it may, from memory that is used again and again."""
    took: list[bytes] = []

    class Last:
        def feed(self, data: memoryview) -> None:
            took.append(bytes(data))

        def close(self) -> int:
            return len(took)

    async def at_last(work: Callable[[], Any]) -> Any:
        return work()

    async def send() -> int:
        upload = uploads.Upload(Last(), at_last)  # type: ignore[arg-type]
        for at in range(0, len(data), size):
            await upload.take(data[at : at + size])
        return await upload.close()

    data = NOISE.randbytes(6_000_000 if size > 1 else 3000)
    assert asyncio.run(send()) == len(took)
    assert b"".join(took) == data


def test_a_content_cut_short_on_disk_is_asked_for_again(blobs: code.Blobs) -> None:
    manifest = make(blobs, {"a": b"content"})
    os.truncate(blobs.path(sha(b"content")), 2)
    assert blobs.missing(manifest.sizes) == [sha(b"content")]
    receive(blobs, frame(b"content"))
    assert blobs.missing(manifest.sizes) == []


def test_collecting_keeps_what_is_named_or_was_asked_about(blobs: code.Blobs) -> None:
    kept = make(blobs, {"a": b"kept"})
    gone = make(blobs, {"a": b"gone" * 2000, "b": b"asked"})
    now = os.stat(blobs.path(gone.id)).st_mtime + 100
    assert blobs.collect([kept.id], 3600, now) == 0
    os.utime(blobs.path(gone.id), (0, 0))
    os.utime(blobs.path(sha(b"gone" * 2000)), (0, 0))
    os.utime(blobs.path(sha(b"asked")), (0, 0))
    os.utime(blobs.path(sha(b"kept")), (0, 0))
    assert blobs.missing([sha(b"asked")]) == []
    assert blobs.collect([kept.id, SHA], 3600, now) >= 8000
    assert stored(blobs) == {kept.id, sha(b"kept"), sha(b"asked")}
    with pytest.raises(errors.SnapshotUnknown):
        blobs.manifest(gone.id)


# --- trees ---------------------------------------------------------------------------------------------------------

CONTENTS = {"a": b"text", "run.sh": b"#!/bin/sh", "deep/er/b": b"\0" * 3_000_000, "deep/none": b""}
EXPECTED = {
    "a": (b"text", 0o644),
    "run.sh": (b"#!/bin/sh", 0o755),
    "deep/er/b": (b"\0" * 3_000_000, 0o644),
    "deep/none": (b"", 0o644),
    "deep/link": "-> ../a",
    "void/er": "empty",
}


@pytest.fixture
def manifest(blobs: code.Blobs) -> code.Manifest:
    return make(blobs, CONTENTS, {"deep/link": "../a"}, ["void/er"])


def test_a_tree_is_what_was_sent_and_linked_to_nothing(
    blobs: code.Blobs, manifest: code.Manifest, tmp_path: Path
) -> None:
    old = os.umask(0o077)
    try:
        code.make_tree(blobs, manifest, str(tmp_path / "tree"))
    finally:
        os.umask(old)
    assert content(tmp_path / "tree") == EXPECTED
    assert all(os.stat(tmp_path / "tree" / path).st_nlink == 1 for path in CONTENTS)
    for path in CONTENTS:
        (tmp_path / "tree" / path).write_bytes(b"the job's own")
    assert all(blobs.read(sha(data)) == data for data in CONTENTS.values())


def test_a_damaged_content_is_named_and_made_good_by_the_next_submit(
    blobs: code.Blobs, manifest: code.Manifest, tmp_path: Path
) -> None:
    Path(blobs.path(sha(b"text"))).write_bytes(b"tExt")
    with pytest.raises(errors.StateDamaged, match="the content of 'a'"):
        code.make_tree(blobs, manifest, str(tmp_path / "tree"))
    assert not [name for name in os.listdir(tmp_path) if "tree" in name]
    assert blobs.missing(manifest.sizes) == [sha(b"text")]
    with pytest.raises(errors.StateDamaged, match="missing"):
        code.make_tree(blobs, manifest, str(tmp_path / "tree"))
    receive(blobs, frame(b"text"))
    code.make_tree(blobs, manifest, str(tmp_path / "tree"))


def test_a_damaged_manifest_is_not_believed(blobs: code.Blobs, manifest: code.Manifest) -> None:
    Path(blobs.path(manifest.id)).write_bytes(manifest.data.replace(b"void", b"viod"))
    fresh = code.Blobs(blobs.directory)
    with pytest.raises(errors.StateDamaged):
        fresh.manifest(manifest.id)


def test_a_disk_that_fills_up_leaves_no_tree(
    blobs: code.Blobs, manifest: code.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(errors.DiskFull):
        code.make_tree(blobs, manifest, str(tmp_path / "tree"))
    monkeypatch.undo()
    assert not [name for name in os.listdir(tmp_path) if "tree" in name]


@pytest.fixture
def work(tmp_path: Path, blobs: code.Blobs) -> code.Trees:
    return code.Trees(str(tmp_path / "trees"), blobs)


@pytest.mark.parametrize("spare", [False, True], ids=["from blobs", "from the spare"])
def test_a_daemon_killed_after_making_a_tree_finds_it(
    work: code.Trees, blobs: code.Blobs, manifest: code.Manifest, monkeypatch: pytest.MonkeyPatch, spare: bool
) -> None:
    if spare:
        work.prepare(manifest.id)

    def kill(name: str) -> None:
        assert name == "code.tree.made"
        raise Killed

    monkeypatch.setattr(files, "armed", kill)
    with pytest.raises(Killed):
        work.make(1, manifest.id)
    monkeypatch.undo()
    again = code.Trees(work.directory, blobs)
    assert content(again.make(1, manifest.id)) == EXPECTED
    assert sorted(os.listdir(work.directory)) == [".boot", "1"]


def test_a_job_s_tree_is_made_once_and_removed_whole(work: code.Trees, manifest: code.Manifest) -> None:
    path = work.make(7, manifest.id)
    (Path(path) / "made by the job").write_text("x")
    assert work.make(7, manifest.id) == path
    assert os.path.exists(f"{path}/made by the job")
    work.remove(7)
    assert os.listdir(work.directory) == [".boot"]
    work.remove(7)


def test_a_tree_with_read_only_folders_is_removed_and_links_are_not_followed(
    work: code.Trees, manifest: code.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(0o500)
    (Path(work.make(1, manifest.id)) / "deep/out").symlink_to(outside)
    os.chmod(f"{work.path(1)}/deep/er", 0o500)
    os.chmod(f"{work.path(1)}/deep", 0o000)
    real = trees.shutil.rmtree

    def as_a_user(path: str, ignore_errors: bool) -> None:
        """root may remove anything: refuse as the kernel would refuse a user."""
        if os.path.exists(f"{path}/deep/er") and os.stat(f"{path}/deep").st_mode & 0o200 == 0:
            return
        real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(trees.shutil, "rmtree", as_a_user)
    work.remove(1)
    assert os.listdir(work.directory) == [".boot"]
    assert os.stat(outside).st_mode & 0o777 == 0o500


def test_sweeping_keeps_only_what_is_asked(work: code.Trees, manifest: code.Manifest) -> None:
    for job in (1, 2, 3):
        work.make(job, manifest.id)
    for left in (".making-9", ".gone-4-1-1", "stray"):
        os.mkdir(f"{work.directory}/{left}")
    work.prepare(manifest.id)
    work.sweep([2])
    assert sorted(os.listdir(work.directory)) == [".boot", ".spare", "2"]


def test_trees_of_another_boot_are_made_anew(
    work: code.Trees, blobs: code.Blobs, manifest: code.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.make(1, manifest.id)
    assert os.path.exists(code.Trees(work.directory, blobs).path(1))
    monkeypatch.setenv("GPUBOX_BOOT_ID", "another")
    assert not os.path.exists(code.Trees(work.directory, blobs).path(1))


# --- the spare tree ------------------------------------------------------------------------------------------------


def watch_making(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    real = trees.make_tree
    monkeypatch.setattr(trees, "make_tree", lambda b, m, to: (made.append(os.path.basename(to)), real(b, m, to))[1])
    return made


def test_a_spare_is_handed_over_once(
    work: code.Trees, manifest: code.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert work.prepare(manifest.id)
    assert not work.prepare(manifest.id)
    made = watch_making(monkeypatch)
    work.make(1, manifest.id)
    assert made == []
    work.make(2, manifest.id)
    assert made == ["2"]
    assert content(work.path(1)) == content(work.path(2)) == EXPECTED
    inodes = [{os.stat(f"{work.path(job)}/{path}").st_ino for path in CONTENTS} for job in (1, 2)]
    inodes.append({os.stat(work._blobs.path(sha(data))).st_ino for data in CONTENTS.values()})
    assert not inodes[0] & inodes[1]
    assert not (inodes[0] | inodes[1]) & inodes[2]


def test_a_spare_of_a_similar_snapshot_is_patched(
    work: code.Trees, blobs: code.Blobs, manifest: code.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.prepare(manifest.id)
    contents = {
        "a/now/folder": b"1",
        "run.sh": b"#!/bin/bash",
        "deep/er": b"now a file",
        "deep/none": b"",
        "void/x": b"2",
    }
    other = make(blobs, contents, {"deep/link": "none", "new": "run.sh"}, ["empty/deep"])
    made = watch_making(monkeypatch)
    work.make(1, other.id)
    assert made == []
    code.make_tree(blobs, other, f"{work.directory}/fresh")
    assert content(work.path(1)) == content(f"{work.directory}/fresh")


def test_a_spare_of_another_project_stays_for_its_own(
    work: code.Trees, blobs: code.Blobs, manifest: code.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "SPARE_CHANGES", 2)
    work.prepare(manifest.id)
    other = make(blobs, {f"other{n}": b"x" for n in range(5)})
    made = watch_making(monkeypatch)
    work.make(1, other.id)
    work.make(2, manifest.id)
    assert made == ["1"]


TOUCHES: dict[str, Callable[[Path], object]] = {
    "a file edited in place": lambda spare: (spare / "a").write_bytes(b"TEXT"),
    "a file added": lambda spare: (spare / "deep/new").write_bytes(b""),
    "a file removed": lambda spare: (spare / "deep/none").unlink(),
    "a mode changed": lambda spare: (spare / "a").chmod(0o600),
    "a second name given": lambda spare: os.link(spare / "a", spare.parent.parent / "elsewhere"),
    "all of it gone": lambda spare: spare.rename(spare.parent.parent / "elsewhere"),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES.keys())
def test_a_spare_that_somebody_touched_is_not_used(
    work: code.Trees, manifest: code.Manifest, monkeypatch: pytest.MonkeyPatch, touch: Callable[[Path], object]
) -> None:
    work.prepare(manifest.id)
    touch(Path(work.directory) / ".spare")
    made = watch_making(monkeypatch)
    work.make(1, manifest.id)
    assert made == ["1"]
    assert content(work.path(1)) == EXPECTED
    assert sorted(os.listdir(work.directory)) == [".boot", "1"]


def test_a_spare_that_can_t_be_patched_is_dropped(work: code.Trees, blobs: code.Blobs, manifest: code.Manifest) -> None:
    work.prepare(manifest.id)
    other = make(blobs, {**CONTENTS, "new": b"new"}, {"deep/link": "../a"}, ["void/er"])
    os.unlink(blobs.path(sha(b"new")))
    with pytest.raises(errors.StateDamaged, match="'new' is missing"):
        work.make(1, other.id)
    assert os.listdir(work.directory) == [".boot"]


def test_a_large_snapshot_gets_no_spare(
    work: code.Trees, manifest: code.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "SPARE_BYTES", 10)
    assert not work.prepare(manifest.id)


def test_many_jobs_and_spares_at_once_never_share_a_file(work: code.Trees, manifest: code.Manifest) -> None:
    def run(first: int) -> None:
        for job in range(first, first + 5):
            work.prepare(manifest.id)
            work.make(job, manifest.id)

    threads = [threading.Thread(target=run, args=(n,)) for n in (100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs = [n + k for n in (100, 200, 300) for k in range(5)]
    inodes = [os.stat(f"{work.path(job)}/{path}").st_ino for job in jobs for path in CONTENTS]
    assert len(set(inodes)) == len(inodes)
    assert all(content(work.path(job)) == EXPECTED for job in jobs)


def test_a_content_is_not_shown_before_its_name_is_durable(blobs: code.Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is told `not missing` may acknowledge a job: the names must be synced by then."""
    synced: list[str] = []
    real = blobs_module._sync

    def watch(paths: list[str], directory: str, flags: int) -> None:
        if flags & os.O_DIRECTORY:
            assert blobs._pins.locked()
        real(paths, directory, flags)
        synced.extend(paths)

    monkeypatch.setattr(blobs_module, "_sync", watch)
    receive(blobs, frame(b"data"))
    assert synced[-1] == os.path.dirname(blobs.path(sha(b"data")))


# --- what others did to it ---


def test_a_tree_with_folders_of_another_user_hinders_nobody(
    work: code.Trees, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stuck = tmp_path / "trees" / "9" / "of_a_container"
    stuck.mkdir(parents=True)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    with monkeypatch.context() as patch:
        patch.setattr(os, "chmod", refuse)
        patch.setattr(os, "rmdir", refuse)
        names = set()
        for _ in range(3):
            work.sweep(())
            names.add(frozenset(os.listdir(tmp_path / "trees")))
        assert len(names) == 1, "its name does not grow"
    work.sweep(())
    assert [name for name in os.listdir(tmp_path / "trees") if name.startswith(".gone")] == []


def test_a_snapshot_that_lost_a_content_has_to_be_sent_again(
    blobs: code.Blobs, manifest: code.Manifest, tmp_path: Path
) -> None:
    recipes = Recipes(blobs, sys.executable)
    spec = JobSpec(["true"], snapshot=manifest.id)
    assert recipes.environment(spec) is None
    os.unlink(blobs.path(next(iter(manifest.sizes))))
    with pytest.raises(errors.StateDamaged, match="missing on the box"):
        code.make_tree(blobs, manifest, f"{tmp_path}/tree")
    assert not recipes.knows(spec)
    with pytest.raises(errors.SnapshotUnknown, match=r"1 of \d+ contents of the snapshot .* are gone"):
        recipes.environment(spec)
    with pytest.raises(errors.SnapshotUnknown, match="are gone"):
        Recipes(blobs, sys.executable).environment(spec)


def test_a_manifest_that_another_thread_reads_meanwhile_is_not_taken_for_ours(tmp_path: Path) -> None:
    first, second = (code.Manifest.of({}, {}, [name]) for name in ("one", "two"))

    class Contended(code.Blobs):
        _parsed = property(lambda self: second, lambda self, value: None)

    contended = Contended(f"{tmp_path}/contended")
    contended.keep(first)
    assert contended.manifest(first.id) == first
