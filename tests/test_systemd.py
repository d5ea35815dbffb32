"""The engine of a provisioned box, on a host of the test bed: real units, another user, the launcher between."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from typing import Any

import hosts
import launched
import pytest
from bed import box
from bed.runs import Run
from builders import a_launch
from launched import STATE, Remote
from test_engines import EngineContract
from tools import ROOT, wait_until

from runner.box.engines import Launch, Stop
from runner.model import Evidence
from runner.paths import StateDir

pytestmark = pytest.mark.box
BUILD = {"launch_id": "build", "job": 0, "attempt": 0}
EXPOSURE = {"gpubox.service": 2.0, "gpubox-collector@.service": 2.0, "gpubox-launcher.service": 3.5, "job": 5.0}


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def ready(bed_run: Run, request: pytest.FixtureRequest) -> Iterator[box.Box]:
    hosts._need(box.TOOLS)
    with closing(box.Box(bed_run, request.param)) as host:
        launched.furnish(host, ROOT)
        yield host


@pytest.fixture
def place(ready: box.Box) -> Iterator[box.Box]:
    """The host, with a launcher and no jobs."""
    yield ready
    ready.run("systemctl kill --signal KILL 'gpubox-job-*' 'gpubox-env-*' 2>&1; systemctl reset-failed; true")
    wait_until(lambda: not ready.run("systemctl list-units --plain --no-legend 'gpubox-job-*' 'gpubox-env-*'").strip())
    ready.run(f"rm -rf {STATE}/* {STATE}/.[a-z]*")


@pytest.fixture
def state() -> StateDir:
    return StateDir(STATE)


@pytest.fixture
def engine(place: box.Box, state: StateDir) -> Iterator[Remote]:
    with closing(Remote(place, state)) as engine:
        yield engine


def see(engine: Remote, job: int = 1, attempt: int = 1) -> Evidence:
    return engine.evidence([(job, attempt)])[job, attempt]


def ended(engine: Remote, job: int = 1) -> Evidence:
    return wait_until(lambda: see(engine, job) if see(engine, job).exit is not None else None, 20)  # type: ignore[return-value]


def running(engine: Remote, state: StateDir, *command: str, job: int = 1, **values: Any) -> Launch:
    launch = a_launch(state, command or ["sleep", "600"], job, **values)
    engine.start([launch])
    wait_until(lambda: see(engine, job).started_at, 20, engine.said)
    return launch


def as_daemon(place: box.Box, script: str, text: str = "") -> str:
    return place.run(f"setpriv --reuid gpubox --regid gpubox --clear-groups sh -c {shlex.quote(script)}", text=text)


def say(engine: Remote, state: StateDir, script: str) -> str:
    """What a job printed."""
    engine.start([a_launch(state, ["sh", "-c", script])])
    ended(engine)
    return engine.read(f"{state.job(1).attempt(1)}/log")


class TestSystemd(EngineContract):
    @pytest.fixture(autouse=True)
    def on(self, place: box.Box) -> None:
        self.place = place

    def engine(self, state: StateDir) -> AbstractContextManager[Remote]:
        return closing(Remote(self.place, state))

    def exists(self, path: str) -> bool:
        return self.place.ssh(f"test -e {path}").returncode == 0


# --- whose is what ---


def test_a_job_is_the_jobs_user_and_can_become_nobody_else(engine: Remote, state: StateDir) -> None:
    said = say(
        engine, state, "id -un; id -Gn; grep -E 'Cap(Prm|Eff|Inh|Amb)|NoNewPrivs' /proc/self/status; echo $HOME; umask"
    )
    assert said.split("\n")[:2] == ["gpubox-job", "gpubox-job"]
    assert re.findall(r"Cap\w+:\s*(\w+)", said) == ["0" * 16] * 4
    assert re.findall(r"NoNewPrivs:\s*(\d)", said) == ["1"]
    assert said.split("\n")[-3:-1] == ["/var/lib/gpubox-job", "0077"]


def test_a_job_has_the_three_usual_descriptors(engine: Remote, state: StateDir) -> None:
    script = "import os; print([fd for fd in range(3, 256) if os.path.exists(f'/proc/self/fd/{fd}')])"
    engine.start([a_launch(state, ["python3", "-c", script])])
    ended(engine)
    assert engine.read(f"{state.job(1).attempt(1)}/log") == "[]\n"


@pytest.mark.parametrize("name", ["lock", "log", "started", "spec", "exit", "cancel"])
def test_a_job_can_not_touch_its_control_files(engine: Remote, state: StateDir, name: str) -> None:
    control = state.job(1).attempt(1)
    tries = (f"echo x >> {control}/{name}", f"rm {control}/{name}", f"cat {control}/{name}", f"mv {control} {control}x")
    said = say(engine, state, "; ".join(f"({one}) 2>/dev/null && echo DONE" for one in tries))
    assert "DONE" not in said
    assert see(engine).exit is not None


def test_a_job_writes_its_own_folders_and_no_other(engine: Remote, state: StateDir, place: box.Box) -> None:
    places = (state.job(1).out, state.job(1).checkpoint, "/var/lib/gpubox-job", "/srv/gpubox/data", "/tmp", "/dev/shm")
    others = (state, state.jobs, state.job(1), state.envs, "/etc", "/usr/lib/gpubox", "/var/tmp/..", "/run", "/root")
    said = say(engine, state, "; ".join(f"touch {one}/x 2>/dev/null && echo {one}" for one in (*places, *others)))
    assert said.split() == list(places)
    assert place.ssh("test -e /tmp/x -o -e /dev/shm/x").returncode != 0, "these are the job's alone"


def test_a_unit_is_as_the_template_says(engine: Remote, state: StateDir, place: box.Box) -> None:
    running(engine, state, memory_bytes=1 << 30, cpus=3)
    said = dict(line.split("=", 1) for line in place.run("systemctl show gpubox-job-1-1.service").splitlines())
    expected = {
        "Slice": "gpubox-jobs.slice", "User": place.run("id -u gpubox").strip(), "NoNewPrivileges": "yes",
        "DevicePolicy": "closed", "MemoryMax": str(1 << 30), "CPUWeight": "300", "TasksMax": "16384",
        "KillMode": "control-group", "ProtectSystem": "strict", "PrivateTmp": "yes", "OOMPolicy": "continue",
        "CapabilityBoundingSet": "cap_kill cap_setgid cap_setuid", "Restart": "no", "TimeoutStopUSec": "25s",
    }  # fmt: skip
    assert {name: said.get(name, "") for name in expected} == expected
    assert "nvidia" not in said.get("DeviceAllow", "")
    assert "gpubox.service" in said["Before"].split(), "when the box goes down the daemon goes first"


# --- lives and deaths ---


def test_what_a_killed_supervisor_leaves_goes_with_its_unit(engine: Remote, state: StateDir, place: box.Box) -> None:
    launch = running(engine, state, "sh", "-c", "trap '' TERM; setsid sleep 600 & sleep 601")
    place.run(f"kill -9 {see(engine).supervisor}")
    wait_until(lambda: not see(engine).alive)
    seen = wait_until(
        lambda: engine.stop([Stop(launch.key, launch.launch_id, fence=True, ran=True)]) or see(engine).exit
    )
    # In a container, a unit of systemd 252 sees the kernel's boot id instead of the container's.
    assert seen.reason in ("supervisor_died", "reboot")  # type: ignore[union-attr]
    assert place.ssh(LIVING).stdout == ""


def test_leftovers_of_a_job_end_with_it(engine: Remote, state: StateDir, place: box.Box) -> None:
    engine.start([a_launch(state, ["sh", "-c", "setsid env -i sh -c 'trap \"\" TERM; sleep 600' & sleep 0.2; exit 5"])])
    end = ended(engine).exit
    assert end is not None
    assert (end.exit_code, end.stuck) == (5, ())
    assert place.ssh(LIVING).stdout == ""


def test_a_job_that_ignores_term_is_killed(engine: Remote, state: StateDir) -> None:
    launch = running(engine, state, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
    wait_until(lambda: engine.read(f"{state.job(1).attempt(1)}/log"))
    engine.stop([Stop(launch.key, launch.launch_id, grace=0.2)])
    end = ended(engine).exit
    assert end is not None
    assert (end.reason, end.signal) == ("cancelled", 9)


def test_a_stopped_unit_is_recorded_as_the_boxs_doing(engine: Remote, state: StateDir, place: box.Box) -> None:
    """As at a shutdown: the job gets TERM and its grace, and its end is on disk."""
    running(engine, state, "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    wait_until(lambda: engine.read(f"{state.job(1).attempt(1)}/log"))
    place.run("systemctl stop gpubox-job-1-1.service")
    end = see(engine).exit
    assert end is not None
    assert (end.exit_code, end.reason) == (7, "reboot")


def test_jobs_outlive_the_launcher(engine: Remote, state: StateDir, place: box.Box) -> None:
    running(engine, state, "sh", "-c", "while [ ! -e go ]; do sleep 0.05; done")
    place.run("systemctl restart gpubox-launcher.service")
    place.run(f"touch {state.job(1).out}/go")
    end = ended(engine).exit
    assert end is not None
    assert end.exit_code == 0


def test_nothing_is_left_of_what_ended(engine: Remote, state: StateDir, place: box.Box) -> None:
    for job in range(1, 6):
        engine.start([a_launch(state, ["false"], job)])
    for job in range(1, 6):
        ended(engine, job)
    wait_until(lambda: not place.run("systemctl list-units --all --plain --no-legend 'gpubox-job-*'").strip())
    assert place.run("ls /sys/fs/cgroup/gpubox.slice/gpubox-jobs.slice | grep -c gpubox-job || true").strip() == "0"


def test_the_same_attempt_is_not_started_twice(engine: Remote, state: StateDir) -> None:
    launch = running(engine, state)
    engine.start([launch])
    wait_until(lambda: list(engine.refusals()) == [(1, 1)] or engine.said())
    assert see(engine).alive


def test_a_command_that_the_jobs_user_may_not_run_is_told(engine: Remote, state: StateDir) -> None:
    engine.start([a_launch(state, ["/root/secret"])])
    end = ended(engine).exit
    assert end is not None
    assert (end.reason, end.started) == ("cannot_exec", False)


def test_a_refusal_is_told_and_the_attempt_fenced(engine: Remote, state: StateDir) -> None:
    launch = a_launch(state, ["true"], gpus=["GPU-00000000-1111"])
    engine.start([launch])
    assert wait_until(engine.refusals) == [(1, 1)]
    assert "no unit could be started" in engine.said()[0]
    engine.stop([Stop(launch.key, launch.launch_id, fence=True)])
    assert see(engine).abandoned


# --- the other verbs ---


def test_a_tree_is_given_away_with_all_that_is_in_it(engine: Remote, state: StateDir, place: box.Box) -> None:
    tree = f"{state}/trees/1"
    as_daemon(
        place, f"mkdir -p {tree}/a/b; cd {tree}; echo hi > a/b/f; chmod 755 a/b/f; ln -s /etc/shadow to; ln -s a in"
    )
    shadow = place.run("stat -c %U:%G:%a:%Z /etc/shadow")
    assert engine.packet("make-tree 1 1") == "ok"
    owners = place.run(f"find {tree} -mindepth 1 -printf '%u %P %m\\n' | sort").splitlines()
    assert owners == [f"gpubox-job {each}" for each in ("a 755", "a/b 755", "a/b/f 755", "in 777", "to 777")]
    assert place.run(f"stat -c %U {tree}") == "gpubox-job\n"
    assert place.run("stat -c %U:%G:%a:%Z /etc/shadow") == shadow


def test_a_program_that_would_change_its_user_is_not_given_away(
    engine: Remote, state: StateDir, place: box.Box
) -> None:
    as_daemon(place, f"mkdir {state}/trees/1; cp /bin/true {state}/trees/1/x; chmod 4755 {state}/trees/1/x")
    assert engine.packet("make-tree 1 1").startswith("no ")
    assert place.run(f"stat -c %U {state}/trees/1/x") == "gpubox\n"


def test_what_was_hidden_is_removed(engine: Remote, state: StateDir, place: box.Box) -> None:
    say(engine, state, "mkdir -p d/e; touch d/e/f; chmod 500 d/e d; ln -s / root")
    as_daemon(place, f"mv {state.job(1).out} {state.job(1)}/.gone-out-1")
    assert engine.packet("remove 1 1") == "ok"
    assert place.run(f"ls -A {state.job(1)}").split() == ["1", "checkpoint"]
    assert place.ssh("test -e /etc/passwd").returncode == 0


def test_outputs_are_read_as_their_owner(engine: Remote, state: StateDir) -> None:
    say(engine, state, "mkdir -m 700 d; umask 077; echo weights > d/model; ln -s /etc/shadow s; ln -s ../../1/spec t")
    listing, contents = engine.outputs(1, ["d/model", "s", "../1/spec", "/etc/shadow", "d"])
    assert [each[0] for each in listing["outputs"]] == ["d/model"]
    assert set(listing["links"]) == {"s", "t"}
    assert contents == ["weights\n", None, None, None, None]


def test_an_environment_is_built_as_an_attempt(engine: Remote, state: StateDir, place: box.Box) -> None:
    name = "0123456789abcdef"
    made, control = f"{state.envs}/{name}", f"{state.builds}/{name}"
    spec = a_launch(state, ["sh", "-c", "id -un > made"], directory=f"{made}/venv").spec
    as_daemon(
        place, f"mkdir {made} {control}; chmod 711 {made}; umask 077; cat > {control}/spec", json.dumps(spec | BUILD)
    )
    assert engine.packet(f"build-env {name}") == "ok"
    wait_until(lambda: place.ssh(f"test -e {control}/exit").returncode == 0)
    assert json.loads(place.run(f"cat {control}/exit"))["exit_code"] == 0
    assert place.run(f"cat {made}/venv/made") == "gpubox-job\n"


# --- a daemon that was taken over, and everybody else ---


@pytest.mark.parametrize("what", ["cat /proc/PID/environ", "cat /proc/PID/maps", "head -c1 /proc/PID/mem"])
def test_the_daemon_can_not_reach_into_a_supervisor(engine: Remote, state: StateDir, place: box.Box, what: str) -> None:
    """They are the same user, but the supervisor may become another."""
    running(engine, state)
    with pytest.raises(AssertionError, match="Permission denied"):
        as_daemon(place, what.replace("PID", str(see(engine).supervisor)))


HOLD = """
import socket, time
link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
link.connect("/run/gpubox-launcher.sock")
link.send(b"read-outputs 1 1")
held = socket.recv_fds(link, 100, 1)
time.sleep(600)
"""


LIVING = "pgrep --runstates R,S,D -u gpubox-job"  # the launcher buries its dead when it is asked the next time


@pytest.mark.parametrize("what", ["maps", "mem", "environ"])
def test_a_job_can_not_reach_into_who_reads_outputs(engine: Remote, state: StateDir, place: box.Box, what: str) -> None:
    """They are the same user, but the reader is of the launcher's unit."""
    say(engine, state, "true")
    place.run(f"systemd-run --quiet --uid=gpubox --unit=holds python3 -c {shlex.quote(HOLD)}")
    pid = wait_until(lambda: place.ssh(LIVING).stdout.strip(), 20)
    as_job = "setpriv --reuid gpubox-job --regid gpubox-job --clear-groups"
    assert "Permission denied" in place.ssh(f"{as_job} head -c1 /proc/{pid}/{what}").stderr
    place.run("systemctl stop holds")
    wait_until(lambda: not place.ssh(LIVING).stdout, 20)


