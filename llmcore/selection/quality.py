"""Quality: decide by a table of rules over the signals, then by the classifier trained in the flow.

The table is `QualityParams` itself: each field is one rule with its signal, its comparison, its threshold and where
that comes from; null switches a rule off. A dropped document carries every rule that it failed with value and
threshold, so that a threshold can be judged by what it costs.

Where a default differs from its source, it says why. Shares of lines judge only documents of at least MIN_LINES lines:
a speech that comes as one line of 46 kB has no lines to speak of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, ShardResult, Stage
from llmcore.errors import LlmcoreError
from llmcore.schema import dropped

MIN_LINES = 5
UNSPACED_LANGUAGES = ("zh", "wuu", "yue", "ja", "th", "lo", "km", "my", "bo", "dz")
WORD_SIGNALS = (
    "words",
    "mean_word_length",
    "longest_word",
    "alpha_words",
    "hashes_per_word",
    "ellipses_per_word",
    "newlines_per_word",
    *(f"top_{size}_gram_characters" for size in (2, 3, 4)),
    *(f"duplicate_{size}_gram_characters" for size in range(5, 11)),
)

Comparison = Literal[">=", "<="]


@dataclass(frozen=True)
class Rule:
    """A document passes if `signal comparison threshold`, or if it has fewer than `min_lines` lines."""

    name: str
    signal: str
    comparison: Comparison
    threshold: float
    source: str
    min_lines: int = 0

    def passes(self) -> pl.Expr:
        """Boolean, over the columns of the signals."""
        value = pl.col(self.signal)
        holds = value >= self.threshold if self.comparison == ">=" else value <= self.threshold
        return holds | (pl.col("lines") < self.min_lines) if self.min_lines else holds


def _rule(signal: str, comparison: Comparison, threshold: float | None, source: str, min_lines: int = 0) -> Any:
    return Field(
        threshold,
        description=f"pass if {signal} {comparison} this; {source}",
        json_schema_extra={"signal": signal, "comparison": comparison, "source": source, "min_lines": min_lines},
    )


Threshold = float | None


class QualityParams(Params):
    """Thresholds of the rules (null = off), the classifier's, and which kinds of line are taken out."""

    gopher_min_words: Threshold = _rule("words", ">=", 50, "Gopher")
    gopher_max_words: Threshold = _rule("words", "<=", 100_000, "Gopher")
    gopher_min_word_length: Threshold = _rule("mean_word_length", ">=", 3, "Gopher")
    gopher_max_word_length: Threshold = _rule("mean_word_length", "<=", 10, "Gopher")
    gopher_hashes: Threshold = _rule("hashes_per_word", "<=", 0.1, "Gopher")
    gopher_ellipses: Threshold = _rule("ellipses_per_word", "<=", 0.1, "Gopher")
    gopher_bullet_lines: Threshold = _rule("bullet_lines", "<=", 0.9, "Gopher", MIN_LINES)
    gopher_ellipsis_lines: Threshold = _rule("ellipsis_lines", "<=", 0.3, "Gopher", MIN_LINES)
    gopher_alpha_words: Threshold = _rule("alpha_words", ">=", 0.8, "Gopher")
    gopher_stop_words: Threshold = _rule("stop_words", ">=", 2, "Gopher")

    gopher_duplicate_lines: Threshold = _rule("duplicate_lines", "<=", 0.30, "Gopher", MIN_LINES)
    gopher_duplicate_paragraphs: Threshold = _rule("duplicate_paragraphs", "<=", 0.30, "Gopher", MIN_LINES)
    gopher_duplicate_line_characters: Threshold = _rule("duplicate_line_characters", "<=", 0.20, "Gopher", MIN_LINES)
    gopher_duplicate_paragraph_characters: Threshold = _rule("duplicate_paragraph_characters", "<=", 0.20, "Gopher")
    gopher_top_2_gram: Threshold = _rule("top_2_gram_characters", "<=", 0.20, "Gopher")
    gopher_top_3_gram: Threshold = _rule("top_3_gram_characters", "<=", 0.18, "Gopher")
    gopher_top_4_gram: Threshold = _rule("top_4_gram_characters", "<=", 0.16, "Gopher")
    gopher_duplicate_5_gram: Threshold = _rule("duplicate_5_gram_characters", "<=", 0.15, "Gopher")
    gopher_duplicate_6_gram: Threshold = _rule("duplicate_6_gram_characters", "<=", 0.14, "Gopher")
    gopher_duplicate_7_gram: Threshold = _rule("duplicate_7_gram_characters", "<=", 0.13, "Gopher")
    gopher_duplicate_8_gram: Threshold = _rule("duplicate_8_gram_characters", "<=", 0.12, "Gopher")
    gopher_duplicate_9_gram: Threshold = _rule("duplicate_9_gram_characters", "<=", 0.11, "Gopher")
    gopher_duplicate_10_gram: Threshold = _rule("duplicate_10_gram_characters", "<=", 0.10, "Gopher")

    c4_sentences: Threshold = _rule("sentences", ">=", 3, "C4 (at least 3 sentences)")
    c4_curly_brackets: Threshold = _rule(
        "curly_brackets", "<=", None, "C4 says 0; off, because it drops 15 % of technical pages"
    )
    c4_lorem_ipsum: Threshold = _rule("lorem_ipsum", "<=", 0, "C4")
    c4_longest_word: Threshold = _rule("longest_word", "<=", 1000, "C4")
    c4_javascript_lines: Threshold = _rule("javascript_lines", "<=", 0.5, "C4 drops such lines", MIN_LINES)
    c4_policy_lines: Threshold = _rule("policy_lines", "<=", 0.5, "C4 drops such lines", MIN_LINES)

    fineweb_terminal_lines: Threshold = _rule(
        "terminal_lines", ">=", 0.05, "FineWeb says 0.12; headings and code lines of manuals end in no stop", MIN_LINES
    )
    fineweb_short_lines: Threshold = _rule(
        "short_lines", "<=", 0.80, "FineWeb says 0.67; code lines of manuals are short", MIN_LINES
    )
    fineweb_duplicate_line_characters: Threshold = _rule(
        "duplicate_line_characters",
        "<=",
        None,
        "FineWeb: 0.01 in code, 0.1 in print; off beside Gopher's 0.2",
        MIN_LINES,
    )
    fineweb_newlines: Threshold = _rule("newlines_per_word", "<=", 0.4, "FineWeb says 0.3", MIN_LINES)

    classifier_min_score: Threshold = Field(
        0.02, ge=0, le=1, description="pass if the classifier's probability is at least this (DCLM keeps P >= 0.018)"
    )
    drop_lines: tuple[Literal["policy", "javascript", "long_word"], ...] = Field(
        ("policy", "long_word"), description="kinds of line that are taken out of kept documents of several lines (C4)"
    )


