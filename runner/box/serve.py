"""The wiring: the only place that knows everybody. Settings, state, engine, daemon, API; and the way out."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import dashboard
import runner
from runner.box import chores, premises, settings, tariff
from runner.box.api import House
from runner.box.auth import Gate, Members
from runner.box.choices import Choices
from runner.box.code import Blobs, Trees
from runner.box.custody import Custody, Launched
from runner.box.daemon import Daemon
from runner.box.diary import Diary
from runner.box.engines.plain import Plain
from runner.box.engines.systemd import Systemd
from runner.box.envs import Environments
from runner.box.envs.builder import Builder
from runner.box.envs.conda import Conda
from runner.box.envs.unit import UnitBuilder
from runner.box.envs.wheels import Driver
from runner.box.frozen import Parents, freeze
from runner.box.gpus.collectors import Door, spawner
from runner.box.gpus.exports import JobFiles
from runner.box.gpus.frames import Frame
from runner.box.gpus.meter import Step
from runner.box.gpus.watch import Silence, Watch, driver_there
from runner.box.history import History
from runner.box.launches import caches
from runner.box.prepare import Preparation
from runner.box.recipes import Recipes
from runner.box.retention import Retention
from runner.box.secrets import kept
from runner.box.server import Server
from runner.box.sets import Sets
from runner.box.settings import SYSTEMD, Settings
from runner.box.store import Store
from runner.box.tokens import Tokens
from runner.box.turns import Hints, Turns
from runner.box.wishes import Wishes
from runner.box.workers import Workers
from runner.errors import Problem
from runner.model import Notice, Resources
from runner.paths import COLLECTOR_SOCKET

if TYPE_CHECKING:
    from runner.box.demo.stage import Actors, Stage
    from runner.box.notify import Outbox

PARENT_SECONDS = 1.0
KNOWN_SECONDS = 6.0  # that who asks about GPUs waits for the first look at them; a driver may take long to wake


def serve(by_command: bool, ready: int | None, demo: bool = False) -> int:
    """Run the daemon; returns the code to exit with. Problem when it can't begin. demo: play, on a state of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who started us may ignore it, and then no child can be waited for
    play = _stage() if demo else None
    chosen = settings.load() if play is None else play.settings
    outside = dict(os.environ)
    os.environ.update(caches(chosen, outside))  # from where jobs and builds take them
    premises.take(chosen)  # held until this process ends or becomes another
    diary = Diary(chosen.state.daemon_log)
    try:
        with asyncio.Runner() as loop:
            end = loop.run(_run(chosen, diary, by_command, ready, play))
    except Problem as problem:
        diary.write(f"it could not start: {problem.message}")
        raise
    if end.again:
        os.execve(sys.executable, [sys.executable, *_again(sys.orig_argv[1:])], outside)
    return end.problem.exit_code if end.problem is not None else 0


def _stage() -> Stage:
    from runner.box.demo.stage import prepare  # only who plays pays for it

    return prepare()


def _again(arguments: list[str]) -> list[str]:
    """Our own arguments once more; whoever waited for `ready` has got it."""
    if "--ready-fd" in arguments:
        at = arguments.index("--ready-fd")
        arguments = arguments[:at] + arguments[at + 2 :]
    return arguments


class _End:
    """How it ends."""

    def __init__(self, diary: Diary) -> None:
        self._diary = diary
        self.wanted = asyncio.Event()
        self.again = False
        self.idle = False  # nobody asked for it
        self.problem: Problem | None = None

    def leave(self, again: bool = False) -> None:
        self.again = again
        self.wanted.set()

    def idly(self) -> None:
        self.idle = True
        self.leave()

    def doomed(self, problem: Problem) -> None:
        self._diary.write(f"the daemon ends, jobs go on: {problem.message}; {problem.hint}")
        self.problem = problem
        self.wanted.set()


