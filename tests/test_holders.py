"""Who holds a GPU, as /proc tells it: real processes, and a made-up /proc for what they can't easily be."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import wait_until

from runner.box.gpus.holders import COMMAND_MAX, Holders, clean

NOBODY = 1 << 23  # above every pid that Linux can give
BOX = "b0c5-42-1"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(("sleep", "600"), env={**os.environ, "RUNNER_LAUNCH_ID": BOX})
    wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"sleep"))
    yield process
    process.kill()
    process.wait()


class Proc:
    """A made-up /proc."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def add(
        self, pid: int, parent: int = 0, started: int = 5, state: str = "S", threads: int = 1, **files: bytes
    ) -> None:
        folder = self.place / str(pid)
        folder.mkdir(exist_ok=True)
        middle = " ".join(["0"] * 15)
        (folder / "stat").write_text(f"{pid} (a) b (c) {state} {parent} {middle} {threads} 0 {started} 9 9 9\n")
        (folder / "status").write_text("Name:\tx\nUid:\t1\t0\t0\t0\n")
        for name, text in files.items():
            (folder / name).write_bytes(text)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    place = tmp_path / "proc"
    place.mkdir()
    return Proc(place)


def test_a_process_is_described(sleeper: subprocess.Popen[bytes]) -> None:
    said = Holders().describe(sleeper.pid)
    assert said["alive"] is True
    assert said["user"] == pwd.getpwuid(os.geteuid()).pw_name
    assert said["command"] == "sleep 600"
    assert said["launch"] == BOX
    ancestors = said["ancestors"]
    assert isinstance(ancestors, list)
    assert ancestors[:2] == [os.getpid(), os.getppid()]
    stat = Path(f"/proc/{sleeper.pid}/stat").read_text()
    assert said["started"] == int(stat.rpartition(") ")[2].split()[19])


