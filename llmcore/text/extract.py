"""Extract: the main text of HTML pages; documents that are text already pass unchanged.

Method: resiliparse (Bevendorff et al. 2018) parses the page and writes its text; `main_content` says which elements are
the site's instead of the page's, because resiliparse's own rules lose lists and boxes in the body: 27 % of the Debian
handbook. `docs/extraction.md` has the figures, beside trafilatura's. A page's text depends on that page alone, which
trafilatura's with deduplicate=True does not. Lines that a site repeats and no name gives away, `trim` takes out.
"""

from __future__ import annotations

import json
from typing import Any

import polars as pl
from pydantic import Field, field_validator

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import ShardResult, Stage
from llmcore.schema import DROPPED_SCHEMA
from llmcore.text.page_text import PageText, PageTexts, check_selector

REMOVED_SCHEMA = pl.Schema({"id": pl.String(), "characters": pl.UInt32(), "whole": pl.Boolean()})


class ExtractParams(Params):
    """What of a page is its text."""

    main_content: bool = Field(True, description="leave out navigation, footers and the like; false = all visible text")
    skip_elements: tuple[str, ...] = Field((), description="CSS selectors of elements to leave out")
    keep_elements: tuple[str, ...] = Field((), description="CSS selectors of elements to keep, whatever else leaves")
    min_share: float = Field(
        0.8,
        ge=0,
        le=1,
        description="where the main content is less of the text without nav, header and footer, all that stays",
    )
    max_html_bytes: int = Field(8 * 1024 * 1024, ge=1, description="a larger page is dropped")
    timeout: float = Field(10.0, gt=0, description="seconds for one page; a page that takes longer is dropped")

    @field_validator("skip_elements", "keep_elements")
    @classmethod
    def _selects(cls, selectors: tuple[str, ...]) -> tuple[str, ...]:
        for selector in selectors:
            check_selector(selector)
        return selectors

    def of_a_page(self) -> dict[str, Any]:
        """What `main_text` takes."""
        return self.model_dump(include={"main_content", "skip_elements", "keep_elements", "min_share"})


def extract(documents: pl.DataFrame, params: ExtractParams) -> ShardResult:
    """Replace the HTML of each page by its text; drop pages that are empty, too large, too slow, or not parseable.

    `removed/` says of each page that lost something how many of its visible characters (HTML's own, lists' bullets and
    the like counted as the extractor writes them), and whether the main part alone would have been too little.
    """
    content_type = pl.col("metadata").str.json_path_match("$.content_type")
    is_html = documents.select(content_type.fill_null("") == "text/html").to_series()
    texts: list[str | None] = []
    drops: list[tuple[str, str, str, str]] = []
    removed: list[tuple[str, int, bool]] = []
    visible = 0
    if is_html.any():
        with PageTexts(params.timeout, **params.of_a_page()) as pages:
            for id, html in documents.filter(is_html).select("id", "text").iter_rows():
                page, reason, detail = page_text(pages, html, params)
                texts.append(page.text if page else None)
                if page:
                    visible += page.visible
                    removed.append((id, max(0, page.visible - len(page.text)), page.whole))
                else:
                    drops.append((id, "extract", reason, json.dumps(detail)))
    extracted = documents.filter(is_html).with_columns(
        text=pl.Series(texts, dtype=pl.String),
        metadata=pl.col("metadata").map_elements(_as_text, return_dtype=pl.String),
    )
    numbered = pl.concat(
        [_numbered(documents, is_html, extracted), _numbered(documents, ~is_html, documents.filter(~is_html))]
    )
    outputs = {
        "kept": numbered.sort("row").drop("row").filter(pl.col("text").is_not_null()),
        "dropped": pl.DataFrame(drops, schema=DROPPED_SCHEMA, orient="row"),
        "removed": pl.DataFrame(removed, schema=REMOVED_SCHEMA, orient="row").filter(pl.col("characters") > 0),
    }
    metrics = {
        "pages": len(extracted),
        "passed": len(documents) - len(extracted),
        "characters_visible": visible,
        "characters_removed": sum(characters for _, characters, _ in removed),
        "main_part_too_small": sum(whole for *_, whole in removed),
    }
    return ShardResult(outputs, metrics)


def page_text(
    pages: PageTexts, html: str, params: ExtractParams
) -> tuple[PageText | None, str, dict[str, int | float]]:
    """(what was found, "", {}) or (None, reason, detail)."""
    size = len(html.encode())
    if size > params.max_html_bytes:
        return None, "too_large", {"value": size, "threshold": params.max_html_bytes}
    try:
        page = pages.text(html)
    except TimeoutError:
        return None, "extract_timeout", {"threshold": params.timeout}
    except ValueError:
        return None, "extract_failed", {}
    return (page, "", {}) if page.text else (None, "empty", {})


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
    version=2,
    role="extract",
    params=ExtractParams,
    function="llmcore.text.extract:extract",
    kind="per_shard",
)
