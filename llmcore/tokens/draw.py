"""A fair draw of bounded size from a corpus of any: what comes first in the order of ids, which are hashes.

The same as to sort everything and to cut where the sizes add up, but a shard at a time, and only what may still be
among the first is held; so the draw hangs neither on how documents lie in shards nor on the order of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

MERGE_ROWS = 1 << 14  # rows that wait before they are merged, so that sorting costs n log n in all


def first_within(tables: Iterable[pl.DataFrame], by: Sequence[str], size: str, most: int) -> pl.DataFrame:
    """The rows that come first by the columns `by` (together unique) and start below `most` in the sum of `size`.

    At least one row, however large, unless all tables are empty. Sorted by `by`. Raises ValueError without a table.
    """
    chosen: pl.DataFrame | None = None
    waiting: list[pl.DataFrame] = []
    rows = 0
    for table in tables:
        if chosen is not None and chosen.height and int(chosen[size].sum()) >= most:
            table = table.filter(pl.col(by[0]) <= chosen[by[0]][-1])
        waiting.append(table)
        rows += table.height
        if chosen is None or rows >= max(MERGE_ROWS, chosen.height):
            chosen, waiting, rows = _cut([chosen, *waiting], by, size, most), [], 0
    if chosen is None:
        raise ValueError("no table to draw from")
    return _cut([chosen, *waiting], by, size, most)


def _cut(tables: Iterable[pl.DataFrame | None], by: Sequence[str], size: str, most: int) -> pl.DataFrame:
    before = pl.col(size).cast(pl.Int64).cum_sum() - pl.col(size)
    return pl.concat([table for table in tables if table is not None]).sort(by).filter(before < most)