async def _run(chosen: Settings, diary: Diary, by_command: bool, ready: int | None, play: Stage | None) -> _End:
    """Everything, made in the order in which one depends on another, and closed in the other direction."""
    with ExitStack() as closing:
        end = _End(diary)
        made = _Made(chosen, diary, closing, play)
        turns = Turns(made.daemon, end.doomed)
        made.workers.wake = turns.wake
        hints = Hints(chosen.state, chosen.state.events, turns)
        closing.callback(hints.close)
        house = made.house(turns, end)
        if play is not None:
            made.daemon.gpus.told = made.told(house.beat)
            play.enter(made.daemon, house.wishes)
        outbox = made.outbox
        if outbox is not None:
            house.tell_test = outbox.test
        house.gpus_known = made.watch_gpus(turns, closing, house.beat)
        house.pages = pages = dashboard.Pages(house)
        server = Server(house, pages.add_to)
        sock = premises.listen(chosen.socket, group=chosen.engine == SYSTEMD)
        await server.begin(sock)
        begun = []
        if chosen.https and not server.open_porch(chosen, diary):
            begun.append(asyncio.create_task(chores.open_porch_later(server, chosen, diary)))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end.leave)
        if isinstance(made.engine, Plain):
            made.engine.connect()
        turns.wake()
        diary.write(f"{runner.__version__} listens on {chosen.socket}")
        _tell(ready, chosen, play)
        begun += [
            asyncio.create_task(chores.keep_house(house, diary)),
            asyncio.create_task(chores.watch_host(house, diary)),
        ]
        if play is not None:
            begun.append(asyncio.create_task(play.play(turns.wake, diary.write)))
        if outbox is not None:
            begun.append(asyncio.create_task(outbox.run()))
        if by_command and not chosen.https:  # nobody could start it from elsewhere
            begun.append(asyncio.create_task(chores.end_when_idle(house, made.workers, end.idly)))
        gc.collect()
        gc.freeze()
        await end.wanted.wait()
        turns.stop()
        made.engine.close()
        with suppress(FileNotFoundError):
            os.unlink(chosen.socket)
        await server.finish()
        if end.idle and made.daemon.book.jobs:
            end.again = True  # a job came in while the door was closing
        for chore in begun:
            chore.cancel()
    return end


