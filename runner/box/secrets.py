"""People's secrets, as the daemon knows them: it sets, names and removes them, and has no way to read one.

Each belongs to the account that set it. On a provisioned box the launcher keeps them, out of the daemon's reach; on an
embedded one they are files of the daemon's own user (vault.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Protocol

from runner.box.engines.systemd import Systemd
from runner.box.vault import NAME, VALUE_MAX, Vault
from runner.errors import BadRequest, DiskFull, NotFound, Problem
from runner.files import DISK_FULL
from runner.paths import StateDir

RESERVED = re.compile(r"RUNNER_|CUDA_VISIBLE_DEVICES\Z|CUDA_DEVICE_ORDER\Z")  # variables that the box sets itself
LOOK = "`journalctl -u gpubox-launcher` on the box may say more"


class Keeper(Protocol):
    """Where they are: a Vault, or the launcher's."""

    def put(self, uid: int, name: str, value: bytes) -> None: ...

    def names(self, uid: int) -> dict[str, int]: ...

    def remove(self, uid: int, name: str) -> bool: ...


class ByLauncher:
    """The launcher's."""

    def __init__(self, engine: Systemd) -> None:
        self._engine = engine

    def put(self, uid: int, name: str, value: bytes) -> None:
        self._engine.secret(f"set-secret {uid} {name}", value)

    def names(self, uid: int) -> dict[str, int]:
        pairs = (pair.partition("=") for pair in self._engine.secret(f"list-secrets {uid}").split())
        return {name: int(at) for name, _, at in pairs}

    def remove(self, uid: int, name: str) -> bool:
        return self._engine.secret(f"remove-secret {uid} {name}") == "removed"


class Secrets:
    """Blocking, for a worker's thread. What goes wrong is said without the value."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def put(self, uid: int, name: str, value: str) -> None:
        check_name(name)
        data = _bytes(name, value)
        try:
            self._keeper.put(uid, name, data)
        except (OSError, ValueError) as error:
            raise _trouble(f"{name} is not kept", error) from None

    def listed(self, uid: int) -> dict[str, int]:
        """Name -> when it was set (UTC epoch seconds)."""
        try:
            return self._keeper.names(uid)
        except OSError as error:
            raise _trouble("nobody can say which secrets there are", error) from None

    def remove(self, uid: int, name: str) -> None:
        check_name(name)
        try:
            there = self._keeper.remove(uid, name)
        except OSError as error:
            raise _trouble(f"{name} is not removed", error) from None
        if not there:
            raise NotFound(f"no secret of yours is called {name}", "`runner secret list` shows them")

    def require(self, uid: int, names: Iterable[str]) -> None:
        """BadRequest, with what to type, if one is not set."""
        wanted = list(names)
        known = self.listed(uid) if wanted else {}
        for name in wanted:
            check_name(name)
            if name not in known:
                raise BadRequest(f"the secret {name} is not set on this box", f"`runner secret set {name}`")


def kept(engine: object, state: StateDir) -> Secrets:
    """Those of a box, by what runs its jobs."""
    return Secrets(ByLauncher(engine) if isinstance(engine, Systemd) else Vault(state.secrets))


def check_name(name: str) -> None:
    if not re.fullmatch(NAME, name):
        raise BadRequest(f"{name[:80]!a} is no name for a secret", "that of a variable, as in WANDB_API_KEY")
    if RESERVED.match(name):
        raise BadRequest(f"{name} is set by the box itself", "see docs/jobs.md for what a job is given")


def _bytes(name: str, value: str) -> bytes:
    try:
        data = os.fsencode(value)
    except UnicodeEncodeError:
        raise BadRequest(f"the value of {name} is not text that a program can be given") from None
    if not data or b"\0" in data:
        raise BadRequest(f"the value of {name} is {'empty' if not data else 'not text: it holds a NUL character'}")
    if len(data) > VALUE_MAX:
        raise BadRequest(f"the value of {name} is {len(data)} bytes long, {VALUE_MAX} are the most", "use a file")
    return data


def _trouble(what: str, error: OSError | ValueError) -> Problem:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return DiskFull(f"{what}: the box's disk is full", "see `runner clean`")
    if isinstance(error, OSError):
        return Problem(f"{what}: {error.strerror or type(error).__name__}", LOOK)
    return BadRequest(f"{what}: {error}", "`runner secret remove NAME` makes room")
