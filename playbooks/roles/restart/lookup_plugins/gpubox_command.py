"""The command line of this run, as files from which it can be run again: {"files": {name: content}, "asks": why not}.

Where Ansible runs on the box itself. Variables given on the command line may be secret: they go into a file of root's.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping

from ansible import context
from ansible.plugins.lookup import LookupBase
from ansible.utils.vars import load_extra_vars

DOCUMENTATION = """
name: gpubox_command
short_description: Reads with which command line Ansible was called
description:
  - Returns the files command, variables.json and environment, from which the unit of role restart runs it again.
options: {}
author: gpubox
"""
RETURN = """
_raw:
  description: One entry, with the files, and in asks what somebody would have to type, which may be empty.
  type: list
  elements: dict
"""
PLACE = "/var/lib/gpubox-setup"
# A unit starts with an empty environment; these decide what Ansible finds, and what it can reach.
KEPT = ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HOME", "SUDO_USER")
KEPT_BEGIN = ("ANSIBLE_", "PIP_")
REPEATED = (("tags", "--tags"), ("skip_tags", "--skip-tags"))


def words(program: list[str], given: Mapping[str, object], folder: str) -> list[str]:
    """The command, wherever it is run from."""

    def place(path: str) -> str:
        return path if path.startswith("/") or "," in path else os.path.join(folder, path)

    said = [*program]
    for path in given.get("inventory") or ():
        said += ["--inventory", place(path)]
    for name, option in REPEATED:
        for value in given.get(name) or ():
            if (name, value) != ("tags", "all"):
                said += [option, value]
    if given.get("subset"):
        said += ["--limit", str(given["subset"])]
    if given.get("connection") == "local":
        said += ["--connection", "local"]
    for path in given.get("vault_password_files") or ():
        said += ["--vault-password-file", place(path)]
    for label in given.get("vault_ids") or ():
        name, _, source = label.rpartition("@")
        said += ["--vault-id", f"{name}@{place(source)}" if name else place(source)]
    said += ["--diff"] * bool(given.get("diff")) + ["--verbose"] * int(given.get("verbosity") or 0)
    return [*said, "--extra-vars", f"@{PLACE}/variables.json", *map(place, given["args"])]


def asks(given: Mapping[str, object]) -> str:
    """What somebody has to type, whom a boot does not have."""
    if given.get("ask_vault_pass") or any(str(label).endswith("prompt") for label in given.get("vault_ids") or ()):
        return "the password of a vault"
    return ""


def environment(known: Mapping[str, str], user: str) -> str:
    """In the form of systemd's EnvironmentFile."""
    kept = {
        name: value
        for name, value in known.items()
        if name in KEPT or name.startswith(KEPT_BEGIN) or name.lower().endswith("_proxy")
    }
    kept = {**kept, "SUDO_USER": kept.get("SUDO_USER", user), "PYTHONDONTWRITEBYTECODE": "1"}
    return "".join(f'{name}="{_escaped(value)}"\n' for name, value in sorted(kept.items()) if "\n" not in value)


def _escaped(value: str) -> str:
    for character in '\\"$`':
        value = value.replace(character, f"\\{character}")
    return value


def files(command: list[str], folder: str, variables: Mapping[str, object], known: str) -> dict[str, str]:
    more = {"ansible_become": False, "restart_continues": True}  # it is root's unit: nobody is asked for a password
    return {
        "command": f"cd {shlex.quote(folder)} && exec {shlex.join(command)}\n",
        "variables.json": json.dumps({**variables, **more}),
        "environment": known,
    }


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: object = None, **options: object) -> list[dict[str, object]]:
        given, folder = context.CLIARGS, os.getcwd()
        script = os.path.abspath(sys.argv[0])
        program = [sys.executable, script] if os.path.isfile(script) else [sys.executable, "-m", "ansible", "playbook"]
        login = os.environ.get("USER", "root")
        made = files(
            words(program, given, folder),
            folder,
            load_extra_vars(self._loader),
            environment(os.environ, login),
        )
        return [{"files": made, "asks": asks(given)}]
