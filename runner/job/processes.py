"""Finding and ending what a job left behind: its process tree, and whoever carries its launch id in the environment."""

from __future__ import annotations

import errno
import os
import signal

LAUNCH_VARIABLE = "RUNNER_LAUNCH_ID"


def descendants(root: int) -> set[int]:
    """All living processes below root, root excluded; zombies are not living."""
    parents: dict[int, int] = {}
    for pid in _numbers():
        fields = _stat(pid)
        if fields is not None and fields[0] not in (b"Z", b"X"):
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
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                carries = needle in file.read().split(b"\0")
        except OSError:  # another user's, or just gone
            continue
        fields = _stat(pid) if carries else None
        if fields is not None and fields[0] not in (b"Z", b"X"):
            found.add(pid)
    return found


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
    """How often this kernel has killed for memory since boot; 0 where it does not say."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


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
