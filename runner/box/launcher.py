"""The launcher of a provisioned box: the one process of ours that runs as root, between the daemon and its jobs' user.

The daemon (user gpubox) spawns nothing. It asks here, one packet a connection, one packet back:

    start JOB ATTEMPT         run the attempt's supervisor in a unit of its own, gpubox-job-JOB-ATTEMPT.service
    stop JOB ATTEMPT          kill what lives in that unit; "ok", and the process ids that are still there
    make-tree JOB ATTEMPT     give the work tree that the daemon laid out to the jobs' user
    read-outputs JOB ATTEMPT  "ok" with a socket to a reader (reader.py) of the job's outputs, who is the jobs' user
    remove JOB ATTEMPT        delete what the daemon has hidden of the job: trees/.gone-JOB-*, jobs/JOB/.gone-*
    build-env ENVIRONMENT     run the build described in builds/ENVIRONMENT as an attempt is run
    set-secret UID NAME       and a line end and the value: keep a user's secret (vault.py); "ok"
    remove-secret UID NAME    "ok removed", or "ok none"
    list-secrets UID          "ok", and NAME=TIME of each; no request is answered with a value

A daemon that was taken over can ask for nothing else. Who jobs run as, the interpreter, the supervisor and the writable
folders come from a configuration that belongs to root (/etc/gpubox/launcher.toml). No path comes over the wire: numbers
do, and each folder below the state is opened from the one above it, follows no link, and must have the right owner. Of
what the daemon writes, only numbers and names of GPUs and secrets are read, and checked. The properties of a unit are
`template` (units.py). What root does below the daemon's folders is: make an empty folder, and give away what is the
daemon's own.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import socket
import stat
import struct
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.box import vault
from runner.box.units import ENVIRONMENT, NOTHING, SLICE, Limits, Refusal, command, devices, run, template, unit_name
from runner.job.account import Account
from runner.paths import LAUNCHER_CONFIG, StateDir

AT_ONCE = 32  # connections; the daemon needs a few
PATIENCE = 30  # seconds for a request, the deletion of an output folder excepted
KILL_WAIT = 0.2  # seconds that `stop` waits for what it killed
SPEC_MAX = 8 << 20  # bytes of a spec: it holds the job's environment variables
REQUEST_MAX = vault.PACKET_MAX
CGROUPS = f"/sys/fs/cgroup/gpubox.slice/{SLICE}"
HIDDEN = ".gone-"
REQUEST = re.compile(
    rb"(start|stop|make-tree|read-outputs|remove) ([1-9][0-9]{0,14}) ([1-9][0-9]{0,8})|(build-env) ([0-9a-f]{16})"
)
PATH = re.compile(r"(/[A-Za-z0-9_.+-]+)+")
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


# --- the configuration: root's own -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    daemon: int  # the uid that may ask, and that owns the state
    jobs: Account
    state: StateDir
    python: str  # of the supervisors
    supervisor: str  # their frozen copy
    writable: tuple[str, ...] = ()  # folders that jobs may write to, beside their own
    secrets: str = ""  # the folder of people's secrets, root's alone; empty: none are kept

    def vault(self) -> vault.Vault:
        if not self.secrets:
            raise Refusal(f"this box keeps no secrets: {LAUNCHER_CONFIG} names no folder for them")
        return vault.Vault(self.secrets)

    def supervise(self, directory: str) -> list[str]:
        """The command of a supervisor."""
        return [self.python, "-I", "-S", self.supervisor, directory, str(self.jobs.uid)]


def load(path: str = LAUNCHER_CONFIG) -> Config:
    """Refusal says what is wrong with it."""
    try:
        _roots_own(path)
        with open(path, "rb") as file:
            values = tomllib.load(file)
        daemon, jobs = Account.named(values.pop("daemon")), Account.named(values.pop("jobs"))
        state, python, supervisor = (values.pop(name) for name in ("state", "python", "supervisor"))
        writable, kept = [jobs.variables["HOME"], *values.pop("writable", [])], values.pop("secrets", "")
        if values or daemon.uid == jobs.uid:
            raise ValueError(f"it also says {', '.join(values)}" if values else "daemon and jobs are the same user")
        for place in (state, python, supervisor, *writable, *([kept] if kept else [])):
            if not PATH.fullmatch(place) or "." in place.split("/") or ".." in place.split("/"):
                raise ValueError(f"{place!r} is no absolute, plain path")
        for place in (os.path.dirname(state), python, supervisor, os.path.dirname(kept) or "/"):
            _roots_own(place)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise Refusal(f"{path}: {type(error).__name__}: {error}") from error
    return Config(daemon.uid, jobs, StateDir(state), python, supervisor, tuple(writable), kept)


def _roots_own(path: str) -> None:
    """What root alone can change, and can put into its place."""
    real = Path(os.path.realpath(path))
    for place in (real, *real.parents):
        found = os.stat(place)
        if found.st_uid != 0 or (stat.S_IMODE(found.st_mode) & 0o022 and not found.st_mode & stat.S_ISVTX):
            raise ValueError(f"{place} can be changed by others than root")


# --- folders of the state: opened one below the other, by owner. Each request has its own process, which closes them --


def daemons(config: Config, *names: str) -> int:
    """A folder below the state. It and those on the way belong to the daemon, and only he writes there."""
    fd = _owned(os.open(config.state, FOLDER), config.daemon, 0o022)
    for name in names:
        fd = _owned(os.open(name, FOLDER, dir_fd=fd), config.daemon, 0o022)
    return fd


def jobs_own(config: Config, above: int, name: str) -> int:
    """A folder of the jobs' user, made if it is not there."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above)
    fd = os.open(name, FOLDER, dir_fd=above)
    found = os.fstat(fd)
    if found.st_uid == 0 and stat.S_IMODE(found.st_mode) == 0o700 and not os.listdir(fd):  # as we made it
        os.fchown(fd, config.jobs.uid, config.jobs.gid)
    return _owned(fd, config.jobs.uid, 0)


