"""What /proc says of the processes that hold a GPU: whose they are, what they run, which launch they belong to.

A process is known by its pid and its start, and described once; as long as it lives only its `stat` is read again
(16 µs; describing one takes some 100 µs). Others' environments can't be read without root, which is normal.
"""

from __future__ import annotations

import os
import pwd
import re

COMMAND_MAX = 200  # characters
DEPTH_MAX = 64  # ancestors
LAUNCH = b"RUNNER_LAUNCH_ID="
# What a launch's cgroup is called, from the top: a user can have slices of such names, but only below his own.
UNIT = re.compile(rb"^\d+:[^:\n]*:/gpubox\.slice/gpubox-jobs\.slice/gpubox-job-(\d+)-(\d+)\.service", re.MULTILINE)
DEAD = (b"Z", b"X", b"x")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    Description = dict[str, object]


class Stat:
    """The start of /proc/PID/stat, as far as it matters here."""

    __slots__ = ("name", "parent", "started", "zombie")

    def __init__(self, line: bytes) -> None:
        head, _, tail = line.rpartition(b") ")  # the name may itself hold brackets and spaces
        fields = tail.split(maxsplit=20)
        self.name = head.partition(b"(")[2]
        self.parent = int(fields[1])
        self.started = int(fields[19])
        self.zombie = fields[0] in DEAD and int(fields[17]) <= 1  # its other threads may outlive the first


class Holders:
    """Descriptions by pid: fields of model.Process that /proc knows. Call `keep` now and then, with who still holds."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._known: dict[int, tuple[int, int, Description]] = {}  # pid -> (start, parent, description)
        self._users: dict[int, str] = {}

    def describe(self, pid: int) -> Description:
        """started, alive, user, command, launch, ancestors. A pid that /proc does not have is not alive."""
        try:
            stat = self._stat(pid)
        except (FileNotFoundError, ProcessLookupError):
            return self._unseen(pid)
        except OSError:  # hidden from us, so it is there
            return _description(alive=True)
        started, parent, description = self._known.get(pid, (-1, -1, {}))
        if started == stat.started and parent == stat.parent:
            return description | {"alive": not stat.zombie}
        if started == stat.started:  # its parent died, somebody else is its ancestor now
            description = description | {"ancestors": self._ancestors(stat)}
        else:
            description = self._read(pid, stat)
        self._known[pid] = (stat.started, stat.parent, description)
        return description | {"alive": not stat.zombie}

    def keep(self, pids: Collection[int]) -> None:
        """Forget all others."""
        for pid in [pid for pid in self._known if pid not in pids]:
            del self._known[pid]

    def _unseen(self, pid: int) -> Description:
        """/proc does not have it: it ended, or a mount option hides it, but then it can still be addressed."""
        if pid in self._known:
            return self._known[pid][2] | {"alive": False}
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return _description(alive=False)
        except PermissionError:
            pass
        return _description(alive=True)

    def _read(self, pid: int, stat: Stat) -> Description:
        return _description(
            alive=True,
            started=stat.started,
            user=self._user(pid),
            command=clean(self._bytes(pid, "cmdline")) or f"[{clean(stat.name)}]",
            launch=self._launch(pid, stat),
            ancestors=self._ancestors(stat),
        )

    # --- single files ---

    def _stat(self, pid: int) -> Stat:
        return Stat(self._open_and_read(pid, "stat", 1024))

    def _bytes(self, pid: int, name: str, most: int = 4096) -> bytes:
        """The start of a file; nothing where it can't be read."""
        try:
            return self._open_and_read(pid, name, most)
        except OSError:
            return b""

    def _open_and_read(self, pid: int, name: str, most: int) -> bytes:
        fd = os.open(f"{self._proc}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, most)
        finally:
            os.close(fd)

    def _user(self, pid: int) -> str:
        """The name of its effective user. Its folder's owner would be root for programs that may not be dumped."""
        found = re.search(rb"^Uid:\s+\d+\s+(\d+)", self._bytes(pid, "status"), re.MULTILINE)
        if found is None:
            return ""
        uid = int(found[1])
        if uid not in self._users:
            try:
                self._users[uid] = pwd.getpwuid(uid).pw_name
            except KeyError:
                self._users[uid] = str(uid)
        return self._users[uid]

    # --- whose it is ---

    def _launch(self, pid: int, stat: Stat) -> str | None:
        """`job/attempt` of its cgroup; else the RUNNER_LAUNCH_ID of it, or of its nearest ancestor that has one."""
        unit = UNIT.search(self._bytes(pid, "cgroup"))
        if unit is not None:
            return f"{int(unit[1])}/{int(unit[2])}"
        for relative in (pid, *self._ancestors(stat)):
            for variable in self._bytes(relative, "environ", 1 << 21).split(b"\0"):
                if variable.startswith(LAUNCH):
                    return clean(variable[len(LAUNCH) :]) or None
        return None

    def _ancestors(self, stat: Stat) -> list[int]:
        """Parent first, down to process 1 or the edge of our namespace."""
        found: list[int] = []
        while stat.parent > 0 and stat.parent not in found and len(found) < DEPTH_MAX:
            found.append(stat.parent)
            try:
                stat = self._stat(stat.parent)
            except OSError:
                break
        return found


def _description(
    alive: bool,
    started: int = 0,
    user: str = "",
    command: str = "",
    launch: str | None = None,
    ancestors: tuple[int, ...] | list[int] = (),
) -> Description:
    return {
        "started": started,
        "alive": alive,
        "user": user,
        "command": command,
        "launch": launch,
        "ancestors": list(ancestors),
    }


def clean(text: bytes) -> str:
    """For a terminal and a log: NUL is a space, what can't be shown is `?`, at most COMMAND_MAX characters."""
    shown = text.replace(b"\0", b" ").decode(errors="replace").strip()
    if len(shown) > COMMAND_MAX:
        shown = f"{shown[: COMMAND_MAX - 3]}..."
    return shown if shown.isprintable() else "".join(c if c.isprintable() else "?" for c in shown)
