"""Readers: what lies in a JSONL, Parquet, text or HTML file, one candidate document at a time (WARC: warc.py).

What is damaged stands among the candidates as `bad_input` with file, place (line, row) and why; nothing is skipped
silently, and no more is read of anything than the limit.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import polars as pl

from llmcore.sources.encodings import decode
from llmcore.sources.unpack import is_damage, lines_of, said, unpacked

HTML_TYPES = ("text/html", "application/xhtml+xml")
BAD_INPUT = "bad_input"
ROWS_AT_ONCE = 4096
BATCH_BYTES = 32 * 1024 * 1024
DEEPEST = 100  # levels of a JSON row
FOREIGN = 1000  # rows by which a file of another kind is told


@dataclass(frozen=True)
class Candidate:
    """A document before it is judged. refused: why it cannot be one (its text is then only looked at for the id)."""

    text: str
    url: str | None = None
    fetched_at: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    refused: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


def bad_input(file: str, place: str, why: str, *, url: str | None = None, unread: int = 0) -> Candidate:
    """What stands for something damaged, so that it is left out by name.

    unread: bytes of the file, as it lies, that went with it and of which nobody knows how many records they hold.
    """
    detail: dict[str, Any] = {"file": file, "place": place, "why": why}
    if unread:
        detail["unread_bytes"] = unread
    return Candidate(f"{file}\0{place}", url, refused=BAD_INPUT, detail=detail)


def read_jsonl(path: Path, shard: str, text: str, url: str | None, limit: int) -> Iterator[Candidate]:
    """One JSON object a line; the other fields become metadata. A line of more than `limit` bytes is refused unread.

    A file is of another kind, and no more of it is read, if none of its first FOREIGN lines is an object, or none of
    the first FOREIGN objects has the text's field (none of all, where there are fewer).
    """
    without: list[int] | None = []  # rows that lack the field, as long as none has it
    names, bad, size = "", 0, path.stat().st_size
    for number, line in _numbered(path, shard, limit):
        if isinstance(line, Candidate):
            yield line
            continue
        if not line.strip():
            continue
        try:
            row = _object(line)
        except ValueError as error:
            yield bad_input(shard, f"line {number}", f"no JSON object ({said(error)})")
            bad += 1
            if bad == FOREIGN and without == []:
                why = f"none of the first {FOREIGN} lines is a JSON object; check `kind`"
                yield bad_input(shard, f"after line {number}", why, unread=size)
                return
            continue
        if without is not None and text not in row:
            without.append(number)
            names = names or _names(row)
            if len(without) == FOREIGN:
                break
            continue
        for earlier in without or ():
            yield row_candidate({}, text, url, {"line": earlier})
        without = None
        yield row_candidate(row, text, url, {"line": number})
    if without:
        why = f"no field {text!r}; name the text's field in text_column ({names})"
        yield bad_input(shard, f"line {without[0]}", why, unread=size)


def _numbered(path: Path, shard: str, limit: int) -> Iterator[tuple[int, bytes | Candidate]]:
    """The lines of a possibly compressed file, or what stands for one that is too long and for a damaged rest."""
    number = 0
    with path.open("rb") as file:
        try:
            for number, line in enumerate(lines_of(unpacked(file), limit), start=1):
                if line is None:
                    detail = {"line": number, "threshold": limit}
                    yield number, Candidate(f"{shard}\0{number}", refused="too_large", detail=detail)
                else:
                    yield number, line
        except Exception as error:
            if not is_damage(error):
                raise
            unread = path.stat().st_size - file.tell()
            yield number, bad_input(shard, f"after line {number}", said(error), unread=unread)


def _object(line: bytes) -> dict[str, Any]:
    """Raises ValueError for what is none; those of JSON and of UTF-8 are such."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg.removesuffix(' at')} at character {error.pos}") from None
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    if isinstance(row, (dict, list)) and (line.count(b"[") + line.count(b"{") > DEEPEST and _is_deep(row)):
        raise ValueError(f"nested more than {DEEPEST} deep")
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__} instead of an object")
    return row


def _is_deep(row: Any) -> bool:
    """Is it nested more than DEEPEST deep? Python's own limit depends on who calls, and on who reads it later."""
    level = [row]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def read_table(path: Path, shard: str, text: str, url: str | None) -> Iterator[Candidate]:
    """One document a row; the other columns (but binary ones) become metadata. A file without the text's column is
    left out whole."""
    try:
        for part in parquet_parts(path, shard, lambda frame: _with_fields(frame, text)):
            if isinstance(part, Candidate):
                yield part
                continue
            for row, (content, fields) in enumerate(part[1].iter_rows(), start=part[0]):
                yield row_candidate({**json.loads(fields), text: content}, text, url, {"row": row})
    except _NoTextError as error:
        yield bad_input(shard, "its columns", str(error), unread=path.stat().st_size)


