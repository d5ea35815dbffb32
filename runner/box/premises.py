"""Where the daemon lives: its folders, the lock that makes it the only one, its listening socket, its base programs."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from runner import errors, files
from runner.box.settings import Settings
from runner.job.processes import LAUNCH_VARIABLE
from runner.paths import SOCKET_PATH_MAX, StateDir

BACKLOG = 128


def take(settings: Settings) -> int:
    """Make the state directory ours, and return the descriptor that holds its lock. Busy when another daemon has it."""
    state = settings.state
    with _words(state):
        os.makedirs(os.path.dirname(state), 0o700, exist_ok=True)
        files.make_dir(state)
        if not files.supports_locks(state):
            raise errors.BadSettings(
                f"the file system of {state} has no locks that work", "set GPUBOX_STATE to a directory on a local disk"
            )
        held = files.lock(state.daemon_lock)
        if held is None:
            raise errors.Busy(
                f"another daemon{_holder(state)} already serves {state}", "use that one, or `runner serve --stop` it"
            )
        os.ftruncate(held, 0)
        os.pwrite(held, f"{os.getpid()}\n".encode(), 0)
        chosen = (settings.data, settings.data_sets)
        for folder in (state.jobs, state.blobs, state.trees, state.envs, state.supervisor, *chosen):
            if folder in chosen:
                os.makedirs(os.path.dirname(folder), 0o700, exist_ok=True)
            files.make_dir(folder)
    return held


def refuse_own_job(box_id: str) -> None:
    """A job that starts the daemon of its own box, while that is away, would take it along when it ends."""
    if os.environ.get(LAUNCH_VARIABLE, "").startswith(f"{box_id}-"):
        raise errors.Refused(
            "the daemon of this box is away, and its own jobs may not start it: it would end with the job",
            "start it outside: any `runner` command does",
        )


def _holder(state: StateDir) -> str:
    try:
        with open(state.daemon_lock) as file:
            pid = file.read(32).strip()
    except OSError:
        return ""
    return f" (process {pid})" if pid.isdecimal() else ""


@contextmanager
def _words(state: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in files.DISK_FULL:
            raise errors.DiskFull(f"the disk of {state} is full", "free some space there") from error
        if error.errno == errno.EIO:
            raise errors.StateDamaged(f"the disk of {state} failed: {error}", "check the disk") from error
        raise errors.BadSettings(
            f"the state directory {state} can't be used: {error.strerror}: {error.filename}",
            "set GPUBOX_STATE to another one",
        ) from error


def listen(path: str, group: bool = False) -> socket.socket:
    """The API's socket, for its owner alone, or for our group too. Only for who holds the state's lock: what is there
    is a dead daemon's."""
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise errors.BadSettings(f"the socket's path {path} is too long", "set GPUBOX_SOCKET to a shorter one")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o117 if group else 0o177)
    try:
        _own_folder(os.path.dirname(path))
        if os.path.lexists(path):
            os.unlink(path)
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        hint = "set GPUBOX_SOCKET to a path of your own"
        raise errors.BadSettings(f"the socket {path} can't be made: {error.strerror}", hint) from error
    finally:
        os.umask(before)
    return sock


def _own_folder(folder: str) -> None:
    """Nobody else may put another socket in the place of ours."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for each in reversed(missing):
        os.mkdir(each)
        os.chmod(each, 0o700)  # whatever the umask
        folder = each
    found = os.stat(folder)
    if found.st_uid not in (os.getuid(), 0) or (found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX):
        raise PermissionError(errno.EPERM, f"{folder} belongs to others, or others may write to it")


def base_bin(settings: Settings) -> str:
    """A folder where the base interpreter is called `python`, as jobs expect."""
    beside = os.path.dirname(settings.base_python)
    if os.access(f"{beside}/python", os.X_OK):
        return beside
    folder = f"{settings.state}/bin"
    with _words(settings.state):
        files.make_dir(folder)
        os.chmod(folder, 0o755)  # for jobs, whosever they are
        for name in ("python", "python3"):
            link = f"{folder}/{name}"
            if os.path.lexists(link) and os.readlink(link) != settings.base_python:
                os.unlink(link)
            if not os.path.lexists(link):
                os.symlink(settings.base_python, link)
    return folder
