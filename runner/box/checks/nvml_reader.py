"""A process of its own, since the driver may hold a call for ever: prints what NVML says of the cards, as an object."""

from __future__ import annotations

import json
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read() -> dict[str, Any]:
    """driver, cuda, gpus: [{uuid, name, place, processes, values}], failed: [words]; or trouble alone."""
    try:
        from runner.box.gpus.nvml import COLD, HOT, WARM, Session
    except ImportError as error:
        return {"trouble": {"code": "no_reader", "message": f"{error.name} is not installed", "hint": ""}}
    from runner.box.gpus.faults import Lost

    try:
        session = Session()
    except Lost as lost:
        return {"trouble": {"code": lost.code, "message": lost.message, "hint": lost.hint}}
    gpus, failed = [], [why.message for why in session.failed]
    for card in tuple(session.cards):
        try:
            values, _ = card.read((HOT, WARM, COLD), time.monotonic())
            listed, _ = card.processes(time.monotonic())
        except Lost as lost:
            failed.append(f"{card.name} at {card.bus_id}: {lost.message}")
            continue
        processes = None if listed is None else len([kind for _, _, kind, _ in listed if kind != "graphics"])
        gpus.append(
            {"uuid": card.uuid, "name": card.name, "place": card.bus_id, "processes": processes, "values": values}
        )
    return {"driver": session.driver, "cuda": session.cuda, "gpus": gpus, "failed": failed}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(read()) + "\n")
