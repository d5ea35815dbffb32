"""GPUs in the queue from end to end: a real daemon, collector and supervisors, real jobs, a driver that can fail.

Faults come while jobs run: each has its visible state, disturbs no job on another GPU, and is over without a restart
when the hardware is well again.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tools
import wire
from fake_nvml import FakeGpu, FakeNvml
from tools import wait_until

from runner import words
from runner.box.gpus.watch import driver_there
from runner.box.history.archive import STEPS
from runner.job import processes

pytestmark = pytest.mark.long

GIB = 1 << 30
MODELS = ("3090", "3090", "4090", "2080s")
JOB = """\
import os, time
{holds}
print("sees", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
{body}
while not os.path.exists(f"{go}/{{os.environ['RUNNER_JOB_ID']}}"): time.sleep(0.005)
"""
TORCH = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.78 GiB"
    " of which 1.21 GiB is free."
)
OUT_OF_MEMORY = f"""\
import os, sys
if os.environ["RUNNER_ATTEMPT"] == "1":
    print("Traceback (most recent call last):", {TORCH!r}, sep=chr(10), file=sys.stderr)
    sys.exit(1)
"""


class Site:
    """A box whose GPUs are the fake's, and a project with scripts that hold their memory until they are told to end."""

    def __init__(self, folder: Path, *models: str, **settings: str) -> None:
        self.project, self._go = folder / "project", folder / "go"
        for path in (self.project, self._go):
            path.mkdir()
        self.fake = FakeNvml(folder)
        for model in models:
            self.fake.add(model)
        self.box = tools.Box(folder / "state")
        for name in [name for name in self.box.env if name.startswith(("GPUBOX_", "RUNNER_", "XDG_", "CUDA_"))]:
            del self.box.env[name]
        homes = {f"XDG_{kind}_HOME": str(folder / kind) for kind in ("STATE", "CONFIG", "CACHE")}
        self.box.env |= {"GPUBOX_STATE": str(self.box.state), "GPUBOX_CPUS": "16"} | homes | self.fake.env | settings
        self._scripts = 0

    def begin(self) -> Site:
        self.box.start()
        return self

    def restart(self, how: int = signal.SIGTERM) -> None:
        self.box.stop(how)
        self.box.start()

    # --- jobs ---

    def submit(self, *options: str, holds: int = 6 * GIB, body: str = "", script: str = "", code: int = 0) -> Any:
        """`runner submit -d`: what it said. The job holds so much of each of its GPUs, and runs until `finish`."""
        if not script:
            self._scripts += 1
            script = f"train{self._scripts}.py"
        holding = self.fake.holding(holds) if holds and ("--gpus" in options or "--gpu-mem" in options) else ""
        (self.project / script).write_text(JOB.format(holds=holding, body=body, go=self._go))
        done = self.box.call("submit", "-d", *options, script, cwd=self.project)
        assert done.returncode == code, done.stderr + self.box.story()
        return done

    def train(self, *options: str, holds: int = 6 * GIB, body: str = "", script: str = "") -> str:
        """A job's id."""
        id_: str = self.submit(*options, holds=holds, body=body, script=script).stdout.strip()
        return id_

    def runs(self, *options: str, holds: int = 6 * GIB, body: str = "") -> str:
        """The id of a job that runs, and holds what it holds."""
        id_ = self.train(*options, holds=holds, body=body)
        self.began(id_)
        return id_

    def began(self, id_: str, attempt: int = 1) -> dict[str, Any]:
        """It has said what it sees."""
        log = Path(self.box.state.job(int(id_)).attempt(attempt).log)
        wait_until(lambda: log.exists() and "sees" in log.read_text(), 20, lambda: self.why(id_) + self.box.story())
        return self.becomes(id_, words.RUNNING)

    def sees(self, id_: str) -> str:
        """Its CUDA_VISIBLE_DEVICES."""
        self.began(id_)
        return self.box.run("logs", id_).splitlines()[0].removeprefix("sees").strip()

    def let_go(self, *ids: str) -> None:
        """They may end now."""
        for id_ in ids:
            (self._go / id_).touch()

    def finish(self, *ids: str) -> None:
        """Let them end well, and see that they do: in the attempt that they began with."""
        self.let_go(*ids)
        self.box.run("wait", *ids)
        for id_ in ids:
            job = self.job(id_)
            assert (job["state"], job["attempt"]) == (words.SUCCEEDED, 1), job

    def show(self, id_: str) -> Any:
        return self.box.json("show", id_)

    def job(self, id_: str) -> dict[str, Any]:
        found: dict[str, Any] = self.show(id_)["job"]
        return found

    def becomes(self, id_: str, state: str, timeout: float = 20) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            job = self.job(id_)
            return job if job["state"] == state else None

        found = wait_until(there, timeout, lambda: f"{self.job(id_)}\n{self.box.story()}")
        assert found
        return found

    def why(self, id_: str) -> str:
        return self.box.run("why", id_).strip()

    def waits(self, id_: str, *texts: str, timeout: float = 20) -> str:
        """Until it waits for a reason that says these; the reason."""
        said = wait_until(
            lambda: (lambda why: why if all(text in why for text in texts) else "")(self.why(id_)),
            timeout,
            lambda: f"{self.why(id_)!r}\n{self.box.story()}",
        )
        assert self.job(id_)["state"] == words.QUEUED
        return said

    def asks(self, path: str) -> wire.Reply:
        """The API itself."""
        with wire.Wire(self.box.socket) as link:
            link.send("GET", path)
            reply = link.reply()
        assert reply.status == 200, reply
        return reply

    # --- GPUs ---

    def look(self) -> tuple[dict[str, dict[str, Any]], str | None]:
        answer = self.box.json("gpus")
        return {gpu["uuid"]: gpu for gpu in answer["gpus"]}, answer["silent"]

    def gpu(self, gpu: FakeGpu) -> dict[str, Any]:
        return self.look()[0][gpu.uuid]

    def gpu_becomes(self, gpu: FakeGpu, state: str, timeout: float = 20) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            seen = self.gpu(gpu)
            return seen if seen["state"] == state else None

        found = wait_until(there, timeout, lambda: f"{self.gpu(gpu)}\n{self.box.story()}")
        assert found
        return found

    def reads(self, gpu: FakeGpu, good: Callable[[dict[str, Any]], object], timeout: float = 10) -> dict[str, Any]:
        """The GPU, once what is known of it is so."""

        def there() -> dict[str, Any] | None:
            seen = self.gpu(gpu)
            return seen if seen["sample"] and good(seen) else None

        found = wait_until(there, timeout, lambda: self.gpu(gpu))
        assert found
        return found

    def silent(self, *texts: str, timeout: float = 20) -> str:
        """Until nothing is known of the GPUs, for a reason that says these."""

        def there() -> str | None:
            silent = self.look()[1]
            return silent if silent and all(text in silent for text in texts) else None

        found = wait_until(there, timeout, lambda: f"{self.look()}\n{self.box.story()}")
        assert found
        return found

    def known(self, timeout: float = 20) -> None:
        wait_until(lambda: self.look()[1] is None, timeout, self.box.story)

    def on(self, id_: str) -> FakeGpu:
        """The GPU of a job that has one."""
        (uuid,) = self.job(id_)["allotted"]
        return next(gpu for gpu in self.fake.gpus if gpu.uuid == uuid)

    def collector(self) -> int:
        """The process id of the daemon's collector; 0: there is none just now."""
        assert self.box.daemon is not None
        for pid in processes.descendants(self.box.daemon.pid):
            with suppress(OSError):
                if b"runner.box.gpus" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return 0

    # --- after a test ---

    def tidy(self) -> None:
        """Nothing of a test stays: no job, no fault."""
        unfinished = [job["id"] for job in self.box.json("ps") if job["state"] in words.UNFINISHED]
        if unfinished:
            self.box.run("cancel", "--grace", "0", *map(str, unfinished))
            self.box.call("wait", *map(str, unfinished))
        for gpu in self.fake.gpus:
            self.gpu_becomes(gpu, words.FREE)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Site]]:
    """The box that the tests share, one after the other."""
    made: list[Site] = []
    yield made
    for site in made:
        site.box.end()


