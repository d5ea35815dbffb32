"""The command line: `runner COMMAND ...`. Only the chosen command's module is imported."""

from __future__ import annotations

import errno
import gc
import os
import sys

from runner import errors, paths
from runner.cli.options import HelpAsked

# group -> command -> (module, function, what it does)
COMMANDS = {
    "Train": {
        "submit": ("submit", "submit", "put a script or a command in the queue and follow it"),
        "logs": ("logs", "main", "what a job has printed; -f follows it"),
        "wait": ("wait", "wait", "wait until jobs have ended"),
        "pull": ("pull", "pull", "bring a job's outputs home"),
    },
    "Look": {
        "ps": ("jobs", "ps", "the queue, and what ended lately"),
        "show": ("show", "show", "everything about a job"),
        "why": ("show", "why", "why a job waits, or how it ended"),
        "diff": ("diff", "diff", "what changed between the code of two jobs"),
        "top": ("top", "top", "the GPUs and the queue live in the terminal, with keys"),
        "gpus": ("gpus", "gpus", "the GPUs: what they do, and who has them"),
        "notices": ("notices", "notices", "what the box noticed: faults, idle GPUs, heat"),
        "dashboard": ("dashboard", "dashboard", "the GPUs, the queue and the logs in your browser"),
    },
    "Change": {
        "cancel": ("jobs", "cancel", "end jobs, or take them out of the queue"),
        "rerun": ("submit", "rerun", "run a job again, with the code it had"),
        "hold": ("jobs", "hold", "keep queued jobs from starting"),
        "release": ("jobs", "release", "let held jobs start"),
        "priority": ("jobs", "priority", "move jobs forward or back in the queue"),
        "adopt": ("gpus", "adopt", "take a running process into the list"),
    },
    "Inside": {
        "shell": ("enter", "shell", "a shell on the box, in a job's environment"),
        "exec": ("enter", "exec_", "run a command in a job's environment"),
        "port": ("enter", "port", "bring a port of the box here, such as TensorBoard's"),
    },
    "The box": {
        "box": ("boxes", "box", "the boxes you can use; add one over ssh"),
        "token": ("token", "token", "the keys with which laptops come to a box"),
        "data": ("data", "data", "data sets on a box, for its jobs to read"),
        "secret": ("secret", "secret", "keys for your jobs, in their environment only"),
        "env": ("env", "env", "the environments that were built for jobs"),
        "drain": ("box", "drain", "let running jobs end and start no others"),
        "clean": ("box", "clean", "remove old logs, code and fetched outputs"),
        "serve": ("box", "serve", "run the box's daemon in this terminal, or stop it"),
        "doctor": ("doctor", "doctor", "check that everything is as it should be"),
    },
    "This command": {
        "completion": ("complete", "completion", "print a completion script for bash, zsh or fish"),
        "help": ("help", "help", "explain a command"),
        "version": ("help", "version", "which version this is"),
    },
}
TABLE = {name: entry for group in COMMANDS.values() for name, entry in group.items()}
APART = frozenset((*COMMANDS["This command"], "serve"))  # these fetch nothing in passing
ALIASES = {"--help": "help", "-h": "help", "--version": "version", "-V": "version"}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT, 128 + SIGPIPE: as a shell reports them


def main() -> None:
    """The entry point: run a command and leave at once, without taking the interpreter apart first (1 ms)."""
    gc.disable()  # a command is over before garbage matters; those that stay turn it on again
    _open_streams()
    code = run(sys.argv[1:])
    os._exit(_flushed(code))


def _open_streams() -> None:
    """Somebody may have closed them (`>&-`): without a stand-in the next file opened would take their numbers."""
    if sys.stdin and sys.stdout and sys.stderr:
        return
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (BrokenPipeError, KeyboardInterrupt):
        return code or BROKEN_PIPE
    except OSError as error:
        return code or _unwritable(error)
    return code


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    try:
        return _answer(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as fault:
        if isinstance(fault, OSError) and fault.errno in NO_ROOM and fault.filename is None:
            return _unwritable(fault)
        from runner.cli import fault as house

        return house.tell(fault, arguments)


def _unwritable(error: OSError) -> int:
    """The output went to a file that takes no more."""
    sys.stdout = sys.stderr  # what it still holds can't be written either, and must not be in the way of saying so
    problem = errors.DiskFull(f"the output can't be written: {error.strerror}", "is the disk full that it goes to?")
    try:
        _complain(problem)
    except OSError:
        pass  # the talk goes there, too
    return problem.exit_code


def _answer(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except HelpAsked as asked:
        from runner.cli import help

        return help.explain(asked.text)
    except errors.Problem as problem:
        _complain(problem)
        return problem.exit_code


def _dispatch(arguments: list[str]) -> int:
    if os.name == "nt":
        raise errors.NotInstalled(
            "runner runs on Linux and macOS, not on Windows itself", "`wsl --install`, then install gpubox within WSL"
        )
    name, *rest = arguments or ["help"]
    name = ALIASES.get(name, name)
    if name not in TABLE:
        what = "option" if name.startswith("-") else "command"
        hint = "options come after the command; " * (what == "option") + "`runner help` lists the commands"
        if what == "command" and os.path.exists(name):
            hint = f"to run it on the box: `runner submit {name}`"
        raise errors.BadRequest(f'runner has no {what} "{name}"{errors.nearest(name, TABLE)}', hint)
    module, function, _ = TABLE[name]
    loaded = __import__(f"runner.cli.{module}", fromlist=(function,))
    code = getattr(loaded, function)(rest)
    if name not in APART:
        _run_errands()
    return int(code or 0)


def _run_errands() -> None:
    if os.environ.get("GPUBOX_COURIER") == "no":
        return
    try:
        names = os.listdir(paths.state_dir().awaited)
    except OSError:
        return  # nothing was ever submitted from here
    if any(name[0] != "." or name == ".news" for name in names):
        from runner.cli import errands

        errands.run(names)


def _complain(problem: errors.Problem) -> None:
    """The error in two lines: what happened and why; what to type next. Both may hold words from the box."""
    from runner.cli import output

    output.say(f"runner: {problem.message}" + (f"\n  hint: {problem.hint}" if problem.hint else ""))
