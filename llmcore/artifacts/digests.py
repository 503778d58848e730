"""Digests of files of the outside world, remembered: what did not change since it was hashed is not read again.

A file is the same while its size, its times of modification and of change, and its inode are the same; an object of a
bucket while its ETag, size and time are. What was written within the last RACY_SECONDS is not remembered: a second
write in the same tick of the clock would go unseen (git's "racy" problem).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from llmcore.artifacts.keys import file_digest, key_of
from llmcore.artifacts.memory import FAULTS, memory

RACY_SECONDS = 2.0
MOST_ENTRIES = 1_000_000  # about 200 bytes each
BATCH = 500  # places in one question: SQLite takes 999 in old versions
THREADS = 8
REMEMBERED = ("digests.sqlite", "digests (place BLOB PRIMARY KEY, state TEXT, digest TEXT)")

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
    with suppress(*FAULTS), memory(*REMEMBERED) as known:
        known.execute("DELETE FROM digests WHERE place = ?", (os.fsencode(place),))


@lru_cache(maxsize=256)
def data_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's names and files (without byte code), as this process first saw it."""
    if path.is_file():
        return file_digests([path])[path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc")
    return key_of({file.relative_to(path).as_posix(): digest for file, digest in file_digests(files).items()})


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
    found = {place: _unwritten[place] for place in states.keys() & _unwritten.keys()}
    places = [os.fsencode(place) for place in states]
    with suppress(*FAULTS), memory(*REMEMBERED) as known:
        for first in range(0, len(places), BATCH):
            batch = places[first : first + BATCH]
            asked = f"SELECT place, state, digest FROM digests WHERE place IN ({','.join('?' * len(batch))})"
            found |= {os.fsdecode(place): (state, digest) for place, state, digest in known.execute(asked, batch)}
    return {place: digest for place, (state, digest) in found.items() if state == states[place]}


def _remember(entries: Mapping[str, tuple[str, str]]) -> None:
    if not entries:
        return
    rows = [(os.fsencode(place), state, digest) for place, (state, digest) in entries.items()]
    try:
        with memory(*REMEMBERED) as known:
            known.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
            known.execute("DELETE FROM digests WHERE rowid <= (SELECT max(rowid) FROM digests) - ?", (MOST_ENTRIES,))
    except FAULTS:
        _unwritten.update(entries)
