"""`python -m runner.box.gpus`: the collector, with a stream socket to the daemon as standard input.

For tests, `--sys DIR`, `--proc DIR` and `--kernel-log FILE` take the place of /sys, /proc and /dev/kmsg, and with
`--pace 10` a second takes a tenth of one.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

from runner import files
from runner.box.gpus.bus import Bus
from runner.box.gpus.collector import Collector, Link, give_up, run
from runner.box.gpus.faults import Hung
from runner.box.gpus.holders import Holders
from runner.box.gpus.kernel_log import KernelLog
from runner.box.gpus.pulse import alone, pulse


def main(arguments: list[str]) -> int:
    options = {"--sys": "/sys", "--proc": "/proc", "--kernel-log": "/dev/kmsg", "--pace": "1"}
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    if len(given) * 2 != len(arguments) or not given.keys() <= options.keys():
        sys.exit(f"error: the collector takes {', '.join(options)}, each with a value")
    options |= given
    try:
        link = socket.socket(fileno=os.dup(0))
    except OSError:
        sys.exit("error: the collector talks to the daemon over a socket as its standard input; the daemon starts it")
    _settle()
    before = alone(os.environ.get("RUNTIME_DIRECTORY", ""))
    if before is not None:
        return give_up(Link(link), Hung(before))
    bus = Bus(options["--sys"], options["--proc"])
    collector = Collector(bus, Holders(options["--proc"]), KernelLog(options["--kernel-log"]))
    gc.collect()
    gc.freeze()
    return run(Link(link), collector, float(options["--pace"]), pulse())


def _settle() -> None:
    """End with the daemon, also while the driver holds a call; whoever started it may have had signals ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the daemon
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    files.die_with_parent(signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
