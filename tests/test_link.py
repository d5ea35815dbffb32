"""The way to a box: real sshds with keys of their own, real daemons, and whoever may stand in between."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import random
import select
import shlex
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sshd
import tools
import wire
from sshd import Laptop, Sshd
from tools import wait_until

from runner.box.certificate import Certificate
from runner.cli import boxes as cli_boxes
from runner.laptop import boxes, link, ways

pytestmark = pytest.mark.long
JOB = ["--base", "--no-files", "--"]


class House:
    """A box behind an sshd, an sshd in front of that one, and a laptop."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.laptop = Laptop(place / "lap")
        self.target = Sshd(place / "target", self.laptop.key)
        self.jump = Sshd(place / "jump", self.laptop.key)
        (place / "box").mkdir()
        self.box = wire.Box(place / "box", https="127.0.0.1:0", cpus="4")
        self.runner = sshd.runner_of(self.box, place)

    def open(self, closing: ExitStack) -> None:
        closing.callback(self.box.end)
        self.box.start()
        closing.callback(self.laptop.end)
        closing.enter_context(sshd.hosts(self.target, self.jump))
        self.ways(self.target.known() + self.jump.known())

    def ways(self, known: str) -> None:
        """`gpubox` directly, `behind` by way of `jump`; the second from an included file."""
        self.laptop.known.write_text(known)
        (self.laptop.home / ".ssh" / "conf.d").mkdir(exist_ok=True)
        (self.laptop.home / ".ssh" / "conf.d" / "home").write_text(
            f"Host behind\n  ProxyJump jump\n  Port {self.target.port}\nHost jump\n  Port {self.jump.port}\n"
        )
        self.laptop.hosts(f"Include conf.d/*\nHost gpubox\n  Port {self.target.port}\n")

    def add(self, host: str = "gpubox", *more: str) -> subprocess.CompletedProcess[str]:
        return self.laptop.call("box", "add", "--name", "gpubox", "--runner", self.runner, *more, host)

    def remembered(self) -> dict[str, Any]:
        path = self.laptop.home / "config/gpubox/boxes/gpubox.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def tokens(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.box.get("/tokens")["tokens"]
        return found

    def forget(self) -> None:
        for name in ("config", "cache"):
            for path in sorted((self.laptop.home / name).rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()


@pytest.fixture(scope="module")
def opened() -> Iterator[House]:
    with wire.place() as folder, ExitStack() as closing:
        made = House(Path(folder))
        made.open(closing)
        yield made


@pytest.fixture
def house(opened: House) -> House:
    """A laptop that has not added the box yet, and knows both hosts."""
    opened.forget()
    opened.ways(opened.target.known() + opened.jump.known())
    for token in opened.tokens():
        opened.box.ask("DELETE", f"/tokens/{token['id']}")
    return opened


@pytest.fixture
def added(house: House) -> House:
    done = house.add()
    assert done.returncode == 0, done.stdout + done.stderr
    return house


# --- add, list, use, test, remove ---


@pytest.mark.parametrize("host", ["gpubox", "behind"])
def test_one_command_trusts_a_box_and_one_trains_on_it(house: House, host: str) -> None:
    done = house.add(host)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "commands mean gpubox from now on" in done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["direct", "tunnel"]
    assert "version" in done.stdout.splitlines()[1]
    folder = house.laptop.home / "config/gpubox"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert modes == {"gpubox": 0o700, "boxes": 0o700, "gpubox.json": 0o600, "box": 0o600}
    (token,) = house.tokens()
    assert (token["scope"], token["label"].startswith("ann@")) == ("submit", True)
    for way in ("direct", "tunnel"):
        out = house.laptop.run("submit", *JOB, "sh", "-c", "echo hello from $RUNNER_JOB_ID", GPUBOX_WAY=way)
        assert out.startswith("hello from ")
    assert "gpubox *  ready" in house.laptop.run("box")


def test_a_box_is_added_again_without_a_second_token(added: House) -> None:
    before = added.remembered()
    assert added.add("gpubox", "--scope", "read").returncode == 0
    after = added.remembered()
    assert after["token"] != before["token"]
    (token,) = added.tokens()
    assert (token["id"], token["scope"]) == (after["token_id"], "read")
    done = added.laptop.call("submit", *JOB, "true")
    assert (done.returncode, "may look, but not change" in done.stderr) == (77, True)


def test_a_box_is_called_as_its_host_and_takes_no_others_name(house: House) -> None:
    plain = ["box", "add", "--runner", house.runner]
    assert house.laptop.run(*plain, "gpubox").split()[0] == "gpubox"
    path = house.laptop.home / "config/gpubox/boxes/gpubox.json"
    path.write_text(json.dumps({**house.remembered(), "ssh": "me@elsewhere", "fingerprint": "0" * 64}))
    before, tokens = path.read_text(), len(house.tokens())
    done = house.laptop.call(*plain, "gpubox")
    assert (done.returncode, "gpubox is another box, me@elsewhere" in done.stderr) == (75, True), done.stderr
    assert (path.read_text(), len(house.tokens())) == (before, tokens)
    path.write_text(json.dumps({**house.remembered(), "ssh": "gpubox"}))  # it was made anew
    house.laptop.run(*plain, "gpubox")
    assert house.remembered()["fingerprint"] != "0" * 64


@pytest.mark.parametrize(
    ("typed", "called", "name"),
    [
        ("gpubox", "box", "gpubox"), ("gpubox.local", "attic", "gpubox"), ("192.168.1.5", "attic", "attic"),
        ("192.168.1.5", "local", "box-192.168.1.5"), ("fd00::5", "local", "box-fd00--5"), ("local", "x", "gpubox"),
        ("ä", "x", "gpubox"),
    ],
)  # fmt: skip
def test_what_a_new_box_is_called(typed: str, called: str, name: str) -> None:
    assert cli_boxes._name(typed, called) == name


def test_what_is_not_named_is_the_box_in_use(added: House) -> None:
    assert json.loads(added.laptop.run("box", "--json"))[-1]["used"]
    added.laptop.run("box", "use", "local")
    assert [row["used"] for row in json.loads(added.laptop.run("box", "--json"))] == [True, False]
    assert added.laptop.run("token", "--box", "gpubox", "--json").count('"id"') == 1
    assert added.laptop.run("token", "--json", GPUBOX_BOX="gpubox").count('"id"') == 1
    done = added.laptop.call("box", "use", "gpubax")
    assert (done.returncode, 'did you mean "gpubox"?' in done.stderr) == (66, True)


def test_a_box_that_is_away_does_not_hold_up_the_list(added: House) -> None:
    silent = socket.create_server(("127.0.0.3", 0), backlog=1)
    config = added.laptop.home / "config/gpubox/boxes"
    mute = {**added.remembered(), "ssh": f"127.0.0.3:{silent.getsockname()[1]}", "host": "127.0.0.3"}
    (config / "mute.json").write_text(json.dumps({**mute, "port": silent.getsockname()[1]}))
    (config / "mute.json").chmod(0o600)
    began = time.monotonic()
    said = added.laptop.run("box")
    assert time.monotonic() - began < 15
    assert [line.split()[:3] for line in said.splitlines()[2:]] == [
        ["gpubox", "*", "ready"],
        ["mute", "away", "`runner"],
    ]
    silent.close()
    (config / "mute.json").unlink()


def test_a_box_that_is_removed_has_no_token_of_ours_any_more(added: House) -> None:
    added.laptop.run("box", "remove", "gpubox")
    assert added.tokens() == []
    assert added.laptop.call("ps", "--box", "gpubox").returncode == 66
    assert not (added.laptop.home / "config/gpubox/boxes/gpubox.json").exists()
    assert (added.laptop.home / "config/gpubox/box").read_text() == "local\n"


def test_a_token_that_can_not_be_kept_here_is_ended_there(house: House) -> None:
    (house.laptop.home / "config").mkdir(exist_ok=True)
    (house.laptop.home / "config/gpubox").write_text("not a folder")
    done = house.add()
    (house.laptop.home / "config/gpubox").unlink()
    assert (done.returncode, "can't be written" in done.stderr, "XDG_CONFIG_HOME" in done.stderr) == (77, True, True)
    assert house.tokens() == []


def test_clocks_that_are_apart_are_told(added: House) -> None:
    code = "import time; now = time.time; time.time = lambda: now() - 200; from runner.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "box", "test", "gpubox"],
        env=added.laptop.env,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count("its clock is 3m20s ahead") + done.stdout.count("its clock is 3m19s ahead") == 2, (
        done.stdout
    )
    assert "clock" not in added.laptop.run("box", "test", "gpubox")


def test_a_token_that_was_revoked_says_what_to_type(added: House) -> None:
    added.box.ask("DELETE", f"/tokens/{added.remembered()['token_id']}")
    done = added.laptop.call("ps")
    assert done.returncode == 77
    assert "was revoked" in done.stderr
    assert "runner box add" in done.stderr
    assert added.laptop.call("box", "remove", "gpubox").returncode == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--runner", "/nowhere/runner"), 69, "runner box add --runner /path/to/runner"),
        (("--runner", "/bin/echo"), 65, "is not a token"),
        (("--name", "local"), 64, "local is on this computer; it can't be the name of a box"),
        (("--name", "../x"), 64, "can't be the name of a box"),
        (("--scope", "root"), 64, "read or submit or admin"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_type(house: House, options: tuple[str, ...], code: int, said: str) -> None:
    done = house.laptop.call("box", "add", *options, "gpubox")
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert house.tokens() == []


def test_a_box_that_is_not_on_the_network_keeps_no_token_of_ours(house: House) -> None:
    with wire.place() as folder:
        other = wire.Box(Path(folder))
        try:
            other.start()
            done = house.laptop.call("box", "add", "--runner", sshd.runner_of(other, Path(folder)), "gpubox")
            assert (done.returncode, 'https = ":7443"' in done.stderr) == (69, True), done.stderr
            assert other.get("/tokens")["tokens"] == []
        finally:
            other.end()


def test_a_host_that_lets_us_not_in_or_is_not_there_is_told(house: House) -> None:
    stranger = house.laptop.home / ".ssh" / "stranger"
    if not stranger.exists():
        sshd.new_key(stranger)
    config = house.laptop.config.read_text()
    (house.laptop.home / ".ssh" / "id_ed25519").rename(house.place / "kept")
    try:
        done = house.add()
        assert (done.returncode, "does not let" in done.stderr, "has to work first" in done.stderr) == (77, True, True)
    finally:
        (house.place / "kept").rename(house.laptop.home / ".ssh" / "id_ed25519")
    house.laptop.config.write_text("Host gone\n  Port 1\n" + config)
    done = house.add("gone")
    assert (done.returncode, "can't reach 127.0.0.1 port 1" in done.stderr) == (69, True), done.stderr


# --- whose key it is: on the target and on the way there ---


def other_key(place: Path) -> str:
    path = place / "other"
    return sshd.new_key(path) if not path.exists() else path.with_name("other.pub").read_text().strip()


def known(house: House, which: str, state: str) -> str:
    """known_hosts, in which one of the two hosts is unknown, or has another key."""
    lines = {"target": house.target.known(), "jump": house.jump.known()}
    name, _ = lines.pop(which).split(" ", 1)
    changed = f"{name} {' '.join(other_key(house.place).split()[:2])}\n" if state == "changed" else ""
    return "".join(lines.values()) + changed


@pytest.mark.parametrize("state", ["unknown", "changed"])
@pytest.mark.parametrize(("which", "host"), [("target", "gpubox"), ("target", "behind"), ("jump", "behind")])
def test_a_host_that_is_not_the_one_we_know_gets_nothing(house: House, which: str, host: str, state: str) -> None:
    before = known(house, which, state)
    house.laptop.known.write_text(before)
    done = house.add(host)
    port = getattr(house, which).port
    assert done.returncode == 77
    assert f"the key of [127.0.0.1]:{port} " in done.stderr
    assert ("has changed" if state == "changed" else "nobody can be asked") in done.stderr
    assert (f"ssh-keygen -R '[127.0.0.1]:{port}'" if state == "changed" else "connect once with ssh") in done.stderr
    assert house.laptop.known.read_text() == before, "nothing is believed silently"
    assert house.tokens() == []
    assert not (house.laptop.home / "config").exists() or not list((house.laptop.home / "config").rglob("*.json"))


@pytest.mark.parametrize("state", ["unknown", "changed"])
@pytest.mark.parametrize(("which", "host"), [("target", "gpubox"), ("target", "behind"), ("jump", "behind")])
def test_a_tunnel_believes_no_new_key_either(house: House, which: str, host: str, state: str) -> None:
    assert house.add(host).returncode == 0
    house.laptop.end()
    house.laptop.known.write_text(known(house, which, state))
    done = house.laptop.call("ps", GPUBOX_WAY="tunnel")
    assert done.returncode == 77
    assert ("has changed" if state == "changed" else "is not known here") in done.stderr


def in_terminal(house: House, arguments: list[str], answers: list[str]) -> tuple[int, str]:
    """`runner` at a terminal, where somebody answers each question that ends in `) `."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "runner", *arguments]
    process = subprocess.Popen(
        command, env=house.laptop.env, stdin=theirs, stdout=theirs, stderr=theirs, cwd=house.place,
        preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
    )  # fmt: skip
    os.close(theirs)
    said = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                piece = os.read(ours, 4096)
            except OSError:
                break
            said += piece
            if said.rstrip(b" ").endswith((b"fingerprint)", b"key's:")) and answers:
                os.write(ours, answers.pop(0).encode() + b"\n")
        elif process.poll() is not None:
            break
    os.close(ours)
    return process.wait(10), said.decode()


@pytest.mark.parametrize("answer", ["yes", "the fingerprint", "no", "", "y"])
def test_at_a_terminal_an_unknown_key_is_shown_and_asked_about(house: House, answer: str) -> None:
    before = house.jump.known()
    house.laptop.known.write_text(before)
    listed = subprocess.run(
        ["ssh-keygen", "-lf", house.target.place / "host.pub"], capture_output=True, text=True
    ).stdout
    shown = listed.split()[1]
    typed = shown if answer == "the fingerprint" else answer
    code, said = in_terminal(house, ["box", "add", "--name", "gpubox", "--runner", house.runner, "behind"], [typed])
    assert f"[127.0.0.1]:{house.target.port} is not known here" in said
    assert f"ssh-ed25519 {shown}" in said
    right = answer in ("yes", "the fingerprint")
    assert (code, "was not accepted" in said) == (0 if right else 77, not right), said
    assert house.laptop.known.read_text() == before + (house.target.known() if right else "")
    assert len(house.tokens()) == right


def test_a_name_that_is_to_be_hashed_is(house: House) -> None:
    house.laptop.known.write_text("# mine, without a newline at its end")
    house.laptop.config.write_text("HashKnownHosts yes\n" + house.laptop.config.read_text())
    command = ["box", "add", "--name", "gpubox", "--runner", house.runner, "behind"]
    code, said = in_terminal(house, command, ["yes", "yes"])
    assert (code, said.count("is not known here")) == (0, 2), said
    first, *lines = house.laptop.known.read_text().splitlines()
    assert first == "# mine, without a newline at its end"
    assert [line[:3] for line in lines] == ["|1|", "|1|"]
    assert house.add("behind").returncode == 0


def test_at_a_terminal_a_keys_passphrase_is_asked_for(house: House) -> None:
    key = house.laptop.home / ".ssh" / "id_ed25519"
    change = ["ssh-keygen", "-q", "-p", "-f", str(key)]
    subprocess.run([*change, "-P", "", "-N", "open sesame"], check=True, capture_output=True)
    try:
        command = ["box", "add", "--name", "gpubox", "--runner", house.runner, "gpubox"]
        done = house.add()
        assert (done.returncode, "does not let" in done.stderr) == (77, True), done.stderr
        code, said = in_terminal(house, command, ["open sesame"])
        assert (code, "direct" in said, "sesame" in said) == (0, True, False), said
        code, said = in_terminal(house, command, ["wrong"])
        assert (code, "does not let" in said) == (77, True), said
    finally:
        subprocess.run([*change, "-P", "open sesame", "-N", ""], check=True, capture_output=True)


def test_at_a_terminal_a_changed_key_is_refused_without_a_question(house: House) -> None:
    house.laptop.known.write_text(known(house, "jump", "changed"))
    code, said = in_terminal(house, ["box", "add", "--runner", house.runner, "behind"], ["yes", "yes"])
    assert (code, "has changed" in said, "fingerprint)" in said) == (77, True, False), said


def test_the_policy_is_set_on_every_hop(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(house.laptop.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    made = link.Link("behind")
    try:
        assert [type(hop.client._policy) for hop in made._hops] == [link._Asks, link._Asks]
        assert [hop.port for hop in made._hops] == [house.jump.port, house.target.port]
    finally:
        made.close()


# --- the certificate ---


class Impostor:
    """TLS with a certificate of its own, at the box's port; keeps what it is told after the handshake."""

    def __init__(self, folder: Path) -> None:
        self.context = Certificate(str(folder), ["box"]).context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.heard = b""
        self.met = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.met += 1
            try:
                with self.context.wrap_socket(sock, server_side=True) as tls:
                    tls.settimeout(5)
                    while piece := tls.recv(4096):
                        self.heard += piece
            except OSError:
                continue

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


@pytest.mark.parametrize("way", ["direct", "tunnel", ""])
def test_another_certificate_is_told_no_token(added: House, way: str) -> None:
    impostor = Impostor(added.place / f"certificate-{way}")
    path = added.laptop.home / "config/gpubox/boxes/gpubox.json"
    path.write_text(json.dumps({**added.remembered(), "port": impostor.port}))
    try:
        done = added.laptop.call("ps", **({"GPUBOX_WAY": way} if way else {}))
        assert (done.returncode, "another certificate" in done.stderr) == (77, True), done.stderr
        assert impostor.met > 0
        assert impostor.heard == b""
    finally:
        impostor.close()


# --- the token ---


def test_the_token_is_in_its_file_and_nowhere_else(added: House) -> None:
    secret = added.remembered()["token"].split("_", 2)[2]
    for way in ("direct", "tunnel"):
        out = added.laptop.run("submit", *JOB, "sh", "-c", "env; cat /proc/self/cmdline", GPUBOX_WAY=way)
        assert secret not in out
    assert tools.processes_naming(secret) == {}  # the keeper is one of them
    files = [path for path in added.place.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert files == [added.laptop.home / "config/gpubox/boxes/gpubox.json"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_may_read_is_not_used(added: House, mode: int) -> None:
    (added.laptop.home / "config/gpubox/boxes/gpubox.json").chmod(mode)
    done = added.laptop.call("ps")
    assert (done.returncode, "chmod 600" in done.stderr) == (77, True)


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"ssh": 1}', "null"])
def test_a_damaged_file_is_told(added: House, damage: str) -> None:
    (added.laptop.home / "config/gpubox/boxes/gpubox.json").write_text(damage)
    done = added.laptop.call("ps")
    assert (done.returncode, "is damaged" in done.stderr) == (65, True)
    assert added.laptop.call("box", "remove", "gpubox").returncode == 0


# --- the keeper ---


def keepers(house: House) -> dict[int, str]:
    return {
        pid: line for pid, line in tools.processes_naming(str(house.laptop.home / "run")).items() if "keeper" in line
    }


def test_one_keeper_serves_many_commands_at_once(added: House) -> None:
    added.laptop.end()
    commands = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "runner", "token", "--json"], env={**added.laptop.env, "GPUBOX_WAY": "tunnel"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) for _ in range(6)
    ]  # fmt: skip
    for each in commands:
        out, err = each.communicate(timeout=60)
        assert (each.returncode, out.count(b'"id"')) == (0, 1), err
    assert len(keepers(added)) == 1
    (path,) = (added.laptop.home / "run/gpubox").glob("*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.unlink()
    tools.wait_until(lambda: not keepers(added), 10)


def test_a_command_with_an_agent_is_not_answered_by_a_keeper_that_has_none(added: House) -> None:
    """A keeper keeps the environment of the command that started it; so one that can't log in does not stay."""
    added.laptop.end()
    key = added.laptop.home / ".ssh" / "id_ed25519"
    sock = added.place / "agent"
    agent = subprocess.Popen([tools.need("ssh-agent"), "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        tools.wait_until(sock.exists)
        with_agent = {"SSH_AUTH_SOCK": str(sock)}
        subprocess.run(["ssh-add", "-q", str(key)], env={**os.environ, **with_agent}, check=True, capture_output=True)
        key.rename(added.place / "kept")
        done = added.laptop.call("ps", GPUBOX_WAY="tunnel")
        assert (done.returncode, "does not let" in done.stderr) == (77, True), done.stderr
        done = added.laptop.call("ps", GPUBOX_WAY="tunnel", **with_agent)
        assert done.returncode == 0, done.stderr
    finally:
        (added.place / "kept").rename(key)
        agent.kill()
        agent.wait(10)
        sock.unlink(missing_ok=True)


# --- a link that is cut ---


def test_a_log_is_followed_over_a_tunnel_that_is_cut(added: House) -> None:
    """The ssh server goes away with its connections, and comes back: not a byte is missing, none comes twice."""
    script = 'for i in $(seq 400); do echo "line $i"; sleep 0.01; done'
    command = [sys.executable, "-P", "-m", "runner", "submit", *JOB, "sh", "-c", script]
    seen, told = added.place / "seen", added.place / "told"
    with open(seen, "wb") as out, open(told, "wb") as err:
        process = subprocess.Popen(command, env={**added.laptop.env, "GPUBOX_WAY": "tunnel"}, stdout=out, stderr=err)
    for lines in (10, 100):
        tools.wait_until(lambda lines=lines: seen.read_text().count("\n") >= lines, 30, told.read_text)
        added.target.stop()
        added.target.start()
    assert process.wait(60) == 0, told.read_text()
    assert seen.read_text().splitlines() == [f"line {number}" for number in range(1, 401)], told.read_text()
    assert "connection lost, trying again" in told.read_text()


class Relay:
    """Carries bytes to the box, at another address with its port; cuts one connection after so many to the laptop."""

    def __init__(self, port: int) -> None:
        self.target = ("127.0.0.1", port)
        self.listener = socket.create_server(("127.0.0.2", port))
        self.cut_after: int | None = None  # the next connection
        self.always: Callable[[], int] | None = None  # every connection, after so many
        self.cuts = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            limit, self.cut_after = self.cut_after, None
            limit = limit if self.always is None else self.always()
            threading.Thread(target=self._carry, args=(near, limit), daemon=True).start()

    def _carry(self, near: socket.socket, limit: int | None) -> None:
        with near, socket.create_connection(self.target) as far:
            while True:
                for sock in select.select([near, far], [], [])[0]:
                    try:
                        data = sock.recv(65536)
                        if sock is far and limit is not None:
                            data, limit = data[:limit], limit - len(data)
                        (far if sock is near else near).sendall(data)
                    except OSError:
                        return
                    if limit is not None and limit <= 0:
                        self.cuts += 1
                        return
                    if not data:
                        return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def test_a_submit_that_is_cut_anywhere_makes_one_job(added: House) -> None:
    """The same key is sent again, and the box answers with the job that it has made."""
    here = added.remembered()
    relay = Relay(here["port"])
    (added.laptop.home / "config/gpubox/boxes/gpubox.json").write_text(json.dumps({**here, "host": "127.0.0.2"}))
    count = len(added.box.get("/jobs?finished=1000")["jobs"])
    places = [0, 1, 100, 700, 1000, 1100, 1200, 1300, 1400, 1500, 1600, 2000]  # the handshake is about the first 1000
    try:
        for number, place in enumerate(places, 1):
            relay.cut_after = place
            done = added.laptop.call("submit", "-d", *JOB, "true", GPUBOX_WAY="direct")
            if done.returncode:  # before the box was ever met, nothing is tried again
                assert "can't be reached" in done.stderr, done.stderr
                added.laptop.run("submit", "-d", *JOB, "true", GPUBOX_WAY="direct")
            assert len(added.box.get("/jobs?finished=1000")["jobs"]) == count + number
    finally:
        relay.close()
    assert relay.cuts >= 4


def test_where_no_process_can_stay_a_command_has_its_own_tunnel(added: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, added.laptop.env[name])
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("GPUBOX_WAY", "tunnel")
    monkeypatch.setattr(ways, "KEEPS", False)
    added.laptop.end()
    api = boxes.open_box("gpubox")
    assert api.get("/hello")["role"] == "submit"
    assert api.get("/jobs")["jobs"] is not None
    api.close()
    assert keepers(added) == {}


def test_what_is_cut_again_and_again_arrives_whole(added: House) -> None:
    """A log and outputs, over connections that end at random bytes: nothing lost, doubled or damaged."""
    script = "seq 300000 | tee $RUNNER_OUT/numbers; mkdir $RUNNER_OUT/more; seq 90000 | sort > $RUNNER_OUT/more/sorted"
    job = added.laptop.run("submit", "-d", *JOB, "sh", "-c", script).strip()
    added.box.ended(int(job))
    relay = Relay(added.remembered()["port"])
    chance = random.Random(7)
    relay.always = lambda: chance.randrange(1000, 120_000)
    path = added.laptop.home / "config/gpubox/boxes/gpubox.json"
    path.write_text(json.dumps({**added.remembered(), "host": "127.0.0.2"}))
    try:
        code = f"import sys; from runner.cli import logs; logs.PAUSES = (0.0,); logs.main(['-f', '--raw', '{job}'])"
        environment = {**added.laptop.env, "GPUBOX_WAY": "direct"}
        follow = [sys.executable, "-P", "-c", code]
        log = subprocess.run(follow, env=environment, capture_output=True, timeout=60)
        assert log.stdout.splitlines() == [b"%d" % number for number in range(1, 300_001)], log.stderr[-2000:]
        for _ in range(50):
            done = added.laptop.call("pull", job, GPUBOX_WAY="direct")
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr
    finally:
        relay.close()
    assert relay.cuts > 40
    (folder,) = added.laptop.home.glob("runs/*")
    assert (folder / "numbers").read_bytes() == log.stdout
    assert (folder / "more/sorted").read_text().split() == sorted(map(str, range(1, 90_001)))
    assert not list(folder.glob(".runner-pull-*"))


# --- inside ---


@pytest.fixture
def job(added: House) -> Iterator[str]:
    """One that runs, and serves its number of a job at a port that it names."""
    serve = (
        "import os, socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "while True:\n    c = s.accept()[0]; c.sendall(c.recv(9) + os.environ['RUNNER_JOB_ID'].encode()); c.close()"
    )
    name = added.laptop.run("submit", "-d", "--env", "LR=0.1", *JOB, sys.executable, "-c", serve).strip()
    wait_until(lambda: added.laptop.run("logs", name), 20)
    yield name
    added.laptop.run("cancel", "--grace", "0", name)


def test_a_command_runs_in_a_jobs_environment_over_ssh(added: House, job: str) -> None:
    done = added.laptop.call("exec", job, "sh", "-c", "pwd; echo $LR $RUNNER_JOB_ID; echo ill >&2; exit 7")
    folder = added.box.state.job(int(job)).out
    assert (done.stdout.split(), done.stderr, done.returncode) == ([folder, "0.1", job], "ill\n", 7)
    piped = subprocess.run(
        [sys.executable, "-P", "-m", "runner", "exec", job, "sha256sum"], input=b"x" * 3_000_000, env=added.laptop.env,
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert piped.stdout.split()[0].decode() == hashlib.sha256(b"x" * 3_000_000).hexdigest(), piped.stderr
    cut = f"{shlex.join([sys.executable, '-P', '-m', 'runner'])} exec {job} yes | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", cut], capture_output=True, text=True, env=added.laptop.env, timeout=60)
    assert done.stdout.split() == ["y", "141"]
    gone = added.laptop.call("exec", job, "no-such-program")
    assert gone.returncode == 127
    added.target.stop()
    try:
        lost = added.laptop.call("exec", job, "true", GPUBOX_WAY="direct")
        assert lost.returncode == 69
    finally:
        added.target.start()


def test_a_shell_has_this_terminal_and_its_size(added: House, job: str) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
    before = termios.tcgetattr(theirs)
    shell = subprocess.Popen(
        [sys.executable, "-P", "-m", "runner", "shell", job], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**added.laptop.env, "TERM": "xterm"}, start_new_session=True,
    )  # fmt: skip
    os.write(ours, b"stty size; echo job-$((RUNNER_JOB_ID + 1000)); exit 5\n")  # ahead of its first prompt
    said, wanted = b"", f"job-{int(job) + 1000}".encode()
    try:
        while wanted not in said and select.select([ours], [], [], 20)[0]:
            said += os.read(ours, 4096)
        assert b"33 77" in said
        assert wanted in said
        assert shell.wait(20) == 5
        assert termios.tcgetattr(theirs) == before, "the terminal is as it was"
    finally:
        shell.kill()
        shell.wait(20)
        os.close(ours)
        os.close(theirs)


def test_a_port_of_a_job_is_here_and_for_us_alone(added: House, job: str) -> None:
    there = added.laptop.run("logs", job).strip()
    command = [sys.executable, "-P", "-m", "runner", "port", "--local", "0", job, there]
    forward = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=added.laptop.env)
    assert forward.stderr is not None
    try:
        said = forward.stderr.readline()
        here = int(said.split("127.0.0.1:")[1].split()[0])
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", here), 20) as sock:
                sock.sendall(b"hi ")
                assert sock.makefile("rb").read() == f"hi {job}".encode()
    finally:
        forward.send_signal(signal.SIGINT)
        assert forward.wait(20) == 0
        forward.stderr.close()
