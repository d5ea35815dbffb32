"""What only a kernel of its own can hold: memory, devices, reboots, a power cut; on a box that setup.yml made.

The processor is emulated: an hour of patience stands in for minutes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import hosts
import pytest
from bed import vm
from bed.runs import Run
from test_playbooks import Owner
from tools import wait_until

pytestmark = [pytest.mark.box, pytest.mark.slow]
PATIENCE = 120.0
DROP_INS = "/etc/systemd/system/gpubox.service.d"
SEVERAL = "[Service]\nEnvironment=GPUBOX_CPUS=4"  # of its one, so that jobs run beside each other


@pytest.fixture(scope="module")
def owner(bed_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    hosts._need(vm.TOOLS)
    with closing(vm.Machine(bed_run)) as machine:
        made = Owner(machine, tmp_path_factory.mktemp("owner"))
        made.setup()
        machine.run(f"mkdir -p {DROP_INS}; echo {shlex.quote(SEVERAL)} >{DROP_INS}/cpus.conf")
        machine.run("systemctl daemon-reload; systemctl restart gpubox")
        wait_until(lambda: machine.ssh("runner ps").returncode == 0, PATIENCE)
        yield made


def submit(owner: Owner, *words: str) -> int:
    """A command, as root, in the environment of the box; the number of its job."""
    return int(owner.host.run(f"cd /root; runner submit -d --no-files --base {shlex.join(words)}").split()[-1])


def shown(owner: Owner, job: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(owner.host.run(f"runner show {job} --json"))
    return found


def until(owner: Owner, job: int, *states: str) -> dict[str, Any]:
    wait_until(lambda: shown(owner, job)["job"]["state"] in states, PATIENCE)
    return shown(owner, job)


def test_a_job_that_takes_more_than_its_memory_is_ended_and_no_other(owner: Owner) -> None:
    beside = submit(owner, "--", "sleep", "1000")
    until(owner, beside, "running")
    daemon = owner.host.run("systemctl show --property=MainPID gpubox")
    hungry = submit(owner, "--mem", "100M", "--", "python3", "-c", "a = b'x' * (400 << 20)")
    found = until(owner, hungry, "out_of_memory", "failed", "succeeded")
    assert (found["job"]["state"], found["job"]["reason"]) == ("out_of_memory", "host_out_of_memory")
    assert owner.host.run("systemctl show --property=MainPID gpubox") == daemon
    killed = submit(owner, "--", "sh", "-c", "kill -9 $$")
    assert until(owner, killed, "failed", "out_of_memory")["job"]["reason"] == "signal", "its own doing"
    fits = submit(owner, "--mem", "600M", "--", "python3", "-c", "a = b'x' * (400 << 20)")
    assert until(owner, fits, "succeeded", "failed", "out_of_memory")["job"]["state"] == "succeeded"
    assert shown(owner, beside)["job"]["state"] == "running"
    owner.host.run(f"runner cancel {beside}")


def test_a_job_reaches_no_device_that_it_was_not_given(owner: Owner) -> None:
    """A loop device's control stands in for a GPU: all may open it but who is kept from it by the unit."""
    owner.host.run("modprobe loop; rm -f /dev/nvidia0; mknod -m 666 /dev/nvidia0 c 10 237")
    reads = "import os; os.open('/dev/null', os.O_RDWR); os.open('/dev/nvidia0', os.O_RDWR)"
    owner.host.run(f"setpriv --reuid=gpubox-job --regid=gpubox-job --init-groups python3 -c {shlex.quote(reads)}")
    kept = submit(owner, "--", "python3", "-c", reads)
    assert until(owner, kept, "failed", "succeeded")["job"]["state"] == "failed"
    assert "PermissionError: [Errno 1] Operation not permitted: '/dev/nvidia0'" in owner.host.run(f"runner logs {kept}")
    owner.host.run("rm /dev/nvidia0")


def test_what_ran_when_the_box_went_down_is_told_or_runs_again(owner: Owner) -> None:
    """Once by a reboot, once by a power cut."""
    machine = owner.host
    assert isinstance(machine, vm.Machine)
    done = submit(owner, "--", "echo", "was there")
    until(owner, done, "succeeded")

    def cut() -> None:
        machine.cut_power()
        machine.start()

    for down in (machine.reboot, cut):
        once = submit(owner, "--", "sleep", "1000")
        again = submit(owner, "--requeue", "--", "sleep", "1000")
        for job in (once, again):
            until(owner, job, "running")
        down()
        wait_until(lambda: machine.ssh("runner ps").returncode == 0, PATIENCE)
        assert until(owner, once, "lost", "cancelled", "failed")["job"]["state"] == "lost"
        found = until(owner, again, "running")
        assert [attempt["state"] for attempt in found["attempts"]] == ["lost", "running"]
        assert machine.run(f"runner logs {done}") == "was there\n"
        machine.run(f"runner cancel {again}")
        until(owner, again, "cancelled")
    assert machine.run("systemctl --failed --no-legend") == ""
