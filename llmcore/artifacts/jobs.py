"""The shards of a per-shard stage: what a worker gets, what it does, and what it leaves behind.

A `ShardJob` names the blobs that one shard's work reads and the memo that it writes; a `Chunk` is jobs of one recipe
with what they share. So what travels to a worker is some hundred bytes a shard, whatever the corpus, and a memo that
lies in the store is a job done.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from llmcore.artifacts import lease as leases
from llmcore.artifacts.keys import key_of, with_check, without_check
from llmcore.artifacts.manifest import Output
from llmcore.artifacts.processes import end_with_parent
from llmcore.artifacts.recipe import Recipe, StoreFiles, own_identity, read_table
from llmcore.artifacts.shards import shard_order
from llmcore.artifacts.stage import ShardResult, Stage
from llmcore.artifacts.store import Store, blob_name, open_store, suffix_of
from llmcore.artifacts.working import working_folder
from llmcore.errors import LlmcoreError

ROW_GROUP_ROWS = 8192
MEMO_DIGITS = 16
PARQUET_END = b"PAR1"  # behind the footer, which is written last

Memo = dict[str, Any]  # stem, rows_read, outputs (name -> Output as plain data), metrics


@dataclass(frozen=True)
class ShardJob:
    """The work on one shard: the shard, the files beside it (in the order of `Stage.aligned`), and the memo's name."""

    shard: str
    blob: str
    aligned: tuple[str, ...]
    memo: str


@dataclass(frozen=True)
class Chunk:
    """Jobs of one recipe, with what they share."""

    step: str
    stage: Stage
    params: Any
    label: str
    broadcast: Mapping[str, Mapping[str, Output]]
    jobs: tuple[ShardJob, ...]
    force: bool = False


def memo_folder(recipe: Recipe) -> str:
    """Below which the memos of all shards lie that a recipe would treat alike."""
    stage = recipe.stage
    own = own_identity(stage, recipe.step.params)
    if stage.limits:
        own["params"] = {name: value for name, value in own["params"].items() if name not in stage.limits}
    shared = {
        **own,
        "broadcast": {role: recipe.inputs[role].digest for role in stage.broadcast},
    }
    return f"memo/{stage.name}/{key_of(shared)[:MEMO_DIGITS]}"


def shard_jobs(recipe: Recipe) -> list[ShardJob]:
    """A job for each shard, in their order. LlmcoreError if a shard lacks a file that must lie beside it."""
    stage, folder = recipe.stage, memo_folder(recipe)
    shards = recipe.files[stage.reads[0]]
    jobs = []
    for name in sorted(shards, key=shard_order):
        own = PurePosixPath(name).name
        aligned = tuple(_beside(recipe, role, f"{below}/{own}") for role, below in stage.aligned.items())
        identity = [shards[name].blob, *aligned, *([own] if stage.named else [])]
        jobs.append(ShardJob(name, shards[name].blob, aligned, f"{folder}/{key_of(identity)}.json"))
    return jobs


def _beside(recipe: Recipe, role: str, name: str) -> str:
    found = recipe.files[role].get(name)
    if found is None:
        raise LlmcoreError(f"{recipe.step.name}: input {role!r} has no file {name!r} beside the shard; run it again")
    return found.blob


def jobs_to_do(store: Store, recipe: Recipe) -> list[ShardJob]:
    """The jobs whose memo is not there yet; one listing, however many shards."""
    done = {entry.name for entry in store.backend.entries(f"{memo_folder(recipe)}/")}
    return [job for job in shard_jobs(recipe) if job.memo not in done]


def chunk_of(recipe: Recipe, jobs: Sequence[ShardJob], force: bool = False) -> Chunk:
    stage = recipe.stage
    broadcast = {role: recipe.files[role] for role in stage.broadcast}
    return Chunk(recipe.step.name, stage, recipe.step.params, recipe.step.label, broadcast, tuple(jobs), force)


def run_chunk(store: Store, chunk: Chunk) -> dict[str, Memo]:
    """Do the jobs one after another; returns their memos by name. The first error stops it."""
    side = {role: StoreFiles(store, outputs) for role, outputs in chunk.broadcast.items()}
    memos: dict[str, Memo] = {}
    todo: Sequence[ShardJob] = chunk.jobs
    with working_folder() as folder:
        while todo:
            before = leases.settled(store, leases.COLLECTION)
            memos |= {job.memo: run_job(store, chunk, job, side, folder) for job in todo}
            if leases.settled(store, leases.COLLECTION) == before:
                break
            # a collection may have looked at a blob before, and deleted it after it was written again
            todo = [job for job in todo if any(store.backend.entry(name) is None for name in _blobs(memos[job.memo]))]
            chunk = dataclasses.replace(chunk, force=True)
    return memos


