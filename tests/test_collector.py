"""The collector as a process, over the fake library: what it sends, what it leaves alone, how it gets over faults."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import FakeGpu, FakeNvml
from tools import ROOT, wait_until

from runner.box.gpus import collector as module
from runner.box.gpus.bus import Bus, place
from runner.box.gpus.collector import Turn, following
from runner.box.gpus.frames import Frame, Probe, Trouble, parse
from runner.box.gpus.pulse import pulse

pytestmark = pytest.mark.long

GIB = 1 << 30
PACE = 10  # seconds of the collector in one of ours
HOT = {
    "at", "memory_used_bytes", "utilization", "memory_utilization", "power_watts", "temperature_celsius",
    "sm_clock_hertz", "throttled_by",
}  # fmt: skip
DEAR = {"pcie_sent_per_second", "pcie_received_per_second", "encoder", "decoder"}
TOO_LARGE = ("dataclasses", "typing", "inspect", "asyncio", "logging", "argparse", "pathlib", "runner.model")
Line = dict[str, Any]


class Machine:
    """What a collector sees: a driver, a PCI bus, a kernel log; and the daemon's end of its socket."""

    def __init__(self, folder: Path) -> None:
        self.fake = FakeNvml(folder)
        self.sys, self.proc, self.kernel_log = folder / "sys", folder / "proc", folder / "kmsg"
        (self.sys / "bus/pci/devices").mkdir(parents=True)
        self.kernel_log.touch()
        self.errors = folder / "errors"
        self.ours: socket.socket
        self.process: subprocess.Popen[bytes]
        self._heard = b""

    def start(
        self, *interpreter: str, proc: Path = Path("/proc"), env: dict[str, str] | None = None, pace: int = PACE
    ) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(15)
        options = ["--sys", str(self.sys), "--proc", str(proc), "--kernel-log", str(self.kernel_log)]
        if pace != 1:
            options += ["--pace", str(pace)]
        with theirs, open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                (sys.executable, "-P", *interpreter, "-m", "runner.box.gpus", *options),
                stdin=theirs,
                stderr=errors,
                env={**os.environ, **self.fake.env, "FAKE_NVML_STRICT": "1", **(env or {})},
            )

    def line(self) -> Line:
        """The next line. Each must mean something to the daemon."""
        while b"\n" not in self._heard:
            said = self.ours.recv(1 << 16)
            assert said, f"the collector ended\n{self.errors.read_text()}"
            self._heard += said
        line, _, self._heard = self._heard.partition(b"\n")
        assert isinstance(parse(line), Frame | Probe | Trouble)
        said_ = json.loads(line)
        assert isinstance(said_, dict)
        return said_

    def until(self, true: Callable[[Line], bool], frames: int = 60) -> Line:
        """The next frame for which something is true."""
        for _ in range(frames):
            line = self.line()
            if line["kind"] == "frame" and true(line):
                return line
        pytest.fail(f"not within {frames} frames; the last: {line}")

    def state(self, gpu: FakeGpu, state: str) -> Line:
        """The card in the next frame in which it is in a state; nothing but who it is otherwise told of it."""
        found = gpu_of(self.until(lambda frame: gpu_of(frame, gpu).get("state") == state), gpu)
        if state != "ok":
            assert (found["sample"], found["absent"], found["processes"]) == ({}, {}, None)
        return found

    def probe(self, uuid: str) -> Line:
        self.ours.send(f"probe {uuid}\n".encode())
        while (line := self.line())["kind"] != "probe":
            pass
        return line

    def device(self, bus_id: str, status: str) -> None:
        """A GPU on the bus, awake (active) or not (suspended)."""
        folder = self.sys / "bus/pci/devices" / bus_id[4:].lower()
        (folder / "power").mkdir(parents=True, exist_ok=True)
        (folder / "vendor").write_text("0x10de\n")
        (folder / "class").write_text("0x030000\n")
        (folder / "power/runtime_status").write_text(f"{status}\n")

    def end(self) -> None:
        self.ours.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    with contextlib.suppress(AttributeError):
        made.end()


