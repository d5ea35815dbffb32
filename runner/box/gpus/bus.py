"""The PCI bus as the kernel shows it: which NVIDIA GPUs are on it, and which sleep. Looking here wakes nobody."""

from __future__ import annotations

import os

NVIDIA = "0x10de"
DISPLAYS = ("0x0300", "0x0302")  # classes: a card with a monitor's plug, one without


def place(text: str) -> str:
    """A place on the bus as NVML writes it, 00000000:C1:00.0, from any way in use; other text stays as it is."""
    parts = text.replace(".", ":").split(":")
    try:
        domain, bus, device, function = (int(part, 16) for part in ([*parts, "0"])[:4])
    except ValueError:
        return text
    return f"{domain:08X}:{bus:02X}:{device:02X}.{function:X}"


class Bus:
    """sys, proc: where those file systems are mounted."""

    def __init__(self, sys: str = "/sys", proc: str = "/proc") -> None:
        self._devices = f"{sys}/bus/pci/devices"
        self._driver = f"{proc}/driver/nvidia/gpus"

    def gpus(self) -> list[str]:
        """The places of all NVIDIA GPUs, in the driver's order."""
        try:
            names = os.listdir(self._devices)
        except OSError:
            return []
        return sorted(place(name) for name in names if self._is_gpu(name))

    def _is_gpu(self, name: str) -> bool:
        folder = f"{self._devices}/{name}"
        return _read(f"{folder}/vendor") == NVIDIA and _read(f"{folder}/class").startswith(DISPLAYS)

    def asleep(self, place: str) -> bool:
        """Whether the kernel has powered it down. Asking the driver about it would wake it up."""
        return _read(f"{self._devices}/{_name(place)}/power/runtime_status") == "suspended"

    def identity(self, place: str) -> tuple[str, str] | None:
        """(UUID, name) as the driver remembers them; None when it was not awake since the driver was loaded."""
        said = {}
        for line in _read(f"{self._driver}/{_name(place)}/information").splitlines():
            key, _, value = line.partition(":")
            said[key.strip()] = value.strip()
        uuid = said.get("GPU UUID", "")
        return (uuid, said.get("Model", "")) if uuid.startswith("GPU-") and "?" not in uuid else None


def _name(place: str) -> str:
    """As the kernel names it: 0000:c1:00.0."""
    domain, _, rest = place.partition(":")
    return f"{domain[-4:] if domain.startswith('0000') else domain.lstrip('0')}:{rest}".lower()


def _read(path: str) -> str:
    """The start of a small file; nothing where it can't be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 4096).decode(errors="replace").strip()
    except OSError:  # the device left meanwhile
        return ""
    finally:
        os.close(fd)
