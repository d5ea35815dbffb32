"""What a supervisor is handed: command, folder, variables, limits."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import a_job, a_spec

from runner.box import launches
from runner.box.launches import launch, launch_id
from runner.box.settings import Settings
from runner.paths import StateDir

SETTINGS = Settings(StateDir("/state"), "/state/api.sock", data="/data", log_head_bytes=10, log_tail_bytes=20)


def env_of(bin_dir: str = "/env/bin", spec: dict[str, Any] | None = None, **job: Any) -> dict[str, str]:
    made = launch(a_job(7, attempt=2, **job), a_spec(**(spec or {})), SETTINGS, "box", bin_dir)
    env: Any = made.spec["env"]
    return dict(env)


def test_a_launch_is_named_after_box_job_and_attempt() -> None:
    made = launch(a_job(7, attempt=2), a_spec(), SETTINGS, "abc", "/env/bin")
    assert (made.key, made.launch_id) == ((7, 2), "abc-7-2")
    assert launch_id("abc", 7, 2) == "abc-7-2"


def test_a_launch_carries_the_limits_of_job_and_box() -> None:
    made = launch(a_job(7, attempt=1), a_spec("a", "{x}", time_limit=5.0, grace=2.0), SETTINGS, "abc", "/env/bin")
    assert (
        made.spec.items()
        >= {
            "argv": ["a", "{x}"],
            "time_limit": 5.0,
            "grace": 2.0,
            "log_head_bytes": 10,
            "log_tail_bytes": 20,
            "events": "/state/events.sock",
        }.items()
    )


@pytest.mark.parametrize(
    ("snapshot", "directory", "expected"),
    [
        pytest.param(None, "", "/state/jobs/7/out", id="no files: its output folder"),
        pytest.param("abc", "", "/state/trees/7", id="files: its work tree"),
        pytest.param("abc", "a/b", "/state/trees/7/a/b", id="a folder of the project"),
    ],
)
def test_a_job_runs_where_its_files_are(snapshot: str | None, directory: str, expected: str) -> None:
    made = launch(a_job(7, snapshot=snapshot), a_spec(directory=directory), SETTINGS, "abc", "/env/bin")
    assert made.spec["directory"] == expected


def test_a_job_is_told_who_and_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/lib")
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "x")
    env = env_of(array_index=3, params={"lr": "0.1"}, spec={"env": {"MINE": "1", "LANG": "de_DE.UTF-8"}})
    ours = {name: value for name, value in env.items() if name.startswith(("RUNNER_", "CUDA_"))}
    assert ours == {
        "RUNNER_JOB_ID": "7",
        "RUNNER_ATTEMPT": "2",
        "RUNNER_OUT": "/state/jobs/7/out",
        "RUNNER_CHECKPOINT": "/state/jobs/7/checkpoint",
        "RUNNER_DATA": "/data",
        "RUNNER_LAUNCH_ID": "box-7-2",
        "RUNNER_ARRAY_INDEX": "3",
        "RUNNER_PARAM_lr": "0.1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "",
    }
    assert (env["MINE"], env["LANG"], env["LD_LIBRARY_PATH"], env["PYTHONUNBUFFERED"]) == (
        "1",
        "de_DE.UTF-8",
        "/lib",
        "1",
    )
    assert env["PATH"].startswith("/env/bin:/usr/local/bin:")
    assert "SECRET_OF_THE_DAEMON" not in env


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "PIP_CERT", "PIP_INDEX_URL", "UV_DEFAULT_INDEX"])
def test_a_job_reaches_the_network_as_its_box_does(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "the box's")
    assert env_of()[name] == "the box's"
    assert env_of(spec={"env": {name: "its own"}})[name] == "its own"


def test_what_a_job_asks_for_can_not_overwrite_what_the_box_says() -> None:
    assert (
        env_of(spec={"env": {"RUNNER_JOB_ID": "1", "PATH": "/mine"}}).items()
        >= {"RUNNER_JOB_ID": "7", "PATH": "/mine"}.items()
    )


def test_a_virtual_environment_is_named(tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").touch()
    assert env_of(f"{tmp_path}/bin")["VIRTUAL_ENV"] == str(tmp_path)
    assert "VIRTUAL_ENV" not in env_of("/usr/bin")


def test_a_user_without_an_entry_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(launches, "_user", launches._user.__wrapped__)
    monkeypatch.delenv("HOME")
    assert env_of().items() >= {"USER": str(os.getuid()), "HOME": "/", "SHELL": "/bin/sh"}.items()


def test_a_job_sees_its_own_gpus_and_no_other() -> None:
    made = launch(a_job(7, attempt=1), a_spec(env={"CUDA_LAUNCH_BLOCKING": "1"}), SETTINGS, "box", "/env/bin", "GPU-a")
    env: Any = made.spec["env"]
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("GPU-a", "PCI_BUS_ID")
    assert env_of()["CUDA_VISIBLE_DEVICES"] == ""


def test_what_jobs_download_lies_where_the_settings_say_unless_somebody_says_otherwise() -> None:
    assert launches.caches(SETTINGS, {}) == {}
    chosen = replace(SETTINGS, caches="/big")
    assert launches.caches(chosen, {"HF_HOME": "/hub", "TORCH_HOME": ""}) == {
        "TORCH_HOME": "/big/torch", "PIP_CACHE_DIR": "/big/pip", "UV_CACHE_DIR": "/big/uv",
        "CONDA_PKGS_DIRS": "/big/conda",
    }  # fmt: skip


def test_a_job_has_the_boxs_caches_and_its_own_values_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launches.CACHES:
        monkeypatch.delenv(name, raising=False)
    assert not launches.CACHES.keys() & env_of()
    monkeypatch.setenv("HF_HOME", "/hub")
    monkeypatch.setenv("TORCH_HOME", "/torch")
    env = env_of(spec={"env": {"TORCH_HOME": "/mine"}})
    assert (env["HF_HOME"], env["TORCH_HOME"]) == ("/hub", "/mine")


def test_a_job_finds_the_data_of_its_start() -> None:
    made: Any = launch(a_job(7, attempt=2), a_spec(), SETTINGS, "abc", "/env/bin", "", "/views/5").spec
    assert made["env"]["RUNNER_DATA"] == "/views/5"