@pytest.mark.parametrize("user", ["gpubox-job", "nobody"])
def test_nobody_but_the_daemon_reaches_the_launcher(place: box.Box, user: str) -> None:
    ask = "import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect('/run/gpubox-launcher.sock')"
    done = place.ssh(f'setpriv --reuid {user} --clear-groups python3 -c "{ask}"')
    assert "PermissionError" in done.stderr


def test_a_hostile_daemon_gets_nothing_but_its_jobs(engine: Remote, place: box.Box, state: StateDir) -> None:
    """Folders that lead elsewhere, specs that ask for more, packets that are none: nothing of it changes the host."""
    watched = "find /etc /root /usr/lib/gpubox /home -printf '%p %u %m %s %C@\\n' | sort | sha256sum"
    before = place.run(watched)
    place.put(ROOT / "tests/hostile.py", "/tmp/hostile.py")
    said = as_daemon(place, f"python3 /tmp/hostile.py {state}")
    assert json.loads(said) == {"wrong": []}
    assert place.run(watched) == before
    users = set(place.run("ps -eo user= ").split())
    assert "gpubox-job" not in users
    assert place.run("systemctl is-active gpubox-launcher.socket").strip() == "active"


@pytest.mark.parametrize("unit", EXPOSURE)
def test_units_are_closed_as_far_as_they_can_be(
    engine: Remote, state: StateDir, place: box.Box, unit: str, figure: Any
) -> None:
    if unit == "job":
        running(engine, state)
        said = place.run("systemd-analyze security --no-pager gpubox-job-1-1.service")
    else:
        path = ROOT / "playbooks/roles/runner/templates" / f"{unit}.j2"
        rendered = re.sub(r"{%.*?%}\n|IPAddressAllow={{.*\n", "", launched.rendered(path.read_text()))
        place.run(f"cat > /tmp/{unit}", text=rendered)
        said = place.run(f"systemd-analyze security --no-pager --offline=yes /tmp/{unit}")
    figure(said.strip().splitlines()[-1].removeprefix("→ "))
    score = float(re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)[0])
    assert score <= EXPOSURE[unit]


