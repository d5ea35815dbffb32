"""A box that `setup.yml` made, in use: its people, its service, jobs of another user; on a host of the test bed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fake_nvml
import hosts
import pytest
from bed import box, sources
from bed.runs import Run
from fake_nvml import FakeNvml
from pip._internal.models.index import PyPI
from test_playbooks import PLAYBOOKS, Owner
from tools import ROOT, wait_until

pytestmark = pytest.mark.box
CANARY = "canary-7f3a'x"  # a password, with what a shell would trip over
DROP_INS = "/etc/systemd/system/gpubox-collector@.service.d"
EXPOSURE = {"gpubox": 2.0, "gpubox-collector@0": 2.0, "gpubox-launcher": 3.5, "gpubox-job-{}-1": 5.0}
PEOPLE = "useradd --create-home --groups gpubox ada; useradd --create-home --groups gpubox eve; useradd -m mallory"


@pytest.fixture(scope="module")
def owner(bed_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    """Of a box that was checked, made, and made again; and people on it."""
    hosts._need(box.TOOLS)
    with closing(box.Box(bed_run, "trixie")) as host:
        place = tmp_path_factory.mktemp("owner")
        owner = Owner(host, place)
        _wish(place)
        assert owner.setup("--check")["changed"] > 0
        done = owner.run(PLAYBOOKS / "setup.yml", "-vvv", "--diff")
        assert done.returncode == 0, done.stdout[-6000:]
        assert "canary" not in done.stdout + done.stderr
        host.run(f"{PEOPLE}; su - ada -c 'mkdir project'; su - eve -c 'mkdir project'")
        yield owner


def _wish(place: Path) -> None:
    """Variables beside the inventory: a proxy that everything is reached without, an authority, an index."""
    command = "openssl req -x509 -newkey ed25519 -nodes -keyout /dev/null -days 9 -subj /CN=stand-in -out"
    subprocess.run((*command.split(), str(place / "authority.pem")), check=True, capture_output=True)
    wishes: dict[str, Any] = {"gpubox_ca_file": str(place / "authority.pem"), "gpubox_package_index": PyPI.simple_url}
    wishes["gpubox_notify"] = {
        "webhook": f"http://127.0.0.1:8/{CANARY}",
        "command": "/usr/bin/tee /var/lib/gpubox/told",
    }
    if not sources.environment():  # else this machine needs its own
        wishes |= {"gpubox_proxy": f"http://ada:{CANARY}@127.0.0.1:9/", "gpubox_no_proxy": _all_of(PyPI.simple_url)}
    (place / "group_vars").mkdir()
    (place / "group_vars/boxes.yml").write_text(json.dumps(wishes))


def _all_of(url: str) -> str:
    """What is reached without a proxy, so that an index and its files are: all of its top level domain."""
    return f".{urlsplit(url).netloc.rpartition('.')[2]},127.0.0.1"


def say(owner: Owner, command: str, user: str = "ada", code: int | None = 0) -> str:
    """What a person's command printed, in a project of theirs."""
    done = owner.host.ssh(f"su - {user} -c {shlex.quote(f'cd project 2>/dev/null; {command}')}")
    assert code in (None, done.returncode), done.stdout + done.stderr
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


def test_jobs_reach_the_network_as_the_box_does(owner: Owner) -> None:
    said = say(owner, "runner submit --base -- env").splitlines()
    assert {f"UV_DEFAULT_INDEX={PyPI.simple_url}", "REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt"} <= set(said)
    if not sources.environment():
        assert f"https_proxy=http://ada:{CANARY}@127.0.0.1:9/" in said
    assert owner.host.run("stat --format='%U %a' /etc/gpubox/network.env") == "root 600\n"
    assert "canary" not in owner.host.run("systemctl show gpubox.service; journalctl --boot --no-pager")
    ours = owner.host.run("cat /usr/local/share/ca-certificates/gpubox.crt").strip()
    assert ours in owner.host.run("cat /etc/ssl/certs/ca-certificates.crt")


