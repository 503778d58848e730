"""WARC files (ISO 28500; 1.0 and 1.1; gzip, zstd or none), read past what is damaged in them.

A record that cannot be read is left out by its offset, and reading goes on at the next place that holds the beginning
of a record: a gzip member, a zstd frame, or a version line.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from llmcore.sources.encodings import decode
from llmcore.sources.formats import HTML_TYPES, Candidate, bad_input, looks_like_html
from llmcore.sources.http_message import response
from llmcore.sources.unpack import is_damage, opened, said

PIECE_BYTES = 1 << 20
HEADER_BYTES = 1 << 16  # of a record, in which its length is looked for
_BEGINNING = re.compile(rb"\x1f\x8b\x08|\x28\xb5\x2f\xfd|(?<=\n)WARC/[01]\.\d\r?\n")
_LENGTH = re.compile(rb"(?im)^content-length:\s*(\d{1,18})\s*$")
_LONGEST_BEGINNING = 16


@dataclass(frozen=True)
class _Record:
    """offset: where it begins in the file. size: of its block, which is empty where that is more than the limit."""

    record: Any
    offset: int
    block: bytes
    size: int


@dataclass(frozen=True)
class _Damage:
    """offset: where it begins. read: up to where the file was taken in when it showed."""

    offset: int
    why: str
    read: int


def read_warc(path: Path, shard: str, limit: int) -> Iterator[Candidate]:
    """Responses (HTML or text with status 200), resources and conversions, in the file's order; the rest as refused.

    Requests, metadata and warcinfo records are no documents. A record of more than `limit` bytes is refused unread.
    """
    from fastwarc.warc import WarcRecordType

    documents = (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.conversion, WarcRecordType.revisit)
    start: int | None = 0
    while start is not None:
        damage = None
        for found in _read_from(path, start, limit):
            if isinstance(found, _Damage):
                damage = found
            elif found.record.record_type in documents:
                yield _candidate(found, limit, shard)
        if damage is None:
            return
        start = _next_record(path, max(start, damage.offset) + 1)
        lost = (path.stat().st_size if start is None else start) - damage.read
        yield bad_input(shard, f"record at offset {damage.offset}", damage.why, unread=max(0, lost))


def _read_from(path: Path, start: int, limit: int) -> Iterator[_Record | _Damage]:
    """The records from an offset to the end of the file, or to the first damage, which comes last.

    A record is held back until the next one begins: a gzip member's checksum is behind it.
    """
    from fastwarc.warc import ArchiveIterator

    held: _Record | None = None
    why = ""
    with path.open("rb") as file:
        file.seek(start)
        # an open file, because the iterator tells compression by the name when it is given one
        records = iter(ArchiveIterator(file, parse_http=False))
        while True:
            begun = -1
            try:
                record = next(records, None)
                if record is None:
                    break
                begun = record.stream_pos
                found = _Record(record, begun, *_block(record, limit))
            except Exception as error:
                if not is_damage(error):
                    raise
                why = said(error)
                break
            if held is not None:
                yield held
            held = found
        read = file.tell()
    if begun >= 0:  # a record began, so what lies before it is whole
        if held is not None:
            yield held
        yield _Damage(begun, why, read)
        return
    size = path.stat().st_size
    end = start if held is None else _end(path, held.offset, size)
    if held is not None and end is None:
        yield _Damage(held.offset, why or "cut off", read)
        return
    if held is not None:
        yield held
    if why or end != size:
        yield _Damage(size if end is None else end, why or "what follows is no record", read)


def _block(record: Any, limit: int) -> tuple[bytes, int]:
    vast = record.content_length > limit
    block = b"" if vast else record.reader.read()
    size = record.reader.consume() if vast else len(block)
    if size != record.content_length:
        raise EOFError(f"{size} of {record.content_length} bytes")
    return block, size


def _candidate(found: _Record, limit: int, shard: str) -> Candidate:
    from fastwarc.warc import WarcRecordType

    record, block = found.record, found.block
    url = record.headers.get("WARC-Target-URI")
    url = url.strip("<>") if url else None
    facts: dict[str, Any] = {"url": url, "fetched_at": _date(record.headers.get("WARC-Date"))}
    if record.record_type == WarcRecordType.revisit:
        return Candidate(
            "", **facts, refused="revisit", detail={"refers_to": record.headers.get("WARC-Refers-To-Target-URI")}
        )
    if found.size > limit:
        return Candidate("", **facts, refused="too_large", detail={"value": found.size, "threshold": limit})
    content_type, charset, body = record.headers.get("Content-Type") or "", None, block
    if record.is_http and record.record_type == WarcRecordType.response:
        try:
            answer = response(block, limit)
        except ValueError as error:
            return bad_input(shard, f"record at offset {found.offset}", said(error), url=url)
        content_type, charset, body = answer.content_type, answer.charset, answer.body
        if len(body) > limit:  # a compressed body may be much larger than its record
            return Candidate("", **facts, refused="too_large", detail={"threshold": limit})
        if answer.status != 200:
            return Candidate(body.decode("latin-1"), **facts, refused="status", detail={"status": answer.status})
    content_type = content_type.split(";")[0].strip().lower()
    if content_type in HTML_TYPES or (not content_type and looks_like_html(body)):
        return Candidate(decode(body, charset, html=True), **facts, metadata={"content_type": "text/html"})
    if content_type == "text/plain":
        return Candidate(decode(body, charset), **facts, metadata={"content_type": "text/plain"})
    return Candidate(body.decode("latin-1"), **facts, refused="not_text", detail={"content_type": content_type})


def _date(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        date = datetime.fromisoformat(text.strip())
        return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # year 1 east of Greenwich lies before the first year
        return None


def _end(path: Path, offset: int, size: int) -> int | None:
    """Where the last record's successor would begin: at the end of the file, if all is well; None if it is damaged.

    The reader takes a file that is cut off inside a record's header for its end.
    """
    with path.open("rb") as file:
        file.seek(offset)
        begins = file.read(4)
        file.seek(offset)
        if begins[:2] == b"\x1f\x8b":
            end = _member_end(file)
        elif begins == b"WARC":
            end = _plain_end(file, size)
        elif offset and _compressed_whole(path):
            return size if _is_sound(path) else None
        else:
            return size  # zstd: the reader itself notices a cut there
        if end is None:
            return None
        file.seek(end)
        while piece := file.read(PIECE_BYTES):
            rest = piece.lstrip(b"\r\n\0")
            if rest:
                return end + len(piece) - len(rest)
            end += len(piece)
        return size


def _member_end(file: IO[bytes]) -> int | None:
    """Offset behind the gzip member that begins here; None if it is damaged or cut off."""
    member, end = zlib.decompressobj(wbits=31), file.tell()
    try:
        while piece := file.read(PIECE_BYTES):
            end += len(piece)
            while piece and not member.eof:
                member.decompress(piece, PIECE_BYTES)
                piece = member.unconsumed_tail
            if member.eof:
                return end - len(member.unused_data)
    except zlib.error:
        pass
    return None


def _plain_end(file: IO[bytes], size: int) -> int | None:
    begin = file.tell()
    header, blank, _ = file.read(HEADER_BYTES).partition(b"\r\n\r\n")
    length = _LENGTH.search(header)
    if not blank or not length:
        return None
    end = begin + len(header) + len(blank) + int(length[1])
    file.seek(min(end, size))
    return end if end <= size and file.read(2) in (b"", b"\r", b"\r\n") else None


def _compressed_whole(path: Path) -> bool:
    """Is the file one gzip stream, so that no record has an offset of its own?"""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _is_sound(path: Path) -> bool:
    try:
        with opened(path) as stream:
            while stream.read(PIECE_BYTES):
                pass
    except Exception as error:
        if not is_damage(error):
            raise
        return False
    return True


def _next_record(path: Path, offset: int) -> int | None:
    """Where the first record at or behind an offset begins; None if there is none."""
    with path.open("rb") as file:
        while True:
            file.seek(offset - 1)  # a version line is told by the end of the line before it
            piece = file.read(PIECE_BYTES)
            for found in _BEGINNING.finditer(piece, 1):
                if _begins(file, offset - 1 + found.start()):
                    return offset - 1 + found.start()
            if len(piece) < PIECE_BYTES:
                return None
            offset += len(piece) - 1 - _LONGEST_BEGINNING


def _begins(file: IO[bytes], offset: int) -> bool:
    """Does a record begin here?"""
    file.seek(offset)
    piece = file.read(HEADER_BYTES)
    try:
        if piece[:2] == b"\x1f\x8b":
            piece = zlib.decompressobj(wbits=31).decompress(piece, 5)
        elif piece[:1] == b"\x28":
            import pyarrow as pa

            piece = pa.CompressedInputStream(pa.BufferReader(piece), "zstd").read(5)
    except (OSError, zlib.error):
        return False
    return piece.startswith(b"WARC/")
