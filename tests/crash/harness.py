"""Scenarios of death: a daemon's core is forked, killed at a named point, recovered by the next one, and judged.

The truth is what the jobs themselves wrote: a line in an O_APPEND ledger per start. A job waits for a gate, a FIFO
that the scenario fills: nothing sleeps. The scenario is a subreaper: what it can't reap at the end is an orphan.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from crash.arms import Arm, Trigger
from runner import files, words
from runner.box import settle as settle_module
from runner.box.daemon import Daemon
from runner.box.engines.plain import Plain
from runner.box.prepare import Preparation
from runner.box.settings import Settings
from runner.box.store import Store
from runner.box.wishes import Wishes
from runner.job import parent, processes, supervisor
from runner.model import After, JobSpec, Principal, Resources, Submission
from runner.paths import StateDir

CODE = 7  # what every job ends with when it is let
LIVES = 12  # daemons before a scenario counts as stuck
LIFE_SECONDS = 8.0  # of one daemon
ME = Principal(0, "tester", "admin")
BEGIN = 'echo "$RUNNER_JOB_ID $RUNNER_ATTEMPT $PPID" >>"$LEDGER"; '
GATE = 'read _ <"$GATE"; '
LEFTOVER = """setsid sh -c 'trap "" TERM; read _ <"$NEVER"' & """

# Points at which a killed supervisor leaves a job whose end nobody can know.
UNKNOWABLE = {"s.launched", "s.stopping", "s.reaped", "s.emptied", "put.exit.written"}


@dataclass(frozen=True)
class Kind:
    """What happens in a scenario besides the deaths."""

    name: str
    jobs: int = 1
    script: str = BEGIN + GATE + f"exit {CODE}"
    gate: str = "open"  # open from the start | opened after the first daemon | never
    cancel: str = ""  # when it "starts", when it "runs", or when it "waits" for the second daemon
    reboot: bool = False  # once the ledger shows a start
    chain: bool = False  # each job waits for the one before it
    spec: dict[str, Any] = field(default_factory=dict)
    ends: tuple[tuple[str, int | None], ...] = ((words.FAILED, CODE),)  # (state, exit code) of an undisturbed job
    starts: int = 1  # of an undisturbed job


ONE = Kind("one job")
KINDS = {
    kind.name: kind
    for kind in (
        ONE,
        Kind("daemon away", gate="later"),
        Kind("two jobs", jobs=2),
        Kind("dependency", jobs=2, chain=True),
        Kind("cancel", gate="never", cancel="runs", ends=((words.CANCELLED, None),)),
        Kind("cancel at once", gate="never", cancel="starts", ends=((words.CANCELLED, None),)),
        Kind("cancel waiting", gate="never", cancel="waits", ends=((words.CANCELLED, None),)),
        Kind("time limit", gate="never", spec={"time_limit": 0.1}, ends=((words.TIMED_OUT, None),)),
        Kind("two that last", 2, gate="never", spec={"time_limit": 0.8}, ends=((words.TIMED_OUT, None),)),
        Kind("retry", spec={"retries": 1, "retry_on": ["exit_code"]}, starts=2),
        Kind("requeue", gate="later", reboot=True, spec={"requeue": True}, starts=2),
        Kind(
            "reboot", gate="later", reboot=True, ends=((words.LOST, None), (words.FAILED, CODE))
        ),  # before it, after it
        Kind("leftover", script=BEGIN + LEFTOVER + GATE + f"exit {CODE}"),
    )
}


@dataclass(frozen=True)
class Scenario:
    kind: str = ONE.name
    daemon: tuple[Arm, ...] = ()  # for the first daemon
    run: tuple[Arm, ...] = ()  # for the parent, supervisors and their children, whoever's
    recovery: tuple[Arm, ...] = ()  # for the second daemon
    twice: bool = False  # every supervisor is asked for twice, as after a packet that only seemed lost

    def __str__(self) -> str:
        arms = {"daemon": self.daemon, "run": self.run, "recovery": self.recovery}
        said = [f"{role} {'+'.join(map(str, some))}" for role, some in arms.items() if some]
        return f"{self.kind}: " + (", ".join(said) or "undisturbed") + (", asked twice" if self.twice else "")


@dataclass
class Outcome:
    scenario: str
    faults: list[str] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    lives: int = 0
    starts: int = 0
    ends: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Stage:
    """Where one scenario plays: a state directory, a ledger, a gate."""

    def __init__(self, scenario: Scenario, template: str) -> None:
        self.scenario = scenario
        self.kind = KINDS[scenario.kind]
        self.folder = tempfile.mkdtemp(prefix="crash-", dir=_memory())
        self.state = StateDir(f"{self.folder}/state")
        os.mkdir(self.state)
        os.mkdir(self.state.jobs)
        open(self.state.ballast, "x").close()  # the real one is 64 MiB
        _own_database(template, self.state.database)
        self.trigger = Trigger(self.folder)
        self.ledger, self.acks = f"{self.folder}/ledger", f"{self.folder}/acks"
        self.gate, self.never = f"{self.folder}/gate", f"{self.folder}/never"
        for path in (self.gate, self.never):
            os.mkfifo(path)
        self.gate_fds = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in (self.gate, self.never)]
        if self.kind.gate == "open":
            self.open_gate()

    def open_gate(self) -> None:
        os.write(self.gate_fds[0], b"\n" * 64)

    def close(self) -> None:
        for fd in self.gate_fds:
            os.close(fd)
        shutil.rmtree(self.folder)

    # --- what the jobs and the clients know ---

    def started(self) -> list[tuple[int, int]]:
        """(job, attempt) of every start, as the jobs themselves wrote it."""
        return [(int(job), int(attempt)) for job, attempt, _ in _lines(self.ledger)]

    def acknowledged(self, what: str) -> set[int]:
        return {int(job) for said, job in _lines(self.acks) if said == what}

    def acknowledge(self, what: str, job: int) -> None:
        fd = os.open(self.acks, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        os.write(fd, f"{what} {job}\n".encode())
        os.close(fd)

    # --- a daemon's life ---

    def live(self, number: int) -> int:
        """Fork a daemon; its wait status."""
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = Life(self, number).run()
            except BaseException:
                import traceback

                with open(f"{self.folder}/story", "a") as story:
                    traceback.print_exc(file=story)
            finally:
                os._exit(code)
        return os.waitpid(pid, 0)[1]

    def power_off(self) -> None:
        """End everything that the scenario ever forked, at once."""
        while not processes.reap():
            processes.kill(processes.descendants(os.getpid()))
            time.sleep(0.001)


class Life:
    """One daemon, from recovery to its death or to the last job's end."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.stage, self.number, self.kind = stage, number, stage.kind
        self.aged = False
        scenario = stage.scenario
        stage.trigger.set("none", ())
        settings = Settings(
            state=stage.state, socket=f"{stage.state}/s", cpus=2, memory_bytes=1 << 30, base_python="/bin/sh",
            free_bytes=0, data=stage.folder,
        )  # fmt: skip
        self.events = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if os.path.exists(stage.state.events):
            os.unlink(stage.state.events)
        self.events.bind(stage.state.events)
        store = Store(stage.state.database)
        self.engine = Plain(stage.state, Resources(2, 1 << 30, 0), self.spawn)
        if scenario.twice:
            ask = self.engine._ask
            self.engine._ask = lambda directory: (ask(directory), ask(directory))[0]  # type: ignore[method-assign]
        preparation = Preparation(
            lambda environment: True, lambda environment: None, lambda job, snapshot: None, lambda job: None,
            lambda work, done: (work(), done(None))[1], 4,
        )  # fmt: skip
        self.daemon = Daemon(settings, store, self.engine, preparation, lambda environment: "/usr/bin", self.report)
        self.wishes = Wishes(self.daemon, lambda spec: None, lambda: None)

    def report(self, line: str) -> None:
        with open(f"{self.stage.folder}/story", "a") as story:
            story.write(f"{line}\n")

    def spawn(self, link: socket.socket) -> int:
        """As in the real one, but forked: the interpreter and our modules are already there."""
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(link.fileno(), 0)
                os.closerange(3, 64)
                self.stage.trigger.set("run", self.stage.scenario.run)
                parent.main()
            finally:
                os._exit(0)
        return pid

    def run(self) -> int:
        scenario = self.stage.scenario
        self.stage.trigger.set("daemon", (scenario.daemon, scenario.recovery, ())[min(self.number, 2)])
        self.daemon.recover()
        self.submit()
        deadline = time.monotonic() + LIFE_SECONDS
        if self.kind.cancel == "waits" and self.number:
            self.cancel()
        while self.daemon.book.jobs:
            self.daemon.pass_once(time.time())
            if self.kind.cancel:
                self.cancel()
            if self.kind.gate == "later" and self.number == 0 and self.stage.started():
                return 1  # dies at once, like by KILL
            if time.monotonic() > deadline:
                return 2
            self.listen()
            self.age()
        self.engine.close()
        self.daemon.store.close()
        return 0

    def submit(self) -> None:
        """A client that sends the same request, with the same key, until it is told that it arrived."""
        before = 0
        for place in range(self.kind.jobs):
            spec = JobSpec(["sh", "-c", self.kind.script], grace=0.3, **self.kind.spec)
            spec.env = {"LEDGER": self.stage.ledger, "GATE": self.stage.gate, "NEVER": self.stage.never}
            if self.kind.chain and before:
                spec.after = [After(before, any_end=True)]
            done, _ = self.wishes.submit(ME, Submission(spec), f"key {place}", "")
            before = done.id
            if done.id not in self.stage.acknowledged("job"):
                self.stage.acknowledge("job", done.id)

    def cancel(self) -> None:
        for job in list(self.daemon.book.jobs.values()):
            now = bool(self.number or self.stage.started()) or (self.kind.cancel == "starts" and job.attempt > 0)
            if now and job.id not in self.stage.acknowledged("cancel"):
                self.wishes.cancel(ME, [job.id], 0.3)
                self.stage.acknowledge("cancel", job.id)

    def listen(self) -> None:
        """Wait for a hint, and take all that came."""
        self.events.settimeout(0.02)
        try:
            self.events.recv(100)
            self.events.setblocking(False)
            while True:
                self.events.recv(100)
        except (BlockingIOError, TimeoutError):
            pass

    def age(self) -> None:
        """After a death without the daemon's, let the ten seconds have passed that it gives a supervisor."""
        if not self.aged and any(name.startswith("run.") for name in self.stage.trigger.fired()):
            self.aged = True
            for job in self.daemon._asked:
                self.daemon._asked[job] -= 60.0


