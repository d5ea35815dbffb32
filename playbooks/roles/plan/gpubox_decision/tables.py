"""The three tables in ../files, and what is derived from them once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Facts = Mapping[str, Any]  # what the module gpubox_facts returns
Wishes = Mapping[str, Any]
Card = dict[str, Any]

FILES = Path(__file__).resolve().parent.parent / "files"
GPUS, SYSTEMS, BREAKAGES = (
    json.loads((FILES / f"{name}.json").read_text()) for name in ("gpus", "systems", "breakages")
)
GOOD_BRANCH: int = SYSTEMS["branch"]["for_cuda_13"]
OPEN_FROM: int = SYSTEMS["branch"]["open_from"]
TORCH_FOR_CUDA_12 = "2.14"  # the last PyTorch that has wheels for CUDA 12.6, and with them for cards before Turing
