"""Cached or run: the one place that decides it, runs what must run, and commits what came out.

find(store, recipe)              the committed artifact, if there is one
shards_to_do(store, recipe)      the shards of a per-shard recipe that have no memo yet
run_shard(store, recipe, name)   one shard: verified inputs -> function -> blobs -> memo
commit_shards(store, recipe)     all memos -> one artifact
run_global(store, recipe, …)     a global recipe, under a lease
build(store, recipe, …)          all of that in this process
"""

from __future__ import annotations

import errno
import inspect
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from llmcore.artifacts import lease as leases
from llmcore.artifacts.keys import key_of
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import ArtifactRef, Manifest, Output, manifest_name, outputs_digest, read_manifest
from llmcore.artifacts.provenance import code_digest, environment, run_record
from llmcore.artifacts.recipe import Recipe, StoreFiles, plain_params, read_table
from llmcore.artifacts.scratch import drop_scratch, open_scratch, save_scratch
from llmcore.artifacts.shards import shard_order
from llmcore.artifacts.stage import ShardResult
from llmcore.artifacts.store import Store, open_store, suffix_of
from llmcore.errors import LlmcoreError

ROW_GROUP_ROWS = 8192

Progress = Callable[[float, float, str], None]


def no_progress(done: float, total: float, text: str) -> None:
    """For callers that do not watch."""


def find(store: Store, recipe: Recipe) -> ArtifactRef | None:
    """The artifact of this recipe if it was ever committed."""
    manifest = read_manifest(store, recipe.stage.name, recipe.key)
    return manifest.ref(store) if manifest is not None else None


def forget(store: Store, recipe: Recipe) -> Callable[[], None]:
    """Drop the manifest and the memos of a recipe, so that it runs again; blobs stay until garbage collection.

    Returns what puts the manifest back, should the new run fail.
    """
    name = manifest_name(recipe.stage.name, recipe.key)
    before = store.record(name)
    store.backend.delete(name)
    if recipe.stage.kind == "per_shard":
        for shard in shard_names(recipe):
            store.backend.delete(_memo_name(recipe, shard))

    def restore() -> None:
        if before is not None:
            store.commit(name, before)

    return restore


# per-shard stages


def shard_names(recipe: Recipe) -> list[str]:
    """The input files of a per-shard recipe, in order, as full names ("kept/g000-….parquet")."""
    return sorted(recipe.files[recipe.stage.reads[0]], key=shard_order)


def shards_to_do(store: Store, recipe: Recipe) -> list[str]:
    """The shards that have no memo yet."""
    return [name for name in shard_names(recipe) if store.backend.entry(_memo_name(recipe, name)) is None]


def run_shard(store: Store, recipe: Recipe, name: str) -> None:
    """Compute one shard and commit its memo; nothing is visible before that.

    Raises LlmcoreError when the stage's output folders do not account for every row read.
    """
    stage, role = recipe.stage, recipe.stage.reads[0]
    shard = PurePosixPath(name).name
    files = StoreFiles(store, recipe.files[role])
    path = files.path(name)
    documents = read_table(path, name) if not stage.reads_paths else path
    side: dict[str, Any] = {
        aligned: read_table(StoreFiles(store, recipe.files[aligned]).path(f"{folder}/{shard}"), f"{folder}/{shard}")
        for aligned, folder in stage.aligned.items()
    }
    side |= {broadcast: StoreFiles(store, recipe.files[broadcast]) for broadcast in stage.broadcast}
    function = stage.load()
    if "shard" in inspect.signature(function).parameters:
        side["shard"] = shard
    result: ShardResult = function(documents, recipe.step.params, **side)

    with _working_folder() as folder:
        outputs = {
            output_name: asdict(_put_table(store, folder, table, output_name))
            for output_name, table in _named_tables(result, _stem(shard, recipe.step.label))
        }
        rows_read = documents.height if isinstance(documents, pl.DataFrame) else None
        if rows_read is not None and stage.partition:
            rows = sum(o["rows"] for n, o in outputs.items() if n.split("/", 1)[0] in stage.partition)
            if rows != rows_read:
                raise LlmcoreError(f"{stage.name}: {name} has {rows_read} rows but {rows} came out; this is a defect")
        memo = {"stem": _stem(shard, recipe.step.label), "rows_read": rows_read, "outputs": outputs}
        store.commit(_memo_name(recipe, name), memo | {"metrics": dict(result.metrics)})