def gpu_of(frame: Line, gpu: FakeGpu) -> Line:
    return next((card for card in frame["gpus"] if card["uuid"] == gpu.uuid), {})


# --- what it sends -------------------------------------------------------------------------------------------------


def test_the_first_frame_has_everything(machine: Machine) -> None:
    one, two = machine.fake.add("3090"), machine.fake.add("h200")
    one.process(os.getpid(), 2 * GIB)
    machine.start()
    frame = machine.line()
    assert (frame["kind"], frame["driver"], frame["cuda"]) == ("frame", "570.86.15", "12.8")
    assert abs(frame["at"] - time.time()) < 30
    assert 0 < frame["cost"] < 5
    assert frame["links"] == {f"{one.uuid} {two.uuid}": 30}
    assert frame["xids"] == []
    first, second = frame["gpus"]
    assert {key: first[key] for key in ("uuid", "index", "name", "bus_id", "unified", "state")} == {
        "uuid": one.uuid, "index": 0, "name": "NVIDIA GeForce RTX 3090", "bus_id": "00000000:01:00.0", "unified": False,
        "state": "ok",
    }  # fmt: skip
    assert first["memory_bytes"] == (24576 - 317) << 20
    data_centre = ("ecc_errors", "memory_temperature_celsius", "remap_pending", "remap_failed")
    assert first["absent"] == dict.fromkeys(data_centre, "not exposed by this card")
    assert second["sample"]["ecc_errors"] == 0
    no_limits = ("fan", "slowdown_celsius", "shutdown_celsius")
    assert second["absent"] == dict.fromkeys(no_limits, "not exposed by this card")
    (process,) = first["processes"]
    assert (process["pid"], process["memory_bytes"], process["kind"]) == (os.getpid(), 2 * GIB, "compute")
    assert process["alive"] is True
    assert process["ancestors"][0] == os.getppid()
    assert second["processes"] == []


def test_a_process_has_the_fields_of_the_model_but_its_job(machine: Machine) -> None:
    from dataclasses import fields

    from runner.model import Process, Sample

    gpu = machine.fake.add("3090")
    gpu.process(os.getpid(), GIB)
    machine.start()
    (card,) = machine.line()["gpus"]
    assert set(card["processes"][0]) == {field.name for field in fields(Process)} - {"job"}
    assert set(card["sample"]) | set(card["absent"]) == {field.name for field in fields(Sample)} - DEAR


@pytest.mark.long
def test_later_frames_have_what_is_due(machine: Machine) -> None:
    gpu = machine.fake.add("3090")
    machine.start(pace=1)
    first = machine.line()
    second = machine.line()
    assert "links" not in second
    (card,) = second["gpus"]
    assert set(card["sample"]) == HOT
    assert card["absent"] == {}
    assert card["processes"] is None
    warm = gpu_of(machine.until(lambda frame: "fan" in gpu_of(frame, gpu)["sample"], frames=5), gpu)
    assert "power_limit_watts" not in warm["sample"]
    assert warm["processes"] == []
    assert 0.8 < second["at"] - first["at"] < 2.5


def test_a_second_is_a_second_and_what_is_late_is_left_out() -> None:
    assert following(10.0, 10.004) == 11.0
    assert following(10.0, 10.999) == 11.0
    assert following(10.0, 11.0) == 12.0
    assert following(10.0, 13.5) == 14.0


def test_cards_take_turns_with_what_is_slow() -> None:
    turns = [Turn(0.0) for _ in range(8)]
    assert all(turn.tiers(0.0, index) == (1.0, 5.0, 60.0) for index, turn in enumerate(turns))
    slow = [sum(len(turn.tiers(float(now), index)) > 1 for index, turn in enumerate(turns)) for now in range(1, 61)]
    assert max(slow) <= 3