# --- a scenario and its judgement ------------------------------------------------------------------------------------


def play(scenario: Scenario, template: str) -> Outcome:
    began = time.monotonic()
    stage = Stage(scenario, template)
    outcome = Outcome(str(scenario))
    os.environ.pop("GPUBOX_BOOT_ID", None)
    try:
        finished = False
        for number in range(LIVES):
            finished = stage.live(number) == 0
            outcome.lives = number + 1
            if finished:
                break
            if stage.kind.reboot and number == 0:
                stage.power_off()
                os.environ["GPUBOX_BOOT_ID"] = "the boot after"
            if number == 0 and stage.kind.gate == "later":
                stage.open_gate()
        if not finished:
            outcome.faults.append("stuck: not every job came to an end")
        outcome.faults += Judge(stage).faults()
        outcome.fired = stage.trigger.fired()
        outcome.starts = len(stage.started())
        outcome.ends = [f"{row['state']} {row['reason'] or ''}".strip() for row in Judge(stage).jobs]
        if outcome.faults and os.path.exists(f"{stage.folder}/story"):
            with open(f"{stage.folder}/story") as story:
                outcome.faults.append(f"it said: {story.read()[-1500:]}")
    finally:
        stage.power_off()
        stage.close()
    outcome.seconds = time.monotonic() - began
    return outcome


