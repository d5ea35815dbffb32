"""The engine of a provisioned box: each attempt a unit of its own, under another user, started by the launcher.

The daemon writes the same records as for the plain engine and reads the same ones. The supervisor in the unit is of its
own user, so the lock, `started` and `exit` are the truth here too, out of the job's reach. Only the first push and the
last stop go by the launcher, which is asked by job and attempt alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from runner.box.engines import Key, Stop
from runner.box.engines.disk import OnDisk
from runner.box.engines.plain import Listen
from runner.model import Resources
from runner.paths import LAUNCHER_SOCKET, StateDir

REPLY_MAX = 8 << 10  # the names of 64 secrets
PATIENCE = 5.0  # seconds for a reply that is waited for; the launcher gives a stop a fifth of a second
TRAVERSED = 0o711  # of folders on the way to what belongs to the jobs' user


class Systemd(OnDisk):
    def __init__(
        self,
        state: StateDir,
        capacity: Resources,
        launcher: str = LAUNCHER_SOCKET,
        listen: Listen = lambda link: lambda: None,
        report: Callable[[str], None] = lambda said: None,
    ) -> None:
        """launcher: the path of its socket. listen: has a turn taken when a reply is there."""
        super().__init__(state, capacity, report)
        self.launcher = launcher
        self._listen = listen
        self._links: dict[Key, tuple[socket.socket, Callable[[], object]]] = {}  # starts that are not answered yet
        for folder in (state, state.jobs, state.trees, state.envs, state.builds):
            os.makedirs(folder, exist_ok=True)
            os.chmod(folder, TRAVERSED)

    def close(self) -> None:
        """Units live on."""
        for key in list(self._links):
            self._drop(key)

    # --- start ---

    def _folders(self, job_id: int, attempt: int) -> list[str]:
        """Outputs and checkpoint belong to the jobs' user, so the launcher makes them."""
        job = self.state.job(job_id)
        return [job, job.attempt(attempt)]

    def _make_dirs(self, job_id: int, attempt: int) -> None:
        super()._make_dirs(job_id, attempt)
        os.chmod(self.state.job(job_id), TRAVERSED)  # whatever the umask

    def _ask(self, key: Key) -> None:
        link = self._send(f"start {key[0]} {key[1]}")
        link.setblocking(False)
        self._drop(key)
        self._links[key] = link, self._listen(link)

    def _hear(self) -> None:
        for key, (link, _) in list(self._links.items()):
            try:
                said = link.recv(REPLY_MAX)
            except BlockingIOError:
                continue
            except OSError as error:
                said = f"no {error.strerror}".encode()
            self._drop(key)
            if said != b"ok":
                why = said.removeprefix(b"no ").decode(errors="replace") or "the launcher gave no answer"
                self._report(f"job {key[0]}, attempt {key[1]}: no unit could be started: {why}")
                self._refused.add(key)
                self._awaited.discard(key)

    def _drop(self, key: Key) -> None:
        link, unlisten = self._links.pop(key, (None, None))
        if link is not None and unlisten is not None:
            unlisten()
            link.close()

    # --- what is left of an attempt ---

    def _left(self, stop: Stop) -> set[int]:
        """The launcher looks by killing: a unit without its supervisor has nothing to live for."""
        return {int(pid) for pid in self.ask("stop", stop.key).split()}

    def _end_all(self, stop: Stop) -> bool:
        return not self._left(stop)

    # --- the launcher ---

    def ask(self, verb: str, key: Key, patience: float | None = PATIENCE) -> str:
        """What the launcher answers beside "ok". OSError with its words when it does not do it. patience: seconds;
        None: it takes as long as it takes."""
        return self._asked(f"{verb} {key[0]} {key[1]}", patience)

    def build(self, environment: str) -> None:
        """Have builds/<environment> run as an attempt is run."""
        self._asked(f"build-env {environment}", PATIENCE)

    def secret(self, request: str, value: bytes | None = None) -> str:
        """Something about a user's secrets. value: what is to be kept. OSError never holds it."""
        return self._asked(request, PATIENCE, value)

    def _asked(self, request: str, patience: float | None, value: bytes | None = None) -> str:
        with self._send(request, value) as link:
            link.settimeout(patience)
            said = link.recv(REPLY_MAX).decode(errors="replace")
        if not said.startswith("ok"):
            raise OSError(0, said.removeprefix("no ") or "the launcher gave no answer", request)
        return said.removeprefix("ok").strip()

    def outputs(self, job_id: int, attempt: int) -> socket.socket:
        """A connection to a reader of the job's outputs (runner/box/reader.py), who is the jobs' user."""
        with self._send(f"read-outputs {job_id} {attempt}") as link:
            said, fds, _, _ = socket.recv_fds(link, REPLY_MAX, 1)
        if said != b"ok" or not fds:
            raise OSError(0, said.decode(errors="replace").removeprefix("no "), f"read-outputs {job_id}")
        return socket.socket(fileno=fds[0])

    def _send(self, request: str, value: bytes | None = None) -> socket.socket:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            link.settimeout(PATIENCE)
            link.connect(self.launcher)
            link.send(request.encode() + (b"" if value is None else b"\n" + value))
        except BaseException:
            link.close()
            raise
        return link
