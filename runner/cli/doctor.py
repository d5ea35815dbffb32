"""`runner doctor`: looks at everything that must be right, and says what to type about what is not.

What a command can see of the box is looked at here; the computer itself (driver, cards, containers, a job from end to
end) by `python -m runner.box.checks`, a process of its own, which says a finding a line.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import runner
from runner import errors, paths, words
from runner.cli import options, output
from runner.cli.gpus import NO_DRIVER
from runner.laptop import addresses, boxes
from runner.laptop.light import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from runner.cli.options import Given
    from runner.laptop.client import Client

    Finding = dict[str, Any]  # id, state, what, why, next, evidence

DOCTOR = """\
Usage: runner doctor [OPTIONS] [CHECK...]

Check that everything is as it should be: this command, the box, and on the box itself its driver, GPUs, containers
and a job from end to end. CHECK is the id of a check or its beginning, as in driver.loaded or driver; those that it
stands on are made, too. On a box that `setup.yml` made, root sees the most.

Each check is ok, failed, skipped, or a warning: it works, and could be better. What stands on a check that failed is
skipped. Ends with 0 if all is well, 1 if a check failed, 2 if the checks could not be made, and 77 if nothing could be
checked.

Options:
  --train                 also train with PyTorch on a GPU, as a job; the first time it fetches some GB
  --torch-index URL       where --train gets PyTorch, instead of pip's index, or PyTorch's own for older cards
  --json                  as JSON: {"ok", "checks": [{"id", "state", "what", "why", "next", "evidence"}]}
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner doctor
  sudo runner doctor --json
  sudo runner doctor --train driver cuda
