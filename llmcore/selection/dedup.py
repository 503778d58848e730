"""Exact and near-duplicate removal: MinHash signatures, LSH banding, keep the first document of each cluster.

Three stages. `signatures` (per shard) fingerprints the documents, `resolve` (global) decides, `dedup` (per shard) acts.
Only `resolve` needs all shards at once, and it decides in the order of the shards: shards added at the end
never change an earlier decision file by one byte.

Method: MinHash as in `llmcore.selection.minhash`; every member of a cluster is checked against the document that is
kept for it (star clusters). Transitive closure over unverified candidates is known to swallow whole sources. Signatures
of 112 entries err by some 0.04; where the estimate is near the threshold, the shingles of the two documents decide, as
in OLMo 3, and are made for those documents alone.

An edited document is no duplicate of what it was: a newer version (same source and place, a later generation, another
id) is kept although it is near the older one, or has its address, and gets the older one's cluster, so that both fall
into the same split. Which of them stands in the end is for `versions` to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.shards import generation_of
from llmcore.artifacts.stage import Files, Run, ShardResult, Stage
from llmcore.errors import LlmcoreError
from llmcore.schema import dropped, place_of

if TYPE_CHECKING:
    from llmcore.selection.minhash import Places, Stars

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
        description="Jaccard similarity with the kept document that makes a duplicate",
    )
    verify_within: float = Field(
        default=0.1, ge=0, le=1, description="estimates so near the threshold give way to the true similarity"
    )
    shingle_words: int = Field(default=5, ge=1, le=100, description="words in a shingle")
    alarm_share: float = Field(default=0.5, gt=0, le=1, description="share lost by one source that raises an alarm")


class DedupParams(SignatureParams, ResolveParams):
    """The `dedup` section of a configuration; each stage takes its own fields: a new threshold redoes no signature."""


class KeepParams(Params):
    """Carrying out decisions has no settings."""


SIGNATURES = Stage(
    "signatures",
    version=2,
    params=SignatureParams,
    function="llmcore.selection.dedup:signatures",
    kind="per_shard",
    partition=("signatures",),
)
RESOLVE = Stage("resolve", version=3, params=ResolveParams, function="llmcore.selection.dedup:resolve")
STAGE = Stage(
    "dedup",
    version=1,
    params=KeepParams,
    function="llmcore.selection.dedup:dedup",
    kind="per_shard",
    aligned={"decisions": "decisions"},
)


def signatures(documents: pl.DataFrame, params: SignatureParams) -> ShardResult:
    """One row a document: id, source, place (u64 of source and path), address (u64 of source and URL), text (u64 of its
    bytes), content (u64 of its words), shingles, band_NN (u64), signature (u32 array).

    place and address are null where a document has no URL.
    """
    from llmcore.selection.minhash import signatures_of
    from llmcore.selection.words import string_hashes

    signature, keys, content, shingles = signatures_of(
        documents["text"], params.shingle_words, params.bands, params.rows, params.seed
    )
    places = pl.Series([None if url is None else place_of(url) for url in documents["url"]], dtype=pl.String)
    table = documents.select("id", "source").with_columns(
        address_hashes(documents["source"], places).alias("place"),
        address_hashes(documents["source"], documents["url"]).alias("address"),
        pl.Series("text", string_hashes(documents["text"])),
        pl.Series("content", content),
        pl.Series("shingles", shingles),
        *[pl.Series(f"band_{band:02}", keys[:, band]) for band in range(params.bands)],
        pl.Series("signature", signature, dtype=pl.Array(pl.UInt32, params.bands * params.rows)),
    )
    return ShardResult({"signatures": table}, {"documents": table.height})


def address_hashes(source: pl.Series, address: pl.Series) -> pl.Series:
    """One u64 a row of a source's name and an address in it; null where there is no address."""
    from llmcore.selection.words import string_hashes

    table = pl.DataFrame({"source": source, "address": address.cast(pl.String)})
    joined = table.select(pl.format("{}\0{}", "source", pl.col("address").fill_null("")))["source"]
    return table.select(pl.when(pl.col("address").is_not_null()).then(pl.Series(string_hashes(joined)))).to_series()


