"""A secret in the variables of a run is nowhere: not in what it prints with -vvv --diff, not in logs of the box."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from bed.box import Box
from hosts import a_host, bed_run  # noqa: F401
from test_playbooks import PLAYBOOKS, ROLES, Owner, specs

CANARY = "canary-4711"
URL = f"http://ada:{CANARY}@127.0.0.1:9"


def secrets() -> dict[str, object]:
    """Every variable that its specification calls secret, with one in it."""
    found = {name: option for role in ROLES for name, option in specs(role).items() if option.get("no_log")}
    hook = {"webhook": f"http://127.0.0.1:9/{CANARY}"}
    return {name: hook if option.get("type") == "dict" else URL for name, option in found.items()}


@pytest.mark.box
def test_a_secret_is_nowhere(
    a_host: Callable[..., Box],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner = Owner(a_host(user="owner"), tmp_path)
    host = owner.host
    host.run("sudo tee --append /etc/environment", text=f"ftp_proxy={URL}\n")
    owner.setup()  # what is fetched is fetched: these proxies lead nowhere
    given = {**secrets(), "ansible_become_password": CANARY, "gpubox_name": "attic"}
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps(given))
    monkeypatch.setenv("ftp_proxy", URL)
    said = ""
    for words in (("--check",), ()):
        done = owner.run(PLAYBOOKS / "setup.yml", "-vvv", "--diff", "--extra-vars", f"@{path}", *words)
        assert done.returncode == 0, done.stdout[-6000:].replace(CANARY, "SECRET")
        said += done.stdout + done.stderr
    done = owner.run(PLAYBOOKS / "remove.yml", "-vvv", "--diff", "--extra-vars", f"@{path}", "--check")
    said += done.stdout + done.stderr
    assert [line for line in said.splitlines() if CANARY in line] == []
    assert "attic" in said, "the change of a file is shown"
    assert host.run(f"sudo journalctl --output export | grep --text --count {CANARY} || true") == "0\n"
    # What to look for as its input: sudo logs its words.
    search = "sudo grep --recursive --files-with-matches --no-messages --file=- /etc /opt /srv /usr /var || true"
    found = host.run(search, text=CANARY).split()
    assert [path for path in found if path.startswith("/var/log/") or path == "/etc/gpubox/receipt.json"] == []
    modes = host.run(f"sudo stat --format='%a %n' /dev/null {shlex.join(found)}").splitlines()[1:]
    assert [line for line in modes if int(line.split()[0][-1]) & 4 and not line.endswith(" /etc/environment")] == []
