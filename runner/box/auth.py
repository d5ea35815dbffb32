"""Who asks, as the kernel says (SO_PEERCRED), and whether they may. Every route is closed unless it says otherwise.

The protocol puts the caller into the ASGI scope's `client`, which no header reaches: proxy headers are off.
"""

from __future__ import annotations

import functools
import os
import pwd
import socket
import struct
from collections.abc import MutableMapping
from typing import Annotated, Any

from fastapi import Depends, Request

from runner.errors import Refused
from runner.model import Principal

_MARK = "uid:"  # no address of a network connection begins like this


def peer(sock: socket.socket) -> tuple[str, int]:
    """The ASGI `client` of a unix connection: ("uid:1000", process id)."""
    pid, uid, _ = struct.unpack("i2I", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"{_MARK}{uid}", pid


class Gate:
    """The embedded box's: its owner and root may do everything, nobody else anything."""

    def __init__(self, owner: int | None = None) -> None:
        self.owner = os.getuid() if owner is None else owner

    def admit(self, scope: MutableMapping[str, Any]) -> Principal:
        name = (scope.get("client") or ("",))[0]
        if not name.startswith(_MARK) or not name[len(_MARK) :].isdecimal():
            raise Refused("nobody may use the box without saying who they are", "use its unix socket")
        uid = int(name[len(_MARK) :])
        if uid not in (self.owner, 0):
            raise Refused(
                f"this box belongs to {user_name(self.owner)}, not to {user_name(uid)}",
                "unset GPUBOX_SOCKET and GPUBOX_STATE to use a box of your own",
            )
        return Principal(uid, user_name(uid), "admin")


@functools.lru_cache(maxsize=256)
def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


async def admitted(request: Request) -> Principal:
    """The dependency of the whole application."""
    gate: Gate = request.app.state.house.gate
    return gate.admit(request.scope)


async def administrator(request: Request) -> Principal:
    who = await admitted(request)
    if who.role != "admin":
        raise Refused("only an administrator may do this", "ask the box's owner")
    return who


Who = Annotated[Principal, Depends(admitted)]
Admin = Annotated[Principal, Depends(administrator)]
