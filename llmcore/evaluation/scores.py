"""Bits per byte of the model and of its baselines, beside each other, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmcore.evaluation.baselines import ngram_bits, xz_sizes
from llmcore.evaluation.bits_per_byte import document_nats, perplexity, token_nats
from llmcore.evaluation.intervals import difference_with_interval, with_interval
from llmcore.model.transformer import Transformer

LN2 = float(np.log(2))
ORDERS = {"unigram": 1, "ngram_5": 5, "ngram_7": 7}
XZ_TOGETHER = 8 << 20  # bytes of text up to which two compressions run side by side; one takes up to 700 MB


def score_held_out(model: Transformer, drawn: pl.DataFrame, split: str, beginning: int) -> pl.DataFrame:
    """id, source, split, bytes, tokens, nats, times (0: no token of them was trained on)."""
    nats = document_nats(model, [piece.to_numpy() for piece in drawn["tokens"]], beginning)
    return drawn.select(
        "id",
        "source",
        split=pl.lit(split),
        bytes=pl.col("n_bytes"),
        tokens=pl.col("n_tokens") - 1,
        nats=pl.Series(nats, dtype=pl.Float64).round(6),
        times=pl.lit(0.0),
    )


def score_trained(
    model: Transformer,
    drawn: pl.DataFrame,
    times: Sequence[NDArray[np.int64]],
    sizes: NDArray[np.int64],
    beginning: int,
) -> pl.DataFrame:
    """The same of trained documents, of each only the tokens that were predicted; none that has no such token.

    times: how often each token was predicted; sizes: bytes of each token of the vocabulary. The column `times` tells
    how often those tokens were, on average.
    """
    documents = [piece.to_numpy() for piece in drawn["tokens"]]
    rows = []
    for number, nats in enumerate(token_nats(model, documents, beginning)):
        read = times[number][:-1] > 0
        if read.any():
            rows.append(
                {
                    "id": drawn["id"][number],
                    "source": drawn["source"][number],
                    "split": "train",
                    "bytes": int(sizes[documents[number][:-1][read]].sum()),
                    "tokens": int(read.sum()),
                    "nats": round(float(nats[read].sum(dtype=np.float64)), 6),
                    "times": round(float(times[number][:-1][read].mean()), 6),
                }
            )
    return pl.DataFrame(rows, schema=score_held_out(model, drawn.clear(), "train", beginning).schema)


def compare(documents: pl.DataFrame, trained: Sequence[str], held_out: Mapping[str, Sequence[str]], seed: int) -> Any:
    """For each held-out split: the model, its baselines, and the model minus each of them, document by document.

    documents: rows of `score_held_out`, each split's in the order of its texts. trained: what baselines learn from.
    """
    texts = {split: [text.encode() for text in some] for split, some in held_out.items() if len(some)}
    learned = [text.encode() for text in trained]
    packed = xz_sizes(learned, texts, 2 if sum(map(len, learned)) <= XZ_TOGETHER else 1)
    every = [text for some in texts.values() for text in some]
    bits = ngram_bits(learned, every, max(ORDERS.values()))
    ends = np.cumsum([len(some) for some in texts.values()])[:-1]
    found = {}
    for (split, some), rows in zip(texts.items(), np.split(bits, ends), strict=True):
        ours = documents.filter(pl.col("split") == split)
        size = np.array([len(text) for text in some], dtype=np.float64)
        spent = ours["nats"].to_numpy() / LN2
        baselines: dict[str, Any] = {"uniform": {"value": 8.0}}
        for name, order in ORDERS.items():
            theirs = rows[:, order - 1]
            difference = with_interval(spent - theirs, size, seed)
            baselines[name] = with_interval(theirs, size, seed) | {"difference": difference}
        length = sum(map(len, some)) + len(some) - 1
        alone, on_top = packed[split]
        baselines["xz"] = {"value": round(8 * alone / length, 6)}
        baselines["xz_after_train"] = {"value": round(8 * on_top / length, 6)}
        found[split] = {
            "documents": ours.height,
            "bytes": int(ours["bytes"].sum()),
            "tokens": int(ours["tokens"].sum()),
            "perplexity": perplexity(float(ours["nats"].sum()), int(ours["tokens"].sum())),
            "model": _interval_of(ours, seed),
            "baselines": baselines,
            "sources": {
                source: _interval_of(part, seed) | {"documents": part.height}
                for (source,), part in sorted(ours.partition_by("source", as_dict=True).items())
            },
        }
    return found


def gap(documents: pl.DataFrame, seed: int) -> dict[str, Any]:
    """Bits per byte on what was trained on and on validation documents, and how much more the latter take.

    {"train", "validation", "documents": {split: number}, "difference": {value, low, high}}; far apart, the model has
    overfitted. What is not there is left out.
    """
    parts = {split: documents.filter(pl.col("split") == split) for split in ("train", "validation")}
    there = {split: _sums(part) for split, part in parts.items() if part["bytes"].sum()}
    found: dict[str, Any] = {split: round(float(bits.sum() / size.sum()), 6) for split, (bits, size) in there.items()}
    found["documents"] = {split: len(bits) for split, (bits, _) in there.items()}
    if len(there) == len(parts):
        found["difference"] = difference_with_interval(*there["validation"], *there["train"], seed)
    return found


def _interval_of(rows: pl.DataFrame, seed: int) -> dict[str, float]:
    return with_interval(*_sums(rows), seed)


def _sums(rows: pl.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits and bytes of each document."""
    return rows["nats"].to_numpy() / LN2, rows["bytes"].to_numpy().astype(np.float64)
