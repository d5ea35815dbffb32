"""`runner top`: what it draws in any width, what its keys do, and that the terminal is given back."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import wire
from builders import GIB, a_job
from tools import CLI, wait_until

from dashboard import cards, work
from runner import errors, words
from runner.cli import board, output, top
from runner.laptop.console import read_keys
from runner.model import Gpu, Notice, Process, Sample, Use

NOW = 1_000_000.0
HOSTILE = "\x1b[2J\x1b]0;pwned\x07\r\nname\u202e\x9b31m"


def a_look(name: str = "train.py", gpus: int = 2) -> Any:
    """The overview as the box sends it."""
    use = Use(42, 1, "GPU-0", NOW - 600, NOW, measured_seconds=600, busy_seconds=522, peak_bytes=9 * GIB)
    use.energy_joules = 2.2e6
    runs = a_job(42, words.RUNNING, gpus=1, allotted=["GPU-0"], started_at=NOW - 600, expected_seconds=7800, attempt=1)
    waits = a_job(43, words.QUEUED, gpus=2, why="needs 2 GPUs, 1 free: GPU 0 has job 42", priority=3)
    failed = a_job(41, words.FAILED, started_at=NOW - 700, ended_at=NOW - 100, reason="exit_code", exit_code=3)
    fine = a_job(40, words.SUCCEEDED, started_at=NOW - 7000, ended_at=NOW - 900)
    for job in (runs, waits, failed, fine):
        job.name = name
    sample = Sample(NOW - 0.5, 20 * GIB, 0.87, power_watts=318.0, power_limit_watts=450.0, temperature_celsius=71.0)
    found = [
        Gpu(f"GPU-{index}", "NVIDIA GeForce RTX 4090", index, memory_bytes=24 * GIB, state=words.FREE, sample=sample)
        for index in range(gpus)
    ]
    if found:
        found[0].state, found[0].jobs = words.BUSY, [42]
        found[-1].processes = [Process(1, 1, GIB, user=name, command=name)]
    group = {**work.row(waits, [], {}), "id": "g50", "count": 12, "starts_at": NOW + 900, "held": True}
    said = {
        "box": name, "now": NOW, "counts": {"running": 1, "starting": 0, "queued": 13},
        "live": {"at": NOW, "read_at": NOW - 0.5, "silent": None, "hint": "", "gpus": [
            cards.card(gpu, {42: runs}) for gpu in found
        ]},
        "running": [work.row(runs, [use], {"GPU-0": 0})],
        "queue": [{**work.row(waits, [], {}), "starts_at": None, "count": 0}, group], "queue_more": 3,
        "finished": [work.row(job, [], {}) for job in (failed, fine)],
        "trouble": [asdict(Notice(1, NOW - 60, "hot", "warning", f"{name} is too hot"))], "trouble_more": 0,
        "totals": {"joules": 7.2e6, "cost": 0.64, "currency": "EUR", "cpu": 0.12, "disk_bytes": GIB,
                   "disk_free_bytes": GIB},
        "paused": None, "draining": False, "free": 1, "gpu_count": gpus,
    }  # fmt: skip
    return json.loads(json.dumps(said))


def a_view(name: str = "train.py", **values: Any) -> board.View:
    view = board.View()
    view.work = a_look(name, **values)
    view.box, view.live = view.work["box"], view.work["live"]
    return view


def drawn(view: board.View, room: int, height: int = 40, colours: bool = False, **how: Any) -> list[str]:
    return [board.paint(line, room, colours, **how).rstrip() for line in board.screen(view, room, height)]


# --- drawing ---


def test_on_sixty_columns_a_gpu_is_two_lines() -> None:
    view = a_view(gpus=1)
    view.box, view.chosen = "attic", 42
    assert drawn(view, 60) == [
        "attic · 1 running · 13 waiting · 318 W · CPU 12 %       live",
        "▲ train.py is too hot  1m00s ago",
        "",
        "GPU 0 RTX 4090 Busy                        71 °C  318/450 W",
        "  █████░  87 %  █████░ 20.0 / 24.0 GiB  #42 train.py (ann)",
        "",
        "Running 1",
        "> #42      train.py             GPU 0        10m  2h00m left",
        "",
        "Queue 5",
        "  #43      train.py +3          needs 2 GPUs, 1 free",
        "  g50      train.py (12 jobs)…  needs 2 GPUs, 1 free",
        "  3 more wait: runner ps",
        "",
        "Finished",
        "  #41      train.py      ✕ exit code 3             1m40s ago",
        "  #40      train.py      ✓ succeeded                 15m ago",
        *[""] * 22,
        "j/k Enter l c h +/- p  ? keys  q leave",
    ]


def test_on_a_hundred_columns_a_gpu_is_one_line_and_reasons_are_whole() -> None:
    view = a_view(gpus=1)
    view.box = "attic"
    lines = drawn(view, 100)
    assert lines[0] == (
        "attic · 1 running · 13 waiting · 318 W · 2.00 kWh, 0.64 EUR today · 1 GiB of disk free          live"
    )
    assert lines[3] == (
        "GPU 0  RTX 4090   Busy     ███████░  87 %  ███████░ 20.0 / 24.0 GiB  71 °C 318/450 W  #42 train.py…"
    )
    (waits,) = [line for line in drawn(view, 160) if "#43" in line]
    assert waits.endswith("needs 2 GPUs, 1 free: GPU 0 has job 42")
    (group,) = [line for line in drawn(view, 160) if "g50" in line]
    assert "train.py (12 jobs) +3 held" in group
    assert "in 15m00s" in group or "in 15m" in group


@pytest.mark.parametrize("room", [20, 60, 80, 100, 110, 320])
@pytest.mark.parametrize("name", ["train.py", HOSTILE, "実験" * 60, "e\u0301" * 100, ""])
def test_no_line_is_wider_than_the_terminal_and_nothing_in_a_name_reaches_it(room: int, name: str) -> None:
    view = a_view(name)
    view.chosen, view.said = 43, ""
    for height in (1, 2, 24, 60):
        lines = drawn(view, room, height)
        assert len(lines) == height
        assert all(output.width(line) <= room for line in lines), lines
        assert all(line.isprintable() for line in lines), lines
    coloured = "".join(drawn(view, room, 60, colours=True))
    assert re.sub(r"\x1b\[(31|33|34|32|2|1|7|0)m", "", coloured).isprintable()
    plain = "".join(drawn(view, room, 60, unicode=False))
    assert plain.isascii()


def test_colour_is_for_trouble_and_without_it_all_is_said_in_words() -> None:
    view = a_view()
    view.live["gpus"][0] |= {"temperature": "91 °C", "temperature_tone": "red", "memory_tone": "amber"}  # type: ignore[index]
    coloured = "\n".join(drawn(view, 100, colours=True))
    assert "\x1b[31m 91 °C\x1b[0m" in coloured
    assert "\x1b[" not in "\n".join(drawn(view, 100))
    assert "\x1b[7m> \x1b[0m" in "".join(drawn_with(view, 42))


def drawn_with(view: board.View, chosen: int) -> list[str]:
    view.chosen = chosen
    return drawn(view, 100, colours=True)


@pytest.mark.parametrize(("change", "said", "tone"), [
    ({}, "live", "green"),
    ({"lost": "14:02:11"}, "link lost 14:02:11, trying again", "amber"),
    ({"paused": "14:02:11"}, "paused 14:02:11", "amber"),
    ({"elapsed": 6.0}, "GPUs read 6s ago", "amber"),
    ({"elapsed": 20.0}, "GPUs read 20s ago", "red"),
    ({"live": None}, "...", "dim"),
])  # fmt: skip
def test_the_corner_says_how_old_the_picture_is(change: dict[str, Any], said: str, tone: str) -> None:
    view = a_view()
    for field, value in change.items():
        setattr(view, field, value)
    assert board.status(view) == (said, tone)


def test_what_is_empty_says_what_to_do() -> None:
    view = a_view(gpus=0)
    assert view.work is not None
    view.work |= {"running": [], "queue": [], "queue_more": 0, "finished": [], "trouble": []}
    text = "\n".join(drawn(view, 100))
    assert "No NVIDIA driver found. Jobs without GPU still run. Check: runner doctor" in text
    assert "Nothing is running. Submit: runner submit train.py" in text
    assert "Queue is empty." in text
    assert "Nothing has ended yet." in text
    view.work |= {"paused": "the box is draining", "gpu_count": 2, "free": 2}
    assert "nothing new starts: the box is draining" in "\n".join(drawn(view, 100))
    assert "2 of 2 GPUs free." in "\n".join(drawn(view, 100))


def test_the_chosen_job_is_always_in_sight() -> None:
    view = a_view(gpus=8)
    for chosen in (42, 43, "g50", 41, 40, 41, 42):
        view.chosen = chosen
        lines = drawn(view, 60, 12)
        assert [line for line in lines if line.startswith("> ")], lines
    view.chosen, view.top = None, 0
    assert drawn(view, 60, 12)[-1].endswith("more lines")
    view.help = True
    assert any("its priority" in line for line in drawn(view, 60, 12))


# --- keys and events ---


@pytest.mark.parametrize(("typed", "keys"), [
    (b"jk", ["j", "k"]),
    (b"\x1b[A\x1bOB\r", ["up", "down", "enter"]),
    (b"\x1b", ["escape"]),
    (b"\x1b[1;5Cq", ["q"]),  # Ctrl-right, which means nothing here
    (b"\x1b[200~q\x00\xc3\xa4", ["q"]),
    (b"\x1b[", []),
])  # fmt: skip
def test_keys_are_read_as_terminals_send_them(typed: bytes, keys: list[str]) -> None:
    assert read_keys(typed) == keys


def test_events_are_put_together_from_any_pieces() -> None:
    stream = b"retry: 1000\n\nevent: frame\ndata: {}\n\n: alive\n\nevent: changed\ndata: 7\n\n"
    whole = [("frame", "{}"), ("changed", "7")]
    assert list(top.events([stream])) == whole
    assert list(top.events(stream[at : at + 1] for at in range(len(stream)))) == whole


class _Api:
    box = "local"

    def __init__(self) -> None:
        self.posted: list[tuple[str, Any]] = []

    def get(self, path: str) -> Any:
        return a_look()

    def post(self, path: str, body: Any) -> Any:
        self.posted.append((path, body))


@pytest.fixture
def ours() -> Iterator[tuple[top.Top, _Api]]:
    api: Any = _Api()
    made = top.Top(api, a_view())
    made._run = lambda errand: errand()()  # type: ignore[method-assign]
    yield made, api
    os.close(made._reader)
    os.close(made._writer)


def press(made: top.Top, keys: str) -> None:
    for key in keys:
        made.press(key, None)  # type: ignore[arg-type]


def test_what_changed_before_the_stream_began_is_asked_for(ours: tuple[top.Top, _Api]) -> None:
    """The jobs are asked for first: what happens in between is told by the number of the last change."""
    made, _ = ours
    assert made._path() == "/live", "of a box that is older"
    made._look = ({"seq": 7}, None)
    assert made._path() == "/live?after=7"


def test_nothing_is_ended_without_a_yes(ours: tuple[top.Top, _Api]) -> None:
    made, api = ours
    press(made, "c")
    assert (made.view.said, api.posted) == ("choose a job first, with j and k", [])
    press(made, "jc")
    assert made.view.said == "Cancel job 42? y or n: train.py"
    press(made, "q")
    assert (api.posted, made._leaving) == ([], False), "the answer was no, and no key of its own"
    press(made, "cy")
    assert api.posted == [("/jobs/cancel?brief=1", {"ids": [42]})]
    press(made, "hh+")
    assert made.view.said == "job 42 runs already: there is nothing to wait for"


def test_what_waits_is_held_and_moved_and_what_has_ended_is_left(ours: tuple[top.Top, _Api]) -> None:
    made, api = ours
    press(made, "jjh+-jh")
    assert api.posted == [
        ("/jobs/hold?brief=1", {"ids": [43]}),
        ("/jobs/priority?brief=1", {"ids": [43], "priority": 4}),
        ("/jobs/priority?brief=1", {"ids": [43], "priority": 2}),
        ("/jobs/release?brief=1", {"ids": ["g50"]}),
    ]
    press(made, "\r")
    made.press("enter", None)  # type: ignore[arg-type]
    assert made.view.said == "g50 is a group: runner ps g50"
    made.press("end", None)  # type: ignore[arg-type]
    press(made, "c")
    assert made.view.said == "job 40 has ended; runner rerun 40 runs it again"


def test_a_paused_picture_stays_and_a_job_that_is_gone_is_not_replaced(ours: tuple[top.Top, _Api]) -> None:
    made, _ = ours
    press(made, "jp")
    before = made.view.work
    later = a_look() | {"running": []}
    made._worked(later)
    assert made.view.work is before
    press(made, "p")
    assert (made.view.work, made.view.chosen) == (later, None)
    made._lost()
    assert made.view.lost
    made._framed(later["live"])
    assert not made.view.lost


def test_a_box_that_is_older_is_told_so() -> None:
    class Old(_Api):
        def get(self, path: str) -> Any:
            raise errors.NotFound("there is no /api/v1/overview", "")

    with pytest.raises(errors.NotFound, match="older than"):
        top._overview(Old())  # type: ignore[arg-type]


# --- in a terminal ---


class Terminal:
    """The other end of a terminal: what is on the screen, as far as `runner top` moves on it."""

    def __init__(self, command: tuple[str, ...], env: dict[str, str], columns: int = 100, lines: int = 30) -> None:
        self.master, slave = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            command, env=env | {"TERM": "xterm"}, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        self.slave, self.seen = slave, ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def screen(self) -> str:
        while select.select([self.master], [], [], 0)[0]:
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError as error:
                if error.errno != errno.EIO:  # which says that nobody is at the other end any more
                    raise
                break
        rows: dict[int, str] = {}
        for part in re.split(r"(\x1b\[2J|\x1b\[\d+;1H)", self.seen.rpartition("\x1b[?1049h")[2]):
            if part == "\x1b[2J":
                rows = {}
            elif found := re.fullmatch(r"\x1b\[(\d+);1H", part):
                at = int(found[1])
            elif "\x1b[K" in part:
                rows[at] = part.partition("\x1b[K")[0]
        return "\n".join(rows[at] for at in sorted(rows))

    def shows(self, text: str) -> str:
        wait_until(lambda: text in self.screen(), 20, lambda: self.seen[-3000:])
        return self.screen()

    def ended(self) -> int:
        wait_until(lambda: [self.screen(), self.process.poll()][1] is not None, 20, lambda: self.seen[-3000:])
        self.screen()  # the last that it said
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture(scope="module")
def box() -> Iterator[wire.Box]:
    with wire.place() as folder:
        made = wire.Box(Path(folder), https="127.0.0.1:0")
        try:
            made.start()
            made.submit(["sleep", "1000"], name="sleeper")
            made.submit(["true"], name=f"held{HOSTILE[:3]}", held=True)
            yield made
        finally:
            made.end()


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(box: wire.Box) -> Iterator[Open]:
    opened: list[Terminal] = []

    def open_one(*options: str, **variables: str) -> Terminal:
        env = box.env | {"NO_COLOR": "1", "LANG": "C.UTF-8", "PYTHONUTF8": "1"} | variables
        opened.append(Terminal((*CLI, "top", *options), env))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def test_it_lives_in_a_terminal_and_leaves_it_as_it_was(box: wire.Box, terminal: Open) -> None:
    ours = terminal()
    ours.shows("sleeper")
    assert "held\\x1b[2" in ours.screen()
    third = box.submit(["true"], name="newcomer", held=True)
    ours.shows("newcomer")
    ours.type("jjjc")
    ours.shows(f"Cancel job {third}? y or n: newcomer")
    ours.type("y")
    assert box.ended(third)["state"] == words.CANCELLED
    ours.shows("cancelled")
    ours.resize(60, 20)
    ours.process.send_signal(signal.SIGWINCH)
    wait_until(lambda: max(map(output.width, ours.screen().split("\n"))) <= 60, 10)
    ours.type("\x1b[H\r")
    wait_until(lambda: "Enter comes back" in ours.seen + ours.screen(), 10)
    assert termios.tcgetattr(ours.slave)[3] == ours.before[3]
    ours.type("\n")
    ours.shows("> #1")
    ours.type("q")
    assert ours.ended() == 0
    assert ours.seen.endswith("\x1b[0m\x1b[?25h\x1b[?1049l")
    assert termios.tcgetattr(ours.slave) == ours.before
    assert not re.search("\x1b(?!\\[(?:\\?1049[hl]|\\?25[hl]|2J|0m|K|H|\\d+;1H))", ours.seen), "nothing of a name's own"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_however_it_ends_the_terminal_is_given_back(terminal: Open, number: int, code: int) -> None:
    ours = terminal()
    ours.shows("sleeper")
    ours.process.send_signal(number)
    assert ours.ended() == code
    assert "\x1b[?25h\x1b[?1049l" in ours.seen
    assert termios.tcgetattr(ours.slave) == ours.before


def test_a_fault_of_its_own_gives_the_terminal_back_too(terminal: Open, box: wire.Box, tmp_path: Path) -> None:
    broken = "import runner.cli.board as b, runner.cli as c, sys; b.footer = lambda *a: 1 / 0; sys.argv = ['', 'top']"
    ours = Terminal((CLI[0], "-c", f"{broken}; c.main()"), box.env | {"XDG_STATE_HOME": str(tmp_path)})
    try:
        assert ours.ended() != 0
        assert "\x1b[?25h\x1b[?1049l" in ours.seen
        assert termios.tcgetattr(ours.slave) == ours.before
    finally:
        ours.close()


def test_a_stop_gives_the_terminal_back_until_it_goes_on(terminal: Open) -> None:
    ours = terminal()
    ours.shows("sleeper")
    ours.process.send_signal(signal.SIGTSTP)  # in a session of its own the kernel lets nobody stop, so it goes on
    wait_until(lambda: ours.screen() and ours.seen.count("\x1b[?1049h") == 2, 10, lambda: ours.seen)
    assert ours.seen.index("\x1b[?1049l") < ours.seen.rindex("\x1b[?1049h")
    ours.shows("sleeper")
    ours.type("q")
    assert ours.ended() == 0


@pytest.mark.long
def test_a_box_that_goes_away_is_told_and_met_again(terminal: Open, box: wire.Box) -> None:
    ours = terminal()
    ours.shows("sleeper")
    box.stop()
    ours.shows("link lost")
    began = time.monotonic()
    box.start()
    wait_until(lambda: "link lost" not in ours.screen(), 20, lambda: ours.seen[-2000:])
    assert time.monotonic() - began < 15
    ours.type("q")
    assert ours.ended() == 0


@pytest.mark.parametrize("scope", ["submit", "read"])
def test_over_the_network_it_is_the_same_and_who_may_only_look_changes_nothing(
    terminal: Open, box: wire.Box, tmp_path: Path, scope: str
) -> None:
    minted = box.post("/tokens", {"scope": scope, "label": "test"})
    https, made = minted["https"], minted["made"]
    place = {"ssh": "", "host": "127.0.0.1", "port": https["port"], "address": f"127.0.0.1:{https['port']}"}
    trust = {"fingerprint": https["fingerprint"], "token": minted["token"], "token_id": made["id"]}
    file = tmp_path / "boxes/far.json"
    file.parent.mkdir()
    file.write_text(json.dumps(place | trust))
    file.chmod(0o600)
    job = box.submit(["true"], name=f"for-{scope}", held=True)
    ours = terminal("--box", "far", GPUBOX_CONFIG=str(tmp_path), GPUBOX_WAY="direct", XDG_CACHE_HOME=str(tmp_path))
    ours.shows(f"for-{scope}")
    later = box.submit(["true"], name="streamed", held=True)
    ours.shows("streamed")
    ours.type("jjj")
    ours.shows(f"> #{job}")
    ours.type("cy")
    if scope == "submit":
        assert box.ended(job)["state"] == words.CANCELLED
    else:
        ours.shows("may look, but not change anything")
        assert box.state_of(job) == words.QUEUED
    ours.type("q")
    assert ours.ended() == 0
    box.post("/jobs/cancel", {"ids": [later, job]})


def test_in_a_pipe_it_is_one_look(box: wire.Box) -> None:
    done = box.call("top")
    assert (done.returncode, "this is one look" in done.stderr) == (0, True)
    assert "sleeper" in done.stdout
    assert "\x1b" not in done.stdout
    assert json.loads(box.run("top", "--json"))["box"] == "local"
