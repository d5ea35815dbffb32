"""The launcher against a daemon that was taken over: whatever that writes and says, nothing but its jobs is started.

Here without root: both users are us, and what would be run is caught. The same on a real host: test_systemd.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import a_launch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tools import need_root, wait_until

from runner import files
from runner.box import launcher, units, vault
from runner.box.engines import Stop
from runner.box.engines.systemd import Systemd
from runner.box.launcher import Config
from runner.box.units import Limits, Refusal
from runner.model import Resources
from runner.paths import StateDir

SPEC = {"argv": ["true"], "env": {}, "directory": "/", "grace": 30.0, "memory_bytes": 1 << 30, "cpus": 2, "gpus": []}
GPU = "GPU-0123abcd-1111-2222-3333-444455556666"
INFORMATION = (
    "Model: \t\t NVIDIA GeForce RTX 3090\nGPU UUID: \t {}\nBus Location: \t 0000:01:00.0\nDevice Minor: \t {}\n"
)
hostile = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    me = SimpleNamespace(uid=os.getuid(), gid=os.getgid(), variables={"HOME": "/home/jobs"}, become=lambda: None)
    state = StateDir(tmp_path / "state")
    for folder in (state, state.jobs, state.trees, state.envs, state.builds):
        os.mkdir(folder, 0o711)
    return Config(
        os.getuid(),
        me,
        state,
        "/usr/bin/python3",
        "/usr/lib/s.pyz",
        ("/home/jobs", "/srv/data"),
        str(tmp_path / "secrets"),
    )  # type: ignore[arg-type]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that would have been run."""
    caught: list[list[str]] = []
    monkeypatch.setattr(launcher, "run", lambda arguments: caught.append(list(arguments)))
    return caught


def an_attempt(config: Config, spec: object = SPEC, job: int = 1) -> Path:
    folder = Path(config.state.job(job).attempt(1))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
    (folder / "spec").write_bytes(data)
    (folder / "spec").chmod(0o600)
    return folder


@contextmanager
def as_if_alone() -> Iterator[None]:
    """A request has a process of its own, whose end closes the folders that it opened."""
    before = _open_ones()
    try:
        yield
    finally:
        for fd in _open_ones() - before:
            os.close(fd)


def _open_ones() -> set[int]:
    """Without that of the look itself."""
    return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}


def ask(config: Config, packet: bytes) -> str:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(packet)
        with as_if_alone():
            launcher.answer(config, theirs)
        return ours.recv(4096).decode()


# --- what is asked ---


@hostile
@given(
    st.one_of(
        st.binary(min_size=1, max_size=300),
        st.from_regex(launcher.REQUEST),  # with anything around it
        st.from_regex(launcher.REQUEST, fullmatch=True),
    )
)
def test_a_packet_is_a_request_to_the_letter_or_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch, packet: bytes
) -> None:
    asked: list[tuple[str, ...]] = []

    def caught(verb: str) -> Callable[..., str]:
        def catch(config: Config, *words: object) -> str:
            asked.append((verb, *(word for word in words if isinstance(word, str))))
            raise Refusal("so it was asked")

        return catch

    monkeypatch.setattr(launcher, "VERBS", {verb: caught(verb) for verb in launcher.VERBS})
    monkeypatch.setattr(launcher, "read_outputs", caught("read-outputs"))
    monkeypatch.setattr(launcher, "build_env", caught("build-env"))
    said = ask(config, packet)
    signal.alarm(0)
    if said == "no so it was asked":
        (words,) = asked
        assert " ".join(words).encode() == packet
        assert all(re.fullmatch(r"[1-9]\d{0,14}|[0-9a-f]{16}", word) for word in words[1:])
    else:
        assert not asked
        assert said.startswith("no ")


