"""`auto` is made concrete once, against the target that the configuration declares, and enters the key as that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmcore.artifacts.recipe import own_identity
from llmcore.errors import UsageError
from llmcore.model.device import device_of
from llmcore.planning.chain import build
from llmcore.planning.config import PipelineConfig, load
from llmcore.planning.targets import Target, resolved, this_machine
from tests.small import small_config

HERE = "cuda" if torch.cuda.is_available() else "cpu"


def device_in_key(config: PipelineConfig) -> str:
    step = build(config).steps["evaluate"]
    return str(own_identity(step.stage, step.params)["params"]["device"])


def test_auto_is_what_the_target_says_and_the_key_holds_that(tmp_path: Path) -> None:
    assert this_machine() == Target(HERE)
    assert device_in_key(load(small_config(tmp_path))) == HERE
    assert device_in_key(load(small_config(tmp_path, execution={"device": "cuda"}))) == "cuda"
    assert device_in_key(load(small_config(tmp_path, execution={"device": "cpu"}))) == "cpu"
    given = small_config(tmp_path, execution={"device": "cuda"}, evaluate={"device": "cpu"})
    assert device_in_key(load(given)) == "cpu"


def test_what_was_resolved_once_means_the_same_on_every_other_machine(tmp_path: Path) -> None:
    config = load(small_config(tmp_path))
    there = resolved(config, Target("cuda"))
    assert resolved(there, Target("cpu")) == there and device_in_key(there) == "cuda"
    stored = PipelineConfig.model_validate(there.model_dump(mode="json"))
    assert stored == there and device_in_key(stored) == "cuda"


def test_nothing_else_hangs_on_the_target(tmp_path: Path) -> None:
    def others(device: str) -> dict[str, object]:
        steps = build(load(small_config(tmp_path, execution={"device": device}))).steps
        return {name: own_identity(s.stage, s.params) for name, s in steps.items() if name != "evaluate"}

    assert others("cpu") == others("cuda")


@pytest.mark.skipif(HERE == "cuda", reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_one_line() -> None:
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="this machine has no GPU"):
        device_of("cuda")
