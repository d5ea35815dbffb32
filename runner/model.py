"""The values of the house and the schema of the API: what is asked (JobSpec), what became of it (Job, Attempt).

Standard library only. The box builds and validates them; the CLI sees them as JSON and imports this for types alone,
because `dataclasses` costs it 8 ms. Units are in the names; times are UTC epoch seconds, sizes bytes, limits seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from runner import words

SWEEP_LIMIT = 10_000  # jobs in one array or sweep
PRIORITY_MIN, PRIORITY_MAX = -1000, 1000


@dataclass(slots=True, frozen=True)
class After:
    """Wait for a job: until it succeeded, or (any_end) until it ended anyhow."""

    job: int
    any_end: bool = False


@dataclass(slots=True)
class JobSpec:
    """What a person asked for. One spec serves all jobs of an array."""

    command: list[str]  # argv as the job sees it; `python` is the environment's
    name: str = ""
    script: str | None = None  # the script's path in the snapshot; its header may declare the environment
    directory: str = ""  # where to run, relative to the project's root
    project: str = ""  # the project's root on the computer that submitted
    snapshot: str | None = None  # sha256 of the manifest; None: no files
    environment: str = "auto"  # auto | base
    cpus: int = 1
    memory_bytes: int = 0  # 0: not declared
    gpus: int = 0
    priority: int = 0
    time_limit: float | None = None
    grace: float = 30.0  # between TERM and KILL
    retries: int = 0
    retry_on: list[str] = field(default_factory=list)  # reasons; empty: any that a retry can change
    requeue: bool = False  # start again after a reboot
    after: list[After] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Submission:
    """The body of POST /jobs: a spec, once, `array` times (indices) or once per set of sweep parameters."""

    spec: JobSpec
    array: list[int] | None = None
    sweep: dict[str, list[str]] | None = None  # name -> values; every combination becomes a job
    held: bool = False


@dataclass(slots=True)
class Submitted:
    """The answer to POST /jobs. Ids are consecutive: first .. first + count - 1."""

    id: int
    count: int
    group: str | None
    state: str
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Attempt:
    """One start of a job."""

    number: int
    state: str
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    detail: str = ""  # the sentence, or the line of the log, that shows the reason


@dataclass(slots=True)
class Job:
    """A job as the queue knows it: facts in `state`, wishes in `held` and `cancel_requested_at`."""

    id: int
    state: str
    name: str
    command: list[str]
    user: str
    uid: int
    submitted_at: float
    priority: int = 0
    cpus: int = 1
    memory_bytes: int = 0
    gpus: int = 0
    time_limit: float | None = None
    grace: float = 30.0
    group: str | None = None
    array_index: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    held: bool = False
    cancel_requested_at: float | None = None
    not_before: float | None = None  # a retry's pause
    attempt: int = 0  # 0: never started
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    detail: str = ""
    why: str = ""  # why it waits, in words; only while it waits
    environment: str | None = None  # id of its environment
    snapshot: str | None = None
    project: str = ""
    after: list[After] = field(default_factory=list)
    requeue: bool = False
    retries: int = 0
    retries_used: int = 0
    misfires: int = 0  # attempts in a row that never came to run
    script: str | None = None
    directory: str = ""
    fetched_at: float | None = None  # its outputs were brought home
    outputs_removed_at: float | None = None
    spec_id: int = 0

    @property
    def finished(self) -> bool:
        return self.state in words.FINISHED


@dataclass(slots=True, frozen=True)
class Resources:
    """What a box has, or what a job asks for."""

    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(slots=True, frozen=True)
class Exit:
    """The durable end of an attempt, as its supervisor (or the daemon in its place) wrote it."""

    reason: str | None  # None: exit code 0
    exit_code: int | None
    signal: int | None
    detail: str
    ended_at: float
    started: bool  # the command was executed
    started_at: float | None = None


@dataclass(slots=True, frozen=True)
class Evidence:
    """What the disk says about one attempt."""

    exit: Exit | None
    started_at: float | None  # None: no `started` record
    alive: bool  # somebody holds the attempt's lock
    rebooted: bool = False  # its `started` was written in another boot of the box
    abandoned: bool = False
    missing: bool = False  # the attempt's directory is gone


@dataclass(slots=True)
class Event:
    """Something changed: what the event stream carries."""

    seq: int
    kind: str  # job | environment | box
    id: int | str
    state: str
    at: float


@dataclass(slots=True, frozen=True)
class Principal:
    """Who asks, as the kernel (or a token) says."""

    uid: int
    user: str
    role: str  # read | submit | admin
