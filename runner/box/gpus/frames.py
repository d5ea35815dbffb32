"""One line of the collector, as values. Pure.

The collector may hang, lie or be somebody else: a line that can't be trusted as a whole raises ValueError, a field that
makes no sense is left out, and every text is short and printable, so that it can go into a log, a terminal, JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from runner.model import Process

LINE_MAX = 1 << 20  # bytes
CARDS_MAX = 64
PROCESSES_MAX = 1024  # on one card
XIDS_MAX = 256  # in one frame
LINKS_MAX = CARDS_MAX * CARDS_MAX
LEVEL_MAX = 1000
ANCESTORS_MAX = 128
WORD_MAX, TEXT_MAX = 128, 4096  # characters
TIME_MAX = 1e11  # in the year 5138
BYTES_MAX = 1 << 60  # a driver says "not available" with 2**64 - 1
PID_MAX = (1 << 31) - 1
COUNT_MAX = (1 << 63) - 1  # what a database can hold

OK, ASLEEP, LOST, ERROR = "ok", "asleep", "lost", "error"
CARD_STATES = (OK, ASLEEP, LOST, ERROR)
PROCESS_KINDS = ("compute", "graphics", "both")
TROUBLES = ("no_library", "driver_not_loaded", "version_mismatch", "no_gpu", "no_permission", "unknown")
NONSENSE = "what was read makes no sense"


@dataclass(slots=True)
class Reading:
    """One card, as it was read in one cycle."""

    uuid: str
    index: int | None = None
    name: str = ""
    bus_id: str = ""
    memory_bytes: int | None = None
    unified: bool = False
    state: str = OK  # of CARD_STATES
    detail: str = ""  # lost, error: in words
    sample: dict[str, object] = field(default_factory=dict)  # fields of model.Sample but `at`, with their types
    absent: dict[str, str] = field(default_factory=dict)  # field of model.Sample -> why it is not in `sample`
    processes: list[Process] | None = None  # None: not read in this cycle
    architecture: int | None = None  # NVML's number


@dataclass(slots=True)
class Xid:
    """A fault that the driver told, in the kernel's log or by itself."""

    at: float
    bus_id: str
    code: int
    text: str = ""
    pid: int | None = None  # of the process that it is laid to, where the driver says so


@dataclass(slots=True)
class Frame:
    """All cards that are there, in one cycle. A card that is not in it is missing, unless some are unnamed."""

    at: float
    driver: str = ""
    cuda: str = ""
    cost: float | None = None  # seconds that the cycle took
    cards: list[Reading] = field(default_factory=list)
    links: dict[tuple[str, str], int] | None = None  # sorted pair of UUIDs -> topology level; None: as before
    xids: list[Xid] = field(default_factory=list)
    unnamed: int = 0  # cards that are there and can't say who they are: those that are missing may be among them


@dataclass(slots=True)
class Probe:
    """One card, read at once because somebody asked."""

    at: float
    card: Reading


@dataclass(slots=True)
class Trouble:
    """Nothing can be read; the collector ends after it said so."""

    at: float
    code: str  # of TROUBLES
    message: str
    hint: str = ""


def parse(line: bytes) -> Frame | Probe | Trouble:
    """The value of one line. ValueError says in words why it has none."""
    if len(line) > LINE_MAX:
        raise ValueError(f"a line of over {LINE_MAX} bytes")
    try:
        said = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ValueError("a line that is not JSON") from None
    if not isinstance(said, dict):
        raise ValueError("a line that is not an object")
    at = _number(said.get("at"), 0.0, TIME_MAX)
    if not at:
        raise ValueError("a line without its time")
    kind = said.get("kind")
    if kind == "frame":
        return _frame(said, at)
    if kind == "probe":
        return _probe(said, at)
    if kind == "trouble":
        return _trouble(said, at)
    raise ValueError("a line of no known kind")


# --- the kinds ---


def _frame(said: Mapping[str, object], at: float) -> Frame:
    return Frame(
        at,
        _text(said.get("driver"), WORD_MAX),
        _text(said.get("cuda"), WORD_MAX),
        _number(said.get("cost"), 0.0, TIME_MAX),
        _cards(said.get("gpus")),
        _links(said.get("links")),
        _xids(said.get("xids")),
        _whole(said.get("unnamed"), 0, COUNT_MAX) or 0,
    )


