"""MinHash signatures of word shingles, LSH band keys, and the verified star clusters that follow from them.

Method: Broder 1997; banding as in Lee et al. 2022 (arXiv 2107.06499); 14 bands of 8 rows over 5-word shingles are
FineWeb's (arXiv 2406.17557). The hash family is Dietzfelbinger's multiply-shift, h(x) = ((a·x + b) mod 2^64) >> 32 with
odd a, over shingles already hashed to 64 bits: arithmetic modulo 2^64 is the machine's own, nothing overflows unseen.
The estimate is datasketch's: the share of equal entries in two signatures.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from numba import njit

from llmcore.selection.shingles import Shingles, similarity
from llmcore.selection.words import (
    I64,
    MIX_1,
    SHIFT,
    U8,
    U32,
    U64,
    folding,
    hash_bytes,
    longest_row,
    mix,
    ngram_hash,
    utf8,
    words_between,
)

NO_BUCKET = -1
REPRESENTATIVES = 16  # kept documents a bucket is compared with at most, so that a bucket of k copies costs O(k)
GOLDEN = 0x9E3779B97F4A7C15


def permutations(count: int, seed: int) -> tuple[U64, U64]:
    """a (odd) and b of `count` hash functions, from splitmix64 of the seed."""
    state = (np.uint64(seed) + np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(GOLDEN)).astype(np.uint64)
    values = np.array([mix(value) for value in state], np.uint64)
    return values[:count] | np.uint64(1), values[count:]


def signatures_of(text: pl.Series, shingle_words: int, bands: int, rows: int, seed: int) -> tuple[U32, U64, U64, U32]:
    """Per row: signature[n, bands·rows], band keys[n, bands], content hash[n], number of shingles[n].

    A row with fewer words than a shingle has one shingle of all its words; a row without words has none, and all bits
    of its signature set. The content hash is over the sequence of words, or over the bytes where there are no words.
    """
    data, offsets = utf8(text)
    a, b = permutations(bands * rows, seed)
    return _signatures(data, offsets, folding(), shingle_words, bands, a, b)


def estimate(left: U32, right: U32) -> float:
    """Estimated Jaccard similarity of two signatures."""
    return float((left == right).mean())


def buckets_of(keys: U64, present: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the groups of equal keys that have at least two members: bucket[n] (NO_BUCKET for the others), groups.

    present: rows that take part. Groups are numbered in order of their key, so the result does not depend on the sort.
    """
    rows = np.flatnonzero(present)
    order = rows[np.argsort(keys[rows])]
    ordered = keys[order]
    new = np.ones(len(ordered), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    group = np.cumsum(new) - 1
    shared = np.bincount(group) > 1 if len(group) else np.zeros(0, bool)
    number = np.where(shared, np.cumsum(shared) - 1, NO_BUCKET).astype(np.int32)
    buckets = np.full(len(keys), NO_BUCKET, np.int32)
    buckets[order] = number[group]
    return buckets, int(shared.sum())


class Places(NamedTuple):
    """Where documents lie and when they came, so that a newer version is told from a copy.

    place[n], identity[n] uint64 (place 0: none), generation[n] int64; again[n] int64: an earlier document that this one
    repeats in a later generation (same id, or same place and same bytes), or -1.
    """

    place: U64
    identity: U64
    generation: I64
    again: I64


class Enough(NamedTuple):
    """What makes a duplicate: a similarity of at least `threshold`, by so many equal entries; estimates of `unsure` to
    `sure` equal entries are verified."""

    threshold: float
    entries: int
    unsure: int
    sure: int


class Stars(NamedTuple):
    """What was decided of each document, in order: the kept document it stands for, the similarity with it, whether its
    content is the same, the older version of itself that it would have been a duplicate of (or -1); and of which
    documents the shingles were missing, so that a decision rests on an estimate in question."""

    kept: I64
    similarity: np.ndarray
    same: np.ndarray
    older: I64
    missing: np.ndarray


def stars(
    signature: U32, buckets: np.ndarray, content: np.ndarray, enough: Enough, places: Places, shingles: Shingles
) -> Stars:
    """Decide document by document, in order.

    signature[n, p] uint32, buckets[n, bands] and content[n] int32 with NO_BUCKET.
    A document is compared with kept documents only, and with at most REPRESENTATIVES of a bucket; a dropped one puts
    its kept document into buckets that have none yet. What comes later never changes what was decided before.
    An estimate near the threshold gives way to the true similarity where the shingles of both documents are there.
    An older version of a document (same place, earlier generation, another id) does not make it a duplicate; the newer
    one takes the older one's seat in the buckets that both share, so that copies of it are found however often it
    changes.
    """
    sizes = np.bincount(buckets[buckets >= 0].ravel(), minlength=int(buckets.max(initial=-1)) + 1)
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(np.minimum(sizes, REPRESENTATIVES), out=starts[1:])
    groups = int(content.max(initial=-1)) + 1
    known = (shingles.data, shingles.first, shingles.last)
    return Stars(*_stars(signature, buckets, content, groups, starts, *enough, *places, *known))


@njit(cache=True)
def _signatures(
    data: U8, offsets: I64, table: U32, shingle_words: int, bands: int, a: U64, b: U64
) -> tuple[U32, U64, U64, U32]:
    documents = len(offsets) - 1
    size = len(a)
    rows = size // bands
    signature = np.empty((documents, size), np.uint32)
    keys = np.empty((documents, bands), np.uint64)
    content = np.empty(documents, np.uint64)
    shingles = np.empty(documents, np.uint32)
    words = np.empty(longest_row(offsets) // 2 + 1, np.uint64)
    least = np.empty(size, np.uint64)
    for document in range(documents):
        count = words_between(data, offsets[document], offsets[document + 1], table, words)
        if count:
            content[document] = ngram_hash(words, 0, count)
        else:
            content[document] = hash_bytes(data, offsets[document], offsets[document + 1], MIX_1)
        width = min(shingle_words, count)
        shingles[document] = count - width + 1 if count else 0
        least[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        for first in range(shingles[document]):
            _lower(least, a, b, ngram_hash(words, first, width))
        for index in range(size):
            signature[document, index] = np.uint32(least[index] >> np.uint64(32))
        for band in range(bands):
            value = np.uint64(band + 1)
            for index in range(band * rows, (band + 1) * rows):
                value = (value ^ np.uint64(signature[document, index])) * MIX_1
                value ^= value >> SHIFT
            keys[document, band] = mix(value)
    return signature, keys, content, shingles


@njit(cache=True)
def _lower(least: U64, a: U64, b: U64, shingle: np.uint64) -> None:
    for index in range(len(least)):
        least[index] = min(least[index], a[index] * shingle + b[index])


@njit(cache=True)
def _equal_entries(left: U32, right: U32) -> int:
    equal = 0
    for index in range(len(left)):
        equal += left[index] == right[index]
    return equal


@njit(cache=True)
def _older_version(place: U64, identity: U64, generation: I64, document: int, other: int) -> bool:
    return (
        place[document] != 0
        and place[document] == place[other]
        and generation[other] < generation[document]
        and identity[other] != identity[document]
    )


@njit(cache=True)
def _stars(
    signature: U32,
    buckets: np.ndarray,
    content: np.ndarray,
    groups: int,
    starts: I64,
    threshold: float,
    entries: int,
    unsure: int,
    sure: int,
    place: U64,
    identity: U64,
    generation: I64,
    again: I64,
    hashes: U64,
    first: I64,
    last: I64,
) -> tuple[I64, np.ndarray, np.ndarray, I64, np.ndarray]:
    documents, size = signature.shape
    kept = np.empty(documents, np.int64)
    alike = np.zeros(documents, np.float64)
    missing = np.zeros(documents, np.bool_)
    same = np.zeros(documents, np.bool_)
    older = np.full(documents, -1, np.int64)
    latest_with = np.full(groups, -1, np.int64)
    representatives = np.empty(starts[-1], np.int64)
    filled = np.zeros(len(starts) - 1, np.int64)
    compared = np.full(documents, -1, np.int64)
    for document in range(documents):
        best, most, nearest = -1, -1.0, -1.0
        twin = latest_with[content[document]] if content[document] >= 0 else -1
        if twin >= 0 and _equal_entries(signature[document], signature[twin]) != size:
            twin = -1
        if twin >= 0 and _older_version(place, identity, generation, document, kept[twin]):
            older[document], nearest, twin = kept[twin], 1.0, -1
        if again[document] >= 0:
            twin = again[document]
        if twin >= 0:
            best = kept[twin]  # equal words have equal shingles, so the twin's verified star holds for this one
            most = 1.0 if best == twin else alike[twin]
            same[document] = best == twin
        else:
            for bucket in buckets[document]:
                if bucket < 0:
                    continue
                for seat in range(starts[bucket], starts[bucket] + filled[bucket]):
                    other = representatives[seat]
                    if compared[other] == document:
                        continue
                    compared[other] = document
                    matches = _equal_entries(signature[document], signature[other])
                    if matches < min(entries, unsure):
                        continue
                    share = matches / size
                    if unsure <= matches <= sure and first[document] >= 0 and first[other] >= 0:
                        share = similarity(hashes, first[document], last[document], first[other], last[other])
                        if share < threshold:
                            continue
                    else:
                        if unsure <= matches <= sure:
                            missing[document] = missing[other] = True
                        if matches < entries:
                            continue
                    if _older_version(place, identity, generation, document, other):
                        if share > nearest:
                            older[document], nearest = other, share
                    elif share > most or (share == most and other < best):
                        best, most = other, share
        if best >= 0:
            older[document] = -1
        if content[document] >= 0 and (
            latest_with[content[document]] < 0 or older[document] >= 0 or again[document] >= 0
        ):
            latest_with[content[document]] = document
        kept[document] = best if best >= 0 else document
        alike[document] = most if best >= 0 else 1.0
        for bucket in buckets[document]:
            if bucket < 0:
                continue
            end = starts[bucket] + filled[bucket]
            seat = end
            if older[document] >= 0:
                for place_taken in range(starts[bucket], end):
                    if representatives[place_taken] == older[document]:
                        seat = place_taken
            if seat < end:
                representatives[seat] = document
            elif seat < starts[bucket + 1] and (best < 0 or filled[bucket] == 0):
                representatives[seat] = kept[document]
                filled[bucket] += 1
    return kept, alike, same, older, missing
