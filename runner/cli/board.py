"""PURE: the overview as lines of a terminal: the page's order, words and colours, in any width.

A line is a list of (text, tone); tones are those of the page, and a few of a terminal's own. What is not known is a
dash. Everything that comes from a box is cleaned where it is painted, so nothing in a name reaches the terminal.
"""

from __future__ import annotations

from runner.cli.output import clean, cut, many, pad, span, width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Line = list[tuple[str, str]]
    Row = dict[str, Any]

NAME_MAX = 40
WIDE = 100  # columns from which on a GPU is one line
CODES = {"red": "31", "amber": "33", "blue": "34", "green": "32", "dim": "2", "bold": "1", "chosen": "7"}
FULL, EMPTY, NONE = "█", "░", "\N{EN DASH}"
PLAIN = str.maketrans(
    {"█": "#", "░": ".", NONE: "-", "…": "~", "·": "-", "°": " ", "▲": "!", "●": "*", "◔": "o", "◌": ".", "✓": "+",
     "✕": "x", "◷": "t", "↑": "^", "↓": "v"}
)  # fmt: skip
LATE, VERY_LATE = 5.0, 15.0  # seconds since the GPUs were read
HELP = (
    ("j k, arrows", "go through the jobs; also Home, End"),
    ("Enter", "everything about the job"),
    ("l", "its log; Ctrl-C comes back"),
    ("c", "cancel it, after a question"),
    ("h", "hold it while it waits, or release it"),
    ("+ -", "start it earlier or later: its priority"),
    ("p", "pause: the picture stays as it is"),
    ("q", "leave; nothing on the box changes"),
)


class View:
    """What is to be drawn."""

    def __init__(self) -> None:
        self.box = ""
        self.work: Row | None = None  # of GET /overview
        self.live: Row | None = None  # of the last frame
        self.elapsed = 0.0  # seconds since that frame came
        self.chosen: int | str | None = None  # a job's id, or a group's name
        self.paused = ""  # since when, 14:02:11
        self.lost = ""  # since when
        self.said = ""  # at the bottom: what was asked or answered
        self.asks = False  # `said` is a question
        self.help = False
        self.top = 0  # lines of the body above the window

    @property
    def now(self) -> float:
        """By the box's clock."""
        return float((self.live or {}).get("at") or 0.0) + self.elapsed


# --- lines -----------------------------------------------------------------------------------------------------------


def paint(line: Line, room: int, colours: bool, unicode: bool = True) -> str:
    """A line as it is written: cleaned, cut to the room, with colours or without."""
    out, left = "", room
    for text, tone in line:
        if left <= 0:
            break
        shown = clean(text)
        shown = cut(shown, left)
        left -= width(shown)
        if not unicode:
            shown = shown.translate(PLAIN).encode("ascii", "replace").decode()
        code = CODES.get(tone) if colours else None
        out += f"\x1b[{code}m{shown}\x1b[0m" if code and shown else shown
    return out


def bar(share: float, room: int, tone: str) -> Line:
    full = min(room, max(round(share * room), int(share > 0)))
    return [(FULL * full, tone), (EMPTY * (room - full), "dim")]


def columns(cells: Sequence[tuple[str, int, str]], gap: int = 2) -> Line:
    """(text, room, tone) beside each other; a negative room is flush right, 0 is as long as the text."""
    line: Line = []
    for text, room, tone in cells:
        shown = cut(clean(text), abs(room)) if room else clean(text)
        blank = " " * (abs(room) - width(shown))
        line.append((blank + shown if room < 0 else shown + blank, tone))
        line.append((" " * gap, ""))
    return line[:-1]


# --- parts -----------------------------------------------------------------------------------------------------------


