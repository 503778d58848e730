"""95 % intervals over documents, for what is a sum over documents divided by another: bits by bytes.

Method: studentised bootstrap (bootstrap-t; Efron and Tibshirani 1993, chapter 12) with the ratio's jackknife standard
error; the ends of its equal-tailed and of its symmetric interval (Hall 1988) that lie further out. With few documents
of very different lengths, percentile intervals hold the truth far less often than they say, and BCa ones hardly more
often: `benchmarks/intervals.py` measures it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEAST = 5  # documents: how documents differ cannot be told from fewer
CONFIDENCE, TAILS = 0.95, (0.025, 0.975)
TOGETHER = 1 << 21  # numbers that are drawn at once
NOTHING = 1e-9  # bits per byte: a spread that is rounding

Floats = NDArray[np.float64]


def with_interval(bits: Floats, size: Floats, seed: int) -> dict[str, float]:
    """Sum of bits over sum of bytes: {value}, and {low, high} where there are enough documents that differ.

    bits, size: [documents]; of differences between two models on the same documents, the interval is a paired one.
    """
    (value,), (error,) = _ratio(bits[None], size[None])
    return _bounded(value, error, *_resampled(bits, size, seed), documents=len(bits))


def difference_with_interval(
    bits: Floats, size: Floats, other_bits: Floats, other_size: Floats, seed: int
) -> dict[str, float]:
    """The first ratio minus the second, of two sets of documents drawn apart from each other; as `with_interval`."""
    (one,), (error,) = _ratio(bits[None], size[None])
    (other,), (other_error,) = _ratio(other_bits[None], other_size[None])
    values, errors = _resampled(bits, size, seed)
    other_values, other_errors = _resampled(other_bits, other_size, seed + 1)
    return _bounded(
        one - other,
        np.hypot(error, other_error),
        values - other_values,
        np.hypot(errors, other_errors),
        documents=min(len(bits), len(other_bits)),
    )


def _bounded(value: float, error: float, values: Floats, errors: Floats, documents: int) -> dict[str, float]:
    """value, error: of the documents; values, errors: of the resamples; documents: in the smaller set."""
    found = {"value": round(float(value), 6)}
    if documents < LEAST or not error > NOTHING:
        return found
    some = errors > NOTHING
    scores = (values[some] - value) / errors[some]
    below, above = np.quantile(scores, TAILS)
    either = np.quantile(np.abs(scores), CONFIDENCE)
    return found | {
        "low": round(float(value - max(above, either) * error), 6),
        "high": round(float(value + max(-below, either) * error), 6),
    }


def _ratio(bits: Floats, size: Floats) -> tuple[Floats, Floats]:
    """Of each row: sum of bits over sum of bytes, and its standard error; [rows, documents] → [rows] twice."""
    documents, total = bits.shape[1], size.sum(axis=1)
    value = bits.sum(axis=1) / total
    # without one document the ratio moves by what that document leaves over, by the size of the others
    others = np.maximum(total[:, None] - size, NOTHING * total[:, None])
    moved = (bits - value[:, None] * size) / others
    return value, np.sqrt((moved * moved).sum(axis=1) * max(documents - 1, 1) / documents)


def _resampled(bits: Floats, size: Floats, seed: int) -> tuple[Floats, Floats]:
    """`_ratio` of RESAMPLES draws of as many documents."""
    source, documents = np.random.Generator(np.random.Philox(seed)), len(bits)
    rows = max(1, TOGETHER // documents)
    parts = []
    for done in range(0, RESAMPLES, rows):
        drawn = source.integers(0, documents, (min(rows, RESAMPLES - done), documents))
        parts.append(_ratio(bits[drawn], size[drawn]))
    values, errors = zip(*parts, strict=True)
    return np.concatenate(values), np.concatenate(errors)
