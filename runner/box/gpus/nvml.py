"""The door to NVML, NVIDIA's management library: typed values in SI units and bytes, or a reason in words.

A field that can't be read is absent and says why; 0 is a value. What makes handles void (a lost GPU, an unloaded
driver, ...) raises `Lost`, one kind for all: then close the session and open another. One caller, one thread: a call
may block for as long as the driver likes. `GetPcieThroughput` is never called, it takes 20 ms by design.

No dataclasses, typing or enum of ours here: the collector's process is to stay small.
"""

from __future__ import annotations

import pynvml  # type: ignore[import-untyped]

from runner.box.gpus import faults
from runner.box.gpus.bus import place
from runner.box.gpus.faults import Lost, Nonsense

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    Values = dict[str, object]
    Reasons = dict[str, str]
    Reader = Callable[["Card"], tuple[object, ...]]
    Call = Callable[..., Any]

HOT, WARM, COLD = 1.0, 5.0, 60.0  # seconds between two readings of a field: its tier
ASK_AGAIN = 600.0  # seconds until something that this card does not expose is tried once more
NVLINK = 5  # a link level of ours, nearer than NVML's nearest between two boards (10: one PCIe switch)

UNSUPPORTED = "not exposed by this card"
NEEDS_ROOT = "needs root"

THROTTLES = (  # bit of the clocks' event reasons -> our word; idle (1) is no reason to worry and has none
    (pynvml.nvmlClocksEventReasonApplicationsClocksSetting, "set_clocks"),
    (pynvml.nvmlClocksEventReasonSwPowerCap, "power_cap"),
    (pynvml.nvmlClocksEventReasonHwSlowdown, "hw_slowdown"),
    (pynvml.nvmlClocksEventReasonSyncBoost, "sync_boost"),
    (pynvml.nvmlClocksEventReasonSwThermalSlowdown, "sw_thermal"),
    (pynvml.nvmlClocksEventReasonHwThermalSlowdown, "hw_thermal"),
    (pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, "power_brake"),
    (pynvml.nvmlClocksEventReasonDisplayClockSetting, "display_clocks"),
)
THROTTLE_COUNTERS = {  # field id -> our word; each counts nanoseconds since the driver was loaded
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP: "power_cap",
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SYNC_BOOST: "sync_boost",
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN: "sw_thermal",
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN: "hw_thermal",
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN: "power_brake",
}
RECOVERIES = ("none", "reset", "reboot", "drain", "drain_and_reset", "recover_imex", "bus_reset", "reboot")
VALUE_OF = {  # NVML's type of a field's value -> the member of its union
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}
PID_MAX = 1 << 22  # the highest that Linux can give


# --- a session -----------------------------------------------------------------------------------------------------


class Session:
    """NVML from its init to its shutdown. Cards of a closed session are of no use.

    asleep: bus ids of cards that must not be touched; others: bus ids of the other NVIDIA GPUs on the bus. Only with
    one asleep are they asked for: then cards are opened by bus id, and else in the driver's order.
    Raises Lost when NVML can't be opened or has no card at all.
    """

    def __init__(self, asleep: Collection[str] = (), others: Collection[str] = ()) -> None:
        self.cards: list[Card] = []
        self.failed: list[Lost] = []  # why a card could not be opened, which can't say who it is
        _opening(pynvml.nvmlInit)
        try:
            self.driver = str(_opening(pynvml.nvmlSystemGetDriverVersion))
            self.cuda = _cuda()
            self.count = _count()
            self._open(asleep, others)
        except BaseException:
            self.close()
            raise

    def _open(self, asleep: Collection[str], others: Collection[str]) -> None:
        if self.count == 0:
            raise Lost("no_gpu", "the driver finds no GPU")
        for where in others if asleep else range(self.count):
            try:
                self.cards.append(Card(_handle(where)))
            except Lost as lost:
                self.failed.append(lost)

    def changed(self) -> bool:
        """Whether the driver sees more or fewer GPUs than when the session was opened."""
        return _count() != self.count

    def why_not(self, bus_id: str) -> Lost | None:
        """Why the card at a place on the bus can't be opened; None: there is none any more, or it can be."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)
        except pynvml.NVMLError as error:
            return None if error.value == faults.NOT_FOUND else faults.lost(error.value)
        try:
            Card(handle)
        except Lost as lost:
            return lost
        return None

    def links(self) -> dict[str, int]:
        """How near two cards are: "uuid uuid" (sorted) -> NVML's topology level, or NVLINK. Unknown is absent."""
        found = {}
        for one in self.cards:
            for other in self.cards:
                if one.uuid < other.uuid and (level := _link(one, other)) is not None:
                    found[f"{one.uuid} {other.uuid}"] = level
        return found

    def close(self) -> None:
        for card in self.cards:
            card.handle = None
        self.cards.clear()
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            pass  # there is nothing left to be shut down


