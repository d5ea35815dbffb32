"""Slurm from Debian: munge, controller and one node on 127.0.0.1, its scheduler set to look as often as it can."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bench.common import Figure
from bench.dispatch import JOBS
from bench.peers.ground import Absent, Ground, until

MANY = 100
MUNGE = "--key-file={0}/key --socket={0}/munge --pid-file={0}/pid --log-file={0}/munge.log --seed-file={0}/seed"
SLURM = """\
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1,default_queue_depth=1000
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes={host} Default=YES
"""


def measure(ground: Ground) -> list[Figure]:
    if shutil.which("slurmctld", path=ground.env["PATH"]) is None:
        raise Absent("apt install slurm-wlm")
    if os.geteuid() != 0:
        raise Absent("its node runs jobs as root only")
    ground = replace(ground, env={**ground.env, "SLURM_CONF": _configure(ground.folder)})
    with _cluster(ground):
        submit = ground.submit("sbatch", "--hold", *_job(["true"]))  # the submit alone: nothing runs beside it
        ground.said("scancel", "--user=root")
        gap = ground.gap(lambda job: _finish(ground, JOBS * [["--exclusive", *_job(job)]]))
        taken = _finish(ground, [[f"--array=1-{MANY}", *_job(["true"])]])
        rate = ground.rate(MANY, taken, "one array, its state saved a little later")
        return [submit, *gap, rate]


def _job(command: list[str]) -> list[str]:
    return ["--quiet", "--ntasks=1", "--output=/dev/null", "--wrap", " ".join(["exec", *command])]


def _finish(ground: Ground, submits: list[list[str]]) -> float:
    began = time.perf_counter()
    for submit in submits:
        ground.run("sbatch", *submit)
    until(lambda: not ground.said("squeue", "--noheader"), "Slurm's jobs", pause=0.25)
    return time.perf_counter() - began


def _configure(folder: str) -> str:
    for name in ("state", "spool"):
        os.mkdir(f"{folder}/{name}")
    with open(os.open(f"{folder}/key", os.O_CREAT | os.O_WRONLY, 0o600), "wb") as key:
        key.write(os.urandom(128))
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [free.getsockname()[1] for free in (one, other)]
    with open(f"{folder}/slurm.conf", "w") as file:
        file.write(SLURM.format(host=socket.gethostname().partition(".")[0], folder=folder, ports=ports))
    return file.name


@contextmanager
def _cluster(ground: Ground) -> Iterator[None]:
    with ground.server("munged", "--foreground", *MUNGE.format(ground.folder).split()):
        until(lambda: os.path.exists(f"{ground.folder}/munge"), "munge's socket")
        with ground.server("slurmctld", "-D"), ground.server("slurmd", "-D"):
            until(lambda: "idle" in ground.said("sinfo", "--noheader"), "Slurm's node")
            yield
