"""Which tokens step i reads: a function of the plan, the seed and i, and of nothing else.

The whole state of the loader is one integer. Windows are shuffled anew in each epoch by a counter-based generator
(Philox, Salmon et al. 2011) keyed with plan digest, seed and epoch; step i takes the next `batch` windows of that
endless order, however many processes share the work.

A piece of the plan names the tokens to *predict*; what is fed in is the token before each of them in the same document,
and `<|endoftext|>` before its first. So every planned token is predicted exactly once, also where a document is cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmcore.errors import LlmcoreError

IGNORED = -100  # target of a position without a token
NO_DOCUMENT = -1
PLAN_COLUMNS = ("window", "slot", "shard", "row", "start", "length")


@dataclass(frozen=True)
class Batch:
    """tokens and targets int64 [B, T], document_ids int32 [B, T]; a position without a token has IGNORED as target."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    document_ids: NDArray[np.int32]


class Windows:
    """The windows of one plan over tokens in memory; `windows[numbers]` is a Batch."""

    def __init__(self, plan: Path, shards: Mapping[str, Path], window: int, beginning: int = 0) -> None:
        """shards: file name -> token Parquet; window: tokens in one; beginning: the token fed before a document's.

        Raises LlmcoreError, naming the file, where the plan and the tokens do not belong together.
        """
        table = read_columns(plan, PLAN_COLUMNS)
        names = sorted(set(table["shard"].unique().to_pylist()))
        first_row, self._tokens, offsets = _read_shards(plan, names, shards)
        shard = np.array([first_row[name] for name in table["shard"].to_pylist()], dtype=np.int64)
        number, slot, row, start, length = (
            table[name].to_numpy().astype(np.int64) for name in ("window", "slot", "row", "start", "length")
        )
        order = np.lexsort((slot, number))
        number, row, start, length, shard = number[order], row[order], start[order], length[order], shard[order]
        document = shard + row
        if (document + 1 >= len(offsets)).any() or (start + length > (offsets[1:] - offsets[:-1])[document]).any():
            raise LlmcoreError(f"{plan}: names tokens that the shards do not hold; run the pack stage again")
        self.window = window
        self.beginning = beginning
        self._source = offsets[document] + start
        self._fresh = start == 0
        self._length = length
        self._count = int(number[-1]) + 1 if len(number) else 0
        self._first = np.searchsorted(number, np.arange(self._count + 1))
        self.filled = np.bincount(number, weights=length, minlength=self._count).astype(np.int64)  # tokens by window
        if self._count and self.filled.max() > window:
            raise LlmcoreError(f"{plan}: window {int(self.filled.argmax())} is above {window} tokens; pack again")

    def __len__(self) -> int:
        return self._count

    @property
    def tokens(self) -> int:
        """Tokens that the plan predicts in one pass."""
        return int(self._length.sum())

    def __getitem__(self, numbers: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The named windows, in this order. Numbers below 0 give empty windows, to fill a batch up."""
        shape = (len(numbers), self.window)
        tokens = np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        documents = np.full(shape, NO_DOCUMENT, dtype=np.int32)
        for line, number in enumerate(numbers):
            if number < 0:
                continue
            at = 0
            for slot, piece in enumerate(range(self._first[number], self._first[number + 1])):
                source, end = self._source[piece], at + self._length[piece]
                targets[line, at:end] = self._tokens[source : source + self._length[piece]]
                tokens[line, at + 1 : end] = targets[line, at : end - 1]
                tokens[line, at] = self.beginning if self._fresh[piece] else self._tokens[source - 1]
                documents[line, at:end] = slot
                at = end
        return Batch(tokens, targets, documents)


def windows_of_step(step: int, windows: int, batch: int, digest: str, seed: int) -> NDArray[np.int64]:
    """Numbers of the windows that step 0, 1, … reads."""
    numbers = np.arange(step * batch, (step + 1) * batch)
    epochs = numbers // windows
    orders = {int(epoch): order_of_epoch(windows, digest, seed, int(epoch)) for epoch in np.unique(epochs)}
    return np.array([orders[int(epoch)][number % windows] for epoch, number in zip(epochs, numbers, strict=True)])


@lru_cache(maxsize=2)
def order_of_epoch(windows: int, digest: str, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of the windows, drawn for this epoch."""
    key = hashlib.sha256(f"{digest}:{seed}:{epoch}".encode()).digest()
    draws = np.random.Philox(key=np.frombuffer(key[:16], dtype=np.uint64)).random_raw(windows)
    # sorting raw draws, unlike Generator.permutation, gives the same order in every version of numpy
    return np.argsort(draws, kind="stable")


def plan_digest(plan: Path) -> str:
    """SHA-256 of the plan file."""
    with plan.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def steps_of_windows(params: Mapping[str, Any], plan: Any, windows: Iterable[int]) -> list[int]:
    """The steps, counted from 1, in which a training with these parameters read any of these windows; sorted.

    plan: the pack artifact (`Files`).
    """
    path = plan.path("plan/train.parquet")
    column = read_columns(path, ("window",))["window"].to_numpy()
    count, batch = int(column.max()) + 1 if len(column) else 0, int(params["batch"])
    total = int(params["steps"]) or max(1, round(params["epochs"] * count / batch))
    wanted, digest = np.asarray(sorted(set(windows)), dtype=np.int64), plan_digest(path)
    steps: set[int] = set()
    for epoch in range(-(-total * batch // count) if count else 0):
        order = order_of_epoch(count, digest, int(params["seed"]), epoch)
        places = np.flatnonzero(np.isin(order, wanted)) + epoch * count
        steps.update(int(place) // batch + 1 for place in places if place < total * batch)
    return sorted(steps)


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a Parquet file. LlmcoreError names a file that is missing, damaged, or lacks a column."""
    try:
        return pq.read_table(path, columns=list(columns), partitioning=None)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise LlmcoreError(f"{path}: not a readable Parquet file: {reason}; build it again") from error


def _read_shards(
    plan: Path, names: Sequence[str], shards: Mapping[str, Path]
) -> tuple[dict[str, int], NDArray[Any], NDArray[np.int64]]:
    """Shard -> number of its first document; all tokens in a row; where each document begins (and the last ends)."""
    first_row: dict[str, int] = {}
    parts: list[NDArray[Any]] = []
    lengths: list[NDArray[np.int64]] = []
    rows = 0
    for name in names:
        if name not in shards:
            raise LlmcoreError(f"{plan}: names shard {name}, which is not among the tokens; run the pack stage again")
        column = read_columns(shards[name], ("tokens",))["tokens"].combine_chunks()
        arrays = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        first_row[name] = rows
        for array in arrays:
            parts.append(array.flatten().to_numpy())
            lengths.append(array.value_lengths().to_numpy().astype(np.int64))
            rows += len(array)
    kind = np.uint32 if any(part.dtype.itemsize > 2 for part in parts) else np.uint16
    tokens: NDArray[Any] = np.concatenate([np.zeros(0, dtype=kind), *(part.astype(kind, copy=False) for part in parts)])
    ends = np.concatenate([np.zeros(1, dtype=np.int64), *lengths]).cumsum()
    return first_row, tokens, ends
