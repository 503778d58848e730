"""Which tokens step i reads: a function of the plan, the seed and i, and of nothing else.

The whole state of the loader is one integer. Windows are shuffled anew in each epoch by a counter-based generator
(Philox, Salmon et al. 2011) keyed with plan digest, seed and epoch; step i takes the next `batch` windows of that
endless order, however many processes share the work.

A piece of the plan names the tokens to *predict*; what is fed in is the token before each of them in the same document,
and `<|endoftext|>` before its first. So every planned token is predicted exactly once, also where a document is cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmcore.errors import LlmcoreError
from llmcore.training.token_file import TokenFile, unreadable

IGNORED = -100  # target of a position without a token
NO_DOCUMENT = -1
BATCH_ROWS = 1 << 16  # pieces of a plan that are decoded at once
PLAN_COLUMNS = ("window", "slot", "shard", "row", "start", "length")


@dataclass(frozen=True)
class Batch:
    """tokens and targets int64 [B, T], document_ids int32 [B, T]; a position without a token has IGNORED as target."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    document_ids: NDArray[np.int32]


class Windows:
    """The windows of one plan over tokens on disk; `windows[numbers]` is a Batch.

    In memory are the places of the plan's pieces, some 40 bytes each, and no tokens.
    """

    def __init__(
        self,
        plan: Path,
        shards: Mapping[str, Path],
        window: int,
        beginning: int = 0,
        folder: Path | None = None,
        first: bool = True,
        together: Callable[[], None] = lambda: None,
    ) -> None:
        """shards: file name -> token Parquet; window: tokens in one; beginning: the token fed before a document's.

        folder: where the tokens are laid out (2 or 4 bytes each) for as long as this lives; None: where temporary files
        go. Of several processes that share it the first writes; `together` returns once all have called it.
        Raises LlmcoreError, naming the file, where the plan and the tokens do not belong together.
        """
        pieces = _Pieces(plan)
        for name in pieces.shards:
            if name not in shards:
                raise LlmcoreError(
                    f"{plan}: names shard {name}, which is not among the tokens; run the pack stage again"
                )
        wanted = {name: shards[name] for name in sorted(pieces.shards)}
        if folder is None:
            with TemporaryDirectory(prefix="llmcore-") as temporary:
                self._tokens = TokenFile(wanted, Path(temporary), first, together)
        else:
            self._tokens = TokenFile(wanted, folder, first, together)
        places = [(self._tokens.first_row[name], self._tokens.rows[name]) for name in pieces.shards]
        first_row, rows = np.array(places, dtype=np.int64).reshape(-1, 2).T
        offsets, document = self._tokens.offsets, first_row[pieces.shard] + pieces.row
        if (pieces.row >= rows[pieces.shard]).any() or (
            pieces.start + pieces.length > (offsets[document + 1] - offsets[document])
        ).any():
            raise LlmcoreError(f"{plan}: names tokens that the shards do not hold; run the pack stage again")
        self.window = window
        self.beginning = beginning
        self._source = offsets[document] + pieces.start
        self._fresh = pieces.start == 0
        self._length = pieces.length
        self._count = int(pieces.window[-1]) + 1 if len(pieces.window) else 0
        self._first = np.searchsorted(pieces.window, np.arange(self._count + 1))
        filled = np.bincount(pieces.window, weights=pieces.length, minlength=self._count)
        self.filled = filled.astype(np.int64)  # tokens by window
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
            pieces = slice(self._first[number], self._first[number + 1])
            places = (self._source[pieces].tolist(), self._length[pieces].tolist(), self._fresh[pieces].tolist())
            for slot, (source, length, fresh) in enumerate(zip(*places, strict=True)):
                end = at + length
                if fresh:
                    read = self._tokens.read(source, length)
                    tokens[line, at], tokens[line, at + 1 : end], targets[line, at:end] = (
                        self.beginning,
                        read[:-1],
                        read,
                    )
                else:
                    read = self._tokens.read(source - 1, length + 1)
                    tokens[line, at:end], targets[line, at:end] = read[:-1], read[1:]
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
    # sorting raw draws, unlike Generator.permutation, gives the same order in every version of numpy
    return np.argsort(_raw(f"{digest}:{seed}:{epoch}", windows), kind="stable")


def _raw(name: str, count: int) -> NDArray[np.uint64]:
    key = hashlib.sha256(name.encode()).digest()
    return np.random.Philox(key=np.frombuffer(key[:16], dtype=np.uint64)).random_raw(count)


def plan_digest(plan: Path) -> str:
    """SHA-256 of the plan file."""
    with plan.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def even_draw(windows: int, most: int, digest: str) -> NDArray[np.int64]:
    """Numbers of at most `most` windows of a plan (0: of all), sorted: one from each of as many equal stretches.

    A plan is ordered by source, so its first windows are no sample of it. The draw hangs on the plan alone, so that
    trainings of one plan are compared on the same windows, whatever their seeds.
    """
    count = min(windows, most or windows)
    edges = np.arange(count + 1, dtype=np.int64) * windows // max(count, 1)
    return edges[:-1] + (_raw(f"{digest}:even", count) % np.diff(edges).astype(np.uint64)).astype(np.int64)


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a Parquet file. LlmcoreError names a file that is missing, damaged, or lacks a column."""
    try:
        return pq.read_table(path, columns=list(columns), partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


class _Pieces:
    """The columns of a plan in the order of (window, slot), int64 [pieces]; shard: number of its name in `shards`."""

    def __init__(self, plan: Path) -> None:
        self.shards: list[str] = []
        numbers: dict[str, int] = {}
        parts: dict[str, list[NDArray[np.int64]]] = {name: [np.zeros(0, dtype=np.int64)] for name in PLAN_COLUMNS}
        for batch in batches(plan, PLAN_COLUMNS):
            names = batch["shard"].dictionary_encode()
            known = [numbers.setdefault(name, len(numbers)) for name in names.dictionary.to_pylist()]
            parts["shard"].append(np.array(known, dtype=np.int64)[names.indices.to_numpy()])
            for name in parts.keys() - {"shard"}:
                parts[name].append(batch[name].to_numpy().astype(np.int64))
        self.shards += numbers
        self.window, slot, self.shard, self.row, self.start, self.length = (
            np.concatenate(parts.pop(name)) for name in PLAN_COLUMNS
        )
        order = np.lexsort((slot, self.window))
        if (order[1:] < order[:-1]).any():  # pack writes them in order
            self.window, self.shard, self.row = self.window[order], self.shard[order], self.row[order]
            self.start, self.length = self.start[order], self.length[order]


def batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a Parquet file, some rows at a time. LlmcoreError as `read_columns` raises it."""
    try:
        with pq.ParquetFile(path) as table:
            yield from table.iter_batches(BATCH_ROWS, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
