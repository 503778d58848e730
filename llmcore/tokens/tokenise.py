"""Documents to tokens: Parquet shards of integer lists. Only columns that depend on text alone go on from here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, ShardResult, Stage
from llmcore.tokens.tokenizer import end_of_text, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_BYTES = 1 << 20
SPLITS = ("train", "validation", "test")


class TokeniseParams(Params):
    """Nothing to choose: the tokenizer decides."""


def tokenise(documents: pl.DataFrame, params: TokeniseParams, tokenizer: Files) -> ShardResult:
    """One table a split: id, source, tokens (list<uint16>, uint32 where the vocabulary needs it), n_tokens, n_bytes.

    Each document ends with <|endoftext|>; n_bytes counts the UTF-8 bytes of its text.
    """
    encoder = load_tokenizer(tokenizer)
    end = end_of_text(encoder)
    width = pl.UInt16 if encoder.get_vocab_size() <= 1 << 16 else pl.UInt32
    ids = [piece for texts in _batches(documents["text"]) for piece in _encode(encoder, texts, end, width)]
    table = documents.select(
        "id",
        "source",
        "split",
        tokens=_lists(ids, width),
        n_bytes=pl.col("text").str.len_bytes().cast(pl.Int64),
    ).with_columns(n_tokens=pl.col("tokens").list.len().cast(pl.Int64))
    columns = ("id", "source", "tokens", "n_tokens", "n_bytes")
    return ShardResult(
        {split: table.filter(pl.col("split") == split).select(columns) for split in SPLITS},
        {"tokens": int(table["n_tokens"].sum()), "bytes": int(table["n_bytes"].sum())},
    )


def _batches(texts: pl.Series) -> Iterator[list[str]]:
    """Texts in batches of about BATCH_BYTES: an encoding takes a hundred times its text while it is worked on."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(encoder: Tokenizer, texts: list[str], end: int, width: type[pl.DataType]) -> list[NDArray[Any]]:
    kind = np.uint16 if width == pl.UInt16 else np.uint32
    encoded = encoder.encode_batch(texts, add_special_tokens=False)
    return [np.array([*item.ids, end], dtype=kind) for item in encoded]


def _lists(values: list[NDArray[Any]], width: type[pl.DataType]) -> pl.Series:
    """One Arrow list column."""
    import pyarrow as pa  # takes longer to import than `plan` may

    offsets = np.cumsum([0, *(len(row) for row in values)], dtype=np.int64)
    flat = np.concatenate(values) if values else np.zeros(0, dtype=np.uint16 if width == pl.UInt16 else np.uint32)
    return pl.Series(pa.LargeListArray.from_arrays(offsets, flat), dtype=pl.List(width))


STAGE = Stage(
    "tokenise",
    version=1,
    role="tokens",
    params=TokeniseParams,
    function="llmcore.tokens.tokenise:tokenise",
    kind="per_shard",
    broadcast=("tokenizer",),
    partition=SPLITS,
)
