"""Going on from another training's checkpoint, by naming it; and what changes without becoming another training."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmcore.artifacts import runner
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import manifest_of
from llmcore.artifacts.recipe import Recipe, StoreFiles
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError, UsageError
from llmcore.planning.chain import build
from llmcore.planning.config import load
from llmcore.planning.resume import find
from llmcore.training import resume, stage
from llmcore.training.marker import Marker
from tests.local_files import LocalRun
from tests.small import small_config
from tests.training.corpus import TINY, inputs_of, model_digest, recipe_in, train

SLOW = replace(TINY, steps=300, checkpoint_every=20, validation_every=100)


def break_off(store: Store, recipe: Recipe) -> None:
    """Run a training until it has checkpoints, and kill its trainer."""

    def kill(done: float, total: float, text: str) -> None:
        if done > 60:
            for scratch in scratches(recipe):
                os.kill(int(json.loads((scratch / "trainer.pid").read_text())["pid"]), signal.SIGKILL)

    with pytest.raises(LlmcoreError, match=f"--resume {recipe.key[:12]}"):
        runner.run_global(store, recipe, kill)


def scratches(recipe: Recipe) -> list[Path]:
    """Where the trainer of a recipe works: what its command line says."""
    import psutil

    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    specs = [Path(line[-1]) for line in lines if "llmcore.training.trainer" in line]
    return [spec.parent for spec in specs if json.loads(spec.read_text())["params"]["steps"] == SLOW.steps]


@pytest.mark.slow
def test_a_changed_micro_batch_goes_on_from_the_run_that_is_named(
    corpus: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "REPORT_SECONDS", 0.1)
    first = recipe_in(store, corpus, SLOW)
    break_off(store, first)

    params = find(store, first.key[:8])
    assert params == find(store, first.key) and params.key == first.key and params.step >= 20
    smaller = replace(SLOW, micro_batch=2, precision="bf16")
    second = recipe_in(store, corpus, smaller, params)
    assert second.key != recipe_in(store, corpus, smaller).key
    ref = runner.build(store, second)

    files = StoreFiles(store, manifest_of(store, ref).outputs)
    history = pq.read_table(files.path("history.parquet")).to_pylist()
    taken = StoreFiles(store, second.files["resume"])
    assert history[: params.step] == pq.read_table(taken.path("history.parquet")).to_pylist()
    assert [row["step"] for row in history] == list(range(1, SLOW.steps + 1))
    behind = {m.role: m for m in manifests_behind(store, [manifest_of(store, ref)])}
    assert behind["checkpoint"].identity["params"]["key"] == first.key
    assert behind["checkpoint"].metrics["trained"]["train"]["micro_batch"] == SLOW.micro_batch

    # once taken, it is an artifact: it is found again though the first run's scratch is gone
    for entry in list(store.backend.entries(f"runs/{first.key}/scratch/")):
        store.backend.delete(entry.name)
    assert find(store, first.key[:8]) == params


@pytest.fixture(scope="module")
def checkpoint(corpus: Path, uninterrupted: LocalRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a checkpoint of TINY as the stage `checkpoint` leaves them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    name = "step-00000028"
    shutil.copytree(uninterrupted.scratch / "checkpoints" / name, folder, dirs_exist_ok=True)
    shutil.copyfile(uninterrupted.scratch / "checkpoints" / f"{name}.json", folder / "checkpoint.json")
    return folder


@pytest.mark.slow
def test_what_may_not_differ_is_named(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    inputs = inputs_of(corpus) | {"resume": type(inputs_of(corpus)["plan"])(checkpoint)}
    for change, said in (
        ({"learning_rate": 1e-3}, r"train\.learning_rate 0\.003, here 0\.001"),
        ({"seed": 2}, r"train\.seed 1, here 2"),
        ({"layers": 1}, r"model\.layers 2, here 1"),
        ({"batch": 4}, r"train\.batch 8, here 4"),
    ):
        with pytest.raises(
            UsageError, match=rf"^train: the checkpoint to resume from is of another training: .*{said}"
        ):
            train(inputs, replace(TINY, **change), LocalRun(tmp_path / next(iter(change))))


@pytest.mark.slow
def test_the_same_training_goes_on_to_the_same_bits(
    corpus: Path, checkpoint: Path, uninterrupted: LocalRun, tmp_path: Path
) -> None:
    inputs = inputs_of(corpus) | {"resume": type(inputs_of(corpus)["plan"])(checkpoint)}
    run = LocalRun(tmp_path)
    train(inputs, TINY, run)
    assert "from step 28" in (run.scratch / "trainer.log").read_text()
    assert model_digest(run) == model_digest(uninterrupted)


def test_a_run_that_cannot_be_found_is_one_line(store: Store) -> None:
    with pytest.raises(UsageError, match=r"^--resume 0123abcd: no checkpoint of such a training in "):
        find(store, "0123abcd")
    with pytest.raises(UsageError, match=r"^--resume my-model: not a key"):
        find(store, "my-model")


@pytest.mark.slow
def test_pacing_is_no_part_of_the_recipe(corpus: Path, store: Store, uninterrupted: LocalRun, tmp_path: Path) -> None:
    paced = replace(TINY, checkpoint_every=11, hang_seconds=60.0)
    assert recipe_in(store, corpus, paced).key == recipe_in(store, corpus, TINY).key
    assert recipe_in(store, corpus, replace(TINY, micro_batch=2)).key != recipe_in(store, corpus, TINY).key
    run = LocalRun(tmp_path)
    shutil.copytree(uninterrupted.scratch / "checkpoints", run.scratch / "checkpoints")
    train(inputs_of(corpus), paced, run)
    assert "from step 35" in (run.scratch / "trainer.log").read_text()
    assert model_digest(run) == model_digest(uninterrupted)


@pytest.mark.slow
def test_an_edited_marker_is_passed_over(corpus: Path, uninterrupted: LocalRun, tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    shutil.copytree(uninterrupted.scratch / "checkpoints", run.scratch / "checkpoints")
    marker = run.scratch / "checkpoints/step-00000035.json"
    content = json.loads(marker.read_text())
    assert Marker.read(marker.read_bytes()).step == 35
    marker.write_text(json.dumps(content | {"step": 34}))
    train(inputs_of(corpus), TINY, run)
    assert "from step 28" in (run.scratch / "trainer.log").read_text()
    assert model_digest(run) == model_digest(uninterrupted)


def test_the_chain_puts_the_checkpoint_before_the_training(tmp_path: Path) -> None:
    config = load(small_config(tmp_path))
    named = resume.CheckpointParams("a" * 64, 5, "b" * 64)
    chain = build(config, resume=named)
    assert chain.steps["train"].inputs["resume"].steps == ("checkpoint",) and chain.steps["checkpoint"].params == named
    assert "resume" not in build(config).steps["train"].inputs
