"""The tokens of many shards in one flat file: a training holds none of them in memory and reads what a step needs.

The file lies in a folder of the trainer's and has a name only until every process of the training has opened it: then
it goes with the last of them, however they end. It is read by position rather than mapped, so that pages which the
system keeps of it are nobody's memory; the processes of one machine share them.

    tokens     uint16, or uint32 where a shard needs it, little-endian, document after document
    offsets    int64 [documents + 1], where each document begins; behind the tokens
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmcore.artifacts.disk import ask_for_room
from llmcore.errors import LlmcoreError

BATCH_ROWS = 1024  # documents that are decoded at once
PREFIX = ".aside-tokens-"  # what a broken-off write is called everywhere: garbage collection knows it


class TokenFile:
    """`read(start, length)` gives tokens; document d is `offsets[d]` to `offsets[d + 1]`.

    first_row: shard -> number of its first document; rows: shard -> its documents.
    """

    def __init__(
        self, shards: Mapping[str, Path], folder: Path, first: bool = True, together: Callable[[], None] = lambda: None
    ) -> None:
        """Write the file, or wait until the first process has.

        shards: token Parquet files by name, in order. first: whether this process writes. together: returns once all
        processes have called it. Raises LlmcoreError that names a damaged shard, or the space that is missing.
        """
        facts = {name: _Facts(path) for name, path in shards.items()}
        rows = np.array([0, *(fact.rows for fact in facts.values())], dtype=np.int64)
        self.rows = {name: fact.rows for name, fact in facts.items()}
        self.first_row = dict(zip(shards, np.cumsum(rows)[:-1].tolist(), strict=True))
        kind = max((fact.kind for fact in facts.values()), key=lambda kind: kind.itemsize, default=np.dtype("<u2"))
        count = sum(fact.values for fact in facts.values())  # one too many for every empty document
        path = folder / f"{PREFIX}{_name(shards)}"
        if first:
            path.unlink(missing_ok=True)
            ask_for_room(folder, count * kind.itemsize + 8 * int(rows.sum() + 1))
            _write(path, shards, kind)
        together()
        self._file = path.open("rb")
        together()
        if first:
            path.unlink()
        size, behind = os.fstat(self._file.fileno()).st_size, 8 * int(rows.sum() + 1)
        self._file.seek(max(0, size - behind))
        self.offsets: NDArray[np.int64] = np.fromfile(self._file, dtype="<i8")
        if len(self.offsets) * 8 != behind or int(self.offsets[-1]) * kind.itemsize != size - behind:
            raise LlmcoreError(f"{path}: not all of the tokens were written; free space in {folder} and run again")
        self._kind = kind

    def read(self, start: int, length: int) -> NDArray[Any]:
        """Tokens `start` to `start + length` of the row of all documents. LlmcoreError if the disk fails."""
        size = self._kind.itemsize
        data = os.pread(self._file.fileno(), length * size, start * size)
        if len(data) != length * size:
            raise LlmcoreError(f"{self._file.name}: {length} tokens from {start} on cannot be read; run again")
        return np.frombuffer(data, dtype=self._kind)


class _Facts:
    """Of a token shard, from its footer alone: number of documents, of tokens (at most), and their type."""

    def __init__(self, path: Path) -> None:
        try:
            metadata, schema = pq.read_metadata(path), pq.read_schema(path)
            kind = schema.field("tokens").type.value_type
        except (OSError, KeyError, AttributeError, pa.ArrowException) as error:
            raise unreadable(path, error) from error
        self.rows = int(metadata.num_rows)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        self.values = sum(column.num_values for column in columns if column.path_in_schema.split(".")[0] == "tokens")
        self.kind = np.dtype("<u2") if kind.bit_width <= 16 else np.dtype("<u4")


def unreadable(path: Path, error: Exception) -> LlmcoreError:
    """The one line for a Parquet file that is missing, damaged, or lacks a column."""
    reason = str(error).split("\n")[0]
    return LlmcoreError(f"{path}: not a readable Parquet file: {reason}; build it again")


def _write(path: Path, shards: Mapping[str, Path], kind: np.dtype[Any]) -> None:
    lengths: list[NDArray[np.int64]] = []
    try:
        with path.open("wb") as file:
            for column in (column for shard in shards.values() for column in _columns(shard)):
                file.write(np.ascontiguousarray(column.flatten().to_numpy(), dtype=kind).data)
                lengths.append(column.value_lengths().to_numpy().astype(np.int64))
            file.write(np.concatenate([np.zeros(1, dtype=np.int64), *lengths]).cumsum().astype("<i8").data)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise LlmcoreError(f"{path.parent}: the tokens to train on cannot be written: {error.strerror}") from error


def _columns(shard: Path) -> Iterator[pa.Array]:
    try:
        with pq.ParquetFile(shard) as table:
            for batch in table.iter_batches(BATCH_ROWS, columns=["tokens"]):
                yield batch.column(0)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(shard, error) from error


def _name(shards: Mapping[str, Path]) -> str:
    state = hashlib.sha256()
    for name, path in shards.items():
        state.update(f"{name}\0{path}\0".encode())
    return state.hexdigest()[:16]
