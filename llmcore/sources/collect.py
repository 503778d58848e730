"""Collect: local files and bucket objects, by content, as the raw files of a source.

`scan` looks at the outside world and says which files there are and what they hold; the stage copies them. WARC,
Parquet and JSONL files become `raw/gNNN-NAME`; small text and HTML files are bundled into `raw/gNNN-NNNNN.parquet`
(name, content), so that a folder of a hundred thousand of them is a few shards. `collected/gNNN.parquet` lists every
file and what came of it. A refresh (role "previous") keeps the earlier generations and adds one with what is new or
changed.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field

from llmcore.artifacts import digests
from llmcore.artifacts.params import Params
from llmcore.artifacts.shards import generation_name, generation_of
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.errors import LlmcoreError, UsageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Kind = Literal["warc", "parquet", "jsonl", "text", "html"]

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "warc": (".warc",),
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson"),
    "text": (".txt", ".text", ".md", ".rst"),
    "html": (".html", ".htm", ".xhtml"),
}
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
BUNDLE_BYTES = 64 * 1024 * 1024

COLLECTED_SCHEMA = pl.Schema({"name": pl.String(), "outcome": pl.String(), "sha256": pl.String(), "bytes": pl.Int64()})


class CollectParams(Params):
    """What to collect: the files' digests are the identity, where they lie is not."""

    name: str = Field(description="name of the source in every document")
    kind: Kind = Field(description="format of the files")
    files: dict[str, str] = Field(min_length=1, description="relative name -> SHA-256")


def collect(inputs: Mapping[str, Files], params: CollectParams, run: Run) -> dict[str, Any]:
    """Copy what is new or changed; `run.outside["paths"]` says where each file lies: name -> path or s3:// URI.

    Returns files, new, changed, unchanged, gone. Raises LlmcoreError for a file that does not hold what its digest
    says.
    """
    following, known = carry_earlier(inputs.get("previous"), run)
    generation = generation_name(run.generation or following)
    rows: list[dict[str, Any]] = []
    for name, digest in sorted(params.files.items()):
        before = known.get(name)
        outcome = "new" if before is None else "unchanged" if before == digest else "changed"
        rows.append({"name": name, "outcome": outcome, "sha256": digest, "bytes": None})
    rows += [
        {"name": name, "outcome": "gone", "sha256": None, "bytes": None}
        for name in sorted(known.keys() - params.files.keys())
    ]
    wanted = [row for row in rows if row["outcome"] in ("new", "changed")]
    raw = run.out / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    bundled = _Bundles(raw, generation) if params.kind in ("text", "html") else None
    for done, row in enumerate(wanted):
        name = str(row["name"])
        run.progress(done, len(wanted), name)
        copy = run.scratch / "collecting" if bundled else raw / f"{generation}-{flat(name, params.kind)}"
        row["bytes"] = fetch(str(run.outside["paths"][name]), copy, str(row["sha256"]), name)
        if bundled:
            bundled.add(name, copy.read_bytes())
        elif params.kind == "parquet" and not is_parquet(copy):
            copy.rename(copy.with_suffix(".damaged"))  # for ingest to name; the store counts rows of what is Parquet
    if bundled:
        bundled.close()
        (run.scratch / "collecting").unlink(missing_ok=True)
    (run.out / "collected").mkdir(exist_ok=True)
    table = pl.DataFrame(rows, schema=COLLECTED_SCHEMA)
    table.write_parquet(run.out / "collected" / f"{generation}.parquet", compression="zstd")
    count = dict(table.group_by("outcome").len().iter_rows())
    return {
        "files": len(params.files),
        **{outcome: count.get(outcome, 0) for outcome in ("new", "changed", "unchanged", "gone")},
    }


def scan(kind: str, path: str) -> tuple[dict[str, str], dict[str, str]]:
    """(relative name -> SHA-256, relative name -> where it lies) of a file, a folder, a glob, or an s3:// URI
    (object, prefix or glob). What did not change since an earlier scan on this machine is not read again.

    A folder is searched through for files whose suffix fits the kind. Raises UsageError if there is none.
    """
    places, states = _places(kind, path)
    known = (
        digests.digests(states, partial(_object_digest, _s3()))
        if path.startswith("s3://")
        else _file_digests(places.values())
    )
    return {name: known[place] for name, place in sorted(places.items())}, dict(sorted(places.items()))


