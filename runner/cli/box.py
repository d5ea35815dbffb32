"""The box itself: drain, clean, serve."""

from __future__ import annotations

import time

from runner import errors
from runner.cli import options, output, values
from runner.laptop import addresses, boxes, client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DRAIN = """\
Usage: runner drain [OPTIONS]

Let running jobs end and start no others, for maintenance. Jobs can still be submitted; they wait.
`runner gpus drain` does that to a single GPU.

Options:
  --off                   start jobs again
  --json                  as JSON
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner drain
  runner drain && runner wait $(runner ps -q --state running)
  runner drain --off
"""
CLEAN = """\
Usage: runner clean [OPTIONS]

Remove what is older or larger than the box's settings say: logs, code, environments, outputs that were brought home.
Outputs that nobody has fetched are only removed by --unfetched.

Options:
  --dry-run               say what would be removed, and remove nothing
  --older-than TIME       this old, such as 12h or 7d, instead of what the settings say; 0 is everything
  --unfetched             outputs that nobody has fetched, and nothing else
  --json                  as JSON
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text

Examples:
  runner clean --dry-run
  runner clean --older-than 7d
  runner clean --unfetched --older-than 30d
"""
SERVE = """\
Usage: runner serve [OPTIONS]

Run this computer's box in this terminal until Ctrl-C. Without it, the first command that needs the box starts it in
the background, and it ends after 15 minutes without work. Where `setup.yml` made a box of this computer, it is a
service that systemd starts and stops.

Options:
  --demo                  play a day of four people on four GPUs, none of which exist, until Ctrl-C: on a state of its
                          own, wiped at each start, that other commands reach with `--box demo`. It needs a C compiler
                          and the source tree
  --stop                  stop the one that runs; jobs that run go on and are picked up again later
  -h, --help              this text

Examples:
  runner serve
  runner serve --demo
  runner serve --stop
  GPUBOX_STATE=/tmp/try runner serve
"""
STOP_SECONDS = 10.0
KINDS = {  # in words of `runner clean`
    "envs": "environments",
    "trees": "work trees",
    "unfetched": "outputs not fetched",
}


def drain(arguments: list[str]) -> int:
    given = options.parse(DRAIN, arguments)
    options.no_words(given, DRAIN)
    api = boxes.open_box(given.get("--box"))
    wanted = "--off" not in given
    answer = api.post("/box/drain", {"on": wanted})
    if "--json" in given:
        output.json(answer)
    elif wanted:
        output.say(f"{api.box} starts no more jobs; `runner drain --off` ends that")
    else:
        output.say(f"{api.box} starts jobs again")
    return 0


def clean(arguments: list[str]) -> int:
    given = options.parse(CLEAN, arguments)
    options.no_words(given, CLEAN)
    api = boxes.open_box(given.get("--box"))
    trial = "--dry-run" in given
    answer = api.post("/box/clean", _wanted(given))
    if "--json" in given:
        output.json(answer)
        return 0
    totals: dict[str, list[int]] = {}
    for removed in answer["removed"]:
        total = totals.setdefault(removed["kind"], [0, 0])
        total[0] += 1
        total[1] += removed["bytes"]
    if totals:
        rows = [[KINDS.get(kind, kind), str(count), output.size(size)] for kind, (count, size) in totals.items()]
        output.table(("WHAT", "COUNT", "SIZE"), rows, gives_way=())
    if answer["kept_unfetched"]["count"]:
        output.say(_kept(answer["kept_unfetched"]))
    freed = output.size(sum(size for _, size in totals.values()))
    verb = "would be freed" if trial else "freed"
    output.say(f"{freed} {verb}" if totals else "nothing to remove")
    return 0


def _wanted(given: options.Given) -> dict[str, Any]:
    wanted: dict[str, Any] = {"dry_run": "--dry-run" in given}
    if (age := given.get("--older-than")) is not None:
        wanted["older_than_days"] = 0.0 if age == "0" else values.duration("--older-than", age) / values.SECONDS["d"]
    if "--unfetched" in given:
        wanted["unfetched"] = True
    return wanted


def _kept(kept: dict[str, Any]) -> str:
    """What stays because nobody has fetched it, and how it gets home, or goes."""
    jobs: list[int | str] = [int(job) for job in kept["jobs"]]
    named = values.query(jobs)
    more = "" if kept["count"] == len(jobs) else " and more"
    return (
        f"kept: {output.size(kept['bytes'])} of outputs that nobody has fetched, of "
        f"{'job' if kept['count'] == 1 else output.many(kept['count'], 'job') + ':'} {named}{more}\n"
        f"      `runner pull {jobs[0]}` brings them home, `runner clean --unfetched --older-than 0` removes them"
    )


def serve(arguments: list[str]) -> int:
    given = options.parse(SERVE, arguments)
    options.no_words(given, SERVE)
    demo = "--demo" in given
    if not demo and boxes.provisioned():
        verb = "stop" if "--stop" in given else "restart"
        raise errors.Refused(
            "this computer's box is a service: systemd runs it, from boot on",
            f"sudo systemctl {verb} gpubox; jobs go on",
        )
    if "--stop" not in given:
        boxes.exec_daemon(*(["--demo"] if demo else []))
    return _stop(addresses.DEMO if demo else addresses.LOCAL)


def _stop(box: str) -> int:
    api = boxes.open_box(box, start=False)
    api.greet = None  # an older daemon is stopped, not renewed
    try:
        api.request("POST", "/box/stop", json={})
    except client.Lost:
        pass  # it left before the end of its answer
    except errors.Unreachable as gone:
        output.say(gone.message)
        return 0
    api.close()
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            api.connect().close()
        except errors.Unreachable:
            output.say("stopped")
            return 0
        time.sleep(0.02)
    raise errors.Busy(f"the box's daemon is still there after {STOP_SECONDS:.0f} s", "its log says what it waits for")
