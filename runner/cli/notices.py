"""What the box noticed: notices."""

from __future__ import annotations

from runner import errors
from runner.cli import options, output
from runner.laptop import boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.options import Given

NOTICES = f"""\
Usage: runner notices [OPTIONS]
       runner notices test [OPTIONS]

What the box noticed and its owner should know, the newest last: faults of the driver, GPUs that are held and do
nothing, jobs that seem to hang, heat, a disk that fills, a card that left. Each once, with what to do.

Test:
  test                    have the box send something by each way that its settings name (ntfy, a webhook, a command),
                          and say what came of it

Options:
  --seen                  you know of all of them: from now on only new ones are shown
  --all                   also those that somebody knows of
{options.COMMON}
Examples:
  runner notices
  runner notices --seen
  runner notices test
"""
SHOWN, SHOWN_MAX = 100, 1000


def notices(arguments: list[str]) -> int:
    given = options.parse(NOTICES, arguments)
    if given.words == ["test"]:
        return _test(given)
    options.no_words(given, NOTICES)
    api = boxes.open_box(given.get("--box"))
    unseen = "false" if "--all" in given else "true"
    most = SHOWN_MAX if "--seen" in given else SHOWN  # nobody knows of what was not shown
    found: list[dict[str, Any]] = api.get(f"/notices?limit={most}&unseen={unseen}")["notices"]
    if "--seen" in given and found:
        api.post("/notices/seen", {"up_to": found[0]["id"]})
    if "--json" in given:
        output.json(found)
        return 0
    for notice in reversed(found):
        output.put(f"{output.moment(notice['at'])}  {notice['severity']:<8}  {output.clean(notice['text'])}\n")
        if notice.get("hint"):
            output.put(f"{'':31}{output.clean(notice['hint'])}\n")
    if not found:
        output.say("nothing new" if unseen == "true" else "nothing was ever noticed")
    elif len(found) == most:
        output.say(f"the last {most}; there may be more")
    return 0


def _test(given: Given) -> int:
    """Its exit code is 0 when every way took it."""
    if "--seen" in given or "--all" in given:
        raise errors.BadRequest("runner notices test takes neither --seen nor --all", "`runner notices test`")
    outcomes: list[dict[str, Any]] = boxes.open_box(given.get("--box")).post("/notices/test")["outcomes"]
    if "--json" in given:
        output.json(outcomes)
    else:
        for each in outcomes:
            output.put(f"{'sent' if each['ok'] else 'not sent'}  {output.clean(each['said'])}\n")
            if not each["ok"] and each["hint"]:
                output.put(f"          {output.clean(each['hint'])}\n")
        if not all(each["ok"] for each in outcomes):
            output.say(
                "after a change in box.toml: `runner serve --stop`, or sudo systemctl restart gpubox on a made box"
            )
    return 0 if all(each["ok"] for each in outcomes) else 1
