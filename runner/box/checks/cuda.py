"""PURE: what CUDA says, in words; and what a job says that trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from runner.box.checks.computer import Said
from runner.box.checks.finding import SETUP, Finding, failed, ok, skipped
from runner.box.envs.wheels import TORCH_OLD, TORCH_OLD_INDEX

UVM = "sudo modprobe nvidia-uvm"
MEMORY = 2
CODES = {  # of cuda.h -> (what it means, why, what to type)
    MEMORY: ("the card has no memory left", "somebody holds it", "runner gpus --processes"),
    35: ("the driver is too old", "the program was made for a newer CUDA", SETUP),
    46: ("the card is taken by another process", "its compute mode lets only one in", "sudo nvidia-smi -c DEFAULT"),
    100: ("CUDA finds no GPU", "it is hidden (CUDA_VISIBLE_DEVICES), lost, or these modules don't support it",
          "sudo dmesg | grep -i nvrm"),
    101: ("CUDA does not know the card", "it is lost, or a part of it (MIG) has to be named", "nvidia-smi -L"),
    209: ("the program has no code for this card", "card and driver do not fit", SETUP),
    222: ("the driver can't read the program", "it is too old for it", SETUP),
    304: ("the operating system refused", "the files /dev/nvidia* may not be opened from here", "ls -l /dev/nvidia*"),
    802: ("the system is not ready yet", "cards with NVSwitch need nvidia-fabricmanager of the driver's version",
          "sudo systemctl start nvidia-fabricmanager"),
    803: ("driver and library do not fit", "the driver was upgraded while it was loaded", "sudo reboot"),
    804: ("a library for other cards is in the way", "CUDA's compatibility package is for data centres' cards",
          "sudo apt-get remove 'cuda-compat-*'"),
    999: ("CUDA does not know why it fails", "nvidia-uvm is not loaded, or the computer was suspended since", UVM),
}  # fmt: skip
AGAIN = "sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm    # while no job runs"


def init(said: dict[str, Any] | None, how: Said, uvm: bool) -> Finding:
    """said: as adder.py prints it; None where it did not get so far, and how it ended then."""
    if said is None:
        what = "cuInit does not return" if how.code is None else f"the process that asked CUDA ended with {how.code}"
        return failed(what, "the driver hangs" if how.code is None else how.last, "sudo dmesg | grep -i nvrm")
    if said["code"]:
        return _broken(said["call"], said["code"], uvm)
    if not said["gpus"]:
        return _broken("cuDeviceGetCount", 100, uvm)
    version = int(said["version"])
    return ok(f"CUDA {version // 1000}.{version % 1000 // 10}, {_many(len(said['gpus']), 'GPU')}")


def _broken(call: str, code: int, uvm: bool, where: str = "") -> Finding:
    if code == -1:
        return failed(f"{where}{call} failed", "the driver's CUDA library is missing or too old", SETUP)
    what, why, next = CODES.get(code, (f"CUDA's error {code}", "", "sudo dmesg | grep -i nvrm"))
    if code == 999 and uvm:
        next = AGAIN
    return failed(f"{where}{call} says {code}: {what}", why, next)


def idle(nvml: dict[str, Any]) -> list[str]:
    """The cards that nobody computes on: a program more could take memory from a job that is about to need it."""
    return [str(gpu["uuid"]) for gpu in nvml.get("gpus", ()) if gpu["processes"] == 0]


def kernel(said: dict[str, Any] | None, how: Said, free: Sequence[str], uvm: bool) -> Finding:
    """Two vectors were added on each card that was free."""
    if said is None or said["code"]:
        return init(said, how, uvm)
    cards = [gpu for gpu in said["gpus"] if gpu["uuid"] in free or gpu["code"]]
    for gpu in cards:
        if gpu["code"] and gpu["code"] != MEMORY:
            return _broken(gpu["call"], gpu["code"], uvm, f"{gpu['name'] or 'a card'}: ")
        if gpu["right"] is False:
            what = f"{gpu['name']} ({gpu['uuid']}) computes wrong: the sum of two vectors is not what it should be"
            return failed(
                what, "its memory or the card is broken, or it is clocked too high", f"runner gpus drain {gpu['uuid']}"
            )
    if not any(gpu["right"] for gpu in cards):
        return skipped("jobs or others compute on all cards, and are left alone")
    busy = len(said["gpus"]) - sum(bool(gpu["right"]) for gpu in cards)
    more = f"; {busy} in use, left alone" if busy else ""
    return ok(f"{_many(len(said['gpus']) - busy, 'GPU')} added two vectors as they should{more}")


def in_a_job(text: str) -> Finding:
    """What adder.py printed as a job, which has been given a GPU and nothing else."""
    said = last_object(text)
    if not isinstance(said, dict) or "gpus" not in said:
        return failed("the job printed nothing that can be read", "", "runner ps", *text.splitlines()[-5:])
    code = said["code"] or next((gpu["code"] for gpu in said["gpus"]), 100)
    if code:
        call = said["call"] or next((gpu["call"] for gpu in said["gpus"]), "cuDeviceGetCount")
        found = _broken(call, code, True, "in a job, ")
        why = f"{found.why}; outside of the job it works, so it is what the job's unit lets it see"
        return failed(found.what, why, "systemctl cat 'gpubox-job-*'; ls -l /dev/nvidia*")
    if not all(gpu["right"] for gpu in said["gpus"]):
        return failed("in a job, a GPU computes wrong", "", "runner gpus")
    return ok(f"a job computed on {said['gpus'][0]['name']}")


def torch_wish(said: dict[str, Any] | None, index: str = "") -> tuple[str, str]:
    """(what requirements.txt says, in words): wheels that this driver and all of these cards can run."""
    cards = (said or {}).get("gpus", [])
    old = [gpu["name"] for gpu in cards if gpu["capability"] and tuple(gpu["capability"]) < (7, 5)]
    version = (said or {}).get("version") or 0
    if not old and version >= 13000:
        return f"{f'--extra-index-url {index}' + chr(10) if index else ''}torch\n", "as pip and uv choose it"
    why = f"for {old[0]}" if old else f"for a driver of CUDA {version // 1000}.{version % 1000 // 10}"
    return f"--extra-index-url {index or TORCH_OLD_INDEX}\n{TORCH_OLD}\n", f"of CUDA 12.6, {why}"


def trained(text: str, wheels: str) -> Finding:
    said = last_object(text)
    if not isinstance(said, dict) or "torch" not in said:
        return failed("the training printed nothing that can be read", "", "runner ps", *text.splitlines()[-8:])
    where = f"PyTorch {said['torch']} ({wheels})"
    if said.get("error"):
        return failed(f"{where} can't train on the GPU", str(said["error"]), "nvidia-smi", *text.splitlines()[-8:])
    if not said["after"] < said["before"]:
        what = f"{where} trained, but learned nothing: its loss went from {said['before']:.3g} to {said['after']:.3g}"
        return failed(what, "the card computes wrong", "runner gpus")
    speed = f"its loss fell from {said['before']:.3g} to {said['after']:.3g}"
    return ok(f"{where} trained on {said['device']}: {speed}")


def job_failed(reason: str, text: str) -> Finding:
    """The job did not even come to its end."""
    why = reason or "the end of what it printed is below"
    return failed("its job failed", why, "runner ps", *text.splitlines()[-8:])


def not_asked() -> Finding:
    return skipped("fetches some GB: only with --train", "runner doctor --train")


def too_busy(why: str) -> Finding:
    """Others have what it needs, which says nothing of the box."""
    return skipped(f"its job did not end in time and was taken back: {why}", "runner ps")


def last_object(text: str) -> Any:
    """The last line that is a JSON object."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