@pytest.fixture
def site(sites: list[Site], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Four GPUs, all free: 3090, 3090, 4090, 2080 Super. Another box after a test that left a fault."""
    if not sites:
        made = Site(tmp_path_factory.mktemp("site"), *MODELS)
        made.fake.link(made.fake.gpus[1], made.fake.gpus[2], 10)
        sites.append(made.begin())
    ours = sites[0]
    script = ours.fake.script.read_text()
    clean = False
    try:
        yield ours
        clean = ours.fake.script.read_text() == script
        if clean:
            ours.tidy()
    except BaseException:
        clean = False
        raise
    finally:
        if not clean:
            sites.remove(ours)
            ours.box.end()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """A box of a test's own: takes models of GPUs, and settings."""
    made: list[Site] = []

    def make(*models: str, **settings: str) -> Site:
        made.append(Site(tmp_path, *models, **settings))
        return made[-1].begin()

    yield make
    for each in made:
        each.box.end()


@pytest.fixture
def foreigner(tmp_path: Path) -> Iterator[Callable[[FakeGpu, int], subprocess.Popen[bytes]]]:
    """Starts `python train.py` outside of the queue, which holds memory of a GPU while it lives."""
    made: list[subprocess.Popen[bytes]] = []
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "train.py").write_text("import time\ntime.sleep(600)\n")
    (folder / "python").symlink_to(sys.executable)

    def start(gpu: FakeGpu, memory: int) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["python", "train.py"], executable=sys.executable, cwd=folder))
        gpu.follow(made[-1].pid, memory)
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait(10)


# --- who gets which --------------------------------------------------------------------------------------------------


def test_each_job_sees_its_own_gpus_and_no_others(site: Site) -> None:
    first, second = site.runs("--gpus", "1"), site.runs("--gpus", "1")
    by_index = site.runs("--gpus", "1", "--gpu-ids", "index", holds=0)
    without = site.runs()
    assert site.sees(first) == site.on(first).uuid
    assert site.sees(second) == site.on(second).uuid
    assert site.sees(by_index) == str(site.gpu(site.on(by_index))["index"])
    assert len({site.on(each).uuid for each in (first, second, by_index)}) == 3
    assert site.sees(without) == ""
    assert site.gpu(site.on(first))["state"] == words.BUSY
    assert site.gpu(site.on(first))["jobs"] == [int(first)]
    site.finish(first, second, by_index, without)


def test_jobs_share_a_gpu_as_far_as_its_memory_goes_and_the_next_one_waits_with_the_numbers(site: Site) -> None:
    asked = ("--gpu-type", "2080", "--gpu-mem", "3G")
    first, second = (site.runs(*asked, holds=2 * GIB) for _ in range(2))
    third = site.train(*asked, holds=2 * GIB)
    assert site.on(first) is site.on(second)
    assert site.waits(third, "left") == f"GPU 3 has 1.8 of 7.8 GiB left beside jobs {first}, {second}"
    assert f"GPU 3 has 1.8 of 7.8 GiB left beside jobs {first}, {second}" in site.box.run("ps")
    seen = site.gpu(site.on(first))
    assert (seen["state"], seen["declared_bytes"]) == (words.SHARED, 6 * GIB)
    site.finish(first)
    site.began(third)
    site.finish(second, third)


