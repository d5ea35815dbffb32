#!/usr/bin/python3
"""Power limits of NVIDIA GPUs: decided from what the cards can do and what is wished, set, and read back.

    gpubox-power            set the limits of /etc/gpubox/power.json; ends with 1, and words, where one does not hold
    gpubox-power --check    say what is set and what would be; changes nothing

It lies on the box as /usr/local/sbin/gpubox-power, and the module gpubox_power is the same code. It asks NVML, which is
there wherever nvidia-smi is, since nvidia-smi asks it, too. Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TextIO

    Gpu = dict[str, Any]  # index, uuid, name, address; minimum, default, maximum, now: watts or None; persistent
    Wishes = dict[str, Any]  # see NOTHING
    Decision = dict[str, Any]  # limits: [{index, uuid, name, now, watts, why}]; notes and problems: sentences

SETTINGS = "/etc/gpubox/power.json"
NOTHING: Wishes = {
    "limit": "",  # of all cards: "280" are watts, "80%" is a part of the card's default
    "limits": {},  # UUID, name or index -> the same
    "psu_watts": 0,  # what the power supply gives; 0: nobody said
    "rest_watts": 250,  # what all but the GPUs takes
    "ignored": [],  # PCI addresses of cards to leave alone
}
PSU_PART = 0.8  # of a supply for good: what is above it is for the peaks of a few milliseconds
SAME_WATTS = 1.0  # a reading nearer than this is what was asked for


# --- PURE: what each card is to have ----------------------------------------------------------------------------------


def wishing(wishes: Wishes) -> bool:
    return bool(wishes["limit"] or wishes["limits"] or wishes["psu_watts"])


def decide(gpus: list[Gpu], wishes: Wishes) -> Decision:
    """Where a supply is too weak, no limit is given; any other problem leaves the other cards theirs."""
    wanted = {**NOTHING, **wishes}
    notes: list[str] = []
    problems = _wrong_wishes(gpus, wanted)
    limits = [_by_hand(gpu, wanted, notes) for gpu in gpus] if wishing(wanted) else []
    if wanted["psu_watts"] and gpus:
        too_much = _within_supply(gpus, limits, wanted, notes)
        if too_much:
            return {"limits": [], "notes": notes, "problems": [*problems, too_much]}
    return {"limits": [one for one in limits if one["watts"] is not None], "notes": notes, "problems": problems}


def title(gpu: Gpu) -> str:
    return f"{gpu['name']} ({gpu['uuid']})"


def _wrong_wishes(gpus: list[Gpu], wanted: Wishes) -> list[str]:
    asked = [("gpubox_power_limit", wanted["limit"])] if wanted["limit"] else []
    asked += [(f"gpubox_power_limits of {key}", wish) for key, wish in wanted["limits"].items()]
    wrong = [
        f"{where} is {wish!r}, which is neither watts nor a percentage. Next: write 280 or 80%."
        for where, wish in asked
        if _read(wish) is None
    ]
    here = "; ".join(f"{gpu['index']}, {gpu['name']}, {gpu['uuid']}" for gpu in gpus)
    for key in wanted["limits"] if gpus else ():
        if not any(_is_called(gpu, key) for gpu in gpus):
            wrong.append(
                f"gpubox_power_limits names {key!r}, but there is no such GPU. Next: name one of these: {here}."
            )
    return wrong


def _read(wish: object) -> tuple[float, bool] | None:
    """'80%' -> (80.0, True); '280 W' -> (280.0, False); None: it makes no sense."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(W|%)?", str(wish).strip(), re.IGNORECASE)
    return (float(found[1]), found[2] == "%") if found and float(found[1]) > 0 else None


def _plain(name: str) -> str:
    """NVIDIA GeForce RTX 3090 -> rtx 3090: as people say it."""
    return " ".join(word for word in name.lower().split() if word not in ("nvidia", "geforce"))


