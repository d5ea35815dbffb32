"""`runner submit` and `runner rerun`: from a script on this computer to a job on the box, and its log back."""

from __future__ import annotations

import os

from runner import errors
from runner.cli import options, output, values
from runner.laptop import answers, awaited, boxes, client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.options import Given
    from runner.laptop.client import Client
    from runner.laptop.snapshot import Snapshot

SUBMIT = """\
Usage: runner submit [OPTIONS] SCRIPT [ARGUMENTS...]
       runner submit [OPTIONS] -- COMMAND [ARGUMENTS...]

Put a script or a command in the queue with the project's files as they are now, follow its log, and bring its
outputs home. Options come before the script; everything after it is the script's own.

What it needs:
  --cpus N                cores (1)
  --mem SIZE              memory, such as 8G
  --gpus N                GPUs (0; 1 with --gpu-type or --gpu-mem)
  --gpu-type TEXT         only such: words of the model's name, as in 3090, or the start of a UUID
  --gpu-mem SIZE          memory on each, such as 8G; jobs that fit beside each other share a GPU
  --exclusive             share none of them, though --gpu-mem is given
  --gpu-ids KIND          what CUDA_VISIBLE_DEVICES holds: uuid, or index for what reads only numbers (uuid)
  --time-limit TIME       end it after 90 (seconds), 2h30m or 1-12:00:00
  --stop-if-idle TIME     end it when its GPUs were idle so long, such as 30m; a warning comes first
  --grace TIME            between asking it to end and ending it (30)

When it runs:
  --priority N            higher starts earlier (0)
  --after ID...           when this job has succeeded; ID:any when it has ended anyhow
  --hold                  not before `runner release`
  --retries N             start it again up to N times when it fails (0)
  --retry-on REASON...    but only for these reasons, such as cuda_out_of_memory,gpu_lost
  --requeue               start it again after the box went down

Many at once:
  --array INDICES         one job for each of 10, 0-99 or 1,5,7, in RUNNER_ARRAY_INDEX
  --sweep NAME=A,B...     one job for each value, as {NAME} in the arguments, else as --NAME=A

What it takes along:
  --name TEXT             how lists call it (the script's name)
  --env KEY=VALUE...      a variable; KEY alone takes its value from here
  --secret NAME...        a variable whose value `runner secret set` put on the box
  --base                  the box's base environment, whatever the script declares
  --conda NAME            a conda environment that is there on the box
  --include PATH...       also a file that snapshots leave out, such as .env
  --max-size SIZE         send at most this much
  --no-files              send no files, for a command that needs none

How it goes on:
  -d, --detach            print the job's id and return at once; a later command brings the outputs home
  --no-pull               leave the outputs on the box until `runner pull`
  --pull-to DIR           bring them to DIR/<box>-<id>/ instead of the project's runs/
  --json                  print the box's answer as JSON and return at once
  --dry-run               say what would be sent, and send nothing
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner submit train.py --epochs 10
  runner submit -d --time-limit 2h --gpu-mem 8G train.py
  runner submit --sweep lr=1e-3,1e-4 -- python train.py --lr {lr}
"""
RERUN = """\
Usage: runner rerun [OPTIONS] ID

Run a job again with the code, the arguments and the options it had, and follow it.

Options:
  -d, --detach            print the new job's id and return at once; a later command brings the outputs home
  --no-pull               leave the outputs on the box until `runner pull`
  --pull-to DIR           bring them to DIR/<box>-<id>/ instead of the project's runs/
  --json                  print the box's answer as JSON and return at once
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner rerun 42
  runner rerun -d 42
  runner diff 41 42       what changed between two jobs
"""
GPU_IDS = ("uuid", "index")
STRAYING = ("--gpus", "--gpu-type", "--gpu-mem", "--exclusive", "--cpus", "--mem", "--time-limit", "--stop-if-idle")


def submit(arguments: list[str]) -> int:
    given = options.parse(SUBMIT, arguments, stop_at_word=True)
    _check_pull(given)
    box = boxes.choose(given.get("--box"))
    spec, start = _task(given)
    spec.update(_wishes(given))
    body: dict[str, Any] = {"spec": spec}
    body.update(_many(given))
    if "--no-files" in given:
        if "--dry-run" in given:
            return _rehearse(given, body, None, start)
        api = boxes.open_box(box)
        spec["after"] = _after(given, api)
        return _send(given, api, body, None)
    from runner.laptop import snapshot

    largest = given.get("--max-size")
    limit = values.size("--max-size", largest) if largest else snapshot.LIMIT_BYTES
    walk = snapshot.begin(spec["project"], include=given.all("--include"), limit_bytes=limit)
    if "--dry-run" in given:
        found = walk.finish()
        found.remember()
        return _rehearse(given, body, found, start)
    api = boxes.open_box(box)
    spec["after"] = _after(given, api)
    return _send(given, api, body, walk.finish())


