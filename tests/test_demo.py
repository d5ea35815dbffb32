"""`runner serve --demo`: four GPUs and four people who are not there; a daemon, a collector and commands that are."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tools
from hypothesis import given
from hypothesis import strategies as st
from tools import CLI, ROOT, wait_until

from runner import errors, files, paths, words
from runner.box import ends
from runner.box.auth import user_name
from runner.box.demo import people, physics, place, script
from runner.box.demo.physics import Card
from runner.box.demo.script import Holder, Slot
from runner.model import Exit

pytestmark = pytest.mark.long

# --- physics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "least", "most"), [(0.0, 24, 35), (0.5, 50, 70), (1.0, 60, 82)])
def test_a_card_gets_as_warm_as_its_load_says(load: float, least: float, most: float) -> None:
    card = Card(physics.RTX_3090)
    card.pass_time(1800, load)
    assert least <= card.degrees <= most
    assert card.degrees == pytest.approx(card.settled_degrees(), abs=0.5), "after half an hour it changes no more"
    assert not card.hot


def test_a_card_warms_and_cools_slowly() -> None:
    card = Card(physics.RTX_4090)
    card.pass_time(1, 1.0)
    after_a_second = card.degrees
    card.pass_time(300, 1.0)
    warm = card.degrees
    card.pass_time(1, 0.0)
    assert after_a_second < physics.ROOM + 5 < warm - 20
    assert warm - 3 < card.degrees <= warm
    assert card.watts < 450


def test_a_card_between_two_others_is_held_back_by_its_temperature() -> None:
    free, stuck_between = Card(physics.RTX_3090), Card(physics.RTX_3090, airflow=0.6)
    for card in (free, stuck_between):
        card.pass_time(1800, 1.0)
    assert stuck_between.hot
    assert stuck_between.degrees < physics.HOT + physics.HOTTER
    assert stuck_between.watts < free.watts
    assert stuck_between.clock < free.clock
    assert stuck_between.hot_seconds > 60


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 1)), max_size=20))
def test_energy_never_falls_and_nothing_is_absurd(times: list[tuple[float, float]]) -> None:
    card = Card(physics.RTX_4080S, airflow=0.6)
    before = 0.0
    for seconds, load in times:
        card.pass_time(seconds, load)
        assert card.joules >= before
        assert 0 <= card.watts <= card.model.limit_watts
        assert physics.ROOM <= card.degrees <= physics.HOT + physics.HOTTER
        assert 0 <= card.fan <= 1
        before = card.joules


# --- people ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", people.TASKS, ids=lambda task: task.name)
def test_what_people_submit_can_run(task: people.Task) -> None:
    spec = people.submission(task).spec
    assert task.user in people.PEOPLE
    assert spec.time_limit is not None
    assert spec.time_limit > task.seconds[1]
    assert not task.gpu_memory or task.uses < task.gpu_memory
    assert sum(task.ends.values()) < 1
    for seed in range(20):
        end, planned, seconds = people.fate(task, random.Random(seed))
        assert 0 < seconds <= planned <= task.seconds[1]
        assert end == people.OK or end in task.ends


def test_a_run_that_finds_no_memory_says_so_in_words_that_the_box_understands() -> None:
    said = people.last_lines(people.TASKS[0], people.GPU_FULL, 24 << 30, random.Random(1))
    end = ends.explain(Exit("exit_code", 1, None, "", 0.0, True), said)
    assert end.reason == "cuda_out_of_memory"
    assert "Tried to allocate" in end.detail


def test_the_script_says_what_a_card_is_like() -> None:
    slot = Slot(2, Card(physics.RTX_4090))
    slot.holders.append(Holder(77, 3 << 30, "ann", "python train.py", load=0.5))
    slot.card.pass_time(600, 0.5)
    lines = script.statements([slot], [(slot, slot)]).splitlines()
    assert lines[1:3] == [f"gpu 4090 {slot.uuid}", "bus 00000000:03:00.0"]
    assert "utilization 50" in lines
    assert lines[-1] == f"process 77 {3 << 30} compute 50"


# --- its place -------------------------------------------------------------------------------------------------------


def test_a_folder_without_the_mark_is_refused_and_left_alone(home: Path) -> None:
    mine = home / "state" / "gpubox-demo"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(errors.Refused, match="not the demo's"):
        place.clear(paths.demo_dir())
    assert (mine / "thesis.tex").read_text() == "years of work"
    (mine / place.MARKER).write_text("something else of that name")
    with pytest.raises(errors.Refused):
        place.clear(paths.demo_dir())


def test_a_link_to_somewhere_else_is_refused(home: Path) -> None:
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / place.MARKER).write_bytes(place.MARK)
    (home / "state" / "gpubox-demo").symlink_to(elsewhere)
    with pytest.raises(errors.Refused):
        place.clear(paths.demo_dir())
    assert (elsewhere / place.MARKER).exists()


def test_a_demo_that_is_on_is_not_wiped(home: Path) -> None:
    state = paths.demo_dir()
    place.clear(state)
    (Path(state) / "runner.db").write_text("in use")
    held = files.lock(state.daemon_lock)
    assert held is not None
    with pytest.raises(errors.Busy, match="runs already"):
        place.clear(state)
    assert (Path(state) / "runner.db").exists()
    os.close(held)
    place.clear(state)
    assert sorted(os.listdir(state)) == ["daemon.lock", place.MARKER]


def test_without_a_compiler_it_says_what_to_do_and_begins_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(errors.NotInstalled, match="C compiler") as caught:
        place.parts()
    assert "install" in caught.value.hint
    done = subprocess.run((*CLI, "serve", "--demo"), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 69
    assert not Path(paths.demo_dir()).exists()


def test_while_it_is_not_on_a_command_says_how_it_begins() -> None:
    done = subprocess.run((*CLI, "ps", "--box", "demo"), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 69
    assert "runner serve --demo" in done.stderr


# --- the play --------------------------------------------------------------------------------------------------------


class Demo:
    """`runner serve --demo`, and the commands that reach it."""

    def __init__(self, folder: Path) -> None:
        tools.need("cc")
        self._out = folder / "demo.out"
        self.began()

    def began(self) -> None:
        with open(self._out, "wb") as out:
            self.process = subprocess.Popen((*CLI, "serve", "--demo"), cwd=ROOT, stdout=out, stderr=out)
        wait_until(lambda: "Ctrl-C" in self.said() or self.process.poll() is not None, 40, self.said)
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        return self._out.read_text()

    def run(self, *args: str, cwd: Path | None = None) -> str:
        command = (*CLI, args[0], "--box", "demo", *args[1:])
        done = subprocess.run(command, cwd=cwd or ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *args: str) -> list[Any]:
        """Its lines, as values."""
        return [json.loads(line) for line in self.run(args[0], "--json", *args[1:]).splitlines()]

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    ours = Demo(tmp_path)
    try:
        yield ours
    finally:
        ours.end()


@pytest.mark.long
def test_a_day_of_four_people_on_four_gpus(demo: Demo, tmp_path: Path) -> None:
    mine = submitted(demo, tmp_path / "project")
    gpus: list[dict[str, Any]] = []

    def read() -> bool:
        gpus[:] = demo.json("gpus")[0]["gpus"]
        return all(gpu["state"] == "asleep" or (gpu["sample"] or {}).get("power_watts") for gpu in gpus)

    wait_until(read, 20, lambda: gpus)
    assert [gpu["index"] for gpu in gpus] == [0, 1, 2, 3]
    assert any(gpu["jobs"] for gpu in gpus)
    held = [process for gpu in gpus for process in gpu["processes"]]
    assert {process["user"] for process in held} <= {*people.PEOPLE, "root", user_name(os.getuid())}
    assert any(process["job"] is not None for process in held)
    assert not any(os.path.exists(f"/proc/{process['pid']}") for process in held), "nobody's process may be meant"

    listed = [job for job in demo.json("ps", "--all") if job["user"] in people.PEOPLE]
    assert {job["user"] for job in listed} == people.PEOPLE.keys()
    assert {words.RUNNING, words.QUEUED, words.SUCCEEDED} <= {job["state"] for job in listed}
    running = next(job for job in listed if job["state"] == words.RUNNING)
    assert running["submitted_at"] <= running["started_at"]
    assert " ".join(running["command"][:2]) in demo.run("logs", str(running["id"]))
    waiting = [job for job in listed if job["state"] == words.QUEUED and job["gpus"]]
    assert "GPU" in demo.run("why", str(waiting[-1]["id"]))
    assert "demo" in subprocess.run((*CLI, "box"), cwd=ROOT, capture_output=True, text=True, timeout=60).stdout

    def its() -> dict[str, Any]:
        ((job,),) = demo.json("ps", mine)
        return dict(job)

    wait_until(lambda: its()["state"] in words.FINISHED, 90, its)
    assert its()["state"] == words.SUCCEEDED
    assert len(its()["allotted"]) == 1
    assert "only pretends" in demo.run("logs", mine)

    state = paths.demo_dir()
    assert demo.end() == 0
    assert tools.processes_naming(state) == {}, "the collector went with it"
    (Path(state) / "left over").write_text("from the last time")
    demo.began()
    assert not (Path(state) / "left over").exists()
    subprocess.run((*CLI, "serve", "--demo", "--stop"), cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert demo.process.wait(20) == 0


def submitted(demo: Demo, project: Path) -> str:
    """A job of ours, that finds room beside all others."""
    project.mkdir()
    (project / "train.py").write_text("raise SystemExit('it must not run')\n")
    return demo.run(
        "submit", "--gpu-mem", "100M", "--priority", "1000", "-d", "train.py", "--lr", "0.1", cwd=project
    ).strip()