def _is_called(gpu: Gpu, key: object) -> int:
    """How exactly a key of gpubox_power_limits names a card; 0: not at all."""
    said = str(key).strip().lower()
    return (
        3 * (said == gpu["uuid"].lower()) or 2 * (said == str(gpu["index"])) or int(_plain(said) == _plain(gpu["name"]))
    )


def _by_hand(gpu: Gpu, wanted: Wishes, notes: list[str]) -> dict[str, Any]:
    """watts is None where nobody said how much, or the card can't be told."""
    limit = {
        "index": gpu["index"],
        "uuid": gpu["uuid"],
        "name": gpu["name"],
        "now": gpu["now"],
        "watts": None,
        "why": "",
    }
    if gpu["address"] in wanted["ignored"]:
        return limit
    if None in (gpu["minimum"], gpu["default"], gpu["maximum"]):
        notes.append(f"{title(gpu)} can't be limited: its driver does not offer it, as on laptops and small cards.")
        return limit
    keys = sorted((key for key in wanted["limits"] if _is_called(gpu, key)), key=lambda key: -_is_called(gpu, key))
    wish = wanted["limits"][keys[0]] if keys else wanted["limit"]
    read = _read(wish)
    if read is None:
        return limit
    number, percent = read
    asked = gpu["default"] * number / 100 if percent else number
    watts = min(max(asked, gpu["minimum"]), gpu["maximum"])
    if watts != asked:
        side = f"more than its most, {watts:g} W" if asked > watts else f"less than its least, {watts:g} W"
        notes.append(f"{title(gpu)}: {asked:g} W is {side}, which it gets.")
    why = f"you said {number:g} % of its {gpu['default']:g} W" if percent else f"you said {number:g} W"
    return {**limit, "watts": watts, "why": why}


def _within_supply(gpus: list[Gpu], limits: list[dict[str, Any]], wanted: Wishes, notes: list[str]) -> str:
    """Shares out what the supply has for the cards nobody spoke of; -> why that can't be, or ""."""
    supply, rest = float(wanted["psu_watts"]), float(wanted["rest_watts"])
    free, fixed = [], 0.0
    for index, gpu in enumerate(gpus):
        limit = limits[index]
        if limit["watts"] is not None:
            fixed += limit["watts"]
        elif gpu["address"] in wanted["ignored"] or None in (gpu["minimum"], gpu["default"], gpu["maximum"]):
            draws = next((gpu[key] for key in ("now", "default", "maximum") if gpu[key] is not None), None)
            fixed += draws or 0.0
            if draws is None:
                notes.append(f"{title(gpu)} does not say what it may draw: add its watts to gpubox_rest_watts.")
        else:
            free.append((gpu, limit))
    room = supply * PSU_PART - rest - fixed
    shares = share([gpu for gpu, _ in free], room)
    if shares is None:
        return _too_much(supply, rest, fixed, sum(gpu["minimum"] for gpu, _ in free), len(free))
    for position, (gpu, limit) in enumerate(free):
        watts = shares[position]
        part = f"{100 * watts / gpu['default']:.0f} % of its {gpu['default']:g} W"
        fits = "its own limit fits" if watts == gpu["default"] else part
        limit.update(watts=watts, why=f"{fits}, with {rest:g} W for the rest, into 80 % of {supply:g} W")
    return ""


def share(gpus: list[Gpu], room: float) -> list[float] | None:
    """The same part of its default for each, but its minimum at least. None: even the minima are too much."""
    if sum(gpu["minimum"] for gpu in gpus) > room or room < 0:
        return None
    at_least: set[str] = set()
    while True:
        others = [gpu for gpu in gpus if gpu["uuid"] not in at_least]
        left = room - sum(gpu["minimum"] for gpu in gpus if gpu["uuid"] in at_least)
        part = min(1.0, left / sum(gpu["default"] for gpu in others)) if others else 0.0
        below = {gpu["uuid"] for gpu in others if math.floor(gpu["default"] * part) < gpu["minimum"]}
        if not below:
            break
        at_least |= below
    return [
        gpu["minimum"]
        if gpu["uuid"] in at_least
        else (gpu["default"] if part == 1 else float(math.floor(gpu["default"] * part)))
        for gpu in gpus
    ]


