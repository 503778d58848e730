"""What a document is: the public contract of every Parquet file between ingest and split.

Documents: one row each, zstd. Dropped: one row for each document that a stage removed, so that nothing disappears
silently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from llmcore.errors import LlmcoreError

DOCUMENT_SCHEMA = pl.Schema(
    {
        "id": pl.String(),  # 32 hex digits, set at ingest, never changed later
        "text": pl.String(),
        "source": pl.String(),
        "url": pl.String(),
        "licence": pl.String(),  # SPDX identifier or "unknown"
        "fetched_at": pl.Datetime("us", "UTC"),
        "lang": pl.String(),
        "lang_score": pl.Float32(),
        "metadata": pl.String(),  # JSON object
    }
)

DROPPED_SCHEMA = pl.Schema({"id": pl.String(), "stage": pl.String(), "reason": pl.String(), "detail": pl.String()})

REQUIRED = ("id", "text", "source", "licence")


def document_id(source: str, content: bytes | str, url: str | None = None) -> str:
    """128 bits (32 hex digits) of where in its source a document lies (source name, path of its URL) and what it holds.

    The path is part of it so that two pages with one text stay two documents, of which dedup can name each. The host
    and port are not: the same site served elsewhere gives the same ids, and so the same tokens and models.
    """
    state = hashlib.sha256()
    for part in (source, place_of(url)):
        encoded = part.encode("utf-8", "surrogatepass")
        state.update(len(encoded).to_bytes(8, "big"))
        state.update(encoded)
    state.update(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return state.hexdigest()[:32]


def place_of(url: str | None) -> str:
    """Where in its source a document lies: path and query of its URL; "" without one."""
    if url is None:
        return ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def dropped(
    documents: pl.DataFrame,
    stage: str,
    reason: str | pl.Expr,
    detail: Mapping[str, Any] | pl.Expr | None = None,
) -> pl.DataFrame:
    """Rows of DROPPED_SCHEMA for documents that a stage removes, in their order.

    reason: one word for all, or an expression over `documents`.
    detail: a mapping for all, or an expression that gives JSON (`detail_json` builds one from columns); None = "{}".
    """
    reasons = pl.lit(reason) if isinstance(reason, str) else reason
    if detail is None or isinstance(detail, Mapping):
        detail = pl.lit(json.dumps(dict(detail or {}), sort_keys=True, ensure_ascii=False))
    return documents.select(
        pl.col("id"),
        pl.lit(stage).alias("stage"),
        reasons.cast(pl.String).alias("reason"),
        detail.cast(pl.String).alias("detail"),
    ).cast(DROPPED_SCHEMA)


def detail_json(**columns: pl.Expr | str | int | float) -> pl.Expr:
    """A JSON object per row: `detail_json(rule="short", value=pl.col("words"), threshold=50)`."""
    fields = [(value if isinstance(value, pl.Expr) else pl.lit(value)).alias(name) for name, value in columns.items()]
    return pl.struct(fields).struct.json_encode()


def check_documents(documents: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return the frame unchanged if it keeps the contract; further columns (cluster, split) are welcome.

    Raises LlmcoreError in one line that names the file and the column.
    """
    for column, dtype in DOCUMENT_SCHEMA.items():
        if column not in documents.columns:
            raise LlmcoreError(f"{name}: column {column!r} is missing; documents have {', '.join(DOCUMENT_SCHEMA)}")
        if documents.schema[column] != dtype:
            raise LlmcoreError(f"{name}: column {column!r} is {documents.schema[column]}; it must be {dtype}")
    for column in REQUIRED:
        nulls = documents[column].null_count()
        if nulls:
            row = documents[column].is_null().arg_max()
            raise LlmcoreError(f"{name}: column {column!r} is null in {nulls} rows, first in row {row}")
    malformed = ~documents["id"].str.contains(r"^[0-9a-f]{32}$")
    if malformed.any():
        raise LlmcoreError(f"{name}: column 'id' in row {malformed.arg_max()} is not 32 hex digits")
    return documents
