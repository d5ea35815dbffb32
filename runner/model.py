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
    environment: str = "auto"  # auto | base | conda:<name>
    cpus: int = 1
    memory_bytes: int = 0  # 0: not declared
    gpus: int = 0
    gpu_type: str = ""  # words of the model's name ("3090"), or the start of a UUID; empty: any
    gpu_memory_bytes: int = 0  # on each GPU; others may share it. 0: each GPU for this job alone
    exclusive: bool = False  # each GPU for this job alone, also with gpu_memory_bytes
    gpu_ids: str = "uuid"  # uuid | index: what CUDA_VISIBLE_DEVICES holds
    priority: int = 0
    time_limit: float | None = None
    stop_if_idle: float | None = None  # it is ended when all its GPUs were idle so long
    grace: float = 30.0  # between TERM and KILL
    retries: int = 0
    retry_on: list[str] = field(default_factory=list)  # reasons; empty: any that a retry can change
    requeue: bool = False  # start again after a reboot
    after: list[After] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)  # names; their values are kept apart, and put in at the start
    adopts: list[int] = field(default_factory=list)  # [pid, its start in clock ticks]: not ours, only watched
    gpu_uuids: list[str] = field(default_factory=list)  # with adopts: the GPUs that it holds already


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
    allotted: list[str] = field(default_factory=list)  # UUIDs of the GPUs that it was given
    gpu_peak_bytes: int | None = None  # the most memory that it was seen to hold on one GPU


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
    gpu_type: str = ""
    gpu_memory_bytes: int = 0
    exclusive: bool = False
    allotted: list[str] = field(default_factory=list)  # UUIDs of the GPUs of its current or last attempt
    gpu_floor_bytes: int | None = None  # an attempt ran out of GPU memory: next alone, on a card with more than this
    gpu_peak_bytes: int | None = None  # the most that its last attempt was seen to hold on one GPU
    adopts: list[int] = field(default_factory=list)
    gpu_uuids: list[str] = field(default_factory=list)
    time_limit: float | None = None
    stop_if_idle: float | None = None
    expected_seconds: float | None = None  # how long it is likely to run, from past runs of the same program
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

    @property
    def shares(self) -> bool:
        """Whether others may use its GPUs beside it, within the memory that each said it needs."""
        return self.gpu_memory_bytes > 0 and not self.exclusive and self.gpu_floor_bytes is None


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
    stuck: tuple[tuple[int, int], ...] = ()  # (pid, start in clock ticks) of processes that would not die


@dataclass(slots=True, frozen=True)
class Evidence:
    """What the disk says about one attempt."""

    exit: Exit | None
    started_at: float | None  # None: no `started` record
    alive: bool  # somebody holds the attempt's lock
    rebooted: bool = False  # its `started` was written in another boot of the box
    abandoned: bool = False
    missing: bool = False  # the attempt's directory is gone
    supervisor: int | None = None  # its process id, as the `started` record says


@dataclass(slots=True)
class Process:
    """A process that holds a GPU, as the driver lists it and /proc describes it."""

    pid: int
    started: int  # clock ticks from boot to its start (0: not known); with the pid it names a process for ever
    memory_bytes: int | None = None  # on this GPU; None: the driver does not say
    kind: str = "compute"  # compute | graphics | both
    alive: bool = True  # False: the driver lists it, /proc does not: it died, or lives in another pid namespace
    user: str = ""
    command: str = ""
    launch: str | None = None  # of its cgroup (`job/attempt`), else RUNNER_LAUNCH_ID of it or its nearest ancestor
    ancestors: list[int] = field(default_factory=list)  # parent first
    job: int | None = None  # the job that it belongs to; None: foreign
    utilization: float | None = None  # 0..1: of the last seconds that it kept this GPU busy; None: the driver is silent


