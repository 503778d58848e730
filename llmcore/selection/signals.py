"""Signals: every number that the quality rules compare, once for every document, beside its id.

Sources: Gopher (Rae et al. 2021, arXiv 2112.11446, A1.1), C4 (Raffel et al. 2020), FineWeb (Penedo et al. 2024). The
split into signals here and decisions in `quality` is RedPajama-V2's: a changed threshold recomputes nothing here.

Definitions, where tools differ:

* A *word* is what stands between white space, as in Gopher's paper. `words: tokens` takes datatrove's sense instead:
  text and punctuation marks apart, where marks alone are no words, but count in every share of words; by it Gopher's
  "80 % of words hold a letter" drops three quarters of technical documentation.
* In a language that puts no spaces between words, the *unit* is a letter with its marks, and so many of them are a word
  as say in a parallel text what an English word says (`llmcore.text.languages`): 1.5 Chinese, 4.2 Thai ones. An n-gram
  of words is one of so many times n letters, and words have no mean length.
* A *line* ends at a line feed and is not blank; a *paragraph* ends at two or more. A line is *short* if it has no more
  text than 30 characters of English.
* A *sentence* ends in a mark of Unicode's Sentence_Terminal, those of ASCII before white space, and where a line ends;
  in Thai and Lao also at a space.
* *Duplicate* lines, paragraphs and 5- to 10-grams are datatrove's: what comes after the first occurrence counts;
  n-grams are read left to right, and a hit is jumped over. Their characters are those of the words alone.
* The *top* n-gram is the most frequent one (the first of equals); its occurrences count, with the spaces inside.
* A signal that says nothing of a document's language is null, and no rule judges by it: stop words where there is no
  list, ends of lines where sentences end in no mark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import ShardResult, Stage
from llmcore.text import languages
from llmcore.text.languages import ETHIOPIC_SPACE, UNSPACED, UNSPACED_LETTER, Language

BATCH_BYTES = 32 << 20  # text whose words are in memory at once

WORD = rf"[^\s{ETHIOPIC_SPACE}]+"
TOKEN = r"\d+(?:[.,:]\d+)+|\w+(?:\.\w+)*|['’]\w+|[^\w\s]"
CHARACTER = rf"\p{{P}}*{UNSPACED_LETTER}\p{{M}}*\p{{P}}*|[^\s{UNSPACED}]+"
LETTERS = r"\p{L}"
MARK_ALONE = r"^[\p{P}$+<=>^`|~]+$"
AROUND_WORDS = ".,;:!?\"'()[]“”‘’«»„‚‹›¿¡…،؛؟۔।॥၊။።፣፤፥፧՝՞՛։"
BULLETS = r"^[ \t]*(?:[•●‣⁃◦▪∙·*\-–—] |•)"
ELLIPSIS = r"(?:\.\.\.|…)$"
CLOSING = r"[\"'”’»)\]*」』）》】]*"
GAP = r"[\p{Thai}\p{Lao}] +[\p{Thai}\p{Lao}]"
POLICY = (
    r"(?i)\b(?:terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies)\b"  # C4's phrases
)
SHORT_LINE = 30  # characters of English
TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)

SIGNALS_SCHEMA = pl.Schema(
    {
        "id": pl.String(),
        "unit": pl.String(),  # what is counted as a word: whitespace, tokens or letters
        "characters": pl.Int64(),
        "words": pl.Int64(),
        "lines": pl.Int64(),
        "mean_word_length": pl.Float64(),  # characters; null where words are not spaced
        "longest_word": pl.Int64(),  # characters
        "alpha_words": pl.Float64(),  # share of words with a letter
        "stop_words": pl.Int64(),  # how many of the language's occur; null where there is no list
        "hashes_per_word": pl.Float64(),
        "ellipses_per_word": pl.Float64(),
        "bullet_lines": pl.Float64(),  # shares of lines
        "ellipsis_lines": pl.Float64(),
        "terminal_lines": pl.Float64(),  # null where sentences end in no mark
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


NULLABLE = ("mean_word_length", "stop_words", "terminal_lines")


class SignalsParams(Params):
    """What is counted."""

    words: Literal["whitespace", "tokens"] = Field("whitespace", description="what a word is; see the module")


@dataclass(frozen=True)
class Unit:
    """What is counted as a word. per_word: how many of it make one; spaced: whether spaces stand between them."""

    name: str
    pattern: str
    per_word: float = 1.0
    spaced: bool = True


def signals(documents: pl.DataFrame, params: SignalsParams) -> ShardResult:
    """One row of SIGNALS_SCHEMA for each document, in their order."""
    parts = [measure(batch, params) for batch in _batches(documents.select("id", "text", "lang"))]
    return ShardResult({"signals": pl.concat([pl.DataFrame(schema=SIGNALS_SCHEMA), *parts])})


def measure(documents: pl.DataFrame, params: SignalsParams) -> pl.DataFrame:
    """The signals of documents (id, text, lang), in their order."""
    per_word = of_language("units_per_word", pl.Float64, lambda known: known.units_per_word)
    placed = documents.with_columns(place=pl.int_range(pl.len()), per_word=per_word)
    parts = []
    for (found,), group in placed.group_by("per_word", maintain_order=True):
        unit = _unit(params) if found is None else Unit("letters", CHARACTER, float(str(found)), spaced=False)
        parts.append(_measure(group, unit).with_columns(group["place"]))
    return pl.concat(parts).sort("place").drop("place") if parts else pl.DataFrame(schema=SIGNALS_SCHEMA)


def of_language(name: str, dtype: type[pl.DataType], fact: Callable[[Language], float | bool | None]) -> pl.Expr:
    """What is known of each document's language (column `lang`), under a name."""
    known = languages.languages()
    table = {code: fact(one) for code, one in known.items()}
    coded = pl.col("lang").fill_null(languages.ENGLISH)
    return coded.replace_strict(list(table), list(table.values()), default=fact(Language()), return_dtype=dtype).alias(
        name
    )


