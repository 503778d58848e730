"""Splits by cluster."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcore.selection.split import SplitParams, split


def clusters(count: int) -> pl.DataFrame:
    names = [f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}" for number in range(count)]
    return pl.DataFrame({"id": names, "cluster": names})


def kept(documents: pl.DataFrame, params: SplitParams) -> pl.DataFrame:
    table = split(documents, params).outputs["kept"]
    assert isinstance(table, pl.DataFrame)
    return table


def test_near_copies_never_straddle_a_split_and_shares_are_met() -> None:
    once = clusters(10_000)
    copies = once.with_columns(pl.col("id").str.reverse())
    table = kept(pl.concat([once, copies]), SplitParams())
    assert table.group_by("cluster").agg(pl.col("split").n_unique())["split"].max() == 1
    shares = {name: count / table.height for name, count in table["split"].value_counts().iter_rows()}
    assert abs(shares["validation"] - 0.05) < 0.01 and abs(shares["test"] - 0.05) < 0.01


@given(st.integers(1, 200), st.integers(0, 200))
def test_a_document_keeps_its_split_whatever_lies_beside_it(count: int, cut: int) -> None:
    documents = clusters(count)
    parts = [kept(part, SplitParams()) for part in (documents.head(cut), documents.slice(cut)) if part.height]
    assert pl.concat(parts).equals(kept(documents, SplitParams()))


def test_another_seed_gives_another_split_and_the_default_never_changes() -> None:
    documents = clusters(300)
    first = kept(documents, SplitParams())
    assert not first.equals(kept(documents, SplitParams(seed=1)))
    held_out = first.with_row_index("row").filter(pl.col("split") == "test")["row"].to_list()
    assert held_out[:6] == [18, 25, 39, 57, 72, 75]


def test_an_empty_split_shows_in_the_metrics() -> None:
    result = split(clusters(1), SplitParams(validation=0, test=0))
    assert result.metrics == {"documents": 1, "train": 1, "validation": 0, "test": 0}
    assert split(clusters(0), SplitParams()).metrics["documents"] == 0


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing is left to train on"):
        SplitParams(validation=0.5, test=0.5)
