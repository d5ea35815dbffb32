"""Durable writes, locks and watches: the only hands that touch records on disk.

Standard library only, and light: the supervisor beside every job imports it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable

SCHEMA = 1  # version stamp of every record
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FAILED = (errno.EIO, errno.EUCLEAN, errno.EROFS)


# --- fail-points: the crash tests arm this; elsewhere it is one comparison -------------------------------------------

armed: Callable[[str], None] | None = None


def failpoint(name: str) -> None:
    """A named window in which a crash must do no harm. tests/crash/ arms `armed` to kill the process here."""
    if armed is not None:
        armed(name)


# --- durable records -----------------------------------------------------------------------------------------------


def fsync_dir(path: str) -> None:
    """Make the names in a directory durable. An EIO here is final: the caller must not try again and believe it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dir(path: str, mode: int = 0o700) -> None:
    """A directory whose name is durable."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    fsync_dir(os.path.dirname(path))


def put(directory: str, name: str, record: dict[str, object], prepared: int | None = None) -> bool:
    """Write a record durably; the first writer wins. True if it was ours.

    prepared: a file descriptor of `<directory>/<name>.tmp`, made ahead with its blocks allocated, so that the
    record can be written on a full disk.
    """
    return publish(directory, name, write_ahead(directory, name, record, prepared))


def write_ahead(directory: str, name: str, record: dict[str, object], prepared: int | None = None) -> str:
    """The first half of `put`: a record's durable content under a temporary name, which is returned."""
    temporary = f"{directory}/{name}.tmp" if prepared is not None else f"{directory}/.{name}.{os.getpid()}"
    data = json.dumps({"version": SCHEMA, **record}).encode()
    fd = prepared
    if fd is None:
        fd = _fresh(temporary)
    try:
        write_all(fd, data)
        if prepared is not None:
            os.ftruncate(fd, len(data))
        os.fsync(fd)
    finally:
        if prepared is None:
            os.close(fd)
    failpoint(f"put.{name}.written")
    return temporary


def publish(directory: str, name: str, temporary: str) -> bool:
    """The second half of `put`: the record gets its name, durably, unless somebody's has it."""
    try:
        os.link(temporary, f"{directory}/{name}")
        won = True
    except FileExistsError:
        won = False
    failpoint(f"put.{name}.linked")
    os.unlink(temporary)
    fsync_dir(directory)
    failpoint(f"put.{name}.durable")
    return won


def _fresh(path: str) -> int:
    """A new file. A leftover of this name, from a process killed in `put`, may be a second name of a record: it is
    unlinked, never written through."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, flags, 0o600)


def get(directory: str, name: str) -> dict[str, object] | None:
    """A record, or None when there is none. ValueError when it is damaged (callers keep the file)."""
    try:
        # Not waiting: a job may put a pipe into the place of a record, and nobody would ever open its other end.
        fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        data = os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError(f"{directory}/{name} is not a record")
    return record


def replace(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a whole file durably under its name; readers see the old or the new one."""
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    fsync_dir(os.path.dirname(path))


def write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


# --- locks ---------------------------------------------------------------------------------------------------------


def lock(path: str) -> int | None:
    """Take the exclusive lock on a file; the descriptor holds it (close-on-exec). None if another holds it."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd


# --- what the standard library has no name for ---------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
IN_MODIFY, IN_CREATE, IN_MOVED_TO = 0x2, 0x100, 0x80


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def punch(fd: int, start: int, length: int) -> None:
    """Give a byte range back to the disk; offsets after it stay true, the range reads as zeros."""
    _checked(_libc.fallocate(fd, _PUNCH, ctypes.c_int64(start), ctypes.c_int64(length)))


def begin_sync(fd: int, start: int, length: int) -> None:
    """Have the disk begin with a byte range now, so that an fsync later finds less to do. A wish: it may fail."""
    _libc.sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(length), _WRITE)


def become_subreaper() -> None:
    """Orphans among our descendants become our children instead of init's."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel to send us this signal when the thread that forked us ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


class Watch:
    """inotify: a descriptor that becomes readable when a watched path changes. A hint only, files are the truth."""

    def __init__(self) -> None:
        self.fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, path: str, mask: int) -> int:
        return _checked(_libc.inotify_add_watch(self.fd, os.fsencode(path), mask))

    def remove(self, number: int) -> None:
        _libc.inotify_rm_watch(self.fd, number)

    def drain(self) -> list[int]:
        """The watch numbers that fired since the last call."""
        fired: list[int] = []
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return fired
        at = 0
        while at + 16 <= len(data):
            fired.append(int.from_bytes(data[at : at + 4], "little", signed=True))
            at += 16 + int.from_bytes(data[at + 12 : at + 16], "little")
        return fired

    def close(self) -> None:
        os.close(self.fd)


# --- small readings ------------------------------------------------------------------------------------------------


def boot_id() -> str:
    """This boot of the kernel; GPUBOX_BOOT_ID stands in for it in tests of a reboot."""
    pretend = os.environ.get("GPUBOX_BOOT_ID")
    if pretend:
        return pretend
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def supports_locks(directory: str) -> bool:
    """Whether flock means something here: two open file descriptions must exclude each other."""
    path = f"{directory}/.lock-probe.{os.getpid()}"
    try:
        first = lock(path)
        second = lock(path)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise
    finally:
        if os.path.exists(path):
            os.unlink(path)
    for fd in (first, second):
        if fd is not None:
            os.close(fd)
    return first is not None and second is None


def disk_room(path: str) -> tuple[int, int]:
    """(bytes free to us, bytes in all) of the file system that holds path."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize


def tree_bytes(paths: Iterable[str]) -> int:
    """Disk space taken below some directories, in bytes; holes do not count."""
    total = 0
    pending = list(paths)
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
    return total