def _rehearse(given: Given, body: dict[str, Any], snap: Snapshot | None, start: str) -> int:
    from runner.cli import rehearsal

    return rehearsal.rehearse(given, body, snap, start)


def rerun(arguments: list[str]) -> int:
    given = options.parse(RERUN, arguments)
    _check_pull(given)
    job_id = values.job(given.words, "runner rerun")
    api = boxes.open_box(given.get("--box"))
    key = {"Idempotency-Key": client.new_key()}
    _, _, answer = api.request("POST", f"/jobs/{job_id}/rerun", json={}, headers=key)
    return _accepted(given, api, answer, f"again what job {job_id} was")


# --- what to run -----------------------------------------------------------------------------------------------------


def _task(given: Given) -> tuple[dict[str, Any], str]:
    """(the part of the spec that says what to run and where, the path it starts from)."""
    here = _current_directory()
    if given.dashes or "--no-files" in given:
        if not given.dashes and given.words:
            raise errors.BadRequest(
                "a script cannot run without its files", f"for a command: runner submit --no-files -- {given.words[0]}"
            )
        if not given.words or not given.words[0]:
            raise errors.BadRequest("there is no command after --", "such as `runner submit -- python train.py`")
        if "--no-files" in given:
            return {"command": given.words, "name": _name(given.words), "project": here}, here
        root = _root(here)
        return {
            "command": given.words,
            "name": _name(given.words),
            "project": root,
            "directory": _inside(here, root) or "",
        }, here
    if not given.words or not given.words[0]:
        raise errors.BadRequest(
            "there is no script to submit", "`runner submit train.py`, or `runner submit -- COMMAND`"
        )
    typed, *rest = given.words
    path = os.path.normpath(os.path.join(here, typed))
    _check_script(typed, path)
    root = _root(path)
    script = _inside(path, root)
    if script is None:
        raise errors.BadRequest(
            f"{typed} lies outside of its project {root}", f"move it there, or submit it from {root}"
        )
    directory = _inside(here, root)
    _say_strayed(path, typed, rest)
    if directory is None:
        output.say(f"note: it will run in {root}; the current directory is not part of that project")
    below = os.path.relpath(script, directory) if directory else script
    return {
        "command": [*_runner_of(typed, path, below), *rest],
        "name": os.path.basename(path),
        "script": script,
        "project": root,
        "directory": directory or "",
    }, path


def _say_strayed(path: str, typed: str, rest: list[str]) -> None:
    """Options come before the script. One after it is the script's; it is told where that speaks of no such thing."""
    strayed = next((name for name in (word.partition("=")[0] for word in rest) if name in STRAYING), "")
    if not strayed:
        return
    with open(path, "rb") as file:
        text = file.read(1 << 20).replace(b"-", b"_")
    if strayed[2:].replace("-", "_").encode() not in text:
        output.say(
            f"note: {strayed} after the script is given to the script; for the job: runner submit {strayed} ... {typed}"
        )


def _current_directory() -> str:
    """As the shell calls it, with its symbolic links, when that is true."""
    try:
        real = os.getcwd()
    except OSError:
        raise errors.NotFound("the current directory is gone", "`cd` into one that exists") from None
    named = os.environ.get("PWD", "")
    try:
        return named if named.startswith("/") and os.path.samefile(named, real) else real
    except OSError:  # it names another place, which is gone, or which we may not see
        return real


def _root(path: str) -> str:
    from runner.laptop import snapshot

    return snapshot.root_of(path)


def _inside(path: str, root: str) -> str | None:
    """The path relative to the root ("" is the root itself); None when it is not inside."""
    for candidate in (path, os.path.realpath(path)):
        for top in (root, os.path.realpath(root)):
            if candidate == top:
                return ""
            if candidate.startswith(top.rstrip("/") + "/"):
                return candidate[len(top.rstrip("/")) + 1 :]
    return None