def test_memory_that_moved_is_asked_about_at_once(machine: Machine) -> None:
    gpu = machine.fake.add("3090")
    machine.start()
    machine.line()
    gpu.process(os.getpid(), 3 * GIB)
    frame = machine.until(lambda frame: gpu_of(frame, gpu)["sample"]["memory_used_bytes"] >= 3 * GIB, frames=3)
    assert [process["pid"] for process in gpu_of(frame, gpu)["processes"]] == [os.getpid()]


def test_a_probe_is_answered_at_once(machine: Machine) -> None:
    one, two = machine.fake.add("3090"), machine.fake.add("4090")
    machine.start()
    machine.line()
    two.process(os.getpid(), GIB)
    asked = time.monotonic()
    answer = machine.probe(two.uuid)
    took = time.monotonic() - asked
    (card,) = answer["gpus"]
    assert card["uuid"] == two.uuid
    assert set(card["sample"]) == HOT
    assert [process["memory_bytes"] for process in card["processes"]] == [GIB]
    assert took < 0.5
    assert machine.probe(one.uuid)["gpus"][0]["processes"] == []


def test_what_is_dear_is_read_while_somebody_looks_and_of_that_card_alone(machine: Machine) -> None:
    one, two = machine.fake.add("3090"), machine.fake.add("4090")
    one.set(pcie_sent=1500, pcie_received=20, encoder=40)
    machine.start()
    assert not DEAR & set(gpu_of(machine.line(), one)["sample"])
    machine.ours.send(f"closely {one.uuid}\nclosely GPU-none\n".encode())
    frame = machine.until(lambda frame: "encoder" in gpu_of(frame, one)["sample"])
    sample = gpu_of(frame, one)["sample"]
    assert {name: sample[name] for name in DEAR} == {
        "pcie_sent_per_second": 1.5e6, "pcie_received_per_second": 20e3, "encoder": 0.4, "decoder": 0.0,
    }  # fmt: skip
    assert not DEAR & set(gpu_of(frame, two)["sample"])
    frame = machine.until(lambda frame: "encoder" in gpu_of(frame, one)["absent"])
    assert {gpu_of(frame, one)["absent"][name] for name in DEAR} == {"read only while somebody looks"}
    assert not DEAR & set(gpu_of(machine.line(), one)["absent"]), "said once"


def test_a_probe_of_what_is_not_there_says_so(machine: Machine) -> None:
    machine.fake.add("3090")
    machine.start()
    machine.line()
    machine.ours.send(b"nonsense\n\xff\xfe\n" + b"x" * 9000 + b"\n")
    (card,) = machine.probe("GPU-none")["gpus"]
    assert (card["state"], card["detail"]) == ("error", "the driver does not list it")


def test_a_dead_process_is_told_as_dead(machine: Machine) -> None:
    gpu = machine.fake.add("3090")
    gpu.process((1 << 22) - 1, GIB)
    machine.start()
    (process,) = machine.line()["gpus"][0]["processes"]
    assert (process["alive"], process["started"], process["memory_bytes"]) == (False, 0, GIB)


def test_faults_of_the_kernel_log_come_with_the_next_frame(machine: Machine) -> None:
    machine.fake.add("3090")
    machine.kernel_log.write_text("4,1,1,-;NVRM: Xid (PCI:0000:01:00): 31, pid=1, of old\n")
    machine.start()
    assert machine.line()["xids"] == []
    with open(machine.kernel_log, "a") as file:
        file.write("4,2,2,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.\n")
    (xid,) = machine.until(lambda frame: frame["xids"], frames=3)["xids"]
    assert (xid["bus_id"], xid["code"], xid["text"]) == ("00000000:01:00.0", 79, "it fell off the bus")


