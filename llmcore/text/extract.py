"""Extract: the main text of HTML pages; documents that are text already pass unchanged.

Method: resiliparse (Bevendorff et al. 2018), measured beside trafilatura 2.3 on every fifth page of the bundled site
(`benchmarks/extract.py`, one core):

                             pages/s   words of the content kept   words from elsewhere   navigation blocks let through
    resiliparse, main content    825                       90.0 %                  5.6 %                          34 %
    trafilatura                   30                       80.4 %                 10.6 %                          17 %
    trafilatura, no fallback      49                       79.5 %                 10.9 %                          19 %
    resiliparse, all text       1682                       95.7 %                 10.2 %                         100 %

resiliparse keeps more of the text at 27 times the speed and does not depend on the order of the pages (trafilatura with
deduplicate=True does); what navigation it lets through, `skip_elements` and clean's boilerplate lines take out.
"""

from __future__ import annotations

import json

import polars as pl
from pydantic import Field

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import ShardResult, Stage
from llmcore.schema import DROPPED_SCHEMA
from llmcore.text.page_text import PageTexts


class ExtractParams(Params):
    """What of a page is its text."""

    main_content: bool = Field(True, description="leave out navigation, footers and the like; false = all visible text")
    skip_elements: tuple[str, ...] = Field((), description="CSS selectors of elements to leave out")
    max_html_bytes: int = Field(8 * 1024 * 1024, ge=1, description="a larger page is dropped")
    timeout: float = Field(10.0, gt=0, description="seconds for one page; a page that takes longer is dropped")


def extract(documents: pl.DataFrame, params: ExtractParams) -> ShardResult:
    """Replace the HTML of each page by its text; drop pages that are empty, too large, too slow, or not parseable."""
    content_type = pl.col("metadata").str.json_path_match("$.content_type")
    is_html = documents.select(content_type.fill_null("") == "text/html").to_series()
    if not is_html.any():
        return ShardResult(
            {"kept": documents, "dropped": pl.DataFrame(schema=DROPPED_SCHEMA)}, {"pages": 0, "passed": len(documents)}
        )
    texts: list[str | None] = []
    drops: list[tuple[str, str, str, str]] = []
    with PageTexts(params.timeout, params.main_content, params.skip_elements) as pages:
        for id, html in documents.filter(is_html).select("id", "text").iter_rows():
            text, reason, detail = page_text(pages, html, params)
            texts.append(text)
            if reason:
                drops.append((id, "extract", reason, json.dumps(detail)))
    extracted = documents.filter(is_html).with_columns(
        text=pl.Series(texts, dtype=pl.String),
        metadata=pl.col("metadata").map_elements(_as_text, return_dtype=pl.String),
    )
    numbered = pl.concat(
        [_numbered(documents, is_html, extracted), _numbered(documents, ~is_html, documents.filter(~is_html))]
    )
    kept = numbered.sort("row").drop("row").filter(pl.col("text").is_not_null())
    dropped = pl.DataFrame(drops, schema=DROPPED_SCHEMA, orient="row")
    return ShardResult(
        {"kept": kept, "dropped": dropped}, {"pages": len(extracted), "passed": len(documents) - len(extracted)}
    )


def page_text(
    pages: PageTexts, html: str, params: ExtractParams
) -> tuple[str | None, str | None, dict[str, int | float]]:
    """(text, None, {}) or (None, reason, detail)."""
    size = len(html.encode())
    if size > params.max_html_bytes:
        return None, "too_large", {"value": size, "threshold": params.max_html_bytes}
    try:
        text = pages.text(html)
    except TimeoutError:
        return None, "extract_timeout", {"threshold": params.timeout}
    except ValueError:
        return None, "extract_failed", {}
    return (text, None, {}) if text else (None, "empty", {})


def _as_text(metadata: str) -> str:
    return json.dumps(
        {**json.loads(metadata), "content_type": "text/plain", "extracted_from": "text/html"},
        sort_keys=True,
        ensure_ascii=False,
    )


def _numbered(documents: pl.DataFrame, mask: pl.Series, part: pl.DataFrame) -> pl.DataFrame:
    return part.with_columns(row=mask.arg_true())


STAGE = Stage(
    "extract",
    version=1,
    role="extract",
    params=ExtractParams,
    function="llmcore.text.extract:extract",
    kind="per_shard",
)
