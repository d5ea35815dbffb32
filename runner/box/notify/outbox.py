"""What is not told yet, and who tells it: a task for each way, so that one which hangs is in nobody's way.

At least once: a message comes into the outbox in the transaction that records what it tells, and leaves it when its way
took it, or refused it for good. A daemon that is killed before it could note that leaves the message to the next one,
which tells it again: twice is a nuisance, never is a GPU that burns. What leaves untold (refused, too old, too many) is
said in the daemon's log.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict

from runner.box.notify import messages, post, ways
from runner.box.notify.messages import Message
from runner.box.notify.ways import Outcome, Way
from runner.box.settings import Settings
from runner.box.store import Store
from runner.errors import Problem
from runner.model import Job, Notice

KEY = "outbox"  # in the database
PAUSES = (5.0, 30.0, 120.0, 600.0, 1800.0)  # seconds after one, two, ... failures in a row
WAITING_MAX = 100  # messages of a way; of more the oldest go, and what is critical last
OLD = 86400.0  # seconds after which nobody wants to know any more
SECONDS = 15.0  # that a request or a command may take
SAID_MAX = 4096  # bytes read of what it says


class Outbox:
    def __init__(self, settings: Settings, store: Store, report: Callable[[str], None]) -> None:
        """BadSettings. report: a line for the daemon's log."""
        self.ways, self._kinds = ways.chosen(settings), ways.kinds(settings)
        self._box, self._store, self._report = settings.name, store, report
        self.waiting: dict[str, list[Message]] = {way.name: [] for way in self.ways}
        self._woken = {way.name: asyncio.Event() for way in self.ways}
        self.pauses: Sequence[float] = PAUSES
        self._kept = ""  # what was handed to a transaction, last
        self._recover()

    def _recover(self) -> None:
        """What an earlier daemon did not get to tell; of ways that are not set any more nothing is kept."""
        with suppress(ValueError, TypeError, AttributeError):
            kept = json.loads(self._store.remembered(KEY) or "{}")
            for name, found in kept.items():
                if name in self.waiting:
                    self.waiting[name] = [Message(**each) for each in found]
                    self._woken[name].set()

    # --- in ---

    def noticing(self, notices: Iterable[Notice]) -> dict[str, str]:
        """What is to be remembered in the transaction that records these."""
        return self._kept_with(self._of_notices(notices))

    def noticed(self, notices: Iterable[Notice]) -> None:
        self._put(self._of_notices(notices))

    def ending(self, jobs: Iterable[Job]) -> dict[str, str]:
        """What is to be remembered in the transaction that records their ends."""
        return self._kept_with(self._of_ends(jobs))

    def ended(self, jobs: Iterable[Job]) -> None:
        """These jobs are over, and the database says so."""
        self._put(self._of_ends(jobs))

    def _of_notices(self, notices: Iterable[Notice]) -> list[Message]:
        return [messages.of_notice(each, self._box) for each in notices if each.kind in self._kinds]

    def _of_ends(self, jobs: Iterable[Job]) -> list[Message]:
        now = time.time()
        found = [messages.of_end(job, self._box, now) for job in jobs]
        return [each for each in found if each is not None and each.kind in self._kinds]

    def _kept_with(self, new: Sequence[Message]) -> dict[str, str]:
        self._kept = self._dumped(self._with(new)) if new else ""
        return {KEY: self._kept} if new else {}

    def _with(self, new: Sequence[Message]) -> dict[str, list[Message]]:
        """The outbox with more in it, as far as it takes them."""
        found = {}
        for name, waiting in self.waiting.items():
            more = [*waiting, *new]
            found[name] = messages.merged(more, self._box) if len(more) > WAITING_MAX else more
        return found

    def _put(self, new: Sequence[Message]) -> None:
        if not new:
            return
        more = self._with(new)
        for name, waiting in self.waiting.items():
            if len(more[name]) > WAITING_MAX:
                self._report(f"{name}: {len(more[name]) - WAITING_MAX} notifications are too many and were not sent")
            waiting[:] = messages.bounded(more[name], WAITING_MAX)
            self._woken[name].set()
        if self._dumped(more) != self._kept:  # else it was recorded with what it tells
            self._save()

    def _dumped(self, waiting: Mapping[str, Sequence[Message]]) -> str:
        kept = {name: messages.bounded(found, WAITING_MAX) for name, found in waiting.items()}
        return json.dumps({name: [asdict(each) for each in found] for name, found in kept.items()})

    def _save(self) -> None:
        try:
            self._store.remember(KEY, self._dumped(self.waiting))
        except Problem as problem:  # then it is only in memory
            self._report(f"what is to be told could not be kept: {problem.message}")

    # --- out ---

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for way in self.ways:
                group.create_task(self._keep(way))

    async def _keep(self, way: Way) -> None:
        """What goes wrong here is told, and ends neither this way nor another."""
        while True:
            try:
                await self._serve(way)
            except Exception as error:
                self._report(f"{way.name}: {type(error).__name__}")  # its words might hold the address
                await asyncio.sleep(self.pauses[-1])
                self._woken[way.name].set()

    async def _serve(self, way: Way) -> None:
        waiting, woken, failures = self.waiting[way.name], self._woken[way.name], 0
        while True:
            await woken.wait()
            woken.clear()
            while message := self._next(way):
                outcome = await tell(way, message, self._box)
                if not outcome.ok and outcome.again:
                    pause = self.pauses[min(failures, len(self.pauses) - 1)]
                    if not failures:
                        self._report(f"not told yet: {outcome.said}; {len(waiting)} wait")
                    failures += 1
                    await asyncio.sleep(pause)
                    continue
                if not outcome.ok:
                    self._report(f"not told: {message.title}: {outcome.said}; {outcome.hint}")
                failures = 0
                with suppress(ValueError):
                    waiting.remove(message)
                self._save()

    def _next(self, way: Way) -> Message | None:
        """The oldest that is not too old; many ends of jobs as one."""
        waiting = self.waiting[way.name]
        fresh = [each for each in waiting if time.time() - each.at < OLD]
        if len(fresh) < len(waiting):
            self._report(f"{way.name}: {len(waiting) - len(fresh)} notifications could not be sent within a day")
        fresh = messages.merged(fresh, self._box)
        if fresh != waiting:
            waiting[:] = fresh
            self._save()
        return waiting[0] if waiting else None

    async def test(self) -> list[Outcome]:
        """One message by each way, now, once."""
        message = messages.a_test(self._box, time.time())
        return list(await asyncio.gather(*(tell(way, message, self._box) for way in self.ways)))


