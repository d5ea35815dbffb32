"""L1: `runner submit -d` from a laptop, directly and through ssh, beside a fresh `ssh box true` and rsync; on loopback,
or to the host that BENCH_SSH names.

The far side's shell reads no rc file, and ssh has its default key exchange. Wants ssh, ssh-keygen and sshd.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench.common import NULL, RUNNER, Box, Figure, project_in, seconds
from bench.submit import YOUNG

SSHD = next((path for path in ("/usr/sbin/sshd", "/usr/bin/sshd") if os.access(path, os.X_OK)), None)
TIMES = 20


UPLOADS = (("1,000 files of 20 kB", 1000, 20_000, 5), ("3 files of 100 MB", 3, 100 << 20, 3))
LARGE = ("3 files of 700 MB", 3, 700 << 20, 2)  # to a host of its own alone: here it would fill one disk twice


@dataclass
class There:
    """The box, as the laptop has it: added under its name, and let in by ssh."""

    root: str  # a folder here, for trees
    copies: str  # a folder there
    env: dict[str, str]
    ssh: list[str]  # `ssh OPTIONS`, and
    host: str
    uploads: tuple[tuple[str, int, int, int], ...] = UPLOADS

    def true(self) -> float:
        return seconds([*self.ssh, self.host, "true"], self.env, self.root)

    def submit(self) -> list[str]:
        return [RUNNER, "submit", "-d", "--base", "--max-size", "4G", "train.py"]

    def by(self, way: str) -> dict[str, str]:
        return {**self.env, "GPUBOX_WAY": way, "GPUBOX_COURIER": "no"}


def measure() -> list[Figure]:
    if SSHD is None or shutil.which("ssh") is None:
        print("L1 needs ssh and sshd: apt install openssh-client openssh-server")
        return []
    with a_box(drained=True) as there:
        root = project_in(there.root, there.env, 1000)
        submit = there.submit()
        first = seconds(submit, there.by("direct"), root)
        time.sleep(YOUNG)
        yards: list[float] = []
        figures = []
        for way, bar in (("direct", 0.6), ("tunnel", 0.8)):
            run = partial(seconds, submit, there.by(way), root)
            figures.append(_beside(f"L1 submit -d, unchanged, {way}", run, there.true, bar, yards))
        figures += _beside_rsync(there, root)
        for way in ("direct", "tunnel"):
            figures += _edits(there, way, root)
        figures += _uploads(there)
        alone = [_alone(there, root) for _ in range(5)]
        yard = statistics.median(yards)
        figures.append(Figure("L1 submit -d, first use of a tunnel", statistics.median(alone) / yard, "x", 2.5))
        figures.append(Figure("L1 first submit, 1,000 files of 20 kB to send, direct", first * 1e3, "ms"))
        _end_tunnels(there.env)
        return figures


@contextmanager
def a_box(drained: bool) -> Iterator[There]:
    """BENCH_SSH names a host whose box this laptop has added (and its owner drained); else one is made here."""
    if host := os.environ.get("BENCH_SSH"):
        with tempfile.TemporaryDirectory(prefix="gpubox-bench-") as root:
            env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
            ssh = ["ssh", "-F", f"{env['HOME']}/.ssh/config"]  # ssh itself takes the account's home
            yield There(root, "copies", env, ssh, host, (*UPLOADS, LARGE))
        return
    with _box() as mine, _host(mine) as ssh:
        mine.request("POST", "/box/drain", {"on": drained})
        far = {**mine.env, "XDG_CONFIG_HOME": f"{mine.root}/far"}  # the box is local for who is there, gpubox for us
        del far["GPUBOX_STATE"]
        added = [RUNNER, "box", "add", "--name", "gpubox", "--runner", _program(mine), "gpubox"]
        subprocess.run(added, env=far, check=True, stdout=NULL)
        yield There(mine.root, f"{mine.root}/copies", far, ssh, "gpubox")


@contextmanager
def _box() -> Iterator[Box]:
    """One that listens on the network."""
    made = Box()
    try:
        folder = f"{made.env['XDG_CONFIG_HOME']}/gpubox"
        os.makedirs(folder)
        with open(f"{folder}/box.toml", "w") as file:
            file.write('https = "127.0.0.1:0"\n')
        made.start()
        yield made
    finally:
        made.close()


def _beside(
    name: str, run: Callable[[], float], ssh: Callable[[], float], bar: float | None, yards: list[float]
) -> Figure:
    run()
    ours, theirs = [], []
    for _ in range(TIMES):
        theirs.append(ssh())
        ours.append(run())
    yards += theirs
    middle, yard = statistics.median(ours), statistics.median(theirs)
    note = f"{middle * 1e3:.1f} ms ({min(ours) * 1e3:.1f} to {max(ours) * 1e3:.1f}); ssh box true {yard * 1e3:.1f} ms"
    return Figure(name, middle / yard, "x", bar, note=note)


def _edits(there: There, way: str, root: str) -> list[Figure]:
    """A one-line edit, beside a tree of the same size that stays as it is: a file edited a moment ago is read again."""
    other = f"{root}-{way}"
    submit, env = there.submit(), there.by(way)
    shutil.copytree(root, other)
    seconds(submit, env, other)
    time.sleep(YOUNG)
    ours, still, theirs = [], [], []
    for turn in range(TIMES + 1):
        figures = _edited(submit, env, root), seconds(submit, env, other), there.true()
        if turn:
            for found, taken in zip((ours, still, theirs), figures, strict=True):
                found.append(taken)
    middle, yard = statistics.median(ours), statistics.median(still)
    note = f"{middle * 1e3:.1f} ms ({min(ours) * 1e3:.1f} to {max(ours) * 1e3:.1f}); unchanged {yard * 1e3:.1f} ms"
    name = f"L1 submit -d after a one-line edit, {way}"
    return [
        Figure(f"{name}, over unchanged", middle / yard, "x", 1.2, note=note),
        Figure(f"{name}, over ssh box true", middle / statistics.median(theirs), "x"),
    ]


@contextmanager
def _master(there: There) -> Iterator[list[str]]:
    """rsync through an open connection of ssh, but for the folders."""
    shared = [*there.ssh, "-o", f"ControlPath={there.root}/master"]
    quiet = partial(subprocess.run, env=there.env, check=True, stdin=NULL, stdout=NULL, stderr=NULL)
    quiet([*shared, "-fNM", there.host])
    try:
        yield ["rsync", "-a", "-e", " ".join(shared)]
    finally:
        quiet([*shared, there.host, "rm", "-rf", there.copies])
        quiet([*shared, "-O", "exit", there.host])


def _rsync_is_here() -> bool:
    if shutil.which("rsync") is None:
        print("the uploads need rsync to be compared with: apt install rsync")
    return shutil.which("rsync") is not None


def _beside_rsync(there: There, root: str) -> list[Figure]:
    """A one-line edit carried over by rsync, and a submit after one."""
    if not _rsync_is_here():
        return []
    figures = []
    with _master(there) as rsync:
        carry = [*rsync, "--mkpath", f"{root}/", f"{there.host}:{there.copies}/tree"]
        seconds(carry, there.env, root)
        for way in ("direct", "tunnel"):
            ours, theirs = [], []
            for _ in range(TIMES):
                ours.append(_edited(there.submit(), there.by(way), root))
                theirs.append(_edited(carry, there.env, root))
            middle, yard = statistics.median(ours), statistics.median(theirs)
            note = f"{middle * 1e3:.1f} ms; rsync {yard * 1e3:.1f} ms"
            name = f"L1 submit -d after a one-line edit, {way}, over rsync"
            figures.append(Figure(name, middle / yard, "x", 1.2, note=note))
    return figures


def _uploads(there: There) -> list[Figure]:
    """What the box has never seen, beside rsync over an open connection of ssh to the same host; each sends random
    bytes, so that nothing is packed."""
    if not _rsync_is_here():
        return []
    figures = []
    with _master(there) as rsync:
        for what, count, size, times in there.uploads:
            ours, theirs = [], []
            for turn in range(times):
                root, copy = f"{there.root}/tree-{count}-{turn}", f"{there.copies}/tree-{count}-{size}-{turn}"
                _noise(root, count, size)
                os.sync()  # neither waits for what the other left to write
                theirs.append(seconds([*rsync, "--mkpath", f"{root}/", f"{there.host}:{copy}"], there.env, root))
                os.sync()
                ours.append(seconds(there.submit(), there.by("direct"), root))
                shutil.rmtree(root)
            middle, yard = statistics.median(ours), statistics.median(theirs)
            note = f"{middle * 1e3:.0f} ms ({min(ours) * 1e3:.0f} to {max(ours) * 1e3:.0f}); rsync {yard * 1e3:.0f} ms"
            figures.append(Figure(f"L1 first upload, {what}, over rsync", middle / yard, "x", 1.5, note=note))
    return figures


def _noise(root: str, count: int, size: int) -> None:
    """A new tree of random bytes, in git like the others."""
    for number in range(count):
        folder = f"{root}/package{number // 50}"
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/data{number}", "wb") as file:
            for start in range(0, size, 1 << 20):
                file.write(os.urandom(min(1 << 20, size - start)))
    with open(f"{root}/train.py", "w") as file:
        file.write("print('hi', flush=True)\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)


def _edited(submit: list[str], env: dict[str, str], root: str) -> float:
    with open(f"{root}/package3/module170.py", "a") as file:
        file.write(f"# {time.time()}\n")
    return seconds(submit, env, root)


def _alone(there: There, root: str) -> float:
    _end_tunnels(there.env)
    return seconds(there.submit(), there.by("tunnel"), root)


def _end_tunnels(env: dict[str, str]) -> None:
    """A keeper leaves when its socket is gone."""
    folder = f"{env['XDG_RUNTIME_DIR']}/gpubox"
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
    time.sleep(1.5)


def _program(mine: Box) -> str:
    path = f"{mine.root}/runner"
    with open(path, "w") as file:
        file.write(f'#!/bin/sh\nexport GPUBOX_STATE={mine.state}\nexec {RUNNER} "$@"\n')
    os.chmod(path, 0o755)
    return path


@contextmanager
def _host(mine: Box) -> Iterator[list[str]]:
    """An sshd that lets us in as ourselves, known to our ssh; yields what to call it with."""
    folder = f"{mine.root}/.ssh"
    os.mkdir(folder, 0o700)
    for name in ("id_ed25519", "host"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/{name}"], check=True, stdin=NULL
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(f"{folder}/host.pub") as key, open(f"{folder}/known_hosts", "w") as known:
        known.write(f"[127.0.0.1]:{port} {key.read()}")
    with open(f"{folder}/config", "w") as file:
        file.write(f"Host gpubox\n HostName 127.0.0.1\n Port {port}\n User {os.environ.get('USER', 'root')}\n")
        file.write(f" IdentityFile {folder}/id_ed25519\n UserKnownHostsFile {folder}/known_hosts\n")
    with open(f"{folder}/sshd", "w") as file:
        file.write(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nUsePAM no\nStrictModes no\nPidFile none\n"
        )
        file.write(f"AuthorizedKeysFile {folder}/id_ed25519.pub\nPasswordAuthentication no\nSetEnv SHLVL=1\n")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    assert SSHD is not None
    daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", f"{folder}/sshd"], stdin=NULL, stdout=NULL, stderr=NULL)
    try:
        ssh = ["ssh", "-F", f"{folder}/config"]
        for _ in range(100):
            if subprocess.run([*ssh, "gpubox", "true"], env=mine.env, stdin=NULL, stderr=NULL).returncode == 0:
                break
            time.sleep(0.05)
        yield ssh
    finally:
        daemon.kill()
        daemon.wait()
