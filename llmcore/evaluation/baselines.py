"""What a language model must beat, in the same unit: xz, uniform and unigram bytes, interpolated byte n-grams.

n-gram: Witten-Bell interpolation (Witten and Bell 1991; Chen and Goodman 1999) over bytes, trained on the train split.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

LONGEST = 7  # context bytes: with the next byte they fill 64 bits
PIECE = 1 << 20  # bytes that are worked on at once


def ngram_bits(trained: Sequence[bytes], held_out: Sequence[bytes], order: int) -> NDArray[np.float64]:
    """Bits of each held-out text, every byte predicted from those before it, under orders 1 to `order`.

    Interpolated byte n-grams (order 5 = four bytes of context); shape (len(held_out), order). One order is in memory at
    a time: at most some 26 bytes for each byte trained on, and 8 for each held out.
    Raises ValueError if `order` is not between 1 and LONGEST + 1.
    """
    if not 1 <= order <= LONGEST + 1:
        raise ValueError(f"order {order} is not between 1 and {LONGEST + 1}")
    stream, real = _stream(trained)
    probabilities = [np.full(len(text), 1 / 256) for text in held_out]
    bits = np.zeros((len(held_out), order))
    for context in range(order):
        counts = _Counts(stream, real, context)
        for row, text in enumerate(held_out):
            counts.sharpen(text, probabilities[row])
            bits[row, context] = -np.log2(probabilities[row]).sum()
    return bits


class _Counts:
    """How often each byte follows each context of one length."""

    def __init__(self, stream: NDArray[np.uint8], real: NDArray[np.bool_], context: int) -> None:
        self.context = context
        codes, done = np.empty(int(real.sum()), dtype=np.uint64), 0
        for piece in _codes(stream, real, context):
            codes[done : done + len(piece)] = piece
            done += len(piece)
        codes.sort()  # in place: numpy.unique would hold three more copies
        first = _first_of_each(codes)
        self.joint = codes[first]
        count = len(codes)
        del codes
        self.hits = np.diff(first, append=count).astype(np.uint32)
        del first
        before = self.joint >> np.uint64(8)
        first = _first_of_each(before)
        self.contexts = before[first]
        self.totals = np.add.reduceat(self.hits, first) if count else self.hits
        self.kinds = np.diff(first, append=len(self.joint)).astype(np.uint32)

    def sharpen(self, text: bytes, probability: NDArray[np.float64]) -> None:
        """Turn the probability of each byte of a text under shorter contexts into that under this one, in place."""
        done = 0
        for codes in _codes(*_stream([text]), self.context):
            part = probability[done : done + len(codes)]
            hits = _lookup(self.joint, self.hits, codes)
            seen = _lookup(self.contexts, self.totals, codes >> np.uint64(8))
            kinds = _lookup(self.contexts, self.kinds, codes >> np.uint64(8))
            mass = seen + kinds
            part[:] = np.where(mass > 0, (hits + kinds * part) / np.maximum(mass, 1), part)
            done += len(codes)


def xz_bytes(data: bytes) -> int:
    """Size of the data after xz -9e."""
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def xz_sizes(
    trained: Sequence[bytes], held_out: Mapping[str, Sequence[bytes]], threads: int
) -> dict[str, tuple[int, int]]:
    """For each split of held-out texts: bytes of xz -9e alone, and what they add behind the trained texts.

    threads: how many compressions run at once; xz lets go of the interpreter, and takes 700 MB for 64 MB of text.
    """

    def packed(texts: Sequence[bytes]) -> int:
        return xz_bytes(b"\n".join(texts))

    with ThreadPoolExecutor(threads) as pool:
        before = pool.submit(packed, trained)
        alone = {split: pool.submit(packed, texts) for split, texts in held_out.items()}
        joined = {split: pool.submit(packed, [*trained, *texts]) for split, texts in held_out.items()}
        return {split: (alone[split].result(), joined[split].result() - before.result()) for split in held_out}


def _stream(texts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """All bytes in a row, each text behind LONGEST zero bytes; and which of them are text."""
    gap = bytes(LONGEST)
    stream = np.frombuffer(b"".join(gap + text for text in texts), dtype=np.uint8)
    real = np.ones(len(stream), dtype=bool)
    starts = np.cumsum([0, *(LONGEST + len(text) for text in texts)])[:-1]
    for offset in range(LONGEST):
        real[starts + offset] = False
    return stream, real


def _codes(stream: NDArray[np.uint8], real: NDArray[np.bool_], context: int) -> Iterator[NDArray[np.uint64]]:
    """Each byte of text with the `context` bytes before it, packed into 64 bits; piece by piece."""
    for start in range(0, len(stream), PIECE):
        piece = stream[max(0, start - context) : start + PIECE]
        codes = piece.astype(np.uint64)
        for back in range(1, context + 1):
            codes[back:] |= piece[:-back].astype(np.uint64) << np.uint64(8 * back)
        yield codes[min(start, context) :][real[start : start + PIECE]]


def _first_of_each(ordered: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each distinct value of a sorted array stands first."""
    changes = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=changes[1:])
    return np.flatnonzero(changes)


def _lookup(keys: NDArray[np.uint64], values: NDArray[np.uint32], wanted: NDArray[np.uint64]) -> NDArray[np.uint32]:
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.uint32)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0).astype(np.uint32)
