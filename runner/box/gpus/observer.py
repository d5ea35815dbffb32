"""Looks at what there is, now and then, for what is worth a word: the hands of judgement.py."""

from __future__ import annotations

import os
from dataclasses import fields

from runner import files, words
from runner.box.daemon import Daemon
from runner.box.gpus.judgement import Held, Judge, Scene
from runner.model import Gpu, Job

LOOK_SECONDS = 10.0


class Observer:
    def __init__(self, daemon: Daemon) -> None:
        settings = daemon.settings
        self._daemon = daemon
        self._judge = Judge(settings.idle_notice_minutes * 60, settings.stalled_notice_minutes * 60)
        self._looked_at = 0.0

    def look(self, now: float) -> None:
        """Tell what is new. Called more often than it is worth."""
        if 0 <= now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        settings = self._daemon.settings  # which may have changed
        self._judge.wait(settings.idle_notice_minutes * 60, settings.stalled_notice_minutes * 60)
        self._daemon.gpus.notify(self._judge.look(self._scene(now)))

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
