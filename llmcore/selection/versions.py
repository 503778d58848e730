"""Versions: which documents of earlier generations still stand now that later ones have come.

A *version* of a document is another one of the same source at the same place in a later generation: at the same
address, or at the same path of another host where it is also near the older one (a site that moved). The newest
version that reached the split is *current*; every document without an address is. What is current stands, or stands
through the document that dedup kept for it; whatever no current document stands through leaves as `superseded`. So
the text of A stays after A was edited while a copy B of it is current, and after A was renamed to B.

Where a source is configured `gone: drop`, what its newest fetch found gone is current no longer either, and leaves as
`gone` unless something current stands through it. For files of many documents (WARC, Parquet, JSONL) that holds for
each document that the newest state of its file no longer holds.

Nothing is rewritten: `dropped/gNNN.parquet` names the documents of each generation that leave, and `pack` and
`evaluate` pass over them. Tokens, and what was learned from the first snapshot, keep their bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.shards import generation_name, generation_of
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.schema import DROPPED_SCHEMA, detail_json, dropped
from llmcore.selection.dedup import address_hashes
from llmcore.sources.collect import flat

if TYPE_CHECKING:
    from llmcore.selection.words import U64

Kind = Literal["crawl", "warc", "parquet", "jsonl", "text", "html"]

PAGES = ("crawl", "text", "html")  # kinds whose listings name each document's address; the others' name files of many


class VersionsParams(Params):
    gone: dict[str, Kind] = Field(
        default_factory=dict, description="sources whose gone documents leave, and the kind of each"
    )


@dataclass(frozen=True)
class Gone:
    """What the newest listings of sources with `gone: drop` no longer hold.

    pages: address (u64) -> generation whose listing says so. files: shards' stem, with any earlier generation's file in
    it ("g000-notes-a"), -> the generation that replaced or lost that file.
    """

    pages: pl.DataFrame
    files: Mapping[str, int] = field(default_factory=dict)

    def file_of(self, shard: str) -> int | None:
        return self.files.get(shard.removesuffix(".parquet").rpartition("-")[0])


def versions(inputs: Mapping[str, Files], params: VersionsParams, run: Run) -> dict[str, Any]:
    """Write dropped/gNNN.parquet, one a generation: id, stage, reason ("superseded" or "gone") and detail.

    Roles: documents (split's kept/, of which only ids of shards in question are read), decisions (resolve's decisions/
    and places/), and of sources with `gone: drop` fetches and collected (listings, labelled by step).
    Memory: 12 bytes a document with an address, and the rows of documents that have versions or are gone.
    """
    decisions = inputs["decisions"]
    shards = [name.removeprefix("decisions/") for name in decisions.names("decisions/")]
    gone = _gone(inputs, params)
    run.progress(0, 4, "places")
    contested = _contested(decisions, shards)
    run.progress(1, 4, "versions")
    anything = contested.height or gone.pages.height or gone.files
    rows = _occurrences(decisions, shards, contested, gone) if anything else iter(())
    touched = pl.concat([_EMPTY, *(part.filter("touched") for part in rows)]).with_row_index("order")
    run.progress(2, 4, "copies")
    reached, held = _reached(inputs["documents"], decisions, shards, contested, gone, touched)
    run.progress(3, 4, "standing")
    leaving = _leaving(touched.join(reached, left_on="stands", right_on="id", how="semi").sort("order"), held)
    (run.out / "dropped").mkdir()
    for generation in sorted({generation_of(shard) or 0 for shard in shards}):
        part = leaving.filter(pl.col("home") == generation)
        table = dropped(part, "versions", pl.col("reason"), pl.col("detail")) if part.height else _nothing()
        table.write_parquet(run.out / f"dropped/{generation_name(generation)}.parquet", compression="zstd")
    reasons = dict(leaving.group_by("reason").len().iter_rows())
    return {"dropped": leaving.height, "superseded": reasons.get("superseded", 0), "gone": reasons.get("gone", 0)}


def left(files: Files | None) -> pl.DataFrame:
    """The ids of the documents that left (column id), from a `versions` artifact's dropped/."""
    tables = [pl.read_parquet(files.path(name), columns=["id"]) for name in files.names("dropped/")] if files else []
    return pl.concat([_nothing().select("id"), *tables])


