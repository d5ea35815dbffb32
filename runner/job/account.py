"""The user that a job runs as where that is not its supervisor's own: on a provisioned box, one user for all jobs.

There the supervisor is the daemon's user, so that its records are out of the job's reach, and may do three things more:
change its user, its groups, and signal whom it started. The job keeps none of them.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal

from runner import files

_CAPABILITIES_3 = 0x20080522  # the version of capset's structures, each of 3 words, for 64 capabilities
_libc = ctypes.CDLL(None, use_errno=True)


class Account:
    """A user of this box other than root. KeyError: there is none of that number."""

    def __init__(self, uid: int) -> None:
        entry = pwd.getpwuid(uid)
        if 0 in (entry.pw_uid, entry.pw_gid):
            raise ValueError("no job runs as root")
        self.uid, self.gid, self.name = entry.pw_uid, entry.pw_gid, entry.pw_name
        self.variables = {
            "HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name, "SHELL": entry.pw_shell or "/bin/sh",
        }  # fmt: skip

    @classmethod
    def named(cls, name: str) -> Account:
        return cls(pwd.getpwnam(name).pw_uid)

    def become(self) -> None:
        """In a child, for good. OSError: it is still, or partly, who it was, and must not go on."""
        os.initgroups(self.name, self.gid)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        _forget_capabilities()
        if os.getresuid() != (self.uid,) * 3 or os.getresgid() != (self.gid,) * 3:
            raise PermissionError(1, f"it could not become {self.name}")
        files.die_with_parent(signal.SIGKILL)  # the kernel forgets that whenever a process changes its user


def _forget_capabilities() -> None:
    """All of them: they outlast a change from one user who is not root to another."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "the job's capabilities could not be dropped")
