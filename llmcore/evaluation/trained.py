"""What a model's training read: of the whole plan in numbers, and of some documents token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmcore.artifacts.stage import Files
from llmcore.errors import LlmcoreError
from llmcore.training.exposure import Reading, token_times
from llmcore.training.loader import plan_digest
from llmcore.training.spec import READING

TRAIN = "plan/train.parquet"


class Trained:
    """The train split as the model read it."""

    def __init__(self, model: Files, plan: Files) -> None:
        """LlmcoreError where the model was trained on another plan, or does not say what it read."""
        self._plan = plan.path(TRAIN)
        reading = Reading.read(model.path(READING))
        if reading.plan != plan_digest(self._plan):
            raise LlmcoreError("evaluate: the model was trained on another plan than this one; train it on this one")
        self._windows = reading.times()

    def summary(self) -> dict[str, Any]:
        """Documents and tokens of the split, how many of them were read, and passes: predicted tokens by tokens."""
        pieces = pl.read_parquet(self._plan, columns=["id", "start", "window", "length"]).with_columns(
            pl.col("id").hash()  # 8 bytes each
        )
        length = pieces["length"].to_numpy()
        times = self._windows[pieces["window"].to_numpy()]
        tokens, predicted = int(length.sum()), int((length * times).sum())
        return {
            "documents": int((pieces["start"] == 0).sum()),
            "read_documents": pieces.filter(pl.Series(times > 0))["id"].n_unique(),
            "tokens": tokens,
            "read_tokens": int(length[times > 0].sum()),
            "passes": round(predicted / max(tokens, 1), 4),
        }

    def times(self, ids: Sequence[str], lengths: Sequence[int]) -> list[NDArray[np.int64]]:
        """How often each token of these documents was predicted; lengths: their tokens."""
        wanted = pl.LazyFrame({"id": list(ids)}, schema={"id": pl.String})
        pieces = pl.scan_parquet(self._plan).select("id", "window", "start", "length")
        found = pieces.join(wanted, on="id", how="semi").collect().partition_by("id", as_dict=True, include_key=False)
        return [
            token_times(found[id,].iter_rows() if (id,) in found else (), length, self._windows)
            for id, length in zip(ids, lengths, strict=True)
        ]
