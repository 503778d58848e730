"""Quality: decide by a table of rules over the signals, then by the classifier trained in the flow.

The table is `QualityParams` itself: each field is one rule with its signal, its comparison, its threshold and where
that comes from; null switches a rule off. A dropped document carries every rule that it failed with value and
threshold, so that a threshold can be judged by what it costs.

Where a default differs from its source, it says why. Shares of lines judge only documents of at least `min_lines`
lines: a speech that comes as one line of 46 kB has no lines to speak of.

The thresholds are for English. In a language whose words are longer or shorter (by `llmcore.text.languages`) the bounds
of their mean length are as much wider; `by_language` sets others. A signal that says nothing of a language is null, and
its rule passes.

What `drop_lines` takes out is taken out before the rules judge, as C4 does: a chapter is not lost for one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, field_validator

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, ShardResult, Stage
from llmcore.errors import LlmcoreError
from llmcore.schema import dropped
from llmcore.text.languages import UNSPACED, languages

Comparison = Literal[">=", "<="]


Kind = Literal["policy", "javascript", "long_word"]
BEFORE = ("policy_lines", "javascript_lines")  # of the document as it came: what is left has none


@dataclass(frozen=True)
class Rule:
    """A document passes if `signal comparison threshold`, or if it has fewer than `min_lines` lines.

    by_length: the threshold widens with the length of a language's words. own: thresholds of languages; None = off.
    """

    name: str
    signal: str
    comparison: Comparison
    threshold: float | None
    source: str
    min_lines: int = 0
    by_length: bool = False
    own: Mapping[str, float | None] = field(default_factory=dict)

    def limit(self) -> pl.Expr:
        """The threshold for each document's language (column `lang`); null where the rule is off."""
        limit = pl.lit(self.threshold, pl.Float64)
        if self.by_length:
            bound = max if self.comparison == "<=" else min
            wider = {code: bound(1.0, one.word_length) for code, one in languages().items()}
            limit *= pl.col("lang").replace_strict(wider, default=1.0, return_dtype=pl.Float64)
        if self.own:
            given = pl.col("lang").is_in(list(self.own))
            own = pl.col("lang").replace_strict(dict(self.own), default=None, return_dtype=pl.Float64)
            limit = pl.when(given).then(own).otherwise(limit)
        return limit

    def passes(self) -> pl.Expr:
        """Boolean, over the columns of the signals and `lang`; null where the signal or the limit is."""
        value, limit = pl.col(self.signal), self.limit()
        holds = value >= limit if self.comparison == ">=" else value <= limit
        return holds | (pl.col("lines") < self.min_lines) if self.min_lines else holds


def _rule(
    signal: str,
    comparison: Comparison,
    threshold: float | None,
    source: str,
    of_lines: bool = False,
    by_length: bool = False,
) -> Any:
    facts: Any = {
        "signal": signal,
        "comparison": comparison,
        "source": source,
        "of_lines": of_lines,
        "by_length": by_length,
    }
    return Field(threshold, description=f"pass if {signal} {comparison} this; {source}", json_schema_extra=facts)


Threshold = float | None


class QualityParams(Params):
    """Thresholds of the rules (null = off), the classifier's, and which kinds of line are taken out."""

    gopher_min_words: Threshold = _rule("words", ">=", 50, "Gopher")
    gopher_max_words: Threshold = _rule("words", "<=", 100_000, "Gopher")
    gopher_min_word_length: Threshold = _rule("mean_word_length", ">=", 3, "Gopher", by_length=True)
    gopher_max_word_length: Threshold = _rule("mean_word_length", "<=", 10, "Gopher", by_length=True)
    gopher_hashes: Threshold = _rule("hashes_per_word", "<=", 0.1, "Gopher")
    gopher_ellipses: Threshold = _rule("ellipses_per_word", "<=", 0.1, "Gopher")
    gopher_bullet_lines: Threshold = _rule("bullet_lines", "<=", 0.9, "Gopher", of_lines=True)
    gopher_ellipsis_lines: Threshold = _rule("ellipsis_lines", "<=", 0.3, "Gopher", of_lines=True)
    gopher_alpha_words: Threshold = _rule("alpha_words", ">=", 0.8, "Gopher")
    gopher_stop_words: Threshold = _rule("stop_words", ">=", 2, "Gopher")

    gopher_duplicate_lines: Threshold = _rule("duplicate_lines", "<=", 0.30, "Gopher", of_lines=True)
    gopher_duplicate_paragraphs: Threshold = _rule("duplicate_paragraphs", "<=", 0.30, "Gopher", of_lines=True)
    gopher_duplicate_line_characters: Threshold = _rule(
        "duplicate_line_characters", "<=", 0.20, "Gopher", of_lines=True
    )
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
    c4_javascript_lines: Threshold = _rule("javascript_lines", "<=", 0.5, "C4 drops such lines", of_lines=True)
    c4_policy_lines: Threshold = _rule("policy_lines", "<=", 0.5, "C4 drops such lines", of_lines=True)

    fineweb_terminal_lines: Threshold = _rule(
        "terminal_lines",
        ">=",
        0.05,
        "FineWeb says 0.12; headings and code lines of manuals end in no stop",
        of_lines=True,
    )
    fineweb_short_lines: Threshold = _rule(
        "short_lines", "<=", 0.80, "FineWeb says 0.67; code lines of manuals are short", of_lines=True
    )
    fineweb_duplicate_line_characters: Threshold = _rule(
        "duplicate_line_characters",
        "<=",
        None,
        "FineWeb: 0.01 in code, 0.1 in print; off beside Gopher's 0.2",
        of_lines=True,
    )
    fineweb_newlines: Threshold = _rule("newlines_per_word", "<=", 0.4, "FineWeb says 0.3", of_lines=True)

    classifier_min_score: Threshold = Field(
        0.02, ge=0, le=1, description="pass if the classifier's probability is at least this (DCLM keeps P >= 0.018)"
    )
    drop_lines: tuple[Kind, ...] = Field(
        ("policy", "long_word"),
        description="kinds of line that are taken out of documents of several lines before the rules judge (C4)",
    )
    min_lines: int = Field(5, ge=0, description="shares of lines judge documents of at least so many lines")
    by_language: dict[str, dict[str, Threshold]] = Field(
        {}, description="other thresholds for some languages (null = off): {de: {gopher_max_word_length: 15}}"
    )

    @field_validator("by_language")
    @classmethod
    def _of_rules(cls, given: dict[str, dict[str, Threshold]]) -> dict[str, dict[str, Threshold]]:
        known = [CLASSIFIER, *_facts()]
        for code, own in given.items():
            for name in own:
                if name not in known:
                    raise ValueError(f"{code}.{name} is no rule; there are {', '.join(sorted(known))}")
        return given


