#!/usr/bin/python
"""Writes a file that could lock its owner out, with a timer that puts the former one back unless somebody confirms.

The timer is a transient unit of systemd, gpubox-revert-NAME; what it needs lies in /run/gpubox-revert/NAME.
Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

DOCUMENTATION = r"""
module: gpubox_guarded
short_description: Changes a file and its service, and takes it back unless it is confirmed in time
description:
  - Checks the new file, arms a timer that restores the former one, writes it and tells the service.
  - A later task, over a fresh connection, confirms with O(state=confirmed), which disarms the timer.
  - A file that holds the content already is left alone, and nothing is armed.
options:
  name:
    description: Names the timer. O(state=confirmed) is for all that are armed, and takes no name.
    type: str
  state:
    description: Write the file or take it away, or confirm that it does no harm.
    type: str
    choices: [present, absent, confirmed]
    default: present
  path:
    description: The file.
    type: path
  content:
    description: What is to be in it.
    type: str
  validate:
    description: A command that refuses a wrong one. The file is in its place by then; %s is its path.
    type: str
  apply:
    description: A command that has the service take it.
    type: str
  revert:
    description: A command that has the service take the former state. Without it, the one that applies.
    type: str
  seconds:
    description: How long a confirmation is waited for.
    type: int
    default: 300
  armed:
    description: With O(state=confirmed), the names of what was changed. It fails where that was taken back already.
    type: list
    elements: str
    default: []
author: gpubox
"""

EXAMPLES = r"""
- name: Let people in by key alone
  gpubox_guarded:
    name: ssh
    path: /etc/ssh/sshd_config.d/10-gpubox.conf
    content: "PasswordAuthentication no\n"
    validate: /usr/sbin/sshd -t
    apply: systemctl try-reload-or-restart ssh.service

- name: Come back over a new connection
  ansible.builtin.wait_for_connection:

- name: Keep it
  gpubox_guarded:
    state: confirmed
"""

RETURN = r"""
reverts_in:
  description: Seconds until the former file is back, unless it is confirmed.
  returned: when the file changed
  type: int
"""

PLACE = "/run/gpubox-revert"


class Refused(Exception):
    """The new file is not taken; the words say why, and the former state is back."""


def run(command: str) -> None:
    done = subprocess.run(
        shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise Refused(f"{command} ended with {done.returncode}: {done.stdout.strip()}")


def content_of(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return None


def way_back(path: str, place: str, revert: str) -> str:
    """A shell script that restores what save() kept. It may run twice."""
    kept, target = shlex.quote(f"{place}/before"), shlex.quote(path)
    restore = f"if [ -e {kept} ]; then cp -p {kept} {target}; else rm -f {target}; fi"
    return f"#!/bin/sh\n{restore}\n{revert}\nrm -rf {shlex.quote(place)}\n"


def save(path: str, place: str, revert: str) -> str:
    """Keep the former file and the script that brings it back; -> the script."""
    script = f"{place}/revert"
    if os.path.exists(script):
        return script  # the change before was never confirmed: the way back leads to before that one
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place, mode=0o700)
    if os.path.exists(path):
        shutil.copy2(path, f"{place}/before")
    with open(os.open(script, os.O_WRONLY | os.O_CREAT, 0o700), "w") as file:
        file.write(way_back(path, place, revert))
    return script


def put(path: str, content: str | None) -> None:
    if content is None:
        os.unlink(path)
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    new = f"{path}.gpubox-new"  # no name that a service would read
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)


def stop_timer(name: str) -> None:
    subprocess.run(("systemctl", "stop", f"gpubox-revert-{name}.timer"), stderr=subprocess.DEVNULL, check=False)


def taken_back(name: str) -> bool:
    """Whether the timer was faster. It is stopped by now; what it began goes on, and removes its place at the end."""
    unit = f"gpubox-revert-{name}.service"
    going = subprocess.run(("systemctl", "is-active", "--quiet", unit), check=False).returncode == 0
    return going or not os.path.exists(f"{PLACE}/{name}/revert")


def disarm(name: str) -> None:
    stop_timer(name)
    shutil.rmtree(f"{PLACE}/{name}", ignore_errors=True)


def confirm(armed: list[str]) -> list[str]:
    """-> what was taken back before."""
    waiting = os.listdir(PLACE) if os.path.isdir(PLACE) else []
    late = []
    for name in sorted({*waiting, *armed}):
        stop_timer(name)
        if not taken_back(name):
            disarm(name)
        elif name in armed:
            late.append(name)
    return late


def change(
    name: str, path: str, content: str | None, validate: str | None, apply: str, revert: str, seconds: int
) -> None:
    """Raises Refused, with the former state back at once."""
    stop_timer(name)
    script = save(path, f"{PLACE}/{name}", revert)
    unit = f"--unit=gpubox-revert-{name}"
    run(f"systemd-run --quiet --collect {unit} --on-active={seconds} --timer-property=AccuracySec=1s {script}")
    try:
        put(path, content)
        if validate:
            run(validate.replace("%s", shlex.quote(path)))
        run(apply)
    except (OSError, Refused):
        subprocess.run((script,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        disarm(name)
        raise


def main() -> None:
    from ansible.module_utils.basic import AnsibleModule

    text = {"type": "str"}
    module = AnsibleModule(
        {
            "name": text,
            "state": {"type": "str", "choices": ["present", "absent", "confirmed"], "default": "present"},
            "path": {"type": "path"},
            "content": text,
            "validate": text,
            "apply": text,
            "revert": text,
            "seconds": {"type": "int", "default": 300},
            "armed": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[
            ("state", "present", ("name", "path", "content", "apply")),
            ("state", "absent", ("name", "path", "apply")),
        ],
        supports_check_mode=True,
    )
    asked = module.params
    if asked["state"] == "confirmed":
        late = [] if module.check_mode else confirm(asked["armed"])
        if late:
            module.fail_json(
                msg=f"{', '.join(late)}: the box took the change back before it was confirmed, and is as it was. Run "
                "this again, and have the box wait longer: --extra-vars gpubox_revert_seconds=900"
            )
        module.exit_json(changed=False)
    was, content = content_of(asked["path"]), asked["content"] if asked["state"] == "present" else None
    if was == content:
        module.exit_json(changed=False)
    diff = {
        "before": was or "",
        "after": content or "",
        "before_header": asked["path"],
        "after_header": asked["path"],
    }
    if not module.check_mode:
        orders = {key: asked[key] for key in ("name", "path", "validate", "apply", "seconds")}
        try:
            change(**orders, content=content, revert=asked["revert"] or asked["apply"])
        except (OSError, Refused) as error:
            module.fail_json(msg=f"{asked['path']} is as it was: {error}")
    module.exit_json(changed=True, diff=diff, reverts_in=asked["seconds"])


if __name__ == "__main__":
    main()
