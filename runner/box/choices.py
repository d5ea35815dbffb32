"""What the owner set while the daemon ran: kept in the state, over what box.toml says, under the environment.

The file of the configuration is people's and of setup.yml, which writes it anew: nothing here touches it. What stands
in the environment was said for this one process, so it can't be changed from within it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, dataclass, fields, replace
from typing import Any

from runner import files, paths
from runner.box import settings, tariff
from runner.box.settings import Settings
from runner.errors import BadRequest, BadSettings, nearest

CURRENCY_MAX = 8  # letters
ENVIRONMENT, CHOSEN, FILE, DEFAULT = "environment", "chosen", "file", "default"  # where a value comes from


@dataclass(slots=True)
class Setting:
    name: str
    value: str | int | float
    default: str | int | float
    means: str
    source: str  # environment | chosen | file | default
    live: bool  # whether it may be changed while the daemon runs


class Choices:
    def __init__(self, now: Callable[[], Settings], apply: Callable[[Settings], None]) -> None:
        """now: the settings that hold. apply: makes others hold, from here on."""
        self._now, self._apply = now, apply

    def listed(self) -> list[Setting]:
        shown, chosen, written = settings.public(self._now()), settings.chosen(self._now().state), _written()
        return [
            Setting(
                each.name, shown[each.name], each.default, each.metadata["means"],  # type: ignore[arg-type]
                _source(each.name, chosen, written), each.metadata["live"],
            )
            for each in fields(Settings)
            if each.metadata.get("means")
        ]  # fmt: skip

    def choose(self, name: str, value: object) -> None:
        """BadRequest: it is none, can't be changed now, or can't have this value. Nothing has changed then."""
        setting = _live(name)
        with _asked():
            typed = settings.typed("the page", name, value, setting)
            _judged(name, typed)
            self._keep({**settings.chosen(self._now().state), name: typed}, name, typed)

    def undo(self, name: str) -> None:
        """As the file says again."""
        _live(name)
        with _asked():
            left = {each: value for each, value in settings.chosen(self._now().state).items() if each != name}
            self._keep(left, name, getattr(settings.load(picked={}), name))

    def _keep(self, chosen: Mapping[str, object], name: str, value: Any) -> None:
        """Durably first: what holds now holds after a restart, too."""
        holds = self._now()
        files.replace(holds.state.choices, json.dumps(chosen, indent=1, sort_keys=True).encode() + b"\n")
        self._apply(replace(holds, **{name: value}))


@contextmanager
def _asked() -> Iterator[None]:
    """What is wrong is wrong with the question, not with the box."""
    try:
        yield
    except BadSettings as problem:
        raise BadRequest(problem.message, problem.hint) from None


def _source(name: str, chosen: Mapping[str, object], written: Mapping[str, object]) -> str:
    if os.environ.get(settings.variable(name)):
        return ENVIRONMENT
    return CHOSEN if name in chosen else FILE if name in written else DEFAULT


def _written() -> Mapping[str, object]:
    try:
        return settings.file(settings.file_path())
    except BadSettings:  # somebody is at it; it is judged when the daemon begins
        return {}


def _live(name: str) -> Field[Any]:
    known = {each.name: each for each in fields(Settings) if each.metadata.get("means")}
    if name not in known:
        raise BadRequest(f"there is no setting {name[:40]!a}{nearest(name, known)}", "docs/settings.md lists them")
    if not known[name].metadata["live"]:
        raise BadRequest(
            f"{name} is read when the daemon begins", f"set it in {paths.config_dir()}/box.toml, then restart the box"
        )
    if os.environ.get(settings.variable(name)):
        raise BadRequest(f"{name} is set by {settings.variable(name)} in the daemon's environment", "change it there")
    return known[name]


def _judged(name: str, value: object) -> None:
    """What a type alone does not say."""
    if name == "tariff":
        tariff.parse(str(value))
    if name == "currency" and not (0 < len(str(value)) <= CURRENCY_MAX and str(value).isprintable()):
        raise BadSettings(f"a currency is one to {CURRENCY_MAX} letters", "such as EUR")
    if isinstance(value, int | float) and not value < 1e18:
        raise BadSettings(f"{name} is larger than anything", "0 or more")
