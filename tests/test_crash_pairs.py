"""Whatever dies, and whoever with it: no job lost, none doubled, none orphaned, and the right end for each."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from crash.harness import Outcome, play_all
from crash.scenarios import everything, pairs

from runner import files

A_FEW = 60


def _told(outcomes: list[Outcome]) -> str:
    windows = Counter(token.partition("#")[0] for outcome in outcomes for token in outcome.fired)
    ends = Counter(end for outcome in outcomes for end in outcome.ends)
    deaths = Counter(len(outcome.fired) for outcome in outcomes)
    lines = [
        f"{len(outcomes)} scenarios, {sum(outcome.starts for outcome in outcomes)} starts, {len(windows)} windows hit"
    ]
    lines += [f"  {count:5d} scenarios with {number} deaths" for number, count in sorted(deaths.items())]
    lines += [f"  {count:5d} jobs ended as {end}" for end, count in ends.most_common()]
    lines += [f"  {count:5d} times at {window}" for window, count in sorted(windows.items())]
    return "\n".join(lines)


def _faults(outcomes: list[Outcome]) -> str:
    bad = [outcome for outcome in outcomes if outcome.faults]
    return "\n".join(f"{outcome.scenario} ({outcome.ends})\n    " + "\n    ".join(outcome.faults) for outcome in bad)


@pytest.mark.long
def test_a_few_pairs_of_deaths_do_no_harm() -> None:
    scenarios = everything()
    some = scenarios[:: len(scenarios) // A_FEW + 1]
    outcomes = play_all(some)
    assert len(outcomes) == len(some)
    assert not _faults(outcomes), _faults(outcomes)


@pytest.mark.crash
@pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.slow)], ids=["every_other", "each"])
def test_no_pair_of_deaths_does_harm(capsys: pytest.CaptureFixture[str], step: int) -> None:
    scenarios = everything()[::step]
    outcomes = play_all(scenarios)
    with capsys.disabled():
        os.write(1, f"\n{_told(outcomes)}\n".encode())
    assert len(outcomes) == len(scenarios) >= 500
    assert not _faults(outcomes), _faults(outcomes)
    fired = [set(outcome.fired) for outcome in outcomes]
    names = {token.partition(".")[2].partition("#")[0] for tokens in fired for token in tokens}
    assert len(names) >= 25, sorted(names)


def test_every_fail_point_of_the_launch_is_in_the_pairs() -> None:
    """A window that somebody adds to the supervisor or its parent must not be forgotten here."""
    package = os.path.dirname(files.__file__)
    written = set()
    for path in ("job/parent.py", "job/supervisor.py", "box/engines/plain.py", "box/engines/disk.py"):
        with open(f"{package}/{path}") as file:
            pieces = file.read().split('failpoint("')[1:]
        written |= {piece.partition('"')[0] for piece in pieces}
    known = {arm.point for scenario in everything() for arm in scenario.daemon + scenario.run + scenario.recovery}
    assert written <= known, sorted(written - known)
    assert len(list(pairs())) >= 200


def test_a_record_is_not_written_through_what_a_killed_process_left(tmp_path: object) -> None:
    """Killed between link and unlink, a process leaves the record with a second name; the next one with its number
    must not truncate it."""
    assert files.put(str(tmp_path), "cancel", {"grace": 1})
    os.link(f"{tmp_path}/cancel", f"{tmp_path}/.cancel.{os.getpid()}")
    assert not files.put(str(tmp_path), "cancel", {"grace": 2, "more": "than before"})
    record = files.get(str(tmp_path), "cancel")
    assert record is not None
    assert record["grace"] == 1
