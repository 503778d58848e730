"""`auto` is made concrete once, against the target that the configuration declares, and enters the key as that."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from llmcore.artifacts import gc, roots
from llmcore.artifacts.recipe import own_identity
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError, UsageError
from llmcore.model.device import device_of
from llmcore.model.precision import processor_precision
from llmcore.planning.chain import build
from llmcore.planning.config import PipelineConfig, load
from llmcore.planning.heads import chain_on_head
from llmcore.planning.targets import Target, decide, decided, resolved, this_machine
from tests.small import TINY_TRAINING, small_config

HERE = "cuda" if torch.cuda.is_available() else "cpu"
AUTO = {**TINY_TRAINING, "precision": "auto"}
DEPENDING = {"train": {"device", "precision"}, "evaluate": {"device"}, "quantise": {"device"}}


def in_keys(config: PipelineConfig, store: Store | None = None) -> dict[str, str]:
    steps = (build(config) if store is None else chain_on_head(store, config)[0]).steps
    known = {name: own_identity(steps[name].stage, steps[name].params)["params"] for name in DEPENDING}
    return {f"{step}.{name}": str(known[step][name]) for step, names in DEPENDING.items() for name in names}


def devices(found: dict[str, str]) -> set[str]:
    return {value for name, value in found.items() if name.endswith("device")}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


def test_auto_is_what_the_target_says_and_the_key_holds_that(tmp_path: Path) -> None:
    assert this_machine().device == HERE
    assert devices(in_keys(load(small_config(tmp_path)))) == {HERE}
    there = in_keys(load(small_config(tmp_path, train=AUTO, execution={"device": "cuda"})))
    assert devices(there) == {"cuda"} and there["train.precision"] == "bf16"
    here = in_keys(load(small_config(tmp_path, train=AUTO, execution={"device": "cpu"})))
    assert devices(here) == {"cpu"} and here["train.precision"] == processor_precision()
    given = in_keys(load(small_config(tmp_path, execution={"device": "cuda"}, evaluate={"device": "cpu"})))
    assert given["evaluate.device"] == "cpu" and given["train.device"] == "cuda"


def test_precision_is_that_of_the_device_that_a_stage_names(tmp_path: Path) -> None:
    config = load(small_config(tmp_path, train={**AUTO, "device": "cpu"}, execution={"device": "cuda"}))
    assert in_keys(config)["train.precision"] == processor_precision()


def test_what_was_resolved_once_means_the_same_on_every_other_machine(tmp_path: Path) -> None:
    config = load(small_config(tmp_path, train=AUTO))
    there = resolved(config, Target("cuda", "bf16"))
    assert resolved(there, Target("cpu", "fp32")) == there and devices(in_keys(there)) == {"cuda"}
    stored = PipelineConfig.model_validate(there.model_dump(mode="json"))
    assert stored == there and devices(in_keys(stored)) == {"cuda"}


def test_the_first_run_decides_for_all_that_follow(tmp_path: Path, store: Store) -> None:
    config = load(small_config(tmp_path, train=AUTO))
    before = list(store.backend.entries("targets/"))
    assert in_keys(config, store) == in_keys(config) and before == list(store.backend.entries("targets/"))

    first = decide(store, config)
    assert first == decide(store, config) == decided(store, config) == resolved(config)
    # somebody takes over on a machine of another kind
    other = "cpu" if HERE == "cuda" else "cuda"
    (record,) = store.backend.entries("targets/")
    said = store.record(record.name)
    assert said is not None
    store.backend.delete(record.name)
    elsewhere = load(small_config(tmp_path, train=AUTO, execution={"device": other}))
    decide(store, elsewhere)
    (of_other,) = store.backend.entries("targets/")
    store.commit(record.name, store.record(of_other.name) or {})  # as if the run had begun there
    assert devices(in_keys(config, store)) == {other}
    assert decide(store, config) == resolved(config, Target(other, in_keys(elsewhere)["train.precision"]))


def test_a_damaged_decision_is_one_line_and_not_another_decision(tmp_path: Path, store: Store) -> None:
    config = load(small_config(tmp_path, train=AUTO))
    decide(store, config)
    (path,) = (tmp_path / "store/targets").rglob("*.json")
    record = json.loads(path.read_text()) | {"precision": "fp8"}
    path.chmod(0o644)
    path.write_text(json.dumps(record))
    with pytest.raises(LlmcoreError, match="damaged record targets/small/"):
        decided(store, config)


def test_decisions_stay_as_long_as_the_name_does(tmp_path: Path, store: Store) -> None:
    decide(store, load(small_config(tmp_path, train=AUTO)))
    roots.set_ref(store, "datasets/small", {"stage": "x"})
    decide(store, load(small_config(tmp_path, name="other", train=AUTO)))
    gone = [entry.name for entry in gc.collect(store, timedelta(0)) if entry.name.startswith("targets/")]
    assert gone == ["targets/other/this-machine.json"]


def test_nothing_else_hangs_on_the_target(tmp_path: Path) -> None:
    def others(device: str) -> dict[str, object]:
        steps = build(load(small_config(tmp_path, execution={"device": device}))).steps
        return {name: own_identity(s.stage, s.params) for name, s in steps.items() if name not in DEPENDING}

    assert others("cpu") == others("cuda")


def test_precision_follows_the_instructions_of_every_core(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor : 0\nflags\t\t: fpu avx512_bf16\n\nprocessor : 1\nflags\t\t: fpu avx512_bf16\n")
    assert processor_precision(told) == "bf16"
    told.write_text("processor : 0\nflags\t\t: fpu avx512_bf16\n\nprocessor : 1\nflags\t\t: fpu avx512f\n")
    assert processor_precision(told) == "fp32"
    told.write_text("processor : 0\nFeatures\t: fp asimd bf16\n")
    assert processor_precision(told) == "bf16"
    assert processor_precision(tmp_path / "none") == "fp32"


@pytest.mark.skipif(HERE == "cuda", reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_one_line() -> None:
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="this machine has no GPU"):
        device_of("cuda")
