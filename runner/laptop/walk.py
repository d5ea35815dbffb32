"""Which paths of a project belong to its snapshot. Slow and careful: it runs only when the index sees a change."""

from __future__ import annotations

import os
import stat

from runner import errors
from runner.laptop import git
from runner.laptop.git import shown
from runner.laptop.ignore import Rules, contents, is_environment, leads_out, never, refuse_control, refuse_secrets
from runner.laptop.index import ABSENT, Stamp, stamp_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

RULES = ".runnerignore"
RENAME = "rename, or leave out with a line in .runnerignore, in which ? is any character"


class Names:
    """The answer. `folders` holds every folder that was looked into, with its stamp from before the look."""

    def __init__(self, root: str, include: Iterable[str]) -> None:
        self.root = root
        self.include = list(include)
        self.files: dict[str, Stamp] = {}
        self.links: dict[str, tuple[Stamp, str]] = {}
        self.folders: dict[str, Stamp] = {}
        self.passed: list[str] = []  # folders that were seen and not entered
        self.empty: list[str] = []
        self.watched: dict[str, Stamp] = {}
        self.listings: dict[str, str] = {}
        self.warnings: list[str] = []
        self.rules = Rules(root)

    def add(self, path: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self.files[path] = stamp_of(status)
        elif stat.S_ISLNK(status.st_mode):
            self._add_link(path, status)
        else:
            self._warn(f"{shown(path)} is not a file (socket, pipe or device): left out")

    def _add_link(self, path: str, status: os.stat_result) -> None:
        target = os.readlink(f"{self.root}/{path}")
        # A link that stays behind is watched too, so that a better target is noticed.
        if leads_out(path, target):
            self.watched[path] = stamp_of(status)
            self._warn(f"{shown(path)} is a link out of the project ({shown(target)}): left out")
        else:
            self.links[path] = (stamp_of(status), target)

    def _warn(self, sentence: str) -> None:
        if sentence not in self.warnings:  # a path can be listed and included
            self.warnings.append(sentence)

    def watch(self, path: str) -> None:
        if path not in self.files:
            status = _lstat(f"{self.root}/{path}")
            self.watched[path] = stamp_of(status) if status else ABSENT

    def entries(self, folder: str) -> list[os.DirEntry[str]]:
        """Look into a folder, and remember that we did."""
        full = f"{self.root}/{folder}" if folder else self.root
        try:
            self.folders[folder] = stamp_of(os.lstat(full))
            with os.scandir(full) as found:
                return sorted(found, key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise errors.BadData(
                f"the folder {shown(folder or self.root)} can't be read: {error.strerror}",
                f"make it readable, or leave it out with a line `{shown(folder)}/` in .runnerignore",
            ) from None

    def prune(self) -> None:
        """Drop what lies below a link: git goes on listing a folder's files after a link took its place."""
        above = {folder for path in (*self.files, *self.links) for folder in ancestors(path)}
        if not above.isdisjoint(self.links):
            self.files = {path: stamp for path, stamp in self.files.items() if not _below(path, self.links)}
            self.links = {path: link for path, link in self.links.items() if not _below(path, self.links)}

    def finish(self) -> Names:
        """What holds for every way of finding names: nothing below a link, empty folders, no secrets unasked."""
        self.prune()
        kept = (*self.files, *self.links, *self.folders)
        full = {folder for path in kept for folder in ancestors(path)} | {""}
        self.empty = sorted(folder for folder in self.folders if folder not in full)
        refuse_control([*self.files, *self.links, *self.empty], RENAME)
        refuse_secrets(self.files, self.include, self.rules.allows)
        return self


def of(root: str, top: str | None, include: Iterable[str]) -> Names:
    """The names of a project; `top` is git's listing of its root, None where there is no git."""
    names = Names(root, include)
    names.watch(RULES)
    if top is None:
        _walk(names, "")
    else:
        _ask_git(names, top)
    for path in names.include:
        _include(names, path)
    return names.finish()


def ancestors(path: str) -> Iterable[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _below(path: str, links: Iterable[str]) -> bool:
    return any(folder in links for folder in ancestors(path))


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


# --- with git ------------------------------------------------------------------------------------------------------


def _ask_git(names: Names, top: str) -> None:
    names.watch(".git/info/exclude")
    listed = _listed(names, top)
    for path in listed:
        if path.rpartition("/")[2] == RULES:
            names.rules.read(path)
    if RULES not in listed:
        names.rules.read(RULES)  # ignored by git itself, and still a rule
    environments = {path.rpartition("/")[0] for path in listed if path.endswith("/pyvenv.cfg")}
    for path, status in listed.items():
        inside = not environments.isdisjoint(ancestors(path)) if environments else False
        if not inside and not names.rules.excludes(path):
            names.add(path, status)
    names.prune()
    _look_around(names)


def _listed(names: Names, top: str) -> dict[str, os.stat_result]:
    """Everything that git lists, submodules and nested repositories included, as far as it exists."""
    found: dict[str, os.stat_result] = {}
    names.listings[""] = top
    pending = [""]
    while pending:
        prefix = pending.pop()
        for name in names.listings[prefix].split("\0"):
            path = prefix + name.rstrip("/")
            if not name or path in found or never(path):
                continue
            full = f"{names.root}/{path}"
            status = _lstat(full)
            if status is None:
                continue  # deleted, but not yet from git's index
            if not stat.S_ISDIR(status.st_mode):
                found[path] = status
            elif os.path.lexists(f"{full}/.git") and f"{path}/" not in names.listings:
                names.listings[f"{path}/"] = git.listing(full, top=False).answer()
                pending.append(f"{path}/")
            elif not os.path.lexists(f"{full}/.git"):
                found.update(_everything(names, path))  # a submodule's place without its repository
    return found


def _everything(names: Names, folder: str) -> dict[str, os.stat_result]:
    """All below a folder, rules aside."""
    found: dict[str, os.stat_result] = {}
    pending = [folder]
    while pending:
        for entry in names.entries(folder := pending.pop()):
            path = f"{folder}/{entry.name}"
            if never(entry.name) and entry.name != "runs":
                continue
            if not entry.is_dir(follow_symlinks=False):
                found[path] = entry.stat(follow_symlinks=False)
            elif not is_environment(f"{names.root}/{path}"):
                pending.append(path)
    return found


def _look_around(names: Names) -> None:
    """Find what git does not list: empty folders, and what can't be sent. Ignored ones are not entered."""
    known = {folder for path in (*names.files, *names.links) for folder in ancestors(path)} | {""}
    known |= set(names.folders)
    fresh = set(known)
    while fresh:
        candidates: dict[str, os.DirEntry[str]] = {}
        for folder in sorted(fresh):
            for entry in names.entries(folder):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if path in known:
                    continue
                if _odd(names, path, entry):
                    candidates[path] = entry
                elif entry.is_dir(follow_symlinks=False):
                    names.passed.append(path)
        fresh = set()
        kept = _not_ignored(names, candidates)
        names.passed += [path for path in candidates if path not in kept]
        for path, entry in kept.items():
            if entry.is_dir(follow_symlinks=False):
                fresh.add(path)
            else:
                names.add(path, entry.stat(follow_symlinks=False))
        known |= fresh


def _odd(names: Names, path: str, entry: os.DirEntry[str]) -> bool:
    """A folder worth a question to git, or something that is neither file, link nor folder."""
    if never(path) or entry.is_symlink() or entry.is_file(follow_symlinks=False):
        return False
    folder = entry.is_dir(follow_symlinks=False)
    if folder and (is_environment(entry.path) or _ignores_itself(entry.path)):
        return False
    return not names.rules.excludes(path, folder)


def _ignores_itself(folder: str) -> bool:
    """Tools mark their caches with a .gitignore that says `*`; with other rules git lists that file itself."""
    try:
        return b"*" in contents(f"{folder}/.gitignore").split()
    except OSError:
        return False


def _not_ignored(names: Names, candidates: dict[str, os.DirEntry[str]]) -> dict[str, os.DirEntry[str]]:
    by_repository: dict[str, list[str]] = {}
    for path in candidates:
        repository = max((prefix for prefix in names.listings if path.startswith(prefix)), key=len)
        by_repository.setdefault(repository, []).append(path)
    kept = dict(candidates)
    for repository, paths in by_repository.items():
        asked = {path[len(repository) :] + "/" * candidates[path].is_dir(follow_symlinks=False): path for path in paths}
        for name in git.ignored(f"{names.root}/{repository}", list(asked)):
            kept.pop(asked.get(name, ""), None)
    return kept


# --- without git ---------------------------------------------------------------------------------------------------


def _walk(names: Names, folder: str) -> None:
    pending = [folder]
    while pending:
        folder = pending.pop()
        prefix = f"{folder}/" if folder else ""
        entries = [entry for entry in names.entries(folder) if not never(prefix + entry.name)]
        for entry in entries:
            if entry.name in (".gitignore", RULES) and entry.is_file():
                names.rules.read(prefix + entry.name)
                names.watch(prefix + entry.name)
        for entry in entries:
            path = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                entered = not is_environment(entry.path) and not names.rules.excludes(path, folder=True)
                (pending if entered else names.passed).append(path)
            elif not names.rules.excludes(path):
                names.add(path, entry.stat(follow_symlinks=False))


# --- by name -------------------------------------------------------------------------------------------------------


def _include(names: Names, path: str) -> None:
    """Bring in what a person named, ignored or not."""
    status = _lstat(f"{names.root}/{path}")
    if status is None:
        raise errors.BadRequest(
            f"--include {shown(path)}: nothing of that name in {shown(names.root)}",
            "give the name relative to the project's root",
        )
    if not stat.S_ISDIR(status.st_mode):
        names.add(path, status)
        return
    for inner, found in _everything(names, path).items():
        names.add(inner, found)


def included(names: Iterable[str]) -> list[str]:
    """Names given by --include, normalized; refused when they lead out of the project or into a repository's inside."""
    clean = []
    for name in names:
        path = os.path.normpath(name)
        if not name or path == "." or path.startswith(("/", "../")) or path == ".." or ".git" in path.split("/"):
            raise errors.BadRequest(
                f"--include {shown(name)}: not a file or folder inside the project",
                "give the name relative to the project's root",
            )
        clean.append(path)
    return sorted(set(clean))
