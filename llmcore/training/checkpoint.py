"""Checkpoints that are whole or not there.

    step-00000200/model.safetensors, optimizer.safetensors, history.parquet
    step-00000200.json       the marker: step, recipe, SHA-256 of each file; written last, removed first

"Latest" is computed from the markers; one whose files do not hash to what it says is passed over for the one before it.
Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from llmcore.errors import UsageError

KEPT = 2  # checkpoints on disk: the latest, and one more should it be damaged

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


def save(folder: Path, checkpoint: Checkpoint, recipe: str) -> None:
    """Write a checkpoint durably, then forget all but the last KEPT. recipe: digest of what is being trained."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{checkpoint.step:08d}"
    marker, final, aside = folder / f"{name}.json", folder / name, folder / f".{name}"
    remove(marker)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file(_plain(checkpoint.model), aside / "model.safetensors")
    save_file(_plain(checkpoint.optimizer), aside / "optimizer.safetensors")
    write_history(checkpoint.history, aside / "history.parquet")
    digests = {path.name: _digest(path) for path in sorted(aside.iterdir())}
    for path in (*aside.iterdir(), aside):
        _sync(path)
    aside.rename(final)
    _sync(folder)
    write_atomically(marker, {"step": checkpoint.step, "recipe": recipe, "files": digests})
    for old in _markers(folder)[KEPT:]:
        remove(old)


def latest(folder: Path, recipe: str) -> Checkpoint | None:
    """The newest whole checkpoint, or None.

    Raises UsageError where the folder belongs to another training.
    """
    for marker in _markers(folder):
        try:
            content = json.loads(marker.read_text(encoding="utf-8"))
            files = {name: folder / marker.stem / name for name in content["files"]}
            whole = all(_digest(path) == content["files"][name] for name, path in files.items())
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            print(f"{marker}: damaged checkpoint passed over", file=sys.stderr, flush=True)
            continue
        if content["recipe"] != recipe:
            raise UsageError(f"{folder}: holds checkpoints of another training; remove it or use another folder")
        return Checkpoint(
            content["step"],
            load_file(files["model.safetensors"]),
            load_file(files["optimizer.safetensors"]),
            pq.read_table(files["history.parquet"], partitioning=None).to_pylist(),
        )
    return None


def remove(marker: Path) -> None:
    """Forget a checkpoint: its marker first, so that no marker ever names what is gone."""
    marker.unlink(missing_ok=True)
    shutil.rmtree(marker.with_suffix(""), ignore_errors=True)


def write_history(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One row a step: step, tokens so far, loss (nats a token), learning rate, gradient norm, validation loss."""
    pq.write_table(pa.Table.from_pylist(list(history), HISTORY), path, compression="zstd")


def write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """JSON that a reader sees whole, old or new."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(content, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    _sync(path.parent)


def _markers(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"), reverse=True)


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