class Judge:
    """Everything that must hold at the end of any scenario, whatever died."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.kind = stage, stage.kind
        self.started = Counter(stage.started())
        self.fired = {_point(name) for name in stage.trigger.fired()}
        connection = sqlite3.connect(stage.state.database)
        connection.row_factory = sqlite3.Row
        self.jobs = connection.execute("SELECT * FROM jobs ORDER BY id").fetchall()
        self.attempts = connection.execute("SELECT * FROM attempts ORDER BY job_id, number").fetchall()
        connection.close()

    def faults(self) -> list[str]:
        found: list[str] = []
        for check in (
            self.doubled, self.lost, self.orphans, self.records, self.results, self.one_each, self.told, self.order,
        ):  # fmt: skip
            found += check()
        return found

    def doubled(self) -> list[str]:
        found = [f"doubled: attempt {key} started {count} times" for key, count in self.started.items() if count > 1]
        for job in self.jobs:
            attempts = {attempt for (job_id, attempt) in self.started if job_id == job["id"]}
            if len(attempts) > self.kind.starts:
                found.append(f"doubled: job {job['id']} ran in attempts {sorted(attempts)}")
        return found

    def lost(self) -> list[str]:
        known = {job["id"]: job["state"] for job in self.jobs}
        acknowledged = self.stage.acknowledged("job")
        found = [f"lost: job {job} was acknowledged and is not there" for job in acknowledged if job not in known]
        found += [f"lost: job {job} is still {state}" for job, state in known.items() if state not in words.FINISHED]
        if len(known) != self.kind.jobs:
            found.append(f"doubled: {len(known)} jobs for {self.kind.jobs} requests")
        return found

    def orphans(self) -> list[str]:
        deadline = time.monotonic() + 2.0
        while not processes.reap():
            if time.monotonic() > deadline:
                left = {pid: _command(pid) for pid in processes.descendants(os.getpid())}
                return [f"orphans: {left}"]
            time.sleep(0.001)
        return []

    def records(self) -> list[str]:
        """Each attempt: one end, which the database knows; an abandoned one never started."""
        found = []
        for row in self.attempts:
            key = (row["job_id"], row["number"])
            directory = self.stage.state.job(key[0]).attempt(key[1])
            if row["state"] in words.UNFINISHED:
                found.append(f"records: attempt {key} is still {row['state']} in the database")
            if not os.path.isdir(directory):
                found += [f"records: attempt {key} started without a directory"] if key in self.started else []
                continue
            end, started = files.get(directory, "exit"), files.get(directory, "started")
            abandoned = files.get(directory, "abandoned") is not None
            if (end is not None) == abandoned:
                found.append(f"records: attempt {key}: exit {end is not None}, abandoned {abandoned}")
            if abandoned and (started is not None or key in self.started):
                found.append(f"records: attempt {key} was abandoned and started")
            if key in self.started and started is None:
                found.append(f"records: attempt {key} ran without a `started` record")
            if end is not None and end["exit_code"] != row["exit_code"]:
                found.append(f"records: attempt {key}: code {end['exit_code']} on disk, {row['exit_code']} in rows")
            held = files.lock(directory.lock)
            if held is None:
                found.append(f"orphans: the lock of attempt {key} is held")
            else:
                os.close(held)
        return found

    def results(self) -> list[str]:
        """The right end, whenever somebody lived to know it."""
        found = []
        unknowable = bool(self.fired & UNKNOWABLE) or self.kind.reboot
        for job in self.jobs:
            end = (job["state"], job["exit_code"])
            ran = sum(count for (job_id, _), count in self.started.items() if job_id == job["id"])
            if job["state"] == words.LOST and unknowable:
                continue
            if end not in self.kind.ends:
                found.append(f"results: job {job['id']} ended as {end} ({job['reason']}), not as {self.kind.ends}")
            elif ran == 0 and not self.kind.cancel and job["reason"] != "time_limit":
                found.append(f"results: job {job['id']} ended as {end} and never ran")
            elif ran < self.kind.starts and not unknowable and self.kind.starts > 1:
                found.append(f"results: job {job['id']} ran {ran} times, not {self.kind.starts}")
        return found

    def one_each(self) -> list[str]:
        """A directory belongs to one supervisor: the one that wrote `started` is the one that the job ran under."""
        found = []
        for job, attempt, pid in _lines(self.stage.ledger):
            record = files.get(self.stage.state.job(int(job)).attempt(int(attempt)), "started") or {}
            if record and record.get("supervisor") != int(pid):
                said = record.get("supervisor")
                found.append(f"one each: attempt {job}/{attempt} ran under {pid}, its record says {said}")
        return found

    def told(self) -> list[str]:
        """A cancel that was acknowledged is never followed by another attempt, or forgotten."""
        cancelled = self.stage.acknowledged("cancel")
        states = {job["id"]: job["state"] for job in self.jobs}
        return [
            f"told: job {job} was cancelled and is {states.get(job)}"
            for job in cancelled
            if states.get(job) not in (words.CANCELLED, words.LOST)
        ]

    def order(self) -> list[str]:
        """A job that waits for another starts after that one's end; a second attempt after the first one's."""
        found = []
        if self.kind.chain and len(self.jobs) == 2:
            first, second = self.jobs
            early = second["started_at"] is not None and first["ended_at"] is not None
            if early and second["started_at"] < first["ended_at"]:
                found.append("order: the second job started before the first had ended")
        numbers = [row["number"] for row in self.attempts if row["job_id"] == 1]
        if numbers != list(range(1, len(numbers) + 1)):
            found.append(f"order: attempts {numbers}")
        return found


# --- many, side by side ----------------------------------------------------------------------------------------------


def play_all(
    scenarios: Sequence[Scenario],
    workers: int = 3,
    prepare: Callable[[], None] | None = None,
    until_fault: bool = False,
) -> list[Outcome]:
    """Play them in forked workers. prepare: run in each worker first (variants patch the core there)."""
    folder = tempfile.mkdtemp(prefix="crash-", dir=_memory())
    template = f"{folder}/template.db"
    Store(template).close()
    gc.collect()
    gc.freeze()
    try:
        pids = [
            _worker(number, workers, scenarios, template, folder, prepare, until_fault) for number in range(workers)
        ]
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        if any(statuses):
            raise RuntimeError(f"a worker of the crash harness ended with {statuses}")
        outcomes = []
        for number in range(workers):
            with open(f"{folder}/outcomes.{number}") as file:
                outcomes += [Outcome(**json.loads(line)) for line in file]
        return outcomes
    finally:
        gc.unfreeze()
        shutil.rmtree(folder)


def _worker(
    number: int,
    workers: int,
    scenarios: Sequence[Scenario],
    template: str,
    folder: str,
    prepare: Callable[[], None] | None,
    until_fault: bool,
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        files.become_subreaper()
        supervisor.LEFTOVER_GRACE = 0.05
        settle_module.retry_pause = lambda used: 0.0
        if prepare is not None:
            prepare()
        with open(f"{folder}/outcomes.{number}", "w") as file:
            for scenario in scenarios[number::workers]:
                outcome = play(scenario, template)
                file.write(json.dumps(outcome.__dict__) + "\n")
                if until_fault and outcome.faults:
                    break
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def _own_database(template: str, path: str) -> None:
    """A copy of an empty database, with a name of its own: launch ids are made from it."""
    shutil.copyfile(template, path)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'box_id'", (os.urandom(8).hex(),))
    connection.close()


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _point(token: str) -> str:
    """`run.s.locked~0.2s!none` -> "", for it killed nobody; `run.s.locked#2` -> `s.locked`."""
    name = token.partition(".")[2].partition("#")[0].partition("~")[0].partition("!")[0]
    return "" if token.endswith("!none") else name


def _lines(path: str) -> list[list[str]]:
    try:
        with open(path) as file:
            return [line.split() for line in file]
    except FileNotFoundError:
        return []


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ").strip()
    except OSError:
        return "gone"