def _probe(said: Mapping[str, object], at: float) -> Probe:
    cards = _cards(said.get("gpus"))
    if len(cards) != 1:
        raise ValueError("a probe of not one GPU")
    return Probe(at, cards[0])


def _trouble(said: Mapping[str, object], at: float) -> Trouble:
    code = said.get("code")
    known = code if isinstance(code, str) and code in TROUBLES else "unknown"
    message = _text(said.get("message"), TEXT_MAX) or "the GPUs can't be read"
    return Trouble(at, known, message, _text(said.get("hint"), TEXT_MAX))


# --- their parts ---


def _cards(said: object) -> list[Reading]:
    """A frame says which cards there are. One that can't be told apart makes all of them doubtful: ValueError."""
    if not isinstance(said, list) or len(said) > CARDS_MAX:
        raise ValueError("a line without a list of GPUs")
    cards = [_card(card) for card in said]
    if len({card.uuid for card in cards}) < len(cards):
        raise ValueError("a line that has a GPU twice")
    return cards


def _card(said: object) -> Reading:
    if not isinstance(said, dict):
        raise ValueError("a GPU that is not an object")
    uuid = said.get("uuid")
    if not _is_uuid(uuid):
        raise ValueError("a GPU without its UUID")
    state, detail = said.get("state"), _text(said.get("detail"), TEXT_MAX)
    if not isinstance(state, str) or state not in CARD_STATES:
        state, detail = ERROR, "its state makes no sense"
    card = Reading(
        uuid,
        _whole(said.get("index"), 0, 1 << 20),
        _text(said.get("name"), WORD_MAX),
        _text(said.get("bus_id"), WORD_MAX),
        _whole(said.get("memory_bytes"), 1, BYTES_MAX),
        said.get("unified") is True,
        state,
        detail,
        absent=_absent(said.get("absent")),
        processes=_processes(said.get("processes")),
        architecture=_whole(said.get("architecture"), 1, 1 << 10),
    )
    _fill_sample(card, said.get("sample"))
    return card


def _is_uuid(said: object) -> TypeGuard[str]:
    """It is a key, one word of a line to the collector, and half of the name of a link."""
    if not isinstance(said, str) or not 0 < len(said) <= WORD_MAX:
        return False
    return said.isascii() and said.isprintable() and " " not in said


def _fill_sample(card: Reading, said: object) -> None:
    if not isinstance(said, dict):
        return
    for name, value in said.items():
        read = _SAMPLE.get(name)
        if read is None or value is None:
            continue
        kept = read(value)
        if kept is None:
            card.absent[name] = NONSENSE
        else:
            card.sample[name] = kept
            card.absent.pop(name, None)


def _absent(said: object) -> dict[str, str]:
    if not isinstance(said, dict):
        return {}
    return {name: _text(why, WORD_MAX) for name, why in said.items() if name in _SAMPLE}


def _processes(said: object) -> list[Process] | None:
    if not isinstance(said, list):
        return None
    found = (_process(process) for process in said[:PROCESSES_MAX])
    return [process for process in found if process is not None]


def _process(said: object) -> Process | None:
    if not isinstance(said, dict):
        return None
    pid = _whole(said.get("pid"), 1, PID_MAX)
    if pid is None:
        return None
    kind = said.get("kind")
    return Process(
        pid,
        _whole(said.get("started"), 0, COUNT_MAX) or 0,
        _whole(said.get("memory_bytes"), 0, BYTES_MAX),
        kind if isinstance(kind, str) and kind in PROCESS_KINDS else "compute",
        said.get("alive") is not False,
        _text(said.get("user"), WORD_MAX),
        _text(said.get("command"), TEXT_MAX),
        _text(said.get("launch"), WORD_MAX) or None,
        _ancestors(said.get("ancestors")),
        utilization=_number(said.get("utilization"), 0.0, 1.0),
    )


def _ancestors(said: object) -> list[int]:
    if not isinstance(said, list):
        return []
    return [pid for pid in said[:ANCESTORS_MAX] if _whole(pid, 1, PID_MAX) is not None]


