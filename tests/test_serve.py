"""The daemon as a process: how it starts, what it refuses, how it ends and comes back."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tools
import wire

from runner import errors, files, words
from runner.box import frozen
from runner.box.diary import Diary
from runner.box.turns import Turns

pytestmark = pytest.mark.long

Make = Callable[..., wire.Box]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes boxes, each in a place of its own or in a given one, and ends them all."""
    boxes: list[wire.Box] = []
    with wire.place() as folder:

        def made(*options: str, place: Path | None = None, **settings: str) -> wire.Box:
            where = place or Path(folder, str(len(boxes)))
            where.mkdir(exist_ok=True)
            boxes.append(wire.Box(where, *options, **settings))
            return boxes[-1]

        yield made
        for box in boxes:
            box.end()


def said(box: wire.Box) -> str:
    return Path(f"{box.state}.out").read_text()


# --- start -----------------------------------------------------------------------------------------------------------


def test_nobody_else_can_enter_what_it_makes(make: Make) -> None:
    box = make()
    box.start()
    for path in (box.state, box.state.jobs, box.state.blobs, box.state.supervisor, f"{box.state}/data"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700, path
    for path in (box.socket, box.state.events, box.state.daemon_log, box.state.daemon_lock):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, path


def test_a_second_daemon_is_refused_with_the_number_of_the_first(make: Make) -> None:
    first = make()
    first.start()
    assert first.daemon is not None
    second = make(place=Path(first.state).parent)
    assert second.begin().wait(20) == 75
    assert f"another daemon (process {first.daemon.pid}) already serves" in said(second)
    assert first.listens()


def test_who_starts_it_is_told_when_it_listens(make: Make) -> None:
    with _pipe() as (reader, writer):
        box = make("--ready-fd", str(writer))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "runner.box", *box.options], env=box.env, pass_fds=[writer],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        box.daemon = process
        assert _line(reader) == "ready"
        assert box.listens()


@pytest.mark.parametrize(
    ("spoil", "code", "exit_code"),
    [
        pytest.param({"GPUBOX_CPUS": "many"}, "bad_settings", 78, id="a setting"),
        pytest.param({"GPUBOX_STATE": "/proc/nowhere"}, "bad_settings", 78, id="a place that can't be"),
        pytest.param({"GPUBOX_SOCKET": "/tmp/" + "x" * 120}, "bad_settings", 78, id="a long path"),
    ],
)
def test_who_starts_it_is_told_why_it_can_not(make: Make, spoil: dict[str, str], code: str, exit_code: int) -> None:
    with _pipe() as (reader, writer):
        box = make()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "runner.box", "--ready-fd", str(writer)], env=box.env | spoil,
            pass_fds=[writer], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(os.dup(writer))
        failure = json.loads(_line(reader))
        assert (failure["code"], process.wait(20)) == (code, exit_code)
        assert failure["message"]
        assert failure["hint"] or code == "bad_settings"


def test_without_its_libraries_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')\n")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{tools.ROOT}"}
    with _pipe() as (reader, writer):
        command = [sys.executable, "-P", "-m", "runner.box", "--ready-fd", str(writer)]
        ended = subprocess.run(command, env=env, pass_fds=[writer], capture_output=True, timeout=20)
        failure = json.loads(_line(reader))
    assert (failure["code"], ended.returncode) == ("not_installed", 69)
    assert failure["hint"] == 'pip install ".[box]" in a clone'


def test_a_database_that_is_damaged_is_left_as_it_is(make: Make) -> None:
    box = make()
    os.makedirs(box.state)
    Path(box.state.database).write_bytes(b"SQLite format 3\0" + b"\xff" * 8192)
    assert box.begin().wait(20) == 74
    assert "is damaged" in said(box)
    assert Path(box.state.database).read_bytes().endswith(b"\xff" * 8192)


def test_a_dead_daemons_socket_is_no_obstacle(make: Make) -> None:
    box = make()
    box.start()
    box.stop(signal.SIGKILL)
    assert os.path.exists(box.socket)
    box.start()


