"""What of a file that anybody may have written is shown on a page: by its bytes, whatever its name says."""

from __future__ import annotations

import struct
import zlib

import pytest

from dashboard import previews

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 640, 480)
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF" + b"\0" * 10 + b"\xff\xc0\0\x11\x08" + struct.pack(">HH", 480, 640)
WEBP = b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 8 + b"\x7f\x02\0\xdf\x01\0"


def a_png(width: int, height: int) -> bytes:
    """A whole one, all black."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = zlib.compress((b"\0" + b"\0" * width) * height)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (PNG, "image/png"), (a_png(3, 2), "image/png"), (JPEG, "image/jpeg"), (WEBP, "image/webp"),
        (b"GIF89a\x05\0\x05\0", "image/gif"), (b"GIF87a\x05\0\x05\0", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f\x09\xc0\x02\0", "image/webp"),
        (b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a\x05\0\x05\0", "image/webp"),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_picture_is_known_by_its_bytes(head: bytes, kind: str) -> None:
    assert previews.picture(head) == kind


@pytest.mark.parametrize(
    "head",
    [
        b"", b"<svg onload=alert(1)>", b"<html>", PNG[:20], JPEG[:12], b"\xff\xd8\xff" + b"\xff" * 9, b"GIF89a",
        b"GIF89a\0\0\x05\0", b"RIFF\0\0\0\0WEBPVP9X" + b"\0" * 20, b"RIFF\0\0\0\0WAVE" + b"\0" * 20, b"BM" + b"\0" * 60,
        PNG[:16] + struct.pack(">II", 100_000, 100_000), b"%PDF-1.7", b" " + PNG,
    ],
    ids=range(14),
)  # fmt: skip
def test_what_is_no_picture_or_too_large_to_unpack_is_none(head: bytes) -> None:
    assert previews.picture(head) is None


def test_a_text_shows_what_would_not_be_seen() -> None:
    assert previews.text(b"a\tb\r\nc\n") == "a\tb\nc\n"
    assert previews.text(b"\x1b[31mred") == "\N{SYMBOL FOR ESCAPE}[31mred"
    assert previews.text("\u202eexe.gnp\x85".encode()) == "\ufffdexe.gnp\ufffd"
    assert previews.text(b"\xff\xfe") == "\ufffd\ufffd"
    assert previews.text(b"a\0b") is None


@pytest.mark.parametrize("path", ["a.PNG", "x/b.jpeg", "c.webp"])
def test_only_what_is_named_like_one_is_looked_at_for_a_list(path: str) -> None:
    assert previews.named_picture(path)
    assert not previews.named_picture(path + ".html")