def _too_much(supply: float, rest: float, fixed: float, least: float, count: int) -> str:
    parts = [f"{rest:g} W for the rest"]
    parts += [f"{fixed:g} W that are set or can't be"] if fixed else []
    parts += [f"{least:g} W, which is the least of {count} more GPU{'s' * (count > 1)}"] if count else []
    sum_of_all = rest + fixed + least
    return (
        f"{' + '.join(parts)} = {sum_of_all:g} W, but 80 % of a supply of {supply:g} W is {supply * PSU_PART:g} W: "
        f"nothing is set. Next: a supply of {math.ceil(sum_of_all / PSU_PART / 50) * 50} W, a GPU less"
        f"{', lower limits by hand' if fixed else ''}, or gpubox_rest_watts, if the rest takes less."
    )


# --- NVML -------------------------------------------------------------------------------------------------------------

SUCCESS, NOT_SUPPORTED, NO_PERMISSION = 0, 3, 4


class Trouble(Exception):
    """NVML says no; code is its own."""

    def __init__(self, words: str, code: int = -1) -> None:
        super().__init__(words)
        self.code = code


class _Pci(ctypes.Structure):
    """nvmlPciInfo_t"""

    _fields_ = [
        ("legacy", ctypes.c_char * 16),
        *((name, ctypes.c_uint) for name in ("domain", "bus", "device", "ids", "subsystem")),
        ("bus_id", ctypes.c_char * 32),
    ]


class Nvml:
    """A session. Raises Trouble where there is no library, or no driver that it agrees with."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            raise Trouble("the driver's library, libnvidia-ml.so.1, is not installed") from None
        self._call("nvmlInit_v2")

    def close(self) -> None:
        self._library.nvmlShutdown()

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != SUCCESS:
            words = self._library.nvmlErrorString
            words.restype = ctypes.c_char_p
            raise Trouble(words(code).decode(errors="replace"), code)

    def gpus(self, notes: list[str]) -> list[Gpu]:
        """Of cards that can't be asked only a note is left."""
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        found = []
        for index in range(count.value):
            try:
                found.append(self._gpu(index))
            except Trouble as trouble:
                notes.append(f"GPU {index} can't be asked: {trouble}.")
        return found

    def _handle(self, index: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        return handle

    def _gpu(self, index: int) -> Gpu:
        handle, pci = self._handle(index), _Pci()
        self._call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(pci))
        least, most = self._watts("nvmlDeviceGetPowerManagementLimitConstraints", handle, 2)
        return {
            "index": index,
            "uuid": self._text("nvmlDeviceGetUUID", handle),
            "name": self._text("nvmlDeviceGetName", handle),
            "address": f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0",
            "minimum": least,
            "maximum": most,
            "default": self._watts("nvmlDeviceGetPowerManagementDefaultLimit", handle)[0],
            "now": self._watts("nvmlDeviceGetPowerManagementLimit", handle)[0],
            "persistent": self._persistent(handle),
        }

    def _text(self, name: str, handle: ctypes.c_void_p) -> str:
        buffer = ctypes.create_string_buffer(96)
        self._call(name, handle, buffer, ctypes.c_uint(len(buffer)))
        return buffer.value.decode(errors="replace")

    def _watts(self, name: str, handle: ctypes.c_void_p, count: int = 1) -> list[float | None]:
        values = [ctypes.c_uint() for _ in range(count)]
        try:
            self._call(name, handle, *map(ctypes.byref, values))
        except Trouble as trouble:
            if trouble.code in (NOT_SUPPORTED, NO_PERMISSION):
                return [None] * count
            raise
        return [value.value / 1000 for value in values]

    def _persistent(self, handle: ctypes.c_void_p) -> bool | None:
        mode = ctypes.c_uint()
        try:
            self._call("nvmlDeviceGetPersistenceMode", handle, ctypes.byref(mode))
        except Trouble:
            return None
        return bool(mode.value)

    def limit(self, index: int, watts: float) -> float | None:
        """Sets a limit; -> what the card then says that it has."""
        handle = self._handle(index)
        self._call("nvmlDeviceSetPowerManagementLimit", handle, ctypes.c_uint(round(watts * 1000)))
        return self._watts("nvmlDeviceGetPowerManagementLimit", handle)[0]


