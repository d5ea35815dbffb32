"""What is read of a card: each reader asks the driver for one or more fields, in SI units and bytes.

`FIELDS` at the end is all of it, and how often. A reader raises pynvml.NVMLError when the driver refuses, Nonsense when
its answer can't be.
"""

from __future__ import annotations

import pynvml  # type: ignore[import-untyped]

from runner.box.gpus import faults
from runner.box.gpus.faults import Nonsense

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runner.box.gpus.nvml import Card

    Reader = Callable[[Card], tuple[object, ...]]
    Call = Callable[..., Any]

HOT, WARM, COLD = 1.0, 5.0, 60.0  # seconds between two readings of a field: its tier
DEMAND = 2.0  # likewise, while somebody looks: each of these keeps the driver busy for 20 ms
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


# --- new names and old ---------------------------------------------------------------------------------------------


def either(new: Call, old: Call) -> Call:
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


_temperature_of = either(pynvml.nvmlDeviceGetTemperatureV, pynvml.nvmlDeviceGetTemperature)
_throttles_of = either(pynvml.nvmlDeviceGetCurrentClocksEventReasons, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
_performance_state_of = either(pynvml.nvmlDeviceGetPerformanceState, pynvml.nvmlDeviceGetPowerState)
_compute_processes = either(pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetComputeRunningProcesses_v2)
_graphics_processes = either(
    pynvml.nvmlDeviceGetGraphicsRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2
)
# The first version counts what the driver keeps for itself as used; the second tells it apart.
_memory_of = either(
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


def most(card: Card) -> float:
    """Bytes that may be used on a card. What the driver keeps for itself varies a little, so it is not exact."""
    return HIGHEST_BYTES if card.memory_bytes is None else card.memory_bytes * 1.05


def capacity(card: Card) -> tuple[int | None, bool]:
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


def architecture(card: Card) -> int | None:
    """NVML's number of it, which grows with each; None: the driver does not say."""
    try:
        number = int(pynvml.nvmlDeviceGetArchitecture(card.handle))
    except pynvml.NVMLError as error:
        if error.value in faults.LIFECYCLE:
            raise faults.lost(error.value) from None
        return None
    return number if 0 < number < 1 << 10 else None


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
    return (int(_within(used, most(card), "bytes used")),)


def _utilization(card: Card) -> tuple[object, ...]:
    rates = pynvml.nvmlDeviceGetUtilizationRates(card.handle)
    return _within(rates.gpu, 100, "% busy") / 100, _within(rates.memory, 100, "% busy") / 100


def _power(card: Card) -> tuple[object, ...]:
    return (_within(pynvml.nvmlDeviceGetPowerUsage(card.handle) / 1000, HIGHEST_WATTS, "W"),)


def _power_limit(card: Card) -> tuple[object, ...]:
    return (_within(pynvml.nvmlDeviceGetEnforcedPowerLimit(card.handle) / 1000, HIGHEST_WATTS, "W"),)


def _power_limit_default(card: Card) -> tuple[object, ...]:
    watts = pynvml.nvmlDeviceGetPowerManagementDefaultLimit(card.handle) / 1000
    return (_within(watts, HIGHEST_WATTS, "W"),)


def _temperature(card: Card) -> tuple[object, ...]:
    return (float(_within(_temperature_of(card.handle, pynvml.NVML_TEMPERATURE_GPU), HIGHEST_CELSIUS, "°C")),)


def _clock(which: int) -> Reader:
    def read(card: Card) -> tuple[object, ...]:
        return (_within(pynvml.nvmlDeviceGetClockInfo(card.handle, which) * 1e6, HIGHEST_HERTZ, "Hz"),)

    return read


def _throttled_by(card: Card) -> tuple[object, ...]:
    bits = _throttles_of(card.handle)
    return ([word for bit, word in THROTTLES if bits & bit],)


def _memory_temperature(card: Card) -> tuple[object, ...]:
    field = pynvml.NVML_FI_DEV_MEMORY_TEMP
    return (float(_within(_field_values(card, (field,))[field], HIGHEST_CELSIUS, "°C")),)


def _threshold(which: int) -> Reader:
    def read(card: Card) -> tuple[object, ...]:
        celsius = pynvml.nvmlDeviceGetTemperatureThreshold(card.handle, which)
        return (float(_within(celsius, HIGHEST_CELSIUS, "°C")),)

    return read


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


def compute(card: Card) -> tuple[object, ...]:
    return tuple(_compute_processes(card.handle))


def graphics(card: Card) -> tuple[object, ...]:
    return tuple(_graphics_processes(card.handle))


def utilizations(card: Card, since: int) -> tuple[object, ...]:
    """(time stamp of the newest, {pid: 0..1 of the time}) since a time stamp of before. What the driver says beyond
    100 %, or again, is nonsense that some of them say."""
    try:
        samples = pynvml.nvmlDeviceGetProcessUtilization(card.handle, since)
    except pynvml.NVMLError as error:
        if error.value != faults.NOT_FOUND:  # nobody did anything since then
            raise
        samples = ()
    newest, at = {}, dict.fromkeys((sample.pid for sample in samples), since)
    for sample in samples:
        if sample.timeStamp > at[sample.pid] and sample.smUtil <= 100:
            at[sample.pid], newest[sample.pid] = sample.timeStamp, sample.smUtil / 100
    return max(at.values(), default=since), newest


def _pcie_generation(card: Card) -> tuple[object, ...]:
    return (_within(pynvml.nvmlDeviceGetCurrPcieLinkGeneration(card.handle), 16, "as PCIe generation"),)


def _pcie_width(card: Card) -> tuple[object, ...]:
    return (_within(pynvml.nvmlDeviceGetCurrPcieLinkWidth(card.handle), 32, "PCIe lanes"),)


def _pcie_most(card: Card) -> tuple[object, ...]:
    generation = pynvml.nvmlDeviceGetMaxPcieLinkGeneration(card.handle)
    width = pynvml.nvmlDeviceGetMaxPcieLinkWidth(card.handle)
    return _within(generation, 16, "as PCIe generation"), _within(width, 32, "PCIe lanes")


def _pcie_throughput(which: int) -> Reader:
    def read(card: Card) -> tuple[object, ...]:
        return (_within(pynvml.nvmlDeviceGetPcieThroughput(card.handle, which) * 1e3, 1e13, "B/s"),)  # said in KB/s

    return read


def _coder(utilization_of: Call) -> Reader:
    def read(card: Card) -> tuple[object, ...]:
        return (_within(utilization_of(card.handle)[0], 100, "% busy") / 100,)

    return read


def _remapped(card: Card) -> tuple[object, ...]:
    _, _, pending, failed = pynvml.nvmlDeviceGetRemappedRows(card.handle)
    return bool(pending), bool(failed)


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
    (("memory_temperature_celsius",), WARM, _memory_temperature),
    (("power_limit_watts",), COLD, _power_limit),
    (("power_limit_default_watts",), COLD, _power_limit_default),
    (("slowdown_celsius",), COLD, _threshold(pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)),
    (("shutdown_celsius",), COLD, _threshold(pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)),
    (("pcie_generation",), COLD, _pcie_generation),
    (("pcie_width",), COLD, _pcie_width),
    (("pcie_generation_most", "pcie_width_most"), COLD, _pcie_most),
    (("remap_pending", "remap_failed"), COLD, _remapped),
    (("ecc_errors",), COLD, _ecc_errors),
    (("recovery",), COLD, _recovery),
    (("persistence",), COLD, _persistence),
    (("pcie_sent_per_second",), DEMAND, _pcie_throughput(pynvml.NVML_PCIE_UTIL_TX_BYTES)),
    (("pcie_received_per_second",), DEMAND, _pcie_throughput(pynvml.NVML_PCIE_UTIL_RX_BYTES)),
    (("encoder",), DEMAND, _coder(pynvml.nvmlDeviceGetEncoderUtilization)),
    (("decoder",), DEMAND, _coder(pynvml.nvmlDeviceGetDecoderUtilization)),
)
ON_DEMAND = tuple(name for names, tier, _ in FIELDS if tier == DEMAND for name in names)
