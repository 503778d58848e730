"""The true Jaccard similarity of documents: their shingles themselves, where signatures only estimate.

The shingles are those of `minhash`, as hashes of 64 bits, sorted and distinct. They lie in one file of the scratch
folder that is mapped, not read: 8 bytes a word of the documents in question on disk, and in memory what the operating
system leaves there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numba import njit

from llmcore.selection.words import I64, U8, U32, U64, folding, longest_row, ngram_hash, utf8, words_between

ABSENT = -1


class Shingles:
    """The shingles of some of `documents` documents, by their number; more are added as they are asked for.

    data[s] uint64; first[n], last[n] int64: where in it a document's lie, ABSENT where they were not asked for.
    """

    def __init__(self, path: Path, documents: int, shingle_words: int) -> None:
        self.first = np.full(documents, ABSENT, np.int64)
        self.last = np.full(documents, ABSENT, np.int64)
        self.data: U64 = np.zeros(0, np.uint64)
        self._path = path
        self._shingle_words = shingle_words
        self._written = 0
        path.write_bytes(b"")

    def add(self, numbers: I64, texts: pl.Series) -> None:
        """Append the shingles of these documents; `mapped` shows them."""
        hashes, bounds = shingles_of(texts, self._shingle_words)
        with self._path.open("ab") as file:
            file.write(hashes.tobytes())
        self.first[numbers], self.last[numbers] = bounds[:-1] + self._written, bounds[1:] + self._written
        self._written += len(hashes)

    def mapped(self) -> Shingles:
        """Itself, with all that was added in `data`."""
        if self._written:
            self.data = np.asarray(np.memmap(self._path, np.uint64, "r+"))
        return self

    def close(self) -> None:
        """Let go of the file, and delete it."""
        self.data = np.zeros(0, np.uint64)
        self._path.unlink()


def shingles_of(texts: pl.Series, shingle_words: int) -> tuple[U64, I64]:
    """The distinct shingles of each text in ascending order: hashes[s], and bounds[n + 1] of the texts in them."""
    data, offsets = utf8(texts)
    return _shingles(data, offsets, folding(), shingle_words)


@njit(cache=True)
def similarity(data: U64, first: int, last: int, other_first: int, other_last: int) -> float:
    """Jaccard similarity of two sorted sets of hashes; 0 where both are empty."""
    both = 0
    left, right = first, other_first
    while left < last and right < other_last:
        if data[left] == data[right]:
            both += 1
            left += 1
            right += 1
        elif data[left] < data[right]:
            left += 1
        else:
            right += 1
    either = (last - first) + (other_last - other_first) - both
    return both / either if either else 0.0


@njit(cache=True)
def _shingles(data: U8, offsets: I64, table: U32, shingle_words: int) -> tuple[U64, I64]:
    documents = len(offsets) - 1
    words = np.empty(longest_row(offsets) // 2 + 1, np.uint64)
    out = np.empty(1024, np.uint64)
    bounds = np.zeros(documents + 1, np.int64)
    for document in range(documents):
        count = words_between(data, offsets[document], offsets[document + 1], table, words)
        width = min(shingle_words, count)
        number = count - width + 1 if count else 0
        found = np.empty(number, np.uint64)
        for first in range(number):
            found[first] = ngram_hash(words, first, width)
        found.sort()
        end = bounds[document]
        while end + number > len(out):
            longer = np.empty(2 * len(out), np.uint64)
            longer[:end] = out[:end]
            out = longer
        for index in range(number):
            if index == 0 or found[index] != found[index - 1]:
                out[end] = found[index]
                end += 1
        bounds[document + 1] = end
    return out[: bounds[documents]], bounds
