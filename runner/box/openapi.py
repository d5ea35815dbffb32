"""`python -m runner.box.openapi`: write the API's description to docs/openapi.json; with `-`, to standard output. A
test fails when it drifts."""

from __future__ import annotations

import json
import os
import sys

PATH = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "docs/openapi.json")


def description() -> str:
    os.environ["DESCRIBE_API"] = "1"  # before the routes are made
    from runner.box.api import make_app

    return json.dumps(make_app(None).openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["-"]:
        sys.stdout.write(description())
    else:
        with open(PATH, "w") as file:
            file.write(description())
        sys.stderr.write(f"wrote {PATH}\n")
