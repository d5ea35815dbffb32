"""Secrets: set by whom they belong to, in the environment of the jobs that were given them, and nowhere else."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tools
from builders import ADMIN, ANN, BOB, a_hall, a_launch, a_spec, plain_engine, write_attempt
from tools import wait_until

from runner import errors, files
from runner.box import vault
from runner.box.engines.systemd import Systemd
from runner.box.secrets import ByLauncher, Secrets
from runner.box.vault import Vault
from runner.job import supervisor
from runner.model import Resources
from runner.paths import StateDir

CANARY = "canary-4711-und-tschuess"


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    os.makedirs(tmp_path / "state/jobs")
    return StateDir(tmp_path / "state")


@pytest.fixture
def kept(tmp_path: Path) -> Vault:
    return Vault(str(tmp_path / "secrets"))


# --- the box's side ---


def test_a_secret_is_a_file_of_its_owner_alone(kept: Vault) -> None:
    kept.put(7, "KEY", b"one")
    kept.put(7, "KEY", b"two")
    found = {path: path.stat().st_mode & 0o777 for path in Path(kept.folder).rglob("*")}
    assert found == {Path(kept.of(7)): 0o700, Path(kept.of(7)) / "KEY": 0o600}
    assert kept.values(7, ["KEY", "OTHER"]) == {"KEY": "two"}
    assert abs(kept.names(7)["KEY"] - time.time()) < 60


def test_users_do_not_meet(kept: Vault) -> None:
    secrets = Secrets(kept)
    secrets.put(ANN.uid, "KEY", "ann's")
    with pytest.raises(errors.BadRequest, match="the secret KEY is not set") as refused:
        secrets.require(BOB.uid, ["KEY"])
    assert refused.value.hint == "`runner secret set KEY`"
    secrets.put(BOB.uid, "KEY", "bob's")
    with pytest.raises(errors.NotFound):
        secrets.remove(ADMIN.uid + 4000, "KEY")
    secrets.remove(BOB.uid, "KEY")
    secrets.require(ANN.uid, ["KEY"])
    assert kept.values(ANN.uid, ["KEY"]) == {"KEY": "ann's"}


@pytest.mark.parametrize("name", ["", "A-B", "1A", "../x", "A" * 65, "RUNNER_OUT", "CUDA_VISIBLE_DEVICES", "Ä", "A\n"])
def test_a_name_is_that_of_a_variable(kept: Vault, name: str) -> None:
    with pytest.raises(errors.BadRequest):
        Secrets(kept).put(7, name, CANARY)
    assert not os.path.exists(kept.folder)


@pytest.mark.parametrize("value", ["", "a\0b", "x" * (vault.VALUE_MAX + 1), "\ud800"])
def test_a_value_that_no_environment_takes_is_refused_without_being_repeated(kept: Vault, value: str) -> None:
    with pytest.raises(errors.BadRequest) as refused:
        Secrets(kept).put(7, "KEY", f"{CANARY}{value}" if value else "")
    assert CANARY not in refused.value.message + refused.value.hint
    assert kept.names(7) == {}


def test_one_user_has_so_many_and_no_more(kept: Vault) -> None:
    kept.put(7, "K0", b"x")
    for number in range(vault.SECRETS_MAX):
        Path(kept.of(7), f"K{number}").touch(0o600)
    with pytest.raises(errors.BadRequest, match="64 secrets already"):
        Secrets(kept).put(7, "KEY", "x")
    Secrets(kept).put(7, "K0", "x")
    Secrets(kept).put(8, "KEY", "x")


def test_what_the_disk_says_is_told_without_the_value(kept: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, data: bytes, mode: int = 0) -> None:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(errors.DiskFull) as refused:
        Secrets(kept).put(7, "KEY", CANARY)
    assert CANARY not in str(refused.value.as_json())


def test_the_launcher_is_asked_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Vault(str(tmp_path / "secrets"))

    def asked(engine: Systemd, request: str, patience: float | None, value: bytes | None = None) -> str:
        packet = request.encode() + (b"" if value is None else b"\n" + value)
        found = vault.REQUEST.fullmatch(packet)
        assert found is not None, request
        assert len(packet) < vault.PACKET_MAX
        return kept.answer(found)

    monkeypatch.setattr(Systemd, "_asked", asked)
    keeper = ByLauncher(Systemd(StateDir(tmp_path / "state"), Resources()))
    secrets = Secrets(keeper)
    longest = "x" * vault.VALUE_MAX
    secrets.put(0, "A" * 64, longest)
    secrets.put(7, "LINES", "a\nb\n")
    assert kept.values(0, ["A" * 64]) == {"A" * 64: longest}
    assert kept.values(7, ["LINES"]) == {"LINES": "a\nb\n"}
    assert list(secrets.listed(7)) == ["LINES"]
    secrets.remove(7, "LINES")
    with pytest.raises(errors.NotFound):
        secrets.remove(7, "LINES")
    assert secrets.listed(7) == {}


# --- into the job ---


def test_the_supervisor_puts_values_into_the_environment_alone(state: StateDir) -> None:
    kept = Vault(state.secrets)
    kept.put(7, "KEY", CANARY.encode())
    script = 'test "$KEY" = "$1" && echo same; tr "\\0" "\\n" </proc/$PPID/environ | grep -c "$1"; ls -l /proc/$$/fd/0'
    with plain_engine(state) as engine:
        engine.start([
            a_launch(state, ["sh", "-c", script, "sh", CANARY], secrets=["KEY"], vault=kept.of(7)),
            a_launch(state, ["true"], 2, secrets=["KEY", "GONE"], vault=kept.of(7)),
        ])  # fmt: skip
        keys = [(1, 1), (2, 1)]
        wait_until(lambda: all(each.exit is not None for each in engine.evidence(keys).values()))
        ends = [each.exit for each in engine.evidence(keys).values()]
    said = Path(state.job(1).attempt(1).log).read_text().splitlines()
    assert said[:2] == ["same", "0"]
    assert said[2].endswith("/dev/null")
    assert ends[1] is not None
    assert (ends[1].reason, ends[1].started) == ("cannot_exec", False)
    assert ends[1].detail == "A secret of this job is no longer set: GONE"


def test_on_a_provisioned_box_they_come_by_standard_input(state: StateDir) -> None:
    spec = json.loads(Path(write_attempt(state, a_launch(state, ["true"], secrets=["A", "B"])).spec).read_text())
    ours = os.dup(0)
    try:
        for handed in ({"A": "1", "B": "ä\udcff"}, {"A": "1", "B": "2", "C": "3"}):
            reader, writer = os.pipe()
            os.write(writer, json.dumps(handed).encode())
            os.close(writer)
            os.dup2(reader, 0)
            os.close(reader)
            assert supervisor._secrets(spec, handed=True) == {name: handed[name] for name in ("A", "B")}
            assert os.readlink("/proc/self/fd/0") == os.devnull, "nothing of it is left to be inherited"
    finally:
        os.dup2(ours, 0)
        os.close(ours)


# --- asked for ---


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"secrets": ["KEY"], "env": {"KEY": "x"}}, "KEY is given twice"),
        ({"secrets": ["KEY", "KEY"]}, "KEY is given twice"),
        ({"secrets": ["RUNNER_OUT"]}, "set by the box itself"),
        ({"secrets": ["a b"]}, "no name for a secret"),
    ],
)
def test_a_submission_names_them_once_and_rightly(tmp_path: Path, spec: dict[str, Any], said: str) -> None:
    with a_hall(tmp_path / "state") as hall, pytest.raises(errors.BadRequest, match=said):
        hall.submit("true", **spec)


def test_names_alone_are_in_a_spec(tmp_path: Path) -> None:
    with a_hall(tmp_path / "state") as hall:
        job = hall.submit("true", secrets=["KEY"], environment="base", who=ANN)
        hall.turn()
        (launch,) = hall.engine.launched
        assert (launch.spec["secrets"], launch.spec["uid"]) == (["KEY"], ANN.uid)
        assert launch.spec["vault"] == f"{tmp_path}/state/secrets/{ANN.uid}"
        again, _ = hall.wishes.rerun(ANN, job.id, None, "")
        assert hall.store.spec(hall.daemon.book.jobs[again.id].spec_id) == a_spec(
            "true", secrets=["KEY"], environment="base"
        )


# --- from end to end ---


@pytest.fixture
def told(box: tools.Box) -> tools.Box:
    """A box with a secret, whose value came by standard input."""
    done = subprocess.run(
        [*tools.CLI, "secret", "set", "KEY"],
        input=f"{CANARY}\n",
        capture_output=True,
        text=True,
        env=box.env,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return box


@pytest.mark.long
def test_a_secret_is_found_nowhere_but_in_its_file_and_in_the_jobs_environment(told: tools.Box, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text(
        "import hashlib, os, time\n"
        "print(hashlib.sha256(os.environ['KEY'].encode()).hexdigest(), flush=True)\n"
        "open(os.environ['RUNNER_OUT'] + '/done', 'w').close()\n"
        "time.sleep(600)\n"
    )
    job = told.run("submit", "-d", "--secret", "KEY", "--base", "train.py", cwd=project).strip()
    expected = subprocess.run(["sha256sum"], input=CANARY, capture_output=True, text=True, check=True).stdout.split()[0]
    wait_until(lambda: expected in told.run("logs", job), 20)
    carriers = [pid for pid in told.processes() if _holds(f"/proc/{pid}/environ")]
    lines = [pid for pid in told.processes() if _holds(f"/proc/{pid}/cmdline")]
    assert (len(carriers), lines) == (1, []), "the job's process, and no other; on no command line"
    assert told.run("secret").split()[2] == "KEY"
    shown = told.run("show", "--json", job) + told.run("secret", "list", "--json") + told.run("ps", "--json")
    assert CANARY not in shown
    assert json.loads(told.run("show", "--json", job))["spec"]["secrets"] == ["KEY"]
    again = told.run("rerun", "-d", job).strip()
    wait_until(lambda: expected in told.run("logs", again), 20)
    told.run("cancel", job, again)
    wait_until(lambda: not json.loads(told.run("ps", "--json", "--state", "running")), 20)
    told.run("pull", job, cwd=project)
    told.stop()
    found = [path for path in tmp_path.rglob("*") if path.is_file() and _holds(str(path))]
    assert [path.name for path in found] == ["KEY"], found
    assert (found[0].stat().st_mode & 0o777, found[0].parent.parent.name) == (0o600, "secrets")


def _holds(path: str) -> bool:
    try:
        return CANARY.encode() in Path(path).read_bytes()
    except OSError:
        return False


@pytest.mark.long
def test_what_is_not_set_is_refused_with_what_to_type(box: tools.Box, tmp_path: Path) -> None:
    done = box.call("submit", "-d", "--no-files", "--secret", "KEY", "--", "true", cwd=tmp_path)
    assert done.returncode == 64
    assert "the secret KEY is not set on this box" in done.stderr
    assert "`runner secret set KEY`" in done.stderr
    for words in (("secret", "set", f"KEY={CANARY}"), ("secret", "set", "KEY", CANARY)):
        done = box.call(*words)
        assert (done.returncode, "a secret's value is no argument" in done.stderr) == (64, True)
        assert CANARY not in done.stderr + done.stdout
    assert "no secret of yours is called KEY" in box.call("secret", "remove", "KEY").stderr


@pytest.mark.long
def test_on_a_terminal_it_is_asked_for_and_not_shown(box: tools.Box) -> None:
    ours, theirs = pty.openpty()
    command = subprocess.Popen(
        [*tools.CLI, "secret", "set", "KEY"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=box.env,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    while b"the value of KEY: " not in said:
        said += os.read(ours, 4096)
    os.write(ours, CANARY.encode() + b"\n")
    while True:
        try:
            said += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert command.wait(20) == 0, said
    assert CANARY.encode() not in said
    assert "KEY" in box.run("secret", "list")
