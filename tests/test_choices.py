"""Settings that the owner changes while the daemon runs: what may, where it is kept, and what wins."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from runner.box import choices, settings
from runner.box.choices import Choices
from runner.box.settings import GIB, Settings
from runner.errors import BadRequest, BadSettings


class Desk:
    """Where somebody sits who changes settings."""

    def __init__(self) -> None:
        self.holds = settings.load()
        self.choices = Choices(lambda: self.holds, self._apply)

    def _apply(self, chosen: Settings) -> None:
        self.holds = chosen

    def source(self, name: str) -> str:
        return next(each.source for each in self.choices.listed() if each.name == name)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for folder in ("state", "config/gpubox"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("GPUBOX_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config/gpubox/box.toml").write_text('tariff = "0.30"\nkeep_logs_days = 10\n')
    return Desk()


def test_what_is_chosen_wins_over_the_file_and_outlives_the_daemon(desk: Desk) -> None:
    desk.choices.choose("tariff", "0.32 22:00-06:00=0.24")
    desk.choices.choose("keep_logs_bytes", 3 * GIB)
    assert (desk.holds.tariff, desk.holds.keep_logs_bytes) == ("0.32 22:00-06:00=0.24", 3 * GIB)
    again = Desk()
    assert (again.holds.tariff, again.holds.keep_logs_bytes) == ("0.32 22:00-06:00=0.24", 3 * GIB)
    assert (again.source("tariff"), again.source("keep_logs_days"), again.source("currency")) == (
        "chosen", "file", "default",
    )  # fmt: skip


def test_it_can_be_left_to_the_file_again(desk: Desk) -> None:
    desk.choices.choose("tariff", "0.50")
    desk.choices.undo("tariff")
    assert (desk.holds.tariff, desk.source("tariff")) == ("0.30", "file")
    assert Desk().holds.tariff == "0.30"


def test_the_environment_wins_and_is_not_changed_from_within(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.choices.choose("currency", "CHF")
    monkeypatch.setenv("GPUBOX_CURRENCY", "USD")
    assert Desk().holds.currency == "USD"
    assert desk.source("currency") == "environment"
    for change in (lambda: desk.choices.choose("currency", "EUR"), lambda: desk.choices.undo("currency")):
        with pytest.raises(BadRequest, match="GPUBOX_CURRENCY"):
            change()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tariff", "cheap"), ("tariff", "0.3 25:00-26:00=1"), ("currency", ""), ("currency", "EUR\n"),
        ("currency", "Doubloons"), ("keep_logs_days", -1), ("keep_logs_days", "soon"), ("keep_logs_days", float("nan")),
        ("keep_logs_bytes", 1.5), ("free_bytes", 10**30), ("keep_logs_days", float("inf")), ("no_such", 1),
        ("https", ":7443"), ("cpus", 4), ("engine", "systemd"), ("state", "/"), ("socket", "/"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_changes_nothing(desk: Desk, name: str, value: object) -> None:
    before = desk.holds
    with pytest.raises(BadRequest):
        desk.choices.choose(name, value)
    assert desk.holds == before
    assert not Path(desk.holds.state.choices).exists()


def test_a_change_is_kept_before_it_holds(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(choices.files, "replace", full)
    with pytest.raises(OSError, match="No space"):
        desk.choices.choose("tariff", "0.50")
    assert desk.holds.tariff == "0.30"


def test_a_file_of_choices_that_is_damaged_is_told_and_strangers_in_it_are_passed_over(desk: Desk) -> None:
    kept = Path(desk.holds.state.choices)
    kept.write_text(json.dumps({"cpus": 64, "gone": 1, "keep_logs_days": 5}))
    assert Desk().holds.keep_logs_days == 5
    assert Desk().holds.cpus != 64
    for text in ("{", '{"keep_logs_days": "x"}'):
        kept.write_text(text)
        with pytest.raises(BadSettings, match=r"settings\.json"):
            settings.load()


def test_what_may_change_is_asked_for_anew_each_time() -> None:
    """None of these is handed to somebody who keeps it; `engine` and the like are."""
    live = {each.name for each in fields(Settings) if each.metadata.get("live")}
    assert live == {
        "keep_logs_days", "keep_logs_bytes", "keep_outputs_days", "keep_outputs_bytes", "keep_envs_days",
        "keep_envs_bytes", "keep_seconds_days", "keep_minutes_days", "tariff", "currency", "idle_notice_minutes",
        "stalled_notice_minutes", "free_bytes",
    }  # fmt: skip
