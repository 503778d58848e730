"""Cached or run: what the runner promises about artifacts, shards, crashes and races."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcore.account.verify import verify
from llmcore.artifacts import jobs, lease, roots, runner
from llmcore.artifacts.gc import garbage
from llmcore.artifacts.index import resolve_ref
from llmcore.artifacts.keys import key_of
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import (
    ArtifactRef,
    manifest_name,
    manifest_of,
    manifests,
)
from llmcore.artifacts.recipe import From, Step, resolve
from llmcore.artifacts.store import Store, blob_name, open_store
from llmcore.errors import CorruptBlobError, LlmcoreError, UsageError
from tests.prefect_server import wait_for
from tests.toy_stages import KEEP, NUMBERS, TOTAL, KeepParams, NumbersParams, SumParams


def steps(
    numbers: NumbersParams = NumbersParams(),  # noqa: B008
    keep: KeepParams = KeepParams(),  # noqa: B008
    total: SumParams = SumParams(),  # noqa: B008
    outside: dict[str, str] | None = None,
) -> list[Step]:
    return [
        Step("numbers", NUMBERS, numbers),
        Step("keep", KEEP, keep, {"documents": From(("numbers",))}),
        Step("total", TOTAL, total, {"documents": From(("keep",))}, outside or {}),
    ]


def run(store: Store, chain: list[Step], workers: int = 0) -> dict[str, ArtifactRef]:
    done: dict[str, ArtifactRef] = {}
    for step in chain:
        recipe = resolve(store, step, done)
        if step.stage.kind == "per_shard" and workers:
            jobs.run_chunk_in_pool(store, jobs.chunk_of(recipe, jobs.jobs_to_do(store, recipe)), workers)
        done[step.name] = runner.build(store, recipe)
    return done


def test_what_0_1_made_counts_as_what_it_is(store: Store) -> None:
    identity = {"stage": "crawl", "version": 1, "params": {}, "inputs": {}}
    outputs = {"fetches/g000.parquet": {"blob": "0" * 64, "bytes": 5, "rows": 3}}
    record = {"step": "crawl web", "key": key_of(identity), "digest": key_of({"fetches/g000.parquet": "0" * 64})}
    record |= {"identity": identity, "inputs": {}, "outputs": outputs, "metrics": {}}
    store.commit(manifest_name("crawl", key_of(identity)), record | {"code": "", "environment": {}, "run": {}})
    (found,) = manifests(store)
    assert (found.role, found.seal, found.folders["fetches"].rows) == ("fetch", "", 3)


def test_a_second_run_finds_every_artifact(store: Store) -> None:
    first = run(store, steps())
    made = {m.key: m.run for m in manifests(store)}
    assert run(store, steps()) == first
    assert {m.key: m.run for m in manifests(store)} == made


def test_worker_processes_make_the_same_artifacts(store: Store) -> None:
    other = open_store(f"{store.uri}-other")
    one, two = run(store, steps()), run(other, steps(), workers=2)
    assert {n: r.digest for n, r in one.items()} == {n: r.digest for n, r in two.items()}


def test_a_changed_parameter_reruns_what_lies_behind_it_and_nothing_else(store: Store) -> None:
    first, second = run(store, steps()), run(store, steps(keep=KeepParams(divisor=3)))
    assert first["numbers"].key == second["numbers"].key
    assert first["keep"].key != second["keep"].key
    assert first["total"].key != second["total"].key


def test_a_rebuilt_input_with_equal_bytes_stops_the_rebuild_there(store: Store) -> None:
    first = run(store, steps())
    chain = steps()
    chain[1] = dataclasses.replace(chain[1], stage=dataclasses.replace(KEEP, version=2))
    second = run(store, chain)
    assert first["keep"].key != second["keep"].key
    assert (first["total"].key, first["total"].digest) == (second["total"].key, second["total"].digest)
    assert manifest_of(store, first["total"]).run == manifest_of(store, second["total"]).run


def test_lineage_shows_the_recipe_that_was_asked_for_where_several_give_the_same_bytes(store: Store) -> None:
    chains = [steps(), steps()]
    chains[1][1] = dataclasses.replace(chains[1][1], stage=dataclasses.replace(KEEP, version=2))
    made = [run(store, chain) for chain in chains]
    for done in made:
        behind = manifests_behind(store, [manifest_of(store, done["total"])])
        assert [m.key for m in behind] == [done[name].key for name in ("numbers", "keep", "total")]
        assert list(verify(store, manifest_of(store, done["total"]))) == []


@pytest.mark.parametrize("field", ["inputs", "metrics", "step", "role"])
def test_what_a_manifest_says_of_inputs_and_metrics_is_sealed(store: Store, field: str) -> None:
    ref = run(store, steps())["total"]
    name = manifest_name(ref.stage, ref.key)
    record = store.record(name)
    assert record is not None
    record[field] = {"inputs": {"documents": []}, "metrics": {"done": 999_999}}.get(field, "another")
    store.replace(name, record)
    with pytest.raises(LlmcoreError, match=name):
        manifest_of(store, ref)


def test_an_appended_shard_computes_only_itself(store: Store) -> None:
    run(store, steps(NumbersParams(shards=3)))
    done = run(store, [steps(NumbersParams(shards=4))[0]])
    recipe = resolve(store, steps()[1], done)
    assert [job.shard for job in jobs.jobs_to_do(store, recipe)] == ["kept/g000-toy-00003.parquet"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.integers(0, 40), shards=st.integers(1, 3), divisor=st.integers(1, 7))
def test_kept_and_dropped_add_up_to_read(store: Store, rows: int, shards: int, divisor: int) -> None:
    done = run(store, steps(NumbersParams(shards=shards, rows=rows), KeepParams(divisor=divisor))[:2])
    metrics = manifest_of(store, done["keep"]).metrics
    assert metrics["kept_rows"] + metrics["dropped_rows"] == rows * shards == metrics.get("rows_read", 0)


def test_a_stage_that_loses_rows_is_an_error(store: Store) -> None:
    with pytest.raises(LlmcoreError, match="10 rows but 5 came out"):
        run(store, steps(keep=KeepParams(lose=True)))


def test_every_flipped_byte_is_found_by_verify_and_by_the_stage_that_reads_it(store: Store) -> None:
    done = run(store, steps())
    top = manifest_of(store, done["total"])
    assert list(verify(store, top)) == []
    kept = manifest_of(store, done["keep"]).outputs["kept/g000-toy-00001.parquet"]
    name = blob_name(kept.blob, ".parquet")
    data = bytearray(store.backend.read(name) or b"")
    data[len(data) // 2] ^= 1
    store.backend.delete(name)
    store.backend.replace(name, bytes(data))
    assert [(m.step, name) for m, name, _ in verify(store, top)] == [("keep", "kept/g000-toy-00001.parquet")]
    recipe = resolve(store, steps(total=SumParams(seconds=0.01))[2], done)
    with pytest.raises(CorruptBlobError, match=kept.blob):
        runner.build(store, recipe)


def test_a_damaged_manifest_is_named(store: Store) -> None:
    ref = run(store, steps())["keep"]
    record = store.record(f"artifacts/keep/{ref.key}.json")
    assert record is not None
    record["outputs"].popitem()
    store.backend.replace(f"artifacts/keep/{ref.key}.json", repr(record).replace("'", '"').encode())
    with pytest.raises(LlmcoreError, match=f"artifacts/keep/{ref.key}.json"):
        manifest_of(store, ref)


def test_refs_keys_and_digests_find_an_artifact(store: Store) -> None:
    ref = run(store, steps())["total"]
    roots.set_ref(store, "toy", ref.plain())
    assert {resolve_ref(store, text).key for text in ("toy", ref.key[:8], ref.digest[:8])} == {ref.key}
    with pytest.raises(UsageError, match="llmcore ls"):
        resolve_ref(store, "nothing")


def test_garbage_is_what_no_ref_reaches(store: Store) -> None:
    old, new = run(store, steps()), run(store, steps(keep=KeepParams(divisor=3)))
    roots.set_ref(store, "toy", new["total"].plain())
    for entry in garbage(store, timedelta(0)):
        store.backend.delete(entry.name)
    assert {m.key for m in manifests(store)} == {new[name].key for name in ("numbers", "keep", "total")}
    assert list(verify(store, manifest_of(store, new["total"]))) == []
    assert len(manifests_behind(store, [manifest_of(store, new["total"])])) == 3
    assert run(store, steps()) == old


def test_what_a_young_artifact_names_is_no_garbage_however_old(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    run(store, steps())
    days_ago = time.time() - 3 * 86_400
    for path in (tmp_path / "blobs").rglob("*.*"):
        os.utime(path, (days_ago, days_ago))
    assert garbage(store, timedelta(hours=24)) == []
    for path in [*(tmp_path / "artifacts").rglob("*.json"), *(tmp_path / "memo").rglob("*.json")]:
        os.utime(path, (days_ago, days_ago))
    assert {entry.name.split("/")[0] for entry in garbage(store, timedelta(hours=24))} == {"artifacts", "memo", "blobs"}


def test_a_forced_run_keeps_what_was_there_until_the_new_one_takes_its_place(store: Store) -> None:
    done = run(store, steps(total=SumParams(log="x"), outside={"log": os.devnull}))
    broken = steps(total=SumParams(log="x"))[2]  # it is not told where the log lies
    with pytest.raises(KeyError):
        runner.build(store, resolve(store, broken, done), force=True)
    assert runner.find(store, resolve(store, broken, done)) == done["total"]
    assert list(verify(store, manifest_of(store, done["total"]))) == []


def test_what_was_made_from_an_artifact_that_a_forced_run_replaced_still_stands_on_the_old_one(store: Store) -> None:
    done = run(store, steps())
    noisy = dataclasses.replace(steps()[1], params=KeepParams(noise=True))
    first = runner.build(store, resolve(store, noisy, done))
    after = runner.build(store, resolve(store, steps()[2], {**done, "keep": first}))
    second = runner.build(store, resolve(store, noisy, done), force=True)
    assert second.digest != first.digest and second.key == first.key
    assert list(verify(store, manifest_of(store, after))) == []
    assert {m.digest for m in manifests_behind(store, [manifest_of(store, after)])} >= {first.digest}


def _build_total(uri: str, log: str) -> None:
    run(open_store(uri), steps(total=SumParams(seconds=1.0, log="x"), outside={"log": log}))


def test_two_processes_at_once_do_dear_work_once(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_build_total, args=(store.uri, str(log))) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(log.read_text().split()) == 1
    assert len(list(manifests(store, "total"))) == 1


def test_the_work_of_a_killed_process_is_taken_over_however_young_its_lease(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SECONDS_TO_LIVE", 1e6)
    log = tmp_path / "log"
    code = f"from tests.artifacts.test_runner import _build_total; _build_total({store.uri!r}, {str(log)!r})"
    victim = subprocess.Popen([sys.executable, "-c", code])
    wait_for(log.exists, "start of the work")
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert list(manifests(store, "total")) == []
    run(store, steps(total=SumParams(seconds=1.0, log="x"), outside={"log": str(log)}))
    assert len(log.read_text().split()) == 2
