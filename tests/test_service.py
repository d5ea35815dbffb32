"""A box that `setup.yml` made, in use: its people, its service, jobs of another user; on a host of the test bed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import closing

import hosts
import pytest
from bed import box
from bed.runs import Run
from test_playbooks import PLAYBOOKS, Owner
from tools import ROOT, wait_until

pytestmark = pytest.mark.box
PEOPLE = "useradd --create-home --groups gpubox ada; useradd --create-home --groups gpubox eve; useradd -m mallory"


@pytest.fixture(scope="module")
def owner(bed_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    """Of a box that was checked, made, and made again; and people on it."""
    hosts._need(box.TOOLS)
    with closing(box.Box(bed_run, "trixie")) as host:
        owner = Owner(host, tmp_path_factory.mktemp("owner"))
        assert owner.setup("--check")["changed"] > 0
        owner.setup()
        host.run(f"{PEOPLE}; su - ada -c 'mkdir project'; su - eve -c 'mkdir project'")
        yield owner


def say(owner: Owner, command: str, user: str = "ada", code: int = 0) -> str:
    """What a person's command printed, in a project of theirs."""
    done = owner.host.ssh(f"su - {user} -c {shlex.quote(f'cd project 2>/dev/null; {command}')}")
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_second_run_changes_nothing(owner: Owner) -> None:
    assert owner.setup()["changed"] == 0
    assert owner.setup("--check")["changed"] == 0
    assert owner.host.run("systemctl --failed --no-legend") == ""


def test_the_box_examines_itself_and_says_what_to_type(owner: Owner) -> None:
    """As root it sees all but GPUs; a stopped service is one failure, for the command and for verify.yml alike."""
    found = examined(owner)
    assert {id for id, one in found.items() if one["state"] == "failed"} == set()
    assert {found[id]["state"] for id in ("service.job", "launcher.answers", "disk.free", "suspend.off")} == {"ok"}
    assert found["service.job"]["what"] == "a job ran from end to end as gpubox-job"
    assert {one["why"] for id, one in found.items() if id.startswith(("driver", "gpus", "cuda"))} == {
        "there is no NVIDIA card in this computer"
    }
    assert "skipped launcher.answers" in say(owner, "runner doctor"), "a member may not knock there"
    verify = owner.run(PLAYBOOKS / "verify.yml")
    assert (verify.returncode, "changed=0" in verify.stdout) == (0, True), verify.stdout

    owner.host.run("systemctl stop gpubox")
    found = examined(owner, code=1)
    assert {id for id, one in found.items() if one["state"] == "failed"} == {"service.answers"}
    assert found["service.answers"]["next"] == "sudo systemctl start gpubox"
    assert found["service.job"]["why"] == "service.answers failed"
    assert "next: sudo systemctl start gpubox" in owner.run(PLAYBOOKS / "verify.yml").stdout
    owner.host.run("systemctl start gpubox")


def examined(owner: Owner, code: int = 0) -> dict[str, dict[str, str]]:
    """What root's `runner doctor` found, by id."""
    done = owner.host.ssh("runner doctor --json")
    assert done.returncode == code, done.stdout + done.stderr
    return {one["id"]: one for one in json.loads(done.stdout)["checks"]}


def test_a_job_of_a_member_is_the_jobs_user(owner: Owner) -> None:
    assert "gpubox-job" in say(owner, "runner submit --base -- id -un").splitlines()
    assert "the service of this computer" in say(owner, "runner box")


def test_code_arrives_and_outputs_come_home(owner: Owner) -> None:
    script = 'cat data > "$RUNNER_OUT/copy"; mkdir -m 700 "$RUNNER_OUT/d"; echo 2 > "$RUNNER_OUT/d/e"'
    say(owner, f"echo 1 > data; runner submit --base --name home -- sh -c {shlex.quote(script)}")
    assert say(owner, "cat runs/*/copy runs/*/d/e").split() == ["1", "2"]


def test_an_environment_is_built_by_the_jobs_user_and_removed_again(owner: Owner) -> None:
    owner.host.put(ROOT / "examples", "/tmp/examples")
    owner.host.run("mv /tmp/examples ~ada/project/; chown -R ada: ~ada/project")
    said = say(owner, "runner submit examples/digits/train.py --epochs 2")
    assert "wrote metrics.json" in said
    assert owner.host.run("stat --format=%U /var/lib/gpubox/envs/*/venv").split() == ["gpubox-job"]
    owner.host.run("runner clean --older-than 0")
    assert owner.host.run("ls /var/lib/gpubox/envs | grep -v '[.]lock$' || true") == ""


def test_a_killed_daemon_loses_nothing(owner: Owner) -> None:
    """One job runs on without it, one waits, and both are told of."""
    script = 'while [ ! -e "$RUNNER_OUT/go" ]; do sleep 0.05; done; echo survived; exit 3'
    first = say(owner, f"runner submit -d --base -- sh -c {shlex.quote(script)}").split()[-1]
    wait_until(lambda: "running" in say(owner, "runner ps"), 20)
    second = say(owner, f"runner submit -d --base --after {first}:any -- true", code=0).split()[-1]
    owner.host.run("systemctl kill --signal=KILL gpubox.service")
    owner.host.run(f"touch /var/lib/gpubox/jobs/{first}/out/go")
    say(owner, f"runner wait {first}", code=3)
    assert "survived" in say(owner, f"runner logs {first}")
    say(owner, f"runner wait {second}")


def test_a_job_is_not_disturbed_by_another_version(owner: Owner) -> None:
    script = 'while [ ! -e "$RUNNER_OUT/go" ]; do sleep 0.05; done; exit 5'
    job = say(owner, f"runner submit -d --base -- sh -c {shlex.quote(script)}").split()[-1]
    wait_until(lambda: "running" in say(owner, "runner ps"), 20)
    assert owner.setup("--extra-vars", "gpubox_name=attic")["changed"] > 0
    owner.host.run(f"touch /var/lib/gpubox/jobs/{job}/out/go")
    say(owner, f"runner wait {job}", code=5)
    assert owner.setup("--extra-vars", "gpubox_name=attic")["changed"] == 0


def test_members_are_members_and_strangers_strangers(owner: Owner) -> None:
    job = say(owner, "runner submit -d --base -- sleep 600").split()[-1]
    assert "you may not cancel it" in say(owner, f"runner cancel {job}", "eve", code=77)
    assert "only an administrator" in say(owner, "runner clean --older-than 0", "eve", code=77)
    owner.host.run(f"runner cancel {job}")
    say(owner, f"runner wait {job} || true")
    assert "adduser $USER gpubox" in say(owner, "runner box", "mallory")
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('/run/gpubox/api.sock')"
    assert "PermissionError" in say(owner, f'python3 -c "{connect}"', "mallory", code=1)
