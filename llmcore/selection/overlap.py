"""Which n-grams of a small set (the benchmarks') occur in which documents: one compiled pass over the text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

from llmcore.selection.words import (
    I64,
    U8,
    U32,
    U64,
    folding,
    longest_row,
    ngram_hash,
    utf8,
    word_hashes,
    words_between,
)

BITS_PER_KEY = 16  # of the filter in front of the search: one n-gram in 16 passes it by chance


def ngrams(pieces: pl.Series, n: int, shortest: int) -> pl.DataFrame:
    """Every n-gram of every row: piece (row), start (word), length, hash.

    A row of fewer than n words gives one n-gram of all its words; of fewer than `shortest`, none.
    """
    hashes, bounds = word_hashes(pieces)
    piece, start, length, value = _ngrams(hashes, bounds, n, shortest)
    return pl.DataFrame({"piece": piece, "start": start, "length": length, "hash": value})


def find(text: pl.Series, keys: U64, lengths: list[int]) -> pl.DataFrame:
    """Occurrences, each once a document: document (row of `text`), key (index in `keys`, sorted and unique)."""
    schema = {"document": pl.Int64, "key": pl.Int64}
    if not len(keys) or not len(text):
        return pl.DataFrame(schema=schema)
    data, offsets = utf8(text)
    bits = max(10, int(len(keys) * BITS_PER_KEY - 1).bit_length())
    documents, found = _find(data, offsets, folding(), keys, np.array(lengths, np.int64), _filter(keys, bits), bits)
    return pl.DataFrame({"document": documents, "key": found}, schema=schema).unique().sort("document", "key")


@njit(cache=True)
def _ngrams(hashes: U64, bounds: I64, n: int, shortest: int) -> tuple[I64, I64, I64, U64]:
    total = 0
    for piece in range(len(bounds) - 1):
        words = bounds[piece + 1] - bounds[piece]
        if words >= shortest:
            total += words - min(n, words) + 1
    pieces, starts, lengths = np.empty(total, np.int64), np.empty(total, np.int64), np.empty(total, np.int64)
    values = np.empty(total, np.uint64)
    at = 0
    for piece in range(len(bounds) - 1):
        words = bounds[piece + 1] - bounds[piece]
        if words < shortest:
            continue
        width = min(n, words)
        for start in range(words - width + 1):
            pieces[at], starts[at], lengths[at] = piece, start, width
            values[at] = ngram_hash(hashes, bounds[piece] + start, width)
            at += 1
    return pieces, starts, lengths, values


@njit(cache=True)
def _filter(keys: U64, bits: int) -> npt.NDArray[np.bool_]:
    present = np.zeros(1 << bits, np.bool_)
    for key in keys:
        present[key >> np.uint64(64 - bits)] = True
    return present


@njit(cache=True)
def _find(
    data: U8, offsets: I64, table: U32, keys: U64, lengths: I64, present: npt.NDArray[np.bool_], bits: int
) -> tuple[I64, I64]:
    words = np.empty(longest_row(offsets) // 2 + 1, np.uint64)
    documents, found = np.empty(1024, np.int64), np.empty(1024, np.int64)
    count = 0
    for document in range(len(offsets) - 1):
        number = words_between(data, offsets[document], offsets[document + 1], table, words)
        for length in lengths:
            for first in range(number - length + 1):
                value = ngram_hash(words, first, length)
                if not present[value >> np.uint64(64 - bits)]:
                    continue
                place = np.searchsorted(keys, value)
                if place == len(keys) or keys[place] != value:
                    continue
                if count == len(found):
                    documents = np.concatenate((documents, np.empty_like(documents)))
                    found = np.concatenate((found, np.empty_like(found)))
                documents[count], found[count] = document, place
                count += 1
    return documents[:count], found[:count]
