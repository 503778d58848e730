"""Orders of events and damages that once lost something."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from llmcore.account.verify import verify
from llmcore.artifacts import gc, jobs, lease, processes, roots, runner, working
from llmcore.artifacts.backends import Entry
from llmcore.artifacts.gc import collect, garbage
from llmcore.artifacts.index import summaries
from llmcore.artifacts.manifest import ArtifactRef, manifest_name, manifest_of, manifests
from llmcore.artifacts.recipe import resolve
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LeaseLostError, LlmcoreError, OutageError
from tests.artifacts.storm import chain
from tests.toy_stages import KeepParams


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


def test_a_ref_that_lost_a_byte_stops_the_collection(folder: Store) -> None:
    artifact = runner.build(folder, resolve(folder, chain(0, 2)[0], {}))
    roots.set_ref(folder, "toy", artifact.plain())
    name = "roots/refs/toy/000000001"
    whole = folder.backend.read(name)
    assert whole is not None
    for place in range(len(whole)):
        damaged = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        folder.backend.replace(name, damaged)
        with suppress(LlmcoreError):
            list(collect(folder, timedelta(0)))
        assert list(verify(folder, manifest_of(folder, artifact))) == [], damaged
    folder.backend.replace(name, whole.replace(b'"stage"', b'"stagf"'))
    with pytest.raises(LlmcoreError, match="damaged record roots/refs/toy/000000001"):
        list(roots.refs(folder))


def test_a_collection_that_breaks_off_leaves_no_manifest_without_its_blobs(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = runner.build(folder, resolve(folder, chain(0, 2)[0], {}))
    delete = folder.backend.delete

    def breaks(name: str) -> None:
        if name.startswith("artifacts/"):
            time.sleep(0.5)
            raise LlmcoreError("the store went away")
        delete(name)

    monkeypatch.setattr(folder.backend, "delete", breaks)
    with pytest.raises(LlmcoreError, match="went away"):
        list(collect(folder, timedelta(0)))
    assert list(verify(folder, manifest_of(folder, artifact))) == []


def test_a_run_goes_on_when_the_answer_to_its_last_word_was_lost(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = folder.backend.create
    lost: list[bool] = []

    def loses(name: str, data: bytes) -> bool:
        made = create(name, data)
        if lost and name.startswith("roots/runs/"):
            lost.clear()
            raise OutageError("the network went away")
        return made

    steps = chain(0, 2)
    with roots.run(folder) as root:
        root.claim(resolve(folder, steps[0], {}))
        lost.append(True)
        monkeypatch.setattr(folder.backend, "create", loses)
        done = {"numbers": runner.build(folder, resolve(folder, steps[0], {}))}
        root.hold("numbers", done["numbers"])
        recipe = resolve(folder, steps[1], done)
        with pytest.raises(OutageError):
            root.claim(recipe)
        root.hold("more", done["numbers"])
        root.claim(recipe)
        (known,) = roots.runs(folder)
        assert known.alive and set(known.epoch.record["holds"]) == {"numbers", "more"}
    assert [run.epoch.record["ended"] for run in roots.runs(folder)] == [True]


def test_of_two_forced_runs_at_once_neither_loses_what_it_made(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, keep, _ = chain(0, 2)
    noisy = dataclasses.replace(keep, params=KeepParams(noise=True))
    recipe = resolve(store, noisy, {"numbers": runner.build(store, resolve(store, numbers, {}))})
    made = [runner.build(store, recipe)]
    commit = store.commit

    def overtaken(name: str, record: Mapping[str, Any]) -> bool:
        first = commit(name, record)
        if name.startswith("editions/") and len(made) == 1:
            made.append(made[0])
            made[1] = runner.build(store, recipe, force=True)
        return first

    monkeypatch.setattr(store, "commit", overtaken)
    made.append(runner.build(store, recipe, force=True))
    assert len({ref.seal for ref in made}) == 3
    for ref in made:
        assert list(verify(store, manifest_of(store, ref))) == []
    assert {summary.seal for summary in summaries(store, "keep")} == {ref.seal for ref in made}
    assert len(list(manifests(store, "keep"))) == len(summaries(store, "keep")) == 3


def test_verify_notices_an_edit_of_what_a_manifest_says_of_a_file(folder: Store) -> None:
    artifact = runner.build(folder, resolve(folder, chain(0, 2)[0], {}))
    name = manifest_name(artifact.stage, artifact.key)
    record = folder.record(name)
    assert record is not None and list(verify(folder, manifest_of(folder, artifact))) == []
    edits: list[dict[str, Any]] = [{"rows": 11}, {"rows": None}, {"bytes": None}, {"bytes": 1}]
    for edit in edits:
        outputs = {**record["outputs"]}
        outputs["kept/g000-toy-00001.parquet"] = outputs["kept/g000-toy-00001.parquet"] | edit
        folder.replace(name, {**record, "outputs": outputs})
        try:
            assert list(verify(folder, manifest_of(folder, artifact))), edit
        except LlmcoreError as error:
            assert "damaged record" in str(error)


def test_a_collection_that_stood_still_for_long_deletes_no_more(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolve(folder, chain(0, 2)[0], {})
    runner.build(folder, recipe)
    monkeypatch.setattr(lease, "SECONDS_TO_LIVE", 1.0)
    delete = gc.Survey.delete
    found: list[ArtifactRef | None] = []

    def stands_still(survey: gc.Survey, entry: Entry, check: Callable[[], None]) -> Entry | None:
        if not found:
            with roots.run(folder) as root:
                root.claim(recipe)  # waits until the collector, who renews nothing, must be dead
                found.append(runner.find(folder, recipe))
        return delete(survey, entry, check)

    monkeypatch.setattr(gc, "BATCH", 1)
    monkeypatch.setattr(gc.Survey, "delete", stands_still)
    with pytest.raises(LeaseLostError, match="not renewed in time"):
        list(collect(folder, timedelta(0)))
    assert found[0] is not None and list(verify(folder, manifest_of(folder, found[0]))) == []


def test_a_memo_that_lost_a_byte_makes_no_artifact(folder: Store) -> None:
    numbers, keep, _ = chain(0, 2)
    recipe = resolve(folder, keep, {"numbers": runner.build(folder, resolve(folder, numbers, {}))})
    made = runner.build(folder, recipe)
    first = next(iter(folder.backend.entries("memo/"))).name
    whole = folder.backend.read(first)
    assert whole is not None
    for place in range(len(whole)):
        folder.backend.replace(first, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        folder.backend.delete(manifest_name(made.stage, made.key))
        with suppress(LlmcoreError):
            assert runner.commit_shards(folder, recipe).seal == made.seal
        with suppress(LlmcoreError):
            garbage(folder, timedelta(0))


def test_an_index_that_lost_a_byte_changes_no_answer(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "cache"))
    runner.build(folder, resolve(folder, chain(0, 2)[0], {}))
    told = summaries(folder)
    (index,) = (tmp_path / "cache" / "index").iterdir()
    whole = index.read_bytes()
    for place in [*range(0, 100), *(place for place, byte in enumerate(whole) if byte and place >= 100)]:
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert summaries(folder) == told, place


def test_a_working_folder_that_says_not_whose_it_is_goes_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    young, old, foreign = (tmp_path / f"llmcore-{name}" for name in ("abcdefg1", "abcdefg2", "abcdefg3"))
    for home in (young, old, foreign):
        (home / "work").mkdir(parents=True)
    (old / "owner.json").write_text('{"mach')
    (foreign / "notes.txt").write_text("somebody's own")
    for home in (old, foreign):
        os.utime(home, (0, 0))
    working.remove_abandoned()
    assert [home.exists() for home in (young, old, foreign)] == [True, False, True]


def test_a_silent_run_elsewhere_that_is_not_told_of_it_loses_nothing(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = processes.identity()
    monkeypatch.setattr(processes, "identity", lambda: identity | {"machine": "elsewhere"})
    monkeypatch.setattr(roots, "SILENT_SECONDS", -1.0)
    numbers, keep, _ = chain(0, 2)
    with roots.run(folder) as root:
        done = {"numbers": runner.build(folder, resolve(folder, numbers, {}))}
        root.hold("numbers", done["numbers"])
        recipe = resolve(folder, keep, done)
        root.claim(recipe)
        fresh = jobs.run_chunk(folder, jobs.chunk_of(recipe, jobs.jobs_to_do(folder, recipe)))
        for entry in [*folder.backend.entries("memo/"), *folder.backend.entries("blobs/")]:
            os.utime(Path(folder.uri.removeprefix("file://"), entry.name), (time.time() - 100,) * 2)
        began = {**root._record, "began": (folder.backend.now() - timedelta(seconds=200)).isoformat()}
        root._record = began
        root.claim(recipe)
        list(collect(folder, timedelta(seconds=50)))
        made = runner.commit_shards(folder, recipe, fresh)
        assert list(verify(folder, manifest_of(folder, made))) == []
