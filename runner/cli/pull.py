"""`runner pull`: a job's outputs, brought home once more or for the first time."""

from __future__ import annotations

from runner import errors
from runner.cli import logs, options, output, values
from runner.laptop import awaited, boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.laptop.client import Client
    from runner.laptop.pull import Pulled

PULL = """\
Usage: runner pull [OPTIONS] [IDS...]

Bring the outputs of jobs home, to runs/<box>-<id>/ of the project; without ids, all that were submitted from here and
have not come yet. Only what is new is fetched; what you changed there is never overwritten. Following a job does this
by itself when it ends; when nobody follows, the next command after its end has it done in the background.

Options:
  --to DIR                to DIR/<box>-<id>/ instead
  -q, --quiet             print the folders only
  --json                  as JSON
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner pull 42
  runner pull g42
  ls $(runner pull -q 42)
"""


def pull(arguments: list[str]) -> int:
    from runner.laptop.pull import pull as bring

    given = options.parse(PULL, arguments)
    to = given.get("--to")
    place = None if to is None else values.folder("--to", to)
    api = boxes.open_box(given.get("--box"))
    if given.words:
        jobs = api.get(f"/jobs?ids={values.query(values.jobs(given.words, 'runner pull'))}")["jobs"]
    else:
        jobs = _awaited(api)
    brought = []
    left = set()  # groups of which there may be more
    for job in jobs:
        meant = place or awaited.meant(api.box, str(job.get("group") or job["id"]))[0]
        pulled = bring(api, int(job["id"]), api.box, str(job.get("project") or ""), meant)
        brought.append(_as_json(int(job["id"]), pulled))
        if not pulled.complete:
            left.add(job.get("group"))
        if "--json" in given:
            continue
        if "--quiet" in given:
            output.put(f"{pulled.folder}\n" if pulled.files else "")
        else:
            _show(int(job["id"]), pulled)
    for group in {str(job.get("group") or "") for job in jobs if not given.words} - left:
        awaited.forget(api.box, group)
    if "--json" in given:
        output.json(brought)
    return 0


def _awaited(api: Client) -> list[dict[str, Any]]:
    """The jobs that were submitted from here and have not come yet."""
    names = list(awaited.all_of().get(api.box, ()))
    if not names:
        output.say(f"nothing is awaited from {api.box}: `runner pull ID` brings the outputs of any job")
    found = []
    for name in names:
        try:
            found += api.get(f"/jobs?ids={name}")["jobs"]
        except errors.NotFound:  # of a box that was made anew, perhaps
            output.say(f"{api.box} does not know job {name} any more, so it is awaited no longer")
            awaited.forget(api.box, name)
    return found


def _as_json(job_id: int, pulled: Pulled) -> dict[str, Any]:
    return {
        "id": job_id,
        "folder": pulled.folder,
        "files": [{"path": path, "size": size} for path, size in pulled.files],
        "fetched": pulled.fetched,
        "aside": dict(pulled.aside),
        "refused": dict(pulled.refused),
        "complete": pulled.complete,
    }


def _show(job_id: int, pulled: Pulled) -> None:
    logs.tell(pulled)
    if not pulled.complete and not pulled.refused:
        output.say(f"job {job_id} has not ended: there may be more later")
    elif not pulled.files and not pulled.refused:
        output.say(f"job {job_id} has no outputs")
