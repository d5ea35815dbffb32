"""Environments: what is chosen, what is refused at submit, and that only a whole build ever counts."""

import errno
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from tools import ROOT, wait_until

from runner import errors, files
from runner.box.envs import EnvironmentFailed, Environments, choose, settings, uv

HEADER = '# /// script\n# requires-python = ">=3.11"\n# dependencies = ["tiny-one"]\n# ///\n'


def chosen(snapshot, script="train.py", wanted="auto"):
    encoded = {name: text.encode() if isinstance(text, str) else text for name, text in snapshot.items()}
    return choose(encoded.get, script, wanted, sys.executable)


# --- what is chosen --------------------------------------------------------------------------------------------------


PROJECT = '[project]\nname = "p"\nversion = "1"\ndependencies = ["tiny-one"]\n'
LOCK = "version = 1\n"
EVERYTHING = {
    "src/train.py": HEADER, "src/requirements.txt": "a", "requirements.txt": "b", "pyproject.toml": PROJECT,
    "uv.lock": LOCK,
}  # fmt: skip


@pytest.mark.parametrize(
    ("gone", "label"),
    [
        ([], "header of src/train.py"),
        (["src/train.py"], "src/requirements.txt"),
        (["src/train.py", "src/requirements.txt"], "requirements.txt"),
        (["src/train.py", "src/requirements.txt", "requirements.txt"], "uv.lock"),
        (["src/train.py", "src/requirements.txt", "requirements.txt", "uv.lock"], "pyproject.toml"),
    ],
)
def test_the_nearest_declaration_is_taken(gone, label):
    recipe = chosen({name: text for name, text in EVERYTHING.items() if name not in gone}, "src/train.py")
    assert (recipe.kind, recipe.label) == ("uv", label)


@pytest.mark.parametrize(
    "snapshot",
    [
        {},
        {"train.py": "print(1)"},
        {"uv.lock": LOCK},
        {"pyproject.toml": "[tool.ruff]\nline-length = 100"},
        {"pyproject.toml": '[project]\nname = "p"\nversion = "1"'},
        {"train.py": b"\x7fELF\xff\xfe"},
    ],
)
def test_nothing_declared_is_the_base_environment(snapshot):
    assert chosen(snapshot) is None


def test_base_skips_what_is_declared():
    assert chosen(EVERYTHING, "src/train.py", "base") is None


def test_a_command_without_a_script_takes_the_root_s_declaration():
    assert chosen(EVERYTHING, None).label == "requirements.txt"


def test_an_unknown_environment_is_refused():
    with pytest.raises(errors.BadRequest, match="no environment is called conda"):
        chosen({}, wanted="conda")


def test_an_edit_below_the_header_keeps_the_environment_and_one_in_it_does_not():
    first, below = chosen({"train.py": HEADER + "print(1)"}), chosen({"train.py": HEADER + "print(2)"})
    inside = chosen({"train.py": HEADER.replace("tiny-one", "tiny-one>=1")})
    assert first.id == below.id != inside.id
    assert first.python == ">=3.11"


def test_line_ends_of_another_system_do_not_matter():
    assert chosen({"train.py": HEADER.replace("\n", "\r\n")}).id == chosen({"train.py": HEADER}).id


def test_the_header_may_close_late_as_the_standard_says():
    text = "# /// script\n# dependencies = [\n# ///\n#   'a']\n# ///\nx = 1\n"
    with pytest.raises(errors.BadRequest, match=r"line 3: not valid TOML"):
        chosen({"train.py": text})


def test_files_that_requirements_include_count_too():
    snapshot = {
        "src/requirements.txt": "-r more.txt\n-c ../limits.txt  # a comment\n--requirement=more.txt\n",
        "src/more.txt": "a \\\n  ; python_version > '3'\n",
        "limits.txt": "a<2\n",
    }
    recipe = chosen(snapshot, "src/train.py")
    assert list(recipe.files) == ["src/requirements.txt", "src/more.txt", "limits.txt"]
    assert chosen({**snapshot, "limits.txt": "a<3\n"}, "src/train.py").id != recipe.id


@pytest.mark.parametrize(
    "line",
    [
        "-r https://example.org/all.txt", "-e git+https://example.org/a.git", "a @ https://example.org/a.whl",
        "git+ssh://git@example.org/a/b.git", "--index-url https://example.org/simple", "a @ file:///srv/a.whl",
        "-f /srv/wheels", "/srv/a.whl", "a[b]>=1 ; python_version < '4' --hash=sha256:00", "--pre",
    ],
)  # fmt: skip
def test_what_can_be_had_on_the_box_is_left_to_the_resolver(line):
    assert list(chosen({"requirements.txt": line}).files) == ["requirements.txt"]


