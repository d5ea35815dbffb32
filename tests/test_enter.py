"""`runner shell`, `exec` and `port`: in a job's environment, on this computer. Over ssh: test_link.py."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tools
from builders import ANN, a_hall
from tools import wait_until

from runner import errors
from runner.box import launches
from runner.cli import enter
from runner.laptop import session

FOUND: dict[str, Any] = {"variables": {"PATH": os.environ["PATH"], "GREETING": "it's\n$HOME"}, "directory": "/tmp"}


def test_surroundings_say_not_who_the_job_is_nor_make_anything_part_of_it(tmp_path: Path) -> None:
    with a_hall(tmp_path / "state") as hall:
        job = hall.submit("true", env={"LR": "1"}, secrets=["KEY"], environment="base", snapshot="abc", who=ANN)
        spec = hall.store.spec(job.spec_id)
        given = job, spec, hall.daemon.settings, "box", "/envs/1/bin", "GPU-1"
        variables, folder = launches.surroundings(*given)
        assert folder == hall.daemon.settings.state.job(job.id).out, "its tree is not there"
        os.makedirs(hall.daemon.settings.state.tree(job.id))
        assert launches.surroundings(*given)[1] == hall.daemon.settings.state.tree(job.id)
    assert variables["PATH"].startswith("/envs/1/bin:")
    assert (variables["LR"], variables["CUDA_VISIBLE_DEVICES"]) == ("1", "GPU-1")
    assert not {"HOME", "USER", "LOGNAME", "SHELL", "RUNNER_LAUNCH_ID", "KEY"} & variables.keys()


@pytest.mark.parametrize("theirs", ["sh", "bash"])
def test_the_far_side_understands_the_script_whatever_its_shell(theirs: str) -> None:
    word = "a b'c\"d$(echo no)"
    script = enter.script(FOUND, ["sh", "-c", 'pwd; printf "%s|%s" "$GREETING" "$1"', "sh", word])
    done = subprocess.run([theirs, "-c", script], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.stderr) == (f"/tmp\nit's\n$HOME|{word}", "")


def test_a_folder_that_is_not_ours_is_told_and_the_command_runs() -> None:
    script = enter.script({"variables": {}, "directory": "/no/such place"}, ["echo", "here"])
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=20)
    assert done.stdout == "here\n"
    assert "note: not in /no/such place" in done.stderr


@pytest.mark.parametrize(
    ("function", "words", "said"),
    [
        (enter.exec_, ["42"], "needs a job and a command"),
        (enter.shell, ["42", "43"], "takes one job"),
        (enter.port, ["42"], "needs a job and a port"),
        (enter.port, ["42", "0"], "the port"),
        (enter.port, ["42", "65536"], "no port 65536"),
        (enter.port, ["--local", "70000", "42", "80"], "no port 70000"),
    ],
)
def test_what_is_typed_wrong_is_told(function: Any, words: list[str], said: str) -> None:
    with pytest.raises(errors.BadRequest, match=said):
        function(words)


def test_a_port_that_is_taken_says_how_to_take_another() -> None:
    with session.listen(0) as first:
        host, port = first.getsockname()
        with pytest.raises(errors.Busy) as taken:
            session.listen(port)
    assert host == "127.0.0.1", "nobody else's"
    assert "--local" in taken.value.hint


@pytest.mark.long
def test_on_this_computer_a_command_runs_in_the_jobs_environment(box: tools.Box, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text("import time; time.sleep(600)\n")
    job = box.run("submit", "-d", "--base", "--env", "LR=0.1", "train.py", cwd=project).strip()
    wait_until(lambda: box.json("ps")[0]["state"] == "running", 20, box.story)
    said = box.run("exec", job, "sh", "-c", "pwd; echo $LR $RUNNER_JOB_ID ${RUNNER_LAUNCH_ID-none}; ls").split()
    assert said == [box.state.tree(int(job)), "0.1", job, "none", "train.py"]
    assert box.call("exec", job, "sh", "-c", "exit 7").returncode == 7
    done = box.call("exec", job, "no-such-program")
    assert (done.returncode, "no-such-program can't be run" in done.stderr) == (127, True)
    shell = subprocess.run(
        [*tools.CLI, "shell", job], input="echo $RUNNER_OUT\n", capture_output=True, text=True,
        env={**box.env, "SHELL": "/bin/sh"}, timeout=30,
    )  # fmt: skip
    assert shell.stdout.strip() == box.state.job(int(job)).out
    assert "http://127.0.0.1:6006" in box.call("port", job, "6006").stderr
    box.run("cancel", "--grace", "0", job)
    wait_until(lambda: box.json("ps", "--state", "running") == [], 20)
    assert box.call("port", job, "6006").returncode == 75
    assert "there is no job 99" in box.call("exec", "99", "true").stderr
