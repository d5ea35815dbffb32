"""The role restart: what asks for one, what forbids it, and how a run goes on after it; on hosts of the test bed."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import tools
from bed.box import Box
from hosts import a_host, bed_run  # noqa: F401
from test_playbooks import BOOKS, NOT_HERE, PLAYBOOKS, ROOT, Owner, ansible

LOOKUP = PLAYBOOKS / "roles/restart/lookup_plugins/gpubox_command.py"
CALLED: Mapping[str, object] = {
    "inventory": ("../inventory.ini", "/etc/hosts.ini", "localhost,"),
    "tags": ["all"],
    "skip_tags": [],
    "subset": None,
    "connection": "ssh",
    "vault_password_files": [],
    "vault_ids": [],
    "ask_vault_pass": False,
    "diff": False,
    "verbosity": 0,
    "extra_vars": ("proxy=http://ada:secret@proxy:3128", "@more.yml"),
    "args": ("setup.yml",),
}


@pytest.fixture
def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpubox_command", LOOKUP)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_a_run_goes_on_with_the_same_command_from_anywhere(command: ModuleType) -> None:
    words = command.words(["/venv/bin/python", "/venv/bin/ansible-playbook"], CALLED, "/srv/gpubox/playbooks")
    assert words == [
        "/venv/bin/python",
        "/venv/bin/ansible-playbook",
        *("--inventory", "/srv/gpubox/playbooks/../inventory.ini"),
        *("--inventory", "/etc/hosts.ini", "--inventory", "localhost,"),
        *("--extra-vars", "@/var/lib/gpubox-setup/variables.json", "/srv/gpubox/playbooks/setup.yml"),
    ]
    more = {
        "tags": ["base"],
        "skip_tags": ["x y"],
        "subset": "box",
        "connection": "local",
        "diff": True,
        "verbosity": 2,
    }
    words = command.words(["ansible-playbook"], {**CALLED, **more, "inventory": (), "vault_ids": ["a@file"]}, "/here")
    assert shlex.join(words[:-3]) == (
        "ansible-playbook --tags base --skip-tags 'x y' --limit box --connection local --vault-id a@/here/file --diff "
        "--verbose --verbose"
    )


def test_what_somebody_would_have_to_type_is_known(command: ModuleType) -> None:
    assert command.asks(CALLED) == ""
    assert command.asks({**CALLED, "ask_vault_pass": True})
    assert command.asks({**CALLED, "vault_ids": ["home@prompt"]})


def test_secrets_go_into_files_alone(command: ModuleType) -> None:
    known = command.environment({"http_proxy": 'http://a:s"c$t@p', "EDITOR": "vi", "ANSIBLE_X": "1\n2"}, "ada")
    assert known == 'PYTHONDONTWRITEBYTECODE="1"\nSUDO_USER="ada"\nhttp_proxy="http://a:s\\"c\\$t@p"\n'
    files = command.files(["ansible-playbook", "a b"], "/srv/a b", {"proxy": "secret"}, known)
    assert files["command"] == "cd '/srv/a b' && exec ansible-playbook 'a b'\n"
    assert json.loads(files["variables.json"]) == {
        "proxy": "secret",
        "ansible_become": False,
        "restart_continues": True,
    }
    unit = (PLAYBOOKS / "roles/restart/templates/gpubox-setup.service.j2").read_text()
    assert "restart_command" not in unit


QUEUE = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars_files: ["{role}/vars/main.yml"]
  tasks:
    - ansible.builtin.debug:
        msg: "busy {{{{ restart_busy | join(', ') }}}}"
      vars:
        restart_running: {{stdout_lines: [gpubox-job-7-1.service loaded active running sleep]}}
        restart_users: {{gpubox_facts: {{driver: {{holders: {holders}}}}}}}
"""


def test_a_training_that_is_none_of_the_queues_forbids_a_restart(tmp_path: Path) -> None:
    holders = [{"name": name, "pid": pid, "devices": []} for name, pid in (("Xorg", 7), ("python", 901))]
    (tmp_path / "play.yml").write_text(QUEUE.format(role=PLAYBOOKS / "roles/restart", holders=json.dumps(holders)))
    filters = {"ANSIBLE_FILTER_PLUGINS": str(PLAYBOOKS / "roles/plan/filter_plugins")}
    done = ansible("ansible-playbook", "play.yml", folder=tmp_path, **filters)
    assert "busy gpubox-job-7-1.service, python (901)" in done.stdout, done.stdout + done.stderr
    assert "Xorg" not in done.stdout


# --- on the box itself, with a newer Ansible than this computer's -----------------------------------------------------

CHECKOUT = ("playbooks", "runner", "dashboard", "requirements", "pyproject.toml")
CANARY = "canary-4711"


def local(host: Box, book: str, *words: str, code: int = 0) -> str:
    done = host.ssh(f"cd gpubox/playbooks && ../.venv/bin/ansible-playbook {shlex.join([*words, book])}")
    assert done.returncode == code, done.stdout[-6000:] + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.box
