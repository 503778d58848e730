"""Training is a function of its recipe: killed, stopped or shared out, it ends with the bits of a run left alone."""

import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llmcore.artifacts.keys import file_digest
from llmcore.errors import LlmcoreError, UsageError
from llmcore.training import stage
from llmcore.training.loader import IGNORED, Windows, order_of_epoch, windows_of_step
from llmcore.training.params import TrainParams
from llmcore.training.stage import STAGE
from tests.local_files import LocalRun
from tests.prefect_server import wait_for
from tests.training.corpus import (
    END,
    TINY,
    WINDOW,
    WatchedRun,
    inputs_of,
    log_of,
    model_digest,
    start_parent,
    train,
    trainer_pid,
    write_corpus,
)


def windows_of(corpus: Path) -> Windows:
    shards = {path.name: path for path in (corpus / "tokens/train").iterdir()}
    return Windows(corpus / "plan/plan/train.parquet", shards, WINDOW, END)


# loader


def test_every_planned_token_is_predicted_once_from_the_one_before_it(tmp_path: Path) -> None:
    documents = write_corpus(tmp_path)
    windows = windows_of(tmp_path)
    batch = windows[np.arange(len(windows))]
    there = batch.targets != IGNORED
    predicted = sorted(zip(batch.tokens[there].tolist(), batch.targets[there].tolist(), strict=True))
    expected = sorted((int(a), int(b)) for d in documents for a, b in zip([END, *d[:-1]], d, strict=True))
    assert predicted == expected
    assert windows.tokens == sum(map(len, documents)) == windows.filled.sum()


@settings(max_examples=50, deadline=None)
@given(windows=st.integers(1, 50), batch=st.integers(1, 20), epochs=st.integers(1, 4), seed=st.integers(0, 9))
def test_each_epoch_reads_each_window_once_in_its_own_order(windows: int, batch: int, epochs: int, seed: int) -> None:
    steps = -(-windows * epochs // batch)
    read = np.concatenate([windows_of_step(i, windows, batch, "d", seed) for i in range(steps)])
    for epoch in range(epochs):
        part = read[epoch * windows : (epoch + 1) * windows]
        assert sorted(part) == list(range(windows))
        assert part.tolist() == order_of_epoch(windows, "d", seed, epoch).tolist()


def test_the_order_hangs_on_plan_seed_and_epoch() -> None:
    orders = [order_of_epoch(40, *key).tolist() for key in (("a", 1, 0), ("b", 1, 0), ("a", 2, 0), ("a", 1, 1))]
    assert len({tuple(order) for order in orders}) == 4


def test_a_plan_that_does_not_fit_its_tokens_is_an_error(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match=r"train.parquet: names shard .*run the pack stage again"):
        Windows(corpus / "plan/plan/train.parquet", {}, WINDOW)
    (tmp_path / "plan.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(LlmcoreError, match=r"plan\.parquet: not a readable Parquet file"):
        Windows(tmp_path / "plan.parquet", {}, WINDOW)


# parameters


def test_pydantic_reads_bounds_and_descriptions_and_plain_use_gets_the_same_checks() -> None:
    adapter = TypeAdapter(TrainParams)
    described = adapter.json_schema()["properties"]
    assert all(field.get("description") for field in described.values())
    with pytest.raises(ValidationError, match="batch"):
        adapter.validate_python({"batch": 0, "micro_batch": 1})
    with pytest.raises(UsageError, match=r"train\.batch: 0 must be at least 1"):
        TrainParams(batch=0, micro_batch=1)
    with pytest.raises(UsageError, match=r"train\.schedule: 'wds' is none of wsd, cosine"):
        TrainParams(schedule="wds")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"train\.micro_batch: 3 does not divide"):
        TrainParams(micro_batch=3)


# the stage


def test_training_learns_and_leaves_a_model_and_its_history(corpus: Path, uninterrupted: LocalRun) -> None:
    history = pq.read_table(uninterrupted.out / "history.parquet").to_pylist()
    assert [row["step"] for row in history] == list(range(1, TINY.steps + 1))
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert [row["step"] for row in history if row["validation_loss"] is not None] == [10, 20, 30, 40]
    assert {path.name for path in uninterrupted.out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "history.parquet",
        "reading.json",
    }


@pytest.mark.slow
def test_cancelled_training_leaves_a_checkpoint_and_goes_on_to_the_same_bits(
    corpus: Path, uninterrupted: LocalRun, tmp_path: Path
) -> None:
    slow = replace(TINY, steps=150)
    run = WatchedRun(tmp_path, stop_at=2)
    with pytest.raises(InterruptedError):
        train(inputs_of(corpus), slow, run)
    assert run.kept >= 1
    markers = sorted((run.scratch / "checkpoints").glob("step-*.json"))
    assert markers and "stopped after step" in (run.scratch / "trainer.log").read_text()
    run.stop_at = math.inf
    train(inputs_of(corpus), slow, run)
    assert "from step 0" not in (run.scratch / "trainer.log").read_text()
    alone = LocalRun(tmp_path / "alone")
    train(inputs_of(corpus), slow, alone)
    assert model_digest(run) == model_digest(alone)
    assert file_digest(run.out / "history.parquet") == file_digest(alone.out / "history.parquet")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    corpus: Path, uninterrupted: LocalRun, tmp_path: Path
) -> None:
    run = LocalRun(tmp_path)
    shutil.copytree(uninterrupted.scratch / "checkpoints", run.scratch / "checkpoints")
    markers = sorted((run.scratch / "checkpoints").glob("step-*.json"))
    assert [marker.stem for marker in markers] == ["step-00000028", "step-00000035"]
    weights = run.scratch / "checkpoints/step-00000035/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    train(inputs_of(corpus), TINY, run)
    said = (run.scratch / "trainer.log").read_text()
    assert "step-00000035.json: damaged checkpoint passed over" in said and "from step 28" in said
    assert model_digest(run) == model_digest(uninterrupted)


