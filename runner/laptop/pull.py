"""A job's outputs, brought home to `<project>/runs/<box>-<id>/`.

Only what is missing or changed is fetched. `.runner-pull.json` there says which files are ours: an older copy of ours
gives way to a newer one, a file that a person made or changed never does. What the box says is not believed: no path
leads out of the folder, and no link is followed. At the end the box is told the hashes of what arrived, and compares:
what differs is fetched again, and only outputs that arrived whole may ever be cleaned away there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from runner import errors, words
from runner.laptop import awaited
from runner.laptop.client import REPLY_SECONDS, Lost, quote
from runner.laptop.descent import PART, Refusal, check_git, enter, inside, readlink, repositories
from runner.laptop.light import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.laptop.client import Client

    Version = list[int]  # [size, time of last change in nanoseconds]

RECEIPT = ".runner-pull.json"
ENTRIES_MAX = 100_000  # as many as a box lists
READ_BYTES = 50 << 20  # a second, that a slow disk of a box reads and hashes
GROWTH = 64 << 20  # bytes by which a file may have grown since it was listed, beside as much as it had


class Output:
    """A file on the box, as its listing says."""

    __slots__ = ("executable", "path", "version")

    def __init__(self, listed: dict[str, Any]) -> None:
        self.path = str(listed["path"])
        self.executable = bool(int(listed["mode"]) & 0o100)
        self.version: Version = [int(listed["size"]), round(listed["modified_at"] * 1e9)]
        if not (0 <= self.version[0] < 1 << 62 and abs(self.version[1]) < 1 << 62):
            raise ValueError(listed)

    @property
    def limit(self) -> int:
        """Bytes: a job may still write to it, but whoever sends more than this only means to fill a disk."""
        return 2 * self.version[0] + GROWTH


class Pulled:
    """What is at home now."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.note = ""  # why it is not in the project's folder
        self.files: list[tuple[str, int]] = []  # (path in the folder, size), fetched now or before
        self.fetched = 0  # how many of them were fetched now
        self.aside: list[tuple[str, str]] = []  # (path, where ours lies because a person's file has that name)
        self.refused: list[tuple[str, str]] = []  # (path, why it was not brought home)
        self.complete = False  # the job has ended and all its outputs are here


def pull(client: Client, job_id: int, box: str, project: str, to: str = "") -> Pulled:
    """to: the folder to make theirs in, instead of the project's runs/; also what its submit said. project: it may be
    the box's word, which counts where we ever submitted from there."""
    # The state is asked first: if the job had ended then, the list is complete.
    finished = client.get(f"/jobs/{job_id}")["job"]["state"] in words.FINISHED
    outputs, links = _listed(client.get(f"/jobs/{job_id}/outputs"))
    name = f"{_plain(box)}-{job_id}"
    meant, noted = awaited.meant(client.box, str(job_id))
    to, ours = to or meant, noted or awaited.trusted(client.box, project)
    base, note = ("", "") if to else _home(ours, project, client.box)
    done = Pulled(os.path.join(to or f"{base}/runs", name))
    done.note = note
    if outputs or links:
        try:
            with _Folder(client, job_id, name, done) as folder:
                folder.bring(outputs, links)
                if finished and not done.refused:
                    folder.acknowledge(outputs)
        except OSError as error:
            raise _local(error, done.folder, job_id) from error
    elif finished:
        _differing(client, job_id, [])
    done.complete = finished and not done.refused
    if finished:
        awaited.forget(client.box, str(job_id))
    return done


def _differing(client: Client, job_id: int, hashes: list[str], size: int = 0) -> list[str]:
    """Say what arrived, in the order of the box's listing; the paths of what it has otherwise. size: of it all, which
    the box reads once more before it answers."""
    client.patience = REPLY_SECONDS + size / READ_BYTES
    try:
        differ: list[str] = client.post(f"/jobs/{job_id}/fetched", {"hashes": hashes})["differ"]
        return differ
    except errors.Refused:
        return []  # somebody else's job: its outputs wait for them
    finally:
        client.patience = REPLY_SECONDS