# --- what is refused at submit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "-e .", "-e.", "--editable ./lib", "--editable=lib", ".", "./lib", "../lib[x]", "lib/a", "a @ file:lib",
        "a @ ./lib", "a@file:./lib ; python_version > '3'", "dist/a-1.whl", "a-1.tar.gz", "-f wheels",
    ],
)  # fmt: skip
def test_requirements_on_the_project_itself_are_refused(line):
    with pytest.raises(errors.BadRequest, match=r"requirements.txt, line 2: .*needs the project itself") as caught:
        chosen({"requirements.txt": f"a\n{line}\n"})
    assert "--base" in caught.value.hint


@pytest.mark.parametrize(
    ("snapshot", "says"),
    [
        ({"train.py": "x = 1\n# /// script\n# dependencies = []\nx = 2"}, "train.py, line 2: .* has no end"),
        ({"train.py": "\n# /// script\n# dependencies = [\n# ///\n"}, "train.py, line [34]: not valid TOML"),
        ({"train.py": "# /// script\n# a = 1\n# b = ?\n# ///\n"}, "train.py, line 3: not valid TOML: Invalid value"),
        ({"train.py": HEADER + "\n" + HEADER}, "two script headers, in lines 1 and 6"),
        ({"train.py": HEADER.replace('["tiny-one"]', '"tiny-one"')}, "not a list of strings"),
        ({"train.py": HEADER.replace('"tiny-one"', '"lib @ ./lib"')}, "needs the project itself"),
        ({"train.py": HEADER.replace('">=3.11"', "3.11")}, "`requires-python` is not a string"),
        ({"train.py": HEADER.encode() + b"\n\xff"}, "train.py, line 6: not UTF-8"),
        ({"train.py": HEADER.removesuffix("# ///\n") + "# [tool.uv.sources]\n# a = { path = 'lib' }\n# ///\n"},
         "train.py takes a from a folder"),
        ({"requirements.txt": "a\n-r gone.txt"}, "requirements.txt, line 2 includes gone.txt"),
        ({"requirements.txt": "-c ../../x.txt"}, "lies outside of the project"),
        ({"requirements.txt": "-c /etc/x.txt"}, "lies outside of the project"),
        ({"requirements.txt": b"caf\xe9"}, "requirements.txt, line 1: not UTF-8"),
        ({"pyproject.toml": "[project]\nname = "}, "pyproject.toml, line 2: not valid TOML"),
        ({"pyproject.toml": PROJECT + "[tool.uv.sources]\na = [{ workspace = true }]"}, "takes a from a folder"),
        ({"pyproject.toml": '[project]\nname = "p"\ndynamic = ["dependencies"]'}, "dynamic"),
        ({"pyproject.toml": PROJECT, "uv.lock": "version = "}, "uv.lock, line 1: not valid TOML"),
        ({"pyproject.toml": PROJECT, "uv.lock": '[[package]]\nname = "b"\nsource = { editable = "b" }'},
         "uv.lock takes b from b"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_line(snapshot, says):
    with pytest.raises(errors.BadRequest, match=says) as caught:
        chosen(snapshot)
    assert caught.value.hint


def test_a_base_python_that_does_not_run_is_a_bad_setting():
    with pytest.raises(errors.BadSettings, match="does not run"):
        choose({"requirements.txt": b""}.get, None, "auto", "/bin/false")


# --- pip's settings --------------------------------------------------------------------------------------------------


def test_pip_s_settings_are_said_in_uv_s_words(tmp_path):
    home = tmp_path / "home"
    (home / ".config/pip").mkdir(parents=True)
    (home / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://a.example/simple\nextra-index-url =\n    https://b.example\n    https://c.example\n"
        "cert = /ca.pem\n[install]\nfind_links = /w1 /w2\n"
    )
    env, options = settings.for_uv({"HOME": str(home), "PIP_NO_INDEX": "1", "PYTHONPATH": "/x", "PIP_CERT": "/own.pem"})
    assert env["UV_DEFAULT_INDEX"] == "https://a.example/simple"
    assert env["UV_INDEX"] == "https://b.example https://c.example"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["UV_FIND_LINKS"] == "/w1,/w2"
    assert env["SSL_CERT_FILE"] == "/own.pem"
    assert "PYTHONPATH" not in env
    assert options == ["--no-index"]


def test_what_is_set_for_uv_holds_over_what_is_set_for_pip(tmp_path):
    env, options = settings.for_uv(
        {"HOME": str(tmp_path), "PIP_INDEX_URL": "https://pip.example", "UV_INDEX_URL": "https://uv.example",
         "PIP_EXTRA_INDEX_URL": "https://more.example", "UV_INDEX": "https://own.example"}
    )  # fmt: skip
    assert "UV_DEFAULT_INDEX" not in env
    assert (env["UV_INDEX"], "UV_INDEX_STRATEGY" in env) == ("https://own.example", False)
    assert options == []


def test_a_damaged_pip_file_does_not_stop_a_build(tmp_path):
    (tmp_path / "pip.conf").write_bytes(b"not\xff a setting")
    env, _ = settings.for_uv({"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "HOME": str(tmp_path)})
    assert env["UV_NO_PROGRESS"] == "1"


# --- real builds, without a network ----------------------------------------------------------------------------------


def wheel(folder, name, version, *needs):
    """A package of one module, NAME, whose VERSION says which it is."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    content = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**content, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Two packages in a folder, and nowhere else to look."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "tiny_one", "1.0")
    wheel(folder, "tiny_two", "2.0", "tiny-one")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    return folder


@pytest.fixture
def environments(tmp_path):
    return Environments(str(tmp_path / "envs"), sys.executable)


def says(environments, recipe, code):
    ran = subprocess.run(
        [f"{environments.bin_dir(recipe.id)}/python", "-c", code], capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


@pytest.mark.parametrize(
    "snapshot",
    [
        pytest.param({"train.py": HEADER.replace("tiny-one", "tiny-two")}, id="header"),
        pytest.param({"requirements.txt": "-r more/two.txt\n", "more/two.txt": "-c one.txt\ntiny-two\n",
                      "more/one.txt": "tiny-one<2\n"}, id="requirements with includes"),
        pytest.param({"pyproject.toml": PROJECT.replace("tiny-one", "tiny-two")}, id="pyproject"),
    ],
)  # fmt: skip
def test_an_environment_is_built_with_what_was_declared(snapshot, environments, wheels):
    recipe = chosen(snapshot)
    assert not environments.ready(recipe.id)
    environments.build(recipe)
    assert environments.ready(recipe.id)
    code = "import tiny_one, tiny_two; print(tiny_one.VERSION, tiny_two.VERSION)"
    assert says(environments, recipe, code) == "1.0 2.0"


def test_a_uv_lock_is_installed_as_it_is_locked(environments, wheels, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(PROJECT + 'requires-python = ">=3.11"\n')
    lock = [uv.find(), "lock", "--no-index", "--find-links", str(wheels), "--python", sys.executable]
    subprocess.run(lock, cwd=project, check=True, capture_output=True)
    wheel(wheels, "tiny_one", "1.5")
    recipe = chosen({name: (project / name).read_text() for name in ("pyproject.toml", "uv.lock")})
    assert recipe.label == "uv.lock"
    environments.build(recipe)
    assert says(environments, recipe, "import tiny_one; print(tiny_one.VERSION)") == "1.0"


def test_indexes_of_a_lock_are_asked_too():
    lock = '[[package]]\nname = "torch"\nsource = { registry = "https://wheels.example/cpu" }\n'
    recipe = chosen({"pyproject.toml": PROJECT, "uv.lock": lock})
    install = uv.programs("uv", sys.executable, recipe, "/envs/1", [])[2]
    assert install[install.index("--index") + 1] == "https://wheels.example/cpu"


def test_the_header_s_own_uv_settings_are_respected(environments, wheels, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    header = HEADER.removesuffix("# ///\n") + f"# [tool.uv]\n# find-links = ['{wheels}']\n# ///\n"
    recipe = chosen({"train.py": header})
    environments.build(recipe)
    assert says(environments, recipe, "import tiny_one; print(tiny_one.VERSION)") == "1.0"


def test_a_job_can_not_damage_the_cache_through_its_environment(environments, wheels):
    first = chosen({"train.py": HEADER})
    environments.build(first)
    module = Path(says(environments, first, "import tiny_one; print(tiny_one.__file__)"))
    assert module.stat().st_nlink == 1
    module.write_text("damage = True\n")
    second = chosen({"train.py": HEADER.replace("tiny-one", "tiny-one>=1")})
    environments.build(second)
    assert says(environments, second, "import tiny_one; print(tiny_one.VERSION)") == "1.0"


def test_a_failed_build_says_the_resolver_s_own_words_and_leaves_nothing(environments, wheels):
    recipe = chosen({"train.py": HEADER.replace("tiny-one", "tiny-one>2")})
    with pytest.raises(EnvironmentFailed, match=r"only tiny-one==1\.0 is available and you require") as caught:
        environments.build(recipe)
    assert "header of train.py" in caught.value.message
    assert (caught.value.code, caught.value.http_status) == ("environment_failed", 422)
    assert not environments.ready(recipe.id)
    assert environments.inventory() == []
    assert b"tiny-one>2" in Path(environments.log(recipe.id)).read_bytes()
    wheel(wheels, "tiny_one", "3.0")
    environments.build(recipe)
    assert environments.ready(recipe.id)


def test_a_python_that_cannot_be_had_is_said(environments, wheels):
    recipe = chosen({"train.py": HEADER.replace(">=3.11", ">=3.99")})
    with pytest.raises(EnvironmentFailed, match=r"No interpreter found for Python >=3.99"):
        environments.build(recipe)


def test_an_index_that_cannot_be_reached_is_not_for_the_project_to_correct(environments, monkeypatch):
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    recipe = chosen({"requirements.txt": "--index-url http://127.0.0.1:9/simple\ntiny-one\n"})
    with pytest.raises(EnvironmentFailed, match="error sending request") as caught:
        environments.build(recipe)
    assert "SSL_CERT_FILE" in caught.value.hint


def test_without_uv_it_says_what_to_install(environments, monkeypatch, tmp_path):
    monkeypatch.setattr(uv, "_candidates", lambda program: iter([str(tmp_path / "uv")]))
    with pytest.raises(errors.NotInstalled) as caught:
        environments.build(chosen({"train.py": HEADER}))
    assert "pip install uv" in caught.value.hint
    assert environments.inventory() == []


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        pytest.param(errno.EACCES, EnvironmentFailed, "Permission denied: /envs/x", id="not ours"),
        pytest.param(errno.ENOSPC, errors.DiskFull, "disk was full while the environment", id="full"),
    ],
)
def test_a_folder_that_cannot_be_written_fails_the_build(environments, monkeypatch, number, kind, words):
    def full(*_):
        raise OSError(number, os.strerror(number), "/envs/x")

    monkeypatch.setattr(environments.kinds["uv"], "build", full)
    with pytest.raises(kind, match=words):
        environments.build(chosen({"train.py": HEADER}))
    assert environments.inventory() == []


def test_inventory_touch_and_remove(environments, wheels):
    first, second = chosen({"train.py": HEADER}), chosen({"requirements.txt": "tiny-two"})
    for recipe in (first, second):
        environments.build(recipe)
    os.utime(f"{environments.path(second.id)}/ready", (1, 1))
    assert [one[0] for one in environments.inventory()] == [second.id, first.id]
    environments.touch(second.id)
    os.utime(f"{environments.path(first.id)}/ready", (5, 5))
    (env_id, size, used_at, ready), _ = environments.inventory()
    assert (env_id, used_at, ready) == (first.id, 5, True)
    assert size > 10_000
    environments.remove(first.id)
    assert [one[0] for one in environments.inventory()] == [second.id]
    assert not os.path.exists(environments.log(first.id))
    environments.remove(first.id)
    environments.touch(first.id)
    with pytest.raises(errors.NotFound):
        environments.bin_dir(first.id)


# --- stand-ins for uv: a build that can be stopped in its middle -----------------------------------------------------


def stand_in(tmp_path, body):
    program = tmp_path / "uv"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_two_threads_build_once(tmp_path):
    program = stand_in(tmp_path, f'[ $1 = venv ] && echo built >> {tmp_path}/count; mkdir -p "{tmp_path}/envs"')
    environments = Environments(str(tmp_path / "envs"), sys.executable, program)
    recipe = chosen({"train.py": HEADER})
    threads = [threading.Thread(target=environments.build, args=(recipe,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert environments.ready(recipe.id)
    assert (tmp_path / "count").read_text() == "built\n"


BUILDER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from runner import files
from runner.box.envs import Environments, choose
directory, program, point = sys.argv[2:5]
def crash(name):
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)
files.armed = crash
recipe = choose({"train.py": sys.argv[5].encode()}.get, "train.py", "auto", sys.executable)
Environments(directory, sys.executable, program or None).build(recipe)
"""


def builder(environments, program="", point=""):
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(ROOT), environments.directory, program, point, HEADER])


def test_two_processes_build_once(tmp_path):
    program = stand_in(tmp_path, f"[ $1 = venv ] && echo built >> {tmp_path}/count; true")
    environments = Environments(str(tmp_path / "envs"), sys.executable, program)
    both = [builder(environments, program) for _ in range(2)]
    assert [one.wait(30) for one in both] == [0, 0]
    assert (tmp_path / "count").read_text() == "built\n"


@pytest.mark.parametrize("point", ["env.building", "env.built", "put.ready.written", "put.ready.linked", "env.ready"])
def test_a_builder_killed_at_any_point_leaves_a_whole_environment_or_none(point, environments, wheels):
    recipe = chosen({"train.py": HEADER})
    assert builder(environments, point=point).wait(30) == -signal.SIGKILL
    whole = point in ("env.ready", "put.ready.linked")
    assert environments.ready(recipe.id) is whole
    environments.build(recipe)
    assert says(environments, recipe, "import tiny_one; print(tiny_one.VERSION)") == "1.0"
    assert files.get(environments.path(recipe.id), "ready")["label"] == "header of train.py"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_daemon_takes_its_build_along_and_the_next_one_builds_anew(tmp_path):
    body = f"sleep 600 & echo $$ $! > {tmp_path}/pids.new; mv {tmp_path}/pids.new {tmp_path}/pids; wait"
    hanging = stand_in(tmp_path, body)
    environments = Environments(str(tmp_path / "envs"), sys.executable, "/bin/true")
    recipe = chosen({"train.py": HEADER})
    daemon = builder(environments, hanging)
    wait_until((tmp_path / "pids").exists)
    pids = (tmp_path / "pids").read_text().split()
    with pytest.raises(errors.Busy):
        environments.remove(recipe.id)
    daemon.kill()
    daemon.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))
    assert not environments.ready(recipe.id)
    environments.build(recipe)
    assert environments.ready(recipe.id)


def test_a_half_build_still_written_by_an_escaped_process_is_not_built_on(tmp_path):
    """It left the build's group on purpose; the lock that it inherited keeps others out."""
    body = f"setsid sleep 600 < /dev/null & echo $! > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; wait"
    environments = Environments(str(tmp_path / "envs"), sys.executable, stand_in(tmp_path, body), time_limit=0.2)
    daemon = builder(environments, stand_in(tmp_path, body))
    wait_until((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: os.getsid(pid) == pid)
    try:
        daemon.kill()
        daemon.wait()
        with pytest.raises(errors.Busy, match="is being built"):
            environments.build(chosen({"train.py": HEADER}))
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_build_that_takes_too_long_is_ended_as_a_whole(tmp_path):
    hanging = stand_in(tmp_path, f"sleep 600 & echo $$ $! > {tmp_path}/pids; wait")
    environments = Environments(str(tmp_path / "envs"), sys.executable, hanging, time_limit=1.0)
    with pytest.raises(EnvironmentFailed, match="was not built within 1 s"):
        environments.build(chosen({"train.py": HEADER}))
    wait_until(lambda: not any(alive(pid) for pid in (tmp_path / "pids").read_text().split()))
    assert environments.inventory() == []


def test_a_build_yields_to_the_jobs(tmp_path):
    program = stand_in(tmp_path, f"nice > {tmp_path}/nice")
    Environments(str(tmp_path / "envs"), sys.executable, program).build(chosen({"train.py": HEADER}))
    assert int((tmp_path / "nice").read_text()) >= 10


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("Using Python\nerror: No solution\n  cause: Because a\n", "error: No solution\n  cause: Because a"),
        ("x\n  \x1b[31m\u00d7\x1b[0m No solution\n  ╰─▶ Because b\n", "  \u00d7 No solution\n  ╰─▶ Because b"),
        ("killed\n\n", "killed"),
        ("error: a\n" + "\n".join(f"line {n}" for n in range(50)), None),
        ("", ""),
    ],
)
def test_the_last_meaningful_words_of_a_log_are_found(log, words):
    found = uv.last_words(log)
    assert found == words if words is not None else len(found.splitlines()) == 25


def test_the_uv_program_is_found():
    version = subprocess.run([uv.find(), "--version"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("uv ")
