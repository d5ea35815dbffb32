"""`python -m runner.box.checks`: what `runner doctor` runs. A finding is a line of JSON; the last is `{"done": true}`.

--only ID[,ID...]           these, and what they stand on
--known ID=STATE[,...]      checks that `runner doctor` made itself
--made                      setup.yml made this computer a box: all checks, not the driver's and the cards' alone
--train, --torch-index URL  as `runner doctor` says
--root DIR                  for tests: where the files of the computer begin
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from runner.box.checks import finding, table
from runner.box.checks.computer import Computer
from runner.box.checks.finding import Finding

FLAGS = ("--made", "--train")
VALUES = ("--only", "--known", "--torch-index", "--root")


def main(arguments: list[str]) -> int:
    given: dict[str, str] = {}
    rest = list(reversed(arguments))
    while rest:
        name = rest.pop()
        if name not in FLAGS + VALUES or (name in VALUES and not rest):
            sys.exit(f"error: the checks take {', '.join(FLAGS)}, and with a value {', '.join(VALUES)}")
        given[name] = rest.pop() if name in VALUES else ""
    computer = Computer(given.get("--root", "/"))
    visit = table.Visit(computer, "--train" in given, given.get("--torch-index", ""))
    all_checks = [check for check in table.checks(visit) if check.everywhere or "--made" in given]
    wanted = finding.chosen(all_checks, filter(None, given.get("--only", "").split(",")))
    known = {id: Finding(state, "", why) for id, (state, why) in json.loads(given.get("--known", "{}")).items()}
    try:
        for found in finding.examine(wanted, computer, known):
            _put(asdict(found))
    except KeyboardInterrupt:
        return 130
    _put({"done": True})
    return 0


def _put(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