@contextmanager
def opened() -> Iterator[Nvml]:
    nvml = Nvml()
    try:
        yield nvml
    finally:
        nvml.close()


# --- what is done -----------------------------------------------------------------------------------------------------


def look(nvml: Nvml, wishes: Wishes) -> Decision:
    notes: list[str] = []
    gpus = nvml.gpus(notes)
    decision = decide(gpus, wishes)
    forgetful = {gpu["index"] for gpu in gpus if gpu["persistent"] is False}
    for one in decision["limits"]:
        if one["index"] in forgetful:
            notes.append(f"{title(one)} forgets its limit when nobody uses it: nvidia-persistenced does not run.")
    return {**decision, "notes": notes + decision["notes"]}


def pending(decision: Decision) -> list[dict[str, Any]]:
    """The limits that are not as they should be."""
    return [one for one in decision["limits"] if one["now"] is None or abs(one["now"] - one["watts"]) >= SAME_WATTS]


def apply(nvml: Nvml, decision: Decision) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """-> what was set, notes, problems."""
    done, notes, problems = [], [], []
    for one in pending(decision):
        try:
            reads = nvml.limit(one["index"], one["watts"])
        except Trouble as trouble:
            if trouble.code == NOT_SUPPORTED:
                notes.append(f"{title(one)} names its limits but does not let them be changed: it is left as it is.")
            else:
                root = " Next: run it as root." if trouble.code == NO_PERMISSION else ""
                problems.append(f"{title(one)} was not limited to {one['watts']:g} W: {trouble}.{root}")
            continue
        done.append(one)
        if reads is None or abs(reads - one["watts"]) >= SAME_WATTS:
            said = "nothing" if reads is None else f"{reads:g} W"
            problems.append(
                f"{title(one)} was told {one['watts']:g} W, and reads {said}. Next: see whether another program sets "
                "it, and what the driver says: journalctl -k | grep NVRM"
            )
    return done, notes, problems


def line(one: dict[str, Any], was: bool) -> str:
    now = "unknown" if one["now"] is None else f"{one['now']:g} W"
    said = f"{one['index']} {title(one)}: {one['watts']:g} W, {one['why']}"
    return f"{said} (was {now})" if was else said


def _say(stream: TextIO, *lines: str) -> None:
    stream.write("".join(f"{one}\n" for one in lines))


def main(words: list[str]) -> int:
    check = "--check" in words
    path = next((word for word in words if not word.startswith("-")), SETTINGS)
    try:
        with open(path) as file:
            wishes = json.load(file)
    except (OSError, ValueError) as error:
        _say(sys.stderr, f"{path} can't be read: {error}. Next: run setup.yml again.")
        return 1
    try:
        with opened() as nvml:
            decision = look(nvml, wishes)
            changes = pending(decision)
            _, notes, problems = ([], [], []) if check else apply(nvml, decision)
    except Trouble as trouble:
        _say(sys.stderr, f"The GPUs can't be asked: {trouble}.")
        return 1
    _say(sys.stdout, *(line(one, one in changes) for one in decision["limits"]), *decision["notes"], *notes)
    _say(sys.stderr, *decision["problems"], *problems)
    return 1 if decision["problems"] or problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
