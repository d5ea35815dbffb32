"""What every benchmark shares: a box of its own, the yardstick beside each run, and figures printed as ratios."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RUNNER = os.path.join(os.path.dirname(sys.executable), "runner")
QUIET = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "GPUBOX_", "RUNNER_"))}
NULL = os.open(os.devnull, os.O_RDWR)


@dataclass
class Figure:
    """One line of the report. bar: what the figure must stay below (or above, with `at_least`)."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = False
    note: str = ""

    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def line(self) -> str:
        sign = ">=" if self.at_least else "<="
        bar = f"{sign} {self.bar:g}" if self.bar is not None else ""
        mark = {True: "met", False: "NOT MET", None: ""}[self.met()]
        return f"{self.name:<58} {self.value:>9.2f} {self.unit:<6} {bar:<9} {mark:<8} {self.note}".rstrip()


class Box:
    """An embedded box with a state of its own, its daemon started and stopped here."""

    def __init__(self, cpus: int = 2, folder: str | None = None) -> None:
        self.root = tempfile.mkdtemp(prefix="gpubox-bench-", dir=folder)
        self.state = f"{self.root}/state"
        places = {"HOME": self.root, "GPUBOX_STATE": self.state, "GPUBOX_CPUS": str(cpus), "GPUBOX_FREE_BYTES": "1"}
        xdg = {name: f"{self.root}/{name.lower()}" for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR")}
        self.env = {**QUIET, **places, **xdg}
        for path in xdg.values():
            os.makedirs(path, mode=0o700)
        self.daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Seconds from exec to the first accepted request."""
        began = time.perf_counter()
        reader, writer = os.pipe()
        arguments = [sys.executable, "-m", "runner.box", "--ready-fd", str(writer)]
        self.daemon = subprocess.Popen(arguments, env=self.env, pass_fds=[writer], stdin=NULL, cwd=self.root)
        os.close(writer)
        said = os.read(reader, 4096)
        os.close(reader)
        if said != b"ready\n":
            raise SystemExit(f"the daemon did not start: {said.decode(errors='replace')}")
        return time.perf_counter() - began

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(number)
            self.daemon.wait()
            self.daemon = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def socket(self) -> str:
        return f"{self.state}/api.sock"

    def processes(self) -> list[int]:
        """The daemon, the parent of supervisors, and the supervisor that it has staged."""
        assert self.daemon is not None
        parents = _children(self.daemon.pid)
        return [self.daemon.pid, *parents, *(pid for parent in parents for pid in _children(parent))]

    def request(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """One request over a connection of its own."""
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} /api/v1{path} HTTP/1.1\r\nHost: box\r\nConnection: close\r\nContent-Type: application/json\r\n"
        )
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(self.socket)
            link.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            reply = b"".join(iter(lambda: link.recv(1 << 20), b""))
        head_of_reply, _, rest = reply.partition(b"\r\n\r\n")
        if b"chunked" in head_of_reply.lower():
            raise SystemExit(f"{path} answered in chunks")
        if not head_of_reply.split(b" ")[1].startswith(b"2"):
            raise SystemExit(f"{method} {path}: {rest.decode(errors='replace')}")
        parsed: dict[str, object] = json.loads(rest)
        return parsed

    def submit(self, command: Sequence[str], array: int | None = None) -> int:
        indices = list(range(array)) if array is not None else None
        made = self.request("POST", "/jobs", {"spec": {"command": list(command)}, "array": indices})
        return int(str(made["id"]))

    def counts(self) -> dict[str, int]:
        counts = self.request("GET", "/box")["counts"]
        assert isinstance(counts, dict)
        return counts

    def wait_finished(self, number: int, deadline: float = 600.0, pause: float = 0.02) -> None:
        until = time.monotonic() + deadline
        while time.monotonic() < until:
            counts = self.counts()
            if sum(counts.get(state, 0) for state in ("queued", "starting", "running")) == 0:
                if sum(counts.values()) < number:
                    raise SystemExit(f"only {counts} of {number} jobs are known")
                return
            time.sleep(pause)
        raise SystemExit(f"not finished in {deadline} s: {self.counts()}")


@contextmanager
def box(cpus: int = 2, folder: str | None = None) -> Iterator[Box]:
    made = Box(cpus, folder)
    try:
        made.start()
        yield made
    finally:
        made.close()


def project(box_: Box, files: int, size: int = 20_000) -> str:
    """A git project of so many files in folders of 50, with a script at its root."""
    return project_in(box_.root, box_.env, files, size)


def project_in(folder: str, env: dict[str, str], files: int, size: int = 20_000) -> str:
    root = f"{folder}/project"
    for number in range(files - 1):
        folder = f"{root}/package{number // 50}"
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/module{number}.py", "wb") as file:
            file.write(f"# {number}\n".encode() + os.urandom(size // 2).hex().encode()[: size - 20])
    with open(f"{root}/train.py", "w") as file:
        file.write("print('hi', flush=True)\n")
    for arguments in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *arguments], cwd=root, env=env, check=True)
    return root


def seconds(arguments: Sequence[str], env: dict[str, str], cwd: str, before: Callable[[], None] | None = None) -> float:
    """A whole process, from spawn to exit; it must succeed."""
    if before is not None:
        before()
    began = time.perf_counter()
    process = subprocess.Popen(arguments, env=env, cwd=cwd, stdin=NULL, stdout=NULL, stderr=subprocess.PIPE)
    code = process.wait()
    taken = time.perf_counter() - began
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    if code != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {code}: {said.decode(errors='replace')}")
    return taken


def yardstick(env: dict[str, str], cwd: str) -> float:
    """`python -c pass` of this virtual environment, by its real path: a shim on PATH would cost 80 ms."""
    return seconds([sys.executable, "-c", "pass"], env, cwd)


def against_yardstick(
    name: str, run: Callable[[], float], env: dict[str, str], cwd: str, bar: float, times: int = 30, note: str = ""
) -> Figure:
    """Median of a measurement over the median of the yardstick, interleaved."""
    run()
    ours, theirs = [], []
    for _ in range(times):
        theirs.append(yardstick(env, cwd))
        ours.append(run())
    middle, yard = statistics.median(ours), statistics.median(theirs)
    told = f"{middle * 1e3:.1f} ms ({min(ours) * 1e3:.1f} to {max(ours) * 1e3:.1f}); python -c pass {yard * 1e3:.1f} ms"
    return Figure(name, middle / yard, "x", bar, note=f"{told}{note}")


def price_of_fsync(folder: str) -> Figure:
    path = f"{folder}/fsync-probe"
    taken = []
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    for _ in range(50):
        os.write(fd, b"x" * 4096)
        began = time.perf_counter()
        os.fsync(fd)
        taken.append(time.perf_counter() - began)
    os.close(fd)
    os.unlink(path)
    return Figure("one fsync here", statistics.median(taken) * 1e3, "ms")


def fsyncs_during(pids: Sequence[int], work: Callable[[], None]) -> int | None:
    """How often some processes and their children fsync during some work; None without strace."""
    if shutil.which("strace") is None:
        return None
    with tempfile.NamedTemporaryFile("r") as trace:
        attach = [word for pid in pids for word in ("-p", str(pid))]
        command = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync,syncfs", "-o", trace.name, *attach]
        tracer = subprocess.Popen(command, stdin=NULL, stderr=NULL)
        try:
            time.sleep(0.5)
            work()
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
        return sum("sync(" in line for line in trace)


def pss_mib(pids: Sequence[int]) -> float:
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total / 1024


def cpu_seconds(pids: Sequence[int]) -> float:
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                total += int(file.read().split()[0])
    return total / 1e9


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]
