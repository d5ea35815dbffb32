"""What a supervisor is handed to start a job: command, folder, environment variables, limits."""

from __future__ import annotations

import functools
import os
import pwd
from collections.abc import Mapping
from typing import Any

from runner.box.engines import Launch
from runner.box.envs import conda
from runner.box.settings import Settings
from runner.box.submissions import command
from runner.job.processes import LAUNCH_VARIABLE
from runner.model import Job, JobSpec

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
# What is downloaded once for all jobs -> its folder below the setting `caches`.
CACHES = {
    "HF_HOME": "huggingface", "TORCH_HOME": "torch", "PIP_CACHE_DIR": "pip", "UV_CACHE_DIR": "uv",
    "CONDA_PKGS_DIRS": "conda",
}  # fmt: skip
PASSED_ON = (
    "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT",
    "PIP_INDEX_URL", "UV_DEFAULT_INDEX", *CACHES,
)  # fmt: skip


def launch_id(box_id: str, job: int, attempt: int) -> str:
    """Names one attempt of one job of one box, for ever."""
    return f"{box_id}-{job}-{attempt}"


def launch(
    job: Job, spec: JobSpec, settings: Settings, box_id: str, bin_dir: str, gpus: str = "", data: str = ""
) -> Launch:
    """The launch of the job's current attempt.

    bin_dir: where its environment's `python` is, put first on PATH. gpus: its CUDA_VISIBLE_DEVICES. data: its
    RUNNER_DATA, where that is not simply the folder that all share.
    """
    ours = launch_id(box_id, job.id, job.attempt)
    folder = settings.state.job(job.id)
    work = os.path.join(settings.state.tree(job.id), spec.directory) if job.snapshot else folder.out
    return Launch(
        key=(job.id, job.attempt),
        launch_id=ours,
        spec={
            "argv": conda.activated(os.path.dirname(bin_dir), command(spec.command, job.params)),
            "directory": work.rstrip("/"),
            "env": variables(job, spec, settings, ours, bin_dir, data) | {"CUDA_VISIBLE_DEVICES": gpus},
            "time_limit": spec.time_limit,
            "grace": spec.grace,
            "kill_seconds": settings.kill_seconds,
            "log_head_bytes": settings.log_head_bytes,
            "log_tail_bytes": settings.log_tail_bytes,
            "events": settings.state.events,
            # Names, and whose; the values are not the daemon's to know.
            "secrets": spec.secrets,
            "uid": job.uid,
            "vault": f"{settings.state.secrets}/{job.uid}",
            # For a unit's limits, where the engine has units:
            "cpus": spec.cpus,
            "memory_bytes": spec.memory_bytes,
            "gpus": list(job.allotted),
        },
    )


def variables(job: Job, spec: JobSpec, settings: Settings, ours: str, bin_dir: str, data: str = "") -> dict[str, str]:
    """The whole environment of a job: little of the box's own, what was asked for, and RUNNER_*."""
    name, home, shell = _user()
    folder = settings.state.job(job.id)
    made = {
        "HOME": os.environ.get("HOME", home),
        "USER": name,
        "LOGNAME": name,
        "SHELL": shell,
        "LANG": "C.UTF-8",
        "PATH": f"{bin_dir}:{SYSTEM_PATH}",
        "PYTHONUNBUFFERED": "1",
    }
    made |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if os.path.exists(f"{os.path.dirname(bin_dir)}/pyvenv.cfg"):
        made["VIRTUAL_ENV"] = os.path.dirname(bin_dir)
    made |= conda.variables(os.path.dirname(bin_dir))
    made |= spec.env
    made |= {
        "RUNNER_JOB_ID": str(job.id),
        "RUNNER_ATTEMPT": str(job.attempt),
        "RUNNER_OUT": folder.out,
        "RUNNER_CHECKPOINT": folder.checkpoint,
        "RUNNER_DATA": data or settings.data,
        LAUNCH_VARIABLE: ours,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    if job.array_index is not None:
        made["RUNNER_ARRAY_INDEX"] = str(job.array_index)
    return made | {f"RUNNER_PARAM_{name}": value for name, value in job.params.items()}


def caches(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that put what jobs and builds download where the settings say; one's own value holds."""
    where = settings.caches
    return {name: f"{where}/{below}" for name, below in CACHES.items() if where and not environ.get(name)}


def surroundings(
    job: Job, spec: JobSpec, settings: Settings, box_id: str, bin_dir: str, gpus: str, data: str = ""
) -> tuple[dict[str, str], str]:
    """(variables, folder) for who wants to look around in a job's environment as themselves: without what says who the
    job is, without its secrets, and without the name by which it is found and ended."""
    made: Any = launch(job, spec, settings, box_id, bin_dir, gpus, data).spec
    left_out = ("HOME", "USER", "LOGNAME", "SHELL", LAUNCH_VARIABLE)
    folder = made["directory"] if os.path.isdir(made["directory"]) else settings.state.job(job.id).out
    return {name: value for name, value in made["env"].items() if name not in left_out}, folder


@functools.cache
def _user() -> tuple[str, str, str]:
    """Name, home and shell of who we are; in a container that may be a number without an entry."""
    try:
        user = pwd.getpwuid(os.getuid())
    except KeyError:
        return str(os.getuid()), "/", "/bin/sh"
    return user.pw_name, user.pw_dir, user.pw_shell or "/bin/sh"
