"""PURE: by which ways the settings say to tell, what each is handed, and what an answer means."""

from __future__ import annotations

import ipaddress
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit, urlunsplit

from runner.box.notify.messages import TITLES, Message
from runner.box.settings import Settings
from runner.errors import BadSettings, nearest

ALL = "all"
PRIORITIES = {"critical": 5, "warning": 4}  # of ntfy; 3 is the usual one
TAGS = {"critical": "rotating_light", "warning": "warning"}
BUSY = (408, 425, 429)  # of the answers 4xx, those that may be others later
REDIRECTS = range(300, 400)
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(slots=True, frozen=True)
class Way:
    """One of ntfy, webhook, command."""

    name: str
    url: str = ""
    topic: str = ""
    token: str = ""
    argv: tuple[str, ...] = ()

    def __repr__(self) -> str:  # neither topic nor token, wherever it is shown
        return f"Way({self.name!r})"


@dataclass(slots=True, frozen=True)
class Outcome:
    """What became of telling one message one way."""

    ok: bool
    said: str  # what happened, without address and token
    hint: str = ""
    again: bool = False  # it may be otherwise later


def chosen(settings: Settings) -> list[Way]:
    """Those that are set. BadSettings says which value can't be, and never shows it."""
    found = []
    if settings.notify_ntfy:
        base, topic = _topic(settings.notify_ntfy)
        _guard(base, settings.notify_token)
        found.append(Way("ntfy", base, topic, settings.notify_token))
    elif settings.notify_token:
        raise BadSettings("notify_token is set, and notify_ntfy is not", "it is for ntfy alone; set both")
    if settings.notify_webhook:
        _address("notify_webhook", settings.notify_webhook)
        found.append(Way("webhook", settings.notify_webhook))
    if settings.notify_command:
        found.append(Way("command", argv=_argv(settings.notify_command)))
    return found


def kinds(settings: Settings) -> frozenset[str]:
    """What is told. BadSettings names a word that is none of them."""
    found: set[str] = set()
    for word in settings.notify_about.replace(",", " ").split():
        if word == ALL:
            found |= set(TITLES)
        elif word in TITLES:
            found.add(word)
        else:
            guess = nearest(word, TITLES)
            raise BadSettings(f"notify_about names {word[:40]!a}, which is never told{guess}", ", ".join(TITLES))
    return frozenset(found)


def _address(name: str, url: str) -> None:
    hint = "as in https://ntfy.sh/my-box-7d1f" if name == "notify_ntfy" else "as in https://example.org/hook"
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        raise BadSettings(f"{name} is not an address that begins with http:// or https://", hint)
    if parts.username is not None:
        raise BadSettings(
            f"{name} holds a user's name or password", f"{hint}; a token for ntfy belongs into notify_token"
        )


def _topic(url: str) -> tuple[str, str]:
    """(the server, the topic): what is told is sent to the server, with the topic in the body."""
    _address("notify_ntfy", url)
    parts = urlsplit(url)
    path, _, topic = parts.path.rstrip("/").rpartition("/")
    if not topic or parts.query or parts.fragment:
        raise BadSettings("notify_ntfy names no topic", "the server and one word, as in https://ntfy.sh/my-box-7d1f")
    return urlunsplit((parts.scheme, parts.netloc, path or "/", "", "")), topic


def _guard(url: str, token: str) -> None:
    """A token goes over TLS, or stays at home."""
    if not token:
        return
    if not token.isascii() or not token.isprintable() or " " in token:
        raise BadSettings("notify_token is not a token", "one word, as ntfy made it: tk_...")
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        near = ipaddress.ip_address(host).is_private
    except ValueError:
        near = host == "localhost"
    if parts.scheme != "https" and not near:
        raise BadSettings("notify_token would be sent to notify_ntfy unencrypted", "an address with https://")


def _argv(text: str) -> tuple[str, ...]:
    try:
        argv = tuple(shlex.split(text))
    except ValueError as error:
        raise BadSettings(f"notify_command can't be read: {error}", "a program and its arguments, quoted") from None
    if not argv or not argv[0].startswith("/"):
        raise BadSettings("notify_command does not begin with a whole path", "as in /usr/local/bin/tell --loud")
    return argv


# --- what a way is handed ---


def fields(message: Message, box: str) -> dict[str, object]:
    return {"box": box, **asdict(message)}


def request(way: Way, message: Message, box: str) -> dict[str, object]:
    """For post.py: a POST of JSON."""
    headers = {"Content-Type": "application/json", "User-Agent": "gpubox"}
    body: dict[str, object] = fields(message, box)
    if way.name == "ntfy":
        said = f"{message.text}\n{message.hint}" if message.hint else message.text
        body = {"topic": way.topic, "title": message.title, "message": said}
        body["priority"] = PRIORITIES.get(message.severity, 3)
        if message.severity in TAGS:
            body["tags"] = [TAGS[message.severity]]
        if way.token:
            headers["Authorization"] = f"Bearer {way.token}"
    return {"url": way.url, "headers": headers, "body": json.dumps(body)}


def environment(message: Message, box: str, ours: Mapping[str, str]) -> dict[str, str]:
    """Of the command: what is told, and of the daemon's own the few that every program wants."""
    kept = {name: ours[name] for name in ("HOME", "LANG", "LC_ALL", "TZ", "USER", "XDG_RUNTIME_DIR") if name in ours}
    told = {f"GPUBOX_NOTICE_{name.upper()}": value for name, value in fields(message, box).items()}
    return {"PATH": SYSTEM_PATH, **kept, **{name: str(value) for name, value in told.items() if value is not None}}


# --- what came of it ---


def answered(way: Way, status: int | None, error: str) -> Outcome:
    """Of a request. status: None when no answer came, for `error`."""
    host = urlsplit(way.url).hostname or ""
    if status is None:
        return Outcome(
            False, f"{way.name}: {host}: {error}", f"is notify_{way.name} right, and may the box reach it?", True
        )
    if 200 <= status < 300:
        return Outcome(True, f"{way.name}: {host} took it")
    said = f"{way.name}: {host} answered {status}"
    if status in (401, 403):
        wrong = "notify_token, and what it may write to" if way.name == "ntfy" else "notify_webhook"
        return Outcome(False, f"{said}: it does not let the box in", f"check {wrong}")
    if status in REDIRECTS:
        return Outcome(
            False, f"{said}: it sends elsewhere, which is not followed", f"set notify_{way.name} to where it is"
        )
    if status in BUSY or status >= 500:
        return Outcome(False, f"{said}: it can't just now", "it is tried again by itself", True)
    return Outcome(False, f"{said}: it does not take this", f"check notify_{way.name}")


def ended(way: Way, code: int | None, said: str, seconds: float) -> Outcome:
    """Of a command. code: None when it was ended after so many seconds."""
    program = way.argv[0]
    if code == 0:
        return Outcome(True, f"command: {program} took it")
    if code is None:
        return Outcome(
            False, f"command: {program} was ended after {seconds:.0f} s", "it has to be quicker than that", True
        )
    tail = f": {said}" if said else ""
    return Outcome(
        False, f"command: {program} ended with code {code}{tail}", "run it by hand, as the daemon's user", True
    )
