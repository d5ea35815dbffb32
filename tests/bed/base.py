"""The trees and images that hosts start from: built once, shared, never changed.

Once per suite, version of the code that builds them, and state of this machine's mirrors, proxy and authorities.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bed import sources
from bed.commands import call, private

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "/var/tmp") / "gpubox-bed"
PACKAGES = (
    *("ca-certificates", "dbus", "iproute2", "kmod", "openssh-server", "procps", "python3", "python3-apt"),
    *("sudo", "systemd", "systemd-sysv", "udev"),
)
KERNEL = ("initramfs-tools", "linux-image-cloud-amd64")
DISK_SIZE = "12G"
OWNER = "owner"  # a person's account, with sudo; the hosts also take root

# Whatever debootstrap mounts or leaves running ends with it, and it ends with us.
ALONE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


class Base:
    """Something built, at path; held by a shared lock until close(), so that nobody removes it meanwhile."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        os.close(self._lock)


def tree(suite: str) -> Base:
    """A Debian system with ssh, without a kernel. About a minute when it has to be built."""
    return held(f"tree-{suite}", functools.partial(build_tree, suite))


def image() -> Base:
    """A folder with the disk, kernel and initrd of a Debian 13. Two to three minutes when it has to be built."""
    return held("image", build_image)


def held(name: str, build: Callable[[Path], None]) -> Base:
    """CACHE/name-VERSION, built by one of those who want it while the others wait."""
    private(CACHE)
    path = CACHE / f"{name}-{version()}"
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not path.exists():
            fcntl.flock(lock, fcntl.LOCK_EX)
            _build(name, path, build)
            fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:
        os.close(lock)  # else nobody, and not we, could try again
        raise
    return Base(path, lock)


def _build(name: str, path: Path, build: Callable[[Path], None]) -> None:
    if path.exists():
        return  # by somebody else, while we waited for the lock
    _remove_older(name, path)
    part = Path(f"{path}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a builder that was killed
    build(part)
    part.rename(path)


@functools.cache
def version() -> str:
    """Names what trees are made of: the code that builds them, and this machine's mirrors, proxy and authorities."""
    code = [Path(__file__).with_name(name).read_bytes() for name in ("base.py", "sources.py")]
    words = (sources.archive(), *map(str, sources.mirrors()), sources.apt_settings(), sources.environment())
    return hashlib.sha256(b"\0".join([*code, *map(str.encode, (*words, *sources.authorities()))])).hexdigest()[:12]


def _remove_older(name: str, newest: Path) -> None:
    for lock in CACHE.glob(f"{name}-*.lock"):
        path = lock.with_suffix("")
        if path == newest:
            continue
        with open(lock, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # somebody's hosts run on it
            for old in (path, Path(f"{path}.part")):
                shutil.rmtree(old, ignore_errors=True)


def key() -> Path:
    """The private key that every host lets in."""
    path = CACHE / "key"
    private(CACHE)
    with open(CACHE / "key.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gpubox-bed", "-f", str(path))
    return path


def build_tree(suite: str, place: Path, packages: tuple[str, ...] = ()) -> None:
    """debootstrap, then what makes it a host that this machine can reach and that reaches the same mirrors."""
    include = ",".join((*PACKAGES, *packages))
    call(*ALONE, "debootstrap", "--variant=minbase", f"--include={include}", suite, str(place), sources.archive())
    _trust(place)
    _let_in(place)
    (place / "etc/apt/sources.list").unlink(missing_ok=True)
    (place / "etc/apt/sources.list.d/debian.sources").write_text(sources.apt_sources(suite))
    (place / "etc/apt/apt.conf.d/00machine").write_text(sources.apt_settings())
    with open(place / "etc/environment", "a") as file:
        file.write(sources.environment())
    (place / "etc/resolv.conf").write_text(sources.resolver())
    inside = functools.partial(call, *ALONE, "chroot", str(place))
    inside("apt-get", "update", "--quiet")
    inside("apt-get", "clean")
    inside("systemctl", "enable", "ssh")
    built = (place / "usr").stat().st_mtime_ns
    for folder in ("etc", "var"):  # what systemd-update-done does: else a first boot does again what dpkg just did
        mark = place / folder / ".updated"
        mark.touch()
        os.utime(mark, ns=(built, built))


def build_image(place: Path) -> None:
    tree = place / "tree"
    place.mkdir()
    build_tree("trixie", tree, KERNEL)
    (tree / "etc/hostname").write_text("machine\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 machine\n")
    (tree / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")  # qemu's, which asks this machine's
    (tree / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    (tree / "etc/systemd/network/80-dhcp.network").write_text("[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n")
    call("chroot", str(tree), "systemctl", "enable", "systemd-networkd")
    for name, pattern in (("kernel", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        shutil.copyfile(next((tree / "boot").glob(pattern)), place / name)
    call("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(place / "disk"), DISK_SIZE)
    shutil.rmtree(tree)


def _trust(place: Path) -> None:
    """Each authority by itself, as an owner adds one, so that update-ca-certificates on the host keeps it."""
    known = set(sources.authorities(place))
    for number, pem in enumerate(pem for pem in sources.authorities() if pem not in known):
        (place / f"usr/local/share/ca-certificates/machine-{number}.crt").write_text(f"{pem}\n")
    call("chroot", str(place), "update-ca-certificates")


def _let_in(place: Path) -> None:
    call("chroot", str(place), "useradd", "--create-home", "--shell", "/bin/bash", "--groups", "sudo", OWNER)
    rule = place / "etc/sudoers.d/owner"
    rule.write_text(f"{OWNER} ALL=(ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    for user, folder in (("root", "root"), (OWNER, f"home/{OWNER}")):
        call("chroot", str(place), "install", "-d", "-m", "700", "-o", user, "-g", user, f"/{folder}/.ssh")
        keys = place / folder / ".ssh/authorized_keys"
        shutil.copyfile(f"{key()}.pub", keys)
        call("chroot", str(place), "chown", f"{user}:{user}", f"/{folder}/.ssh/authorized_keys")
        keys.chmod(0o600)
