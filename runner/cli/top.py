"""`runner top`: the overview in the terminal, live."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque

from runner import errors
from runner.cli import board, options, output
from runner.laptop import addresses, boxes
from runner.laptop.light import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from runner.laptop.client import Client
    from runner.laptop.console import Console

TOP = f"""\
Usage: runner top [OPTIONS]

The GPUs, what runs, what waits and why, and what has ended, each second anew: the dashboard's overview in a terminal.
j and k go through the jobs, ? lists the keys, q leaves. In a pipe it is printed once.

Options:
  --once                  print it once, also in a terminal
{options.COMMON}
Examples:
  runner top
  runner top --box demo
"""
PATIENCE = 45.0  # seconds; a box that is there says so every 15
PAUSES = (0.5, 1.0, 2.0, 5.0)  # between tries to come back; the last one again and again
AT_ONCE_SECONDS = 1.0  # the jobs are asked for no more often, however much changes
WORK_SECONDS = 10.0  # after which the jobs are asked for again, though nothing was said to have changed
TICK_SECONDS = 1.0
SAID_SECONDS = 6.0  # that an answer stays at the bottom
WIDTH_ELSEWHERE = 120  # of one look that goes into a pipe
TAIL_LINES = 200
TERMINATED = 128


def top(arguments: list[str]) -> int:
    given = options.parse(TOP, arguments)
    options.no_words(given, TOP)
    api = boxes.open_box(given.get("--box"))
    work = _overview(api)
    if "--json" in given:
        output.json(work)
        return 0
    view = board.View()
    view.box = work["box"] if api.box == addresses.LOCAL else api.box  # as this computer calls it
    view.work, view.live = work, work["live"]
    usable = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if "--once" in given or not usable:
        return _once(view, asked="--once" in given)
    import gc

    gc.enable()  # we may stay for days
    return Top(api, view).run()


def _overview(api: Client) -> dict[str, Any]:
    try:
        found: dict[str, Any] = api.get("/overview")
    except errors.NotFound:
        raise errors.NotFound("this box is older than `runner top`", "`runner ps` and `runner gpus` show it") from None
    return found


def _once(view: board.View, asked: bool) -> int:
    room = output.columns(sys.stdout) or WIDTH_ELSEWHERE
    lines = [board.header(view, room), [], *board.body(view, room)[0]]
    for line in lines:
        output.put(board.paint(line, room, output.colours(sys.stdout)).rstrip() + "\n")
    if not asked:
        output.say("this is one look, as it does not go to a terminal; --json is for programs")
    return 0


class Top:
    """One thread draws and hears keys; one hears the box; one runs errands. What they find comes through `_found`."""

    def __init__(self, api: Client, view: board.View) -> None:
        self._api, self.view = api, view
        self._found: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()  # to be done by the thread that draws
        self._errands: deque[Callable[[], Callable[[], None]]] = deque()
        self._errand = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._framed_at = time.monotonic()
        self._asked_at = time.monotonic()  # for the jobs
        self._wanted = False  # they have changed
        self._frame: dict[str, Any] | None = None  # the newest, not yet taken: while another command has the screen too
        self._said_at = 0.0
        self._drawn: list[str] = []
        self._question: Callable[[], None] | None = None
        self._leaving = False
        self._look: tuple[dict[str, Any] | None, dict[str, Any] | None] = (view.work, view.live)  # also while paused
        self._colours = output.colours(sys.stdout)
        self._unicode = "utf" in (sys.stdout.encoding or "").lower()

    def run(self) -> int:
        from runner.laptop.console import Console

        for work in (self._listen, self._serve):
            threading.Thread(target=work, daemon=True).start()
        with Console(self._wake) as console:
            while not (self._leaving or console.ended):
                self._draw(console)
                ready = select.select([console.fileno, self._reader], [], [], TICK_SECONDS)[0]
                if console.fileno in ready:
                    for key in console.typed():
                        self.press(key, console)
                if self._reader in ready:
                    os.read(self._reader, 4096)
                if self._frame is not None:
                    frame, self._frame = self._frame, None
                    self._framed(frame)
                while self._found:
                    work, given = self._found.popleft()
                    work(*given)
                self._pass_time()
            return TERMINATED + console.ended if console.ended else 0

    # --- from elsewhere ---

    def _wake(self) -> None:
        try:
            os.write(self._writer, b"\0")
        except BlockingIOError:
            pass  # it is awake

    def _tell(self, work: Callable[..., None], *given: Any) -> None:
        self._found.append((work, given))
        self._wake()

    def _listen(self) -> None:
        """The box's stream, for as long as we are here."""
        tries = 0
        while True:
            try:
                for kind, data in events(self._api_of_its_own().stream("GET", self._path(), patience=PATIENCE)):
                    tries = 0
                    if kind == "frame":
                        self._frame = loads(data)
                        self._wake()
                    elif kind == "changed":
                        self._wanted = True
                        self._wake()
            except errors.Problem:
                pass
            except Exception as error:  # a box that says nonsense is as good as away
                self._tell(self._say, f"the box says what nobody understands: {type(error).__name__}")
            if not self.view.lost:
                self._tell(self._lost)
            time.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
            tries += 1

    def _path(self) -> str:
        """What changed since the jobs were asked for is told at once."""
        seq = (self._look[0] or {}).get("seq")
        return "/live" if seq is None else f"/live?after={seq}"

    def _api_of_its_own(self) -> Client:
        """Another connection to the same box, which has been greeted already."""
        client = boxes.open_box(self._api.box, start=False)
        client.greet = None
        return client

    def _serve(self) -> None:
        while True:
            self._errand.wait()
            self._errand.clear()
            while self._errands:
                errand = self._errands.popleft()
                try:
                    self._tell(errand())
                except errors.Problem as problem:
                    self._tell(self._say, problem.message)
                except Exception as error:
                    self._tell(self._say, f"{type(error).__name__}: {error}")

    def _run(self, errand: Callable[[], Callable[[], None]]) -> None:
        self._errands.append(errand)
        self._errand.set()

    # --- what was found ---

    def _framed(self, frame: dict[str, Any]) -> None:
        if self.view.lost:
            self.view.lost = ""
            self._wanted = True
        self._framed_at = time.monotonic()
        self._look = (self._look[0], frame)
        self._show()

    def _worked(self, work: dict[str, Any]) -> None:
        self._look = (work, self._look[1] or work["live"])
        self._show()

    def _show(self) -> None:
        if not self.view.paused:
            self.view.work, self.view.live = self._look
            known = [row["id"] for row in board.rows(self.view.work)]
            if self.view.chosen not in known:
                self.view.chosen = None  # not another one, which a key would then be for

    def _lost(self) -> None:
        if not self.view.lost:
            self.view.lost = time.strftime("%H:%M:%S")

    def _ask_for_work(self) -> None:
        self._asked_at, self._wanted = time.monotonic(), False

        def ask() -> Callable[[], None]:
            work = _overview(self._api)
            return lambda: self._worked(work)

        if not self._errands:
            self._run(ask)

    def _say(self, said: str) -> None:
        self.view.said, self.view.asks, self._said_at = said, False, time.monotonic()

    def _pass_time(self) -> None:
        now = time.monotonic()
        if not self.view.paused:
            self.view.elapsed = now - self._framed_at
        if self.view.said and not self.view.asks and now - self._said_at > SAID_SECONDS:
            self.view.said = ""
        patience = AT_ONCE_SECONDS if self._wanted else WORK_SECONDS
        if not self.view.lost and now - self._asked_at >= patience:
            self._ask_for_work()

    # --- keys ---

    def press(self, key: str, console: Console) -> None:
        view = self.view
        if self._question is not None:
            question, self._question = self._question, None
            view.said, view.asks = "", False
            if key in ("y", "Y"):
                question()
        elif view.help:
            view.help = False
        elif key == "q":
            self._leaving = True
        elif key == "?":
            view.help = True
        elif key == "p":
            view.paused = "" if view.paused else time.strftime("%H:%M:%S")
            self._show()
        elif key in ("j", "k", "up", "down", "home", "end"):
            self._go(key)
        elif key == "escape":
            view.chosen, view.top = None, 0
        elif key in ("enter", "l", "c", "h", "+", "=", "-"):
            self._act(key, console)

    def _go(self, key: str) -> None:
        known = [row["id"] for row in board.rows(self.view.work)]
        if not known:
            return
        at = known.index(self.view.chosen) if self.view.chosen in known else None
        if key in ("home", "end") or at is None:
            self.view.chosen = known[-1 if key in ("end", "k", "up") else 0]
        else:
            step = 1 if key in ("j", "down") else -1
            self.view.chosen = known[min(max(at + step, 0), len(known) - 1)]

    def _act(self, key: str, console: Console) -> None:
        row = next((row for row in board.rows(self.view.work) if row["id"] == self.view.chosen), None)
        if row is None:
            return self._say("choose a job first, with j and k")
        name = str(row["id"]) if row.get("count") else f"job {row['id']}"
        if key in ("enter", "l"):
            if row.get("count"):
                return self._say(f"{name} is a group: runner ps {row['id']}")
            return self._leave_for(console, row, key)
        if row["finished"]:
            return self._say(f"{name} has ended; runner rerun {row['id']} runs it again")
        if key == "c":
            self._question = lambda: self._change("cancel", row, {}, f"{name}: asked to end")
            self.view.said, self.view.asks = (
                f"Cancel {name}? y or n: {row['name']}",
                True,
            )
            return None
        if row["state"]["text"] != "queued":
            return self._say(f"{name} runs already: there is nothing to wait for")
        if key == "h":
            verb, said = ("release", "waits again") if row["held"] else ("hold", "is held")
            return self._change(verb, row, {}, f"{name} {said}")
        priority = row["priority"] + (-1 if key == "-" else 1)
        return self._change("priority", row, {"priority": priority}, f"{name}: priority {priority}")

    def _change(self, verb: str, row: dict[str, Any], body: dict[str, Any], said: str) -> None:
        def ask() -> Callable[[], None]:
            self._api.post(f"/jobs/{verb}?brief=1", {"ids": [row["id"]], **body})
            work = _overview(self._api)

            def done() -> None:
                self._say(said)
                self._worked(work)

            return done

        self._run(ask)

    def _leave_for(self, console: Console, row: dict[str, Any], key: str) -> None:
        """Another command on the usual screen, until it ends; then a key comes back."""
        console.give_back()
        output.put("\x1b[2J\x1b[H")
        sys.stdout.flush()
        try:
            self._other(row, key)
        except KeyboardInterrupt:
            pass
        except errors.Problem as problem:
            output.say(f"runner: {problem.message}\n  hint: {problem.hint}")
        output.say("Enter comes back to runner top")
        sys.stdout.flush()
        try:
            sys.stdin.readline()
        except KeyboardInterrupt:
            pass
        console.take()
        self._drawn = []

    def _other(self, row: dict[str, Any], key: str) -> None:
        api = self._api_of_its_own()
        if key == "enter":
            from runner.cli import show

            show.show(["--box", self._api.box, str(row["id"])])
            return
        from runner.cli import logs

        attempt = max(1, int(api.get(f"/jobs/{row['id']}")["job"]["attempt"]))
        offset = logs.tail_offset(api, row["id"], attempt, TAIL_LINES) if row["started_at"] else 0
        logs.follow(api, row["id"], offset, pull=False, until_end=not row["finished"])

    # --- drawing ---

    def _draw(self, console: Console) -> None:
        """Only the lines that changed."""
        room, height = console.size()
        lines = [
            board.paint(line, room, self._colours, self._unicode) for line in board.screen(self.view, room, height)
        ]
        if console.fresh:
            console.fresh, self._drawn = False, []
            console.write(b"\x1b[2J")
        before = self._drawn + [""] * (len(lines) - len(self._drawn))
        out = "".join(
            f"\x1b[{place};1H{line}\x1b[K"
            for place, (line, was) in enumerate(zip(lines, before, strict=False), 1)
            if line != was or not self._drawn
        )
        self._drawn = lines
        console.write(out.encode("utf-8" if self._unicode else "ascii", "replace"))


def events(pieces: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """(kind, data) of a stream of server-sent events, as the box sends them: a line of each."""
    rest = b""
    for piece in pieces:
        rest += piece
        *whole, rest = rest.split(b"\n\n")
        for block in whole:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
            if b"event" in fields:
                yield fields[b"event"].decode("ascii", "replace"), fields.get(b"data", b"").decode("utf-8", "replace")
