"""Disks: what they refuse, in one line; whether there is room, asked before a large write; whether it was written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmcore.errors import LlmcoreError, NoSpaceError, UsageError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EROFS, errno.EPERM)
MISPLACED = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTEMPTY)


def is_full(error: BaseException) -> bool:
    """Whether a full disk was the cause. Libraries with errors of their own keep its words and lose its number."""
    return getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL)


@contextmanager
def disk_errors(doing: str, where: str, mend: str) -> Iterator[None]:
    """Turn an OSError into `cannot <doing> <where>: <why>; <mend>`.

    A full disk is a NoSpaceError, a fault of the device a LlmcoreError, what the caller may not or named wrongly a
    UsageError.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise NoSpaceError(f"no space left in {where}: free some, then run again") from error
        why = error.strerror or str(error)
        if error.errno in MISPLACED and error.filename:
            why = f"{why} ({error.filename})"
        text = f"cannot {doing} {where}: {why}"
        if error.errno in (*REFUSED, *MISPLACED):
            raise UsageError(f"{text}; {mend}") from error
        raise LlmcoreError(f"{text}; run again") from error


def ask_for_room(folder: Path, size: int, where: str = "") -> None:
    """NoSpaceError unless `size` bytes are free where `folder`, or the nearest parent there is, lies.

    where: what to call it; none: the folder.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    if free < size:
        raise NoSpaceError(
            f"no space left in {where or folder}: {in_units(size)} are needed, {in_units(free)} are free; "
            "free some, then run again"
        )


def check_written(path: Path, reads_back: Callable[[Path], bool]) -> None:
    """Flush what a library wrote to its disk and read it back: some report nothing when it is full.

    reads_back: whether what it reads there is what was to be written; if it raises, that is not so.
    Raises LlmcoreError that names the file and the free space.
    """
    reason = "it reads back otherwise"
    try:
        sync(path)
        if reads_back(path):
            return
    except Exception as error:  # the readers of foreign formats raise whatever they like
        if "allocate memory" in str(error):  # says nothing of the file
            raise
        reason = str(error).split("\n")[0] or type(error).__name__
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    raise LlmcoreError(
        f"{path}: what lies there is not what was written ({reason}; {in_units(free)} are free): "
        "free some space or set TMPDIR, then run again"
    )


def sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def in_units(size: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"
