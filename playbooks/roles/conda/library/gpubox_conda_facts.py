#!/usr/bin/python
"""What the role conda has to know: which Miniforge and uv are there, and who has the names of their commands.

Reads files and changes nothing. Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import os

DOCUMENTATION = r"""
module: gpubox_conda_facts
short_description: Reads what the role conda depends on
description:
  - Changes nothing and is the same in check mode.
options:
  mark:
    description: The file in an installation of Miniforge that says which installer made it.
    type: path
    required: true
  paths:
    description: Paths of which it matters whether they are there.
    type: list
    elements: path
    default: []
  links:
    description: Links that are to be there, and where they lead.
    type: dict
    default: {}
  ours:
    description: Beginnings of where links of ours lead.
    type: list
    elements: path
    required: true
author: gpubox
"""

EXAMPLES = r"""
- name: Look what is there
  gpubox_conda_facts:
    mark: /opt/miniforge3/.gpubox
    links: {/usr/local/bin/conda: /opt/miniforge3/bin/conda}
    ours: [/opt/miniforge3/]
  register: conda_seen
"""

RETURN = r"""
installed:
  description: What the mark says; empty where there is none.
  returned: always
  type: str
there:
  description: Those of the paths that are there.
  returned: always
  type: list
ours:
  description: Those of the links that are ours, or that nobody has.
  returned: always
  type: list
wrong:
  description: Those of them that don't lead where they are to.
  returned: always
  type: list
foreign:
  description: Those whose names somebody else has.
  returned: always
  type: list
"""


def text_of(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def whose(links: dict[str, str], ours: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"ours": [], "wrong": [], "foreign": []}
    for path, target in links.items():
        leads = os.readlink(path) if os.path.islink(path) else None
        if os.path.lexists(path) and not (leads or "").startswith(tuple(ours)):
            found["foreign"].append(path)
            continue
        found["ours"].append(path)
        if leads != target:
            found["wrong"].append(path)
    return found


def main() -> None:
    from ansible.module_utils.basic import AnsibleModule

    paths = {"type": "list", "elements": "path"}
    module = AnsibleModule(
        {
            "mark": {"type": "path", "required": True},
            "paths": {**paths, "default": []},
            "links": {"type": "dict", "default": {}},
            "ours": {**paths, "required": True},
        },
        supports_check_mode=True,
    )
    asked = module.params
    module.exit_json(
        changed=False,
        installed=text_of(asked["mark"]),
        there=[path for path in asked["paths"] if os.path.lexists(path)],
        **whose(asked["links"], asked["ours"]),
    )


if __name__ == "__main__":
    main()
