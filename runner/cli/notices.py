"""What the box noticed: notices."""

from __future__ import annotations

from runner.cli import options, output
from runner.laptop import boxes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NOTICES = f"""\
Usage: runner notices [OPTIONS]

What the box noticed and its owner should know, the newest last: faults of the driver, GPUs that are held and do
nothing, jobs that seem to hang, heat, a disk that fills, a card that left. Each once, with what to do.

Options:
  --seen                  you know of all of them: from now on only new ones are shown
  --all                   also those that somebody knows of
{options.COMMON}
Examples:
  runner notices
  runner notices --seen
"""
SHOWN, SHOWN_MAX = 100, 1000


def notices(arguments: list[str]) -> int:
    given = options.parse(NOTICES, arguments)
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
