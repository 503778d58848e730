"""Tensors to a file that is known to hold them: space is asked for before, and what was written is read back."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llmcore.errors import LlmcoreError, NoSpaceError

HEADER_BYTES = 1024  # and some for each tensor's entry
FULL = ("No space left on device", "Disk quota exceeded")


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file and compare it with the tensors, bit by bit.

    Raises NoSpaceError where the disk is full, LlmcoreError where it holds something else than was written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    ask_for_space(path.parent, bytes_of(plain) + HEADER_BYTES * (1 + len(plain)))
    with full_disk_is_an_error(path):
        save_file(plain, path, metadata=dict(metadata) if metadata else None)
    with read_back(path), safe_open(path, framework="pt") as file:
        if set(file.keys()) != set(plain):
            raise ValueError("other names")
        for name, tensor in plain.items():
            if not torch.equal(_bits(file.get_tensor(name)), _bits(tensor)):
                raise ValueError(f"{name} differs")


def bytes_of(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def ask_for_space(folder: Path, needed: int) -> None:
    """NoSpaceError, naming both figures, unless the folder's disk has so many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpaceError(
            f"no space left in {folder}: {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free; free some"
        )


@contextmanager
def full_disk_is_an_error(path: Path) -> Iterator[None]:
    """What libraries raise on a full disk, as NoSpaceError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in FULL):
            raise NoSpaceError(f"no space left in {path.parent}: {path.name} cannot be written; free some") from error
        raise LlmcoreError(f"{path}: cannot be written: {error}") from error


@contextmanager
def read_back(path: Path) -> Iterator[None]:
    """Around reading a file that was just written: whatever is wrong with it is the disk's fault."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise LlmcoreError(
            f"{path}: what was written reads back otherwise ({error}); is the disk full or failing?"
        ) from error


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
