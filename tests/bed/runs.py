"""One user of the bed. Its number names all it makes on this machine, so that the next one can sweep what a kill left.

    bed7            the bridge, and the nft table       10.78.7.0/24    the addresses
    bed7-1          the first host: its end of the cable, its control group, its name for systemd-nspawn
    PLACE/7.lock    held while the run lives            DISKS/7/        its hosts' disks and consoles

Processes need no sweeping: the kernel ends them with the process (the thread, to be exact) that started them.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
from pathlib import Path

from bed import cgroups, network
from bed.commands import BedError, private

PLACE = network.PLACE
DISKS = Path("/var/tmp/gpubox-bed/runs")
NUMBERS = range(200)


class Run:
    """Claims a free number, sweeping what died; the network comes with the first host that asks for it."""

    def __init__(self) -> None:
        PLACE.mkdir(mode=0o700, exist_ok=True)
        private(DISKS.parent)
        sweep()
        self.number, self._lock = _claim()
        self.place = DISKS / str(self.number)
        self.place.mkdir(parents=True)
        self._hosts = itertools.count(1)
        self._connected = False

    def names_a_host(self) -> tuple[str, Path, str]:
        """(name, folder, address) of one more host."""
        host = next(self._hosts)
        name = f"bed{self.number}-{host}"
        place = self.place / name
        place.mkdir()
        return name, place, str(network.subnet(self.number)[1 + host])

    def connect(self) -> None:
        if not self._connected:
            network.create(self.number)
            self._connected = True

    def close(self) -> None:
        _clear(self.number)
        (PLACE / f"{self.number}.lock").unlink()
        os.close(self._lock)


def _claim() -> tuple[int, int]:
    for number in NUMBERS:
        lock = _lock(number)
        if lock is None:
            continue
        if not network.taken(number):
            return number, lock
        os.close(lock)
    raise BedError(f"no address range is free in {network.RANGE}")


def _lock(number: int) -> int | None:
    """The lock of a number, or None when its run lives."""
    path = PLACE / f"{number}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and path.stat().st_ino == os.fstat(lock).st_ino:  # else its run just ended and unlinked it
            return lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None


def sweep() -> None:
    """Remove what runs left that were killed."""
    dead = {path.stem for path in PLACE.glob("*.lock")} | {path.name for path in DISKS.glob("*")}
    for number in sorted(int(name) for name in dead if name.isdigit()):
        lock = _lock(number)
        if lock is not None:
            _clear(number)
            (PLACE / f"{number}.lock").unlink()
            os.close(lock)


def _clear(number: int) -> None:
    cgroups.remove(f"bed{number}-*")
    network.remove(number)
    shutil.rmtree(DISKS / str(number), ignore_errors=True)
