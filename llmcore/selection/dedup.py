"""Exact and near-duplicate removal: MinHash signatures, LSH banding, keep the first document of each cluster.

Three stages. `signatures` (per shard) fingerprints the documents, `resolve` (global) decides, `dedup` (per shard) acts.
Only `resolve` needs all shards at once, and it decides in the order of the shards: shards added at the end
never change an earlier decision file by one byte.

Method: MinHash as in `llmcore.selection.minhash`; every member of a cluster is checked against the document that is
kept for it (star clusters). Transitive closure over unverified candidates is known to swallow whole sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, ShardResult, Stage
from llmcore.errors import LlmcoreError
from llmcore.schema import dropped

SMALL_SOURCE = 10  # documents; below this a source's share of losses says nothing and raises no alarm


class SignatureParams(Params):
    shingle_words: int = Field(default=5, ge=1, le=100, description="words in a shingle")
    bands: int = Field(
        default=14, ge=1, le=256, description="bands of a signature; a pair that agrees on one is compared"
    )
    rows: int = Field(default=8, ge=1, le=64, description="signature entries in a band")
    seed: int = Field(default=1, ge=0, lt=2**63, description="seed of the hash functions")


class ResolveParams(Params):
    threshold: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="estimated Jaccard similarity with the kept document that makes a duplicate",
    )
    alarm_share: float = Field(default=0.5, gt=0, le=1, description="share lost by one source that raises an alarm")


class DedupParams(SignatureParams, ResolveParams):
    """The `dedup` section of a configuration; each stage takes its own fields: a new threshold redoes no signature."""


class KeepParams(Params):
    """Carrying out decisions has no settings."""


SIGNATURES = Stage(
    "signatures",
    version=1,
    params=SignatureParams,
    function="llmcore.selection.dedup:signatures",
    kind="per_shard",
    partition=("signatures",),
)
RESOLVE = Stage("resolve", version=1, params=ResolveParams, function="llmcore.selection.dedup:resolve")
STAGE = Stage(
    "dedup",
    version=1,
    params=KeepParams,
    function="llmcore.selection.dedup:dedup",
    kind="per_shard",
    aligned={"decisions": "decisions"},
)


def signatures(documents: pl.DataFrame, params: SignatureParams) -> ShardResult:
    """One row a document: id, source, content (u64 of its words), shingles, band_NN (u64), signature (u32 array)."""
    from llmcore.selection.minhash import signatures_of

    signature, keys, content, shingles = signatures_of(
        documents["text"], params.shingle_words, params.bands, params.rows, params.seed
    )
    table = documents.select("id", "source").with_columns(
        pl.Series("content", content),
        pl.Series("shingles", shingles),
        *[pl.Series(f"band_{band:02}", keys[:, band]) for band in range(params.bands)],
        pl.Series("signature", signature, dtype=pl.Array(pl.UInt32, params.bands * params.rows)),
    )
    return ShardResult({"signatures": table}, {"documents": table.height})


def resolve(inputs: Mapping[str, Files], params: ResolveParams, run: Run) -> dict[str, Any]:
    """Write decisions/<shard>: id, cluster, keep, duplicate_of, jaccard, kind ("exact", "near" or null).

    One row a document; `cluster` is the id of the document that is kept for it. Memory: 4 bytes a document and band
    (keys are read one band at a time) and one signature for each document that shares a band with another.
    """
    files = inputs["signatures"]
    names = [name for name in files.names("signatures/") if name.endswith(".parquet")]
    if not names:
        raise LlmcoreError("resolve: the signatures hold no shard; check that the stages before it kept documents")
    columns = pl.read_parquet_schema(files.path(names[0]))
    bands = [name for name in columns if name.startswith("band_")]
    head = pl.concat([pl.read_parquet(files.path(name), columns=["id", "source", "shingles"]) for name in names])
    heights = [pl.scan_parquet(files.path(name)).select(pl.len()).collect().item() for name in names]
    run.progress(0, len(bands) + 2, "grouping")

    buckets, content = _buckets(files, names, bands, head["shingles"].to_numpy() > 0, run)
    rows = np.flatnonzero((buckets >= 0).any(axis=1) | (content >= 0))
    kept, jaccard, same = _decide(files, names, heights, rows, buckets[rows], content[rows], params.threshold)

    target = np.arange(head.height)
    target[rows] = rows[kept]
    similarity = np.ones(head.height, np.float32)
    similarity[rows] = jaccard
    exact = np.zeros(head.height, bool)
    exact[rows] = same
    keep = target == np.arange(head.height)
    decisions = pl.DataFrame({"id": head["id"], "cluster": head["id"].gather(target), "keep": keep}).select(
        "id",
        "cluster",
        "keep",
        pl.when(~pl.col("keep")).then("cluster").alias("duplicate_of"),
        pl.when(~pl.col("keep")).then(pl.Series(similarity)).alias("jaccard"),
        pl.when(~pl.col("keep"))
        .then(pl.when(pl.Series(exact)).then(pl.lit("exact")).otherwise(pl.lit("near")))
        .alias("kind"),
    )
    (run.out / "decisions").mkdir()
    first = 0
    for name, height in zip(names, heights, strict=True):
        decisions.slice(first, height).write_parquet(
            run.out / "decisions" / name.removeprefix("signatures/"), compression="zstd"
        )
        first += height
    run.progress(len(bands) + 2, len(bands) + 2, "decided")
    return _metrics(head["source"], decisions, params.alarm_share)


def dedup(documents: pl.DataFrame, params: KeepParams, decisions: pl.DataFrame) -> ShardResult:
    """Keep what the decisions keep (with the column `cluster`); name for every other document the one it duplicates."""
    if not documents["id"].equals(decisions["id"]):
        raise LlmcoreError(
            "dedup: the decisions are not those of this shard's documents; rerun resolve on these signatures"
        )
    decided = documents.with_columns(decisions.drop("id"))
    lost = decided.filter(~pl.col("keep"))
    detail = pl.struct("duplicate_of", pl.col("jaccard").cast(pl.Float64).round(4)).struct.json_encode()
    reason = pl.format("{}_duplicate", "kind")
    kept = decided.filter("keep").select(*documents.columns, "cluster")
    kinds = lost["kind"].value_counts()
    counts = dict(zip(kinds["kind"], kinds["count"], strict=True))
    return ShardResult(
        {"kept": kept, "dropped": dropped(lost, "dedup", reason, detail)},
        {
            "documents": documents.height,
            "kept": kept.height,
            "exact_duplicates": counts.get("exact", 0),
            "near_duplicates": counts.get("near", 0),
        },
    )


def _buckets(
    files: Files, names: list[str], bands: list[str], worded: np.ndarray, run: Run
) -> tuple[np.ndarray, np.ndarray]:
    """Bucket numbers [n, bands] and exact-content groups [n]; -1 where a document shares its key with no other."""
    from llmcore.selection.minhash import buckets_of

    def column(name: str) -> np.ndarray:
        return pl.concat([pl.read_parquet(files.path(shard), columns=[name]) for shard in names])[name].to_numpy()

    buckets = np.empty((len(worded), len(bands)), np.int32)
    groups = 0
    for index, band in enumerate(bands):
        numbers, count = buckets_of(column(band), worded)
        buckets[:, index] = np.where(numbers >= 0, numbers + groups, numbers)
        groups += count
        run.progress(index + 1, len(bands) + 2, band)
    content, _ = buckets_of(column("content"), np.ones(len(worded), bool))
    return buckets, content


def _decide(
    files: Files,
    names: list[str],
    heights: list[int],
    rows: np.ndarray,
    buckets: np.ndarray,
    content: np.ndarray,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Star clusters of the candidates: (index of the kept one, Jaccard with it, whether the words are the same)."""
    from llmcore.selection.minhash import stars

    ends = np.cumsum(heights)
    places = np.searchsorted(rows, np.concatenate([[0], ends]))
    parts = []
    for index, name in enumerate(names):
        local = rows[places[index] : places[index + 1]] - (ends[index] - heights[index])
        if len(local):
            column = pl.read_parquet(files.path(name), columns=["signature"])["signature"]
            parts.append(column.gather(local).to_numpy())
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool)
    signature = np.ascontiguousarray(np.concatenate(parts), np.uint32)
    size = signature.shape[1]
    kept, equal, same = stars(signature, buckets, content, math.ceil(threshold * size - 1e-9))
    return kept, (equal / size).astype(np.float32), same


def _metrics(source: pl.Series, decisions: pl.DataFrame, alarm_share: float) -> dict[str, Any]:
    by_source = (
        decisions.with_columns(source.alias("source"))
        .group_by("source")
        .agg(pl.len().alias("documents"), (~pl.col("keep")).sum().alias("lost"))
        .sort("source")
    )
    sources = {row["source"]: row | {"share": row["lost"] / row["documents"]} for row in by_source.to_dicts()}
    for row in sources.values():
        del row["source"]
    alarms = [name for name, row in sources.items() if row["share"] > alarm_share and row["documents"] >= SMALL_SOURCE]
    lost = decisions.filter(~pl.col("keep"))
    return {
        "documents": decisions.height,
        "kept": decisions.height - lost.height,
        "clusters": lost["cluster"].n_unique(),
        "exact_duplicates": int((lost["kind"] == "exact").sum()),
        "near_duplicates": int((lost["kind"] == "near").sum()),
        "sources": sources,
        "alarms": alarms,
    }