def header(view: View, room: int) -> Line:
    """attic · 2 running · 3 waiting · 812 W · 4.1 kWh today        live"""
    state, tone = status(view)
    parts = [view.box or "box"]
    if view.work is not None:
        counts = view.work["counts"]
        parts.append(f"{counts['running'] + counts['starting']} running")
        parts.append(f"{counts['queued']} waiting")
        parts += _totals(view)
    text, most = parts[0], room - width(state) - 2
    for part in parts[1:]:
        if width(text) + 3 + width(part) <= most:
            text += f" · {part}"
    text = cut(clean(text), max(1, most))
    return [(text, "bold"), (" " * max(1, room - width(text) - width(state)), ""), (state, tone)]


def _totals(view: View) -> list[str]:
    gpus = (view.live or {}).get("gpus") or ()
    watts = [gpu["raw"][1] for gpu in gpus if gpu["raw"][1] is not None]
    totals = view.work["totals"] if view.work else {}
    found = [f"{sum(watts):.0f} W"] if watts else []
    if totals.get("joules") is not None:
        cost = "" if totals.get("cost") is None else f", {totals['cost']:.2f} {totals['currency']}".rstrip()
        found.append(f"{totals['joules'] / 3.6e6:.2f} kWh{cost} today")
    if totals.get("disk_bytes"):
        found.append(f"{totals['disk_free_bytes'] / (1 << 30):.0f} GiB of disk free")
    if totals.get("cpu") is not None:
        found.append(f"CPU {totals['cpu'] * 100:.0f} %")
    return found


def status(view: View) -> tuple[str, str]:
    """live, or why not, and how bad that is."""
    if view.lost:
        return f"link lost {view.lost}, trying again", "amber"
    if view.paused:
        return f"paused {view.paused}", "amber"
    if view.live is None:
        return "...", "dim"
    read = view.live.get("read_at")
    if not view.live["gpus"] or read is None:
        return "live", "green"
    late = view.now - float(read)
    if late > LATE:
        return f"GPUs read {span(late)} ago", "red" if late > VERY_LATE else "amber"
    return "live", "green"


def trouble(view: View) -> list[Line]:
    work, live = view.work or {}, view.live or {}
    lines: list[Line] = []
    for notice in work.get("trouble") or ():
        tone = "red" if notice["severity"] == "critical" else "amber"
        ago = f"  {span(view.now - notice['at'])} ago" if view.now else ""
        lines.append([("▲ ", tone), (notice["text"], tone), (ago, "dim")])
    if work.get("trouble_more"):
        lines.append([(f"  {work['trouble_more']} more: runner notices", "dim")])
    if work.get("paused") or work.get("draining"):
        lines.append([("▲ ", "amber"), (f"nothing new starts: {work.get('paused') or 'the box is draining'}", "amber")])
    if live.get("silent") and live.get("gpus"):
        lines.append([("▲ ", "amber"), (live["silent"], "amber"), (f"  {live.get('hint') or ''}", "dim")])
    return lines


def gpus(view: View, room: int) -> list[Line]:
    live = view.live
    if live is None:
        return []
    if not live["gpus"]:
        said = live.get("silent") or "No NVIDIA driver found"
        return [[(f"{said[:1].upper()}{said[1:].rstrip('.')}. Jobs without GPU still run. Check: runner doctor", "")]]
    return [line for gpu in live["gpus"] for line in (_wide(gpu, room) if room >= WIDE else _narrow(gpu, room))]


