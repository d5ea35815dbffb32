"""GPUs without hardware: writes the script of the fake libnvidia-ml (tests/nvml/fake.c says what may stand in it)."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import tools

SOURCE = Path(__file__).with_name("nvml") / "fake.c"
FLAGS = ("-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
MODELS = ("2080s", "3090", "4080s", "4090", "h200", "gb10")
GARBAGE = 2**32 - 1  # what NVML writes into a sample of 32 bits that it does not have
NEW = (  # what came after driver 535 or so; nvidia-ml-py then says FUNCTION_NOT_FOUND
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetSupportedClocksEventReasons",
    "nvmlSystemGetCudaDriverVersion_v2",
)


@functools.cache
def library() -> Path:
    """The folder that holds libnvidia-ml.so.1, compiled once for this process; gone with it."""
    folder = Path(tempfile.mkdtemp(prefix="fake-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = (tools.need("cc"), *FLAGS, "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE))
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60)
    return folder


@functools.cache
def fields() -> frozenset[str]:
    """The names that FakeGpu.set takes."""
    return frozenset(re.findall(r"\bX\((\w+)\) ?", SOURCE.read_text().split("enum field")[0]))


class FakeGpu:
    """One GPU of the script. Each change is written at once and holds until changed."""

    def __init__(self, nvml: FakeNvml, model: str, position: int) -> None:
        self.model = model
        self.uuid = f"GPU-{f'{position + 1:x}' * 8}-0000-4000-8000-{position + 1:012x}"
        self.bus_id = f"00000000:{position + 1:02X}:00.0"
        self._nvml = nvml
        self._values: dict[str, int | str] = {}
        self._fails: dict[str, int | str] = {}
        self._fault = ""
        self._garbage = False
        self._free_late = 0.0
        self._processes: dict[int, tuple[int | None, str, int]] = {}
        self._lingering: list[tuple[int, float]] = []
        self._xids = [0, 0]  # how many, the last

    def set(self, **values: int | str | None) -> None:
        """Fields in NVML's units: bytes, %, mW, mJ, MHz, °C, ns, bits. None: as the model has it (`used`: the sum)."""
        for field, value in values.items():
            self._known(field)
            self._fails.pop(field, None)
            self._values.pop(field, None)
            if value is not None:
                self._values[field] = value
        self._nvml.write()

    def fails(self, field: str, code: int | str | None) -> None:
        """Reading a field returns an error code of NVML, or "hang"s; None: not any more."""
        self._known(field)
        self._fails.pop(field, None)
        if code is not None:
            self._fails[field] = code
        self._nvml.write()

    def unsupported(self, *names: str) -> None:
        for field in names:
            self.fails(field, 3)

    def process(self, pid: int, memory: int | None, kind: str = "compute", sm: int = 0) -> None:
        """A pid is listed, alive or not; memory None is UINT64_MAX, what NVML says when it does not know."""
        self._processes[pid] = (memory, kind, sm)
        self._nvml.write()

    def ends(self, pid: int) -> None:
        """It is listed no more; its memory is free when free_late() says."""
        memory = self._processes.pop(pid)[0]
        if memory and self._free_late:
            self._lingering.append((memory, time.time() + self._free_late))
        self._nvml.write()

    def follow(self, pid: int, memory: int | None) -> None:
        """A real process is listed while it lives, then its memory is free as free_late() says: nobody need write."""
        with open(self._nvml.holds, "a") as holds:
            holds.write(f"{self.uuid} {pid} {'-' if memory is None else memory}\n")

    def free_late(self, seconds: float) -> None:
        """Memory of processes that end from now on stays used for so long."""
        self._free_late = seconds
        self._nvml.write()

    def lost(self, handle: bool = True) -> None:
        """Fallen off the bus. False: its handle can still be had, only the calls fail."""
        self.fault(15, handle)

    def hang(self, on: bool = True) -> None:
        self.fault("hang" if on else None)

    def fault(self, code: int | str | None, handle: bool = True) -> None:
        """Every call about it returns a code of NVML, or "hang"s; None: not any more."""
        self._fault = "" if code is None else f"fault {code}{'' if handle else ' calls'}"
        self._nvml.write()

    def xid(self, code: int) -> None:
        """A fault that NVML tells by itself, once."""
        self._xids = [self._xids[0] + 1, code]
        self._nvml.write()

    def back(self) -> None:
        self.fault(None)

    def garbage(self, on: bool = True) -> None:
        """Absurd utilization, power, temperature, clocks, fan and energy; time stamps of long ago."""
        self._garbage = on
        self._nvml.write()

    def _known(self, field: str) -> None:
        assert field in fields(), f"no such field: {field}; there are {', '.join(sorted(fields()))}"

    def lines(self) -> list[str]:
        processes = [
            f"process {pid} {'-' if memory is None else memory} {kind} {sm}"
            for pid, (memory, kind, sm) in self._processes.items()
        ]
        return [
            f"gpu {self.model} {self.uuid}",
            f"bus {self.bus_id}",
            f"free_late {self._free_late * 1000:.0f}",
            *(f"{field} {value}" for field, value in self._values.items()),
            f"xid {self._xids[0]} {self._xids[1]}",
            *(["garbage"] if self._garbage else []),
            *(f"fail {field} {code}" for field, code in self._fails.items()),
            *([self._fault] if self._fault else []),
            *processes,
            *(f"lingers {memory} {until:.3f}" for memory, until in self._lingering),
        ]


