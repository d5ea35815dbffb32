"""Finding and ending what a job left behind: its process tree, and whoever carries its launch id in the environment."""

from __future__ import annotations

import errno
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LAUNCH_VARIABLE = "RUNNER_LAUNCH_ID"
_THREADS, _STARTED = 17, 19  # among the fields of /proc/PID/stat that follow the name


def descendants(root: int) -> set[int]:
    """All living processes below root, root excluded; zombies are not living."""
    parents: dict[int, int] = {}
    for pid in _numbers():
        fields = _stat(pid)
        if fields is not None and _alive(fields):
            parents[pid] = int(fields[1])
    below: set[int] = set()
    grew = True
    known = {root}
    while grew:
        found = {pid for pid, parent in parents.items() if parent in known and pid not in known}
        grew = bool(found)
        known |= found
        below |= found
    return below


def carriers(launch_id: str) -> set[int]:
    """Living processes of this user with the launch id in their environment."""
    needle = f"{LAUNCH_VARIABLE}={launch_id}".encode()
    found: set[int] = set()
    own = os.getpid()
    for pid in _numbers():
        if pid == own:
            continue
        fields = _stat(pid) if needle in _environment(pid) else None
        if fields is not None and _alive(fields):
            found.add(pid)
    return found


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with its pid a name for ever. None: there is no such."""
    fields = _stat(pid)
    return int(fields[_STARTED]) if fields is not None else None


def living(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those (pid, start) that still live: neither gone, nor zombies, nor another process under that number."""
    return [(pid, start) for pid, start in pairs if (pid, start) in _named([pid])]


def outliving(pids: Iterable[int]) -> dict[str, object]:
    """What an exit record says of processes that KILL did not end; nothing where they are gone after all."""
    stuck = _named(sorted(pids))
    if not stuck:
        return {}
    first = stuck[0][0]
    more = f" and {len(stuck) - 1} more" if len(stuck) > 1 else ""
    detail = f"process {first}{more} could not be ended: {_untouched(first)}"
    return {"stuck": [list(pair) for pair in stuck], "detail": detail}


def _named(pids: Iterable[int]) -> list[tuple[int, int]]:
    """(pid, start) of those that live."""
    found = ((pid, _stat(pid)) for pid in pids)
    return [(pid, int(fields[_STARTED])) for pid, fields in found if fields is not None and _alive(fields)]


def _untouched(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "it belongs to another user"
    except ProcessLookupError:  # just now
        pass
    return "it waits in the kernel"


def kill(pids: set[int]) -> None:
    """KILL them all. Stopped first, all of them, so that none can fork while the others die."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):  # gone, or of another user by a setuid program
                continue


def reap() -> bool:
    """Collect ended children. True when no child is left, which for a subreaper means an empty tree."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            return False


def reap_orphans(main: int) -> None:
    """Collect ended children other than main, for whose status somebody waits: a long job leaves no zombies."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None and ended.si_pid != main:
        os.waitpid(ended.si_pid, 0)


def signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        return


def oom_kills() -> int:
    """How often this kernel has killed for memory: in our cgroup, else since boot; 0 where it does not say."""
    for path in (f"/sys/fs/cgroup{_cgroup()}/memory.events", "/proc/vmstat"):
        try:
            with open(path, "rb") as file:
                return next((int(line.split()[1]) for line in file if line.startswith(b"oom_kill ")), 0)
        except OSError:
            continue
    return 0


def _cgroup() -> str:
    """Ours, in the one hierarchy of version 2."""
    try:
        with open("/proc/self/cgroup") as file:
            return next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), "")
    except OSError:
        return ""


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    """The variables that a process was executed with; none of another user's, or of one that is just gone."""
    try:
        data = _environ(f"/proc/{pid}")
        if not data:  # its first thread ended; others, which hang in the kernel perhaps, still know
            data = b"".join(_environ(f"/proc/{pid}/task/{thread}") for thread in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return []
    return data.split(b"\0")


def _environ(task: str) -> bytes:
    """Empty for one that has no memory of its own any more, or never had."""
    try:
        with open(f"{task}/environ", "rb") as file:
            return file.read()
    except ProcessLookupError:
        return b""
    except PermissionError:
        with open(f"{task}/stat", "rb") as file:
            if _after_name(file.read())[0] != b"Z":  # without memory it is root's to the kernel, whose ever it was
                raise
        return b""


def _alive(fields: list[bytes]) -> bool:
    """A zombie lives while one of its threads does: a GPU's driver may keep that, and the memory with it."""
    return fields[0] not in (b"Z", b"X") or int(fields[_THREADS]) > 1


def _stat(pid: int) -> list[bytes] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return _after_name(file.read())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.EACCES):
            return None
        raise


def _after_name(line: bytes) -> list[bytes]:
    """The fields after the command's name, which may itself hold spaces and brackets: [state, ppid, ...]."""
    return line[line.rindex(b")") + 2 :].split()
