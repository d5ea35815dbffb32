"""pip's settings, said in uv's words: a box whose pip goes to a mirror builds from that mirror."""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping

# pip's name -> uv's variable, the other variables that say the same, and what stands between several values.
_SAME = {
    "index-url": ("UV_DEFAULT_INDEX", ("UV_INDEX_URL",), " "),
    "extra-index-url": ("UV_INDEX", ("UV_EXTRA_INDEX_URL",), " "),
    "find-links": ("UV_FIND_LINKS", (), ","),
    "trusted-host": ("UV_INSECURE_HOST", (), " "),
    "cert": ("SSL_CERT_FILE", (), " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", (), " "),
    "timeout": ("UV_HTTP_TIMEOUT", (), " "),
}
_NOT_FOR_A_BUILD = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "UV_PROJECT", "UV_PROJECT_ENVIRONMENT")


def for_uv(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """(environment, options) of uv. What is set for uv itself holds over what is set for pip."""
    env = {name: value for name, value in environ.items() if name not in _NOT_FOR_A_BUILD}
    env |= {"NO_COLOR": "1", "UV_NO_PROGRESS": "1"}
    pip = pip_settings(environ)
    for name, (variable, same, between) in _SAME.items():
        if pip.get(name) and not any(env.get(known) for known in (variable, *same)):
            env[variable] = between.join(pip[name].split())
            if name == "extra-index-url":
                env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # pip looks in all of them, uv in the first
    options = ["--no-index"] if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else []
    return env, options


def own_index(environ: Mapping[str, str]) -> bool:
    """Whether somebody said where packages come from, and not where PyTorch's are there."""
    if any(environ.get(name) for name in ("UV_TORCH_BACKEND", "UV_TORCH_BACKEND_INDEX")):
        return False
    env, options = for_uv(environ)
    index = env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL") or ""
    return bool(options or env.get("UV_NO_INDEX") or env.get("UV_OFFLINE") or index)


def pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings from its files (the box's, then the user's), then PIP_* variables; the last one said holds."""
    found: dict[str, str] = {}
    files = configparser.RawConfigParser(strict=False)
    for path in [] if environ.get("PIP_CONFIG_FILE") == os.devnull else _pip_files(environ):
        try:
            files.read(path)
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip will say it when it is asked; a build may well work without
    for section in ("global", "install"):
        if files.has_section(section):
            found |= {name.replace("_", "-"): value for name, value in files.items(section)}
    for variable, value in environ.items():
        if variable.startswith("PIP_"):
            found[variable[4:].lower().replace("_", "-")] = value
    return found


def _pip_files(environ: Mapping[str, str]) -> list[str]:
    home = environ.get("HOME") or os.path.expanduser("~")
    config = environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
    system = [f"{base}/pip/pip.conf" for base in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")]
    own = [f"{home}/.pip/pip.conf", f"{config}/pip/pip.conf"]
    return [*system, "/etc/pip.conf", *own, environ.get("PIP_CONFIG_FILE", "")]
