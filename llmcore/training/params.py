"""What a training is told. A plain dataclass: a bare GPU node needs no pydantic, which checks the configuration."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from llmcore.errors import UsageError

Schedule = Literal["wsd", "cosine"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp32"]
Method = Literal["muon", "adamw"]


def _field(default: Any, description: str, **bounds: Any) -> Any:
    """A field with what pydantic reads from its metadata (description, ge, gt, le), and keys (outside_key)."""
    return dataclasses.field(default=default, metadata={"description": description, **bounds})


CHOICES = {
    "schedule": get_args(Schedule),
    "device": get_args(Device),
    "precision": get_args(Precision),
    "optimizer": get_args(Method),
}


@dataclass(frozen=True)
class TrainParams:
    """Shape of the model, and how it is trained. Defaults are the quickstart's, tuned for minutes on two cores."""

    layers: int = _field(4, "blocks", ge=1)
    width: int = _field(192, "of the residual stream", ge=2)
    heads: int = _field(3, "query heads", ge=1)
    kv_heads: int = _field(1, "key-value heads; a divisor of heads", ge=1)
    ffn_width: int = _field(512, "inner width of the feed-forward", ge=1)
    rope_theta: float = _field(10_000.0, "base of the rotary positions", gt=0)
    tied: bool = _field(True, "one matrix for embedding and output")

    epochs: float = _field(1.0, "passes over the packed windows, where steps is 0", gt=0)
    steps: int = _field(0, "optimiser steps; 0: as many as the epochs need", ge=0)
    batch: int = _field(8, "windows in one step", ge=1)
    micro_batch: int = _field(8, "windows in one forward pass; a divisor of batch", ge=1)

    optimizer: Method = _field("adamw", "muon: Muon for the matrices in the blocks, AdamW for the rest; adamw: for all")  # noqa: RUF009
    learning_rate: float = _field(3e-3, "AdamW's at its peak", gt=0)
    muon_learning_rate: float = _field(0.02, "Muon's at its peak", gt=0)
    warm_up: int = _field(50, "steps of linear rise", ge=0)
    schedule: Schedule = _field("wsd", "wsd: constant, then a linear fall; cosine: falls from the end of the warm-up")  # noqa: RUF009
    decay: float = _field(0.4, "share of the steps in which wsd falls", ge=0, le=1)
    final_learning_rate: float = _field(0.0, "at the end, as a share of the peak", ge=0, le=1)
    beta1: float = _field(0.9, "AdamW's decay of the first moment", ge=0, lt=1)
    beta2: float = _field(0.95, "AdamW's decay of the second moment", ge=0, lt=1)
    weight_decay: float = _field(0.1, "of the matrices; norms have none", ge=0)
    clip: float = _field(1.0, "largest norm of the gradient", gt=0)

    device: Device = _field("auto", "that trains; auto: what execution.device says; the key holds cpu or cuda")  # noqa: RUF009
    precision: Precision = _field(  # noqa: RUF009
        "auto", "of the products; weights, moments and sums stay fp32; auto: bf16 where the device multiplies in it"
    )
    compile: bool = _field(False, "torch.compile: slow at first, then faster; on a processor it needs a C++ compiler")
    threads: int = _field(2, "on a processor; their number fixes the order of sums, so it is part of the recipe", ge=1)
    processes: int = _field(1, "that train together, one a GPU; part of the recipe as threads are", ge=1)
    seed: int = _field(1, "of the weights and of the order of the windows", ge=0)

    validation_every: int = _field(200, "steps between two validation losses; 0: only at the end", ge=0)
    validation_windows: int = _field(
        128, "windows that a validation loss reads, drawn evenly over the validation plan; 0: all", ge=0
    )

    # these change no byte of the model, so they stay outside its key, and changing one goes on from the checkpoint
    checkpoint_every: int = _field(
        200, "steps between two checkpoints; 0: only when stopped; not in the key", ge=0, outside_key=True
    )
    hang_seconds: float = _field(
        900.0,
        "without a sign of life before a trainer is ended and restarted; 0: never; not in the key",
        ge=0,
        outside_key=True,
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field, getattr(self, field.name))
        if self.batch % self.micro_batch:
            raise UsageError(f"train.micro_batch: {self.micro_batch} does not divide train.batch ({self.batch})")
        if (self.batch // self.micro_batch) % self.processes:
            raise UsageError(
                f"train.processes: {self.batch // self.micro_batch} micro-batches a step do not share out among "
                f"{self.processes}; set train.micro_batch to {max(1, self.batch // self.processes)}"
            )
        if self.heads % self.kv_heads:
            raise UsageError(f"train.kv_heads: {self.kv_heads} does not divide train.heads ({self.heads})")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise UsageError(f"train.heads: width {self.width} must divide into {self.heads} heads of an even size")

    def total_steps(self, windows: int) -> int:
        """Optimiser steps over a plan of so many windows; at least one."""
        return total_steps(windows, self.batch, self.steps, self.epochs)


def total_steps(windows: int, batch: int, steps: int, epochs: float) -> int:
    """Steps of so many windows that a training makes over a plan: `steps`, or where that is 0, `epochs` passes."""
    return steps or max(1, round(epochs * windows / batch))


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    bounds: Mapping[str, Any] = field.metadata
    name = f"train.{field.name}"
    choices = CHOICES.get(field.name)
    if choices is not None:
        if value not in choices:
            raise UsageError(f"{name}: {value!r} is none of {', '.join(choices)}")
        return
    kind = type(field.default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UsageError(f"{name}: {value!r} must be a {'number' if kind is float else kind.__name__}")
    if kind is bool:
        return
    kept: dict[str, Any] = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
    if not all(holds(value, bounds[bound]) for bound, holds in kept.items() if bound in bounds):
        limits = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        words = " and ".join(f"{limits[bound]} {bounds[bound]}" for bound in limits if bound in bounds)
        raise UsageError(f"{name}: {value} must be {words}")
