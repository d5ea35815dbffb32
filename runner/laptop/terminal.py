"""What a job wrote, made safe to show: a log may colour its own lines, and do nothing else to a person's terminal."""

from __future__ import annotations

import codecs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PIECE = 64 << 10  # a line in a pipe that grows longer is written in pieces
SEQUENCE_LIMIT = 64  # bytes of parameters of an escape sequence; longer ones are damaged
STRING_LIMIT = 4096  # characters of a title or of another string meant for the terminal
UP = "\x1e"  # stands for a movement up; no text holds it once control characters are gone
ROWS = 50  # a stream that goes back further is believed no more
STEADY = 20  # so many lines without a movement, and the stream is taken to be through with them

_CONTROLS = bytes(byte for byte in (*range(32), 127) if byte not in b"\t\n\r")
_BIDI = "\u202a-\u202e\u2066-\u2069"  # they reorder what stands beside them
_grammar: Any = None


def clean(text: str) -> str:
    """A name or message as one line that is nothing but text: whatever else is in it becomes visible as \\n, \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Characters:
    """Bytes as they arrive -> text that ends between two characters and between two escape sequences."""

    def __init__(self) -> None:
        self._bytes = b""  # the beginning of a character
        self._text = ""  # the beginning of an escape sequence

    def _whole(self, data: bytes, last: bool) -> str:
        self._bytes += data
        text, used = codecs.utf_8_decode(self._bytes, "replace", last)
        self._bytes, text, self._text = self._bytes[used:], self._text + text, ""
        start = text.rfind("\x1b")
        if start >= 0 and not last:
            found = _odd().match(text, start)
            if found.end() == len(text) and not any(found.group(2, 3, 4)):
                text, self._text = text[:start], text[start:]
        return text

    def _passes(self, data: bytes) -> bool:
        """Whether it can go out as it is. No regular expression yet: importing them delays a job's first line."""
        if self._bytes or self._text or len(data.translate(None, _CONTROLS)) != len(data):
            return False
        if data.isascii():
            return True
        if b"\xc2" in data or b"\xe2\x80" in data or b"\xe2\x81" in data:  # perhaps U+0080 to U+009F, or bidi
            return False
        try:
            data.decode()
        except UnicodeDecodeError:
            return False
        return True


class Screen(Characters):
    """For a terminal. Text, tab, newline, carriage return and colours pass; so do, for nested progress bars, erasing
    in the line and moving between the lines that this stream itself has begun. Everything else is removed.

    Long lines wrap, so the true cursor is never above the row counted here: what was on the screen before is safe.
    """

    def __init__(self) -> None:
        super().__init__()
        self._row = self._bottom = 0  # counted from where the stream began
        self._coloured = False
        self._fresh = True  # nothing visible in the line since it began
        self._counted = 0

    def feed(self, data: bytes) -> bytes:
        if not self._passes(data):
            return self._filter(self._whole(data, False))
        self._down(data.count(b"\n"))
        self._fresh = data.endswith(b"\n") if data else self._fresh
        return data

    def finish(self) -> bytes:
        """Leaves the terminal in plain colours on a line of its own. Afterwards another stream may begin."""
        out = self._filter(self._whole(b"", True))
        if self._coloured:
            out += b"\x1b[0m"
        if self._row < self._bottom:
            out += b"\x1b[%dB" % (self._bottom - self._row)
        if self._row < self._bottom or not self._fresh:
            out += b"\n"
        self._row = self._bottom = 0
        self._coloured, self._fresh = False, True
        return out

    def _filter(self, text: str) -> bytes:
        self._counted = 0
        out: str = _odd().sub(lambda found: self._judge(found, text), text)
        self._down(text.count("\n", self._counted))
        line = out.rfind("\n") + 1
        self._fresh = (line > 0 or self._fresh) and _only_colours(out, line)
        return out.encode()

    def _judge(self, found: Any, text: str) -> str:
        """What remains of one control character or escape sequence."""
        parameters, final = found.group(1, 2)
        if final == "m" and not parameters.strip("0123456789;:"):
            self._coloured = parameters not in ("", "0")
        elif final in ("A", "B") and not parameters.strip("0123456789"):
            self._down(text.count("\n", self._counted, found.start()))
            self._counted = found.start()
            return self._move(final, int(parameters or 1) or 1)
        elif final != "K" or parameters not in ("", "0", "1", "2"):
            return ""
        return str(found.group())

    def _move(self, final: str, wanted: int) -> str:
        if final == "A":
            rows = min(wanted, self._row)
            self._row -= rows
        else:
            rows = min(wanted, self._bottom - self._row)
            self._row += rows
        return f"\x1b[{rows}{final}" if rows else ""

    def _down(self, rows: int) -> None:
        self._row += rows
        self._bottom = max(self._bottom, self._row)


