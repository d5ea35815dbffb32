"""The fake driver, seen as the collector sees it: by the real nvidia-ml-py, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tools
from fake_nvml import GARBAGE, MODELS, FakeGpu, FakeNvml, fields, library

pytest.importorskip("pynvml")

GIB = 1 << 30
READER = """
import json, sys
from pynvml import *
for line in sys.stdin:
    try:
        try:
            answer = eval(line)
        except SyntaxError:
            answer = exec(line)
    except NVMLError as error:
        answer = {"error": error.value}
    print(json.dumps(answer, default=str), flush=True)
"""


class Reader:
    """A process that has nvidia-ml-py and does what it is told; an error of NVML is answered with its code."""

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            (sys.executable, "-c", READER),
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def begin(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def ask(self, text: str) -> Any:
        self.begin(text)
        return self.answer()

    def about(self, call: str) -> Any:
        """What nvmlDeviceGet<call> returns."""
        return self.ask(f"nvmlDeviceGet{call}")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def fake(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path)


@pytest.fixture
def started(fake: FakeNvml) -> Iterator[Callable[..., Reader]]:
    """Starts readers; in one that is opened `h0`, `h1`... are the handles of the GPUs there are then, `h` the first."""
    with contextlib.ExitStack() as stack:

        def start(opened: bool = True, **env: str) -> Reader:
            reader = Reader({**fake.env, **env})
            stack.callback(reader.close)
            if opened:
                _open(reader, len(fake.gpus))
            return reader

        yield start


def _open(reader: Reader, count: int) -> None:
    assert reader.ask("nvmlInit()") is None
    for index in range(count):
        reader.ask(f"h{index} = nvmlDeviceGetHandleByIndex({index})")
    if count:
        reader.ask("h = h0")


def _error(code: int) -> dict[str, int]:
    return {"error": code}


# --- what there is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name", "mebibytes"),
    [
        ("2080s", "NVIDIA GeForce RTX 2080 SUPER", 8192),
        ("3090", "NVIDIA GeForce RTX 3090", 24576),
        ("4080s", "NVIDIA GeForce RTX 4080 SUPER", 16376),
        ("4090", "NVIDIA GeForce RTX 4090", 24564),
        ("h200", "NVIDIA H200", 143771),
        ("gb10", "NVIDIA GB10", None),
    ],
)
def test_a_model_has_its_name_and_memory(
    fake: FakeNvml, started: Callable[..., Reader], model: str, name: str, mebibytes: int | None
) -> None:
    fake.add(model)
    reader = started()
    assert reader.about("Name(h)") == name
    assert reader.about("MemoryInfo(h).total") == (_error(3) if mebibytes is None else mebibytes << 20)


@pytest.mark.parametrize(
    ("model", "absent"),
    [
        ("2080s", {"memory temperature", "ecc", "power average"}),
        ("3090", {"memory temperature", "ecc"}),
        ("4080s", {"memory temperature", "ecc"}),
        ("4090", {"memory temperature", "ecc"}),
        ("h200", {"fan"}),
        ("gb10", {"memory temperature", "ecc", "power average", "fan", "memory", "pcie", "limit", "memory clock"}),
    ],
)
def test_a_model_lacks_what_the_real_one_lacks(
    fake: FakeNvml, started: Callable[..., Reader], model: str, absent: set[str]
) -> None:
    fake.add(model)
    reader = started()
    calls = {
        "memory": "MemoryInfo(h, nvmlMemory_v2).used",
        "utilization": "UtilizationRates(h).gpu",
        "power": "PowerUsage(h)",
        "limit": "EnforcedPowerLimit(h)",
        "fan": "FanSpeed(h)",
        "energy": "TotalEnergyConsumption(h)",
        "throttle": "CurrentClocksEventReasons(h)",
        "state": "PerformanceState(h)",
        "pcie": "CurrPcieLinkGeneration(h)",
        "ecc": "TotalEccErrors(h, 1, 0)",
        "memory clock": "ClockInfo(h, NVML_CLOCK_MEM)",
        "processes": "ComputeRunningProcesses(h)",
    }
    seen = {what for what, call in calls.items() if reader.about(call) == _error(3)}
    codes = reader.ask("[value.nvmlReturn for value in nvmlDeviceGetFieldValues(h, [82, 185])]")
    seen |= {what for what, code in zip(("memory temperature", "power average"), codes, strict=True) if code == 3}
    assert seen == absent


def test_eight_gpus_are_found_by_index_uuid_and_bus(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    gpus = [fake.add(MODELS[position % len(MODELS)]) for position in range(8)]
    reader = started()
    assert reader.ask("nvmlDeviceGetCount()") == 8
    for index, gpu in enumerate(gpus):
        assert reader.about(f"UUID(h{index})") == gpu.uuid
        assert reader.about(f"PciInfo(h{index}).busId") == gpu.bus_id
        assert reader.about(f"PciInfo(h{index}).bus") == index + 1
        assert reader.about(f"Index(nvmlDeviceGetHandleByUUID('{gpu.uuid}'))") == index
        assert reader.about(f"Index(nvmlDeviceGetHandleByPciBusId('{gpu.bus_id[4:].lower()}'))") == index
    assert reader.about("HandleByIndex(8)") == _error(2)
    assert reader.about("HandleByUUID('GPU-none')") == _error(6)


def test_a_machine_may_have_no_gpu(started: Callable[..., Reader]) -> None:
    assert started().ask("nvmlDeviceGetCount()") == 0


def test_the_driver_says_which_it_is(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    reader = started()
    assert reader.ask("nvmlSystemGetDriverVersion()") == "570.86.15"
    fake.driver("580.1", 13000)
    assert reader.ask("[nvmlSystemGetDriverVersion(), nvmlSystemGetCudaDriverVersion_v2()]") == ["580.1", 13000]


# --- values ----------------------------------------------------------------------------------------------------------


def test_values_are_those_of_the_script_at_once(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    gpu = fake.add("3090")
    reader = started()
    for percent in (0, 97):
        gpu.set(
            utilization=percent, memory_utilization=41, power=287_500, temperature=71, sm_clock=1695, memory_clock=9501
        )
        gpu.set(fan=62, performance_state=2, energy=123_456_789_012, throttle=0x24, persistence=1, pcie_width=8)
        gpu.set(power_enforced=300_000, power_limit=310_000)
        assert reader.ask("[(u := nvmlDeviceGetUtilizationRates(h)).gpu, u.memory]") == [percent, 41]
        assert reader.about("PowerUsage(h)") == 287_500
        assert reader.about("TemperatureV(h, NVML_TEMPERATURE_GPU)") == 71
        assert reader.about("Temperature(h, NVML_TEMPERATURE_GPU)") == 71
        assert reader.about("ClockInfo(h, NVML_CLOCK_SM)") == 1695
        assert reader.about("ClockInfo(h, NVML_CLOCK_MEM)") == 9501
        assert reader.about("FanSpeed(h)") == 62
        assert reader.about("PerformanceState(h)") == 2
        assert reader.about("TotalEnergyConsumption(h)") == 123_456_789_012
        assert reader.about("CurrentClocksEventReasons(h)") == 0x24
        assert reader.about("CurrentClocksThrottleReasons(h)") == 0x24
        assert reader.about("PersistenceMode(h)") == 1
        assert reader.about("CurrPcieLinkWidth(h)") == 8
        assert reader.about("EnforcedPowerLimit(h)") == 300_000
        assert reader.about("PowerManagementLimit(h)") == 310_000


def test_values_can_be_had_by_number(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    gpu = fake.add("h200")
    gpu.set(throttled_power_cap=1, throttled_sync_boost=2, throttled_sw_thermal=3, throttled_hw_thermal=4)
    gpu.set(
        throttled_power_brake=5_000_000_000_000, energy=6, power_average=7, power=8, recovery=2, memory_temperature=9
    )
    reader = started()
    reader.ask("values = nvmlDeviceGetFieldValues(h, [74, 76, 269, 270, 271, 83, 185, 186, 230, 82, 12345])")
    assert reader.ask("[value.nvmlReturn for value in values]") == [0] * 10 + [3]
    assert reader.ask("[value.value.ullVal for value in values][:10]") == [1, 2, 3, 4, 5_000_000_000_000, 6, 7, 8, 2, 9]
    assert reader.ask("[value.valueType for value in values][:7]") == [3] * 6 + [1]  # long long and int
    assert abs(reader.ask("values[0].timestamp") / 1e6 - time.time()) < 60


def test_ecc_errors_and_the_need_of_a_reset_can_come(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    gpu = fake.add("h200")
    reader = started()
    assert reader.about("EccMode(h)") == [1, 1]
    gpu.set(ecc_uncorrected=3, ecc_corrected=12, remap_pending=1)
    uncorrected, volatile = "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", "NVML_VOLATILE_ECC"
    assert reader.about(f"TotalEccErrors(h, {uncorrected}, {volatile})") == 3
    assert reader.about(f"TotalEccErrors(h, NVML_MEMORY_ERROR_TYPE_CORRECTED, {volatile})") == 12
    assert reader.about("RemappedRows(h)") == [0, 0, 1, 0]


def test_limits_and_highest_values_are_the_models(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    fake.add("4090")
    reader = started()
    assert reader.about("PowerManagementLimitConstraints(h)") == [150_000, 600_000]
    assert reader.about("TemperatureThreshold(h, NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)") == 100
    assert reader.about("TemperatureThreshold(h, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)") == 97
    assert reader.about("MaxClockInfo(h, NVML_CLOCK_SM)") == 3105
    assert reader.ask("[nvmlDeviceGetMaxPcieLinkGeneration(h), nvmlDeviceGetMaxPcieLinkWidth(h)]") == [4, 16]
    assert reader.about("CudaComputeCapability(h)") == [8, 9]


def test_gpus_are_as_near_as_the_script_says(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    one, two, three = (fake.add("h200") for _ in range(3))
    fake.link(one, two, "nvlink")
    fake.link(three, one, 10)
    reader = started()
    assert reader.about("TopologyCommonAncestor(h0, h1)") == 30
    assert reader.about("TopologyCommonAncestor(h0, h2)") == 10
    assert reader.about("TopologyCommonAncestor(h2, h1)") == 30
    assert reader.about("P2PStatus(h1, h0, NVML_P2P_CAPS_INDEX_NVLINK)") == 0
    assert reader.about("P2PStatus(h0, h2, NVML_P2P_CAPS_INDEX_NVLINK)") == 5
    assert reader.ask("[nvmlDeviceGetNvLinkState(h0, 0), nvmlDeviceGetNvLinkState(h0, 1)]") == [1, 0]
    assert reader.about("NvLinkRemotePciInfo(h0, 0).busId") == two.bus_id


# --- memory and processes --------------------------------------------------------------------------------------------


def test_used_memory_is_the_sum_of_the_processes_unless_it_is_said(
    fake: FakeNvml, started: Callable[..., Reader]
) -> None:
    gpu = fake.add("3090")
    gpu.set(base=100, reserved=1000)
    reader = started()
    used = "MemoryInfo(h, nvmlMemory_v2).used"
    assert reader.about(used) == 100
    gpu.process(11, 2 * GIB)
    gpu.process(12, None)
    assert reader.about(used) == 100 + 2 * GIB
    assert reader.about("MemoryInfo(h).used") == 1100 + 2 * GIB
    assert reader.ask("(m := nvmlDeviceGetMemoryInfo(h, nvmlMemory_v2)).total - m.used - m.free") == 1000
    gpu.set(used="5G")
    assert reader.about(used) == 5 * GIB
    gpu.set(used=None)
    gpu.ends(11)
    assert reader.about(used) == 100


def test_processes_are_listed_by_kind_dead_or_alive(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    gpu = fake.add("3090")
    reader = started()
    pids = "[(p.pid, p.usedGpuMemory) for p in nvmlDeviceGet{}RunningProcesses(h)]"
    assert reader.ask(pids.format("Compute")) == []
    gpu.process(os.getpid(), GIB)
    gpu.process(1 << 22, None)
    gpu.process(13, 5, "graphics")
    gpu.process(14, 6, "both")
    assert reader.ask(pids.format("Compute")) == [[os.getpid(), GIB], [1 << 22, None], [14, 6]]
    assert reader.ask(pids.format("Graphics")) == [[13, 5], [14, 6]]


def test_memory_of_a_process_that_ended_can_free_late(
    fake: FakeNvml, started: Callable[..., Reader], wait_until: Callable[..., object]
) -> None:
    gpu = fake.add("3090")
    gpu.set(base=0)
    gpu.free_late(0.2)
    gpu.process(11, GIB)
    reader = started()
    ended = time.monotonic()
    gpu.ends(11)
    assert reader.ask("len(nvmlDeviceGetComputeRunningProcesses(h))") == 0
    assert reader.about("MemoryInfo(h, nvmlMemory_v2).used") == GIB
    wait_until(lambda: reader.about("MemoryInfo(h, nvmlMemory_v2).used") == 0)
    assert time.monotonic() - ended > 0.19


@pytest.mark.parametrize("late", [0.0, 0.2])
def test_a_real_process_holds_memory_until_it_is_killed(
    fake: FakeNvml, started: Callable[..., Reader], wait_until: Callable[..., object], late: float
) -> None:
    one, two = fake.add("3090"), fake.add("4090")
    for gpu in (one, two):
        gpu.set(base=0)
        gpu.free_late(late)
    reader = started()
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": f"{one.uuid},{two.uuid}"}
    script = fake.holding(3 * GIB) + "input()"
    with subprocess.Popen((sys.executable, "-c", script), env=env, stdin=subprocess.PIPE) as job:
        used = "[nvmlDeviceGetMemoryInfo(each, nvmlMemory_v2).used for each in (h0, h1)]"
        wait_until(lambda: reader.ask(used) == [3 * GIB, 3 * GIB])
        assert reader.ask("[p.pid for p in nvmlDeviceGetComputeRunningProcesses(h1)]") == [job.pid]
        job.kill()
        os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)  # a zombie has no memory
        assert reader.about("ComputeRunningProcesses(h1)") == []
        assert reader.about("MemoryInfo(h1, nvmlMemory_v2).used") == (3 * GIB if late else 0)
    wait_until(lambda: reader.ask(used) == [0, 0])


def test_a_process_can_be_followed_and_say_something_else_later(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    gpu = fake.add("3090")
    gpu.set(base=0)
    reader = started()
    gpu.follow(os.getpid(), GIB)
    gpu.follow(os.getpid(), 2 * GIB)
    assert reader.about("MemoryInfo(h, nvmlMemory_v2).used") == 2 * GIB
    assert reader.ask("[p.pid for p in nvmlDeviceGetComputeRunningProcesses(h)]") == [os.getpid()]


def test_processes_have_a_share_of_the_cores(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    gpu = fake.add("3090")
    reader = started()
    assert reader.about("ProcessUtilization(h, 0)") == _error(6)
    gpu.process(11, GIB, sm=80)
    reader.ask("sample = nvmlDeviceGetProcessUtilization(h, 0)[0]")
    assert reader.ask("[sample.pid, sample.smUtil]") == [11, 80]
    assert reader.about("ProcessUtilization(h, sample.timeStamp + 10**9)") == _error(6)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_field_can_be_unsupported_or_forbidden_and_come_back(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    gpu = fake.add("3090")
    reader = started()
    gpu.unsupported("fan", "energy")
    gpu.fails("processes", 4)
    assert reader.about("FanSpeed(h)") == _error(3)
    assert reader.ask("nvmlDeviceGetFieldValues(h, [83])[0].nvmlReturn") == 3
    assert reader.about("ComputeRunningProcesses(h)") == _error(4)
    assert reader.about("PowerUsage(h)") == 20_000
    gpu.set(fan=10)
    gpu.fails("processes", None)
    assert reader.ask("[nvmlDeviceGetFanSpeed(h), nvmlDeviceGetComputeRunningProcesses(h)]") == [10, []]


def test_a_lost_gpu_does_not_disturb_the_others(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    one, _ = fake.add("3090"), fake.add("4090")
    reader = started()
    one.lost()
    assert reader.about("PowerUsage(h0)") == _error(15)
    assert reader.about("Name(h0)") == _error(15)
    assert reader.about("HandleByIndex(0)") == _error(15)
    assert reader.ask("nvmlDeviceGetCount()") == 2
    assert reader.about("Name(h1)") == "NVIDIA GeForce RTX 4090"
    one.lost(handle=False)
    assert reader.about("Name(nvmlDeviceGetHandleByIndex(0))") == _error(15)
    assert reader.about("Index(nvmlDeviceGetHandleByIndex(1))") == 1
    one.back()
    assert reader.about("PowerUsage(h0)") == 20_000


@pytest.mark.parametrize("what", ["all", "gpu", "field"])
def test_a_call_can_hang_until_the_script_says_otherwise(
    fake: FakeNvml, started: Callable[..., Reader], what: str
) -> None:
    gpu = fake.add("3090")
    fake.add("3090")
    reader = started()
    _hang(fake, gpu, what)
    _begin(fake, reader, "nvmlDeviceGetPowerUsage", "(h0)")
    fake.hang(False)
    gpu.back()
    gpu.set(power=5)
    assert reader.answer() == 5
    assert reader.about("PowerUsage(h1)") == 20_000


def _hang(fake: FakeNvml, gpu: FakeGpu, what: str) -> None:
    if what == "all":
        fake.hang()
    elif what == "gpu":
        gpu.hang()
    else:
        gpu.fails("power", "hang")


def _begin(fake: FakeNvml, reader: Reader, function: str, arguments: str) -> None:
    """Begins a call and returns when it is inside of the library."""
    before = fake.calls(function)
    reader.begin(function + arguments)
    tools.wait_until(lambda: fake.calls(function) > before)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("nvmlDeviceGetHandleByIndex_v2", "(0)"),
        ("nvmlDeviceGetTopologyCommonAncestor", "(h1, h0)"),
        ("nvmlDeviceGetFieldValues", "(h0, [83])"),
        ("nvmlDeviceGetComputeRunningProcesses_v3", "(h0)"),
    ],
)
def test_every_call_about_a_gpu_that_hangs_does(
    fake: FakeNvml, started: Callable[..., Reader], function: str, arguments: str
) -> None:
    gpu = fake.add("3090")
    fake.add("3090")
    reader = started()
    reader.ask("nvmlDeviceGetHandleByIndex_v2 = nvmlDeviceGetHandleByIndex")
    gpu.hang()
    _begin(fake, reader, function, arguments)
    gpu.back()
    gpu.lost()
    assert reader.answer() == _error(15)


def test_only_a_kill_ends_who_is_in_a_call_that_hangs(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    fake.hang()
    reader = started(opened=False)
    reader.begin("nvmlInit()")
    tools.wait_until(lambda: fake.calls("nvmlInitWithFlags"))
    tools.wait_until(lambda: _blocks(reader.process.pid, signal.SIGTERM))
    reader.process.terminate()
    assert reader.process.poll() is None
    reader.process.kill()
    assert reader.process.wait(10) == -signal.SIGKILL


def _blocks(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigBlk:")[1].split()[0], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(("fault", "code"), [("version_mismatch", 18), ("driver_not_loaded", 9)])
def test_the_driver_can_go_and_come_back(fake: FakeNvml, started: Callable[..., Reader], fault: str, code: int) -> None:
    fake.add("3090")
    reader = started()
    getattr(fake, fault)()
    assert reader.about("PowerUsage(h)") == _error(code)
    assert reader.ask("nvmlDeviceGetCount()") == _error(code)
    assert reader.ask("nvmlShutdown()") is None
    assert reader.ask("nvmlInit()") == _error(code)
    getattr(fake, fault)(False)
    _open(reader, 1)
    assert reader.about("PowerUsage(h)") == 20_000


def test_init_alone_can_fail(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    fake.add("3090")
    reader = started()
    fake.init_fault(999)
    assert reader.about("PowerUsage(h)") == 20_000
    assert reader.ask("nvmlInit()") == _error(999)


def test_without_a_script_there_is_no_driver(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    fake.script.unlink()
    assert started(opened=False).ask("nvmlInit()") == _error(9)


def test_a_gpu_can_be_gone_and_the_indices_shift(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    one, two = fake.add("3090"), fake.add("4090")
    reader = started()
    fake.drop(one)
    assert reader.ask("nvmlDeviceGetCount()") == 1
    assert reader.about("UUID(nvmlDeviceGetHandleByIndex(0))") == two.uuid
    assert reader.about("PowerUsage(h0)") == _error(15)
    assert reader.about("Index(h1)") == 0
    assert reader.about(f"HandleByUUID('{one.uuid}')") == _error(6)
    fake.put_back(one)
    assert reader.about("Index(h1)") == 1
    assert reader.about("PciInfo(h1).busId") == two.bus_id


def test_samples_can_be_garbage(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    gpu = fake.add("3090")
    gpu.process(11, GIB)
    reader = started()
    gpu.garbage()
    assert reader.about("UtilizationRates(h).gpu") == GARBAGE
    assert reader.about("PowerUsage(h)") == GARBAGE
    assert reader.about("Temperature(h, 0)") == 4_000_000_000
    assert reader.about("ClockInfo(h, NVML_CLOCK_SM)") == GARBAGE
    assert reader.about("TotalEnergyConsumption(h)") == 2**64 - 1
    assert reader.ask("nvmlDeviceGetFieldValues(h, [83])[0].timestamp") == 1
    reader.ask("sample = nvmlDeviceGetProcessUtilization(h, 1000)[0]")
    assert reader.ask("[sample.smUtil, sample.timeStamp]") == [GARBAGE, 1]
    gpu.garbage(False)
    assert reader.about("UtilizationRates(h).gpu") == 0


def test_an_old_driver_lacks_functions(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    fake.add("2080s")
    fake.old_driver()
    reader = started()
    assert reader.ask("nvmlSystemGetDriverVersion()") == "525.60.13"
    assert reader.about("TemperatureV(h, 0)") == _error(13)
    assert reader.about("Temperature(h, 0)") == 35
    assert reader.about("CurrentClocksEventReasons(h)") == _error(13)
    assert reader.about("CurrentClocksThrottleReasons(h)") == 1
    assert reader.about("MemoryInfo(h, nvmlMemory_v2)") == _error(13)
    assert reader.about("MemoryInfo(h).total") == 8 * GIB
    assert reader.ask("nvmlSystemGetCudaDriverVersion()") == 12000


def test_a_function_that_no_driver_has_is_not_found(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    fake.add("3090")
    assert started().about("BoardId(h)") == _error(13)


def test_handles_end_with_the_last_shutdown(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    del fake.env["FAKE_NVML_STRICT"]
    fake.add("3090")
    reader = started()
    assert reader.ask("nvmlInit()") is None
    assert reader.ask("nvmlShutdown()") is None
    assert reader.about("PowerUsage(h)") == 20_000
    assert reader.ask("nvmlShutdown()") is None
    assert reader.about("PowerUsage(h)") == _error(1)
    assert reader.ask("nvmlShutdown()") == _error(1)
    assert reader.ask("nvmlInit()") is None
    assert reader.about("PowerUsage(h)") == _error(2)


def test_a_strict_library_ends_who_uses_an_old_handle(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    fake.add("3090")
    reader = started()
    for call in ("nvmlShutdown()", "nvmlInit()"):
        assert reader.ask(call) is None
    reader.begin("nvmlDeviceGetPowerUsage(h)")
    assert reader.process.wait(10) == -signal.SIGABRT
    assert reader.process.stderr
    assert "a handle was used that is none, or not any more" in reader.process.stderr.read()


def test_calls_are_counted(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    one, two = fake.add("3090"), fake.add("4090")
    reader = started()
    start = fake.calls(gpu=two)
    for _ in range(3):
        reader.about("PowerUsage(h0)")
    assert fake.calls("nvmlDeviceGetPowerUsage") == 3
    assert fake.calls("nvmlDeviceGetPowerUsage", one) == 3
    assert fake.calls("nvmlDeviceGetPowerUsage", pid=reader.process.pid) == 3
    assert fake.calls(gpu=two) == start == 1  # the handle
    assert fake.calls(pid=1) == 0


def test_a_script_with_a_mistake_is_no_script(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    fake.script.write_text("gpu 3090 GPU-1\nfun 3\n")
    reader = started(opened=False)
    reader.begin("nvmlInit()")
    assert reader.process.wait(10) == -signal.SIGABRT
    assert reader.process.stderr
    assert "no such field or statement: fun" in reader.process.stderr.read()


def test_a_field_that_is_none_is_refused_at_once(fake: FakeNvml) -> None:
    assert {"used", "fan", "throttled_power_brake", "stale"} < fields()
    gpu = fake.add("3090")
    with pytest.raises(AssertionError, match="no such field: utilisation"):
        gpu.set(utilisation=3)


def test_the_library_is_compiled_once() -> None:
    assert library() is library()
    assert [file.name for file in library().iterdir()] == ["libnvidia-ml.so.1"]


def test_a_call_costs_microseconds(fake: FakeNvml, started: Callable[..., Reader]) -> None:
    fake.add("3090")
    reader = started(FAKE_NVML_CALLS="/dev/null")
    reader.ask("import timeit")
    assert reader.ask("min(timeit.repeat(lambda: nvmlDeviceGetPowerUsage(h), number=1000, repeat=5))") < 0.05