def test_only_the_daemon_and_root_are_heard(
    config: Config, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    an_attempt(config)
    monkeypatch.setattr(launcher.struct, "unpack", lambda *_: (1, 4242, 4242))
    assert ask(config, b"start 1 1") == "no user 4242 may not ask"
    assert ran == []


# --- secrets ---


@settings(hostile, max_examples=25)
@given(
    st.one_of(
        st.from_regex(vault.REQUEST, fullmatch=True),
        st.from_regex(vault.REQUEST),
        st.tuples(
            st.sampled_from([b"set-secret", b"list-secrets", b"remove-secret", b"get-secret", b"set-secrets"]),
            st.sampled_from([b"0", b"7", b"00", b"-1", b"4294967294", b"4294967295", b"99999999999", b"a", b"."]),
            st.sampled_from(
                [b"A", b"A/B", b"..", b"../7/KEY", b"", b"A" * 65, b"\xc3\xa4", b"KEY\0", b"KEY\n", b"/etc/x"]
            ),
            st.one_of(st.binary(max_size=40), st.sampled_from([b"x" * vault.VALUE_MAX, b"x" * (vault.VALUE_MAX + 1)])),
        ).map(lambda parts: parts[0] + b" " + parts[1] + b" " + parts[2] + b"\n" + parts[3]),
    )
)
def test_a_hostile_daemon_reads_no_secret_and_writes_nowhere_else(
    config: Config, tmp_path: Path, packet: bytes
) -> None:
    kept = vault.Vault(config.secrets)
    if kept.values(7, ["KEY"]) != {"KEY": "canary-4711"}:
        kept.put(7, "KEY", b"canary-4711")
    around = _names_below(tmp_path) - _names_below(Path(config.secrets))
    said = ask(config, packet)
    assert "canary" not in said
    asked = vault.REQUEST.fullmatch(packet[: launcher.REQUEST_MAX])
    assert said.startswith("ok") <= (asked is not None)
    assert _names_below(tmp_path) - _names_below(Path(config.secrets)) == around
    for path in _names_below(Path(config.secrets)):
        inside = path.relative_to(config.secrets).parts
        assert re.fullmatch(r"\d{1,10}", inside[0])
        assert len(inside) == 1 or (len(inside) == 2 and re.fullmatch(vault.NAME, inside[1]))
        assert path.lstat().st_mode & 0o077 == 0
    if asked is None:
        assert kept.values(7, ["KEY"]) == {"KEY": "canary-4711"}


def _names_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_box_without_a_folder_for_secrets_keeps_none(config: Config) -> None:
    assert ask(replace(config, secrets=""), b"list-secrets 1").startswith("no this box keeps no secrets")


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_folder_that_others_may_enter_holds_no_secret(config: Config, mode: int) -> None:
    os.mkdir(config.secrets, 0o700)
    os.chmod(config.secrets, mode)
    assert "not its owner's alone" in ask(config, b"set-secret 7 KEY\ncanary-4711")
    assert os.listdir(config.secrets) == []


def test_a_jobs_secrets_are_its_users_in_memory_and_only_those_named(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []

    def see(arguments: list[str]) -> None:
        (source,) = (word for word in arguments if word.startswith("--property=StandardInput=file:"))
        assert "canary" not in " ".join(arguments)
        assert "--no-block" not in arguments, "it must be open before it is gone"
        path = source.partition("file:")[2]
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        read.append(json.loads(Path(path).read_text()))

    monkeypatch.setattr(launcher, "run", see)
    kept = vault.Vault(config.secrets)
    kept.put(7, "KEY", b"canary-7")
    kept.put(7, "OTHER", b"canary-other")
    kept.put(8, "KEY", b"canary-8")
    for uid in (7, 8, 9):
        an_attempt(config, {**SPEC, "secrets": ["KEY"], "uid": uid})
        assert ask(config, b"start 1 1") == "ok"
    assert read == [{"KEY": "canary-7"}, {"KEY": "canary-8"}, {}]


@pytest.mark.parametrize(
    "spec",
    [
        {"secrets": ["KEY"]}, {"secrets": ["KEY"], "uid": "7"}, {"secrets": ["KEY"], "uid": True},
        {"secrets": ["../7/KEY"], "uid": 8}, {"secrets": "KEY", "uid": 7}, {"secrets": [7], "uid": 7},
        {"secrets": ["KEY"] * 65, "uid": 7}, {"secrets": ["KEY"], "uid": -1}, {"secrets": ["KEY"], "uid": 2**32},
    ],
    ids=str,
)  # fmt: skip
def test_a_spec_that_names_secrets_wrongly_starts_nothing(
    config: Config, ran: list[list[str]], spec: dict[str, object]
) -> None:
    vault.Vault(config.secrets).put(7, "KEY", b"canary-4711")
    an_attempt(config, {**SPEC, **spec})
    assert ask(config, b"start 1 1").startswith("no ")
    assert ran == []


# --- what is written ---

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just(GPU)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "secrets",
        "uid",
        "vault",
        "memory_bytes",
        "cpus",
        "gpus",
        "grace",
        "User",
        "uid",
        "properties",
        "unit",
        "argv",
        "run_as",
    ]
)
FREE = {  # what a spec decides of a unit, and what it can say
    "CPUWeight": r"[1-9]\d{2,4}",
    "MemoryMax": r"[1-9]\d*",
    "TimeoutStopSec": r"\d{1,3}",
    "StandardInput": r"null|file:/proc/\d+/fd/\d+",
    "DeviceAllow": r"/dev/nvidia(\d+|ctl|-uvm|-uvm-tools) rw",
}


