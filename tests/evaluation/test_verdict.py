"""The verdict says which baseline a model beats, and what to try where it beats too few."""

from __future__ import annotations

from typing import Any

import pytest

from llmcore.evaluation.verdict import verdict

BASELINES = {"test_ngram_7": 1.58, "test_ngram_5": 1.73, "test_unigram": 4.4, "test_uniform": 8.0}


def judged(bits: float, **more: Any) -> str:
    return verdict({"test_bits_per_byte": bits, "test_documents": 40, **BASELINES, **more})


@pytest.mark.parametrize(
    ("bits", "begins", "says"),
    [
        (1.40, "Better than a byte 7-gram", "1.400 against 1.580 bits per byte (11 % less)"),
        (1.60, "Worse than a byte 7-gram (1.600 against 1.580", "better than a byte 5-gram"),
        (2.50, "Worse than a byte 5-gram (2.500 against 1.730", "too little text or too few steps; try"),
        (4.60, "Worse than a byte unigram", "next to nothing"),
        (8.10, "No better than guessing at random", "train.learning_rate"),
    ],
)
def test_each_rung_has_its_words(bits: float, begins: str, says: str) -> None:
    words = judged(bits)
    assert words.startswith(begins) and says in words and "\n" not in words


def test_what_to_try_hangs_on_how_often_the_text_was_read() -> None:
    assert "more train.epochs (0.56 so far" in judged(2.5, passes=0.56)
    assert "train.epochs" not in judged(2.5, passes=6.0) and "smaller model" in judged(2.5, passes=6.0)


def test_a_difference_within_its_interval_is_none() -> None:
    assert judged(1.57, test_minus_ngram_7_high=0.02).startswith("No clear difference from a byte 7-gram")
    assert judged(1.57, test_minus_ngram_7_high=-0.001).startswith("Better than")


def test_the_second_sentence_warns() -> None:
    assert "repeats 40 % of the places" in judged(1.4, memorised_train=0.4, memorised_held_out=0.0)
    assert "0.60 bits per byte better than new text" in judged(1.4, gap=0.6, gap_low=0.5, validation_bits_per_byte=1.5)
    assert judged(1.4, gap=0.6, gap_low=-0.1, validation_bits_per_byte=1.5) == judged(1.4)
    assert "Only 3 documents are held out" in judged(1.4, test_documents=3)
    assert "raise split.validation" in verdict({"validation_bits_per_byte": 1.4, "validation_documents": 1})


def test_what_was_not_measured_is_not_spoken_of() -> None:
    assert verdict({}) == ""
    assert verdict({"test_bits_per_byte": 1.4}) == "1.400 bits per byte on held-out text."
