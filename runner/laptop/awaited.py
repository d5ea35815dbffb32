"""Jobs whose outputs have not come home yet: a small file for each submit, `<box>:<job or group>`.

Who follows a job to its end brings them. Else the next command starts a process that does (courier.py), and a later one
says what came.
"""

from __future__ import annotations

import os
import time

from runner import paths
from runner.laptop.light import dumps, loads

NEWS = ".news"
LOCK, LEFT = ".lock-", ".left-"  # + box
PROJECTS_MAX = 1000  # that are remembered of a box
REST_SECONDS = 5.0  # between two couriers to a box

_noted = ""  # by this command: too fresh to be asked for


def note(box: str, name: str, to: str = "", project: str = "") -> None:
    """A job or a group was submitted. to: a folder that is meant instead of the project's runs/. Where it can't be
    noted there is still `runner pull`: no reason to fail."""
    remember(box, project)
    told = {"to": to, "project": project}
    global _noted
    if os.environ.get("GPUBOX_COURIER") == "no":
        return
    folder, _noted = _folder(), f"{box}:{name}"
    try:
        try:
            _write(f"{folder}/{_noted}", told)
        except FileNotFoundError:
            os.makedirs(folder, 0o700, exist_ok=True)
            _write(f"{folder}/{_noted}", told)
    except OSError:
        pass


def remember(box: str, project: str) -> None:
    """Jobs were submitted to a box from this folder: their outputs may come to it for ever."""
    known = _projects(box)
    if not project or known[-1:] == [project]:
        return
    folder = paths.state_dir().projects
    kept = [*(each for each in known if each != project), project][-PROJECTS_MAX:]
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        _write(f"{folder}/.{box}.{os.getpid()}", kept)
        os.replace(f"{folder}/.{box}.{os.getpid()}", f"{folder}/{box}")
    except OSError:
        pass


def trusted(box: str, project: str) -> str:
    """The project of a job by its box's word, if we ever submitted from there; else nothing. A box is not to choose
    where on this computer it writes."""
    return project if project in _projects(box) else ""


def _projects(box: str) -> list[str]:
    """The one of the latest submit last."""
    try:
        with open(f"{paths.state_dir().projects}/{box}", "rb") as file:
            return [str(each) for each in loads(file.read().decode())]
    except (OSError, ValueError, TypeError):
        return []


def forget(box: str, name: str) -> None:
    """Its outputs are at home, or never will be."""
    try:
        os.unlink(f"{_folder()}/{box}:{name}")
    except OSError:
        pass


def all_of() -> dict[str, dict[str, str]]:
    """box -> job or group -> the folder that is meant, or \"\"."""
    found: dict[str, dict[str, str]] = {}
    try:
        names = sorted(os.listdir(_folder()))
    except OSError:
        return found
    for entry in names:
        box, colon, name = entry.rpartition(":")
        if colon:
            found.setdefault(box, {})[name] = meant(box, name)[0]
    return found


def meant(box: str, name: str) -> tuple[str, str]:
    """(the folder that is meant for the outputs of an awaited job or group, the one that it was submitted from); each
    may be \"\". What a box says about the second is only its word."""
    try:
        with open(f"{_folder()}/{box}:{name}", "rb") as file:
            told = loads(file.read().decode())
        return str(told["to"]), str(told["project"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def send(names: list[str]) -> None:
    """Start a courier to each box that has something for us, unless one was sent a moment ago. names: what is in the
    folder."""
    for box in sorted({name.rpartition(":")[0] for name in names if ":" in name and name != _noted}):
        try:
            if 0 <= time.time() - os.stat(f"{_folder()}/{LOCK}{box}").st_mtime < REST_SECONDS:
                continue
        except OSError:
            pass  # none was ever sent
        from runner.laptop import detached

        detached.start(["-m", "runner.laptop.courier", box])


def lock(box: str) -> int | None:
    """For the one courier to a box; None: there is one already."""
    import fcntl

    fd = os.open(f"{_folder()}/{LOCK}{box}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.utime(fd)
    return fd


def left(box: str) -> bool:
    """Note that a box is left for now; whether that is news."""
    try:
        os.close(os.open(f"{_folder()}/{LEFT}{box}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def visited(box: str) -> None:
    """It is as it should be: when it is left again, that is news."""
    try:
        os.unlink(f"{_folder()}/{LEFT}{box}")
    except OSError:
        pass


def tell(line: str) -> None:
    """For the next command to say."""
    fd = os.open(f"{_folder()}/{NEWS}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.write(fd, f"{line}\n".encode(errors="surrogateescape"))
    os.close(fd)


def news() -> list[str]:
    """What couriers brought since this was asked last."""
    path = f"{_folder()}/{NEWS}"
    try:
        os.rename(path, f"{path}.{os.getpid()}")  # theirs alone from here on
        with open(f"{path}.{os.getpid()}", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
        os.unlink(file.name)
    except OSError:
        return []
    return lines


def _folder() -> str:
    return paths.state_dir().awaited


def _write(path: str, told: object) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(fd, dumps(told).encode())
    os.close(fd)
