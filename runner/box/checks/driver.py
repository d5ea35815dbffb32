"""PURE: whether the driver in the kernel is the one that is installed, and will be there after the next start."""

from __future__ import annotations

from collections.abc import Sequence

from runner.box.checks.computer import Card, Kernel, SecureBoot
from runner.box.checks.finding import SETUP, Finding, failed, ok, skipped, warning

RESTART = "runner drain    # and when `runner ps` shows no running job: sudo reboot"
ENROL = "sudo mokutil --import {}    # then restart with screen and keyboard, and choose Enroll MOK"


def nouveau(cards: Sequence[Card], kept_out: bool) -> Finding:
    held = [card.address for card in cards if card.driver == "nouveau"]
    if not held:
        return ok("nouveau holds no card")
    why = "it was loaded before the file that keeps it out was written" if kept_out else "nothing keeps it out"
    return failed(
        f"nouveau holds {_list(held)}: NVIDIA's driver can't",
        why,
        "sudo update-initramfs -u -k all && sudo reboot" if kept_out else SETUP,
    )


def dkms(
    broken: Sequence[str], status: Sequence[str], kernels: Sequence[Kernel], running: str, log: Sequence[str]
) -> Finding:
    """Modules that are built on this computer, for each kernel. status: lines of `dkms status`."""
    if broken:
        return failed(
            f"dpkg did not finish: {'; '.join(broken)}",
            "a module did not build, most likely: the last lines of its build are below"
            if log
            else "it was interrupted, or a step of a package failed",
            "sudo dpkg --configure -a    # says why; " + SETUP + " finds a driver that builds",
            *log,
        )
    if not status:
        return skipped("no NVIDIA module is built here: they come ready-made, or there is none")
    following = kernels[-1].release if kernels else running
    missing = [
        release
        for release in dict.fromkeys((running, following))
        if not any(f" {release}," in line.replace("/", " ") and ": installed" in line for line in status)
    ]
    if missing:
        return failed(
            f"no NVIDIA module is built for {_list(missing)}",
            "its build failed, or the kernel's headers are missing",
            f"sudo dkms autoinstall -k {missing[-1]}",
            *status,
            *log,
        )
    return ok(f"built for {_list(dict.fromkeys((running, following)))}", *status)


def secure_boot(boot: SecureBoot, kernels: Sequence[Kernel], running: str) -> Finding:
    """Whether the modules of the running kernel and of the next one are signed by somebody whom the kernel trusts."""
    if boot.on is False:
        return ok("off: modules need no signature")
    if boot.on is None:
        return warning("whether it is on can't be read", "the firmware's variables are not there", "mokutil --sb-state")
    ours = [kernel for kernel in kernels if kernel.module and kernel.release in (running, kernels[-1].release)]
    unsigned = [kernel.release for kernel in ours if not kernel.signer]
    if unsigned:
        next = ENROL.format(boot.key) if boot.key else SETUP
        return failed(f"on, and the module for {_list(unsigned)} is not signed", "the kernel will not load it", next)
    if not any(kernel.built_here for kernel in ours):
        return ok("on, and the modules are signed by the distribution" if ours else "on; there is no module to sign")
    if boot.enrolled:
        return ok(f"on, and {boot.key}, which signs the modules, is enrolled")
    if boot.pending:
        return failed(
            f"on, and {boot.key} waits to be enrolled",
            "the blue screen of the next start asks for it, for ten seconds; it needs a screen and a keyboard",
            "sudo reboot    # then: Enroll MOK, Continue, Yes, the password",
        )
    if boot.enrolled is None:
        return warning(f"on; whether {boot.key} is enrolled can't be read", "", f"mokutil --test-key {boot.key}")
    return failed(
        f"on, and {boot.key or 'the key'}, which signs the modules, is not enrolled",
        "the kernel answers `Key was rejected by service`",
        ENROL.format(boot.key or "/var/lib/dkms/mok.pub"),
    )


def loaded(version: str, kernels: Sequence[Kernel], running: str, cards: Sequence[Card]) -> Finding:
    if version:
        return ok(f"{version} is loaded")
    here = next((kernel for kernel in kernels if kernel.release == running), Kernel(running))
    holders = sorted({card.driver for card in cards if card.driver and not card.driver.startswith("nvidia")})
    if holders:
        return failed(f"{_list(holders)} holds the cards, not NVIDIA's driver", "", SETUP)
    if not here.module:
        other = next((kernel.release for kernel in reversed(kernels) if kernel.module), "")
        if other:
            why = f"it was built for {other}: a restart into that kernel brings it"
            return failed(f"the running kernel {running} has no NVIDIA module", why, "sudo reboot")
        return failed("no NVIDIA driver is installed", f"no kernel here has its module, {running} neither", SETUP)
    return failed(
        f"the NVIDIA driver is not loaded, though {running} has it",
        "the kernel's log says why it could not be",
        "sudo modprobe nvidia; sudo dmesg | grep -i nvrm",
    )


def versions_agree(version: str, library: str, kernels: Sequence[Kernel]) -> Finding:
    """What is in the kernel, what programs use, and what the next start loads."""
    following = kernels[-1].version if kernels else ""
    if not library:
        return failed(
            f"the module {version} is loaded, but libnvidia-ml.so.1 is missing", "its packages are not all there", SETUP
        )
    if library != version:
        return failed(
            f"module {version} loaded, {library} installed: running jobs go on, new ones fail until a restart",
            "the packages of the driver were upgraded while it was in use",
            RESTART if following in ("", library) else SETUP,
        )
    if following and following != library:
        return warning(
            f"{version} works now, but the next start loads the module {following}",
            f"its libraries are {library}: after the restart they would not fit",
            "sudo dkms autoinstall && sudo update-initramfs -u -k all",
        )
    return ok(f"module and libraries are {version}")


def next_boot(kernels: Sequence[Kernel]) -> Finding:
    """The newest kernel is what the boot loader takes, unless somebody told it otherwise."""
    if not kernels:
        return skipped("no kernel is installed here: somebody else starts this computer")
    following = kernels[-1]
    without = [f"{kernel.release} has none, either" for kernel in kernels[:-1] if not kernel.module]
    if following.module:
        return ok(f"{following.release} has {following.module}", *without)
    return failed(
        f"the kernel that starts next, {following.release}, has no NVIDIA module: the next restart loses the GPUs",
        "it was not built for that kernel, or its package did not come along",
        f"sudo apt-get install linux-headers-{following.release} && sudo dkms autoinstall -k {following.release}",
        *without,
    )


def _list(names: Sequence[str] | dict[str, None]) -> str:
    return ", ".join(names)