def test_a_fault_that_the_log_and_the_driver_tell_is_one(machine: Machine) -> None:
    gpu = machine.fake.add("3090")
    machine.start()
    machine.line()
    with open(machine.kernel_log, "a") as file:
        file.write("4,2,2,-;NVRM: Xid (PCI:0000:01:00): 31, pid=4242, name=python, MMU Fault\n")
    gpu.xid(31)
    (told,) = machine.until(lambda frame: frame["xids"], frames=5)["xids"]
    assert (told["code"], told["pid"], told["bus_id"]) == (31, 4242, gpu.bus_id)
    gpu.xid(13)  # which the log does not tell
    (told,) = machine.until(lambda frame: frame["xids"], frames=5)["xids"]
    assert (told["code"], told.get("pid")) == (13, None)
    assert told["text"] == "an error of the application: its program on the GPU failed"


# --- faults --------------------------------------------------------------------------------------------------------


def test_a_lost_card_is_lost_alone_and_comes_back(machine: Machine) -> None:
    lost, other = machine.fake.add("3090"), machine.fake.add("4090")
    machine.start()
    machine.line()
    lost.lost()
    card = machine.state(lost, "lost")
    assert card["detail"].startswith("it fell off the bus")
    assert (card["name"], card["memory_bytes"]) == ("NVIDIA GeForce RTX 3090", (24576 - 317) << 20)
    frame = machine.until(lambda frame: "links" in frame)  # NVML was opened anew
    assert gpu_of(frame, lost)["state"] == "lost"
    assert gpu_of(frame, other)["state"] == "ok"
    assert machine.probe(lost.uuid)["gpus"][0]["state"] == "lost"
    lost.back()
    assert machine.state(lost, "ok")["sample"]["power_watts"] == 20.0


def test_a_card_whose_calls_fail_alone_is_lost_too(machine: Machine) -> None:
    lost, other = machine.fake.add("3090"), machine.fake.add("4090")
    machine.start()
    machine.line()
    lost.lost(handle=False)
    frame = machine.until(lambda frame: "links" in frame)
    assert (gpu_of(frame, lost)["state"], gpu_of(frame, other)["state"]) == ("lost", "ok")


def test_a_card_that_stays_lost_has_nvml_opened_less_and_less_often(machine: Machine) -> None:
    lost = machine.fake.add("3090")
    machine.fake.add("4090")
    machine.start()
    machine.line()
    lost.lost()
    machine.state(lost, "lost")
    for _ in range(7):
        assert gpu_of(machine.line(), lost)["state"] == "lost"
    assert machine.fake.calls("nvmlInitWithFlags") <= 4


def test_a_new_collector_tells_of_a_card_that_can_not_say_who_it_is_and_tries_again(machine: Machine) -> None:
    """Or the daemon would miss it, and end its job."""
    hidden, other = machine.fake.add("3090"), machine.fake.add("4090")
    hidden.fault(999)
    machine.start()
    frame = machine.until(lambda frame: True)
    assert ([card["uuid"] for card in frame["gpus"]], frame["unnamed"]) == ([other.uuid], 1)
    hidden.back()
    frame = machine.until(lambda frame: len(frame["gpus"]) == 2)
    assert "unnamed" not in frame
    hidden.fault(999)
    frame = machine.until(lambda frame: frame["gpus"][0]["state"] == "error")
    assert (frame["gpus"][0]["uuid"], frame.get("unnamed")) == (hidden.uuid, None)
    hidden.lost()
    assert "unnamed" not in machine.until(lambda frame: frame["gpus"][0]["state"] == "lost")


def test_a_new_collector_tries_a_card_again_that_was_lost_when_it_began(machine: Machine) -> None:
    lost = machine.fake.add("3090")
    machine.fake.add("4090")
    lost.lost()
    machine.start()
    frame = machine.until(lambda frame: True)
    assert (len(frame["gpus"]), frame.get("unnamed")) == (1, None), "the daemon may miss it"
    lost.back()
    machine.until(lambda frame: len(frame["gpus"]) == 2)