def test_a_job_gets_the_type_that_it_names_and_the_least_that_has_what_it_says(site: Site) -> None:
    assert site.on(site.runs("--gpus", "1", "--gpu-type", "4090")).model == "4090"
    assert site.on(site.runs("--gpu-mem", "4G", holds=2 * GIB)).model == "2080s"
    alone = site.runs("--gpu-mem", "4G", "--exclusive")
    assert site.on(alone).model == "3090", "the small one has a job, the 4090 too"
    assert site.gpu(site.on(alone))["state"] == words.BUSY
    beside = site.train("--gpu-mem", "4G", holds=2 * GIB)
    assert site.on(site.runs("--gpu-mem", "4G", holds=2 * GIB)).model == "3090"
    assert site.job(beside)["allotted"] != site.job(alone)["allotted"]


def test_gpus_of_one_job_are_those_nearest_to_each_other(site: Site) -> None:
    job = site.runs("--gpus", "2")
    near = [site.fake.gpus[1].uuid, site.fake.gpus[2].uuid]
    assert sorted(site.job(job)["allotted"]) == near
    assert sorted(site.sees(job).split(",")) == near


def test_what_moves_over_the_bus_is_told_while_somebody_asks(site: Site) -> None:
    site.fake.gpus[1].set(pcie_received=12_000)

    def told() -> Any:
        with wire.Wire(site.box.socket) as asked:
            asked.send("GET", "/gpus/1/traffic")
            said = asked.reply().json()
        return said if said["pcie_received_per_second"] is not None else None

    assert wait_until(told, 20, site.box.story) == {
        "pcie_sent_per_second": 0.0, "pcie_received_per_second": 12e6, "encoder": 0.0, "decoder": 0.0, "absent": {},
    }  # fmt: skip


def test_a_gpu_can_be_drained_and_opened_again(site: Site) -> None:
    running = site.runs("--gpus", "1", "--gpu-type", "4090")
    said = site.box.call("gpus", "drain", "2").stderr
    assert f"GPU 2 (RTX 4090) takes no new job; what runs there goes on (job {running})" in said
    waiting = site.train("--gpus", "1", "--gpu-type", "4090")
    site.finish(running)
    site.waits(waiting, "GPU 2 is draining; `runner gpus undrain` opens it again")
    assert site.gpu(site.fake.gpus[2])["state"] == words.DRAINING
    site.box.run("gpus", "undrain", site.fake.gpus[2].uuid)
    site.began(waiting)
    assert f"GPU 2 has job {waiting}" in site.box.call("gpus", "forget", "2").stderr
    site.finish(waiting)
    site.gpu_becomes(site.fake.gpus[2], words.FREE)
    assert "only one that is lost can be forgotten" in site.box.call("gpus", "forget", "2").stderr


def test_a_job_that_needs_all_gpus_is_told_when_it_will_start(site: Site) -> None:
    for limit in ("20m", "30m", "30m"):
        site.runs("--gpus", "1", "--time-limit", limit, "--grace", "10")
    large = site.train("--gpus", "4")
    small = site.train("--gpus", "1", "--time-limit", "2h")
    assert "; starts within 30 min" in site.waits(large, "needs 4 GPUs, 1 of 4 free: GPU 0 has job ")
    site.waits(small, f"waits behind job {large}, which is first")
    site.began(site.train("--gpus", "1", "--time-limit", "5m"))


def test_a_submit_that_no_gpu_can_meet_is_refused_with_the_numbers(site: Site) -> None:
    there = "2 RTX 3090 with 23.7 GiB, 1 RTX 4090 with 23.6 GiB, 1 RTX 2080 SUPER with 7.8 GiB"
    for options, said in (
        (("--gpus", "5"), f"asks for 5 GPUs, the box has 4: {there}"),
        (("--gpu-type", "5090"), f"asks for a GPU of the type '5090'; the box has {there}"),
        (("--gpus", "2", "--gpu-type", "4090"), f"asks for 2 GPUs of the type '4090', the box has 1: {there}"),
        (("--gpu-mem", "80G"), f"asks for 1 GPU with 80 GiB; the largest has 23.7 GiB: {there}"),
        (("--gpus", "-1"), "at least 0"),
        (("--gpus", str(10**30)), "--gpus takes a whole number"),
    ):
        assert said in site.submit(*options, holds=0, code=64).stderr, options


# --- who else is there -----------------------------------------------------------------------------------------------


def test_a_foreign_process_is_named_and_when_it_leaves_the_job_starts(site: Site, foreigner: Any) -> None:
    gpu = site.fake.gpus[2]
    process = foreigner(gpu, int(11.2 * GIB))
    site.gpu_becomes(gpu, words.FOREIGN)
    (held,) = site.gpu(gpu)["processes"]
    assert (held["pid"], held["job"], held["command"]) == (process.pid, None, "python train.py")
    waiting = site.train("--gpus", "1", "--gpu-type", "4090")
    reason = f"GPU 2 held by {held['user']}, python train.py, 11.2 of 23.6 GiB"
    assert site.waits(waiting, "held by") == reason
    assert reason in site.box.run("ps")
    beside = site.runs("--gpu-type", "4090", "--gpu-mem", "10G")
    assert site.on(beside) is gpu, "a job that shares takes what is left"
    site.finish(beside)
    process.kill()
    process.wait(10)
    site.began(waiting)


