"""Every file and socket, named once. Plain strings: pathlib would cost each command several milliseconds."""

from __future__ import annotations

import os

SOCKET_PATH_MAX = 100  # sun_path holds 108 bytes; some kernels and tools count the NUL
RUN = "/run/gpubox"  # of a provisioned box: there as soon as its daemon ever began; its group may enter
API_SOCKET = f"{RUN}/api.sock"
LAUNCHER_SOCKET = "/run/gpubox-launcher.sock"  # of a provisioned box: for its daemon alone
COLLECTOR_SOCKET = "/run/gpubox-collector.sock"  # likewise
MEMBERS, ADMINS = "gpubox", "gpubox-admin"  # groups: who submits, who may do everything
LAUNCHER_CONFIG = "/etc/gpubox/launcher.toml"  # root's


class AttemptDir(str):
    """`jobs/<id>/<attempt>/`: what one try of one job left behind. The attempt number is the fencing token."""

    @property
    def spec(self) -> str:
        return f"{self}/spec"  # immutable: what to run

    @property
    def lock(self) -> str:
        return f"{self}/lock"  # flock held by the supervisor for life, and by its child until exec

    @property
    def log(self) -> str:
        return f"{self}/log"  # written by the job itself


class JobDir(str):
    """`jobs/<id>/`: what belongs to the job over all its attempts."""

    @property
    def out(self) -> str:
        return f"{self}/out"  # RUNNER_OUT

    @property
    def checkpoint(self) -> str:
        return f"{self}/checkpoint"  # RUNNER_CHECKPOINT

    def attempt(self, number: int) -> AttemptDir:
        return AttemptDir(f"{self}/{number}")


class StateDir(str):
    """The box's state: `$XDG_STATE_HOME/gpubox` when embedded, /var/lib/gpubox when provisioned."""

    @property
    def database(self) -> str:
        return f"{self}/runner.db"

    @property
    def metrics(self) -> str:
        return f"{self}/metrics.db"  # what GPUs and host did: it may be deleted at any time

    @property
    def choices(self) -> str:
        return f"{self}/settings.json"  # what the owner set while the daemon ran

    @property
    def gpu_jobs(self) -> str:
        return f"{self}/gpu-jobs"  # <index of a GPU>: the ids of the jobs that have it, for dcgm-exporter

    @property
    def daemon_lock(self) -> str:
        return f"{self}/daemon.lock"

    @property
    def daemon_log(self) -> str:
        return f"{self}/daemon.log"

    @property
    def events(self) -> str:
        return f"{self}/events.sock"  # supervisors hint here that something changed

    @property
    def certificate(self) -> str:
        return f"{self}/certificate"  # a folder; the box's own key and certificate are in it

    @property
    def ballast(self) -> str:
        return f"{self}/ballast"  # given up on a full disk so that ends can be recorded

    @property
    def jobs(self) -> str:
        return f"{self}/jobs"

    @property
    def quarantine(self) -> str:
        return f"{self}/quarantine"  # attempt directories without a row: kept, reported, never run

    @property
    def blobs(self) -> str:
        return f"{self}/blobs"  # file contents by sha256; a manifest is one of them

    @property
    def data_sets(self) -> str:
        return f"{self}/data-sets"  # unless a setting puts them elsewhere: contents, versions, names, views

    @property
    def trees(self) -> str:
        return f"{self}/trees"  # trees/<job id>: the work tree of a job about to run or running

    @property
    def envs(self) -> str:
        return f"{self}/envs"

    @property
    def builds(self) -> str:
        return f"{self}/builds"  # builds/<environment>: its build as an attempt, on a provisioned box

    @property
    def secrets(self) -> str:
        return f"{self}/secrets"  # <uid>/<NAME>, of an embedded box; on a provisioned one they are root's, elsewhere

    @property
    def supervisor(self) -> str:
        return f"{self}/supervisor"  # <sha256>.pyz: frozen copies of the supervisor

    @property
    def projects(self) -> str:
        return f"{self}/projects"  # the laptop's: <box>, the folders from which jobs were submitted to it

    @property
    def awaited(self) -> str:
        return f"{self}/awaited"  # the laptop's: <box>:<job>, whose outputs have not come home

    def job(self, job_id: int) -> JobDir:
        return JobDir(f"{self.jobs}/{job_id}")

    def tree(self, job_id: int) -> str:
        return f"{self.trees}/{job_id}"


def _xdg(variable: str, default: str) -> str:
    value = os.environ.get(variable, "")
    return value if value.startswith("/") else os.path.join(os.path.expanduser("~"), default)


def state_dir() -> StateDir:
    """The embedded box's state directory: GPUBOX_STATE, else `$XDG_STATE_HOME/gpubox`."""
    return StateDir(os.environ.get("GPUBOX_STATE") or os.path.join(_xdg("XDG_STATE_HOME", ".local/state"), "gpubox"))


def demo_dir() -> StateDir:
    """The state of `runner serve --demo`, beside the real one whatever GPUBOX_STATE says."""
    return StateDir(os.path.join(_xdg("XDG_STATE_HOME", ".local/state"), "gpubox-demo"))


def config_dir() -> str:
    """The laptop's and the embedded box's settings: `$XDG_CONFIG_HOME/gpubox`."""
    return os.environ.get("GPUBOX_CONFIG") or os.path.join(_xdg("XDG_CONFIG_HOME", ".config"), "gpubox")


def cache_dir() -> str:
    """Indexes of snapshots; losing it costs one full hashing."""
    return os.path.join(_xdg("XDG_CACHE_HOME", ".cache"), "gpubox")


def api_socket(state: str) -> str:
    """The API's unix socket of a state directory: GPUBOX_SOCKET, else `socket_of`."""
    return os.environ.get("GPUBOX_SOCKET") or socket_of(state)


def socket_of(state: str) -> str:
    """In the state directory, or where that path is too long for a socket, in the runtime directory under a name made
    from the state's path."""
    inside = f"{state}/api.sock"
    if len(os.fsencode(inside)) < SOCKET_PATH_MAX:
        return inside
    tag = f"{_checksum(os.fsencode(os.path.abspath(state))):016x}"
    return f"{runtime_dir()}/{tag}.sock"


def tunnel_socket(of: str) -> str:
    """Where the keeper of a tunnel listens; of: what tells this tunnel from all others."""
    tag = _checksum(os.fsencode(config_dir() + "\0" + of))
    return f"{runtime_dir()}/tunnel-{tag:016x}.sock"


def runtime_dir() -> str:
    """For sockets: of this user alone, short, and gone with the session where the system has such a place."""
    return f"{os.environ.get('XDG_RUNTIME_DIR') or f'/tmp/gpubox-{os.getuid()}'}/gpubox"


def _checksum(data: bytes) -> int:
    value = 0xCBF29CE484222325  # FNV-1a: a name, not a secret, and no import
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value