CLASSIFIER = "classifier_min_score"


def rules(params: QualityParams) -> list[Rule]:
    """The rules that are switched on, in the order of the table; the classifier's is the last."""
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

    left = documents.with_columns(text=without_lines(documents["text"], params.drop_lines))
    changed = left["text"] != documents["text"]
    scored = _measured_again(signals, left, changed).with_columns(
        left["lang"], classifier_score=scores(left["text"], left["lang"], _models(classifier))
    )
    failed = failures(scored, rules(params))
    bad = failed.list.len() > 0
    first = failed.list.first().struct.field("rule")
    reasons = documents.filter(bad).with_columns(rule=first.filter(bad), failed=_details(failed.filter(bad)))
    metrics: dict[str, int | float] = {"lines_removed_in": int((changed & ~bad).sum())}
    for name, count in first.filter(bad).value_counts().sort("rule").iter_rows():
        metrics[f"dropped {name}"] = count
    return ShardResult(
        {
            "kept": left.filter(~bad),
            "dropped": dropped(reasons, "quality", pl.col("rule"), pl.col("failed")),
            "scores": scored.select("id", "classifier_score"),
        },
        metrics,
    )


def _measured_again(signals: pl.DataFrame, left: pl.DataFrame, changed: pl.Series) -> pl.DataFrame:
    """The signals, of what is left of the documents that lost lines."""
    if not changed.any():
        return signals
    from llmcore.selection.signals import SignalsParams, measure

    words: Any = "tokens" if (signals["unit"] == "tokens").any() else "whitespace"
    again = measure(left.filter(changed), SignalsParams(words=words)).with_columns(
        signals.filter(changed).select(BEFORE).get_columns()
    )
    rows = pl.int_range(pl.len())
    return (
        pl.concat(
            [
                signals.with_columns(row=rows).filter(~changed),
                again.with_columns(row=changed.arg_true().cast(pl.Int64)),
            ]
        )
        .sort("row")
        .drop("row")
    )


def failures(signals: pl.DataFrame, table: list[Rule]) -> pl.Series:
    """For each document the rules that it failed: list of {rule, value, threshold}; a null value passes.

    signals: SIGNALS_SCHEMA, and `lang` and `classifier_score` where there are any.
    """
    nothing = {"lang": pl.String, "classifier_score": pl.Float64}
    missing = {name: dtype for name, dtype in nothing.items() if name not in signals.columns}
    signals = signals.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in missing.items())
    none = pl.lit(None)
    failed = [
        pl.when(~rule.passes().fill_null(True)).then(
            pl.struct(
                rule=pl.lit(rule.name),
                value=pl.col(rule.signal).cast(pl.Float64).round(6),
                threshold=rule.limit(),
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

    patterns = {"policy": POLICY, "javascript": "(?i)javascript", "long_word": rf"[^\s{UNSPACED}]{{1001}}"}
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
    for name, facts in _facts().items():
        lines = params.min_lines if facts["of_lines"] else 0
        yield from _switched_on(
            params,
            Rule(name, facts["signal"], facts["comparison"], None, facts["source"], lines, facts["by_length"]),
        )
    yield from _switched_on(params, Rule(CLASSIFIER, "classifier_score", ">=", None, "classifier"))


def _switched_on(params: QualityParams, rule: Rule) -> Iterator[Rule]:
    own = {code: given[rule.name] for code, given in params.by_language.items() if rule.name in given}
    threshold = getattr(params, rule.name)
    if threshold is not None or any(limit is not None for limit in own.values()):
        yield replace(rule, threshold=threshold, own=own)


def _facts() -> dict[str, dict[str, Any]]:
    """What the table says of each rule over signals, by its name."""
    extras = {name: described.json_schema_extra for name, described in QualityParams.model_fields.items()}
    return {name: extra for name, extra in extras.items() if isinstance(extra, dict) and "signal" in extra}


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


def _models(classifier: Files) -> dict[str, Path]:
    """The classifiers by language."""
    return {name.removesuffix(".bin"): classifier.path(name) for name in classifier.names() if name.endswith(".bin")}


STAGE = Stage(
    "quality",
    version=3,
    params=QualityParams,
    function="llmcore.selection.quality:quality",
    kind="per_shard",
    aligned={"signals": "signals"},
    broadcast=("classifier",),
    data="llmcore.text.languages:data",
)
