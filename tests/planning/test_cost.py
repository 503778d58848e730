"""`plan` is right before the first run and after a change, knows devices, and promises nothing out of reach."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmcore.artifacts import runner
from llmcore.artifacts.index import last_of
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.recipe import resolve
from llmcore.artifacts.store import Store, open_store
from llmcore.planning.config import load
from llmcore.planning.cost import too_wide, training_cost
from llmcore.planning.devices import (
    FLOPS_OF_REFERENCE,
    GPUS,
    Machine,
    gpu_named,
    gpu_reach,
    processor_reach,
    this_machine,
)
from llmcore.planning.extent import bytes_per_token, extent_of_all
from llmcore.planning.forecast import GATHERED_SECONDS, Expected, forecast, in_words
from llmcore.planning.heads import Head, chain_on_head, remember_dataset
from llmcore.planning.plan import plan_chain
from tests.small import TINY_TRAINING, small_config

WINDOW = 64


def planned(path: Path) -> tuple[dict[str, Any], dict[str, Expected]]:
    config = load(path)
    store = open_store(config.store)
    chain = chain_on_head(store, config)[0]
    steps = list(plan_chain(store, chain))
    cost = training_cost(store, config, chain, {step.step: step.ref for step in steps if step.ref is not None})
    return cost, forecast(store, config, chain, steps, cost)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A folder with the dataset of the small configuration, and the artifact of its packing."""
    folder = tmp_path_factory.mktemp("packed")
    config = load(small_config(folder))
    store = open_store(config.store)
    done = built(store, config)
    remember_dataset(store, config.name, done, Head(0, {}, 0))
    return folder, manifest_of(store, done["pack"])


def seconds_of(folder: Path, step: str) -> float:
    found = last_of(open_store(f"file://{folder}/store"), step, step)
    assert found is not None
    return float(found.run["seconds"])


def built(store: Store, config: Any, until: str = "pack") -> Mapping[str, ArtifactRef]:
    chain = chain_on_head(store, config)[0]
    done: dict[str, ArtifactRef] = dict(chain.pinned)
    for step in chain.until(until):
        if step.name in done:
            continue
        done[step.name] = runner.build(store, resolve(store, step, done))
    return done


def test_before_the_first_run_tokens_are_estimated_with_the_assumption_stated(
    packed: tuple[Path, Manifest], tmp_path: Path
) -> None:
    cost, expected = planned(small_config(tmp_path, train=TINY_TRAINING | {"steps": 0}))
    assert cost["tokens_from"].startswith("estimated: 0.12 MB in 40 files leave about 0.10 MB of text")
    assert "bytes a token" in cost["tokens_from"]
    assert cost["tokens_in_text"] == pytest.approx(packed[1].metrics["train_tokens"], rel=0.3)
    assert cost["tokens"] == pytest.approx(cost["tokens_in_text"], rel=0.05)
    assert all(found.seconds is not None and found.seconds > 0 for found in expected.values())
    assert {found.how for found in expected.values()} == {"table", "computed"}


def test_after_packing_tokens_are_those_that_were_packed(packed: tuple[Path, Manifest]) -> None:
    folder, pack = packed
    cost, expected = planned(small_config(folder, train=TINY_TRAINING | {"steps": 0}))
    assert cost["tokens_from"] == "as packed"
    assert (cost["tokens_in_text"], cost["windows"]) == (pack.metrics["train_tokens"], pack.metrics["train_windows"])
    assert cost["steps"] == round(pack.metrics["train_windows"] / 8)
    assert expected["pack"].seconds == 0


