"""PURE: what an Xid, a fault that NVIDIA's driver reports, means: how bad, in words, and what to do about it."""

from __future__ import annotations

CRITICAL, WARNING, JOB, INFO = "critical", "warning", "job", "info"  # job: the program's own fault, not the card's
FELL_OFF = 79

LOOK_AT_HARDWARE = "check riser, slot, power cables and supply; take overclocks and undervolts back"
RESET = "drain it, then `sudo nvidia-smi -r -i INDEX`, or reboot"
LOOK_AT_PROGRAM = "look at the program first: on one job alone it is rarely the card"

# code -> (how bad, what happened, what to do). Severities as gpud and NVIDIA's own catalogue have them.
KNOWN = {
    8: (WARNING, "a program kept it busy for too long without an answer", LOOK_AT_PROGRAM),
    13: (JOB, "an error of the application: its program on the GPU failed", LOOK_AT_PROGRAM),
    31: (JOB, "an error of the application: it reached for GPU memory that is not its own", LOOK_AT_PROGRAM),
    43: (JOB, "an error of the application: its work on the GPU was stopped", LOOK_AT_PROGRAM),
    45: (
        JOB,
        "the driver cleared away what an application left behind",
        "it mostly follows another: see that one",
    ),
    48: (CRITICAL, "its memory has an error that can't be corrected", RESET),
    61: (WARNING, "its power controller met an error", "update the driver; if it comes again, reboot"),
    62: (CRITICAL, "its power controller stopped: it needs a reset", RESET),
    63: (
        INFO,
        "a damaged piece of its memory was taken out of use",
        "the next reset completes that",
    ),
    64: (CRITICAL, "a damaged piece of its memory could not be taken out of use", RESET),
    69: (JOB, "an error of the application: it asked the graphics engine for what it can't do", LOOK_AT_PROGRAM),
    74: (CRITICAL, "its NVLink failed", f"reseat the bridge; {RESET}"),
    79: (CRITICAL, "it fell off the bus", f"{LOOK_AT_HARDWARE}; only a reboot brings it back"),
    92: (INFO, "its memory has many errors that were corrected", "watch whether it goes on"),
    94: (
        WARNING,
        "its memory has an error that hit one application",
        f"start that job again; then {RESET}",
    ),
    95: (CRITICAL, "its memory has an error that may have hit every application", RESET),
    109: (WARNING, "it took too long to switch between applications", "update the driver; if it comes again, reboot"),
    119: (CRITICAL, "its system processor does not answer", "reboot; then update the driver"),
    120: (CRITICAL, "its system processor failed", "reboot; then update the driver"),
    154: (WARNING, "the driver changed what it needs to recover", "`runner gpus --json` says what: recovery"),
}
UNKNOWN = (WARNING, "", "NVIDIA's catalogue of Xids may know it; see the kernel's log")
TEXTS = {code: text for code, (_, text, _) in KNOWN.items()}


def severity(code: int) -> str:
    return KNOWN.get(code, UNKNOWN)[0]


def words(code: int, said: str = "") -> str:
    """What happened; of a code that is not known, what the driver said."""
    return KNOWN.get(code, UNKNOWN)[1] or said


def advice(code: int) -> str:
    return KNOWN.get(code, UNKNOWN)[2]