"""
OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"
PAINT = {OK: "32", WARNING: "33", FAILED: "31", SKIPPED: "2"}
ALL_WELL, SOMETHING_FAILED, UNABLE, NOTHING_CHECKED = 0, 1, 2, 77
WIDTH = 22  # of the longest id
DISK_LEAST = 1 << 30  # below max(this, 2 %) the box starts nothing
RUN_SECONDS = 10.0  # for an interpreter to start and say its version
CLOCK_SECONDS = 5.0  # two clocks further apart than this confuse ages and limits
MADE = "/etc/gpubox/box.toml"  # there where `setup.yml` made this computer a box
CHECKS = (sys.executable, "-P", "-m", "runner.box.checks")
DRAINING = "the box is draining: nothing starts"
START = "sudo systemctl start gpubox"


def doctor(arguments: list[str]) -> int:
    given = options.parse(DOCTOR, arguments)
    name = boxes.choose(given.get("--box"))
    told = _Told(given)
    seen = list(_seen(name))
    for finding in seen:
        told.tell(finding)
    complete = name != addresses.LOCAL or _examine(given, seen, told)
    told.end()
    states = {finding["state"] for finding in told.findings}
    checked = states & {OK, WARNING, FAILED}
    return (
        UNABLE if not complete
        else SOMETHING_FAILED if FAILED in states
        else ALL_WELL if checked
        else NOTHING_CHECKED
    )  # fmt: skip


class _Told:
    """Findings on their way to the terminal, or to the end as JSON."""

    def __init__(self, given: Given) -> None:
        self.findings: list[Finding] = []
        self._wanted, self._json = given.words, "--json" in given
        self._aside: list[Finding] = []  # made here, and not asked for
        self._skipped: list[Finding] = []  # the last ones, for one reason

    def tell(self, finding: Finding, asked: bool = False) -> None:
        """asked: whoever made it knew what was asked for."""
        if not asked and self._wanted and not any(_matches(finding["id"], name) for name in self._wanted):
            self._aside.append(finding)
            return
        for other in list(self._aside):  # it was not asked for, but is the reason of this
            if finding["why"] == f"{other['id']} failed":
                self._aside.remove(other)
                self.tell(other, asked=True)
        self.findings.append(finding)
        if self._json:
            return
        if self._skipped and not (finding["state"] == SKIPPED and finding["why"] == self._skipped[0]["why"]):
            self._flush()
        if finding["state"] == SKIPPED:
            self._skipped.append(finding)
        else:
            _put(finding["state"], finding["id"], finding)

    def _flush(self) -> None:
        first, *others = self._skipped
        self._skipped = []
        _put(SKIPPED, first["id"] + (f" and {len(others)} more" if others else ""), first)

    def end(self) -> None:
        """NotFound: something was asked for that is no check."""
        if self._skipped and not self._json:
            self._flush()
        made = [finding["id"] for finding in self.findings + self._aside]
        for name in self._wanted:
            if not any(_matches(id, name) for id in made):
                hint = "`runner doctor` makes them all; there are more where `setup.yml` made the box, and on it"
                raise errors.NotFound(f"there is no check {name} here{errors.nearest(name, made)}", hint)
        if self._json:
            well = {finding["state"] for finding in self.findings}
            output.json({"ok": FAILED not in well and bool(well & {OK, WARNING}), "checks": self.findings})


def _matches(id: str, name: str) -> bool:
    return id == name or id.startswith(f"{name}.")


def _put(state: str, title: str, finding: Finding) -> None:
    mark = f"\x1b[{PAINT[state]}m{state:<7}\x1b[0m" if output.colours(sys.stdout) else f"{state:<7}"
    what, why = (finding["why"], "") if state == SKIPPED else (finding["what"], finding["why"])
    output.put(f"{mark} {title:<{WIDTH}} {output.clean(what)}\n")
    if state == OK:
        return
    shown = [("why", why)] if why else []
    shown += [("", line) for line in finding["evidence"]]
    shown += [("next", finding["next"])] if finding["next"] else []
    for word, text in shown:
        output.put(f"{'':<8}{f'{word}:' if word else '|':<6} {output.clean(text)}\n")


def _finding(id: str, state: str, what: str, next: str = "", why: str = "") -> Finding:
    """next is only worth telling where something is to be done."""
    tells = state in (WARNING, FAILED)
    return {"id": id, "state": state, "what": what, "why": why if tells else "", "next": next if tells else "",
            "evidence": []}  # fmt: skip


def _seen(name: str) -> Iterator[Finding]:
    """What a command sees."""
    made = name == addresses.LOCAL and _made()
    own = name == addresses.LOCAL and not made
    for check in (_python, _git, *((_uv, _state, _locks, _disk, _socket) if own else ())):
        yield _guarded(check)
    if own and boxes.closed():
        what = "this computer's box is for the group gpubox, and this session is not in it: local is your own box"
        yield _finding("service.access", WARNING, what, "sudo adduser $USER gpubox    # and then log in again")
    if made and not boxes.provisioned():
        what = "the service of this box did not begin since the computer started"
        yield _finding("service.answers", FAILED, what, START, "`systemctl status gpubox` says why")
    else:
        yield from _box(name)


def _made() -> bool:
    """Whether local is the service of this computer, or would be if it ran."""
    named = os.environ.get("GPUBOX_STATE") or os.environ.get("GPUBOX_SOCKET")
    return boxes.provisioned() or (not named and os.path.exists(MADE) and not os.path.isdir(paths.RUN))


# --- the computer of the box -----------------------------------------------------------------------------------------


def _examine(given: Given, seen: list[Finding], told: _Told) -> bool:
    """Tell what the checks of this computer say. Whether they came to their end."""
    import subprocess

    known = {finding["id"]: _known(finding) for finding in seen}
    command = [*CHECKS, "--known", dumps(known)]
    command += ["--made"] * _made() + ["--train"] * ("--train" in given)
    wanted = [("--only", ",".join(given.words)), ("--torch-index", given.get("--torch-index"))]
    command += [word for option, value in wanted if value for word in (option, value)]
    house = os.path.dirname(os.path.dirname(os.path.abspath(runner.__file__)))
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (house, os.environ.get("PYTHONPATH"))))}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=variables) as child:
        assert child.stdout is not None
        for line in child.stdout:
            finding = _read(line)
            if finding is None:
                continue
            if "done" in finding:
                return True
            told.tell(finding, asked=True)
    what = f"the checks of this computer ended early, with code {child.returncode}"
    told.tell(_finding("doctor", FAILED, what, " ".join(CHECKS[1:]), "what they said last is above"), asked=True)
    return False


def _known(finding: Finding) -> tuple[str, str]:
    """What stands on a queue that starts nothing now can't be checked; but as root, where `setup.yml` made a box: jobs
    of the queue's own account start there all the same."""
    if finding["what"] == DRAINING:
        return (OK, "") if _made() and os.geteuid() == 0 else (SKIPPED, DRAINING)
    return finding["state"], finding["why"]