def _check_script(typed: str, path: str) -> None:
    if not os.path.exists(path):
        if os.path.lexists(path):
            raise errors.NotFound(f"{typed} is a link to nothing", "")
        raise errors.NotFound(_missing(typed, path), f"for a command: runner submit -- {typed} ...")
    if os.path.isdir(path):
        raise errors.BadRequest(
            f"{typed} is a directory", f"submit a script in it, such as {typed.rstrip('/')}/train.py"
        )
    if not os.path.isfile(path):
        raise errors.BadRequest(f"{typed} is not a file", "for a command: runner submit -- COMMAND")
    if not os.access(path, os.R_OK):
        raise errors.NotFound(f"{typed} cannot be read: permission denied", f"chmod +r {typed}")


def _missing(typed: str, path: str) -> str:
    try:
        beside = os.listdir(os.path.dirname(path))
    except OSError:
        beside = []
    return f'there is no script "{typed}"{errors.nearest(os.path.basename(path), beside)}'


def _runner_of(typed: str, path: str, below: str) -> list[str]:
    if path.endswith(".py"):
        return ["python", below]
    if path.endswith(".sh"):
        return ["bash", below]
    if path.endswith(".ipynb"):
        run = f'jupyter nbconvert --to notebook --execute --output-dir "$RUNNER_OUT" "{below}"'
        hint = f"nbconvert and ipykernel in requirements.txt, then: runner submit -- sh -c '{run}'"
        raise errors.BadRequest(f"{typed} is a notebook, which a command runs", hint)
    if os.access(path, os.X_OK):
        return [below if "/" in below else f"./{below}"]
    raise errors.BadRequest(
        f"{typed} is neither a .py or .sh file nor executable", f"chmod +x {typed}, or runner submit -- COMMAND {typed}"
    )


def _name(command: list[str]) -> str:
    """A command is called after the script it runs, if it names one: `python train.py` is train.py."""
    for word in command[:3]:
        if word.endswith((".py", ".sh")):
            return os.path.basename(word)
    return os.path.basename(command[0]) or command[0]


# --- how to run it ---------------------------------------------------------------------------------------------------


def _wishes(given: Given) -> dict[str, Any]:
    """The options as the spec has them; what was not typed is left to the box."""
    wishes: dict[str, Any] = {}
    for name, field, least in (("cpus", "cpus", 0), ("gpus", "gpus", 0), ("retries", "retries", 0)):
        if text := given.get(f"--{name}"):
            wishes[field] = values.whole(f"--{name}", text, least)
    if text := given.get("--priority"):
        wishes["priority"] = values.whole("--priority", text, -1_000_000)
    if text := given.get("--mem"):
        wishes["memory_bytes"] = values.size("--mem", text, values.MEMORY_LEAST)
    if text := given.get("--time-limit"):
        wishes["time_limit"] = values.duration("--time-limit", text)
    if text := given.get("--grace"):
        wishes["grace"] = 0.0 if text == "0" else values.duration("--grace", text)
    if text := given.get("--name"):
        wishes["name"] = text
    if "--requeue" in given:
        wishes["requeue"] = True
    if "--base" in given:
        wishes["environment"] = "base"
    if text := given.get("--conda"):
        if "--base" in given:
            raise errors.BadRequest("--base and --conda both say which environment", "keep one of them")
        wishes["environment"] = f"conda:{text}"
    wishes.update(_gpus(given, wishes.get("gpus")))
    if texts := given.all("--retry-on"):
        wishes["retry_on"] = values.reasons(texts)
        wishes.setdefault("retries", 1)
    if texts := given.all("--env"):
        wishes["env"] = values.environment(texts, dict(os.environ))
    if texts := given.all("--secret"):
        wishes["secrets"] = texts
    return wishes


def _gpus(given: Given, count: int | None) -> dict[str, Any]:
    """Which GPUs, and for itself or not. count: how many, if that was typed."""
    wishes: dict[str, Any] = {}
    if text := given.get("--gpu-type"):
        wishes["gpu_type"] = text
    if text := given.get("--gpu-mem"):
        wishes["gpu_memory_bytes"] = values.size("--gpu-mem", text, values.MEMORY_LEAST)
    if wishes and count is None:
        count = wishes["gpus"] = 1
    if "--exclusive" in given:
        wishes["exclusive"] = True
    if text := given.get("--gpu-ids"):
        wishes["gpu_ids"] = values.choice("--gpu-ids", text, GPU_IDS)
    if text := given.get("--stop-if-idle"):
        wishes["stop_if_idle"] = values.duration("--stop-if-idle", text)
    if not count:
        for option in ("--stop-if-idle", "--gpu-type", "--gpu-mem", "--exclusive", "--gpu-ids"):
            if option in given:
                raise errors.BadRequest(f"{option} is about GPUs, and the job asks for none", f"--gpus 1 {option} ...")
    return wishes