def _owned(fd: int, owner: int, never: int) -> int:
    found = os.fstat(fd)
    if found.st_uid != owner or stat.S_IMODE(found.st_mode) & never:
        raise Refusal(f"{os.readlink(f'/proc/self/fd/{fd}')} does not belong to user {owner} alone")
    return fd


def read_spec(folder: int, daemon: int) -> dict[str, object]:
    """The record `spec` in an open folder: a plain file of the daemon's."""
    fd = os.open("spec", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != daemon or found.st_mode & 0o022:
            raise Refusal("its spec is no file of the daemon alone")
        spec = json.loads(file.read(SPEC_MAX))
    if not isinstance(spec, dict):
        raise Refusal("its spec is no record")
    return spec


def give_away(folder: int, config: Config) -> None:
    """Everything below a folder of the daemon's, and then itself, to the jobs' user."""
    for _, folders, names, fd in os.fwalk(".", dir_fd=folder):
        for name in folders + names:
            _give(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd), config)
    _give(os.dup(folder), config)


def _give(fd: int, config: Config) -> None:
    """What is open is what is looked at and given, whatever its name means by now."""
    try:
        found = os.fstat(fd)
        lone = found.st_nlink == 1 and (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode))
        if found.st_uid not in (config.daemon, config.jobs.uid) or not (lone or stat.S_ISDIR(found.st_mode)):
            raise Refusal("the tree holds what is not the daemon's to give")
        os.chown(f"/proc/self/fd/{fd}", config.jobs.uid, config.jobs.gid)
    finally:
        os.close(fd)


# --- the verbs -------------------------------------------------------------------------------------------------------


def start(config: Config, job: str, attempt: str) -> str:
    spec = read_spec(daemons(config, "jobs", job, attempt), config.daemon)
    limits = Limits.of(spec)
    for name in ("out", "checkpoint"):
        jobs_own(config, daemons(config, "jobs", job), name)
    writable = [config.state.jobs, config.state.trees, *config.writable]
    title, unit = f"gpubox job {job}, attempt {attempt}", unit_name(job, attempt)
    with vault.handed(config.secrets, spec) as reads:
        properties = template(config.daemon, title, limits, devices(limits.gpus), writable, reads)
        supervisor = config.supervise(f"{config.state.jobs}/{job}/{attempt}")
        run(command(unit, properties, supervisor, wait=reads != NOTHING))
    return ""


def build_env(config: Config, name: str) -> str:
    limits = Limits.of(read_spec(daemons(config, "builds", name), config.daemon))
    jobs_own(config, daemons(config, "envs", name), "venv")
    writable = [config.state.builds, config.state.envs, *config.writable]
    properties = template(config.daemon, f"gpubox environment {name}", limits, [], writable)
    run(command(f"gpubox-env-{name}.service", properties, config.supervise(f"{config.state.builds}/{name}")))
    return ""


def stop(config: Config, job: str, attempt: str, cgroups: str = CGROUPS) -> str:
    folder = f"{cgroups}/{unit_name(job, attempt)}"
    deadline = time.monotonic() + KILL_WAIT
    while True:
        try:
            with open(f"{folder}/cgroup.procs") as file:
                living = file.read().split()
            if not living or time.monotonic() > deadline:
                return " ".join(living)
            with open(f"{folder}/cgroup.kill", "w") as file:
                file.write("1")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):  # the unit is gone, or went while we read
                return ""
            raise
        time.sleep(0.005)