def sizes(kind: str, path: str) -> dict[str, int]:
    """Relative name -> bytes of what `scan` would take; nothing is read. Raises as `scan` does."""
    places, states = _places(kind, path)
    if states:
        return {name: _size_in(states[place]) for name, place in sorted(places.items())}
    try:
        return {name: Path(place).stat().st_size for name, place in sorted(places.items())}
    except OSError as error:
        raise UsageError(f"path: {error.filename} cannot be read ({error.strerror})") from error


def _places(kind: str, path: str) -> tuple[dict[str, str], dict[str, str]]:
    """Relative name -> where it lies, at least one; and of objects, where each lies -> its state."""
    if kind not in SUFFIXES:
        raise UsageError(f"kind: {kind!r} is none of {', '.join(SUFFIXES)}")
    on_bucket = path.startswith("s3://")
    places, states = _bucket_places(kind, path) if on_bucket else (dict(_local_places(kind, _expanded(path))), {})
    if not places:
        wanted = ", ".join(SUFFIXES[kind])
        raise UsageError(
            f"path: {path} holds no {kind} file ({wanted}, also {'/'.join(COMPRESSIONS)}); name the files or use a glob"
        )
    return places, states


def _sound(name: Path) -> str:
    """A relative name with \\xNN for the bytes in it that are no UTF-8: Linux allows any, a table does not."""
    return name.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _expanded(path: str) -> Path:
    if "\0" in path:
        raise UsageError(f"path: {path!r} holds a zero byte")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"path: {path}: {error}") from None


def _local_places(kind: str, path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and fits(kind, file.name):
                yield _sound(file.relative_to(path)), str(file.resolve())
    elif path.is_file():
        yield _sound(Path(path.name)), str(path.resolve())
    elif glob.has_magic(str(path)):
        root = Path(*[part for part in path.parts[: _first_magic(path.parts)]])
        for found in sorted(glob.glob(str(path), recursive=True)):
            if Path(found).is_file():
                yield _sound(Path(found).relative_to(root)), str(Path(found).resolve())
    else:
        raise UsageError(f"path: {path} does not exist")


def _first_magic(parts: tuple[str, ...]) -> int:
    return next(number for number, part in enumerate(parts) if glob.has_magic(part))


def _bucket_places(kind: str, uri: str) -> tuple[dict[str, str], dict[str, str]]:
    """name -> URI of the objects, and URI -> what tells that an object is still the same."""
    from fnmatch import fnmatchcase

    bucket, _, pattern = uri.removeprefix("s3://").partition("/")
    prefix = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    folder = prefix if prefix == pattern and prefix.endswith("/") else prefix[: prefix.rfind("/") + 1]
    client = _s3()
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        listed = {entry["Key"]: entry for page in pages for entry in page.get("Contents", [])}
    except Exception as error:
        raise UsageError(
            f"path: {uri} cannot be listed ({_said(error)}); check the bucket and the AWS settings"
        ) from error
    places, states = {}, {}
    for key, entry in listed.items():
        if key == pattern or (
            fnmatchcase(key, pattern) if prefix != pattern else key.startswith(f"{pattern.rstrip('/')}/")
        ):
            name = key.removeprefix(folder if prefix != pattern or key == pattern else f"{pattern.rstrip('/')}/")
            if key == pattern or prefix != pattern or fits(kind, key):
                places[name] = place = f"s3://{bucket}/{key}"
                states[place] = _object_state(client, entry["ETag"], entry["Size"], entry["LastModified"])
    return places, states


def _object_state(client: S3Client, etag: str, size: int, modified: datetime) -> str:
    return f"{client.meta.endpoint_url} {etag} {size} {modified.isoformat(timespec='seconds')}"


def _size_in(state: str) -> int:
    return int(state.rsplit(" ", 2)[1])


def fits(kind: str, name: str) -> bool:
    """Does a file's suffix (before a compression's) belong to the kind?"""
    stem = name.lower()
    for compression in COMPRESSIONS:
        stem = stem.removesuffix(compression)
    return stem.endswith(SUFFIXES[kind])


def flat(name: str, kind: str) -> str:
    """A relative name as one file name that is unique up to its first dot: `a.b.jsonl` and `a.c.jsonl` stay apart."""
    stem, suffix = name.split(".", 1) if "." in name else (name, "")
    canonical = {"warc": "warc.gz"}.get(kind, kind)
    if suffix == canonical and re.fullmatch(r"[A-Za-z0-9_-]{1,80}", stem):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[-80:].strip('-')}-{digest}.{canonical}"


