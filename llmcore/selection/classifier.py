"""A quality classifier, trained in the flow: fastText on passages, good against bad.

Method: DCLM's recipe (Li et al. 2024, arXiv 2406.11794): supervised fastText with wordNgrams 2. DCLM's learning rate of
0.1, 5 epochs and dimension 100 are for 400,000 documents; on a hundredth of that they leave every score near one half,
so ours are 0.5, 10 and 16, with a small table of n-grams.

What is good and bad, honestly: DCLM's positives (instructions, ELI5) and random web pages are not at hand. By default
*positives* are passages of documents that pass Gopher's and C4's rules with a margin, or of `positive_sources` if some
are named; *negatives* are passages of documents that fail those rules, and damaged copies of the positives: words in
random order, one line over and over, and menus of single words. So the classifier learns to tell running text from
wreckage; it does not know what is worth reading, and its threshold lets nearly everything else pass.

Trained on the first snapshot only, so that a refresh changes no earlier decision. One thread and a fixed seed: the
model is the same byte for byte.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, Stage

GOOD, BAD = "__label__good", "__label__bad"
SCORE_DECIMALS = 4
PASSAGES_SCORED = 16  # a document's score is the mean over at most so many passages, spread evenly
MIN_PASSAGES = 50  # of each class; with fewer there is nothing to learn, and no model is written
WORD = re.compile(r"\w+|[^\w\s]")


class ClassifierParams(Params):
    """What is learnt from, and how."""

    positive_sources: tuple[str, ...] = Field((), description="sources taken for good; empty: what passes rules")
    negative_sources: tuple[str, ...] = Field((), description="sources taken for bad, beside what fails the rules")
    passage_words: int = Field(150, ge=20, description="words in a passage")
    max_passages: int = Field(2000, ge=100, description="passages of each class")
    epochs: int = Field(10, ge=1, description="DCLM: 5, on a hundred times as much text")
    learning_rate: float = Field(0.5, gt=0, description="DCLM: 0.1, on a hundred times as much text")
    word_ngrams: int = Field(2, ge=2, le=5, description="DCLM: 2; with 1 fastText's training may end in NaN")
    dimension: int = Field(16, ge=2, description="DCLM: 100")
    buckets: int = Field(50_000, ge=1000, description="hash table of word pairs")
    seed: int = 1


def train(inputs: Mapping[str, Files], params: ClassifierParams, run: Run) -> Mapping[str, Any]:
    """Write model.bin, unless there are too few passages. Inputs: documents (kept/) and signals (signals/)."""
    good, bad = _examples(inputs, params)
    counts = {"positives": len(good), "negatives": len(bad)}
    if min(len(good), len(bad)) < MIN_PASSAGES:
        (run.out / "README").write_text("Too few passages to learn from: no classifier.\n", encoding="utf-8")
        return {**counts, "trained": 0}
    run.progress(0.5, 1, f"{len(good)} good and {len(bad)} bad passages")
    held_out = max(MIN_PASSAGES // 5, min(len(good), len(bad)) // 20)
    lines = [f"{GOOD} {text}" for text in good[held_out:]] + [f"{BAD} {text}" for text in bad[held_out:]]
    random.Random(params.seed).shuffle(lines)
    examples = run.scratch / "train.txt"
    examples.write_text("\n".join(lines) + "\n", encoding="utf-8")
    import fasttext

    model = fasttext.train_supervised(
        input=str(examples),
        epoch=params.epochs,
        lr=params.learning_rate,
        wordNgrams=params.word_ngrams,
        dim=params.dimension,
        bucket=params.buckets,
        minCount=2,
        thread=1,
        seed=params.seed,
        verbose=0,
    )
    model.save_model(str(run.out / "model.bin"))
    examples.unlink()
    right = sum(_probabilities(model, good[:held_out])[i] >= 0.5 for i in range(held_out))
    right += sum(_probabilities(model, bad[:held_out])[i] < 0.5 for i in range(held_out))
    return {**counts, "trained": 1, "held_out": 2 * held_out, "held_out_accuracy": round(right / (2 * held_out), 4)}


def scores(texts: pl.Series, model: Path | None) -> pl.Series:
    """Probability of `good` for each text (Float64, null without a model), the mean over evenly spread passages."""
    if model is None:
        return pl.Series("classifier_score", [None] * len(texts), dtype=pl.Float64)
    loaded = _load(str(model))
    found: list[float] = []
    for text in texts:
        chances = _probabilities(loaded, [normal(passage) for passage in spread(text, PASSAGES_SCORED)])
        found.append(round(sum(chances) / len(chances), SCORE_DECIMALS) if chances else 0.0)
    return pl.Series("classifier_score", found, dtype=pl.Float64)


def spread(text: str, count: int, characters: int = 1000) -> list[str]:
    """At most `count` pieces of about `characters`, evenly spread over the text."""
    pieces = max(1, min(count, len(text) // characters))
    step = len(text) / pieces
    return [text[int(i * step) : int(i * step) + min(characters, int(step) + 1)] for i in range(pieces)] if text else []


def normal(text: str) -> str:
    """What fastText reads: lower case, punctuation apart, digits as 0, one line."""
    return " ".join(WORD.findall(re.sub(r"\d", "0", text.lower())))


def _examples(inputs: Mapping[str, Files], params: ClassifierParams) -> tuple[list[str], list[str]]:
    chance = random.Random(params.seed)
    good: list[str] = []
    bad: list[str] = []
    signals = dict(inputs["signals"].tables("signals"))
    for name, documents in inputs["documents"].tables("kept"):
        measured = signals[name.replace("kept/", "signals/", 1)]
        marked = documents.select("text", "source").with_columns(
            measured.select(good=_good(), bad=~_acceptable()).get_columns()
        )
        for text, source, is_good, is_bad in marked.iter_rows():
            if params.positive_sources:
                is_good = source in params.positive_sources
            if source in params.negative_sources or (is_bad and not is_good):
                bad += passages(text, params.passage_words)
            elif is_good:
                good += passages(text, params.passage_words)
    good, bad = _sample(good, params.max_passages, chance), _sample(bad, params.max_passages // 2, chance)
    damage = [_damaged(text, kind, chance) for kind, text in enumerate(good)]
    bad += damage[: params.max_passages - len(bad)]
    chance.shuffle(bad)
    return [normal(text) for text in good], [normal(text) for text in bad]


def _acceptable() -> pl.Expr:
    return (
        pl.col("words").is_between(50, 100_000)
        & pl.col("mean_word_length").is_between(3, 10)
        & (pl.col("alpha_words") >= 0.8)
        & (pl.col("stop_words") >= 2)
        & (pl.col("top_2_gram_characters") <= 0.20)
        & (pl.col("duplicate_5_gram_characters") <= 0.15)
        & (pl.col("sentences") >= 3)
    )


def _good() -> pl.Expr:
    """Gopher's and C4's rules with a margin."""
    return (
        _acceptable()
        & (pl.col("words") >= 100)
        & pl.col("mean_word_length").is_between(4, 8)
        & (pl.col("alpha_words") >= 0.9)
        & (pl.col("stop_words") >= 5)
        & (pl.col("duplicate_5_gram_characters") <= 0.10)
        & (pl.col("sentences") >= 5)
    )


def passages(text: str, words: int) -> list[str]:
    """Consecutive pieces of about `words` words; a rest of less than half of that is left out."""
    split = re.findall(r"\S+\s*", text)
    pieces = ("".join(split[i : i + words]) for i in range(0, len(split), words) if len(split) - i >= words // 2)
    return [piece.strip() for piece in pieces]


def _damaged(text: str, kind: int, chance: random.Random) -> str:
    words = text.split()
    if kind % 3 == 0:
        chance.shuffle(words)
        return " ".join(words)
    if kind % 3 == 1:
        start = chance.randrange(max(1, len(words) - 8))
        return "\n".join([" ".join(words[start : start + chance.randint(2, 8)])] * 20)
    menu = [word.strip(".,;:()\"'").capitalize() for word in chance.sample(words, min(len(words), 60)) if len(word) > 3]
    return chance.choice((" | ", "\n", " > ", " · ", "\n- ")).join(menu)


def _sample(texts: list[str], count: int, chance: random.Random) -> list[str]:
    chance.shuffle(texts)
    return texts[:count]


def _probabilities(model: Any, lines: Sequence[str]) -> list[float]:
    if not lines:
        return []
    labels, values = model.predict(list(lines), k=2)
    return [_good_of(row, chances) for row, chances in zip(labels, values, strict=True)]


def _good_of(labels: Sequence[str], chances: Sequence[float]) -> float:
    return next((min(float(c), 1.0) for label, c in zip(labels, chances, strict=True) if label == GOOD), 0.0)


@lru_cache(maxsize=2)
def _load(path: str) -> Any:
    """A model that this stage wrote; the store has verified its digest. Foreign model files are never loaded."""
    import fasttext

    fasttext.FastText.eprint = lambda *words: None
    return fasttext.load_model(path)


STAGE = Stage(
    "classifier", version=1, params=ClassifierParams, function="llmcore.selection.classifier:train", partition=()
)
