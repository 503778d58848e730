"""Quality classifiers, trained in the flow, one a language: fastText on passages, good against bad.

Method: DCLM's recipe (Li et al. 2024, arXiv 2406.11794): supervised fastText with wordNgrams 2. DCLM's learning rate of
0.1, 5 epochs and dimension 100 are for 400,000 documents; on a hundredth of that they leave every score near one half,
so ours are 0.5, 10 and 16, with a small table of n-grams.

What is good and bad, honestly: DCLM's positives (instructions, ELI5) and random web pages are not at hand. By default
*positives* are passages of documents that pass Gopher's and C4's rules with a margin, or of `positive_sources` if some
are named; *negatives* are passages of documents that fail those rules, and damaged copies of the positives: words in
random order, one line over and over, and menus of single words. So the classifier learns to tell running text from
wreckage; it does not know what is worth reading, and its threshold lets nearly everything else pass.

A language of which there are too few good passages gets no classifier, and its documents no score: what was learnt from
another language would only say that this one is not that. In languages that put no spaces between words each letter is
a word to fastText.

Trained on the first snapshot only, so that a refresh changes no earlier decision. One thread and a fixed seed: the
model is the same byte for byte. Passages are drawn by a hash of the document, so that a language's draw, and nothing
else, is in memory.
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
from llmcore.selection.signals import of_language
from llmcore.text.languages import ENGLISH, UNSPACED, UNSPACED_LETTER, language

GOOD, BAD = "__label__good", "__label__bad"
SCORE_DECIMALS = 4
PASSAGES_SCORED = 16  # a document's score is the mean over at most so many passages, spread evenly
MIN_PASSAGES = 50  # of each class; with fewer there is nothing to learn, and no model is written
WORD = rf"{UNSPACED_LETTER}\p{{M}}*|[\w&&[^{UNSPACED}]]+|[^\w\s]"
LETTER = rf"(?s:{UNSPACED_LETTER}\p{{M}}*\p{{P}}*\s*|.)"


class ClassifierParams(Params):
    """What is learnt from, and how."""

    positive_sources: tuple[str, ...] = Field((), description="sources taken for good; empty: what passes rules")
    negative_sources: tuple[str, ...] = Field((), description="sources taken for bad, beside what fails the rules")
    passage_words: int = Field(150, ge=20, description="words in a passage, or as many letters as say as much")
    max_passages: int = Field(2000, ge=100, description="passages of each class and language")
    epochs: int = Field(10, ge=1, description="DCLM: 5, on a hundred times as much text")
    learning_rate: float = Field(0.5, gt=0, description="DCLM: 0.1, on a hundred times as much text")
    word_ngrams: int = Field(2, ge=2, le=5, description="DCLM: 2; with 1 fastText's training may end in NaN")
    dimension: int = Field(16, ge=2, description="DCLM: 100")
    buckets: int = Field(50_000, ge=1000, description="hash table of word pairs")
    seed: int = 1


def train(inputs: Mapping[str, Files], params: ClassifierParams, run: Run) -> Mapping[str, Any]:
    """Write CODE.bin for each language with enough passages. Inputs: documents (kept/) and signals (signals/)."""
    examples = _examples(inputs, params)
    metrics: dict[str, dict[str, Any]] = {}
    for done, (code, drawn) in enumerate(sorted(examples.items())):
        good, bad = drawn.examples(code, params)
        metrics[code] = {"positives": len(good), "negatives": len(bad), "trained": 0}
        if min(len(good), len(bad)) >= MIN_PASSAGES:
            run.progress(0.5 + 0.5 * done / len(examples), 1, f"{code}: {len(good)} good and {len(bad)} bad passages")
            metrics[code] |= {"trained": 1, **_train(code, good, bad, params, run)}
    trained = sum(one["trained"] for one in metrics.values())
    if not trained:
        (run.out / "README").write_text("Too few passages to learn from: no classifier.\n", encoding="utf-8")
    totals = {name: sum(one[name] for one in metrics.values()) for name in ("positives", "negatives")}
    return {**totals, "trained": trained, "languages": metrics}


def _train(code: str, good: list[str], bad: list[str], params: ClassifierParams, run: Run) -> dict[str, Any]:
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
    path = run.out / f"{code}.bin"
    model.save_model(str(path))  # which reports nothing, whatever happens to the file
    check_written(path, lambda written: _same_model(_read(written), model))
    examples.unlink()
    right = sum(chance >= 0.5 for chance in _probabilities(model, good[:held_out]))
    right += sum(chance < 0.5 for chance in _probabilities(model, bad[:held_out]))
    return {"held_out": 2 * held_out, "held_out_accuracy": round(right / (2 * held_out), 4)}


def _same_model(one: Any, other: Any) -> bool:
    matrices = ((m.get_input_matrix(), m.get_output_matrix()) for m in (one, other))
    return (
        one.words == other.words
        and one.labels == other.labels
        and all(np.array_equal(mine, its, equal_nan=True) for mine, its in zip(*matrices, strict=True))
    )


def scores(texts: pl.Series, codes: pl.Series, models: Mapping[str, Path]) -> pl.Series:
    """Probability of `good` for each text by its language's model (Float64, null where there is none): the mean over
    evenly spread passages."""
    found = pl.Series("classifier_score", [None] * len(texts), dtype=pl.Float64)
    labels = codes.fill_null(ENGLISH)
    for code in sorted(set(models) & set(labels)):
        rows = (labels == code).arg_true()
        found = found.scatter(rows, _scores(texts.gather(rows), _load(str(models[code]))))
    return found


def _scores(texts: pl.Series, model: Any) -> list[float]:
    pieces = [spread(text, PASSAGES_SCORED) for text in texts]
    chances = iter(_probabilities(model, normal([piece for some in pieces for piece in some])))
    return [round(sum(next(chances) for _ in some) / len(some), SCORE_DECIMALS) if some else 0.0 for some in pieces]


def spread(text: str, count: int, characters: int = 1000) -> list[str]:
    """At most `count` pieces of about `characters`, evenly spread over the text."""
    pieces = max(1, min(count, len(text) // characters))
    step = len(text) / pieces
    return [text[int(i * step) : int(i * step) + min(characters, int(step) + 1)] for i in range(pieces)] if text else []


def normal(texts: Sequence[str]) -> list[str]:
    """What fastText reads: lower case, words, letters of unspaced scripts and punctuation apart, digits as 0, one line
    a text."""
    lower = pl.Series(texts, dtype=pl.String).str.to_lowercase().str.replace_all(r"\d", "0")
    return lower.str.extract_all(WORD).list.join(" ").to_list()


def _examples(inputs: Mapping[str, Files], params: ClassifierParams) -> dict[str, Examples]:
    """The passages drawn of each language."""
    found: dict[str, Examples] = {}
    for document, text, source, code, is_good, is_bad in _judged(inputs):
        examples = found.setdefault(code, Examples(params))
        if params.positive_sources:
            is_good = source in params.positive_sources
        if source in params.negative_sources or (is_bad and not is_good):
            examples.bad.offer(document, text, code)
        elif is_good:
            examples.good.offer(document, text, code)
    return found


class Examples:
    """One language's good and bad passages, as they are drawn."""

    def __init__(self, params: ClassifierParams) -> None:
        self.good = Draw(params.max_passages, params.seed, params.passage_words)
        self.bad = Draw(params.max_passages // 2, params.seed, params.passage_words)

    def examples(self, code: str, params: ClassifierParams) -> tuple[list[str], list[str]]:
        """Good and bad ones, as fastText reads them; among the bad are damaged copies of the good."""
        chance = random.Random(params.seed)
        positives, negatives = self.good.drawn(), self.bad.drawn()
        damage = [_damaged(text, kind, chance, code) for kind, text in enumerate(positives)]
        negatives += damage[: params.max_passages - len(negatives)]
        chance.shuffle(negatives)
        return normal(positives), normal(negatives)


def _judged(inputs: Mapping[str, Files]) -> Iterator[tuple[str, str, str, str, bool, bool]]:
    """id, text, source, language, and whether the rules find it good or bad, of every document, a shard at a time."""
    good, bad = _good(), ~_acceptable()
    measures = sorted({*good.meta.root_names(), *bad.meta.root_names()} - {"lang"})
    for name in inputs["documents"].names("kept/"):
        signals = pl.read_parquet(inputs["signals"].path(name.replace("kept/", "signals/", 1)), columns=measures)
        documents = pl.read_parquet(inputs["documents"].path(name), columns=["id", "text", "source", "lang"])
        judged = documents.with_columns(pl.col("lang").fill_null(ENGLISH)).hstack(signals)
        yield from judged.select("id", "text", "source", "lang", good=good, bad=bad).iter_rows()


class Draw:
    """A fair draw of passages: those whose hash is lowest (bottom-k sampling, Cohen and Kaplan 2007).

    A passage's hash is of its document's id and its number in there, so the draw hangs on the documents alone, not on
    how they lie in shards, and no more than `most` passages are ever held.
    """

    def __init__(self, most: int, seed: int, words: int) -> None:
        self.most = most
        self.seed = seed
        self.words = words
        self._heap: list[tuple[int, str]] = []  # (minus its hash, passage): the highest hash on top

    def offer(self, document: str, text: str, code: str = ENGLISH) -> None:
        """Take what ranks among the lowest of the document's passages of `words` words."""
        count = passage_count(_length(text, code), _size(self.words, code))
        low = [(number, rank) for number in range(count) if self._takes(rank := self._rank(document, number))]
        if not low:
            return
        found = passages(text, self.words, code)
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
    return _all(
        pl.col("words").is_between(50, 100_000),
        _mean_word_length(3, 10),
        pl.col("alpha_words") >= 0.8,
        pl.col("stop_words") >= 2,
        pl.col("top_2_gram_characters") <= 0.20,
        pl.col("duplicate_5_gram_characters") <= 0.15,
        pl.col("sentences") >= 3,
    )


def _good() -> pl.Expr:
    """Gopher's and C4's rules with a margin."""
    return _all(
        _acceptable(),
        pl.col("words") >= 100,
        _mean_word_length(4, 8),
        pl.col("alpha_words") >= 0.9,
        pl.col("stop_words") >= 5,
        pl.col("duplicate_5_gram_characters") <= 0.10,
        pl.col("sentences") >= 5,
    )


def _all(*conditions: pl.Expr) -> pl.Expr:
    """All of them hold, as far as they say anything of the document's language."""
    return pl.all_horizontal(condition.fill_null(True) for condition in conditions)


def _mean_word_length(least: float, most: float) -> pl.Expr:
    low = of_language("least", pl.Float64, lambda known: least * min(1.0, known.word_length))
    high = of_language("most", pl.Float64, lambda known: most * max(1.0, known.word_length))
    return pl.col("mean_word_length").is_between(low, high)


def passages(text: str, words: int, code: str = ENGLISH) -> list[str]:
    """Consecutive pieces of about `words` words; a rest of less than half of that is left out."""
    units, size = _units(text, code), _size(words, code)
    count = passage_count(len(units), size)
    return ["".join(units[number * size : (number + 1) * size]).strip() for number in range(count)]


def _units(text: str, code: str) -> list[str]:
    """The words of a text with the white space behind them; its letters where there is none between words."""
    if language(code).units_per_word is None:
        return re.findall(r"\S+\s*", text)
    return pl.Series([text]).str.extract_all(LETTER).explode().drop_nulls().to_list()


def _length(text: str, code: str) -> int:
    """The number of its units."""
    if language(code).units_per_word is None:
        return len(text.split())
    return int(pl.Series([text]).str.count_matches(LETTER)[0])


def _size(words: int, code: str) -> int:
    """How many units are so many words."""
    return round(words * (language(code).units_per_word or 1))


def passage_count(length: int, words: int) -> int:
    """How many pieces of `words` words a text of `length` words gives."""
    return length // words + (length % words >= max(1, words // 2))


def _damaged(text: str, kind: int, chance: random.Random, code: str = ENGLISH) -> str:
    """A bad copy: words in random order, one line over and over, or a menu of single words.

    Where no spaces stand between words, a few letters are a word.
    """
    words, space = text.split(), " "
    if language(code).units_per_word is not None:
        units, size = _units("".join(words), code), max(1, _size(2, code))
        words, space = ["".join(units[at : at + size]) for at in range(0, len(units), size)], ""
    if kind % 3 == 0:
        chance.shuffle(words)
        return space.join(words)
    if kind % 3 == 1:
        start = chance.randrange(max(1, len(words) - 8))
        return "\n".join([space.join(words[start : start + chance.randint(2, 8)])] * 20)
    least = max(2, round(4 * language(code).word_length)) if space else 2
    picked = chance.sample(words, min(len(words), 60))
    menu = [word.strip(".,;:()\"'").capitalize() for word in picked if len(word) >= least]
    return chance.choice((" | ", "\n", " > ", " · ", "\n- ")).join(menu)


def _probabilities(model: Any, lines: Sequence[str]) -> list[float]:
    if not lines:
        return []
    labels, values = model.predict(list(lines), k=2)
    return [_good_of(row, chances) for row, chances in zip(labels, values, strict=True)]


def _good_of(labels: Sequence[str], chances: Sequence[float]) -> float:
    return next((min(float(c), 1.0) for label, c in zip(labels, chances, strict=True) if label == GOOD), 0.0)


@lru_cache(maxsize=32)
def _load(path: str) -> Any:
    """A model that this stage wrote; the store has verified its digest. Foreign model files are never loaded."""
    return _read(Path(path))


def _read(path: Path) -> Any:
    import fasttext

    fasttext.FastText.eprint = lambda *words: None
    return fasttext.load_model(str(path))


STAGE = Stage(
    "classifier",
    version=3,
    params=ClassifierParams,
    function="llmcore.selection.classifier:train",
    partition=(),
    data="llmcore.text.languages:data",
)
