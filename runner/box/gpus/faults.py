"""What NVML's error codes mean: for the collector, and in words for people. The numbers are those of nvml.h."""

from __future__ import annotations

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, TIMEOUT, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH = 3, 4, 6, 10, 13, 25
NOT_EXPOSED = (NOT_SUPPORTED, FUNCTION_NOT_FOUND)
NEWER_THAN_DRIVER = (FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH)

# These void handles, wherever they come up.
LIFECYCLE = {
    1: ("unknown", "the driver closed the connection"),
    9: ("driver_not_loaded", "the NVIDIA driver is not loaded"),
    15: ("lost", "it fell off the bus"),
    18: ("version_mismatch", "the NVIDIA driver was upgraded: its library is not of what the kernel has loaded"),
    28: ("no_gpu", "the driver finds no GPU"),
}
# And these do while NVML is opened, or a handle is made.
AT_OPENING = LIFECYCLE | {
    NO_PERMISSION: ("no_permission", "no permission to talk to the NVIDIA driver"),
    12: ("no_library", "no NVIDIA driver is installed: libnvidia-ml.so.1 is missing"),
}
HINTS = {
    "driver_not_loaded": "`sudo modprobe nvidia` loads it, or says why it can't be",
    "lost": "check riser, power supply and slot; only a reboot brings it back",
    "version_mismatch": "reboot, or unload and load the driver's kernel modules",
    "no_gpu": "`nvidia-smi` and `lspci | grep -i nvidia` show what the driver and the bus see",
    "no_permission": "see who may open /dev/nvidiactl and /dev/nvidia0; in a container it must be given the GPUs",
    "no_library": "install NVIDIA's driver; jobs without a GPU run meanwhile",
    "unknown": "`nvidia-smi` may say more; a container that lost its GPU devices must be restarted",
}
WORDS = {
    2: "the driver did not understand the question",
    NOT_FOUND: "the driver does not know it",
    8: "its power cable is not attached properly",
    TIMEOUT: "the driver took too long",
    11: "the kernel has trouble with its interrupts",
    14: "its info ROM is damaged",
    16: "it needs a reset",
    17: "the operating system blocks it, as when a container lost its GPU devices",
    19: "it is in use",
    20: "the driver has no memory left",
    21: "no data yet",
    999: "the driver does not know why",
}


class Lost(Exception):
    """Handles are void: close the session, open another.

    code: lost (one card) | no_library | driver_not_loaded | version_mismatch | no_gpu | no_permission | unknown.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = HINTS[code]


class Hung(Lost):
    """Another process is in the driver, and does not come back."""

    def __init__(self, pid: str) -> None:
        super().__init__("unknown", f"the driver does not answer: process {pid}, which reads it, can't be ended")
        self.hint = "only a restart of the computer helps"


class Nonsense(ValueError):
    """The driver answered, but with what can't be."""


def words(code: int) -> str:
    return WORDS.get(code, f"NVML error {code}")


def lost(code: int) -> Lost:
    """What an error means when there is no going on without the answer."""
    kind, message = AT_OPENING.get(code, ("unknown", f"the driver can't be asked: {words(code)}"))
    return Lost(kind, message)
