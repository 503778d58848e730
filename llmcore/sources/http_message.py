"""An HTTP response as a crawler stored it: its status, type and body, however large or untrue its headers are."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})\b")
_CHARSET = re.compile(r"""charset\s*=\s*["']?([^\s"';,]+)""", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")  # what no text holds (WHATWG MIME Sniffing, 3)
SNIFFED_BYTES = 1445  # that standard's resource header


@dataclass(frozen=True)
class Response:
    """content_type: in lower case without its parameters, "" where none is named. body: decoded."""

    status: int
    content_type: str
    charset: str | None
    body: bytes


def response(block: bytes, limit: int) -> Response:
    """Parse a response; of a body that unpacks to more than `limit` bytes, limit + 1 are returned.

    A coding that the body is not in (the crawler undid it, or the server told a lie) is passed over, as is one that
    nobody knows. Raises ValueError for what is no HTTP, and for a body that breaks off or is damaged.
    """
    end = _END.search(block)
    status = _STATUS.match(block)
    if not status:
        raise ValueError("no HTTP status line")
    head, body = (block[: end.start()], block[end.end() :]) if end else (block, b"")
    fields = _fields(head)
    content_type = fields.get("content-type", "")
    charset = _CHARSET.search(content_type)
    codings = [*_codings(fields, "content-encoding"), *_codings(fields, "transfer-encoding")]
    for coding in reversed(codings):
        if len(body) <= limit:
            body = _decoded(body, coding, limit)
    return Response(
        int(status[1]), content_type.split(";")[0].strip().lower(), charset[1] if charset else None, body[: limit + 1]
    )


def _fields(head: bytes) -> Mapping[str, str]:
    """Names in lower case -> the first value of each; codings of one name are joined by commas (RFC 9110, 5.3)."""
    fields: dict[str, str] = {}
    for line in re.sub(rb"\r?\n[ \t]+", b" ", head).split(b"\n")[1:]:
        name, _, value = (part.strip() for part in line.decode("latin-1").partition(":"))
        if name.lower() in fields and name.lower().endswith("-encoding"):
            fields[name.lower()] += f",{value}"
        else:
            fields.setdefault(name.lower(), value)
    return fields


def _codings(fields: Mapping[str, str], name: str) -> list[str]:
    return [coding.strip().lower().removeprefix("x-") for coding in fields.get(name, "").split(",")]


def _decoded(body: bytes, coding: str, limit: int) -> bytes:
    if coding == "chunked":
        return _joined(body)
    if coding not in ("gzip", "deflate", "br", "zstd") or not body:
        return body
    try:
        return _unpacked(body, coding, limit)
    except (OSError, zlib.error) as error:
        if not _BINARY.search(body[:SNIFFED_BYTES]):
            return body
        raise ValueError(f"its body is no sound {coding} ({error})") from error


def _unpacked(body: bytes, coding: str, limit: int) -> bytes:
    from fastwarc.stream_io import BrotliReader, ZstdReader

    if coding in ("br", "zstd"):
        return bytes((BrotliReader if coding == "br" else ZstdReader)(io.BytesIO(body)).read(limit + 1))
    try:
        return _inflated(body, limit, 47)  # gzip or zlib, whichever it is
    except zlib.error:
        if coding == "gzip":
            raise
        return _inflated(body, limit, -15)  # servers that take "deflate" at its word


def _inflated(body: bytes, limit: int, wbits: int) -> bytes:
    found = b""
    while body and len(found) <= limit:
        machine = zlib.decompressobj(wbits)
        found += machine.decompress(body, limit + 1 - len(found))
        if not machine.eof and len(found) <= limit:
            raise zlib.error("cut off")
        body = machine.unused_data
        if body[:2] != b"\x1f\x8b":  # not another member, but what some servers leave behind
            break
    return found


def _joined(body: bytes) -> bytes:
    """The chunks of a body (RFC 9112, 7.1); a body that begins with no chunk was joined by whoever stored it."""
    pieces: list[bytes] = []
    place = 0
    while size := _CHUNK.match(body, place):
        start, length = size.end(), int(size[1], 16)
        if not length:
            return b"".join(pieces)
        if start + length > len(body):
            raise ValueError("its last chunk is cut off")
        pieces.append(body[start : start + length])
        place = start + length
        place += 2 if body[place : place + 2] == b"\r\n" else body[place : place + 1] == b"\n"
    if pieces and place < len(body):
        raise ValueError("its chunks break off")
    return b"".join(pieces) if pieces else body
