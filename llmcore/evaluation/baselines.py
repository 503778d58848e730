"""What a language model must beat, in the same unit: xz, uniform and unigram bytes, interpolated byte n-grams.

n-gram: Witten-Bell interpolation (Witten and Bell 1991; Chen and Goodman 1999) over bytes, trained on the train split.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LONGEST = 7  # context bytes: with the next byte they fill 64 bits


class NgramModel:
    """Interpolated byte n-grams of every order up to `order` (order 5 = four bytes of context)."""

    def __init__(self, texts: Sequence[bytes], order: int) -> None:
        if not 1 <= order <= LONGEST + 1:
            raise ValueError(f"order {order} is not between 1 and {LONGEST + 1}")
        self.order = order
        stream, real = _stream(texts)
        self.levels = []
        for context in range(order):
            joint, counts = np.unique(_codes(stream, context)[real], return_counts=True)
            contexts, first = np.unique(joint >> np.uint64(8), return_index=True)
            totals = np.add.reduceat(counts, first) if len(counts) else counts
            distinct = np.diff(np.r_[first, len(joint)])
            self.levels.append((joint, counts, contexts, totals, distinct))

    def bits(self, text: bytes) -> NDArray[np.float64]:
        """Bits of a text, each byte predicted from those before it, under orders 1 to `order`: shape (order,)."""
        stream, real = _stream([text])
        probability = np.full(int(real.sum()), 1 / 256)
        bits = []
        for context, (joint, counts, contexts, totals, distinct) in enumerate(self.levels):
            codes = _codes(stream, context)[real]
            hits = _lookup(joint, counts, codes)
            seen = _lookup(contexts, totals, codes >> np.uint64(8))
            kinds = _lookup(contexts, distinct, codes >> np.uint64(8))
            mass = seen + kinds
            probability = np.where(mass > 0, (hits + kinds * probability) / np.maximum(mass, 1), probability)
            bits.append(-np.log2(probability).sum())
        return np.array(bits)


def xz_bytes(data: bytes) -> int:
    """Size of the data after xz -9e."""
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def _stream(texts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """All bytes in a row, each text behind LONGEST zero bytes; and which of them are text."""
    gap = bytes(LONGEST)
    stream = np.frombuffer(b"".join(gap + text for text in texts), dtype=np.uint8)
    real = np.ones(len(stream), dtype=bool)
    starts = np.cumsum([0, *(LONGEST + len(text) for text in texts)])[:-1]
    for offset in range(LONGEST):
        real[starts + offset] = False
    return stream, real


def _codes(stream: NDArray[np.uint8], context: int) -> NDArray[np.uint64]:
    """Each byte with the `context` bytes before it, packed into 64 bits."""
    codes = stream.astype(np.uint64)
    for back in range(1, context + 1):
        codes[back:] |= stream[:-back].astype(np.uint64) << np.uint64(8 * back)
    return codes


def _lookup(keys: NDArray[np.uint64], values: NDArray[np.int64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
