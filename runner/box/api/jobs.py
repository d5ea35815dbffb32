"""Jobs: submitted, listed, shown, and what people wish about them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse

from runner import errors, words
from runner.box import launches, listing
from runner.box.api.house import Here, House, JobId, Key, answer, checked, expanded
from runner.box.api.routes import Routes
from runner.box.auth import Who
from runner.box.store import Group
from runner.box.submissions import command
from runner.errors import nearest
from runner.model import Attempt, Job, JobSpec, Principal, Submission, Submitted, Use

routes = Routes()

FINISHED_MAX = 10_000  # in one reply; `all` streams any number


@dataclass
class Jobs:
    jobs: list[Job]


@dataclass
class Files:
    count: int
    bytes: int


@dataclass
class Output:
    path: str
    size: int
    mode: int
    modified_at: float


@dataclass
class Label:
    """What people call a GPU."""

    index: int | None  # None: not there now
    name: str
    memory_bytes: int | None


@dataclass
class Shown:
    """A job with all that is known of it."""

    job: Job
    spec: JobSpec
    attempts: list[Attempt]
    why: str
    files: Files
    outputs: list[Output]
    uses: list[Use]  # what each attempt used of each of its GPUs, up to now
    gpus: dict[str, Label]  # by UUID, those that its attempts were given, as far as they are still known


@dataclass
class Why:
    id: int
    state: str
    why: str


@dataclass
class Surroundings:
    variables: dict[str, str]
    directory: str


@dataclass
class Listed(Jobs):
    groups: list[Group] = field(default_factory=list)  # only when asked for `grouped`
    gpus: dict[str, int] = field(default_factory=dict)  # UUID -> index, when one of the jobs was given any


@dataclass
class Brief:
    id: int
    state: str
    priority: int


@dataclass
class Changed:
    jobs: list[Job] | list[Brief]


@dataclass
class Counted:
    group: str
    jobs: dict[str, int]  # state -> how many


@dataclass
class Which:
    ids: list[int | str] = field(default_factory=list)  # 42 or "g42"


@dataclass
class Brought:
    hashes: list[str]  # SHA-256 of each output, in the order of their listing


@dataclass
class Differing:
    differ: list[str]  # the paths of those that did not arrive as they are here


@dataclass
class Cancel(Which):
    grace: float | None = None  # seconds between TERM and KILL; None: as submitted


@dataclass
class Priority(Which):
    priority: int = 0


@dataclass
class Adoption:
    pid: int


# --- new jobs ---

AGAIN: dict[int | str, Any] = {200: {"model": Submitted, "description": "The same request had been accepted before"}}


@routes.post("/jobs", status_code=201, response_model=Submitted, responses=AGAIN)
async def submit(here: Here, who: Who, submission: Submission, request: Request, key: Key = None) -> Response:
    return await submitted(here, who, submission, key, hashlib.sha256(await request.body()).hexdigest())


async def submitted(here: House, who: Principal, submission: Submission, key: str | None, digest: str) -> Response:
    """digest: of what the key may stand for."""
    await _learn(here, who, submission.spec)
    made, known = here.wishes.submit(who, submission, key, digest)
    return answer(made, 200 if known else 201)


@routes.post("/jobs/{job_id}/rerun", status_code=201, response_model=Submitted, responses=AGAIN)
async def rerun(here: Here, who: Who, job_id: JobId, key: Key = None) -> Response:
    await _learn(here, who, here.daemon.store.spec(here.job(job_id).spec_id))
    digest = hashlib.sha256(f"rerun {job_id}".encode()).hexdigest()
    made, known = here.wishes.rerun(who, job_id, key, digest)
    return answer(made, 200 if known else 201)


@routes.post("/jobs/adopt", status_code=201, response_model=Submitted)
async def adopt(here: Here, who: Who, wish: Adoption) -> Response:
    """Take a process that the queue did not start into the list: it is waited for and reported, never ended."""
    await here.gpus_known()
    return answer(here.wishes.adopt(who, wish.pid), 201)


async def _learn(here: House, who: Principal, spec: JobSpec) -> None:
    """What the submit will then find in memory: the GPUs, and the snapshot's list of files, which can be long and is
    read in a thread. And whether the secrets that it names are there."""
    if spec.secrets:
        await here.call(lambda: here.secrets.require(who.uid, spec.secrets))
    if spec.gpus or spec.gpu_type or spec.gpu_memory_bytes:
        await here.gpus_known()
    if spec.snapshot is not None and not here.recipes.knows(spec):
        await here.gpus_known()  # their driver decides about wheels
        await here.call(lambda: here.recipes.environment(spec))


# --- wishes ---


@routes.post("/jobs/cancel", response_model=Changed)
async def cancel(here: Here, who: Who, wish: Cancel, brief: bool = False) -> Response:
    if wish.grace is not None and not 0 <= wish.grace <= 86400:
        raise errors.BadRequest(f"the grace is {wish.grace} s; it takes 0 to 86400")
    return _now(here, here.wishes.cancel(who, _ids(here, wish), wish.grace), brief)


@routes.post("/jobs/hold", response_model=Changed)
async def hold(here: Here, who: Who, wish: Which, brief: bool = False) -> Response:
    return _now(here, here.wishes.hold(who, _ids(here, wish)), brief)


@routes.post("/jobs/release", response_model=Changed)
async def release(here: Here, who: Who, wish: Which, brief: bool = False) -> Response:
    return _now(here, here.wishes.release(who, _ids(here, wish)), brief)


@routes.post("/jobs/priority", response_model=Changed)
async def prioritise(here: Here, who: Who, wish: Priority, brief: bool = False) -> Response:
    return _now(here, here.wishes.prioritise(who, _ids(here, wish), wish.priority), brief)


@routes.post("/jobs/{job_id}/fetched", response_model=Differing)
async def fetched(here: Here, who: Who, job_id: JobId, brought: Brought) -> Response:
    """The outputs were brought home: from now on they may be cleaned away, if they arrived as they are here."""
    job = here.wishes.fetching(who, job_id)
    differ = await here.call(lambda: here.custody.differing(job.id, brought.hashes))
    if not differ:
        here.wishes.fetched(job)
    return answer({"differ": differ})


def _ids(here: House, wish: Which) -> list[int]:
    ids = here.wishes.numbers(checked(wish.ids))
    if not ids:
        raise errors.BadRequest("this names no job", "42, 42-50 or g42")
    return ids


def _now(here: House, jobs: Sequence[Job], brief: bool) -> Response:
    if brief:
        return answer({"jobs": [{"id": job.id, "state": job.state, "priority": job.priority} for job in jobs]})
    return answer({"jobs": here.wishes.fresh(jobs)})


# --- questions ---


@routes.get(
    "/jobs",
    response_model=Listed,
    responses={200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
)
async def jobs(
    here: Here,
    state: str = "",
    ids: str | None = None,
    last: Annotated[int | None, Query(ge=1)] = None,
    finished: Annotated[int, Query(ge=0, le=FINISHED_MAX)] = 20,
    all: bool = False,
    grouped: bool = False,
    unfetched: bool = False,
) -> Response:
    """Without parameters the unfinished jobs and the last 20 finished. all: every job, as lines of JSON. grouped: each
    group as a whole, instead of its jobs that wait. unfetched: of `ids` those that finished, and whose outputs were not
    brought home yet."""
    states = _states(state)
    if all:
        return StreamingResponse(_every(here, states), media_type="application/x-ndjson")
    if grouped:
        return answer(_grouped(here, ids, finished, states))
    if ids is not None:
        numbers = here.wishes.numbers(expanded(ids))
        found = here.daemon.store.jobs(here.daemon.store.unfetched(numbers) if unfetched else numbers)
    else:
        ends = [name for name in states or words.FINISHED if name in words.FINISHED]
        found = here.daemon.store.last(finished, ends)
        found = sorted([*here.daemon.book.jobs.values(), *found], key=lambda job: job.id)
    found = here.wishes.fresh(found)
    found = [job for job in found if not states or job.state in states]
    found = found[-last:] if last else found
    return answer({"jobs": found, "gpus": _indices(here, found)})


def _grouped(here: House, ids: str | None, finished: int, states: Sequence[str]) -> dict[str, Any]:
    if ids is None:
        jobs, groups = listing.overview(here.daemon, finished, states, time.time())
    else:
        jobs, groups = listing.named(here.daemon, expanded(ids), states, time.time())
    return {"jobs": jobs, "groups": groups, "gpus": _indices(here, jobs)}


def _indices(here: House, jobs: Sequence[Job]) -> dict[str, int]:
    """UUID -> index, for lists that name the GPUs of jobs."""
    if not any(job.allotted for job in jobs):
        return {}
    return {gpu.uuid: gpu.index for gpu in here.daemon.gpus.view(time.time()) if gpu.index is not None}


async def _every(here: House, states: Sequence[str]) -> AsyncIterator[bytes]:
    for piece in here.daemon.store.every(states):
        yield piece
        await asyncio.sleep(0)  # the loop's other work in between


def _states(text: str) -> list[str]:
    states = [name for name in text.split(",") if name]
    for name in states:
        if name not in words.STATES:
            raise errors.BadRequest(f"there is no state {name[:40]!a}{nearest(name, words.STATES)}", "see docs/jobs.md")
    return states


@routes.get("/jobs/{job_id:int}", response_model=Shown)  # not /jobs/cancel
async def show(here: Here, job_id: JobId) -> Response:
    (job,) = here.wishes.fresh([here.job(job_id)])
    spec = here.daemon.store.spec(job.spec_id)
    job = replace(job, command=command(spec.command, job.params))  # with its own parameters
    attempts = here.daemon.store.attempts(job_id)
    shown: dict[str, Any] = {
        "job": job,
        "spec": spec,
        "attempts": attempts,
        "why": here.wishes.why(job),
        "uses": here.daemon.gpus.uses(job_id),
        "gpus": _labels(here, {*job.allotted, *(uuid for attempt in attempts for uuid in attempt.allotted)}),
    }
    return answer(shown | await here.call(lambda: _on_disk(here, job)))


def _labels(here: House, uuids: set[str]) -> dict[str, Label]:
    known = here.daemon.gpus.view(time.time()) if uuids else []
    return {gpu.uuid: Label(gpu.index, gpu.name, gpu.memory_bytes) for gpu in known if gpu.uuid in uuids}


def _on_disk(here: House, job: Job) -> dict[str, Any]:
    count = size = 0
    if job.snapshot is not None:
        manifest = here.blobs.manifest(job.snapshot)
        count, size = len(manifest.files) + len(manifest.links), manifest.bytes
    left = here.custody.listing(job.id).as_json()
    return {"files": {"count": count, "bytes": size}, "outputs": left["outputs"]}


@routes.get("/jobs/{job_id}/why", response_model=Why)
async def why(here: Here, job_id: JobId) -> Response:
    job = here.job(job_id)
    return answer({"id": job.id, "state": job.state, "why": here.wishes.why(job)})


@routes.get("/jobs/{job_id}/surroundings", response_model=Surroundings)
async def surroundings(here: Here, who: Who, job_id: JobId) -> Response:
    """What a command needs to run as the job's would. NotFound: its environment is not there. Refused: somebody else
    chose these variables and programs (LD_PRELOAD, PATH), and who enters runs them as themselves."""
    job, daemon = here.job(job_id), here.daemon
    if job.uid != who.uid:
        raise errors.Refused(f"job {job_id} is {job.user}'s, and what it runs would run as you", "`runner shell`")
    spec = daemon.store.spec(job.spec_id)
    programs, gpus = daemon.bin_dir(job.environment), daemon.gpus.visible(job, spec.gpu_ids)
    data = daemon.data_of(job)
    variables, folder = launches.surroundings(job, spec, daemon.settings, daemon.store.box_id, programs, gpus, data)
    return answer(Surroundings(variables, folder))


@routes.get("/groups/{group}", response_model=Counted)
async def group(here: Here, group: str) -> Response:
    name = f"g{group.removeprefix('g')}"
    ids = here.wishes.numbers(checked([name]))
    return answer({"group": name, "jobs": Counter(here.daemon.store.states(ids).values())})