def test_an_adopted_process_is_waited_for_and_reported(site: Site, foreigner: Any) -> None:
    gpu = site.fake.gpus[2]
    process = foreigner(gpu, 4 * GIB)
    site.gpu_becomes(gpu, words.FOREIGN)
    job = site.box.run("adopt", str(process.pid)).strip()
    site.becomes(job, words.RUNNING)
    assert "python train.py" in site.box.run("ps")
    assert site.gpu(gpu)["jobs"] == [int(job)]
    assert f"belongs to job {job}" in site.box.call("adopt", str(process.pid)).stderr
    after = site.train("--after", job)
    waiting = subprocess.Popen([*tools.CLI, "wait", job], env=site.box.env)
    assert site.waits(after, "waits for") == f"waits for job {job} to succeed"
    process.terminate()
    process.wait(10)
    assert waiting.wait(20) == 0
    assert site.job(job)["state"] == words.SUCCEEDED
    assert f"process {process.pid} ended" in site.box.run("logs", job)
    site.began(after)


def test_an_adopted_process_outlives_a_cancel(site: Site, foreigner: Any) -> None:
    gpu = site.fake.gpus[2]
    process = foreigner(gpu, 4 * GIB)
    site.gpu_becomes(gpu, words.FOREIGN)
    job = site.box.run("adopt", str(process.pid)).strip()
    site.becomes(job, words.RUNNING)
    site.box.run("cancel", job)
    site.becomes(job, words.CANCELLED)
    assert process.poll() is None
    assert site.gpu_becomes(gpu, words.FOREIGN)["jobs"] == []
    process.kill()
    process.wait(10)


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_gpu_that_is_full_is_the_reason_and_its_line_is_shown(site: Site) -> None:
    job = site.train("--gpus", "1", body=OUT_OF_MEMORY)
    site.becomes(job, words.FAILED)
    assert site.why(job) == f"failed: the GPU ran out of memory (1): {TORCH}"
    assert TORCH in site.box.run("show", job)


def test_after_the_gpu_was_full_the_next_attempt_is_alone_on_one_with_more(site: Site) -> None:
    beside = site.runs("--gpu-mem", "2G", holds=GIB)
    job = site.train("--gpu-mem", "2G", "--retries", "1", "--retry-on", "cuda_out_of_memory", body=OUT_OF_MEMORY)
    site.began(job, attempt=2)
    first, second = site.show(job)["attempts"]
    assert (first["state"], first["reason"]) == (words.FAILED, "cuda_out_of_memory")
    assert first["allotted"] == [site.fake.gpus[3].uuid], "where the other one is: the least that has 2 GiB"
    assert second["allotted"] == [site.fake.gpus[0].uuid], "the one with the most free"
    assert site.gpu(site.fake.gpus[0])["state"] == words.BUSY
    assert "next alone on more than 2 GiB" in site.box.run("show", job)
    other = site.runs("--gpu-type", "3090", "--gpu-mem", "2G", holds=GIB)
    assert site.on(other) is site.fake.gpus[1], "nobody comes beside it"
    site.finish(beside, other)


def test_what_a_job_used_is_shown_and_told_to_the_next_submit(site: Site) -> None:
    job = site.train("--gpus", "1", "--gpu-type", "4090", script="same.py")
    site.began(job)
    site.reads(site.fake.gpus[2], lambda seen: seen["processes"])
    site.finish(job)
    assert "peak 6 of 23.6 GiB on GPU 2" in site.box.run("show", job)
    said = site.submit("--gpus", "1", script="same.py").stderr
    assert f"its last run, job {job}, used 6 GiB of GPU memory; with --gpu-mem 7G others could share the GPU" in said
    said = site.submit("--gpu-mem", "5G", script="same.py").stderr
    assert "used 6 GiB of GPU memory, more than the 5 GiB that this one says; --gpu-mem 7G" in said


# --- no GPU ----------------------------------------------------------------------------------------------------------


def test_what_a_job_used_is_shown_charted_and_exported(site: Site) -> None:
    one = site.fake.gpus[2]
    job = site.runs("--gpus", "1", "--gpu-type", "4090")
    kept = one.lines()
    one.set(power=360_000, utilization=90, temperature=77)
    wait_until(lambda: (site.show(job)["uses"] or [{}])[0].get("hottest_celsius") == 77, 20, site.box.story)
    wait_until(lambda: (site.show(job)["uses"][0]["energy_joules"] or 0) > 700, 20, lambda: site.show(job)["uses"])
    one.set(power=None, utilization=None, temperature=None)
    assert one.lines() == kept
    site.finish(job)
    shown = site.box.run("show", job)
    assert "at most 77 °C" in shown
    assert "Wh" in shown
    assert "peak 6 GiB" in shown
    said = site.asks(f"/history?job={job}&columns=power_watts,throttled_by,cpu").json()
    assert [series["subject"] for series in said["series"]] == [one.uuid, "host"]
    assert max(filter(None, said["series"][0]["lines"]["power_watts"]["most"])) == 360.0
    assert said["step"] == 1
    table = site.asks(f"/history/table?job={job}&of=2&step=1&columns=power_watts").body.decode()
    assert f",{one.uuid},360.0" in table
    metrics = site.asks("/metrics").body.decode()
    assert f'gpubox_gpu_temperature_celsius{{gpu="2",uuid="{one.uuid}"}} 35' in metrics
    running = site.runs("--gpus", "1")
    index = str(site.gpu(site.on(running))["index"])
    wait_until(Path(site.box.state.gpu_jobs, index).exists)
    assert Path(site.box.state.gpu_jobs, index).read_text() == f"{running}\n"
    site.finish(running)