def _opening(call: Call, *arguments: object) -> Any:
    """A call without whose answer nothing goes on."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        raise faults.lost(error.value) from None


def _count() -> int:
    return int(_opening(pynvml.nvmlDeviceGetCount))


def _cuda() -> str:
    """The newest CUDA that the driver runs, or nothing where it does not say."""
    try:
        version: int = pynvml.nvmlSystemGetCudaDriverVersion()
    except pynvml.NVMLError:
        return ""
    return f"{version // 1000}.{version % 1000 // 10}"


def _handle(where: int | str) -> object:
    """The handle of the card with an index, or at a place on the bus. This wakes and initialises it, and no other."""
    by = pynvml.nvmlDeviceGetHandleByIndex if isinstance(where, int) else pynvml.nvmlDeviceGetHandleByPciBusId
    return _opening(by, where)


def _link(one: Card, other: Card) -> int | None:
    try:
        status = pynvml.nvmlDeviceGetP2PStatus(one.handle, other.handle, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
        if status == pynvml.NVML_P2P_STATUS_OK:
            return NVLINK
    except pynvml.NVMLError:
        pass  # most cards have none, and old drivers have no such question
    try:
        level: int = pynvml.nvmlDeviceGetTopologyCommonAncestor(one.handle, other.handle)
    except pynvml.NVMLError:
        return None
    return level


# --- a card --------------------------------------------------------------------------------------------------------


class Card:
    """One GPU, for as long as its session is open. Raises Lost at once when it can't say who it is."""

    __slots__ = ("_ask_again", "bus_id", "handle", "index", "memory_bytes", "name", "unified", "uuid")

    def __init__(self, handle: object) -> None:
        self.handle = handle
        self.uuid = str(_opening(pynvml.nvmlDeviceGetUUID, handle))
        self.name = str(_opening(pynvml.nvmlDeviceGetName, handle))
        self.index = int(_opening(pynvml.nvmlDeviceGetIndex, handle))
        self.bus_id = place(_opening(pynvml.nvmlDeviceGetPciInfo, handle).busId)
        self.memory_bytes, self.unified = _capacity(self)
        self._ask_again: dict[str, float] = {}  # what this card does not expose -> when it is tried once more

    def read(self, tiers: Collection[float], now: float) -> tuple[Values, Reasons]:
        """The fields of some tiers: those that could be read, and why the others could not. now: monotonic."""
        values: Values = {}
        reasons: Reasons = {}
        for names, tier, reader in FIELDS:
            if tier in tiers:
                read = self._ask(names[0], reader, now)
                if isinstance(read, str):
                    reasons.update(dict.fromkeys(names, read))
                else:
                    values.update(zip(names, read, strict=True))
        return values, reasons

    def processes(self, now: float) -> tuple[list[tuple[int, int | None, str]] | None, str]:
        """(pid, bytes that it holds here or None, compute | graphics | both), by pid; or None and the reason."""
        compute = self._ask("compute processes", _compute, now)
        graphics = self._ask("graphics processes", _graphics, now)
        if isinstance(compute, str):
            return None, compute
        found: dict[int, tuple[int, int | None, str]] = {}
        for kind, listed in (("compute", compute), ("graphics", () if isinstance(graphics, str) else graphics)):
            for entry in listed:
                self._add(found, entry, kind)
        return [found[pid] for pid in sorted(found)], ""

    def _add(self, found: dict[int, tuple[int, int | None, str]], entry: Any, kind: str) -> None:
        pid, held = entry.pid, entry.usedGpuMemory
        if not 0 < pid <= PID_MAX:
            return
        if held is not None and held > _most(self):
            held = None
        if pid in found:
            _, known, other = found[pid]
            held = max((bytes_ for bytes_ in (held, known) if bytes_ is not None), default=None)
            kind = kind if kind == other else "both"
        found[pid] = (pid, held, kind)

    def _ask(self, what: str, reader: Reader, now: float) -> tuple[object, ...] | str:
        """What a reader says, or why not. What the card does not expose is not asked for again for a while."""
        if now < self._ask_again.get(what, now):
            return UNSUPPORTED
        try:
            return reader(self)
        except Nonsense as nonsense:
            return f"error: {nonsense}"
        except pynvml.NVMLError as error:
            if error.value in faults.LIFECYCLE:
                raise faults.lost(error.value) from None
            if error.value in faults.NOT_EXPOSED:
                self._ask_again[what] = now + ASK_AGAIN
                return UNSUPPORTED
            return NEEDS_ROOT if error.value == faults.NO_PERMISSION else f"error: {faults.words(error.value)}"


