"""Two runs of one recipe end in the same bytes and metrics: nothing measured, dated or placed stands in an output."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmcore.artifacts import runner
from llmcore.artifacts.manifest import ArtifactRef, manifest_of
from llmcore.artifacts.recipe import Recipe, resolve
from llmcore.artifacts.store import Store, open_store
from llmcore.planning.chain import build
from llmcore.planning.config import load
from tests.small import TINY_TRAINING, small_config

RUN_TWICE = ("classifier", "tokenizer", "evaluate", "quantise", "publish")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Recipe], dict[str, ArtifactRef]]:
    """The small configuration up to its published model: store, recipes and artifacts by step."""
    folder = tmp_path_factory.mktemp("twice")
    store = open_store(f"file://{folder}/store")
    training = {**TINY_TRAINING, "steps": 10, "warm_up": 2, "validation_every": 0}
    config = small_config(Path(folder), train=training, evaluate={"threads": 1, "sample_tokens": 10})
    recipes: dict[str, Recipe] = {}
    done: dict[str, ArtifactRef] = {}
    for step in build(load(config)).until("publish"):
        recipes[step.name] = resolve(store, step, done)
        done[step.name] = runner.build(store, recipes[step.name])
    return store, recipes, done


@pytest.mark.parametrize("step", RUN_TWICE)
def test_a_second_run_gives_the_same_bytes(
    chain: tuple[Store, dict[str, Recipe], dict[str, ArtifactRef]], step: str
) -> None:
    store, recipes, done = chain
    first = manifest_of(store, done[step])
    second = manifest_of(store, runner.build(store, recipes[step], force=True))
    assert {name: output.blob for name, output in second.outputs.items()} == {
        name: output.blob for name, output in first.outputs.items()
    }
    assert second.metrics == first.metrics
