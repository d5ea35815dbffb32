#!/usr/bin/python
"""Asks the firmware to trust the key that modules are signed with here, and remembers how far that went.

The rest is a person's, at a screen and a keyboard, while the computer starts.
Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
import time

DOCUMENTATION = r"""
module: gpubox_mok
short_description: Enrols the key for kernel modules under Secure Boot, as far as a program can
description:
  - Imports this machine's key with mokutil, under a code that is made here, said once and not kept.
  - Remembers the request, so that a later run knows one that was answered from one that was missed.
options:
  path:
    description: Where it is remembered.
    type: path
    default: /etc/gpubox/secure-boot.json
author: gpubox
"""

EXAMPLES = r"""
- name: Ask the firmware to trust our key
  gpubox_mok:
  register: nvidia_driver_mok
"""

RETURN = r"""
state:
  description: C(enrolled), C(pending), or C(impossible) where mokutil or the key is missing or the firmware refuses.
  returned: always
  type: str
missed:
  description: Whether an earlier request was lost at a start.
  returned: always
  type: bool
instructions:
  description: What a person has to do, with the code where a new one was made.
  returned: always
  type: list
"""

KEYS = (  # certificate, the command that makes it
    ("/var/lib/shim-signed/mok/MOK.der", ("update-secureboot-policy", "--new-key")),
    ("/var/lib/dkms/mok.pub", ("dkms", "generate_mok")),
)
LETTERS = "bcdefghjkprstuvx"  # where they are on every keyboard, since the firmware takes each for an American one
LENGTH = 10
BOOT = "/proc/sys/kernel/random/boot_id"
STEPS = (
    "Connect a screen and a USB keyboard, not one of Bluetooth.",
    "Restart: sudo reboot. A blue screen, MOK management, waits for ten seconds: press a key.",
    "Choose Enroll MOK, Continue, Yes; type the code{code}; then Reboot.",
    "Run setup.yml again. If the blue screen was missed, that asks anew, with another code.",
)


def text_of(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


class Enrolment:
    """run: (words, text) -> (code, what was said), 127 where there is no such program. root: where files begin."""

    def __init__(self, run, path, root="/", now=None):
        self.run, self.path, self.root, self.now = run, path, root, now or time.time
        self.before = json.loads(text_of(path) or "{}")

    def _file(self, path):
        return os.path.join(self.root, path.lstrip("/"))

    def key(self):
        """The certificate that dkms signs with; made, where there is none yet."""
        for path, _ in KEYS:
            if os.path.exists(self._file(path)):
                return path
        for path, command in KEYS:
            self.run(*command)
            if os.path.exists(self._file(path)):
                return path
        return None

    def asked(self, key):
        """What mokutil knows of the key: enrolled, pending, absent, or unknown."""
        said = self.run("mokutil", "--test-key", self._file(key))[1]
        for words, state in (
            ("already enrolled", "enrolled"),
            ("already in db", "enrolled"),
            ("enrollment request", "pending"),
            ("not enrolled", "absent"),
        ):
            if words in said:
                return state
        return "unknown"

    def settle(self, check=False):
        """-> state, missed, instructions, changed."""
        if check and not any(os.path.exists(self._file(path)) for path, _ in KEYS):
            return self._found("pending", instructions=["The key is made, and its enrolment asked for."], changed=True)
        key = self.key()
        state = self.asked(key) if key else "no key"
        boot = text_of(self._file(BOOT)).strip()
        missed = state == "absent" and self.before.get("state") == "pending" and self.before.get("boot") != boot
        if state == "enrolled":
            return self._found(state, changed=self._remember(check, state=state, key=key))
        if state == "pending":
            lost = ["Lost the code? sudo mokutil --revoke-import, then run setup.yml again."]
            return self._found(state, instructions=[*steps(""), *lost])
        if state == "absent":
            if check:
                return self._found("pending", missed, ["The key's enrolment is asked for."], True)
            return self._import(key, boot, missed)
        why = "This machine has no key to sign modules with." if state == "no key" else "mokutil can't tell of the key."
        return self._found("impossible", instructions=[why, "Or switch Secure Boot off in the firmware's setup."])

    def _import(self, key, boot, missed):
        code = "".join(secrets.choice(LETTERS) for _ in range(LENGTH))
        failed, said = self.run("mokutil", "--generate-hash", text=f"{code}\n{code}\n")
        hashed = next((word for word in said.split() if word.startswith("$")), None)
        if hashed:
            with tempfile.NamedTemporaryFile("w") as file:  # readable for us alone
                file.write(f"{hashed}\n")
                file.flush()
                failed, said = self.run("mokutil", "--import", self._file(key), "--hash-file", file.name)
        if failed or not hashed:
            why = f"The firmware does not take the request: {' '.join(said.split()) or 'mokutil is missing'}."
            return self._found("impossible", missed, [why, "Or switch Secure Boot off in the firmware's setup."])
        self._remember(False, state="pending", key=key, boot=boot)
        return self._found("pending", missed, steps(f" {code}"), True)

    def _remember(self, check, **now):
        with open(self._file(now["key"]), "rb") as file:
            now["sha256"] = hashlib.sha256(file.read()).hexdigest()
        if {name: self.before.get(name) for name in now} == now:
            return False
        if not check:
            os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
            with open(f"{self.path}.new", "w") as file:
                json.dump({**now, "at": int(self.now())}, file, indent=1)
            os.rename(f"{self.path}.new", self.path)
        return True

    @staticmethod
    def _found(state, missed=False, instructions=(), changed=False):
        return {"state": state, "missed": missed, "instructions": list(instructions), "changed": changed}


def steps(code):
    return [f"{number}. {step.format(code=code)}" for number, step in enumerate(STEPS, 1)]


def main():
    from ansible.module_utils.basic import AnsibleModule

    module = AnsibleModule(
        argument_spec={"path": {"type": "path", "default": "/etc/gpubox/secure-boot.json"}}, supports_check_mode=True
    )

    def run(*words, text=""):
        if module.get_bin_path(words[0]) is None:
            return 127, ""
        code, out, error = module.run_command(list(words), data=text, environ_update={"LC_ALL": "C"})
        return code, out + error

    module.exit_json(**Enrolment(run, module.params["path"]).settle(module.check_mode))


if __name__ == "__main__":
    main()
