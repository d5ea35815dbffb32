#!/usr/bin/python
"""Adds to docker's settings what they don't say. What the owner wrote stays as it is.

Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess

DOCUMENTATION = r"""
module: gpubox_docker_settings
short_description: Adds keys to a file of settings in JSON
description:
  - Keys that are there keep their value and their place; new ones come after them. Of a group, such as C(features), the
    same holds for each key in it.
  - A file that is not JSON is not touched. Where dockerd is installed it reads the new file before anybody else does.
options:
  path:
    description: The file. It need not be there.
    type: path
    required: true
  defaults:
    description: What is added where it is missing.
    type: dict
    required: true
author: gpubox
"""

EXAMPLES = r"""
- name: Open ports for this computer alone
  gpubox_docker_settings:
    path: /etc/docker/daemon.json
    defaults: {ip: 127.0.0.1}
"""

RETURN = r"""
otherwise:
  description: What the file says otherwise than the defaults, in words.
  returned: always
  type: list
"""


class Unfit(Exception):
    """These are no settings; the words say why."""


def text_of(path):
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def parsed(text):
    """-> the settings; none in an empty file, as docker reads it."""
    try:
        found = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise Unfit(f"it is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise Unfit("it holds no settings")
    return found


def merged(settings, defaults, place=""):
    """-> the settings with what they lacked, and what they say otherwise."""
    found, otherwise = dict(settings), []
    for key, value in defaults.items():
        name = f"{place}{key}"
        if key not in found:
            found[key] = value
        elif isinstance(value, dict) and isinstance(found[key], dict):
            found[key], more = merged(found[key], value, f"{name}.")
            otherwise += more
        elif found[key] != value:
            otherwise.append(f"{name} is {json.dumps(found[key])}, where gpubox would say {json.dumps(value)}")
    return found, otherwise


def write(path, text):
    """Whole or not at all, and not before dockerd took it."""
    new = f"{path}.gpubox-new"
    mode = os.stat(path).st_mode & 0o777 if os.path.exists(path) else 0o644
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    dockerd = shutil.which("dockerd")
    if dockerd:
        asked = (dockerd, "--validate", f"--config-file={new}")
        done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            os.remove(new)
            raise Unfit(f"dockerd refuses what it would become: {done.stdout.strip()}")
    os.rename(new, path)


def main():
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(
        {"path": {"type": "path", "required": True}, "defaults": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    path = module.params["path"]
    before = text_of(path)
    try:
        settings = parsed(before)
        new, otherwise = merged(settings, module.params["defaults"])
        if new == settings:
            module.exit_json(changed=False, otherwise=otherwise)
        after = json.dumps(new, indent=2) + "\n"
        if not module.check_mode:
            write(path, after)
    except Unfit as error:
        module.fail_json(msg=f"{path} is as it was: {error}. Mend it, or move it away, and run this again.")
    diff = {"before": before, "after": after, "before_header": path, "after_header": path}
    module.exit_json(changed=True, otherwise=otherwise, diff=diff)


if __name__ == "__main__":
    main()
