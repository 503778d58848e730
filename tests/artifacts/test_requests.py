"""What a stage asks of an S3 server: stated in docs/scaling.md, counted here."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest

from llmcore.artifacts import jobs, runner
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.recipe import Recipe, resolve
from llmcore.artifacts.s3 import S3Backend
from llmcore.artifacts.store import Store, open_store
from tests.artifacts.storm import chain

SHARDS = 3  # of the toy chain


@pytest.fixture
def remote(home: str) -> Store:
    if not home.startswith("s3:"):
        pytest.skip("a folder has no requests")
    return open_store(f"{home}/{uuid.uuid4().hex}")


def asked(store: Store) -> Counter[str]:
    """The requests since the last call."""
    backend = store.backend
    assert isinstance(backend, S3Backend)
    counted = Counter(backend.requests)
    backend.requests.clear()
    return counted


def made(store: Store, recipe: Recipe) -> ArtifactRef:
    todo = jobs.jobs_to_do(store, recipe)
    return runner.commit_shards(store, recipe, jobs.run_chunk(store, jobs.chunk_of(recipe, todo)))


def test_a_shard_costs_its_blobs_and_a_memo_and_a_stage_some_listings_and_a_manifest(remote: Store) -> None:
    steps = chain(0, 2)
    done = {"numbers": runner.build(remote, resolve(remote, steps[0], {}))}
    recipe = resolve(remote, steps[1], done)
    asked(remote)
    done["keep"] = made(remote, recipe)
    counted = asked(remote)
    assert counted["ListObjectsV2"] == 1 + 2  # of memos; for a collection under way, before and after the chunk
    assert counted["GetObject"] + counted["HeadObject"] <= 2 * SHARDS  # the shard itself, where it is not cached yet
    assert counted["PutObject"] == SHARDS * (2 + 1) + 1  # kept, dropped, memo; the manifest
    assert set(counted) <= {"ListObjectsV2", "GetObject", "HeadObject", "PutObject"}


def test_a_stage_that_was_done_costs_one_request_however_many_shards(remote: Store) -> None:
    steps = chain(0, 2)
    done = {"numbers": runner.build(remote, resolve(remote, steps[0], {}))}
    done["keep"] = made(remote, resolve(remote, steps[1], done))
    asked(remote)
    recipe = resolve(remote, steps[1], done)
    assert asked(remote) == {"GetObject": 1}  # its input's manifest
    assert runner.find(remote, recipe) == done["keep"]
    assert asked(remote) == {"GetObject": 1}


def test_memos_that_are_there_are_listed_once_and_read_once(remote: Store) -> None:
    steps = chain(0, 2)
    done = {"numbers": runner.build(remote, resolve(remote, steps[0], {}))}
    recipe = resolve(remote, steps[1], done)
    jobs.run_chunk(remote, jobs.chunk_of(recipe, jobs.jobs_to_do(remote, recipe)))
    asked(remote)
    assert jobs.jobs_to_do(remote, recipe) == []
    runner.commit_shards(remote, recipe)
    assert asked(remote) == {"ListObjectsV2": 1, "GetObject": SHARDS, "PutObject": 1}