def fetch(place: str, target: Path, digest: str, name: str) -> int:
    """Copy a file or object and check its digest on the way; returns its bytes."""
    state = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        for chunk in _chunks(place):
            state.update(chunk)
            out.write(chunk)
    if state.hexdigest() != digest:
        digests.forget(place)
        raise LlmcoreError(f"{name}: the file has changed since it was looked at; run again")
    return target.stat().st_size


def is_parquet(path: Path) -> bool:
    """Can the file's footer be read?"""
    try:
        return bool(pl.scan_parquet(path).select(pl.len()).collect().item() >= 0)
    except (pl.exceptions.PolarsError, OSError):
        return False


def carry_earlier(previous: Files | None, run: Run) -> tuple[int, dict[str, str]]:
    """Carry an earlier collection's files over; returns the next generation's number, and name -> SHA-256 by now."""
    if previous is None:
        return 0, {}
    run.carry("previous")
    known: dict[str, str] = {}
    for _, table in previous.tables("collected/"):
        for name, outcome, digest in table.select("name", "outcome", "sha256").iter_rows():
            if outcome == "gone":
                known.pop(name, None)
            else:
                known[name] = digest
    return next_generation(previous.names("collected/")), known


def next_generation(listings: Sequence[str]) -> int:
    """One more than the newest generation; a source that joined late, or slept, has fewer of them than its number."""
    return 1 + max((generation_of(name) or 0 for name in listings), default=-1)


class _Bundles:
    """Parquet files of (name, content), each of about BUNDLE_BYTES."""

    def __init__(self, folder: Path, generation: str) -> None:
        self.folder, self.generation, self.number, self.size = folder, generation, 0, 0
        self.rows: list[tuple[str, bytes]] = []

    def add(self, name: str, content: bytes) -> None:
        self.rows.append((name, content))
        self.size += len(content)
        if self.size >= BUNDLE_BYTES:
            self.close()

    def close(self) -> None:
        if not self.rows:
            return
        table = pl.DataFrame(self.rows, schema={"name": pl.String(), "content": pl.Binary()}, orient="row")
        table.write_parquet(self.folder / f"{self.generation}-{self.number:05d}.parquet", compression="zstd")
        self.number, self.rows, self.size = self.number + 1, [], 0


def _file_digests(places: Iterable[str]) -> dict[str, str]:
    try:
        return {str(path): digest for path, digest in digests.file_digests(map(Path, places)).items()}
    except OSError as error:
        raise UsageError(f"path: {error.filename} cannot be read ({error.strerror})") from error


def _object_digest(client: S3Client, place: str) -> tuple[str, str | None]:
    """The digest of an object, and the state of the very bytes that were hashed."""
    bucket, _, key = place.removeprefix("s3://").partition("/")
    content = hashlib.sha256()
    try:
        answer = client.get_object(Bucket=bucket, Key=key)
        for chunk in answer["Body"].iter_chunks(1 << 20):
            content.update(chunk)
    except Exception as error:
        raise LlmcoreError(f"{place}: cannot be read ({_said(error)})") from error
    state = _object_state(client, answer["ETag"], answer["ContentLength"], answer["LastModified"])
    return content.hexdigest(), state


def _chunks(place: str) -> Iterator[bytes]:
    try:
        if place.startswith("s3://"):
            bucket, _, key = place.removeprefix("s3://").partition("/")
            yield from _s3().get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(1 << 20)
            return
        with Path(place).open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk
    except Exception as error:
        raise LlmcoreError(f"{place}: cannot be read ({_said(error)})") from error


def _s3() -> S3Client:
    import boto3

    return boto3.client("s3")


def _said(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


STAGE = Stage("collect", version=1, role="fetch", params=CollectParams, function="llmcore.sources.collect:collect")
