"""The playbooks: what can be said of them without a host, and, on hosts of the test bed (`box`), what they do."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tools
import yaml
from bed.box import Box
from hosts import a_host, bed_run  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
PLAYBOOKS = ROOT / "playbooks"
BOOKS = sorted(path.name for path in PLAYBOOKS.glob("*.yml"))
PLAYS = [play for book in ("setup.yml", *BOOKS) for play in yaml.safe_load((PLAYBOOKS / book).read_text())]
ROLES = list(dict.fromkeys(name for play in PLAYS for name in play.get("roles", ())))
MODULES = sorted([*PLAYBOOKS.glob("library/*.py"), *PLAYBOOKS.glob("roles/*/library/*.py")])
YAML = sorted(path for path in PLAYBOOKS.rglob("*.yml"))
NOT_MODULES = {"name", "when", "register", "loop", "vars", "notify", "environment", "block", "rescue", "always", "args",
               "tags", "become", "diff", "loop_control"}  # fmt: skip
SECRET = re.compile(r"token|password|passphrase|secret|proxy")


def specs(role: str) -> dict[str, dict[str, Any]]:
    """Variable -> what meta/argument_specs.yml says of it."""
    path = PLAYBOOKS / "roles" / role / "meta/argument_specs.yml"
    if not path.exists():
        return {}
    options: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]
    return options


def ansible(program: str, *words: str, folder: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    config = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "0", "LC_ALL": "C.UTF-8"}
    command = (str(Path(sys.executable).parent / program), *words)
    return subprocess.run(command, cwd=folder, env={**os.environ, **config, **more}, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What an owner has: the playbooks, and an inventory made from the example."""
    shutil.copytree(PLAYBOOKS, tmp_path / "playbooks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "inventory.example.ini", tmp_path / "inventory.ini")
    return tmp_path


# --- as text ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("book", BOOKS)
def test_a_playbook_is_understood_where_it_lies_and_from_the_top(checkout: Path, book: str) -> None:
    for folder, words in (("playbooks", (book,)), ("", ("-i", "inventory.ini", f"playbooks/{book}"))):
        done = ansible("ansible-playbook", "--syntax-check", *words, folder=checkout / folder)
        assert done.returncode == 0, done.stderr
        done = ansible("ansible-playbook", "--list-hosts", *words, folder=checkout / folder)
        assert re.search(r"hosts \(1\):\s+box\b", done.stdout), done.stdout + done.stderr


@pytest.mark.lint
def test_ansible_lint_has_nothing_to_say() -> None:
    done = ansible("ansible-lint", "--offline", "--profile", "production", "--strict", ".", folder=PLAYBOOKS)
    assert done.returncode == 0, done.stdout + done.stderr
    texts = [path.read_text() for path in [*YAML, *PLAYBOOKS.rglob(".ansible-lint*")]]
    assert not any(re.search(r"\bnoqa\b|^skip_list", text, re.M) for text in texts)


def test_the_example_of_an_inventory_is_one() -> None:
    done = ansible("ansible-inventory", "-i", "inventory.example.ini", "--list")
    listed = json.loads(done.stdout)
    assert listed["boxes"]["hosts"] == ["box"]
    known = {name for role in ROLES for name in specs(role)}
    named = set(re.findall(r"\b(gpubox_\w+)=", (ROOT / "inventory.example.ini").read_text()))
    assert named <= known


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "python"), [("", "/usr/bin/python3"), (" ansible_python_interpreter=/opt/py", "/opt/py")]
)
def test_a_box_is_worked_on_with_its_distributions_python_unless_its_line_says_another(
    checkout: Path, line: str, python: str
) -> None:
    (checkout / "inventory.ini").write_text(f"[boxes]\nbox ansible_connection=local{line}\n")
    done = ansible(
        "ansible-inventory", "-i", "inventory.ini", "--playbook-dir", "playbooks", "--host", "box", folder=checkout
    )
    assert json.loads(done.stdout)["ansible_python_interpreter"] == python, done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_defaults_are_what_its_specification_says(role: str) -> None:
    text = (PLAYBOOKS / "roles" / role / "defaults/main.yml").read_text()
    read = dict(re.findall(r"\b(gpubox_\w+) \| default\((.*?)\)(?= \||\s*\}\})", text))
    said = {name: option.get("default") for name, option in specs(role).items()}
    plain = {name: value for name, value in yaml.safe_load(text).items() if name in said}
    literals = {"true": "True", "false": "False"}
    of_owner = {name: ast.literal_eval(literals.get(value, value)) for name, value in read.items()}
    assert of_owner == {name: value for name, value in said.items() if name.startswith("gpubox_")}
    assert [name for name, value in plain.items() if said[name] not in (None, value)] == []


