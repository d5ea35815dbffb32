"""What a box answers, looked at where it comes in, by answers.json, which `python -m runner.box.openapi` makes of the
API's description. A value of another type is nonsense, and so is a number that no box can mean. What is not in an
answer may be what this box does not know yet: it is missed where somebody needs it.

Shapes: letters are what a value may be (i whole number, n number, s text, b true or false, 0 null), @Name is another
shape, [shape] a list, {"#": [shapes]} one with these in it, {"*": shape} an object of any names, {"name": shape} one
with these, {"?": [shapes]} one of them, null anything.
"""

from __future__ import annotations

import os

from runner import errors
from runner.laptop.light import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LETTERS = {int: "i", float: "n", str: "s", bool: "b", type(None): "0"}
NAMED = {"i": "a whole number", "n": "a number", "s": "text", "b": "true or false", "0": "null"}
PLAIN = (str, bool, type(None))  # of which every value is fine
WHOLE_MAX = 1 << 63
NUMBER_MAX = 1 << 53  # beyond, not even a time can be shown
PREFIX = "/api/v1"
HINT = "`runner doctor` compares the versions; if it stays so, whose box is it?"

_table: dict[str, Any] = {}


class Asked:
    """Whom, and what."""

    __slots__ = ("box", "request")

    def __init__(self, box: str, method: str, path: str) -> None:
        self.box, self.request = box, f"{method} {path}"

    def nonsense(self, why: str) -> errors.BadData:
        return errors.BadData(f"the box {self.box} answered nonsense to {self.request[:200]}: {why}", HINT)


class Said(dict[str, object]):
    """An object that a box sent."""

    __slots__ = ("asked",)
    asked: Asked

    def __missing__(self, name: str) -> Any:
        raise self.asked.nonsense(f'it says no "{name}"')


class Wrong(Exception):
    """Where something else stands than should."""


def read(text: str, asked: Asked) -> Any:
    """JSON, not looked at yet. BadData: it is none."""

    def said(found: dict[str, Any]) -> Said:
        made = Said(found)
        made.asked = asked
        return made

    try:
        return loads(text, said)
    except ValueError:
        raise asked.nonsense("it is no JSON") from None


def checked(value: Any, status: int, asked: Asked) -> Any:
    """The answer to a request, if it is what such a one is answered with. BadData."""
    return of_shape(value, _shape(asked.request, status), asked)


def of_shape(value: Any, shape: Any, asked: Asked) -> Any:
    """A part of an answer that comes as a stream, or the whole. BadData."""
    try:
        _check(value, shape, "it")
    except Wrong as wrong:
        raise asked.nonsense(str(wrong)) from None
    return value


def _shape(request: str, status: int) -> Any:
    """None: nothing is known of it."""
    method, _, path = request.partition(" ")
    parts = path.removeprefix(PREFIX).partition("?")[0].split("/")
    for place, answers in _known("requests").get(method, {}).items():
        names = place.split("/")
        if len(names) == len(parts) and all(a == b or a[:1] == "{" for a, b in zip(names, parts, strict=True)):
            return answers.get(str(status)) or next(iter(answers.values()))
    return None


def _known(part: str) -> Any:
    if not _table:
        with open(f"{os.path.dirname(__file__)}/answers.json", "rb") as file:
            _table.update(loads(file.read().decode()))
    return _table[part]


def _check(value: Any, shape: Any, at: str) -> None:
    if isinstance(shape, str):
        if shape[:1] == "@":
            _check(value, _known("shapes")[shape[1:]], at)
        else:
            _check_plain(value, shape, at)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise Wrong(f"{at} is no list")
        for number, each in enumerate(value):
            _check(each, shape[0], f"{at}[{number}]")
    elif shape is None:
        pass
    elif "?" in shape:
        _check_any(value, shape["?"], at)
    elif "#" in shape:
        _check_row(value, shape["#"], at)
    else:
        _check_object(value, shape, at)


def _check_plain(value: Any, letters: str, at: str) -> None:
    letter = LETTERS.get(type(value), "-")
    if letter not in letters and not (letter == "i" and "n" in letters):
        raise Wrong(f"{at} is not {' or '.join(NAMED[each] for each in letters)}")
    most = WHOLE_MAX if letter == "i" and "i" in letters else NUMBER_MAX
    if letter in "in" and not abs(value) < most:  # also NaN
        raise Wrong(f"{at} is a number beyond all measure")


def _check_any(value: Any, shapes: list[Any], at: str) -> None:
    for shape in shapes[:-1]:
        try:
            return _check(value, shape, at)
        except Wrong:
            pass
    return _check(value, shapes[-1], at)


def _fine(value: Any, shape: Any) -> bool:
    """At once, for nearly all values: 10,000 jobs have some hundred thousand."""
    kind = value.__class__
    if shape.__class__ is not str or shape[0] == "@":
        return kind is list and shape.__class__ is list and not value
    if kind in PLAIN:
        return LETTERS[kind] in shape
    if kind is int:
        return -NUMBER_MAX < value < NUMBER_MAX and ("i" in shape or "n" in shape)
    return kind is float and "n" in shape and -NUMBER_MAX < value < NUMBER_MAX


def _check_row(value: Any, shapes: list[Any], at: str) -> None:
    if not isinstance(value, list) or len(value) != len(shapes):
        raise Wrong(f"{at} is no list of {len(shapes)}")
    for number, each in enumerate(value):
        _check(each, shapes[number], f"{at}[{number}]")


def _check_object(value: Any, shape: dict[str, Any], at: str) -> None:
    if not isinstance(value, dict):
        raise Wrong(f"{at} is no object")
    every = shape.get("*")
    for name, each in value.items() if every is not None else ():
        _check(each, every, f"{at}.{name[:80]}")
    for name, inner in shape.items():
        if name not in value or name == "*":
            continue
        each = value[name]
        if not _fine(each, inner):
            _check(each, inner, f"{at}.{name}")
