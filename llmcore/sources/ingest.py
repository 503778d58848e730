"""Ingest: raw files of any kind to documents with one schema; the id that a document gets here it keeps for good.

A document that cannot be one (another status than 200, no text, too large, …) goes to `dropped` with the reason, and so
does what is damaged (`bad_input`, with file, place and why); how much of that a source may hold is judged once all of
it was read (bad_input.py). HTML stays HTML here: `extract` finds the text in it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import ShardResult, Stage
from llmcore.errors import LlmcoreError
from llmcore.schema import DOCUMENT_SCHEMA, DROPPED_SCHEMA, document_id
from llmcore.sources import formats
from llmcore.sources.bad_input import BadInput
from llmcore.sources.formats import BAD_INPUT, Candidate
from llmcore.sources.warc import read_warc

READ_BYTES = 64 * 1024 * 1024  # of one record at least, whatever else than text is in it
WIDEST = 4  # bytes that a character has in a file, for each that it has in UTF-8 (UTF-32)


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
    max_document_bytes: int = Field(16 * 1024 * 1024, ge=1, description="UTF-8 bytes of one document at most")
    frame_bytes: int = Field(64 * 1024 * 1024, ge=1, description="text of one output shard, about")
    frame_rows: int = Field(50_000, ge=1, description="documents of one output shard at most")
    bad_input: BadInput = Field(BadInput(), description="how much of the source may be damaged")
    strict: bool = Field(False, description="the first damaged record stops the run")

    @property
    def read_bytes(self) -> int:
        """Bytes of one record, line or file that are read at most; what has more cannot be small enough."""
        return max(READ_BYTES, WIDEST * self.max_document_bytes)


def ingest(raw: Path, params: IngestParams, *, shard: str = "raw") -> ShardResult:
    """Documents of one raw file, in its order.

    Kept comes in frames of about frame_bytes; a large file's frames wait on disk, so that memory holds one at a time.
    bad_records counts what is damaged; unread_bytes, of raw_bytes, what of the file went with damage uncounted.
    Raises LlmcoreError, in one line that names the shard and the place, for damage if `strict`.
    """
    frames = _Frames(params)
    for candidate in candidates(raw, params, shard):
        frames.add(candidate)
    frames.flush()
    numbers = {
        "kept": frames.kept,
        "dropped": frames.dropped,
        "bytes": frames.bytes,
        "bad_records": frames.bad,
        "unread_bytes": frames.unread,
        "raw_bytes": raw.stat().st_size,
    }
    return ShardResult({"kept": frames.tables(), "dropped": frames.drops()}, numbers)


def candidates(raw: Path, params: IngestParams, shard: str) -> Iterator[Candidate]:
    """What the raw file holds, by the kind that the configuration says: never guessed from a name."""
    if params.kind == "warc":
        yield from read_warc(raw, shard, params.read_bytes)
        return
    if params.kind in ("text", "html"):
        yield from formats.read_bundle(raw, shard, params.kind == "html", params.read_bytes)
        return
    if params.kind == "jsonl":
        found = formats.read_jsonl(raw, shard, params.text_column, params.url_column, params.read_bytes)
    else:
        found = formats.read_table(raw, shard, params.text_column, params.url_column)
    kind = {"content_type": "text/html" if params.html_column else "text/plain"}
    for candidate in found:
        yield Candidate(**{**vars(candidate), "metadata": {**candidate.metadata, **kind}})


class _Frames:
    """Judges candidates and gathers them into frames; all frames but the last wait in files."""

    def __init__(self, params: IngestParams) -> None:
        self.params = params
        self.rows: list[tuple[object, ...]] = []
        self.left: list[tuple[str, str, str, str]] = []
        self.told: list[pl.DataFrame] = []
        self.seen: set[bytes] = set()
        self.kept = self.dropped = self.bytes = self.size = self.bad = self.unread = 0
        self.waiting: list[Path] = []
        self.last: pl.DataFrame | None = None
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, candidate: Candidate) -> None:
        text = sound_text(candidate.text)
        encoded = text.encode()
        size, id = len(encoded), document_id(self.params.source, encoded, candidate.url)
        reason, detail = self._judge(candidate, text, size, id)
        if reason == BAD_INPUT:
            self._count(detail)
        if reason:
            detail = {"url": candidate.url, **detail} if candidate.url else detail
            self.left.append((id, "ingest", reason, json.dumps(detail, sort_keys=True)))
            self.dropped += 1
            if len(self.left) == self.params.frame_rows:
                self.told.append(self._left())
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

    def _count(self, detail: Mapping[str, Any]) -> None:
        if self.params.strict:
            raise LlmcoreError(
                f"{detail['file']}: {detail['place']}: {detail['why']}; mend it, take it out of the source, or set "
                f"strict: false for {self.params.source!r}"
            )
        self.bad += 1
        self.unread += int(detail.get("unread_bytes", 0))

    def _judge(self, candidate: Candidate, text: str, size: int, id: str) -> tuple[str | None, dict[str, Any]]:
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

    def _left(self) -> pl.DataFrame:
        table = pl.DataFrame(self.left, schema=DROPPED_SCHEMA, orient="row")  # a fifth of what the rows take
        self.left = []
        return table

    def drops(self) -> pl.DataFrame:
        """All that was left out, in order."""
        return pl.concat([*self.told, self._left()])

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
    accept="llmcore.sources.bad_input:accept",
    limits=("bad_input", "strict"),
)
