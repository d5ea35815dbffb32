"""A box that `setup.yml` made, from a laptop: one command trusts it, one trains on it; on a host of the test bed."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

import hosts
import pytest
import tools
from bed import box
from bed.runs import Run
from sshd import Laptop
from test_playbooks import Owner

pytestmark = pytest.mark.box
PEOPLE = "useradd --create-home --groups gpubox ada; useradd --create-home --groups gpubox eve; useradd -m mallory"


@pytest.fixture(scope="module")
def owner(bed_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    """Of a box with people on it."""
    hosts._need(box.TOOLS)
    with closing(box.Box(bed_run, "trixie")) as host:
        owner = Owner(host, tmp_path_factory.mktemp("owner"))
        owner.setup()
        host.run(PEOPLE)
        yield owner


def lets_in(owner: Owner, user: str, laptop: Laptop) -> None:
    """Over ssh."""
    owner.host.run(f"install -d -m 700 -o {user} -g {user} ~{user}/.ssh")
    owner.host.run(f"echo {shlex.quote(laptop.key)} >~{user}/.ssh/authorized_keys")


@pytest.fixture(scope="module")
def laptop(owner: Owner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """ada's, that may log in as her; eve has her key on it, too."""
    made = Laptop(tmp_path_factory.mktemp("laptop") / "home")
    for user in ("ada", "eve"):
        lets_in(owner, user, made)
    made.config.write_text(f"Host gpubox\n  HostName {owner.host.address}\n  HashKnownHosts no\n")
    keys = owner.host.run("cat /etc/ssh/ssh_host_*_key.pub").splitlines()
    made.known.write_text("".join(f"{owner.host.address} {' '.join(key.split()[:2])}\n" for key in keys))
    yield made
    made.end()


def test_one_command_trusts_the_box_and_one_trains_there(owner: Owner, laptop: Laptop) -> None:
    said = laptop.run("box", "add", "ada@gpubox")
    assert [line.split()[:2] for line in said.splitlines()] == [["gpubox", "direct"], ["gpubox", "tunnel"]]
    assert said.count("version") == 2
    project = laptop.home / "project"
    project.mkdir()
    (project / "train.py").write_text("import os; open(os.environ['RUNNER_OUT'] + '/done', 'w').write('yes')\n")
    for way in ("direct", "tunnel"):
        laptop.run("submit", "--base", "train.py", cwd=project, GPUBOX_WAY=way)
    assert [path.read_text() for path in project.glob("runs/*/done")] == ["yes", "yes"]
    assert "ada" in laptop.run("ps")
    key = owner.host.run("stat --format='%a %U' /var/lib/gpubox/certificate /var/lib/gpubox/certificate/box.pem")
    assert key.split() == ["700", "gpubox", "600", "gpubox"]


def test_who_has_a_token_of_hers_may_what_she_may(owner: Owner, laptop: Laptop) -> None:
    laptop.run("box", "add", "--name", "ada", "ada@gpubox")
    laptop.run("box", "add", "--name", "eve", "eve@gpubox")
    laptop.run("box", "add", "--name", "look", "--scope", "read", "ada@gpubox")
    assert "can't give admin" in laptop.call("box", "add", "--name", "root", "--scope", "admin", "ada@gpubox").stderr
    job = laptop.run("submit", "-d", "--no-files", "--base", "--box", "ada", "--", "sleep", "600").split()[-1]
    for name, said in (("eve", "you may not cancel it"), ("look", "may look, but not change")):
        done = laptop.call("cancel", "--box", name, job)
        assert (done.returncode, said in done.stderr) == (77, True), done.stderr
    laptop.run("cancel", "--box", "ada", job)
    assert "only an administrator" in laptop.call("drain", "--box", "ada").stderr
    owner.host.run("gpasswd --delete eve gpubox")
    done = laptop.call("ps", "--box", "eve")
    assert (done.returncode, "eve is not in it" in done.stderr) == (77, True), done.stderr
    owner.host.run("gpasswd --add eve gpubox")


def test_who_is_no_member_is_told_so_and_gets_no_token(owner: Owner, laptop: Laptop) -> None:
    lets_in(owner, "mallory", laptop)
    done = laptop.call("box", "add", "--name", "mallory", "mallory@gpubox")
    assert (done.returncode, "sudo adduser mallory gpubox" in done.stderr) == (77, True), done.stdout + done.stderr


