"""How much damaged input a source may hold: judged over the whole source, once all of its shards were read.

Two shares are told apart. *Records* are counted where they can be: the lines of a JSONL file, the records of a WARC
file, the files of a text or HTML source. Where nobody can say how many records went with the damage (the rest of a
compressed stream, a Parquet file's row group, a file of another kind), the *bytes* of the file as it lies are counted.
How a source is cut into files and shards decides neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files
from llmcore.errors import LlmcoreError
from llmcore.sources.collect import flat
from llmcore.sources.formats import BAD_INPUT


class BadInput(Params):
    """What of a source may be damaged before the run stops."""

    share: float = Field(
        0.01, ge=0, le=1, description="of the source's records, and of its bytes; one record may always be, but with 0"
    )


def accept(made: Files, fetched: Files, params: Any, metrics: Mapping[str, Any]) -> None:
    """Judge what ingest made of a source.

    Raises LlmcoreError, in one line that names the source, the count, the first place and the key, if more is damaged
    than `params.bad_input.share`, or if no document is left.
    """
    kept, records = metrics["kept"], metrics["kept"] + metrics["dropped"]
    damaged, unread, size = metrics["bad_records"], metrics["unread_bytes"], metrics["raw_bytes"]
    share = 0.0 if params.strict else params.bad_input.share
    allowed = max(share * records, 1 if share and kept else 0)
    if damaged > allowed or unread > share * size:
        parts = [
            f"{damaged:,} of {records:,} records {'is' if damaged == 1 else 'are'} damaged ({damaged / records:.2%})"
        ]
        if unread:
            parts.append(f"{unread:,} of {size:,} bytes cannot be read ({unread / size:.2%})")
        raise LlmcoreError(
            f"source {params.source!r}: {' and '.join(parts)}, first {_first(made, fetched, params.kind)}; mend it or "
            f"take it out of the source, or raise the source's bad_input.share (now {share:g})"
        )
    if not kept:
        reasons = _reasons(made)
        said = f"all {records:,} documents are unusable ({reasons})" if records else f"no {params.kind} file holds any"
        raise LlmcoreError(f"source {params.source!r}: empty corpus, {said}; check its `kind` and its files")


def _dropped(made: Files) -> Iterator[pl.DataFrame]:
    for name in made.names("dropped/"):
        yield pl.read_parquet(made.path(name), columns=["reason", "detail"])


def _first(made: Files, fetched: Files, kind: str) -> str:
    """File, place and why of the first damage, with the file's name as the user knows it."""
    for table in _dropped(made):
        details = table.filter(pl.col("reason") == BAD_INPUT)["detail"]
        if len(details):
            found = json.loads(details[0])
            return f"{_file(found['file'], fetched, kind)}, {found['place']}: {found['why']}"
    return "in a shard that was not kept"


def _file(shard: str, fetched: Files, kind: str) -> str:
    """The name of the file that was collected as this raw file."""
    for listing in fetched.names("collected/"):
        generation = listing.removeprefix("collected/").removesuffix(".parquet")
        for name in pl.read_parquet(fetched.path(listing), columns=["name"])["name"]:
            if shard.split(".")[0] == f"{generation}-{flat(name, kind)}".split(".")[0]:
                return str(name)
    return shard


def _reasons(made: Files) -> str:
    counts = pl.concat([pl.Series("reason", [], pl.String).to_frame(), *(t.select("reason") for t in _dropped(made))])
    rows = counts.group_by("reason").len().sort("len", "reason", descending=[True, False]).iter_rows()
    return ", ".join(f"{reason} {count:,}" for reason, count in rows)
