"""`runner doctor`: looks at everything that must be right, and says what to do about what is not."""

from __future__ import annotations

import os
import signal
import sys
import time

import runner
from runner import errors, paths, words
from runner.cli import options, output
from runner.cli.gpus import NO_DRIVER
from runner.laptop import boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from runner.laptop.client import Client

    Check = tuple[str, str, str, str]  # what was looked at, ok | warn | fail, what was seen, what to do

DOCTOR = """\
Usage: runner doctor [OPTIONS]

Check that everything is as it should be: this computer, the state directory, the box.
Ends with 0 if all is well, 1 if something could be better, 2 if something does not work.

Options:
  --json                  as JSON
  --box NAME              which box (GPUBOX_BOX, else local)
  -h, --help              this text

Examples:
  runner doctor
  runner doctor --json
  runner doctor || runner serve
"""
OK, WARN, FAIL = "ok", "warn", "fail"
PAINT = {OK: "32", WARN: "33", FAIL: "31"}
DISK_LEAST = 1 << 30  # below max(this, 2 %) the box starts nothing
RUN_SECONDS = 10.0  # for an interpreter to start and say its version
CLOCK_SECONDS = 5.0  # two clocks further apart than this confuse ages and limits


def doctor(arguments: list[str]) -> int:
    given = options.parse(DOCTOR, arguments)
    options.no_words(given, DOCTOR)
    name = boxes.choose(given.get("--box"))
    checks = [_guarded(check) for check in (_python, _git, _uv, _state, _locks, _disk, _socket)]
    checks += _box(name)
    if "--json" in given:
        output.json([dict(zip(("check", "result", "seen", "hint"), check, strict=True)) for check in checks])
    else:
        for check in checks:
            _put(*check)
    results = {check[1] for check in checks}
    return 2 if FAIL in results else 1 if WARN in results else 0


def _put(what: str, result: str, seen: str, hint: str) -> None:
    mark = f"\x1b[{PAINT[result]}m{result:<5}\x1b[0m" if output.colours(sys.stdout) else f"{result:<5}"
    output.put(f"{mark} {what:<16} {output.clean(seen)}\n")
    if hint and result != OK:
        output.put(f"{'':<22} hint: {output.clean(hint)}\n")


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except OSError as error:
        return check.__name__.strip("_"), FAIL, str(error), ""


# --- this computer ---------------------------------------------------------------------------------------------------


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return "python", OK if good else FAIL, f"{version}, {sys.executable}", "gpubox needs Python 3.11 or later"


def _git() -> Check:
    found = _program("git")
    return (
        "git",
        OK if found else WARN,
        found or "not found",
        "without it snapshots follow .gitignore by our own reading; install git",
    )


def _uv() -> Check:
    beside = os.path.join(os.path.dirname(sys.executable), "uv")
    found = beside if os.access(beside, os.X_OK) else _program("uv")
    hint = 'jobs that declare what they need cannot be built; pip install "gpubox[box]"'
    return "uv", OK if found else WARN, found or "not found", hint


def _program(name: str) -> str:
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    found = (os.path.join(folder, name) for folder in folders if folder)
    return next((path for path in found if os.path.isfile(path) and os.access(path, os.X_OK)), "")


def _state() -> Check:
    state = paths.state_dir()
    os.makedirs(state, 0o700, exist_ok=True)
    owner, mode = os.stat(state).st_uid, os.stat(state).st_mode & 0o777
    if owner != os.getuid():
        return "state", FAIL, f"{state} belongs to another user", "set GPUBOX_STATE to a directory of yours"
    open_to_others = mode & 0o022
    seen = f"{state}, which others may write to" if open_to_others else state
    return "state", FAIL if open_to_others else OK, seen, f"chmod go-w {state}"


def _locks() -> Check:
    from runner import files

    good = files.supports_locks(paths.state_dir())
    seen = "work" if good else f"the file system of {paths.state_dir()} has none"
    return "locks", OK if good else FAIL, seen, "set GPUBOX_STATE to a directory on a local disk"


