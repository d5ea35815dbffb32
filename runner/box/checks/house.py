"""PURE: what a box needs besides GPUs: power, no sleep, room, a clock; and the service's own doors."""

from __future__ import annotations

from collections.abc import Sequence

from runner.box.checks.computer import Said
from runner.box.checks.finding import SETUP, Finding, failed, ok, skipped, warning

GIB = 1 << 30
SLEEP = ("sleep.target", "suspend.target", "hibernate.target", "hybrid-sleep.target")
DAY = 86400.0
LAUNCHER = "sudo systemctl restart gpubox-launcher.socket; journalctl -u gpubox-launcher"


def limits(wished: bool, said: Said) -> Finding:
    """said: what the program that sets the limits would change."""
    if not wished:
        return skipped("no limit of power is wished")
    lines = tuple(line for line in said.out.splitlines() if line.strip())
    away = [line for line in lines if line.endswith(")") and "(was " in line]
    if said.code != 0:
        return failed(
            "the limits of power can't be held",
            said.last or "the program that sets them does not answer",
            "sudo /usr/local/sbin/gpubox-power",
            *lines,
        )
    if away:
        why = "the driver was loaded anew, or somebody changed them"
        return failed(f"not in force: {'; '.join(away)}", why, "sudo systemctl start gpubox-power")
    return ok("all in force" if lines else "none of these cards can be limited", *lines)


def suspend(masked: Sequence[str], kept_awake: bool) -> Finding:
    """kept_awake: whether the file of logind's rules is there, by which nothing suspends by itself."""
    open_ones = [name for name in SLEEP if name not in masked]
    if not open_ones:
        return ok("taken away")
    if kept_awake:
        return ok("only when somebody says so")
    return failed(f"this computer may suspend: {', '.join(open_ones)}", "an idle hour or a lid would stop jobs", SETUP)


def disk(place: str, free: int, total: int) -> Finding:
    need = max(GIB, total // 50)
    seen = f"{free / GIB:.1f} of {total / GIB:.0f} GiB free at {place}"
    if free < need:
        return failed(seen, f"with less than {need / GIB:.1f} GiB nothing starts", "runner clean --older-than 7d")
    if free < 3 * need:
        return warning(seen, f"below {need / GIB:.1f} GiB nothing would start", "runner clean --dry-run")
    return ok(seen)


def clock(now: float, newest_file: float, kept: bool, container: str) -> Finding:
    if now < newest_file - DAY:
        why = "files here are younger than it says: certificates and packages will seem not valid yet"
        return failed("the clock is wrong", why, "sudo timedatectl set-ntp true; timedatectl")
    if container:
        return skipped(f"the host of this container ({container}) keeps the clock")
    if not kept:
        return warning("nobody keeps the clock", "or not yet", "sudo timedatectl set-ntp true; timedatectl")
    return ok("kept by a time service")


def launcher(reply: str | None) -> Finding:
    """reply: to a question that is none; None: we may not ask."""
    if reply is None:
        return skipped("the launcher's door is for the queue and root", "sudo runner doctor launcher")
    if reply.startswith("no "):
        return ok("it answers, and refuses what it should")
    return failed("the launcher does not answer", reply or "no job can start", LAUNCHER)


def job(state: str, text: str, user: str, mine: str) -> Finding:
    """A job that says who it is. state: as the queue names it. mine: whoever asks, whom it must not be."""
    who = next((line for line in text.splitlines() if line), "")
    if state != "succeeded":
        end = text.splitlines()[-4:]
        return failed(
            f"a job that only prints a line {state or 'was not taken'}", "", "journalctl -u gpubox -n 20", *end
        )
    if user and who != user:
        why = f"it should be {user}; {mine} asked"
        return failed(f"a job ran as {who or 'nobody known'}", why, SETUP)
    return ok(f"a job ran from end to end{f' as {who}' if user else ''}")
