"""Checkpoints that are whole or not there.

    step-00000200/model.safetensors, optimizer.safetensors, history.parquet
    step-00000200.json       the marker: step, recipe, SHA-256 of each file and of itself; written last, removed first

"Latest" is computed from the markers; one whose files do not hash to what it says is passed over for the one before it.
Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from llmcore.artifacts.disk import ask_for_room, check_written, sync
from llmcore.artifacts.keys import file_digest
from llmcore.errors import NoSpaceError, UsageError
from llmcore.model.tensors import bytes_of, full_disk_is_an_error, save_tensors
from llmcore.training.marker import FILES, MAY_DIFFER, Marker, markers, mismatch

KEPT = 2  # checkpoints on disk: the latest, and one more should it be damaged
ROW_BYTES = 64  # of the history, at most

HISTORY = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("learning_rate", pa.float64(), nullable=False),
        pa.field("grad_norm", pa.float64(), nullable=False),
        pa.field("validation_loss", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Checkpoint:
    """What a training needs to go on after `step` steps."""

    step: int
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    history: Sequence[Mapping[str, Any]]


def save(folder: Path, checkpoint: Checkpoint, recipe: Mapping[str, Any]) -> None:
    """Write a checkpoint durably, then forget all but the last KEPT. recipe: what is being trained, as plain fields.

    Raises NoSpaceError where the disk is full; the checkpoint before this one is there then as ever.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{checkpoint.step:08d}"
    marker, final, aside = folder / f"{name}.json", folder / name, folder / f".{name}"
    for left in folder.glob(".step-*"):  # of a trainer that was killed while it saved
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    remove(marker)
    _make_room(folder, checkpoint)
    try:
        aside.mkdir()
        save_tensors(checkpoint.model, aside / "model.safetensors")
        save_tensors(checkpoint.optimizer, aside / "optimizer.safetensors")
        write_history(checkpoint.history, aside / "history.parquet")
        digests = {path.name: file_digest(path) for path in sorted(aside.iterdir())}
        sizes = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
        with full_disk_is_an_error(final):
            for path in (*aside.iterdir(), aside):
                sync(path)
            aside.rename(final)
            sync(folder)
        with full_disk_is_an_error(marker):
            write_atomically(marker, Marker(checkpoint.step, recipe, digests, sizes).plain())
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        remove(marker)
        raise
    for old in markers(folder)[KEPT:]:
        remove(old)


def latest(folder: Path, recipe: Mapping[str, Any]) -> Checkpoint | None:
    """The newest whole checkpoint, or None.

    Raises UsageError where the folder belongs to another training.
    """
    for path in markers(folder):
        files = {name: path.with_suffix("") / name for name in FILES}
        try:
            marker = _whole(path, files)
        except (OSError, ValueError) as error:
            print(f"{path}: damaged checkpoint passed over: {error}", file=sys.stderr, flush=True)
            continue
        other = mismatch(marker.recipe, recipe)
        if other:
            raise UsageError(f"{folder}: holds checkpoints of another training ({other}); remove it")
        return _load(marker, files)
    return None


def of_another_run(files: Mapping[str, Path], recipe: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint that a run was told to go on from. files: checkpoint.json (the marker) and what it names.

    Raises UsageError, naming the field, where that run trained something else.
    """
    try:
        marker = _whole(files["checkpoint.json"], files)
    except (OSError, ValueError) as error:
        raise UsageError(f"train: the checkpoint to resume from is damaged: {error}; name another") from error
    other = mismatch(marker.recipe, recipe, MAY_DIFFER)
    if other:
        raise UsageError(f"train: the checkpoint to resume from is of another training: {other}; make these equal")
    return _load(marker, files)


def remove(marker: Path) -> None:
    """Forget a checkpoint: its marker first, so that no marker ever names what is gone."""
    marker.unlink(missing_ok=True)
    shutil.rmtree(marker.with_suffix(""), ignore_errors=True)


def write_history(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One row a step: step, tokens so far, loss (nats a token), learning rate, gradient norm, validation loss.

    Raises NoSpaceError where the disk is full.
    """
    table = pa.Table.from_pylist(list(history), HISTORY)
    with full_disk_is_an_error(path):
        pq.write_table(table, path, compression="zstd")
    check_written(path, lambda path: _same(pq.read_table(path, partitioning=None), table))


def _same(one: pa.Table, other: pa.Table) -> bool:
    columns = ((one[name].to_numpy(), other[name].to_numpy()) for name in HISTORY.names)
    return all(np.array_equal(written, meant, equal_nan=True) for written, meant in columns)


def write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """JSON that a reader sees whole, old or new."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump(content, file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def _make_room(folder: Path, checkpoint: Checkpoint) -> None:
    """Room for one more checkpoint beside the KEPT; where there is none, the older of them goes, never the newest."""
    needed = bytes_of(checkpoint.model) + bytes_of(checkpoint.optimizer) + ROW_BYTES * len(checkpoint.history)
    while True:
        try:
            return ask_for_room(folder, needed)
        except NoSpaceError:
            there = markers(folder)
            if len(there) < 2:
                raise
            remove(there[-1])


def _whole(path: Path, files: Mapping[str, Path]) -> Marker:
    """The marker, if the files are what it says; OSError or ValueError if not."""
    marker = Marker.read(path.read_bytes())
    for name, digest in marker.files.items():
        if file_digest(files[name]) != digest:
            raise ValueError(f"{name} is not what was saved")
    return marker


def _load(marker: Marker, files: Mapping[str, Path]) -> Checkpoint:
    return Checkpoint(
        marker.step,
        load_file(files["model.safetensors"]),
        load_file(files["optimizer.safetensors"]),
        pq.read_table(files["history.parquet"], partitioning=None).to_pylist(),
    )
