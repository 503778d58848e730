"""What a library wrote counts once it reads back: some report nothing when a disk is full, and leave half a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from llmcore.errors import LlmcoreError


def check_written(path: Path, reads_back: Callable[[Path], bool]) -> None:
    """Flush `path` to its disk and read it back.

    reads_back: whether what it reads there is what was to be written; if it raises, that is not so.
    Raises LlmcoreError that names the file and the free space.
    """
    reason = "it reads back otherwise"
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        if reads_back(path):
            return
    except Exception as error:  # the readers of foreign formats raise whatever they like
        reason = str(error).split("\n")[0] or type(error).__name__
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    raise LlmcoreError(
        f"{path}: what lies there is not what was written ({reason}; {_size(free)} are free): "
        "free some space or set TMPDIR, then run again"
    )


def require_space(folder: Path, size: int, what: str) -> None:
    """LlmcoreError if the disk of `folder` has fewer than `size` bytes free for `what`."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise LlmcoreError(
            f"{what} need {_size(size)}, but {folder} has {_size(free)}: free some space or set TMPDIR, then run again"
        )


def _size(size: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"
