"""Which box, and how to reach it. One that was added is reached over the network (ways.py). "local" is the service of a
provisioned box where that is here and we may use it; else the embedded one: the first command that needs it starts its
daemon. "demo" is what `runner serve --demo` plays, while it does."""

from __future__ import annotations

import _socket
import errno
import os
import sys
import time

import runner
from runner import errors, paths
from runner.laptop import addresses
from runner.laptop.addresses import DEMO, LOCAL
from runner.laptop.client import CONNECT_SECONDS, Client, Lost
from runner.laptop.light import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from runner.laptop.pin import Pinned

START_SECONDS = 20.0  # for a daemon to say that it listens
SETTLE_SECONDS = 5.0  # for another command's daemon to listen; for one of an older version to be replaced
TICK = 0.02
DIGITS_MAX = 9  # of a number in a version
LINE_LIMIT = 64 << 10
GONE = (errno.ENOENT, errno.ECONNREFUSED)  # no daemon: no socket, or one that nobody listens on


def choose(name: str | None) -> str:
    """The box's name: `--box`, else GPUBOX_BOX, else the one in use (`runner box use`)."""
    name = name or meant()
    if name not in (LOCAL, DEMO):
        addresses.read(name)
    return name


def meant() -> str:
    """The name of the box that is meant when a command names none."""
    return os.environ.get("GPUBOX_BOX") or addresses.in_use()


def open_box(name: str | None = None, start: bool = True) -> Client:
    """A client of the box, connected when it is first used. start: start the embedded daemon if none runs."""
    box = choose(name)
    if box not in (LOCAL, DEMO):
        return remote(addresses.read(box))
    client = Client(connect_to_demo if box == DEMO else connect_or_start if start else connect, box)
    client.greet = _renew
    return client


def remote(address: addresses.Address) -> Client:
    """A client of a box that was added."""
    from runner.laptop import ways

    met = False

    def connect() -> Pinned:
        nonlocal met
        try:
            sock = ways.connect(address)
        except errors.Unreachable as gone:
            if not met:
                raise
            raise Lost(gone.message, gone.hint) from None  # it was there a moment ago: another try may do
        met = True
        return sock

    client = Client(connect, address.name)
    client.always = address.always()
    client.greet = _compare
    return client


def provisioned() -> bool:
    """Whether "local" is the service of this computer: whoever may enter its folder may use it, also while it is away.
    Who names a state or a socket means an embedded one."""
    named = os.environ.get("GPUBOX_STATE") or os.environ.get("GPUBOX_SOCKET")
    return not named and os.access(paths.RUN, os.X_OK)


def closed() -> bool:
    """Whether there is such a service, and it is not for us."""
    return not provisioned() and os.path.isdir(paths.RUN)


def connect() -> _socket.socket:
    """A connection to the local daemon; Unreachable if none runs."""
    if provisioned():
        return _connect_to_service()
    path = paths.api_socket(paths.state_dir())
    sock = _try(path)
    if sock is None:
        raise errors.Unreachable("no box is running here", "any command that needs one starts it; or `runner serve`")
    return sock


def connect_to_demo() -> _socket.socket:
    sock = _try(paths.socket_of(paths.demo_dir()))
    if sock is None:
        raise errors.Unreachable("the demo is not on", "`runner serve --demo` begins it")
    return sock


def _connect_to_service() -> _socket.socket:
    """Patient for a moment: it may just be restarted."""
    sock = _await_listener(paths.API_SOCKET, SETTLE_SECONDS)
    if sock is None:
        raise errors.Unreachable(
            "the service of this box does not run", "`systemctl status gpubox` says why; sudo systemctl start gpubox"
        )
    return sock


def connect_or_start() -> _socket.socket:
    if provisioned():
        return _connect_to_service()
    if sys.platform != "linux":
        raise errors.NotInstalled(
            "no box was added, and this computer can't be one: that takes Linux", "`runner box add me@host` over ssh"
        )
    path = paths.api_socket(paths.state_dir())
    return _try(path) or _start(path)


