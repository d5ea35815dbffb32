"""Settings: a file, variables over it, and a refusal that says where and what."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from runner.box.settings import GIB, Settings, load
from runner.errors import BadSettings


@pytest.fixture
def box_toml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("GPUBOX_CONFIG", str(tmp_path))
    return tmp_path / "box.toml"


def test_without_a_file_everything_has_a_sensible_value(box_toml: Path) -> None:
    settings = load()
    assert settings.state == f"{os.environ['XDG_STATE_HOME']}/gpubox"
    assert settings.cpus == len(os.sched_getaffinity(0))
    assert settings.memory_bytes > GIB
    assert settings.data == f"{settings.state}/data"
    assert settings.base_python == getattr(sys, "_base_executable", sys.executable)


def test_a_variable_goes_over_the_file(box_toml: Path) -> None:
    box_toml.write_text('cpus = 3\nname = "attic"\nkeep_logs_days = 7\n')
    settings = load({"GPUBOX_CPUS": "2", "GPUBOX_IDLE_MINUTES": "0.5", "GPUBOX_NAME": "", "GPUBOX_BOX": "garage"})
    assert (settings.cpus, settings.name, settings.keep_logs_days, settings.idle_minutes) == (2, "attic", 7.0, 0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("cpu = 3", 'names a setting that does not exist: cpu, did you mean "cpus"?', id="misspelt"),
        pytest.param('state = "/x"', "names a setting that does not exist: state", id="not for the file"),
        pytest.param("cpus = -1", "sets cpus to -1, which is not a whole number of 0 or more", id="negative"),
        pytest.param("cpus = 1.5", "sets cpus to 1.5, which is not a whole number", id="half a cpu"),
        pytest.param("cpus = true", "sets cpus to True, which is not a whole number", id="yes"),
        pytest.param("cpus = inf", "sets cpus to inf, which is not a whole number", id="infinite"),
        pytest.param("idle_minutes = nan", "sets idle_minutes to nan, which is not a number", id="no number"),
        pytest.param('idle_minutes = "soon"', "sets idle_minutes to 'soon', which is not a number", id="text"),
        pytest.param("cpus = [1]", "sets cpus to [1], which is not a whole number", id="a list"),
        pytest.param("cpus = ", "can't be read: ", id="no TOML"),
    ],
)
def test_a_value_that_can_not_be_used_is_refused_with_its_place(box_toml: Path, text: str, said: str) -> None:
    box_toml.write_text(text)
    with pytest.raises(BadSettings, match=re.escape(said)) as refusal:
        load({})
    assert str(box_toml) in refusal.value.message


def test_a_variable_that_can_not_be_used_is_named(box_toml: Path) -> None:
    with pytest.raises(BadSettings, match="the environment sets GPUBOX_CPUS to 'many', which is not a whole number"):
        load({"GPUBOX_CPUS": "many"})


def test_a_file_that_can_not_be_read_is_refused(box_toml: Path) -> None:
    box_toml.mkdir()
    with pytest.raises(BadSettings, match="can't be read"):
        load({})


def test_every_setting_says_what_it_means() -> None:
    assert all(each.metadata.get("means") for each in fields(Settings) if each.name not in ("state", "socket"))


def test_there_are_two_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUBOX_ENGINE", "systemd")
    assert load().engine == "systemd"
    monkeypatch.setenv("GPUBOX_ENGINE", "docker")
    with pytest.raises(BadSettings, match="GPUBOX_ENGINE to 'docker'") as raised:
        load()
    assert raised.value.hint == "plain or systemd"
