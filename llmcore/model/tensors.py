"""Tensors to a file that is known to hold them: space is asked for before, and what was written is read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llmcore.artifacts.disk import ask_for_room, check_written, is_full
from llmcore.errors import LlmcoreError, NoSpaceError

HEADER_BYTES = 1024  # and some for each tensor's entry


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file and compare it with the tensors, bit by bit.

    Raises NoSpaceError where the disk is full, LlmcoreError where it holds something else than was written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    ask_for_room(path.parent, bytes_of(plain) + HEADER_BYTES * (1 + len(plain)))
    with full_disk_is_an_error(path):
        save_file(plain, path, metadata=dict(metadata) if metadata else None)
    check_written(path, lambda path: _holds(path, plain))


def bytes_of(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@contextmanager
def full_disk_is_an_error(path: Path) -> Iterator[None]:
    """What libraries raise on a full disk, as NoSpaceError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise NoSpaceError(f"no space left in {path.parent}: {path.name} cannot be written; free some") from error
        raise LlmcoreError(f"{path}: cannot be written: {error}") from error


def _holds(path: Path, tensors: Mapping[str, torch.Tensor]) -> bool:
    with safe_open(path, framework="pt") as file:
        return set(file.keys()) == set(tensors) and all(
            torch.equal(_bits(file.get_tensor(name)), _bits(tensor)) for name, tensor in tensors.items()
        )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
