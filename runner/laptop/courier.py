"""The process that brings outputs home from a box in the background: of jobs that ended since somebody looked.
Started by a command, silent, soon over, one for each box; where a box does not answer the next command tries again."""

from __future__ import annotations

import os
import sys

from runner import errors, words
from runner.laptop import awaited, boxes
from runner.laptop.flow import Trickle
from runner.laptop.pull import Pulled, pull, writable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.laptop.client import Client


def main(box: str) -> int:
    os.setsid()  # a terminal that is closed does not end it
    held = awaited.lock(box)
    if held is None:
        return 0
    try:
        _visit(box, awaited.all_of().get(box, {}))
        awaited.visited(box)
    except Trickle as slow:
        if awaited.left(box):
            awaited.tell(f"the outputs of your jobs on {box} do not come: {slow.message}; {slow.hint}")
    except Exception:  # also what no box should say
        pass  # not to be reached now, or not ours any more: `runner pull` says why
    os.close(held)
    return 0


def _visit(box: str, names: dict[str, str]) -> None:
    try:
        api = boxes.open_box(box, start=False)
    except errors.NotFound:  # it was removed
        for name in names:
            awaited.forget(box, name)
        return
    for name in names:
        to, project = awaited.meant(box, name)
        try:
            over, jobs = _waiting(api, name)
        except errors.NotFound:
            over, jobs = True, []
        try:
            for job in jobs:
                if job["state"] in words.FINISHED and job["fetched_at"] is None:
                    _bring(api, job, to, project)
        except errors.Unreachable:
            raise
        except errors.Problem as problem:  # told once: then it is for somebody to look at
            awaited.tell(f"the outputs of {name} are still on {box}: {problem.message}; {problem.hint}")
            awaited.forget(box, name)
        if over:
            awaited.forget(box, name)


def _waiting(api: Client, name: str) -> tuple[bool, list[dict[str, Any]]]:
    """(whether a job or group is over, its jobs, of which some may wait to be brought home)."""
    if name[0] != "g":
        jobs: list[dict[str, Any]] = api.get(f"/jobs?ids={name}")["jobs"]
        return all(job["state"] in words.FINISHED for job in jobs), jobs
    counts = api.get(f"/groups/{name}")["jobs"]  # asked first: if it is over, the list is complete
    jobs = api.get(f"/jobs?ids={name}&unfetched=1")["jobs"]  # not all 10,000; a box of before sends those
    return not any(counts.get(state) for state in words.UNFINISHED), jobs


def _bring(api: Client, job: dict[str, Any], to: str, project: str) -> None:
    """project: as it was noted; else the box is asked. Without it nothing is put where somebody happens to be."""
    job_id, project = int(job["id"]), project or awaited.trusted(api.box, str(job.get("project") or ""))
    if not to and not writable(project) and api.get(f"/jobs/{job_id}/outputs")["outputs"]:
        where = project or "its project's folder"
        raise errors.NotFound(f"there is no writing to {where}", f"`runner pull {job_id}` brings them to where you are")
    done = pull(api, job_id, api.box, project, to)
    if done.files or done.refused:
        awaited.tell(_told(job_id, done))


def _told(job_id: int, done: Pulled) -> str:
    count = len(done.files)
    text = f"the outputs of job {job_id} came home: {count} file{'s' * (count != 1)} in {done.folder}/"
    if done.refused:
        text += f"; {len(done.refused)} could not be fetched, `runner pull {job_id}` says why"
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
