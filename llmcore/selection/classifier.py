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
model is the same byte for byte. Version 2 draws its passages by a hash of the document instead of by shuffling all of
them, which held every good passage of the corpus in memory.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from llmcore.artifacts.disk import check_written
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
    model.save_model(str(run.out / "model.bin"))  # which reports nothing, whatever happens to the file
    check_written(run.out / "model.bin", lambda path: _same_model(_read(path), model))
    examples.unlink()
    right = sum(_probabilities(model, good[:held_out])[i] >= 0.5 for i in range(held_out))
    right += sum(_probabilities(model, bad[:held_out])[i] < 0.5 for i in range(held_out))
    return {**counts, "trained": 1, "held_out": 2 * held_out, "held_out_accuracy": round(right / (2 * held_out), 4)}


def _same_model(one: Any, other: Any) -> bool:
    matrices = ((m.get_input_matrix(), m.get_output_matrix()) for m in (one, other))
    return (
        one.words == other.words
        and one.labels == other.labels
        and all(np.array_equal(mine, its, equal_nan=True) for mine, its in zip(*matrices, strict=True))
    )


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
    good, bad = Draw(params.max_passages, params.seed), Draw(params.max_passages // 2, params.seed)
    for document, text, source, is_good, is_bad in _judged(inputs):
        if params.positive_sources:
            is_good = source in params.positive_sources
        if source in params.negative_sources or (is_bad and not is_good):
            bad.offer(document, text, params.passage_words)
        elif is_good:
            good.offer(document, text, params.passage_words)
    chance = random.Random(params.seed)
    positives, negatives = good.drawn(), bad.drawn()
    damage = [_damaged(text, kind, chance) for kind, text in enumerate(positives)]
    negatives += damage[: params.max_passages - len(negatives)]
    chance.shuffle(negatives)
    return [normal(text) for text in positives], [normal(text) for text in negatives]


def _judged(inputs: Mapping[str, Files]) -> Iterator[tuple[str, str, str, bool, bool]]:
    """id, text, source, and whether the rules find it good or bad, of every document, a shard at a time."""
    good, bad = _good(), ~_acceptable()
    measures = sorted({*good.meta.root_names(), *bad.meta.root_names()})
    for name in inputs["documents"].names("kept/"):
        signals = pl.read_parquet(inputs["signals"].path(name.replace("kept/", "signals/", 1)), columns=measures)
        documents = pl.read_parquet(inputs["documents"].path(name), columns=["id", "text", "source"])
        yield from documents.with_columns(signals.select(good=good, bad=bad).get_columns()).iter_rows()


class Draw:
    """A fair draw of passages: those whose hash is lowest (bottom-k sampling, Cohen and Kaplan 2007).

    A passage's hash is of its document's id and its number in there, so the draw hangs on the documents alone, not on
    how they lie in shards, and no more than `most` passages are ever held.
    """

    def __init__(self, most: int, seed: int) -> None:
        self.most = most
        self.seed = seed
        self._heap: list[tuple[int, str]] = []  # (minus its hash, passage): the highest hash on top

    def offer(self, document: str, text: str, words: int) -> None:
        """Take what ranks among the lowest of the document's passages of `words` words."""
        count = passage_count(len(text.split()), words)
        low = [(number, rank) for number in range(count) if self._takes(rank := self._rank(document, number))]
        if not low:
            return
        found = passages(text, words)
        for number, rank in low:
            if len(self._heap) < self.most:
                heapq.heappush(self._heap, (-rank, found[number]))
            elif self._takes(rank):
                heapq.heapreplace(self._heap, (-rank, found[number]))

    def drawn(self) -> list[str]:
        """The passages, lowest hash first."""
        return [passage for _, passage in sorted(self._heap, reverse=True)]

    def _takes(self, rank: int) -> bool:
        return len(self._heap) < self.most or rank < -self._heap[0][0]

    def _rank(self, document: str, number: int) -> int:
        named = f"{self.seed}:{document}:{number}".encode()
        return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest())


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
    count = passage_count(len(split), words)
    return ["".join(split[number * words : (number + 1) * words]).strip() for number in range(count)]


def passage_count(length: int, words: int) -> int:
    """How many pieces of `words` words a text of `length` words gives."""
    return length // words + (length % words >= max(1, words // 2))


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
    return _read(Path(path))


def _read(path: Path) -> Any:
    import fasttext

    fasttext.FastText.eprint = lambda *words: None
    return fasttext.load_model(str(path))


STAGE = Stage(
    "classifier", version=2, params=ClassifierParams, function="llmcore.selection.classifier:train", partition=()
)
