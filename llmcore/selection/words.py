"""Words as 64-bit hashes, straight from the UTF-8 bytes of a column: what dedup, decontamination and split compare.

A word is a run of letters, marks and digits (Unicode categories L, M, N), lower-cased; numbers are kept as they are,
because a price list is not a duplicate of another one. Scripts written without spaces (Han, kana, Thai, Lao, Burmese,
Khmer) give one word a character. Everything else separates.

Hashes are FNV-1a over code points, finished with MurmurHash3's 64-bit mixer, equal on every machine.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
SHIFT = np.uint64(33)

TABLE_SIZE = (
    0x20000  # beyond these code points lie rare ideographs (words of their own) and nothing that is lower-cased
)
ALONE = 1 << 31  # flag: this character is a word by itself
SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
)


@lru_cache(maxsize=1)
def folding() -> U32:
    """Code point -> 0 for a separator, else the lower-cased code point, with ALONE set in scripts without spaces."""
    table = np.zeros(TABLE_SIZE, np.uint32)
    for point in range(TABLE_SIZE):
        character = chr(point)
        if unicodedata.category(character)[0] in "LMN":
            lower = character.lower()
            table[point] = ord(lower) if len(lower) == 1 else point
    for first, last in SPACELESS:
        block = table[first : last + 1]
        block[block > 0] |= np.uint32(ALONE)
    return table


def utf8(column: pl.Series) -> tuple[U8, I64]:
    """The bytes of a string column and the offsets of its rows (n + 1); null reads as the empty string."""
    array: Any = column.fill_null("").rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    if not len(array):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), starts


def string_hashes(column: pl.Series, seed: int = 0) -> U64:
    """One stable 64-bit hash a row, of the bytes as they are."""
    data, offsets = utf8(column)
    return _hash_rows(data, offsets, np.uint64(mix(np.uint64(seed))))  # numba hands a plain int back


def word_hashes(column: pl.Series) -> tuple[U64, I64]:
    """The words of every row: hashes[w] and offsets[n + 1] of the rows in it."""
    data, offsets = utf8(column)
    table = folding()
    counts = _count_words(data, offsets, table)
    bounds = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    hashes = np.empty(bounds[-1], np.uint64)
    _fill_words(data, offsets, table, bounds, hashes)
    return hashes, bounds


@njit(cache=True, inline="always")
def mix(value: np.uint64) -> np.uint64:
    """MurmurHash3's fmix64: every input bit moves every output bit."""
    value = np.uint64(value)
    value ^= value >> SHIFT
    value *= MIX_1
    value ^= value >> SHIFT
    value *= MIX_2
    return value ^ (value >> SHIFT)


@njit(cache=True)
def ngram_hash(words: U64, first: int, n: int) -> np.uint64:
    """Hash of the n words from `first` on; the order matters."""
    value = FNV_OFFSET ^ np.uint64(n)
    for index in range(first, first + n):
        value = (value ^ words[index]) * MIX_1
        value ^= value >> SHIFT
    return mix(value)


@njit(cache=True)
def words_between(data: U8, start: int, end: int, table: U32, out: U64) -> int:
    """Write the word hashes of one row's bytes to `out` (room for (bytes + 1) // 2 of them) and return their number."""
    found = 0
    open_word = False
    value = FNV_OFFSET
    position = start
    while position < end:
        lead = data[position]
        if lead < 0x80:
            point, step = np.int64(lead), 1
        elif lead < 0xE0:
            point, step = np.int64(lead & 0x1F), 2
        elif lead < 0xF0:
            point, step = np.int64(lead & 0x0F), 3
        else:
            point, step = np.int64(lead & 0x07), 4
        for index in range(position + 1, min(position + step, end)):
            point = (point << 6) | np.int64(data[index] & 0x3F)
        position += step
        folded = np.int64(table[point]) if point < TABLE_SIZE else point | ALONE
        alone = folded & ALONE
        if open_word and (folded == 0 or alone):
            out[found] = mix(value)
            found += 1
            open_word = False
        if alone:
            out[found] = mix((FNV_OFFSET ^ np.uint64(folded)) * FNV_PRIME)
            found += 1
        elif folded:
            if not open_word:
                value = FNV_OFFSET
                open_word = True
            value = (value ^ np.uint64(folded)) * FNV_PRIME
    if open_word:
        out[found] = mix(value)
        found += 1
    return found


@njit(cache=True)
def longest_row(offsets: I64) -> int:
    """Bytes of the longest row."""
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    return longest


@njit(cache=True)
def hash_bytes(data: U8, start: int, end: int, seed: np.uint64) -> np.uint64:
    """FNV-1a of the bytes as they are, mixed."""
    value = FNV_OFFSET ^ seed
    for index in range(start, end):
        value = (value ^ np.uint64(data[index])) * FNV_PRIME
    return mix(value)


@njit(cache=True)
def _hash_rows(data: U8, offsets: I64, seed: np.uint64) -> U64:
    out = np.empty(len(offsets) - 1, np.uint64)
    for row in range(len(out)):
        out[row] = hash_bytes(data, offsets[row], offsets[row + 1], seed)
    return out


@njit(cache=True)
def _count_words(data: U8, offsets: I64, table: U32) -> I64:
    counts = np.empty(len(offsets) - 1, np.int64)
    buffer = np.empty(longest_row(offsets) // 2 + 1, np.uint64)
    for row in range(len(counts)):
        counts[row] = words_between(data, offsets[row], offsets[row + 1], table, buffer)
    return counts


@njit(cache=True)
def _fill_words(data: U8, offsets: I64, table: U32, bounds: I64, hashes: U64) -> None:
    for row in range(len(bounds) - 1):
        words_between(data, offsets[row], offsets[row + 1], table, hashes[bounds[row] :])
