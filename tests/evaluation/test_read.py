"""Of trained documents counts what the training read: in scores, gap, memorisation and the sums."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmcore.errors import LlmcoreError
from llmcore.evaluation.stage import EvaluateParams, evaluate
from llmcore.evaluation.verdict import verdict
from llmcore.training.exposure import Reading
from llmcore.training.loader import windows_of_step
from tests.evaluation.inputs import BATCH, write_inputs
from tests.local_files import LocalFiles, LocalRun

PARAMS = EvaluateParams(sample_tokens=4, memorisation_prompts=6, threads=1, train_documents=100)


@dataclass(frozen=True)
class Judged:
    inputs: dict[str, LocalFiles]
    table: pl.DataFrame
    folder: Path
    metrics: dict[str, Any]

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    @property
    def plan(self) -> pl.DataFrame:
        return pl.read_parquet(self.inputs["plan"].path("plan/train.parquet"))

    @property
    def trained(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "documents.parquet").filter(pl.col("split") == "train")


def judge(root: Path, steps: int) -> Judged:
    inputs, table = write_inputs(root, documents=30, steps=steps)
    run = LocalRun(root / "run")
    return Judged(inputs, table, run.out, evaluate(inputs, PARAMS, run))


@pytest.fixture(scope="module")
def half_read(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Three steps of two windows."""
    return judge(tmp_path_factory.mktemp("half"), steps=3)


def test_documents_that_no_step_saw_are_not_among_the_trained(half_read: Judged) -> None:
    plan = half_read.plan
    count, digest = plan["window"].n_unique(), Reading.read(half_read.inputs["model"].path("reading.json")).plan
    seen = np.concatenate([windows_of_step(step, count, BATCH, digest, 1) for step in range(3)])
    pieces = plan.filter(pl.col("window").is_in(seen.tolist()))
    assert set(half_read.trained["id"]) == set(pieces["id"]) < set(plan["id"])
    reading = half_read.json("evaluation.json")["reading"]
    assert reading == {
        "documents": plan["id"].n_unique(),
        "read_documents": pieces["id"].n_unique(),
        "tokens": int(plan["length"].sum()),
        "read_tokens": int(pieces["length"].sum()),
        "passes": round(int(pieces["length"].sum()) / int(plan["length"].sum()), 4),
    }
    assert half_read.metrics["unread_documents"] == reading["documents"] - reading["read_documents"]
    assert half_read.metrics["passes"] == reading["passes"]


def test_of_a_document_read_in_part_the_part_is_scored(half_read: Judged) -> None:
    whole = half_read.table.select("id", "n_bytes", "n_tokens")
    rows = half_read.trained.join(whole, on="id")
    assert (rows["times"] == 1).all()
    parts = rows.filter(pl.col("tokens") < pl.col("n_tokens") - 1)
    assert parts.height, "some document is longer than a window"
    assert (parts["bytes"] < parts["n_bytes"]).all() and (parts["bytes"] > 0).all()


def test_all_of_what_was_read_twice_and_more_is_scored_whole(tmp_path: Path) -> None:
    judged = judge(tmp_path, steps=110)
    windows = judged.plan["window"].n_unique()
    passes = 110 * BATCH / windows
    assert 2 < passes < 9
    rows = judged.trained.join(judged.table, on="id")
    assert rows.height == (judged.table["split"] == "train").sum()
    assert (rows["tokens"] == rows["n_tokens"] - 1).all() and (rows["bytes"] == rows["n_bytes"]).all()
    assert judged.metrics["passes"] == pytest.approx(passes, rel=0.05) and judged.metrics["unread_documents"] == 0
    memorised = judged.json("memorisation.json")
    assert set(memorised["train"]["by_times"]) <= {str(int(passes)), str(int(passes) + 1)}
    assert memorised["train"]["mean_times"] >= int(passes)
    assert "by_times" not in memorised["held_out"]


def test_gap_and_baselines_come_with_intervals_and_pairs(half_read: Judged) -> None:
    report = half_read.json("evaluation.json")
    gap = report["gap"]
    assert gap["difference"]["low"] < gap["difference"]["value"] < gap["difference"]["high"]
    assert gap["difference"]["value"] == pytest.approx(gap["validation"] - gap["train"], abs=2e-6)
    for scores in report["splits"].values():
        ours = scores["model"]["value"]
        for name in ("unigram", "ngram_5", "ngram_7"):
            paired = scores["baselines"][name]["difference"]
            assert paired["value"] == pytest.approx(ours - scores["baselines"][name]["value"], abs=2e-6)
            assert paired["low"] < paired["value"] < paired["high"]
        assert scores["baselines"]["uniform"] == {"value": 8.0}
        assert set(scores["baselines"]["xz"]) == {"value"}
    assert verdict(half_read.metrics).startswith(("Worse than", "No better than"))


def test_a_model_of_another_plan_is_refused(half_read: Judged, tmp_path: Path) -> None:
    inputs, _ = write_inputs(tmp_path, documents=20, steps=3)
    with pytest.raises(LlmcoreError, match=r"^evaluate: the model was trained on another plan"):
        evaluate(half_read.inputs | {"plan": inputs["plan"]}, PARAMS, LocalRun(tmp_path / "run"))