def _try(path: str) -> _socket.socket | None:
    """A connection, or None when nobody listens there."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.settimeout(CONNECT_SECONDS)
    try:
        sock.connect(os.fsencode(path))
    except OSError as error:
        sock.close()
        if error.errno in GONE:
            return None
        if isinstance(error, PermissionError):
            raise errors.Refused(f"you may not use the box behind {path}", "it belongs to another user") from None
        reason = "it does not accept connections" if isinstance(error, TimeoutError) else error.strerror
        raise errors.Unreachable(f"cannot reach the box behind {path}: {reason}", "see `runner doctor`") from None
    return sock


# --- starting the daemon ---------------------------------------------------------------------------------------------


def _start(path: str) -> _socket.socket:
    """Start the embedded daemon and connect to it. Another command may be doing the same: one of them wins the
    state's lock, and both use the winner's."""
    state = paths.state_dir()
    said = _await_line(_spawn(state))
    if said != "ready":
        failure = _failure(said)
        if failure is not None and not isinstance(failure, errors.Busy):
            raise failure
        # Busy: another daemon holds the state and is about to listen. No word at all: it died, and its log says why.
        sock = _await_listener(path, SETTLE_SECONDS if failure else TICK)
        if sock is None:
            raise failure or errors.Unreachable(
                f"the box's daemon ended while it started{_last_words(state)}", f"its log is {state.daemon_log}"
            )
        return sock
    sock = _await_listener(path, SETTLE_SECONDS)
    if sock is None:
        raise errors.Unreachable("the box's daemon started and is gone again", f"its log is {state.daemon_log}")
    return sock


def _spawn(state: paths.StateDir) -> int:
    """Fork off a daemon that is nobody's child and has no terminal; what it says before it listens comes down the
    returned pipe."""
    try:
        os.makedirs(state, 0o700, exist_ok=True)
        log = os.open(state.daemon_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.BadSettings(
            f"the state directory {state} cannot be used: {error.strerror}", "set GPUBOX_STATE to another one"
        ) from None
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _become_daemon(log, theirs)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(theirs)
    os.close(log)
    return ours


def _become_daemon(log: int, ready: int) -> NoReturn:
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.set_inheritable(ready, True)
    for name in ("GPUBOX_STATE", "GPUBOX_CONFIG", "GPUBOX_SOCKET"):
        if name in os.environ:
            os.environ[name] = os.path.abspath(os.environ[name])
    exec_daemon("--started-by-command", "--ready-fd", str(ready), directory="/")


def exec_daemon(*options: str, directory: str | None = None) -> NoReturn:
    """Become the daemon. -P: it must not import what happens to lie in its current directory."""
    house = os.path.dirname(os.path.dirname(os.path.abspath(runner.__file__)))
    if house not in sys.path[1:] or "PYTHONPATH" in os.environ:  # a checkout, found from the current directory only
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (house, os.environ.get("PYTHONPATH"))))
    if directory:
        os.chdir(directory)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "runner.box", *options])


def _await_line(pipe: int) -> str:
    """The daemon's first line: "ready", or its error; nothing if it ended silently."""
    import select  # only a command that starts a daemon pays for it

    deadline = time.monotonic() + START_SECONDS
    line = b""
    try:
        while b"\n" not in line and len(line) < LINE_LIMIT:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise errors.Unreachable(
                    f"the box's daemon did not get ready within {START_SECONDS:.0f} s",
                    f"its log is {paths.state_dir().daemon_log}",
                )
            piece = os.read(pipe, 4096)
            if not piece:
                break
            line += piece
    finally:
        os.close(pipe)
    return line.partition(b"\n")[0].decode("utf-8", "replace").strip()


def _failure(said: str) -> errors.Problem | None:
    if not said:
        return None
    try:
        body = loads(said)
    except ValueError:
        return errors.Problem(f"the box's daemon said something unexpected: {said[:200]}", "see `runner doctor`")
    failure = errors.from_json(body, 503)
    if isinstance(failure, errors.NotInstalled):
        failure.hint = failure.hint or 'pip install ".[box]" in a clone'
    return failure


def _await_listener(path: str, seconds: float) -> _socket.socket | None:
    deadline = time.monotonic() + seconds
    while (sock := _try(path)) is None and time.monotonic() < deadline:
        time.sleep(TICK)
    return sock


def _last_words(state: paths.StateDir) -> str:
    """`: <last line of the daemon's log>`, if there is one."""
    try:
        with open(state.daemon_log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[:300]}" if last else ""


# --- versions --------------------------------------------------------------------------------------------------------


def _renew(client: Client, headers: dict[str, str]) -> bool:
    """Look at the first reply: an older daemon is asked to re-exec itself as our version; a newer one, and a service,
    are left alone.
    True if it was replaced, so that the question is asked again."""
    _level(headers)
    if provisioned():
        return False  # a service is upgraded with its box
    if not _older(headers.get("x-gpubox-version", ""), runner.__version__):
        return False
    client.post("/box/restart")
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        client.close()  # the old process may still hold the kept connection
        if not _older(str(client.get("/hello").get("version", "")), runner.__version__):
            return True
        time.sleep(TICK)
    raise errors.Unreachable(
        f"the box's daemon is older than this command ({runner.__version__}) and did not restart",
        "`runner serve --stop`, then try again",
    )


def _compare(client: Client, headers: dict[str, str]) -> bool:
    """Refuse a box in another place that speaks an older language: it can't be renewed from here."""
    level = _level(headers)
    if level < runner.API_LEVEL:
        hint = f"upgrade gpubox there, to {runner.__version__} or later"
        raise errors.Unreachable(f"the box speaks API level {level} only, this command {runner.API_LEVEL}", hint)
    return False


def _level(headers: dict[str, str]) -> int:
    """That of the box; Unreachable when it is newer than ours, or none."""
    level = headers.get("x-gpubox-api", "")
    if not level.isdecimal() or len(level) > DIGITS_MAX:
        raise errors.Unreachable("what answers is not a box: it names no API level", "see `runner doctor`")
    if int(level) > runner.API_LEVEL:
        raise errors.Unreachable(
            f"the box speaks API level {level}, this command only {runner.API_LEVEL}", "upgrade gpubox here"
        )
    return int(level)


def _older(theirs: str, ours: str) -> bool:
    return _release(theirs) < _release(ours)


def _release(version: str) -> tuple[int, ...]:
    """0.10.1rc2 -> (0, 10, 1): enough to tell older from newer."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))][:DIGITS_MAX]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
