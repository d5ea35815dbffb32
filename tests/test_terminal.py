"""What may reach a person's terminal, and what a pipe gets."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tools import need, wait_until

from runner.laptop import terminal
from runner.laptop.terminal import PIECE, Folded, Screen, clean

DATA = os.path.join(os.path.dirname(__file__), "data", "terminal")
CORPORA = sorted(os.listdir(DATA))
ALLOWED = re.compile(rb"\x1b\[(?:[0-9;:]*m|[012]?K|[1-9][0-9]*[AB])")

PARTS = [
    b"text", b"\n", b"\r", b"\r\n", b"\t", b" ", b";", b"m", b"[5A", "é█…".encode(), b"\xff", b"\xe2\x96",
    b"\x1b", b"\x1b[", b"\x1b[31m", b"\x1b[0m", b"\x1b[m", b"\x1b[A", b"\x1b[99A", b"\x1b[3B", b"\x1b[2K", b"\x1b[2J",
    b"\x1b[?25l", b"\x1b]0;title\x07", b"\x1b]52;c;aGk=\x1b\\", b"\x1bP1$r\x1b\\", b"\x1bc", b"\x1b(0", b"\x1b[6n",
    b"\x1b[1;1H", b"\x1b[>4;2m", b"\xc2\x9b", b"\x9b", b"\x00", b"\x07", b"\x08", b"\x7f", "\u202e".encode(),
]  # fmt: skip
streams = st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=6)), max_size=30).map(b"".join)


def shown(filter: Screen | Folded, *chunks: bytes) -> bytes:
    return b"".join(filter.feed(chunk) for chunk in chunks) + filter.finish()


def corpus(name: str) -> bytes:
    with open(os.path.join(DATA, name), "rb") as file:
        return file.read()


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


# --- names and messages ----------------------------------------------------------------------------------------------


def test_a_name_is_shown_as_one_harmless_line() -> None:
    assert clean("naïve 名前.txt") == "naïve 名前.txt"
    assert clean("a\nb\t\x1b]0;x\x07") == "a\\nb\\t\\x1b]0;x\\x07"
    assert clean("\u202egpj.exe") == "\\u202egpj.exe"
    assert clean("raw \udcff byte") == "raw \\udcff byte"


@given(st.text())
def test_a_cleaned_text_is_printable_whatever_it_was(text: str) -> None:
    assert clean(text).isprintable()


# --- a terminal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param(b"plain\tand\r\n", b"plain\tand\r\n", id="text passes"),
        pytest.param(b"\x1b[1;38;5;9mred\x1b[0m\n", b"\x1b[1;38;5;9mred\x1b[0m\n", id="colours pass"),
        pytest.param(b"\x1b[32mgreen", b"\x1b[32mgreen\x1b[0m\n", id="colours end with the stream"),
        pytest.param(b"\r\x1b[2K50%\n", b"\r\x1b[2K50%\n", id="erasing in the line passes"),
        pytest.param(b"\x1b[2J\x1b[H\x1bc\n", b"\n", id="clearing the screen is removed"),
        pytest.param(b"a\x1b]52;c;aGVsbG8=\x07b\n", b"ab\n", id="the clipboard is out of reach"),
        pytest.param(b"a\x1b]0;title\x1b\\b\n", b"ab\n", id="the title is out of reach"),
        pytest.param(b"a\x1bPq#0\x1b\\b\n", b"ab\n", id="device strings are removed"),
        pytest.param(b"a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", b"alink\n", id="a link is its text"),
        pytest.param(b"\x1b[?1049h\x1b[?25lx\n", b"x\n", id="private modes are removed"),
        pytest.param(b"\x1b[>4;2mx\x1b[4 qx\n", b"xx\n", id="lookalikes of colours are removed"),
        pytest.param(b"\x1b[6n\x05\x07\x00\x08x\n", b"x\n", id="nothing asks the terminal a question"),
        pytest.param(b"\xc2\x9b31mx\x9b2J\n", "31mx\ufffd2J\n".encode(), id="one-byte introducers are removed"),
        pytest.param(b"bad \xff\xe2\x96 utf\n", "bad \ufffd\ufffd utf\n".encode(), id="broken UTF-8 becomes a mark"),
        pytest.param("a\u202eb\n".encode(), b"ab\n", id="overrides of direction are removed"),
        pytest.param(b"\x1b]0;never ended\nnext\n", b"\nnext\n", id="a torn title does not swallow the log"),
        pytest.param(b"\x1b[31", b"", id="a torn colour at the end is dropped"),
        pytest.param(b"tail \xe2\x96", "tail \ufffd\n".encode(), id="a torn character at the end becomes a mark"),
    ],
)
def test_on_a_terminal(written: bytes, expected: bytes) -> None:
    assert shown(Screen(), written) == expected


def test_a_log_never_moves_above_its_own_first_line() -> None:
    assert shown(Screen(), b"\x1b[5Aup\n") == b"up\n"
    assert shown(Screen(), b"1\n2\n\x1b[99A\x1b[Ax\n") == b"1\n2\n\x1b[2Ax\n\x1b[1B\n"
    assert shown(Screen(), b"1\n\x1b[99B\x1b[A\x1b[0A\x1b[7Bx\n") == b"1\n\x1b[1A\x1b[1Bx\n"


def test_the_next_stream_begins_below_and_can_not_move_into_the_one_before() -> None:
    screen = Screen()
    assert screen.feed(b"1\n2\n\x1b[2A\x1b[31m") + screen.finish() == b"1\n2\n\x1b[2A\x1b[31m\x1b[0m\x1b[2B\n"
    assert screen.feed(b"\x1b[A") == b""


@given(streams, st.lists(st.integers(0, 400), max_size=6))
@example(b"\x1b[31", [1])
def test_a_terminal_gets_the_same_however_the_log_is_cut(data: bytes, at: list[int]) -> None:
    assert shown(Screen(), *cut(data, at)) == shown(Screen(), data)


@given(streams)
def test_a_terminal_gets_nothing_but_text_colours_and_bounded_moves(data: bytes) -> None:
    out = shown(Screen(), data)
    rest = ALLOWED.sub(b"", out)
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", rest)
    assert not re.search("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]", rest.decode())
    row = 0
    for found in re.finditer(rb"\n|\x1b\[(\d+)([AB])", out):
        row += 1 if found.group() == b"\n" else int(found.group(1)) * (1 if found.group(2) == b"B" else -1)
        assert row >= 0
    assert out == b"" or re.search(rb"\n(\x1b\[[0-9;:]*m)*\Z", out) or not rest


@pytest.mark.parametrize("name", CORPORA)
def test_recorded_progress_bars_lose_nothing_but_their_private_modes(name: str) -> None:
    data = corpus(name)
    expected = re.sub(rb"\x1b\[\?\d+[hl]", b"", data).replace(b"\x1b[A", b"\x1b[1A")
    out = shown(Screen(), data)
    assert out.startswith(expected)
    assert out[len(expected) :] in (b"", b"\n", b"\x1b[1B\n")
    assert shown(Screen(), *(data[at : at + 7] for at in range(0, len(data), 7))) == out


@pytest.mark.parametrize("name", CORPORA)
def test_recorded_progress_bars_look_as_they_would_without_us(name: str, tmp_path: Path) -> None:
    data = corpus(name)
    expected = seen_in_tmux(data + b"\x1b[?25h", tmp_path / "without")
    assert seen_in_tmux(shown(Screen(), data), tmp_path / "with") == expected
    assert "100%" in expected


def seen_in_tmux(data: bytes, folder: Path) -> str:
    """The text on a real terminal of 100 columns after a line of somebody else's and these bytes."""
    folder.mkdir()
    (folder / "bytes").write_bytes(b"what was there before\n" + data)
    tmux = [need("tmux"), "-S", str(folder / "tmux"), "-f", os.devnull]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    environment.pop("TMUX", None)
    show = f"cat '{folder}/bytes'; printf '\nthe end'; exec cat"
    subprocess.run([*tmux, "new-session", "-d", "-x", "100", "-y", "30", show], check=True, env=environment)

    def screen() -> str | None:
        text = subprocess.check_output([*tmux, "capture-pane", "-p"], text=True)
        return text.rstrip() if "the end" in text else None

    try:
        text = wait_until(screen)
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
    assert text is not None
    assert text.startswith("what was there before\n")
    return re.sub(r"\s+the end$", "", text)


