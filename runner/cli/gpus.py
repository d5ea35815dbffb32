"""The GPUs of the box and whoever is on them: gpus, adopt."""

from __future__ import annotations

import time

from runner import errors, words
from runner.cli import options, output, values
from runner.laptop import boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runner.cli.options import Given
    from runner.laptop.client import Client

GPUS = f"""\
Usage: runner gpus [OPTIONS]
       runner gpus drain|undrain|forget [OPTIONS] GPU...

The GPUs: what each one does, and who has it. To change it, name a GPU by its index, its UUID or the start of that.

Change:
  drain                   start nothing new on it; what runs there goes on (`runner drain` is for the whole box)
  undrain                 start jobs on it again
  forget                  it was taken out of the box for good: it is missed no longer

Options:
  --processes             also every process on each GPU
  --watch                 again each second, until Ctrl-C
{options.COMMON}
Examples:
  runner gpus
  runner gpus --processes
  runner gpus --watch
  runner gpus drain 1
"""
ADOPT = f"""\
Usage: runner adopt [OPTIONS] PID

Take a process that holds GPUs and that the queue did not start into the list, and print its job's id: other jobs can
wait for it, and its end is reported. `runner cancel` only lets it go: what the queue did not start, it never ends.

Options:
{options.COMMON}
Examples:
  runner gpus --processes
  runner adopt 4242
  runner submit --after $(runner adopt 4242):any train.py
"""
HEADINGS = ("GPU", "MODEL", "STATE", "MEMORY", "USE", "TEMP", "POWER", "")
PROCESS_HEADINGS = ("GPU", "PID", "USER", "MEMORY", "JOB", "COMMAND")
NO_DRIVER = "no NVIDIA driver found"  # as the box says it
DRIVER_HINT = "`runner doctor`, on the box, says what keeps an NVIDIA GPU from its driver"
NAME_MAX = 100
WATCH_SECONDS = 1.0


def gpus(arguments: list[str]) -> int:
    given = options.parse(GPUS, arguments)
    if given.words:
        return _change(given)
    api = boxes.open_box(given.get("--box"))
    while "--watch" in given:
        began = time.monotonic()
        answer = api.get("/gpus")
        output.begin_again()
        _show(answer, given)
        time.sleep(max(0.0, WATCH_SECONDS - (time.monotonic() - began)))
    return _show(api.get("/gpus"), given)


def _show(answer: dict[str, Any], given: Given) -> int:
    if "--json" in given:
        output.json(answer)
        return 0
    found, silent = answer["gpus"], answer.get("silent")
    if not found:
        output.say(f"{silent or NO_DRIVER}; jobs without GPU still run\n  hint: {answer.get('hint') or DRIVER_HINT}")
        return 0
    output.table(HEADINGS, [_row(gpu, silent) for gpu in found], gives_way=(len(HEADINGS) - 1, 1), painted=2)
    if "--processes" in given:
        _processes(found)
    if silent:
        output.say(silent + (f"\n  hint: {answer['hint']}" if answer.get("hint") else ""))
    return 0


# --- the table -------------------------------------------------------------------------------------------------------


def _row(gpu: dict[str, Any], silent: str | None) -> list[str]:
    sample = gpu.get("sample") or {}
    return [
        _index(gpu),
        output.model(gpu["name"]),
        gpu["state"],
        output.portion(sample.get("memory_used_bytes"), gpu.get("memory_bytes")),
        _amount(sample.get("utilization"), "%", 100),
        _amount(sample.get("temperature_celsius"), "°C"),
        _amount(sample.get("power_watts"), "W"),
        _who(gpu, silent),
    ]


def _index(gpu: dict[str, Any]) -> str:
    return "-" if gpu.get("index") is None else str(gpu["index"])


def _amount(value: float | None, unit: str, factor: int = 1) -> str:
    return "-" if value is None else f"{value * factor:.0f} {unit}"


def _who(gpu: dict[str, Any], silent: str | None) -> str:
    """Who has it, or what is the matter with it. silent: what is told of all of them at once."""
    jobs, why = _jobs(gpu), _why(gpu) if gpu.get("why") != silent else ""
    told = gpu["state"] in (words.BUSY, words.SHARED) and why  # the box names the jobs itself
    return why if told else "; ".join(filter(None, (jobs, why)))


def _jobs(gpu: dict[str, Any]) -> str:
    ids = ", ".join(map(str, gpu.get("jobs") or ()))
    return f"{'jobs' if ',' in ids else 'job'} {ids}" if ids else ""


