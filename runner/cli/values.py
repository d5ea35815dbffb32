"""What people type for a time, a size, some jobs, an array: read, or refused in a sentence that says what to type."""

from __future__ import annotations

import os

from runner import errors, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SWEEP_LIMIT = 10_000  # model.SWEEP_LIMIT, which costs an import of dataclasses
IDS_LIMIT = 100_000
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
MEMORY_LEAST = 1 << 20


def whole(option: str, text: str, least: int = 0) -> int:
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) > 12:
        raise errors.BadRequest(f"{option} takes a whole number of at most 12 digits: not {len(digits)} of them")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 12 or int(text) < least:
        bound = f", at least {least}" if least >= 0 else ""
        raise errors.BadRequest(f'{option} takes a whole number{bound}: not "{text}"')
    return int(text)


def duration(option: str, text: str) -> float:
    """90, 45m, 2h30m, 12:00:00 or 1-12:00:00, in seconds."""
    seconds = _clock(text) if ":" in text else _units(text)
    if seconds is None:
        hint = "such as 90 (seconds), 45m, 2h30m or 1-12:00:00"
        raise errors.BadRequest(f'{option} takes a time: not "{text}"', hint)
    if seconds <= 0:
        raise errors.BadRequest(f"{option} must be longer than 0 seconds")
    return seconds


def _units(text: str) -> float | None:
    """90, 1.5h, 2h30m: numbers with falling units; a number alone is seconds."""
    total, number, last = 0.0, "", float("inf")
    for letter in text.lower():
        if letter in "0123456789.":
            number += letter
            continue
        unit = SECONDS.get(letter)
        if unit is None or not _decimal(number) or unit >= last:
            return None
        total, number, last = total + float(number) * unit, "", unit
    if not number:
        return total if last != float("inf") else None
    return float(number) if last == float("inf") and _decimal(number) else None


def _clock(text: str) -> float | None:
    """[days-]hours:minutes:seconds. Two fields could mean hours or minutes, so they are not taken."""
    days, dash, clock = text.rpartition("-")
    fields = clock.split(":")
    if len(fields) != 3 or not all(f.isascii() and f.isdigit() and len(f) < 5 for f in fields):
        return None
    if dash and not (days.isascii() and days.isdigit() and len(days) < 5):
        return None
    hours, minutes, seconds = map(int, fields)
    if minutes > 59 or seconds > 59:
        return None
    return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds)


def size(option: str, text: str, least: int = 0) -> int:
    """8G, 1.5GiB, 512M: powers of 1024, in bytes."""
    number = text.lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:] in ("k", "m", "g", "t") else ""
    number = number.removesuffix(unit)
    if not _decimal(number):
        raise errors.BadRequest(f'{option} takes a size: not "{text}"', "such as 8G, 1.5G or 512M")
    size_bytes = int(float(number) * BYTES[unit])
    if size_bytes < least:
        hint = "" if unit else f"for gibibytes write {text}G"
        raise errors.BadRequest(f"{option} {text} is {size_bytes} bytes", hint)
    return size_bytes


def folder(option: str, text: str) -> str:
    """One that is there, by its whole path."""
    if not os.path.isdir(text):
        raise errors.NotFound(f"{option} {text}: there is no such folder", f"mkdir -p {text}")
    return os.path.abspath(text)


def choice(option: str, text: str, known: tuple[str, ...]) -> str:
    if text not in known:
        guess = errors.nearest(text, known)
        raise errors.BadRequest(f'{option} takes {" or ".join(known)}: not "{text}"{guess}')
    return text


def _decimal(text: str) -> bool:
    return text.isascii() and 0 < len(text) < 16 and text.replace(".", "", 1).isdigit()


# --- jobs ------------------------------------------------------------------------------------------------------------


def jobs(typed: list[str], command: str) -> list[int | str]:
    """42, 42-50 and g42 as the API takes them: numbers, and groups by name."""
    if not typed:
        raise errors.BadRequest(f"{command} needs the id of a job", f"such as `{command} 42`; `runner ps` lists them")
    found: list[int | str] = []
    for text in typed:
        for part in text.split(","):
            if part[:1] == "g" and _is_id(part[1:]):
                found.append(part)
            else:
                found += _span(part)
    return list(dict.fromkeys(found))


def _span(text: str) -> range:
    first, dash, last = text.partition("-")
    if not _is_id(first) or (dash and not _is_id(last)):
        raise errors.BadRequest(f'"{text}" is not a job', "jobs are named 42, 42-50 or g42; `runner ps` lists them")
    span = range(int(first), int(last or first) + 1)
    if not span:
        raise errors.BadRequest(f"{text} runs backwards", f"write {last}-{first}")
    if len(span) > IDS_LIMIT:
        raise errors.BadRequest(f"{text} is more than {IDS_LIMIT} jobs")
    return span