@pytest.mark.parametrize("role", ROLES)
def test_what_comes_from_a_command_line_is_a_word_and_is_made_what_it_should_be(role: str) -> None:
    """`-e gpubox_x=false` is text, and text is true."""
    text = (PLAYBOOKS / "roles" / role / "defaults/main.yml").read_text()
    made = dict(re.findall(r"\b(gpubox_\w+) \| default\([^)]*\) \| (\w+)", text))
    wanted = {name: option["type"] for name, option in specs(role).items() if name.startswith("gpubox_")}
    assert {name: kind for name, kind in wanted.items() if kind in ("bool", "int") and made.get(name) != kind} == {}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reads_the_owners_variables_in_its_defaults_alone(role: str) -> None:
    place = PLAYBOOKS / "roles" / role
    files = [path for name in ("tasks", "handlers", "templates", "vars") for path in (place / name).glob("*")]
    names = re.compile("|".join(rf"\b{name}\b" for name in specs(role) if name.startswith("gpubox_")) or r"(?!)")
    used = {path.name: re.findall(r"\{\{[^}]*\}\}|when:.*", path.read_text()) for path in files}
    assert {path: text for path, texts in used.items() for text in texts if names.search(text)} == {}


def test_every_variable_is_typed_and_explained_and_the_same_in_every_role() -> None:
    seen: dict[str, tuple[object, ...]] = {}
    for role in ROLES:
        for name, option in specs(role).items():
            assert option["type"], name
            assert option["description"].rstrip().endswith("."), name
            shape = tuple(str(option.get(key)) for key in ("type", "elements", "default", "choices"))
            assert seen.setdefault(name, shape) == shape, f"{name} of {role}"


def test_nothing_but_ansibles_own_modules_and_ours_is_used() -> None:
    ours = {path.stem for path in MODULES}
    foreign = {
        f"{path.relative_to(ROOT)}: {key}"
        for path in YAML
        if path.parent.name in ("tasks", "handlers")
        for task in yaml.safe_load(path.read_text())
        for key in task.keys() - NOT_MODULES
        if not key.startswith("ansible.builtin.") and key not in ours and not key.endswith(("_when", "_mode", "_log"))
        if key not in ("check_mode", "no_log", "until", "retries", "delay", "run_once")
    }
    assert foreign == set()
    assert not any("collections:" in path.read_text() for path in YAML)


def test_addresses_are_variables() -> None:
    """So that a mirror can stand in: none is written outside of a role's defaults and their explanation."""
    files = [
        path for path in PLAYBOOKS.rglob("*") if path.suffix in (".yml", ".j2", ".cfg", ".conf", ".service", ".sh")
    ]
    fixed = [path for path in files if path.parent.name != "defaults" and path.name != "argument_specs.yml"]
    assert [str(path) for path in fixed if re.search(r"(?:https?|ftp)://", path.read_text())] == []


def test_secrets_are_not_shown() -> None:
    secrets = {name: option for role in ROLES for name, option in specs(role).items() if SECRET.search(name)}
    assert [name for name, option in secrets.items() if not option.get("no_log")] == []
    shown = [
        f"{path.relative_to(ROOT)}: {task['name']}"
        for path in YAML
        if path.parent.name in ("tasks", "handlers")
        for task in yaml.safe_load(path.read_text())
        if SECRET.search(" ".join(re.findall(r"\{\{(.*?)\}\}", str(task)))) and not task.get("no_log")
    ]
    assert shown == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_runs_where_a_box_has_nothing_but_an_old_python(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in names}
    assert roots - sys.stdlib_module_names - {"ansible", "apt", "apt_pkg"} == set()
    assert ast.get_docstring(tree)