# --- new names and old ---------------------------------------------------------------------------------------------


def _either(new: Call, old: Call) -> Call:
    """The new name of a call where the driver knows it, else the old one; settled at the first call."""
    chosen = new

    def call(*arguments: object) -> Any:
        nonlocal chosen
        try:
            return chosen(*arguments)
        except pynvml.NVMLError as error:
            if chosen is old or error.value not in faults.NEWER_THAN_DRIVER:
                raise
        answer = old(*arguments)
        chosen = old
        return answer

    return call


_temperature_of = _either(pynvml.nvmlDeviceGetTemperatureV, pynvml.nvmlDeviceGetTemperature)
_throttles_of = _either(pynvml.nvmlDeviceGetCurrentClocksEventReasons, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
_performance_state_of = _either(pynvml.nvmlDeviceGetPerformanceState, pynvml.nvmlDeviceGetPowerState)
_compute_processes = _either(
    pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetComputeRunningProcesses_v2
)
_graphics_processes = _either(
    pynvml.nvmlDeviceGetGraphicsRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2
)
# The first version counts what the driver keeps for itself as used; the second tells it apart.
_memory_of = _either(
    lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2), pynvml.nvmlDeviceGetMemoryInfo
)


# --- readers: one or more fields each ------------------------------------------------------------------------------

HIGHEST_BYTES = 1 << 50
HIGHEST_WATTS = 20_000
HIGHEST_CELSIUS = 200
HIGHEST_HERTZ = 1e11
HIGHEST_FAN = 200  # percent: a fan may turn faster than it was meant to


def _within(value: float, highest: float, unit: str) -> float:
    """A number as it is, when it can be."""
    if not 0 <= value <= highest:
        raise Nonsense(f"the driver says {value:g} {unit}".rstrip())
    return value


def _most(card: Card) -> float:
    """Bytes that may be used on a card. What the driver keeps for itself varies a little, so it is not exact."""
    return HIGHEST_BYTES if card.memory_bytes is None else card.memory_bytes * 1.05


def _capacity(card: Card) -> tuple[int | None, bool]:
    """(bytes without what the driver keeps for itself, whether they are the host's memory); None: not known now."""
    try:
        memory = _memory_of(card.handle)
        total = int(_within(memory.total, HIGHEST_BYTES, "bytes"))
    except Nonsense:
        return None, False
    except pynvml.NVMLError as error:
        if error.value in faults.LIFECYCLE:
            raise faults.lost(error.value) from None
        return (host_memory()[0], True) if error.value in faults.NOT_EXPOSED else (None, False)
    if total == 0:
        return host_memory()[0], True
    reserved = getattr(memory, "reserved", 0)
    return total - (reserved if reserved < total else 0), False


def host_memory(path: str = "/proc/meminfo") -> tuple[int, int]:
    """(bytes in all, bytes that are not available) of the host, which a card without memory of its own shares."""
    values = {}
    with open(path, "rb") as file:
        for line in file.read(512).splitlines()[:3]:
            name, _, value = line.partition(b":")
            values[name] = int(value.split()[0]) << 10
    return values[b"MemTotal"], values[b"MemTotal"] - values[b"MemAvailable"]


def _memory_used(card: Card) -> tuple[object, ...]:
    if card.unified:
        return (host_memory()[1],)
    used = _memory_of(card.handle).used
    return (int(_within(used, _most(card), "bytes used")),)


def _utilization(card: Card) -> tuple[object, ...]:
    rates = pynvml.nvmlDeviceGetUtilizationRates(card.handle)
    return _within(rates.gpu, 100, "% busy") / 100, _within(rates.memory, 100, "% busy") / 100


def _power(card: Card) -> tuple[object, ...]:
    return (_within(pynvml.nvmlDeviceGetPowerUsage(card.handle) / 1000, HIGHEST_WATTS, "W"),)


def _power_limit(card: Card) -> tuple[object, ...]:
    return (_within(pynvml.nvmlDeviceGetEnforcedPowerLimit(card.handle) / 1000, HIGHEST_WATTS, "W"),)


def _temperature(card: Card) -> tuple[object, ...]:
    return (float(_within(_temperature_of(card.handle, pynvml.NVML_TEMPERATURE_GPU), HIGHEST_CELSIUS, "°C")),)