def test_a_child_has_the_launch_of_its_nearest_ancestor() -> None:
    program = "import subprocess, sys; subprocess.run(['env', '-i', 'sh', '-c', 'echo $$; read x'])"
    parent = subprocess.Popen(
        (sys.executable, "-c", program),
        env={**os.environ, "RUNNER_LAUNCH_ID": BOX},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert f"RUNNER_LAUNCH_ID={BOX}".encode() not in Path(f"/proc/{child}/environ").read_bytes()
        assert Holders().describe(child)["launch"] == BOX
        parent.stdin.write(b"\n")


def test_what_can_not_be_read_is_left_out(proc: Proc) -> None:
    """As of another user's process: its environment, its cgroup, its parent's files."""
    proc.add(7, parent=1, cmdline=b"python\0train.py\0")
    said = Holders(str(proc.place)).describe(7)
    assert said == {
        "started": 5, "alive": True, "user": "root", "command": "python train.py", "launch": None, "ancestors": [1],
    }  # fmt: skip


@pytest.mark.parametrize("cgroup", [
    b"0::/gpubox.slice/gpubox-jobs.slice/gpubox-job-42-3.service\n",
    b"0::/gpubox.slice/gpubox-jobs.slice/gpubox-job-42-3.service/inner\n",
    b"3:cpu:/x\n1:name=systemd:/gpubox.slice/gpubox-jobs.slice/gpubox-job-42-3.service\n",
])  # fmt: skip
def test_the_cgroup_names_the_launch_whatever_the_environment_says(proc: Proc, cgroup: bytes) -> None:
    proc.add(7, cgroup=cgroup, environ=b"RUNNER_LAUNCH_ID=other\0")
    assert Holders(str(proc.place)).describe(7)["launch"] == "42/3"


@pytest.mark.parametrize("cgroup", [
    b"0::/gpubox.slice/gpubox-jobs.slice/gpubox-job-42.service\n",
    b"0::/gpubox.slice/gpubox-jobs.slice/gpubox-job-x-1.service\n",
    b"0::/user.slice/user-1.slice/gpubox.slice/gpubox-jobs.slice/gpubox-job-42-3.service\n",
    b"",
    b"0::/\n",
])  # fmt: skip
def test_another_cgroup_names_none(proc: Proc, cgroup: bytes) -> None:
    proc.add(7, cgroup=cgroup)
    assert Holders(str(proc.place)).describe(7)["launch"] is None


def test_the_nearest_ancestor_wins(proc: Proc) -> None:
    proc.add(7, parent=6, environ=b"A=1\0")
    proc.add(6, parent=5, environ=b"A=1\0RUNNER_LAUNCH_ID=near\0")
    proc.add(5, parent=1, environ=b"RUNNER_LAUNCH_ID=far\0")
    said = Holders(str(proc.place)).describe(7)
    assert said["launch"] == "near"
    assert said["ancestors"] == [6, 5, 1]


def test_a_circle_of_parents_ends(proc: Proc) -> None:
    proc.add(7, parent=6)
    proc.add(6, parent=7)
    assert Holders(str(proc.place)).describe(7)["ancestors"] == [6, 7]


def test_a_pid_that_is_not_there_is_not_alive(proc: Proc) -> None:
    said = Holders().describe(NOBODY)
    assert (said["alive"], said["started"], said["command"]) == (False, 0, "")


def test_a_process_that_ended_keeps_its_name_while_the_driver_lists_it(sleeper: subprocess.Popen[bytes]) -> None:
    holders = Holders()
    before = holders.describe(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert holders.describe(sleeper.pid) == before | {"alive": False}  # a zombie holds nothing any more
    sleeper.wait()
    assert holders.describe(sleeper.pid) == before | {"alive": False}
    holders.keep(())
    assert holders.describe(sleeper.pid)["command"] == ""


def test_a_first_thread_that_ended_before_the_others_is_a_living_process(proc: Proc) -> None:
    proc.add(7, state="Z", threads=3)
    assert Holders(str(proc.place)).describe(7)["alive"] is True


def test_a_pid_that_was_given_again_is_somebody_else(proc: Proc) -> None:
    holders = Holders(str(proc.place))
    proc.add(7, started=5, cmdline=b"one\0")
    assert holders.describe(7)["command"] == "one"
    proc.add(7, started=6, cmdline=b"two\0")
    assert holders.describe(7)["command"] == "two"


def test_one_that_was_seen_is_not_described_again(proc: Proc) -> None:
    holders = Holders(str(proc.place))
    proc.add(7, cmdline=b"one\0")
    before = holders.describe(7)
    (proc.place / "7" / "cmdline").write_bytes(b"two\0")
    assert holders.describe(7) == before


def test_an_orphan_has_other_ancestors(proc: Proc) -> None:
    holders = Holders(str(proc.place))
    proc.add(7, parent=6)
    proc.add(6, parent=1)
    assert holders.describe(7)["ancestors"] == [6, 1]
    proc.add(7, parent=1)
    assert holders.describe(7)["ancestors"] == [1]


def test_a_hidden_process_is_alive(monkeypatch: pytest.MonkeyPatch, proc: Proc) -> None:
    def not_yours(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", not_yours)  # what hidepid=2 looks like
    said = Holders(str(proc.place)).describe(7)
    assert (said["alive"], said["started"], said["command"]) == (True, 0, "")


def test_a_folder_that_denies_everything_is_a_living_process(monkeypatch: pytest.MonkeyPatch, proc: Proc) -> None:
    def denied(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "open", denied)  # what hidepid=1 looks like
    said = Holders(str(proc.place)).describe(7)
    assert (said["alive"], said["started"]) == (True, 0)


def test_a_command_is_shown_short_and_without_control_characters() -> None:
    assert clean(b"python\0train.py\0--lr\0" + b"1e-3\0") == "python train.py --lr 1e-3"
    assert clean(b"a\x1b[31mb\nc\0") == "a?[31mb?c"
    assert clean("x\u202ey".encode()) == "x?y"
    assert clean(b"\xff\xfe") == "\ufffd\ufffd"
    long = clean(b"python\0" + b"a" * 4000)
    assert len(long) == COMMAND_MAX
    assert long.endswith("...")


def test_a_process_without_arguments_is_called_by_its_name(proc: Proc) -> None:
    proc.add(7, cmdline=b"")
    assert Holders(str(proc.place)).describe(7)["command"] == "[a) b (c]"


def test_a_users_number_stands_for_a_name_that_is_not_known(proc: Proc) -> None:
    proc.add(7)
    (proc.place / "7" / "status").write_text("Uid:\t3999999999\t3999999998\t1\t1\n")
    assert Holders(str(proc.place)).describe(7)["user"] == "3999999998"


def test_signals_are_not_sent(sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
    Holders().describe(sleeper.pid)
    Holders().describe(NOBODY)
    monkeypatch.undo()
    assert set(sent) <= {0}