def test_a_fault_of_the_driver_is_noticed_with_its_job(site: Site) -> None:
    job = site.runs("--gpus", "1")
    site.on(job).xid(31)
    (notice,) = wait_until(lambda: site.asks("/notices").json()["notices"], 20, site.box.story)
    assert (notice["kind"], notice["severity"], notice["job"], notice["code"]) == ("xid", "job", int(job), 31)
    assert notice["hint"]
    assert "gpubox_gpu_xids_total" in site.asks("/metrics").body.decode()
    assert site.show(job)["uses"][0]["xids"] == {"31": 1}
    site.finish(job)


@pytest.mark.slow  # it takes its time by nature
def test_a_job_that_leaves_its_gpu_idle_is_warned_of_and_ended_and_one_that_works_is_not(site: Site) -> None:
    works = site.runs("--gpus", "1", "--gpu-type", "4090", "--stop-if-idle", "60")
    site.on(works).set(power=360_000, utilization=90)
    began = time.monotonic()
    lazy = site.runs("--gpus", "1", "--stop-if-idle", "60", "--retries", "2")
    assert "ended when idle for 1m00s" in site.box.run("show", lazy)
    wait_until(lambda: time.monotonic() - began > 30, 40)
    site.box.stop(signal.SIGKILL)
    site.box.start()
    wait_until(lambda: site.show(lazy)["job"]["state"] == words.FAILED, 130, site.box.story)
    assert 50 < time.monotonic() - began < 125, "neither at once nor twice as late"
    (attempt,) = site.show(lazy)["attempts"]
    assert (attempt["reason"], attempt["detail"]) == ("gpu_idle", "its GPU was idle for 1 minute (--stop-if-idle)")
    (notice,) = [each for each in site.asks("/notices").json()["notices"] if each["kind"] == "stop_if_idle"]
    assert (notice["job"], notice["severity"]) == (int(lazy), "warning")
    assert "its GPU was idle for 1 minute" in site.why(lazy)
    assert site.show(works)["job"]["state"] == words.RUNNING
    site.finish(works)


def test_without_a_driver_it_is_said_once_and_cpu_jobs_run(box: tools.Box, tmp_path: Path) -> None:
    if driver_there():
        pytest.skip("there is a driver")
    project = tmp_path / "project"
    project.mkdir()
    (project / "job.py").write_text("print('done')\n")
    assert "no NVIDIA driver found; jobs without GPU still run" in box.call("gpus").stderr
    refused = box.call("submit", "-d", "--gpus", "1", "job.py", cwd=project)
    assert refused.returncode == 64
    assert "asks for 1 GPU, the box has none" in refused.stderr
    assert box.run("submit", "job.py", cwd=project) == "done\n"
    assert Path(box.state.daemon_log).read_text().count("no NVIDIA driver found") == 1


# --- faults of one GPU, while jobs run -------------------------------------------------------------------------------


@pytest.mark.crash
def test_a_lost_gpu_fails_its_jobs_alone_and_comes_back(site: Site) -> None:
    tough = site.runs("--gpus", "1", "--retries", "1", "--retry-on", "gpu_lost")
    victim = site.runs("--gpus", "1")
    bystander = site.runs("--gpus", "1", "--gpu-type", "4090")
    one, other = site.on(tough), site.on(victim)
    one.lost()
    other.lost()
    end = site.becomes(victim, words.FAILED)
    assert end["reason"] == "gpu_lost"
    label = f"GPU {site.fake.gpus.index(other)}"
    assert end["detail"].startswith(f"{label} fell off the bus")
    assert site.gpu_becomes(other, words.GONE)["why"].startswith(f"{label} fell off the bus")
    site.began(tough, attempt=2)
    assert [attempt["reason"] for attempt in site.show(tough)["attempts"]] == ["gpu_lost", None]
    assert site.on(tough).model == "2080s", "the only one that is left"
    waiting = site.train("--gpus", "1", "--gpu-type", "3090")
    site.waits(waiting, "needs 1 GPU (3090), 0 of 2 free: GPU 0 fell off the bus", "; GPU 1 fell off the bus")
    one.back()
    other.back()
    site.began(waiting)
    site.finish(bystander, waiting)
    for gpu in (one, other):
        site.gpu_becomes(gpu, words.FREE)


@pytest.mark.crash
def test_a_hiccup_of_the_driver_ends_no_job(site: Site) -> None:
    """Each for long enough to be seen; a job that was ended for it would have failed."""
    job = site.runs("--gpus", "1")
    gpu, killed = site.on(job), site.collector()
    gpu.lost()
    site.gpu_becomes(gpu, words.GONE)
    gpu.back()
    site.gpu_becomes(gpu, words.BUSY)
    gpu.fault(999)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: site.collector() not in (0, killed), 20, site.box.story)
    site.gpu_becomes(gpu, words.UNKNOWN)
    for other in site.fake.gpus:
        if other is not gpu:
            site.gpu_becomes(other, words.FREE)
    site.gpu_becomes(gpu, words.UNKNOWN)
    gpu.back()
    site.gpu_becomes(gpu, words.BUSY)
    site.finish(job)


