"""Language: a label and a score for every document; documents in other languages than the configured ones are dropped.

Method: fastText's lid.176 (Joulin et al. 2016, "Bag of Tricks" and "FastText.zip"), the compressed model beside this
file, on the first 1,000 characters: the label of a long document is settled there, at three times the speed. Where they
leave it unsure (a manual page that begins with code), more text is looked at, and the surer answer counts. The
threshold of 0.65 is RefinedWeb's and FineWeb's.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import ShardResult, Stage
from llmcore.schema import detail_json, dropped
from llmcore.text.languages import ETHIOPIC_SPACE

MODEL = Path(__file__).with_name("lid.176.ftz")
SCORE_DECIMALS = 4  # the last bits of a float differ between processors; four decimals do not


class LanguageParams(Params):
    """Which languages are kept."""

    languages: tuple[str, ...] = Field(("en",), description="ISO 639 codes to keep, as lid.176 names them; empty = all")
    min_score: float = Field(0.65, ge=0, le=1, description="least probability of the label (RefinedWeb, FineWeb: 0.65)")
    characters: int = Field(1000, ge=1, description="how much of a document is looked at, from its beginning")
    unsure_characters: int = Field(
        100_000, ge=1, description="how much of it is looked at where that leaves its language unsure"
    )


def language(documents: pl.DataFrame, params: LanguageParams) -> ShardResult:
    """Fill `lang` and `lang_score`; drop with not_kept_language (another one) or low_score (unsure)."""
    labels, scores = identify(documents["text"], params.characters)
    labels, scores, settled = _asked_again(documents["text"], labels, scores, params)
    labelled = documents.with_columns(lang=labels, lang_score=scores)
    wanted = pl.col("lang").is_in(params.languages) if params.languages else pl.col("lang").is_not_null()
    sure = pl.col("lang_score").cast(pl.Float64).round(SCORE_DECIMALS) >= params.min_score
    decided = labelled.with_columns(keep=wanted.fill_null(False) & sure.fill_null(False))
    out = decided.filter(~pl.col("keep"))
    value = pl.col("lang_score").cast(pl.Float64).round(SCORE_DECIMALS)
    reason = pl.when(wanted.fill_null(False)).then(pl.lit("low_score")).otherwise(pl.lit("not_kept_language"))
    detail = detail_json(rule="language", lang=pl.col("lang"), value=value, threshold=float(params.min_score))
    counts = out["lang"].fill_null("unknown").value_counts().sort("lang")
    return ShardResult(
        {"kept": decided.filter("keep").drop("keep"), "dropped": dropped(out, "language", reason, detail)},
        {"settled_by_more_text": settled, **{f"dropped {name}": count for name, count in counts.iter_rows()}},
    )


def _asked_again(
    texts: pl.Series, labels: pl.Series, scores: pl.Series, params: LanguageParams
) -> tuple[pl.Series, pl.Series, int]:
    """Labels and scores, of more text where the beginning leaves them unsure; and how many are sure by that."""
    longer = texts.str.len_chars() > params.characters
    unsure = (longer & _below(scores, params.min_score)).fill_null(False).arg_true()
    if not len(unsure):
        return labels, scores, 0
    more, values = identify(texts.gather(unsure), params.unsure_characters)
    surer = values > scores.gather(unsure)
    rows = unsure.filter(surer)
    settled = int((surer & ~_below(values, params.min_score)).sum())
    return labels.scatter(rows, more.filter(surer)), scores.scatter(rows, values.filter(surer)), settled


def _below(scores: pl.Series, least: float) -> pl.Series:
    return scores.cast(pl.Float64).round(SCORE_DECIMALS) < least


def identify(texts: pl.Series, characters: int = 1000) -> tuple[pl.Series, pl.Series]:
    """Label (String) and probability (Float32) of each text; (null, 0) for a text of nothing but blanks."""
    heads = texts.str.slice(0, characters).str.replace_all(rf"[\s{ETHIOPIC_SPACE}]+", " ").str.strip_chars()
    blank = heads == ""
    labels, scores = lid176().predict(heads.to_list()) if len(heads) else ([], [])
    first = [label[0].removeprefix("__label__") for label in labels]
    best = [round(min(float(score[0]), 1.0), SCORE_DECIMALS) for score in scores]
    return (
        pl.select(pl.when(blank).then(None).otherwise(pl.Series(first, dtype=pl.String))).to_series().alias("lang"),
        pl.select(pl.when(blank).then(0.0).otherwise(pl.Series(best, dtype=pl.Float32)).cast(pl.Float32))
        .to_series()
        .alias("lang_score"),
    )


@lru_cache(maxsize=1)
def lid176() -> Any:
    """The model, read once per process."""
    import fasttext

    fasttext.FastText.eprint = lambda *words: None  # it warns on every load that it returns an object
    return fasttext.load_model(str(MODEL))


def data(params: LanguageParams) -> dict[str, Path]:
    """The model decides: another one is another stage."""
    return {MODEL.name: MODEL}


STAGE = Stage(
    "language",
    version=2,
    params=LanguageParams,
    function="llmcore.text.language:language",
    kind="per_shard",
    data="llmcore.text.language:data",
)