def test_a_long_path_of_the_state_is_no_obstacle(make: Make, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    box = make(place=deep)
    box.env["XDG_RUNTIME_DIR"] = str(Path(make().state).parent)
    box.socket = subprocess.run(
        [sys.executable, "-c", "from runner import paths; print(paths.api_socket(paths.state_dir()), end='')"],
        env=box.env, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    box.start()
    assert box.ended(box.submit(wire.HELLO))["state"] == words.SUCCEEDED


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_job_outlives_its_daemon_and_is_found_again(make: Make, how: signal.Signals) -> None:
    box = make()
    box.start()
    go = Path(box.state).parent / "go"
    job_id = box.submit(["sh", "-c", f"until [ -e {go} ]; do sleep 0.02; done; exit 3"])
    tools.wait_until(lambda: box.state_of(job_id) == words.RUNNING, 20, box.story)
    assert box.stop(how) == (-9 if how == signal.SIGKILL else 0)
    go.touch()
    box.start()
    job = box.ended(job_id)
    assert (job["state"], job["exit_code"], job["attempt"]) == (words.FAILED, 3, 1)


def test_a_stopped_daemon_leaves_no_socket_and_no_parent_behind(make: Make) -> None:
    box = make()
    box.start()
    box.ended(box.submit(wire.HELLO))
    assert box.processes()
    box.post("/box/stop")
    assert box.daemon is not None
    assert box.daemon.wait(20) == 0
    assert not os.path.exists(box.socket)
    tools.wait_until(lambda: not box.processes(), 20, box.processes)


def test_a_restarted_daemon_is_the_same_process_and_serves_on(make: Make) -> None:
    box = make()
    box.start()
    before = box.submit(wire.HELLO)
    box.ended(before)
    assert box.daemon is not None
    box.post("/box/restart")
    tools.wait_until(lambda: "ready again" in _story_of_restarts(box), 20, box.story)
    tools.wait_until(box.listens, 20, box.story)
    assert box.get("/hello")["pid"] == box.daemon.pid
    assert box.ended(box.submit(wire.HELLO))["id"] > before


def test_a_job_outlives_the_exchange_of_its_daemon(make: Make) -> None:
    box = make()
    box.start()
    go = Path(box.state).parent / "go"
    job_id = box.submit(["sh", "-c", f"until [ -e {go} ]; do sleep 0.02; done; exit 3"])
    tools.wait_until(lambda: box.state_of(job_id) == words.RUNNING, 20, box.story)
    box.post("/box/restart")
    tools.wait_until(lambda: "ready again" in _story_of_restarts(box), 20, box.story)
    tools.wait_until(box.listens, 20, box.story)
    go.touch()
    job = box.ended(job_id)
    assert (job["state"], job["exit_code"], job["attempt"]) == (words.FAILED, 3, 1)


def test_signals_that_were_ignored_where_it_was_started_are_not_for_its_jobs(make: Make) -> None:
    box = make()
    with open(f"{box.state}.out", "ab") as out:
        daemon = f"trap '' CHLD HUP QUIT TERM; exec {sys.executable} -P -m runner.box"
        box.daemon = subprocess.Popen(["sh", "-c", daemon], env=box.env, stdin=subprocess.DEVNULL, stderr=out)
    tools.wait_until(lambda: os.path.exists(box.socket), 20, box.story)
    tools.wait_until(box.listens, 20, box.story)
    job = box.ended(box.submit(["grep", "SigIgn", "/proc/self/status"]))
    assert job["state"] == words.SUCCEEDED
    said = Path(box.state.job(job["id"]).attempt(1).log).read_text()
    assert int(said.split()[1], 16) & ~0x180000000 == 0


def test_a_job_may_not_start_the_daemon_of_its_own_box(make: Make) -> None:
    box = make()
    box.start()
    job = box.ended(box.submit(["sh", "-c", "echo $RUNNER_LAUNCH_ID"]))
    ours = Path(box.state.job(job["id"]).attempt(1).log).read_text().strip()
    box.stop()
    box.env["RUNNER_LAUNCH_ID"] = ours
    assert box.begin().wait(20) == 77
    assert "its own jobs may not start it" in said(box)
    box.env["RUNNER_LAUNCH_ID"] = "another-1-1"
    box.start()


def test_the_tree_of_an_attempt_is_not_given_to_the_next_one_of_another_daemon(make: Make) -> None:
    """The daemon may have died between the retry's commit and the removal of the tree."""
    box = make()
    box.start()
    job_id = box.submit(wire.HELLO, held=True)
    box.stop()
    os.makedirs(f"{box.state.tree(job_id)}/dirty")
    box.start()
    assert not os.path.exists(box.state.tree(job_id))


def test_a_daemon_whose_socket_was_removed_ends_well(make: Make) -> None:
    box = make()
    box.start()
    os.unlink(box.socket)
    assert box.stop() == 0


def _story_of_restarts(box: wire.Box) -> str:
    """`ready again` once the daemon's second life has taken the lock."""
    return "ready again" if Path(box.state.daemon_log).read_text().count("listens on") >= 2 else ""


def test_followers_are_let_go_when_it_ends(make: Make) -> None:
    box = make()
    box.start()
    job_id = box.submit(wire.HELLO, held=True)
    with wire.Wire(box.socket) as follower, wire.Wire(box.socket) as listener:
        follower.send("GET", f"/logs/{job_id}/follow")
        listener.send("GET", "/events")
        assert (follower.head()[0], listener.head()[0]) == (200, 200)
        assert box.stop() == 0
        assert b'"end"' not in b"".join(follower.pieces())
        assert b"".join(listener.pieces()).startswith(b"retry")


def test_a_daemon_that_a_command_started_ends_when_nobody_needs_it(make: Make) -> None:
    box = make("--started-by-command", idle_minutes="0.01")
    box.start()
    assert box.daemon is not None
    assert box.daemon.wait(20) == 0


def test_it_does_not_end_while_a_job_waits_or_somebody_listens(make: Make) -> None:
    box = make("--started-by-command", idle_minutes="0.005")
    box.begin()
    tools.wait_until(lambda: os.path.exists(box.socket), 20, box.story)
    with wire.Wire(box.socket) as listener:
        listener.send("GET", "/events")
        listener.head()
        job_id = box.submit(wire.HELLO, held=True)
    assert box.daemon is not None
    with pytest.raises(subprocess.TimeoutExpired):
        box.daemon.wait(1.0)
    box.post("/jobs/cancel", {"ids": [job_id]})
    assert box.daemon.wait(20) == 0


# --- turns -----------------------------------------------------------------------------------------------------------


class Ill:
    """A daemon whose passes fail as told."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.passes = self.reloads = 0
        self.said: list[str] = []
        self.book = SimpleNamespace(active={}, queued=[])
        self.wakes_at = 0.0  # at once

    def pass_once(self, now: float) -> None:
        self.passes += 1
        failure = self.failures.pop(0)
        if failure is not None:
            raise failure

    def reload(self) -> None:
        self.reloads += 1

    def report(self, said: str) -> None:
        self.said.append(said)


def turned(daemon: Any) -> list[errors.Problem]:
    """Turns until the daemon has had all its failures; what doomed it."""
    doomed: list[errors.Problem] = []

    async def turn() -> None:
        turns = Turns(daemon, doomed.append)
        while daemon.failures:
            turns.wake()
            turns.wake()
            await asyncio.sleep(0)
        turns.stop()

    asyncio.run(turn())
    return doomed


def test_a_pass_that_fails_is_told_once_and_the_next_one_goes_on() -> None:
    daemon = Ill(ValueError("odd"), ValueError("odd"), errors.DiskFull("full"), errors.DiskFull("full"), None)
    assert turned(daemon) == []
    assert (daemon.passes, daemon.reloads) == (5, 4)
    assert len(daemon.said) == 2
    assert "Traceback" in daemon.said[0]
    assert daemon.said[1] == "full"


@pytest.mark.parametrize("failure", [errors.StateDamaged("gone"), OSError(errno.EIO, "gone")], ids=str)
def test_a_state_that_can_not_be_written_is_the_end(failure: Exception) -> None:
    daemon = Ill(failure)
    (problem,) = turned(daemon)
    assert daemon.passes == 1
    assert problem.exit_code == 74
    assert "gone" in problem.message


def test_a_pass_that_fails_is_not_tried_again_at_once() -> None:
    daemon: Any = Ill(ValueError("odd"))

    async def turn() -> float:
        turns = Turns(daemon, lambda problem: None)
        turns.wake()
        while daemon.failures:
            await asyncio.sleep(0)
        assert turns._timer is not None
        left = turns._timer.when() - asyncio.get_running_loop().time()
        turns.stop()
        return left

    assert asyncio.run(turn()) > 1.0


# --- parts -----------------------------------------------------------------------------------------------------------


def test_the_frozen_supervisor_is_the_same_for_the_same_sources(tmp_path: Path) -> None:
    first = frozen.freeze(str(tmp_path))
    assert frozen.archive() == frozen.archive()
    assert frozen.freeze(str(tmp_path)) == first
    Path(first).write_bytes(b"damaged")
    assert Path(frozen.freeze(str(tmp_path))).read_bytes() == frozen.archive()
    names = zipfile.ZipFile(first).namelist()
    assert {"__main__.py", "runner/__init__.py", "runner/files.py", "runner/job/supervisor.py"} <= set(names)
    assert not any(name.startswith("runner/box") for name in names)


def test_the_frozen_parent_runs_without_anything_installed(tmp_path: Path) -> None:
    pyz = frozen.freeze(str(tmp_path))
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    parents = frozen.Parents(pyz, log)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            pid = parents.spawn(theirs)
        attempt = tmp_path / "1"
        attempt.mkdir()
        spec: dict[str, object] = {
            "launch_id": "x-1-1", "job": 1, "attempt": 1, "argv": ["/bin/echo", "hi"], "directory": str(tmp_path),
            "env": {}, "time_limit": None, "grace": 1.0, "log_head_bytes": 4096, "log_tail_bytes": 4096,
            "events": str(tmp_path / "events"),
        }  # fmt: skip
        files.put(str(attempt), "spec", spec)
        ours.send(os.fsencode(attempt))
        tools.wait_until(lambda: files.get(str(attempt), "exit"), 10, (tmp_path / "log").read_text)
        assert (attempt / "log").read_text() == "hi\n"
    parents.wait(10)
    assert not os.path.exists(f"/proc/{pid}")
    os.close(log)


def test_the_log_begins_anew_when_it_has_grown(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    path.write_bytes(b"old\n" * 3_000_000)
    diary = Diary(str(path))
    diary.write("two\nlines")
    os.close(diary.fd)
    lines = path.read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["two", "lines"]
    assert all(line.partition(" ")[0].endswith("Z") for line in lines)
    assert (tmp_path / "daemon.log.1").stat().st_size == 12_000_000


class _pipe:
    def __enter__(self) -> tuple[int, int]:
        self.ends = os.pipe()
        return self.ends

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            os.close(end)


def _line(reader: int) -> str:
    assert select.select([reader], [], [], 20)[0], "nothing was said"
    return os.read(reader, 65536).decode().partition("\n")[0]