class _Made:
    """What the daemon is made of."""

    def __init__(self, chosen: Settings, diary: Diary, closing: ExitStack, play: Stage | None) -> None:
        """play: instead of real attempts and real GPUs."""
        state = chosen.state
        self.settings, self.play = chosen, play
        self.store = Store(state.database)
        closing.callback(self.store.close)
        premises.refuse_own_job(self.store.box_id)
        self.diary = diary
        self.workers = Workers(asyncio.get_running_loop())
        self.pyz = freeze(state.supervisor)
        self.engine = self._engine(closing) if play is None else play.engine
        closing.callback(self.engine.close)
        self.custody: Custody = Custody(state)
        builder = Builder()
        if isinstance(self.engine, Systemd):
            self.custody, builder = Launched(self.engine, diary.write), UnitBuilder(self.engine)
        self.blobs = Blobs(state.blobs)
        self.trees = Trees(state.trees, self.blobs, self.custody.hand_over, self.custody.remove)
        limit = chosen.build_minutes * 60
        conda = Conda(chosen.conda_folders)
        self.environments = Environments(
            state.envs, chosen.base_python, time_limit=limit, builder=builder, driver=self._driver, conda=conda
        )
        self.recipes = Recipes(self.blobs, chosen.base_python, self._driver, conda)
        self.base_bin = premises.base_bin(chosen)
        self.daemon = Daemon(chosen, self.store, self.engine, self._preparation(), self._bin_dir, diary.write)
        self.sets = Sets(chosen)
        self.daemon.data = lambda: self.sets.view
        self.daemon.recover()
        self.trees.sweep(self.daemon.book.active)  # one that waits may have run in its tree before
        self.recipes.recover(self.daemon.book.jobs.values())
        self.history = self._history(closing)
        self.outbox = self._outbox()

    def _driver(self) -> Driver | None:
        return self.daemon.gpus.driver()

    def _history(self, closing: ExitStack) -> History:
        """It hears what the GPUs did; whatever is the matter with it is no trouble of the queue's."""
        history, gpus = History(self.settings, self.workers.background, self.diary.write), self.daemon.gpus
        closing.callback(history.close)
        closing.callback(self.diary.guarded(gpus.save))
        history.counts = gpus.meter.count
        for uuid, count in history.begin().items():
            gpus.meter.resume(uuid, count)
        return history

    def _outbox(self) -> Outbox | None:
        """Who tells it elsewhere; None where the settings name nobody."""
        chosen, daemon = self.settings, self.daemon
        if not (chosen.notify_ntfy or chosen.notify_token or chosen.notify_webhook or chosen.notify_command):
            return None
        from runner.box.notify import Outbox  # only who wants it has it in memory

        outbox, here = Outbox(chosen, self.store, self.diary.write), daemon.gpus.noticed
        elsewhere = self.diary.guarded(outbox.noticed)
        daemon.ending, daemon.ended = self.diary.guarded(outbox.ending), self.diary.guarded(outbox.ended)
        daemon.gpus.noticing = self.diary.guarded(outbox.noticing)

        def noticed(notices: Sequence[Notice]) -> None:
            here(notices)
            elsewhere(notices)

        daemon.gpus.noticed = noticed
        return outbox

    def told(self, beat: Callable[[], None]) -> Callable[[Frame, Sequence[Step]], None]:
        """Who else hears what was read."""
        gpus, files = self.daemon.gpus, JobFiles(self.settings.state.gpu_jobs)
        remember = self.diary.guarded(self.history.heard)
        label = self.diary.guarded(lambda: files.write(gpus.by_index()))

        def told(frame: Frame, steps: Sequence[Step]) -> None:
            remember(frame, steps)
            label()
            asyncio.get_running_loop().call_soon(beat)  # when the cards know of it, too

        return told

    def _engine(self, closing: ExitStack) -> Plain | Systemd | Actors:
        state, capacity = self.settings.state, Resources(self.settings.cpus, self.settings.memory_bytes, 0)
        if self.settings.engine == SYSTEMD:
            _let_read(self.pyz)
            return Systemd(state, capacity, listen=self._listen, report=self.diary.write)
        parents = Parents(self.pyz, self.diary.fd)
        closing.callback(parents.wait, PARENT_SECONDS)
        return Plain(state, capacity, parents.spawn, self._listen, self.diary.write)

    def _listen(self, link: socket.socket) -> Callable[[], object]:
        loop = asyncio.get_running_loop()
        loop.add_reader(link, lambda: self.workers.wake())
        return lambda: loop.remove_reader(link)

    def _preparation(self) -> Preparation:
        if self.play is not None:
            return self.play.preparation()
        return Preparation(
            ready=self.environments.ready,
            build=lambda name: self.environments.build(self.recipes.recipe(name)),
            make_tree=self.trees.make,
            remove_tree=self.trees.remove,
            background=self.workers.background,
            trees_ahead=self.settings.trees_ahead,
            spare=self.trees.prepare,
            label=self.recipes.label,
        )

    def _bin_dir(self, environment: str | None) -> str:
        if environment is None or self.play is not None:
            return self.base_bin
        self.environments.touch(environment)
        return self.environments.bin_dir(environment)

    def watch_gpus(self, turns: Turns, closing: ExitStack, beat: Callable[[], None]) -> Callable[[], Awaitable[None]]:
        """Have the GPUs watched; returns what waits until they are known, or why they are not."""
        gpus, known, play = self.daemon.gpus, asyncio.Event(), self.play
        gpus.told = self.told(beat)

        def heard(value: object) -> None:
            known.set()
            if play is not None:
                play.heard(value)
            if isinstance(value, Silence):
                self.history.silent(value.words)
            if gpus.heard(value, time.time()):
                turns.wake()

        def expected() -> bool:
            return bool(gpus.cards.known) or driver_there()

        if play is not None:
            os.environ.update(play.environment())
        options = play.files.options if play is not None else []
        own = self.settings.engine != SYSTEMD
        spawn = spawner(self.diary.fd, *options) if own else Door(COLLECTOR_SOCKET)
        watch = Watch(spawn, heard, self.diary.write, expected)
        closing.callback(watch.close)
        gpus.words, gpus.probe, gpus.look_closely = watch.words, watch.probe, watch.look_closely
        gpus.hint = lambda: watch.trouble.hint if watch.trouble is not None else ""
        watch.begin()
        if not watch.looks:
            known.set()

        async def until_known() -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(known.wait(), KNOWN_SECONDS)

        return until_known

    def _apply(self, chosen: Settings) -> None:
        """What may change while the daemon runs has changed."""
        self.settings = self.daemon.settings = chosen
        self.history.keep(chosen)
        self.daemon.gpus.ledger.price(tariff.parse(chosen.tariff), chosen.currency)

    def _watcher(self) -> list[str]:
        """The command that waits for an adopted process, from the frozen copy: it outlives upgrades."""
        return [getattr(sys, "_base_executable", sys.executable), "-I", "-S", self.pyz, "adopt"]

    def house(self, turns: Turns, end: _End) -> House:
        tokens = Tokens(self.store)
        return House(
            daemon=self.daemon,
            wishes=Wishes(self.daemon, self.recipes.environment, turns.wake, self._watcher()),
            blobs=self.blobs,
            environments=self.environments,
            recipes=self.recipes,
            retention=Retention(self.daemon, self.blobs, self.environments, self.custody, self.workers.call),
            custody=self.custody,
            gate=Members(tokens) if self.settings.engine == SYSTEMD else Gate(tokens=tokens),
            tokens=tokens,
            secrets=kept(self.engine, self.settings.state),
            sets=self.sets,
            choices=Choices(lambda: self.daemon.settings, self._apply),
            history=self.history,
            call=self.workers.call,
            leave=end.leave,
            doomed=end.doomed,
        )


def _let_read(archive: str) -> None:
    """A job that waits for an adopted process runs it as the jobs' user."""
    os.chmod(archive, 0o644)
    os.chmod(os.path.dirname(archive), 0o711)


def _tell(ready: int | None, chosen: Settings, play: Stage | None) -> None:
    if ready is not None:
        try:
            os.write(ready, b"ready\n")
            os.close(ready)
        except OSError:
            pass  # whoever started us is gone
    if play is not None:
        print(play.invitation, flush=True)  # noqa: T201
    elif sys.stdout is not None and sys.stdout.isatty():
        print(f"the box {chosen.name} listens on {chosen.socket}; Ctrl-C ends it, jobs go on", flush=True)  # noqa: T201
