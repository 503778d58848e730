"""Which windows of a plan a training predicted, and how often: a function of the plan and of how it is read.

A plan holds what could be read. With fewer steps than windows, part of it never was; with more than one pass, all of it
was, several times. Whoever says of a text that a model was trained on it asks here. Read without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.errors import LlmcoreError
from llmcore.training.loader import order_of_epoch, plan_digest, read_columns
from llmcore.training.params import total_steps


@dataclass(frozen=True)
class Reading:
    """plan: SHA-256 of the plan's file; windows: in it; batch: windows a step; steps: made in all."""

    plan: str
    windows: int
    batch: int
    seed: int
    steps: int

    @classmethod
    def planned(cls, plan: Path, params: Mapping[str, Any]) -> Reading:
        """What a training with these parameters makes of a plan. LlmcoreError where the plan cannot be read."""
        column = read_columns(plan, ("window",))["window"].to_numpy()
        windows, batch = int(column.max()) + 1 if len(column) else 0, int(params["batch"])
        steps = total_steps(windows, batch, int(params["steps"]), float(params["epochs"]))
        return cls(plan_digest(plan), windows, batch, int(params["seed"]), steps)

    @classmethod
    def read(cls, path: Path) -> Reading:
        """LlmcoreError where the file is none of a training's."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise LlmcoreError(f"{path}: does not say what the model read ({error}); train it again") from error

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    def times(self) -> NDArray[np.int64]:
        """How often each window was predicted, [windows]."""
        times = np.zeros(self.windows, dtype=np.int64)
        for _, order in self._orders():
            times[order] += 1
        return times

    def steps_of(self, windows: Iterable[int]) -> list[int]:
        """The steps, counted from 1, that predicted any of these windows; sorted."""
        wanted = np.asarray(sorted(set(windows)), dtype=np.int64)
        steps: set[int] = set()
        for first, order in self._orders():
            steps.update(((np.flatnonzero(np.isin(order, wanted)) + first) // self.batch + 1).tolist())
        return sorted(steps)

    def _orders(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """For each pass: how many windows were read before it, and those it read, in order."""
        total = self.steps * self.batch
        for epoch in range(-(-total // self.windows) if self.windows else 0):
            first = epoch * self.windows
            yield first, order_of_epoch(self.windows, self.plan, self.seed, epoch)[: total - first]


def token_times(pieces: Iterable[tuple[int, int, int]], tokens: int, windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each token of a document was predicted, [tokens].

    pieces: (window, start, length) of the document in the plan; windows: how often each window was.
    """
    times = np.zeros(tokens, dtype=np.int64)
    for window, start, length in pieces:
        times[start : start + length] = windows[window]
    return times
