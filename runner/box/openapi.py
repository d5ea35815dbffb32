"""`python -m runner.box.openapi`: write the API's description to docs/openapi.json. A test fails when it drifts."""

from __future__ import annotations

import json
import os
import sys

from runner.box.api import make_app

PATH = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "docs/openapi.json")


def description() -> str:
    return json.dumps(make_app(None).openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    with open(PATH, "w") as file:
        file.write(description())
    sys.stderr.write(f"wrote {PATH}\n")