def test_on_the_box_itself_it_restarts_and_goes_on(a_host: Callable[..., Box], tmp_path: Path) -> None:  # noqa: F811
    host = a_host()
    host.run("mkdir gpubox && apt-get update -qq && apt-get install --quiet --yes --no-install-recommends python3-venv")
    host.run("cd gpubox && python3 -m venv .venv && .venv/bin/pip install --quiet 'ansible-core>=2.20'")
    for name in CHECKOUT:
        host.put(ROOT / name, "gpubox/")
    host.run("cat >gpubox/inventory.ini", text=f"[boxes]\nbox ansible_connection=local\n{NOT_HERE}")
    for book in BOOKS:
        local(host, book, "--syntax-check")
    local(host, "setup.yml", "--check")

    boot = host.boot_id()
    read = "lookup('ansible.builtin.file', '/proc/sys/kernel/random/boot_id')"
    wish = f"{{{{ ['a test wants it'] if {read} == '{boot}' else [] }}}}"
    wishes = tmp_path / "wishes.json"
    wishes.write_text(json.dumps({"test_restart_reasons": wish, "test_secret": CANARY}))
    host.put(wishes, "wishes.json")
    said = local(host, "setup.yml", "--extra-vars", "@../../wishes.json")
    assert "The computer restarts now: a test wants it" in " ".join(said.split())
    assert CANARY not in said
    tools.wait_until(lambda: host.boot_id() not in ("", boot), 120, host.console)
    log = "journalctl --boot --output cat --unit gpubox-setup.service"
    tools.wait_until(lambda: "PLAY RECAP" in host.run(log), 300, lambda: host.run(log)[-3000:])
    tools.wait_until(lambda: host.run("systemctl show --value --property=ActiveState gpubox-setup") == "inactive\n", 20)
    assert "failed=0" in host.run(log)
    assert CANARY not in host.run("journalctl --output cat")
    assert host.run("ls /etc/systemd/system/*/gpubox-setup* /var/lib/gpubox-setup 2>/dev/null || true") == ""
    assert host.run("systemctl list-unit-files --no-legend 'gpubox-setup*' || true") == ""
    assert "changed=0" in local(host, "setup.yml", "--extra-vars", "@../../wishes.json")
    assert host.run("systemctl --failed --no-legend") == ""


ASKED = """
- name: Ask for a restart
  hosts: boxes
  gather_facts: false
  vars:
    role_a_restart_reasons: [the driver is another one]
  roles: [preflight, plan, restart]
  post_tasks:
    - name: Go on
      ansible.builtin.debug:
        msg: went on
"""


@pytest.mark.box
def test_over_ssh_it_restarts_when_no_job_runs(a_host: Callable[..., Box], tmp_path: Path) -> None:  # noqa: F811
    owner = Owner(a_host(), tmp_path)
    host = owner.host
    book = tmp_path / "asked.yml"
    book.write_text(ASKED)
    roles = {"ANSIBLE_ROLES_PATH": str(PLAYBOOKS / "roles"), "ANSIBLE_LIBRARY": str(PLAYBOOKS / "library")}

    def run(*words: str, code: int = 0) -> str:
        done = ansible("ansible-playbook", "-i", str(owner.inventory), *words, str(book), **roles)
        assert done.returncode == code, done.stdout + done.stderr
        return " ".join(done.stdout.split())

    service = (
        "[Service]\nExecStart=sleep infinity\n[Install]\nWantedBy=multi-user.target\n"  # it stands in for the queue
    )
    host.run("cat >/etc/systemd/system/gpubox.service; systemctl enable --quiet --now gpubox", text=service)
    host.run("systemd-run --quiet --unit gpubox-job-7-1 sleep infinity")
    boot = host.boot_id()
    assert "A restart is needed: the driver is another one. Your variable gpubox_restart is never." in run(
        "-e", "gpubox_restart=never"
    )
    assert "would restart now" in run("--check")
    assert "still does: the driver is another one" in run("-e", "restart_continues=true", code=2)
    assert host.boot_id() == boot

    said = run()
    assert "It waits, since jobs run or GPUs are in use: gpubox-job-7-1.service. " in said
    assert "went on" not in said
    assert host.run("systemctl is-active gpubox gpubox-job-7-1") == "active\nactive\n"
    assert host.boot_id() == boot
    host.run("systemctl stop gpubox-job-7-1")

    host.run("touch /dev/nvidia0; systemd-run --quiet --unit training sh -c 'exec 3</dev/nvidia0; sleep infinity'")
    tools.wait_until(lambda: "sleep" in host.run("ps -o comm= -C sleep,sh"))
    said = run()
    assert re.search(r"since jobs run or GPUs are in use: sh \(\d+\), sleep \(\d+\)\. ", said)
    assert host.run("systemctl is-active gpubox training") == "active\nactive\n"
    host.run("systemctl stop training")

    host.run("mv $(command -v shutdown) /root/")
    said = run(code=2)
    assert re.search("The restart failed: .* The queue starts jobs again. Restart when it suits you", said)
    assert host.run("systemctl is-active gpubox") == "active\n"
    assert host.boot_id() == boot
    host.run("mv /root/shutdown /usr/sbin/")
    assert "went on" in run()
    assert host.boot_id() != boot
    assert host.run("systemctl is-active gpubox") == "active\n"
