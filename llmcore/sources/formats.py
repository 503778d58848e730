"""Readers: what lies in a WARC, JSONL, Parquet, text or HTML file, one candidate document at a time.

Damage is an error in one line that names the file and the place (offset, line, row); nothing is skipped silently.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

import polars as pl

from llmcore.errors import LlmcoreError, UsageError
from llmcore.sources.encodings import decode

HTML_TYPES = ("text/html", "application/xhtml+xml")
ROWS_AT_ONCE = 4096
RECORD_BYTES = 64 * 1024 * 1024  # a larger WARC record (a video, a bomb) is refused unread


@dataclass(frozen=True)
class Candidate:
    """A document before it is judged. refused: why it cannot be one (its text is then only looked at for the id)."""

    text: str
    url: str | None = None
    fetched_at: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    refused: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


def read_warc(path: Path, shard: str) -> Iterator[Candidate]:
    """Responses (HTML or text with status 200), resources and conversions, in the file's order; the rest as refused.

    WARC 1.0 and 1.1 (ISO 28500), gzip, zstd or none. Requests, metadata and warcinfo records are no documents.
    Raises LlmcoreError naming the offset of a damaged record, also where the file is cut off.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    documents = (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.conversion, WarcRecordType.revisit)
    offset = -1
    try:
        # an open file, because the iterator tells compression by the name when it is given one
        with path.open("rb") as file:
            for record in ArchiveIterator(file, parse_http=False):
                offset = record.stream_pos
                vast = record.content_length > RECORD_BYTES
                block = b"" if vast else record.reader.read()
                found = record.reader.consume() if vast else len(block)
                if found != record.content_length:
                    raise OSError(f"{found} of {record.content_length} bytes")
                if record.record_type in documents:
                    yield _warc_candidate(record, block, found)
    except (OSError, ValueError) as error:
        where = f"after the record at offset {offset}" if offset >= 0 else "at its start"
        raise LlmcoreError(
            f"{shard}: damaged WARC {where} ({error}); fetch the file again or take it out of the source"
        ) from error
    if offset >= 0:
        _check_warc_end(path, offset, shard)


def _warc_candidate(record: Any, block: bytes, size: int) -> Candidate:
    from fastwarc.warc import WarcRecordType

    url = record.headers.get("WARC-Target-URI")
    url = url.strip("<>") if url else None
    facts: dict[str, Any] = {"url": url, "fetched_at": _warc_date(record.headers.get("WARC-Date"))}
    if record.record_type == WarcRecordType.revisit:
        return Candidate(
            "", **facts, refused="revisit", detail={"refers_to": record.headers.get("WARC-Refers-To-Target-URI")}
        )
    if size > RECORD_BYTES:
        return Candidate("", **facts, refused="too_large", detail={"value": size, "threshold": RECORD_BYTES})
    content_type, charset, body = record.headers.get("Content-Type") or "", None, block
    if record.is_http and record.record_type == WarcRecordType.response:
        record.set_bytes_content(block)
        record.parse_http(auto_decode="all")
        body = record.reader.read(RECORD_BYTES + 1)
        if len(body) > RECORD_BYTES:  # a compressed body may be much larger than its record
            return Candidate("", **facts, refused="too_large", detail={"threshold": RECORD_BYTES})
        status = record.http_headers.status_code
        content_type, charset = record.http_content_type or "", record.http_charset
        if status != 200:
            return Candidate(body.decode("latin-1"), **facts, refused="status", detail={"status": status})
    content_type = content_type.split(";")[0].strip().lower()
    if content_type in HTML_TYPES or (not content_type and looks_like_html(body)):
        return Candidate(decode(body, charset, html=True), **facts, metadata={"content_type": "text/html"})
    if content_type == "text/plain":
        return Candidate(decode(body, charset), **facts, metadata={"content_type": "text/plain"})
    return Candidate(body.decode("latin-1"), **facts, refused="not_text", detail={"content_type": content_type})


def _warc_date(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        date = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)


