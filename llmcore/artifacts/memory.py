"""What this machine could find out again and remembers instead: small tables in the cache folder, for all processes.

A memory is a convenience: whatever is wrong with it (FAULTS) costs time and nothing else; it may be deleted any time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

WAIT_SECONDS = 2.0  # for another process at the memory
FAULTS = (sqlite3.Error, OSError, RuntimeError)  # RuntimeError: there is no home folder


def cache_folder() -> Path:
    """Where this machine keeps what can be had again: LLMCORE_CACHE, by default ~/.cache/llmcore."""
    return Path(os.environ.get("LLMCORE_CACHE") or Path.home() / ".cache" / "llmcore")


@contextmanager
def memory(file: str, table: str) -> Iterator[sqlite3.Connection]:
    """An open database with this table; what is changed counts once the context ends well.

    A file that is no database is thrown away. Raises FAULTS.
    """
    path = cache_folder() / file
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as opened, opened:
            opened.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            yield opened
    except sqlite3.OperationalError:  # busy, read-only, full: no reason to throw anything away
        raise
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
        raise
