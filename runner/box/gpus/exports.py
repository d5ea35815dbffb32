"""What other programs are told of the GPUs: numbers for Prometheus, and for dcgm-exporter which jobs have each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from runner import files, words
from runner.box.daemon import Daemon
from runner.box.exposition import COUNTER, Family
from runner.model import Gpu

# name -> (field of Sample, what it is); the unit is in the name
READ = {
    "utilization_ratio": ("utilization", "Share of the driver's last window in which a kernel was resident."),
    "memory_utilization_ratio": ("memory_utilization", "Share of that in which memory was read or written."),
    "memory_used_bytes": ("memory_used_bytes", "Memory in use."),
    "power_watts": ("power_watts", "Power that is drawn."),
    "power_limit_watts": ("power_limit_watts", "Power that may be drawn."),
    "temperature_celsius": ("temperature_celsius", "Temperature of the chip."),
    "memory_temperature_celsius": ("memory_temperature_celsius", "Temperature of its memory."),
    "slowdown_celsius": ("slowdown_celsius", "Temperature from which on it slows down."),
    "sm_clock_hertz": ("sm_clock_hertz", "Clock of the multiprocessors."),
    "memory_clock_hertz": ("memory_clock_hertz", "Clock of the memory."),
    "fan_ratio": ("fan", "Speed of the fan."),
    "performance_state": ("performance_state", "0 is the fastest, 15 the slowest."),
    "pcie_generation": ("pcie_generation", "Generation of the PCIe link; it drops while the card idles."),
    "pcie_width": ("pcie_width", "Lanes of the PCIe link."),
}


def families(daemon: Daemon, now: float) -> list[Family]:
    """Everything, as it is now."""
    gpus = daemon.gpus.view(now)
    return [*_gpus(gpus), *_faults(daemon), *_holders(daemon, gpus), *_queue(daemon), *_box(daemon, now)]


def _labels(gpu: Gpu) -> dict[str, str]:
    return {"gpu": "" if gpu.index is None else str(gpu.index), "uuid": gpu.uuid}


def _gpus(gpus: Iterable[Gpu]) -> list[Family]:
    info = Family("gpubox_gpu_info", "The GPUs of the box, there now or not.")
    state = Family("gpubox_gpu_state", "1 for the state that a GPU is in, seen from the queue.")
    size = Family("gpubox_gpu_memory_bytes", "Memory that it has.")
    read = {name: Family(f"gpubox_gpu_{name}", told) for name, (_, told) in READ.items()}
    energy = Family("gpubox_gpu_energy_joules_total", "Energy since the driver was loaded.", COUNTER)
    held = Family("gpubox_gpu_throttled_seconds_total", "Time held back since the driver was loaded.", COUNTER)
    errors = Family("gpubox_gpu_ecc_errors_total", "Memory errors that could not be corrected.", COUNTER)
    for gpu in gpus:
        labels = _labels(gpu)
        info.add(1, labels | {"name": gpu.name, "bus_id": gpu.bus_id})
        for name in words.GPU_STATES:
            state.add(int(gpu.state == name), labels | {"state": name})
        size.add(gpu.memory_bytes, labels)
        if gpu.sample is None:
            continue
        for name, (field, _) in READ.items():
            read[name].add(getattr(gpu.sample, field), labels)
        energy.add(gpu.sample.energy_joules, labels)
        errors.add(gpu.sample.ecc_errors, labels)
        for reason, seconds in (gpu.sample.throttled_seconds or {}).items():
            held.add(seconds, labels | {"reason": reason})
    return [info, state, size, *read.values(), energy, held, errors]


def _faults(daemon: Daemon) -> list[Family]:
    xids = Family("gpubox_gpu_xids_total", "Faults that the driver reported since this daemon began.", COUNTER)
    for (uuid, code), count in daemon.gpus.xids.items():
        index = daemon.gpus.cards.index(uuid)
        xids.add(count, {"gpu": "" if index is None else str(index), "uuid": uuid, "xid": str(code)})
    return [xids]


def _holders(daemon: Daemon, gpus: Iterable[Gpu]) -> list[Family]:
    """To be joined with the others by uuid."""
    held = Family("gpubox_gpu_job", "1 for each job that has a GPU.")
    for gpu in gpus:
        for id_ in gpu.jobs:
            job = daemon.book.active.get(id_)
            if job is not None:
                held.add(1, _labels(gpu) | {"job": str(job.id), "job_name": job.name, "user": job.user})
    return [held]


def _queue(daemon: Daemon) -> list[Family]:
    jobs = Family("gpubox_jobs", "Unfinished jobs, by state.")
    for state in words.UNFINISHED:
        jobs.add(sum(job.state == state for job in daemon.book.jobs.values()), {"state": state})
    return [jobs]


def _box(daemon: Daemon, now: float) -> list[Family]:
    free, total = files.disk_room(daemon.settings.state)
    up = Family("gpubox_gpus_known", "1 while the GPUs are read; 0: nothing is known of them.")
    up.add(int(daemon.gpus.silence(now) is None))
    cost = Family("gpubox_collector_cycle_seconds", "What the last reading of all GPUs took.")
    cost.add(daemon.gpus.cards.cost)
    room = Family("gpubox_disk_free_bytes", "Free on the disk of the box's state.")
    room.add(free)
    all_of_it = Family("gpubox_disk_bytes", "Size of the disk of the box's state.")
    all_of_it.add(total)
    spent = Family("gpubox_daemon_cpu_seconds_total", "Processor time of the daemon.", COUNTER)
    times = os.times()
    spent.add(times.user + times.system)
    return [up, cost, room, all_of_it, spent]


# --- dcgm-exporter -------------------------------------------------------------------------------------------------


class JobFiles:
    """A folder for `dcgm-exporter --hpc-job-mapping-dir`: a file named after each GPU's index, a job's id a line."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._written: dict[str, str] | None = None

    def write(self, jobs: Mapping[int, Iterable[int]]) -> None:
        """jobs: index of a GPU -> those that have it. OSError; then it is written with the next change."""
        wanted = {str(index): "".join(f"{job}\n" for job in sorted(ids)) for index, ids in jobs.items()}
        wanted = {name: text for name, text in wanted.items() if text}
        if wanted == self._written:
            return
        self._written = None
        os.makedirs(self._folder, exist_ok=True)
        os.chmod(self._folder, 0o755)  # for an exporter that is not root, whatever the umask
        for name in os.listdir(self._folder):
            if name.isdecimal() and name not in wanted:
                os.unlink(f"{self._folder}/{name}")
        for name, text in wanted.items():
            part = f"{self._folder}/.{name}"
            with open(part, "w") as file:
                file.write(text)
                os.fchmod(file.fileno(), 0o644)
            os.replace(part, f"{self._folder}/{name}")
        self._written = wanted
