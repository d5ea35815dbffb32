"""What is on a Debian host, a line each: packages, files, units. Runs there: `python3 - <inventory.py`.

Two of them, from before and after something, tell whether it left anything behind. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess

# Not looked at: what the kernel makes up or a boot makes new, what others may throw away or only ever add to.
NOT_FILES = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var/cache", "/var/log", "/var/tmp")


def said(*words: str) -> list[str]:
    return subprocess.run(words, stdout=subprocess.PIPE, check=False, text=True).stdout.splitlines()


def described(path: str) -> str:
    found = os.lstat(path)
    kind, what = "other", ""
    if stat.S_ISLNK(found.st_mode):
        kind, what = "link", os.readlink(path)
    elif stat.S_ISDIR(found.st_mode):
        kind = "folder"
    elif stat.S_ISREG(found.st_mode):
        kind = "file"
        with open(path, "rb") as file:
            what = hashlib.sha256(file.read()).hexdigest()[:16]
    marks = " ".join(sorted(os.listxattr(path, follow_symlinks=False)))
    return f"{kind} {path} {stat.S_IMODE(found.st_mode):04o} {found.st_uid}:{found.st_gid} {what} {marks}".rstrip()


def files() -> list[str]:
    lines, folders = [], ["/"]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.path in NOT_FILES:
                    continue
                lines.append(described(entry.path))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return lines


def units() -> list[str]:
    """How each starts, and what is loaded now; not the processes of a session, devices or what ran once."""
    known = said("systemctl", "list-unit-files", "--no-legend")
    lines = [f"unit {' '.join(line.split())}" for line in known if not line.startswith("session-")]
    for line in said("systemctl", "list-units", "--all", "--plain", "--no-legend"):
        name, loaded, active = line.split()[:3]
        if not name.endswith((".scope", ".device", ".mount")) and "@" not in name:
            lines.append(f"loaded {name} {loaded} {active}")
    return lines


def main() -> None:
    form = (
        "package ${Package}:${Architecture} ${Version} ${Status}\\n"  # also those that are removed, but not all of them
    )
    lines = said("dpkg-query", "--show", f"--showformat={form}")
    lines += [f"automatic {name}" for name in said("apt-mark", "showauto")]
    print("\n".join(sorted([*lines, *files(), *units()])))  # noqa: T201


if __name__ == "__main__":
    main()
