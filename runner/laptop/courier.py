"""The process that brings outputs home in the background: of jobs that ended since somebody looked. Started by a
command, silent, soon over; where a box does not answer the next command's courier tries again."""

from __future__ import annotations

import os
import sys

from runner import errors, words
from runner.laptop import awaited, boxes
from runner.laptop.pull import Pulled, pull

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.laptop.client import Client


def main() -> int:
    os.setsid()  # a terminal that is closed does not end it
    held = awaited.lock()
    if held is None:
        return 0
    for box, names in awaited.all_of().items():
        try:
            _visit(box, names)
        except errors.Problem:
            continue  # not to be reached now, or not ours any more: `runner pull` says why
    os.close(held)
    return 0


def _visit(box: str, names: dict[str, str]) -> None:
    try:
        api = boxes.open_box(box, start=False)
    except errors.NotFound:  # it was removed
        for name in names:
            awaited.forget(box, name)
        return
    for name, to in names.items():
        try:
            jobs = api.get(f"/jobs?ids={name}")["jobs"]
        except errors.NotFound:
            jobs = []
        for job in jobs:
            if job["state"] in words.FINISHED and job["fetched_at"] is None:
                _bring(api, job, to)
        if all(job["state"] in words.FINISHED for job in jobs):
            awaited.forget(box, name)


def _bring(api: Client, job: dict[str, Any], to: str) -> None:
    done = pull(api, int(job["id"]), api.box, str(job.get("project") or ""), to)
    if done.files or done.refused:
        awaited.tell(_told(int(job["id"]), done))


def _told(job_id: int, done: Pulled) -> str:
    count = len(done.files)
    text = f"the outputs of job {job_id} came home: {count} file{'s' * (count != 1)} in {done.folder}/"
    if done.refused:
        text += f"; {len(done.refused)} could not be fetched, `runner pull {job_id}` says why"
    return text


if __name__ == "__main__":
    sys.exit(main())
