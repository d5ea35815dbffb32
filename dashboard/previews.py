"""PURE: what of a file that anybody may have written can be shown on a page, by its bytes and never by its name.

A picture is one of four kinds, of which no part is ever run; SVG is a document with scripts, so it is only downloaded.
"""

from __future__ import annotations

import struct

HEAD_BYTES = 256 << 10  # in which the size of a picture stands
PICTURE_BYTES = 16 << 20
PICTURE_PIXELS = 40_000_000  # that a browser would have to hold in memory
TEXT_BYTES = 256 << 10  # of a text, from its start
BINARY_LOOK = 8000
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
UNSEEN = (*range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
SEEN = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
SEEN |= dict.fromkeys(UNSEEN, "\N{REPLACEMENT CHARACTER}")  # what would turn a line around, or hide in it


def named_picture(path: str) -> bool:
    return path.lower().endswith(PICTURES)


def picture(head: bytes) -> str | None:
    """The media type of a picture that may be shown; None: it is none, or too large to be unpacked."""
    for kind, size in (("png", _png), ("gif", _gif), ("webp", _webp), ("jpeg", _jpeg)):
        try:
            found = size(head)
        except (struct.error, IndexError):
            return None
        if found is not None:
            return f"image/{kind}" if 0 < found[0] * found[1] <= PICTURE_PIXELS else None
    return None


def text(data: bytes) -> str | None:
    """As it can be read; None: it is no text. Ends of lines are as in a file, whatever wrote them."""
    if b"\0" in data[:BINARY_LOOK]:
        return None
    return plain(data.decode("utf-8", "replace").replace("\r\n", "\n"))


def plain(line: str) -> str:
    return line.translate(SEEN)


def _png(head: bytes) -> tuple[int, int] | None:
    if not head.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        return None
    width, height = struct.unpack_from(">II", head, 16)
    return width, height


def _gif(head: bytes) -> tuple[int, int] | None:
    if head[:6] not in (b"GIF87a", b"GIF89a"):
        return None
    width, height = struct.unpack_from("<HH", head, 6)
    return width, height


def _webp(head: bytes) -> tuple[int, int] | None:
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _jpeg(head: bytes) -> tuple[int, int] | None:
    """From the first frame's header; what stands before it is passed over."""
    if not head.startswith(b"\xff\xd8\xff"):
        return None
    at = 2
    while head[at] == 0xFF:
        marker = head[at + 1]
        (length,) = struct.unpack_from(">H", head, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        at += 2 + length
    return 0, 0
