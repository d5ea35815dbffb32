"""The supervisor: owns one attempt of one job from fork to the durable exit record.

It survives the daemon, so it imports nothing but the standard library, files and paths, and runs from a frozen copy.
The protocol, and every window in which it may be killed, is in ARCHITECTURE.md ("Launch").
"""

from __future__ import annotations

import errno
import json
import os
import resource  # os.wait4 would load it when a job has ended; by then this interpreter may have been replaced
import select
import signal
import socket
import sys
import time

from runner import files
from runner.files import failpoint
from runner.job import processes
from runner.job.account import Account
from runner.job.log import Log, open_log
from runner.paths import AttemptDir

TICK = 0.2  # seconds between looks at the log's size; a flood of 1.5 GB/s overshoots its cap by 300 MB
LEFTOVER_GRACE = 2.0  # after a natural end: TERM, this long, KILL
SCAN_AFTER = 1.0  # shorter jobs that left no children are not searched for by environment: 5 ms they would feel
SHELL_SIGNAL = 128  # a shell whose command was ended by a signal ends with this code and the signal's number
KILL_SECONDS = 60.0  # what outlives KILL by this, or by what the spec says, is given up
STOP_REASONS = ("cancelled", "gpu_lost", "gpu_idle")  # what a `cancel` may say that the end was for
FENCED = 90  # exit code of a supervisor that came too late or second
EXIT_BYTES = 4096
SCARCE = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # the box's lack, not the command's fault
LOCK_PATIENCE = 1.0


def supervise(directory: AttemptDir, account: Account | None = None) -> int:
    """Run the attempt described by `directory`, as `account` if that is not us; the exit code is this process's own."""
    held = _own(directory)
    failpoint("s.locked")
    if held is None or _spent(directory):
        return FENCED
    spec = files.get(directory, "spec")
    if spec is None:
        return FENCED
    failpoint("s.checked")
    return Supervisor(directory, spec, account).run()


def _own(directory: AttemptDir) -> int | None:
    """The attempt's lock. The daemon takes it for a moment, too, to look; who keeps it is another supervisor."""
    deadline = time.monotonic() + LOCK_PATIENCE
    while (held := files.lock(directory.lock)) is None:
        if _spent(directory) or time.monotonic() > deadline:
            return None
        time.sleep(0.001)
    return held


def _spent(directory: AttemptDir) -> bool:
    return any(files.get(directory, name) is not None for name in ("abandoned", "started", "exit"))