def rules(params: QualityParams) -> list[Rule]:
    """The rules that are switched on, in the order of the table."""
    return list(_rules(params))


def quality(documents: pl.DataFrame, params: QualityParams, signals: pl.DataFrame, classifier: Files) -> ShardResult:
    """Kept, dropped (reason: first rule failed; detail: all of them), and `scores`: id, classifier_score (or null).

    signals: SIGNALS_SCHEMA, row for row the same documents. Raises LlmcoreError if they are not.
    """
    if not documents["id"].equals(signals["id"]):
        raise LlmcoreError(
            "quality: signals belong to other documents than the shard holds; run the signals stage again"
        )
    from llmcore.selection.classifier import scores

    scored = signals.with_columns(classifier_score=scores(documents["text"], _model(classifier)))
    scored = _only_where_they_apply(scored, documents["lang"])
    table = rules(params)
    if params.classifier_min_score is not None:
        table.append(Rule("classifier_min_score", "classifier_score", ">=", params.classifier_min_score, "classifier"))
    failed = failures(scored, table)
    bad = failed.list.len() > 0
    first = failed.list.first().struct.field("rule")
    reasons = documents.filter(bad).with_columns(rule=first.filter(bad), failed=_details(failed.filter(bad)))
    kept = documents.filter(~bad)
    kept = kept.with_columns(text=without_lines(kept["text"], params.drop_lines))
    metrics: dict[str, int | float] = {"lines_removed_in": int((documents.filter(~bad)["text"] != kept["text"]).sum())}
    for name, count in first.filter(bad).value_counts().sort("rule").iter_rows():
        metrics[f"dropped {name}"] = count
    return ShardResult(
        {
            "kept": kept,
            "dropped": dropped(reasons, "quality", pl.col("rule"), pl.col("failed")),
            "scores": scored.select("id", "classifier_score"),
        },
        metrics,
    )


