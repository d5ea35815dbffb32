"""The pages under docs/ say what the code says: a table that differs fails here and is printed as it should be."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from runner import errors, words
from runner.box.settings import Settings
from runner.cli import TABLE

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")] + sorted(DOCS.glob("*.md"))
UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"))


def reasons() -> list[str]:
    again = {True: "yes", False: "no"}
    return [f"| `{code}` | {said} | {again[code in words.RETRYABLE]} |" for code, said in words.REASONS.items()]


def settings() -> list[str]:
    rows = []
    for field in fields(Settings):
        if means := field.metadata.get("means", "").replace("<", r"\<"):
            value = _value(field.name, field.default)
            rows.append(f"| `{field.name}` | `GPUBOX_{field.name.upper()}` | {value} | {means} |")
    return rows


def _value(name: str, value: object) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        for size, unit in UNITS:
            if value and value % size == 0:
                return f"{value} ({value // size} {unit})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def commands() -> list[str]:
    return [f"| `runner {name}` | {does} |" for name, (_, _, does) in TABLE.items()]


def exits() -> list[str]:
    return [f"| {kind.exit_code} | `{code}` | {kind.http_status} |" for code, kind in errors.BY_CODE.items()]


TABLES = {
    "jobs.md: reasons": ("jobs.md", reasons),
    "settings.md: settings": ("settings.md", settings),
    "commands.md: commands": ("commands.md", commands),
    "commands.md: exit codes": ("commands.md", exits),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_what_the_code_says(table: str) -> None:
    page, rows = TABLES[table]
    wanted = "\n".join(rows())
    assert wanted in (DOCS / page).read_text(), f"docs/{page} should hold\n{wanted}"


def test_every_state_a_job_can_end_in_is_explained() -> None:
    page = (DOCS / "jobs.md").read_text()
    assert [state for state in words.FINISHED if f"| `{state}` |" not in page] == []


@pytest.mark.parametrize(("prefix", "page"), [("GPUBOX_", "settings.md"), ("RUNNER_", "jobs.md")])
def test_every_variable_the_code_reads_or_sets_is_explained(prefix: str, page: str) -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "runner").rglob("*.py"))
    # A name that goes on in lower case, braces or an asterisk is a family; jobs.md has it as RUNNER_PARAM_<name>.
    named = {name.rstrip("_") for name in re.findall(rf"\b{prefix}[A-Z][A-Z_]*", code)}
    text = (DOCS / page).read_text()
    assert sorted(name for name in named if name not in text) == []


def test_every_command_is_named_by_what_people_read() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in TABLE if not re.search(rf"`?runner {name}\b", text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_a_page_shows_exists(page: Path) -> None:
    shown = re.findall(r"(?:^|[`$(/ ])runner ([a-z]+)\b", "\n".join(_code(page.read_text())), re.M)
    assert [name for name in shown if name not in TABLE] == []


def _code(text: str) -> list[str]:
    """What stands between backticks: only there `runner word` is a command."""
    blocks = re.findall(r"```.*?\n(.*?)```", text, re.S)
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert [to for to in targets if "://" not in to and not (page.parent / to).exists()] == []
