"""A daemon that was taken over, against a real launcher: run as user gpubox on a host (test_systemd.py). Prints what
the launcher did that it must not. Standard library alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sys

SPEC = {
    "launch_id": "hostile", "job": 1, "attempt": 1, "argv": ["true"], "directory": "/", "env": {"PATH": "/bin"},
    "time_limit": None, "grace": 1.0, "log_head_bytes": 4096, "log_tail_bytes": 4096, "events": "/nowhere/events.sock",
}  # fmt: skip
VALUES = (
    -1,
    2**63,
    10**400,
    1.5,
    True,
    None,
    "0",
    "infinity",
    "1\nUser=root",
    [],
    {},
    ["GPU-1"],
    ["/dev/sda"],
    [["x"]],
)
NAMES = ("memory_bytes", "cpus", "gpus", "grace", "secrets")


def ask(packet: bytes) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(20)
        link.connect("/run/gpubox-launcher.sock")
        try:
            link.send(packet)
            return link.recv(4096).decode()
        except OSError as error:
            return f"no {error}"


def attempt(state: str, job: int, data: bytes) -> str:
    folder = f"{state}/jobs/{job}/1"
    os.makedirs(folder, 0o700, exist_ok=True)
    os.chmod(f"{state}/jobs/{job}", 0o711)
    with open(f"{folder}/spec", "wb") as file:
        file.write(data)
    return folder


def packets(chance: random.Random) -> list[bytes]:
    verbs = [b"start", b"stop", b"make-tree", b"remove", b"read-outputs", b"build-env", b"exec", b"", b"START"]
    verbs += [b"set-secret", b"list-secrets", b"remove-secret", b"get-secret"]
    words = [
        b"1",
        b"-1",
        b"0",
        b"01",
        b"../../etc",
        b"/etc",
        b"1/../..",
        b"1\n",
        b"1 1",
        b"9" * 40,
        b"\xff",
        b"1;id",
        b"*",
        b"%n",
    ]
    made = [b" ".join([chance.choice(verbs), chance.choice(words), chance.choice(words)]) for _ in range(200)]
    return [*made, *(chance.randbytes(chance.randrange(1, 300)) for _ in range(100)), b"x" * 100_000]


def fine(packet: bytes) -> bool:
    """Whether a request is one: then it is about job 1, attempt 1, which is not there."""
    return packet in {b"start 1 1", b"stop 1 1", b"make-tree 1 1", b"remove 1 1", b"read-outputs 1 1"}


def main(state: str) -> None:
    os.umask(0o077)
    chance = random.Random(5)
    wrong = [repr(packet) for packet in packets(chance) if not fine(packet) and not ask(packet).startswith("no ")]
    job = 100
    for name in NAMES:
        for value in VALUES:
            harmless = (value == [] and name == "gpus") or (name == "grace" and value == 1.5)
            harmless |= name == "secrets" and not value  # none
            job += 1
            attempt(state, job, json.dumps(SPEC | {name: value}).encode())
            if not harmless and not ask(b"start %d 1" % job).startswith("no "):
                wrong.append(f"{name}={value!r}")
    for data in (b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b"1", b'"x"'):
        job += 1
        attempt(state, job, data)
        if not ask(b"start %d 1" % job).startswith("no "):
            wrong.append(repr(data[:20]))
    wrong += elsewhere(state)
    attempt(state, 99, json.dumps(SPEC).encode())
    if ask(b"start 99 1") != "ok":
        wrong.append("and what is right is refused")
    sys.stdout.write(json.dumps({"wrong": wrong}))


def elsewhere(state: str) -> list[str]:
    """Every folder on the way, and every file, as something that leads to another place or belongs to others."""
    wrong, good = [], json.dumps(SPEC).encode()
    for number, (victim, target) in enumerate(
        (victim, target)
        for victim in ("jobs/{0}", "jobs/{0}/1", "jobs/{0}/1/spec", "jobs/{0}/out", "jobs/{0}/checkpoint", "trees/{0}")
        for target in ("/etc", "/root", "/etc/shadow", f"{state}/blobs", "fifo", "wide")
    ):
        job = 1000 + number
        attempt(state, job, good)
        os.makedirs(f"{state}/trees/{job}", exist_ok=True)
        path = f"{state}/{victim.format(job)}"
        if target == "wide":
            if os.path.exists(path) and not path.startswith(f"{state}/trees"):
                os.chmod(path, 0o777)
            else:
                continue
        else:
            shutil.rmtree(path, ignore_errors=True)
            if os.path.lexists(path):
                os.unlink(path)
            os.mkfifo(path) if target == "fifo" else os.symlink(target, path)
        verb = b"make-tree" if victim.startswith("trees") else b"start"
        if not ask(b"%s %d 1" % (verb, job)).startswith("no "):
            wrong.append(f"{victim} -> {target}")
    for number, make in enumerate((_linked, _piped)):
        job = 2000 + number
        os.makedirs(f"{state}/trees/{job}/inner")
        make(f"{state}/trees/{job}/inner/x")
        if not ask(b"make-tree %d 1" % job).startswith("no "):
            wrong.append(f"tree with {make.__name__}")
    return wrong


def _linked(path: str) -> None:
    with open(f"{path}1", "w"):
        os.link(f"{path}1", path)


def _piped(path: str) -> None:
    os.mkfifo(path)


if __name__ == "__main__":
    main(sys.argv[1])
