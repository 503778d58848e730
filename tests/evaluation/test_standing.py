"""What no longer stands is neither scored, nor learned from by baselines, nor asked for."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from llmcore.evaluation.stage import EvaluateParams, evaluate
from tests.local_files import LocalFiles, LocalRun
from tests.release_inputs import TEXTS, token_table, train_model, train_tokenizer

SHARD = "g000-manual-00000.parquet"


def test_the_evaluation_passes_over_documents_that_left(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(tmp_path / "tokenizer")
    train_model(tmp_path / "model", tokenizer, steps=1)
    texts = [text[:2000] for text in TEXTS if len(text) > 1000][:15]
    table = token_table(tokenizer, texts).with_columns(
        text=pl.Series(texts), split=pl.Series(["test", "validation", *["train"] * 3] * 3)
    )
    for folder in ("documents/kept", "versions/dropped", "tokens/train", "tokens/validation", "tokens/test"):
        (tmp_path / folder).mkdir(parents=True)
    table.select("id", "source", "text", "split").write_parquet(tmp_path / "documents/kept" / SHARD)
    for split in ("train", "validation", "test"):
        part = table.filter(pl.col("split") == split).drop("text", "split")
        part.write_parquet(tmp_path / f"tokens/{split}" / SHARD)
    gone = table["id"].gather([0, 1, 2, 3])
    left = pl.DataFrame({"id": gone, "stage": "versions", "reason": "superseded", "detail": "{}"})
    left.write_parquet(tmp_path / "versions/dropped/g000.parquet")

    roles = ("model", "tokenizer", "tokens", "documents", "versions")
    inputs = {role: LocalFiles(tmp_path / role) for role in roles}
    params = EvaluateParams(sample_tokens=4, memorisation_prompts=1, threads=1)
    run = LocalRun(tmp_path / "run")
    evaluate(inputs, params, run)
    assert set(pl.read_parquet(run.out / "documents.parquet")["id"]) == set(table["id"]) - set(gone)
