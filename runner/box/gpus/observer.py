"""Looks at what there is, now and then, for what is worth a word: the hands of judgement.py."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import fields

from runner import files, words
from runner.box.daemon import Daemon
from runner.box.gpus.judgement import Held, Judge, Scene
from runner.box.gpus.patience import Patience
from runner.errors import DiskFull
from runner.model import Gpu, Job

LOOK_SECONDS = 10.0
READ_SECONDS = 15.0  # a reading that is older says nothing of now
SAVE_SECONDS = 60.0
KEY = "idle"  # in the database: how long jobs with --stop-if-idle rest


class Observer:
    def __init__(self, daemon: Daemon) -> None:
        settings = daemon.settings
        self._daemon = daemon
        self._judge = Judge(settings.idle_notice_minutes * 60, settings.stalled_notice_minutes * 60)
        self._looked_at = self._saved_at = 0.0
        self._saved = daemon.store.remembered(KEY) or "{}"
        self._patience = Patience(_kept(self._saved))

    def look(self, now: float) -> None:
        """Tell what is new. Called more often than it is worth."""
        if 0 <= now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        settings = self._daemon.settings  # which may have changed
        self._judge.wait(settings.idle_notice_minutes * 60, settings.stalled_notice_minutes * 60)
        scene = self._scene(now)
        self._daemon.gpus.notify(self._judge.look(scene))
        self._stop_idle(scene)

    def _stop_idle(self, scene: Scene) -> None:
        """Those that asked for it are warned, and ended; how long they rest is kept for the next daemon."""
        now, gpus, active = scene.now, self._daemon.gpus, self._daemon.book.active
        jobs = [job for job in active.values() if job.stop_if_idle]
        rests = {gpu.uuid: self._judge.rests(gpu) for gpu in scene.gpus if self._is_fresh(gpu, now)}
        busy = {job.id: sum(use.busy_seconds for use in gpus.ledger.of(job.id)) for job in jobs}
        warnings, ends = self._patience.look(now, jobs, rests, busy)
        gpus.notify(warnings)
        self._daemon.end_idle(ends)
        kept = json.dumps(self._patience.kept())
        if kept != self._saved and not 0 <= now - self._saved_at < SAVE_SECONDS:
            self._saved_at = now
            with suppress(DiskFull):  # then the next daemon begins anew
                self._daemon.store.remember(KEY, kept)
                self._saved = kept

    @staticmethod
    def _is_fresh(gpu: Held, now: float) -> bool:
        at = gpu.sample.get("at")
        return isinstance(at, float) and now - at <= READ_SECONDS and gpu.sample.get("utilization") is not None

    def _scene(self, now: float) -> Scene:
        gpus = self._daemon.gpus.view(now)
        scene = Scene(now, [self._held(gpu) for gpu in gpus if gpu.sample is not None])
        scene.gone = {gpu.uuid: gpu.why for gpu in gpus if gpu.state == words.GONE}
        active = self._daemon.book.active
        holders = {job for gpu in gpus for job in gpu.jobs}
        scene.silent = {id_: at for id_ in holders if id_ in active and (at := self._grew_at(active[id_])) is not None}
        scene.disk = files.disk_room(self._daemon.settings.state)
        return scene

    def _held(self, gpu: Gpu) -> Held:
        sample = {each.name: getattr(gpu.sample, each.name) for each in fields(gpu.sample)} if gpu.sample else {}
        by_job: dict[int, int] = {}
        for process in gpu.processes:
            if process.job in gpu.jobs and process.job is not None and process.memory_bytes is not None:
                by_job[process.job] = by_job.get(process.job, 0) + process.memory_bytes
        living = any(process.alive for process in gpu.processes)
        label = self._daemon.gpus.cards.label(gpu.uuid)
        return Held(gpu.uuid, label, tuple(gpu.jobs), sample, gpu.memory_bytes, living, by_job)

    def _grew_at(self, job: Job) -> float | None:
        """When its log grew last; an adopted one's says nothing."""
        if job.adopts:
            return None
        try:
            return os.stat(self._daemon.attempt_dir(job).log).st_mtime
        except OSError:
            return None


def _kept(text: str) -> dict[str, tuple[int, float]]:
    with suppress(ValueError, TypeError):
        return {str(job): (int(attempt), float(seconds)) for job, (attempt, seconds) in json.loads(text).items()}
    return {}
