"""Where named objects lie: what every backend can do, and the folder. S3 is in `s3.py`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Protocol

from llmcore.artifacts.disk import REFUSED, ask_for_room, disk_errors, sync
from llmcore.errors import UsageError

COPY_BYTES = 1 << 20
ASIDE = ".aside-"


@dataclass(frozen=True)
class Entry:
    """One stored object: its name below the store, size in bytes and time of writing by the store's own clock."""

    name: str
    bytes: int
    written: datetime


class Backend(Protocol):
    """Where named objects lie. Whatever goes wrong is an LlmcoreError, or a UsageError where the caller can mend it.

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

    def download(self, name: str, path: Path) -> bool:
        """Write the object's bytes to `path`; False if there is no such object."""

    def entry(self, name: str) -> Entry | None: ...
    def entries(self, prefix: str) -> Iterator[Entry]: ...
    def delete(self, name: str) -> None: ...
    def now(self) -> datetime:
        """The time by the clock that stamps the objects."""

    def holds(self, name: str, path: Path) -> bool:
        """Whether the object is there and certainly has the bytes of the local file."""

    def renew(self, name: str) -> bool:
        """Make the object's time of writing now, its bytes being what they were; False if there is no such object."""

    def unfinished(self) -> Iterator[Entry]:
        """Uploads that were begun and neither finished nor abandoned, under way or broken off."""

    def abandon(self, entry: Entry) -> None:
        """Remove what an upload that `unfinished` found has left behind."""

    def probe(self) -> None:
        """Raise UsageError unless this store can be written to and refuses to create what exists."""


class FileBackend:
    """A folder. Objects are written aside, synced and linked or renamed into place; blobs are made read-only."""

    rewritten_bytes = -1

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, name: str) -> Path:
        return self.root / name

    def _errors(self, doing: str) -> AbstractContextManager[None]:
        return disk_errors(doing, f"the store {self.root}", "set `store`")

    @contextmanager
    def _aside(self, name: str) -> Iterator[Path]:
        target = self._path(name)
        aside: Path | None = None
        with self._errors("write to"):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                handle, made = tempfile.mkstemp(prefix=ASIDE, dir=target.parent)
                os.close(handle)
                aside = Path(made)
                yield aside
            finally:
                if aside is not None:
                    aside.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        with self._errors(f"read {name} in"):
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
            sync(self._path(name).parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        with self._aside(name) as aside:
            _write_synced(aside, data)
            os.replace(aside, self._path(name))
            sync(self._path(name).parent)

    def upload(self, name: str, path: Path) -> None:
        with disk_errors("read", str(path), "make it readable"):
            source = path.open("rb")
        with source, self._aside(name) as aside:
            ask_for_room(aside.parent, os.fstat(source.fileno()).st_size, f"the store {self.root}")
            with aside.open("wb") as target:
                shutil.copyfileobj(source, target, COPY_BYTES)
                target.flush()
                os.fsync(target.fileno())
            aside.chmod(0o444)
            os.replace(aside, self._path(name))
            sync(self._path(name).parent)

    def local(self, name: str, fresh: bool = False) -> Path | None:
        path = self._path(name)
        with self._errors(f"read {name} in"):
            return path if path.is_file() else None

    def download(self, name: str, path: Path) -> bool:
        source = self.local(name)
        if source is None:
            return False
        with disk_errors("write", str(path), "choose another folder"):
            ask_for_room(path.parent, source.stat().st_size, str(path.parent))
            shutil.copyfile(source, path)
        return True

    def entry(self, name: str) -> Entry | None:
        with self._errors(f"look at {name} in"):
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
        with self._errors("list"):
            for parent, folders, files in os.walk(folder, onerror=_raise_unless_absent):
                folders.sort()
                told: set[str] = set()
                waiting = files
                while waiting:
                    vanished = False
                    for file in sorted(waiting):
                        if file.startswith(ASIDE) is aside:
                            found = self.entry(str(PurePosixPath(Path(parent, file).relative_to(self.root))))
                            vanished = vanished or found is None
                            if found is not None:
                                told.add(file)
                                yield found
                    # a row of epochs moves on by a new file before the old one goes: it must never look empty
                    waiting = [file for file in _files_in(parent) if file not in told] if vanished else []

    def holds(self, name: str, path: Path) -> bool:
        stored = self.local(name)
        if stored is None:
            return False
        with self._errors(f"read {name} in"), stored.open("rb") as one, path.open("rb") as other:
            if os.fstat(one.fileno()).st_size != os.fstat(other.fileno()).st_size:
                return False
            while part := one.read(COPY_BYTES):
                if part != other.read(COPY_BYTES):
                    return False
        return True

    def renew(self, name: str) -> bool:
        with self._errors("write to"):
            try:
                os.utime(self._path(name))
            except (FileNotFoundError, PermissionError):
                return False  # another user's file: whoever renews writes it again, as his own
        return True

    def delete(self, name: str) -> None:
        with self._errors(f"delete {name} in"):
            self._path(name).unlink(missing_ok=True)

    def now(self) -> datetime:
        # the clock that stamps the files, which on a network share is not this machine's
        with self._errors("ask the time of"):
            try:
                with tempfile.TemporaryFile(dir=self.root) as file:
                    return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
            except FileNotFoundError:
                return datetime.now(UTC)  # nothing is stamped yet
            except OSError as error:
                if error.errno in REFUSED:
                    return datetime.now(UTC)  # who cannot write here needs no better clock to read
                raise

    def probe(self) -> None:
        name = f"runs/probe/{os.urandom(8).hex()}"
        try:
            if not self.create(name, b"1") or self.create(name, b"2"):
                raise UsageError(f"the store {self.root} lets two writers create one file: use another file system")
        finally:
            self.delete(name)


def _raise_unless_absent(error: OSError) -> None:
    # os.walk passes over what it cannot read, and who counts what is unreachable must not believe that it is empty
    if not isinstance(error, FileNotFoundError):
        raise error


def _files_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return [entry.name for entry in found if not entry.is_dir()]
    except FileNotFoundError:
        return []


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