def properties(arguments: list[str]) -> list[tuple[str, str]]:
    lines = [word.removeprefix("--property=") for word in arguments if word.startswith("--property=")]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


@hostile
@given(st.one_of(st.dictionaries(KEYS, VALUES), st.dictionaries(st.text(), VALUES), VALUES))
def test_whatever_a_spec_says_a_unit_is_the_templates(config: Config, ran: list[list[str]], spec: object) -> None:
    ran.clear()
    an_attempt(config, SPEC)
    assert ask(config, b"start 1 1") == "ok"
    an_attempt(config, spec)
    said = ask(config, b"start 1 1")
    if said != "ok":
        assert said.startswith("no ")
        assert len(ran) == 1
        return
    usual, unusual = ran
    fixed = [pair for pair in properties(usual) if pair[0] not in FREE]
    assert [pair for pair in properties(unusual) if pair[0] not in FREE] == fixed
    for name, value in properties(unusual):
        assert name not in FREE or re.fullmatch(FREE[name], value), (name, value)
    free = ("--property=", "--no-block")
    rest = [[word for word in words if not word.startswith(free)] for words in ran]
    assert rest[0] == rest[1]
    assert rest[1][-6:] == [
        config.python, "-I", "-S", config.supervisor, config.state.job(1).attempt(1), str(config.jobs.uid)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"1", b'"x"', b"\xff\xfe{}", b"[" * 100_000, b"{}" + b" " * launcher.SPEC_MAX + b"x"]
)  # fmt: skip
def test_a_spec_that_is_none_starts_nothing(config: Config, ran: list[list[str]], data: bytes) -> None:
    an_attempt(config, data if data[:2] != b"{}" else data[2:] + b"{}")
    assert ask(config, b"start 1 1").startswith("no ")
    assert ran == []


@pytest.mark.parametrize("name", ["memory_bytes", "cpus", "grace"])
@pytest.mark.parametrize("value", [-1, 10**400, True, None, "1", "infinity", [], float("nan"), float("inf"), -0.5])
def test_numbers_are_numbers(name: str, value: object) -> None:
    with pytest.raises(Refusal):
        Limits.of({name: value})


@pytest.mark.parametrize(
    "value", ["GPU-1", [1], ["/dev/sda"], ["GPU-../../x"], [f"{GPU}\n"], [f"{GPU} rw"], [GPU] * 65, {GPU: 1}, None]
)
def test_names_of_gpus_are_names(value: object) -> None:
    with pytest.raises(Refusal):
        Limits.of({"gpus": value})


# --- where it leads ---


@pytest.mark.parametrize("way", ["jobs", "jobs/1", "jobs/1/1", "jobs/1/1/spec", "jobs/1/out", "jobs/1/checkpoint"])
@pytest.mark.parametrize("how", ["link", "dangling", "pipe", "socket", "file"])
def test_no_step_leads_elsewhere(config: Config, ran: list[list[str]], tmp_path: Path, way: str, how: str) -> None:
    an_attempt(config)
    place, away = Path(config.state, way), tmp_path / "away"
    if place.exists():
        place.rename(away)  # all that it should hold is there, too
    else:
        away.mkdir()
    match how:
        case "link":
            place.symlink_to(away)
        case "dangling":
            place.symlink_to(tmp_path / "nowhere")
        case "pipe":
            os.mkfifo(place)
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock, _inside(place.parent):
                sock.bind(place.name)
        case "file":
            place.write_text("not this")
    before = sorted(away.rglob("*")) if away.is_dir() else [away]
    assert ask(config, b"start 1 1").startswith("no ")
    assert ran == []
    assert (sorted(away.rglob("*")) if away.is_dir() else [away]) == before
    assert not (tmp_path / "nowhere").exists()


