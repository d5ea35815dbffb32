"""The main job from end to end, on a real box: submit, queue, run, follow, survive, and bring home."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tools
from tools import wait_until

from runner import words

TRAIN = """\
import os, sys
from helper import greeting

print(greeting, *sys.argv[1:], flush=True)
with open(os.environ["RUNNER_OUT"] + "/model.txt", "w") as file:
    file.write(open("data.txt").read())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A script with a module, data and a file that git ignores."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "pyproject.toml").touch()
    (root / "train.py").write_text(TRAIN)
    (root / "helper.py").write_text("greeting = 'hello'\n")
    (root / "data.txt").write_text("the data")
    (root / ".gitignore").write_text("*.tmp\n")
    (root / "left.tmp").touch()
    subprocess.run(["git", "init", "-q", root], check=True)
    return root


@pytest.fixture
def spawned(box: tools.Box, project: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts commands that run beside the test, and ends them with it."""
    started = []

    def spawn(*arguments: str) -> subprocess.Popen[bytes]:
        command = [*tools.CLI, *arguments]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=project, env=box.env, stdout=pipe, stderr=pipe))
        return started[-1]

    yield spawn
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def script(project: Path, text: str, name: str = "job.py") -> str:
    (project / name).write_text(text)
    return name


def waits_for(go: Path) -> str:
    """Lines of a script that goes on when a file appears."""
    return f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"


def submitted(box: tools.Box, project: Path, *arguments: str) -> str:
    return box.run("submit", "-d", *arguments, cwd=project).strip()


def job(box: tools.Box, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = box.json("show", job_id)["job"]
    return found


def becomes(box: tools.Box, job_id: str, *states: str) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        done = box.call("show", "--json", job_id)  # it may not have been submitted yet
        found: dict[str, Any] | None = json.loads(done.stdout)["job"] if done.returncode == 0 else None
        return found if found and found["state"] in states else None

    found = wait_until(there, 20, box.story)
    assert found
    return found


# --- the way there and back ------------------------------------------------------------------------------------------


def test_a_script_is_sent_queued_run_followed_and_its_outputs_come_home(box: tools.Box, project: Path) -> None:
    done = box.call("submit", "train.py", "--lr", "0.1", cwd=project)
    assert (done.returncode, done.stdout) == (0, "hello --lr 0.1\n"), done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("job 1 submitted to local (5 files, ")
    assert lines[0].endswith("; 5 sent)")
    assert lines[-2:] == ["1 output in runs/local-1/ (8 bytes)", "  model.txt  8 bytes"]
    assert (project / "runs/local-1/model.txt").read_text() == "the data"
    assert box.json("show", "1", "--files")["files"].keys() == {
        ".gitignore", "data.txt", "helper.py", "pyproject.toml", "train.py",
    }  # fmt: skip
    (project / "data.txt").write_text("other data")
    again = box.call("submit", "train.py", cwd=project)
    assert "; 1 sent)" in again.stderr
    assert (project / "runs/local-2/model.txt").read_text() == "other data"


def test_a_detached_job_is_waited_for_read_and_pulled(box: tools.Box, project: Path) -> None:
    job_id = submitted(box, project, "train.py")
    box.run("wait", job_id)
    assert box.run("logs", job_id) == "hello\n"
    assert box.run("logs", "-f", job_id, cwd=project) == "hello\n"
    folder = box.run("pull", "-q", job_id, cwd=project).strip()
    assert Path(folder, "model.txt").read_text() == "the data"
    assert box.run("why", job_id) == "it succeeded\n"


def test_a_job_is_run_again_with_the_code_it_had_and_compared(box: tools.Box, project: Path) -> None:
    submitted(box, project, "train.py", "a")
    (project / "helper.py").write_text("greeting = 'goodbye'\n")
    submitted(box, project, "train.py", "b")
    again = box.call("rerun", "1", cwd=project)
    assert (again.returncode, again.stdout) == (0, "hello a\n"), again.stderr
    assert "again what job 1 was" in again.stderr
    changed = box.run("diff", "1", "2")
    assert "-command: python train.py a\n+command: python train.py b\n" in changed
    assert "-greeting = 'hello'\n+greeting = 'goodbye'\n" in changed
    assert box.call("diff", "1", "3").stderr == "nothing changed\n"
    assert box.run("diff", "--stat", "1", cwd=project) == "changed  helper.py\n"


# --- many at once ----------------------------------------------------------------------------------------------------


def test_a_sweep_fills_in_its_values_and_comes_home(box: tools.Box, project: Path) -> None:
    script(project, "import os, sys\nopen(os.environ['RUNNER_OUT'] + '/lr', 'w').write(' '.join(sys.argv[1:]))\n")
    done = box.call("submit", "--sweep", "lr=1e-2,1e-3", "--sweep", "seed=7", "job.py", "--rate", "{lr}", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "g1: 2 jobs: 2 succeeded" in done.stderr
    assert "2 outputs in runs/local-" in done.stderr
    said = sorted(path.read_text() for path in project.glob("runs/*/lr"))
    assert said == ["--rate 1e-2 --seed=7", "--rate 1e-3 --seed=7"]


def test_an_array_ends_with_the_code_of_its_first_failure_followed_or_not(box: tools.Box, project: Path) -> None:
    script(project, "import os, sys\nsys.exit({1: 3, 2: 4}.get(int(os.environ['RUNNER_ARRAY_INDEX']), 0))\n")
    followed = box.call("submit", "--array", "3", "job.py", cwd=project)
    assert followed.returncode == 3, followed.stderr
    assert "job 2 failed: the command ended with exit code 3" in followed.stderr
    assert box.call("wait", "g1").returncode == 3
    assert box.call("wait", "1").returncode == 0


# --- the queue -------------------------------------------------------------------------------------------------------


def test_a_chain_runs_in_order_and_falls_with_its_first_failure(box: tools.Box, project: Path) -> None:
    first = submitted(box, project, "--no-files", "--hold", "--", "false")
    then = submitted(box, project, "--no-files", "--after", first, "--", "true")
    last = submitted(box, project, "--no-files", "--after", f"{first}:any", "--", "true")
    assert f"{first}" in box.run("why", then)
    box.run("release", first)
    assert box.call("wait", first, then, last).returncode == 1
    assert (job(box, then)["state"], job(box, then)["reason"]) == ("failed", "dependency_failed")
    assert job(box, last)["state"] == "succeeded"


def test_waiting_jobs_are_held_moved_and_explained(box: tools.Box, project: Path) -> None:
    box.run("drain")
    first = submitted(box, project, "--no-files", "--", "true")
    second = submitted(box, project, "--no-files", "--", "true")
    assert "drain" in box.run("why", first)
    box.run("hold", first)
    box.run("priority", second, "5")
    assert job(box, second)["priority"] == 5
    box.run("drain", "--off")
    assert "held" in box.run("why", first)
    box.run("wait", second)
    assert job(box, first)["state"] == "queued"
    box.run("release", first)
    box.run("wait", first)


def test_a_running_job_is_cancelled_and_what_waits_just_leaves(box: tools.Box, project: Path, tmp_path: Path) -> None:
    runs = submitted(box, project, "--no-files", "--", "sleep", "60")
    waits = submitted(box, project, "--no-files", "--hold", "--", "true")
    becomes(box, runs, words.RUNNING)
    box.run("cancel", runs, waits)
    assert box.call("wait", runs, waits).returncode == 128 + signal.SIGTERM
    assert {job(box, runs)["state"], job(box, waits)["state"]} == {"cancelled"}


def test_a_job_over_its_time_limit_is_ended(box: tools.Box, project: Path) -> None:
    options = ("--no-files", "--time-limit", "0.3", "--grace", "0")
    done = box.call("submit", *options, "--", "sleep", "60", cwd=project)
    assert done.returncode == 124
    assert "job 1 timed out: it ran longer than its time limit" in done.stderr


def test_a_job_is_tried_again_and_each_attempt_keeps_its_log(box: tools.Box, project: Path) -> None:
    script(project, "import os, sys\nn = os.environ['RUNNER_ATTEMPT']\nprint('attempt', n)\nsys.exit(n == '1')\n")
    done = box.call("submit", "--retries", "2", "job.py", cwd=project)
    assert (done.returncode, done.stdout) == (0, "attempt 1\nattempt 2\n"), done.stderr
    assert box.run("logs", "--attempt", "1", "1") == "attempt 1\n"
    assert box.run("logs", "1") == "attempt 2\n"


def test_a_dry_run_of_cleaning_removes_nothing(box: tools.Box, project: Path) -> None:
    box.run("wait", submitted(box, project, "train.py"))
    assert box.call("clean", "--dry-run").returncode == 0
    assert box.run("logs", "1") == "hello\n"
    assert box.run("pull", "-q", "1", cwd=project)


# --- what goes wrong on the way --------------------------------------------------------------------------------------


def test_a_followed_job_survives_the_daemon_and_no_line_is_lost(
    box: tools.Box, project: Path, tmp_path: Path, spawned: Callable[..., subprocess.Popen[bytes]]
) -> None:
    go = tmp_path / "go"
    script(project, f"for n in range(500): print(n, flush=True)\n{waits_for(go)}for n in range(500, 1000): print(n)\n")
    follower = spawned("submit", "job.py")
    becomes(box, "1", words.RUNNING)
    wait_until(lambda: "499\n" in box.run("logs", "1"))
    box.stop(signal.SIGKILL)
    go.touch()
    box.start()
    out, err = follower.communicate(timeout=30)
    assert follower.returncode == 0, err
    assert out.decode().split() == [str(n) for n in range(1000)]
    assert b"connection lost, trying again" in err


def test_a_follower_that_was_stopped_goes_on_where_it_was(
    box: tools.Box, project: Path, tmp_path: Path, spawned: Callable[..., subprocess.Popen[bytes]]
) -> None:
    go = tmp_path / "go"
    script(project, f"print('before', flush=True)\n{waits_for(go)}for n in range(20000): print(n)\n")
    follower = spawned("submit", "job.py")
    becomes(box, "1", words.RUNNING)
    follower.send_signal(signal.SIGSTOP)  # the laptop's lid
    go.touch()
    becomes(box, "1", words.SUCCEEDED)
    follower.send_signal(signal.SIGCONT)
    out, err = follower.communicate(timeout=30)
    assert follower.returncode == 0, err
    assert out.decode().splitlines() == ["before", *map(str, range(20000))], err


def test_ctrl_c_leaves_the_job_running(
    box: tools.Box, project: Path, tmp_path: Path, spawned: Callable[..., subprocess.Popen[bytes]]
) -> None:
    go = tmp_path / "go"
    script(project, f"print('here', flush=True)\n{waits_for(go)}")
    follower = spawned("submit", "job.py")
    assert follower.stdout
    assert follower.stdout.readline() == b"here\n"
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=20)
    assert follower.returncode == 130
    assert b"`runner logs -f 1` comes back to it, `runner cancel 1` ends it" in err
    assert job(box, "1")["state"] == "running"
    go.touch()
    assert box.run("logs", "-f", "1", cwd=project) == "here\n"


def test_two_submits_at_once_start_one_daemon(box: tools.Box, project: Path) -> None:
    box.stop()
    commands = [[*tools.CLI, "submit", "-d", "--no-files", "--", "true"] for _ in range(3)]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(each, cwd=project, env=box.env, stdout=pipe, stderr=pipe) for each in commands]
    said = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert sorted(int(out) for out, _ in said) == [1, 2, 3]
    wait_until(lambda: len([c for c in box.processes().values() if "-m runner.box" in c]) == 1, 10, box.processes)
    assert box.call("serve", "--stop").stderr == "stopped\n"


def test_a_second_daemon_on_the_same_state_leaves_with_75(box: tools.Box, project: Path) -> None:
    done = box.call("serve")
    assert done.returncode == 75, done.stderr
    assert "hint:" in done.stderr
    assert submitted(box, project, "--no-files", "--", "true") == "1"


# --- environments ----------------------------------------------------------------------------------------------------


def wheel(folder: Path) -> Path:
    """A package with one module, as small as can be."""
    text = {
        "tiny.py": "value = 41\n",
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in text.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(content)}\n")
            archive.writestr(name, content)
        archive.writestr("tiny-1.0.dist-info/RECORD", "".join(lines) + "tiny-1.0.dist-info/RECORD,,\n")
    return path


def test_requirements_are_installed_before_the_job_runs(box: tools.Box, project: Path, tmp_path: Path) -> None:
    (project / "requirements.txt").write_text(f"--no-index\n--find-links {wheel(tmp_path).parent}\ntiny==1.0\n")
    script(project, "import tiny\nprint(tiny.value + 1)\n")
    done = box.call("submit", "job.py", cwd=project)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


def test_an_environment_that_cannot_be_built_fails_the_job_in_the_resolver_s_words(
    box: tools.Box, project: Path
) -> None:
    header = "# /// script\n# dependencies = ['no-such-thing-here']\n# [tool.uv]\n# no-index = true\n# ///\n"
    script(project, f"{header}print('never')\n")
    done = box.call("submit", "job.py", cwd=project)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "job 1 failed: its environment could not be built" in done.stderr
    assert "no-such-thing-here was not found" in done.stderr
    assert "hint: correct what it asks for and submit again" in done.stderr
    (job,) = box.json("ps")
    shown = box.run("env", "show", job["environment"])
    assert "state        failed" in shown
    assert "no-such-thing-here was not found" in shown, "its build's whole log"
    assert box.json("env") == [], "nothing is there of it to list or prune"


# --- bad input -------------------------------------------------------------------------------------------------------


REFUSED = [  # arguments, code, message
    (["nothing.py"], 66, 'there is no script "nothing.py"'),
    (["trian.py"], 66, 'did you mean "train.py"?'),
    (["--"], 64, "there is no command after --"),
    (["--after", "7", "train.py"], 64, "there is no job 7 to wait for"),
    (["--sweep", "a=" + ",".join(map(str, range(10001))), "train.py"], 64, "this sweep is 10001 jobs"),
    (["--array", "10001", "train.py"], 64, "--array 10001 is more than 10000 jobs"),
    (["--cpus", "100000", "train.py"], 64, "the job asks for 100000 cpus, the box has"),
    (["--mem", "900T", "train.py"], 64, "of memory, the box has"),
    (["--gpus", "9", "train.py"], 64, "the job asks for 9 GPUs, the box has none"),
    (["--max-size", "10", "train.py"], 65, "largest: train.py ("),
    (["no\x1b[2J\nsuch.py"], 66, 'there is no script "no\\x1b[2J'),
]


def test_what_can_t_be_done_is_refused_in_a_sentence_with_what_to_type_next(box: tools.Box, project: Path) -> None:
    for arguments, code, message in REFUSED:
        done = box.call("submit", *arguments, cwd=project)
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert done.stderr.startswith("runner: ")
        assert message in done.stderr
        assert "\n  hint: " in done.stderr
        assert "\x1b" not in done.stderr
    assert box.run("ps", "--all", "--json") == ""


def test_hostile_names_neither_travel_nor_reach_the_terminal(box: tools.Box, project: Path) -> None:
    name = "a\x1b]0;x\x07 b.txt"
    (project / name).write_text("odd")
    script(
        project,
        f"import os\nfor name in ('fine', {name!r}):\n    open(os.environ['RUNNER_OUT'] + '/' + name, 'w').close()\n"
        f"print('\\x1b]52;c;eA==\\x07ok')\n",
    )
    refused = box.call("submit", "job.py", cwd=project)
    assert (refused.returncode, "\\x1b]0;x\\x07 b.txt" in refused.stderr) == (64, True), refused.stderr
    (project / name).unlink()
    done = box.call("submit", "--name", "n\x1b[2J", "job.py", cwd=project)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert sorted(os.listdir(project / "runs/local-1")) == [".runner-pull.json", "fine"], done.stderr
    assert "not fetched: a\\x1b]0;x\\x07 b.txt: control characters" in done.stderr
    shown = refused.stderr + done.stderr
    shown += "".join(box.run(*words) for words in (("ps",), ("show", "1"), ("show", "--files", "1")))
    assert not set("\x1b\x07") & set(shown)


def test_a_pipe_a_link_out_and_many_folders_in_the_project_do_no_harm(box: tools.Box, project: Path) -> None:
    os.mkfifo(project / "pipe")
    (project / "out").symlink_to("/etc")
    deep = project.joinpath(*["d"] * 60)
    deep.mkdir(parents=True)
    (deep / "x").write_text("deep")
    script(project, f"print(open({'d/' * 60 + 'x'!r}).read())\n")
    done = box.call("submit", "job.py", cwd=project)
    assert (done.returncode, done.stdout) == (0, "deep\n"), done.stderr
    assert "note: pipe is not a file" in done.stderr
    assert "note: out is a link out of the project" in done.stderr
