"""The boxes that were added: where each one is, what its certificate must be, and the token that lets us in.

One file a box, `boxes/<name>.json` in the configuration directory, of mode 0600 from its first moment.
"""

from __future__ import annotations

import errno
import os

from runner import errors, paths
from runner.laptop.light import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOCAL, DEMO = "local", "demo"  # that nobody needs to add
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
NAME_MAX = 64
FIELDS = ("ssh", "host", "port", "address", "fingerprint", "token", "token_id")


class Address:
    """A box, as it was when it was added."""

    __slots__ = ("name", *FIELDS)

    name: str  # ours
    ssh: str  # as ssh is told: me@gpubox
    host: str  # that of ssh's configuration; where HTTPS is tried directly
    port: int  # of its HTTPS
    address: str  # at which it reaches its own HTTPS, at the far end of a tunnel
    fingerprint: str  # SHA-256 of its certificate, in hex
    token: str
    token_id: str

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        """KeyError, TypeError, ValueError: no address. The box has told most of it, and could tell anything."""
        self.name = name
        for field in FIELDS:
            value: Any = values[field]
            if type(value) is not (int if field == "port" else str):
                raise TypeError(field)
            if field in ("address", "token", "token_id") and (not value or str(value).strip(LETTERS + ":")):
                raise ValueError(field)  # these stand in headers
            setattr(self, field, value)
        if not 0 < self.port < 65536 or len(self.fingerprint) != 64 or self.fingerprint.strip("0123456789abcdef"):
            raise ValueError("port, fingerprint")

    def as_json(self) -> dict[str, Any]:
        return {field: getattr(self, field) for field in FIELDS}

    def always(self) -> dict[str, str]:
        """The headers that every request has. Who it is says the pin; Host is what every box is, renamed or not."""
        return {"Host": f"localhost:{self.port}", "Authorization": f"Bearer {self.token}"}


def names() -> list[str]:
    try:
        found = os.listdir(_folder())
    except OSError:
        return []
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json") and name[0] != ".")


def read(name: str) -> Address:
    """NotFound; Refused when others could read its token; BadData."""
    path = _path(name)
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if os.name == "posix" and (found.st_mode & 0o077 or found.st_uid != os.getuid()):
                hint = f"chmod 600 {path}; if others may have read it: `runner token revoke`, and add the box again"
                raise errors.Refused(f"{path} holds a token, and is not yours alone", hint)
            return Address(name, loads(file.read().decode()))
    except FileNotFoundError:
        known = [LOCAL, DEMO, *names()]
        raise errors.NotFound(
            f'no box named "{name}"{errors.nearest(name, known)}',
            "`runner box list` shows them; `runner box add me@host` adds one",
        ) from None
    except OSError as error:
        raise errors.Refused(f"{path} can't be read: {error.strerror}", f"ls -l {path}") from None
    except (KeyError, TypeError, ValueError):
        raise errors.BadData(f"{path} is damaged", f"`runner box remove {name}`, and add it again") from None


def write(address: Address) -> None:
    _put(_path(address.name), dumps(address.as_json()).encode())


def remove(name: str) -> None:
    """Forget it, and that it was the one in use."""
    if in_use() == name:
        use(LOCAL)
    try:
        os.unlink(_path(name))
    except FileNotFoundError:
        pass


def in_use() -> str:
    """The box that is meant when none is named."""
    try:
        with open(_chosen(), "rb") as file:
            return file.read(NAME_MAX + 1).decode().strip() or LOCAL
    except (OSError, ValueError):
        return LOCAL


def use(name: str) -> None:
    _put(_chosen(), f"{name}\n".encode())


def check_name(name: str) -> str:
    """BadRequest: no name for a box elsewhere."""
    if name in (LOCAL, DEMO):
        raise errors.BadRequest(
            f"{name} is on this computer; it can't be the name of a box elsewhere",
            "`runner box list` shows which there are; `runner doctor` looks at this one",
        )
    if not name or len(name) > NAME_MAX or name[0] in ".-" or name.strip(LETTERS):
        raise errors.BadRequest(
            f"{name[:80]!a} can't be the name of a box", "letters, digits, . _ and -; such as gpubox"
        )
    return name


def _folder() -> str:
    return f"{paths.config_dir()}/boxes"


def _path(name: str) -> str:
    return f"{_folder()}/{check_name(name)}.json"


def _chosen() -> str:
    return f"{paths.config_dir()}/box"


def _put(path: str, data: bytes) -> None:
    """Whole or not at all, and nobody else's to read at any moment. DiskFull; Refused: it can't be written."""
    try:
        _write(path, data)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.DiskFull(f"no room on this computer for {path}", "make room, and again") from error
        hint = f"ls -ld {os.path.dirname(path)}; XDG_CONFIG_HOME names another place"
        raise errors.Refused(f"{path} can't be written: {error.strerror}", hint) from error


def _write(path: str, data: bytes) -> None:
    folder = os.path.dirname(path)
    for each in (paths.config_dir(), folder):  # the mode is only that of the last folder made
        os.makedirs(each, 0o700, exist_ok=True)
    temporary = f"{folder}/.{os.path.basename(path)}.{os.getpid()}"
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
