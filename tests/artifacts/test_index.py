"""Summaries of artifacts are remembered on this machine; the memory is a convenience."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmcore.artifacts import index, runner
from llmcore.artifacts.manifest import manifest_name
from llmcore.artifacts.recipe import Step, resolve
from llmcore.artifacts.store import Store, open_store
from tests.toy_stages import NUMBERS, NumbersParams


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of two artifacts, remembered nowhere yet."""
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "cache"))
    store = open_store(f"file://{tmp_path}/store")
    for shards in (1, 2):
        runner.build(store, resolve(store, Step("numbers", NUMBERS, NumbersParams(shards=shards)), {}))
    return store


def test_what_is_remembered_is_not_read_again(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = index.summaries(made)
    assert len(first) == 2
    monkeypatch.setattr(index, "read_record", None)
    assert index.summaries(made) == first


def test_what_is_gone_is_forgotten(made: Store) -> None:
    kept, gone = index.summaries(made)
    made.backend.delete(manifest_name(gone.stage, gone.key))
    assert index.summaries(made) == [kept]
    assert index.summaries(made) == [kept]


@pytest.mark.parametrize("damage", ["no database", "a torn page", "a folder"])
def test_a_broken_memory_costs_nothing(made: Store, tmp_path: Path, damage: str) -> None:
    first = index.summaries(made)
    (file,) = (tmp_path / "cache" / "index").iterdir()
    data = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    else:
        file.write_bytes(b"this is no database" * 100 if damage == "no database" else data[:100] + b"\xff" * len(data))
    assert index.summaries(made) == first
    assert index.summaries(made) == first
