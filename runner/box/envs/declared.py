"""What a snapshot says about its environment, read and checked at submit. Nothing here knows who builds it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runner import errors
from runner.box.envs.recipe import Read

SELF_HINT = (
    "name only packages that can be fetched; the project's own modules are found beside the script, "
    "and `--base` leaves it all out"
)
_OPTION = re.compile(r"(?:(--requirement|--constraint|--editable|--find-links)[ =]\s*|(-[rcef])\s*)(.+)")
_ARCHIVES = (".whl", ".tar.gz", ".zip")
Table = dict[str, Any]


@dataclass(frozen=True)
class Declared:
    """files: the first is the one to install from."""

    label: str
    files: dict[str, bytes]
    python: str | None = None


def header(read: Read, script: str | None) -> Declared | None:
    """The PEP 723 header of the script. Only the header counts: an edit below it keeps the environment."""
    content = read(script) if script else None
    if script is None or content is None or b"# /// script" not in content:
        return None
    lines = _text(content, script).replace("\r\n", "\n").split("\n")
    blocks = list(_blocks(lines, script))
    if not blocks:
        return None
    if len(blocks) > 1:
        raise errors.BadRequest(
            f"{script} has two script headers, in lines {blocks[0][0] + 1} and {blocks[1][0] + 1}", "keep one of them"
        )
    start, end = blocks[0]
    table = _toml("\n".join(line[2:] for line in lines[start + 1 : end]), script, start + 1)
    _check_dependencies(table, script)
    _check_sources(table, script)
    block = "\n".join(lines[start : end + 1]) + "\n"
    return Declared(f"header of {script}", {"header.py": block.encode()}, _python(table, script))


def requirements(read: Read, script: str | None) -> Declared | None:
    """requirements.txt beside the script, then at the root, with the files that it includes."""
    beside = os.path.join(os.path.dirname(script or ""), "requirements.txt")
    for path in dict.fromkeys((beside, "requirements.txt")):
        if read(path) is not None:
            return Declared(path, _with_includes(read, path))
    return None


def locked(read: Read, script: str | None) -> Declared | None:
    """uv.lock at the root, beside its pyproject.toml."""
    lock, project = read("uv.lock"), read("pyproject.toml")
    if lock is None or project is None:
        return None
    for package in _packages(_toml(_text(lock, "uv.lock"), "uv.lock")):
        source = _inner(package, "source")
        folder = next((source[key] for key in ("editable", "directory", "path", "virtual") if key in source), ".")
        if folder != ".":
            raise errors.BadRequest(f"uv.lock takes {package.get('name')} from {folder}", SELF_HINT)
    python = _python(_inner(_toml(_text(project, "pyproject.toml"), "pyproject.toml"), "project"), "pyproject.toml")
    return Declared("uv.lock", {"pyproject.toml": project, "uv.lock": lock}, python)


def project(read: Read, script: str | None) -> Declared | None:
    """[project].dependencies of the root's pyproject.toml; the project itself is not installed."""
    content = read("pyproject.toml")
    if content is None:
        return None
    whole = _toml(_text(content, "pyproject.toml"), "pyproject.toml")
    table = _inner(whole, "project")
    if "dependencies" in table.get("dynamic", []):
        raise errors.BadRequest(
            "pyproject.toml leaves its dependencies to its build (dynamic), which does not run on the box",
            "put them in a header (PEP 723) or in requirements.txt, or use `--base`",
        )
    if "dependencies" not in table:
        return None
    _check_dependencies(table, "pyproject.toml")
    _check_sources(whole, "pyproject.toml")
    return Declared("pyproject.toml", {"pyproject.toml": content}, _python(table, "pyproject.toml"))


def registries(lock: bytes) -> list[str]:
    """The indexes that a uv.lock takes its packages from."""
    packages = _packages(tomllib.loads(lock.decode()))
    found = dict.fromkeys(str(_inner(package, "source").get("registry", "")) for package in packages)
    return [url for url in found if "://" in url]


def _packages(lock: Table) -> list[Table]:
    return [package for package in lock.get("package", []) if isinstance(package, dict)]


# --- PEP 723 ---------------------------------------------------------------------------------------------------------


def _blocks(lines: list[str], script: str) -> Iterator[tuple[int, int]]:
    """First and last line of each script header. The last `# ///` of a run of comments closes it, as the PEP says."""
    at = 0
    while at < len(lines):
        if lines[at].rstrip() == "# /// script":
            end = at + 1
            while end < len(lines) and (lines[end].startswith("# ") or lines[end].rstrip() == "#"):
                end += 1
            closing = [n for n in range(at + 1, end) if lines[n].rstrip() == "# ///"]
            if not closing:
                raise errors.BadRequest(
                    f"{script}, line {at + 1}: the script header has no end", "close it with a line `# ///`"
                )
            yield at, closing[-1]
            at = closing[-1]
        at += 1


