"""What several tests of training start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.local_files import LocalRun
from tests.training.corpus import TINY, inputs_of, train, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    return root


@pytest.fixture(scope="session")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    run = LocalRun(tmp_path_factory.mktemp("alone"))
    metrics = train(inputs_of(corpus), TINY, run)
    assert metrics["steps"] == TINY.steps
    return run
