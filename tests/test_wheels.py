"""PyTorch's wheels: chosen for the box's driver and cards, told to uv, or refused in words before a job starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from builders import a_hall, a_reading
from machines import gpubox_decision

from runner import errors
from runner.box.envs import Environments, choose, settings, wheels
from runner.box.envs.wheels import CPU, OLD, THEIRS, Driver

NEW = Driver("580.65.06", "13.0", 8)
TWELVE = Driver("550.54.14", "12.4", 8)


@pytest.mark.parametrize(
    ("driver", "chosen"),
    [
        (None, CPU),
        (Driver("", ""), THEIRS),
        (NEW, "cuda13"),
        (Driver("615.10", "13.4", 10), "cuda13"),
        (Driver("620.10", "14.0", 10), "cuda13"),
        (TWELVE, "cuda12"),
        (Driver("470.256.02", "11.4", 7), "cuda11"),
        (Driver("580.65.06", "13.0", 4), OLD),
        (Driver("580.65.06", "13.0", 5), OLD),
        (Driver("580.65.06", "13.0", 6), "cuda13"),
        (Driver("580.65.06", "13.0"), "cuda13"),
    ],
    ids=str,
)
def test_driver_and_oldest_card_decide(driver: Driver | None, chosen: str) -> None:
    assert wheels.choice(driver, own_index=False) == chosen
    assert wheels.choice(driver, own_index=True) == THEIRS
    assert chosen in wheels.CHOICES


def test_uv_is_told_in_its_own_words() -> None:
    assert wheels.variables("cuda13", NEW) == {"UV_TORCH_BACKEND": "auto", "UV_CUDA_DRIVER_VERSION": "580.65.06"}
    assert wheels.variables("cuda12", NEW)["UV_CUDA_DRIVER_VERSION"] == "525.60.13", "the driver is another meanwhile"
    assert wheels.variables("cuda12", None)["UV_CUDA_DRIVER_VERSION"] == "525.60.13"
    assert wheels.variables(CPU, None) == {"UV_TORCH_BACKEND": "cpu"}
    assert wheels.variables(OLD, NEW) == {"UV_TORCH_BACKEND": "cu126"}
    assert wheels.variables(THEIRS, NEW) == {}


@pytest.mark.parametrize(
    ("name", "text", "applies"),
    [
        ("requirements.txt", "torch\n", True),
        ("requirements.txt", "lightning\n", True),
        ("requirements.txt", "--extra-index-url https://download.pytorch.org/whl/cu126\ntorch<2.15\n", False),
        ("requirements.txt", "torch==2.9.0+cu128\n", False),
        ("requirements.txt", "torch==2.9.0 --hash=sha256:00\n", False),
        ("pyproject.toml", '[tool.uv.pip]\ntorch-backend = "cu128"\n', False),
        ("uv.lock", "version = 1\n", False),
    ],
)
def test_who_has_chosen_is_not_overruled(name: str, text: str, applies: bool) -> None:
    assert wheels.applies({name: text.encode()}) == applies


def test_an_environment_is_another_with_other_wheels_only_where_they_are_open() -> None:
    def ids(text: bytes) -> list[str]:
        recipes = [
            choose({"requirements.txt": text}.get, None, "auto", sys.executable, each) for each in wheels.CHOICES
        ]
        return [recipe.id for recipe in recipes if recipe is not None]

    assert len(set(ids(b"torch\n"))) == len(wheels.CHOICES)
    assert len(set(ids(b"torch==2.9.0+cu128\n"))) == 1
    before = choose({"requirements.txt": b"torch\n"}.get, None, "auto", sys.executable)
    assert before is not None
    assert ids(b"torch\n")[0] == before.id


@pytest.mark.parametrize(
    ("environ", "own"),
    [
        ({}, False),
        ({"PIP_INDEX_URL": "https://packages.home/simple"}, True),
        ({"UV_DEFAULT_INDEX": "https://packages.home/simple"}, True),
        ({"PIP_NO_INDEX": "1"}, True),
        ({"UV_OFFLINE": "1"}, True),
        ({"PIP_INDEX_URL": "https://packages.home/simple", "UV_TORCH_BACKEND_INDEX": "https://packages.home/t"}, False),
    ],
)
def test_an_index_of_ones_own_is_not_bypassed(environ: dict[str, str], own: bool) -> None:
    assert settings.own_index({"PIP_CONFIG_FILE": os.devnull, **environ}) == own


def test_plan_and_box_have_the_same_numbers() -> None:
    tables = gpubox_decision.tables
    assert tables.GOOD_BRANCH == wheels.CUDA_13_BRANCH == int(wheels.FLOORS["cuda13"].split(".")[0])
    for branch, cuda in tables.SYSTEMS["cuda_of_branch"].items():
        chosen = wheels.choice(Driver(f"{branch}.10", cuda, 8), own_index=False)
        assert chosen == f"cuda{cuda.split('.')[0]}"
        assert (int(branch) >= tables.GOOD_BRANCH) == (chosen == "cuda13")


# --- built ---


@pytest.fixture
def uv(tmp_path: Path) -> str:
    """A uv that says what it was told of wheels, and finds none."""
    program = tmp_path / "uv"
    program.write_text(
        '#!/bin/sh\nif [ "$1" = venv ]; then exit 0; fi\n'
        'echo "error: no torch for $UV_TORCH_BACKEND $UV_CUDA_DRIVER_VERSION" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (TWELVE, ["no torch for auto 550.54.14", "runs CUDA up to 12.4; CUDA 13 takes driver 580 or newer"]),
        (NEW, ["no torch for auto 580.65.06", "driver 580.65.06, which runs CUDA up to 13.0)"]),
        (None, ["no torch for cpu", "this box has no driver"]),
        (Driver("580.65.06", "13.0", 4), ["no torch for cu126", "the last for cards before Turing: torch<2.15"]),
    ],
    ids=str,
)
def test_a_failure_says_for_which_driver(tmp_path: Path, uv: str, driver: Driver | None, said: list[str]) -> None:
    chosen = wheels.choice(driver, own_index=False)
    recipe = choose({"requirements.txt": b"torch==99\n"}.get, None, "auto", sys.executable, chosen)
    assert recipe is not None
    environments = Environments(str(tmp_path / "envs"), sys.executable, uv, driver=lambda: driver)
    with pytest.raises(errors.Problem) as failed:
        environments.build(recipe)
    assert [each for each in said if each not in failed.value.message] == []


# --- locked ---

LOCK = """\
version = 1
[[package]]
name = "nvidia-cublas-cu12"
version = "12.8.4.1"
[[package]]
name = "torch"
version = "2.9.0"
"""


@pytest.mark.parametrize(
    ("lock", "cuda"),
    [
        (LOCK, 12),
        (LOCK.replace("nvidia-cublas-cu12", "nvidia-cuda-runtime").replace("12.8", "13.0"), 13),
        (LOCK.replace("nvidia-cublas-cu12", "cuda-toolkit").replace("12.8", "13.0"), 13),
        ("version = 1\n", 0),
        ("no toml", 0),
        ("package = 3\n", 0),
    ],
)
def test_a_lock_says_for_which_cuda_it_was_made(lock: str, cuda: int) -> None:
    assert wheels.locked_cuda(lock.encode()) == cuda


def test_what_a_lock_holds_and_no_gpu_here_runs_is_refused_with_what_to_do() -> None:
    with pytest.raises(errors.BadRequest, match=r"CUDA 13, and this box's driver 550.54.14 runs CUDA up to 12.4") as no:
        wheels.refuse(13, TWELVE)
    assert no.value.hint == "lock those of CUDA 12, or upgrade the driver to 580 or newer"
    with pytest.raises(errors.BadRequest, match="no code for a card of this box"):
        wheels.refuse(13, Driver("580.65.06", "13.0", 4))
    for cuda, driver in ((12, TWELVE), (13, NEW), (12, NEW), (0, TWELVE), (13, None), (13, Driver("", ""))):
        wheels.refuse(cuda, driver)


# --- read ---


def test_the_collector_says_how_old_a_card_is(tmp_path: Path) -> None:
    with a_hall(tmp_path / "state") as hall:
        gpus = hall.daemon.gpus
        assert gpus.driver() is None
        hall.sees(
            a_reading("GPU-0000", architecture=8),
            a_reading("GPU-0001", architecture=4),
            cuda="13.0",
        )
        assert gpus.driver() == Driver("570", "13.0", 4)
