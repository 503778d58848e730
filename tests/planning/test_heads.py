"""A dataset's head moves to descendants only, and what a run goes on from is what the head says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmcore.artifacts import roots, runner
from llmcore.artifacts.manifest import ArtifactRef, manifest_of
from llmcore.artifacts.recipe import resolve
from llmcore.artifacts.shards import generation_of
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError, UsageError
from llmcore.planning.chain import Chain
from llmcore.planning.config import PipelineConfig, load
from llmcore.planning.heads import (
    Head,
    chain_behind_head,
    chain_of_head,
    chain_on_head,
    head_of,
    remember_dataset,
    remember_model,
)
from tests.small import small_config

LEARNED = ("tokenizer", "classifier", "benchmarks")


def packed(store: Store, chain: Chain) -> dict[str, ArtifactRef]:
    done = dict(chain.pinned)
    for step in chain.until("pack"):
        if step.name not in done:
            done[step.name] = runner.build(store, resolve(store, step, done))
    return done


def remembered(
    store: Store, config: PipelineConfig, chain: Chain, head: Head, reset: bool = False
) -> Mapping[str, Any]:
    done = packed(store, chain)
    remember_dataset(store, config.name, done, head, reset)
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, and a store with its dataset."""
    folder = tmp_path_factory.mktemp("made")
    config = load(small_config(folder))
    store = open_store(config.store)
    remembered(store, config, *chain_on_head(store, config))
    return folder


@pytest.fixture
def corpus(made: Path, tmp_path: Path) -> Path:
    """The same for one test alone."""
    shutil.copytree(made / "store", tmp_path / "store")
    small_config(tmp_path)
    return tmp_path


def opened(folder: Path) -> tuple[Store, PipelineConfig]:
    config = load(folder / "small.yaml")
    return open_store(config.store), config


def add_file(folder: Path) -> None:
    (folder / "texts" / "new.txt").write_text(
        "What nobody had written before was written now, and in full sentences. " * 40
    )


def add_source(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "letter.txt").write_text("Dear reader, this is a letter of another source altogether. " * 40)
    settings = yaml.safe_load((folder / "small.yaml").read_text())
    settings["sources"].append({"kind": "text", "name": "letters", "path": "more", "licence": "CC0-1.0"})
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))


def test_the_first_run_again_finds_everything_and_leaves_the_head(corpus: Path) -> None:
    store, config = opened(corpus)
    head = head_of(store, config.name)
    chain, _ = chain_on_head(store, config)
    known = {entry.name for entry in store.backend.entries("artifacts/")}
    remembered(store, config, chain, head)
    assert {entry.name for entry in store.backend.entries("artifacts/")} == known
    assert head_of(store, config.name).number == head.number == 1


def test_a_run_over_other_files_stops_and_names_the_ways_on(corpus: Path) -> None:
    add_file(corpus)
    store, config = opened(corpus)
    with pytest.raises(UsageError, match=r"collect notes: .*llmcore refresh.*--reset-head"):
        chain_on_head(store, config)


def test_after_a_refresh_the_same_configuration_goes_on_from_it(corpus: Path) -> None:
    store, config = opened(corpus)
    add_file(corpus)
    done = remembered(store, config, *chain_behind_head(store, config))
    head = head_of(store, config.name)
    assert (head.number, head.generations) == (2, 2)
    again = remembered(store, config, *chain_on_head(store, config))
    assert again["pack"] == done["pack"]
    assert packed(store, chain_of_head(store, config)[0])["pack"] == done["pack"]
    assert head_of(store, config.name) == head


def test_files_that_vanish_after_a_refresh_do_not_move_the_head_back(corpus: Path) -> None:
    store, config = opened(corpus)
    add_file(corpus)
    remembered(store, config, *chain_behind_head(store, config))
    head = head_of(store, config.name)
    (corpus / "texts" / "new.txt").unlink()  # as the first snapshot was, from which the head goes on
    with pytest.raises(UsageError, match=r"files\.new\.txt changed.*llmcore refresh"):
        chain_on_head(store, config)
    assert head_of(store, config.name) == head


def test_a_source_that_is_added_joins_as_a_generation_of_its_own(corpus: Path) -> None:
    store, config = opened(corpus)
    first = packed(store, chain_of_head(store, config)[0])
    add_source(corpus)
    store, config = opened(corpus)
    done = remembered(store, config, *chain_on_head(store, config))
    assert {step: done[step].key for step in LEARNED} == {step: first[step].key for step in LEARNED}
    letters = manifest_of(store, done["ingest letters"]).outputs
    assert {generation_of(name) for name in letters} == {1}
    tokens = manifest_of(store, done["tokenise"]).outputs
    assert set(manifest_of(store, first["tokenise"]).outputs.items()) <= set(tokens.items())
    (corpus / "more" / "second.txt").write_text("A second letter came a week later and told the rest. " * 40)
    later = remembered(store, config, *chain_behind_head(store, config))
    assert {generation_of(name) for name in manifest_of(store, later["ingest letters"]).outputs} == {1, 2}
    assert set(tokens.items()) <= set(manifest_of(store, later["tokenise"]).outputs.items())


def test_a_source_that_is_taken_away_stops_the_run(corpus: Path) -> None:
    add_source(corpus)
    store, config = opened(corpus)
    remembered(store, config, *chain_on_head(store, config))
    small_config(corpus)
    store, config = opened(corpus)
    with pytest.raises(UsageError, match=r"'letters' is part of dataset 'small'.*--reset-head"):
        chain_on_head(store, config)


def test_reset_begins_anew(corpus: Path) -> None:
    store, config = opened(corpus)
    add_file(corpus)
    remembered(store, config, *chain_behind_head(store, config))
    chain, head = chain_on_head(store, config, reset=True)
    done = remembered(store, config, chain, head, reset=True)
    assert {generation_of(name) for name in manifest_of(store, done["tokenise"]).outputs} == {0}
    assert (head_of(store, config.name).number, head_of(store, config.name).generations) == (3, 1)


def test_a_run_that_was_overtaken_by_a_refresh_does_not_move_the_head(corpus: Path) -> None:
    store, config = opened(corpus)
    slow, before = chain_on_head(store, config)
    done = packed(store, slow)
    add_file(corpus)
    remembered(store, config, *chain_behind_head(store, config))
    head = head_of(store, config.name)
    moved = {**done, "pack": done["tokenise"]}
    with pytest.raises(LlmcoreError, match="has moved on since this run began"):
        remember_dataset(store, config.name, moved, before)
    assert head_of(store, config.name) == head


def test_a_model_that_is_published_again_does_not_move_its_ref(corpus: Path) -> None:
    store, _ = opened(corpus)
    ref = ArtifactRef("publish", "a" * 64, "b" * 64, store.uri, "c" * 64)
    for _ in range(2):
        remember_model(store, "small", {"publish": ref})
    found = roots.ref(store, "small")
    assert found is not None and found.number == 1


def test_a_dataset_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    small_config(tmp_path)
    store, config = opened(tmp_path)
    for ask in (chain_of_head, chain_behind_head):
        with pytest.raises(UsageError, match="no dataset 'small'"):
            ask(store, config)
