"""The project around the code: versions, locks, targets and the promises of its pages."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import budget
import pytest

import runner

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
TEXT_LIMIT = 1 << 20


def files() -> list[Path]:
    """What git tracks or would take; where the project was unpacked without git, everything that is not a cache."""
    asked = ("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    try:
        listed = subprocess.run(asked, capture_output=True, check=True, text=True).stdout.split("\0")
        found = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        cache = re.compile(r"/(\.(?!ci/|gitignore)|__pycache__/|runs/)")
        found = [path for path in ROOT.rglob("*") if not cache.search(f"/{path.relative_to(ROOT)}")]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{runner.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_no_file_names_a_place_on_this_machine_or_a_package_index() -> None:
    hosts = "|".join(("py" + "pi.org", "python" + "hosted", "registry.npm" + "js", r"deb\.deb" + "ian"))
    forbidden = re.compile(rf"(?<![\w.$}}])/(?:home|Users)/(?!me\b|you\b|user\b)[a-z]\w+/|{hosts}|{_here()}")
    wrong = []
    for path in files():
        if path.stat().st_size > TEXT_LIMIT:
            continue
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
            if forbidden.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not wrong, "\n".join(wrong)


def _here() -> str:
    """This checkout's own path, which no file should know; too short a one could be a word by chance."""
    return re.escape(str(ROOT)) + r"\b" if len(ROOT.parts) > 2 else r"(?!)"


def test_no_file_is_unfinished_by_its_own_word() -> None:
    mark = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error", "X" * 3)) + r")\b")
    code = [
        path for path in files() if path.suffix in (".py", ".md", ".js", ".yml", ".toml") or path.name == "Makefile"
    ]
    assert [str(path.relative_to(ROOT)) for path in code if mark.search(path.read_text(errors="replace"))] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_pins_every_package_by_hash_and_names_no_place(lock: Path) -> None:
    text = lock.read_text().replace("\\\n", "")
    assert "://" not in text
    assert "index" not in text
    for line in text.splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [^;]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", line), line[:100]


def test_a_lock_holds_all_that_its_input_asks_for() -> None:
    def asked(name: str) -> set[str]:
        lines = (ROOT / "requirements" / f"{name}.in").read_text().splitlines()
        return {re.split("[<>=]", line)[0] for line in lines if re.match(r"[a-z]", line)}

    def pinned(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements" / f"{name}.txt").read_text(), re.M))

    box, dev = pinned("box"), pinned("dev")
    assert asked("box") <= box.keys()
    assert asked("box") | asked("dev") <= dev.keys()
    assert box.items() <= dev.items(), "tests run on the versions that run"


def test_what_a_package_is_built_from_is_locked() -> None:
    names = {re.split(r"[<>=\[]", wish)[0] for wish in declared()}
    wanted = {line for line in (ROOT / "requirements/box.in").read_text().splitlines() if re.match(r"[a-z]", line)}
    assert names == wanted


def declared() -> list[str]:
    extras = PROJECT["project"]["optional-dependencies"]["box"]
    return [*PROJECT["project"]["dependencies"], *extras, *PROJECT["build-system"]["requires"]]


def test_a_laptop_installs_no_box() -> None:
    assert [re.split("[<>=]", wish)[0] for wish in PROJECT["project"]["dependencies"]] == ["pathspec", "fabric"]


def test_the_targets_that_pages_name_are_in_the_makefile() -> None:
    made = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        target
        for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / ".ci/run", *sorted((ROOT / "docs").glob("*.md"))]
        for target in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.M)
    }
    assert {"demo", "test", "check"} <= named
    assert named <= made


def test_the_time_budgets_add_up() -> None:
    suites = {budget.suite(path.name, set()) for path in (ROOT / "tests").rglob("test_*.py")}
    unmarked = sum(map(budget.seconds, suites))
    assert unmarked + sum(seconds for seconds, _ in budget.MARKED.values()) <= budget.CI_SECONDS


def test_every_marker_has_its_place_in_the_budget() -> None:
    declared = {line.partition(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    assert declared == budget.MARKED.keys() | budget.NOWHERE.keys()
