"""From a folder of ours down to where a box wants something: by descriptor, no link followed, nothing led out."""

from __future__ import annotations

import errno
import os

from runner import words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable

UNSEEN = dict.fromkeys((*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF))  # by macOS
GIT_NAMES = frozenset(("head", "config", "config.worktree", "commondir", "hooks", "objects", "refs"))
PART = ".runner-pull-"  # + version: a file on its way; nothing of a box's is called so
DEPTH_MAX = 100  # folders, as many as a box lists
NAME_MAX, TARGET_MAX = 255, 4095  # bytes; of one name in a path, of where a link leads
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Refusal(Exception):
    """Why something from the box may not be written here."""


def enter(root: int, path: str, make: bool) -> tuple[int, str]:
    """(descriptor of the folder that holds a path below an open one, its name there), with every step looked at. make:
    the folders on the way."""
    *folders, name = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in (*folders, name)) or path.startswith(PART[:-1]):
        raise Refusal("not a path inside the folder")
    if not words.CONTROL.isdisjoint(path):
        raise Refusal("control characters are in its name; let the job give it another one")
    if len(folders) > DEPTH_MAX or any(_length(part) > NAME_MAX for part in (*folders, name)):
        raise Refusal("its name is too long for this computer")
    fd = os.dup(root)
    try:
        for part in folders:
            if make:
                try:
                    os.mkdir(part, dir_fd=fd)
                except FileExistsError:
                    pass
            fd, before = os.open(part, _FOLDER, dir_fd=fd), fd
            os.close(before)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Refusal(f'"{part}" here is no folder') from None
        raise
    return fd, name


def repositories(root: int, paths: Iterable[str]) -> set[str]:
    """The folders that git would take for a repository, bare as it is, by what is to come and what is here. HEAD is a
    file or a link."""
    names: dict[str, set[str]] = {}
    for path in paths:
        kind = ""
        while path:
            path, _, name = path.rpartition("/")
            beside = names.setdefault(path, set())
            if _as_git(name) + kind in beside:
                break
            beside.add(_as_git(name) + kind)
            kind = "/"
    found = set()
    for folder, beside in names.items():
        if not GIT_NAMES.isdisjoint(name.rstrip("/") for name in beside):
            beside.update(_names_in(root, folder))
            whole = {name.rstrip("/") for name in beside}
            if "head" in beside and ("commondir" in whole or whole >= {"objects", "refs"}):
                found.add(folder)
    return found


def check_git(path: str, repositories: Container[str]) -> None:
    """Refusal for what git would run something by. repositories: as found by the function of that name."""
    parts = path.split("/")
    for depth, part in enumerate(parts):
        name = _as_git(part)
        if name == ".git" or (name in GIT_NAMES and "/".join(parts[:depth]) in repositories):
            raise Refusal("git runs what a repository's configuration says; let the job pack it into an archive")


def _as_git(name: str) -> str:
    """As a disk reads it that knows neither case nor what is unseen."""
    return name.translate(UNSEEN).lower()


def _names_in(root: int, folder: str) -> list[str]:
    """In lower case, those of folders with a slash behind."""
    try:
        fd, _ = enter(root, f"{folder}/x" if folder else "x", False)
    except (OSError, Refusal):
        return []
    try:
        with os.scandir(fd) as found:
            return [_as_git(entry.name) + "/" * entry.is_dir(follow_symlinks=False) for entry in found]
    finally:
        os.close(fd)


def inside(path: str, target: str) -> bool:
    """Whether a link stays in the folder: steps up only at its beginning, no more than it lies deep."""
    parts = target.split("/")
    if "\0" in target or _length(target) > TARGET_MAX:
        return False
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    return bool(target) and not target.startswith("/") and ".." not in parts[ups:] and ups <= path.count("/")


def _length(name: str) -> int:
    """In bytes. Refusal for what can't be a name: a box may send halves of surrogate pairs."""
    try:
        return len(os.fsencode(name))
    except UnicodeEncodeError:
        raise Refusal("its name is no text") from None


def readlink(name: str, folder: int) -> str | None:
    """A link's target; "" for what is no link, None for nothing."""
    try:
        return os.readlink(name, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
