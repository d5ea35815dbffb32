"""What `runner doctor` found, in lines for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Findings = Sequence[Mapping[str, Any]]


def lines(findings: Findings, *states: str) -> list[str]:
    """Each finding of these states: what, why, what shows it, and what to type next."""
    told = []
    for one in findings:
        if one["state"] in states:
            told.append(f"{one['id']}: {one['what']}" + (f" ({one['why']})" if one["why"] else ""))
            told += [f"  | {line}" for line in one["evidence"]]
            told += [f"  next: {one['next']}"] if one["next"] else []
    return told


def summary(findings: Findings) -> list[str]:
    """How many were well, which could be better, and why others were not made."""
    counts = {state: sum(one["state"] == state for one in findings) for state in ("ok", "warning", "failed")}
    reasons = dict.fromkeys(one["why"] for one in findings if one["state"] == "skipped")
    skipped = [f"not checked ({_ids(findings, why)}): {why}" for why in reasons]
    return [", ".join(f"{count} {state}" for state, count in counts.items()), *lines(findings, "warning"), *skipped]


def _ids(findings: Findings, why: str) -> str:
    return ", ".join(one["id"] for one in findings if one["state"] == "skipped" and one["why"] == why)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"gpubox_findings": lines, "gpubox_findings_summary": summary}