def test_a_data_set_is_read_by_jobs_and_changed_by_whom_it_belongs_to(owner: Owner, laptop: Laptop) -> None:
    for name in ("ada", "eve"):
        laptop.run("box", "add", "--name", name, f"{name}@gpubox")
    (laptop.home / "set").mkdir()
    (laptop.home / "set" / "x").write_text("data\n")
    laptop.run("data", "push", "--box", "ada", str(laptop.home / "set"))
    tries = ("echo x >x", "rm x", "touch y", "chmod u+w x", "rm ../set", "touch ../y", "mv $PWD /tmp/z")
    script = "; ".join(f"({one}) 2>/dev/null && echo DONE" for one in tries)
    script = f"cd $RUNNER_DATA/set && cat x; {script}; touch $RUNNER_DATA/shared/made && echo shared"
    submit = ["submit", "--box", "eve", "--no-files", "--base", "--", "sh", "-c", script]
    assert laptop.run(*submit, cwd=laptop.home).split() == ["data", "shared"]
    for words, said in (
        (("push", "--box", "eve", str(laptop.home / "set")), "set is ada's"), (("rm", "--box", "eve", "set"), "ada's"),
        (("link", "--box", "ada", "etc", "/etc"), "only an administrator"),
    ):  # fmt: skip
        done = laptop.call("data", *words)
        assert (done.returncode, said in done.stderr) == (77, True), done.stderr
    laptop.run("data", "pull", "--box", "eve", "set", str(laptop.home / "back"))
    assert (laptop.home / "back" / "x").read_text() == "data\n"
    owner.host.run("mkdir -p /srv/gpubox/data/there && runner data link there /srv/gpubox/data/there")
    assert "homes are closed" in owner.host.ssh("runner data link home /root").stderr
    assert "there" in laptop.run("data", "--box", "eve")
    laptop.run("data", "rm", "--box", "ada", "set")
    assert owner.host.run("ls /var/lib/gpubox/data-sets/versions") == ""


def test_a_secret_is_its_owners_and_root_keeps_it(owner: Owner, laptop: Laptop) -> None:
    canary = "canary-4711"
    for name in ("ada", "eve"):
        laptop.run("box", "add", "--name", name, f"{name}@gpubox")
    setting = [sys.executable, "-P", "-m", "runner", "secret", "set", "--box", "ada", "KEY"]
    done = subprocess.run(setting, input=f"{canary}\n", text=True, capture_output=True, env=laptop.env, timeout=60)
    assert done.returncode == 0, done.stderr
    job = ["submit", "--no-files", "--base", "--secret", "KEY", "--", "sh", "-c", "printf %s $KEY | sha256sum"]
    said = laptop.run(job[0], "--box", "ada", *job[1:], cwd=laptop.home)
    assert said.split()[0] == hashlib.sha256(canary.encode()).hexdigest()
    refused = laptop.call(job[0], "--box", "eve", *job[1:])
    assert (refused.returncode, "the secret KEY is not set" in refused.stderr) == (64, True), refused.stderr
    assert "no secret of yours" in laptop.call("secret", "--box", "eve").stderr
    found = owner.host.run("grep -rlsF --file=- /var /etc /run /tmp /srv /home || true", text=canary).split()
    assert [path.rpartition("/")[2] for path in found] == ["KEY"], found
    modes = owner.host.run("cd /var/lib/gpubox-secrets && stat -c '%a %U' . * */KEY").split()
    assert modes == ["700", "root", "700", "root", "600", "root"]
    search = 'read -r what; journalctl --output export | grep --text --count --fixed-strings "$what" || true'
    assert owner.host.run(search, text=f"{canary}\n") == "0\n"
    mine = laptop.run("submit", "-d", "--box", "ada", "--no-files", "--base", "--", "true").strip()
    laptop.run("wait", "--box", "ada", mine)
    inside = laptop.call("exec", "--box", "ada", mine, "sh", "-c", "id -un; echo $RUNNER_JOB_ID; command -v python3")
    assert inside.stdout.split()[:2] == ["ada", mine], inside.stderr
    assert "not yours to enter" in inside.stderr
    laptop.run("secret", "remove", "--box", "ada", "KEY")


@pytest.mark.slow
def test_the_figures_of_a_laptop_and_a_box_that_setup_made(
    owner: Owner, laptop: Laptop, figure: Callable[[str], None]
) -> None:
    """Shown, not judged: `python -m bench laptop`, as ada, whose shell reads no rc file."""
    owner.host.run("apt-get install --yes rsync; rm -f ~ada/.bashrc ~ada/.profile; runner drain --off")
    laptop.run("box", "add", "--name", "gpubox", "ada@gpubox")
    ours = f"  User ada\n  IdentityFile {laptop.home}/.ssh/id_ed25519\n  UserKnownHostsFile {laptop.known}\n"
    laptop.config.write_text(laptop.config.read_text() + ours)
    for what, drained, least in (("following", False, 3), ("laptop", True, 12)):
        if drained:
            owner.host.run("runner drain")
        command, env = [sys.executable, "-m", "bench", what], {**laptop.env, "BENCH_SSH": "gpubox"}
        done = subprocess.run(command, cwd=tools.ROOT, env=env, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) > least, lines
        for line in lines:
            figure(line)