def _blobs(memo: Memo) -> list[str]:
    return [blob_name(output["blob"], suffix_of(name)) for name, output in memo["outputs"].items()]


def run_job(store: Store, chunk: Chunk, job: ShardJob, side: Mapping[str, Any], folder: Path) -> Memo:
    """Compute one shard and commit its memo; nothing is visible before that.

    Raises LlmcoreError when the stage's output folders do not account for every row read.
    """
    stage, shard = chunk.stage, PurePosixPath(job.shard).name
    path = store.fetch_blob(job.blob, suffix_of(job.shard), job.shard)
    documents = read_table(path, job.shard) if not stage.reads_paths else path
    beside = {
        role: read_table(store.fetch_blob(blob, suffix_of(job.shard), f"{below}/{shard}"), f"{below}/{shard}")
        for (role, below), blob in zip(stage.aligned.items(), job.aligned, strict=True)
    }
    named = {"shard": shard} if stage.named else {}
    result: ShardResult = stage.load()(documents, chunk.params, **beside, **side, **named)

    stem = shard_stem(shard, chunk.label)
    outputs = {name: _put_table(store, folder, table, name) for name, table in _named_tables(result, stem)}
    rows_read = documents.height if isinstance(documents, pl.DataFrame) else None
    if rows_read is not None and stage.partition:
        rows = sum(output.rows or 0 for name, output in outputs.items() if name.split("/", 1)[0] in stage.partition)
        if rows != rows_read:
            raise LlmcoreError(f"{stage.name}: {job.shard} has {rows_read} rows but {rows} came out; this is a defect")
    memo = {
        "stem": stem,
        "rows_read": rows_read,
        "outputs": {name: asdict(output) for name, output in outputs.items()},
        "metrics": dict(result.metrics),
    }
    if chunk.force:
        store.replace(job.memo, with_check(memo))
    else:
        store.commit(job.memo, with_check(memo))
    return memo


def read_memo(store: Store, name: str) -> Memo | None:
    """The memo stored under a name; None if there is none. LlmcoreError if it is damaged."""
    record = store.record(name)
    try:
        memo = None if record is None else without_check(record)
        if memo is not None and not {"stem", "rows_read", "outputs", "metrics"} <= memo.keys():
            raise ValueError("a field is missing")
    except ValueError as error:
        raise LlmcoreError(f"damaged record {name} in {store.uri}: {error}; delete it to have it remade") from error
    return memo


def shard_stem(shard: str, label: str) -> str:
    """A shard's name up to its first dot, with the label of its source behind the generation."""
    stem = shard.split(".", 1)[0]
    if not label:
        return stem
    generation, *rest = stem.split("-", 1)
    return "-".join([generation, label, *rest])


def _named_tables(result: ShardResult, stem: str) -> Iterator[tuple[str, pl.DataFrame]]:
    for folder, made in result.outputs.items():
        if isinstance(made, pl.DataFrame):
            yield f"{folder}/{stem}.parquet", made
        else:
            for number, table in enumerate(made):
                yield f"{folder}/{stem}-{number:05d}.parquet", table


def _put_table(store: Store, folder: Path, table: pl.DataFrame, name: str) -> Output:
    path = folder / name.replace("/", "_")
    table.write_parquet(path, compression="zstd", compression_level=3, row_group_size=ROW_GROUP_ROWS)
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - len(PARQUET_END)))
        if file.read() != PARQUET_END:
            raise LlmcoreError(f"{name}: cut off while it was written to {folder}; free some space, then run again")
    blob = store.put_blob(path, ".parquet")
    path.unlink()
    return Output(blob, size, table.height)


# processes on this machine


def run_chunk_in_pool(store: Store, chunk: Chunk, workers: int) -> dict[str, Memo]:
    """The same in one of `workers` processes that live on for the next call."""
    try:
        return _pool(workers).submit(_run_chunk_elsewhere, store.uri, chunk).result()
    except BrokenExecutor as error:
        stop_workers()
        raise LlmcoreError(
            f"{chunk.step}: a worker process died (out of memory?); lower `execution.workers` or the shard size"
        ) from error


def stop_workers() -> None:
    """End the worker processes that wait for more."""
    with _pools_lock:
        while _pools:
            _pools.popitem()[1].shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    with _pools_lock:
        if workers not in _pools:
            # spawn, because a fork of a process with polars' or Prefect's threads may hang
            _pools[workers] = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_worker)
        return _pools[workers]


_pools: dict[int, ProcessPoolExecutor] = {}
_pools_lock = threading.Lock()


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _run_chunk_elsewhere(uri: str, chunk: Chunk) -> dict[str, Memo]:
    return run_chunk(open_store(uri), chunk)