def test_the_service_tells_what_happens_and_shows_nobody_where(owner: Owner) -> None:
    done = owner.host.ssh("runner notices test")
    assert done.stdout.splitlines()[:2] == [
        "not sent  webhook: 127.0.0.1: Connection refused",
        "          is notify_webhook right, and may the box reach it?",
    ]
    assert "sent  command: /usr/bin/tee took it" in done.stdout
    assert json.loads(owner.host.run("cat /var/lib/gpubox/told"))["kind"] == "test"
    assert owner.host.run("stat --format='%U %a' /etc/gpubox/notify.env") == "root 600\n"
    assert CANARY not in owner.host.run("runner box --json; cat /var/lib/gpubox/daemon.log /etc/gpubox/box.toml")
    assert "only an administrator may do this" in say(owner, "runner notices test", code=None)


def another(place: Path, number: int) -> Path:
    """The setup.yml of a checkout that is a little further."""
    checkout = place / str(number)
    for name in ("playbooks", "runner", "dashboard", "requirements"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", checkout)
    with open(checkout / "runner/__init__.py", "a") as file:
        file.write(f"# {number}\n")
    return checkout / "playbooks/setup.yml"


@pytest.mark.slow
def test_a_job_is_not_disturbed_by_another_version(owner: Owner, tmp_path: Path) -> None:
    """And the one that it runs from stays, for as long as it runs."""
    script = 'while [ ! -e "$RUNNER_OUT/go" ]; do sleep 0.05; done; exit 5'
    job = say(owner, f"runner submit -d --base -- sh -c {shlex.quote(script)}").split()[-1]
    wait_until(lambda: "running" in say(owner, "runner ps"), 20)
    first = owner.host.run("ls /opt/gpubox").strip()
    owner.host.run(
        "cd /opt/gpubox; mkdir older old; touch older/requirements.txt old/requirements.txt;"
        "touch -d 2020-01-01 older/requirements.txt"
    )
    further = another(tmp_path, 1)
    done = owner.run(further)
    assert done.returncode == 0, done.stdout[-6000:]
    assert {first, "old"} < set(owner.host.run("ls /opt/gpubox").split())
    assert "older" not in owner.host.run("ls /opt/gpubox").split()
    assert "running" in say(owner, "runner ps")
    owner.host.run(f"touch /var/lib/gpubox/jobs/{job}/out/go")
    say(owner, f"runner wait {job}", code=5)
    assert owner.run(further).returncode == 0
    assert "changed=0" in owner.run(further).stdout
    owner.setup()
    assert len(owner.host.run("ls /opt/gpubox").split()) == 2, "this one, and the one before"


def test_a_service_is_not_served_by_hand(owner: Owner) -> None:
    assert "sudo systemctl restart gpubox" in say(owner, "runner serve", code=77)
    assert "sudo systemctl stop gpubox" in say(owner, "runner serve --stop", code=77)


def test_members_are_members_and_strangers_strangers(owner: Owner) -> None:
    job = say(owner, "runner submit -d --base -- sleep 600").split()[-1]
    assert "you may not cancel it" in say(owner, f"runner cancel {job}", "eve", code=77)
    assert "only an administrator" in say(owner, "runner clean --older-than 0", "eve", code=77)
    owner.host.run(f"runner cancel {job}")
    say(owner, f"runner wait {job} || true")
    assert "adduser $USER gpubox" in say(owner, "runner box", "mallory")
    connect = "import socket; socket.socket(socket.AF_UNIX).connect('/run/gpubox/api.sock')"
    assert "PermissionError" in say(owner, f'python3 -c "{connect}"', "mallory", code=1)


@pytest.mark.parametrize("unit", EXPOSURE)
def test_units_are_closed_as_far_as_they_can_be(owner: Owner, unit: str, figure: Any) -> None:
    job = say(owner, "runner submit -d --base -- sleep 600").split()[-1]
    wait_until(lambda: "running" in say(owner, f"runner show {job}"), 20)
    said = owner.host.run(f"systemd-analyze security --no-pager {unit.format(job)}.service")
    owner.host.run(f"runner cancel {job}")
    figure(said.strip().splitlines()[-1].removeprefix("→ "))
    assert float(re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)[0]) <= EXPOSURE[unit]


# --- GPUs ------------------------------------------------------------------------------------------------------------