class _inside:
    """A path of a socket must be short."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before = folder, os.getcwd()

    def __enter__(self) -> None:
        os.chdir(self.folder)

    def __exit__(self, *_: object) -> None:
        os.chdir(self.before)


@pytest.mark.parametrize("way", ["", "jobs", "jobs/1", "jobs/1/1", "jobs/1/1/spec"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_what_others_can_write_is_not_believed(config: Config, ran: list[list[str]], way: str, mode: int) -> None:
    an_attempt(config)
    Path(config.state, way).chmod(mode)
    assert ask(config, b"start 1 1").startswith("no ")
    assert ran == []


def test_what_belongs_to_another_is_not_believed(config: Config, ran: list[list[str]]) -> None:
    an_attempt(config)
    stranger = SimpleNamespace(uid=os.getuid() + 1, gid=1, variables={"HOME": "/"})
    with pytest.raises(Refusal), as_if_alone():
        launcher.start(replace(config, daemon=os.getuid() + 1), "1", "1")
    Path(config.state.job(1).out).mkdir()
    (Path(config.state.job(1).out) / "x").touch()
    with pytest.raises(Refusal), as_if_alone():
        launcher.start(replace(config, jobs=stranger), "1", "1")  # type: ignore[arg-type]
    assert ran == []


@pytest.mark.parametrize("inside", ["pipe", "hard link", "socket"])
def test_a_tree_holds_files_folders_and_links_alone(config: Config, tmp_path: Path, inside: str) -> None:
    tree = Path(config.state.tree(1), "deep")
    tree.mkdir(parents=True)
    match inside:
        case "pipe":
            os.mkfifo(tree / "x")
        case "hard link":
            (tmp_path / "kept").touch()
            os.link(tmp_path / "kept", tree / "x")
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock, _inside(tree):
                sock.bind("x")
    assert ask(config, b"make-tree 1 1") == "no the tree holds what is not the daemon's to give"


def test_removing_takes_what_is_hidden_and_follows_no_link(config: Config, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    an_attempt(config)
    for hidden in (config.state.job(1) + "/.gone-out-5", config.state.trees + "/.gone-1-7"):
        Path(hidden, "deep").mkdir(parents=True)
        Path(hidden, "deep/link").symlink_to(kept)
        Path(hidden, "locked").mkdir(mode=0o500)
    others = Path(config.state.trees, ".gone-12-7")
    others.mkdir()
    Path(config.state.trees, ".gone-1-link").symlink_to(kept)
    said = ask(config, b"remove 1 1")
    signal.alarm(0)
    assert said.startswith("no "), "a link is no folder"
    assert (kept / "file").exists()
    Path(config.state.trees, ".gone-1-link").unlink()
    assert ask(config, b"remove 1 1") == "ok"
    assert os.listdir(config.state.job(1)) == ["1"]
    assert os.listdir(config.state.trees) == [".gone-12-7"]
    assert (kept / "file").exists()


# --- units ---


@pytest.fixture
def driver(tmp_path: Path) -> str:
    for bus, uuid, minor in (("0000:01:00.0", GPU, 3), ("0000:02:00.0", GPU.replace("0123", "4567"), 0)):
        (tmp_path / "gpus" / bus).mkdir(parents=True)
        (tmp_path / "gpus" / bus / "information").write_text(INFORMATION.format(uuid, minor))
    return str(tmp_path / "gpus")


def test_a_job_gets_the_files_of_its_gpus_by_their_minors(driver: str) -> None:
    shared = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]
    assert units.devices([GPU], driver) == ["/dev/nvidia3", *shared]
    assert units.devices([], "/nowhere") == []
    with pytest.raises(Refusal):
        units.devices([GPU.replace("0123", "9999")], driver)


def test_stopping_kills_what_is_in_the_unit_and_names_what_stays(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "KILL_WAIT", 0.02)
    assert launcher.stop(config, "1", "1", str(tmp_path)) == ""
    unit = tmp_path / "gpubox-job-1-1.service"
    unit.mkdir()
    (unit / "cgroup.procs").write_text("12\n13\n")
    assert launcher.stop(config, "1", "1", str(tmp_path)) == "12 13"
    assert (unit / "cgroup.kill").read_text() == "1"
    (unit / "cgroup.procs").write_text("")
    assert launcher.stop(config, "1", "1", str(tmp_path)) == ""


def test_an_environment_is_built_in_a_unit_of_the_same_template(config: Config, ran: list[list[str]]) -> None:
    name = "0123456789abcdef"
    Path(config.state.envs, name).mkdir(mode=0o711)
    Path(config.state.builds, name).mkdir(mode=0o700)
    Path(config.state.builds, name, "spec").write_text(json.dumps(SPEC))
    Path(config.state.builds, name, "spec").chmod(0o600)
    an_attempt(config)
    assert [ask(config, packet) for packet in (b"start 1 1", f"build-env {name}".encode())] == ["ok", "ok"]
    job, build = (dict(properties(arguments)) for arguments in ran)
    assert {key for key in job if job[key] != build[key]} == {"Description", "ReadWritePaths"}
    assert build["ReadWritePaths"].split()[:2] == [config.state.builds, config.state.envs]
    assert os.path.isdir(f"{config.state.envs}/{name}/venv")


# --- the configuration ---

GOOD = 'daemon = "daemon"\njobs = "nobody"\nstate = "/var/lib/x"\npython = "/bin/sh"\nsupervisor = "/bin/sh"\n'


@pytest.mark.root
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param(("nobody", "root"), "no job runs as root", id="root's jobs"),
        pytest.param(('jobs = "nobody"', 'jobs = "daemon"'), "the same user", id="one user for both"),
        pytest.param(("nobody", "nobody-there"), "nobody-there", id="no such user"),
        pytest.param(("/var/lib/x", "/var/lib/../x"), "no absolute, plain path", id="a path with a way up"),
        pytest.param(("/var/lib/x", "/var/lib/x y"), "no absolute, plain path", id="a path of two words"),
        pytest.param(("/bin/sh", "bin/sh"), "no absolute, plain path", id="a relative path"),
        pytest.param(("/bin/sh", "/bin/none"), "FileNotFoundError", id="a program that is not there"),
        pytest.param(("daemon =", "uid = 0\ndaemon ="), "it also says uid", id="more than is known"),
        pytest.param(("state", "place"), "KeyError", id="less than is needed"),
        pytest.param(("=", "is"), "TOMLDecodeError", id="not TOML"),
    ],
)
def test_a_configuration_that_could_do_harm_is_refused(tmp_path: Path, changed: tuple[str, str], said: str) -> None:
    need_root()
    path = tmp_path / "launcher.toml"
    path.write_text(GOOD)
    path.chmod(0o644)
    assert launcher.load(str(path)).state == "/var/lib/x"
    path.write_text(GOOD.replace(*changed))
    with pytest.raises(Refusal, match=re.escape(said)):
        launcher.load(str(path))


@pytest.mark.root
@pytest.mark.parametrize("what", ["written by all", "of another", "in a folder of another"])
def test_a_configuration_that_is_not_roots_alone_is_refused(tmp_path: Path, what: str) -> None:
    need_root()
    folder = tmp_path / "etc"
    folder.mkdir()
    path = folder / "launcher.toml"
    path.write_text(GOOD)
    path.chmod(0o646 if what == "written by all" else 0o644)
    if what != "written by all":
        os.chown(path if what == "of another" else folder, 65534, 65534)
    with pytest.raises(Refusal, match="can be changed by others"):
        launcher.load(str(path))


# --- the door ---


@pytest.fixture
def door(config: Config, tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """A served launcher; asks it one packet."""
    with served(config, str(tmp_path / "door")):

        def asked(packet: bytes) -> str:
            with knock(tmp_path, packet) as link:
                return link.recv(4096).decode() if packet else ""

        yield asked


@contextmanager
def served(config: Config, path: str) -> Iterator[int]:
    """Its process id."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(8)
    pid = os.fork()
    if pid == 0:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            launcher.serve(config, listener)
        finally:
            os._exit(0)
    listener.close()
    yield pid
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def knock(place: Path, packet: bytes) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.settimeout(10)
    link.connect(str(place / "door"))
    if packet:
        link.send(packet)
    return link


