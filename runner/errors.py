"""Everything that can go wrong, drawn once.

    Problem                 70 / 500   a fault of gpubox itself
    ├── BadRequest          64 / 422   what was asked can't be done as asked
    │   ├── TooMuch         64 / 422   it asks for more than the box has
    │   └── KeyReused       64 / 422   the idempotency key was used for another request
    ├── BadData             65 / 400   a file or a body is damaged or not what it says
    │   └── TooLarge        65 / 413   over a limit; says which one and what is largest
    ├── NotFound            66 / 404   no such job, file or snapshot
    │   └── SnapshotUnknown 66 / 404   the box does not have this snapshot: send it
    ├── Unreachable         69 / 503   no answer from the box
    ├── NotInstalled        69 / 503   a part or program is missing
    ├── DiskFull            73 / 507   no room on the box
    ├── StateDamaged        74 / 500   the database or a disk failed; nothing was changed
    ├── Busy                75 / 409   another process holds it; or: not in this state
    ├── Refused             77 / 403   you may not
    │   ├── NotTrusted      77 / 401   no token, or one that is wrong, expired or revoked
    │   └── Misdirected     77 / 421   asked for under a name that is not the box's
    └── BadSettings         78 / 500   a setting has a value that can't be used

Each class: exit code of the CLI / status over HTTP. A message says what happened and why; the hint what to type next.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Problem(Exception):
    code = "problem"
    exit_code = 70
    http_status = 500

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "hint": self.hint}


class BadRequest(Problem):
    code, exit_code, http_status = "bad_request", 64, 422


class TooMuch(BadRequest):
    code = "too_much"


class KeyReused(BadRequest):
    code = "key_reused"


class BadData(Problem):
    code, exit_code, http_status = "bad_data", 65, 400


class TooLarge(BadData):
    code, http_status = "too_large", 413


class NotFound(Problem):
    code, exit_code, http_status = "not_found", 66, 404


class SnapshotUnknown(NotFound):
    code = "snapshot_unknown"


class Unreachable(Problem):
    code, exit_code, http_status = "unreachable", 69, 503


class NotInstalled(Problem):
    code, exit_code, http_status = "not_installed", 69, 503


class DiskFull(Problem):
    code, exit_code, http_status = "disk_full", 73, 507


class StateDamaged(Problem):
    code, exit_code, http_status = "state_damaged", 74, 500


class Busy(Problem):
    code, exit_code, http_status = "busy", 75, 409


class Refused(Problem):
    code, exit_code, http_status = "refused", 77, 403


class NotTrusted(Refused):
    code, http_status = "not_trusted", 401


class Misdirected(Refused):
    code, http_status = "misdirected", 421


class BadSettings(Problem):
    code, exit_code, http_status = "bad_settings", 78, 500


def _tree(root: type[Problem]) -> Iterable[type[Problem]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


BY_CODE = {kind.code: kind for kind in _tree(Problem)}


def from_json(body: object, status: int) -> Problem:
    """The error that a reply `{code, message, hint}` stands for; an unknown code becomes the nearest by status."""
    if not isinstance(body, dict) or "message" not in body:
        return Problem(f"the box answered {status} without saying why", "see `runner doctor`")
    kind = BY_CODE.get(str(body.get("code")))
    if kind is None:
        kind = next((k for k in BY_CODE.values() if k.http_status == status), Problem)
    return kind(str(body["message"]), str(body.get("hint", "")))


# Words for one thing, of other queues and shells: who types one means the one that there is.
_ALIKE = (
    ("ps", "ls", "list", "jobs", "queue", "status", "squeue", "qstat"),
    ("cancel", "stop", "kill", "end", "abort", "scancel"),
    ("submit", "run", "start", "train", "sbatch"),
    ("logs", "tail", "attach", "follow", "output"),
    ("pull", "fetch", "get", "download", "results"),
    ("rm", "remove", "delete", "del", "revoke", "unset"),
    ("add", "new", "create", "make", "push", "upload", "set"),
    ("show", "info", "describe", "inspect"),
    ("gpus", "nvidia-smi", "sinfo"),
    ("shell", "ssh", "bash"),
)


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean "cancel"?` or nothing. The import is here because only a misspelling needs it."""
    import difflib

    names = list(known)
    close = [name for alike in _ALIKE if word in alike for name in alike if name in names]
    close = close or difflib.get_close_matches(word, names, 1, 0.6)
    return f', did you mean "{close[0]}"?' if close else ""
