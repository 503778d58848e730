"""A draw of bounded size is the head of the sorted whole, however that is split into tables."""

from __future__ import annotations

from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.tokens import draw
from llmcore.tokens.draw import first_within


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    most=st.integers(1, 400),
    wait=st.integers(1, 40),
    order=st.randoms(use_true_random=False),
)
def test_it_is_the_head_of_the_whole(sizes: list[int], cuts: list[int], most: int, wait: int, order: object) -> None:
    numbers = list(range(len(sizes)))
    order.shuffle(numbers)  # type: ignore[attr-defined]
    ids = [f"{number:032x}" for number in numbers]
    whole = pl.DataFrame({"id": ids, "size": sizes}, schema={"id": pl.String, "size": pl.Int64})
    edges = [0, *sorted(min(cut, len(sizes)) for cut in cuts), len(sizes)]
    parts = [whole[start:end] for start, end in pairwise(edges)]
    before = draw.MERGE_ROWS
    draw.MERGE_ROWS = wait
    try:
        found = first_within(parts, ("id",), "size", most)
    finally:
        draw.MERGE_ROWS = before
    expected = whole.sort("id").filter(pl.col("size").cum_sum() - pl.col("size") < most)
    assert found.equals(expected)


def test_no_table_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no table"):
        first_within([], ("id",), "size", 1)
