#!/usr/bin/python
"""Puts the key of a repository where apt reads it, after its fingerprint was compared. Needs no gpg.

Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re

DOCUMENTATION = r"""
module: gpubox_key
short_description: Installs the key of a repository, checked by its fingerprint
description:
  - Fetches an OpenPGP key and writes it, armored, unless a key in it has a fingerprint that was not named.
  - Subkeys count, since not every program that checks signatures asks who bound them to the key.
  - A file that holds exactly these keys is left alone, and nothing is fetched.
options:
  url:
    description: Where the key is; file:// is of the box.
    type: str
    required: true
  fingerprints:
    description: All of the fingerprints that its keys may have. The first must be there.
    type: list
    elements: str
    required: true
  path:
    description: The file that a source names as Signed-By. Its name must end with .asc.
    type: path
    required: true
author: gpubox
"""

EXAMPLES = r"""
- name: Trust NVIDIA's key
  gpubox_key:
    url: "{{ plan_decision['sources']['key_url'] }}"
    fingerprints: "{{ plan_decision['sources']['fingerprints'] }}"
    path: /etc/apt/keyrings/gpubox-cuda.asc
"""

RETURN = r"""
fingerprints:
  description: Those of the key that is now in the file.
  returned: when the file is there
  type: list
"""

PUBLIC_KEY, PUBLIC_SUBKEY = 6, 14  # packets of OpenPGP
LARGEST = 1 << 20


class Unfit(Exception):
    """These bytes are not the key; the words say why."""


def binary(content):
    """Without the armor, if it has one."""
    if not content.lstrip().startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
        return content
    blocks = re.findall(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP", content, re.S)
    found = b""
    for block in blocks:
        lines = [line.strip() for line in block.splitlines()]
        rows = [line for line in lines if line and b":" not in line and not line.startswith(b"=")]
        try:
            found += base64.b64decode(b"".join(rows), validate=True)
        except binascii.Error as error:
            raise Unfit("its armor is damaged") from error
    return found


def armored(key):
    """Without a checksum, which is optional and which newer readers ignore."""
    text = base64.b64encode(key).decode()
    rows = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN PGP PUBLIC KEY BLOCK-----", "", *rows, "-----END PGP PUBLIC KEY BLOCK-----", ""])


def packets(key):
    """(tag, body) of each. RFC 9580, 4.2."""
    place = 0
    while place < len(key):
        head = key[place]
        if not head & 0x80:
            raise Unfit("it is not an OpenPGP key")
        place += 1
        if head & 0x40:
            tag, (length, place) = head & 0x3F, _new_length(key, place)
        else:
            tag, size = head >> 2 & 0x0F, (1, 2, 4, 0)[head & 3]
            length, place = int.from_bytes(key[place : place + size], "big"), place + size
        body = key[place : place + length]
        if len(body) != length or not length:
            raise Unfit("it is cut off")
        yield tag, body
        place += length


def _new_length(key, place):
    first = key[place] if place < len(key) else 255
    if first < 192:
        return first, place + 1
    if first < 224 and place + 1 < len(key):
        return (first - 192 << 8) + key[place + 1] + 192, place + 2
    if first == 255:
        return int.from_bytes(key[place + 1 : place + 5], "big"), place + 5
    raise Unfit("a key in parts is not expected")


def fingerprint(body):
    if body[0] == 4:
        return hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()
    if body[0] in (5, 6):
        lead = {5: b"\x9a", 6: b"\x9b"}[body[0]]
        return hashlib.sha256(lead + len(body).to_bytes(4, "big") + body).hexdigest().upper()
    raise Unfit(f"a key of version {body[0]} has no fingerprint that could be trusted")


def fingerprints(content):
    """Of all keys and subkeys."""
    found = [fingerprint(body) for tag, body in packets(binary(content)) if tag in (PUBLIC_KEY, PUBLIC_SUBKEY)]
    if not found:
        raise Unfit("there is no public key in it")
    return found


def checked(content, wanted):
    """-> its fingerprints; raises Unfit unless they are those that are wanted."""
    found, wanted = fingerprints(content), [re.sub(r"[\s:]|^0x", "", one).upper() for one in wanted]
    if wanted[0] not in found or set(found) - set(wanted):
        raise Unfit(f"its fingerprints are {', '.join(found)}, and {', '.join(wanted)} is expected")
    return found


def main():
    from ansible.module_utils.basic import AnsibleModule
    from ansible.module_utils.urls import fetch_url

    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "fingerprints": {"type": "list", "elements": "str", "required": True, "no_log": False},
            "path": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    url, wanted, path = (module.params[name] for name in ("url", "fingerprints", "path"))
    try:
        with open(path, "rb") as file:
            module.exit_json(changed=False, fingerprints=checked(file.read(), wanted))
    except (OSError, Unfit):
        pass
    if module.check_mode:
        module.exit_json(changed=True)
    response, info = fetch_url(module, url, timeout=30)
    if response is None or info["status"] not in (-1, 200, None):
        module.fail_json(
            msg=f"The key {url} can't be fetched: {info['msg']}. Bring it to the box and name it: "
            "gpubox_nvidia_key_url=file:///path/of/the/key; or set the proxy."
        )
    content = response.read(LARGEST)
    try:
        found = checked(content, wanted)
    except Unfit as error:
        module.fail_json(
            msg=f"The key {url} is not trusted: {error}. Nothing was changed. Has somebody changed the key?"
        )
    new = f"{path}.new"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "w") as file:
        file.write(armored(binary(content)))
    os.rename(new, path)
    module.exit_json(changed=True, fingerprints=found)


if __name__ == "__main__":
    main()
