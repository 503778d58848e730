"""The packing plan: which piece of which document sits where. Nothing is discarded, nothing stands twice.

Method: best fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"). A document longer than a
window is cut into full windows and a rest; rests and whole short documents are packed best-fit. Each generation of
shards is packed on its own, in order, so windows of earlier generations never change when shards are appended.

A document that a later version replaced, or that is gone, leaves afterwards (role "versions"): its pieces are taken
out, and everything else keeps its window and slot. The numbers stay dense: where a window is left empty, one of the
last windows takes its number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.shards import generation_of
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.errors import LlmcoreError
from llmcore.selection.versions import left
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
    """Write plan/SPLIT.parquet, sorted by (window, slot), and plan.json.

    Roles: tokens, and versions (optional: dropped/, the documents that leave). Returns windows, tokens, fill and
    documents by split, and how many documents left. Raises LlmcoreError if nothing is left to train on, and if a
    document is to leave that the tokens do not hold.
    """
    (run.out / "plan").mkdir()
    gone = left(inputs.get("versions"))
    summary: dict[str, Any] = {"window": params.window, "splits": {}}
    documents, dropped = {}, 0
    for number, split in enumerate(SPLITS):
        run.progress(number, len(SPLITS), split)
        plan, windows, read = PLAN_SCHEMA.to_frame(), 0, 0
        for generation in _generations(inputs["tokens"], split):
            part = plan_windows(generation, params.window, params.min_fill).with_columns(pl.col("window") + windows)
            windows = int(part["window"][-1]) + 1 if part.height else windows
            plan.vstack(part, in_place=True)
            leaving = generation.join(gone, on="id", how="semi").height
            read, dropped = read + generation.height - leaving, dropped + leaving
        plan, windows = without(plan, gone)
        plan.write_parquet(run.out / f"plan/{split}.parquet", compression="zstd", row_group_size=1 << 16)
        tokens = int(plan["length"].sum())
        fill = round(tokens / (windows * params.window), 6) if windows else 0.0
        summary["splits"][split] = {"windows": windows, "tokens": tokens, "fill": fill}
        documents[f"{split}_documents"] = read
    if dropped != len(gone):
        raise LlmcoreError(f"pack: {len(gone)} documents are to leave, {dropped} are in the tokens; this is a defect")
    if not summary["splits"]["train"]["tokens"]:
        raise LlmcoreError("pack: no document is in the train split; add text or lower split.validation and split.test")
    (run.out / "plan.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    facts = {f"{split}_{name}": value for split, part in summary["splits"].items() for name, value in part.items()}
    return facts | documents | {"dropped": dropped}


def without(plan: pl.DataFrame, gone: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """(the plan without these documents, its number of windows).

    Pieces that stay keep window and slot, but for the last windows: they take the numbers of those that are left empty,
    so that the numbers are 0, 1, 2, … again.
    """
    stays = plan.join(gone, on="id", how="anti", maintain_order="left")
    numbers = stays["window"].unique().sort()
    empty = np.setdiff1d(np.arange(len(numbers)), numbers.to_numpy())
    if not len(empty):
        return stays, len(numbers)
    moved = pl.DataFrame({"window": numbers.tail(len(empty)), "to": empty})
    placed = stays.join(moved, on="window", how="left").with_columns(window=pl.coalesce("to", "window")).drop("to")
    return placed.sort("window", "slot"), len(numbers)


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
    by_generation: dict[int, list[pl.DataFrame]] = {}
    for name in tokens.names(f"{split}/"):
        shard = name.split("/", 1)[1]
        table = pl.read_parquet(tokens.path(name), columns=["id", "n_tokens"]).with_row_index("row")
        part = table.select("id", pl.lit(shard).alias("shard"), pl.col("row").cast(pl.Int64), "n_tokens")
        by_generation.setdefault(generation_of(shard) or 0, []).append(part)
    for generation in sorted(by_generation):
        yield pl.concat(by_generation[generation])


STAGE = Stage("pack", version=1, role="plan", params=PackParams, function="llmcore.tokens.pack:pack")
