"""Site lines: the lines that most pages of a site repeat, such as its tagline, menu and footer, learned once a site.

Method: document frequency of whole lines, after CCNet (Wenzek et al. 2020, arXiv 1911.00359), which takes out every
paragraph that it has seen before; here a line must stand on at least `share` of the site's pages, so that what two
pages quote stays. A site is the host of a page's address, or the source where pages have none; text files form no site.

Learned from the first snapshot only, so that a refresh changes nothing that was trimmed before. Memory: pages are
counted first (a number a site), then the lines of at most about `sample_pages` pages of each site, those with the
lowest ids, which are hashes. Sites take part largest first as long as their lines fit in LINES_HELD; `sites_left_out`
says how many did not. Copies of one page count once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, Stage

TABLE = "lines.parquet"
LINES_HELD = 1 << 25  # counted at once: about 1 GB
ID_DIGITS = 8  # hex digits of an id that draw the sample
LETTER = r"\p{L}"  # a line without one is a rule, a number, a brace
SCHEMA = pl.Schema({"site": pl.String, "line": pl.String, "pages": pl.UInt32, "share": pl.Float64})


class LearnParams(Params):
    """What counts as a line of the site instead of the page."""

    share: float | None = Field(
        0.5, gt=0, le=1, description="a line on at least this share of a site's pages is the site's; null: none is"
    )
    min_pages: int = Field(10, ge=2, description="of a site with fewer different pages nothing is learned")
    sample_pages: int = Field(1000, ge=100, description="pages of a site that are looked at, at most")


def learn(inputs: Mapping[str, Files], params: LearnParams, run: Run) -> Mapping[str, Any]:
    """Write lines.parquet (site, line, pages, share) in order of site and line. Inputs: documents (kept/)."""
    found, metrics = SCHEMA.to_frame(), {"sites": 0, "sites_left_out": 0, "pages": 0}
    if params.share is not None:
        sites = _sites(inputs["documents"], params)
        chosen = sites.filter(pl.col("lines").cum_sum() <= LINES_HELD)
        pages, counts = _counted(inputs["documents"], chosen, params, run)
        repeated = (
            counts.join(pages.group_by("site").agg(all=pl.len()), on="site")
            .filter(pl.col("all") >= params.min_pages, pl.col("pages") / pl.col("all") >= params.share)
            .with_columns(share=(pl.col("pages") / pl.col("all")).round(6))
        )
        found = _with_text(inputs["documents"], repeated)
        metrics = {"sites": len(chosen), "sites_left_out": len(sites) - len(chosen), "pages": len(pages)}
    found.write_parquet(run.out / TABLE, compression="zstd")
    return {**metrics, "sites_with_lines": found["site"].n_unique(), "lines": len(found)}


def site_of() -> pl.Expr:
    """The site that a document belongs to: host, or source of a page without one; null for what is no page."""
    host = pl.col("url").str.extract(r"^(?i:https?)://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]+)").str.to_lowercase()
    page = pl.col("metadata").str.contains('"extracted_from"', literal=True).fill_null(False)
    return pl.coalesce(host, pl.when(page).then(pl.col("source"))).alias("site")


def normal_line(line: pl.Expr) -> pl.Expr:
    """What two lines are compared by: without indentation, bullet and number of the list."""
    return line.str.strip_chars().str.replace(r"^(?:[•*·–-]|\d+\.)\s+", "")


def _sites(documents: Files, params: LearnParams) -> pl.DataFrame:
    """Sites with enough pages, largest first: site, pages, lines of the sample (about)."""
    counts = pl.DataFrame(schema={"site": pl.String, "pages": pl.Int64, "lines": pl.Int64})
    for name in documents.names("kept/"):
        shard = pl.scan_parquet(documents.path(name)).select(site_of(), lines=_line_count()).drop_nulls("site")
        sums = shard.group_by("site").agg(pages=pl.len().cast(pl.Int64), lines=pl.col("lines").sum())
        counts = pl.concat([counts, sums.collect()]).group_by("site").sum()
    sampled = pl.min_horizontal(1.0, params.sample_pages / pl.col("pages"))
    return (
        counts.filter(pl.col("pages") >= params.min_pages)
        .with_columns(lines=(pl.col("lines") * sampled).ceil().cast(pl.Int64))
        .sort("pages", "site", descending=[True, False])
    )


def _line_count() -> pl.Expr:
    return pl.col("text").str.count_matches("\n", literal=True).cast(pl.Int64) + 1


def _counted(documents: Files, sites: pl.DataFrame, params: LearnParams, run: Run) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(site, page) of the different pages looked at, and (site, line, pages): on how many of these a line stands.

    `page` and `line` are hashes that hold within this process; none is written.
    """
    pages = pl.DataFrame(schema={"site": pl.String, "page": pl.UInt64})
    counts = pl.DataFrame(schema={"site": pl.String, "line": pl.UInt64, "pages": pl.UInt32})
    waiting, names = [counts], documents.names("kept/")
    for number, name in enumerate(names):
        run.progress(number, len(names), f"lines of {len(sites)} sites")
        sample = _sampled(documents, name, sites, params).with_columns(page=pl.col("text").hash(seed=1))
        new = sample.unique(["site", "page"], keep="first").join(pages, on=["site", "page"], how="anti")
        pages = pl.concat([pages, new.select("site", "page")])
        lines = new.select("site", "page", line=_lines()).explode("line").filter(pl.col("line").str.contains(LETTER))
        hashed = lines.with_columns(pl.col("line").hash(seed=2)).unique()
        waiting.append(hashed.group_by("site", "line").agg(pages=pl.len().cast(pl.UInt32)))
        if sum(len(part) for part in waiting[1:]) > len(waiting[0]):
            waiting = [_summed(waiting)]
    return pages, _summed(waiting)


