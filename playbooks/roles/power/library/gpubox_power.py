#!/usr/bin/python
"""Sets the power limits of the GPUs that are here now, and reads them back; the code is module_utils/gpubox_watts.py.

Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import os

DOCUMENTATION = r"""
module: gpubox_power
short_description: Sets power limits of NVIDIA GPUs
description:
  - Decides for each card how many watts it may draw, sets that through NVML and reads it back.
  - Refuses, and sets nothing, where a wish makes no sense or the supply is too weak.
  - Without a driver that answers it changes nothing and says so.
options:
  limit:
    description: For all cards, watts as C(280) or a part of their default as C(80%).
    type: str
    default: ""
  limits:
    description: The same for single cards, by UUID, name or index.
    type: dict
    default: {}
  psu_watts:
    description: What the power supply gives; 0 is unknown.
    type: int
    default: 0
  rest_watts:
    description: What all but the GPUs takes.
    type: int
    default: 250
  ignored:
    description: PCI addresses of cards to leave alone.
    type: list
    elements: str
    default: []
author: gpubox
"""

EXAMPLES = r"""
- name: Share out what the supply has
  gpubox_power:
    psu_watts: 1000
"""

RETURN = r"""
limits:
  description: Of each limited card its index, UUID, name, limit before and now, and why.
  returned: always
  type: list
said:
  description: The same in words, and what is worth knowing.
  returned: always
  type: list
"""


def main() -> None:
    from ansible.module_utils import gpubox_watts as watts
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(
        {
            "limit": {"type": "str", "default": ""},
            "limits": {"type": "dict", "default": {}},
            "psu_watts": {"type": "int", "default": 0},
            "rest_watts": {"type": "int", "default": 250},
            "ignored": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    done, notes, problems = [], [], []
    try:
        with watts.opened() as nvml:
            decision = watts.look(nvml, module.params)
            changes = watts.pending(decision)
            if decision["problems"]:
                module.fail_json(msg=" ".join(decision["problems"]), limits=decision["limits"], said=decision["notes"])
            if module.check_mode:
                done = changes
            else:
                done, notes, problems = watts.apply(nvml, decision)
    except watts.Trouble as trouble:
        loaded = os.path.exists("/sys/module/nvidia")
        why = f"The GPUs can't be asked: {trouble}." if loaded else "No NVIDIA driver is loaded."
        wrong = watts.decide([], module.params)["problems"]
        if wrong:
            module.fail_json(msg=" ".join(wrong))
        module.exit_json(changed=False, limits=[], said=[f"{why} The limits are set as soon as the driver is there."])
    said = [watts.line(one, one in done) for one in decision["limits"]] + decision["notes"] + notes
    if problems:
        module.fail_json(msg=" ".join(problems), changed=bool(done), limits=decision["limits"], said=said)
    diff = {
        "before": "".join(f"{one['uuid']} {one['now']} W\n" for one in done),
        "after": "".join(f"{one['uuid']} {one['watts']} W\n" for one in done),
    }
    module.exit_json(changed=bool(done), diff=diff, limits=decision["limits"], said=said)


if __name__ == "__main__":
    main()
