"""A daemon's core as a process of its own, for what is done to it from outside: power cuts, full disks, strace.

writer.py STATE ACKS               submit and run jobs for ever; ACKS gets `job N` and `end N CODE`, once durable
writer.py STATE ACKS full RELEASE  the steps of the test of a full disk
writer.py STATE ACKS once GO       one job to its end; begins when the file GO exists
"""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import time
from collections.abc import Callable

from runner import files, words
from runner.box import settle as settle_module
from runner.box.daemon import Daemon
from runner.box.engines.plain import Plain
from runner.box.prepare import Preparation
from runner.box.settings import Settings
from runner.box.store import Store
from runner.box.store import database as store_module
from runner.box.wishes import Wishes
from runner.errors import DiskFull, Problem, StateDamaged
from runner.job import parent
from runner.model import JobSpec, Principal, Resources, Submission
from runner.paths import StateDir

CODE = 7
ME = Principal(0, "tester", "admin")


class Writer:
    def __init__(self, state: str, acks: str) -> None:
        self.state = StateDir(state)
        for path in (self.state, self.state.jobs):
            files.make_dir(path)
        self.acks = os.open(acks, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        self.events = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if os.path.exists(self.state.events):
            os.unlink(self.state.events)
        self.events.bind(self.state.events)
        self.events.settimeout(0.02)
        settle_module.START_GRACE = 1.0
        ours = Settings(self.state, f"{state}/s", cpus=2, memory_bytes=1 << 30, free_bytes=0, data=state)
        if not os.path.exists(self.state.ballast):
            with open(self.state.ballast, "wb") as file:  # smaller than the real one
                file.write(b"\0" * (256 << 10))
        self.store = Store(self.state.database)
        preparation = Preparation(
            lambda environment: True, lambda environment: None, lambda job, snapshot: None, lambda job: None,
            lambda work, done: (work(), done(None))[1], 4,
        )  # fmt: skip
        engine = Plain(self.state, Resources(2, 1 << 30, 0), _spawn)
        self.daemon = Daemon(ours, self.store, engine, preparation, lambda environment: "/usr/bin", lambda line: None)
        self.wishes = Wishes(self.daemon, lambda spec: None, lambda: None)

    def say(self, text: str) -> None:
        os.write(self.acks, f"{text}\n".encode())

    def submit(self, script: str, key: str | None = None, **env: str) -> int:
        done, _ = self.wishes.submit(ME, Submission(JobSpec(["sh", "-c", script], env=env)), key, "")
        return done.id

    def turn(self) -> None:
        """As the daemon's own loop takes them: a disk that failed ends it, anything else is forgotten."""
        try:
            self.daemon.pass_once(time.time())
        except StateDamaged:
            os._exit(74)
        except (Problem, OSError) as error:
            sys.stderr.write(f"{error}\n")
            self.daemon.reload()
        try:
            self.events.recv(100)
        except TimeoutError:
            pass

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.turn()

    def state_of(self, job: int) -> str:
        return self.store.states([job])[job]

    # --- what it is run for ---

    def for_ever(self) -> None:
        self.daemon.recover()
        waiting: set[int] = set()
        while True:
            while len(waiting) < 4:
                job = self.submit("exit $((RUNNER_JOB_ID % 50))")
                self.say(f"job {job}")
                waiting.add(job)
            self.turn()
            for job in self.store.jobs(waiting):
                if job.state in words.FINISHED:
                    self.say(f"end {job.id} {job.exit_code}")
                    waiting.discard(job.id)

    def on_a_full_disk(self, release: str) -> None:
        self.daemon.recover()
        script = f'until [ -e "$RELEASE" ]; do sleep 0.02; done; exit {CODE}'
        first = self.submit(script, RELEASE=release)
        self.until(lambda: self.state_of(first) == words.RUNNING)
        self.say("running")
        self.until(lambda: os.path.exists(f"{release}.full"))
        try:
            self.submit("exit 0", LARGE="x" * 100_000)
        except DiskFull:
            self.say("refused")
        self.until(lambda: self.state_of(first) in words.FINISHED)
        self.say("ended")
        self.until(lambda: os.path.exists(f"{release}.free"))
        second = self.submit(script, RELEASE=release)
        self.until(lambda: self.state_of(second) in words.FINISHED)
        self.say("done")

    def once(self, go: str) -> None:
        ledger = f"{os.path.dirname(go)}/ledger"
        self.say("waiting")
        while not os.path.exists(go):
            time.sleep(0.002)
        self.daemon.recover()
        script = f'echo "$RUNNER_JOB_ID $RUNNER_ATTEMPT $$" >>"$LEDGER"; exit {CODE}'
        self.say(f"job {self.submit(script, 'the key', LEDGER=ledger)}")
        self.until(lambda: not self.daemon.book.jobs)
        self.store.close()


def _spawn(link: socket.socket) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(link.fileno(), 0)
            os.closerange(3, 64)
            parent.main()
        finally:
            os._exit(0)
    return pid


def _careless(level: str) -> None:
    """A database that promises what the disk does not have yet: to see that the power cuts would notice."""

    def configure(connection: sqlite3.Connection, record: object) -> None:
        sound(connection, record)
        connection.execute(f"PRAGMA synchronous = {level}")

    sound = store_module._configure
    store_module._configure = configure


def main() -> None:
    if "CRASH_SYNCHRONOUS" in os.environ:
        _careless(os.environ["CRASH_SYNCHRONOUS"])
    writer = Writer(*sys.argv[1:3])
    match sys.argv[3:]:
        case ["full", release]:
            writer.on_a_full_disk(release)
        case ["once", go]:
            writer.once(go)
        case _:
            writer.for_ever()


if __name__ == "__main__":
    main()
