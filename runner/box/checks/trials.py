"""What has to be tried to be known: a program on CUDA, a container, a job. Each is undone, and ends in time."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner import paths
from runner.box.checks import adder
from runner.box.checks.computer import Computer, Said
from runner.box.checks.cuda import last_object
from runner.words import FINISHED, QUEUED

CUDA_LIMIT = 60.0  # seconds: a driver that was asleep, and eight cards to wake
CONTAINER_LIMIT = 60.0
JOB_LIMIT, TRAIN_LIMIT = 60.0, 1800.0  # from submitting to the end; the second may fetch some GB, but waits for nobody
BUILDING = "environment"  # in what the queue says of a job that waits for its own
ASK = 20.0  # for a command of `runner` that only asks, also on a computer that has much to do
KNOCK = 10.0  # for the launcher
ADDER = os.path.abspath(adder.__file__)


def add(computer: Computer, cards: Sequence[str]) -> tuple[dict[str, Any] | None, Said]:
    """What adder.py prints, having used these cards."""
    return computer.json(sys.executable, ADDER, *cards, limit=CUDA_LIMIT)


def ask_launcher(path: str = paths.LAUNCHER_SOCKET) -> str | None:
    """The reply to a packet that asks for nothing; what went wrong; None where only others may ask."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(KNOCK)
        try:
            link.connect(path)
            link.send(b"are you there")
            return link.recv(1024).decode(errors="replace")
        except PermissionError:
            return None
        except OSError as error:
            return f"{path}: {error.strerror or error}"


# --- containers ------------------------------------------------------------------------------------------------------


def container(computer: Computer, engine: str) -> Said:
    """`nvidia-smi -L` in a container with the least that it needs, of this computer's own files: nothing is fetched."""
    with tempfile.TemporaryDirectory(prefix="gpubox-doctor-") as folder:
        root, name = f"{folder}/root", f"gpubox-doctor-{os.getpid()}"
        libraries = ":".join(_furnish(computer, root))
        options = [
            "--rm", "--network=none", "--device=nvidia.com/gpu=all", f"--env=LD_LIBRARY_PATH={libraries}",
            "--env=PATH=/usr/bin:/usr/lib/nvidia/current", "--entrypoint=/bin/sh",
        ]  # fmt: skip
        words = ("-c", "nvidia-smi -L")
        if engine == "podman":
            return computer.run("podman", "run", *options, "--rootfs", root, *words, limit=CONTAINER_LIMIT)
        made = computer.run("tar", "--create", f"--file={folder}/image", f"--directory={root}", ".")
        made = made if made.code else computer.run("docker", "import", f"{folder}/image", name)
        if made.code != 0:
            return made
        try:
            return computer.run("docker", "run", *options, name, *words, limit=CONTAINER_LIMIT)
        finally:
            computer.run("docker", "rmi", "--force", name)


def _furnish(computer: Computer, root: str) -> list[str]:
    """A shell and the C library that nvidia-smi needs; -> the folders of libraries."""
    for name in ("etc", "tmp", "proc", "sys", "dev", "run", "usr/bin", "usr/lib", "usr/lib64"):
        os.makedirs(f"{root}/{name}")
    for name in ("bin", "lib", "lib64"):
        os.symlink(f"usr/{name}", f"{root}/{name}")
    shell = os.path.realpath("/bin/sh")
    needed = {shell: "/usr/bin/sh"}
    for program in (shell, computer.find("nvidia-smi")):
        for word in computer.run("ldd", program).out.split() if program else ():
            if word.startswith("/") and os.path.isfile(word):
                needed[os.path.realpath(word)] = word
    for real, name in needed.items():
        place = f"{root}{name if name.startswith('/usr/') else f'/usr{name}'}"
        os.makedirs(os.path.dirname(place), exist_ok=True)
        shutil.copy2(real, place)
    folders = {os.path.dirname(name) for name in needed.values() if ".so" in name}
    return sorted(folders | {"/usr/lib64", f"/usr/lib/{os.uname().machine}-linux-gnu"})


# --- jobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """state is "" where the job was not taken, and "waiting" where it did not end in time and was taken back."""

    state: str
    text: str
    why: str = ""


class Queue:
    """The queue of this box, by its own command, as somebody who is no more than a member."""

    _command = (sys.executable, "-P", "-m", "runner")

    def __init__(self, computer: Computer) -> None:
        self._computer = computer
        self.user = _member()

    def run(self, files: Mapping[str, str], options: Sequence[str], words: Sequence[str], limit: float) -> Ran:
        """A job with these files as its project, from submitting it to its end."""
        with self._project(files) as folder:
            began = time.monotonic()
            taken = self._say(folder, ASK, "submit", "-d", *options, *words)
            job = taken.out.strip()
            if taken.code != 0 or not job.isdecimal():
                return Ran("", taken.out + taken.err, taken.last)
            state, why, waits = "", "", ""
            try:
                while (left := began + limit - time.monotonic()) > 0 and state not in FINISHED:
                    for_now = max(1.0, min(left, JOB_LIMIT))
                    self._say(folder, for_now + ASK, "wait", "--quiet", "--timeout", f"{for_now:.0f}", job)
                    state, why = self._state(folder, job)
                    waits = "" if state in FINISHED else self._say(folder, ASK, "why", job).out.strip()
                    if state == QUEUED and BUILDING not in waits:
                        break
            finally:
                if state not in FINISHED:
                    self._say(folder, ASK, "cancel", job)
            if state not in FINISHED:
                return Ran("waiting", "", waits or "it did not end")
            return Ran(state, self._say(folder, ASK, "logs", job).out, why)

    def _state(self, folder: str, job: str) -> tuple[str, str]:
        shown = last_object(self._say(folder, ASK, "show", "--json", job).out) or {}
        found = shown.get("job", {})
        return str(found.get("state", "")), str(found.get("detail") or found.get("reason") or "")

    def _say(self, folder: str, limit: float, *words: str) -> Said:
        who: dict[str, Any] = {}
        if self.user:
            groups = os.getgrouplist(self.user.pw_name, self.user.pw_gid)
            who = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": groups}
        env = {"HOME": folder, "NO_COLOR": "1"}
        return self._computer.run(*self._command, *words, limit=limit, env=env, cwd=f"{folder}/project", **who)

    @contextlib.contextmanager
    def _project(self, files: Mapping[str, str]) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="gpubox-doctor-") as folder:
            os.mkdir(f"{folder}/project")
            for name, text in files.items():
                with open(f"{folder}/project/{name}", "w") as file:
                    file.write(text)
            if self.user:  # from the inside out: what is given away can be replaced by a link to what is not
                for place in (*(f"{folder}/project/{name}" for name in files), f"{folder}/project", folder):
                    os.chown(place, self.user.pw_uid, self.user.pw_gid)
            yield folder


def _member() -> pwd.struct_passwd | None:
    """Whom root becomes: the queue's own account, which is a member and no more. Others ask as who they are."""
    if os.geteuid() != 0 or os.environ.get("GPUBOX_STATE") or os.environ.get("GPUBOX_SOCKET"):
        return None
    try:
        return pwd.getpwnam(paths.MEMBERS)
    except KeyError:
        return None


def read(path: str) -> str:
    with open(path) as file:
        return file.read()
