"""Best fit in compiled code: which bin each length goes to."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def best_fit_in_order(lengths: np.ndarray, window: int) -> tuple[np.ndarray, int]:
    """Bin of each length (none above the window), and the number of bins, each length in the fullest bin it fits into.

    O(n log window): open bins lie in stacks by free space (linked: `top` of a stack, `below` a bin), and a tree over
    the stacks, whose leaves say which are not empty, finds the smallest space that fits.
    """
    size = 1
    while size <= window:
        size *= 2
    filled = np.zeros(2 * size, dtype=np.bool_)
    top = np.full(window + 1, -1, dtype=np.int64)
    below = np.full(len(lengths), -1, dtype=np.int64)
    place = np.empty(len(lengths), dtype=np.int64)
    bins = 0
    for index in range(len(lengths)):
        length = lengths[index]
        node = size + length
        while node > 1 and not filled[node]:
            # up to the first subtree on the right that holds anything, or out at the root
            while node > 1 and (node % 2 == 1 or not filled[node + 1]):
                node //= 2
            if node > 1:
                node += 1
        if node > 1:
            while node < size:
                node = 2 * node if filled[2 * node] else 2 * node + 1
            free = node - size
            chosen = top[free]
            top[free] = below[chosen]
            if top[free] < 0:
                _mark(filled, node, False)
        else:
            free, chosen = window, bins
            bins += 1
        place[index] = chosen
        left = free - length
        if left:
            if top[left] < 0:
                _mark(filled, size + left, True)
            below[chosen] = top[left]
            top[left] = chosen
    return place, bins


@njit(cache=True)
def _mark(filled: np.ndarray, node: int, value: bool) -> None:
    filled[node] = value
    while node > 1:
        node //= 2
        filled[node] = filled[2 * node] or filled[2 * node + 1]