def _listed(found: Any) -> tuple[list[Output], dict[str, str]]:
    try:
        outputs = [Output(each) for each in found["outputs"]]
        links = {str(path): str(target) for path, target in found["links"].items()}
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        raise errors.BadData(
            "what the box sends is not a list of outputs", "`runner doctor` compares the versions"
        ) from None
    if len(outputs) + len(links) > ENTRIES_MAX:
        raise errors.TooLarge(f"the box lists more than {ENTRIES_MAX:,} outputs", "let the job pack them into one file")
    return outputs, links


def _home(project: str, said: str, box: str) -> tuple[str, str]:
    """Where `runs/` is, and why it is not where one would look for it. said: the project by the box's word."""
    if writable(project):
        return project, ""
    try:
        here = os.getcwd()
    except OSError:
        raise errors.NotFound("the current directory is gone", "go to another one, or say --to DIR") from None
    if not project:
        apart = f"nothing was submitted to {box} from {said} here, so the outputs are in the current folder"
        return here, apart if said and said != here else ""
    why = "can't be written to" if os.path.isdir(project) else "is gone"
    return here, f"the project's folder {project} {why}, so the outputs are here"


def writable(project: str) -> bool:
    """Whether runs/ can be there."""
    runs = os.path.join(project, "runs")
    return bool(project) and os.access(runs if os.path.isdir(runs) else project, os.W_OK | os.X_OK)


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip(".") or "box"


def _local(error: OSError, folder: str, job_id: int) -> errors.Problem:
    again = f"then `runner pull {job_id}` goes on where this stopped"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.DiskFull(f"no room on this computer for the outputs, in {folder}", f"make room; {again}")
    where = error.filename if isinstance(error.filename, str) else folder
    return errors.Refused(f"can't write the outputs to {folder}: {error.strerror} ({where})", f"look why; {again}")