def _check_warc_end(path: Path, offset: int, shard: str) -> None:
    """The reader takes a file cut off inside a record's header for its end: look at what follows the last record."""
    if path.stat().st_size - offset > RECORD_BYTES:
        return
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read()
    if rest[:2] == b"\x1f\x8b":
        member = zlib.decompressobj(wbits=31)
        try:
            rest = member.decompress(rest) + member.flush()
        except zlib.error:
            rest = b""
        if not member.eof or member.unused_data.strip(b"\0"):
            rest = b""
    elif not rest.startswith(b"WARC/"):
        return  # zstd, lz4: the reader itself notices a cut there
    header, end, content = rest.partition(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length:\s*(\d+)", header)
    if not end or not length or content[int(length[1]) :].strip(b"\r\n\0"):
        raise LlmcoreError(f"{shard}: damaged WARC after the record at offset {offset} (cut off); fetch the file again")


def read_jsonl(path: Path, shard: str, text: str, url: str | None, bad_line: str) -> Iterator[Candidate]:
    """One JSON object a line; the other fields become metadata. bad_line: "error", or "drop" with the line number."""
    with opened(path) as lines:
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"{type(row).__name__} instead of an object")
                except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
                    if bad_line == "error":
                        said = str(error).split(":")[0]
                        raise LlmcoreError(
                            f"{shard}: line {number} is no JSON object ({said}); mend it or set bad_line: drop"
                        ) from error
                    yield Candidate(line.decode("latin-1"), refused="bad_line", detail={"line": number})
                    continue
                if number == 1 and text not in row:
                    raise UsageError(
                        f"{shard}: line 1 has no field {text!r}; name the text's field in text_column ({_names(row)})"
                    )
                yield row_candidate(row, text, url, {"line": number})
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise LlmcoreError(f"{shard}: damaged compressed file after line {number} ({error})") from error


def read_table(parts: Iterable[pl.DataFrame], shard: str, text: str, url: str | None) -> Iterator[Candidate]:
    """One document a row; the other columns (but binary ones) become metadata."""
    row = 0
    for part in parts:
        if text not in part.columns:
            raise UsageError(
                f"{shard}: there is no column {text!r}; name the text's column in text_column ({_names(part.columns)})"
            )
        if part.schema[text] not in (pl.String, pl.Categorical, pl.Enum):
            raise UsageError(
                f"{shard}: column {text!r} holds {part.schema[text]}, not text; name another one in text_column"
            )
        others = [name for name, dtype in part.schema.items() if name != text and dtype != pl.Binary]
        fields = pl.struct(others).struct.json_encode() if others else pl.lit("{}")
        for content, metadata in part.select(pl.col(text).cast(pl.String), fields.alias("\0fields")).iter_rows():
            yield row_candidate({**json.loads(metadata), text: content}, text, url, {"row": row})
            row += 1


def parquet_parts(path: Path, shard: str) -> Iterator[pl.DataFrame]:
    """A Parquet file a few thousand rows at a time. Raises LlmcoreError, naming the row, for a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=ROWS_AT_ONCE):
            yield cast(pl.DataFrame, pl.from_arrow(batch))
            row += len(batch)
    except (OSError, pa.ArrowException) as error:
        said = str(error).splitlines()[0]
        raise LlmcoreError(f"{shard}: damaged Parquet file after row {row} ({said}); fetch the file again") from error


def row_candidate(row: dict[str, Any], text: str, url: str | None, place: Mapping[str, Any]) -> Candidate:
    """A candidate from one row of a table. `url` None: the field `url`, if there is one that holds text."""
    content = row.pop(text, None)
    address = row.pop(url or "url", None)
    metadata = {name: value for name, value in row.items() if value is not None}
    if not isinstance(content, str):
        return Candidate("", None, None, metadata, "no_text", {**place, "type": type(content).__name__})
    return Candidate(content, address if isinstance(address, str) else None, None, metadata)


def read_bundle(parts: Iterable[pl.DataFrame], html: bool) -> Iterator[Candidate]:
    """One document a file that collect bundled (name, content), possibly compressed. The name is its URL."""
    for name, content in (row for part in parts for row in part.select("name", "content").iter_rows()):
        try:
            with unpacked(io.BytesIO(content)) as file:
                content = file.read()
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise LlmcoreError(f"{name}: damaged compressed file ({error})") from error
        kind = "text/html" if html else "text/plain"
        if b"\0" in content[:8192] and content[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            yield Candidate(content.decode("latin-1"), name, refused="not_text", detail={"content_type": "binary"})
        else:
            yield Candidate(decode(content, html=html), name, metadata={"content_type": kind})


def looks_like_html(body: bytes) -> bool:
    """Does an untyped body begin as HTML does?"""
    return body[:512].lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def opened(path: Path) -> IO[bytes]:
    """A possibly compressed file as a binary stream."""
    return unpacked(path.open("rb"))


def unpacked(file: IO[bytes]) -> IO[bytes]:
    """The stream behind gzip, xz, bzip2 or zstd, told by the first bytes, not by a name."""
    magic = file.read(6)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.open(file))
    if magic == b"\xfd7zXZ\x00":
        return lzma.open(file)
    if magic[:3] == b"BZh":
        return cast(IO[bytes], bz2.open(file))
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        return cast(IO[bytes], io.BufferedReader(cast(Any, pa.CompressedInputStream(pa.PythonFile(file), "zstd"))))
    return file


def _names(names: Any) -> str:
    return "there are: " + ", ".join(list(names)[:12])