def test_the_door_serves_on_whatever_comes(door: Callable[[bytes], str]) -> None:
    for packet in (b"", b"x" * 5000, b"start 1 1", b"", b"\0"):
        said = door(packet)
        assert not packet or said.startswith("no ")
    assert wait_until(lambda: door(b"stop 1 1")) == "ok"


def test_many_at_once_are_served_one_after_the_other(door: Callable[[bytes], str]) -> None:
    assert [door(b"stop 1 1") for _ in range(launcher.AT_ONCE + 8)] == ["ok"] * (launcher.AT_ONCE + 8)


def test_who_is_told_to_end_answers_first(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(config: Config, job: str, attempt: str) -> str:
        (tmp_path / "asked").touch()
        wait_until((tmp_path / "go").exists)
        return "now"

    monkeypatch.setitem(launcher.VERBS, "stop", slow)
    with served(config, str(tmp_path / "door")) as pid, knock(tmp_path, b"stop 1 1") as link:
        wait_until((tmp_path / "asked").exists)
        os.kill(pid, signal.SIGTERM)
        (tmp_path / "go").touch()
        assert link.recv(100) == b"ok now"
        assert os.waitpid(pid, 0) == (pid, 0)


def test_who_was_stopped_by_a_job_does_not_stop_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader can be, who is the same user."""
    monkeypatch.setattr(launcher, "PATIENCE", 0.05)
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        children.append(pid)
    second = children[1]
    launcher.reap(children, 2)
    assert children == [second], "the oldest had its time"
    launcher.reap(children, 1)
    assert children == []


# --- the daemon's side: the engine, against a launcher that is played ---


@pytest.fixture
def played(tmp_path: Path, config: Config) -> Iterator[tuple[Systemd, socket.socket, list[str]]]:
    said: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "launcher"))
        listener.listen(8)
        listener.settimeout(10)
        engine = Systemd(config.state, Resources(1, 1 << 30, 0), str(tmp_path / "launcher"), report=said.append)
        yield engine, listener, said
        engine.close()


def taken(listener: socket.socket) -> tuple[socket.socket, bytes]:
    link, _ = listener.accept()
    return link, link.recv(4096)


def test_a_start_is_asked_for_and_not_waited_for(played: tuple[Systemd, socket.socket, list[str]]) -> None:
    engine, listener, said = played
    engine.start([a_launch(engine.state, ["true"])])
    link, asked = taken(listener)
    assert asked == b"start 1 1"
    assert list(engine.refusals()) == []
    link.send(b"ok")
    link.close()
    assert list(engine.refusals()) == []
    assert said == []


@pytest.mark.parametrize("answer", [b"no such thing", b""], ids=["refused", "the launcher ended"])
def test_a_start_that_does_not_happen_is_told(played: tuple[Systemd, socket.socket, list[str]], answer: bytes) -> None:
    engine, listener, said = played
    engine.start([a_launch(engine.state, ["true"])])
    link, _ = taken(listener)
    if answer:
        link.send(answer)
    link.close()
    assert list(engine.refusals()) == [(1, 1)]
    assert said[0].startswith("job 1, attempt 1: no unit could be started: ")
    assert list(engine.refusals()) == []


def test_without_a_launcher_nothing_starts_and_nothing_breaks(
    played: tuple[Systemd, socket.socket, list[str]], tmp_path: Path
) -> None:
    engine, _, said = played
    engine.launcher = str(tmp_path / "nowhere")
    engine.start([a_launch(engine.state, ["true"])])
    assert list(engine.refusals()) == [(1, 1)]
    assert len(said) == 1
    files.put(engine.state.job(1).attempt(1), "started", {"boot_id": files.boot_id(), "started_at": 42.0})
    engine.stop([Stop((1, 1), "x", fence=True, ran=True)])
    assert engine.evidence([(1, 1)])[1, 1].exit is None, "nobody could look: nothing is claimed"


def test_what_the_launcher_can_not_end_is_given_up_in_time(
    played: tuple[Systemd, socket.socket, list[str]],
) -> None:
    engine, listener, _ = played
    directory = engine.state.job(1).attempt(1)
    os.makedirs(directory)
    files.put(directory, "started", {"boot_id": files.boot_id(), "started_at": 42.0})
    files.put(directory, "spec", {"kill_seconds": 0.0})

    def answer(living: str, times: int) -> None:
        for _ in range(times):
            link, asked = taken(listener)
            assert asked == b"stop 1 1"
            link.send(f"ok {living}".strip().encode())
            link.close()

    answering = threading.Thread(target=answer, args=(str(os.getpid()), 2))
    answering.start()
    engine.stop([Stop((1, 1), "x", fence=True)])
    answering.join()
    end = engine.evidence([(1, 1)])[1, 1].exit
    assert end is not None
    assert (end.reason, [pid for pid, _ in end.stuck]) == ("supervisor_died", [os.getpid()])
