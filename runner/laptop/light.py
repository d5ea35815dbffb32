"""JSON from the interpreter's own C code. `import json` also imports `re` and `enum`: half a start of Python (5 ms)
for a command that lives 30 ms. Whatever is unusual here falls back to `json`, whose words and errors are the truth.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    _json: Any
else:
    try:
        import _json
    except ImportError:  # another Python than CPython
        _json = None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


class _Rules:
    """What `_json.make_scanner` reads from the decoder that it serves."""

    strict = True
    object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = staticmethod(_refuse_constant)  # NaN, Infinity
    memo: dict[str, str] = {}

    def __init__(self, hook: Callable[[dict[str, Any]], Any] | None) -> None:
        self.object_hook = hook


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON form")


def dumps(value: object, ordered: bool = False) -> str:
    """Compact and ASCII, keys as they come or in alphabetical order."""
    try:
        encode = _json.make_encoder(None, _refuse, _json.encode_basestring_ascii, None, ":", ",", ordered, False, True)
        return "".join(encode(value, 0))
    except Exception:
        import json

        return json.dumps(value, separators=(",", ":"), sort_keys=ordered)


def loads(text: str, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """ValueError when it is not JSON. hook: what stands for each object."""
    text = text.strip(" \t\n\r")
    try:
        value, end = _json.make_scanner(_Rules(hook))(text, 0)
        if end == len(text):
            return value
    except Exception:
        pass
    import json

    try:
        return json.loads(text, object_hook=hook, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
