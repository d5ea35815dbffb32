"""The box's settings: a TOML file (`box.toml` in the configuration directory), over it what the owner chose while the
daemon ran (choices.py), and GPUBOX_* variables over both."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, TypeVar

from runner import paths
from runner.errors import BadSettings, nearest
from runner.paths import StateDir

GIB = 1 << 30
DAY = 86400.0
PLAIN, SYSTEMD = ENGINES = ("plain", "systemd")

T = TypeVar("T")


def _setting(default: T, means: str, choices: tuple[str, ...] = (), live: bool = False, hidden: bool = False) -> T:
    """live: it may change while the daemon runs, being asked for anew each time. hidden: it is shown to nobody."""
    metadata = {"means": means, "choices": choices, "live": live, "hidden": hidden}
    made: T = field(default=default, metadata=metadata, repr=not hidden)
    return made


@dataclass(frozen=True)
class Settings:
    """One field a setting: `box.toml` takes it by its name, the environment as GPUBOX_<NAME>."""

    state: StateDir
    socket: str
    name: str = _setting("local", "the box's name, as in runs/<box>-<id>/")
    engine: str = _setting("plain", "plain: jobs are processes of its user; systemd: units of another", ENGINES)
    https: str = _setting("", "where laptops reach it, as in :7443 or 192.168.1.5:7443; empty: nowhere")
    https_names: str = _setting("", "other names by which they may ask for it, with commas between them")
    cpus: int = _setting(0, "cpus to give away; 0: all that this process may use")
    memory_bytes: int = _setting(0, "memory to give away; 0: all of it")
    base_python: str = _setting("", "interpreter of jobs that declare nothing; empty: the one under the daemon's own")
    conda_folders: str = _setting(
        "", "where --conda looks for environments, with colons between; empty: the usual places"
    )
    data: str = _setting("", "$RUNNER_DATA/shared, which jobs may write to; empty: data/ in the state directory")
    data_sets: str = _setting("", "where `runner data` keeps data sets; empty: data-sets/ in the state directory")
    caches: str = _setting("", "where jobs and builds keep what they download; empty: the usual places in their home")
    trees_ahead: int = _setting(4, "work trees made ahead for the next jobs")
    log_head_bytes: int = _setting(16 << 20, "start of a log that is always kept")
    log_tail_bytes: int = _setting(256 << 20, "end of a log that is always kept")
    keep_logs_days: float = _setting(90.0, "logs of ended jobs are kept this long", live=True)
    keep_logs_bytes: int = _setting(10 * GIB, "and together take at most this much", live=True)
    keep_outputs_days: float = _setting(30.0, "outputs that were fetched are kept this long", live=True)
    keep_outputs_bytes: int = _setting(100 * GIB, "and fetched outputs together take at most this much", live=True)
    keep_envs_days: float = _setting(60.0, "environments that no job used are kept this long", live=True)
    keep_envs_bytes: int = _setting(50 * GIB, "and environments together take at most this much", live=True)
    keep_seconds_days: float = _setting(14.0, "what GPUs and host did is kept for each second this long", live=True)
    keep_minutes_days: float = _setting(400.0, "and for each minute this long; in coarser steps for ever", live=True)
    tariff: str = _setting(
        "", "price of a kWh, as in 0.32, or 0.32 22:00-06:00=0.24; empty: no money is counted", live=True
    )
    currency: str = _setting("EUR", "of the tariff", live=True)
    idle_notice_minutes: float = _setting(
        30.0, "a GPU that a job holds and leaves idle so long is told; 0: never", live=True
    )
    stalled_notice_minutes: float = _setting(
        30.0, "so is a job whose log is silent so long, on a flat GPU; 0: never", live=True
    )
    notify_ntfy: str = _setting(
        "", "what happens is told to this topic of ntfy, as in https://ntfy.sh/my-box", hidden=True
    )
    notify_token: str = _setting("", "with this token of ntfy; where it stands, nobody else may read", hidden=True)
    notify_webhook: str = _setting("", "and sent to this address, as JSON by POST", hidden=True)
    notify_command: str = _setting("", "and given to this program, as in /usr/local/bin/tell --loud", hidden=True)
    notify_about: str = _setting(
        "failed xid gpu_lost gpu_back idle stop_if_idle stalled memory_creep hot power_brake ghost disk",
        "what is told; besides these finished and pcie, or all",
    )
    gpu_desktop_bytes: int = _setting(GIB, "memory that a desktop may use on a GPU without being in a job's way")
    gpu_free_seconds: float = _setting(60.0, "a GPU whose memory is not free so long after a job is stuck")
    kill_seconds: float = _setting(60.0, "processes that live so long after KILL are given up; their GPU is stuck")
    idle_minutes: float = _setting(15.0, "a daemon that a command started ends after this long without work")
    free_bytes: int = _setting(
        GIB, "nothing starts with less free on the state's disk than this, or 2 % of it", live=True
    )
    build_minutes: float = _setting(60.0, "an environment's build may take this long")
    upload_bytes: int = _setting(20 * GIB, "one upload of code may be this large")


def load(variables: Mapping[str, str] | None = None, picked: Mapping[str, object] | None = None) -> Settings:
    """Read the settings. BadSettings names the file or variable, the value, and what would do. picked: instead of what
    the owner chose while a daemon ran."""
    variables = os.environ if variables is None else variables
    values: dict[str, object] = {}
    known = {setting.name: setting for setting in fields(Settings)}
    for name, value in file(file_path()).items():
        if name not in known or name in ("state", "socket"):
            raise BadSettings(f"{file_path()} names a setting that does not exist: {name}{nearest(name, known)}")
        if name == "notify_token" and os.stat(file_path()).st_mode & 0o077:
            raise BadSettings(f"{file_path()} holds notify_token, and others may read it", f"`chmod 600 {file_path()}`")
        values[name] = typed(file_path(), name, value, known[name])
    state = StateDir(os.path.abspath(paths.state_dir()))
    for name, value in (chosen(state) if picked is None else picked).items():
        values[name] = typed(state.choices, name, value, known[name])
    for name, setting in known.items():
        said = variables.get(variable(name))
        if said and name not in ("state", "socket"):
            values[name] = typed("the environment", variable(name), said, setting)
    settings = Settings(state=state, socket=paths.api_socket(state), **values)  # type: ignore[arg-type]
    return _filled(settings)


def public(settings: Settings) -> dict[str, str | int | float]:
    """Every setting, as whoever asks may see it: of what is hidden, whether it is set."""
    return {each.name: _shown(each, getattr(settings, each.name)) for each in fields(settings)}


def _shown(setting: Field[Any], value: Any) -> Any:
    return "(set)" if setting.metadata.get("hidden") and value else value


def file_path() -> str:
    return f"{paths.config_dir()}/box.toml"


def variable(name: str) -> str:
    return f"GPUBOX_{name.upper()}"


def chosen(state: StateDir) -> dict[str, object]:
    """What the owner chose while a daemon ran; what is no such setting any more is passed over."""
    live = {each.name for each in fields(Settings) if each.metadata.get("live")}
    try:
        with open(state.choices, "rb") as opened:
            found = json.load(opened)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadSettings(
            f"{state.choices} can't be read: {error}", "move it away: it holds what was set on the page"
        ) from error
    return {name: value for name, value in found.items() if name in live} if isinstance(found, dict) else {}


def file(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as opened:
            return tomllib.load(opened)
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(f"{path} can't be read: {error}", "mend it or move it away") from error


def typed(where: str, name: str, value: object, setting: Field[Any]) -> object:
    default: object = setting.default
    kind: Any = type(default)
    choices = setting.metadata.get("choices")
    if choices and value not in choices:
        raise BadSettings(f"{where} sets {name} to {value!r}", f"{' or '.join(choices)}")
    try:
        made = kind(value)
        if kind in (int, float) and not made >= 0:  # nan is not, either
            raise ValueError
        if kind is int and isinstance(value, bool | float):
            raise ValueError  # 1.5 cpus would silently be 1
    except (TypeError, ValueError, OverflowError):
        wanted = {int: "a whole number", float: "a number", str: "text"}[kind]
        told = "something" if setting.metadata.get("hidden") else repr(value)
        raise BadSettings(f"{where} sets {name} to {told}, which is not {wanted} of 0 or more") from None
    return made


def _filled(settings: Settings) -> Settings:
    """The values that 0 or empty stand for."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return replace(
        settings,
        cpus=settings.cpus or len(os.sched_getaffinity(0)),
        memory_bytes=settings.memory_bytes or memory,
        base_python=settings.base_python or getattr(sys, "_base_executable", sys.executable),
        data=settings.data or f"{settings.state}/data",
        data_sets=settings.data_sets or settings.state.data_sets,
    )
