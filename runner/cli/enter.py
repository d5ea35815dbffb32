"""Into the environment of a job: a shell, a command, a port. On the box itself at once, on another one over ssh."""

from __future__ import annotations

import os
import sys

from runner import errors, words
from runner.cli import options, output, values
from runner.laptop import addresses, boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from runner.cli.options import Given
    from runner.laptop.link import Link

SHELL = """\
Usage: runner shell [OPTIONS] [ID]

A shell on the box, as yourself: over ssh, or right here when the box is this computer. With the id of a job of
yours it has the job's environment: its programs first on PATH, its variables and its GPUs, in its folder where you may
enter that. Secrets are not among the variables, and what you start is not part of the job.

Options:
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner shell
  runner shell 42
"""
EXEC = """\
Usage: runner exec [OPTIONS] ID COMMAND [ARGUMENTS...]

Run a command in the environment of a job, as `runner shell` does, and end with its exit code.

Options:
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner exec 42 python -c 'import torch; print(torch.__version__)'
  runner exec 42 nvidia-smi
"""
PORT = """\
Usage: runner port [OPTIONS] ID PORT

Bring a port of the box here, over ssh, until Ctrl-C: what a job serves there on localhost, such as TensorBoard, is then
at the same port of this computer's localhost, and nobody else's.

Options:
  --local PORT            at this port here, 0 for any that is free (the same)
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner port 42 6006
  runner port --local 7007 42 6006
"""
PORT_MAX = 65535
CANNOT_EXEC, NOT_FOUND = 126, 127  # as a shell says it


def shell(arguments: list[str]) -> int:
    given = options.parse(SHELL, arguments)
    if len(given.words) > 1:
        raise errors.BadRequest("runner shell takes one job", f"`runner exec {' '.join(given.words)}` runs a command")
    found = _surroundings(given, values.job(given.words, "runner shell")) if given.words else None
    return _enter(given, found, None)


def exec_(arguments: list[str]) -> int:
    given = options.parse(EXEC, arguments, stop_at_word=True)
    if len(given.words) < 2:
        raise errors.BadRequest("runner exec needs a job and a command", "such as `runner exec 42 python -V`")
    job, *command = given.words
    found = _surroundings(given, values.job([job], "runner exec"))
    return _enter(given, found, command[1:] if command[:1] == ["--"] else command)


def port(arguments: list[str]) -> int:
    given = options.parse(PORT, arguments)
    if len(given.words) != 2:
        raise errors.BadRequest("runner port needs a job and a port", "such as `runner port 42 6006`")
    wanted = _port("the port", given.words[1], 1)
    here = _port("--local", given.get("--local") or str(wanted), 0)
    api = boxes.open_box(given.get("--box"))
    job = api.get(f"/jobs/{values.job(given.words[:1], 'runner port')}")["job"]
    if job["state"] not in words.ACTIVE:
        raise errors.Busy(f"nothing of job {job['id']} listens: it is {job['state']}", "`runner ps` shows what runs")
    address = _elsewhere(given)
    if address is None:
        output.say(f"the box is this computer: what job {job['id']} serves there is at http://127.0.0.1:{wanted}")
        return 0
    return _bring(address, wanted, here)


def _port(option: str, text: str, least: int) -> int:
    number = values.whole(option, text, least)
    if number > PORT_MAX:
        raise errors.BadRequest(f"{option}: there is no port {number}", "1 to 65535")
    return number


def _elsewhere(given: Given) -> addresses.Address | None:
    """None: the box is this computer."""
    name = boxes.choose(given.get("--box"))
    return None if name in (addresses.LOCAL, addresses.DEMO) else addresses.read(name)


def _surroundings(given: Given, job_id: int) -> dict[str, Any]:
    found: dict[str, Any] = boxes.open_box(given.get("--box")).get(f"/jobs/{job_id}/surroundings")
    return found


def _enter(given: Given, found: dict[str, Any] | None, command: list[str] | None) -> int:
    """found: where to; None: nowhere in particular. command: None is a shell."""
    address = _elsewhere(given)
    if address is None:
        return _here(found, command)
    return _there(_link(address), found, command)


# --- on this computer ------------------------------------------------------------------------------------------------


def _here(found: dict[str, Any] | None, command: list[str] | None) -> NoReturn:
    """Become it."""
    env = dict(os.environ)
    if found is not None:
        env.update(found["variables"])
        try:
            os.chdir(found["directory"])
        except OSError as error:
            output.say(f"note: not in {found['directory']}: {error.strerror}")
    argv = command or [os.environ.get("SHELL") or "/bin/sh"]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        output.say(f"runner: {argv[0]} can't be run: {error.strerror}")
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_EXEC)


# --- on another ------------------------------------------------------------------------------------------------------


def _link(address: addresses.Address) -> Link:
    try:
        from runner.laptop import link
    except ImportError as error:
        raise errors.NotInstalled(f"ssh can't be used: {error}", "`pip install .` again, in a clone") from None
    return link.Link(address.ssh, link.at_terminal())


def _there(link: Link, found: dict[str, Any] | None, command: list[str] | None) -> int:
    import gc

    from runner.laptop import session

    gc.enable()
    with_terminal = session.terminal()
    channel = link.session(
        script(found, command), (os.environ.get("TERM", "dumb"), *session.size()) if with_terminal else None
    )
    try:
        return session.carry(channel, with_terminal)
    finally:
        link.close()


def script(found: dict[str, Any] | None, command: list[str] | None) -> str:
    """A command line for whatever shell is theirs on the far side."""
    from shlex import join, quote

    lines = []
    if found is not None:
        folder = quote(found["directory"])
        lines.append(f"cd {folder} 2>/dev/null || echo note: not in {folder}: it is not yours to enter >&2")
        lines += [f"export {name}={quote(value)}" for name, value in sorted(found["variables"].items())]
    lines.append(f"exec {join(command)}" if command else 'exec "${SHELL:-/bin/sh}"' + (" -l" if found is None else ""))
    return f"exec /bin/sh -c {quote('; '.join(lines))}"


def _bring(address: addresses.Address, wanted: int, here: int) -> int:
    from runner.laptop import session

    listener = session.listen(here)
    link = _link(address)
    try:
        at = listener.getsockname()[1]
        output.say(f"http://127.0.0.1:{at} is port {wanted} of {address.name}; Ctrl-C ends that")
        session.forward(
            listener, lambda: link.channel(("127.0.0.1", wanted)), lambda problem: output.say(problem.message)
        )
    except KeyboardInterrupt:
        return 0
    finally:
        listener.close()
        link.close()
    return 0
