"""setup.yml stopped in the middle, again and again, and continued: a killed controller, on hosts of the test bed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tools
import yaml
from bed.box import Box
from hosts import a_host, bed_run  # noqa: F401
from test_playbooks import PLAYBOOKS, Owner

# In the middle of a role: the task at whose beginning it ends, so that what comes before is done and nothing else is.
WITHIN = {
    "base": [
        "Let people in by key alone",  # the firewall is there, under its timer
        "Have the firewall at every boot",
        "Take suspend away",  # logind was not told of its rules
    ],
    "runner": [
        "Write the units",
        "Wait until the queue answers",
    ],
}
# After each role in turn: at the first task of the next.
ROLES = yaml.safe_load((PLAYBOOKS / "setup.yml").read_text())[0]["roles"]
CUTS = [f"TASK [{role} : {task}" for role in ROLES for task in ("Validating arguments", *WITHIN.get(role, ()))][1:]


class Cut(Owner):
    """Somebody whose laptop dies."""

    def until(self, heard: Callable[[str], bool], *words: str) -> None:
        """Run setup.yml, and kill it with all its processes here once a line is heard."""
        program = str(Path(sys.executable).parent / "ansible-playbook")
        running = subprocess.Popen(
            (program, "-i", str(self.inventory), *words, "setup.yml"),
            cwd=PLAYBOOKS,
            env={**os.environ, "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true"},  # else a task is named when it has ended
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        lines = []
        try:
            assert running.stdout is not None
            for line in running.stdout:
                lines.append(line)
                if heard(line):
                    return
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
        pytest.fail(f"it went through:\n{''.join(lines)[-4000:]}")

    def pips(self) -> str:
        return self.host.ssh("pgrep --full 'pip install'").stdout


@pytest.mark.slow  # 16 runs
@pytest.mark.box
def test_setup_goes_on_wherever_it_was_stopped(a_host: Callable[..., Box], tmp_path: Path) -> None:  # noqa: F811
    owner = Cut(a_host(), tmp_path)
    host = owner.host
    assert len(CUTS) >= 10
    for cut in CUTS:
        owner.until(lambda line, cut=cut: line.startswith(cut))  # type: ignore[misc]
    owner.setup()
    assert owner.setup()["changed"] == 0
    assert owner.setup("--check")["changed"] == 0
    works(host)


def works(host: Box) -> None:
    assert host.run("systemctl --failed --no-legend") == ""
    assert "gpubox-job" in host.run("mkdir -p project; cd project; runner submit --base -- id -un").splitlines()
    assert host.run("systemctl is-enabled sleep.target gpubox-firewall gpubox || true").split() == [
        *("masked", "enabled", "enabled"),
    ]
    assert "policy drop" in host.run("nft list table inet gpubox")
    assert host.run("systemctl list-timers --all 'gpubox-*' --no-legend") == ""
    lid = "busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
    assert host.run(f"{lid} HandleLidSwitch") == 's "ignore"\n'
    items = json.loads(host.run("cat /etc/gpubox/receipt.json"))["items"]
    assert len({(one["kind"], one["name"]) for one in items}) == len(items)
    assert [one for one in items if "gpubox" in one["name"] and one["before"] is not None] == []


@pytest.mark.slow
@pytest.mark.box
def test_what_was_written_is_told_later(a_host: Callable[..., Box], tmp_path: Path) -> None:  # noqa: F811
    """A change of the service, cut between its files and its restart; an installation, cut while it runs."""
    owner = Cut(a_host(), tmp_path)
    host = owner.host
    owner.until(lambda line: bool(line.startswith("TASK [runner : Install both]") and tools.wait_until(owner.pips, 60)))
    assert owner.pips(), "what the killed one began goes on"
    owner.setup()
    works(host)

    began = host.run("systemctl show --value --property=InvocationID gpubox.service")
    named = ("--extra-vars", "gpubox_name=attic")
    owner.until(lambda line: line.startswith("TASK [runner : Start what listens"), *named)
    assert host.run("systemctl show --value --property=InvocationID gpubox.service") == began
    assert owner.setup(*named)["changed"] > 0
    assert host.run("systemctl show --value --property=InvocationID gpubox.service") != began
    assert owner.setup(*named)["changed"] == 0
