"""What no longer stands is neither scored, nor learned from by baselines, nor asked for."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from llmcore.evaluation.stage import EvaluateParams, evaluate
from tests.evaluation.inputs import write_inputs
from tests.local_files import LocalRun


def test_the_evaluation_passes_over_documents_that_left(tmp_path: Path) -> None:
    inputs, table = write_inputs(tmp_path, documents=15, steps=1000, gone=4)
    run = LocalRun(tmp_path / "run")
    evaluate(inputs, EvaluateParams(sample_tokens=4, memorisation_prompts=1, threads=1), run)
    assert set(pl.read_parquet(run.out / "documents.parquet")["id"]) == set(table["id"][4:])