async def tell(way: Way, message: Message, box: str) -> Outcome:
    """Try once."""
    try:
        return await _told(way, message, box)
    except OSError as error:  # no process for it: too many of them, no memory
        return Outcome(False, f"{way.name}: no process for it: {error.strerror}", "it is tried again by itself", True)


async def _told(way: Way, message: Message, box: str) -> Outcome:
    if way.argv:
        data = json.dumps(ways.fields(message, box)).encode()
        return await _command(way, data, ways.environment(message, box, os.environ))
    asked = {**ways.request(way, message, box), "seconds": SECONDS - 2}
    command = (sys.executable, "-I", "-S", post.__file__)
    code, said = await _run(command, json.dumps(asked).encode(), dict(os.environ))
    try:
        answer = json.loads(said) if code == 0 else {}
    except ValueError:
        answer = {}
    return ways.answered(way, answer.get("status"), answer.get("error", "no answer in time"))


async def _command(way: Way, data: bytes, env: dict[str, str]) -> Outcome:
    try:
        code, said = await _run(way.argv, data, env)
    except OSError as error:
        hint = "is it there, and may the daemon's user run it?"
        return Outcome(False, f"command: {way.argv[0]} can't be started: {error.strerror}", hint)
    first = said.decode(errors="replace").strip().partition("\n")[0]
    return ways.ended(way, code, messages.plain(first, 200), SECONDS)


async def _run(argv: Sequence[str], data: bytes, env: dict[str, str]) -> tuple[int | None, bytes]:
    """(its exit code, the start of what it said); None: it was killed, with what it had started, after SECONDS."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=env, cwd="/", start_new_session=True
    )
    said = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            await _talk(process, data, said)
            return await process.wait(), bytes(said)
    except BaseException as error:  # in time or cancelled: whatever is left of it goes
        code = process.returncode  # what it started may still hold its output
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # what became a group of its own may still hold the other end
        if not isinstance(error, TimeoutError):
            raise
        return code, bytes(said)


async def _talk(process: asyncio.subprocess.Process, data: bytes, said: bytearray) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(data)
        await process.stdin.drain()
    process.stdin.close()
    while piece := await process.stdout.read(SAID_MAX):
        said += piece[: SAID_MAX - len(said)]
