"""Ingest: raw files of any kind to documents with one schema; the id that a document gets here it keeps for good.

A document that cannot be one (another status than 200, no text, too large, …) goes to `dropped` with the reason. HTML
stays HTML here: `extract` finds the text in it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import ShardResult, Stage
from llmcore.errors import LlmcoreError
from llmcore.schema import DOCUMENT_SCHEMA, DROPPED_SCHEMA, document_id
from llmcore.sources import formats
from llmcore.sources.formats import Candidate


class IngestParams(Params):
    """How to read one source."""

    source: str = Field(description="name of the source in every document")
    kind: Literal["warc", "parquet", "jsonl", "text", "html"] = Field(description="format of the raw files")
    licence: str = Field("unknown", description="SPDX identifier of the source's text")
    text_column: str = Field("text", description="field of a JSONL or Parquet row that holds the text")
    url_column: str | None = Field(
        None, description="field that holds the document's address; empty = `url` where there is one"
    )
    html_column: bool = Field(False, description="text_column holds HTML, from which extract takes the text")
    bad_line: Literal["error", "drop"] = Field("error", description="what a line that is no JSON object is")
    max_document_bytes: int = Field(16 * 1024 * 1024, ge=1, description="UTF-8 bytes of one document at most")
    frame_bytes: int = Field(64 * 1024 * 1024, ge=1, description="text of one output shard, about")
    frame_rows: int = Field(50_000, ge=1, description="documents of one output shard at most")


def ingest(raw: Path, params: IngestParams, *, shard: str = "raw") -> ShardResult:
    """Documents of one raw file, in its order.

    Kept comes in frames of about frame_bytes; a large file's frames wait on disk, so that memory holds one at a time.
    Raises LlmcoreError, in one line that names the shard and the place, for damage and for a file without any document.
    """
    frames = _Frames(params)
    for candidate in candidates(raw, params, shard):
        frames.add(candidate)
    frames.flush()
    if not frames.kept and not frames.drops:
        raise LlmcoreError(
            f"{shard}: empty corpus, the {params.kind} file holds no document; check `kind` and the file, or remove it"
        )
    if not frames.kept and re.match(r"(?:.*/)?g000\b", shard):
        reasons = sorted({str(row[2]) for row in frames.drops})
        raise LlmcoreError(
            f"{shard}: empty corpus, all {len(frames.drops)} documents are unusable ({', '.join(reasons)})"
        )
    drops = pl.DataFrame(frames.drops, schema=DROPPED_SCHEMA, orient="row")
    numbers = {"kept": frames.kept, "dropped": len(drops), "bytes": frames.bytes}
    return ShardResult({"kept": frames.tables(), "dropped": drops}, numbers)


def candidates(raw: Path, params: IngestParams, shard: str) -> Iterator[Candidate]:
    """What the raw file holds, by the kind that the configuration says: never guessed from a name."""
    if params.kind == "warc":
        yield from formats.read_warc(raw, shard)
        return
    if params.kind in ("text", "html"):
        yield from formats.read_bundle(formats.parquet_parts(raw, shard), params.kind == "html")
        return
    if params.kind == "jsonl":
        found = formats.read_jsonl(raw, shard, params.text_column, params.url_column, params.bad_line)
    else:
        found = formats.read_table(formats.parquet_parts(raw, shard), shard, params.text_column, params.url_column)
    kind = {"content_type": "text/html" if params.html_column else "text/plain"}
    for candidate in found:
        yield Candidate(**{**vars(candidate), "metadata": {**candidate.metadata, **kind}})


class _Frames:
    """Judges candidates and gathers them into frames; all frames but the last wait in files."""

    def __init__(self, params: IngestParams) -> None:
        self.params = params
        self.rows: list[tuple[object, ...]] = []
        self.drops: list[tuple[str, str, str, str]] = []
        self.seen: set[bytes] = set()
        self.kept = self.bytes = self.size = 0
        self.waiting: list[Path] = []
        self.last: pl.DataFrame | None = None
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, candidate: Candidate) -> None:
        text = sound_text(candidate.text)
        encoded = text.encode()
        size, id = len(encoded), document_id(self.params.source, encoded, candidate.url)
        reason, detail = self._judge(candidate, text, size, id)
        if reason:
            detail = {"url": candidate.url, **detail} if candidate.url else detail
            self.drops.append((id, "ingest", reason, json.dumps(detail, sort_keys=True)))
            return
        self.seen.add(bytes.fromhex(id))
        if self.rows and (self.size + size > self.params.frame_bytes or len(self.rows) >= self.params.frame_rows):
            self.flush()
        url = None if candidate.url is None else sound_text(candidate.url)
        metadata = sound_text(json.dumps(dict(candidate.metadata), sort_keys=True, ensure_ascii=False, default=str))
        self.rows.append(
            (id, text, self.params.source, url, self.params.licence, candidate.fetched_at, None, None, metadata)
        )
        self.size += size
        self.bytes += size

    def _judge(self, candidate: Candidate, text: str, size: int, id: str) -> tuple[str | None, dict[str, object]]:
        if candidate.refused:
            return candidate.refused, dict(candidate.detail)
        if not text or text.isspace():
            return "empty", {}
        if size > self.params.max_document_bytes:
            return "too_large", {"value": size, "threshold": self.params.max_document_bytes}
        if bytes.fromhex(id) in self.seen:
            return "repeated", {"duplicate_of": id}
        return None, {}

    def flush(self) -> None:
        if not self.rows:
            return
        if self.last is not None:
            self.folder = self.folder or tempfile.TemporaryDirectory(prefix="ingest-")
            self.waiting.append(Path(self.folder.name) / f"{len(self.waiting):05d}.arrow")
            try:
                self.last.write_ipc(self.waiting[-1], compression="lz4")
            except OSError as error:
                raise LlmcoreError(f"no room for waiting shards in {self.folder.name} ({error}); set TMPDIR") from error
        self.last = pl.DataFrame(self.rows, schema=DOCUMENT_SCHEMA, orient="row")
        self.kept += len(self.rows)
        self.rows, self.size = [], 0

    def tables(self) -> Iterator[pl.DataFrame]:
        """All kept frames in order."""
        for path in self.waiting:
            yield pl.read_ipc(path)
            path.unlink()
        yield self.last if self.last is not None else pl.DataFrame(schema=DOCUMENT_SCHEMA)


def sound_text(text: str) -> str:
    """The text without NUL characters, and with U+FFFD for lone surrogates, which no UTF-8 file can hold."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\0", "")


STAGE = Stage(
    "ingest",
    version=2,
    role="ingest",
    params=IngestParams,
    function="llmcore.sources.ingest:ingest",
    kind="per_shard",
    reads=("files", "raw"),
    reads_paths=True,
    named=True,
    partition=(),
)