@pytest.mark.crash
def test_a_gpu_that_is_not_there_any_more_fails_its_job_and_the_others_are_still_themselves(site: Site) -> None:
    gone, after = site.fake.gpus[0], site.fake.gpus[2]
    victim = site.runs("--gpus", "1", "--gpu-type", gone.uuid)
    bystander = site.runs("--gpus", "1", "--gpu-type", after.uuid)
    site.fake.drop(gone)
    assert site.becomes(victim, words.FAILED)["reason"] == "gpu_lost"
    site.reads(after, lambda seen: seen["index"] == 1)
    seen = site.gpu(gone)
    assert (seen["state"], seen["index"], seen["sample"]) == (words.GONE, None, None)
    assert site.gpu(after)["jobs"] == [int(bystander)]
    by_index = site.runs("--gpus", "1", "--gpu-type", "2080", "--gpu-ids", "index", holds=0)
    assert site.sees(by_index) == "2"
    site.fake.put_back(gone)
    assert site.gpu_becomes(gone, words.FREE)["index"] == 0
    site.finish(bystander, by_index)


@pytest.mark.crash
def test_a_gpu_that_was_taken_out_while_the_box_was_off_is_missed_until_it_is_forgotten(site: Site) -> None:
    gone, bystander = site.fake.gpus[3], site.runs("--gpus", "1")
    victim = site.runs("--gpus", "1", "--gpu-type", gone.uuid)
    site.box.stop()
    site.fake.drop(gone)
    site.box.start()
    assert site.becomes(victim, words.FAILED)["reason"] == "gpu_lost"
    assert "missing" in site.why(victim)
    assert "missing" in site.gpu_becomes(gone, words.GONE)["why"]
    refused = site.submit("--gpus", "1", "--gpu-type", gone.uuid, holds=0, code=64).stderr
    assert f"asks for {gone.uuid[:12]}" in refused
    assert "missing" in refused
    waiting = site.train("--gpus", "1", "--gpu-type", "2080")
    site.waits(waiting, "missing")
    site.box.run("gpus", "forget", gone.uuid)
    assert gone.uuid not in site.look()[0]
    assert "asks for a GPU of the type" in site.submit("--gpu-type", "2080", holds=0, code=64).stderr
    site.waits(waiting, "it can't start here")
    site.fake.put_back(gone)
    site.began(waiting)
    site.finish(bystander, waiting)


@pytest.mark.crash
def test_nonsense_is_absent_with_a_reason_and_disturbs_nobody(site: Site) -> None:
    job, bystander = site.runs("--gpus", "1"), site.runs("--gpus", "1")
    gpu, other = site.on(job), site.on(bystander)
    gpu.garbage()
    seen = site.reads(gpu, lambda seen: seen["sample"]["temperature_celsius"] is None)
    assert {"utilization", "power_watts", "temperature_celsius"} <= seen["absent"].keys()
    assert (seen["state"], seen["jobs"]) == (words.BUSY, [int(job)])
    assert site.gpu(other)["sample"]["temperature_celsius"] == 35
    assert "35 °C" in site.box.run("gpus")
    gpu.garbage(False)
    seen = site.reads(gpu, lambda seen: seen["sample"]["temperature_celsius"] == 35)
    assert "temperature_celsius" not in seen["absent"]
    site.finish(job, bystander)


@pytest.mark.crash
def test_what_a_card_does_not_have_is_absent_with_a_reason(site: Site) -> None:
    gpu = site.fake.gpus[0]
    job = site.runs("--gpus", "1", "--gpu-type", gpu.uuid)
    gpu.unsupported("fan", "power", "power_average")
    seen = site.reads(gpu, lambda seen: seen["sample"]["power_watts"] is None and seen["sample"]["fan"] is None)
    assert "not exposed by this card" in seen["absent"]["fan"]
    assert "not exposed by this card" in seen["absent"]["power_watts"]
    gpu.set(fan=30, power=20000, power_average=20000)
    site.finish(job)


@pytest.mark.crash
def test_a_driver_that_does_not_say_who_holds_how_much_is_believed_about_the_sum(site: Site) -> None:
    gpu = site.fake.gpus[0]
    job = site.runs("--gpus", "1", "--gpu-type", gpu.uuid, holds=0, body="print(os.getpid(), flush=True)")
    holder = int(wait_until(lambda: site.box.run("logs", job).splitlines()[1:])[0])
    gpu.set(used=5 * GIB)
    gpu.process(holder, None)
    seen = site.reads(gpu, lambda seen: seen["processes"])
    assert (seen["processes"][0]["memory_bytes"], seen["processes"][0]["job"]) == (None, int(job))
    assert (seen["state"], seen["foreign_bytes"]) == (words.BUSY, 0)
    gpu.ends(holder)
    gpu.set(used=None)
    site.finish(job)


@pytest.mark.crash
def test_an_energy_counter_that_falls_is_told_as_it_is(site: Site) -> None:
    gpu = site.fake.gpus[0]
    job = site.runs("--gpus", "1", "--gpu-type", gpu.uuid)
    site.reads(gpu, lambda seen: seen["sample"]["energy_joules"] == 5000)
    gpu.set(energy=1000)
    seen = site.reads(gpu, lambda seen: seen["sample"]["energy_joules"] == 1)
    assert seen["state"] == words.BUSY
    gpu.set(energy=None)
    site.finish(job)


# --- memory that frees late ------------------------------------------------------------------------------------------


def ends_and_starts(site: Site, first: str, second: str) -> float:
    """Seconds between the end of a job and the start of the one that waits for its GPU, as their records say."""
    site.finish(first)
    site.began(second)
    (ended,), (started,) = site.show(first)["attempts"], site.show(second)["attempts"]
    assert ended["allotted"] == started["allotted"]
    return float(started["started_at"] - ended["ended_at"])


