"""What a snapshot leaves out: what nobody wants on the box, what a person's rules say, what must stay secret."""

from __future__ import annotations

import os

from runner import errors, words
from runner.laptop.git import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pathspec import GitIgnoreSpec

_NEVER = (".git", "__pycache__")
_SECRET_NAMES = {
    "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", ".netrc", ".pypirc", ".npmrc", "kaggle.json",
}  # fmt: skip
_SECRET_ENDINGS = (".pem", ".key", ".p12", ".pfx")
_HARMLESS_ENDINGS = (".example", ".sample", ".template")


def never(path: str) -> bool:
    """Left out whatever the rules say: repositories' insides, byte code, and runs/, where outputs land."""
    return path.startswith("runs/") or path == "runs" or any(part in _NEVER for part in path.split("/"))


def leads_out(path: str, target: str) -> bool:
    """Whether a link can lead out of the tree. `..` is only taken at the start: after a name, that name could be
    a link itself and `..` lead anywhere."""
    if target.startswith("/"):
        return True
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    return ups > path.count("/") or ".." in parts[ups:]


class Rules:
    """The ignore files of a tree, named by their paths. As in git: the last match wins, deeper files are asked
    first, and what lies in an ignored folder is ignored."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._by_folder: dict[tuple[str, str], GitIgnoreSpec] = {}  # (folder, name of the ignore file)
        self._folders: dict[str, bool] = {"": False}

    def read(self, path: str) -> None:
        """Take in one .gitignore or .runnerignore. pathspec is imported here, when there is something to match."""
        folder, _, name = path.rpartition("/")
        try:
            lines = os.fsdecode(contents(f"{self._root}/{path}")).splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            raise errors.BadData(
                f"{shown(path)} can't be read: {error.strerror}", "make it readable, or remove it"
            ) from None
        from pathspec import GitIgnoreSpec

        try:
            self._by_folder[folder, name] = GitIgnoreSpec.from_lines(lines)
        except ValueError as error:
            raise errors.BadData(f"{shown(path)}: {error}", "correct that line; the syntax is .gitignore's") from None

    def excludes(self, path: str, folder: bool = False) -> bool:
        if not self._by_folder:
            return False
        above = path.rpartition("/")[0]
        return self._folder_excluded(above) or (self._folder_excluded(path) if folder else self._matches(path))

    def allows(self, path: str) -> bool:
        """Whether a `!` line of the root's .runnerignore names this path."""
        spec = self._by_folder.get(("", ".runnerignore"))
        return spec is not None and spec.check_file(path).include is False

    def _folder_excluded(self, folder: str) -> bool:
        excluded = self._folders.get(folder)
        if excluded is None:
            excluded = self._folder_excluded(folder.rpartition("/")[0]) or self._matches(f"{folder}/")
            self._folders[folder] = excluded
        return excluded

    def _matches(self, path: str) -> bool:
        return any(self._verdict(path, name) for name in (".gitignore", ".runnerignore"))

    def _verdict(self, path: str, name: str) -> bool:
        folder = path.rstrip("/").rpartition("/")[0]
        while True:
            spec = self._by_folder.get((folder, name))
            if spec is not None:
                include = spec.check_file(path[len(folder) + 1 :] if folder else path).include
                if include is not None:
                    return include
            if not folder:
                return False
            folder = folder.rpartition("/")[0]


def is_secret(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    if name.startswith(".env"):
        return not name.endswith(_HARMLESS_ENDINGS)
    inside = f"/{path}"
    return (
        name in _SECRET_NAMES
        or name.endswith(_SECRET_ENDINGS)
        or inside.endswith("/.aws/credentials")
        or "/.ssh/" in inside
    )


def refuse_secrets(names: Iterable[str], include: Iterable[str], allows: Callable[[str], bool]) -> None:
    named = set(include)
    secrets = [path for path in names if is_secret(path) and path not in named and not allows(path)]
    if not secrets:
        return
    first = shown(secrets[0])
    listed = ", ".join(shown(path) for path in secrets[:5]) + (" ..." if len(secrets) > 5 else "")
    raise errors.BadRequest(
        f"{len(secrets)} file{'s' * (len(secrets) > 1)} that may hold secrets would be sent to the box: {listed}",
        f"leave out with a line in .gitignore or .runnerignore; or send with `--include {first}`, "
        f"or for good with a line `!{first}` in the root's .runnerignore",
    )


def refuse_control(names: Iterable[str], hint: str) -> None:
    """Names that hold control characters: nothing shows them as they are, and much is fooled by them."""
    if words.CONTROL.isdisjoint("".join(names)):
        return
    odd = [path for path in names if not words.CONTROL.isdisjoint(path)]
    listed = ", ".join(shown(path) for path in odd[:5]) + (" ..." if len(odd) > 5 else "")
    raise errors.BadRequest(f"control characters are in the name{'s' * (len(odd) > 1)} {listed}", hint)


def contents(path: str) -> bytes:
    """A small file, without waiting for a writer if it turns out to be a pipe."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read()


def is_environment(folder: str) -> bool:
    """A virtual environment: made for this computer, and remade on the box."""
    return os.path.lexists(f"{folder}/pyvenv.cfg")