def resolve(inputs: Mapping[str, Files], params: ResolveParams, run: Run) -> dict[str, Any]:
    """Write decisions/<shard>: id, cluster, keep, duplicate_of, jaccard, kind ("exact", "near" or null), and
    places/<shard>: place, address, row by row beside it.

    One row a document; `cluster` is the id of the document that is kept for it, or of the oldest version of that one.
    Inputs: signatures, and the documents that they are of.
    Memory: 4 bytes a document and band (keys are read one band at a time), one signature for each document that shares
    a band with another, and the text of one shard; the shingles in question lie on disk.
    """
    files = inputs["signatures"]
    names = [name for name in files.names("signatures/") if name.endswith(".parquet")]
    if not names:
        raise LlmcoreError("resolve: the signatures hold no shard; check that the stages before it kept documents")
    columns = pl.read_parquet_schema(files.path(names[0]))
    bands = [name for name in columns if name.startswith("band_")]
    parts = []
    for name in names:
        part = pl.read_parquet(files.path(name), columns=["id", "source", "shingles", "place", "address", "text"])
        parts.append(part.with_columns(generation=pl.lit(generation_of(name) or 0, pl.Int64)))
    head, heights = pl.concat(parts).with_row_index("row"), [part.height for part in parts]
    run.progress(0, len(bands) + 2, "grouping")

    buckets, content = _buckets(files, names, bands, head["shingles"].to_numpy() > 0, run)
    rows = np.flatnonzero((buckets >= 0).any(axis=1) | (content >= 0))
    candidates = Candidates(names, np.cumsum([0, *heights]), rows, head["id"])
    decided = _decide(inputs, candidates, buckets[rows], content[rows], params, _places(head, rows), run)
    kept, jaccard, same, older, _ = decided

    target = np.arange(head.height)
    target[rows] = rows[kept]
    keep = target == np.arange(head.height)
    parent = _before(head)
    parent[rows] = np.where(older >= 0, rows[older], parent[rows])
    similarity = np.ones(head.height, np.float32)
    similarity[rows] = jaccard
    exact = np.zeros(head.height, bool)
    exact[rows] = same
    ids = head["id"]
    cluster, duplicate_of = ids.gather(_clusters(target, parent)), ids.gather(target)
    decisions = pl.DataFrame({"id": ids, "cluster": cluster, "keep": keep, "duplicate_of": duplicate_of}).select(
        "id",
        "cluster",
        "keep",
        pl.when(~pl.col("keep")).then("duplicate_of").alias("duplicate_of"),
        pl.when(~pl.col("keep")).then(pl.Series(similarity)).alias("jaccard"),
        pl.when(~pl.col("keep"))
        .then(pl.when(pl.Series(exact)).then(pl.lit("exact")).otherwise(pl.lit("near")))
        .alias("kind"),
    )
    for folder, table in (("decisions", decisions), ("places", head.select("place", "address"))):
        (run.out / folder).mkdir()
        first = 0
        for name, height in zip(names, heights, strict=True):
            path = run.out / folder / name.removeprefix("signatures/")
            table.slice(first, height).write_parquet(path, compression="zstd")
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


