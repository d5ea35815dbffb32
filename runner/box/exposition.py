"""PURE: numbers as Prometheus reads them, text format 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TYPE = "text/plain; version=0.0.4; charset=utf-8"
GAUGE, COUNTER = "gauge", "counter"


@dataclass(slots=True)
class Family:
    """One metric with its samples: labels and a value. A value that is None is left out: absent is not zero."""

    name: str
    help: str
    kind: str = GAUGE
    samples: list[tuple[Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: object, labels: Mapping[str, str] | None = None) -> None:
        if isinstance(value, int | float):
            self.samples.append((labels or {}, float(value)))


def render(families: Iterable[Family]) -> str:
    """Families without a sample are left out."""
    lines = []
    for family in families:
        if not family.samples:
            continue
        lines += [f"# HELP {family.name} {_help(family.help)}", f"# TYPE {family.name} {family.kind}"]
        lines += [f"{family.name}{_labels(labels)} {_number(value)}" for labels, value in family.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_text(value)}"' for name, value in labels.items()) + "}"


def _text(value: str) -> str:
    clean = value.encode(errors="replace").decode()
    return clean.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