def _links(said: object) -> dict[tuple[str, str], int] | None:
    if not isinstance(said, dict) or len(said) > LINKS_MAX:
        return None
    links = {}
    for pair, value in said.items():
        ends = sorted(pair.split(" "))
        level = _whole(value, 0, LEVEL_MAX)
        if level is not None and len(ends) == 2 and _is_uuid(ends[0]) and _is_uuid(ends[1]):
            links[ends[0], ends[1]] = level
    return links


def _xids(said: object) -> list[Xid]:
    if not isinstance(said, list):
        return []
    found = (_xid(xid) for xid in said[:XIDS_MAX])
    return [xid for xid in found if xid is not None]


def _xid(said: object) -> Xid | None:
    if not isinstance(said, dict):
        return None
    at, code = _number(said.get("at"), 0.0, TIME_MAX), _whole(said.get("code"), 0, 1 << 31)
    bus_id = _text(said.get("bus_id"), WORD_MAX)
    if at is None or code is None or not bus_id:
        return None
    return Xid(at, bus_id, code, _text(said.get("text"), TEXT_MAX), _whole(said.get("pid"), 1, PID_MAX))


# --- their values ---


def _number(said: object, least: float, most: float) -> float | None:
    """NaN is in no range; True is no number."""
    return float(said) if (type(said) is float or type(said) is int) and least <= said <= most else None


def _whole(said: object, least: int, most: int) -> int | None:
    return said if type(said) is int and least <= said <= most else None


def _text(said: object, most: int) -> str:
    """Short and printable: without escapes for terminals, and without surrogates, which no file takes."""
    if not isinstance(said, str):
        return ""
    if len(said) > most:
        said = said[: most - 3] + "..."
    return said if said.isprintable() else "".join(c if c.isprintable() else " " for c in said)


Read = Callable[[object], object]  # None: it makes no sense


def _between(least: float, most: float) -> Read:
    return lambda said: _number(said, least, most)


def _count(most: int, least: int = 0) -> Read:
    return lambda said: _whole(said, least, most)


def _words(said: object) -> list[str] | None:
    return [_text(word, WORD_MAX) for word in said[:64] if isinstance(word, str)] if isinstance(said, list) else None


def _seconds(said: object) -> dict[str, float] | None:
    if not isinstance(said, dict) or len(said) > 64:
        return None
    read = ((_text(name, WORD_MAX), _number(value, 0.0, TIME_MAX)) for name, value in said.items())
    return {name: value for name, value in read if value is not None}


def _flag(said: object) -> bool | None:
    return said if isinstance(said, bool) else None


_SHARE = _between(0.0, 1.0)

# Every field of model.Sample but `at`, and what it may be.
_SAMPLE: dict[str, Read] = {
    "memory_used_bytes": _count(BYTES_MAX),
    "utilization": _SHARE,
    "memory_utilization": _SHARE,
    "power_watts": _between(0.0, 1e5),
    "temperature_celsius": _between(-100.0, 1000.0),
    "sm_clock_hertz": _between(0.0, 1e11),
    "throttled_by": _words,
    "fan": _between(0.0, 2.0),  # of its highest speed, which some cards pass
    "performance_state": _count(15),
    "memory_clock_hertz": _between(0.0, 1e11),
    "energy_joules": _between(0.0, 1e15),
    "throttled_seconds": _seconds,
    "memory_temperature_celsius": _between(-100.0, 1000.0),
    "power_limit_watts": _between(0.0, 1e5),
    "power_limit_default_watts": _between(0.0, 1e5),
    "slowdown_celsius": _between(0.0, 1000.0),
    "shutdown_celsius": _between(0.0, 1000.0),
    "pcie_generation": _count(32, 1),
    "pcie_width": _count(64, 1),
    "pcie_generation_most": _count(32, 1),
    "pcie_width_most": _count(64, 1),
    "remap_pending": _flag,
    "remap_failed": _flag,
    "ecc_errors": _count(COUNT_MAX),
    "recovery": lambda said: _text(said, WORD_MAX) or None,
    "persistence": _flag,
    "pcie_sent_per_second": _between(0.0, 1e13),
    "pcie_received_per_second": _between(0.0, 1e13),
    "encoder": _SHARE,
    "decoder": _SHARE,
}
