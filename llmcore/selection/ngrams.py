"""Repetition of word n-grams inside documents: one pass over word hashes, compiled.

The definitions are those of `signals`: the most frequent n-gram with all its occurrences, and n-grams seen before, read
left to right and jumped over.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numba import njit

from llmcore.selection.words import I64, U64, ngram_hash, string_hashes


def repetition(
    rows: pl.Series,
    words: pl.Series,
    count: int,
    top: Mapping[int, int],
    repeated: Mapping[int, int],
    spaced: bool = True,
) -> pl.DataFrame:
    """Characters for each of `count` documents: columns top_N_gram_characters and duplicate_N_gram_characters.

    rows: ascending document number of each word; words: the words in their order; top, repeated: N -> how many of these
    words an N-gram is; spaced: whether there is a space between them.
    """
    bounds = np.searchsorted(rows.to_numpy(), np.arange(count + 1)).astype(np.int64)
    hashes = string_hashes(words)
    lengths = words.str.len_chars().cast(pl.Int64).to_numpy()
    columns = {
        f"top_{n}_gram_characters": _scan(hashes, lengths, bounds, size, True, spaced) for n, size in top.items()
    } | {
        f"duplicate_{n}_gram_characters": _scan(hashes, lengths, bounds, size, False, spaced)
        for n, size in repeated.items()
    }
    return pl.DataFrame(columns)


@njit(cache=True)
def _scan(hashes: U64, lengths: I64, bounds: I64, n: int, top: bool, spaced: bool) -> I64:
    """Open addressing in one table for all documents; a slot is empty unless it carries the document's number."""
    documents = len(bounds) - 1
    out = np.zeros(documents, np.int64)
    longest = 1
    for document in range(documents):
        longest = max(longest, bounds[document + 1] - bounds[document])
    size = 16
    while size < 2 * longest:
        size *= 2
    mask = np.uint64(size - 1)
    keys = np.zeros(size, np.uint64)
    owners = np.full(size, -1, np.int64)
    counts = np.zeros(size, np.int64)
    firsts = np.zeros(size, np.int64)
    for document in range(documents):
        first, last = bounds[document], bounds[document + 1] - n
        best_count, best_first = 0, -1
        place = first
        while place <= last:
            key = ngram_hash(hashes, place, n)
            slot = key & mask
            while owners[slot] == document and keys[slot] != key:
                slot = (slot + np.uint64(1)) & mask
            seen = owners[slot] == document
            if not seen:
                owners[slot], keys[slot], counts[slot], firsts[slot] = document, key, 0, place
            counts[slot] += 1
            if top:
                if counts[slot] > best_count or (counts[slot] == best_count and firsts[slot] < best_first):
                    best_count, best_first = counts[slot], firsts[slot]
                place += 1
            elif seen:
                for word in range(place, place + n):
                    out[document] += lengths[word]
                place += n
            else:
                place += 1
        if top and best_first >= 0:
            characters = n - 1 if spaced else 0
            for word in range(best_first, best_first + n):
                characters += lengths[word]
            out[document] = characters * best_count
    return out
