"""The driver's faults in the kernel's log: what counts, what it says, what happens to the log meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from runner.box.gpus import kernel_log
from runner.box.gpus.kernel_log import KernelLog, parse

LOST = "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "kmsg"
    path.write_text(f"4,1,1,-;{LOST}\n")
    return path


def say(log: Path, *messages: str) -> None:
    with open(log, "a") as file:
        file.writelines(f"4,1,1,-;{message}\n" for message in messages)


@pytest.mark.parametrize(("line", "seen"), [
    (LOST, ("00000000:01:00.0", 79, "it fell off the bus")),
    ("NVRM: Xid (PCI:0000:c1:00): 31, pid=123, name=python, Ch 00000008, MMU Fault", (
        "00000000:C1:00.0", 31, "an error of the application: it reached for GPU memory that is not its own")),
    ("NVRM: Xid (PCI:10000:02:1f.0): 999, pid=1, something new", ("00010000:02:1F.0", 999, "pid=1, something new")),
    ("NVRM: GPU 0000:21:00.0: GPU has fallen off the bus.", ("00000000:21:00.0", 79, "it fell off the bus")),
    ("NVRM: GPU at PCI:0000:21:00: GPU-5a2b1c0d-0000-4000-8000-000000000001 has fallen off the bus.", (
        "00000000:21:00.0", 79, "it fell off the bus")),
])  # fmt: skip
def test_a_fault_has_a_place_a_code_and_words(line: str, seen: tuple[str, int, str]) -> None:
    assert parse(f"4,123,456,-;{line}") == seen


@pytest.mark.parametrize("line", [
    "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.86.15", "usb 1-1: new device", "", " SUBSYSTEM=pci",
    "NVRM: Xid (PCI:0000:01:00): what", "Xid (PCI:0000:01:00): 79, not the driver's",
    " NVRM: Xid (PCI:0000:01:00): 79, x",
])  # fmt: skip
def test_other_lines_are_none(line: str) -> None:
    assert parse(line) is None


def test_only_what_is_logged_from_now_on_counts(log: Path) -> None:
    following = KernelLog(str(log))
    assert following.readable
    assert following.read() == []
    say(log, "eth0: up", "NVRM: Xid (PCI:0000:02:00): 48, pid=1")
    (xid,) = following.read()
    assert (xid["bus_id"], xid["code"]) == ("00000000:02:00.0", 48)
    assert abs(float(str(xid["at"])) - time.time()) < 60
    assert following.read() == []
    following.close()


def test_a_fault_that_is_told_twice_is_one(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    following = KernelLog(str(log))
    say(log, LOST, "NVRM: GPU 0000:01:00.0: GPU has fallen off the bus.", LOST.replace("01:", "02:"))
    assert [xid["bus_id"] for xid in following.read()] == ["00000000:01:00.0", "00000000:02:00.0"]
    later = time.monotonic() + kernel_log.SAME_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    say(log, LOST)
    assert len(following.read()) == 1
    following.close()


def test_a_fault_names_the_process_that_it_is_laid_to(log: Path) -> None:
    following = KernelLog(str(log))
    say(log, LOST, "NVRM: Xid (PCI:0000:02:00): 31, pid=4242, name=python, MMU Fault")
    assert [xid.get("pid") for xid in following.read()] == [None, 4242]
    following.close()


def test_what_others_tell_counts_where_the_log_is_silent(log: Path) -> None:
    following = KernelLog(str(log))
    say(log, LOST)
    following.read()
    told = following.beside([("00000000:01:00.0", 79), ("00000000:01:00.0", 48), ("00000000:01:00.0", 48)])
    assert [xid["code"] for xid in told] == [48]
    say(log, "NVRM: Xid (PCI:0000:01:00): 48, pid=1")
    assert following.read() == [], "nor the other way around"
    following.close()


def test_a_log_that_may_not_be_read_is_silent(tmp_path: Path) -> None:
    following = KernelLog(str(tmp_path / "missing"))
    assert not following.readable
    assert following.read() == []


def test_a_log_that_ran_over_goes_on(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    following = KernelLog(str(log))
    say(log, LOST)
    real, failures = os.read, [BrokenPipeError()]

    def read(fd: int, most: int) -> bytes:
        if failures:
            raise failures.pop()
        return real(fd, most)

    monkeypatch.setattr(os, "read", read)
    assert len(following.read()) == 1
    assert following.readable
    following.close()


def test_a_log_that_fails_is_given_up(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    following = KernelLog(str(log))

    def read(*_: object) -> bytes:
        raise OSError

    monkeypatch.setattr(os, "read", read)
    assert following.read() == []
    assert not following.readable


def test_a_storm_of_records_does_not_hold_the_readings_up(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    following = KernelLog(str(log))
    monkeypatch.setattr(os, "read", lambda *_: b"6,1,1,-;noise\n")  # there is always one more
    assert following.read() == []
    monkeypatch.undo()
    following.close()


def test_the_kernels_own_log_is_followed_without_waiting() -> None:
    following = KernelLog()
    assert all(xid["code"] for xid in following.read())
    following.close()
