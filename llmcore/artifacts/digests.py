"""Digests of files of the outside world, remembered: what did not change since it was hashed is not read again.

A file is the same while its size, its times of modification and of change, and its inode are the same; an object of a
bucket while its ETag, size and time are. What was written within the last RACY_SECONDS is not remembered: a second
write in the same tick of the clock would go unseen (git's "racy" problem). The memory is one SQLite file in the cache
folder (`LLMCORE_CACHE`, default `~/.cache/llmcore`), shared by all processes. It is a convenience: whatever is wrong
with it costs time and nothing else.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from llmcore.artifacts.keys import file_digest, key_of

RACY_SECONDS = 2.0
MOST_ENTRIES = 1_000_000  # about 200 bytes each
BATCH = 500  # places in one question: SQLite takes 999 in old versions
WAIT_SECONDS = 2.0  # for another process at the memory
THREADS = 8

_unwritten: dict[str, tuple[str, str]] = {}  # what could not be written: this process still hashes nothing twice


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file, hashed in parallel where it is not remembered. Raises OSError for what cannot be read."""
    states = {str(path): _state(path) for path in paths}
    return {Path(place): digest for place, digest in digests(states, _settled_digest).items()}


def digests(states: Mapping[str, str], compute: Callable[[str], tuple[str, str | None]]) -> dict[str, str]:
    """Digest of each place: as remembered under its state, or computed (in threads) and then remembered.

    compute: place -> (digest, the state under which to remember it; None: do not).
    """
    found = _recall(states)
    missing = [place for place in states if place not in found]
    if missing:
        with ThreadPoolExecutor(min(THREADS, len(missing))) as threads:
            computed = dict(zip(missing, threads.map(compute, missing), strict=True))
        _remember({place: (state, digest) for place, (digest, state) in computed.items() if state is not None})
        found |= {place: digest for place, (digest, _) in computed.items()}
    return {place: found[place] for place in states}


def forget(place: str) -> None:
    """For whoever found other bytes at a place than its remembered digest says."""
    _unwritten.pop(place, None)
    with suppress(sqlite3.Error, OSError, RuntimeError), _memory() as memory, memory:
        memory.execute("DELETE FROM digests WHERE place = ?", (os.fsencode(place),))


@lru_cache(maxsize=256)
def data_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's names and files (without byte code), as this process first saw it."""
    if path.is_file():
        return file_digests([path])[path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc")
    return key_of({file.relative_to(path).as_posix(): digest for file, digest in file_digests(files).items()})


def cache_folder() -> Path:
    """Where this machine keeps what can be had again."""
    return Path(os.environ.get("LLMCORE_CACHE") or Path.home() / ".cache" / "llmcore")


def _state(path: Path) -> str:
    seen = path.stat()
    return f"{seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns} {seen.st_ino}"


def _settled_digest(place: str) -> tuple[str, str | None]:
    path = Path(place)
    before, seen = _state(path), path.stat()
    digest = file_digest(path)
    settled = time.time() - max(seen.st_mtime, seen.st_ctime) > RACY_SECONDS
    return digest, before if settled and _state(path) == before else None


def _recall(states: Mapping[str, str]) -> dict[str, str]:
    known = {place: _unwritten[place] for place in states.keys() & _unwritten.keys()}
    places = [os.fsencode(place) for place in states]
    with suppress(sqlite3.Error, OSError, RuntimeError), _memory() as memory:
        for first in range(0, len(places), BATCH):
            batch = places[first : first + BATCH]
            asked = f"SELECT place, state, digest FROM digests WHERE place IN ({','.join('?' * len(batch))})"
            known |= {os.fsdecode(place): (state, digest) for place, state, digest in memory.execute(asked, batch)}
    return {place: digest for place, (state, digest) in known.items() if state == states[place]}


def _remember(entries: Mapping[str, tuple[str, str]]) -> None:
    if not entries:
        return
    rows = [(os.fsencode(place), state, digest) for place, (state, digest) in entries.items()]
    try:
        with _memory() as memory, memory:
            memory.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
            memory.execute("DELETE FROM digests WHERE rowid <= (SELECT max(rowid) FROM digests) - ?", (MOST_ENTRIES,))
    except (sqlite3.Error, OSError, RuntimeError):  # RuntimeError: there is no home folder
        _unwritten.update(entries)


@contextmanager
def _memory() -> Iterator[sqlite3.Connection]:
    """The open memory; a file that is no database is thrown away."""
    path = cache_folder() / "digests.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as memory:
            memory.execute("CREATE TABLE IF NOT EXISTS digests (place BLOB PRIMARY KEY, state TEXT, digest TEXT)")
            yield memory
    except sqlite3.OperationalError:  # busy, read-only, full: no reason to throw anything away
        raise
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
        raise