def _summed(parts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(parts).group_by("site", "line").agg(pl.col("pages").sum())


def _sampled(documents: Files, name: str, sites: pl.DataFrame, params: LearnParams) -> pl.DataFrame:
    """site and text of a shard's pages that are looked at."""
    shard = pl.scan_parquet(documents.path(name)).select("id", "text", site_of())
    rank = pl.col("id").str.head(ID_DIGITS).str.to_integer(base=16, dtype=pl.Int64) / 16**ID_DIGITS
    drawn = shard.join(sites.lazy().select("site", total="pages"), on="site", maintain_order="left")
    return drawn.filter(rank * pl.col("total") < params.sample_pages).select("site", "text").collect()


def _lines() -> pl.Expr:
    return pl.col("text").str.split("\n").list.eval(normal_line(pl.element()))


def _with_text(documents: Files, repeated: pl.DataFrame) -> pl.DataFrame:
    """The lines themselves, looked up where they stand, until each is found."""
    found = SCHEMA.to_frame()
    for line in _looked_up(documents, repeated.select("site")):
        if len(found) == len(repeated):
            break
        hashed = line.with_columns(hash=pl.col("line").hash(seed=2))
        facts = hashed.join(repeated.rename({"line": "hash"}), on=["site", "hash"])
        new = facts.select(SCHEMA.names()).cast(SCHEMA)
        found = pl.concat([found, new]).unique(["site", "line"])
    return found.sort("site", "line")


def _looked_up(documents: Files, sites: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """site, line: the different lines of a shard, a shard at a time."""
    for name in documents.names("kept/"):
        shard = pl.scan_parquet(documents.path(name)).select("text", site_of())
        pages = shard.join(sites.lazy().unique(), on="site", how="semi")
        yield pages.select("site", line=_lines()).explode("line").unique().collect()


STAGE = Stage("site_lines", version=1, params=LearnParams, function="llmcore.text.site_lines:learn", partition=())
