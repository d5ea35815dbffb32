"""PURE: what a check found, and in which order checks are made: one that stands on another waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.box.checks.computer import Computer

OK, WARNING, FAILED, SKIPPED = STATES = ("ok", "warning", "failed", "skipped")
SETUP = "ansible-playbook setup.yml"  # run again, it mends what is not as it should be


@dataclass(frozen=True)
class Finding:
    """what was seen, why that is so or matters, the next command to type, and what shows it."""

    state: str
    what: str
    why: str = ""
    next: str = ""
    evidence: tuple[str, ...] = ()
    id: str = ""


def ok(what: str, *evidence: str) -> Finding:
    return Finding(OK, what, evidence=evidence)


def warning(what: str, why: str, next: str, *evidence: str) -> Finding:
    """It works, and could be better."""
    return Finding(WARNING, what, why, next, evidence)


def failed(what: str, why: str, next: str, *evidence: str) -> Finding:
    return Finding(FAILED, what, why, next, evidence)


def skipped(why: str, next: str = "") -> Finding:
    """Nothing can be said, and that is nobody's fault."""
    return Finding(SKIPPED, "", why, next)


@dataclass(frozen=True)
class Check:
    """after: those it stands on; where one failed or was skipped, this is skipped. explained_by: those that, having
    failed, explain a failure of this one, which is not told a second time then."""

    id: str
    look: Callable[[Computer], Finding]
    after: tuple[str, ...] = ()
    explained_by: tuple[str, ...] = ()
    everywhere: bool = False  # also on a computer that setup.yml did not make


def chosen(checks: Iterable[Check], wanted: Iterable[str]) -> list[Check]:
    """Those named by their ids or the beginnings of them, with all that they stand on. Nothing named is all."""
    names, known = list(wanted), {check.id: check for check in checks}
    found = {id for id in known if not names or any(matches(id, name) for name in names)}
    while more := {above for id in found for above in known[id].after if above in known} - found:
        found |= more
    return [check for check in known.values() if check.id in found]


def matches(id: str, name: str) -> bool:
    return id == name or id.startswith(f"{name}.")


def examine(checks: Iterable[Check], computer: Computer, known: Mapping[str, Finding]) -> Iterator[Finding]:
    """One finding for each check, as it is made. known: those of checks that somebody else made."""
    found = dict(known)
    for check in checks:
        found[check.id] = replace(_look(check, computer, found), id=check.id)
        yield found[check.id]


def _look(check: Check, computer: Computer, found: Mapping[str, Finding]) -> Finding:
    for id in check.after:
        above = found.get(id)
        if above is None or above.state == FAILED:
            return skipped(f"{id} {'failed' if above else 'is not known'}")
        if above.state == SKIPPED:
            return skipped(above.why or f"{id} was skipped")
    try:
        seen = check.look(computer)
    except Exception as error:
        return failed(
            f"the check itself failed: {type(error).__name__}: {error}",
            "a fault of gpubox, or of what it asked",
            "GPUBOX_DEBUG=1 runner doctor",
        )
    culprit = next((id for id in check.explained_by if id in found and found[id].state == FAILED), None)
    return skipped(f"{culprit} failed, which explains: {seen.what}") if seen.state == FAILED and culprit else seen