# --- a pipe ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param(b"a\nb\n", b"a\nb\n", id="lines pass"),
        pytest.param(b"a\r\nb\r\r\n", b"a\nb\n", id="CRLF is a newline"),
        pytest.param(b"\r 10%\r 20%\r100%\nnext\n", b"100%\nnext\n", id="a redrawn line is its last state"),
        pytest.param(b"\r 10%\r 20%\r", b" 20%\n", id="an unfinished line comes at the end"),
        pytest.param(b"\x1b[31mred\x1b[0m\x1b]0;x\x07\n", b"red\n", id="escapes are removed"),
        pytest.param(b"tab\there\x00\n", b"tab\there\n", id="controls are removed, tabs pass"),
        pytest.param(b"x" * PIECE + b"\ry\n", b"x" * PIECE + b"\ny\n", id="a long state is not taken back"),
        pytest.param(b"x" * PIECE + b"\r\r\ny", b"x" * PIECE + b"\ny\n", id="a long line may end in CRLF"),
        pytest.param(b"\n\n", b"\n\n", id="empty lines stay"),
        pytest.param(b"", b"", id="nothing stays nothing"),
    ],
)
def test_in_a_pipe(written: bytes, expected: bytes) -> None:
    assert shown(Folded(), written) == expected
    assert shown(Folded(), *(written[at : at + 1000] for at in range(0, len(written), 1000))) == expected


@given(streams, st.lists(st.integers(0, 400), max_size=6), st.sampled_from([1, 3, PIECE]))
def test_a_pipe_gets_the_same_however_the_log_is_cut(data: bytes, at: list[int], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal, "PIECE", piece)
        out = shown(Folded(), data)
        assert shown(Folded(), *cut(data, at)) == out
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", out)
    assert out == b"" or out.endswith(b"\n")


@given(st.text(st.sampled_from("ab\r\n"), max_size=40))
def test_a_folded_line_is_its_last_visible_state(text: str) -> None:
    lines = text.split("\n")
    states = [([state for state in line.split("\r") if state] or [""])[-1] for line in lines]
    expected = "\n".join(states)
    if states[-1]:
        expected += "\n"
    assert shown(Folded(), text.encode()).decode() == expected


def test_an_endless_line_is_held_in_pieces() -> None:
    folded = Folded()
    written = sum(len(folded.feed(b"x" * 10_000)) for _ in range(1000))
    assert written > 10_000_000 - 2 * PIECE
    assert len(folded._line) < 2 * PIECE
    torn = Screen()
    for _ in range(100):
        torn.feed(b"\x1b]" + b"0" * 10_000)
    assert len(torn._text) < 10_000