def _read(line: bytes) -> Finding | None:
    try:
        value = loads(line.decode(errors="replace"))
    except ValueError:
        return None
    return value if isinstance(value, dict) and ("done" in value or "id" in value) else None


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except OSError as error:
        return _finding(f"box.{check.__name__.strip('_')}", FAILED, str(error))


# --- this command, and a box of one's own ----------------------------------------------------------------------------


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    next = "install Python 3.11 or later, and gpubox with it"
    return _finding("command.python", OK if good else FAILED, f"{version}, {sys.executable}", next)


def _git() -> Finding:
    found = _program("git")
    why = "without it snapshots follow .gitignore by our own reading"
    return _finding("command.git", OK if found else WARNING, found or "not found", "sudo apt-get install git", why)


def _uv() -> Finding:
    beside = os.path.join(os.path.dirname(sys.executable), "uv")
    found = beside if os.access(beside, os.X_OK) else _program("uv")
    why = "jobs that declare what they need cannot be built"
    return _finding("box.uv", OK if found else WARNING, found or "not found", 'pip install ".[box]" in a clone', why)


def _program(name: str) -> str:
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    found = (os.path.join(folder, name) for folder in folders if folder)
    return next((path for path in found if os.path.isfile(path) and os.access(path, os.X_OK)), "")


def _state() -> Finding:
    state = paths.state_dir()
    os.makedirs(state, 0o700, exist_ok=True)
    owner, mode = os.stat(state).st_uid, os.stat(state).st_mode & 0o777
    if owner != os.getuid():
        next = "export GPUBOX_STATE=...    # a directory of yours"
        return _finding("box.state", FAILED, f"{state} belongs to another user", next)
    open_to_others = mode & 0o022
    seen = f"{state}, which others may write to" if open_to_others else state
    return _finding("box.state", FAILED if open_to_others else OK, seen, f"chmod go-w {state}")


def _locks() -> Finding:
    from runner import files

    good = files.supports_locks(paths.state_dir())
    seen = "work" if good else f"the file system of {paths.state_dir()} has none"
    return _finding("box.locks", OK if good else FAILED, seen, "export GPUBOX_STATE=...    # on a local disk")