class _Folder:
    """The folder at home, and what we know about the files in it."""

    def __init__(self, client: Client, job_id: int, name: str, done: Pulled) -> None:
        self.client, self.job_id, self.done = client, job_id, done
        self.suffix = f".from-{name}"
        os.makedirs(done.folder, exist_ok=True)
        self.fd = os.open(done.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.fd, fcntl.LOCK_EX)  # another pull of this job is waited for
        self.repositories: set[str] = set()  # folders in which git would find one
        # Path on the box -> {"is": version on the box, "as": path here, "ours": versions here, "link": target}
        self.receipt: dict[str, dict[str, Any]] = self._read_receipt()

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def bring(self, outputs: list[Output], links: dict[str, str]) -> None:
        self.repositories = repositories(self.fd, [*(output.path for output in outputs), *links])
        wanted = []
        for output in outputs:
            place = self._place(output.path, output.version)
            if place:
                wanted.append((output, place))
                self._plan(output.path, output.version, place)
            elif place is not None:
                self._arrived(output.path, output.version[0])
        self._require_room(sum(output.version[0] for output, _ in wanted))
        # Written before the first rename: were we killed after it, the new file would look like a person's.
        if wanted:
            self._write_receipt()
        for output, place in wanted:
            try:
                self._fetch(output, place)
            except errors.NotFound:
                self.done.refused.append((output.path, "it was removed on the box while we fetched"))
            except Refusal as refusal:  # what is here changed while we fetched
                self.done.refused.append((output.path, str(refusal)))
        for path, target in sorted(links.items()):
            self._link(path, target)
        self._write_receipt()
        for name in os.listdir(self.fd):
            if name.startswith(PART):
                os.unlink(name, dir_fd=self.fd)

    def _require_room(self, size: int) -> None:
        """Before the disk is full, not when."""
        found = os.statvfs(self.fd)
        if size > found.f_bavail * found.f_frsize + sum(self._arrived_in_part()):
            raise OSError(errno.ENOSPC, "there is less room than they take")

    def _arrived_in_part(self) -> list[int]:
        return [os.stat(name, dir_fd=self.fd).st_size for name in os.listdir(self.fd) if name.startswith(PART)]

    def acknowledge(self, outputs: list[Output]) -> None:
        """Have the box compare; fetch once more what did not arrive as it is there."""
        size = sum(output.version[0] for output in outputs)
        for _ in range(2):
            hashes = [self._hash(output.path) for output in outputs]
            differ = {output.path for output in outputs} & set(_differing(self.client, self.job_id, hashes, size))
            if not differ:
                self._write_receipt()  # with the hashes
                return
            for path in differ:
                self._discard(path)
            kept, self.done.files = self.done.files, []
            self.bring([output for output in outputs if output.path in differ], {})
            self.done.files = kept
        self.done.refused += [(path, "it did not arrive as it is on the box") for path in sorted(differ)]

    def _discard(self, path: str) -> None:
        """Have it fetched anew, also where what is here looks like it."""
        known = self.receipt.pop(path)
        if self._version(known["as"]) in known["ours"]:
            folder, name = self._enter(known["as"], False)
            os.unlink(name, dir_fd=folder)
            os.close(folder)

    def _hash(self, path: str) -> str:
        """Of a file as it arrived. What a person did with it since is theirs."""
        import hashlib

        known = self.receipt[path]
        if not known.get("sha256"):
            folder, name = self._enter(known["as"], False)
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            finally:
                os.close(folder)
            with open(fd, "rb") as file:
                known["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        return str(known["sha256"])

    # --- what is wanted, and where it goes ---

    def _place(self, path: str, version: Version) -> str | None:
        """Where to write this version of a file; "" when it is here already, None when it may not come."""
        try:
            return self._choose(path, version)
        except Refusal as refusal:
            self.done.refused.append((path, str(refusal)))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            self.done.refused.append((path, "its name is too long for this computer"))
        return None

    def _choose(self, path: str, version: Version) -> str:
        here = self._version(path)
        known = self._known(path)
        if known["is"] == version:  # brought before; a person who changed it since wants the change
            if self._version(known["as"]) is not None:
                return ""
        elif here == version:
            self.receipt[path] = {"is": version, "as": path, "ours": [version]}
            return ""
        if here is None or (known["as"] == path and here in known["ours"]):
            return path
        return self._aside(path, known)

    def _aside(self, path: str, known: dict[str, Any]) -> str:
        """A name beside a person's file: a free one, or that of our older copy."""
        number, place = 1, path + self.suffix
        while (here := self._version(place)) is not None:
            if known["as"] == place and here in known["ours"]:
                break
            number += 1
            place = f"{path}{self.suffix}.{number}"
        return place

    def _plan(self, path: str, version: Version, place: str) -> None:
        """Know the new version as ours, beside the old one, until it has taken its place."""
        known = self._known(path)
        ours = known["ours"][-1:] if known["as"] == place else []
        self.receipt[path] = {"is": None, "as": place, "ours": [*ours, version]}

    def _known(self, path: str) -> dict[str, Any]:
        known = self.receipt.get(path, {})
        return known if "ours" in known else {"is": None, "as": path, "ours": []}

    def _version(self, path: str) -> Version | None:
        """Size and time of what has this name here; None when nothing has. Whatever is no file matches no version."""
        try:
            folder, name = self._enter(path, False)
        except FileNotFoundError:
            return None
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        finally:
            os.close(folder)
        return [found.st_size, found.st_mtime_ns] if stat.S_ISREG(found.st_mode) else [-1, 0]

    def _enter(self, path: str, make: bool) -> tuple[int, str]:
        check_git(path, self.repositories)
        return enter(self.fd, path, make)

    # --- bringing ---

    def _fetch(self, output: Output, place: str) -> None:
        path, version = output.path, output.version
        part, sha256 = self._download(path, version, output.limit)
        os.utime(part, ns=(version[1], version[1]), dir_fd=self.fd, follow_symlinks=False)
        size = os.stat(part, dir_fd=self.fd).st_size
        if output.executable:
            mode = os.stat(part, dir_fd=self.fd).st_mode
            os.chmod(part, mode | (mode & 0o444) >> 2, dir_fd=self.fd)
        if size != version[0]:  # the job wrote to it meanwhile: ours, but to be fetched again
            self.receipt[path]["ours"].append([size, version[1]])
            self._write_receipt()
        known = self.receipt[path]
        here = self._version(place)
        if here is not None and here not in known["ours"]:  # made while we fetched
            place = known["as"] = self._aside(path, {"as": "", "ours": []})
        folder, name = self._enter(place, True)
        try:
            os.rename(part, name, src_dir_fd=self.fd, dst_dir_fd=folder)
        finally:
            os.close(folder)
        known["is"] = version if size == version[0] else None
        known["ours"] = [self._version(place)]
        known["sha256"] = sha256
        self.done.fetched += 1
        self._arrived(path, size)

    def _download(self, path: str, version: Version, limit: int) -> tuple[str, str]:
        """(the file's name, which holds its version, so that a torn one is continued only by the same; its SHA-256)."""
        import hashlib

        part = PART + hashlib.sha256(os.fsencode(f"{path}\0{version}")).hexdigest()[:32]
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(part, flags, 0o666, dir_fd=self.fd)
        try:
            size = os.fstat(fd).st_size
            if size > version[0]:
                os.ftruncate(fd, 0)
                size = 0
            with open(os.dup(fd), "rb") as file:
                hashed = hashlib.file_digest(file, "sha256")
            while size < version[0]:
                before = size
                try:
                    self._continue(fd, path, size, hashed, limit)
                    break
                except Lost:  # what arrived is here: the rest is asked for, unless nothing comes at all
                    size = os.fstat(fd).st_size
                    if size == before:
                        raise
        finally:
            os.close(fd)
        return part, hashed.hexdigest()

    def _continue(self, fd: int, path: str, size: int, hashed: Any, limit: int) -> None:
        url = f"/jobs/{self.job_id}/outputs/{quote(path)}?offset={size}"
        for piece in self.client.stream("GET", url):
            size += len(piece)
            if size > limit:
                raise Refusal("the box sends far more than it listed")
            hashed.update(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]

    def _arrived(self, path: str, size: int) -> None:
        place = self.receipt[path]["as"]
        if place != path:
            self.done.aside.append((path, place))
        self.done.files.append((place, size))

    def _link(self, path: str, target: str) -> None:
        try:
            if not inside(path, target):
                raise Refusal(f"a link that leads out of the folder, to {target}")
            folder, name = self._enter(path, True)
        except Refusal as refusal:
            self.done.refused.append((path, str(refusal)))
            return
        try:
            here = readlink(name, folder)
            if here is not None and here not in ("", target) and self.receipt.get(path, {}).get("link") == here:
                os.unlink(name, dir_fd=folder)
                here = None
            if here is None:
                os.symlink(target, name, dir_fd=folder)
                self.receipt[path] = {"link": target}
            elif here != target:
                self.done.refused.append((path, "a link; what has its name here is not ours"))
        finally:
            os.close(folder)

    # --- the receipt ---

    def _read_receipt(self) -> dict[str, dict[str, Any]]:
        """What we wrote here before. Without a readable one every file counts as a person's."""
        try:
            fd = os.open(RECEIPT, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
            with open(fd, encoding="utf-8") as file:
                found = loads(file.read())
            return dict(found["files"]) if found["version"] == 1 else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write_receipt(self) -> None:
        temporary = f"{PART}receipt"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666, dir_fd=self.fd)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(dumps({"version": 1, "files": self.receipt}))
            file.flush()
            os.fsync(fd)
        os.rename(temporary, RECEIPT, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        os.fsync(self.fd)
