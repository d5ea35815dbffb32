"""Units of a provisioned box: all that systemd is told of an attempt or a build, in one place. Root's code.

Of what the daemon wrote into a `spec`, only numbers and the names of GPUs come in here, and are checked (`Limits`).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

SLICE = "gpubox-jobs.slice"
NVIDIA = "/proc/driver/nvidia/gpus"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}  # of the programs that are run here
GPU = re.compile(r"GPU-[0-9a-f-]{8,40}")
NOTHING = "null"  # to read, for who is started


class Refusal(Exception):
    """What was asked for is not done; the words go to the daemon's log."""


@dataclass(frozen=True)
class Limits:
    """What a unit is told of its job."""

    memory_bytes: int = 0  # 0: not declared
    cpus: int = 1
    grace: int = 30
    gpus: tuple[str, ...] = ()  # UUIDs

    @classmethod
    def of(cls, spec: dict[str, object]) -> Limits:
        said = spec.get("gpus", [])
        gpus = [one for one in said if isinstance(one, str) and GPU.fullmatch(one)] if isinstance(said, list) else []
        if gpus != said or len(gpus) > 64:
            raise Refusal("its spec names GPUs that are none")
        grace = spec.get("grace", 30)
        whole = int(grace) if isinstance(grace, float) and 0 <= grace < 1e9 else grace
        memory = _number("memory_bytes", spec.get("memory_bytes", 0), 1 << 50)
        cpus = _number("cpus", spec.get("cpus", 1), 4096)
        return cls(memory, max(1, cpus), _number("grace", whole, 1 << 30), tuple(gpus))


def _number(name: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise Refusal(f"its spec says {name} {str(value)[:40]!r}, which is no whole number from 0 to {most}")
    return value


def template(
    supervisors: int, title: str, limits: Limits, devices: Sequence[str], writable: Sequence[str], reads: str = NOTHING
) -> list[str]:
    """All that a unit of ours is told. The supervisor is the daemon's user with the three capabilities that it needs to
    make its child the jobs' user and to end it; no program that is executed gains anything (NoNewPrivileges).

    supervisors: their uid. reads: what is its standard input."""
    return [
        f"Description={title}", f"Slice={SLICE}", "Type=exec", f"User={supervisors}",
        "Before=gpubox.service",  # when the box goes down the daemon goes first, and starts nothing anew
        "AmbientCapabilities=CAP_SETUID CAP_SETGID CAP_KILL", "CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_KILL",
        "NoNewPrivileges=yes", "UMask=0077", f"StandardInput={reads}", "WorkingDirectory=/",
        # What it may touch. Its network is open: training code downloads.
        "ProtectSystem=strict", f"ReadWritePaths={' '.join(writable)}", "ProtectHome=read-only", "PrivateTmp=yes",
        "TemporaryFileSystem=/dev/shm:mode=1777", "PrivateIPC=yes", "KeyringMode=private", "ProtectHostname=yes",
        "ProtectKernelTunables=yes", "ProtectKernelModules=yes", "ProtectKernelLogs=yes", "ProtectControlGroups=yes",
        "ProtectClock=yes", "RestrictNamespaces=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes",
        "LockPersonality=yes", "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallArchitectures=native", "SystemCallErrorNumber=EPERM",
        "SystemCallFilter=~@clock @cpu-emulation @module @mount @obsolete @raw-io @reboot @swap",
        "DevicePolicy=closed", *(f"DeviceAllow={device} rw" for device in devices),
        # What it may use.
        f"CPUWeight={min(10_000, 100 * limits.cpus)}", "TasksMax=16384", "LimitMEMLOCK=infinity", "LimitCORE=0",
        *([f"MemoryMax={limits.memory_bytes}"] if limits.memory_bytes else []),
        "OOMPolicy=continue",  # the supervisor says what happened
        # How it ends. The supervisor stops its job by itself; a stop of the unit is a shutdown, or an administrator's.
        "KillMode=control-group", "SendSIGKILL=yes", f"TimeoutStopSec={min(limits.grace, 300) + 15}", "Restart=no",
    ]  # fmt: skip


def devices(gpus: Sequence[str], folder: str = NVIDIA) -> list[str]:
    """The device files of GPUs, by UUID: the numbers that others show for them are not those of the files."""
    if not gpus:
        return []
    minors: dict[str, str] = {}
    for bus in os.listdir(folder):
        with open(f"{folder}/{bus}/information") as file:
            said = dict(line.split(":", 1) for line in file if ":" in line)
        minors[said.get("GPU UUID", "").strip()] = said.get("Device Minor", "").strip()
    missing = [uuid for uuid in gpus if not minors.get(uuid, "").isdecimal()]
    if missing:
        raise Refusal(f"the driver knows no {missing[0]}")
    shared = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]
    return [f"/dev/nvidia{int(minors[uuid])}" for uuid in gpus] + shared


def command(unit: str, properties: Sequence[str], program: Sequence[str], wait: bool = False) -> list[str]:
    """Starts a unit. wait: until its program is executed, and not only until systemd has heard of it."""
    chosen = [f"--property={line}" for line in properties]
    patience = [] if wait else ["--no-block"]
    return ["/usr/bin/systemd-run", "--quiet", "--collect", *patience, "--no-ask-password", f"--unit={unit}",
            *chosen, "--", *program]  # fmt: skip


def run(arguments: Sequence[str]) -> None:
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode != 0:
        raise Refusal(done.stderr.strip()[-400:] or f"systemd-run ended with code {done.returncode}")


def unit_name(job: str, attempt: str) -> str:
    return f"gpubox-job-{job}-{attempt}.service"
