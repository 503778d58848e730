"""Train, validation and test by a hash of the dedup cluster, so that near-copies never straddle a split.

Shares are those of the clusters, not of the documents: a tiny corpus may leave a split empty, as the metrics show.
A document's split depends on its cluster and the parameters alone, so shards added later change nothing.
"""

from __future__ import annotations

import polars as pl
from pydantic import Field, model_validator

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import ShardResult, Stage

SPLITS = ("train", "validation", "test")


class SplitParams(Params):
    validation: float = Field(default=0.05, ge=0, lt=1, description="share of the clusters held out for validation")
    test: float = Field(default=0.05, ge=0, lt=1, description="share of the clusters held out for the final test")
    seed: int = Field(default=0, ge=0, lt=2**63, description="another seed gives another split")

    @model_validator(mode="after")
    def _something_left(self) -> SplitParams:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be less than 1, or nothing is left to train on")
        return self


STAGE = Stage(
    "split",
    version=1,
    role="split",
    params=SplitParams,
    function="llmcore.selection.split:split",
    kind="per_shard",
    partition=("kept",),
)


def split(documents: pl.DataFrame, params: SplitParams) -> ShardResult:
    """Add the column `split`. Needs the column `cluster` that dedup adds."""
    from llmcore.selection.words import string_hashes

    # 53 bits are what a float holds exactly, so the comparison is the same on every machine.
    place = pl.Series("place", (string_hashes(documents["cluster"], params.seed) >> 11) / 2.0**53)
    name = (
        pl.when(place < params.test)
        .then(pl.lit("test"))
        .when(place < params.test + params.validation)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
    )
    kept = documents.with_columns(name.alias("split"))
    counts = {value: int((kept["split"] == value).sum()) for value in SPLITS}
    return ShardResult({"kept": kept}, {"documents": kept.height, **counts})
