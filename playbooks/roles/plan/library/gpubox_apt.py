#!/usr/bin/python
"""Asks apt what it has and what it would do. Changes nothing, needs no lock, and is the same in check mode."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpubox_apt
short_description: Asks apt what it has and what it would do
description:
  - Runs apt-cache policy, or apt-get with an answer of no, in the C locale, and gives back what they said.
options:
  names:
    description: Packages to ask after.
    type: list
    elements: str
    default: []
  install:
    description: Packages to pretend to install, in one transaction.
    type: list
    elements: str
    default: []
  remove:
    description: Packages to pretend to remove in the same transaction.
    type: list
    elements: str
    default: []
author: gpubox
"""

EXAMPLES = r"""
- name: Ask apt for drivers
  gpubox_apt:
    names: [nvidia-kernel-dkms]
  register: plan_policy
"""

RETURN = r"""
policy:
  description: What apt-cache policy said of the names; empty where there is no apt.
  returned: always
  type: str
transaction:
  description: What apt-get said it would do.
  returned: always
  type: str
"""


def commands(names, install, remove):
    """-> policy's and the transaction's command; None for what was not asked."""
    pretend = ["apt-get", "--assume-no", "--no-install-recommends", "-o", "Debug::NoLocking=1", "install"]
    policy = ["apt-cache", "policy", *names] if names else None
    transaction = [*pretend, *install, *[name + "-" for name in remove]] if install else None
    return policy, transaction


def main():
    from ansible.module_utils.basic import AnsibleModule

    lists = {name: {"type": "list", "elements": "str", "default": []} for name in ("names", "install", "remove")}
    module = AnsibleModule(argument_spec=lists, supports_check_mode=True)
    calm = {"LC_ALL": "C", "LANG": "C", "DEBIAN_FRONTEND": "noninteractive"}

    def said(command):
        if command is None or module.get_bin_path(command[0]) is None:
            return ""
        _, out, error = module.run_command(command, environ_update=calm)  # no to a transaction is an exit status of 1
        return out + error

    policy, transaction = commands(*(module.params[name] for name in ("names", "install", "remove")))
    module.exit_json(changed=False, policy=said(policy), transaction=said(transaction))


if __name__ == "__main__":
    main()