def run_shards(
    store: Store, recipe: Recipe, names: Sequence[str], workers: int = 1, report: Progress = no_progress
) -> None:
    """Compute several shards, in `workers` processes that live on for the next call; the first error stops it."""
    if workers == 1:
        for number, name in enumerate(names):
            run_shard(store, recipe, name)
            report(number + 1, len(names), name)
        return
    waiting = {_pool(workers).submit(_run_shard_elsewhere, store.uri, recipe, name): name for name in names}
    try:
        for number, future in enumerate(as_completed(waiting)):
            future.result()
            report(number + 1, len(names), waiting[future])
    except BrokenExecutor as error:
        stop_workers()
        raise LlmcoreError(
            f"{recipe.step.name}: a worker process died (out of memory?); lower `execution.workers` or the shard size"
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def stop_workers() -> None:
    """End the worker processes that `run_shards` left waiting for more."""
    while _pools:
        _pools.popitem()[1].shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    with _pools_lock:
        if workers not in _pools:
            # spawn, because a fork of a process with polars' or Prefect's threads may hang
            _pools[workers] = ProcessPoolExecutor(
                workers, mp_context=get_context("spawn"), initializer=_ignore_interrupts
            )
        return _pools[workers]


_pools: dict[int, ProcessPoolExecutor] = {}
_pools_lock = threading.Lock()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_shard_elsewhere(uri: str, recipe: Recipe, name: str) -> None:
    run_shard(open_store(uri), recipe, name)


def commit_shards(
    store: Store,
    recipe: Recipe,
    flow_run: str | None = None,
    started: datetime | None = None,
    computed: int | None = None,
) -> ArtifactRef:
    """Gather the memos of all shards into the artifact. LlmcoreError if a shard is missing."""
    outputs: dict[str, Output] = {}
    metrics: dict[str, Any] = {}
    rows_read = 0
    names = shard_names(recipe)
    for name in names:
        memo = store.record(_memo_name(recipe, name))
        if memo is None:
            raise LlmcoreError(f"{recipe.step.name}: shard {name} was not computed; run again")
        stem = _stem(PurePosixPath(name).name, recipe.step.label)
        for output_name, output in memo["outputs"].items():
            # the memo may have been made under another shard name: same bytes, so same result
            own = output_name.replace(memo["stem"], stem, 1)
            if own in outputs:
                raise LlmcoreError(f"{recipe.step.name}: two shards would both be {own}; this is a defect")
            outputs[own] = Output(**output)
        rows_read += memo["rows_read"] or 0
        for metric, value in memo["metrics"].items():
            metrics[metric] = round(metrics.get(metric, 0) + value, 6)
    for name, output in outputs.items():
        folder = f"{name.split('/', 1)[0]}_rows"
        metrics[folder] = metrics.get(folder, 0) + (output.rows or 0)
    if rows_read:
        metrics["rows_read"] = rows_read
    extra = {"shards": len(names), "shards_computed": computed}
    return _commit(store, recipe, outputs, metrics, flow_run, started or datetime.now(UTC), extra)


def _named_tables(result: ShardResult, stem: str) -> Iterator[tuple[str, pl.DataFrame]]:
    for folder, made in result.outputs.items():
        if isinstance(made, pl.DataFrame):
            yield f"{folder}/{stem}.parquet", made
        else:
            for number, table in enumerate(made):
                yield f"{folder}/{stem}-{number:05d}.parquet", table


def _stem(shard: str, label: str) -> str:
    stem = shard.split(".", 1)[0]
    if not label:
        return stem
    generation, *rest = stem.split("-", 1)
    return "-".join([generation, label, *rest])


def _put_table(store: Store, folder: Path, table: pl.DataFrame, name: str) -> Output:
    path = folder / name.replace("/", "_")
    with _full_disk_is_an_error(folder):
        table.write_parquet(path, compression="zstd", compression_level=3, row_group_size=ROW_GROUP_ROWS)
    blob = store.put_blob(path, ".parquet")
    size = path.stat().st_size
    path.unlink()
    return Output(blob, size, table.height)


def _memo_name(recipe: Recipe, name: str) -> str:
    stage, role = recipe.stage, recipe.stage.reads[0]
    shard = PurePosixPath(name).name
    takes_name = "shard" in inspect.signature(stage.load()).parameters
    identity = {
        "stage": stage.name,
        "version": stage.version,
        "params": plain_params(recipe.step.params),
        "shard": recipe.files[role][name].blob,
        "name": shard if takes_name else None,
        "aligned": {
            aligned: recipe.files[aligned][f"{folder}/{shard}"].blob
            if f"{folder}/{shard}" in recipe.files[aligned]
            else _missing(recipe, aligned, f"{folder}/{shard}")
            for aligned, folder in stage.aligned.items()
        },
        "broadcast": {broadcast: outputs_digest(recipe.files[broadcast]) for broadcast in stage.broadcast},
    }
    return f"memo/{stage.name}/{key_of(identity)}.json"


def _missing(recipe: Recipe, role: str, name: str) -> str:
    raise LlmcoreError(f"{recipe.step.name}: input {role!r} has no file {name!r} beside the shard; this is a defect")


# global stages


@dataclass
class StoreRun:
    """`Run` over a store."""

    store: Store
    recipe: Recipe
    out: Path
    scratch: Path
    report: Progress
    lease: leases.Lease
    outside: Mapping[str, Any] = field(default_factory=dict)
    carried: dict[str, Output] = field(default_factory=dict)

    def lineage(self) -> Sequence[Mapping[str, Any]]:
        tops = [manifest for found in self.recipe.sources.values() for manifest in found]
        return [manifest.public() for manifest in manifests_behind(self.store, tops)]

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.lease.check_quickly()
        self.report(done, total, text)

    def carry(self, role: str, prefix: str = "") -> None:
        self.carried |= {name: out for name, out in self.recipe.files[role].items() if name.startswith(prefix)}

    def keep_scratch(self) -> None:
        self.lease.check()  # whoever took over has newer files there
        save_scratch(self.store, self.recipe.key, self.scratch)


def run_global(
    store: Store,
    recipe: Recipe,
    report: Progress = no_progress,
    flow_run: str | None = None,
    waiting: Callable[[str], None] = lambda holder: None,
) -> ArtifactRef:
    """Run a global recipe under its lease and commit it, or wait for whoever is at it already."""
    lease = leases.take(store, recipe.key, lambda: find(store, recipe) is None, waiting)
    found = find(store, recipe)
    if lease is None or found is not None:
        if lease is not None:
            lease.give_back()
        if found is None:
            raise LlmcoreError(f"{recipe.step.name}: the artifact vanished while waiting for it; run again")
        return found
    started = datetime.now(UTC)
    try:
        with _working_folder() as folder:
            out = folder / "out"
            out.mkdir()
            run = StoreRun(
                store, recipe, out, open_scratch(store, recipe.key, folder), report, lease, recipe.step.outside
            )
            inputs = {role: StoreFiles(store, files) for role, files in recipe.files.items()}
            with _full_disk_is_an_error(folder):
                metrics = recipe.stage.load()(inputs, recipe.step.params, run)
            outputs = dict(run.carried)
            for path in sorted(path for path in out.rglob("*") if path.is_file()):
                name = str(path.relative_to(out))
                rows = pl.scan_parquet(path).select(pl.len()).collect().item() if name.endswith(".parquet") else None
                outputs[name] = Output(store.put_blob(path, suffix_of(name)), path.stat().st_size, rows)
            lease.check()
            ref = _commit(store, recipe, outputs, metrics, flow_run, started, {})
            drop_scratch(store, recipe.key)
            return ref
    finally:
        lease.give_back()


# both


def build(store: Store, recipe: Recipe, report: Progress = no_progress, flow_run: str | None = None) -> ArtifactRef:
    """Find the artifact or make it, in this process."""
    found = find(store, recipe)
    if found is not None:
        return found
    if recipe.stage.kind == "global":
        return run_global(store, recipe, report, flow_run)
    started, todo = datetime.now(UTC), shards_to_do(store, recipe)
    run_shards(store, recipe, todo, report=report)
    return commit_shards(store, recipe, flow_run, started, len(todo))


def _commit(
    store: Store,
    recipe: Recipe,
    outputs: Mapping[str, Output],
    metrics: Mapping[str, Any],
    flow_run: str | None,
    started: datetime,
    extra: Mapping[str, Any],
) -> ArtifactRef:
    identity = recipe.identity
    manifest = Manifest(
        step=recipe.step.name,
        key=recipe.key,
        digest=outputs_digest(outputs),
        identity=identity,
        inputs={
            role: tuple(
                {"step": source.step, "stage": source.stage, "key": source.key, "digest": source.digest}
                for source in sources
            )
            for role, sources in recipe.sources.items()
        },
        outputs=dict(sorted(outputs.items())),
        metrics=dict(metrics),
        role=recipe.stage.role,
        code=code_digest(recipe.stage.function.partition(":")[0]),
        environment=environment(),
        run={**run_record(started, flow_run), **extra},
    )
    name = manifest_name(recipe.stage.name, recipe.key)
    if not store.commit(name, manifest.plain()):
        first = read_manifest(store, recipe.stage.name, recipe.key)
        if first is None:
            raise LlmcoreError(f"{recipe.step.name}: the artifact vanished while it was committed; run again")
        return first.ref(store)
    return manifest.ref(store)


class _working_folder(tempfile.TemporaryDirectory[str]):
    """A temporary folder that goes with its context."""

    def __init__(self) -> None:
        super().__init__(prefix="llmcore-")

    def __enter__(self) -> Path:  # type: ignore[override]
        return Path(super().__enter__())


class _full_disk_is_an_error:
    """Turn "no space left" into one clear line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = self.folder.parent
            raise LlmcoreError(f"no space left in {where}: free some or set TMPDIR, then run again") from error
