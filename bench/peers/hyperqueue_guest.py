"""Runs in the peers' interpreter. FOLDER: HyperQueue's server and a worker of two cores, until they are ended.
FOLDER CPUS TIMES COMMAND: a client that submits one job of so many tasks, and waits when it is more than one."""

import signal
import sys
import time

from hyperqueue.client import Client  # type: ignore[import-not-found]
from hyperqueue.job import Job  # type: ignore[import-not-found]
from hyperqueue.task.task import ResourceRequest  # type: ignore[import-not-found]

folder, *rest = sys.argv[1:]
if not rest:
    from hyperqueue.cluster import LocalCluster, WorkerConfig  # type: ignore[import-not-found]

    kept = LocalCluster(folder, WorkerConfig(cores=2))
    open(f"{folder}/ready", "w").close()
    signal.pause()
cpus, times, *command = rest
client, job = Client(folder), Job()
for _ in range(int(times)):
    job.program(command, stdout=None, stderr=None, resources=ResourceRequest(cpus=cpus))
began = time.perf_counter()
submitted = client.submit(job)
if int(times) > 1:
    client.wait_for_jobs([submitted])
sys.stdout.write(f"{time.perf_counter() - began}\n")
