"""Which deaths are combined: every named window of the daemon with every one of the launch, and some with a third."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from crash.arms import Arm
from crash.harness import Scenario

NONE: tuple[Arm, ...] = ()

# The n-th transaction of a first daemon: 1 submit, 2 start, 3 running (or the end, when it was quick), 4 the end.
DAEMON = (
    *(Arm(point, nth) for nth in (1, 2, 3, 4) for point in ("db.commit", "db.committed")),
    *(Arm(point) for point in ("d.dirs", "d.spec", "d.asked")),
)
RUN = tuple(
    Arm(point)
    for point in (
        "p.received", "p.forked", "s.forked", "s.locked", "s.checked", "s.ready", "c.forked", "put.started.written",
        "put.started.linked", "put.started.durable", "c.started", "s.launched", "s.reaped", "s.emptied",
        "put.exit.written", "put.exit.linked", "put.exit.durable", "s.recorded",
    )
)  # fmt: skip
# What a daemon does that finds an attempt whose supervisor is gone.
RECOVERY = tuple(
    Arm(point)
    for point in (
        "d.fence", "d.fencing", "put.abandoned.written", "put.abandoned.linked", "put.abandoned.durable", "d.fenced",
        "put.exit.written", "put.exit.linked", "put.exit.durable", "d.buried", "db.commit", "db.committed",
    )
)  # fmt: skip
CANCEL = (
    *(Arm(point) for point in ("put.cancel.written", "put.cancel.linked", "put.cancel.durable", "d.wished")),
    *(Arm("db.commit", 4), Arm("db.committed", 4)),
)


def pairs() -> Iterator[Scenario]:
    """One job: each window of the daemon with each of the launch."""
    for daemon, run in itertools.product((None, *DAEMON), (None, *RUN)):
        yield Scenario(daemon=_some(daemon), run=_some(run))


def triples() -> Iterator[Scenario]:
    """One job whose launch dies, with its daemon or without, and then the daemon that buries it."""
    for daemon, run, recovery in itertools.product((Arm("d.asked"), Arm("db.committed", 2)), RUN, RECOVERY):
        yield Scenario(daemon=(daemon,), run=(run,), recovery=(recovery,))


def others() -> Iterator[Scenario]:
    """The other kinds, each with what it adds."""
    for kind in ("cancel", "cancel at once"):
        for daemon, run in itertools.product((None, *CANCEL), (None, *RUN, Arm("s.stopping"))):
            yield Scenario(kind, _some(daemon), _some(run))
    some_run = [
        None,
        *(Arm(point) for point in ("s.ready", "s.launched", "s.reaped", "put.exit.written", "s.recorded")),
    ]
    some_daemon = (None, Arm("db.committed", 2), Arm("d.asked"), Arm("db.commit", 3), Arm("db.committed", 3))
    for kind in ("two jobs", "dependency", "retry", "requeue", "reboot", "leftover", "time limit", "daemon away"):
        for daemon, run in itertools.product(some_daemon, some_run):
            yield Scenario(kind, _some(daemon), _some(run))
    for recovery in RECOVERY:
        yield Scenario("requeue", recovery=(recovery,))
        yield Scenario("reboot", recovery=(recovery,))
    for run in (None, *RUN):
        yield Scenario(run=_some(run), twice=True)
        yield Scenario("time limit", run=(Arm("s.stopping"),))


def everything() -> list[Scenario]:
    return list(dict.fromkeys([*pairs(), *triples(), *others()]))


def _some(arm: Arm | None) -> tuple[Arm, ...]:
    return NONE if arm is None else (arm,)
