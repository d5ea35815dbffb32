"""`python -m runner.box.openapi`: write the API's description to docs/openapi.json, and what a laptop checks of it to
runner/laptop/answers.json; with `-`, the first to standard output. A test fails when they drift."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

HOUSE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATH, ANSWERS = f"{HOUSE}/docs/openapi.json", f"{HOUSE}/runner/laptop/answers.json"
ROWS = {("Manifest", "files"): {"*": {"#": ["i", "i", "s"]}}}  # what the description does not say so narrowly
LETTERS = {"integer": "i", "number": "n", "string": "s", "boolean": "b", "null": "0"}


def description() -> str:
    os.environ["DESCRIBE_API"] = "1"  # before the routes are made
    from runner.box.api import make_app

    return json.dumps(make_app(None).openapi(), indent=1, sort_keys=True) + "\n"


def answers(described: str) -> str:
    """What laptop/answers.py looks at: the shapes of all answers in JSON."""
    whole = json.loads(described)
    known = whole["components"]["schemas"]
    requests: dict[str, dict[str, dict[str, Any]]] = {}
    wanted: list[str] = []
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            if found := dict(_answers(operation, wanted)):
                requests.setdefault(method.upper(), {})[path.removeprefix("/api/v1")] = found
    shapes: dict[str, Any] = {}
    for name in wanted:  # which grows meanwhile
        if name not in shapes:
            shapes[name] = _shape(known[name], wanted)
    for (name, field), narrower in ROWS.items():
        shapes[name][field] = narrower
    lines = [f" {json.dumps(name)}: {_compact(shape)}" for name, shape in sorted(shapes.items())]
    asked = [f" {json.dumps(method)}: {_compact(places)}" for method, places in sorted(requests.items())]
    return '{"requests": {\n' + ",\n".join(asked) + '\n}, "shapes": {\n' + ",\n".join(lines) + "\n}}\n"


def _answers(operation: dict[str, Any], wanted: list[str]) -> Iterator[tuple[str, Any]]:
    for status, reply in operation["responses"].items():
        schema = reply.get("content", {}).get("application/json", {}).get("schema")
        if status[0] == "2" and schema:
            yield status, _shape(schema, wanted)


def _shape(schema: dict[str, Any], wanted: list[str]) -> Any:
    """As laptop/answers.py explains them; None: anything. wanted: names of those that it mentions are added to it."""
    if "$ref" in schema:
        wanted.append(schema["$ref"].rpartition("/")[2])
        return "@" + wanted[-1]
    if "anyOf" in schema:
        return _any([_shape(each, wanted) for each in schema["anyOf"]])
    if schema.get("type") == "array":
        return [_shape(schema.get("items", {}), wanted)]
    if schema.get("type") == "object":
        if "properties" in schema:
            return {name: _shape(each, wanted) for name, each in schema["properties"].items()}
        more = schema.get("additionalProperties")
        return {"*": _shape(more, wanted) if isinstance(more, dict) else None}
    return LETTERS[schema["type"]] if "type" in schema else None


def _any(shapes: list[Any]) -> Any:
    if None in shapes:
        return None
    plain = "".join(each for each in shapes if isinstance(each, str) and each[0] != "@")
    others = [each for each in shapes if not isinstance(each, str) or each[0] == "@"]
    return {"?": [plain, *others] if plain else others} if others else plain


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


if __name__ == "__main__":
    if sys.argv[1:] == ["-"]:
        sys.stdout.write(description())
    else:
        for place, text in ((PATH, said := description()), (ANSWERS, answers(said))):
            with open(place, "w") as file:
                file.write(text)
            sys.stderr.write(f"wrote {place}\n")
