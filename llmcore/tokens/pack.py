"""The packing plan: which piece of which document sits where. Nothing is discarded, nothing stands twice.

Method: best fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"). A document longer than a
window is cut into full windows and a rest; rests and whole short documents are packed best-fit. Each generation of
shards is packed on its own, in order, so windows of earlier generations never change when shards are appended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.errors import LlmcoreError
from llmcore.tokens.tokenise import SPLITS

PLAN_SCHEMA = pl.Schema(
    {
        "window": pl.Int64(),
        "slot": pl.Int32(),
        "id": pl.String(),
        "shard": pl.String(),
        "row": pl.Int64(),
        "start": pl.Int64(),
        "length": pl.Int64(),
    }
)


class PackParams(Params):
    window: int = Field(512, ge=16, le=1 << 20, description="tokens in a window")
    min_fill: float = Field(0.99, ge=0, le=1, description="below this, short documents are cut too, to fill windows")


def pack(inputs: Mapping[str, Files], params: PackParams, run: Run) -> dict[str, Any]:
    """Write plan/SPLIT.parquet, sorted by (window, slot), and plan.json. LlmcoreError if the train split is empty."""
    (run.out / "plan").mkdir()
    summary: dict[str, Any] = {"window": params.window, "splits": {}}
    for number, split in enumerate(SPLITS):
        run.progress(number, len(SPLITS), split)
        plan, first = [], 0
        for documents in _generations(inputs["tokens"], split):
            part = plan_windows(documents, params.window, params.min_fill).with_columns(pl.col("window") + first)
            first = int(part["window"][-1]) + 1 if part.height else first
            plan.append(part)
        table = pl.concat([PLAN_SCHEMA.to_frame(), *plan])
        table.write_parquet(run.out / f"plan/{split}.parquet", compression="zstd", row_group_size=1 << 16)
        tokens = int(table["length"].sum())
        fill = round(tokens / (first * params.window), 6) if first else 0.0
        summary["splits"][split] = {"windows": first, "tokens": tokens, "fill": fill}
    if not summary["splits"]["train"]["tokens"]:
        raise LlmcoreError("pack: no document is in the train split; add text or lower split.validation and split.test")
    (run.out / "plan.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return {f"{split}_{name}": value for split, facts in summary["splits"].items() for name, value in facts.items()}


def plan_windows(documents: pl.DataFrame, window: int, min_fill: float = 0.99) -> pl.DataFrame:
    """Plan one generation. documents: id, shard, row, n_tokens. Returns PLAN_SCHEMA rows sorted by (window, slot)."""
    lengths = documents["n_tokens"].to_numpy().astype(np.int64)
    full = lengths // window
    rest = lengths - full * window
    # full windows, one piece each
    owner = np.repeat(np.arange(len(lengths)), full)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(full) - full, full)
    pieces = [np.stack([np.arange(len(owner)), np.zeros_like(owner), owner, nth * window, np.full_like(owner, window)])]
    # rests, best fit decreasing
    short = np.flatnonzero(rest)
    place, count = _best_fit(rest[short], window)
    tokens = int(rest.sum())
    if count and tokens / (count * window) < min_fill and lengths.sum() / ((len(owner) + count) * window) < min_fill:
        pieces.append(_fill_in_order(short, rest, full, window, len(owner)))
    else:
        order = np.lexsort((short, place))
        sorted_place = place[order]
        starts = np.r_[0, np.flatnonzero(np.diff(sorted_place)) + 1] if len(order) else np.zeros(0, np.int64)
        slot = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        who = short[order]
        pieces.append(np.stack([sorted_place + len(owner), slot, who, full[who] * window, rest[who]]))
    table = np.concatenate(pieces, axis=1)
    named = documents.select("id", "shard", "row")[table[2]]
    return pl.DataFrame(
        {
            "window": table[0],
            "slot": table[1].astype(np.int32),
            "id": named["id"],
            "shard": named["shard"],
            "row": named["row"],
            "start": table[3],
            "length": table[4],
        },
        schema=PLAN_SCHEMA,
    )


def _best_fit(lengths: np.ndarray, window: int) -> tuple[np.ndarray, int]:
    """Best fit decreasing; returns each piece's bin and the number of bins."""
    from llmcore.tokens.best_fit import best_fit_in_order  # numba takes longer to import than `plan` may

    order = np.lexsort((np.arange(len(lengths)), -lengths))
    place = np.empty(len(lengths), dtype=np.int64)
    place[order], bins = best_fit_in_order(lengths[order], window)
    return place, bins


def _fill_in_order(short: np.ndarray, rest: np.ndarray, full: np.ndarray, window: int, first: int) -> np.ndarray:
    """Rests one after another, cut where a window ends: every window but the last is full."""
    ends = np.cumsum(rest[short])
    cuts = np.union1d(ends, np.arange(window, ends[-1], window))  # where one piece ends and the next begins
    starts = np.r_[0, cuts[:-1]]
    nth = np.searchsorted(ends, starts, side="right")  # the rest that each piece is of
    who, place = short[nth], starts // window
    slot = np.arange(len(starts)) - np.searchsorted(place, place)
    begin = full[who] * window + starts - (ends[nth] - rest[who])
    return np.stack([first + place, slot, who, begin, cuts - starts])


def _generations(tokens: Files, split: str) -> Iterator[pl.DataFrame]:
    """id, shard, row, n_tokens of one split, generation by generation."""
    by_generation: dict[str, list[pl.DataFrame]] = {}
    for name in tokens.names(f"{split}/"):
        shard = name.split("/", 1)[1]
        table = pl.read_parquet(tokens.path(name), columns=["id", "n_tokens"]).with_row_index("row")
        part = table.select("id", pl.lit(shard).alias("shard"), pl.col("row").cast(pl.Int64), "n_tokens")
        by_generation.setdefault(shard.split("-", 1)[0], []).append(part)
    for generation in sorted(by_generation):
        yield pl.concat(by_generation[generation])


STAGE = Stage("pack", version=1, role="plan", params=PackParams, function="llmcore.tokens.pack:pack")
