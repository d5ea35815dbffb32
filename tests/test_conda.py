"""conda environments that exist on the box: found, entered as activation does, and told when they are not there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import wire
from builders import a_hall, a_spec

from runner import errors
from runner.box import launches
from runner.box.code import Blobs
from runner.box.envs import EnvironmentFailed, Environments, conda
from runner.box.envs.conda import Conda
from runner.box.recipes import Recipes


def an_environment(prefix: Path, variables: dict[str, Any] | None = None, script: str = "") -> Path:
    """As conda leaves one."""
    (prefix / "conda-meta").mkdir(parents=True)
    (prefix / "bin").mkdir()
    (prefix / "bin/python").symlink_to(sys.executable)
    if variables is not None:
        (prefix / "conda-meta/state").write_text(json.dumps({"env_vars": variables}))
    if script:
        (prefix / "etc/conda/activate.d").mkdir(parents=True)
        (prefix / "etc/conda/activate.d/own.sh").write_text(script)
    return prefix


def test_the_usual_places_are_looked_at_and_a_folder_that_is_none_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(conda, "INSTALLATIONS", ("~/first", "~/second", "~/third"))
    an_environment(tmp_path / "second")
    an_environment(tmp_path / "first/envs/torch")
    an_environment(tmp_path / "second/envs/torch")
    an_environment(tmp_path / ".conda/envs/own")
    (tmp_path / "second/envs/.conda_envs_dir_test").touch()
    (tmp_path / "second/envs/half").mkdir()
    found = Conda()
    assert found.find("torch") == f"{tmp_path}/first/envs/torch"
    assert found.find("base") == f"{tmp_path}/second"
    assert found.find("own") == f"{tmp_path}/.conda/envs/own"
    with pytest.raises(
        errors.NotFound, match=r'no conda environment troch on this box, did you mean "torch"'
    ) as missing:
        found.find("troch")
    assert missing.value.hint.endswith("jobs can use: base, own, torch")
    assert Conda(f"{tmp_path}/second/envs:/nowhere").find("torch") == f"{tmp_path}/second/envs/torch"
    with pytest.raises(errors.NotFound):
        Conda(f"{tmp_path}/second/envs").find("base")
    with pytest.raises(errors.NotFound) as nothing:
        Conda("/nowhere").find("x")
    assert "conda_folders" in nothing.value.hint


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".x", "a b", "x" * 101, "é"])
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    with a_hall(tmp_path / "state") as hall, pytest.raises(errors.BadRequest, match="can't be the name of a conda"):
        hall.submit("true", environment=f"conda:{name}")


def test_a_job_has_what_activation_gives(tmp_path: Path) -> None:
    prefix = an_environment(tmp_path / "envs/torch", {"LR": "1", "OWN": "x", "BAD": 3}, "export FROM_SCRIPT=yes\n")
    with a_hall(tmp_path / "state") as hall:
        job = hall.submit("python", "-V", environment="base", env={"LR": "2"})
        spec = hall.store.spec(job.spec_id)
        made: Any = launches.launch(job, spec, hall.daemon.settings, "box", f"{prefix}/bin").spec
        plain: Any = launches.launch(job, spec, hall.daemon.settings, "box", "/usr/bin").spec
    env = made["env"]
    assert env["PATH"].startswith(f"{prefix}/bin:")
    assert (env["CONDA_PREFIX"], env["CONDA_DEFAULT_ENV"], env["OWN"]) == (str(prefix), "torch", "x")
    assert (env["LR"], "BAD" in env) == ("2", False)
    assert made["argv"][:2] == ["/bin/bash", "-c"]
    assert made["argv"][4:] == plain["argv"] == ["python", "-V"]
    assert "CONDA_PREFIX" not in plain["env"]


def test_one_that_went_while_its_job_waited_fails_before_it_starts(tmp_path: Path) -> None:
    prefix = an_environment(tmp_path / "envs/torch")
    found = Conda(f"{tmp_path}/envs")
    environments = Environments(str(tmp_path / "own"), sys.executable, conda=found)
    recipes = Recipes(Blobs(str(tmp_path / "blobs")), sys.executable, conda_found=found)
    spec = a_spec("python", environment="conda:torch")
    name = recipes.environment(spec)
    assert name == "conda:torch"
    assert environments.ready(name)
    assert environments.bin_dir(name) == f"{prefix}/bin"
    environments.build(recipes.recipe(name))
    environments.touch(name)
    prefix.rename(tmp_path / "gone")
    assert not environments.ready(name)
    with pytest.raises(EnvironmentFailed, match="no conda environment torch"):
        environments.build(recipes.recipe(name))
    with pytest.raises(errors.NotFound):
        recipes.environment(spec)
    assert os.listdir(tmp_path / "own") == []


@pytest.mark.long
def test_a_script_runs_in_a_conda_environment_that_is_there(tmp_path: Path) -> None:
    an_environment(tmp_path / "envs/torch", {"OWN": "kept"}, "export FROM_SCRIPT=$CONDA_DEFAULT_ENV\n")
    project = tmp_path / "project"
    project.mkdir()
    (project / "requirements.txt").write_text("no-such-package-anywhere\n")
    (project / "train.py").write_text(
        "import os; print(*(os.environ[n] for n in ('OWN', 'FROM_SCRIPT', 'CONDA_PREFIX')))\n"
    )
    with wire.place() as folder:
        box = wire.Box(Path(folder), conda_folders=f"{tmp_path}/envs")
        try:
            box.start()
            said = box.run("submit", "--conda", "torch", "train.py", "a b", cwd=project)
            assert said.split() == ["kept", "torch", f"{tmp_path}/envs/torch"]
            done = box.call("submit", "--conda", "troch", "train.py", cwd=project)
            assert (done.returncode, 'did you mean "torch"' in done.stderr) == (66, True), done.stderr
            assert "both say which" in box.call("submit", "--base", "--conda", "torch", "train.py", cwd=project).stderr
        finally:
            box.end()
