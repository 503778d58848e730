"""How fast the trainer can be on a device: FLOP/s, from what was measured or computed, never from a brochure.

GPUs: computed for SmolLM2-135M, windows of 2,048, on one H200 (4.8 TB/s, 989 TFLOP/s bf16): products 1.34 to 1.68 µs a
token, attention under a dense mask 2.5 to 3.3, elementwise work 0.55 compiled and 2.6 eager, cross-entropy 0.12 to
0.54: 150,000 to 210,000 tokens/s compiled, at 1.02 GFLOP a token; fp32 reaches 46,000 at most. Another GPU gets the
smaller of its shares of the H200's arithmetic and of its memory's speed (the roofline of Williams et al. 2009). Thin
models are bound by starting kernels. All are ceilings until somebody trains there: then history says better.

Processors: measured for models of 2 to 7 million parameters on cores with AVX-512 (`docs/log.md`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llmcore.model.precision import PROCESSOR, processor_precision

GPU_INFORMATION = Path("/proc/driver/nvidia/gpus")
MEMORY = Path("/proc/meminfo")
FLOPS_OF_REFERENCE = 1.02e9  # a token of SmolLM2-135M at 2,048, forward and backward
# (precision, compiled) -> tokens/s on an H200, low and high
H200_TOKENS = {
    ("bf16", True): (150e3, 210e3),
    ("bf16", False): (90e3, 140e3),
    ("fp32", True): (25e3, 46e3),
    ("fp32", False): (20e3, 40e3),
}
KERNELS_A_BLOCK = {True: 25, False: 75}  # forward and backward, compiled or not
KERNEL_SECONDS = 1e-5  # to start one from Python
STEP_SECONDS = 5e-3  # optimiser, clipping, the loss's way back, the next batch: whatever the model
# measured: FLOP/s of one core, low and high
CORE_FLOPS = {
    ("avx512f", "bf16"): (60e9, 100e9),
    ("avx512f", "fp32"): (40e9, 65e9),
    ("avx2", "fp32"): (18e9, 35e9),
    ("", "fp32"): (5e9, 20e9),
}
SOFT_BF16 = 0.4  # of fp32's speed, where the processor has no instructions for bf16
COMPILED_GAIN = 1.1  # on a processor


@dataclass(frozen=True)
class Gpu:
    """bf16 in FLOP/s, memory in bytes/s, and a rented hour in dollars."""

    flops: float
    bandwidth: float
    dollars: float


GPUS = {
    "H200": Gpu(989e12, 4.8e12, 3.5),
    "H100": Gpu(989e12, 3.35e12, 3.0),
    "A100": Gpu(312e12, 2.0e12, 1.8),
    "L40S": Gpu(362e12, 0.864e12, 1.0),
    "L4": Gpu(121e12, 0.3e12, 0.8),
}


@dataclass(frozen=True)
class Reach:
    """FLOP/s that a training is likely to reach, from low to high."""

    low: float
    high: float


@dataclass(frozen=True)
class Machine:
    """What this machine is. memory: bytes; gpus: names as the driver tells them."""

    processor: str
    cores: int
    flags: frozenset[str]
    memory: int
    gpus: tuple[str, ...]

    @property
    def bf16(self) -> bool:
        """Whether the processor multiplies in bf16."""
        return processor_precision() == "bf16"

    def __str__(self) -> str:
        found = [f"{self.cores} cores of {self.processor}{', bf16' if self.bf16 else ''}"]
        found += [f"{self.memory / 1e9:.0f} GB"] if self.memory else []
        return ", ".join([*found, *self.gpus])


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """Asked of the system, without torch, which takes longer to import than `plan` may."""
    told = _read(PROCESSOR)
    name = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", told, re.MULTILINE)
    total = re.search(r"^MemTotal:\s*(\d+) kB", _read(MEMORY), re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        processor=name[1].strip() if name else "processor",
        cores=cores,
        flags=frozenset(flags[1].split()) if flags else frozenset(),
        memory=int(total[1]) * 1024 if total else 0,
        gpus=tuple(_gpu_names()),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gpu_names() -> Sequence[str]:
    told = [_read(place) for place in sorted(GPU_INFORMATION.glob("*/information"))]
    found = [re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in told]
    return [name[1].strip() for name in found if name]


def gpu_named(name: str) -> str | None:
    """The GPU of the table that a driver's name means: `NVIDIA H100 80GB HBM3` is an H100."""
    return next((known for known in sorted(GPUS, key=len, reverse=True) if re.search(rf"\b{known}\b", name)), None)


def gpu_reach(name: str, precision: str, compiled: bool, layers: int, passes: int, flops_per_step: float) -> Reach:
    """What a GPU of the table can reach. passes: micro-batches in a step, each with so many layers."""
    gpu, best = GPUS[name], GPUS["H200"]
    share = min(gpu.flops / best.flops, gpu.bandwidth / best.bandwidth)
    low, high = (share * FLOPS_OF_REFERENCE * tokens for tokens in H200_TOKENS[precision, compiled])
    starting = STEP_SECONDS + passes * layers * KERNELS_A_BLOCK[compiled] * KERNEL_SECONDS
    thin = flops_per_step / starting  # with nothing to compute at all
    return Reach(1 / (1 / low + 1 / thin), 1 / (1 / high + 1 / thin))


def processor_reach(machine: Machine, precision: str, compiled: bool, threads: int) -> Reach:
    """What so many threads of this machine's processor can reach."""
    wide = next(name for name in ("avx512f", "avx2", "") if not name or name in machine.flags)
    soft = precision == "bf16" and not (machine.bf16 and (wide, "bf16") in CORE_FLOPS)
    low, high = CORE_FLOPS[wide, "fp32" if soft else precision]
    share = min(threads, machine.cores) * (SOFT_BF16 if soft else 1.0) * (COMPILED_GAIN if compiled else 1.0)
    return Reach(low * share, high * share)