def _facts() -> list[pl.Expr]:
    return [
        of_language("short_line", pl.Float64, lambda known: SHORT_LINE * min(1, known.length)),
        of_language("marks", pl.Boolean, lambda known: known.marks),
    ]


def _marks_beyond_ascii() -> str:
    return "".join(mark for mark in languages.terminal_marks() if not mark.isascii() and mark != "…")


def _unit(params: SignalsParams) -> Unit:
    return Unit("tokens", TOKEN) if params.words == "tokens" else Unit("whitespace", WORD)


def _measure(documents: pl.DataFrame, unit: Unit) -> pl.DataFrame:
    numbered = documents.select("id", "text", "lang").with_row_index("row").with_columns(_facts())
    words = _exploded(numbered, pl.col("text").str.extract_all(unit.pattern))
    lines = _exploded(numbered, pl.col("text").str.split("\n"))
    paragraphs = _exploded(numbered, pl.col("text").str.replace_all("\n{2,}", "\0").str.split("\0"))
    ends = rf"[.!?]{CLOSING}(?:\s|$)|[{_marks_beyond_ascii()}]+" + ("" if unit.spaced else f"|{GAP}")
    counted = numbered.select(
        "row",
        "id",
        "marks",
        unit=pl.lit(unit.name),
        characters=pl.col("text").str.len_chars().cast(pl.Int64),
        newlines=pl.col("text").str.count_matches("\n", literal=True),
        hashes=pl.col("text").str.count_matches("#", literal=True),
        ellipses=pl.col("text").str.count_matches(r"\.\.\.|…"),
        ends=pl.col("text").str.count_matches(ends).cast(pl.Int64),
        curly_brackets=pl.col("text").str.count_matches("{", literal=True).cast(pl.Int64),
        lorem_ipsum=pl.col("text").str.count_matches("(?i)lorem ipsum").cast(pl.Int64),
    )
    parts = (_of_words(words, unit), _of_lines(lines, numbered), _duplicates(paragraphs, "paragraph"))
    for part in (*parts, _stop_words(numbered, words, unit)):
        counted = counted.join(part, on="row", how="left", maintain_order="left")
    per_unit = pl.max_horizontal(pl.col("units").fill_null(0) / unit.per_word, pl.lit(1))
    per_character = pl.max_horizontal("characters", pl.lit(1))
    return (
        pl.concat([counted, _ngrams(words, len(numbered), unit)], how="horizontal")
        .with_columns(
            words=(pl.col("words").fill_null(0) / unit.per_word).round(),
            sentences=pl.col("ends") + pl.col("open_lines").fill_null(0),
            hashes_per_word=pl.col("hashes") / per_unit,
            ellipses_per_word=pl.col("ellipses") / per_unit,
            newlines_per_word=pl.col("newlines") / per_unit,
            duplicate_line_characters=pl.col("duplicate_line_characters") / per_character,
            duplicate_paragraph_characters=pl.col("duplicate_paragraph_characters") / per_character,
            **{name: pl.col(name) / per_character for name in SIGNALS_SCHEMA if name.endswith("gram_characters")},
        )
        .with_columns(
            mean_word_length=pl.col("mean_word_length").fill_null(0) if unit.spaced else pl.lit(None),
            terminal_lines=pl.when("marks").then(pl.col("terminal_lines").fill_null(0)),
        )
        .select(SIGNALS_SCHEMA.names())
        .with_columns(pl.exclude("id", "unit", *NULLABLE).fill_null(0))
        .cast(SIGNALS_SCHEMA)
    )


