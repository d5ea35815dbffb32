"""Environments of jobs: what a snapshot declares is built once, under the hash of all that decides what it holds.

envs/<id>/        the environment; usable if and only if it holds the record `ready`
envs/<id>.lock    held by whoever builds or removes it, and by the processes that write below it
envs/<id>.log     what the last build said
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from runner import errors, files
from runner.box.envs.builder import Builder
from runner.box.envs.conda import MARK, Conda
from runner.box.envs.recipe import EnvironmentFailed, Kind, Read, Recipe, interpreter
from runner.box.envs.uv import Uv
from runner.box.envs.wheels import Driver

__all__ = ["EnvironmentFailed", "Environments", "Kind", "Read", "Recipe", "choose", "interpreter"]

READY = "ready"
WAIT_STEP = 0.05


def choose(read: Read, script: str | None, wanted: str, base_python: str, chosen: str = "") -> Recipe | None:
    """The environment that a snapshot asks for; None: the box's base environment. chosen: of wheels.CHOICES."""
    if wanted == "base":
        return None
    if wanted != "auto":
        raise errors.BadRequest(f"no environment is called {wanted}", "auto or base")
    kinds: list[Kind] = [Uv(base_python)]
    return next((recipe for kind in kinds if (recipe := kind.recipe(read, script, chosen))), None)


class Environments:
    def __init__(
        self,
        directory: str,
        base_python: str,
        uv: str | None = None,
        time_limit: float = 3600.0,
        builder: Builder | None = None,
        driver: Callable[[], Driver | None] = lambda: None,
        conda: Conda | None = None,
    ) -> None:
        """builder: who runs what builds, and removes it; unless it is named, we ourselves. driver: that of the GPUs."""
        self.directory = directory
        self.builder = builder or Builder()
        self.kinds: dict[str, Kind] = {"uv": Uv(base_python, uv, time_limit, self.builder, driver)}
        self.conda = conda or Conda()
        self.time_limit = time_limit
        os.makedirs(directory, 0o700, exist_ok=True)

    def path(self, env_id: str) -> str:
        return f"{self.directory}/{env_id}"

    def log(self, env_id: str) -> str:
        return f"{self.directory}/{env_id}.log"

    def ready(self, env_id: str) -> bool:
        if env_id.startswith(MARK):
            return self.conda.ready(env_id)
        return os.path.exists(f"{self.path(env_id)}/{READY}")

    def bin_dir(self, env_id: str) -> str:
        """Where its programs are. A job's PATH begins with it."""
        if env_id.startswith(MARK):
            return self.conda.bin_dir(env_id)
        record = files.get(self.path(env_id), READY)
        if record is None:
            raise errors.NotFound(f"environment {env_id} is not built", "submit again, and it will be")
        return self.kinds[str(record["kind"])].bin_dir(self.path(env_id))

    def build(self, recipe: Recipe) -> None:
        """Return when it is ready. Whoever else builds it is waited for; what a killed build left is removed. One of
        conda's is there or not."""
        if recipe.id.startswith(MARK):
            self.conda.require(recipe.id)
            return
        if self.ready(recipe.id):
            return
        try:
            with self._lock(recipe.id, self.time_limit) as lock:
                if not self.ready(recipe.id):
                    self._make(recipe, self.path(recipe.id), lock)
        except OSError as error:
            if error.errno in files.DISK_FULL:
                raise errors.DiskFull(
                    f"the box's disk was full while the environment ({recipe.label}) was built", "see `runner clean`"
                ) from error
            raise EnvironmentFailed(
                f"the environment ({recipe.label}) could not be built: {error.strerror}: {error.filename}",
                "see `runner doctor`",
            ) from error

    def touch(self, env_id: str) -> None:
        """A job uses it now."""
        try:
            os.utime(f"{self.path(env_id)}/{READY}")
        except FileNotFoundError:
            pass

    def inventory(self) -> list[tuple[str, int, float, bool]]:
        """(id, bytes, last used at, ready) of each directory, the one unused for longest first."""
        found = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    ready = self.ready(entry.name)
                    used_at = os.stat(f"{entry.path}/{READY}" if ready else entry.path).st_mtime
                    found.append((entry.name, files.tree_bytes([entry.path]), used_at, ready))
        return sorted(found, key=lambda one: one[2])

    def remove(self, env_id: str) -> None:
        """Busy while it is being built. Whether a job still uses it is for the caller to know."""
        with self._lock(env_id, 0):
            self._remove(self.path(env_id))
            if os.path.exists(self.log(env_id)):
                os.unlink(self.log(env_id))

    def _make(self, recipe: Recipe, path: str, lock: int) -> None:
        self._remove(path)
        try:
            files.make_dir(path)
            files.failpoint("env.building")
            with open(self.log(recipe.id), "wb") as log:
                self.kinds[recipe.kind].build(recipe, path, log, lock)
            files.failpoint("env.built")
            files.put(path, READY, {"kind": recipe.kind, "label": recipe.label, "built_at": time.time()})
        except BaseException:
            self._remove(path)
            raise
        files.failpoint("env.ready")

    def _remove(self, path: str) -> None:
        """Not ready first, and durably so: a removal cut short must not leave half an environment that counts."""
        try:
            os.unlink(f"{path}/{READY}")
            files.fsync_dir(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        if os.path.lexists(path):
            self.builder.remove(path)

    @contextmanager
    def _lock(self, env_id: str, patience: float) -> Iterator[int]:
        deadline = time.monotonic() + patience
        while (fd := files.lock(f"{self.path(env_id)}.lock")) is None:
            if time.monotonic() >= deadline:
                raise errors.Busy(f"environment {env_id} is being built by another process", "try again later")
            time.sleep(WAIT_STEP)
        try:
            yield fd
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing alone would leave it to a copy of the descriptor in a fork
            os.close(fd)
