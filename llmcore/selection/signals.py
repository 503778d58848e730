"""Signals: every number that the quality rules compare, once for every document, beside its id.

Sources: Gopher (Rae et al. 2021, arXiv 2112.11446, A1.1), C4 (Raffel et al. 2020), FineWeb (Penedo et al. 2024). The
split into signals here and decisions in `quality` is RedPajama-V2's: a changed threshold recomputes nothing here.

Definitions, where tools differ:

* A *word* is what stands between white space, as in Gopher's paper; `words: tokens` takes datatrove's sense instead
  (each punctuation mark is a word), by which Gopher's "80 % of words hold a letter" drops three quarters of technical
  documentation.
* A *line* ends at a line feed and is not blank; a *paragraph* ends at two or more.
* *Duplicate* lines, paragraphs and 5- to 10-grams are datatrove's: what comes after the first occurrence counts;
  n-grams are read left to right, and a hit is jumped over. Their characters are those of the words alone.
* The *top* n-gram is the most frequent one (the first of equals); its occurrences count, with the spaces inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import ShardResult, Stage

BATCH_BYTES = 32 << 20  # text whose words are in memory at once

WORD = r"\S+"
TOKEN = r"[\w]+(?:[-'’.]\w+)*|[^\w\s]"
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLETS = r"^[ \t]*(?:[•●‣⁃◦▪∙·*\-–—] |•)"
ELLIPSIS = r"(?:\.\.\.|…)$"
TERMINAL = r"[.!?。！？…;:]?[.!?。！？…][\"'”’»)\]*]*$|[\"”]$"
SENTENCE = r"[.!?][\"'”’)\]]*(?:\s|$)|[。！？]"
POLICY = (
    r"(?i)\b(?:terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies)\b"  # C4's phrases
)
SHORT_LINE = 30
TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)

SIGNALS_SCHEMA = pl.Schema(
    {
        "id": pl.String(),
        "characters": pl.Int64(),
        "words": pl.Int64(),
        "lines": pl.Int64(),
        "mean_word_length": pl.Float64(),  # characters
        "longest_word": pl.Int64(),  # characters
        "alpha_words": pl.Float64(),  # share of words with a letter
        "stop_words": pl.Int64(),  # how many of Gopher's eight occur
        "hashes_per_word": pl.Float64(),
        "ellipses_per_word": pl.Float64(),
        "bullet_lines": pl.Float64(),  # shares of lines
        "ellipsis_lines": pl.Float64(),
        "terminal_lines": pl.Float64(),
        "short_lines": pl.Float64(),
        "duplicate_lines": pl.Float64(),
        "duplicate_line_characters": pl.Float64(),  # shares of characters
        "duplicate_paragraphs": pl.Float64(),
        "duplicate_paragraph_characters": pl.Float64(),
        "newlines_per_word": pl.Float64(),
        "sentences": pl.Int64(),
        "curly_brackets": pl.Int64(),
        "lorem_ipsum": pl.Int64(),
        "javascript_lines": pl.Float64(),
        "policy_lines": pl.Float64(),
        **{f"top_{n}_gram_characters": pl.Float64() for n in TOP_NGRAMS},
        **{f"duplicate_{n}_gram_characters": pl.Float64() for n in DUPLICATE_NGRAMS},
    }
)


class SignalsParams(Params):
    """What is counted."""

    words: Literal["whitespace", "tokens"] = Field("whitespace", description="what a word is; see the module")


def signals(documents: pl.DataFrame, params: SignalsParams) -> ShardResult:
    """One row of SIGNALS_SCHEMA for each document, in their order."""
    parts = [measure(batch, params) for batch in _batches(documents.select("id", "text"))]
    return ShardResult({"signals": pl.concat([pl.DataFrame(schema=SIGNALS_SCHEMA), *parts])})


def measure(documents: pl.DataFrame, params: SignalsParams) -> pl.DataFrame:
    """The signals of documents (id, text)."""
    numbered = documents.with_row_index("row")
    words = _exploded(numbered, pl.col("text").str.extract_all(TOKEN if params.words == "tokens" else WORD))
    measured = (
        numbered.select(
            "row",
            "id",
            characters=pl.col("text").str.len_chars().cast(pl.Int64),
            newlines=pl.col("text").str.count_matches("\n", literal=True),
            hashes=pl.col("text").str.count_matches("#", literal=True),
            ellipses=pl.col("text").str.count_matches(r"\.\.\.|…"),
            sentences=pl.col("text").str.count_matches(SENTENCE).cast(pl.Int64),
            curly_brackets=pl.col("text").str.count_matches("{", literal=True).cast(pl.Int64),
            lorem_ipsum=pl.col("text").str.count_matches("(?i)lorem ipsum").cast(pl.Int64),
        )
        .join(_of_words(words), on="row", how="left", maintain_order="left")
        .join(
            _of_lines(_exploded(numbered, pl.col("text").str.split("\n"))), on="row", how="left", maintain_order="left"
        )
        .join(
            _duplicates(
                _exploded(numbered, pl.col("text").str.replace_all("\n{2,}", "\0").str.split("\0")), "paragraph"
            ),
            on="row",
            how="left",
            maintain_order="left",
        )
        .with_columns(pl.col("words").fill_null(0).cast(pl.Int64))
    )
    per_word = pl.max_horizontal("words", pl.lit(1))
    per_character = pl.max_horizontal("characters", pl.lit(1))
    return (
        pl.concat([measured, _ngrams(words, len(numbered))], how="horizontal")
        .with_columns(
            hashes_per_word=pl.col("hashes") / per_word,
            ellipses_per_word=pl.col("ellipses") / per_word,
            newlines_per_word=pl.col("newlines") / per_word,
            duplicate_line_characters=pl.col("duplicate_line_characters") / per_character,
            duplicate_paragraph_characters=pl.col("duplicate_paragraph_characters") / per_character,
            **{name: pl.col(name) / per_character for name in SIGNALS_SCHEMA if name.endswith("gram_characters")},
        )
        .select(SIGNALS_SCHEMA.names())
        .with_columns(pl.exclude("id").fill_null(0))
        .cast(SIGNALS_SCHEMA)
    )


def _of_words(words: pl.DataFrame) -> pl.DataFrame:
    bare = pl.col("part").str.to_lowercase().str.strip_chars(".,;:!?\"'()[]“”‘’")
    stop = bare.is_in(STOP_WORDS)
    return (
        words.with_columns(
            length=pl.col("part").str.len_chars(),
            letter=pl.col("part").str.contains(r"\p{L}"),
            stop=pl.when(stop).then(bare),
        )
        .group_by("row", maintain_order=True)
        .agg(
            words=pl.len(),
            mean_word_length=pl.col("length").mean(),
            longest_word=pl.col("length").max(),
            alpha_words=pl.col("letter").mean(),
            stop_words=pl.col("stop").drop_nulls().n_unique(),
        )
    )


def _of_lines(lines: pl.DataFrame) -> pl.DataFrame:
    line = pl.col("part").str.strip_chars_end()
    shares = (
        lines.with_columns(
            bullet=line.str.contains(BULLETS),
            ellipsis=line.str.contains(ELLIPSIS),
            terminal=line.str.contains(TERMINAL),
            short=pl.col("part").str.len_chars() <= SHORT_LINE,
            javascript=line.str.contains("(?i)javascript"),
            policy=line.str.contains(POLICY),
        )
        .group_by("row", maintain_order=True)
        .agg(
            lines=pl.len(),
            bullet_lines=pl.col("bullet").mean(),
            ellipsis_lines=pl.col("ellipsis").mean(),
            terminal_lines=pl.col("terminal").mean(),
            short_lines=pl.col("short").mean(),
            javascript_lines=pl.col("javascript").mean(),
            policy_lines=pl.col("policy").mean(),
        )
    )
    return shares.join(_duplicates(lines, "line"), on="row", how="left", maintain_order="left")


def _duplicates(parts: pl.DataFrame, name: str) -> pl.DataFrame:
    """Share of the parts that repeat an earlier one, and how many characters those have."""
    repeated = ~pl.struct("row", "part").is_first_distinct()
    return (
        parts.with_columns(repeated=repeated, length=pl.col("part").str.len_chars())
        .group_by("row", maintain_order=True)
        .agg(
            (pl.col("repeated").mean()).alias(f"duplicate_{name}s"),
            (pl.col("length").filter("repeated").sum()).alias(f"duplicate_{name}_characters"),
        )
    )


def _ngrams(words: pl.DataFrame, rows: int) -> pl.DataFrame:
    """Characters in top and in duplicate n-grams of each row."""
    from llmcore.selection.ngrams import repetition

    return repetition(words["row"], words["part"], rows, TOP_NGRAMS, DUPLICATE_NGRAMS)


def _exploded(numbered: pl.DataFrame, parts: pl.Expr) -> pl.DataFrame:
    """One line for each part (word, line, paragraph) that is not blank: row, part."""
    return (
        numbered.select("row", part=parts)
        .explode("part")
        .filter(pl.col("part").is_not_null() & (pl.col("part").str.strip_chars() != ""))
    )


def _batches(documents: pl.DataFrame) -> Iterator[pl.DataFrame]:
    group = documents["text"].str.len_bytes().cast(pl.Int64).cum_sum() // BATCH_BYTES
    for _, batch in documents.with_columns(group=group).group_by("group", maintain_order=True):
        yield batch.drop("group")


STAGE = Stage(
    "signals",
    version=1,
    params=SignalsParams,
    function="llmcore.selection.signals:signals",
    kind="per_shard",
    partition=("signals",),
)
