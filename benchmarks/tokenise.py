"""Tokenising a shard of real addresses, tokens a second, beside transformers' tokenizer over the same documents.

    python benchmarks/tokenise.py [--repeat N] [--vocab-size N]

Ours is what the stage does: text column in, Arrow lists of uint16 with <|endoftext|> out. The peer gets the same
tokenizer through `PreTrainedTokenizerFast`, in one batch, and its lists are turned into arrays. They take turns in one
process; figures are of the best turn. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerFast

from llmcore.quickstart import bundled
from llmcore.tokens.tokenise import TokeniseParams, tokenise
from llmcore.tokens.tokenizer import TokenizerParams, train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=4096)
    given = parser.parse_args()
    texts = pl.read_parquet(bundled("sotu.parquet"))["text"]
    documents = pl.DataFrame({"id": [str(n) for n in range(len(texts))], "text": texts}).with_columns(
        source=pl.lit("sotu"), split=pl.lit("train")
    )
    with TemporaryDirectory() as folder:
        # what the stages ask of their files and their run
        name = "g000-sotu-00000.parquet"
        documents.write_parquet(Path(folder) / name)
        documents_read: Any = SimpleNamespace(
            names=lambda prefix: [name], path=Path(folder).joinpath, tables=lambda prefix: [(name, documents)]
        )
        files: Any = SimpleNamespace(path=Path(folder).joinpath)
        run: Any = SimpleNamespace(out=Path(folder))
        train_tokenizer({"documents": documents_read}, TokenizerParams(vocab_size=given.vocab_size), run)
        peer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")

        def ours() -> int:
            return int(tokenise(documents, TokeniseParams(), files).outputs["train"]["n_tokens"].sum()) - len(texts)

        def theirs() -> int:
            rows = peer(texts.to_list(), add_special_tokens=False)["input_ids"]
            return sum(len(np.array(row, dtype=np.uint16)) for row in rows)

        turns = [(timed(ours), timed(theirs)) for _ in range(given.repeat)]
    (our_seconds, tokens), (their_seconds, their_tokens) = (min(column) for column in zip(*turns, strict=True))
    result = {
        "benchmark": "tokenise",
        "tokens": tokens,
        "same_count": tokens == their_tokens,
        "tokens_per_second": round(tokens / our_seconds),
        "transformers_tokens_per_second": round(their_tokens / their_seconds),
        "ratio": round(their_seconds / our_seconds, 3),
        "megabytes_per_second": round(sum(len(text.encode()) for text in texts) / our_seconds / 1e6, 2),
    }
    print(json.dumps(result))


def timed(work: Callable[[], int]) -> tuple[float, int]:
    started = time.perf_counter()
    made = work()
    return time.perf_counter() - started, made


if __name__ == "__main__":
    main()
