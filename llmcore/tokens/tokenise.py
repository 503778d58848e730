"""Documents to tokens: Parquet shards of integer lists. Only columns that depend on text alone go on from here."""

from __future__ import annotations

import polars as pl

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, ShardResult, Stage
from llmcore.tokens.tokenizer import end_of_text, load_tokenizer

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
    encoded = encoder.encode_batch(documents["text"].to_list(), add_special_tokens=False)
    table = documents.select(
        "id", "source", "split",
        tokens=pl.Series([[*item.ids, end] for item in encoded], dtype=pl.List(width)),
        n_bytes=pl.col("text").str.len_bytes().cast(pl.Int64),
    ).with_columns(n_tokens=pl.col("tokens").list.len().cast(pl.Int64))  # fmt: skip
    columns = ("id", "source", "tokens", "n_tokens", "n_bytes")
    return ShardResult(
        {split: table.filter(pl.col("split") == split).select(columns) for split in SPLITS},
        {"tokens": int(table["n_tokens"].sum()), "bytes": int(table["n_bytes"].sum())},
    )


STAGE = Stage(
    "tokenise", version=1, params=TokeniseParams, function="llmcore.tokens.tokenise:tokenise", kind="per_shard",
    broadcast=("tokenizer",), partition=SPLITS,
)  # fmt: skip
