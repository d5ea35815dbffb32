"""The examples do what their page says, each in the environment that its own header asks for."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tools import ROOT, wait_until

from runner.box.envs import Environments, choose

DIGITS, COUNT_LINES = "examples/digits/train.py", "examples/count_lines/train.py"


def python_for(script: str, directory: Path) -> str:
    """An interpreter with what the script's header declares."""

    def read(path: str) -> bytes | None:
        return (ROOT / path).read_bytes() if (ROOT / path).exists() else None

    recipe = choose(read, script, "auto", sys.executable)
    assert recipe is not None
    environments = Environments(str(directory), sys.executable)
    environments.build(recipe)
    return f"{environments.bin_dir(recipe.id)}/python"


@pytest.fixture(scope="module")
def digits_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return python_for(DIGITS, tmp_path_factory.mktemp("envs"))


@pytest.fixture(scope="module")
def torch_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """This interpreter if it has what the example needs; else an environment of its own, however large."""
    if all(importlib.util.find_spec(name) for name in ("torch", "matplotlib")):
        return sys.executable
    return python_for(COUNT_LINES, tmp_path_factory.mktemp("envs"))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run an example as a job is run: with a directory for results and one for checkpoints."""

    def start(python: str, script: str, *arguments: str, out: str = "out") -> subprocess.CompletedProcess[str]:
        command = [python, str(ROOT / script), *arguments]
        ran = subprocess.run(command, env=job(tmp_path, out), cwd=tmp_path, capture_output=True)
        stdout, stderr = ran.stdout.decode(), ran.stderr.decode()  # not as text=True, which takes \r for \n
        assert ran.returncode == 0, stderr
        return subprocess.CompletedProcess(command, 0, stdout, stderr)

    return start


def job(tmp_path: Path, out: str) -> dict[str, str]:
    checkpoint = tmp_path / f"{out}-checkpoint"
    checkpoint.mkdir(exist_ok=True)
    return {**os.environ, "RUNNER_OUT": str(tmp_path / out), "RUNNER_CHECKPOINT": str(checkpoint)}


def metrics(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name != "seconds"}


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


@pytest.mark.long
def test_digits_are_read_with_progress_numbers_and_a_picture(
    digits_python: str, tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ran = run(digits_python, DIGITS)
    found = metrics(tmp_path / "out")
    assert found["accuracy"] >= 0.96
    assert found["tested"] == 360
    assert f"accuracy {found['accuracy']:.4f}" in ran.stdout
    assert len(re.findall(r"\repoch +\d+/200 ", ran.stderr)) == 200
    assert ran.stderr.count("\n") == 10
    assert is_picture(tmp_path / "out/report.png")
    assert (tmp_path / "out/model.joblib").stat().st_size > 10_000


@pytest.mark.long
def test_digits_goes_on_from_its_checkpoint_to_the_same_end(
    digits_python: str, tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Killed somewhere after its first checkpoint, and run again."""
    command = [digits_python, str(ROOT / DIGITS), "--epochs", "40"]
    killed = subprocess.Popen(command, env=job(tmp_path, "again"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until((tmp_path / "again-checkpoint/digits.joblib").exists, 20)
    killed.kill()
    killed.wait()
    assert "going on after epoch" in run(digits_python, DIGITS, "--epochs", "40", out="again").stdout
    assert "going on" not in run(digits_python, DIGITS, "--epochs", "40", out="once").stdout
    assert metrics(tmp_path / "again") == metrics(tmp_path / "once")


@pytest.mark.slow
def test_count_lines_resumes_to_the_very_same_network(
    torch_python: str, tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    options = ("--steps", "40", "--batch", "16")
    with (tmp_path / "log").open("wb") as log:
        command = [torch_python, str(ROOT / COUNT_LINES), *options]
        interrupted = subprocess.Popen(command, env=job(tmp_path, "again"), stdout=log, stderr=log)
    wait_until(lambda: re.search(rb"step +10/40", (tmp_path / "log").read_bytes()), 120)
    interrupted.send_signal(signal.SIGTERM)
    assert interrupted.wait(60) == 128 + signal.SIGTERM
    assert not (tmp_path / "again/metrics.json").exists()

    assert re.search(r"going on after step 1\d", run(torch_python, COUNT_LINES, *options, out="again").stdout)
    run(torch_python, COUNT_LINES, *options, out="once")
    assert metrics(tmp_path / "again") == metrics(tmp_path / "once")
    same = (
        "import sys, torch; a, b = (torch.load(path, weights_only=True) for path in sys.argv[1:]);"
        "print(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a))"
    )
    models = [str(tmp_path / out / "model.pt") for out in ("again", "once")]
    compared = subprocess.run([torch_python, "-c", same, *models], capture_output=True, text=True, check=True)
    assert compared.stdout == "True\n"
    assert is_picture(tmp_path / "again/report.png")


@pytest.mark.slow
def test_count_lines_learns_to_count(
    torch_python: str, tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A short run, far from the best it can do, is already far from chance."""
    run(torch_python, COUNT_LINES, "--steps", "400")
    found = metrics(tmp_path / "out")
    assert found["accuracy"] > 3 * found["chance"]
    assert found["within_one"] > 0.75