def _of_words(words: pl.DataFrame, unit: Unit) -> pl.DataFrame:
    """units: all of them; words: those of them that are more than punctuation, where that stands apart."""
    measured = words.with_columns(
        length=pl.col("part").str.len_chars(),
        letter=pl.col("part").str.contains(LETTERS),
        word=~pl.col("part").str.contains(MARK_ALONE) if unit.name == "tokens" else pl.lit(True),
    )
    return measured.group_by("row", maintain_order=True).agg(
        units=pl.len(),
        words=pl.col("word").sum(),
        mean_word_length=pl.col("length").filter("word").mean(),
        longest_word=pl.col("length").max(),
        alpha_words=pl.col("letter").mean(),
    )


def _stop_words(numbered: pl.DataFrame, words: pl.DataFrame, unit: Unit) -> pl.DataFrame:
    """How many of its language's stop words each document holds; null where there is no list."""
    codes = numbered["lang"].fill_null(languages.ENGLISH).unique().sort()
    lists = {code: listed for code in codes if (listed := languages.stop_words(code))}
    parts = [pl.DataFrame(schema={"row": pl.UInt32, "stop_words": pl.Int64})]
    bare = words.with_columns(pl.col("part").str.to_lowercase().str.strip_chars(AROUND_WORDS)) if unit.spaced else words
    for code, listed in lists.items():
        own = numbered.filter(pl.col("lang").fill_null(languages.ENGLISH) == code)
        if unit.spaced:
            of_list = bare.filter(pl.col("part").is_in(listed))
            held = of_list.group_by("row").agg(stop_words=pl.col("part").n_unique().cast(pl.Int64))
            found = own.select("row").join(held, on="row", how="left").with_columns(pl.col("stop_words").fill_null(0))
        else:
            each = [pl.col("text").str.contains(word, literal=True).cast(pl.Int64) for word in listed]
            found = own.select("row", stop_words=pl.sum_horizontal(each))
        parts.append(found)
    return pl.concat(parts)


def _of_lines(lines: pl.DataFrame, numbered: pl.DataFrame) -> pl.DataFrame:
    line = pl.col("part").str.strip_chars_end()
    marks = languages.terminal_marks()
    shares = (
        lines.join(numbered.select("row", "short_line"), on="row", how="left", maintain_order="left")
        .with_columns(
            bullet=line.str.contains(BULLETS),
            ellipsis=line.str.contains(ELLIPSIS),
            terminal=line.str.contains(rf"[{marks}]{CLOSING}$|[\"”]$"),
            open=~line.str.contains(rf"[.!?{_marks_beyond_ascii()}]{CLOSING}$"),
            short=pl.col("part").str.len_chars() <= pl.col("short_line"),
            javascript=line.str.contains("(?i)javascript"),
            policy=line.str.contains(POLICY),
        )
        .group_by("row", maintain_order=True)
        .agg(
            lines=pl.len(),
            open_lines=pl.col("open").sum(),
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


def _ngrams(words: pl.DataFrame, rows: int, unit: Unit) -> pl.DataFrame:
    """Characters in top and in duplicate n-grams of each row."""
    from llmcore.selection.ngrams import repetition

    top, repeated = ({n: round(n * unit.per_word) for n in sizes} for sizes in (TOP_NGRAMS, DUPLICATE_NGRAMS))
    return repetition(words["row"], words["part"], rows, top, repeated, unit.spaced)


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
    version=2,
    params=SignalsParams,
    function="llmcore.selection.signals:signals",
    kind="per_shard",
    partition=("signals",),
    data="llmcore.text.languages:data",
)
