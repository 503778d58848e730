"""Evaluation: the baselines are right, the model's score is right, and both are in the same unit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from llmcore.evaluation.baselines import ngram_bits, xz_bytes
from llmcore.evaluation.bits_per_byte import document_nats
from llmcore.evaluation.memorisation import CONTINUATION, PREFIX, continuation_rate
from llmcore.evaluation.samples import beginnings, write_samples
from llmcore.model.transformer import ModelConfig, Transformer
from llmcore.quickstart import bundled
from tests.release_inputs import one_thread

WINDOW = 96


@pytest.fixture(scope="module")
def model() -> Iterator[Transformer]:
    shape = ModelConfig(vocab_size=300, width=32, layers=2, heads=2, kv_heads=1, ffn_width=64, window=WINDOW)
    with one_thread():
        yield Transformer(shape, seed=3).eval()


def test_a_document_that_fits_one_window_scores_as_the_model_says(model: Transformer) -> None:
    tokens = np.random.default_rng(0).integers(1, 300, 60).astype(np.uint16)
    tokens[-1] = 0
    (nats,) = document_nats(model, [tokens], beginning=0)
    fed = torch.tensor([[0, *tokens[:-2].tolist()]])
    with torch.no_grad():
        log_probabilities = model(fed).log_softmax(dim=-1)[0]
    expected = -sum(float(log_probabilities[i, int(t)]) for i, t in enumerate(tokens[:-1]))
    assert nats == pytest.approx(expected, rel=1e-5)


def test_every_token_of_a_long_document_counts_once(model: Transformer) -> None:
    """A model that gives every token the same probability scores the length, whatever the windows."""
    even = Transformer(model.config, seed=0).eval()
    for parameter in even.parameters():
        torch.nn.init.zeros_(parameter)
    for length in (2, WINDOW, WINDOW + 1, WINDOW + 2, 3 * WINDOW + 17):
        (nats,) = document_nats(even, [np.ones(length, dtype=np.uint16)], beginning=0)
        assert nats == pytest.approx((length - 1) * math.log(300), rel=1e-5)


def test_context_helps_across_windows(model: Transformer) -> None:
    """Tokens beyond the first window are scored with at least half a window of context."""
    tokens = np.random.default_rng(1).integers(1, 300, 2 * WINDOW).astype(np.uint16)
    (whole,) = document_nats(model, [tokens], beginning=0)
    halves = document_nats(model, [np.append(tokens[:WINDOW], 0), tokens[WINDOW:]], beginning=0)
    assert whole != pytest.approx(float(halves.sum()), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.binary(min_size=1, max_size=30).map(lambda b: b.replace(b"\0", b"x")), min_size=1, max_size=6),
    order=st.integers(1, 5),
)
def test_ngrams_equal_a_plain_implementation(texts: list[bytes], order: int) -> None:
    held_out = b"abracadabra" + texts[0]
    fast = ngram_bits(texts, [held_out], order)[0, -1]
    assert fast == pytest.approx(_plain_bits(texts, order, held_out), rel=1e-9)


def _plain_bits(texts: list[bytes], order: int, held_out: bytes) -> float:
    counts: Counter[tuple[bytes, int]] = Counter()
    for text in texts:
        padded = bytes(7) + text
        for place in range(7, len(padded)):
            for length in range(order):
                counts[padded[place - length : place], padded[place]] += 1
    totals: Counter[bytes] = Counter()
    kinds: Counter[bytes] = Counter()
    for (context, _), count in counts.items():
        totals[context] += count
        kinds[context] += 1
    bits, padded = 0.0, bytes(7) + held_out
    for place in range(7, len(padded)):
        probability = 1 / 256
        for length in range(order):
            context = padded[place - length : place]
            if totals[context]:
                probability = (counts[context, padded[place]] + kinds[context] * probability) / (
                    totals[context] + kinds[context]
                )
        bits -= math.log2(probability)
    return bits


def test_baselines_on_the_addresses_are_what_is_known_of_them() -> None:
    """xz -9e alone about 2.2 bits per byte; 5-grams between that and 7-grams (measured on random splits)."""
    texts = [text.encode() for text in pl.read_parquet(bundled("sotu.parquet"))["text"].sample(60, seed=1)]
    held_out, trained = texts[:6], texts[6:]
    size = sum(len(text) for text in held_out)
    _, _, _, _, five, _, seven = ngram_bits(trained, held_out, 7).sum(axis=0) / size
    xz = 8 * xz_bytes(b"\n".join(held_out)) / size
    assert 1.4 < seven < five < 2.0 < xz < 2.5


def test_memorisation_sees_a_model_that_repeats(model: Transformer) -> None:
    """A tied untrained model mostly repeats the last token, and so does a constant document."""
    constant = [np.full(PREFIX + CONTINUATION + 20, 7, dtype=np.uint16)]
    varied = [np.random.default_rng(2).integers(1, 300, 400).astype(np.uint16)]
    repeats = continuation_rate(model, constant, 7, 8, seed=1)
    invents = continuation_rate(model, varied, 7, 8, seed=1)
    assert invents["exact"] == 0
    assert repeats["mean_agreeing_tokens"] >= invents["mean_agreeing_tokens"]
    assert invents["low"] == 0.0 and 0.0 < invents["high"] < 0.5


def test_memorisation_counts_places_that_were_read_and_how_often(model: Transformer) -> None:
    rng = np.random.default_rng(2)
    documents = [rng.integers(1, 300, 400).astype(np.uint16) for _ in range(3)]
    span = PREFIX + CONTINUATION
    times = [np.zeros(400, dtype=np.int64) for _ in documents]
    assert continuation_rate(model, documents, 7, 8, 1, times) == {"prompts": 0, "exact": 0}
    times[1][100 : 100 + span] = 2
    times[2][10 : 10 + span] = 1
    found = continuation_rate(model, documents, 7, 8, 1, times)
    assert found["prompts"] == 2, "there are two places, and none counts twice"
    assert found["mean_times"] == 1.5
    assert {often: rate["prompts"] for often, rate in found["by_times"].items()} == {"1": 1, "2": 1}
    times[1][100 + span - 1] = 0
    assert continuation_rate(model, documents, 7, 8, 1, times)["prompts"] == 1
    assert continuation_rate(model, documents, 7, 8, 1)["prompts"] == 8


def test_samples_start_from_prose_of_different_sources() -> None:
    prose = "one two three four five six seven eight nine ten eleven twelve"
    rows = [
        ("manual", f"Apache Server\n{prose} thirteen"),
        ("manual", f"Apache Server\n{prose} again"),
        ("manual", f"Apache Server\n{prose.replace('one', 'uno')}"),
        ("mail", f"Re: hello\n\n{prose.replace('one', 'eins')}"),
        ("novel", ""),
    ]
    documents = pl.DataFrame(rows, schema=["source", "text"], orient="row")
    assert beginnings(documents) == [
        "eins two three four five six",
        "one two three four five six",
        "uno two three four five six",
    ]


def test_a_sample_is_never_empty(model: Transformer) -> None:
    """Not even of a model that wants to end at once."""
    vocabulary = {chr(97 + number % 26) * (1 + number // 26): number for number in range(1, 300)} | {"<|endoftext|>": 0}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    ender = Transformer(model.config, seed=0).eval()
    for parameter in ender.parameters():
        torch.nn.init.zeros_(parameter)
    (sample,) = write_samples(ender, tokenizer, ["b"], 0, 3, 1.0, 1, seed=1)
    assert sample["text"].strip()