class FakeNvml:
    """The machine's driver: give `env` to the processes that shall see it."""

    def __init__(self, folder: Path, calls: bool = True, strict: bool = True) -> None:
        """calls: keep a list of all calls, for `calls()`. strict: a handle from before nvmlShutdown ends its user."""
        self.script = folder / "nvml"
        self.holds = folder / "nvml.holds"
        self.call_list = folder / "nvml.calls"
        others = os.environ.get("LD_LIBRARY_PATH")
        self.env = {
            "LD_LIBRARY_PATH": f"{library()}:{others}" if others else str(library()),
            "FAKE_NVML": str(self.script),
        }
        if calls:
            self.env["FAKE_NVML_CALLS"] = str(self.call_list)
        if strict:
            self.env["FAKE_NVML_STRICT"] = "1"
        self.gpus: list[FakeGpu] = []
        self._dropped: set[str] = set()
        self._added = 0
        self._statements: dict[str, str] = {}
        self._links: list[str] = []
        self.write()

    def add(self, model: str) -> FakeGpu:
        assert model in MODELS, f"no such model: {model}"
        gpu = FakeGpu(self, model, self._added)
        self._added += 1
        self.gpus.append(gpu)
        self.write()
        return gpu

    def drop(self, gpu: FakeGpu) -> None:
        """Not enumerated any more; the indices after it shift."""
        self._dropped.add(gpu.uuid)
        self.write()

    def put_back(self, gpu: FakeGpu) -> None:
        self._dropped.discard(gpu.uuid)
        self.write()

    def link(self, one: FakeGpu, other: FakeGpu, level: int | str) -> None:
        """What two have in common: NVML's level (10 a switch .. 50 nothing; 30 where nothing is said), or "nvlink"."""
        self._links.append(f"link {one.uuid} {other.uuid} {level}")
        self.write()

    def fault(self, code: int | str | None) -> None:
        """Every call returns a code of NVML, nvmlInit too, or "hang"s; None: not any more."""
        self._state("fault", code)

    def init_fault(self, code: int | str | None) -> None:
        """Only nvmlInit does."""
        self._state("init", code)

    def hang(self, on: bool = True) -> None:
        self.fault("hang" if on else None)

    def version_mismatch(self, on: bool = True) -> None:
        self.fault(18 if on else None)

    def driver_not_loaded(self, on: bool = True) -> None:
        self.fault(9 if on else None)

    def old_driver(self, version: str = "525.60.13", cuda: int = 12000) -> None:
        """A driver that lacks what came later."""
        self._statements["missing"] = "missing " + " ".join(NEW)
        self.driver(version, cuda)

    def driver(self, version: str, cuda: int) -> None:
        """cuda: as NVML writes it, 12080 is 12.8."""
        self._statements["driver"] = f"driver {version}"
        self._statements["cuda"] = f"cuda {cuda}"
        self.write()

    def calls(self, function: str | None = None, gpu: FakeGpu | None = None, pid: int | None = None) -> int:
        """How many calls there were until now: of a function, about a GPU, by a process."""
        if not self.call_list.exists():
            return 0
        wanted = (None if pid is None else str(pid), function, None if gpu is None else gpu.uuid)
        lines = (line.split() for line in self.call_list.read_text().splitlines())
        return sum(all(want in (None, is_) for want, is_ in zip(wanted, line, strict=True)) for line in lines)

    def holding(self, memory: int) -> str:
        """A line of Python: whoever runs it holds so much of each GPU in its CUDA_VISIBLE_DEVICES, while it lives."""
        line = f"{{gpu}} {{os.getpid()}} {memory}\\n"
        each = "for gpu in os.environ['CUDA_VISIBLE_DEVICES'].split(',')"
        return f"import os; open({str(self.holds)!r}, 'a').writelines(f'{line}' {each})\n"

    def _state(self, what: str, code: int | str | None) -> None:
        self._statements.pop(what, None)
        if code is not None:
            self._statements[what] = f"{what} {code}"
        self.write()

    def write(self) -> None:
        lines = [*self._statements.values(), *self._links]
        for gpu in self.gpus:
            if gpu.uuid not in self._dropped:
                lines += gpu.lines()
        new = self.script.with_name("nvml.new")
        new.write_text("\n".join(lines) + "\n")
        os.utime(new, ns=(time.time_ns(), time.time_ns()))  # finer than the file system's clock: each script is another
        os.replace(new, self.script)
