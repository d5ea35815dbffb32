"""The usual change to a project: files edited, none added, gone or renamed. The last look at it is then mended, at a
fraction of the price of a new one. In doubt there is no mending, and walk.py looks at everything.
"""

from __future__ import annotations

import os
from stat import S_ISDIR, S_ISREG

from runner.laptop import hashes
from runner.laptop.ignore import never
from runner.laptop.index import FIELDS, Stamp, stamp_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.laptop.index import Index

RULES = (".gitignore", ".runnerignore", ".gitmodules", "pyvenv.cfg")  # a change of these can change any name


class Mended:
    """The last look, with the stamps and hashes of what changed since."""

    def __init__(self, known: Index) -> None:
        self.stamps = known.stamps()
        self.shas = [known.sha(number) for number in range(len(known.files))]
        self.bytes = known.bytes


def mended(root: str, known: Index, stats: list[int]) -> Mended | None:
    """The project as it is now, given fresh stamps of all that the index names; None when that is not for us."""
    found = Mended(known)
    files, links = len(known.files), len(known.links)
    folders = files + links + len(known.folders)
    edited = []
    for number, before in enumerate(found.stamps):
        now = tuple(stats[number * FIELDS : number * FIELDS + FIELDS])
        if now == before:
            continue
        if number < files:
            if not S_ISREG(now[4]) or known.files[number].rpartition("/")[2] in RULES:
                return None
            edited.append(number)
        elif number < files + links:
            stamp = _same_link(root, known.links[number - files], known.targets[number - files])
            if stamp is None:
                return None
            found.stamps[number] = stamp
        elif number >= folders or not S_ISDIR(now[4]):
            return None
        else:
            found.stamps[number] = (now[0], now[1], now[2], now[3], now[4])
            if _news(root, known.folders[number - files - links], known):
                return None
    return found if _read(root, known, stats, edited, found) else None


def _read(root: str, known: Index, stats: list[int], edited: list[int], found: Mended) -> bool:
    kind = hashes.sha256(sum(stats[number * FIELDS] for number in edited))
    for number in edited:
        before = found.stamps[number]
        try:
            stamp, found.shas[number] = hashes.of_file(root, known.files[number], kind)
        except FileNotFoundError:
            return False
        found.stamps[number] = stamp
        found.bytes += stamp[0] - before[0]
    return True


def _same_link(root: str, path: str, target: str) -> Stamp | None:
    try:
        stamp = stamp_of(os.lstat(f"{root}/{path}"))
        return stamp if os.readlink(f"{root}/{path}") == target else None
    except OSError:
        return None


def _news(root: str, folder: str, known: Index) -> bool:
    """Whether a folder that changed holds a name that walk.py must judge. Where git lists the files, and its list is
    as it was, a file or link that is not in the index is one that was judged before, or is ignored."""
    names = known.names()
    try:
        with os.scandir(f"{root}/{folder}" if folder else root) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if path in names or never(path):
                    continue
                if known.listings and (entry.is_symlink() or entry.is_file(follow_symlinks=False)):
                    continue
                return True
    except OSError:
        return True
    return False