def test_a_card_that_worked_until_it_was_lost_is_soon_looked_at_again(machine: Machine) -> None:
    gpu = machine.fake.add("3090")
    machine.fake.add("4090")
    machine.start()
    for _ in range(4):  # each time as soon as the first
        machine.until(lambda frame: frame["gpus"][0]["state"] == "ok")
        gpu.lost()
        machine.until(lambda frame: frame["gpus"][0]["state"] == "lost")
        gpu.back()
        machine.until(lambda frame: frame["gpus"][0]["state"] == "ok", frames=5)


def test_the_only_card_is_lost_not_trouble(machine: Machine) -> None:
    gpu = machine.fake.add("3090")
    machine.start()
    machine.line()
    gpu.lost()
    machine.state(gpu, "lost")
    machine.until(lambda frame: "links" in frame)
    gpu.back()
    machine.state(gpu, "ok")


def test_a_card_that_answers_nothing_but_errors_is_an_error(machine: Machine) -> None:
    gpu = machine.fake.add("3090")
    machine.start()
    machine.line()
    gpu.fault(999, handle=False)
    assert "nothing but errors" in machine.state(gpu, "error")["detail"]
    gpu.back()
    machine.state(gpu, "ok")


def test_a_card_that_left_is_missing_and_found_again_under_its_uuid(machine: Machine) -> None:
    first, second = machine.fake.add("3090"), machine.fake.add("4090")
    machine.start()
    machine.line()
    machine.fake.drop(first)
    frame = machine.until(lambda frame: not gpu_of(frame, first))
    assert (gpu_of(frame, second)["state"], gpu_of(frame, second)["index"]) == ("ok", 0)
    assert machine.probe(first.uuid)["gpus"][0]["state"] == "error"
    machine.fake.put_back(first)
    frame = machine.until(lambda frame: bool(gpu_of(frame, first)))
    assert [(card["uuid"], card["index"]) for card in frame["gpus"]] == [(first.uuid, 0), (second.uuid, 1)]
    assert gpu_of(frame, first)["sample"]["memory_used_bytes"] == 1 << 20


def test_a_driver_that_hangs_is_waited_for(machine: Machine) -> None:
    gpu = machine.fake.add("3090")
    machine.start()
    before = machine.line()["at"]
    gpu.hang()
    wait_until(lambda: quiet(machine))
    gpu.back()
    times = [machine.line()["at"] for _ in range(4)]
    assert before < times[0]
    assert times[3] - times[2] < 0.9  # in time again


def quiet(machine: Machine) -> bool:
    """Whether no frame came for several cycles."""
    if select.select([machine.ours], [], [], 0.5)[0]:
        machine.line()
        return False
    return True


def test_a_collector_that_hangs_can_be_ended(machine: Machine) -> None:
    gpu = machine.fake.add("3090")
    machine.start()
    machine.line()
    gpu.hang()
    wait_until(lambda: quiet(machine))
    machine.process.terminate()  # the driver may hold it off
    machine.process.kill()
    assert machine.process.wait(10) in (-signal.SIGTERM, -signal.SIGKILL)


def test_garbage_is_told_as_absent(machine: Machine) -> None:
    gpu = machine.fake.add("3090")
    gpu.garbage()
    gpu.process(os.getpid(), None)
    machine.start()
    (card,) = machine.line()["gpus"]
    assert card["state"] == "ok"
    assert card["absent"]["utilization"].startswith("error: the driver says")
    assert "utilization" not in card["sample"]
    assert card["processes"][0]["memory_bytes"] is None


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (lambda fake: fake.version_mismatch(), "version_mismatch"),
        (lambda fake: fake.driver_not_loaded(), "driver_not_loaded"),
        (lambda fake: fake.init_fault(4), "no_permission"),
        (lambda fake: fake.gpus[0].lost(), "unknown"),
        (lambda fake: fake.drop(fake.gpus[0]), "no_gpu"),
    ],
)
def test_trouble_is_said_once_and_ends_it(machine: Machine, trouble: Callable[[FakeNvml], None], code: str) -> None:
    machine.fake.add("3090")
    trouble(machine.fake)
    machine.start()
    line = machine.line()
    assert (line["kind"], line["code"]) == ("trouble", code)
    assert line["message"]
    assert line["hint"]
    assert machine.ours.recv(10) == b""
    assert machine.process.wait(10) == 3