def _wide(gpu: Row, room: int) -> list[Line]:
    more = max(0, min(room - WIDE, 60))
    meter = 8 + more // 6
    line: Line = [(pad(cut(gpu["label"], 6), 6), "bold"), (" ", "")]
    line += columns([(gpu["model"], 10 + more // 6, ""), (gpu["state"], 8, gpu["tone"])], 1)
    line += [(" ", ""), *bar(gpu["util_share"], meter, "blue"), (pad_left(gpu["util"], 6), ""), ("  ", "")]
    line += [*bar(gpu["memory_share"], meter, gpu["memory_tone"] or "blue"), (" ", "")]
    line += columns([
        (gpu["memory"], 15, gpu["memory_tone"]), (gpu["temperature"], -6, gpu["temperature_tone"]),
        (gpu["power"], -9, ""),
    ], 1)  # fmt: skip
    return [[*line, ("  ", ""), *_badges(gpu), *_who(gpu)]]


def _narrow(gpu: Row, room: int) -> list[Line]:
    """Two lines: which one and how it is; what it does and for whom."""
    right = f"{gpu['temperature']}  {gpu['power']}"
    name = cut(clean(f"{gpu['label']} {gpu['model']}"), max(8, room - width(right) - 13))
    space = max(1, room - width(name) - width(right) - 10)
    first: Line = [(name, "bold"), (" ", ""), (pad(cut(gpu["state"], 8), 8), gpu["tone"]), (" " * space, "")]
    first += [(gpu["temperature"], gpu["temperature_tone"]), (f"  {gpu['power']}", "")]
    meter = 6 if room < 80 else 10
    second: Line = [("  ", ""), *bar(gpu["util_share"], meter, "blue"), (pad_left(gpu["util"], 6), ""), ("  ", "")]
    second += [*bar(gpu["memory_share"], meter, gpu["memory_tone"] or "blue"), (" ", "")]
    second += [(pad(cut(gpu["memory"], 15), 15), gpu["memory_tone"]), ("  ", ""), *_badges(gpu), *_who(gpu)]
    return [first, second]


def _badges(gpu: Row) -> Line:
    return [part for badge in gpu["badges"] for part in ((badge["text"], badge["tone"]), ("  ", ""))]


def _who(gpu: Row) -> Line:
    if gpu["jobs"]:
        return [(", ".join(f"#{job['id']} {job['name']} ({job['user']})" for job in gpu["jobs"]), "")]
    return [(gpu["others"] or gpu["why"] or "nobody uses it", "dim")]


def pad_left(text: str, room: int) -> str:
    return " " * (room - width(text)) + text


# --- jobs ------------------------------------------------------------------------------------------------------------


def running(row: Row, room: int, now: float) -> Line:
    since = span(now - row["started_at"]) if row["started_at"] else NONE
    ends = row["ends_at"]  # by past runs: it may take longer
    left = "" if not ends else f"{span(ends - now)} left" if ends > now else "any time"
    ending = " (ending)" if row["cancelling"] else ""
    gpus = f"GPU {row['gpus']}" if row["gpus"] else ""
    facts = [(gpus, 8, ""), (since, -6, ""), (left, -10, "dim")]
    if room >= 76:
        facts += [(row["util"], -6, ""), (row["peak"], -9, "")]
    if room >= 110:
        facts += [(row["energy"], -9, ""), (row["user"], 12, "dim")]
    return [*_lead(row, room, facts, f"{row['name']}{ending}")]


def waiting(row: Row, room: int, now: float) -> Line:
    count = f" ({many(row['count'], 'job')})" if row["count"] else ""
    held = " held" if row["held"] else ""
    priority = f" {row['priority']:+d}" if row["priority"] else ""
    starts = f"in {span(row['starts_at'] - now)}" if row.get("starts_at") else ""
    rest = max(0, room - 2 - 7 - 2)
    name = min(max(10, rest * 2 // 5 if room < WIDE else rest // 3), NAME_MAX)
    line: Line = columns([(_number(row), 7, "bold"), (f"{row['name']}{count}{priority}{held}", name, "")])
    if room >= WIDE:
        line += [("  ", ""), *columns([(row["wants"], 18, "dim"), (starts, -8, "")])]
    return [*line, ("  ", ""), (row["why"] if room >= WIDE else row["reasons"][0], "amber" if row["held"] else "")]


def finished(row: Row, room: int, now: float) -> Line:
    ago = f"{span(now - row['ended_at'])} ago" if row["ended_at"] else NONE
    facts = [(row["time"], -11, ""), (ago, -10, "dim")][room < 76 :]
    if room >= 90:
        facts = [(row["util"], -6, ""), (row["peak"], -9, ""), *facts]
    if room >= 110:
        facts += [(row["energy"], -9, ""), (row["user"], 12, "dim")]
    state = row["state"]
    end: Line = [(f"{state['sign']} ", state["tone"]), (row["reason"] or state["text"], state["tone"])]
    return _lead(row, room, facts, row["name"], end)


def _lead(row: Row, room: int, facts: list[tuple[str, int, str]], name: str, end: Line | None = None) -> Line:
    """Number and name, what there is to say of it in columns, and how it ended in what is left of the room."""
    taken = 2 + 7 + 2 + sum(abs(wide) + 2 for _, wide, _ in facts)
    spare = max(0, room - taken)
    words = min(max(0, spare - 14), 34) if end else 0
    called = min(max(6, spare - words - 2 * bool(words)), NAME_MAX)
    line: Line = columns([(_number(row), 7, "bold"), (name, called, "")])
    if end and words:
        shown = cut(clean(end[1][0]), max(1, words - 2))
        line += [("  ", ""), end[0], (pad(shown, words - 2), end[1][1])]
    elif end:
        line = [
            *line[:-1],
            (cut(line[-1][0], max(4, width(line[-1][0]) - 2)), ""),
            (" ", ""),
            (end[0][0].strip(), end[0][1]),
        ]
    return [*line, ("  ", ""), *columns(facts)]


def _number(row: Row) -> str:
    return str(row["id"]) if row.get("count") else f"#{row['id']}"


# --- all of it -------------------------------------------------------------------------------------------------------


def rows(work: Row | None) -> list[Row]:
    """The jobs that can be chosen, as they stand below each other."""
    return [] if work is None else [*work["running"], *work["queue"], *work["finished"]]


def body(view: View, room: int) -> tuple[list[Line], int | None]:
    """(lines between header and footer, the place of the chosen one)"""
    lines = trouble(view)
    if lines:
        lines.append([])
    lines += gpus(view, room)
    work = view.work
    if work is None:
        return lines, None
    place: int | None = None
    free = f" {work['free']} of {work['gpu_count']} GPUs free." if work["gpu_count"] else ""
    sections = (
        ("Running", work["running"], running, f"Nothing is running.{free} Submit: runner submit train.py", 0),
        ("Queue", work["queue"], waiting, "Queue is empty.", work["queue_more"]),
        ("Finished", work["finished"], finished, "Nothing has ended yet.", 0),
    )
    for title, found, draw, nothing, more in sections:
        count = f" {len(found) + more}" if found and title != "Finished" else ""
        lines += [[], [(f"{title}{count}", "bold")]]
        if not found:
            lines.append([(f"  {nothing}", "dim")])
        for row in found:
            chosen = row["id"] == view.chosen
            place = len(lines) if chosen else place
            number, *others = draw(row, room, view.now or work["now"])
            mark = [("> ", "chosen"), (number[0], "chosen")] if chosen else [("  ", ""), number]
            lines.append([*mark, *others])
        if more:
            lines.append([(f"  {more} more wait: runner ps", "dim")])
    return lines, place


def footer(view: View, room: int) -> Line:
    if view.said:
        return [(view.said, "amber" if view.asks else "")]
    keys = "j/k go  Enter show  l log  c cancel  h hold  +/- priority  p pause  ? keys  q leave"
    short = "j/k Enter l c h +/- p  ? keys  q leave"
    return [(keys if room >= len(keys) else short, "dim")]


def screen(view: View, room: int, height: int) -> list[Line]:
    """All lines of a terminal. `view.top` moves so that the chosen one is seen."""
    if view.help:
        middle: list[Line] = [[], *([(f"  {keys:14}", "bold"), (does, "")] for keys, does in HELP)]
        place = None
    else:
        middle, place = body(view, room)
    window = max(1, height - 2)
    if place is not None and not view.top <= place < view.top + window:
        view.top = place - window + 1 if place >= view.top + window else max(0, place - 2)
    view.top = max(0, min(view.top, len(middle) - window))
    shown = middle[view.top : view.top + window]
    below = len(middle) - view.top - len(shown)
    shown += [[] for _ in range(window - len(shown))]
    end = footer(view, room)
    if below and not view.said:
        end = [*end, (f"  ↓ {below} more lines", "dim")]
    return [header(view, room), *shown, end][:height]
