"""`make bench`: every figure beside its bar, as ratios against a yardstick of the same run. Gates nothing.

python -m bench                 all of M1 to M7, G1 to G4, H1 to H5, L1, L2 and the peers that are installed
python -m bench submit idle     some of them
"""

from __future__ import annotations

import importlib
import os
import platform
import sys

ALL = (
    "submit",
    "laptop",
    "following",
    "first_line",
    "dispatch",
    "throughput",
    "idle",
    "listing",
    "crash",
    "gpus",
    "monitor",
    "peers",
)


def main() -> int:
    wanted = sys.argv[1:] or ALL
    unknown = [name for name in wanted if name not in ALL]
    if unknown:
        print(f"no benchmark named {unknown[0]}; there are {', '.join(ALL)}", file=sys.stderr)
        return 64
    load = os.getloadavg()[0]
    print(f"{platform.platform()}, {os.cpu_count()} cpus, Python {platform.python_version()}, load {load:.2f}")
    for name in wanted:
        for figure in importlib.import_module(f"bench.{name}").measure():
            print(figure.line(), flush=True)
    return 0


sys.exit(main())
