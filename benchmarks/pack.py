"""Packing, documents a second, and how many documents are cut that fit a window, beside concatenate-and-cut.

    python benchmarks/pack.py [--documents N] [--window N] [--seed N]

Lengths are log-normal, as those of web pages are (median 500 tokens). The peer is the usual way of packing (GPT-3,
nanoGPT): all documents in a row, cut every window. Prints one JSON line: seconds, documents/s, share of the windows'
tokens that are filled, and the share of documents no longer than a window that were cut nevertheless, of both.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import polars as pl

from llmcore.tokens.pack import plan_windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    drawn = np.random.default_rng(given.seed).lognormal(np.log(500), 1.1, given.documents)
    lengths = drawn.astype(np.int64).clip(2, 100_000)
    documents = pl.DataFrame(
        {
            "id": np.arange(given.documents).astype(str),
            "shard": ["g000-x-00000.parquet"] * given.documents,
            "row": np.arange(given.documents),
            "n_tokens": lengths,
        }
    )
    started = time.perf_counter()
    plan = plan_windows(documents, given.window)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    ends = np.cumsum(lengths)
    first, last = (ends - lengths) // given.window, (ends - 1) // given.window
    theirs = time.perf_counter() - started

    fits = lengths <= given.window
    pieces = plan.group_by("row").len().sort("row")["len"].to_numpy()
    windows, their_windows = int(plan["window"][-1]) + 1, -(-int(ends[-1]) // given.window)
    if int(plan["length"].sum()) != int(lengths.sum()):
        raise SystemExit("the plan loses tokens")
    result = {
        "benchmark": "pack",
        "documents": given.documents,
        "window": given.window,
        "seconds": round(ours, 3),
        "documents_per_second": round(given.documents / ours),
        "fill": round(int(lengths.sum()) / (windows * given.window), 6),
        "cut_needlessly": round(float((pieces[fits] > 1).mean()), 6),
        "concatenate_seconds": round(theirs, 3),
        "concatenate_fill": round(int(lengths.sum()) / (their_windows * given.window), 6),
        "concatenate_cut_needlessly": round(float((first != last)[fits].mean()), 6),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
