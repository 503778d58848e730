"""What to do with files of a kind that no source reads, in words: for `kind: csv`, and for what `init` leaves out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

TABLE = "python -c \"import polars as p; p.read_{0}('FILE').write_parquet('FILE.parquet')\", then kind: parquet"
PANDOC = "pandoc -t plain FILE -o FILE.txt, then kind: text"
UNPACK = "unpack it, then name the folder with the kind of its files"

CONVERSIONS = {
    "csv": f"{TABLE.format('csv')} with text_column: the column that holds the text",
    "tsv": "python -c \"import polars as p; p.read_csv('FILE', separator='\\t').write_parquet('FILE.parquet')\", then "
    "kind: parquet with text_column: the column that holds the text",
    "json": "jq -c '.[]' FILE > FILE.jsonl, then kind: jsonl (one object a line)",
    "feather": TABLE.format("ipc"),
    "arrow": TABLE.format("ipc"),
    "xlsx": f"{TABLE.format('excel')} with text_column: the column that holds the text",
    "pdf": "pdftotext FILE FILE.txt, then kind: text",
    "docx": PANDOC,
    "odt": PANDOC,
    "epub": PANDOC,
    "rtf": PANDOC,
    "tex": PANDOC,
    "doc": "soffice --convert-to txt FILE, then kind: text",
    "zip": UNPACK,
    "tar": UNPACK,
    "tgz": UNPACK,
}
OTHER_NAMES = {
    "text": ("txt", "md", "markdown", "rst", "plain", "utf-8", "mbox", "log"),
    "html": ("htm", "xhtml"),
    "jsonl": ("ndjson", "json-lines", "jsonlines"),
    "parquet": ("pq",),
    "warc": ("wat", "wet", "archive"),
    "crawl": ("web", "website", "site", "url", "http", "https", "sitemap", "spider"),
}


def advice(kind: str, known: Sequence[str]) -> str:
    """What to do instead of a kind that there is not: its other name, a conversion, or the nearest of those known."""
    name = kind.strip().lower().lstrip(".")
    for right, others in OTHER_NAMES.items():
        if name in others:
            return f"say kind: {right}"
    if name in CONVERSIONS:
        return f"convert the files: {CONVERSIONS[name]}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else ""