@pytest.mark.crash
def test_the_next_job_starts_at_once_when_memory_frees_at_once(site: Site, figure: Callable[[str], None]) -> None:
    took = []
    running = site.runs("--gpus", "1", "--gpu-type", "4090")
    for _ in range(5):
        waiting = site.train("--gpus", "1", "--gpu-type", "4090")
        site.waits(waiting, f"GPU 2 has job {running}")
        took.append(ends_and_starts(site, running, waiting))
        running = waiting
    said = ", ".join(f"{each * 1000:.0f}" for each in sorted(took))
    figure(f"GPU job, end to next start, memory frees at once: {said} ms (of 5; at most 150)")
    assert max(took) <= 0.15


def at_work(site: Site) -> tuple[FakeGpu, str, str, str]:
    """(the GPU, a job that has it, one that waits for it, one elsewhere)"""
    running = site.runs("--gpus", "1", "--gpu-type", "4090")
    waiting = site.train("--gpus", "1", "--gpu-type", "4090")
    bystander = site.runs("--gpus", "1")
    site.waits(waiting, f"GPU 0 has job {running}")
    return site.fake.gpus[0], running, waiting, bystander


@pytest.mark.crash
def test_the_next_job_starts_when_memory_is_free_and_not_before(
    own: Callable[..., Site], figure: Callable[[str], None]
) -> None:
    site = own("4090", "3090")
    gpu, running, waiting, bystander = at_work(site)
    gpu.free_late(3)
    site.finish(running)
    site.waits(waiting, f"GPU 0 is being freed after job {running}, 6 GiB are still in use")
    took = ends_and_starts(site, running, waiting)
    figure(f"GPU job, end to next start, memory frees 3 s late: {took:.2f} s (at most 3.3)")
    assert 3.0 <= took <= 3.3
    site.finish(waiting, bystander)


@pytest.mark.crash
def test_a_gpu_whose_memory_is_never_freed_is_stuck_until_it_is(own: Callable[..., Site]) -> None:
    site = own("4090", "3090", GPUBOX_GPU_FREE_SECONDS="2")
    gpu, running, waiting, bystander = at_work(site)
    gpu.free_late(1000)
    site.finish(running)
    site.waits(waiting, f"GPU 0 is stuck: its memory is not free since job {running} ended")
    assert site.gpu(gpu)["state"] == words.STUCK
    gpu.free_late(0)
    site.began(waiting)
    site.finish(waiting, bystander)


@pytest.mark.crash
def test_a_gpu_that_is_not_free_yet_is_not_given_away_by_the_next_daemon(own: Callable[..., Site]) -> None:
    site = own("4090", "3090")
    gpu, running, waiting, bystander = at_work(site)
    gpu.free_late(1000)
    site.finish(running)
    site.waits(waiting, "being freed")
    site.restart(signal.SIGKILL)
    site.known()
    site.waits(waiting, "6 of 23.6 GiB")
    gpu.free_late(0)
    site.began(waiting)
    site.finish(waiting, bystander)


# --- faults of the driver, while jobs run ----------------------------------------------------------------------------


class Crew:
    """Jobs on GPUs that run, one that waits for a GPU, and what must be true of them while nothing is known."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.running = [site.runs("--gpus", "1", "--gpu-type", "4090"), site.runs("--gpu-mem", "2G", holds=GIB)]
        self.running.append(site.runs("--gpus", "1"))
        self.waiting = site.train("--gpus", "1", "--gpu-type", "4090")
        site.waits(self.waiting, f"GPU 2 has job {self.running[0]}")

    def goes_on(self, *texts: str) -> None:
        """Nothing is known of the GPUs, and says why; jobs on them go on, those that need one wait, others start."""
        site = self.site
        silent = site.silent("nothing is known of the GPUs", *texts)
        assert {gpu["state"] for gpu in site.look()[0].values()} == {words.UNKNOWN}
        assert {gpu["sample"] is None for gpu in site.look()[0].values()} == {True}
        site.finish(site.runs())
        site.waits(self.waiting, *texts)
        late = site.submit("--gpus", "1")
        assert silent.partition(":")[0].split(" since")[0] in late.stderr
        self.late = late.stdout.strip()
        site.waits(self.late, *texts)
        site.finish(self.running.pop(0))
        site.waits(self.waiting, *texts)  # nobody knows whether its memory is free
        for job in self.running:
            assert site.job(job)["state"] == words.RUNNING

    def ends_well(self) -> None:
        """All is known again: those that ran still do, in the same attempt; those that waited get theirs."""
        self.site.known(40)
        self.site.began(self.late)
        self.site.finish(*self.running, self.late)
        self.site.began(self.waiting)
        self.site.finish(self.waiting)


@pytest.mark.crash
def test_a_driver_that_hangs_is_unknown_until_it_answers_and_its_reader_is_replaced(site: Site) -> None:
    crew = Crew(site)
    before = site.collector()
    site.fake.hang()
    crew.goes_on(" since ", "the driver does not answer")
    wait_until(lambda: site.collector() not in (0, before), 20, site.box.story)
    site.fake.hang(False)
    crew.ends_well()


@pytest.mark.crash
@pytest.mark.parametrize(
    ("code", "says"),
    [(18, "the NVIDIA driver was upgraded"), (9, "the NVIDIA driver is not loaded")],
    ids=["version_mismatch", "driver_not_loaded"],
)
def test_a_driver_that_refuses_is_told_and_jobs_go_on(site: Site, code: int, says: str) -> None:
    crew = Crew(site)
    site.fake.fault(code)
    crew.goes_on(says)
    site.fake.fault(None)
    crew.ends_well()


@pytest.mark.crash
def test_gpus_that_come_late_are_used_without_a_restart(own: Callable[..., Site]) -> None:
    late = own()
    assert "the box has none" in late.submit("--gpus", "1", holds=0, code=64).stderr
    late.finish(late.runs())
    late.fake.add("3090")
    late.known()
    wait_until(lambda: late.look()[0], 20, late.box.story)
    job = late.runs("--gpus", "1")
    late.finish(job)
    late.box.stop()
    late.fake.drop(late.fake.gpus[0])
    late.box.start()
    waiting = late.train("--gpus", "1")
    late.waits(waiting, "the driver finds no GPU")
    late.fake.put_back(late.fake.gpus[0])
    late.began(waiting)


# --- deaths of ours --------------------------------------------------------------------------------------------------


@pytest.mark.crash
def test_deaths_of_collectors_and_daemons_change_nothing_for_jobs(site: Site) -> None:
    """20 collectors are killed, every other one with its daemon: a daemon's next collector comes later each time."""
    jobs = [site.runs("--gpus", "1") for _ in range(2)] + [site.runs("--gpu-mem", "2G", holds=GIB) for _ in range(2)]
    waiting = site.train("--gpus", "3")
    had = {job["id"]: job["allotted"] for job in site.box.json("ps", *jobs, waiting)}
    for death in range(20):
        killed = wait_until(site.collector, 20, site.box.story)
        if death % 2 == 0:
            site.box.stop(signal.SIGKILL)
        with suppress(ProcessLookupError):  # it may have seen that its daemon is gone
            os.kill(killed, signal.SIGKILL)
        if death % 2 == 0:
            site.box.start()
        wait_until(lambda killed=killed: site.collector() not in (0, killed), 20, site.box.story)  # type: ignore[misc]
        site.known()
        assert {job["id"]: job["allotted"] for job in site.box.json("ps", *jobs, waiting)} == had
    site.waits(waiting, "needs 3 GPUs")
    site.finish(*jobs)
    site.began(waiting)
    site.finish(waiting)


