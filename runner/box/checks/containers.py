"""PURE: whether containers are there, and see the GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runner.box.checks.computer import Said
from runner.box.checks.finding import SETUP, Finding, failed, ok, skipped

REFRESH = "sudo systemctl restart nvidia-cdi-refresh"
BY_HAND = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
SERVICES = {"podman": "podman info", "docker": "sudo systemctl status docker"}


def engine(name: str, said: Said) -> Finding:
    """name: podman, docker or nothing."""
    if not name:
        return skipped("no container engine is installed here")
    if said.code != 0:
        why = "it does not answer" if said.code is None else said.last or f"it ended with {said.code}"
        return failed(f"{name} does not work", why, SERVICES[name])
    return ok(f"{name} {said.out.strip()}".rstrip())


def cdi_current(toolkit: bool, files: Mapping[str, Sequence[str]], loaded: str, refreshes: bool) -> Finding:
    """files: those of CDI that name NVIDIA's devices, with the versions of the driver in them."""
    next = REFRESH if refreshes else BY_HAND
    if not toolkit and not files:
        return skipped("NVIDIA's container toolkit is not installed here")
    if not files:
        return failed("no file of CDI describes the GPUs: containers get none", "it was not written yet", next)
    old = [f"{path} is of {', '.join(found)}" for path, found in files.items() if found and loaded not in found]
    if old:
        return failed(
            f"{'; '.join(old)}, but the driver is {loaded}",
            "containers would be given libraries that are gone or do not fit",
            next,
        )
    return ok(f"{', '.join(files)} {'are' if len(files) > 1 else 'is'} of this driver")


def gpu(name: str, said: Said, count: int) -> Finding:
    """What `nvidia-smi -L` said in a container, and how many GPUs it should have named."""
    lines = [line for line in said.out.splitlines() if line.startswith("GPU ")]
    if said.code == 0 and len(lines) >= count:
        return ok(f"a container of {name} sees {len(lines)}", *lines)
    if said.code == 0:
        return failed(f"a container of {name} sees {len(lines)} of {count} GPUs", "", BY_HAND, *lines)
    what = f"a container of {name} does not see the GPUs"
    why = "it did not end" if said.code is None else said.last or f"it ended with {said.code}"
    if "unresolvable CDI" in why or "stat nvidia.com/gpu" in why:
        return failed(what, f"{name} finds no file of CDI for them: {why}", REFRESH)
    return failed(what, why, SETUP, *said.err.splitlines()[-4:])