@dataclass(frozen=True)
class Candidates:
    """Documents that share a band with another: their rows in all shards, of which shard i begins at row ends[i]."""

    names: list[str]
    ends: np.ndarray
    rows: np.ndarray
    ids: pl.Series

    def by_shard(self, chosen: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Name of a shard, which candidates of `chosen` lie in it, and in which of its rows."""
        bounds = np.searchsorted(self.rows[chosen], self.ends)
        for index, name in enumerate(self.names):
            own = chosen[bounds[index] : bounds[index + 1]]
            if len(own):
                yield name, own, self.rows[own] - self.ends[index]


def _decide(
    inputs: Mapping[str, Files],
    candidates: Candidates,
    buckets: np.ndarray,
    content: np.ndarray,
    params: ResolveParams,
    places: Places,
    run: Run,
) -> Stars:
    """Star clusters of the candidates, which are indexes among themselves.

    Decides anew, with the shingles of what was in question, until nothing is.
    """
    from llmcore.selection.minhash import Enough, Stars, stars
    from llmcore.selection.shingles import Shingles

    signature = _signature(inputs["signatures"], candidates)
    if not len(signature):
        none = np.zeros(0, np.int64)
        return Stars(none, none.astype(np.float64), none.astype(bool), none, none.astype(bool))
    size = signature.shape[1]
    low, high = params.threshold - params.verify_within, params.threshold + params.verify_within
    enough = Enough(
        params.threshold - 1e-9,
        math.ceil(params.threshold * size - 1e-9),
        math.ceil(low * size - 1e-9),
        math.floor(high * size + 1e-9),
    )
    shingles = Shingles(run.scratch / "shingles", len(signature), params.shingle_words)
    while (decided := stars(signature, buckets, content, enough, places, shingles.mapped())).missing.any():
        missing = decided.missing & (shingles.first < 0)
        for name, own, rows in candidates.by_shard(np.flatnonzero(missing)):
            shingles.add(own, _texts(inputs["documents"], name, rows, candidates.ids.gather(candidates.rows[own])))
            run.progress(1, 2, f"comparing {name}")
    shingles.close()
    return decided


def _signature(files: Files, candidates: Candidates) -> np.ndarray:
    parts = [
        pl.read_parquet(files.path(name), columns=["signature"])["signature"].gather(rows).to_numpy()
        for name, _, rows in candidates.by_shard(np.arange(len(candidates.rows)))
    ]
    return np.ascontiguousarray(np.concatenate(parts), np.uint32) if parts else np.zeros((0, 0), np.uint32)


def _texts(documents: Files, name: str, rows: np.ndarray, ids: pl.Series) -> pl.Series:
    """The texts of rows of a shard, which are the documents `ids`."""
    shard = name.replace("signatures/", "kept/", 1)
    found = pl.read_parquet(documents.path(shard), columns=["id", "text"])[rows]
    if not found["id"].equals(ids):
        raise LlmcoreError(
            f"resolve: {shard} holds other documents than its signatures; run the signatures stage again"
        )
    return found["text"]


def _places(head: pl.DataFrame, rows: np.ndarray) -> Places:
    """What tells versions from copies, of the candidates `rows`; a document repeats the first with its id, or with its
    bytes at its place, that an earlier generation holds."""
    from llmcore.selection.minhash import Places
    from llmcore.selection.words import string_hashes

    def first(*names: str) -> pl.Expr:
        earlier = pl.col("generation").first().over(*names) < pl.col("generation")
        return pl.when(earlier).then(pl.col("row").first().over(*names))

    chosen = head[rows].with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
    by_text = pl.when(pl.col("place").is_not_null()).then(first("place", "text"))
    return Places(
        chosen["place"].fill_null(0).to_numpy(),
        string_hashes(chosen["id"]),
        chosen["generation"].to_numpy(),
        chosen.select(pl.coalesce(first("id"), by_text).fill_null(-1)).to_series().to_numpy(),
    )


def _before(head: pl.DataFrame) -> np.ndarray:
    """The last document that an earlier generation holds at the same address, or -1; one value a row."""
    addressed = head.lazy().filter(pl.col("address").is_not_null()).select("row", "address", "generation")
    several = addressed.filter(pl.col("generation").n_unique().over("address") > 1)
    last = several.group_by("address", "generation").agg(pl.col("row").last().alias("last")).sort("generation")
    before = last.with_columns(before=pl.col("last").shift(1).over("address")).drop_nulls("before")
    found = several.join(before, on=["address", "generation"]).select("row", "before").collect()
    parent = np.full(head.height, -1, np.int64)
    parent[found["row"].to_numpy()] = found["before"].to_numpy()
    return parent


def _clusters(target: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """The document that names each one's cluster: the oldest version of the one that is kept for it."""
    root = np.arange(len(target))
    for row in np.flatnonzero((parent >= 0) & (target == root)):
        root[row] = root[target[parent[row]]]  # rows are in order, so the older version has its own by now
    return root[target]


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
        "versions": int((decisions["keep"] & (decisions["cluster"] != decisions["id"])).sum()),
        "sources": sources,
        "alarms": alarms,
    }
