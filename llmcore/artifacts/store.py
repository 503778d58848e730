"""The artifact store: immutable blobs named by their hash, and create-only records.

    blobs/sha256/ab/abcd….parquet     immutable bytes
    artifacts/<stage>/<key>.json      manifest, written last: it is the commit
    memo/<stage>/<shared>/<shard-key>.json  the same for one shard
    editions/<stage>/<key>/<seal>.json  a manifest of the same bytes that another recipe leads to
    roots/refs/<name>/<number>        a named artifact: the newest number counts
    roots/runs/<run>/<number>         what a run under way needs
    runs/<key>/…                      scratch and lease of one artifact's work

A store is a URI: `file:///folder` or `s3://bucket/prefix`. Both backends offer the same operations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from llmcore.artifacts.backends import Backend, FileBackend
from llmcore.artifacts.keys import file_digest
from llmcore.errors import CorruptBlobError, LlmcoreError, UsageError

# what would be read otherwise in a URI, or lost at its ends
RESERVED = re.compile(r"[%#?\s\x00-\x1f\x7f]")
ROOMS = ("roots", "artifacts", "memo", "runs", "blobs")  # where a store's objects lie; every run begins with a root
TRANSFERS = 16  # blobs on their way at a time; each waits for its answer most of the time

Item = TypeVar("Item")
Done = TypeVar("Done")


class Store:
    """Blobs and records over a backend. Open one with `open_store`."""

    def __init__(self, uri: str, backend: Backend) -> None:
        self.uri = uri
        self.backend = backend
        self._verified: set[tuple[str, int, int]] = set()

    # blobs

    def put_blob(self, path: Path, suffix: str = "") -> str:
        """Store a file's bytes under their SHA-256 and return it.

        A large blob that is there already is not written again but renewed, so that it counts as written by this run.
        """
        digest = file_digest(path)
        name = blob_name(digest, suffix)
        large = path.stat().st_size > self.backend.rewritten_bytes
        if not (large and self.backend.holds(name, path) and self.backend.renew(name)):
            self.backend.upload(name, path)
        return digest

    def fetch_blob(self, digest: str, suffix: str = "", label: str = "") -> Path:
        """A local, read-only path of the blob, its bytes verified against its name.

        Raises CorruptBlobError naming the blob (and `label`, what it was wanted as) if it is missing or differs.
        """
        name = blob_name(digest, suffix)
        wanted = f"{label} ({name})" if label else name
        path = self.backend.local(name)
        if path is not None and not self._is_verified(path, digest):
            # a local copy may have been damaged while the store's bytes are sound
            path = self.backend.local(name, fresh=True)
            if path is not None and not self._is_verified(path, digest):
                raise CorruptBlobError(
                    f"corrupt blob: {wanted} in {self.uri} does not hash to its name, read twice; "
                    "rerun its stage with --force, which writes it anew"
                )
        if path is None:
            raise CorruptBlobError(f"blob missing: {wanted} is not in {self.uri}; rerun its stage with --force")
        return path

    def _is_verified(self, path: Path, digest: str) -> bool:
        stat = path.stat()
        seen = (digest, stat.st_mtime_ns, stat.st_size)
        if seen not in self._verified:
            if file_digest(path) != digest:
                return False
            self._verified.add(seen)
        return True

    def blob_is_sound(self, digest: str, suffix: str = "") -> bool:
        """Whether the stored bytes, read afresh, hash to their name."""
        path = self.backend.local(blob_name(digest, suffix), fresh=True)
        return path is not None and file_digest(path) == digest

    # records

    def record(self, name: str) -> dict[str, Any] | None:
        """A JSON record, None if absent; LlmcoreError if it is not JSON."""
        data = self.backend.read(name)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except ValueError as error:
            raise LlmcoreError(f"damaged record {name} in {self.uri}: {error}; delete it to have it remade") from error
        if not isinstance(found, dict):
            raise LlmcoreError(f"damaged record {name} in {self.uri}: not a JSON object; delete it to have it remade")
        return found

    def commit(self, name: str, record: Mapping[str, Any]) -> bool:
        """Create-only write; False if somebody else committed this name first."""
        return self.backend.create(name, _pretty(record))

    def replace(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a record over what stands there."""
        self.backend.replace(name, _pretty(record))

    def each(self, items: Iterable[Item], ask: Callable[[Item], Done]) -> list[Done]:
        """`ask` of every item, TRANSFERS at a time; the answers in the order of the items.

        The first error ends it: what was not begun by then is left.
        """
        todo = list(items)
        if len(todo) < 2:
            return [ask(item) for item in todo]
        with ThreadPoolExecutor(min(TRANSFERS, len(todo)), thread_name_prefix="transfer") as pool:
            waiting = [pool.submit(ask, item) for item in todo]
            try:
                return [future.result() for future in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _pretty(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def blob_name(digest: str, suffix: str = "") -> str:
    """Where a blob lies below the store."""
    return f"blobs/sha256/{digest[:2]}/{digest}{suffix}"


def suffix_of(name: str) -> str:
    """The suffix a blob carries so that ordinary tools open it: the output's last one."""
    return PurePosixPath(name).suffix


@lru_cache(maxsize=8)
def open_store(uri: str) -> Store:
    """Open `file://…` or `s3://bucket/prefix`. UsageError for another scheme or an S3 server that does not answer.

    In a file URI `%xx` stands for a byte of the path, as everywhere; an S3 prefix is taken as it is written. The
    store's own `uri` opens the same store again.
    """
    scheme, separator, place = uri.partition("://")
    if scheme == "file" and separator:
        host, slash, path = place.partition("/")
        if host not in ("", "~", "localhost"):
            raise UsageError(f"store: {uri!r} has a host; write file:///folder or file://~/folder")
        if not slash and host != "~":
            raise UsageError(f"store: {uri!r} is not absolute; write file:///folder or file://~/folder")
        root = Path.home() / unquote(path) if host == "~" else Path("/", unquote(path))
        if root.exists() and not root.is_dir():
            raise UsageError(f"store: {root} is no folder; name one, or a path where one can be made")
        return Store("file://" + RESERVED.sub(lambda found: quote(found.group()), str(root)), FileBackend(root))
    bucket, _, prefix = place.partition("/")
    if scheme == "s3" and bucket:
        from llmcore.artifacts.s3 import S3Backend

        prefix = prefix.strip("/")
        backend = S3Backend(bucket, prefix)
        backend.check()
        return Store(f"s3://{bucket}/{prefix}".rstrip("/"), backend)
    raise UsageError(f"store: {uri!r} is no store; write file:///folder or s3://bucket/prefix")