@pytest.mark.crash
def test_what_a_job_used_is_counted_once_however_often_daemons_die(own: Callable[..., Site]) -> None:
    """The driver counts on while nobody looks. What was not seen is told; the history has gaps, and nothing twice."""
    site = own("3090", GPUBOX_TARIFF="0.36")
    (gpu,) = site.fake.gpus
    gpu.set(power=0, utilization=80)  # a power of nothing: all that is told was counted
    site.reads(gpu, lambda seen: seen["sample"]["power_watts"] == 0.0)
    gpu.set(
        energy=1_000_000
    )  # not at once with the power: one cycle could read the one from before, the other from after
    site.reads(gpu, lambda seen: seen["sample"]["energy_joules"] == 1000.0)
    job = site.runs("--gpus", "1")
    began = site.job(job)["started_at"]
    counted = 1_000_000
    for _ in range(50):
        counted += 36_000
        gpu.set(energy=counted)
        site.box.stop(signal.SIGKILL)
        site.box.start()
        site.known()
    exact = (counted - 1_000_000) / 1000

    def told() -> Any:
        (use,) = site.show(job)["uses"]
        return use if use["energy_joules"] == pytest.approx(exact) else None

    use = wait_until(told, 20, lambda: f"{site.show(job)['uses']} is not {exact} J{site.box.story()}")
    assert use["uncounted_seconds"] == pytest.approx(0.0, abs=0.1)
    site.finish(job)
    (use,) = site.show(job)["uses"]
    ended = site.job(job)["ended_at"]
    assert use["energy_joules"] == pytest.approx(exact)
    assert use["cost"] == pytest.approx(exact / 3.6e6 * 0.36)
    assert use["seen_seconds"] + use["unseen_seconds"] == pytest.approx(use["until"] - use["since"])
    assert use["unseen_seconds"] > 1
    assert use["until"] == ended
    assert abs(use["since"] - began) < 5
    site.box.stop()
    connection = sqlite3.connect(site.box.state.metrics)
    counts = [connection.execute(f"SELECT sum(utilization_percent_n) FROM gpu_{step}").fetchone()[0] for step in STEPS]
    connection.close()
    assert len(set(counts)) == 1, "every step has the same"
    assert counts[0] <= ended - began + 30, "no second twice"


@pytest.mark.crash
def test_what_happens_while_the_daemon_is_down_is_found_when_it_is_back(site: Site) -> None:
    ends, stays = site.runs("--gpus", "1"), site.runs("--gpus", "1")
    waiting = [site.train("--gpus", "1", "--gpu-type", "3090") for _ in range(2)]
    one, other = site.on(ends), site.on(stays)
    assert {one.model, other.model} == {"3090"}
    site.box.stop(signal.SIGKILL)
    wait_until(lambda: not any("runner.box.gpus" in command for command in site.box.processes().values()), 20)
    site.let_go(ends)
    wait_until(Path(site.box.state.job(int(ends)).attempt(1), "exit").exists)
    site.box.start()
    site.began(waiting[0])
    assert site.on(waiting[0]) is one
    assert site.job(waiting[1])["state"] == words.QUEUED
    assert site.job(stays)["allotted"] == [other.uuid]
    site.finish(ends, stays)
    site.began(waiting[1])
    assert site.on(waiting[1]) is other
    site.finish(*waiting)
