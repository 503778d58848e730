"""How often a 95 % interval for bits per byte holds the truth: percentile, BCa and studentised bootstrap.

    python benchmarks/intervals.py [TRIES]

Documents are drawn from populations whose bits per byte are known: the bundled addresses as zlib packs them, and two of
20,000 documents with sizes as the web has them (log-normal), of one kind and of two kinds of text. Prints one JSON line
for each population and number of documents: the share of intervals that hold the truth, and their median width.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator
from math import sqrt
from statistics import NormalDist

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmcore.evaluation.intervals import RESAMPLES, with_interval
from llmcore.quickstart import bundled

DOCUMENTS = (5, 10, 20, 60, 200)
NORMAL = NormalDist()
Floats = NDArray[np.float64]


def populations() -> Iterator[tuple[str, Floats, Floats]]:
    """Name, bits and bytes of each document."""
    texts = [text.encode() for text in pl.read_parquet(bundled("sotu.parquet"))["text"]]
    packed = [8.0 * len(zlib.compress(text)) for text in texts]
    yield "addresses", np.array(packed), np.array([float(len(text)) for text in texts])
    rng = np.random.default_rng(0)
    for spread in (1.0, 1.5):
        size = np.exp(rng.normal(8, spread, 20_000))
        yield f"one kind, sizes {spread}", size * (1.2 + 1.5 / np.log(size) + rng.normal(0, 0.15, 20_000)), size
        easy = rng.random(20_000) < 0.8
        yield f"two kinds, sizes {spread}", size * (np.where(easy, 1.4, 2.0) + rng.normal(0, 0.1, 20_000)), size


def others(bits: Floats, size: Floats, seed: int) -> dict[str, tuple[float, float]]:
    """The intervals that were not chosen."""
    drawn = np.random.default_rng(seed).integers(0, len(bits), (RESAMPLES, len(bits)))
    values = np.sort(bits[drawn].sum(axis=1) / size[drawn].sum(axis=1))
    ratio = bits.sum() / size.sum()
    without = (bits.sum() - bits) / (size.sum() - size)
    away = without.mean() - without
    bend = (away**3).sum() / (6 * (away @ away) ** 1.5)
    middle = NORMAL.inv_cdf(min(max(float((values < ratio).mean()), 1e-3), 1 - 1e-3))
    shares = [NORMAL.cdf(middle + (middle + z) / (1 - bend * (middle + z))) for z in (-1.96, 1.96)]
    spread = bits - ratio * size
    error = sqrt(float(spread @ spread) * len(bits) / (len(bits) - 1)) / size.sum()
    return {
        "percentile": tuple(np.quantile(values, [0.025, 0.975])),
        "BCa": tuple(np.quantile(values, shares)),
        "normal": (ratio - 1.96 * error, ratio + 1.96 * error),
    }


def main() -> None:
    tries = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for name, bits, size in populations():
        truth = bits.sum() / size.sum()
        for documents in DOCUMENTS:
            rng = np.random.default_rng(1)
            held: dict[str, list[bool]] = {}
            widths: dict[str, list[float]] = {}
            for number in range(tries):
                drawn = rng.integers(0, len(bits), documents)
                ours = with_interval(bits[drawn], size[drawn], number)
                found = {"studentised": (ours["low"], ours["high"]), **others(bits[drawn], size[drawn], number)}
                for method, (low, high) in found.items():
                    held.setdefault(method, []).append(low <= truth <= high)
                    widths.setdefault(method, []).append(high - low)
            shares = {method: round(float(np.mean(hits)), 3) for method, hits in held.items()}
            median = {method: round(float(np.median(some)), 4) for method, some in widths.items()}
            print(json.dumps({"documents drawn from": name, "documents": documents, "held": shares, "width": median}))


if __name__ == "__main__":
    main()