def _why(gpu: dict[str, Any]) -> str:
    """Without what the other columns say: which one it is, and its state."""
    why = str(gpu.get("why") or "")
    for said in (f"GPU {gpu.get('index')} ", f"{gpu['uuid'][:12]} ({output.model(gpu['name'])}) "):
        why = why.removeprefix(said)
    return why.removeprefix(f"is {gpu['state']}").lstrip(":; ")


def _processes(found: list[dict[str, Any]]) -> None:
    rows = [_process(gpu, process) for gpu in found for process in gpu.get("processes") or ()]
    if not rows:
        output.say("no process is on a GPU")
        return
    output.put("\n")
    output.table(PROCESS_HEADINGS, rows, gives_way=(len(PROCESS_HEADINGS) - 1, 2))
    if any(process["job"] is None and process["alive"] for gpu in found for process in gpu["processes"]):
        output.say("hint: `runner adopt PID` takes one that is not of the queue into the list, to be waited for")


def _process(gpu: dict[str, Any], process: dict[str, Any]) -> list[str]:
    memory = process.get("memory_bytes")
    return [
        _index(gpu),
        str(process["pid"]),
        process.get("user") or "-",
        "-" if memory is None else output.size(memory),
        "not of the queue" if process.get("job") is None else f"job {process['job']}",
        process["command"] if process.get("alive", True) else "(dead, or in a container that hides it)",
    ]


# --- changing them ---------------------------------------------------------------------------------------------------


def _change(given: Given) -> int:
    verb, *typed = given.words
    if verb not in VERBS:
        guess = errors.nearest(verb, VERBS)
        raise errors.BadRequest(f'runner gpus knows no "{verb}"{guess}', "`runner gpus --help` lists what there is")
    if "--processes" in given:
        raise errors.BadRequest(f"--processes does not go together with {verb}", "`runner gpus --processes`")
    names = _names(typed, verb)
    api = boxes.open_box(given.get("--box"))
    said = [VERBS[verb](api, name, "--json" in given) for name in names]
    if "--json" in given:
        output.json(said)
    return 0


def _names(typed: list[str], verb: str) -> list[str]:
    hint = f"such as `runner gpus {verb} 0`; `runner gpus` lists them"
    names = [name for text in typed for name in text.split(",")]
    if not names:
        raise errors.BadRequest(f"runner gpus {verb} needs a GPU", hint)
    for name in names:
        if not (name.isascii() and name.replace("-", "").isalnum() and len(name) <= NAME_MAX):
            raise errors.BadRequest(f'"{name}" is not a GPU', hint)
    return list(dict.fromkeys(names))


def _drain(api: Client, name: str, quiet: bool) -> dict[str, Any]:
    gpu: dict[str, Any] = api.post(f"/gpus/{name}/drain", {"on": True})["gpu"]
    if not quiet:
        still = f"what runs there goes on ({_jobs(gpu)}); " if gpu.get("jobs") else ""
        output.say(f"{_label(gpu)} takes no new job; {still}`runner gpus undrain {name}` ends that")
    return gpu


def _undrain(api: Client, name: str, quiet: bool) -> dict[str, Any]:
    gpu: dict[str, Any] = api.post(f"/gpus/{name}/drain", {"on": False})["gpu"]
    if not quiet:
        output.say(f"{_label(gpu)} takes jobs again")
    return gpu


def _forget(api: Client, name: str, quiet: bool) -> dict[str, Any]:
    api.post(f"/gpus/{name}/forget")
    if not quiet:
        output.say(f"GPU {name} is forgotten; it comes back by itself if the box sees it again")
    return {"forgotten": name}


def _label(gpu: dict[str, Any]) -> str:
    name = gpu["uuid"] if gpu.get("index") is None else gpu["index"]
    return f"GPU {name} ({output.model(gpu['name'])})"


VERBS: dict[str, Callable[[Client, str, bool], dict[str, Any]]] = {
    "drain": _drain,
    "undrain": _undrain,
    "forget": _forget,
}


# --- adopt -----------------------------------------------------------------------------------------------------------


def adopt(arguments: list[str]) -> int:
    given = options.parse(ADOPT, arguments)
    if len(given.words) != 1:
        hint = "such as `runner adopt 4242`; `runner gpus --processes` lists them"
        raise errors.BadRequest("runner adopt takes the id of one process", hint)
    pid = values.whole("the process id", given.words[0], 1)
    # Without a key, so that it is not repeated by itself: the second time it would be adopted already.
    _, _, answer = boxes.open_box(given.get("--box")).request("POST", "/jobs/adopt", json={"pid": pid})
    for warning in answer.get("warnings") or ():
        output.say(f"note: {warning}")
    if "--json" in given:
        output.json(answer)
    else:
        output.put(f"{answer['id']}\n")
    return 0
