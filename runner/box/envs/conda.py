"""conda environments that exist on the box: found by name, used as they are, never made, changed or removed by us.

conda itself is not run: it takes most of a second. What its activation does is done here instead: the programs first
on PATH, CONDA_PREFIX, the variables that `conda env config vars set` keeps, and the scripts of activate.d.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Sequence

from runner.box.envs.recipe import EnvironmentFailed
from runner.errors import BadRequest, NotFound, nearest

MARK = "conda:"  # begins what a spec asks for, and the environment's id
ROOT = "base"  # the environment that an installation is itself
INSTALLATIONS = (
    "/opt/miniforge3", "/opt/conda", "/opt/miniconda3", "/opt/anaconda3", "~/miniforge3", "~/mambaforge",
    "~/miniconda3", "~/anaconda3", "~/micromamba",
)  # fmt: skip
OWN = "~/.conda/envs"
SHOWN = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_ACTIVATE = 'for each in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do . "$each"; done; exec "$@"'


def asked(environment: str) -> str | None:
    """The name that a spec asks for; None: it asks for something else. BadRequest: that is no name."""
    if not environment.startswith(MARK):
        return None
    name = environment.removeprefix(MARK)
    if not _NAME.fullmatch(name):
        raise BadRequest(f"{name[:80]!a} can't be the name of a conda environment", "as in --conda torch")
    return name


class Conda:
    def __init__(self, folders: str = "") -> None:
        """folders: where environments are, with colons between them; empty: the usual places."""
        self._folders = [os.path.expanduser(each) for each in folders.split(":") if each]

    def find(self, name: str) -> str:
        """Its folder. NotFound says which there are."""
        places = self._places()
        if name not in places:
            there = sorted(places)
            shown = ", ".join(there[:SHOWN]) + (" ..." if len(there) > SHOWN else "")
            raise NotFound(
                f"there is no conda environment {name} on this box{nearest(name, there)}",
                f"`conda create -n {name}` there makes one; jobs can use: {shown}"
                if there
                else f"`conda create -n {name}` there makes one; the setting conda_folders says where to look",
            )
        return places[name]

    def ready(self, environment: str) -> bool:
        return environment.removeprefix(MARK) in self._places()

    def require(self, environment: str) -> None:
        """For a job that waits. EnvironmentFailed: it is gone."""
        try:
            self.find(environment.removeprefix(MARK))
        except NotFound as missing:
            raise EnvironmentFailed(missing.message, missing.hint) from None

    def bin_dir(self, environment: str) -> str:
        return f"{self.find(environment.removeprefix(MARK))}/bin"

    def _places(self) -> dict[str, str]:
        """Name -> folder, of those that we may look into; the first of a name counts."""
        found: dict[str, str] = {}
        roots = [] if self._folders else [os.path.expanduser(root) for root in INSTALLATIONS]
        folders = self._folders or [*(f"{root}/envs" for root in roots), os.path.expanduser(OWN)]
        for root in roots:
            if _is_one(root):
                found.setdefault(ROOT, root)
        for folder in folders:
            try:
                names = sorted(os.listdir(folder))
            except OSError:
                continue
            for name in names:
                if _NAME.fullmatch(name) and _is_one(f"{folder}/{name}"):
                    found.setdefault(name, f"{folder}/{name}")
        return found


def _is_one(prefix: str) -> bool:
    return os.path.isdir(f"{prefix}/conda-meta") and os.path.isdir(f"{prefix}/bin")


def variables(prefix: str) -> dict[str, str]:
    """What activation sets, for an environment of conda; nothing for another folder."""
    if not _is_one(prefix):
        return {}
    name = os.path.basename(prefix) if os.path.basename(os.path.dirname(prefix)) == "envs" else ROOT
    try:
        with open(f"{prefix}/conda-meta/state", "rb") as file:
            kept = json.load(file)["env_vars"]
    except (OSError, ValueError, KeyError, TypeError):
        kept = {}
    texts = kept.items() if isinstance(kept, dict) else ()
    own = {key: value for key, value in texts if isinstance(value, str) and "\0" not in key + value}
    return {**own, "CONDA_PREFIX": prefix, "CONDA_DEFAULT_ENV": name, "CONDA_SHLVL": "1"}


def activated(prefix: str, argv: Sequence[str]) -> list[str]:
    """A command line, with the scripts of activate.d before it where there are any."""
    if _is_one(prefix) and glob.glob(f"{glob.escape(prefix)}/etc/conda/activate.d/*.sh"):
        return ["/bin/bash", "-c", _ACTIVATE, "conda", *argv]
    return list(argv)
