"""The precision in which a machine computes products fastest, without torch: asked of what the processor can do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

PROCESSOR = Path("/proc/cpuinfo")
# without such instructions bf16 is computed as fp32 and rounded, which costs time and precision both
BF16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last one is Arm's


def processor_precision(told: Path = PROCESSOR) -> Literal["bf16", "fp32"]:
    """bf16 where the processor multiplies in it, else fp32. told: as Linux tells of processors; absent: fp32."""
    try:
        text = told.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "fp32"
    flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return "bf16" if flags and all(BF16_INSTRUCTIONS & set(line.split()) for line in flags) else "fp32"
