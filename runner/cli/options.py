"""Options read from the help text that shows them, so that the two cannot differ; argparse would cost 8 ms a command.

A line of a command's help that starts with two spaces and a dash declares an option: its names, and what it takes.
    -d, --detach            a flag
    --name TEXT             takes a value: `--name TEXT` or `--name=TEXT`
    --env KEY=VALUE...      may be given more than once
"""

from __future__ import annotations

from runner import errors

COMMON = """\
  --json                  as JSON
  --box NAME              which box (GPUBOX_BOX, else the one in use)
  -h, --help              this text
"""  # what most commands take


class HelpAsked(Exception):
    """-h or --help: not an error, but the end of the command."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Option:
    __slots__ = ("many", "name", "takes")

    def __init__(self, name: str, takes: str) -> None:
        self.name = name  # the long name, or the only one
        self.many = takes.endswith("...")
        self.takes = takes.removesuffix("...")


class Given:
    """What was typed: options by long name, and the rest."""

    def __init__(self) -> None:
        self.options: dict[str, list[str]] = {}
        self.words: list[str] = []
        self.dashes = False  # a `--` came before the words

    def __contains__(self, name: str) -> bool:
        return name in self.options

    def get(self, name: str) -> str | None:
        return self.options[name][-1] if name in self.options else None

    def all(self, name: str) -> list[str]:
        return self.options.get(name, [])


def declared(text: str) -> dict[str, Option]:
    """Every option of a help text, by each of its names."""
    found = {}
    for line in text.split("\n"):
        if line.startswith("  -"):
            names = line[2:].partition("  ")[0].split(", ")
            last, _, takes = names[-1].partition(" ")
            option = Option(last, takes)
            for name in (*names[:-1], last):
                found[name] = option
    return found


def parse(text: str, arguments: list[str], stop_at_word: bool = False) -> Given:
    """Read a command line against a help text. stop_at_word: from the first word on, nothing is ours any more."""
    known = declared(text)
    given = Given()
    rest = list(reversed(arguments))
    while rest:
        argument = rest.pop()
        if argument == "--":
            given.dashes = True
            given.words += reversed(rest)
            break
        if not argument.startswith("-") or argument == "-":
            given.words.append(argument)
            if stop_at_word:
                given.words += reversed(rest)
                break
            continue
        if argument in ("-h", "--help"):
            raise HelpAsked(text)
        name, value = _split(argument, known, text)
        option = known[name]
        if not option.takes:
            if value is not None and name.startswith("--"):
                raise errors.BadRequest(f"{name} takes no value", _see(text))
            if value is not None:
                rest.append(f"-{value}")  # -dq is -d -q
            value = ""
        elif value is None:
            if not rest:
                raise errors.BadRequest(f"{name} needs a value: {name} {option.takes}", _see(text))
            value = rest.pop()
        if option.name in given.options and option.takes and not option.many:
            raise errors.BadRequest(f"{option.name} was given twice", _see(text))
        given.options.setdefault(option.name, []).append(value)
    return given


def _split(argument: str, known: dict[str, Option], text: str) -> tuple[str, str | None]:
    """--name=value, --name, -n or -nvalue as (name, value)."""
    if argument.startswith("--"):
        name, equals, after = argument.partition("=")
        value = after if equals else None
    else:
        name, value = argument[:2], argument[2:] or None
    if name not in known:
        guess = errors.nearest(name, known) if name.startswith("--") else ""
        raise errors.BadRequest(f"{command(text)} has no option {name}{guess}", _see(text))
    return name, value


def command(text: str) -> str:
    """The command that a help text is about: the words of its first line up to what varies."""
    words = text.split("\n", 1)[0].removeprefix("Usage: ").split(" ")
    return " ".join(words[:2])


def no_words(given: Given, text: str) -> None:
    if given.words:
        raise errors.BadRequest(f'{command(text)} takes no "{given.words[0]}"', _see(text))


def _see(text: str) -> str:
    return f"`{command(text)} --help` lists what there is"