def _clock(which: int) -> Reader:
    def read(card: Card) -> tuple[object, ...]:
        return (_within(pynvml.nvmlDeviceGetClockInfo(card.handle, which) * 1e6, HIGHEST_HERTZ, "Hz"),)

    return read


def _throttled_by(card: Card) -> tuple[object, ...]:
    bits = _throttles_of(card.handle)
    return ([word for bit, word in THROTTLES if bits & bit],)


def _fan(card: Card) -> tuple[object, ...]:
    return (_within(pynvml.nvmlDeviceGetFanSpeed(card.handle), HIGHEST_FAN, "% of its speed") / 100,)


def _performance_state(card: Card) -> tuple[object, ...]:
    return (_within(_performance_state_of(card.handle), 15, "as performance state"),)


def _energy(card: Card) -> tuple[object, ...]:
    """It falls when the driver is loaded anew: who takes differences has to look."""
    return (_within(pynvml.nvmlDeviceGetTotalEnergyConsumption(card.handle) / 1000, 1e15, "J"),)


def _throttled_seconds(card: Card) -> tuple[object, ...]:
    counted = _field_values(card, tuple(THROTTLE_COUNTERS))
    return ({THROTTLE_COUNTERS[field]: value / 1e9 for field, value in counted.items() if value < 1e18},)


def _recovery(card: Card) -> tuple[object, ...]:
    field = pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
    number = int(_field_values(card, (field,))[field])
    return (RECOVERIES[number] if number < len(RECOVERIES) else f"action {number}",)


def _field_values(card: Card, fields: tuple[int, ...]) -> dict[int, float]:
    """field id -> its value, of those that there are; the first one's error when there is none."""
    found: dict[int, float] = {}
    code = faults.NOT_SUPPORTED
    for value in pynvml.nvmlDeviceGetFieldValues(card.handle, fields):
        if value.nvmlReturn == pynvml.NVML_SUCCESS:
            found[value.fieldId] = getattr(value.value, VALUE_OF.get(value.valueType, "ullVal"))
        elif value.nvmlReturn != pynvml.NVML_ERROR_INVALID_ARGUMENT:  # how some drivers say that they don't know it
            code = value.nvmlReturn
    if not found:
        raise pynvml.NVMLError(code)
    return found


def _compute(card: Card) -> tuple[object, ...]:
    return tuple(_compute_processes(card.handle))


def _graphics(card: Card) -> tuple[object, ...]:
    return tuple(_graphics_processes(card.handle))


def _pcie_generation(card: Card) -> tuple[object, ...]:
    return (_within(pynvml.nvmlDeviceGetCurrPcieLinkGeneration(card.handle), 16, "as PCIe generation"),)


def _pcie_width(card: Card) -> tuple[object, ...]:
    return (_within(pynvml.nvmlDeviceGetCurrPcieLinkWidth(card.handle), 32, "PCIe lanes"),)


def _ecc_errors(card: Card) -> tuple[object, ...]:
    errors = pynvml.nvmlDeviceGetTotalEccErrors(
        card.handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    )
    return (_within(errors, 1e15, "memory errors"),)


def _persistence(card: Card) -> tuple[object, ...]:
    return (pynvml.nvmlDeviceGetPersistenceMode(card.handle) == pynvml.NVML_FEATURE_ENABLED,)


# All that is read of a card, and how often: fields of model.Sample, their tier, what reads them in one go.
FIELDS: tuple[tuple[tuple[str, ...], float, Reader], ...] = (
    (("memory_used_bytes",), HOT, _memory_used),
    (("utilization", "memory_utilization"), HOT, _utilization),
    (("power_watts",), HOT, _power),
    (("temperature_celsius",), HOT, _temperature),
    (("sm_clock_hertz",), HOT, _clock(pynvml.NVML_CLOCK_SM)),
    (("throttled_by",), HOT, _throttled_by),
    (("fan",), WARM, _fan),
    (("performance_state",), WARM, _performance_state),
    (("memory_clock_hertz",), WARM, _clock(pynvml.NVML_CLOCK_MEM)),
    (("energy_joules",), WARM, _energy),
    (("throttled_seconds",), WARM, _throttled_seconds),
    (("power_limit_watts",), COLD, _power_limit),
    (("pcie_generation",), COLD, _pcie_generation),
    (("pcie_width",), COLD, _pcie_width),
    (("ecc_errors",), COLD, _ecc_errors),
    (("recovery",), COLD, _recovery),
    (("persistence",), COLD, _persistence),
)
