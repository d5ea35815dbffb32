"""The pages. Each is rendered whole by the daemon and works as a snapshot; the browser keeps it alive."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query
from fastapi.responses import StreamingResponse
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

import runner
from dashboard import assets, figures, render, signin, work
from dashboard.contents import Contents
from dashboard.live import Live, cards
from dashboard.totals import Sums
from runner import errors, words
from runner.box import listing
from runner.box.api import PREFIX
from runner.box.api.house import ID_MAX, House, JobId, Network, answer
from runner.box.auth import WHO, Who
from runner.box.forecast import start_of
from runner.box.sessions import shown
from runner.box.settings import file_path, variable
from runner.box.store import Group
from runner.box.submissions import command
from runner.model import Gpu, Job, Principal, Use

WAITING, FINISHED = 8, 8  # on the overview
FINISHED_STEP, FINISHED_MAX = 200, 2000  # in the list of jobs
SHOWN_MAX = 500  # there: of an array of thousands a browser would be sent megabytes, at each change anew
FORESEEN = 8  # waiting jobs whose start is foreseen: each plays the queue forward
NOTICES = 100
TROUBLE = ("critical", "warning")
TROUBLE_MAX = 4
Scope = MutableMapping[str, Any]
Text = Annotated[str, Query(max_length=200)]


class Pages:
    def __init__(self, house: House) -> None:
        self._house = house
        self._live = Live(house)
        self._sums = Sums(house)
        self._contents = Contents(house, self._base)

    # --- for the front ---

    def open(self, scope: Scope) -> bool:
        path, method = scope.get("path", ""), scope.get("method")
        return (path.startswith("/static/") and method in ("GET", "HEAD")) or path == signin.PATH

    def problem(self, scope: Scope, problem: errors.Problem) -> Response:
        if isinstance(problem, errors.NotTrusted) and scope.get("method") == "GET" and not _by_a_page(scope):
            return RedirectResponse(signin.PATH, 303, render.HEADERS)
        values = {"problem": problem, **self._base(scope, "")}
        return render.page("problem.html", values, problem.http_status)

    def render(self, name: str, **values: Any) -> Response:
        return render.page(name, {"box": self._house.daemon.settings.name, "version": runner.__version__, **values})

    def add_to(self, app: FastAPI) -> None:
        closed = APIRouter(include_in_schema=False)
        ways: dict[str, Callable[..., Awaitable[Response]]] = {
            "/": self.overview,
            "/part/work": self.part_work,
            "/jobs": self.jobs,
            "/jobs/{job_id}": self.job,
            "/part/jobs/{job_id}": self.part_job,
            "/gpus/{name}": self.gpu,
            "/queue": self.queue,
            "/events": self.events,
            "/settings": self.settings,
            "/live": self.live,
            f"{PREFIX}/live": self.live,  # for `runner top`, which shows the same
            f"{PREFIX}/overview": self.overview_json,
            **self._contents.ways(),
        }
        for path, way in ways.items():
            closed.add_api_route(path, way, methods=["GET"], response_model=None)
        closed.add_api_route("/sign-out", self.sign_out, methods=["POST"], response_model=None)
        app.include_router(closed)
        app.add_route("/static/{name:path}", assets.serve, ["GET"])
        app.add_route(signin.PATH, self._sign_in, ["GET", "POST"])

    async def _sign_in(self, request: Request) -> Response:
        if request.method == "POST":
            return await signin.enter(self._house, request)
        return await signin.page(self, request)

    async def sign_out(self, request: Request) -> Response:
        self._house.gate.sessions.leave(shown(request.scope["headers"]))
        return RedirectResponse(signin.PATH, 303, render.HEADERS)

    def network(self) -> Network | None:
        return self._house.network

    # --- overview ---

    async def overview(self, request: Request) -> Response:
        await self._house.gpus_known()
        values = {"live": cards(self._house, guest(request.scope)), **await self._work(request.scope)}
        return render.page("overview.html", {**values, **self._base(request.scope, "overview")})

    async def overview_json(self) -> Response:
        """The overview for a terminal: what the page is rendered from."""
        await self._house.gpus_known()
        role = {WHO: Principal(0, "", "read")}  # what may be done, the box says when it is asked
        return answer({"live": cards(self._house), **await self._work(role)})

    async def part_work(self, request: Request) -> Response:
        return render.page("part.html", await self._work(request.scope))

    async def _work(self, scope: Scope) -> dict[str, Any]:
        totals = await self._sums.now()  # first of all: what follows is of one moment
        daemon, now = self._house.daemon, time.time()
        jobs, groups = listing.overview(daemon, FINISHED, (), now)
        rows = self._rows(jobs, scope)
        waiting = {job.id for job in jobs if job.state == words.QUEUED}
        starts = self._foreseen([job for job in daemon.book.queued if job.id in waiting][:FORESEEN], now)
        queue = self._waiting(rows, groups, starts, scope)
        unseen = [each for each in daemon.store.notices(None, NOTICES, True) if each.severity in TROUBLE]
        gpus = daemon.gpus.view(now)
        watts = [
            gpu.sample.power_watts for gpu in gpus if gpu.sample is not None and gpu.sample.power_watts is not None
        ]
        return {
            "running": [row for row in rows if row["state"]["text"] in words.ACTIVE],
            "queue": queue[:WAITING],
            "queue_more": max(0, len(queue) - WAITING),
            "finished": sorted(
                (row for row in rows if row["finished"]), key=lambda row: row["ended_at"] or 0, reverse=True
            ),
            "counts": {
                state: sum(job.state == state for job in daemon.book.jobs.values()) for state in words.UNFINISHED
            },
            "trouble": unseen[:TROUBLE_MAX],
            "trouble_more": max(0, len(unseen) - TROUBLE_MAX),
            "totals": totals,
            "watts": sum(watts) if watts else None,
            "paused": daemon.paused(),
            "draining": daemon.draining,
            "free": sum(gpu.state in (words.FREE, words.ASLEEP) for gpu in gpus),
            "gpu_count": len([gpu for gpu in gpus if gpu.state != words.GONE]),
            "labels": _labels(gpus),
            "may": may(scope),
            "shared": guest(scope),
            "box": daemon.settings.name,
            "now": now,
            "seq": daemon.events.last,
        }

    def _waiting(
        self, rows: Sequence[dict[str, Any]], groups: Sequence[Group], starts: Mapping[int, float], scope: Scope
    ) -> list[dict[str, Any]]:
        """The queue in its order, a group as one, in the place of its first job."""
        own = {row["id"]: row for row in rows if row["state"]["text"] == words.QUEUED}
        left = {group.group: group for group in groups if group.counts.get(words.QUEUED)}
        found: list[dict[str, Any]] = []
        for job in self._house.daemon.book.queued:
            if job.id in own:
                found.append({**own[job.id], "starts_at": starts.get(job.id), "count": 0})
            elif job.group is not None and (group := left.pop(job.group, None)) is not None:
                (row,) = self._rows([job], scope)
                told = {} if guest(scope) else {"reasons": work.reasons(group.why), "why": group.why}
                whole = {"id": group.group, "count": group.counts[words.QUEUED], "starts_at": None}
                found.append({**row, **told, **whole})
        return found

    def _rows(self, jobs: Sequence[Job], scope: Scope) -> list[dict[str, Any]]:
        rack = self._house.daemon.gpus
        uses: dict[int, list[Use]] = {}
        for use, _ in self._house.daemon.store.uses([job.id for job in jobs if job.attempt]):
            uses.setdefault(use.job, []).append(use)
        for job in jobs:
            if job.state in words.ACTIVE:
                uses[job.id] = rack.uses(job.id)
        indices = {gpu.uuid: gpu.index for gpu in rack.view(time.time()) if gpu.index is not None}
        rows = [work.row(job, uses.get(job.id, []), indices, mine(scope, job)) for job in jobs]
        return [work.veiled(row, job) for row, job in zip(rows, jobs, strict=True)] if guest(scope) else rows

    def _foreseen(self, jobs: Sequence[Job], now: float) -> dict[int, float]:
        """When they are likely to start, as far as somebody knows."""
        daemon = self._house.daemon
        active = list(daemon.book.active.values())
        found = {job.id: start_of(job, daemon.book.queued, active, daemon.facts(now)) for job in jobs if not job.held}
        return {job: at for job, at in found.items() if at is not None}

    # --- jobs ---

    async def jobs(
        self,
        request: Request,
        state: Text = "",
        user: Text = "",
        q: Text = "",
        sort: Text = "id",
        up: bool = False,
        finished: Annotated[int, Query(ge=0, le=FINISHED_MAX)] = FINISHED_STEP,
    ) -> Response:
        daemon = self._house.daemon
        if sort not in work.SORTS or (state and state not in words.STATES):
            raise errors.BadRequest("there is no such order or state", "take one of those that the page shows")
        known = self._house.wishes.fresh([*daemon.book.jobs.values(), *daemon.store.last(finished)])
        users = sorted({job.user for job in known})
        found = [job for job in known if _matches(job, state, user, q)]
        found.sort(key=lambda job: job.id, reverse=not up)  # among equals
        more = len(known) - len(daemon.book.jobs) >= finished and finished < FINISHED_MAX
        values = {
            "rows": sorted(self._rows(found, request.scope), key=work.SORTS[sort], reverse=not up)[:SHOWN_MAX],
            "found": len(found),
            "known": len(known),
            "users": users,
            "states": words.STATES,
            "asked": {"state": state, "user": user, "q": q, "sort": sort, "up": up, "finished": finished},
            "older": min(finished + FINISHED_STEP, FINISHED_MAX) if more else 0,
            "may": may(request.scope),
        }
        return render.page("jobs.html", {**values, **self._base(request.scope, "jobs")})

    async def job(self, request: Request, job_id: JobId) -> Response:
        left = await self._contents.left(self._house.job(job_id))
        return render.page("job.html", {**await self._job(request.scope, job_id), **left})

    async def part_job(self, request: Request, job_id: JobId) -> Response:
        return render.page("receipt.html", await self._job(request.scope, job_id))

    async def _job(self, scope: Scope, job_id: int) -> dict[str, Any]:
        house, now = self._house, time.time()
        (job,) = house.wishes.fresh([house.job(job_id)])
        spec = house.daemon.store.spec(job.spec_id)
        job = replace(job, command=command(spec.command, job.params))
        uses = house.daemon.gpus.uses(job_id)
        gpus = {gpu.uuid: gpu for gpu in house.daemon.gpus.view(now)}
        last = [use for use in uses if use.attempt == job.attempt]
        smallest = min((gpus[uuid].memory_bytes or 0 for uuid in job.allotted if uuid in gpus), default=0) or None
        return {
            "job": job,
            "row": self._rows([job], scope)[0],
            "spec": spec,
            "why": house.wishes.why(job),
            "attempts": house.daemon.store.attempts(job_id),
            "receipt": work.receipt(job, last, smallest, now),
            "advice": work.advice(job, last, smallest),
            "previous": self._contents.previous(job),
            "gpus": gpus,
            "had": sorted(job.allotted, key=lambda uuid: (gpus[uuid].index or 0) if uuid in gpus else -1),
            "labels": _labels(gpus.values()),
            "may": may(scope),
            "state_of": work.state,
            "now": now,
            **self._base(scope, "jobs"),
        }

    # --- the others ---

    async def gpu(self, request: Request, name: str) -> Response:
        house = self._house
        await house.gpus_known()
        uuid = house.daemon.gpus.named(name)
        live = cards(house, guest(request.scope))
        gpu = house.daemon.gpus.one(uuid, time.time())
        live["gpus"] = [card for card in live["gpus"] if card["uuid"] == uuid]
        values = {"gpu": gpu, "sample": gpu.sample, "live": live, "may": may(request.scope)}
        return render.page("gpu.html", {**values, **self._base(request.scope, "gpu")})

    async def queue(self, request: Request) -> Response:
        values = await self._work(request.scope)
        daemon = self._house.daemon
        queued = self._house.wishes.fresh(daemon.book.queued[:FINISHED_STEP])
        starts = self._foreseen(queued[:FORESEEN], time.time())
        rows = [
            {**row, "starts_at": starts.get(row["id"]), "count": 0, "moves": work.moves(queued, at)}
            for at, row in enumerate(self._rows(queued, request.scope))
        ]
        more = max(0, len(daemon.book.queued) - len(rows))
        return render.page("queue.html", {**values, "rows": rows, "more": more, **self._base(request.scope, "queue")})

    async def events(self, request: Request, before: Annotated[int | None, Query(ge=1, le=ID_MAX)] = None) -> Response:
        """before: older than one of them."""
        daemon = self._house.daemon
        found = daemon.store.notices(before, NOTICES + 1, False)
        values = {
            "notices": found[:NOTICES],
            "older": found[NOTICES - 1].id if len(found) > NOTICES else 0,
            "before": before,
            "labels": _labels(daemon.gpus.view(time.time())),
            "may": may(request.scope),
        }
        return render.page("events.html", {**values, **self._base(request.scope, "events")})

    async def settings(self, request: Request) -> Response:
        house = self._house
        who: Principal = request.scope[WHO]
        values = {
            "settings": house.choices.listed(),
            "file": file_path(),
            "variable": variable,
            "history_bytes": await house.call(house.history.archive.bytes),
            "shares": house.gate.sessions.shares(who, time.time()),
            "tokens": house.tokens.listed(who, time.time()),
            "fingerprint": house.network.fingerprint if house.network is not None else "",
            "who": who,
            "may": may(request.scope),
            "scopes": words.ROLES[: words.ROLES.index(who.role) + 1],
        }
        return render.page("settings.html", {**values, **self._base(request.scope, "settings")})

    async def live(
        self,
        request: Request,
        who: Who,
        after: Annotated[int | None, Query(ge=0, le=ID_MAX)] = None,
        last: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=ID_MAX)] = None,
    ) -> Response:
        """The tab's one stream. after: the last change that its page was made from."""
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        seen = after if last is None else last
        events = self._live.events(bool(who.share), seen, lambda: self._admitted(request.scope))
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")

    def _admitted(self, scope: Scope) -> bool:
        try:
            self._house.gate.admit(scope)
        except errors.Problem:
            return False
        return True

    def _base(self, scope: Scope, here: str) -> dict[str, Any]:
        daemon = self._house.daemon
        indices = [gpu.index for gpu in daemon.gpus.view(time.time()) if gpu.index is not None]
        return {
            "box": daemon.settings.name,
            "version": runner.__version__,
            "here": here,
            "user": scope[WHO].user if WHO in scope else "",
            "gpu_indices": sorted(indices),
            "told": self._live.badge() if WHO in scope else "",
            "shared": guest(scope),
            "now": time.time(),
            "seq": daemon.events.last,
            "zone": figures.zone(int(time.time()) // figures.DAY),
        }


def _by_a_page(scope: Scope) -> bool:
    """Whether a page asks for a part of itself, which must not turn into the page of the way in."""
    headers = list(scope["headers"])
    mode = next((value for name, value in headers if name == b"sec-fetch-mode"), b"navigate")
    return mode != b"navigate" or any(name == b"hx-request" for name, _ in headers)


def may(scope: Scope) -> bool:
    """Whether whoever looks may also change something."""
    return bool(scope[WHO].role != "read")


def mine(scope: Scope, job: Job) -> bool:
    """Whether whoever looks may end this job, and the like."""
    who: Principal = scope[WHO]
    return who.role == "admin" or (who.role != "read" and who.uid == job.uid)


def guest(scope: Scope) -> bool:
    """Whether somebody came by a link, who sees no log, file or argument; or was not let in at all."""
    return WHO not in scope or bool(scope[WHO].share)


def _labels(gpus: Iterable[Gpu]) -> dict[str, str]:
    """UUID -> what it is called here; one that left has no number."""
    return {gpu.uuid: f"GPU {gpu.index}" for gpu in gpus if gpu.index is not None}


def _matches(job: Job, state: str, user: str, text: str) -> bool:
    if (state and job.state != state) or (user and job.user != user):
        return False
    told = f"#{job.id} {job.name} {job.user} {' '.join(job.command)} {figures.moment(job.submitted_at)}"
    return text.lower() in told.lower()
