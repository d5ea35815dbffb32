"""Runs in the peers' interpreter, as huey's consumer and as a client that waits when it submits more than one job."""

import os
import subprocess
import sys
import time

from huey import SqliteHuey  # type: ignore[import-not-found]

queue = SqliteHuey(filename=os.environ["HUEY_FILE"], fsync=True)
run = queue.task()(subprocess.call)


def main() -> None:
    times, command = int(sys.argv[1]), sys.argv[2:]
    began = time.perf_counter()
    results = [run(command) for _ in range(times)]
    for result in results if times > 1 else []:
        result.get(blocking=True, max_delay=0.02, preserve=True)
    sys.stdout.write(f"{time.perf_counter() - began}\n")
