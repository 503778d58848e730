"""Where named objects lie: what every backend can do, and the folder. S3 is in `s3.py`."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Protocol

from llmcore.errors import LlmcoreError, UsageError

COPY_BYTES = 1 << 20
ASIDE = ".aside-"


@dataclass(frozen=True)
class Entry:
    """One stored object: its name below the store, size in bytes and time of writing by the store's own clock."""

    name: str
    bytes: int
    written: datetime


class Backend(Protocol):
    """Where named objects lie.

    rewritten_bytes: an object of at most so many bytes is rather written again than asked for and renewed.
    """

    rewritten_bytes: int

    def read(self, name: str) -> bytes | None: ...
    def create(self, name: str, data: bytes) -> bool:
        """Write unless the name exists; False if it does. Exactly one of several racing writers gets True."""

    def replace(self, name: str, data: bytes) -> None: ...
    def upload(self, name: str, path: Path) -> None: ...
    def local(self, name: str, fresh: bool = False) -> Path | None:
        """A local path of the object's bytes (fetched if need be, again if `fresh`); None if there is none."""

    def entry(self, name: str) -> Entry | None: ...
    def entries(self, prefix: str) -> Iterator[Entry]: ...
    def delete(self, name: str) -> None: ...
    def now(self) -> datetime: ...
    def renew(self, name: str) -> bool:
        """Make the object's time of writing now, its bytes being what they were; False if there is no such object."""

    def unfinished(self) -> Iterator[Entry]:
        """Uploads that were begun and neither finished nor abandoned, under way or broken off."""

    def abandon(self, entry: Entry) -> None:
        """Remove what an upload that `unfinished` found has left behind."""


class FileBackend:
    """A folder. Objects are written aside, synced and linked or renamed into place; blobs are made read-only."""

    rewritten_bytes = -1

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, name: str) -> Path:
        return self.root / name

    @contextmanager
    def _aside(self, name: str) -> Iterator[Path]:
        target = self._path(name)
        aside: Path | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, made = tempfile.mkstemp(prefix=ASIDE, dir=target.parent)
            os.close(handle)
            aside = Path(made)
            yield aside
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise LlmcoreError(f"no space left in the store {self.root}: free some, then run again") from error
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise UsageError(f"cannot write to the store {self.root}: {error.strerror}; set `store`") from error
            raise
        finally:
            if aside is not None:
                aside.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        with self._aside(name) as aside:
            _write_synced(aside, data)
            try:
                os.link(aside, self._path(name))
            except FileExistsError:
                return False
            _sync_folder(self._path(name).parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        with self._aside(name) as aside:
            _write_synced(aside, data)
            os.replace(aside, self._path(name))
            _sync_folder(self._path(name).parent)

    def upload(self, name: str, path: Path) -> None:
        with self._aside(name) as aside:
            with path.open("rb") as source, aside.open("wb") as target:
                shutil.copyfileobj(source, target, COPY_BYTES)
                target.flush()
                os.fsync(target.fileno())
            aside.chmod(0o444)
            os.replace(aside, self._path(name))
            _sync_folder(self._path(name).parent)

    def local(self, name: str, fresh: bool = False) -> Path | None:
        path = self._path(name)
        return path if path.is_file() else None

    def entry(self, name: str) -> Entry | None:
        try:
            stat = self._path(name).stat()
        except FileNotFoundError:
            return None
        return Entry(name, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    def entries(self, prefix: str) -> Iterator[Entry]:
        return self._walk(self._path(prefix), aside=False)

    def unfinished(self) -> Iterator[Entry]:
        return self._walk(self.root, aside=True)

    def abandon(self, entry: Entry) -> None:
        self.delete(entry.name)

    def _walk(self, folder: Path, aside: bool) -> Iterator[Entry]:
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for file in sorted(files):
                if file.startswith(ASIDE) is aside:
                    found = self.entry(str(PurePosixPath(Path(parent, file).relative_to(self.root))))
                    if found is not None:
                        yield found

    def renew(self, name: str) -> bool:
        try:
            os.utime(self._path(name))
        except (FileNotFoundError, PermissionError):
            return False  # another user's file: whoever renews writes it again, as his own
        return True

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def now(self) -> datetime:
        # the clock that stamps the files, which on a network share is not this machine's
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.root) as file:
            return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
