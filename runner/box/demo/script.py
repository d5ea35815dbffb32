"""What the demo's hardware says: the script of the fake libnvidia-ml, and folders in the place of /proc and /sys.

Of the statements that tests/nvml/fake.c understands, these are used:

    link UUID UUID nvlink                     what two GPUs have in common
    gpu MODEL UUID                            the lines up to the next one are about it
    FIELD VALUE                               in NVML's units: bytes, %, mW, mJ, MHz, C, ns, bits
    process PID BYTES KIND SM%                KIND compute or graphics; used memory is the sum of theirs, and `base`
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

from runner.box.demo.physics import Card
from runner.job.processes import LAUNCH_VARIABLE

IDLE, POWER_CAP, TOO_HOT = 1, 4, 32  # bits of NVML's reasons for lower clocks


@dataclass(slots=True)
class Holder:
    """A process that the driver lists, and that does not exist."""

    pid: int
    memory_bytes: int
    user: str
    command: str
    load: float = 0.0  # 0..1
    kind: str = "compute"
    launch: str = ""  # RUNNER_LAUNCH_ID; empty: not of the queue
    started: int = 0  # clock ticks


@dataclass(slots=True)
class Slot:
    """A GPU in its place on the bus."""

    index: int
    card: Card
    holders: list[Holder] = field(default_factory=list)
    asleep: bool = False
    idle_since: float = 0.0  # epoch seconds

    @property
    def uuid(self) -> str:
        return f"GPU-{f'{self.index + 1:x}' * 8}-de00-4000-8000-{self.index + 1:012x}"

    @property
    def bus_id(self) -> str:
        return f"00000000:{self.index + 1:02X}:00.0"

    def readings(self) -> dict[str, object]:
        """The same as the statements below, as the collector says it."""
        card, model, busy = self.card, self.card.model, self.card.load > 0
        held = [name for name, so in (("power_cap", card.capped), ("sw_thermal", card.hot)) if so and busy]
        return {
            "utilization": round(card.load, 2),
            "memory_utilization": round(card.load * 0.62, 2),
            "power_watts": card.watts,
            "temperature_celsius": float(round(card.degrees)),
            "fan": round(card.fan, 2),
            "sm_clock_hertz": card.clock * 1e6,
            "memory_clock_hertz": (model.memory_clock if busy else 405) * 1e6,
            "performance_state": 2 if busy else 8,
            "energy_joules": card.joules,
            "throttled_by": held,
        }

    @property
    def used_bytes(self) -> int:
        return sum(holder.memory_bytes for holder in self.holders)


def statements(slots: Sequence[Slot], linked: Sequence[tuple[Slot, Slot]]) -> str:
    """The whole script."""
    lines = [f"link {one.uuid} {other.uuid} nvlink" for one, other in linked]
    for slot in slots:
        lines += _lines(slot)
    return "\n".join(lines) + "\n"


def _lines(slot: Slot) -> list[str]:
    card, model = slot.card, slot.card.model
    busy = card.load > 0
    values = {
        "utilization": round(card.load * 100),
        "memory_utilization": round(card.load * 62),
        "power": round(card.watts * 1000),
        "power_average": round(card.watts * 1000),
        "temperature": round(card.degrees),
        "fan": round(card.fan * 100),
        "sm_clock": card.clock,
        "memory_clock": model.memory_clock if busy else 405,
        "performance_state": 2 if busy else 8,
        "pcie_generation": model.generation if busy else 1,
        "energy": round(card.joules * 1000),
        "throttle": POWER_CAP * card.capped | TOO_HOT * card.hot if busy else IDLE,
        "throttled_power_cap": round(card.capped_seconds * 1e9),
        "throttled_sw_thermal": round(card.hot_seconds * 1e9),
    }
    return [
        f"gpu {model.key} {slot.uuid}",
        f"bus {slot.bus_id}",
        *(f"{name} {value}" for name, value in values.items()),
        *(f"process {each.pid} {each.memory_bytes} {each.kind} {each.load * 100:.0f}" for each in slot.holders),
    ]


class Files:
    """Where they lie. Written by rename: whoever reads finds the old or the new."""

    def __init__(self, folder: str) -> None:
        self.script, self.proc, self.sys = f"{folder}/script", f"{folder}/proc", f"{folder}/sys"
        self._described: set[int] = set()
        self._power: dict[int, str] = {}  # index -> what was last said of its power

    @property
    def options(self) -> list[str]:
        """What the collector is started with."""
        return ["--sys", self.sys, "--proc", self.proc, "--kernel-log", os.devnull]

    def write(self, slots: Sequence[Slot], linked: Sequence[tuple[Slot, Slot]]) -> None:
        for slot in slots:
            self._write_device(slot)
        holders = {holder.pid: holder for slot in slots for holder in slot.holders}
        for pid in holders.keys() - self._described:
            self._describe(holders[pid])
        _put(self.script, statements(slots, linked))
        for pid in self._described - holders.keys():
            shutil.rmtree(f"{self.proc}/{pid}", ignore_errors=True)
        self._described = set(holders)

    def _describe(self, holder: Holder) -> None:
        folder = f"{self.proc}/{holder.pid}"
        os.makedirs(folder, exist_ok=True)
        between = " ".join("0" * 15)
        _put(f"{folder}/stat", f"{holder.pid} (python) S 1 {between} 1 0 {holder.started} 0\n")
        _put(f"{folder}/cmdline", holder.command.replace(" ", "\0") + "\0")
        _put(f"{folder}/environ", f"{LAUNCH_VARIABLE}={holder.launch}\0" if holder.launch else "")

    def _write_device(self, slot: Slot) -> None:
        power = "suspended" if slot.asleep else "active"
        if self._power.get(slot.index) == power:
            return
        name = slot.bus_id[4:].lower()
        if slot.index not in self._power:
            known = f"{self.proc}/driver/nvidia/gpus/{name}"
            os.makedirs(known)
            _put(f"{known}/information", f"Model: {slot.card.model.name}\nGPU UUID: {slot.uuid}\n")
            os.makedirs(f"{self.sys}/bus/pci/devices/{name}/power")
            _put(f"{self.sys}/bus/pci/devices/{name}/vendor", "0x10de\n")
            _put(f"{self.sys}/bus/pci/devices/{name}/class", "0x030000\n")
        _put(f"{self.sys}/bus/pci/devices/{name}/power/runtime_status", f"{power}\n")
        self._power[slot.index] = power


def _put(path: str, text: str) -> None:
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.replace(f"{path}.new", path)
