"""Local copies of a remote store's blobs: bounded, and shared by every process of this user on this machine.

The bound, LLMCORE_CACHE_BYTES (default: a quarter of the disk the folder lies on), is kept by removing what was used
least recently. The time of last access of each file says when it was handed out last; the files are never written to.
What was handed out within IN_USE_SECONDS stays, because whoever has the path may not have opened it yet.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from llmcore.artifacts.backends import ASIDE
from llmcore.artifacts.disk import ask_for_room, disk_errors
from llmcore.errors import LlmcoreError, UsageError

IN_USE_SECONDS = 3600.0
ABANDONED_SECONDS = 24 * 3600.0  # of a download that nobody finished
SHARE_OF_DISK = 4
# a process looks through the folder again when it has fetched this part of the bound
LOOKS_PER_BOUND = 20


class BlobCache:
    """The copies of one bucket, in `root/place`; the bound holds for all of `root`."""

    def __init__(self, root: Path, place: str) -> None:
        self.root = root
        self.folder = root / place
        self._handed_out: set[Path] = set()
        self._bound: int | None = None
        self._fetched_since_look: int | None = None

    def find(self, name: str) -> Path | None:
        """The copy, which stays for at least IN_USE_SECONDS from now; None if there is none."""
        path = self.path(name)
        with self._errors():
            if not path.is_file():
                return None
            with self._locked(fcntl.LOCK_SH):
                return path if self._touch(path) else None

    @contextmanager
    def filling(self, name: str, size: int) -> Iterator[Path]:
        """A file to write the copy of `size` bytes to; it takes its name when the context ends well."""
        path = self.path(name)
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            handle, made = tempfile.mkstemp(prefix=ASIDE, dir=path.parent)
            os.close(handle)
            aside = Path(made)
            try:
                yield aside
                with self._locked(fcntl.LOCK_SH):
                    os.replace(aside, path)
                    self._touch(path)
            finally:
                aside.unlink(missing_ok=True)

    def forget(self, name: str) -> None:
        """Remove the copy."""
        with self._errors():
            self.path(name).unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """Where the copy lies. LlmcoreError for a name that leads out of the folder."""
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise LlmcoreError(f"the name {name!r} in the store leads out of {self.folder}: delete that object")
        return self.folder / name

    def _touch(self, path: Path) -> bool:
        try:
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        except FileNotFoundError:
            return False  # removed since we looked
        self._handed_out.add(path)
        return True

    def _make_room(self, size: int) -> None:
        if self._bound is None:
            self._bound = _bound(self.root)
        if self._fetched_since_look is not None:
            self._fetched_since_look += size
        part = self._bound // LOOKS_PER_BOUND
        crowded = self._fetched_since_look is None or self._fetched_since_look > part
        if crowded or shutil.disk_usage(self.root).free < size:
            self._evict(self._bound - size - part, size)
            self._fetched_since_look = 0
        ask_for_room(self.root, size, f"the cache {self.root} (LLMCORE_CACHE)")

    def _evict(self, allowed: int, wanted: int) -> None:
        """Remove until all together is at most `allowed` bytes and `wanted` are free, or nothing is left to remove."""
        copies = []
        now = time.time()
        for parent, _, files in os.walk(self.root):
            for file in files:
                path = Path(parent, file)
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue
                if file.startswith(ASIDE):
                    if now - stat.st_mtime > ABANDONED_SECONDS:
                        path.unlink(missing_ok=True)
                elif path != self._lock_file:
                    copies.append((path in self._handed_out, stat.st_atime, stat.st_size, path))
        total = sum(size for _, _, size, _ in copies)
        # what this process gave to somebody goes last: a trainer may open its shards anew after days
        for _, _, size, path in sorted(copies):
            if total <= allowed and shutil.disk_usage(self.root).free >= wanted:
                return
            if self._remove_unused(path):
                total -= size

    def _remove_unused(self, path: Path) -> bool:
        with self._locked(fcntl.LOCK_EX):
            try:
                if time.time() - path.stat().st_atime <= IN_USE_SECONDS:
                    return False
                path.unlink()
            except FileNotFoundError:
                pass
        self._handed_out.discard(path)
        return True

    @property
    def _lock_file(self) -> Path:
        return self.root / ".lock"

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        # handing out (shared) and removing (alone) must not meet; the kernel ends the lock of a process that dies
        handle = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with disk_errors("use", f"the cache {self.root}", "set LLMCORE_CACHE"):
            yield


def _bound(root: Path) -> int:
    text = os.environ.get("LLMCORE_CACHE_BYTES")
    if text is None:
        return shutil.disk_usage(root).total // SHARE_OF_DISK
    if not text.strip().isdecimal():
        raise UsageError(f"LLMCORE_CACHE_BYTES={text!r} is no number of bytes")
    return int(text)
