"""The artifacts that an evaluation reads, over a model of a few steps and a plan that it read as far as a test says."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from llmcore.tokens.pack import plan_windows
from llmcore.training.exposure import Reading
from llmcore.training.loader import plan_digest
from tests.local_files import LocalFiles
from tests.release_inputs import TEXTS, WINDOW, token_table, train_model, train_tokenizer

SHARD = "g000-manual-00000.parquet"
BATCH = 2
SPLITS = ["test", "validation", *["train"] * 3]  # of the documents, over and over


def write_inputs(root: Path, documents: int, steps: int, gone: int = 0) -> tuple[dict[str, LocalFiles], pl.DataFrame]:
    """The inputs by role, and the documents: columns as the token shards have them, text and split.

    steps: of BATCH windows that the model's training is said to have made; gone: so many documents no longer stand.
    """
    tokenizer = train_tokenizer(root / "tokenizer")
    train_model(root / "model", tokenizer, steps=1)
    texts = [text[:2000] for text in TEXTS if len(text) > 1000][:documents]
    splits = [SPLITS[number % len(SPLITS)] for number in range(documents)]
    table = token_table(tokenizer, texts).with_columns(text=pl.Series(texts), split=pl.Series(splits))
    folders = ("documents/kept", "versions/dropped", "plan/plan", *(f"tokens/{split}" for split in set(SPLITS)))
    for folder in folders:
        (root / folder).mkdir(parents=True)
    table.select("id", "source", "text", "split").write_parquet(root / "documents/kept" / SHARD)
    for split in set(SPLITS):
        part = table.filter(pl.col("split") == split).drop("text", "split")
        part.write_parquet(root / f"tokens/{split}" / SHARD)
    left = table["id"].head(gone)
    rows = {"id": left, "stage": "versions", "reason": "superseded", "detail": "{}"}
    pl.DataFrame(rows).write_parquet(root / "versions/dropped/g000.parquet")

    trained = table.filter(pl.col("split") == "train").with_row_index("row").with_columns(shard=pl.lit(SHARD))
    plan = plan_windows(trained.filter(~pl.col("id").is_in(left.implode())), WINDOW)
    plan.write_parquet(root / "plan/plan/train.parquet")
    digest, windows = plan_digest(root / "plan/plan/train.parquet"), int(plan["window"].max()) + 1  # type: ignore[arg-type]
    (root / "model/reading.json").write_text(json.dumps(Reading(digest, windows, BATCH, 1, steps).plain()))
    roles = ("model", "tokenizer", "tokens", "documents", "versions", "plan")
    return {role: LocalFiles(root / role) for role in roles}, table