class Driver(FakeNvml):
    """The fake driver, as the host has it."""

    def __init__(self, host: box.Box, folder: Path) -> None:
        self._host: box.Box | None = None
        super().__init__(folder, calls=False)
        self.add("3090")
        self._host = host
        multiarch = "/usr/lib/$(python3 -c 'import sysconfig; print(sysconfig.get_config_var(\"MULTIARCH\"))')"
        host.put(fake_nvml.library() / "libnvidia-ml.so.1", "/tmp/libnvidia-ml.so.1")
        host.run(
            f"install /tmp/libnvidia-ml.so.1 {multiarch}; mkdir -p /srv/fake {DROP_INS};"
            "mount -t tmpfs tmpfs /proc/driver; mkdir -p /proc/driver/nvidia/gpus/0000:01:00.0;"
            "echo 570 >/proc/driver/nvidia/version; cat >/proc/driver/nvidia/gpus/0000:01:00.0/information",
            text=f"GPU UUID: \t {self.gpus[0].uuid}\nDevice Minor: \t 0\n",
        )
        drop_in = "[Service]\nEnvironment=FAKE_NVML=/srv/fake/nvml\n"
        host.run(
            "cat >/etc/systemd/system/gpubox-collector@.service.d/fake.conf; systemctl daemon-reload", text=drop_in
        )
        self.write()

    def write(self) -> None:
        super().write()
        if self._host is not None:
            text = self.script.read_text()
            self._host.run("cat >/srv/fake/new && mv /srv/fake/new /srv/fake/nvml", text=text)


@pytest.fixture(scope="module")
def driver(owner: Owner, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    driver = Driver(owner.host, tmp_path_factory.mktemp("driver"))
    owner.host.run(
        "systemctl stop gpubox-launcher.service; systemctl restart gpubox"
    )  # what is mounted is not for these
    wait_until(lambda: "3090" in say(owner, "runner gpus"), 20)
    return driver


def test_whose_a_process_is_says_its_unit(owner: Owner, driver: Driver) -> None:
    """Nothing else tells it: it has no environment, and the daemon is new."""
    job = say(owner, "runner submit -d --base --gpus 1 -- env -i sleep 601").split()[-1]
    pid = wait_until(lambda: owner.host.ssh("pgrep -u gpubox-job sleep").stdout.strip(), 20)
    owner.host.run("systemctl kill --signal=KILL gpubox.service")
    driver.gpus[0].process(int(str(pid)), 4 << 30)
    wait_until(lambda: f"job {job}" in say(owner, "runner gpus --processes", code=None), 20)
    held = json.loads(say(owner, "runner gpus --json"))["gpus"][0]
    assert (held["state"], held["processes"][0]["job"]) == ("busy", int(job))
    driver.gpus[0].ends(int(str(pid)))
    owner.host.run(f"runner cancel {job}")


def test_a_process_by_hand_is_adopted(owner: Owner, driver: Driver) -> None:
    owner.host.run("systemd-run --quiet --uid=ada --unit=by-hand sleep 602")
    pid = owner.host.run("systemctl show --value --property=MainPID by-hand").strip()
    driver.gpus[0].process(int(pid), 4 << 30)
    wait_until(lambda: "foreign" in say(owner, "runner gpus"), 20)
    assert "is ada's; you may not adopt it" in say(owner, f"runner adopt {pid}", "eve", code=77)
    job = say(owner, f"runner adopt {pid}").strip()
    wait_until(lambda: "watching process" in say(owner, f"runner logs {job}"), 20)
    owner.host.run("systemctl stop by-hand")
    driver.gpus[0].ends(int(pid))
    say(owner, f"runner wait {job}")


def test_a_collector_that_hangs_is_ended_by_systemd(owner: Owner, driver: Driver) -> None:
    driver.hang()
    wait_until(lambda: "the driver does not answer" in say(owner, "runner gpus"), 20)
    wait_until(lambda: "Watchdog timeout" in owner.host.run("journalctl --unit='gpubox-collector@*'"), 30)
    driver.hang(False)
    wait_until(lambda: "free" in say(owner, "runner gpus"), 30)
    assert owner.host.run("systemctl --failed --no-legend") == ""