def test_no_library_is_trouble(machine: Machine, tmp_path: Path) -> None:
    machine.start(env={"LD_LIBRARY_PATH": str(tmp_path)})
    line = machine.line()
    if line["kind"] == "frame":
        pytest.skip("this machine has a driver")
    assert line["code"] in ("no_library", "driver_not_loaded")
    assert machine.process.wait(10) == 3


def test_a_driver_that_is_upgraded_under_it_ends_it(machine: Machine) -> None:
    machine.fake.add("3090")
    machine.start()
    machine.line()
    machine.fake.version_mismatch()
    while (line := machine.line())["kind"] == "frame":
        pass
    assert (line["kind"], line["code"]) == ("trouble", "version_mismatch")
    assert machine.process.wait(10) == 3


# --- cards that sleep ----------------------------------------------------------------------------------------------


def test_a_sleeping_card_is_not_touched(machine: Machine) -> None:
    sleeper, other = machine.fake.add("3090"), machine.fake.add("4090")
    machine.device(sleeper.bus_id, "active")
    machine.device(other.bus_id, "active")
    machine.start()
    machine.line()
    machine.device(sleeper.bus_id, "suspended")
    machine.state(sleeper, "asleep")
    before = machine.fake.calls(gpu=sleeper)
    machine.state(sleeper, "asleep")
    assert machine.probe(sleeper.uuid)["gpus"][0]["state"] == "asleep"
    assert gpu_of(machine.line(), other)["state"] == "ok"
    assert machine.fake.calls(gpu=sleeper) == before
    machine.device(sleeper.bus_id, "active")
    assert machine.state(sleeper, "ok")["sample"].keys() >= HOT


def test_a_card_that_sleeps_from_the_start_is_left_alone_until_it_wakes(machine: Machine) -> None:
    sleeper, other = machine.fake.add("3090"), machine.fake.add("4090")
    machine.device(sleeper.bus_id, "suspended")
    machine.device(other.bus_id, "active")
    known = machine.proc / "driver/nvidia/gpus" / sleeper.bus_id[4:]
    known.mkdir(parents=True)
    (known / "information").write_text(f"Model: \t NVIDIA GeForce RTX 3090\nGPU UUID: \t {sleeper.uuid}\n")
    machine.start(proc=machine.proc)
    frame = machine.line()
    assert [(card["state"], card["index"]) for card in frame["gpus"]] == [("asleep", 0), ("ok", 1)]
    assert gpu_of(frame, sleeper)["name"] == "NVIDIA GeForce RTX 3090"
    machine.line()
    assert machine.fake.calls(gpu=sleeper) == 0
    machine.device(sleeper.bus_id, "active")
    machine.state(sleeper, "ok")


def test_a_sleeping_card_that_nobody_knows_is_told_when_it_wakes(machine: Machine) -> None:
    sleeper, other = machine.fake.add("3090"), machine.fake.add("4090")
    machine.device(sleeper.bus_id, "suspended")
    machine.device(other.bus_id, "active")
    machine.start(proc=machine.proc)
    assert [card["uuid"] for card in machine.line()["gpus"]] == [other.uuid]
    assert machine.fake.calls(gpu=sleeper) == 0
    machine.device(sleeper.bus_id, "active")
    machine.until(lambda frame: len(frame["gpus"]) == 2)


