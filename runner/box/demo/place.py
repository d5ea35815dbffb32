"""The demo's own state: wiped when it starts, never anybody else's; and the library that plays the driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from runner import errors, files, paths
from runner.box.settings import Settings
from runner.paths import StateDir

MARKER = "demo"  # a file that only the demo's state has
MARK = b"gpubox: the state of `runner serve --demo`, which removes all that is in this folder\n"
LIBRARY = "libnvidia-ml.so.1"
CPUS, MEMORY_BYTES = 32, 128 << 30
COMPILE_SECONDS = 60


def settings() -> Settings:
    """A box that has nothing to do with this computer's, whatever box.toml says."""
    state = StateDir(os.path.abspath(paths.demo_dir()))
    return Settings(
        state=state,
        socket=paths.socket_of(state),
        name="demo",
        cpus=CPUS,
        memory_bytes=MEMORY_BYTES,
        base_python=getattr(sys, "_base_executable", sys.executable),
        data=f"{state}/data",
        data_sets=state.data_sets,
    )


def parts() -> tuple[str, str]:
    """(the compiler, the source of the library). NotInstalled when one is missing: nothing was begun."""
    source = Path(__file__).resolve().parents[3] / "tests" / "nvml" / "fake.c"
    if not source.is_file():
        raise errors.NotInstalled(
            "the demo's GPUs are made from tests/nvml/fake.c, which is not beside this installation",
            "run it from the source tree: `make demo` there makes its .venv, then `.venv/bin/runner serve --demo`",
        )
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise errors.NotInstalled("the demo's GPUs need a C compiler", "`sudo apt install gcc` brings one")
    return compiler, str(source)


def clear(state: StateDir) -> None:
    """An empty folder for the demo, if it is one already or there is none. Refused for any other, Busy for one in use.

    It is taken with the daemon's own lock, so nobody has it while it is wiped, and nobody wipes what somebody has."""
    marker = f"{state}/{MARKER}"
    try:
        if not os.path.lexists(state) or (_ours(state) and not os.listdir(state)):
            os.makedirs(state, 0o700, exist_ok=True)
            files.replace(marker, MARK)
        _refuse_others(state, marker)
        held = files.lock(state.daemon_lock)
        if held is None:
            raise errors.Busy(
                "the demo runs already", "`runner gpus --box demo` asks it; Ctrl-C in its terminal ends it"
            )
        try:
            _wipe(state, keep=(MARKER, os.path.basename(state.daemon_lock)))
        finally:
            os.close(held)
    except OSError as error:
        raise errors.BadSettings(
            f"the demo's folder {state} can't be used: {error.strerror}: {error.filename}",
            "set XDG_STATE_HOME to another place",
        ) from error


def _ours(state: str) -> bool:
    return os.path.isdir(state) and not os.path.islink(state) and os.stat(state).st_uid == os.getuid()


def _refuse_others(state: str, marker: str) -> None:
    try:
        marked = _ours(state) and not os.path.islink(marker) and Path(marker).read_bytes() == MARK
    except FileNotFoundError:
        marked = False
    if not marked:
        raise errors.Refused(
            f"{state} is not the demo's: it would be wiped, and does not have the demo's mark",
            "move it away, or set XDG_STATE_HOME to another place",
        )


def _wipe(folder: str, keep: tuple[str, ...]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in keep:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def compile_library(compiler: str, source: str, folder: str) -> None:
    """The library in a folder of its own."""
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", f"{folder}/{LIBRARY}", source]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.NotInstalled(f"the demo's GPUs could not be compiled: {error}", "try `cc --version`") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it does not say why"]
        raise errors.NotInstalled(f"the demo's GPUs could not be compiled: {said[0]}", "try `cc --version`")
