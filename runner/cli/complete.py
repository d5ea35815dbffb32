"""`runner completion SHELL`: scripts for bash, zsh and fish. They ask this command back what fits, so that they know
every command and option without naming one; a box that sleeps is not woken for it."""

from __future__ import annotations

import os

from runner import errors
from runner.cli import TABLE, options, output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.laptop.client import Client

COMPLETION = """\
Usage: runner completion SHELL

Print a completion script. It completes commands, options, the ids of jobs and the indices of GPUs.

Options:
  --words                 print what fits the words that follow (the scripts use it)
  -h, --help              this text

Examples:
  eval "$(runner completion bash)"                                     # in ~/.bashrc
  eval "$(runner completion zsh)"                                      # in ~/.zshrc, after compinit
  runner completion fish > ~/.config/fish/completions/runner.fish
"""
BASH = r"""_runner() {
    local IFS=$'\n'
    COMPREPLY=($(runner completion --words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o bashdefault -o default -F _runner runner
"""
ZSH = r"""#compdef runner
_runner() {
    local -a fitting
    fitting=(${(f)"$(runner completion --words -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#fitting} )); then compadd -a fitting; else _files; fi
}
compdef _runner runner
"""
FISH = r"""function __runner_words
    runner completion --words -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null
end
complete -c runner -a '(__runner_words)'
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
VERBS = ("drain", "undrain", "forget")  # of `runner gpus`
# Commands whose words are jobs -> the states of the jobs that make sense there ("": any)
JOBS = {
    "logs": "",
    "wait": "queued,starting,running",
    "pull": "",
    "ps": "",
    "show": "",
    "why": "",
    "diff": "",
    "cancel": "queued,starting,running",
    "rerun": "",
    "hold": "queued",
    "release": "queued",
    "priority": "queued",
}


def completion(arguments: list[str]) -> int:
    if arguments[:1] == ["--words"]:
        return _print_words(arguments[2:] if arguments[1:2] == ["--"] else arguments[1:])
    given = options.parse(COMPLETION, arguments)
    shell = given.words[0] if given.words else os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SHELLS:
        guess = errors.nearest(shell, SHELLS)
        raise errors.BadRequest(f'no completion for "{shell}"{guess}', "`runner completion bash`, zsh or fish")
    output.put(SHELLS[shell])
    return 0


def _print_words(typed: list[str]) -> int:
    """What fits the last word; nothing lets the shell complete a file name."""
    try:
        for word in fitting(typed):
            output.put(f"{word}\n")
    except errors.Problem:
        pass  # a prompt is no place for errors
    return 0


def fitting(typed: list[str]) -> list[str]:
    *before, last = typed or [""]
    if not before:
        return [name for name in TABLE if name.startswith(last)]
    command = before[0]
    if command not in TABLE:
        return []
    text = _help_of(command)
    if last.startswith("-") and not (command == "submit" and _past_script(text, before[1:])):
        return sorted(name for name in options.declared(text) if name.startswith(last))
    if command == "help":
        return [name for name in TABLE if name.startswith(last)]
    if command == "completion":
        return [name for name in SHELLS if name.startswith(last)]
    if command == "submit" and before[-1] in VALUES and not _past_script(text, before[1:-1]):
        return [value for value in VALUES[before[-1]]() if value.startswith(last)]
    if (
        before[-1] == "--box"
        and "--box" in options.declared(text)
        and not (command == "submit" and _past_script(text, before[1:-1]))
    ):
        return [name for name in _boxes() if name.startswith(last)]
    if command in ("box", "token"):
        return [word for word in _kept(command, before[1:]) if word.startswith(last)]
    if command == "data":
        return [word for word in _sets(before[1:]) if word.startswith(last)]
    if command == "gpus":
        verbs = [word for word in before[1:] if not word.startswith("-")]
        return [word for word in (_gpu_indices() if verbs else VERBS) if word.startswith(last)]
    if command == "notices":
        return [] if "test" in before[1:] else [word for word in ("test",) if word.startswith(last)]
    if command == "adopt":
        return [pid for pid in _foreign() if pid.startswith(last)]
    return _job_ids(JOBS[command], last) if command in JOBS else []


def _help_of(command: str) -> str:
    """The help text of a command, as it raises it."""
    module, function, _ = TABLE[command]
    loaded = __import__(f"runner.cli.{module}", fromlist=(function,))
    try:
        if command != "help" and command != "version":
            getattr(loaded, function)(["--help"])
    except options.HelpAsked as asked:
        return asked.text
    return ""


def _past_script(text: str, before: list[str]) -> bool:
    try:
        return bool(options.parse(text, before, stop_at_word=True).words)
    except errors.Problem:
        return False


def _kept(command: str, before: list[str]) -> list[str]:
    """Verbs, and then the boxes that this computer knows."""
    from runner.cli import boxes, token

    verbs = [word for word in before if not word.startswith("-")]
    if not verbs:
        return list(boxes.VERBS if command == "box" else token.VERBS)
    return _boxes() if command == "box" and verbs[0] in ("use", "test", "remove") else []


def _sets(before: list[str]) -> list[str]:
    """Verbs, and then the data sets; of a folder the shell knows more."""
    from runner.cli import data

    verbs = [word for word in before if not word.startswith("-")]
    if not verbs:
        return list(data.VERBS)
    return [each["name"] for each in _awake().get("/data")["sets"]] if verbs[0] in ("pull", "rm") else []


def _boxes() -> list[str]:
    from runner.laptop import addresses

    return [addresses.LOCAL, *addresses.names()]


def _gpus() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _awake().get("/gpus")["gpus"]
    return found


def _gpu_indices() -> list[str]:
    return [str(gpu["index"]) for gpu in _gpus() if gpu.get("index") is not None]


def _gpu_types() -> list[str]:
    """The word that tells models apart: 3090, 4090, H200."""
    names = [word for gpu in _gpus() for word in output.model(gpu["name"]).split() if any(map(str.isdigit, word))]
    return list(dict.fromkeys(names))


def _foreign() -> list[str]:
    """The processes on GPUs that are not of the queue."""
    found = [process for gpu in _gpus() for process in gpu["processes"] if process["job"] is None]
    return list(dict.fromkeys(str(process["pid"]) for process in found))


# Options of submit whose values are known -> what lists them
VALUES = {"--gpu-ids": lambda: ["uuid", "index"], "--gpu-type": _gpu_types}


def _job_ids(states: str, start: str) -> list[str]:
    jobs = _awake().get("/jobs" + (f"?state={states}" if states else ""))["jobs"]
    names = [str(job["id"]) for job in jobs] + [str(job["group"]) for job in jobs if job.get("group")]
    return [name for name in dict.fromkeys(names) if name.startswith(start)]


def _awake() -> Client:
    """The box, if it runs, whatever version it has."""
    from runner.laptop import addresses, boxes

    api = boxes.open_box(start=False)
    if api.box not in (addresses.LOCAL, addresses.DEMO):
        raise errors.Unreachable("a key that is pressed must not wait for a network")
    api.greet = None
    return api
