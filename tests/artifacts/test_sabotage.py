"""Orders of events and damages that once lost something."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmcore.artifacts import roots
from llmcore.artifacts.backends import Entry
from llmcore.artifacts.store import Store, open_store


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


def test_a_ref_that_moves_while_it_is_listed_is_seen(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    roots.set_ref(folder, "toy", {"stage": "total", "key": "a"})
    look = folder.backend.entry
    moved: list[str] = []

    def late(name: str) -> Entry | None:
        if not moved:
            moved.append(name)
            roots.set_ref(folder, "toy", {"stage": "total", "key": "b"})
        return look(name)

    monkeypatch.setattr(folder.backend, "entry", late)
    assert [ref.record["key"] for ref in roots.refs(folder)] == ["b"]


def test_a_ref_keeps_apart_from_those_below_its_name(store: Store) -> None:
    roots.set_ref(store, "datasets/toy", {"stage": "plan", "key": "head"})
    for key in ("a", "b"):
        roots.set_ref(store, "datasets", {"stage": "publish", "key": key})
    assert [(ref.name, ref.record["key"]) for ref in roots.refs(store)] == [("datasets", "b"), ("datasets/toy", "head")]


def test_a_dropped_ref_is_set_anew_by_whoever_saw_none(folder: Store) -> None:
    roots.set_ref(folder, "toy", {"stage": "total", "key": "a"})
    roots.drop_ref(folder, "toy")
    assert roots.ref(folder, "toy") is None
    assert roots.set_ref(folder, "toy", {"stage": "total", "key": "b"}, after=0)
    assert not roots.set_ref(folder, "toy", {"stage": "total", "key": "c"}, after=0)
    assert [ref.record["key"] for ref in roots.refs(folder)] == ["b"]
