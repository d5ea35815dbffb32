#!/usr/bin/python
"""Removes versions of the runner that nothing runs from, but the one before the current one.

Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import os
import shutil

DOCUMENTATION = r"""
module: gpubox_versions
short_description: Removes old versions of the runner
description:
  - A version is a folder with requirements.txt, complete or not. The current one stays, and so does the newest of the
    others, to go back to.
  - What a process was started from, has loaded or stands in stays, too. Supervisors of jobs are such processes.
options:
  folder:
    description: Where the versions are.
    type: path
    required: true
  current:
    description: The name of the one that is in use.
    type: str
    required: true
author: gpubox
"""

EXAMPLES = r"""
- name: Remove old versions
  gpubox_versions:
    folder: /opt/gpubox
    current: 0.4.0+0123456789ab
"""

RETURN = r"""
removed:
  description: Names of versions.
  returned: always
  type: list
"""


def versions(folder: str) -> list[str]:
    """Names, the one that was made first at first. Nothing else in there is ours to remove."""
    if not os.path.isdir(folder):
        return []
    found = [name for name in os.listdir(folder) if os.path.isfile(f"{folder}/{name}/requirements.txt")]
    return sorted(found, key=lambda name: os.lstat(f"{folder}/{name}/requirements.txt").st_mtime)


def used(folder: str, names: list[str], proc: str = "/proc") -> set[str]:
    """Those that a process was started from, has loaded, or stands in."""
    found = set()
    for pid in filter(str.isdigit, os.listdir(proc)):
        said = b"".join(_said(f"{proc}/{pid}", what) for what in ("cmdline", "maps", "environ", "cwd", "exe"))
        found |= {name for name in names if f"{folder}/{name}/".encode() in said}
    return found


def _said(process: str, what: str) -> bytes:
    """With an end to each name. Nothing of a process that is gone."""
    try:
        if what in ("cwd", "exe"):
            return os.fsencode(os.readlink(f"{process}/{what}")) + b"/"
        with open(f"{process}/{what}", "rb") as file:
            return file.read() + b"/"
    except OSError:
        return b""


def old(folder: str, current: str, proc: str = "/proc") -> list[str]:
    others = [name for name in versions(folder) if name != current]
    unused = others[:-1]
    return [name for name in unused if name not in used(folder, unused, proc)] if unused else []


def main() -> None:
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(
        {"folder": {"type": "path", "required": True}, "current": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    folder = module.params["folder"]
    removed = old(folder, module.params["current"])
    if not module.check_mode:
        for name in removed:
            shutil.rmtree(f"{folder}/{name}")
    module.exit_json(changed=bool(removed), removed=removed)


if __name__ == "__main__":
    main()
