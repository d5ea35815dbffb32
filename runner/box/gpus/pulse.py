"""Where systemd minds the collector: it is told that the loop goes round, and only one collector is at the driver.

A call that hangs says nothing more, so systemd kills the process. One that not even KILL ends keeps its lock, and
whoever comes after it does not go where it hangs.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from runner import files

PATIENCE = 10  # seconds between two rounds, as the daemon has it; the unit gives the first one more

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping


def pulse(environ: MutableMapping[str, str] = os.environ) -> Callable[[], None]:
    """What to call once a round. Nobody is told where nobody asked."""
    address = environ.pop("NOTIFY_SOCKET", "")
    if not address or "WATCHDOG_USEC" not in environ:
        return lambda: None
    to = f"\0{address[1:]}" if address.startswith("@") else address
    said = [f"WATCHDOG_USEC={PATIENCE * 1_000_000}\n"]  # with the first

    def beat() -> None:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as link:
            link.sendto(f"{''.join(said)}WATCHDOG=1".encode(), to)
            said.clear()

    return beat


def alone(folder: str) -> str | None:
    """Be the only collector, for as long as this process lives; the process id of the one that is there before us.
    folder: of the unit; empty: the daemon minds its child itself."""
    if not folder:
        return None
    held = files.lock(f"{folder}/lock")
    if held is None:
        with suppress(FileNotFoundError), open(f"{folder}/pid") as file:
            return file.read()
        return "?"
    files.replace(f"{folder}/pid", str(os.getpid()).encode())
    return None
