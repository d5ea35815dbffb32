"""What people may ask for: a submission checked against the box, and expanded into jobs. Nothing is stored here."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence

from runner import words
from runner.box.envs import conda
from runner.box.gpus import placement
from runner.box.gpus.placement import Card
from runner.box.schedule import exceeds
from runner.box.secrets import RESERVED, check_name
from runner.errors import BadRequest, TooMuch, nearest
from runner.model import PRIORITY_MAX, PRIORITY_MIN, SWEEP_LIMIT, JobSpec, Resources, Submission

NAME_MAX = 200
IDLE_LEAST = 60.0  # seconds: GPUs are looked at every ten
ARGUMENTS_MAX = 128 << 10  # bytes; the kernel takes 2 MiB with the environment
AMOUNT_MAX = 2**53  # of cpus, bytes, GPUs: whole numbers are exact in JSON up to here
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def check(submission: Submission, capacity: Resources, states: Mapping[int, str], cards: Sequence[Card] = ()) -> None:
    """Refuse what can't be done, with the numbers. states: of the jobs named in `after`, as far as they exist.
    cards: the GPUs that the box has, or had when they were last seen."""
    spec = submission.spec
    if spec.adopts or spec.gpu_uuids:
        raise BadRequest("adopts and gpu_uuids are set by the box itself", "`runner adopt PID` adopts a process")
    _check_command(spec)
    _check_amounts(spec)
    _check_names(spec)
    too_much = exceeds(spec.cpus, spec.memory_bytes, capacity)
    if too_much is not None:
        raise TooMuch(f"the job {too_much}", "ask for less; `runner box` shows what it has")
    _check_gpus(spec, cards)
    for after in spec.after:
        if after.job not in states:
            raise BadRequest(
                f"there is no job {after.job} to wait for",
                "a job waits only for jobs submitted before it, so no circle can form; `runner ps --all` lists them",
            )
        if states[after.job] in words.FINISHED and states[after.job] != words.SUCCEEDED and not after.any_end:
            raise BadRequest(
                f"job {after.job} has already ended as {states[after.job]}, so it can't succeed any more",
                f"`--after {after.job}:any` starts however it ended; `runner rerun {after.job}` tries it again",
            )


def _check_command(spec: JobSpec) -> None:
    if not spec.command or not spec.command[0]:
        raise BadRequest(
            "the command is empty", "name a script, or a command after `--`: `runner submit -- nvidia-smi`"
        )
    texts = [*spec.command, spec.name, spec.directory, spec.script or "", *spec.env, *spec.env.values()]
    if any("\0" in each for each in texts):
        raise BadRequest("the command holds a NUL character, which no program can be given")
    for text in texts:
        _check_text(text)
    length = sum(len(os.fsencode(word)) + 1 for word in spec.command)
    if length > ARGUMENTS_MAX:
        raise BadRequest(f"the command is {length} bytes long, {ARGUMENTS_MAX} are the most", "put it into a file")
    for path in (spec.directory, spec.script or ""):
        if path.startswith("/") or ".." in path.split("/"):
            raise BadRequest(f"{path!r} is not a path inside the project", "submit from inside the project")


def _check_text(text: str) -> None:
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise BadRequest(f"{text!r} is not text that a program can be given") from error


def _check_amounts(spec: JobSpec) -> None:
    for name, value, low, high in (
        ("cpus", spec.cpus, 1, AMOUNT_MAX),
        ("memory", spec.memory_bytes, 0, AMOUNT_MAX),
        ("gpus", spec.gpus, 0, AMOUNT_MAX),
        ("the GPU memory", spec.gpu_memory_bytes, 0, AMOUNT_MAX),
        ("priority", spec.priority, PRIORITY_MIN, PRIORITY_MAX),
        ("grace", spec.grace, 0, 86400),
        ("retries", spec.retries, 0, 1000),
    ):
        if not low <= value <= high:  # false for nan, too
            bounds = f"{low} or more" if high == AMOUNT_MAX and value < low else f"{low} to {high}"
            raise BadRequest(f"{name} is {value}; it takes {bounds}")
    if spec.time_limit is not None and not (math.isfinite(spec.time_limit) and spec.time_limit > 0):
        raise BadRequest(f"the time limit is {spec.time_limit} s; it takes more than 0", "as in --time-limit 2h30m")
    idle = spec.stop_if_idle
    if idle is not None and not (math.isfinite(idle) and idle >= IDLE_LEAST):
        raise BadRequest(f"stop_if_idle is {idle} s; it takes {IDLE_LEAST:.0f} or more", "as in --stop-if-idle 30m")


def _check_gpus(spec: JobSpec, cards: Sequence[Card]) -> None:
    if (spec.gpu_type or spec.gpu_memory_bytes) and not spec.gpus:
        spec.gpus = 1  # who says which, or how much of it, wants one
    if spec.exclusive and not spec.gpus:
        raise BadRequest("exclusive says how a job has its GPUs, and it asks for none", "add --gpus 1")
    if spec.stop_if_idle is not None and not spec.gpus:
        raise BadRequest(
            "stop_if_idle is about the job's GPUs, and it asks for none", "add --gpus 1, or use --time-limit"
        )
    if spec.gpu_ids not in ("uuid", "index"):
        raise BadRequest(f"there are no GPU ids of the kind {spec.gpu_ids!r}", "`uuid` or `index`")
    if len(spec.gpu_type) > NAME_MAX:
        raise BadRequest(f"the GPU's type is {len(spec.gpu_type)} characters long, {NAME_MAX} are the most")
    gone = placement.gone(spec.gpu_type, cards)
    if gone is not None:
        raise TooMuch(f"the job asks for {gone}", "`runner gpus` shows what there is")
    too_much = placement.exceeds(spec, cards)
    if too_much is not None:
        raise TooMuch(f"the job {too_much}", "ask for less; `runner gpus` shows what there is")


def _check_names(spec: JobSpec) -> None:
    if len(spec.name) > NAME_MAX:
        raise BadRequest(f"the name is {len(spec.name)} characters long, {NAME_MAX} are the most")
    if any("\ud800" <= letter <= "\udfff" for letter in spec.name):
        raise BadRequest(f"the name {spec.name!a} is not UTF-8")
    for reason in spec.retry_on:
        if reason not in words.RETRYABLE:
            known = ", ".join(words.RETRYABLE)
            close = nearest(reason, words.RETRYABLE)
            raise BadRequest(f"there is no reason {reason!r} to retry on{close}", f"one of {known}")
    for name in spec.env:
        if not _NAME.match(name):
            raise BadRequest(f"{name!r} is not a name for an environment variable")
        if RESERVED.match(name):
            raise BadRequest(f"{name} is set by the box itself", "see docs/jobs.md for what a job is given")
    for name in spec.secrets:
        check_name(name)
        if name in spec.env or spec.secrets.count(name) > 1:
            raise BadRequest(f"{name} is given twice", "by --secret or by --env, once")
    if spec.environment not in ("auto", "base") and conda.asked(spec.environment) is None:
        raise BadRequest(f"there is no environment {spec.environment!r}", "`auto`, `base` or `conda:NAME`")


def expand(submission: Submission) -> tuple[list[int | None], list[dict[str, str]]]:
    """The array index and the parameters of each job: every combination of the sweep, times every index."""
    indices: Sequence[int | None] = [None] if submission.array is None else submission.array
    axes = submission.sweep or {}
    jobs = len(indices) * math.prod(len(values) for values in axes.values())
    if jobs > SWEEP_LIMIT:
        raise BadRequest(f"this makes {jobs} jobs, {SWEEP_LIMIT} are the most at once", "split it into several submits")
    if jobs == 0:
        raise BadRequest("this makes no job at all", "an array takes 0-99 or 10, a sweep lr=1e-3,1e-4")
    for name, values in axes.items():
        if not _NAME.match(name):
            raise BadRequest(f"{name!r} can't be a parameter's name", "letters, digits and _, as in --sweep lr=0.1,0.2")
        for value in values:
            _check_text(value)
            if "\0" in value:
                raise BadRequest(f"a value of {name} holds a NUL character")
    for index in indices:
        if index is not None and not 0 <= index < 2**31:
            raise BadRequest(f"{index} can't be an array index", "0 or more, as in --array 0-99")
    if submission.array is not None and len(set(indices)) < len(indices):
        raise BadRequest("the array names an index twice")
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    pairs = [(index, params) for params in combinations for index in indices]
    if submission.array is None and axes:
        pairs = [(place, params) for place, (_, params) in enumerate(pairs)]
    return [index for index, _ in pairs], [params for _, params in pairs]


def command(words_of_command: Sequence[str], params: Mapping[str, str]) -> list[str]:
    """A job's own command: `{lr}` replaced by its value; parameters that are nowhere named are appended."""
    named = [name for name in params if any(f"{{{name}}}" in word for word in words_of_command)]
    appended = [f"--{name}={value}" for name, value in params.items() if name not in named]
    if not named:
        return [*words_of_command, *appended]
    # In one sweep: a value that itself looks like {another} stays as it is.
    marks = re.compile("{(" + "|".join(named) + ")}")
    return [marks.sub(lambda mark: params[mark[1]], word) for word in words_of_command] + appended
