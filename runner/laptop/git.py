"""Questions to git, asked as processes of their own so that the asker can do other work until the answer is needed."""

from __future__ import annotations

import os

from runner import errors

# Set by hooks and `git rebase --exec`: they would make git answer about another repository.
_ELSEWHERE = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS",
)  # fmt: skip


class Question:
    """One running git. Its input and complaints are in memory files, so no pipe of ours can fill up and block it."""

    __slots__ = ("_complaints", "_folder", "_output", "_pid")

    def __init__(self, folder: str, arguments: list[str], asked: bytes = b"") -> None:
        self._folder = folder
        self._output, output = os.pipe()
        self._complaints = _scratch()
        given = _scratch()
        if asked:
            os.write(given, asked)
            os.lseek(given, 0, os.SEEK_SET)
        environment = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
        dup = os.POSIX_SPAWN_DUP2
        try:
            self._pid = os.posix_spawnp(
                "git",
                ["git", "-C", folder, *arguments],
                environment,
                file_actions=[(dup, given, 0), (dup, output, 1), (dup, self._complaints, 2)],
            )
        except OSError:
            os.close(self._output)
            os.close(self._complaints)
            raise errors.NotInstalled(
                f"{shown(folder)} is a git repository, but git can't be started here", "install git and try again"
            ) from None
        finally:
            os.close(given)
            os.close(output)

    def answer(self, fine: tuple[int, ...] = (0,)) -> str:
        """What git printed. Names stay as the file system has them: bytes that are no UTF-8 become surrogates."""
        pieces = []
        while piece := os.read(self._output, 1 << 20):
            pieces.append(piece)
        os.close(self._output)
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        try:
            if code not in fine:
                words = os.pread(self._complaints, 2000, 0).decode(errors="replace").strip()
                raise errors.BadRequest(
                    f"git could not list {shown(self._folder)}: {words or f'it ended with {code}'}",
                    "repair the repository, or move the script to a folder without .git",
                )
        finally:
            os.close(self._complaints)
        return os.fsdecode(b"".join(pieces))


def _scratch() -> int:
    """A file without a name: in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("git")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def listing(folder: str, top: bool) -> Question:
    """Tracked files and untracked ones that are not ignored, NUL-separated. A folder in it is a repository itself."""
    outputs = ["-x", "/runs/"] if top else []  # never snapshotted: do not even look into them
    return Question(folder, ["ls-files", "-z", "-c", "-o", "--exclude-standard", "-x", "__pycache__/", *outputs])


def ignored(folder: str, paths: list[str]) -> set[str]:
    """Those of the paths (folders end in a slash) that git ignores."""
    asked = b"".join(b"./" + os.fsencode(path) + b"\0" for path in paths)  # ./ because `:x` would be pathspec magic
    answer = Question(folder, ["check-ignore", "-z", "--stdin"], asked).answer(fine=(0, 1))
    return {path.removeprefix("./") for path in answer.split("\0")}


def shown(path: str) -> str:
    """A path fit for a sentence: names with control characters or broken bytes are quoted."""
    return path if path.isprintable() else ascii(path)
