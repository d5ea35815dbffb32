"""PURE: which of PyTorch's wheels a box can run, by its driver and its cards, and how uv is told.

uv itself knows which driver each of its wheels needs (its torch backend `auto`); what it is told here is the driver
that the collector read, since a build sees no GPU. The role `plan` has the same numbers; a test holds them together.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from runner.errors import BadRequest

TURING = 6  # of NVML's architectures: CUDA 13 has no code for any before it
CUDA_13_BRANCH = 580  # the first driver that runs it
TORCH_OLD = "torch<2.15"  # the last that has wheels for CUDA 12.6, and these the last for cards before Turing
TORCH_OLD_INDEX = "https://download.pytorch.org/whl/cu126"

THEIRS = ""  # the declaration, or the box's own package index, decides
CPU, OLD = "cpu", "cu126"
FLOORS = {"cuda11": "450.80.02", "cuda12": "525.60.13", "cuda13": "580.65.06"}  # CUDA -> the first driver of it
CHOICES = (THEIRS, CPU, OLD, *FLOORS)

_CHOSEN = re.compile(rb"download\.pytorch\.org|pypi\.nvidia\.com|\+(cu|rocm)\d|\+cpu\b|--hash=|torch-backend")


@dataclass(frozen=True)
class Driver:
    """What the collector read; cuda: the newest that it runs, as in "13.0"."""

    version: str
    cuda: str
    architecture: int | None = None  # NVML's number of the oldest card; None: not known

    @property
    def major(self) -> int:
        """Of CUDA; 0: not known."""
        digits = self.cuda.partition(".")[0]
        return int(digits) if digits.isdecimal() else 0


def choice(driver: Driver | None, own_index: bool) -> str:
    """What counts for the name of an environment: wheels of the same CUDA run with every later driver, too.

    own_index: packages come from an index of the box's own, which PyTorch's would bypass."""
    if own_index:
        return THEIRS
    if driver is None:
        return CPU
    if driver.architecture is not None and driver.architecture < TURING:
        return OLD
    if not driver.major:
        return THEIRS
    return f"cuda{min(max(driver.major, 11), 13)}"


def applies(files: Mapping[str, bytes]) -> bool:
    """Whether a declaration leaves the wheels open. A lock does not, nor who names PyTorch's index, or hashes."""
    return "uv.lock" not in files and not any(_CHOSEN.search(content) for content in files.values())


def variables(chosen: str, driver: Driver | None) -> dict[str, str]:
    """In uv's words. A driver that has changed since the choice is told as the first of the CUDA that was chosen."""
    if chosen == THEIRS:
        return {}
    if chosen in (CPU, OLD):
        return {"UV_TORCH_BACKEND": chosen}
    same = driver is not None and choice(driver, own_index=False) == chosen
    return {
        "UV_TORCH_BACKEND": "auto",
        "UV_CUDA_DRIVER_VERSION": driver.version if driver is not None and same else FLOORS[chosen],
    }


def words(chosen: str, driver: Driver | None) -> str:
    """Added to what the resolver says when it finds none."""
    if chosen == CPU:
        return "PyTorch's wheels were those for computers without a GPU: this box has no driver"
    if chosen == OLD:
        return f"PyTorch's wheels were those of CUDA 12.6, the last for cards before Turing: {TORCH_OLD}"
    if chosen in FLOORS and driver is not None:
        newest = f"; CUDA 13 takes driver {CUDA_13_BRANCH} or newer" if driver.major < 13 else ""
        return f"PyTorch's wheels were those for driver {driver.version}, which runs CUDA up to {driver.cuda}{newest}"
    return ""


def locked_cuda(lock: bytes) -> int:
    """The CUDA (11, 12, 13) for which a uv.lock holds packages; 0: for none."""
    try:
        packages = tomllib.loads(lock.decode()).get("package", [])
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        return 0
    found = 0
    for package in packages if isinstance(packages, list) else ():
        name, version = str(package.get("name", "")), str(package.get("version", ""))
        suffix = re.fullmatch(r"nvidia-[a-z-]+-cu(\d+)", name)
        digits = version.partition(".")[0]
        if suffix:
            found = max(found, int(suffix[1]))
        elif name in ("cuda-toolkit", "nvidia-cuda-runtime") and digits.isdecimal():
            found = max(found, int(digits))
    return found


def refuse(cuda: int, driver: Driver | None) -> None:
    """BadRequest: what is locked can't compute on this box's GPUs."""
    if driver is None or not driver.major or not cuda:
        return
    if cuda > driver.major:
        raise BadRequest(
            f"the uv.lock holds packages for CUDA {cuda}, and this box's driver {driver.version} runs CUDA up to "
            f"{driver.cuda}",
            f"lock those of CUDA {driver.major}, or upgrade the driver"
            + (f" to {CUDA_13_BRANCH} or newer" if cuda == 13 else ""),
        )
    if cuda >= 13 and driver.architecture is not None and driver.architecture < TURING:
        raise BadRequest(
            f"the uv.lock holds packages for CUDA {cuda}, which has no code for a card of this box",
            f"lock those of CUDA 12.6: {TORCH_OLD} from {TORCH_OLD_INDEX}",
        )
