"""How the commands speak: data on stdout, talk on stderr; tables that fit the terminal; JSON; colours on request.

What comes from a box or a job is cleaned of control codes before a terminal sees it.
"""

from __future__ import annotations

import os
import sys

from runner import words
from runner.laptop.light import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TextIO

GREEN, RED, YELLOW, BLUE, DIM = "32", "31", "33", "34", "2"
COLOURS = {
    words.SUCCEEDED: GREEN,
    words.RUNNING: BLUE,
    words.STARTING: BLUE,
    words.QUEUED: YELLOW,
    words.CANCELLED: DIM,
    words.FREE: GREEN,
    words.BUSY: BLUE,
    words.SHARED: BLUE,
    words.FOREIGN: YELLOW,
    words.DRAINING: YELLOW,
    words.ASLEEP: DIM,
    words.UNKNOWN: YELLOW,
}
GAP = 2
NARROWEST = 8  # a column that gives way keeps this much


def put(text: str) -> None:
    """Data, written as it is. Undecodable bytes of file names pass through as they came."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def say(text: str) -> None:
    """Talk: a line, or several."""
    sys.stdout.flush()
    sys.stderr.write("\n".join(map(clean, text.split("\n"))) + "\n")
    sys.stderr.flush()


def begin_again() -> None:
    """What follows takes the place of all that is on the terminal; elsewhere it follows after an empty line."""
    put("\x1b[H\x1b[J" if sys.stdout.isatty() else "\n")
    sys.stdout.flush()


def clean(text: str) -> str:
    """One line that is nothing but text; most are, and then cost no import."""
    if text.isprintable():
        return text
    from runner.laptop import terminal

    return terminal.clean(text)


def lines(text: str, indent: int) -> str:
    """A text of several lines, each nothing but text; those after the first begin further in, as no heading does."""
    return ("\n" + " " * indent).join(map(clean, text.split("\n")))


def json(value: object) -> None:
    put(dumps(value) + "\n")


def colours(stream: TextIO) -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def state(name: str) -> str:
    """The state, coloured where that is wanted."""
    if not colours(sys.stdout):
        return name
    return f"\x1b[{COLOURS.get(name, RED)}m{name}\x1b[0m"


def columns(stream: TextIO) -> int:
    """The terminal's width; 0: not a terminal, so nothing is cut."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):
        return 0


# --- tables ----------------------------------------------------------------------------------------------------------


def table(headings: Iterable[str], rows: Iterable[list[str]], gives_way: tuple[int, ...], painted: int = -1) -> None:
    """Print rows in columns. gives_way: the columns cut, in this order, when the terminal is too narrow; painted:
    the one that holds a state."""
    lines = [list(headings), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    room = columns(sys.stdout)
    for index in gives_way if room else ():
        excess = sum(widths) + GAP * (len(widths) - 1) - room
        if excess > 0:
            widths[index] = max(NARROWEST, widths[index] - excess)
    for number, line in enumerate(lines):
        cells = [pad(cut(cell, wide), wide) for cell, wide in zip(line, widths, strict=True)]
        if number and painted >= 0:
            cells[painted] = cells[painted].replace(line[painted], state(line[painted]), 1)
        put((" " * GAP).join(cells).rstrip() + "\n")


def width(text: str) -> int:
    """How many columns a terminal needs for it."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def cut(text: str, room: int) -> str:
    if width(text) <= room:
        return text
    while text and width(text) > room - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def pad(text: str, room: int) -> str:
    return text + " " * (room - width(text))


# --- words for values ------------------------------------------------------------------------------------------------


def size(count: float) -> str:
    """34 KiB"""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1000:
            unit = "byte" if count == 1 and unit == "bytes" else unit
            return f"{count:.0f} {unit}" if unit[:4] == "byte" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def portion(part: int | None, whole: int | None) -> str:
    """11.2 of 24 GiB; what is not known is left out, or -"""
    text = "-" if part is None else _gibibytes(part)
    if whole is not None:
        text += f" of {_gibibytes(whole)}"
    return text if text == "-" else f"{text} GiB"


def _gibibytes(count: int) -> str:
    return f"{count / (1 << 30):.1f}".removesuffix(".0")


def model(name: str) -> str:
    """NVIDIA GeForce RTX 3090 is RTX 3090"""
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def span(seconds: float) -> str:
    """7s, 12m, 3h05m, 2d04h"""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s" if whole < 600 else f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def many(count: int, thing: str) -> str:
    """1 file, 2 files"""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def moment(at: float | None) -> str:
    if at is None:
        return "-"
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def line(words: Iterable[str]) -> str:
    """A command as it would be typed in a shell."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    plain = word.replace("_", "a")
    for letter in "@%+=:,./-":
        plain = plain.replace(letter, "a")
    return word if plain.isalnum() and plain.isascii() else "'" + word.replace("'", "'\"'\"'") + "'"


def ending(job: dict[str, Any]) -> str:
    """How a finished job ended, shortly: exit 1, SIGKILL, time_limit."""
    if job.get("signal"):
        return f"{signal_name(int(job['signal']))}{_because(job, 'signal')}"
    if job.get("exit_code") is not None:
        return f"exit {job['exit_code']}{_because(job, 'exit_code')}"
    return str(job.get("reason") or "")


def _because(job: dict[str, Any], obvious: str) -> str:
    reason = job.get("reason")
    return f" ({reason})" if reason and reason != obvious else ""


def signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