class _NoTextError(Exception):
    """A table has no column of text."""


def _with_fields(frame: pl.DataFrame, text: str) -> pl.DataFrame:
    """Two columns: the text, and the other fields as JSON."""
    if text not in frame.columns:
        raise _NoTextError(f"no column {text!r}; name the text's column in text_column ({_names(frame.columns)})")
    if frame.schema[text] not in (pl.String, pl.Categorical, pl.Enum):
        raise _NoTextError(f"column {text!r} holds {frame.schema[text]}, not text; name another one in text_column")
    others = [name for name, dtype in frame.schema.items() if name != text and dtype != pl.Binary]
    fields = pl.struct(others).struct.json_encode() if others else pl.lit("{}")
    return frame.select(pl.col(text).cast(pl.String), fields.alias("\0fields"))


def parquet_parts(
    path: Path, shard: str, choose: Callable[[pl.DataFrame], pl.DataFrame]
) -> Iterator[tuple[int, pl.DataFrame] | Candidate]:
    """What is chosen of a Parquet file, some rows at a time, each part with the number of its first row.

    Reading goes on at the next row group behind a damaged place.
    """
    import pyarrow.parquet as pq

    size, row = path.stat().st_size, 0
    try:
        file = pq.ParquetFile(path)
        groups = [max(0, file.metadata.row_group(number).num_rows) for number in range(file.num_row_groups)]
    except Exception as error:
        if not is_damage(error):
            raise
        yield bad_input(shard, "its footer", said(error), unread=size)
        return
    for group, rows in enumerate(groups):
        done = 0
        try:
            for batch in file.iter_batches(_batch_rows(file, group), row_groups=[group]):
                batch.validate(full=True)  # polars would take strings that are no UTF-8 for a defect of its own
                yield row + done, choose(cast(pl.DataFrame, pl.from_arrow(batch)))
                done += len(batch)
        except (Exception, pl.exceptions.PanicException) as error:
            polars = isinstance(error, (pl.exceptions.PolarsError, pl.exceptions.PanicException))
            if not polars and not (isinstance(error, Exception) and is_damage(error)):
                raise
            lost = min(1.0, max(0, rows - done) / max(1, sum(groups)))
            yield bad_input(shard, f"row {row + done}", said(error), unread=int(lost * size))
        row += rows


def _batch_rows(file: Any, group: int) -> int:
    """Rows that are read at once, so that those of long texts fit in memory too."""
    about = file.metadata.row_group(group)
    return int(min(ROWS_AT_ONCE, max(1, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size))))


def row_candidate(row: dict[str, Any], text: str, url: str | None, place: Mapping[str, Any]) -> Candidate:
    """A candidate from one row of a table. `url` None: the field `url`, if there is one that holds text or a number."""
    content = row.pop(text, None)
    address = row.pop(url or "url", None)
    metadata = {name: value for name, value in row.items() if value is not None}
    if not isinstance(content, str):
        return Candidate("", None, None, metadata, "no_text", {**place, "type": type(content).__name__})
    if isinstance(address, int) and not isinstance(address, bool):
        address = str(address)
    return Candidate(content, address if isinstance(address, str) else None, None, metadata)


def read_bundle(path: Path, shard: str, html: bool, limit: int) -> Iterator[Candidate]:
    """One document a file that collect bundled (name, content), possibly compressed. The name is its URL.

    Of a file that unpacks to more than `limit` bytes no more is read.
    """
    kind = "text/html" if html else "text/plain"
    for part in parquet_parts(path, shard, lambda frame: frame.select("name", "content")):
        if isinstance(part, Candidate):
            yield part
            continue
        for name, packed in part[1].iter_rows():
            try:
                with unpacked(io.BytesIO(packed)) as file:
                    content = file.read(limit + 1)
            except Exception as error:
                if not is_damage(error):
                    raise
                yield bad_input(name, "the file", said(error), url=name)
                continue
            if len(content) > limit:
                yield Candidate(name, name, refused="too_large", detail={"threshold": limit})
            elif b"\0" in content[:8192] and content[:2] not in (b"\xff\xfe", b"\xfe\xff"):
                yield Candidate(content.decode("latin-1"), name, refused="not_text", detail={"content_type": "binary"})
            else:
                yield Candidate(decode(content, html=html), name, metadata={"content_type": kind})


def looks_like_html(body: bytes) -> bool:
    """Does an untyped body begin as HTML does?"""
    return body[:512].lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _names(names: Any) -> str:
    return "there are: " + ", ".join(list(names)[:12])
