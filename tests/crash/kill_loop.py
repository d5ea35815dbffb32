"""M6: a real daemon under load, killed with -9 again and again; and so are the parent of supervisors, and supervisors.

Each kill is ordered at a named window and traced there. The jobs' own ledger and the clients' acknowledgements are the
truth at the end. Used by tests/test_crash_kill_loop.py and bench/crash.py.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from runner import files, words
from runner.box.store import Request, Store
from runner.model import JobSpec
from runner.paths import AttemptDir, StateDir, api_socket

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
OUTSTANDING = 6
CODES = 200  # a job ends with its id modulo this

SHORT = 'echo "$RUNNER_JOB_ID $RUNNER_ATTEMPT $$" >>"$LEDGER"; exit $((RUNNER_JOB_ID % 200))'
LONG = 'echo "$RUNNER_JOB_ID $RUNNER_ATTEMPT $$" >>"$LEDGER"; read _ <"$GATE"; exit $((RUNNER_JOB_ID % 200))'

LAUNCH = tuple(f"daemon:{name}" for name in ("db.commit", "db.committed", "d.dirs", "d.spec", "d.asked"))
BESIDE = tuple(
    f"run:{name}"
    for name in (
        "p.received", "p.forked", "s.forked", "s.locked", "s.checked", "s.ready", "c.forked", "put.started.written",
        "put.started.linked", "put.started.durable", "c.started", "s.launched", "s.reaped", "s.emptied",
        "put.exit.written", "put.exit.linked", "put.exit.durable", "s.recorded",
    )
)  # fmt: skip
CANCEL = (
    "daemon:put.cancel.written",
    "daemon:put.cancel.linked",
    "daemon:put.cancel.durable",
    "daemon:d.wished",
    "run:s.stopping",
)
ABANDON = tuple(
    f"daemon:{name}"
    for name in (
        "d.fence",
        "d.fencing",
        "put.abandoned.written",
        "put.abandoned.linked",
        "put.abandoned.durable",
        "d.fenced",
    )
)
BURY = tuple(f"daemon:{name}" for name in ("put.exit.written", "put.exit.linked", "put.exit.durable", "d.buried"))
WINDOWS = (*LAUNCH, *BESIDE, *CANCEL, *ABANDON, *BURY)
# A supervisor killed here takes the knowledge of its job's end with it.
UNKNOWABLE = {f"run:{name}" for name in ("s.launched", "s.stopping", "s.reaped", "s.emptied", "put.exit.written")}

_DAEMON = """
import sys
sys.path[:0] = {paths!r}
from crash import loop_hook
from runner.box import frozen
frozen._MAIN = open(loop_hook.__file__).read().replace("from __future__", "#") + frozen._MAIN
from runner.box.__main__ import main
main([])
"""


@dataclass
class Findings:
    kills: Counter[str] = field(default_factory=Counter)  # window (or `at random: role`) -> how often
    recoveries: list[float] = field(default_factory=list)  # seconds from exec to the first answer after the first pass
    jobs: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unknowable: int = 0  # jobs whose supervisor was killed when only it could know
    seconds: float = 0.0

    def faults(self) -> list[str]:
        return self.lost + self.doubled + self.orphans + self.wrong

    def line(self) -> str:
        slowest = max(self.recoveries, default=0.0)
        named = Counter({name: count for name, count in self.kills.items() if ":" in name and " " not in name})
        least = min((named[window] for window in WINDOWS), default=0)
        return (
            f"{sum(self.kills.values())} kills, each of {len(named)} windows {least} times or more, {self.jobs} jobs: "
            f"{len(self.lost)} lost, {len(self.doubled)} doubled, {len(self.orphans)} orphans, "
            f"{len(self.wrong)} wrong ends, {self.unknowable} whose supervisor was killed; "
            f"slowest recovery {slowest:.2f} s of {len(self.recoveries)}; {self.seconds:.0f} s"
        )


class Loop:
    def __init__(self, finished_rows: int = 10_000) -> None:
        self.folder = tempfile.mkdtemp(prefix="kills-")
        self.state = StateDir(f"{self.folder}/state")
        for path in (self.state, self.state.jobs):
            os.mkdir(path, 0o700)
        self.ledger, self.gate = f"{self.folder}/ledger", f"{self.folder}/gate"
        os.mkfifo(self.gate)
        self.gate_fd = os.open(self.gate, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("GPUBOX_", "RUNNER_", "PYTHON"))},
            "GPUBOX_STATE": self.state, "GPUBOX_CPUS": "3", "GPUBOX_MEMORY_BYTES": str(1 << 30),
            "GPUBOX_FREE_BYTES": "1", "CRASH_FOLDER": self.folder,
        }  # fmt: skip
        self.before = _fill(self.state.database, finished_rows)
        self.socket = api_socket(self.state)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.acknowledged: dict[int, str] = {}  # job -> "short" | "long"
        self.cancelled: set[int] = set()
        self.pending: list[tuple[str, str]] = []  # (key, kind) sent and not answered
        self.found = Findings()

    # --- the daemon ---

    def start(self) -> None:
        began = time.monotonic()
        source = _DAEMON.format(paths=[REPOSITORY, f"{REPOSITORY}/tests"])
        with open(f"{self.folder}/out", "ab") as out:
            self.daemon = subprocess.Popen(
                [sys.executable, "-c", source], env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        while self.ask("GET", "/hello") is None:
            if self.daemon.poll() is not None or time.monotonic() - began > 20:
                return  # killed on its way, as ordered
            time.sleep(0.005)
        self.found.recoveries.append(time.monotonic() - began)

    def alive(self) -> bool:
        return self.daemon is not None and self.daemon.poll() is None

    def kill_daemon(self) -> None:
        if self.daemon is not None:
            if self.alive():
                self.daemon.kill()
                self.found.kills["at random: daemon"] += 1
            self.daemon.wait()

    def ask(self, method: str, path: str, body: object = None, key: str = "") -> dict[str, object] | None:
        """The answer, or None when there was none."""
        link = http.client.HTTPConnection("box", timeout=5)
        link.sock = socket.socket(socket.AF_UNIX)
        link.sock.settimeout(5)
        try:
            link.sock.connect(self.socket)
            headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
            link.request(method, f"/api/v1{path}", None if body is None else json.dumps(body), headers)
            reply = link.getresponse()
            data = json.loads(reply.read())
            if reply.status >= 400:
                raise RuntimeError(f"{method} {path}: {data}")
            answer: dict[str, object] = data
            return answer
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            link.close()

    # --- load ---

    def feed(self) -> None:
        """Keep some jobs in the queue; what was not answered is sent again with its key."""
        rows = self.unfinished()
        if rows is None:
            return
        for _ in range(OUTSTANDING - len(rows) - len(self.pending)):
            kind = "long" if len(self.acknowledged) % 3 == 2 else "short"
            self.pending.append((uuid.uuid4().hex, kind))
        for key, kind in list(self.pending):
            script = LONG if kind == "long" else SHORT
            spec = {"command": ["sh", "-c", script], "env": {"LEDGER": self.ledger, "GATE": self.gate}, "grace": 1.0}
            answer = self.ask("POST", "/jobs", {"spec": spec, "array": None, "sweep": None, "held": False}, key)
            if answer is None:
                return
            self.pending.remove((key, kind))
            self.acknowledged[int(str(answer["id"]))] = kind

    def unfinished(self) -> list[dict[str, object]] | None:
        answer = self.ask("GET", "/jobs?finished=0")
        if answer is None:
            return None
        jobs = answer["jobs"]
        assert isinstance(jobs, list)
        return [job for job in jobs if job["state"] in words.UNFINISHED]

    def open_gate(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self.gate_fd, b"\n")

    def cancel_one(self) -> bool:
        """Cancel a running job that waits at the gate."""
        running = [job for job in self.unfinished() or () if job["state"] == words.RUNNING]
        for job in running:
            number = int(str(job["id"]))
            if self.acknowledged.get(number) == "long" and number not in self.cancelled:
                self.cancelled.add(number)  # whether or not it is acknowledged: its end may be either
                self.ask("POST", "/jobs/cancel", {"ids": [number], "grace": 0.2})
                return True
        return False

    # --- a kill ---

    def order(self, window: str) -> None:
        open(f"{self.folder}/order.{window}", "x").close()

    def taken(self, window: str) -> bool:
        try:
            os.unlink(f"{self.folder}/taken.{window}")
        except FileNotFoundError:
            return False
        self.found.kills[window] += 1
        return True

    def strike(self, window: str) -> None:
        """Order a death at a window and keep the load going until somebody died there."""
        if window in ABANDON:
            self.strike("run:s.checked")  # before its job began; the ten seconds' grace ends with the daemon that asked
            self.kill_daemon()
        self.order(window)
        if window in BURY:
            self.strike("run:s.launched")
        deadline = time.monotonic() + 30
        while not self.taken(window):
            if not self.alive():
                self.start()
            self.feed()
            if window not in CANCEL:
                self.open_gate()
            elif not self.cancel_one():
                self.open_gate() if len(self.unfinished() or ()) < 2 else None
            if time.monotonic() > deadline:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.folder}/order.{window}")
                self.found.wrong.append(f"nobody came by {window} within 30 s")
                return
            time.sleep(0.002)
        if self.daemon is not None and any(pid == str(self.daemon.pid) for _, pid, _ in self.trace()):
            self.daemon.wait()

    # --- the end ---

    def finish(self) -> Findings:
        """Let everything end, and judge."""
        deadline = time.monotonic() + 60
        while self.pending or self.unfinished() != []:
            if not self.alive():
                self.start()
            self.open_gate()
            if self.pending:
                self.feed()
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        if self.daemon is not None:
            self.daemon.terminate()
            self.daemon.wait()
        self._judge()
        return self.found

    def _judge(self) -> None:
        found = self.found
        killed = {directory for window, _, directory in self.trace() if window in UNKNOWABLE}
        connection = sqlite3.connect(self.state.database)
        query = f"SELECT id, state, exit_code, reason, attempt FROM jobs WHERE id > {self.before}"
        rows = {row[0]: row for row in connection.execute(query)}
        connection.close()
        found.jobs = len(self.acknowledged)
        starts = Counter((job, attempt) for job, attempt, _ in self._ledger())
        of_job = Counter(job for job, _ in starts)
        found.doubled += [f"attempt {key} started {count} times" for key, count in starts.items() if count > 1]
        found.doubled += [f"job {job} ran in {count} attempts" for job, count in of_job.items() if count > 1]
        found.doubled += [f"job {job} was made and not acknowledged" for job in rows.keys() - self.acknowledged.keys()]
        for job in self.acknowledged:
            if job not in rows or rows[job][1] not in words.FINISHED:
                found.lost.append(f"job {job} is {rows[job][1] if job in rows else 'not there'}")
                continue
            _, state, code, reason, attempt = rows[job]
            if self.state.job(job).attempt(attempt) in killed:
                found.unknowable += 1
            elif job in self.cancelled and state == words.CANCELLED:
                continue
            elif code != job % CODES or of_job[job] != 1:
                found.wrong.append(f"job {job} ended as {state}, {code}, {reason} after {of_job[job]} starts")
        found.orphans += [f"process {pid}" for pid in _leftovers(self.folder)]
        for job in rows:
            for number in (name for name in os.listdir(self.state.job(job)) if name.isdigit()):
                held = files.lock(AttemptDir(f"{self.state.job(job)}/{number}").lock)
                if held is None:
                    found.orphans.append(f"the lock of {job}/{number} is held")
                else:
                    os.close(held)

    def trace(self) -> list[list[str]]:
        return _lines(f"{self.folder}/trace")

    def _ledger(self) -> Iterator[tuple[int, int, int]]:
        for job, attempt, pid in _lines(self.ledger):
            yield int(job), int(attempt), int(pid)

    def close(self) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
        for pid in _leftovers(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self.gate_fd)
        shutil.rmtree(self.folder, ignore_errors=True)


def run(kills: int, finished_rows: int = 10_000) -> Findings:
    """That many ordered kills, going round the windows; what they need besides comes on top."""
    began = time.monotonic()
    loop = Loop(finished_rows)
    try:
        loop.start()
        step = next(step for step in (17, 19, 23, 29) if len(WINDOWS) % step)  # neighbours far apart
        at = 0
        while sum(loop.found.kills.values()) < kills or (kills >= 200 and _least(loop.found) < 5):
            loop.strike(WINDOWS[at * step % len(WINDOWS)])
            at += 1
            if len(loop.found.wrong) > 3:
                break
        found = loop.finish()
        if found.faults():
            with open(f"{loop.folder}/out") as out:
                found.wrong.append(f"the daemon said: {out.read()[-2000:]}")
    finally:
        loop.close()
    found.seconds = time.monotonic() - began
    return found


def _least(found: Findings) -> int:
    return min(found.kills[window] for window in WINDOWS)


def _fill(path: str, rows: int) -> int:
    """Finished jobs from long ago; their highest id."""
    if rows == 0:
        return 0
    store = Store(path)
    request = Request(JobSpec(["true"]), "tester", os.getuid(), list(range(rows)), [{}] * rows, False, None)
    made = store.submit(request, time.time() - 3600)
    store.close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE jobs SET state = 'succeeded', attempt = 1, exit_code = 0, ended_at = submitted_at")
    connection.close()
    return made[-1].id


def _leftovers(folder: str) -> list[int]:
    """Living processes with the loop's folder in their environment; a moment's grace for the last ones."""
    deadline = time.monotonic() + 3.0
    while True:
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _names(pid, folder)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _names(pid: int, folder: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            carries = folder.encode() in environ.read()
        return carries and pid != os.getpid()
    except OSError:
        return False


def _lines(path: str) -> list[list[str]]:
    try:
        with open(path) as file:
            return [line.split() for line in file]
    except FileNotFoundError:
        return []