@pytest.mark.slow
def test_scratch_of_another_training_is_refused(corpus: Path, uninterrupted: LocalRun, tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    shutil.copytree(uninterrupted.scratch / "checkpoints", run.scratch / "checkpoints")
    with pytest.raises(UsageError, match="holds checkpoints of another training"):
        train(inputs_of(corpus), replace(TINY, seed=2), run)


@pytest.mark.slow
def test_a_failing_trainer_is_one_line(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match=r"^train\.learning_rate: the loss is not finite at step"):
        train(inputs_of(corpus), replace(TINY, learning_rate=1e30, warm_up=0), LocalRun(tmp_path))


@pytest.mark.slow
def test_a_missing_compiler_is_named(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"^train\.compile: no C\+\+ compiler"):
        train(inputs_of(corpus), replace(TINY, compile=True), LocalRun(tmp_path))


def test_looking_at_the_stage_loads_no_torch() -> None:
    code = "import sys, llmcore.training.stage, llmcore.training.loader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert STAGE.kind == "global" and STAGE.load().func is stage.train  # type: ignore[attr-defined]


# real accidents


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_killed_at_any_moment_it_ends_with_the_bits_of_a_run_left_alone(
    corpus: Path, tmp_path: Path, compiled: bool
) -> None:
    params = replace(TINY, steps=400, compile=compiled)
    alone = LocalRun(tmp_path / "alone")
    train(inputs_of(corpus), params, alone)
    run = LocalRun(tmp_path / "killed")
    for kill in range(3):
        parent = start_parent(corpus, run, 400, compiled)
        before = len(log_of(run))
        wait_for(lambda before=before: len(log_of(run)) > before + 15, "fifteen more steps", 240)  # type: ignore[misc]
        os.kill(trainer_pid(run), signal.SIGKILL)
        assert parent.wait() != 0
        assert sorted((run.scratch / "checkpoints").glob("step-*.json")), kill
    train(inputs_of(corpus), params, run)
    assert model_digest(run) == model_digest(alone)
    assert file_digest(run.out / "history.parquet") == file_digest(alone.out / "history.parquet")


@pytest.mark.slow
def test_a_trainer_whose_parent_died_is_found_and_watched_on(corpus: Path, tmp_path: Path) -> None:
    run = LocalRun(tmp_path / "orphaned")
    parent = start_parent(corpus, run, 1000, compiled=False)
    wait_for(lambda: len(log_of(run)) > 5, "sixth step", 240)
    pid = trainer_pid(run)
    parent.kill()
    parent.wait()
    train(inputs_of(corpus), replace(TINY, steps=1000), run)
    assert trainer_pid(run) == pid
    steps = [row["step"] for row in log_of(run)]
    assert steps == list(range(1, 1001))  # one trainer, which never began again


@pytest.mark.slow
def test_two_processes_train_on_the_same_data_in_the_same_order(
    corpus: Path, uninterrupted: LocalRun, tmp_path: Path
) -> None:
    run = LocalRun(tmp_path)
    train(inputs_of(corpus), replace(TINY, processes=2), run)
    # two micro-batches a step: a + b is b + a, so even the bits agree
    assert model_digest(run) == model_digest(uninterrupted)