def _disk() -> Check:
    from runner import files

    free, total = files.disk_room(paths.state_dir())
    need = max(DISK_LEAST, total // 50)
    result = FAIL if free < need else WARN if free < 3 * need else OK
    return "disk", result, f"{output.size(free)} free of {output.size(total)}", "`runner clean` removes what is old"


def _socket() -> Check:
    path = paths.api_socket(paths.state_dir())
    if len(os.fsencode(path)) >= paths.SOCKET_PATH_MAX:
        return "socket", FAIL, f"the path {path} is too long", "set GPUBOX_SOCKET to a shorter one"
    return "socket", OK, path, ""


# --- the box ---------------------------------------------------------------------------------------------------------


def _box(name: str) -> Iterator[Check]:
    try:
        api = boxes.open_box(name)
        asked = time.time()
        _, headers, hello = api.request("GET", "/hello")
        about = api.get("/box")
    except errors.Problem as problem:
        yield "box", FAIL, problem.message, problem.hint
        return
    yield "box", OK, f"{name} answers (process {hello.get('pid')})", ""
    yield _version(str(hello.get("version")))
    yield _clock(headers.get("date", ""), asked)
    yield from _health(about)
    yield _gpus(api)


def _version(theirs: str) -> Check:
    same = theirs == runner.__version__
    seen = theirs if same else f"the box has {theirs}, this command {runner.__version__}"
    return "version", OK if same else WARN, seen, "upgrade the older one"


def _clock(date: str, asked: float) -> Check:
    from email.utils import parsedate_to_datetime

    try:
        apart = abs(parsedate_to_datetime(date).timestamp() - asked)
    except ValueError:
        return "clock", OK, "this computer's own", ""
    good = apart < CLOCK_SECONDS
    return "clock", OK if good else WARN, f"{apart:.0f} s apart", "let both computers set their clocks by NTP"


def _base(said: str) -> Check:
    """The interpreter of jobs that declare nothing. The box saw it when it started; does it run now?"""
    version, _, path = said.partition(" ")
    now = _says(path, "import sys; print('.'.join(map(str, sys.version_info[:3])))")
    hint = "`runner serve --stop`, and set base_python (docs/settings.md) to one that runs"
    if not now:
        return "base python", FAIL, f"{path} does not run", hint
    seen = said if now == version else f"{path} was {version} when the box started and is {now} now"
    return "base python", OK if now == version else WARN, seen, "`runner serve --stop`; the next command starts it anew"


def _says(program: str, code: str) -> str:
    """What an interpreter prints; nothing when it can't be run or takes too long."""
    import select

    ours, theirs = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    moves = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, theirs, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
    try:
        pid = os.posix_spawn(program, [program, "-I", "-S", "-c", code], os.environ, file_actions=moves)
    except OSError:
        os.close(ours)
        return ""
    finally:
        os.close(theirs)
        os.close(null)
    try:
        if not select.select([ours], [], [], RUN_SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
        text = os.read(ours, 1024).decode(errors="replace").strip()
    finally:
        os.close(ours)
    return text if os.waitpid(pid, 0)[1] == 0 else ""


def _health(about: dict[str, Any]) -> Iterator[Check]:
    if about.get("draining"):
        yield "queue", WARN, "it is draining: nothing starts", "`runner drain --off`"
    elif about.get("paused"):
        yield "queue", FAIL, str(about["paused"]), "`runner clean` frees space"
    if unknown := about.get("unknown"):
        seen = f"directories that belong to no job: {len(unknown)}"
        yield "records", WARN, seen, f"they are kept in the state directory: {', '.join(map(str, unknown[:5]))}"
    versions = about.get("versions") or {}
    if python := str(versions.get("base_python") or ""):
        yield _base(python)


def _gpus(api: Client) -> Check:
    """Whether the driver answers, and which GPUs need somebody to look after them. To have none is fine."""
    try:
        seen = api.get("/gpus")
    except errors.Problem as problem:
        return "GPUs", FAIL, problem.message, problem.hint
    found, silent = seen.get("gpus") or [], seen.get("silent")
    if not found and silent in (None, NO_DRIVER):
        return "GPUs", OK, f"{NO_DRIVER}: jobs without GPU run", ""
    if silent:
        hint = str(seen.get("hint") or "`nvidia-smi` shows whether the driver works")
        return "GPUs", FAIL if found else WARN, str(silent), hint
    ill = [gpu for gpu in found if gpu["state"] in (words.GONE, words.STUCK, words.UNKNOWN)]
    if ill:
        said = "; ".join(str(gpu.get("why") or f"{gpu['uuid']} is {gpu['state']}") for gpu in ill)
        return "GPUs", WARN, said, "`runner gpus` shows all; `runner gpus forget GPU` if one was taken out for good"
    return "GPUs", OK, f"the driver answers, {output.many(len(found), 'GPU')}", ""
