"""What the routes may reach, and what they have in common: JSON out, jobs and paths in."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Protocol

from fastapi import Depends, Header, Path, Request, Response

from runner import errors
from runner.box import origins
from runner.box.api.uploads import Upload
from runner.box.auth import Gate
from runner.box.choices import Choices
from runner.box.code import Blobs
from runner.box.custody import Custody
from runner.box.daemon import Daemon
from runner.box.envs import Environments
from runner.box.history import History
from runner.box.recipes import Recipes
from runner.box.retention import Retention
from runner.box.secrets import Secrets
from runner.box.sets import Sets
from runner.box.tokens import Tokens
from runner.box.wishes import Wishes
from runner.model import Job

ID_MAX = 2**53  # what JSON's readers agree on; SQLite's own integers end at 2**63
EXPANDED_MAX = 100_000  # jobs that one list of ids may name


async def _known() -> None:
    """Nothing is waited for."""


async def _no_page() -> int:
    raise errors.NotInstalled("this daemon has no dashboard")


@dataclass
class Network:
    """How the box is reached from elsewhere."""

    names: list[str]  # that it answers to
    port: int
    address: str  # at which the box reaches it itself
    fingerprint: str  # SHA-256 of its certificate, in hex
    let_in: Callable[[tuple[str, int]], None]  # a request of who came from there was

    def found_at(self) -> list[str]:
        """Names and addresses for who is in the same network, the likeliest first. A phone knows no host names but
        those that mDNS tells it."""
        only_here = self.address.startswith("127.") or self.address in origins.LOCAL
        address = origins.own_address() if only_here else self.address
        local = [name for name in self.names if name.endswith(".local")]
        return list(dict.fromkeys([*([address] if address else []), *local[:1], *self.names[:1]]))


class Pages(Protocol):
    """The dashboard, as far as the API knows of it."""

    def open(self, scope: MutableMapping[str, Any]) -> bool:
        """Whether this is for everybody: the sign-in, and what pages are drawn with."""
        ...

    def problem(self, scope: MutableMapping[str, Any], problem: errors.Problem) -> Response:
        """What a person sees who asked for a page in vain."""
        ...


@dataclass
class House:
    daemon: Daemon
    wishes: Wishes
    blobs: Blobs
    environments: Environments
    recipes: Recipes
    retention: Retention
    custody: Custody
    history: History
    gate: Gate
    tokens: Tokens
    secrets: Secrets
    sets: Sets
    choices: Choices
    call: Callable[[Callable[[], Any]], Awaitable[Any]]  # run something blocking in a thread
    leave: Callable[[bool], None]  # end this daemon; True: and begin a new one in its place
    doomed: Callable[[errors.Problem], None]  # the state can't be written any more: end this daemon, say so
    gpus_known: Callable[[], Awaitable[None]] = _known  # wait, shortly, until a daemon that is new has seen its GPUs
    pages: Pages | None = None
    open_page: Callable[[], Awaitable[int]] = _no_page  # listen for a browser on this computer; the port
    tell_test: Callable[[], Awaitable[list[Any]]] | None = None  # by each way of notifications; None: none is set
    network: Network | None = None  # None: the box listens on its unix socket alone
    unreachable: str | None = None  # why it does, where it should listen on the network, too
    connections: Sized = ()  # that are open now on the unix socket
    requests: int = 0  # being answered now, streams included
    answering: dict[str, set[asyncio.Task[Any]]] = field(
        default_factory=dict
    )  # by the id of the token, or the link, that was shown
    uploads: dict[tuple[int, str], Upload] = field(default_factory=dict)  # that go on, by whose and which key
    last_request: float = 0.0  # monotonic
    frame: int = 0  # counts what the collector has said
    _streams: set[asyncio.Event] = field(default_factory=set)
    _viewers: set[asyncio.Event] = field(default_factory=set)  # of the streams, those that draw each frame
    closing: bool = False

    @contextmanager
    def stream(self, frames: bool = False) -> Iterator[asyncio.Event]:
        """An event that is set when something changed, or when it is time to go (`closing`); frames: at each, too."""
        woken = asyncio.Event()
        self._streams.add(woken)
        if frames:
            self._viewers.add(woken)
        unlisten = self.daemon.events.listen(woken.set)
        try:
            yield woken
        finally:
            unlisten()
            self._streams.discard(woken)
            self._viewers.discard(woken)

    def beat(self) -> None:
        """The GPUs were read."""
        self.frame += 1
        for woken in self._viewers:
            woken.set()

    def close_streams(self) -> None:
        self.closing = True
        for woken in self._streams:
            woken.set()

    @contextmanager
    def answers(self, token: str) -> Iterator[None]:
        """This task answers a request that came with a token, or by a link for others."""
        task = asyncio.current_task()
        assert task is not None, "a request is answered by a task"
        mine = self.answering.setdefault(token, set())
        mine.add(task)
        try:
            yield
        finally:
            mine.discard(task)
            if not mine:
                self.answering.pop(token, None)

    def hang_up(self, token: str) -> None:
        """End what is being answered for a token, other than this very request."""
        for task in self.answering.get(token, set()) - {asyncio.current_task()}:
            task.cancel()

    @contextmanager
    def upload(self, uid: int, key: str | None, upload: Upload) -> Iterator[None]:
        """An upload that goes on, and that whoever knows its key may take over."""
        if key is None:
            yield
            return
        self.uploads[uid, key] = upload
        try:
            yield
        finally:
            if self.uploads.get((uid, key)) is upload:
                del self.uploads[uid, key]

    def touch(self) -> None:
        self.last_request = time.monotonic()

    def job(self, job_id: int) -> Job:
        """The job as it is now. NotFound."""
        job = self.daemon.book.jobs.get(job_id)
        return job if job is not None else self.daemon.store.jobs([job_id])[0]


async def house(request: Request) -> House:
    found: House = request.app.state.house
    return found


Here = Annotated[House, Depends(house)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
JobId = Annotated[int, Path(ge=1, le=ID_MAX)]


def answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(value), status, headers, "application/json")


def dumps(value: object) -> bytes:
    """Compact ASCII: names may hold halves of surrogate pairs, which are not UTF-8."""
    return json.dumps(value, default=_plain, separators=(",", ":")).encode("ascii")


def _plain(value: object) -> dict[str, object]:
    """A value of model.py as an object; much cheaper than dataclasses.asdict, which copies deeply."""
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    kind: Any = type(value)
    return {name: getattr(value, name) for name in _names(kind)}


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind))


def checked(ids: Iterable[int | str]) -> list[int | str]:
    """Ids from a body, as far as numbers can be ids at all."""
    found = list(ids)
    if len(found) > EXPANDED_MAX:
        raise errors.BadRequest(f"these are {len(found):,} jobs, {EXPANDED_MAX:,} are the most at once")
    for name in found:
        digits = str(name).removeprefix("g")
        if not digits.isdecimal() or len(digits) > 15:
            raise errors.BadRequest(f"{str(name)[:40]!a} is not a job", "42, 42-50 or g42")
    return found


def expanded(text: str) -> list[int | str]:
    """`42,43-50,g42` -> 42, 43, ..., 50, "g42"."""
    found: list[int | str] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        if not dash:
            found += checked([part])
            continue
        checked([first, last])
        if "g" in part or not int(first) <= int(last) < int(first) + EXPANDED_MAX:
            raise errors.BadRequest(f"{part[:40]!a} is no range of jobs", "as in 42-50")
        found += range(int(first), int(last) + 1)
    return checked(found)
