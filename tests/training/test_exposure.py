"""What was read is a look-up: the same as to watch the training, and the trainer writes down what it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.errors import LlmcoreError
from llmcore.model.huggingface import load
from llmcore.model.transformer import document_layout
from llmcore.training.exposure import Reading, token_times
from llmcore.training.loader import Windows, even_draw, plan_digest, windows_of_step
from llmcore.training.params import TrainParams
from tests.local_files import LocalRun
from tests.training.corpus import END, TINY, WINDOW


@settings(max_examples=60, deadline=None)
@given(windows=st.integers(1, 40), batch=st.integers(1, 12), steps=st.integers(1, 30), seed=st.integers(0, 9))
def test_times_and_steps_are_those_of_a_training_watched(windows: int, batch: int, steps: int, seed: int) -> None:
    watched = [windows_of_step(step, windows, batch, "d", seed) for step in range(steps)]
    reading = Reading("d", windows, batch, seed, steps)
    assert reading.times().tolist() == np.bincount(np.concatenate(watched), minlength=windows).tolist()
    wanted = {0, windows - 1}
    assert reading.steps_of(wanted) == [n + 1 for n, read in enumerate(watched) if wanted & set(read.tolist())]


def test_a_model_says_how_it_was_read(corpus: Path, uninterrupted: LocalRun) -> None:
    plan = corpus / "plan/plan/train.parquet"
    reading = Reading.read(uninterrupted.out / "reading.json")
    assert reading == Reading.planned(plan, vars(TINY))
    assert reading.times().sum() == TINY.steps * TINY.batch
    with pytest.raises(LlmcoreError, match="does not say what the model read"):
        Reading.read(plan)


def test_the_steps_of_a_plan_are_those_of_its_epochs(corpus: Path) -> None:
    params = TrainParams(batch=8, micro_batch=8, epochs=2.5)
    reading = Reading.planned(corpus / "plan/plan/train.parquet", vars(params))
    assert reading.steps == params.total_steps(reading.windows)
    assert set(reading.times().tolist()) == {2, 3}


def test_tokens_are_read_as_often_as_their_windows() -> None:
    times = token_times([(0, 0, 3), (2, 3, 2)], 6, np.array([2, 9, 0]))
    assert times.tolist() == [2, 2, 2, 0, 0, 0]


@settings(max_examples=60, deadline=None)
@given(windows=st.integers(0, 300), most=st.integers(0, 60))
def test_a_draw_takes_one_window_from_each_stretch(windows: int, most: int) -> None:
    drawn = even_draw(windows, most, "d")
    count = min(windows, most or windows)
    assert len(drawn) == count and drawn.tolist() == even_draw(windows, most, "d").tolist()
    assert all(i * windows // count <= number < (i + 1) * windows // count for i, number in enumerate(drawn.tolist()))


def test_a_draw_hangs_on_the_plan() -> None:
    assert even_draw(1000, 50, "d").tolist() != even_draw(1000, 50, "e").tolist()
    assert even_draw(7, 0, "d").tolist() == list(range(7))


def test_the_validation_loss_is_that_of_the_windows_drawn(corpus: Path, uninterrupted: LocalRun) -> None:
    plan = corpus / "plan/plan/validation.parquet"
    shards = {path.name: path for path in (corpus / "tokens/validation").iterdir()}
    windows = Windows(plan, shards, WINDOW, END)
    numbers = even_draw(len(windows), TINY.validation_windows, plan_digest(plan))
    assert len(numbers) == TINY.validation_windows < len(windows) and numbers.tolist() != list(range(len(numbers)))
    batch = windows[numbers]
    with torch.inference_mode():
        layout = document_layout(torch.from_numpy(batch.document_ids))
        loss = load(uninterrupted.out).loss(torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets), *layout)
    history = pq.read_table(uninterrupted.out / "history.parquet").to_pylist()
    assert history[-1]["validation_loss"] == pytest.approx(float(loss) / windows.filled[numbers].sum(), rel=1e-5)
