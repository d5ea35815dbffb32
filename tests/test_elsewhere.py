"""The client on another system than Linux: what macOS lacks is taken away from it. Real macOS is not run here."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import wire
from test_link import JOB, House

from runner import cli

pytestmark = pytest.mark.long

# What CPython has on Linux alone, by module; and the folders that only Linux has.
MAC = """
import _socket, errno, fcntl, os, resource, select, signal, socket, sys
GONE = {
    os: "memfd_create O_PATH O_TMPFILE O_DIRECT O_NOATIME posix_fadvise posix_fallocate sched_getaffinity "
        "sched_setaffinity splice copy_file_range pidfd_open eventfd getrandom getxattr setxattr listxattr fdatasync "
        "pipe2 getresuid getresgid unshare POSIX_FADV_SEQUENTIAL",
    socket: "SOCK_CLOEXEC SOCK_NONBLOCK SO_PEERCRED AF_NETLINK AF_VSOCK TCP_QUICKACK TCP_USER_TIMEOUT TCP_KEEPIDLE "
        "SO_BINDTODEVICE MSG_NOSIGNAL MSG_CMSG_CLOEXEC",
    select: "epoll EPOLLIN",
    signal: "sigtimedwait sigwaitinfo pidfd_send_signal SIGPWR SIGRTMIN",
    fcntl: "F_ADD_SEALS F_OFD_SETLK F_SETPIPE_SZ",
    resource: "prlimit",
}
GONE[_socket] = GONE[socket]
for module, names in GONE.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
sys.platform = "darwin"

def refuse(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(("/proc", "/sys")):
        raise FileNotFoundError(errno.ENOENT, "there is no such thing on macOS", str(arguments[0]))

sys.addaudithook(refuse)
"""


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with wire.place() as folder, ExitStack() as closing:
        made = House(Path(folder))
        made.open(closing)
        strange = Path(folder, "mac")
        strange.mkdir()
        (strange / "sitecustomize.py").write_text(MAC)
        made.laptop.env["PYTHONPATH"] = f"{strange}:{made.laptop.env['PYTHONPATH']}"
        yield made


@pytest.fixture(scope="module")
def project(house: House) -> Path:
    folder = house.laptop.home / "project"
    (folder / "data").mkdir(parents=True)
    (folder / ".gitignore").write_text("data/\n")
    (folder / "data" / "much.bin").write_bytes(b"x" * 1000)
    (folder / "train.py").write_text(
        "import os\nopen(os.environ['RUNNER_OUT'] + '/a.txt', 'w').write('a')\nprint('trained', os.listdir())\n"
    )
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("way", ["direct", "tunnel"])
def test_a_mac_trusts_a_box_trains_there_and_gets_its_outputs(house: House, project: Path, way: str) -> None:
    assert house.add().returncode == 0
    out = house.laptop.run("submit", "--base", "train.py", cwd=project, GPUBOX_WAY=way)
    assert out.startswith("trained ")
    assert "data" not in out
    brought = sorted((project / "runs").glob("gpubox-*/a.txt"))
    assert brought
    assert all(path.read_text() == "a" for path in brought)


@pytest.mark.parametrize(
    "words",
    [
        "ps", "box list", "box test gpubox", "gpus", "token list", "secret list", "env list", "data", "notices",
        "doctor", "version", "completion zsh", "help", "pull", "show 1", "why 1", "diff 1 1", "logs 1", "top",
    ],
)  # fmt: skip
def test_every_question_is_answered_on_a_mac(house: House, words: str) -> None:
    house.add()
    house.laptop.call("submit", *JOB, "true")
    done = house.laptop.call(*words.split())
    assert "fault of gpubox" not in done.stderr, done.stderr
    assert done.returncode in (0, 1), done.stderr


def test_a_mac_pushes_data_and_gets_it_back(house: House) -> None:
    house.add()
    folder = house.laptop.home / "set"
    folder.mkdir()
    (folder / "x").write_text("x")
    house.laptop.run("data", "push", str(folder))
    house.laptop.run("data", "pull", "set", str(house.laptop.home / "back"))
    assert (house.laptop.home / "back" / "x").read_text() == "x"


def test_a_mac_is_no_box_and_says_so(house: House) -> None:
    house.forget()
    done = house.laptop.call("submit", *JOB, "true")
    assert (done.returncode, "takes Linux" in done.stderr, "runner box add" in done.stderr) == (69, True, True), done


def test_windows_is_led_to_wsl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with monkeypatch.context() as there:
        there.setattr(cli.os, "name", "nt")
        code = cli.run(["ps"])
    assert (code, "wsl --install" in capsys.readouterr().err) == (69, True)
