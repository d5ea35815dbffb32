"""The tables. Their classes say what is in the file; everything else works with the Core tables below."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlmodel import Field, SQLModel


class Meta(SQLModel, table=True):
    __tablename__ = "meta"
    key: str = Field(primary_key=True)
    value: str


class SpecRow(SQLModel, table=True):
    """What was asked, once for all jobs of an array."""

    __tablename__ = "specs"
    id: int | None = Field(default=None, primary_key=True)
    body: str  # JSON of a JobSpec


class JobRow(SQLModel, table=True):
    """The columns that are asked for by themselves; the rest of what was asked is in the spec."""

    __tablename__ = "jobs"
    __table_args__ = {"sqlite_autoincrement": True}  # an id is never used again
    id: int | None = Field(default=None, primary_key=True)
    spec_id: int = Field(foreign_key="specs.id")
    state: str
    name: str
    user: str
    uid: int
    priority: int
    group_id: int | None = Field(default=None, index=True)
    array_index: int | None = None
    params: str = "{}"
    submitted_at: float
    held: bool = False
    cancel_requested_at: float | None = None
    not_before: float | None = None
    attempt: int = 0
    retries_used: int = 0
    misfires: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    detail: str = ""
    environment: str | None = None
    snapshot: str | None = Field(default=None, index=True)
    fetched_at: float | None = None
    outputs_removed_at: float | None = None
    allotted: str = "[]"  # JSON: UUIDs of the GPUs of its current or last attempt; [] while it is queued
    gpu_floor_bytes: int | None = None
    gpu_peak_bytes: int | None = None
    expected_seconds: float | None = None
    program: str = ""  # names what it runs, so that past runs of the same are found; empty: nothing


class AttemptRow(SQLModel, table=True):
    __tablename__ = "attempts"
    job_id: int = Field(primary_key=True, foreign_key="jobs.id")
    number: int = Field(primary_key=True)
    state: str
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    detail: str = ""
    allotted: str = "[]"
    gpu_peak_bytes: int | None = None


class KeyRow(SQLModel, table=True):
    """An idempotency key and what it made, so that a repeated request is answered, not repeated."""

    __tablename__ = "keys"
    uid: int = Field(primary_key=True)
    key: str = Field(primary_key=True)
    digest: str
    first_id: int
    count: int
    group_id: int | None = None
    created_at: float


class GpuRow(SQLModel, table=True):
    """A GPU that was seen once, there now or not. `drained` is a wish, `stuck` a fact; both outlive the daemon."""

    __tablename__ = "gpus"
    uuid: str = Field(primary_key=True)
    name: str
    bus_id: str
    memory_bytes: int | None = None
    unified: bool = False
    drained: bool = False
    first_seen_at: float
    last_seen_at: float
    stuck: str | None = None  # JSON of a Stuck


class TokenRow(SQLModel, table=True):
    """A token, without its secret: only the SHA-256 of that is kept."""

    __tablename__ = "tokens"
    id: str = Field(primary_key=True)
    digest: str  # hex
    scope: str
    label: str
    user: str
    uid: int
    created_at: float
    expires_at: float | None = None
    used_at: float | None = None
    revoked_at: float | None = None
    parent: str = ""


class UseRow(SQLModel, table=True):
    """What an attempt used of a GPU: sums up to `until`, with the driver's counters of that moment."""

    __tablename__ = "uses"
    job_id: int = Field(primary_key=True, foreign_key="jobs.id")
    attempt: int = Field(primary_key=True)
    gpu: str = Field(primary_key=True)
    since: float
    until: float
    seen_seconds: float
    unseen_seconds: float
    measured_seconds: float
    busy_seconds: float
    idle_seconds: float
    peak_bytes: int | None = None
    energy_joules: float | None = None
    uncounted_seconds: float
    cost: float | None = None
    currency: str
    hottest_celsius: float | None = None
    heat_seconds: float
    brake_seconds: float
    capped_seconds: float
    xids: str  # JSON: code -> how often
    shared: bool
    counted: str  # JSON of a Count, while the attempt goes on; empty: none


class NoticeRow(SQLModel, table=True):
    __tablename__ = "notices"
    __table_args__ = {"sqlite_autoincrement": True}
    id: int | None = Field(default=None, primary_key=True)
    at: float
    kind: str
    severity: str
    text: str
    hint: str
    gpu: str | None = None
    job: int | None = None
    code: int | None = None
    seen_at: float | None = None


JOBS = JobRow.__table__  # type: ignore[attr-defined]
ATTEMPTS = AttemptRow.__table__  # type: ignore[attr-defined]
SPECS = SpecRow.__table__  # type: ignore[attr-defined]
KEYS = KeyRow.__table__  # type: ignore[attr-defined]
META = Meta.__table__  # type: ignore[attr-defined]
GPUS = GpuRow.__table__  # type: ignore[attr-defined]
TOKENS = TokenRow.__table__  # type: ignore[attr-defined]
USES = UseRow.__table__  # type: ignore[attr-defined]
NOTICES = NoticeRow.__table__  # type: ignore[attr-defined]
INDEXES = (
    "CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (state, ended_at, id)",
    # Of ended jobs alone: neither a submit nor a start has it to write.
    "CREATE INDEX IF NOT EXISTS jobs_by_program ON jobs (program, ended_at) "
    "WHERE program <> '' AND ended_at IS NOT NULL",
)


def make(connection: Connection) -> None:
    """Whatever is not there yet."""
    SQLModel.metadata.create_all(connection)
    for index in INDEXES:
        connection.exec_driver_sql(index)