def job(typed: list[str], command: str) -> int:
    """Exactly one job."""
    found = jobs(typed, command)
    if len(found) != 1 or not isinstance(found[0], int):
        raise errors.BadRequest(f"{command} takes one job", f"such as `{command} 42`")
    return found[0]


def query(ids: list[int | str]) -> str:
    """The shortest text of some jobs for a query: 1,2,3,7 is 1-3,7."""
    return ",".join(_runs(ids))


def _runs(ids: list[int | str]) -> Iterator[str]:
    yield from (part for part in ids if isinstance(part, str))
    first = last = 0
    for number in sorted(part for part in ids if isinstance(part, int)):
        if number == last + 1 and first:
            last = number
            continue
        if first:
            yield f"{first}-{last}" if last > first else str(first)
        first = last = number
    if first:
        yield f"{first}-{last}" if last > first else str(first)


def is_name(text: str) -> bool:
    """Of one job, or of one group."""
    return _is_id(text.removeprefix("g"))


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16 and int(text) > 0


# --- what a submission carries ---------------------------------------------------------------------------------------


def array(text: str) -> list[int]:
    """10 is 0 to 9; 0-99 and 1,5,7 are themselves."""
    if text.isascii() and text.isdigit():
        spans = [(0, int(text[:12]) - 1)]
    else:
        spans = [_indices(part) for part in text.split(",")]
    if sum(last - first + 1 for first, last in spans) > SWEEP_LIMIT:
        raise errors.BadRequest(f"--array {text} is more than {SWEEP_LIMIT} jobs", "submit it in parts")
    found = [index for first, last in spans for index in range(first, last + 1)]
    if not found:
        raise errors.BadRequest("--array 0 is no job at all", "--array 10 is 0 to 9")
    if len(set(found)) < len(found):
        raise errors.BadRequest(f"--array {text} names an index twice")
    return found


def _indices(part: str) -> tuple[int, int]:
    first, dash, last = part.partition("-")
    last = last if dash else first
    if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit() and len(first + last) < 24):
        raise errors.BadRequest(f'--array does not understand "{part}"', "such as 10, 0-99 or 1,5,7")
    if int(last) < int(first):
        raise errors.BadRequest(f"--array {part} runs backwards", f"write {last}-{first}")
    return int(first), int(last)


def sweep(texts: list[str]) -> dict[str, list[str]]:
    """lr=1e-3,1e-4 given once per parameter: every combination becomes a job."""
    found: dict[str, list[str]] = {}
    count = 1
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.replace("-", "_").isidentifier() or not name.isascii():
            raise errors.BadRequest(f'--sweep does not understand "{text}"', "such as --sweep lr=1e-3,1e-4")
        if name in found:
            raise errors.BadRequest(f"--sweep {name} was given twice", f"--sweep {text},... takes all values at once")
        found[name] = values.split(",")
        if "" in found[name]:
            raise errors.BadRequest(f"--sweep {name} has an empty value", "such as --sweep lr=1e-3,1e-4")
        count *= len(found[name])
    if count > SWEEP_LIMIT:
        raise errors.BadRequest(f"this sweep is {count} jobs; {SWEEP_LIMIT} is the limit", "sweep fewer values at once")
    return found


def environment(texts: list[str], ours: dict[str, str]) -> dict[str, str]:
    """KEY=VALUE; KEY alone takes the value it has here."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not key.replace("_", "a").isalnum() or not key.isascii() or key[0].isdigit():
            raise errors.BadRequest(f'--env does not understand "{text}"', "such as --env SEED=7, or --env SEED")
        if not equals and key not in ours:
            raise errors.BadRequest(f"--env {key}: it has no value here", f"--env {key}=VALUE gives it one")
        found[key] = value if equals else ours[key]
    return found


def reasons(texts: list[str]) -> list[str]:
    found = [reason for text in texts for reason in text.split(",")]
    for reason in found:
        if reason not in words.RETRYABLE:
            guess = errors.nearest(reason, words.RETRYABLE)
            raise errors.BadRequest(f'--retry-on knows no "{reason}"{guess}', "it takes: " + ", ".join(words.RETRYABLE))
    return found


def states(texts: list[str]) -> list[str]:
    found = [state for text in texts for state in text.split(",")]
    for state in found:
        if state not in words.STATES:
            guess = errors.nearest(state, words.STATES)
            raise errors.BadRequest(f'there is no state "{state}"{guess}', "states: " + ", ".join(words.STATES))
    return found
