"""Environments made by uv: a virtual environment for a header, a requirements.txt, a uv.lock or a pyproject.toml.

Packages are copied out of uv's cache, never linked: a job that writes into one of its packages would otherwise change
the cache, and with it every other environment. (uv's "clone" falls back to links where blocks can't be shared; the copy
shares them by itself where they can, on btrfs and xfs.)
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from runner import errors
from runner.box.envs import declared, settings, wheels
from runner.box.envs.builder import Builder
from runner.box.envs.recipe import EnvironmentFailed, Read, Recipe, interpreter

METHOD = 1  # raise it when `programs` makes something else out of the same recipe
HOUR = 3600.0
UNSENT = "error sending request"  # uv, of whatever keeps it from the index: names, connections, proxies, certificates
OFFLINE = (
    "once the network is there, submit again; the box has the proxy and certificates (HTTPS_PROXY, SSL_CERT_FILE) "
    "that its daemon began with: `runner serve --stop`, and the next command has it begin with yours"
)
CORRECT = "correct what it asks for and submit again"
SOURCES = (declared.header, declared.requirements, declared.locked, declared.project)


class Uv:
    name = "uv"

    def __init__(
        self,
        base_python: str,
        program: str | None = None,
        time_limit: float = HOUR,
        builder: Builder | None = None,
        driver: Callable[[], wheels.Driver | None] = lambda: None,
    ) -> None:
        self.base_python = base_python
        self.program = program
        self.time_limit = time_limit
        self.builder = builder or Builder()
        self.driver = driver

    def recipe(self, read: Read, script: str | None, chosen: str = wheels.THEIRS) -> Recipe | None:
        for source in SOURCES:
            found = source(read, script)
            if found is not None:
                base = interpreter(self.base_python)
                chosen = chosen if wheels.applies(found.files) else wheels.THEIRS
                return Recipe.of(self.name, METHOD, base, found.label, found.files, found.python, chosen)
        return None

    def build(self, recipe: Recipe, directory: str, log: BinaryIO, lock: int) -> None:
        for name, content in recipe.files.items():
            path = f"{directory}/source/{name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        env, options = settings.for_uv(os.environ)
        base = os.path.dirname(os.path.realpath(self.base_python))
        env["PATH"] = f"{base}:{env.get('PATH', os.defpath)}"  # the box's own interpreter first, if it will do
        driver = self.driver()
        env |= wheels.variables(recipe.wheels, driver) if "UV_TORCH_BACKEND" not in env else {}
        began = log.tell()
        scratch = self.builder.scratch(directory)
        commands = programs(find(self.program), self.base_python, recipe, directory, options, scratch)
        code = self.builder.run(commands, directory, env, log, lock, self.time_limit)
        if code is None:
            raise EnvironmentFailed(
                f"the environment ({recipe.label}) was not built within {self.time_limit:g} s",
                "see what it was doing at the end of its build log",
            )
        if code != 0:
            with open(log.name, "rb") as written:
                written.seek(began)
                words = last_words(written.read().decode(errors="replace")) or f"uv ended with code {code}"
            if "torch" in words and (why := wheels.words(recipe.wheels, driver)):
                words += f"\n({why})"
            raise EnvironmentFailed(
                f"the environment ({recipe.label}) could not be built:\n{words}",
                OFFLINE if UNSENT in words else CORRECT,
            )

    def bin_dir(self, directory: str) -> str:
        return f"{directory}/venv/bin"


def programs(
    uv: str, base_python: str, recipe: Recipe, directory: str, options: list[str], scratch: str = ""
) -> list[list[str]]:
    """The command lines that make an environment, in order; the last one brings it to the disk. scratch: a folder for
    what one of them writes for another, instead of that of the sources."""
    source, venv = f"{directory}/source", f"{directory}/venv"
    wanted = f"{source}/{next(iter(recipe.files))}"
    python = recipe.python or os.path.realpath(base_python)
    before: list[list[str]] = []
    install = [uv, "pip", "install", "--python", venv, "--link-mode", "copy", "--compile-bytecode", *options]
    if "uv.lock" in recipe.files:
        before = [[uv, "export", "--project", source, "--frozen", "--no-emit-project", "--quiet",
                   "--output-file", f"{scratch or source}/locked.txt"]]  # fmt: skip
        wanted = f"{scratch or source}/locked.txt"
        for url in declared.registries(recipe.files["uv.lock"]):
            install += ["--index", url]
        install += ["--index-strategy", "unsafe-best-match"]  # the lock's hashes decide, whichever index answers
    return [
        [uv, "venv", "--no-project", "--python-preference", "system", "--python", python, venv],
        *before,
        [*install, "--requirements", wanted],
        ["sync", "--file-system", scratch or directory],
    ]


def find(program: str | None = None) -> str:
    """The uv program: the one named, beside this interpreter, that of the uv package, or on PATH."""
    for path in _candidates(program):
        if path and os.access(path, os.X_OK):
            return path
    raise errors.NotInstalled("uv is not installed, so no environment can be built", "`pip install uv` on the box")


def _candidates(program: str | None) -> Iterator[str | None]:
    if program:
        yield program
        return
    yield f"{os.path.dirname(sys.executable)}/uv"
    if importlib.util.find_spec("uv"):
        import uv

        try:
            yield uv.find_uv_bin()
        except FileNotFoundError:
            pass
    yield shutil.which("uv")


def last_words(log: str) -> str:
    """The resolver's own explanation: from the last line that begins an error to the end, or the last few lines."""
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", log).splitlines() if line.strip()]
    begins = [number for number, line in enumerate(lines) if re.match(r"\s*(error:|\u00d7)", line)]
    told = lines[begins[-1] :] if begins else lines[-8:]
    if len(told) > 24:
        told = [*told[:4], "...", *told[-20:]]
    return "\n".join(told)