# --- secrets ---


def test_a_secret_is_in_its_jobs_environment_and_out_of_the_daemons_reach(
    engine: Remote, state: StateDir, place: box.Box
) -> None:
    canary = "canary-4711"
    assert engine.packet(f"set-secret 1000 KEY\n{canary}") == "ok"
    assert engine.packet("list-secrets 1000").startswith("ok KEY=")
    assert engine.packet("get-secret 1000 KEY") == engine.packet("read-secrets 1000") == "no this is no request"
    assert place.run("stat -c '%a %U' /var/lib/gpubox-secrets").split() == ["700", "root"]
    script = "echo ${#KEY} $(printf %s $KEY | sha256sum); readlink /proc/$$/fd/0; exec sleep 600"
    running(engine, state, "sh", "-c", script, secrets=["KEY"], uid=1000)
    said = wait_until(lambda: re.search(r"(.*)\n(/dev/null)\n", engine.read(f"{state.job(1).attempt(1)}/log")))
    assert said[1].split()[:2] == [str(len(canary)), hashlib.sha256(canary.encode()).hexdigest()]  # type: ignore[index]
    supervisor = see(engine).supervisor
    vault, proc = "/var/lib/gpubox-secrets", f"/proc/{supervisor}"
    tries = (f"cat {proc}/environ", f"cat {proc}/fd/0", f"head -c 1 {proc}/mem", f"cat {proc}/maps", f"ls {vault}",
             f"cat {vault}/1000/KEY")  # fmt: skip
    tried = "; ".join(f"({one}) >/dev/null 2>&1 && echo DONE {one}" for one in tries)
    assert as_daemon(place, f"{tried}; true") == ""
    shown = place.run(
        "systemctl show gpubox-job-1-1.service; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl -o export"
    )
    assert canary not in shown
    found = place.run("grep -rlsF --file=- /var /etc /run /tmp /srv || true", text=canary).split()
    assert found == ["/var/lib/gpubox-secrets/1000/KEY"]
    engine.start([a_launch(state, ["true"], 2, secrets=["KEY"], uid=1001)])
    end = ended(engine, 2).exit
    assert end is not None
    assert (end.reason, end.detail) == ("cannot_exec", "A secret of this job is no longer set: KEY")
    assert engine.packet("remove-secret 1000 KEY") == "ok removed"
