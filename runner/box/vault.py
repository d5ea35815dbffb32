"""Secrets at rest: one file each, <folder>/<uid>/<NAME>. Set, named, removed; read for one purpose, to start a job.

On a provisioned box the folder is root's and this runs in the launcher alone, so that the daemon can write and name
what it can't read. On an embedded box all of it is one user's, like everything else there.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from runner import files

NAME = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
VALUE_MAX = 32 << 10  # bytes
SECRETS_MAX = 64  # of one user
UID_MAX = 2**32 - 2
# What the launcher is asked. A value is anything that can stand in an environment.
REQUEST = re.compile(
    rb"(set-secret) (0|[1-9][0-9]{0,9}) (%b)\n([^\0]{1,%d})|(remove-secret) (0|[1-9][0-9]{0,9}) (%b)|"
    rb"(list-secrets) (0|[1-9][0-9]{0,9})" % (NAME.encode(), VALUE_MAX, NAME.encode())
)
PACKET_MAX = VALUE_MAX + 128  # one byte more than fits is no request; so nothing is stored by half
_NAME = re.compile(NAME)


class Vault:
    def __init__(self, folder: str) -> None:
        """folder: an absolute path; made when the first secret is set."""
        self.folder = folder

    def of(self, uid: int) -> str:
        """Where one user's secrets are."""
        return f"{self.folder}/{uid}"

    def put(self, uid: int, name: str, value: bytes) -> None:
        """Over the old one, if there is one. ValueError: too many. PermissionError: a folder is not ours alone."""
        for folder in (self.folder, self.of(uid)):
            if not os.path.isdir(folder):
                files.make_dir(folder)
            _ours_alone(folder)
        known = self.names(uid)
        if name not in known and len(known) >= SECRETS_MAX:
            raise ValueError(f"these are {SECRETS_MAX} secrets already, and no more are kept for one user")
        files.replace(f"{self.of(uid)}/{name}", value)

    def names(self, uid: int) -> dict[str, int]:
        """Name -> when it was set (UTC epoch seconds)."""
        try:
            found = os.listdir(self.of(uid))
        except FileNotFoundError:
            return {}
        kept = sorted(name for name in found if _NAME.fullmatch(name))
        return {name: int(os.lstat(f"{self.of(uid)}/{name}").st_mtime) for name in kept}

    def remove(self, uid: int, name: str) -> bool:
        """Whether there was one."""
        try:
            os.unlink(f"{self.of(uid)}/{name}")
        except FileNotFoundError:
            return False
        files.fsync_dir(self.of(uid))
        return True

    def values(self, uid: int, names: list[str]) -> dict[str, str]:
        """Those of them that are set, as an environment has them."""
        found = {}
        for name in names:
            try:
                _ours_alone(self.of(uid))
                with open(f"{self.of(uid)}/{name}", "rb") as file:
                    found[name] = os.fsdecode(file.read(VALUE_MAX))
            except FileNotFoundError:
                continue
        return found

    def answer(self, asked: re.Match[bytes]) -> str:
        """What the launcher says to a REQUEST: never a value."""
        verb, uid, name, value, removal, removed_of, removed, _, listed_of = asked.groups()
        number = int(uid or removed_of or listed_of)
        if number > UID_MAX:
            raise ValueError(f"there is no user {number}")
        if verb:
            self.put(number, name.decode(), value)
            return ""
        if removal:
            return "removed" if self.remove(number, removed.decode()) else "none"
        return " ".join(f"{name}={at}" for name, at in self.names(number).items())


def _ours_alone(folder: str) -> None:
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(1, "it is not its owner's alone, so no secret is kept there", folder)


@contextmanager
def handed(folder: str, spec: dict[str, object]) -> Iterator[str]:
    """What the supervisor of a spec is given to read, in systemd's words: nothing, or the values of its secrets as JSON
    in memory, by a path that is good until the end of the block and that root alone can open."""
    names, uid = spec.get("secrets", []), spec.get("uid", -1)
    if not names:
        yield "null"  # units.NOTHING
        return
    if not isinstance(names, list) or len(names) > SECRETS_MAX or type(uid) is not int or not 0 <= uid <= UID_MAX:
        raise ValueError("its spec names secrets of nobody")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise ValueError("its spec names secrets that are none")
    fd = os.memfd_create("secrets", os.MFD_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        files.write_all(fd, json.dumps(Vault(folder).values(uid, names)).encode())
        yield f"file:/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)