def _many(given: Given) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if text := given.get("--array"):
        fields["array"] = values.array(text)
    if texts := given.all("--sweep"):
        fields["sweep"] = values.sweep(texts)
    if len(fields) > 1:
        raise errors.BadRequest("--array and --sweep do not go together", "--sweep seed=0,1,2 sweeps numbers, too")
    if "--hold" in given:
        fields["held"] = True
    return fields


def _after(given: Given, api: Client) -> list[dict[str, Any]]:
    """What it waits for. A group is all of its jobs; the box knows which."""
    found = []
    for text in given.all("--after"):
        typed, colon, how = text.partition(":")
        if colon and how != "any":
            raise errors.BadRequest(f"--after {text}: after the colon comes any", f"--after {typed}:any")
        ids = values.jobs([typed], "--after")
        if any(isinstance(part, str) for part in ids):
            ids = [job["id"] for job in api.get(f"/jobs?ids={values.query(ids)}")["jobs"]]
        found += [{"job": number, "any_end": bool(colon)} for number in ids]
    return found


def _check_pull(given: Given) -> None:
    if "--no-pull" in given and "--pull-to" in given:
        raise errors.BadRequest("--no-pull and --pull-to do not go together", "keep one of them")
    if to := given.get("--pull-to"):
        values.folder("--pull-to", to)


# --- sending it ------------------------------------------------------------------------------------------------------


def _send(given: Given, api: Client, body: dict[str, Any], snap: Snapshot | None) -> int:
    key = client.new_key()
    try:
        answer, snap = _sent(api, body, snap, key)
    except KeyboardInterrupt:
        output.say("interrupted while submitting; `runner ps` shows whether it was accepted")
        return 130
    text = "no files"
    if snap:
        news = "unchanged" if snap.unchanged and not snap.sent else f"{snap.sent or 'none'} sent"
        text = f"{output.many(snap.count, 'file')}, {output.size(snap.bytes)}; {news}"
    for warning in snap.warnings if snap else ():
        output.say(f"note: {warning}")
    return _accepted(given, api, answer, text, str(body["spec"].get("project") or ""))


def _sent(api: Client, body: dict[str, Any], snap: Snapshot | None, key: str) -> tuple[dict[str, Any], Snapshot | None]:
    """(what the box answers, the snapshot that it took)."""
    if snap is None or snap.id == snap.base:  # the box most likely has it; it says so if not
        if snap:
            body["spec"]["snapshot"] = snap.id
            api.meanwhile = snap.remember
        try:
            return api.request("POST", "/jobs", json=body, headers={"Idempotency-Key": key})[2], snap
        except errors.SnapshotUnknown:
            if snap is None:
                raise
    from runner.laptop import delivery

    return delivery.deliver(api, body, snap, key)


def _accepted(given: Given, api: Client, answer: dict[str, Any], text: str, project: str = "") -> int:
    """Say what became of it; follow it unless asked not to."""
    for warning in answer.get("warnings") or ():
        output.say(f"note: {warning}")
    group = answer.get("group")
    name = str(group or answer["id"])
    if not values.is_name(name):
        raise answers.Asked(api.box, "POST", "/jobs").nonsense("that is neither a job nor a group")
    to, pull = given.get("--pull-to") or "", "--no-pull" not in given
    if not pull:
        awaited.remember(api.box, project)
    else:
        awaited.note(api.box, name, os.path.abspath(to) if to else "", project)
    if "--json" in given:
        output.json(answer)
        return 0
    if "--detach" in given:
        output.put(f"{name}\n")
        return 0
    what = f"{output.many(int(answer['count']), 'job')} {name}" if group else f"job {name}"
    output.say(f"{what} submitted to {api.box} ({text})")
    try:
        return _follow(api, answer, group, pull)
    except KeyboardInterrupt:
        if group:
            rest = f"`runner wait {name}` waits for them, `runner pull {name}` brings their outputs home"
            output.say(f"\n{what} go on without us\n  {rest}, `runner cancel {name}` ends them")
        else:
            back = f"`runner logs -f {name}` comes back to it, `runner cancel {name}` ends it"
            output.say(f"\n{what} goes on without us\n  {back}")
        return 130


def _follow(api: Client, answer: dict[str, Any], group: str | None, pull: bool) -> int:
    import gc

    gc.enable()  # from here on we may stay for days
    if group:
        from runner.cli import wait

        return wait.watch_group(api, group, pull)
    from runner.cli import logs

    return logs.follow(api, int(answer["id"]), pull=pull)
