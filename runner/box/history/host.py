"""The host: how busy it is, as the kernel counts. A few small files, read every few seconds; 0.2 ms."""

from __future__ import annotations

import os
from collections.abc import Mapping

from runner import files

OURS_NOT = (
    "lo",
    "veth",
    "docker",
    "br-",
    "virbr",
    "vnet",
    "tap",
    "tun",
    "cni",
    "flannel",
    "vb-",
    "ve-",
)  # others' ends
SECTOR = 512


class Host:
    """The rates are those since the last reading: the first has none."""

    def __init__(self, state: str, proc: str = "/proc", sys: str = "/sys") -> None:
        """state: a folder on the disk whose room is told."""
        self._state, self._proc, self._sys = state, proc, sys
        self._disks: dict[str, bool] = {}  # name -> whether it is a device of its own
        self._before: dict[str, float] = {}
        self._before_at = 0.0

    def read(self, now: float) -> dict[str, float]:
        """Values by the names of columns.HOST; what can't be read is left out. now: monotonic."""
        found = self._memory() | self._room()
        counted = self._cpu() | self._moved() | self._network()
        found |= rates(self._before, counted, now - self._before_at)
        self._before, self._before_at = counted, now
        return found

    def _lines(self, path: str) -> list[str]:
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                return file.read(1 << 20).splitlines()
        except OSError:
            return []

    def _memory(self) -> dict[str, float]:
        values = {}
        for line in self._lines(f"{self._proc}/meminfo")[:3]:
            name, _, value = line.partition(":")
            values[name] = float(value.split()[0]) * 1024
        if "MemTotal" not in values or "MemAvailable" not in values:
            return {}
        return {"memory_used_bytes": values["MemTotal"] - values["MemAvailable"]}

    def _room(self) -> dict[str, float]:
        try:
            free, _ = files.disk_room(self._state)
        except OSError:
            return {}
        return {"disk_free_bytes": float(free)}

    def _cpu(self) -> dict[str, float]:
        for line in self._lines(f"{self._proc}/stat")[:1]:
            spent = [float(word) for word in line.split()[1:9]]
            return {"all": sum(spent), "idle": sum(spent[3:5])}
        return {}

    def _moved(self) -> dict[str, float]:
        """Of the disks themselves, not of their partitions, nor of what is made of them."""
        fields = [words for line in self._lines(f"{self._proc}/diskstats") if self._is_disk(words := line.split())]
        if not fields:
            return {}
        read, written = sum(float(words[5]) for words in fields), sum(float(words[9]) for words in fields)
        return {"disk_read_bytes_per_second": read * SECTOR, "disk_written_bytes_per_second": written * SECTOR}

    def _is_disk(self, words: list[str]) -> bool:
        if len(words) < 10:
            return False
        if words[2] not in self._disks:
            self._disks[words[2]] = os.path.exists(f"{self._sys}/block/{words[2]}/device")
        return self._disks[words[2]]

    def _network(self) -> dict[str, float]:
        lines = (line.partition(":") for line in self._lines(f"{self._proc}/net/dev")[2:])
        fields = [rest.split() for name, _, rest in lines if not name.strip().startswith(OURS_NOT)]
        if not fields:
            return {}
        received, sent = sum(float(words[0]) for words in fields), sum(float(words[8]) for words in fields)
        return {"received_bytes_per_second": received, "sent_bytes_per_second": sent}


def rates(before: Mapping[str, float], now: Mapping[str, float], seconds: float) -> dict[str, float]:
    """PURE: counters as rates; one that fell was begun anew, and has none this time."""
    found = {name: (now[name] - was) / seconds for name, was in before.items() if _grew(now, name, was) and seconds > 0}
    spent, idle = found.pop("all", 0.0), found.pop("idle", None)
    if spent > 0 and idle is not None:
        found["cpu"] = min(max(1 - idle / spent, 0.0), 1.0)
    return found


def _grew(now: Mapping[str, float], name: str, was: float) -> bool:
    return now.get(name, was - 1) >= was
