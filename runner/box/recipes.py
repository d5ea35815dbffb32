"""Which environment a job's snapshot declares: read at submit, and again when it is built."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable

from runner import errors
from runner.box.code import Blobs, Manifest
from runner.box.envs import Recipe, choose, conda, settings, wheels
from runner.model import Job, JobSpec

REMEMBERED = 1024  # answers kept for the next submit of the same snapshot

Source = tuple[str, str | None, str]  # snapshot, script, what was asked for


class Recipes:
    def __init__(
        self,
        blobs: Blobs,
        base_python: str,
        driver: Callable[[], wheels.Driver | None] = lambda: None,
        conda_found: conda.Conda | None = None,
    ) -> None:
        """driver: that of the GPUs, as far as it is known."""
        self._blobs, self._base_python, self._driver = blobs, base_python, driver
        self._conda = conda_found or conda.Conda()
        self._own_index = settings.own_index(os.environ)
        self._chosen = wheels.THEIRS  # when the answers were found
        self._cuda: dict[str, int] = {}  # environment -> the CUDA that its lock holds packages for
        self._known: OrderedDict[Source, str | None] = OrderedDict()
        self._losses = 0  # of contents, when the answers were found
        self._sources: dict[str, Source] = {}  # environment -> a snapshot that declares it
        self._labels: dict[str, str] = {}

    def recover(self, jobs: Iterable[Job]) -> None:
        """After a restart: where the environments of the unfinished jobs came from."""
        for job in jobs:
            if job.environment is not None and job.snapshot is not None and not conda.asked(job.environment):
                self._sources[job.environment] = (job.snapshot, job.script, "auto")

    def knows(self, spec: JobSpec) -> bool:
        chosen = wheels.choice(self._driver(), self._own_index)
        if (self._losses, self._chosen) != (self._blobs.losses, chosen):
            self._losses, self._chosen = self._blobs.losses, chosen
            self._known.clear()
        return (spec.snapshot, spec.script, spec.environment) in self._known

    def environment(self, spec: JobSpec) -> str | None:
        """The id of the environment that a spec asks for; None: the base one. Reads the snapshot unless it is known
        from a moment ago. SnapshotUnknown, or BadRequest when the declaration can't be used."""
        if spec.snapshot is None and spec.script is not None:
            raise errors.BadRequest(f"there is no {spec.script} without a snapshot", "submit a command instead")
        name = conda.asked(spec.environment)
        if name is not None:
            self._conda.find(name)
            self._check_script(spec)
            return spec.environment
        if spec.snapshot is None:
            return None
        source = (spec.snapshot, spec.script, spec.environment)
        if not self.knows(spec):
            self._blobs.whole(spec.snapshot)
            recipe = self._read(source, self._chosen)
            self._known[source] = recipe.id if recipe is not None else None
            if recipe is not None:
                self._labels[recipe.id] = recipe.label
                self._cuda[recipe.id] = wheels.locked_cuda(recipe.files.get("uv.lock", b""))
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        name = self._known[source]
        if name is not None:
            self._sources[name] = source
            if spec.gpus:
                wheels.refuse(self._cuda.get(name, 0), self._driver())
        return name

    def _check_script(self, spec: JobSpec) -> None:
        if spec.snapshot is not None and not self.knows(spec):
            self._blobs.whole(spec.snapshot)
            _has_script(self._blobs.manifest(spec.snapshot), spec.script)
            self._known[spec.snapshot, spec.script, spec.environment] = spec.environment

    def label(self, environment: str) -> str:
        """Where an environment was declared, in words; its id for one of before the last restart."""
        return self._labels.get(environment, environment)

    def recipe(self, environment: str) -> Recipe:
        """How to build an environment that some job waits for."""
        if conda.asked(environment):
            return Recipe("conda", environment, environment, {})
        source = self._sources.get(environment)
        choices = wheels.CHOICES if source is not None else ()  # the driver may have changed since
        found = (self._read(source, chosen) for chosen in choices if source is not None)
        recipe = next((recipe for recipe in found if recipe is not None and recipe.id == environment), None)
        if recipe is None:
            # Declared for another Python or by another version of gpubox: its id can't come out again.
            raise errors.NotFound(
                f"the environment {environment} can't be made any more: the box's Python or gpubox has changed",
                "`runner rerun` makes a job with the environment of today",
            )
        return recipe

    def _read(self, source: Source, chosen: str) -> Recipe | None:
        snapshot, script, wanted = source
        manifest = self._blobs.manifest(snapshot)
        _has_script(manifest, script)
        return choose(lambda path: self._content(manifest, path), script, wanted, self._base_python, chosen)

    def _content(self, manifest: Manifest, path: str) -> bytes | None:
        entry = manifest.files.get(path)
        return None if entry is None else self._blobs.read(entry[2])


def _has_script(manifest: Manifest, script: str | None) -> None:
    if script is not None and script not in manifest.files and script not in manifest.links:
        raise errors.BadRequest(
            f"{script!a} is not among the files sent", "check its name; files that git ignores are not sent"
        )
