"""All checks, in order: what each reads, what judges it, and which it stands on."""

from __future__ import annotations

import os
import time
from functools import cached_property
from typing import Any

from runner.box.checks import cards, containers, cuda, driver, house, trainer, trials
from runner.box.checks.computer import Computer, Said
from runner.box.checks.finding import Check, Finding, skipped

POWER, POWER_SETTINGS = "usr/local/sbin/gpubox-power", "etc/gpubox/power.json"
SERVED = ("service.answers", "service.queue")  # which `runner doctor` looks at itself
NEEDS_ROOT = "sudo runner doctor {}"


class Visit:
    """What several checks of one visit share, each looked at once."""

    def __init__(self, computer: Computer, train: bool, index: str) -> None:
        self.computer, self.train, self.index = computer, train, index

    @cached_property
    def idle(self) -> list[str]:
        return cuda.idle(self.computer.nvml)

    @cached_property
    def added(self) -> tuple[dict[str, Any] | None, Said]:
        return trials.add(self.computer, self.idle)

    @cached_property
    def uvm(self) -> bool:
        return self.computer.exists("sys/module/nvidia_uvm")

    @cached_property
    def engine(self) -> str:
        return next((name for name in ("podman", "docker") if self.computer.find(name)), "")

    @cached_property
    def queue(self) -> trials.Queue:
        return trials.Queue(self.computer)

    def answers(self, _: Computer) -> Finding:
        form = {"podman": "{{.Client.Version}}", "docker": "{{.Server.Version}}"}
        said = self.computer.run(self.engine, "version", "--format", form[self.engine]) if self.engine else Said(127)
        return containers.engine(self.engine, said)

    def container(self, computer: Computer) -> Finding:
        if os.geteuid() != 0:
            return skipped("containers are tried as root", NEEDS_ROOT.format("containers"))
        return containers.gpu(self.engine, trials.container(computer, self.engine), len(computer.nvml["gpus"]))

    def job(self, _: Computer) -> Finding:
        ran = self.queue.run({}, ["--base", "--name", "doctor"], ["--", "id", "-un"], trials.JOB_LIMIT)
        if ran.state == "waiting":
            return cuda.too_busy(ran.why)
        asks = self.queue.user.pw_name if self.queue.user else ""
        return house.job(ran.state, ran.text, "gpubox-job" if asks else "", asks)

    def gpu_job(self, _: Computer) -> Finding:
        files = {"adder.py": trials.read(trials.ADDER)}
        options = ["--base", "--gpus", "1", "--name", "doctor-cuda"]
        ran = self.queue.run(files, options, ["--", "python", "adder.py", "--all"], trials.JOB_LIMIT)
        if ran.state == "waiting":
            return cuda.too_busy(ran.why)
        return cuda.in_a_job(ran.text) if ran.state == "succeeded" else cuda.job_failed(ran.why, ran.text)

    def trained(self, _: Computer) -> Finding:
        if not self.train:
            return cuda.not_asked()
        wish, wheels = cuda.torch_wish(self.added[0], self.index)
        files = {"train.py": trainer.PROGRAM, "requirements.txt": wish}
        ran = self.queue.run(files, ["--gpus", "1", "--name", "doctor-torch"], ["train.py"], trials.TRAIN_LIMIT)
        if ran.state == "waiting":
            return cuda.too_busy(ran.why)
        return cuda.trained(ran.text, wheels) if ran.state == "succeeded" else cuda.job_failed(ran.why, ran.text)

    def space(self, computer: Computer) -> Finding:
        place = computer.state if computer.exists(computer.state) else "/"
        return house.disk(place, *computer.space(place))

    def suspend(self, computer: Computer) -> Finding:
        masked = [name for name in house.SLEEP if computer.link("etc/systemd/system", name) == "/dev/null"]
        return house.suspend(masked, computer.exists("etc/systemd/logind.conf.d/10-gpubox.conf"))

    def limits(self, computer: Computer) -> Finding:
        wished = computer.exists(POWER) and computer.exists(POWER_SETTINGS)
        program, settings = computer.path(POWER), computer.path(POWER_SETTINGS)
        return house.limits(wished, computer.run(program, "--check", settings) if wished else Said(127))


def checks(visit: Visit) -> list[Check]:
    """Those above come first; `after` names what a check stands on."""
    bus, there = ("gpus.bus",), ("gpus.found",)
    dkms = Check(
        "driver.dkms",
        lambda c: driver.dkms(c.broken_packages, c.dkms, c.kernels, c.running, c.make_log),
        bus,
        everywhere=True,
    )
    return [
        Check("gpus.bus", lambda c: cards.on_bus(c.cards), everywhere=True),
        Check("gpus.link", lambda c: cards.links(c.used), bus, everywhere=True),
        Check("driver.nouveau", lambda c: driver.nouveau(c.used, c.nouveau_is_kept_out), bus, everywhere=True),
        dkms,
        Check(
            "driver.secure-boot",
            lambda c: driver.secure_boot(c.secure_boot, c.kernels, c.running),
            bus,
            everywhere=True,
        ),
        Check(
            "driver.loaded",
            lambda c: driver.loaded(c.loaded, c.kernels, c.running, c.used),
            bus,
            ("driver.nouveau", "driver.dkms", "driver.secure-boot"),
            everywhere=True,
        ),
        Check(
            "driver.versions-agree",
            lambda c: driver.versions_agree(c.loaded, c.library, c.kernels),
            ("driver.loaded",),
            everywhere=True,
        ),
        Check(
            "driver.next-boot",
            lambda c: driver.next_boot(c.kernels),
            bus,
            ("driver.dkms", "driver.loaded"),
            everywhere=True,
        ),
        Check("gpus.xid", lambda c: cards.faults(c.faults), ("driver.loaded",), everywhere=True),
        Check("gpus.found", lambda c: cards.found(c.used, c.nvml), ("driver.versions-agree",), ("gpus.xid",), True),
        Check("driver.persistence", lambda c: cards.persistence(c.nvml), there, everywhere=True),
        Check("cuda.init", lambda c: cuda.init(*visit.added, visit.uvm), there, everywhere=True),
        Check(
            "cuda.kernel", lambda c: cuda.kernel(*visit.added, visit.idle, visit.uvm), ("cuda.init",), everywhere=True
        ),
        Check("containers.engine", visit.answers),
        Check(
            "containers.cdi-current",
            lambda c: containers.cdi_current(
                bool(c.find("nvidia-ctk")),
                c.cdi,
                c.loaded,
                c.exists("usr/lib/systemd/system/nvidia-cdi-refresh.service"),
            ),
            ("driver.loaded", "containers.engine"),
        ),
        Check("containers.gpu", visit.container, ("cuda.init", "containers.cdi-current")),
        Check("power.limits", visit.limits, there),
        Check("suspend.off", visit.suspend),
        Check("disk.free", visit.space),
        Check("clock", lambda c: house.clock(time.time(), c.newest_file, c.clock_kept, c.container)),
        Check("launcher.answers", lambda c: house.launcher(trials.ask_launcher())),
        Check("service.job", visit.job, SERVED, ("launcher.answers",)),
        Check("cuda.job", visit.gpu_job, ("cuda.kernel", "service.job")),
        Check("cuda.torch", visit.trained, ("cuda.job",)),
    ]
