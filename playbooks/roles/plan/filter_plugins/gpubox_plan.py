"""The decision as Ansible's filters. The decision itself is in ../gpubox_decision, which knows nothing of Ansible."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpubox_decision import bill, in_use, names, offers, plan, simulation, users, versions


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "gpubox_names": names,
            "gpubox_offers": offers,
            "gpubox_plan": plan,
            "gpubox_versions": versions,
            "gpubox_simulation": simulation,
            "gpubox_bill": bill,
            "gpubox_in_use": in_use,
            "gpubox_users": users,
        }
