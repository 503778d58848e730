"""What a file system refuses, in one line; and whether it has room, asked before a large write instead of half-way."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmcore.errors import LlmcoreError, UsageError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EROFS, errno.EPERM)
MISPLACED = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTEMPTY)


@contextmanager
def disk_errors(doing: str, where: str, mend: str) -> Iterator[None]:
    """Turn an OSError into `cannot <doing> <where>: <why>; <mend>`.

    A full disk and a fault of the device are LlmcoreErrors, what the caller may not or named wrongly a UsageError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise LlmcoreError(f"no space left in {where}: free some, then run again") from error
        why = error.strerror or str(error)
        if error.errno in MISPLACED and error.filename:
            why = f"{why} ({error.filename})"
        text = f"cannot {doing} {where}: {why}"
        if error.errno in (*REFUSED, *MISPLACED):
            raise UsageError(f"{text}; {mend}") from error
        raise LlmcoreError(f"{text}; run again") from error


def ask_for_room(folder: Path, size: int, where: str) -> None:
    """Raise LlmcoreError unless `size` bytes are free where `folder`, or the nearest parent there is, lies."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise LlmcoreError(f"no space left in {where}: {size:,} bytes wanted, {free:,} free; free some, then run again")