# --- requirements.txt ------------------------------------------------------------------------------------------------


def _with_includes(read: Read, first: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    pending = [(first, "")]
    while pending:
        path, where = pending.pop(0)
        if path in files:
            continue
        content = read(path)
        if content is None:
            raise errors.BadRequest(
                f"{where} includes {path}, which is not among the files sent",
                "check its name; files that git ignores are not sent",
            )
        files[path] = content
        pending += _includes(content, path)
    return files


def _includes(content: bytes, path: str) -> Iterator[tuple[str, str]]:
    """(path, who includes it) of each included file; what can't be had on the box is refused."""
    for number, line in _logical_lines(_text(content, path)):
        where = f"{path}, line {number}"
        match = _OPTION.match(line)
        option = (match[1] or match[2]) if match else ""
        value = match[3].strip("\"'") if match else line
        if option in ("-r", "-c", "--requirement", "--constraint"):
            if "://" in value:
                continue  # fetched by the one who builds
            target = os.path.normpath(os.path.join(os.path.dirname(path), value))
            if target.startswith(("/", "..")):
                raise errors.BadRequest(f"{where}: {value} lies outside of the project", "copy it into the project")
            yield target, where
        elif _needs_project(option, value):
            raise errors.BadRequest(f"{where}: `{line}` needs the project itself, which is not installed", SELF_HINT)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, joined where they end in a backslash; numbered by where they begin."""
    start, joined = 0, ""
    for number, raw in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        start = start if joined else number
        joined += re.sub(r"(^|\s)#.*$", "", raw)
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        if joined.strip():
            yield start, joined.strip()
        joined = ""


def _needs_project(option: str, value: str) -> bool:
    """Whether it is a path in the project: `-e .`, `./lib`, `name @ file:lib`, `dist/name.whl`."""
    if "://" in value and "file:" not in value:
        return False
    place = re.split(r"\s*@\s*", value, maxsplit=1)[-1]
    place = re.split(r"\s*;|\s--", place)[0].strip()
    path = re.sub(r"^file:(//)?", "", place)
    if path.startswith("/"):
        return False  # a place on the box, which its owner knows
    if option or path != place:
        return True
    return not place.startswith("-") and ("/" in place or place.startswith(".") or place.endswith(_ARCHIVES))


# --- TOML ------------------------------------------------------------------------------------------------------------


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise errors.BadRequest(f"{name}, line {line}: not UTF-8 text", "save it as UTF-8") from None


def _toml(text: str, name: str, lines_before: int = 0) -> Table:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at line (\d+), column \d+\)", str(error))
        line = lines_before + (int(at[1]) if at else text.count("\n") + 1)
        reason = str(error).partition(" (at ")[0]
        raise errors.BadRequest(f"{name}, line {line}: not valid TOML: {reason}", "check that line") from None


def _check_dependencies(table: Table, name: str) -> None:
    wanted = table.get("dependencies", [])
    if not isinstance(wanted, list) or not all(isinstance(one, str) for one in wanted):
        raise errors.BadRequest(
            f"{name}: `dependencies` is not a list of strings", 'write it like `dependencies = ["numpy>=2"]`'
        )
    for one in wanted:
        if _needs_project("", one):
            raise errors.BadRequest(f"{name}: `{one}` needs the project itself, which is not installed", SELF_HINT)


def _check_sources(table: Table, name: str) -> None:
    """[tool.uv.sources] may name repositories and indexes, not folders."""
    for package, source in _inner(table, "tool", "uv", "sources").items():
        for one in source if isinstance(source, list) else [source]:
            if isinstance(one, dict) and (one.get("workspace") or not str(one.get("path", "/")).startswith("/")):
                raise errors.BadRequest(f"{name} takes {package} from a folder of the project", SELF_HINT)


def _inner(table: Table, *names: str) -> Table:
    """A table within tables; empty where it is missing or not one."""
    for name in names:
        inner = table.get(name)
        table = inner if isinstance(inner, dict) else {}
    return table


def _python(table: Table, name: str) -> str | None:
    wanted = table.get("requires-python")
    if wanted is not None and not isinstance(wanted, str):
        raise errors.BadRequest(
            f"{name}: `requires-python` is not a string", 'write it like `requires-python = ">=3.11"`'
        )
    return wanted