class Kit:
    """What a supervisor has at hand before it knows its attempt."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        files.become_subreaper()
        self.watch = _watch()
        self.boot_id = files.boot_id()
        self.sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # Used once here, because after a fork the first touch of each page costs a copy, 10 us: here it costs no job.
        processes.reap()
        json.loads(json.dumps({"version": files.SCHEMA, "env": {"PATH": os.defpath}, "argv": [""]}))
        files.get("/proc/self", "no-record")


_kit: Kit | None = None
_going_down: list[int] = []  # TERM, where it came to the whole unit


def stage() -> Kit:
    """Get ready for an attempt, perhaps one that is yet to come."""
    global _kit
    if _kit is None or _kit.pid != os.getpid():  # a fork inherits it, but nothing in it is to be shared
        _kit = Kit()
    return _kit


class Supervisor:
    def __init__(self, directory: AttemptDir, spec: dict[str, object], account: Account | None = None) -> None:
        self.directory = directory
        self.spec = spec
        self.account = account
        self.launch_id = str(spec["launch_id"])
        self.grace = float(str(spec["grace"]))
        self.kill_seconds = float(str(spec.get("kill_seconds", KILL_SECONDS)))
        self.stopping: str | None = None  # why it got TERM: one of STOP_REASONS, time_limit, or reboot
        self.kill_at = float("inf")
        self.give_up_at = float("inf")  # known from the first KILL on
        self.stuck: set[int] = set()  # what it did not end
        self.began = time.monotonic()
        self.kit = stage()
        self.state_fd = _open_folder(os.path.dirname(str(spec["events"])))

    def run(self) -> int:
        wish = files.get(self.directory, "cancel")
        if wish is not None:
            return self.finish({"reason": _reason(wish), "started": False})
        self.exit_fd = _prepare(self.directory)
        self.log = Log(self.directory, self.spec)
        failpoint("s.ready")
        pid, problem = self.launch()
        failpoint("s.launched")
        if problem is not None or pid is None:
            if pid is not None:
                os.waitpid(pid, 0)
            return self.finish(problem or {})
        self.hint("started")
        started_at = time.time()
        status, usage = self.wait(pid)
        failpoint("s.reaped")
        record = self.describe(status) | {"started_at": started_at}
        self.end_leftovers()
        failpoint("s.emptied")
        self.log.trim()
        if usage is not None:
            record |= {"max_rss_bytes": usage.ru_maxrss * 1024, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        return self.finish(record | processes.outliving(self.stuck))

    # --- start ---

    def launch(self) -> tuple[int | None, dict[str, object] | None]:
        """Fork and exec. Returns (pid, None), or (pid or None, the exit record) when exec failed or never came."""
        parent = os.getpid()
        try:
            program, started = self.prepare()
            reader, writer = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
        except Exception as error:
            return None, {"reason": _unable(error), "detail": _words(error), "started": False}
        if pid == 0:
            self.become_job(parent, writer, program, started)  # never returns
        os.close(writer)
        # While the child gets going on another processor:
        self.watch = _watching(self.kit.watch, self.directory)
        self.kills_before = processes.oom_kills()
        said = b""
        while chunk := os.read(reader, 4096):
            said += chunk
        os.close(reader)
        if said != b"exec":
            # Silence means that the child died before exec: the command never ran, and may be tried again.
            reason, _, detail = said.removeprefix(b"exec").decode(errors="replace").partition("\0")
            detail = detail or "it was ended before it could start"
            return pid, {"reason": reason or "engine_failed", "detail": detail, "started": False}
        return pid, None

    def prepare(self) -> tuple[str, str]:
        """(the program's path, the `started` record under its temporary name): before the fork, because the child
        pays for its first touch of each page. Where the job is another user, what he sees as the program is looked up
        by him: then it is the program's name."""
        self.argv = [str(word) for word in self.spec["argv"]]  # type: ignore[attr-defined]
        self.env = {str(key): str(value) for key, value in self.spec["env"].items()}  # type: ignore[attr-defined]
        self.env |= _secrets(self.spec, handed=self.account is not None)
        program = self.argv[0] if self.account is not None else self.find()
        record = {"launch_id": self.launch_id, "boot_id": self.kit.boot_id, "started_at": time.time()}
        return program, files.write_ahead(self.directory, "started", record | {"supervisor": os.getpid()})

    def find(self) -> str:
        return _find(self.argv[0], self.env.get("PATH", os.defpath), str(self.spec["directory"]))

    def become_job(self, parent: int, writer: int, program: str, started: str) -> None:
        """In the child: it shares the attempt's lock until exec, so nobody can abandon an attempt that will run."""
        try:
            os.setsid()
            files.die_with_parent(signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            failpoint("c.forked")
            self.connect_output()
            if self.account is None:
                os.chdir(str(self.spec["directory"]))
            files.publish(self.directory, "started", started)
            failpoint("c.started")
            if self.account is not None:
                program = self.become_other(self.account, parent)
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.write(writer, b"exec")  # with EOF by close-on-exec: it happened; without: we died on the way
            os.execve(program, self.argv, self.env)
        except Exception as error:
            os.write(writer, f"{_unable(error)}\0{_words(error)}".encode())
        finally:
            os._exit(127)

    def become_other(self, account: Account, parent: int) -> str:
        """From here on with the job's own rights, which decide what it may enter and execute. The program's path."""
        account.become()
        if os.getppid() != parent:
            os._exit(1)
        self.env |= account.variables
        os.chdir(str(self.spec["directory"]))
        return self.find()

    def connect_output(self) -> None:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(self.log.fd, 1)
        os.dup2(self.log.fd, 2)
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("500")  # the kernel should take the job before the supervisor or the daemon
        except OSError:
            pass
        os.umask(0o077)

    # --- wait ---

    def wait(self, pid: int) -> tuple[int, resource.struct_rusage] | tuple[None, None]:
        """Until the command ends, or won't: keep the log within its cap, obey a cancel, enforce the time limit."""
        limit = self.spec.get("time_limit")
        deadline = self.began + float(str(limit)) if limit is not None else float("inf")
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if self.watch is not None:
            poll.register(self.watch.fd, select.POLLIN)
        self.obey(pid)  # a cancel from before the watch
        while True:
            ended = any(fd == pidfd for fd, _ in poll.poll(TICK * 1000))
            if ended:
                os.close(pidfd)
                _, status, usage = os.wait4(pid, 0)
                return status, usage
            self.log.trim()
            processes.reap_orphans(pid)
            if self.watch is None or self.watch.drain():
                self.obey(pid)
            now = time.monotonic()
            if self.stopping is None and now >= deadline:
                self.stop(pid, "time_limit", self.grace)
            if now >= self.kill_at:
                self.kill()
                self.kill_at = now + 1.0
            if now >= self.give_up_at:
                os.close(pidfd)
                return None, None

    def obey(self, pid: int) -> None:
        """Act on the durable wishes `cancel` (TERM, grace, KILL) and `kill` (now)."""
        wish = files.get(self.directory, "cancel")
        if wish is not None:
            grace = float(str(wish.get("grace", self.grace)))
            if self.stopping is None:
                self.stop(pid, _reason(wish), grace)
            self.kill_at = min(self.kill_at, time.monotonic() + grace)  # also when its time limit was first
        if files.get(self.directory, "kill") is not None:
            self.kill_at = 0.0

    def stop(self, pid: int, reason: str, grace: float) -> None:
        self.stopping = reason
        self.kill_at = time.monotonic() + grace
        failpoint("s.stopping")
        processes.signal_group(pid, signal.SIGTERM)
        processes.signal_group(pid, signal.SIGCONT)

    def kill(self) -> None:
        processes.kill(self.everything())
        self.give_up_at = min(self.give_up_at, time.monotonic() + self.kill_seconds)

    # --- end ---

    def describe(self, status: int | None) -> dict[str, object]:
        if self.stopping is None and _going_down:
            self.stopping = "reboot"
        if status is None:
            return {"reason": self.stopping or "cancelled", "started": True}
        code = os.waitstatus_to_exitcode(status)
        ended_by = -code if code < 0 else None
        record: dict[str, object] = {"exit_code": code if code >= 0 else None, "signal": ended_by, "started": True}
        if self.stopping is not None:
            record["reason"] = self.stopping
        elif signal.SIGKILL in (ended_by, code - SHELL_SIGNAL) and processes.oom_kills() > self.kills_before:
            record["reason"] = "host_out_of_memory"
        elif code != 0:
            record["reason"] = "signal" if ended_by else "exit_code"
        return record

    def end_leftovers(self) -> None:
        """TERM, a grace, KILL for all that the command left running, until nothing is left but what is stuck."""
        empty = processes.reap()
        searched = self.stopping is None and empty and time.monotonic() - self.began < SCAN_AFTER
        if searched or (empty and not processes.carriers(self.launch_id)):
            return
        now = began = time.monotonic()
        kill_at = min(self.kill_at, now + LEFTOVER_GRACE)
        for pid in self.everything():
            _signal(pid, signal.SIGTERM)
        while not (processes.reap() and not processes.carriers(self.launch_id)):
            if now >= self.give_up_at:
                self.stuck = self.everything()
                return
            if now >= kill_at:
                self.kill()
            self.log.trim()
            time.sleep(min(0.01 + (now - began) / 10, TICK))  # each look at /proc costs; a long wait pays no more
            now = time.monotonic()

    def everything(self) -> set[int]:
        return processes.descendants(os.getpid()) | processes.carriers(self.launch_id)

    def finish(self, record: dict[str, object]) -> int:
        record = {"reason": None, "exit_code": None, "signal": None, "detail": ""} | record
        record |= {"launch_id": self.launch_id, "ended_at": time.time()}
        files.put(self.directory, "exit", record, prepared=getattr(self, "exit_fd", None))
        failpoint("s.recorded")
        self.hint("exit")
        return 0

    def hint(self, what: str) -> None:
        """Wake the daemon. It may be away: then it reads the files when it is back."""
        if self.state_fd is None:
            return
        message = f"{self.spec['job']} {self.spec['attempt']} {what}".encode()
        try:
            # By way of the folder's descriptor: a socket's path may hold only 108 bytes, a state's more.
            self.kit.sender.sendto(
                message, f"/proc/self/fd/{self.state_fd}/{os.path.basename(str(self.spec['events']))}"
            )
        except OSError:
            pass


def _secrets(spec: dict[str, object], handed: bool) -> dict[str, str]:
    """The values of the secrets that a spec names, for the job's environment and for nothing else. handed: they are our
    standard input, which the launcher filled; else they are files of the folder that the spec names."""
    names = spec.get("secrets") or []
    if not isinstance(names, list) or not names:
        return {}
    if handed:
        with open(0, "rb", closefd=False) as source:
            found = dict(json.loads(source.read()))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    else:
        found = {name: value for name in names if (value := _kept(f"{spec['vault']}/{name}")) is not None}
    for name in names:
        if name not in found:
            raise FileNotFoundError(errno.ENOENT, "A secret of this job is no longer set", name)
    return {name: found[name] for name in names}


def _kept(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read())
    except FileNotFoundError:
        return None


def _watch() -> files.Watch | None:
    """None where this user has as many watches as the kernel allows: then we look at every tick."""
    try:
        return files.Watch()
    except OSError:
        return None


def _watching(watch: files.Watch | None, directory: AttemptDir) -> files.Watch | None:
    try:
        if watch is not None:
            watch.add(directory, files.IN_CREATE)
        return watch
    except OSError:
        return None


def _open_folder(path: str) -> int | None:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def _prepare(directory: AttemptDir) -> int:
    """The exit record's file with its blocks allocated, so that a full disk can't lose an exit code."""
    fd = os.open(f"{directory}/exit.tmp", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    if os.fstat(fd).st_size != EXIT_BYTES:
        os.posix_fallocate(fd, 0, EXIT_BYTES)
    return fd


def make_files(directory: AttemptDir) -> None:
    """An attempt's files as its supervisor would make them, ahead of it."""
    for fd in (_prepare(directory), open_log(directory), os.open(directory.lock, os.O_CREAT | os.O_RDWR, 0o600)):
        os.close(fd)


def _reason(wish: dict[str, object]) -> str:
    """What a `cancel` says that the end is for."""
    reason = str(wish.get("reason"))
    return reason if reason in STOP_REASONS else STOP_REASONS[0]


def _unable(error: Exception) -> str:
    """The reason of an end before the start."""
    if not isinstance(error, OSError) or error.errno in SCARCE:
        return "engine_failed"
    return "disk_full" if error.errno in files.DISK_FULL else "cannot_exec"


def _words(error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)


def _find(program: str, path: str, here: str) -> str:
    """As a shell in the folder `here` would look it up; the error names the program as it was written."""
    if "/" in program:
        return program
    for folder in path.split(":"):
        candidate = os.path.join(here, folder, program)
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    raise FileNotFoundError(2, "No such program on the job's PATH", program)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def main() -> int:
    """`supervisor.pyz DIR [UID]`: supervise one attempt, for engines that start a process per job. UID: the job's user.

    As the main process of a unit: when that is stopped, as when the box goes down, TERM goes to all of it. The job has
    its grace, and its end is recorded as the box's doing.
    """
    if len(sys.argv) == 2:
        print(json.dumps({"pid": os.getpid()}), flush=True)  # noqa: T201
        return supervise(AttemptDir(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda number, _: _going_down.append(number))
    return supervise(AttemptDir(sys.argv[1]), Account(int(sys.argv[2])))