_EMPTY = pl.DataFrame(
    schema={
        "id": pl.String,
        "stands": pl.String,  # the document that dedup kept for it
        "cluster": pl.String,
        "place": pl.UInt64,
        "address": pl.UInt64,
        "generation": pl.Int64,
        "gone": pl.Int64,  # the generation that no longer has it, or null
        "shard": pl.String,
        "touched": pl.Boolean,  # has versions, or is gone
    }
)


def _nothing() -> pl.DataFrame:
    return DROPPED_SCHEMA.to_frame()


def _contested(decisions: Files, shards: list[str]) -> pl.DataFrame:
    """Places that more than one generation holds a document of (one column)."""
    seen = pl.DataFrame(schema={"place": pl.UInt64, "generation": pl.Int32})
    parts = [seen]
    for shard in shards:
        places = pl.scan_parquet(decisions.path(f"places/{shard}")).select("place").drop_nulls().unique()
        parts.append(places.with_columns(generation=pl.lit(generation_of(shard) or 0, pl.Int32)).collect())
    return (
        pl.concat(parts)
        .group_by("place")
        .agg(n=pl.col("generation").n_unique())
        .filter(pl.col("n") > 1)
        .select("place")
    )


def _occurrences(decisions: Files, shards: list[str], contested: pl.DataFrame, gone: Gone) -> Iterator[pl.DataFrame]:
    """Every document that reached dedup, shard by shard in order."""
    contested, pages = contested.with_columns(contested=True), gone.pages
    for shard in shards:
        file = gone.file_of(shard)
        table = pl.concat(
            [
                pl.read_parquet(decisions.path(f"decisions/{shard}"), columns=["id", "cluster", "duplicate_of"]),
                pl.read_parquet(decisions.path(f"places/{shard}")),
            ],
            how="horizontal",
        )
        yield (
            table.join(contested, on="place", how="left", maintain_order="left")
            .join(pages, on="address", how="left", maintain_order="left")
            .select(
                "id",
                pl.coalesce("duplicate_of", "id").alias("stands"),
                "cluster",
                "place",
                "address",
                pl.lit(generation_of(shard) or 0, pl.Int64).alias("generation"),
                pl.coalesce(pl.lit(file, pl.Int64), "gone").alias("gone"),
                pl.lit(shard).alias("shard"),
                (pl.col("contested").fill_null(False) | pl.col("gone").is_not_null() | pl.lit(file is not None)).alias(
                    "touched"
                ),
            )
        )