def _disk() -> Finding:
    from runner import files

    free, total = files.disk_room(paths.state_dir())
    need = max(DISK_LEAST, total // 50)
    state = FAILED if free < need else WARNING if free < 3 * need else OK
    why = f"below {output.size(need)} nothing starts"
    seen = f"{output.size(free)} free of {output.size(total)}"
    return _finding("disk.free", state, seen, "runner clean --older-than 7d", why)


def _socket() -> Finding:
    path = paths.api_socket(paths.state_dir())
    if len(os.fsencode(path)) >= paths.SOCKET_PATH_MAX:
        return _finding("box.socket", FAILED, f"the path {path} is too long", "export GPUBOX_SOCKET=...    # shorter")
    return _finding("box.socket", OK, path)


# --- the box ---------------------------------------------------------------------------------------------------------


def _box(name: str) -> Iterator[Finding]:
    try:
        api = boxes.open_box(name)
        asked = time.time()
        _, headers, hello = api.request("GET", "/hello")
        about = api.get("/box")
    except errors.Problem as problem:
        service = name == addresses.LOCAL and boxes.provisioned()
        next = START if service and isinstance(problem, errors.Unreachable) else problem.hint
        yield _finding("service.answers", FAILED, problem.message, next, problem.hint if next != problem.hint else "")
        return
    answers, why = f"{name} answers (process {hello.get('pid')})", hello.get("unreachable")
    if why:
        next = "another port or address in `https` of box.toml, or end what has it; the box tries again by itself"
        yield _finding("service.answers", WARNING, f"{answers}, but not over the network: {why}", next)
    else:
        yield _finding("service.answers", OK, answers)
    yield _version(str(hello.get("version")))
    yield _clock(headers.get("date", ""), asked)
    yield from _health(about)
    yield _gpus(api)


def _version(theirs: str) -> Finding:
    same = theirs == runner.__version__
    seen = theirs if same else f"the box has {theirs}, this command {runner.__version__}"
    next = "pip install .    # in a newer clone, where the older one is; on a box that was made: setup.yml"
    return _finding("service.versions", OK if same else WARNING, seen, next)


def _clock(date: str, asked: float) -> Finding:
    from email.utils import parsedate_to_datetime

    try:
        apart = abs(parsedate_to_datetime(date).timestamp() - asked)
    except ValueError:
        return _finding("service.clock", OK, "this computer's own")
    good = apart < CLOCK_SECONDS
    why = "ages and limits are confused by it"
    return _finding("service.clock", OK if good else WARNING, f"{apart:.0f} s apart", "timedatectl set-ntp true", why)


def _base(said: str) -> Finding:
    """The interpreter of jobs that declare nothing. The box saw it when it started; does it run now?"""
    version, _, path = said.partition(" ")
    now = _says(path, "import sys; print('.'.join(map(str, sys.version_info[:3])))")
    again = "sudo systemctl restart gpubox" if boxes.provisioned() else "runner serve --stop"
    if not now:
        why = "base_python (docs/settings.md) names the interpreter of jobs that declare nothing"
        return _finding(
            "service.python", FAILED, f"{path} does not run", f"{again}    # once it names one that runs", why
        )
    seen = said if now == version else f"{path} was {version} when the box started and is {now} now"
    return _finding("service.python", OK if now == version else WARNING, seen, again)


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


def _health(about: dict[str, Any]) -> Iterator[Finding]:
    if about.get("draining"):
        yield _finding("service.queue", WARNING, DRAINING, "runner drain --off")
    elif about.get("paused"):
        yield _finding("service.queue", FAILED, str(about["paused"]), "runner clean --older-than 7d")
    else:
        yield _finding("service.queue", OK, "it starts jobs")
    if unknown := about.get("unknown"):
        seen = f"directories that belong to no job: {len(unknown)}"
        why = f"they are kept in the state directory: {', '.join(map(str, unknown[:5]))}"
        yield _finding("service.records", WARNING, seen, f"ls {about.get('state', '')}/quarantine", why)
    versions = about.get("versions") or {}
    if python := str(versions.get("base_python") or ""):
        yield _base(python)


def _gpus(api: Client) -> Finding:
    """Whether the driver answers the box, and which GPUs need somebody to look after them. To have none is fine."""
    id = "collector.answers"
    try:
        seen = api.get("/gpus")
    except errors.Problem as problem:
        return _finding(id, FAILED, problem.message, problem.hint)
    found, silent = seen.get("gpus") or [], seen.get("silent")
    if not found and silent in (None, NO_DRIVER):
        return _finding(id, OK, f"{NO_DRIVER}: jobs without GPU run")
    if silent:
        why = str(seen.get("hint") or "")
        return _finding(id, FAILED if found else WARNING, str(silent), "nvidia-smi", why)
    ill = [gpu for gpu in found if gpu["state"] in (words.GONE, words.STUCK, words.UNKNOWN)]
    if ill:
        said = "; ".join(str(gpu.get("why") or f"{gpu['uuid']} is {gpu['state']}") for gpu in ill)
        return _finding(id, WARNING, said, "runner gpus", "`runner gpus forget GPU` if one was taken out for good")
    return _finding(id, OK, f"the driver answers, {output.many(len(found), 'GPU')}")
