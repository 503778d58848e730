"""Golden digests: what each data stage makes of a small fixed input, byte for byte.

If a digest changes because the stage is meant to make something else, raise the version of that stage and run
`LLMCORE_NEW_GOLDEN=1 pytest tests/planning/test_golden.py`; if it is not, the change is a defect. Training is left out:
its bytes depend on the kind of processor, and the fault tests compare it with itself.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmcore.artifacts import runner
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.recipe import resolve
from llmcore.artifacts.store import open_store
from llmcore.planning.chain import build
from llmcore.planning.config import load
from tests.small import small_config

GOLDEN = Path(__file__).with_name("golden.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """Step -> stage version and output digest, of the small configuration up to `pack`."""
    folder = tmp_path_factory.mktemp("golden")
    store = open_store(f"file://{folder}/store")
    done: dict[str, ArtifactRef] = {}
    found: dict[str, dict[str, object]] = {}
    for step in build(load(small_config(folder))).until("pack"):
        done[step.name] = runner.build(store, resolve(store, step, done))
        found[step.name] = {"version": step.stage.version, "digest": done[step.name].digest}
    if os.environ.get("LLMCORE_NEW_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    return found


def test_every_stage_makes_what_it_made_before(made: dict[str, dict[str, object]]) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert made.keys() == golden.keys()
    for step, was in golden.items():
        assert made[step] == was, f"{step} makes other bytes: raise its version if that is meant"
