"""Collection: nothing that a root reaches ever vanishes, and nothing else stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import pytest

from llmcore.account.verify import verify
from llmcore.artifacts import gc, jobs, roots, runner, working
from llmcore.artifacts import lease as leases
from llmcore.artifacts.backends import Entry
from llmcore.artifacts.gc import collect, garbage
from llmcore.artifacts.index import resolve_ref
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import ArtifactRef, manifest_name, manifest_of, manifests
from llmcore.artifacts.recipe import resolve
from llmcore.artifacts.store import Store, blob_name
from llmcore.errors import LlmcoreError, UsageError
from tests.artifacts.storm import chain
from tests.prefect_server import wait_for

AT_ONCE = timedelta(0)
STORM_SECONDS = 20.0
NIGHT_SECONDS = 300.0


def make(store: Store, salt: int = 0, divisor: int = 2) -> dict[str, ArtifactRef]:
    done: dict[str, ArtifactRef] = {}
    for step in chain(salt, divisor):
        done[step.name] = runner.build(store, resolve(store, step, done))
    return done


def test_what_a_run_under_way_holds_stays_however_old(store: Store) -> None:
    with roots.run(store) as root:
        done: dict[str, ArtifactRef] = {}
        for step in chain(0, 2):
            recipe = resolve(store, step, done)
            root.claim(recipe)
            done[step.name] = runner.build(store, recipe)
            root.hold(step.name, done[step.name])
            list(collect(store, AT_ONCE))
        assert list(verify(store, manifest_of(store, done["total"]))) == []

    def rooms() -> set[str]:
        return {entry.name.split("/")[0] for entry in garbage(store, AT_ONCE)}

    # S3 tells times in whole seconds: what was written in this one may be younger than now
    wait_for(lambda: rooms() >= {"artifacts", "blobs", "roots"}, "the next tick of the store's clock")


def test_what_an_earlier_run_left_and_this_one_finds_is_not_taken_from_under_it(store: Store) -> None:
    left = make(store)
    with roots.run(store) as root:
        done: dict[str, ArtifactRef] = {}
        for step in chain(0, 2):
            recipe = resolve(store, step, done)
            root.claim(recipe)
            list(collect(store, AT_ONCE))
            done[step.name] = runner.build(store, recipe)
            root.hold(step.name, done[step.name])
        assert done["total"].digest == left["total"].digest
        assert list(verify(store, manifest_of(store, done["total"]))) == []


def test_the_memos_of_a_stage_at_work_stay_with_their_blobs(store: Store) -> None:
    steps = chain(0, 2)
    done = {"numbers": runner.build(store, resolve(store, steps[0], {}))}
    recipe = resolve(store, steps[1], done)
    jobs.run_chunk(store, jobs.chunk_of(recipe, jobs.jobs_to_do(store, recipe)))
    with roots.run(store) as root:
        root.hold("numbers", done["numbers"])
        root.claim(recipe)
        list(collect(store, AT_ONCE))
        assert jobs.jobs_to_do(store, recipe) == []
        assert list(verify(store, manifest_of(store, runner.build(store, recipe)))) == []
    list(collect(store, AT_ONCE))
    assert list(store.backend.entries("memo/")) == []


def test_a_blob_that_a_run_finds_again_counts_as_its_own(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "found"
    path.write_bytes(b"the same bytes")
    name = blob_name(store.put_blob(path))
    if store.uri.startswith("file:"):
        an_hour_ago = time.time() - 3600
        os.utime(Path(store.uri.removeprefix("file://")) / name, (an_hour_ago, an_hour_ago))
    with roots.run(store):
        store.put_blob(path)
        list(collect(store, AT_ONCE))
        assert store.backend.entry(name) is not None


def test_a_ref_whose_artifact_is_gone_stops_the_collection_with_a_line(store: Store) -> None:
    done = make(store)
    roots.set_ref(store, "toy", done["total"].plain())
    store.backend.delete(manifest_name("keep", done["keep"].key))
    before = {entry.name for entry in store.backend.entries("")}
    with pytest.raises(LlmcoreError, match=r"ref 'toy' needs keep/.*gc --forget"):
        list(collect(store, AT_ONCE))
    assert {entry.name for entry in store.backend.entries("")} == before
    roots.drop_ref(store, "toy")
    list(collect(store, AT_ONCE))
    assert list(manifests(store)) == []


def test_the_store_is_not_listed_anew_for_every_few_objects(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store)
    looks: list[int] = []
    look = gc.Survey.garbage

    def counted(survey: gc.Survey) -> list[Entry]:
        looks.append(1)
        return look(survey)

    monkeypatch.setattr(gc, "BATCH", 1)
    monkeypatch.setattr(gc.Survey, "garbage", counted)
    assert len(list(collect(store, AT_ONCE))) > 5 and len(looks) == 2
    monkeypatch.setattr(gc, "HOLD_SECONDS", 0.0)  # a slow store: it is asked again, and everything goes all the same
    make(store)
    list(collect(store, AT_ONCE))
    assert list(manifests(store)) == [] and list(store.backend.entries("blobs/")) == []


def test_a_ref_of_an_unknown_name_cannot_be_dropped(store: Store) -> None:
    with pytest.raises(UsageError, match="llmcore ls"):
        roots.drop_ref(store, "toy")


def test_a_ref_moves_only_from_where_it_was_seen(store: Store) -> None:
    assert roots.set_ref(store, "toy", {"stage": "total", "key": "a"}, after=0)
    assert not roots.set_ref(store, "toy", {"stage": "total", "key": "b"}, after=0)
    found = roots.ref(store, "toy")
    assert found is not None and found.record["key"] == "a"
    assert roots.set_ref(store, "toy", {"stage": "total", "key": "c"}, after=found.number)
    assert [(ref.name, ref.record["key"]) for ref in roots.refs(store)] == [("toy", "c")]
    for bad in ("", "../up", "/root", ".hidden"):
        with pytest.raises(UsageError, match="bad ref name"):
            roots.set_ref(store, bad, {})


def test_refs_as_the_first_version_wrote_them_are_read_and_moved_on(store: Store) -> None:
    done = make(store)
    store.replace("refs/datasets/old.json", done["total"].plain())
    assert [ref.name for ref in roots.refs(store)] == ["datasets/old"]
    list(collect(store, AT_ONCE))
    assert resolve_ref(store, "datasets/old").key == done["total"].key
    roots.set_ref(store, "datasets/old", make(store, divisor=3)["total"].plain(), after=0)
    assert resolve_ref(store, "datasets/old").key != done["total"].key


def test_a_killed_run_leaves_nothing_that_is_not_collected(store: Store, tmp_path: Path) -> None:
    code = f"from tests.artifacts.storm import *; go(open_store({store.uri!r}), chain(1, 2), 'toy', dies_at='total')"
    killed = subprocess.run([sys.executable, "-c", code], env=None, timeout=60)
    assert killed.returncode == 9
    assert [run.alive for run in roots.runs(store)] == [False]
    orphan = Path(tempfile.mkdtemp(prefix=working.PREFIX))
    (orphan / working.OWNER).write_text(_dead_owner())
    list(collect(store, AT_ONCE))
    assert not orphan.exists()
    assert left_over(store) == []


def test_an_upload_that_broke_off_is_collected(store: Store, tmp_path: Path) -> None:
    begin_upload(store)
    assert len(list(store.backend.unfinished())) == 1
    list(collect(store, AT_ONCE))
    assert list(store.backend.unfinished()) == []


@pytest.mark.slow
def test_collections_without_end_take_nothing_from_runs_refs_and_forced_runs(store: Store) -> None:
    storm(store, STORM_SECONDS)


@pytest.mark.nightly
def test_collections_without_end_take_nothing_for_minutes(store: Store) -> None:
    storm(store, NIGHT_SECONDS)


def storm(store: Store, seconds: float) -> None:
    command = [sys.executable, "-m", "tests.artifacts.storm", store.uri]
    runs = [
        subprocess.Popen([*command, str(seed), str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    collected = 0
    while any(run.poll() is None for run in runs):
        collected += sum(1 for _ in collect(store, AT_ONCE))
    for seed, run in enumerate(runs):
        out, err = run.communicate()
        assert run.returncode == (9 if seed % 2 else 0), f"{out}\n{err}"
    assert collected > 10
    for ref in roots.refs(store):
        assert list(verify(store, resolve_ref(store, ref.name))) == []
    time.sleep(0 if store.uri.startswith("file:") else 1.1)  # S3 tells times in whole seconds
    list(collect(store, AT_ONCE))
    assert left_over(store) == []
    for ref in list(roots.refs(store)):
        roots.drop_ref(store, ref.name)
    list(collect(store, AT_ONCE))
    assert {entry.name.split("/")[0] for entry in store.backend.entries("")} <= {"roots", "runs"}


def left_over(store: Store) -> list[str]:
    """What stays although no ref reaches it; what a ref reaches is taken out by its names."""
    reached: set[str] = set()
    for ref in roots.refs(store):
        top = resolve_ref(store, ref.name)
        for manifest in manifests_behind(store, [top]):
            reached |= {manifest_name(manifest.stage, manifest.key)}
            reached |= {manifest_name(manifest.stage, manifest.key, manifest.seal)}
            reached |= {blob_name(output.blob, Path(name).suffix) for name, output in manifest.outputs.items()}
    names = (entry.name for entry in store.backend.entries(""))
    kinds = ("roots/refs/", "memo/", f"runs/{leases.COLLECTION}/")
    return [name for name in names if name not in reached and not name.startswith(kinds)]


def begin_upload(store: Store) -> None:
    if store.uri.startswith("file:"):
        folder = Path(store.uri.removeprefix("file://")) / "blobs"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".aside-broken").write_bytes(b"half")
        return
    backend = store.backend
    backend.client.create_multipart_upload(Bucket=backend.bucket, Key=f"{backend.prefix}blobs/half")  # type: ignore[attr-defined]


def _dead_owner() -> str:
    code = "import json; from llmcore.artifacts import processes; print(json.dumps(processes.identity()))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("step", ["numbers", "keep"])
def test_a_blob_that_is_deleted_behind_a_collectors_look_is_written_again(
    store: Store, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection looks at a blob, a run writes it again, and only then the collection deletes it."""
    left = make(store)
    names = [blob_name(o.blob, ".parquet") for o in manifest_of(store, left[step]).outputs.values()]
    for kind in ("artifacts/", "memo/"):
        for entry in list(store.backend.entries(kind)):
            store.backend.delete(entry.name)
    done: dict[str, ArtifactRef] = {}
    commit, deleted = store.backend.create, []

    def commit_late(name: str, data: bytes) -> bool:
        written = commit(name, data)
        if name.startswith((f"memo/{step}/", f"artifacts/{step}/")) and not deleted:
            lease = leases.take(store, leases.COLLECTION, lambda: True, lambda holder: None)
            assert lease is not None
            for blob in names:
                store.backend.delete(blob)
            deleted.extend(names)
            lease.give_back()
        return written

    monkeypatch.setattr(store.backend, "create", commit_late)
    with roots.run(store) as root:
        for one in chain(0, 2)[: 1 + ["numbers", "keep"].index(step)]:
            recipe = resolve(store, one, done)
            root.claim(recipe)
            done[one.name] = runner.build(store, recipe)
            root.hold(one.name, done[one.name])
    assert deleted
    assert list(verify(store, manifest_of(store, done[step]))) == []