def reference() -> str:
    """The table of all variables, as docs/provisioning.md has it; of a variable of two roles, the later one's words."""
    variables = {name: option for role in ROLES for name, option in specs(role).items() if name.startswith("gpubox_")}
    return "\n".join(f"| `{name}` | {_unless_set(option)} | {_means(option)} |" for name, option in variables.items())


def _unless_set(option: dict[str, Any]) -> str:
    value = option.get("default")
    words = [str(one) for one in (value if isinstance(value, list) else [value])]
    return " ".join(f"`{word.lower() if isinstance(value, bool) else word}`" for word in words if word)


def _means(option: dict[str, Any]) -> str:
    said = re.sub(r"\b[A-Z]\((.*?)\)", r"`\1`", " ".join(option["description"].split()))
    choices = ", ".join(f"`{choice}`" for choice in option.get("choices", ()))
    return f"{said} One of {choices}." if choices else said


def test_the_reference_of_variables_is_what_the_specifications_say() -> None:
    assert reference() in (ROOT / "docs/provisioning.md").read_text(), (
        f"docs/provisioning.md should hold\n{reference()}"
    )


# --- the receipt and the way back ------------------------------------------------------------------------------------


def module(name: str) -> ModuleType:
    path = next(path for path in MODULES if path.stem == name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_a_receipt_remembers_the_first_state_alone(tmp_path: Path) -> None:
    receipt = module("gpubox_receipt")
    there, absent, book = tmp_path / "there", tmp_path / "absent", str(tmp_path / "etc/receipt.json")
    there.write_text("the owner's")
    there.chmod(0o640)
    wanted: dict[str, list[str]] = {kind: [] for kind in receipt.KINDS}
    wanted.update(files=[str(there), str(absent)], users=["root", "nobody-of-that-name"], groups=["root"])
    first = receipt.news(receipt.read(book), wanted, "base", 7.5)
    receipt.write(book, {"version": 1, "items": first})
    there.write_text("ours")
    absent.write_text("ours")
    kept = receipt.read(book)
    assert receipt.news(kept, wanted, "base", 8.0) == []
    assert [(item["kind"], item["name"]) for item in kept["items"]] == [
        ("user", "nobody-of-that-name"),
        ("file", str(there)),
        ("file", str(absent)),
    ]
    before = kept["items"][1]["before"]
    assert before == {"mode": "0640", "uid": os.getuid(), "gid": os.getgid(), "content": "dGhlIG93bmVyJ3M="}
    assert kept["items"][2]["before"] is None
    assert Path(book).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("was", ["the owner's", None])
def test_the_way_back_restores_what_was_before_the_first_change(tmp_path: Path, was: str | None) -> None:
    guarded = module("gpubox_guarded")
    path, place, told = tmp_path / "conf", tmp_path / "kept", tmp_path / "told"
    if was is not None:
        path.write_text(was)
    script = guarded.save(str(path), str(place), f"echo again >>{told}")
    guarded.put(str(path), "first")
    assert guarded.save(str(path), str(place), "never used") == script, "a second change before anybody confirmed"
    guarded.put(str(path), "second")
    for _ in range(2):
        subprocess.run(("sh", script), check=False)
    assert (path.read_text() if path.exists() else None) == was
    assert told.read_text() == "again\n"
    assert not place.exists()


def test_a_change_that_was_taken_back_is_not_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = module("gpubox_guarded")
    monkeypatch.setattr(guarded, "PLACE", str(tmp_path / "kept"))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text('#!/bin/sh\n[ "$1" = stop ] || [ "$3" = gpubox-revert-slow.service ]\n')
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    for name in ("ssh", "slow", "old"):
        guarded.save(str(tmp_path / name), f"{guarded.PLACE}/{name}", "true")
    assert guarded.confirm(["ssh", "firewall", "slow"]) == ["firewall", "slow"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["slow"], "what is being taken back goes on"
    assert guarded.confirm([]) == [], "of former runs it says nothing"


# --- on hosts --------------------------------------------------------------------------------------------------------


# What no package mirror has, and what takes long; a test that is about them says so.
NOT_HERE = "[boxes:vars]\ngpubox_conda=false\ngpubox_containers=none\n"


class Owner:
    """Somebody who runs setup.yml against one host."""

    def __init__(self, host: Box, place: Path) -> None:
        self.host = host
        self.inventory = place / f"{host.name}.ini"
        self.inventory.write_text(host.inventory + NOT_HERE)

    def run(self, book: Path, *words: str) -> subprocess.CompletedProcess[str]:
        become = () if self.host.user == "root" else ("--become",)
        return ansible("ansible-playbook", "-i", str(self.inventory), *become, *words, book.name, folder=book.parent)

    def book(self, *roles: str) -> Path:
        """A playbook with these roles alone."""
        place = self.inventory.parent / "-".join(roles)
        place.mkdir(exist_ok=True)
        settings = (
            (PLAYBOOKS / "ansible.cfg").read_text().replace("library = library", f"library = {PLAYBOOKS}/library")
        )
        (place / "ansible.cfg").write_text(
            settings.replace("[defaults]", f"[defaults]\nroles_path = {PLAYBOOKS}/roles")
        )
        book = place / "some.yml"
        book.write_text(yaml.safe_dump([{"hosts": "boxes", "gather_facts": False, "roles": list(roles)}]))
        return book

    def setup(self, *words: str, book: Path = PLAYBOOKS / "setup.yml") -> dict[str, int]:
        """-> ok, changed, failed, ... of a run that must not fail."""
        done = self.run(book, *words)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        tasks = re.findall(r"^TASK \[(.*?)\](?:(?!^TASK)[\s\S])*?^changed:", done.stdout, re.M)
        counts = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", done.stdout.split("PLAY RECAP")[-1])}
        assert (counts["changed"] == 0) == (tasks == [])
        return counts


@pytest.fixture
def an_owner(a_host: Callable[..., Box], tmp_path: Path) -> Callable[..., Owner]:  # noqa: F811
    return lambda **wishes: Owner(a_host(**wishes), tmp_path)


def answer(address: str, port: int) -> str:
    """To a TCP connection; a firewall gives none."""
    try:
        socket.create_connection((address, port), timeout=2).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "none"
    return "accepted"


@pytest.mark.box
@pytest.mark.parametrize(("suite", "user"), [("trixie", "root"), ("bookworm", "owner")])
def test_a_fresh_host_becomes_a_box_and_stays_one(
    an_owner: Callable[..., Owner], suite: str, user: str, figure: Callable[[str], None]
) -> None:
    owner = an_owner(suite=suite, user=user)
    host = owner.host
    sudo = "" if user == "root" else "sudo "
    assert owner.setup("--check")["changed"] > 0
    began = time.monotonic()
    owner.setup()
    first = time.monotonic()
    assert owner.setup()["changed"] == 0
    again = time.monotonic() - first
    figure(f"setup.yml, {suite} as {user}: first run {first - began:.0f} s, again {again:.0f} s (bar 45)")
    assert owner.setup("--check")["changed"] == 0

    assert set(host.run("id --name --groups gpubox-job").split()) == {"gpubox-job", "gpubox-data"}
    if user != "root":
        assert {"gpubox", "gpubox-admin", "gpubox-data"} <= set(host.run(f"id --name --groups {user}").split())
    as_job = f"{sudo}setpriv --reuid=gpubox-job --regid=gpubox-job --init-groups"
    host.run(f"{as_job} sh -c 'umask 077; mkdir /srv/gpubox/data/set; echo x >/srv/gpubox/data/set/file'")
    assert host.run(f"{sudo}stat --format='%A %G' /srv/gpubox/data/set/file") == "-rw-rw---- gpubox-data\n"
    assert "passwordauthentication no" in host.run(f"{sudo}/usr/sbin/sshd -T")
    assert host.run("systemctl is-enabled sleep.target gpubox-firewall.service || true").split() == [
        "masked",
        "enabled",
    ]
    blacklist = next(line for line in _dry_run(host, sudo) if line.startswith("Initial blacklist"))
    assert {"nvidia-", "cuda-", "linux-image-"} <= set(blacklist.split())
    assert host.run("systemctl --failed --no-legend") == ""
    receipt = json.loads(host.run(f"{sudo}cat /etc/gpubox/receipt.json"))
    kinds = {"user", "group", "member", "package", "file", "folder", "tree", "data", "unit"}
    assert kinds == {one["kind"] for one in receipt["items"]}


def _dry_run(host: Box, sudo: str) -> list[str]:
    return host.run(f"{sudo}unattended-upgrade --dry-run --debug 2>&1").splitlines()


@pytest.mark.box
@pytest.mark.slow
def test_the_firewall_closes_what_nobody_asked_for_and_cuts_nobody_off(an_owner: Callable[..., Owner]) -> None:
    owner = an_owner()
    address = owner.host.address
    owner.host.run("systemd-run --quiet python3 -m http.server 9999")
    tools.wait_until(lambda: answer(address, 9999) == "accepted")
    with socket.create_connection((address, 9999), timeout=10) as current:
        current.sendall(b"GET / HTTP/1.0\r\n")
        owner.setup()
        current.sendall(b"\r\n")
        assert current.recv(9) == b"HTTP/1.0 "
    assert answer(address, 9999) == "none"
    assert answer(address, 7443) == "accepted", "that is the box's own"
    opened, base = ("--extra-vars", '{"gpubox_open_ports": [9999]}'), owner.book("preflight", "plan", "base")
    assert owner.setup(*opened, book=base)["changed"] == 1
    assert answer(address, 9999) == "accepted"
    owner.host.reboot()
    assert (answer(address, 9998), answer(address, 9999)) == ("none", "refused")
    assert owner.setup(*opened, book=base)["changed"] == 0


@pytest.mark.box
def test_in_an_owners_ufw_what_they_opened_stays_theirs(an_owner: Callable[..., Owner]) -> None:
    owner = an_owner()
    rule = "allow from {} to any port 7443 proto tcp comment"
    owner.host.run("apt-get install --yes --no-install-recommends ufw iptables && ufw allow 22/tcp")
    owner.host.run(f"ufw {rule.format('10.0.0.0/8')} mine; ufw --force enable")
    base = owner.book("preflight", "plan", "base")
    assert owner.setup(book=base)["changed"] > 0
    assert owner.setup(book=base)["changed"] == 0
    rules = owner.host.run("ufw show added").splitlines()
    assert f"ufw {rule.format('10.0.0.0/8')} 'mine'" in rules
    assert f"ufw {rule.format('192.168.0.0/16')} 'gpubox'" in rules
    assert owner.host.run("ls /etc/gpubox").split() == ["receipt.json"], "no firewall of our own beside it"


LOCKOUT = """
- name: Lock ourselves out
  hosts: all
  gather_facts: false
  tasks:
    - name: Let nobody in
      gpubox_guarded:
        name: ssh
        path: /etc/ssh/sshd_config.d/10-gpubox.conf
        content: "AllowUsers nobody\\n"
        validate: /usr/sbin/sshd -t
        apply: systemctl try-reload-or-restart ssh.service
        seconds: {seconds}
    - name: Come back over a new connection
      ansible.builtin.wait_for_connection:
        timeout: {patience}
    - name: Keep it
      gpubox_guarded:
        state: confirmed
"""


@pytest.mark.box
def test_a_box_that_locked_us_out_lets_us_in_again(an_owner: Callable[..., Owner], tmp_path: Path) -> None:
    owner = an_owner()
    shutil.copytree(PLAYBOOKS / "library", tmp_path / "library")
    book = tmp_path / "lockout.yml"
    book.write_text(LOCKOUT.format(seconds=15, patience=3))
    done = owner.run(book)
    assert done.returncode != 0
    assert owner.host.ssh("true").returncode == 255, "the change was real"
    tools.wait_until(lambda: owner.host.ssh("true").returncode == 0, 30)
    assert owner.host.run("ls /etc/ssh/sshd_config.d /run/gpubox-revert").split() == [
        "/etc/ssh/sshd_config.d:",
        "/run/gpubox-revert:",
    ]


@pytest.mark.box
def test_a_wrong_file_is_taken_back_at_once(an_owner: Callable[..., Owner], tmp_path: Path) -> None:
    owner = an_owner()
    shutil.copytree(PLAYBOOKS / "library", tmp_path / "library")
    book = tmp_path / "wrong.yml"
    book.write_text(LOCKOUT.format(seconds=600, patience=3).replace("AllowUsers", "AllowWhom"))
    done = owner.run(book)
    assert "is as it was: /usr/sbin/sshd -t ended with 255" in done.stdout
    assert owner.host.run("ls /etc/ssh/sshd_config.d; systemctl list-timers --all 'gpubox-*' --no-legend") == ""