def make_tree(config: Config, job: str, attempt: str) -> str:
    give_away(os.open(job, FOLDER, dir_fd=daemons(config, "trees")), config)
    return ""


def remove(config: Config, job: str, attempt: str) -> str:
    """Emptied by their owner, who can do no harm elsewhere; only the empty folders go by the hand that could."""
    places = [(daemons(config, "trees"), f"{HIDDEN}{job}-")]
    with suppress(FileNotFoundError):  # of a job that never began
        places += [(daemons(config, "jobs", job), HIDDEN)]
    for above, begin in places:
        for name in os.listdir(above):
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
            if name.startswith(begin) and found.st_uid in (config.jobs.uid, config.daemon):
                if found.st_uid == config.daemon:  # a tree that was given away by half
                    give_away(os.open(name, FOLDER, dir_fd=above), config)
                _empty(config, jobs_own(config, above, name))
                os.rmdir(name, dir_fd=above)
    return ""


def _empty(config: Config, fd: int) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            config.jobs.become()
            os.fchdir(fd)
            os.execve("/bin/sh", ["sh", "-c", "chmod -R u+rwx . ; exec find . -mindepth 1 -delete"], ENVIRONMENT)
        finally:
            os._exit(127)
    if os.waitpid(pid, 0)[1] != 0:
        raise Refusal("it could not be emptied")


def read_outputs(config: Config, job: str, attempt: str, link: socket.socket) -> None:
    """Answers itself, with a descriptor. The reader has none of root's rights, so the daemon may name it paths. It runs
    no program, and so the kernel lets no job trace it, although they are the same user."""
    jobs_own(config, daemons(config, "jobs", job), "out")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config.jobs.become()
    from runner.box import reader  # nothing of it ever runs as root

    socket.send_fds(link, [b"ok"], [theirs.fileno()])
    theirs.close()
    link.close()
    reader.serve(ours, config.state.job(int(job)).out)


# --- the wire --------------------------------------------------------------------------------------------------------

Verb = Callable[[Config, str, str], str]
VERBS: dict[str, Verb] = {"start": start, "stop": stop, "make-tree": make_tree, "remove": remove}


def answer(config: Config, link: socket.socket) -> None:
    """One request, one reply: "ok", perhaps with more, or "no" and why."""
    uid = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    try:
        if uid not in (config.daemon, 0):
            raise Refusal(f"user {uid} may not ask")
        packet = link.recv(REQUEST_MAX)
        if secret := vault.REQUEST.fullmatch(packet):
            link.send(f"ok {config.vault().answer(secret)}".strip().encode())
            return
        asked = REQUEST.fullmatch(packet)
        if asked is None:
            raise Refusal("this is no request")
        verb, job, attempt, building, environment = (word.decode() if word else "" for word in asked.groups())
        if verb in ("remove", "read-outputs"):
            signal.alarm(0)  # these take as long as they take
        if verb == "read-outputs":
            read_outputs(config, job, attempt, link)
            return
        said = f"ok {build_env(config, environment) if building else VERBS[verb](config, job, attempt)}".strip()
    except (Refusal, OSError, ValueError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, Refusal) else f"no {type(error).__name__}: {error}"
    link.send(said.encode("ascii", "backslashreplace")[:1000])


def serve(config: Config, listener: socket.socket) -> None:
    """A process for each connection: none waits for another, and none leaves anything behind in this one. After TERM no
    more are taken, and those that are there end first: who asks next gets the next launcher."""
    told, tell = socket.socketpair()
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno())
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    children: list[int] = []  # the oldest first
    while told not in select.select([listener, told], [], [])[0]:
        link, _ = listener.accept()
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                for each in (listener, told, tell):
                    each.close()
                signal.alarm(PATIENCE)
                answer(config, link)
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
            finally:
                os._exit(0)
        children.append(pid)
        link.close()
        reap(children, AT_ONCE)
    reap(children, 1)


def reap(children: list[int], fewer: int) -> None:
    """Until there are so few. A reader is the jobs' user, whom a job may stop; it shall not stop us for ever."""
    deadline = time.monotonic() + PATIENCE
    while children:
        if pid := os.waitpid(-1, os.WNOHANG)[0]:
            children.remove(pid)
        elif len(children) < fewer:
            return
        elif time.monotonic() > deadline:
            os.kill(children[0], signal.SIGKILL)
        else:
            time.sleep(0.005)


def main() -> None:
    """Started by systemd on the first connection; the socket is descriptor 3."""
    try:
        serve(load(), socket.socket(fileno=3))
    except Refusal as refusal:
        sys.exit(f"gpubox launcher: {refusal}")


if __name__ == "__main__":
    main()
