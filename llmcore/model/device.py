"""Where a model computes."""

from __future__ import annotations

import torch

from llmcore.errors import UsageError


def device_of(name: str) -> torch.device:
    """The device of that name: "cpu" or "cuda"; "auto" is this machine's. UsageError where the machine has no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device: cuda: this machine has no GPU that torch can use; run where one is, or say cpu")
    return torch.device("cuda" if torch.cuda.is_available() and name != "cpu" else "cpu")