def test_the_bus_tells_gpus_from_other_devices(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.device("00000000:C1:00.0", "active")
    sound = machine.sys / "bus/pci/devices/0000:c1:00.1"
    sound.mkdir()
    (sound / "vendor").write_text("0x10de\n")
    (sound / "class").write_text("0x040300\n")
    bus = Bus(str(machine.sys), str(machine.proc))
    assert bus.gpus() == ["00000000:C1:00.0"]
    assert not bus.asleep("00000000:C1:00.0")
    assert not bus.asleep("00000000:02:00.0")
    assert bus.identity("00000000:C1:00.0") is None
    assert Bus(str(tmp_path / "none")).gpus() == []


def test_a_uuid_that_the_driver_does_not_know_yet_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: X\nGPU UUID: GPU-????????-????-????-????-????????????\n")
    assert Bus("/none", str(tmp_path)).identity("00000000:01:00.0") is None


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("0000:c1:00.0", "00000000:C1:00.0"),
        ("00000000:C1:00.0", "00000000:C1:00.0"),
        ("0000:c1:00", "00000000:C1:00.0"),
        ("10000:01:1f.7", "00010000:01:1F.7"),
        ("what", "what"),
    ],
)
def test_a_place_on_the_bus_has_one_form(text: str, normal: str) -> None:
    assert place(text) == normal


# --- the daemon's end ----------------------------------------------------------------------------------------------


def test_it_leaves_with_the_daemon(machine: Machine) -> None:
    machine.fake.add("3090")
    machine.start()
    machine.line()
    machine.ours.close()
    assert machine.process.wait(10) == 0
    assert machine.errors.read_text() == ""


def test_it_ends_on_term_also_when_that_was_ignored(machine: Machine) -> None:
    machine.fake.add("3090")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        machine.start()
    finally:
        signal.signal(signal.SIGTERM, before)
    machine.line()
    machine.process.terminate()
    assert machine.process.wait(10) == -signal.SIGTERM


def test_it_does_not_outlive_who_started_it(machine: Machine, tmp_path: Path) -> None:
    """Also while the driver holds it, and nobody closes the socket."""
    machine.fake.add("3090")
    machine.fake.hang()
    ours, theirs = socket.socketpair()
    program = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"
    with ours, theirs:
        starter = subprocess.Popen(
            (sys.executable, "-c", program, sys.executable, "-P", "-m", "runner.box.gpus"),
            stdin=theirs, stdout=subprocess.PIPE, env={**os.environ, **machine.fake.env},
        )  # fmt: skip
        with starter:
            assert starter.stdout is not None
            pid = int(starter.stdout.readline())
            wait_until(lambda: machine.fake.calls(pid=pid) > 0)
            starter.kill()
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or ") Z" in Path(f"/proc/{pid}/stat").read_text())


def test_a_daemon_that_does_not_listen_is_not_waited_for(machine: Machine) -> None:
    for _ in range(8):
        machine.fake.add("3090")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        link = module.Link(theirs)
        link.send({"kind": "frame", "padding": "x" * 100_000})
        assert link.full
        begun = time.monotonic()
        assert list(link.lines(until=begun + 0.05)) == []
        assert time.monotonic() - begun < 5
        ours.send(b"probe x\n")
        assert list(link.lines(until=time.monotonic() + 0.01)) == []  # nothing is heard before all is said
        read = b""
        while link.full:
            with contextlib.suppress(BlockingIOError):
                read += ours.recv(1 << 20)
            list(link.lines(until=time.monotonic() + 0.01, emptied=True))
        with contextlib.suppress(BlockingIOError):
            read += ours.recv(1 << 20)
        assert json.loads(read)["padding"] == "x" * 100_000
        assert next(link.lines(until=time.monotonic() + 5)) == "probe x"


