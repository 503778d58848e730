"""Intervals hold the truth as often as they say, also where documents are few and of very different lengths."""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from llmcore.evaluation.intervals import LEAST, difference_with_interval, with_interval
from llmcore.quickstart import bundled

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def addresses() -> tuple[Floats, Floats]:
    """Bits (as zlib needs) and bytes of real documents, from 5 to 170 kB."""
    texts = [text.encode() for text in pl.read_parquet(bundled("sotu.parquet"))["text"]]
    return np.array([8.0 * len(zlib.compress(text)) for text in texts]), np.array([float(len(text)) for text in texts])


def uneven() -> tuple[Floats, Floats]:
    """Documents with sizes as on the web: a few hold most of the bytes. Percentile intervals hold the truth in 88 %."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.normal(8, 1.5, 20_000))
    return size * (1.2 + 1.5 / np.log(size) + rng.normal(0, 0.15, 20_000)), size


def coverage(bits: Floats, size: Floats, documents: int, tries: int = 300) -> float:
    """How often the interval of so many documents drawn from a population holds the population's ratio."""
    rng, truth, held = np.random.default_rng(1), bits.sum() / size.sum(), 0
    for number in range(tries):
        drawn = rng.integers(0, len(bits), documents)
        found = with_interval(bits[drawn], size[drawn], seed=number)
        held += found["low"] <= truth <= found["high"]
    return held / tries


def test_twenty_documents_give_an_interval_of_95_per_cent(addresses: tuple[Floats, Floats]) -> None:
    assert coverage(*addresses, documents=20) >= 0.94
    assert coverage(*uneven(), documents=20) >= 0.92


def test_the_interval_holds_the_value_and_narrows_with_more_documents() -> None:
    rng = np.random.default_rng(5)
    size = rng.integers(500, 1500, 400).astype(float)
    bits = size * rng.normal(1.6, 0.3, 400)
    many, few = with_interval(bits, size, 1), with_interval(bits[:20], size[:20], 1)
    assert many["low"] < many["value"] < many["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]
    assert with_interval(bits, size, 1) == many


def test_a_paired_difference_is_far_surer_than_two_intervals(addresses: tuple[Floats, Floats]) -> None:
    bits, size = (numbers[:40] for numbers in addresses)
    other = bits + 0.05 * size
    paired = with_interval(bits - other, size, 1)
    assert paired == {"value": -0.05}, "they differ everywhere by the same, so there is nothing to be unsure of"
    other = other + size * np.random.default_rng(2).normal(0, 0.02, len(size))
    paired = with_interval(bits - other, size, 1)
    apart = difference_with_interval(bits, size, other, size, 1)
    assert paired["high"] < 0 < apart["high"], "only the paired one tells that the first is better"
    assert paired["value"] == pytest.approx(apart["value"], abs=2e-6)


def test_where_there_is_nothing_to_resample_there_is_no_interval() -> None:
    rng = np.random.default_rng(3)
    size, bits = rng.uniform(1, 2, 20), rng.uniform(1, 2, 20)
    for few in range(1, LEAST):
        assert set(with_interval(bits[:few], size[:few], 1)) == {"value"}
        assert set(difference_with_interval(bits, size, bits[:few], size[:few], 1)) == {"value"}
    assert with_interval(8 * size, size, 1) == {"value": 8.0}
    assert set(with_interval(bits[:LEAST], size[:LEAST], 1)) == {"value", "low", "high"}
