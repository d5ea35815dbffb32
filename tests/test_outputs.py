"""What a job left behind is listed and read without leaving its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner import errors
from runner.box import outputs


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("not yours")
    folder = tmp_path / "out"
    (folder / "plots" / "deep").mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    (folder / "plots" / "deep" / "loss.png").write_bytes(b"\x89PNG")
    return folder


def read(root: Path, path: str, offset: int = 0) -> bytes:
    fd, found = outputs.open_file(str(root), path)
    return b"".join(outputs.pieces(fd, offset, found.st_size))


def test_files_are_listed_with_what_a_pull_needs(out: Path) -> None:
    os.chmod(out / "metrics.json", 0o755)
    os.utime(out / "metrics.json", (5, 1234.5))
    found = outputs.listing(str(out))
    assert found.outputs[0] == ("metrics.json", 2, 0o755, 1234.5)
    assert [output.path for output in found.outputs] == ["metrics.json", "plots/deep/loss.png"]
    assert found.bytes == 6
    assert found.as_json()["outputs"] == [output._asdict() for output in found.outputs]


def test_no_folder_means_no_outputs(tmp_path: Path) -> None:
    assert outputs.listing(str(tmp_path / "none")) == ([], {})


def test_links_are_listed_and_never_followed(out: Path) -> None:
    (out / "up").symlink_to("../secret")
    (out / "root").symlink_to("/")
    found = outputs.listing(str(out))
    assert found.links == {"root": "/", "up": "../secret"}
    assert len(found.outputs) == 2
    for path in ("up", "root/etc/passwd", "root"):
        with pytest.raises(errors.NotFound):
            outputs.open_file(str(out), path)


def test_an_output_folder_that_is_itself_a_link_is_none(out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(out)
    assert outputs.listing(str(tmp_path / "link")) == ([], {})
    with pytest.raises(errors.NotFound):
        outputs.open_file(str(tmp_path / "link"), "metrics.json")


def test_pipes_and_sockets_are_left_out_and_block_nobody(out: Path) -> None:
    os.mkfifo(out / "pipe")
    assert len(outputs.listing(str(out)).outputs) == 2
    with pytest.raises(errors.NotFound):
        outputs.open_file(str(out), "pipe")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../secret", "plots/../../secret", "a\0b", "a//x", "./x", "x/"])
def test_a_path_that_could_lead_out_is_refused(out: Path, path: str) -> None:
    with pytest.raises(errors.BadRequest):
        outputs.open_file(str(out), path)


@pytest.mark.parametrize("path", ["none", "plots", "metrics.json/x", "x" * 300])
def test_what_is_no_file_is_not_found(out: Path, path: str) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(errors.NotFound):
        outputs.open_file(str(out), path)
    assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor was left open"


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe", b" ", b"-rf", "名前".encode(), b"%41"])
def test_odd_names_come_through(out: Path, name: bytes) -> None:
    with open(os.path.join(os.fsencode(out), name), "wb") as file:
        file.write(b"odd")
    path = os.fsdecode(name)
    assert path in [output.path for output in outputs.listing(str(out)).outputs]
    assert read(out, path) == b"odd"


def test_a_raw_url_keeps_bytes_that_are_no_text() -> None:
    assert outputs.named(b"a%20b/%FF%0A") == "a b/\udcff\n"


def test_reading_goes_on_from_an_offset(out: Path) -> None:
    (out / "big").write_bytes(bytes(range(256)) * 4096)
    assert read(out, "big", 1_000_000) == (bytes(range(256)) * 4096)[1_000_000:]
    assert read(out, "big", 1 << 20) == b""
    assert read(out, "big", 1 << 30) == b""


def test_what_cannot_be_listed_in_full_is_refused_with_a_next_step(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "ENTRIES_MAX", 3)
    with pytest.raises(errors.TooLarge, match="more than 3 files"):
        outputs.listing(str(out))
    monkeypatch.setattr(outputs, "ENTRIES_MAX", 100)
    monkeypatch.setattr(outputs, "DEPTH_MAX", 1)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(errors.TooLarge, match="more than 1 folders deep"):
        outputs.listing(str(out))
    assert len(os.listdir("/proc/self/fd")) == before
