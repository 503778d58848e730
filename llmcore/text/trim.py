"""Trim: take out of each page the lines that most pages of its site repeat (`site_lines` has learned which).

A line of `anywhere_words` words and more goes wherever it stands. A shorter one goes only above the first and below
the last line that is the page's own: in a menu it is the site's, further down it may be a heading or the end of a block
of code. `removed/` says of each changed document how many lines and characters went; site_lines holds the lines.
"""

from __future__ import annotations

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, ShardResult, Stage
from llmcore.schema import detail_json, dropped
from llmcore.text.site_lines import LETTER, TABLE, LearnParams, normal_line, site_of

# two characters of a script that puts no spaces between words count as one
WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]{2}|\S+"
REMOVED_SCHEMA = pl.Schema({"id": pl.String, "lines": pl.UInt32, "characters": pl.UInt32})


class TrimParams(Params):
    """Where a repeated line is taken out."""

    anywhere_words: int = Field(3, ge=1, description="a repeated line of fewer words goes at a page's ends only")
    min_characters: int = Field(100, ge=1, description="a page that is left with less text is dropped")


class SiteLinesParams(LearnParams, TrimParams):
    """The `site_lines` section of a configuration; each of the two stages takes its own fields."""


def trim(documents: pl.DataFrame, params: TrimParams, *, site_lines: Files) -> ShardResult:
    """Take the lines out; drop with `only_site_lines` what is left with too little text."""
    known = pl.read_parquet(site_lines.path(TABLE), columns=["site", "line"])
    numbered = documents.with_row_index("row")
    pages = numbered.select("row", "text", site_of()).join(known, on="site", how="semi")
    left = _left(pages, known, params.anywhere_words)
    after = (
        numbered.join(left, on="row", how="left", maintain_order="left")
        .with_columns(text=pl.coalesce("left", "text"))
        .drop("row", "left")
    )
    characters = pl.col("text").str.len_chars()
    short = pl.col("lines").is_not_null() & (characters < params.min_characters)
    detail = detail_json(rule="min_characters", value=characters, threshold=params.min_characters)
    changed = after.filter(pl.col("lines").is_not_null())
    outputs = {
        "kept": after.filter(~short).drop("lines", "characters"),
        "dropped": dropped(after.filter(short), "trim", "only_site_lines", detail),
        "removed": changed.select(REMOVED_SCHEMA.names()).cast(REMOVED_SCHEMA),
    }
    sums = {name: int(changed[name].sum()) for name in ("lines", "characters")}
    return ShardResult(outputs, {"changed": len(changed), **{f"{name}_out": count for name, count in sums.items()}})


def _left(pages: pl.DataFrame, known: pl.DataFrame, anywhere_words: int) -> pl.DataFrame:
    """row, left, lines, characters of the pages that lose something: their text without the lines, and what went."""
    lines = pages.with_columns(before=pl.col("text").str.len_chars(), line=pl.col("text").str.split("\n")).explode(
        "line"
    )
    lines = lines.with_columns(normal=normal_line(pl.col("line")))
    repeated = known.select("site", normal="line", repeated=pl.lit(True))
    lines = lines.join(repeated, on=["site", "normal"], how="left", maintain_order="left")
    lines = lines.with_columns(pl.col("repeated").fill_null(False))
    edge = pl.col("repeated") | ~pl.col("normal").str.contains(LETTER)
    top = edge.cast(pl.UInt8).cum_min().over("row") == 1
    bottom = edge.cast(pl.UInt8).cum_min(reverse=True).over("row") == 1
    long = pl.col("normal").str.count_matches(WORD) >= anywhere_words
    goes = pl.col("repeated") & (long | top | bottom)
    text = pl.col("line").filter(~goes).str.join("\n").str.replace_all(r"\n{3,}", "\n\n").str.strip_chars("\n")
    return (
        lines.group_by("row", maintain_order=True)
        .agg(left=text.str.strip_chars_end(" \t\n"), lines=goes.sum(), before=pl.col("before").first())
        .filter(pl.col("lines") > 0)
        .select("row", "left", "lines", characters=pl.col("before") - pl.col("left").str.len_chars())
    )


STAGE = Stage(
    "trim",
    version=1,
    params=TrimParams,
    function="llmcore.text.trim:trim",
    kind="per_shard",
    broadcast=("site_lines",),
)
