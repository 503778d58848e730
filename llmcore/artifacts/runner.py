"""Cached or run: the one place that decides it, runs what must run, and commits what came out.

find(store, recipe)              the committed artifact, if there is one
commit_shards(store, recipe, …)  the memos of all shards -> one artifact (`jobs.py` makes the memos)
run_global(store, recipe, …)     a global recipe, under a lease
build(store, recipe, …)          all of that in this process
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from llmcore.artifacts import lease as leases
from llmcore.artifacts.jobs import Memo, ShardJob, chunk_of, jobs_to_do, read_memo, run_chunk, shard_jobs, shard_stem
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import (
    INLINE_FILES,
    ArtifactRef,
    Manifest,
    Output,
    folders_of,
    manifest_name,
    outputs_digest,
    read_manifest,
    write_listing,
)
from llmcore.artifacts.provenance import code_digest, environment, run_record
from llmcore.artifacts.recipe import Recipe, StoreFiles
from llmcore.artifacts.scratch import drop_scratch, open_scratch, save_scratch, scratch_files
from llmcore.artifacts.store import Store, suffix_of
from llmcore.artifacts.working import working_folder
from llmcore.errors import LlmcoreError, UsageError

Progress = Callable[[float, float, str], None]


def no_progress(done: float, total: float, text: str) -> None:
    """For callers that do not watch."""


def find(store: Store, recipe: Recipe) -> ArtifactRef | None:
    """The artifact of this recipe if it was ever committed.

    Where its bytes came of other artifacts than the recipe names (equal bytes of several recipes), what is returned is
    an edition of its own, whose lineage is the one asked for.
    """
    first = read_manifest(store, recipe.stage.name, recipe.key)
    if first is None:
        return None
    if first.inputs == recipe.edges and first.step == recipe.step.name:
        return first.ref(store)
    edition = _sealed(dataclasses.replace(first, step=recipe.step.name, inputs=recipe.edges))
    try:
        store.commit(manifest_name(edition.stage, edition.key, edition.seal), edition.plain())
    except UsageError:  # a store that cannot be written to serves what it has
        return first.ref(store)
    return edition.ref(store)


# per-shard stages


def commit_shards(
    store: Store,
    recipe: Recipe,
    fresh: Mapping[str, Memo] | None = None,
    flow_run: str | None = None,
    started: datetime | None = None,
    force: bool = False,
) -> ArtifactRef:
    """Gather the memos of all shards into the artifact. LlmcoreError if a shard is missing, or the stage refuses it.

    fresh: memos that were just made, by name; the others are read from the store.
    """
    jobs, known = shard_jobs(recipe), dict(fresh or {})
    old = [job for job in jobs if job.memo not in known]
    for job, memo in zip(old, store.each(old, lambda job: read_memo(store, job.memo)), strict=True):
        if memo is None:
            raise LlmcoreError(f"{recipe.step.name}: shard {job.shard} was not computed; run again")
        known[job.memo] = memo
    outputs: dict[str, Output] = {}
    metrics: dict[str, Any] = {}
    rows_read = 0
    for job in jobs:
        memo = known[job.memo]
        stem = shard_stem(PurePosixPath(job.shard).name, recipe.step.label)
        for output_name, output in memo["outputs"].items():
            # the memo may have been made under another shard name: same bytes, so same result
            own = output_name.replace(memo["stem"], stem, 1)
            if own in outputs:
                raise LlmcoreError(f"{recipe.step.name}: two shards would both be {own}; this is a defect")
            outputs[own] = Output(**output)
        rows_read += memo["rows_read"] or 0
        for metric, value in memo["metrics"].items():
            metrics[metric] = round(metrics.get(metric, 0) + value, 6)
    for folder, found in folders_of(outputs).items():
        metrics[f"{folder}_rows"] = found.rows
    if rows_read:
        metrics["rows_read"] = rows_read
    if recipe.stage.accept:
        (source,) = recipe.sources[recipe.stage.reads[0]]
        made, read = StoreFiles(store, outputs), StoreFiles(store, source.outputs)
        recipe.stage.check(made, read, recipe.step.params, metrics)
    extra = {"shards": len(jobs), "shards_computed": len(fresh or {})}
    return commit(store, recipe, outputs, metrics, run_record(started or datetime.now(UTC), flow_run) | extra, force)


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

    @property
    def generation(self) -> int:
        return self.recipe.step.generation

    def lineage(self) -> Sequence[Mapping[str, Any]]:
        tops = [manifest for found in self.recipe.sources.values() for manifest in found]
        return [manifest.public() for manifest in manifests_behind(self.store, tops)]

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.lease.check_quickly()
        self.report(done, total, text)

    def carry(self, role: str, prefix: str = "") -> None:
        self.carried |= {name: out for name, out in self.recipe.files[role].items() if name.startswith(prefix)}

    @property
    def key(self) -> str:
        return self.recipe.key

    def scratch_of(self, key: str, name: str) -> Path | None:
        place = scratch_files(self.store, key).get(name)
        return self.store.backend.local(place, fresh=True) if place is not None else None

    def keep_scratch(self) -> None:
        self.lease.check()  # whoever took over has newer files there
        save_scratch(self.store, self.recipe.key, self.scratch)


def run_global(
    store: Store,
    recipe: Recipe,
    report: Progress = no_progress,
    flow_run: str | None = None,
    waiting: Callable[[str], None] = lambda holder: None,
    force: bool = False,
) -> ArtifactRef:
    """Run a global recipe under its lease and commit it, or wait for whoever is at it already.

    force: run although the artifact is there, which stays until the new one takes its place.
    """
    lease = leases.take(store, recipe.key, lambda: force or find(store, recipe) is None, waiting)
    if lease is None:
        found = find(store, recipe)
        if found is None:
            raise LlmcoreError(f"{recipe.step.name}: the artifact vanished while waiting for it; run again")
        return found
    try:
        found = None if force else find(store, recipe)
        return found or _run_global(store, recipe, lease, report, flow_run, force)
    finally:
        lease.give_back()


def _run_global(
    store: Store, recipe: Recipe, lease: leases.Lease, report: Progress, flow_run: str | None, force: bool
) -> ArtifactRef:
    started = datetime.now(UTC)
    with working_folder() as folder:
        out = folder / "out"
        out.mkdir()
        scratch = open_scratch(store, recipe.key, folder)
        went_on = any(scratch.iterdir())
        run = StoreRun(store, recipe, out, scratch, report, lease, recipe.step.outside)
        inputs = {role: StoreFiles(store, files) for role, files in recipe.files.items()}
        metrics = recipe.stage.load()(inputs, recipe.step.params, run)
        paths = sorted(path for path in out.rglob("*") if path.is_file())
        before = leases.settled(store, leases.COLLECTION)
        made = store.each(paths, lambda path: _put_file(store, path))
        outputs = run.carried | {str(path.relative_to(out)): output for path, output in zip(paths, made, strict=True)}
        lease.check()
        record = run_record(started, flow_run, recipe.step.outside) | ({"went_on": True} if went_on else {})
        ref = commit(store, recipe, outputs, metrics, record, force)
        if leases.settled(store, leases.COLLECTION) != before:
            # a collection may have looked at a blob before, and deleted it after it was written again
            store.each(paths, lambda path: store.put_blob(path, suffix_of(path.name)))
    drop_scratch(store, recipe.key)
    return ref


def _put_file(store: Store, path: Path) -> Output:
    rows = pl.scan_parquet(path).select(pl.len()).collect().item() if path.suffix == ".parquet" else None
    return Output(store.put_blob(path, suffix_of(path.name)), path.stat().st_size, rows)


# both


def build(
    store: Store,
    recipe: Recipe,
    report: Progress = no_progress,
    flow_run: str | None = None,
    force: bool = False,
) -> ArtifactRef:
    """Find the artifact or make it, in this process."""
    found = None if force else find(store, recipe)
    if found is not None:
        return found
    if recipe.stage.kind == "global":
        return run_global(store, recipe, report, flow_run, force=force)
    started = datetime.now(UTC)
    todo: list[ShardJob] = shard_jobs(recipe) if force else jobs_to_do(store, recipe)
    fresh = run_chunk(store, chunk_of(recipe, todo, force))
    return commit_shards(store, recipe, fresh, flow_run, started, force)


def commit(
    store: Store,
    recipe: Recipe,
    outputs: Mapping[str, Output],
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    force: bool = False,
) -> ArtifactRef:
    """Write the manifest of a recipe whose outputs are in the store; the artifact exists from then on.

    Whoever commits first wins. force: take the place of what was there, which stays as an edition.
    """
    outputs = dict(sorted(outputs.items()))
    if len(outputs) <= INLINE_FILES:
        return _commit(store, recipe, outputs, None, metrics, run, force)
    before = leases.settled(store, leases.COLLECTION)
    ref = _commit(store, recipe, outputs, _listed(store, outputs), metrics, run, force)
    if leases.settled(store, leases.COLLECTION) != before:
        _listed(store, outputs)  # may have been deleted behind a collection's look
    return ref


def _commit(
    store: Store,
    recipe: Recipe,
    outputs: Mapping[str, Output],
    listing: str | None,
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    force: bool,
) -> ArtifactRef:
    manifest = _sealed(
        Manifest(
            step=recipe.step.name,
            key=recipe.key,
            digest=outputs_digest(outputs),
            identity=recipe.identity,
            inputs=recipe.edges,
            outputs=outputs,
            folders=folders_of(outputs),
            metrics=dict(metrics),
            role=recipe.stage.role,
            listing=listing,
            code=code_digest(*recipe.stage.modules),
            environment=environment(),
            run=run,
        )
    )
    name = manifest_name(manifest.stage, manifest.key)
    if store.commit(name, manifest.plain()):
        return manifest.ref(store)
    first = read_manifest(store, manifest.stage, manifest.key)
    if first is None:
        raise LlmcoreError(f"{manifest.step}: the artifact vanished while it was committed; run again")
    if force and first.seal != manifest.seal:
        if first.seal:  # what others were made from stays
            store.commit(manifest_name(first.stage, first.key, first.seal), first.plain())
        # another forced run may have looked before, and replace this one without having seen it
        store.commit(manifest_name(manifest.stage, manifest.key, manifest.seal), manifest.plain())
        store.replace(name, manifest.plain())
        return manifest.ref(store)
    return find(store, recipe) or first.ref(store)


def _sealed(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, seal=manifest.sealed())


def _listed(store: Store, outputs: Mapping[str, Output]) -> str:
    with working_folder() as folder:
        path = folder / "outputs.parquet"
        write_listing(outputs, path)
        return store.put_blob(path, ".parquet")