@pytest.mark.parametrize("factor", [2, 4, 16])
def test_another_window_changes_the_number_of_windows_and_not_of_tokens(
    factor: int, packed: tuple[Path, Manifest]
) -> None:
    folder, pack = packed
    tokens = pack.metrics["train_tokens"]
    cost, _ = planned(small_config(folder, pack={"window": factor * WINDOW}, train=TINY_TRAINING | {"steps": 0}))
    assert (cost["tokens_in_text"], cost["windows"]) == (tokens, -(-tokens // (factor * WINDOW)))
    assert cost["tokens"] == pytest.approx(tokens, rel=0.02 + 8 * factor * WINDOW / tokens)


def test_where_a_run_broke_off_the_tokens_that_there_are_count(packed: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, pack = packed
    shutil.copytree(folder / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store/roots")
    shutil.rmtree(tmp_path / "store/artifacts/pack")
    cost, _ = planned(small_config(tmp_path, train=TINY_TRAINING | {"steps": 0}))
    assert cost["tokens_from"] == "the tokens that there are, in new windows"
    assert cost["tokens_in_text"] == pytest.approx(pack.metrics["train_tokens"], rel=0.2)


def test_a_window_wider_than_the_text_is_warned_of_whatever_the_sources_are(packed: tuple[Path, Manifest]) -> None:
    folder, pack = packed
    path = small_config(folder, pack={"window": 1 << 16}, train=TINY_TRAINING | {"steps": 0})
    cost, _ = planned(path)
    (warning,) = too_wide(load(path), cost)
    assert f"{pack.metrics['train_tokens']:,} tokens, fills 1 windows of 65,536" in warning
    assert too_wide(load(small_config(folder)), planned(small_config(folder))[0]) == []


def test_another_vocabulary_and_more_files_scale_what_was_packed(packed: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, pack = packed
    cost, _ = planned(small_config(folder, tokenizer={"vocab_size": 4096}))
    share = bytes_per_token(600) / bytes_per_token(4096)
    assert cost["tokens_in_text"] == pytest.approx(pack.metrics["train_tokens"] * share, rel=0.01)
    assert cost["tokens_from"] == "estimated from the dataset as it was packed last"


def test_each_stage_takes_as_long_as_it_took_by_the_bytes_that_it_reads(packed: tuple[Path, Manifest]) -> None:
    folder, _ = packed
    _, expected = planned(small_config(folder, clean={"min_characters": 50}))
    waiting = ("clean", "language", "pii", "dedup", "quality", "split", "tokenise", "pack")
    counts = {name: name == "pack" or seconds_of(folder, name) >= GATHERED_SECONDS for name in waiting}
    assert {name: expected[name].how == "history" for name in waiting} == counts
    assert expected["extract"].seconds == 0


def test_a_source_that_joins_is_read_beside_what_was_packed(packed: tuple[Path, Manifest]) -> None:
    folder, pack = packed
    (folder / "more").mkdir()
    for path in (folder / "texts").iterdir():
        (folder / "more" / path.name).write_text(path.read_text())
    first = {"kind": "text", "name": "notes", "path": "texts", "licence": "CC0-1.0", "shard_bytes": 40_000}
    cost, expected = planned(small_config(folder, sources=[first, first | {"name": "more", "path": "more"}]))
    assert cost["tokens_in_text"] == pytest.approx(2 * pack.metrics["train_tokens"], rel=0.001)
    assert cost["tokens_from"].endswith("packed last, 2.00 times the bytes")
    assert expected["tokenizer"].how == "history"
    assert expected["tokenizer"].seconds == pytest.approx(2 * seconds_of(folder, "tokenizer"), rel=0.1, abs=0.1)


def test_a_gpu_gets_no_figure_that_the_code_cannot_reach() -> None:
    whole = FLOPS_OF_REFERENCE * 65_536 * 8
    h200 = gpu_reach("H200", "bf16", True, 30, 8, whole)
    assert 130e3 < h200.low / FLOPS_OF_REFERENCE < h200.high / FLOPS_OF_REFERENCE <= 210e3
    assert gpu_reach("H200", "fp32", False, 30, 8, whole).high / FLOPS_OF_REFERENCE <= 46e3
    for name, gpu in GPUS.items():
        found = gpu_reach(name, "bf16", True, 30, 8, whole)
        assert found.low <= found.high <= h200.high and found.high < 0.25 * gpu.flops
    thin = gpu_reach("H200", "bf16", False, 4, 1, 15e6 * 2048)
    assert thin.high < 0.01 * GPUS["H200"].flops, "starting kernels takes longer than computing there"


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_gpu_is_known_by_what_its_driver_calls_it(told: str, name: str | None) -> None:
    assert gpu_named(told) == name


def test_the_plan_knows_this_machine_and_the_h200_in_the_precision_of_each(tmp_path: Path) -> None:
    cost, _ = planned(small_config(tmp_path, train=TINY_TRAINING | {"precision": "auto"}))
    here, *others = cost["devices"]
    assert this_machine().processor in here["device"] and here["tokens_per_second"][0] > 0
    assert next(row for row in others if row["device"] == "H200")["from"] == "computed, bf16"
    assert all(row["hours"][0] <= row["hours"][1] for row in cost["devices"])


@pytest.mark.slow
def test_after_a_training_this_machine_is_as_fast_as_it_was_then(packed: tuple[Path, Manifest], tmp_path: Path) -> None:
    shutil.copytree(packed[0] / "store", tmp_path / "store")
    config = load(small_config(tmp_path, train=TINY_TRAINING | {"steps": 4}))
    store = open_store(config.store)
    trained = manifest_of(store, built(store, config, "train")["train"])
    cost, expected = planned(small_config(tmp_path, train=TINY_TRAINING | {"steps": 8}))
    here = cost["devices"][0]
    assert here["from"] == "as in the last training here"
    speed = trained.metrics["tokens"] / trained.run["seconds"]
    assert here["tokens_per_second"][0] == pytest.approx(speed, rel=0.06)
    assert expected["train"].how == "history"
    assert expected["train"].seconds == pytest.approx(2 * trained.run["seconds"], rel=0.1)


def test_a_processor_without_bf16_is_slower_in_it() -> None:
    old = Machine("old", 4, frozenset({"avx2"}), 8 << 30, ())
    assert processor_reach(old, "fp32", False, 4).low > processor_reach(old, "bf16", False, 4).low
    assert processor_reach(old, "fp32", False, 2).low == processor_reach(old, "fp32", False, 4).low / 2


def test_text_of_a_crawl_is_unknown_before_it_and_that_is_said(tmp_path: Path) -> None:
    site = {"kind": "crawl", "name": "site", "start_urls": ["https://example.org/"]}
    cost, expected = planned(small_config(tmp_path, sources=[site], train=TINY_TRAINING | {"steps": 0}))
    assert cost["tokens"] is None and cost["tokens_from"] == "unknown until site was crawled"
    assert expected["crawl site"].seconds is None and in_words(None) == "?"


def test_extents_count_what_lies_there(tmp_path: Path) -> None:
    held = extent_of_all(load(small_config(tmp_path)))
    texts = [path.stat().st_size for path in (tmp_path / "texts").iterdir()]
    assert (held.files, held.bytes, held.most) == (len(texts), sum(texts), sum(texts))
    assert 0 < held.likely < held.most
