"""PURE: when a waiting job is expected to start: the queue played forward, with the ends that past runs and time limits
say. A guess, and bounded work: a long queue ahead is played in part and the rest goes by what that took."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import islice

from runner.box.gpus.placement import Card
from runner.box.schedule import FOREVER, Facts, blocked, duration, expected_end, likely_end, order, pause, schedule
from runner.model import Job

ENDS_MAX = 80  # moments at which something ends that are played
WINDOW = 16  # jobs ahead that are looked at in each of them
SOON = 1.0  # seconds; what is expected as soon needs no words


def expectation(job: Job, why: str, queued: Sequence[Job], active: Sequence[Job], facts: Facts) -> str:
    """`; expected to start in about 2 h, going by past runs`, to follow the reason `why`; empty where nothing is known
    or it has been said."""
    if "expected to start" in why or "starts within" in why or blocked(job, facts) is not None:
        return ""
    play = _Play(job, queued, active, facts)
    at = play.start()
    if at is None or at - facts.now < SOON:
        return ""
    return f"; expected to start in about {duration(at - facts.now)}, going by {' and '.join(sorted(play.sources))}"


def start_of(job: Job, queued: Sequence[Job], active: Sequence[Job], facts: Facts) -> float | None:
    """When a job is likely to start (UTC epoch seconds); None: nobody knows. queued: in the queue's order."""
    return _Play(job, queued, active, facts).start()


@dataclass(slots=True, order=True)
class _Running:
    end: float
    id: int
    job: Job = field(compare=False)
    source: str = field(compare=False)  # what says so


class _Play:
    """The queue ahead of one job, on a copy of everything."""

    def __init__(self, job: Job, queued: Sequence[Job], active: Sequence[Job], facts: Facts) -> None:
        cards = [_later(card) for card in facts.cards]
        self.facts = replace(facts, cards=cards)  # paused, building: as they are now
        self.began = facts.now
        self.sources: set[str] = set()
        self.job = _copied(job)
        self.ahead: Iterator[Job] = _ready(job, queued, facts)
        self.window: list[Job] = []
        self.running: list[_Running] = []
        self.done = 0.0  # of the work ahead, that has been given its place
        for each in active:
            self._run(copy(each), facts.now)

    def start(self) -> float | None:
        for _ in range(ENDS_MAX):
            self.window += map(_copied, islice(self.ahead, WINDOW - len(self.window)))
            decision = schedule([*self.window, self.job], [each.job for each in self.running], self.facts)
            for started in decision.starts:
                if started is self.job:
                    return self.facts.now
                started.allotted = list(decision.placements.get(started.id, ()))
                self.done += _work(started)
                self._run(started, self.facts.now)
            placed = {id(each) for each in decision.starts}
            self.window = [each for each in self.window if id(each) not in placed]
            soonest = min(self.running[0].end if self.running else FOREVER, decision.wakes_at)
            if soonest == FOREVER:
                return None
            self._pass_until(max(soonest, self.facts.now))
        return self._by_pace()

    def _run(self, job: Job, now: float) -> None:
        end = likely_end(job, now)
        source = "past runs" if end < expected_end(job, now) else "time limits"
        job.started_at = job.started_at if job.started_at is not None else now
        heapq.heappush(self.running, _Running(end, job.id, job, source))

    def _pass_until(self, at: float) -> None:
        self.facts = replace(self.facts, now=at)
        while self.running and self.running[0].end <= at:
            self.sources.add(heapq.heappop(self.running).source)

    def _by_pace(self) -> float | None:
        """The rest of a long queue takes as long, for its work, as what was played."""
        left = sum(_work(each) for each in (*self.window, *self.ahead))
        took = self.facts.now - self.began
        if left == FOREVER or not self.done or self.done == FOREVER:
            return None
        return self.facts.now + took * left / self.done


def _ready(job: Job, queued: Sequence[Job], facts: Facts) -> Iterator[Job]:
    """The jobs ahead that wait for nothing but room, or for a moment."""
    for each in queued:
        if order(each) >= order(job):
            return
        if blocked(each, facts) is None or pause(each, facts.now):
            yield each


def _copied(job: Job) -> Job:
    """One whose files are laid out by then."""
    job = copy(job)
    job.snapshot = None
    return job


def _later(card: Card) -> Card:
    """A GPU when what passes by itself has passed."""
    taken = None if card.passing or card.ours else card.taken
    foreign = card.memory_bytes - card.lasting_bytes
    return replace(card, foreign_bytes=foreign, taken=taken, passing=False, ours=False, ours_bytes=0)


def _work(job: Job) -> float:
    """What a job asks of the box, roughly: seconds, times the GPUs. FOREVER: not known."""
    return likely_end(job, 0.0) * max(job.gpus, 1)
