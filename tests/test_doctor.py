"""`runner doctor` and the process that examines the computer for it: what is shown, in which words, with which code."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import Box, box, home, run  # noqa: F401

import runner
from runner.box.checks import table
from runner.box.checks.computer import Computer
from runner.cli import doctor
from runner.laptop import boxes

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., tuple[int, str, str]]

OK = {"state": "ok", "what": "well", "why": "", "next": "", "evidence": [], "id": "driver.loaded"}
ILL = {**OK, "id": "gpus.found", "state": "failed", "what": "one is lost", "why": "heat", "next": "cool it",
       "evidence": ["GPU 1"]}  # fmt: skip
AFTER = {**OK, "id": "cuda.init", "state": "skipped", "what": "", "why": "gpus.found failed"}
MORE = {**AFTER, "id": "cuda.kernel"}
DONE = {"done": True}


@pytest.fixture
def well(box: Box) -> Box:  # noqa: F811
    box.replies["GET /hello"] = {"version": runner.__version__, "pid": 7}
    box.replies["GET /box"] = {}
    box.replies["GET /gpus"] = {"gpus": [], "silent": None}
    return box


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """A stand-in for the checks of the computer, which says this; -> the file with what it was told."""

    def says(*findings: object, code: int = 0) -> Path:
        told = tmp_path / "told"
        lines = "".join(json.dumps(finding) + "\n" for finding in findings)
        program = tmp_path / "checks.py"
        program.write_text(
            f"import sys; open({str(told)!r}, 'w').write('\\n'.join(sys.argv[1:])); sys.stdout.write({lines!r}); "
            f"sys.exit({code})"
        )
        monkeypatch.setattr(doctor, "CHECKS", (sys.executable, str(program)))
        return told

    return says


def test_a_failure_is_told_with_its_reason_and_the_next_command(well: Box, run: Run, computer) -> None:  # noqa: F811
    computer(OK, ILL, AFTER, MORE, DONE)
    code, out, _ = run("doctor", "driver", "gpus", "cuda")
    assert code == 1
    assert out.splitlines() == [
        "ok      driver.loaded          well",
        "failed  gpus.found             one is lost",
        "        why:   heat",
        "        |      GPU 1",
        "        next:  cool it",
        "skipped cuda.init and 1 more   gpus.found failed",
    ]


@pytest.mark.parametrize(
    ("findings", "end", "code", "well_or_not"),
    [
        ((OK,), DONE, 0, True),
        ((OK, {**ILL, "state": "warning"}), DONE, 0, True),
        ((OK, AFTER), DONE, 0, True),
        ((OK, ILL), DONE, 1, False),
        ((AFTER,), DONE, 77, False),
        ((OK,), OK, 2, False),
    ],
    ids=["all well", "it could be better", "some skipped", "one failed", "all skipped", "it broke off"],
)
def test_the_exit_code_says_how_the_box_is(
    well: Box, run: Run, computer, findings, end, code: int, well_or_not: bool  # noqa: F811
) -> None:  # fmt: skip
    computer(*findings, end, code=3)
    asked = {finding["id"].partition(".")[0] for finding in findings}
    found, out, _ = run("doctor", "--json", *asked)
    answer = json.loads(out)
    assert (found, answer["ok"]) == (code, well_or_not)
    assert {finding["id"] for finding in findings} <= {check["id"] for check in answer["checks"]}
    assert {tuple(sorted(one)) for one in answer["checks"]} == {("evidence", "id", "next", "state", "what", "why")}


def test_what_was_not_asked_for_is_shown_where_it_is_the_reason(well: Box, run: Run, computer) -> None:  # noqa: F811
    well.replies["GET /box"] = {"paused": "no room"}
    computer({**AFTER, "id": "cuda.job", "why": "service.queue failed"}, DONE)
    code, out, _ = run("doctor", "cuda")
    assert code == 1
    assert [line[:22].strip() for line in out.splitlines()] == [
        "failed  service.queue", "next:  runner", "skipped cuda.job",
    ]  # fmt: skip


def test_a_box_that_laptops_can_not_reach_is_told(well: Box, run: Run, computer) -> None:  # noqa: F811
    well.replies["GET /hello"] = {"unreachable": "the box can't listen at :7443: Address already in use"}
    computer(OK, DONE)
    _, out, _ = run("doctor", "service.answers")
    assert "but not over the network: the box can't listen at :7443" in out


def test_the_computer_is_told_what_is_known_and_asked_for(well: Box, run: Run, computer) -> None:  # noqa: F811
    told = computer(OK, DONE)
    well.replies["GET /box"] = {"draining": True}
    run("doctor", "--train", "--torch-index", "https://mirror/cu126", "driver.loaded")
    words = told.read_text().split("\n")
    assert words[2:] == ["--train", "--only", "driver.loaded", "--torch-index", "https://mirror/cu126"]
    known = json.loads(words[1])
    assert known["service.answers"][0] == "ok"
    assert known["service.queue"] == ["skipped", "the box is draining: nothing starts"]


@pytest.mark.parametrize(("made", "user", "state"), [(True, 0, "ok"), (True, 7, "skipped"), (False, 0, "skipped")])
def test_on_a_drained_box_root_can_see_whether_it_works(
    monkeypatch: pytest.MonkeyPatch, made: bool, user: int, state: str
) -> None:
    """As upgrade.yml does before it lets jobs start again: jobs of the queue's own account do."""
    monkeypatch.setattr(doctor, "_made", lambda: made)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert doctor._known(next(doctor._health({"draining": True})))[0] == state


def test_a_check_that_there_is_not_is_named(well: Box, run: Run, computer) -> None:  # noqa: F811
    computer(OK, DONE)
    code, out, err = run("doctor", "--json", "driver", "divers")
    assert (code, out) == (66, "")
    assert "there is no check divers here" in err


def test_a_service_that_never_began_is_not_taken_for_an_own_box(
    home: Path, run: Run, computer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    (tmp_path / "box.toml").touch()
    for name in ("GPUBOX_STATE", "GPUBOX_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "MADE", str(tmp_path / "box.toml"))
    monkeypatch.setattr(doctor.paths, "RUN", str(tmp_path / "run"))
    told = computer(DONE)
    code, out, _ = run("doctor", "service")
    assert code == 1
    assert "next:  sudo systemctl start gpubox" in out
    assert "--made" in told.read_text().split("\n")
    assert not boxes.provisioned()


def test_every_check_is_in_the_documents() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    here = {check.id for check in table.checks(table.Visit(Computer(), False, ""))}
    source = Path(doctor.__file__).read_text()
    here |= set(re.findall(r'"((?:command|box|service|collector|disk)\.[a-z-]+)"', source))
    assert set(re.findall(r"^\| `([a-z-]+(?:\.[a-z-]+)?)` \|", page.split("## Checks")[1], re.M)) == here