def test_it_says_how_it_is_to_be_started() -> None:
    command = (sys.executable, "-P", "-m", "runner.box.gpus")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "the daemon starts it" in done.stderr
    done = subprocess.run((*command, "--what"), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "--kernel-log" in done.stderr


# --- its price -----------------------------------------------------------------------------------------------------


def test_it_loads_little(machine: Machine) -> None:
    machine.fake.add("3090").process(os.getpid(), GIB)
    machine.start("-X", "importtime")
    machine.line()
    machine.line()
    machine.process.terminate()
    machine.process.wait(10)
    loaded = {line.rpartition("|")[2].strip() for line in machine.errors.read_text().splitlines()}
    assert "pynvml" in loaded
    assert not loaded & {*TOO_LARGE}


@pytest.mark.long
def test_it_costs_little(machine: Machine, figure: Callable[[str], None]) -> None:
    """8 GPUs, 16 processes: at most 22 MiB and 0.3 s of processor a minute."""
    with contextlib.ExitStack() as processes:
        gpus = [machine.fake.add("3090") for _ in range(8)]
        for number in range(16):
            process = processes.enter_context(subprocess.Popen(("sleep", "600")))
            processes.callback(process.kill)
            gpus[number % 8].process(process.pid, GIB)
        machine.start(env={"FAKE_NVML_CALLS": ""}, pace=1)
        machine.line()
        before, begun = processor_seconds(machine.process.pid), time.monotonic()
        costs = [machine.line()["cost"] for _ in range(6)]
        spent = (processor_seconds(machine.process.pid) - before) / (time.monotonic() - begun) * 60
        size = pss(machine.process.pid)
    figure(
        f"collector, 8 fake GPUs, 16 processes: {size / (1 << 20):.1f} MiB PSS, {spent:.2f} s of processor a minute, "
        f"{sorted(costs)[len(costs) // 2] * 1000:.1f} ms a cycle"
    )
    assert size <= 22 << 20
    assert spent <= 0.3


def processor_seconds(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def test_the_door_is_in_its_own_process() -> None:
    """The daemon imports none of what only the collector needs."""
    program = "import sys; import runner.box.gpus.frames; print('pynvml' in sys.modules)"
    done = subprocess.run((sys.executable, "-c", program), cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.stdout == "False\n"


# --- minded by systemd -----------------------------------------------------------------------------------------------


def heard_by_systemd(folder: Path) -> tuple[socket.socket, dict[str, str]]:
    """systemd's end, and what it puts into the environment."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    link.bind(str(folder / "notify"))
    link.settimeout(15)
    return link, {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "45000000"}


def test_systemd_is_told_of_each_round_and_of_none_that_hangs(machine: Machine, tmp_path: Path) -> None:
    link, variables = heard_by_systemd(tmp_path)
    gpu = machine.fake.add("3090")
    machine.start(env=variables)
    with link:
        assert link.recv(100) == b"WATCHDOG_USEC=10000000\nWATCHDOG=1", "the first answer had longer"
        assert link.recv(100) == b"WATCHDOG=1"
        gpu.hang()
        link.settimeout(0.5)  # five of its rounds
        with pytest.raises(TimeoutError):
            [link.recv(100) for _ in range(100)]
        gpu.hang(False)
        link.settimeout(15)
        assert link.recv(100) == b"WATCHDOG=1"


def test_nobody_is_told_who_did_not_ask(tmp_path: Path) -> None:
    link, variables = heard_by_systemd(tmp_path)
    with link:
        pulse({"NOTIFY_SOCKET": variables["NOTIFY_SOCKET"]})()
        pulse({})()
        link.setblocking(False)
        with pytest.raises(BlockingIOError):
            link.recv(100)
    pulse(variables)()  # and one who is gone is none to wait for


def test_where_one_hangs_no_second_one_goes(machine: Machine, tmp_path: Path) -> None:
    machine.fake.add("3090").hang()
    (tmp_path / "first").mkdir()
    first = Machine(tmp_path / "first")
    first.fake = machine.fake
    first.start(env={"RUNTIME_DIRECTORY": str(tmp_path)})
    wait_until(lambda: (tmp_path / "pid").exists())
    machine.start(env={"RUNTIME_DIRECTORY": str(tmp_path)})
    said = machine.line()
    assert (said["kind"], said["code"]) == ("trouble", "unknown")
    assert f"process {first.process.pid}, which reads it, can't be ended" in said["message"]
    assert machine.process.wait(15) == 3
    first.process.kill()
    first.process.wait()
    first.ours.close()