def _only_where_they_apply(signals: pl.DataFrame, lang: pl.Series) -> pl.DataFrame:
    """Null, which every rule lets pass, where a signal says nothing: Gopher's stop words are English ones, and some
    languages put no spaces between words."""
    english = lang.fill_null("en").is_in(["en"])
    spaced = ~lang.fill_null("en").is_in(UNSPACED_LANGUAGES)
    by_words = [pl.when(spaced).then(pl.col(name)).alias(name) for name in WORD_SIGNALS]
    return signals.with_columns(by_words).with_columns(stop_words=pl.when(english).then(pl.col("stop_words")))


def failures(signals: pl.DataFrame, table: list[Rule]) -> pl.Series:
    """For each document the rules that it failed: list of {rule, value, threshold}; a null value passes."""
    none = pl.lit(None)
    failed = [
        pl.when(~rule.passes().fill_null(True)).then(
            pl.struct(
                rule=pl.lit(rule.name),
                value=pl.col(rule.signal).cast(pl.Float64).round(6),
                threshold=pl.lit(float(rule.threshold)),
            )
        )
        for rule in table
    ]
    empty = pl.struct(rule=none.cast(pl.String), value=none.cast(pl.Float64), threshold=none.cast(pl.Float64))
    never = pl.when(pl.lit(False)).then(empty)
    return signals.select(failed=pl.concat_list([*failed, never]).list.drop_nulls()).to_series()


def without_lines(texts: pl.Series, kinds: tuple[str, ...]) -> pl.Series:
    """Take lines of these kinds out of texts of at least two lines."""
    from llmcore.selection.signals import POLICY

    patterns = {"policy": POLICY, "javascript": "(?i)javascript", "long_word": r"\S{1001}"}
    if not kinds or not len(texts):
        return texts
    pattern = "|".join(f"(?:{patterns[kind]})" for kind in kinds)
    suspect = (texts.str.contains(pattern) & texts.str.contains("\n", literal=True)).arg_true()
    if not len(suspect):
        return texts
    lines = pl.DataFrame({"row": suspect, "line": texts.gather(suspect).str.split("\n")}).explode("line")
    left = (
        lines.filter(~pl.col("line").str.contains(pattern))
        .group_by("row", maintain_order=True)
        .agg(pl.col("line").str.join("\n"))
        .filter(pl.col("line").str.strip_chars() != "")  # a document of nothing else stays as it is
    )
    return texts.scatter(left["row"], left["line"]) if len(left) else texts


def _rules(params: QualityParams) -> Iterator[Rule]:
    for name, field in QualityParams.model_fields.items():
        threshold = getattr(params, name)
        if isinstance(field.json_schema_extra, dict) and "signal" in field.json_schema_extra and threshold is not None:
            facts: Any = field.json_schema_extra
            yield Rule(name, facts["signal"], facts["comparison"], threshold, facts["source"], facts["min_lines"])


def _details(failed: pl.Series) -> pl.Series:
    """JSON: the first failed rule with value and threshold, and all of them under "failed"."""
    item = pl.col("failed").list.first().struct
    return (
        failed.to_frame("failed")
        .select(
            pl.struct(
                rule=item.field("rule"),
                value=item.field("value"),
                threshold=item.field("threshold"),
                failed=pl.col("failed"),
            ).struct.json_encode()
        )
        .to_series()
    )


def _model(classifier: Files) -> Path | None:
    names = [name for name in classifier.names() if name.endswith((".ftz", ".bin"))]
    return classifier.path(names[0]) if names else None


STAGE = Stage(
    "quality",
    version=2,
    params=QualityParams,
    function="llmcore.selection.quality:quality",
    kind="per_shard",
    aligned={"signals": "signals"},
    broadcast=("classifier",),
)