def _reached(
    documents: Files, decisions: Files, shards: list[str], contested: pl.DataFrame, gone: Gone, touched: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Of the documents that touched ones stand through: those that reached the split; those that others need too."""
    from llmcore.selection.words import string_hashes

    wanted = touched.select(id="stands").unique()
    if not touched.height:
        return wanted, wanted
    kept, hashes = set(documents.names("kept/")), np.sort(string_hashes(wanted["id"]))
    reached, held = [wanted.head(0)], [wanted.head(0)]
    for shard, rows in zip(shards, _occurrences(decisions, shards, contested, gone), strict=True):
        held.append(_among(rows.filter(~pl.col("touched")).select(id="stands"), hashes))
        if f"kept/{shard}" in kept and _among(rows.select("id"), hashes).height:
            split = pl.read_parquet(documents.path(f"kept/{shard}"), columns=["id"])
            reached.append(_among(split, hashes))
    return pl.concat(reached).join(wanted, on="id", how="semi"), pl.concat(held).join(wanted, on="id", how="semi")


def _among(ids: pl.DataFrame, hashes: U64) -> pl.DataFrame:
    """The ids whose hashes are among these, which are sorted: quick for every shard, exact but for colliding hashes."""
    from llmcore.selection.words import string_hashes

    found = string_hashes(ids["id"])
    places = np.searchsorted(hashes, found)
    return ids.filter(hashes[np.minimum(places, len(hashes) - 1)] == found)


def _leaving(reached: pl.DataFrame, held: pl.DataFrame) -> pl.DataFrame:
    """The documents that nothing current stands through: id, home (generation of its shard), reason, detail.

    reached: touched documents, in order, that reached the split, themselves or by the one kept for them.
    """
    newest = pl.max_horizontal(
        pl.col("generation").max().over("address"), pl.col("generation").max().over("place", "cluster")
    )
    judged = reached.with_columns(
        outdated=pl.col("address").is_not_null() & (pl.col("generation") < newest),
        home=pl.col("generation").min().over("id"),  # a document that came again is kept where it came first
    )
    current = judged.filter(~pl.col("outdated") & pl.col("gone").is_null())
    stays = pl.concat([current.select(id="stands"), held])
    leaving = judged.filter(pl.col("id") == pl.col("stands")).join(stays, on="id", how="anti").sort("order")
    leaving = leaving.unique("id", keep="last", maintain_order=True)
    by = pl.col("by").is_not_null()
    superseded = detail_json(superseded_by=pl.col("by"), generation=_named("by_generation"))
    return (
        leaving.join(_successors(leaving, reached), on="id", how="left", maintain_order="left")
        .sort("home", maintain_order=True)
        .select(
            "id",
            "home",
            reason=pl.when(by).then(pl.lit("superseded")).otherwise(pl.lit("gone")),
            detail=pl.when(by).then(superseded).otherwise(detail_json(generation=_named("gone"))),
        )
    )


def _successors(leaving: pl.DataFrame, reached: pl.DataFrame) -> pl.DataFrame:
    """id -> by, by_generation: the next version of each, the one in its own cluster where that generation has many."""
    later = reached.select("order", "place", "address", "cluster", by="id", by_generation="generation")
    old = leaving.filter("outdated").select("id", "generation", "place", "address", near="cluster")
    same_address = old.join(later, on="address")
    moved = old.join(later, left_on=["place", "near"], right_on=["place", "cluster"]).with_columns(cluster="near")
    columns = ["id", "generation", "near", "order", "cluster", "by", "by_generation"]
    return (
        pl.concat([same_address.select(columns), moved.select(columns)])
        .filter(pl.col("by_generation") > pl.col("generation"))
        .sort("by_generation", pl.col("cluster") != pl.col("near"), "order")
        .unique("id", keep="first", maintain_order=True)
        .select("id", "by", "by_generation")
    )


def _named(column: str) -> pl.Expr:
    return pl.format("g{}", pl.col(column).cast(pl.String).str.zfill(3))


def _gone(inputs: Mapping[str, Files], params: VersionsParams) -> Gone:
    """Read the listings of the sources whose gone documents leave."""
    files: dict[str, int] = {}
    last: dict[tuple[str, str], tuple[str, int]] = {}
    for source, generation, place, outcome in _listed(inputs):
        before = last.get((source, place))
        replaced = before is not None and before[0] != "gone" and outcome != "unchanged"
        if before is not None and replaced and params.gone[source] not in PAGES:
            files[_stem(source, place, params.gone[source], before[1])] = generation
        if before is None or before[0] == "gone" or outcome != "unchanged":
            last[source, place] = (outcome, generation)
    pages = [
        (source, place, generation)
        for (source, place), (outcome, generation) in last.items()
        if outcome == "gone" and params.gone[source] in PAGES
    ]
    table = pl.DataFrame(pages, schema={"source": pl.String, "url": pl.String, "gone": pl.Int64}, orient="row")
    return Gone(table.select(address_hashes(table["source"], table["url"]).alias("address"), "gone"), files)


def _listed(inputs: Mapping[str, Files]) -> Iterator[tuple[str, int, str, str]]:
    """(source, generation, URL or file, outcome) of every listing, oldest first; of fetches those that tell."""
    telling = ("fetched", "unchanged", "gone", "new", "changed")
    for role, column in (("fetches", "url"), ("collected", "name")):
        if role not in inputs:
            continue
        for name in inputs[role].names():
            # "crawl manual/fetches/g000.parquet": steps that fetch are named by stage and source
            source, generation = PurePosixPath(name).parts[0].partition(" ")[2], generation_of(name) or 0
            table = pl.scan_parquet(inputs[role].path(name)).filter(pl.col("outcome").is_in(telling))
            for place, outcome in table.select(column, "outcome").collect().iter_rows():
                yield source, generation, place, outcome


def _stem(source: str, file: str, kind: Kind, generation: int) -> str:
    return f"{generation_name(generation)}-{source}-{flat(file, kind).split('.', 1)[0]}"


STAGE = Stage(
    "versions",
    version=1,
    role="versions",
    params=VersionsParams,
    function="llmcore.selection.versions:versions",
)
