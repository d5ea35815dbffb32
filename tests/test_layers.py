"""Imports go one way, each rule with its reason: cli -> laptop -> words; dashboard -> box -> words; job -> files."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINES_MAX = 450

WORDS = ("runner.words", "runner.errors", "runner.paths", "runner.files", "runner.model", "runner.comparison")

# Folder (or module) -> what of ours it may import, and why nothing else.
MAY_IMPORT = {
    "runner.words": ((), "the vocabulary is read by every process, so it must cost nothing"),
    "runner.errors": ((), "every process can fail, so errors must cost nothing"),
    "runner.paths": ((), "every process has paths, so they must cost nothing"),
    "runner.comparison": ((), "the command and the page show the same differences, and neither may import the other"),
    "runner.files": (("runner.paths",), "it is frozen beside the supervisor, which has nothing else of ours"),
    "runner.model": (("runner.words",), "the schema says what things are, not how they are done"),
    "runner.job": (
        ("runner.job", "runner.files", "runner.paths"),
        "the supervisor runs from a frozen copy of job, files and paths, with -I -S, and outlives upgrades",
    ),
    "runner.box": (
        ("runner.box", "runner.job", *WORDS),
        "a box has no laptop; jobs are other processes, reached over their files. The engine makes those files and "
        "ends what a killed supervisor left behind as the supervisor would have done it",
    ),
    "runner.box.launcher": (
        (
            "runner.job.account",
            "runner.files",
            "runner.paths",
            "runner.box.reader",
            "runner.box.units",
            "runner.box.vault",
        ),
        "it is root: what it imports is root's code too, so besides itself only how to stop being root, what a unit is "
        "told, and the secrets; and, when it is root no more, the reader",
    ),
    "runner.box.units": ((), "it is root's code, too"),
    "runner.box.vault": (("runner.files",), "it is root's code, too"),
    "runner.laptop": (
        ("runner.laptop", *WORDS),
        "a laptop installs no box: the API is all that they share",
    ),
    "runner.cli": (
        ("runner.cli", "runner.laptop", *WORDS),
        "commands are short-lived; a box is started by exec of `python -m runner.box`, never imported",
    ),
    "runner.__main__": (("runner.cli",), "`python -m runner` is the command, by another name"),
    "dashboard": (("dashboard", "runner.box", *WORDS), "pages are rendered by the daemon"),
}
# Edges beyond that table, each with its reason.
EXCEPTIONS = {
    ("runner.box.serve", "dashboard"): "serve.py wires the daemon together; nobody else knows the dashboard",
}

# A library has one door: it can be replaced, faked and kept out of processes that can't afford it.
DOORS = {
    "sqlmodel": ("runner.box.store",),
    "sqlalchemy": ("runner.box.store",),
    "sqlite3": ("runner.box.sqlite", "runner.box.store", "runner.box.migrations"),
    "fastapi": ("runner.box.api", "runner.box.auth", "runner.box.server", "dashboard"),
    "starlette": ("runner.box.api", "runner.box.auth", "dashboard"),
    "pydantic": ("runner.box.api",),
    "uvicorn": ("runner.box.server",),
    "jinja2": ("dashboard",),
    "pathspec": ("runner.laptop.ignore", "runner.laptop.snapshot"),
    "uv": ("runner.box.envs.uv",),
    "fabric": ("runner.laptop.link",),
    "paramiko": ("runner.laptop.link",),  # what Fabric is made of, and raises
    "cryptography": ("runner.box.selfsigned",),
    "pynvml": ("runner.box.gpus.nvml",),
}

# 3 to 60 ms each, at the start of every command. Inside a function they are allowed: there they
# are paid for by who needs them.
TOO_SLOW_AT_START = (
    "asyncio", "ssl", "http", "urllib", "dataclasses", "typing", "pathlib", "subprocess", "argparse", "tempfile",
    "shutil", "logging", "inspect", "re", "enum", "runner.model", "runner.files",
)  # fmt: skip
# Modules of the laptop that few commands load, and those late: what is above is the least that they cost.
LATE = ("runner.laptop.link", "runner.laptop.keeper", "runner.laptop.session")


class Import(NamedTuple):
    module: str  # that imports
    name: str  # that is imported
    line: int
    lazy: bool  # inside a function


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for top in ("runner", "dashboard"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports() -> tuple[Import, ...]:
    found: list[Import] = []
    for module, path in modules().items():
        found += _imports_of(module, path)
    return tuple(found)


def _imports_of(module: str, path: Path) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue  # for the type checker alone
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, lazy)
            elif isinstance(child, ast.ImportFrom):
                yield from _from(child, lazy)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, lazy or inside)

    def _from(node: ast.ImportFrom, lazy: bool) -> Iterator[Import]:
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            yield Import(module, whole if whole in modules() else base, node.lineno, lazy)

    yield from walk(ast.parse(path.read_bytes()), False)


def below(name: str, *places: str) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def ours(name: str) -> bool:
    return below(name, "runner", "dashboard")


def where(edge: Import) -> str:
    return f"{modules()[edge.module].relative_to(ROOT)}:{edge.line} imports {edge.name}"


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_imports_go_one_way(place: str) -> None:
    allowed, reason = MAY_IMPORT[place]
    wrong = [
        where(edge)
        for edge in imports()
        if below(edge.module, place)
        and ours(edge.name)
        and not below(edge.name, *allowed)
        and edge.name != "runner"  # which holds the version alone
        and not any(below(edge.name, to) for (who, to) in EXCEPTIONS if who == edge.module)
    ]
    assert not wrong, f"{reason}:\n" + "\n".join(wrong)


def test_every_module_has_a_place_in_the_table() -> None:
    strays = [name for name in modules() if name != "runner" and not below(name, *MAY_IMPORT)]
    assert not strays, f"say in MAY_IMPORT what these may import: {strays}"


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library: str) -> None:
    wrong = [where(e) for e in imports() if below(e.name, library) and not below(e.module, *DOORS[library])]
    assert not wrong, f"{library} belongs to {' and '.join(DOORS[library])}:\n" + "\n".join(wrong)


def test_who_tells_nobody_has_nothing_of_it_in_memory() -> None:
    early = [e for e in imports() if below(e.name, "runner.box.notify") and not below(e.module, "runner.box.notify")]
    assert early
    assert not [where(e) for e in early if not e.lazy]


def test_every_library_has_a_door() -> None:
    known = sys.stdlib_module_names | DOORS.keys()
    strays = [where(e) for e in imports() if not ours(e.name) and e.name.partition(".")[0] not in known]
    assert not strays, "\n".join(strays)


def test_beside_a_job_there_is_the_standard_library_alone() -> None:
    lone = (
        "runner.job",
        "runner.box.launcher",
        "runner.files",
        "runner.paths",
        "runner.words",
        "runner.errors",
        "runner.model",
    )
    wrong = [
        where(e)
        for e in imports()
        if below(e.module, *lone) and not ours(e.name) and e.name.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert not wrong, "a job's supervisor runs with -S, where no library is, and the launcher as root:\n" + "\n".join(
        wrong
    )


def test_a_command_starts_without_what_is_slow_to_import() -> None:
    lean = ("runner.cli", "runner.laptop", "runner.words", "runner.errors", "runner.paths")
    slow = (*TOO_SLOW_AT_START, *LATE)
    early = [e for e in imports() if below(e.module, *lean) and not below(e.module, *LATE) and not e.lazy]
    wrong = [where(e) for e in early if below(e.name, *slow)]
    assert not wrong, "every command pays for these at its start; import them where they are used:\n" + "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for edge in imports():
        if edge.name in graph and not below(edge.module, edge.name):  # its own package is there before it
            graph[edge.module].add(edge.name)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_a_module_is_short_enough_to_read_before_answering() -> None:
    lines = {path: len(path.read_bytes().splitlines()) for path in modules().values()}
    long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > LINES_MAX}
    assert not long, f"over {LINES_MAX} lines; cut by noun, not by layer: {long}"