@dataclass(slots=True)
class Sample:
    """One reading of one GPU. None is absent (`Gpu.absent` says why); 0 is zero."""

    at: float
    memory_used_bytes: int | None = None
    utilization: float | None = None  # 0..1: share of the driver's last window in which a kernel was resident
    memory_utilization: float | None = None  # 0..1: share of that in which memory was read or written; not occupancy
    power_watts: float | None = None
    temperature_celsius: float | None = None
    sm_clock_hertz: float | None = None
    throttled_by: list[str] | None = None  # hw_thermal, sw_thermal, power_brake, power_cap, ...; [] is none
    fan: float | None = None  # 0..1 of its highest speed
    performance_state: int | None = None  # 0 (fastest) .. 15
    memory_clock_hertz: float | None = None
    energy_joules: float | None = None  # since the driver was loaded: it falls when the driver is loaded again
    throttled_seconds: dict[str, float] | None = None  # reason -> since the driver was loaded
    memory_temperature_celsius: float | None = None
    power_limit_watts: float | None = None
    power_limit_default_watts: float | None = None
    slowdown_celsius: float | None = None  # from here on the card slows itself down
    shutdown_celsius: float | None = None
    pcie_generation: int | None = None  # now: it drops while the card idles
    pcie_width: int | None = None
    pcie_generation_most: int | None = None  # that card and slot can do together
    pcie_width_most: int | None = None
    remap_pending: bool | None = None  # a damaged piece of its memory leaves use with the next reset
    remap_failed: bool | None = None
    ecc_errors: int | None = None  # uncorrected, since the driver was loaded
    recovery: str | None = None  # what the driver says is needed: none | reset | reboot | drain | ...
    persistence: bool | None = None


@dataclass(slots=True)
class Gpu:
    """One GPU of the box, seen by the queue. Known by its UUID for ever; the index may change with each boot."""

    uuid: str
    name: str
    index: int | None = None  # None: not there now
    bus_id: str = ""  # of PCI, 00000000:01:00.0
    memory_bytes: int | None = None  # without what the driver keeps for itself; None: not known
    unified: bool = False  # its memory is the host's (GB10)
    state: str = words.UNKNOWN  # of words.GPU_STATES
    why: str = ""  # the state in a sentence: who holds it, since when it is missing
    drained: bool = False
    jobs: list[int] = field(default_factory=list)  # that have it now
    declared_bytes: int = 0  # by the jobs that share it
    foreign_bytes: int = 0  # used by others than those jobs
    sample: Sample | None = None
    absent: dict[str, str] = field(default_factory=dict)  # field of Sample -> why it is None
    processes: list[Process] = field(default_factory=list)


@dataclass(slots=True)
class Use:
    """What one attempt used of one GPU. Its averages are of what was measured; what nobody saw is told as such."""

    job: int
    attempt: int
    gpu: str  # UUID
    since: float
    until: float  # up to here it is counted; seen and unseen seconds are all of the time between
    seen_seconds: float = 0.0
    unseen_seconds: float = 0.0  # nobody looked: the daemon or the driver was away
    measured_seconds: float = 0.0  # of those seen, how busy it was is known
    busy_seconds: float = 0.0  # utilization, times these seconds
    idle_seconds: float = 0.0  # of these, with less than 5 % to do
    peak_bytes: int | None = None  # the most memory that it was seen to hold on it
    energy_joules: float | None = None
    uncounted_seconds: float = 0.0  # seconds whose energy is not known, and not in the sum
    cost: float | None = None  # by the tariff of the time; None: there was none
    currency: str = ""
    hottest_celsius: float | None = None
    heat_seconds: float = 0.0  # held back because it was too hot
    brake_seconds: float = 0.0  # held back because the power supply asked for it
    capped_seconds: float = 0.0  # at its power limit, as a busy GPU should be
    xids: dict[str, int] = field(default_factory=dict)  # code -> how often the driver laid it to this job
    shared: bool = False  # others had the GPU, too: energy and work are a guess by what each did


@dataclass(slots=True)
class Notice:
    """Something happened that its owner should know; told once."""

    id: int
    at: float
    kind: str  # xid | gpu_lost | idle | stalled | memory_creep | hot | disk | ...
    severity: str  # critical | warning | job | info
    text: str
    hint: str = ""
    gpu: str | None = None  # UUID
    job: int | None = None
    code: int | None = None  # of an Xid
    seen_at: float | None = None  # somebody said that they know


@dataclass(slots=True)
class Event:
    """Something changed: what the event stream carries."""

    seq: int
    kind: str  # job | environment | box | notice
    id: int | str
    state: str
    at: float


@dataclass(slots=True, frozen=True)
class Principal:
    """Who asks, as the kernel (or a token) says."""

    uid: int
    user: str
    role: str  # read | submit | admin
    token: str = ""  # the id of the token that says so; empty: the kernel
    share: str = ""  # the id of the link that they came by: they see no log, file, argument or setting


@dataclass(slots=True)
class Token:
    """A key to the box for one laptop or program. Its secret is known to whom it was given, and to nobody else."""

    id: str
    scope: str  # read | submit | admin: the most that it may; never more than its owner may at that moment
    label: str
    user: str  # its owner, as whom it acts
    uid: int
    created_at: float
    expires_at: float | None = None
    used_at: float | None = None  # some minutes behind
    revoked_at: float | None = None
    parent: str = ""  # the token with which it was made, and together with which it is revoked