class Folded(Characters):
    """For a pipe: text only, and of a line that was redrawn its last state, be it with carriage returns or, as nested
    progress bars are, by moving up to it.

    A state of PIECE characters or more is written as it comes and can't be taken back: it becomes a line of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._line = ""  # the unfinished line's last state, perhaps with one carriage return
        self._spilled = False  # the beginning of that state has been written
        self._fresh = True
        self._rows: _Rows | None = None  # while the stream moves between lines

    def feed(self, data: bytes) -> bytes:
        if self._rows or self._spilled or not self._passes(data) or b"\r" in data:
            return self._filter(self._whole(data, False))
        end = data.rfind(b"\n") + 1
        if not end or self._line.endswith("\r"):
            return self._filter(data.decode())
        out = self._line.encode() + data[:end]
        self._line, self._fresh = "", True
        return out + self._filter(data[end:].decode())

    def finish(self) -> bytes:
        """The unfinished line, ended. Afterwards another stream may begin."""
        out = self._filter(self._whole(b"", True))
        if self._rows:
            out += self._leave(self._rows)
        rest = self._line.rstrip("\r").encode()
        end = b"" if self._fresh and not rest else b"\n"
        self._line, self._spilled, self._fresh = "", False, True
        return out + rest + end

    def _filter(self, text: str) -> bytes:
        text = text if text.isprintable() else _odd().sub(_upwards, text)
        out = []
        while True:
            if self._rows:
                written, text = self._rows.feed(text)
                out.append(written.encode())
                if self._rows.over:
                    out.append(self._leave(self._rows))
            else:
                before, up, text = text.partition(UP)
                out.append(self._fold(before))
                if up and not self._spilled:
                    self._rows, self._line, text = _Rows(self._line.rstrip("\r")), "", up + text
            if not text:
                return b"".join(out)

    def _leave(self, rows: _Rows) -> bytes:
        """The stream moves no more: its last row is the line that it is in."""
        self._rows = None
        written, self._line = rows.rest()
        return written.encode()

    def _fold(self, text: str) -> bytes:
        text = self._line + text
        out = []
        if self._spilled:
            flowing, text = self._flow(text)
            out.append(flowing)
        if not self._spilled:
            ended, newline, text = text.rpartition("\n")
            out += [_folded(ended), newline]
            *passed, text = _states(text)
            out += [state + "\n" for state in passed]
            self._spilled = len(text.rstrip("\r")) >= PIECE
            if self._spilled:
                state = text.rstrip("\r")
                out.append(state)
                text = text[len(state) :]
        self._line = text
        written = "".join(out)
        self._fresh = written.endswith("\n") if written else self._fresh
        return written.encode()

    def _flow(self, text: str) -> tuple[str, str]:
        """More of a state that is being written as it comes: (what to write, what comes after it)."""
        at = min((at for at in (text.find("\r"), text.find("\n")) if at >= 0), default=len(text))
        after = text[at:].lstrip("\r")
        if not after:
            return text[:at], text[at : at + 1]  # after a carriage return: perhaps a newline follows
        self._spilled = False
        return text[:at] + "\n", after.removeprefix("\n")


class _Rows:
    """The last lines of a stream that moves up between them. One is written when it is further up than the stream
    has ever gone back: such a stream is as many lines late as it has progress bars."""

    def __init__(self, line: str) -> None:
        self._rows: list[str | None] = [line]  # None: above our beginning, and already written
        self._at = 0
        self._again = False  # what comes next replaces the row
        self._depth = 0
        self._steady = 0  # lines since the last move
        self.over = False  # no more moves are believed in

    def feed(self, text: str) -> tuple[str, str]:
        """(lines that are complete, what is not for us any more)"""
        import re

        out: list[str] = []
        at = 0
        for found in re.finditer(f"[\r\n{UP}]|[^\r\n{UP}]+", text):
            part, at = found.group(), found.end()
            if part == "\r":
                self._again = True
            elif part == "\n":
                out += self._down()
            elif part == UP:
                self._up()
            else:
                row = "" if self._again else self._rows[self._at] or ""
                room = max(0, PIECE - len(row))
                self._rows[self._at], self._again = row + part[:room], False
                self.over = room <= len(part)  # too long to be held
                at -= max(0, len(part) - room)
            if self.over:
                break
        return "".join(out), text[at:]

    def rest(self) -> tuple[str, str]:
        """(the rows that are complete, the unfinished one)"""
        *above, last = self._rows
        return "".join(map(_row, above)), (last or "").rstrip(" ")

    def _down(self) -> list[str]:
        self._at, self._again = self._at + 1, True
        self._steady += 1
        self.over = self._steady > STEADY
        if self._at == len(self._rows):
            self._rows.append("")
        out = []
        while len(self._rows) > self._depth + 1 and self._at:
            out.append(_row(self._rows.pop(0)))
            self._at -= 1
        return out

    def _up(self) -> None:
        self._again, self._steady = True, 0
        if self._at:
            self._at -= 1
        elif len(self._rows) < ROWS:
            self._rows.insert(0, None)
        self._depth = max(self._depth, len(self._rows) - 1 - self._at)


def _row(text: str | None) -> str:
    """A row as a line; one that was never ours, or was wiped out with blanks, is none."""
    return "" if text is None or text.isspace() else f"{text}\n"


def _upwards(found: Any) -> str:
    """What remains in a pipe of an escape sequence: that the cursor moved up."""
    parameters, final = found.group(1, 2)
    if final != "A" or parameters.strip("0123456789"):
        return ""
    return UP * min(int(parameters or 1) or 1, ROWS)


def _folded(text: str) -> str:
    """Whole lines, each as its last state."""
    text = text.replace("\r\n", "\n")
    if "\r" not in text:
        return text
    return "\n".join("\n".join(_states(line)).rstrip("\r") for line in text.split("\n"))


def _states(line: str) -> list[str]:
    """What must be written of a line that was redrawn: states too long to have been held, and the last one, with the
    carriage return after it, as a newline may follow."""
    if "\r" not in line:
        return [line]
    states = [state for state in line.split("\r") if state]
    if not states:
        return ["\r"]
    kept = [state for state in states[:-1] if len(state) >= PIECE]
    return [*kept, states[-1] + "\r" * line.endswith("\r")]


def _only_colours(text: str, start: int) -> bool:
    while text.startswith("\x1b[", start):
        end = start + 2
        while end < len(text) and text[end] in "0123456789;:":
            end += 1
        if text[end : end + 1] != "m":
            return False
        start = end + 1
    return start == len(text)


def _odd() -> Any:
    """Control characters, and escape sequences as far as they go. Groups: parameters and final byte of a CSI sequence
    (colours, movements), the end of a string, the final byte of any other sequence. A string for the terminal (title,
    clipboard) ends at any control character, so that a torn one can't swallow the log."""
    global _grammar
    if _grammar is None:
        import re

        _grammar = re.compile(
            "\x1b(?:"
            rf"\[([ -?]{{0,{SEQUENCE_LIMIT}}})([@-~])?"
            rf"|[\]PX^_][^\x00-\x1f\x7f-\x9f]{{0,{STRING_LIMIT}}}(\x07)?"
            r"|[ -/]{0,8}([0-~])?"
            ")"
            rf"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{_BIDI}]"
        )
    return _grammar
